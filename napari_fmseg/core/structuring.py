"""From a JSON or TOML file to a table, and from a table to a frozen dataclass: every value is checked.

Such files come from users and from elsewhere. Whatever is wrong with one is a ValueError that names the key and fits
into a sentence.
"""

from __future__ import annotations

import dataclasses
import json
import math
import reprlib
import tomllib
import warnings
from collections.abc import Container, Iterator, Mapping
from functools import cache
from pathlib import Path, PureWindowsPath
from types import UnionType
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

__all__ = [
    "OLD_SPELLINGS",
    "OldSpelling",
    "Range",
    "is_file_name",
    "notify_old_spelling",
    "read_table",
    "structure",
    "with_new_spellings",
    "with_old_spellings",
    "wrong_number",
]

T = TypeVar("T")

OLD_SPELLINGS: Mapping[str, str] = {
    "min_part_ml": "min_component_ml",
    "coarse_parts": "coarse_max_components",
    "coarse_least_ml": "coarse_min_ml",
    "fine_parts": "fine_max_components",
    "fine_least_ml": "fine_min_ml",
    "hard_times": "hard_case_weight",
    "keep_weights": "l2sp_weight",
    "keep_answers": "distillation_weight",
}
"""Fields of files and options of the command line that were renamed; the old names are read until `OLD_NAMES_END`."""

OLD_NAMES_END = "0.3.0"

_LARGEST_FILE = 256 << 20
_LARGEST_INTEGER = 2**63 - 1


class OldSpelling(FutureWarning):
    """A file or a command uses a name that was replaced and will end."""


_shown = reprlib.Repr()
_shown.maxstring = _shown.maxother = 120
_shown.maxlong = 40


def read_table(path: Path, *, toml: bool = False) -> dict[str, Any]:
    """Read a JSON file whose content is an object, or a TOML file.

    Parameters
    ----------
    path
        In UTF-8, with a byte order mark or without.
    toml
        Whether it is TOML.

    Raises
    ------
    OSError
        If it cannot be opened.
    ValueError
        If it is not a file, is too large, is not text, or is not such a table.
    """
    size = path.stat().st_size
    if not path.is_file() or size > _LARGEST_FILE:
        raise ValueError(f"{path.name} is no file of at most {_LARGEST_FILE >> 20} MB")
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"it is not text in UTF-8 (byte {error.start})") from error
    if not text.strip("\0 \t\r\n"):
        raise ValueError("it is empty")
    try:
        table = tomllib.loads(text) if toml else json.loads(text)
        if "\\u" in text:
            json.dumps(table, ensure_ascii=False, default=str).encode()
    except RecursionError as error:
        raise ValueError("its lists or tables are nested too deeply") from error
    except UnicodeEncodeError as error:
        raise ValueError("it has half a character (a lone surrogate)") from error
    if not isinstance(table, dict):
        raise ValueError(f"it holds {_shown.repr(table)} where a table was expected")
    return table


def is_file_name(name: str) -> bool:
    """Return whether a text can name a file on any system: no folder, no drive, nothing hidden, nothing unprintable."""
    return bool(name) and name == PureWindowsPath(name).name and not name.startswith(".") and name.isprintable()


@dataclasses.dataclass(frozen=True)
class Range:
    """From which number to which; an end that is `open` does not belong to it. It never holds nan or infinity."""

    low: float = 0
    high: float = math.inf
    open: str = ""

    def holds(self, value: object) -> bool:
        """Return whether a value is a finite number within."""
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            return False
        return (self.low < value if "low" in self.open else self.low <= value) and (
            value < self.high if "high" in self.open else value <= self.high
        )

    def __str__(self) -> str:
        low = f" above {self.low:g}" if "low" in self.open else f" of at least {self.low:g}"
        high = f" {'below' if 'high' in self.open else 'at most'} {self.high:g}"
        ends = ["" if self.low == -math.inf else low, "" if self.high == math.inf else high]
        return "a finite number" + " and".join(end for end in ends if end)


def wrong_number(thing: object, ranges: Mapping[str, Range], where: str = "") -> str:
    """Return which numeric field of a dataclass is out of its range; "" if none is.

    Parameters
    ----------
    thing
        Its fields may be numbers, None, or tuples of numbers.
    ranges
        By the name of the field.
    where
        What stands before a field's name.
    """
    for name, wanted in ranges.items():
        for value in _numbers_in(getattr(thing, name)):
            if not wanted.holds(value):
                return f"{where}{name} is {wanted}, not {_shown.repr(value)}"
    return ""


def _numbers_in(value: object) -> Iterator[object]:
    if isinstance(value, tuple | list):
        for one in value:
            yield from _numbers_in(one)
    elif value is not None:
        yield value


def structure(
    kind: type[T], table: Mapping[str, Any], where: str = "", *, finite: bool = True, known_only: bool = False
) -> T:
    """Make a dataclass from a table; lists become tuples, inner tables dataclasses.

    Parameters
    ----------
    kind
        The dataclass. Its fields may be text, numbers, paths, dataclasses, tuples and mappings of these, or None.
    table
        Its fields by name.
    where
        What stands before a field's name in messages, such as ``"augment."``.
    finite
        Refuse numbers that are nan or infinite.
    known_only
        Pass over what the dataclass has no field for: it belongs to another program.

    Raises
    ------
    ValueError
        If a field is unknown, missing or of the wrong type; names it.
    """
    if not isinstance(table, Mapping):
        raise ValueError(f"{where.rstrip('.') or 'it'} cannot be {_shown.repr(table)}; expected a table")
    known = {f.name: f for f in dataclasses.fields(kind)}  # type: ignore[arg-type]
    table = with_new_spellings(table, known, where)
    if known_only:
        table = {name: value for name, value in table.items() if name in known}
    surplus = sorted(table.keys() - known.keys())
    if surplus:
        raise ValueError(f"there is no field {where}{surplus[0]}; known are {', '.join(known)}")
    nothing = dataclasses.MISSING
    needed = [n for n, f in known.items() if f.default is nothing and f.default_factory is nothing]
    missing = [name for name in needed if name not in table]
    if missing:
        raise ValueError(f"the field {where}{missing[0]} is missing")
    hints = _hints(kind)  # type: ignore[arg-type]
    how = _How(finite, known_only)
    return kind(**{name: _convert(value, hints[name], where + name, how) for name, value in table.items()})


def notify_old_spelling(old: str, new: str) -> None:
    """Warn that a name was replaced, which one replaces it, and in which version the old one ends."""
    text = f"{old} is now called {new}; the old name is read until version {OLD_NAMES_END}. Please use the new one."
    warnings.warn(text, OldSpelling, stacklevel=3)


def with_new_spellings(table: Mapping[str, Any], known: Container[str], where: str = "") -> Mapping[str, Any]:
    """Replace old names of `known` fields in a table, with a warning each; `ValueError` if both names are there."""
    old_names = [old for old in table if OLD_SPELLINGS.get(old) in known and old not in known]
    for old in old_names:
        new = OLD_SPELLINGS[old]
        if new in table:
            raise ValueError(f"{where}{old} and {where}{new} are one field; keep {new}")
        notify_old_spelling(where + old, where + new)
    return {OLD_SPELLINGS[name] if name in old_names else name: value for name, value in table.items()}


def with_old_spellings(table: Mapping[str, Any]) -> dict[str, Any]:
    """Return a table, and the tables in it, with the names that earlier versions gave to their fields."""
    old_names = {new: old for old, new in OLD_SPELLINGS.items()}
    return {
        old_names.get(name, name): with_old_spellings(value) if isinstance(value, Mapping) else value
        for name, value in table.items()
    }


@dataclasses.dataclass(frozen=True)
class _How:
    """What holds at every depth."""

    finite: bool
    known_only: bool


@cache
def _hints(kind: type) -> dict[str, Any]:
    """Return the resolved annotations; cached, since a table may hold hundreds of the same type."""
    return get_type_hints(kind)


def _convert(value: Any, hint: Any, name: str, how: _How) -> Any:
    """Convert `value` to the type `hint`."""
    origin, inner = get_origin(hint), get_args(hint)
    if hint is Any:
        return value
    if hint in (int, float) and type(value) in (int, hint):
        return _number(value, name, how)
    if hint is str and isinstance(value, str) and "\0" in value:
        raise ValueError(f"{name} cannot be {_shown.repr(value)}; expected text without null characters")
    if isinstance(hint, type) and type(value) is hint:
        return value
    if origin is UnionType:
        return _one_of(value, inner, hint, name, how)
    if origin is tuple and isinstance(value, list | tuple):
        kinds = [inner[0]] * len(value) if inner[1:] == (...,) else list(inner)
        if len(kinds) == len(value):
            pairs = enumerate(zip(value, kinds, strict=True))
            return tuple(_convert(v, k, f"{name}[{i}]", how) for i, (v, k) in pairs)
    if origin is Mapping and isinstance(value, Mapping):
        return {_key(k, inner[0], name): _convert(v, inner[1], f"{name}.{k}", how) for k, v in value.items()}
    if dataclasses.is_dataclass(hint) and isinstance(hint, type) and isinstance(value, Mapping):
        return structure(hint, value, f"{name}.", finite=how.finite, known_only=how.known_only)
    if hint is Path and isinstance(value, str | Path) and "\0" not in str(value):
        return Path(value)
    raise ValueError(f"{name} cannot be {_shown.repr(value)}; expected {_describe(hint)}")


def _number(value: int | float, name: str, how: _How) -> int | float:
    """Return a number, or raise ValueError if it is not finite or out of range."""
    if isinstance(value, int) and abs(value) > _LARGEST_INTEGER:
        raise ValueError(f"{name} cannot be {_shown.repr(value)}; expected a number of at most 64 bits")
    if how.finite and not math.isfinite(value):
        raise ValueError(f"{name} cannot be {value}; expected a finite number")
    return value


def _one_of(value: Any, kinds: tuple[Any, ...], hint: Any, name: str, how: _How) -> Any:
    """Convert `value` to the first of several types that accepts it."""
    if value is None and type(None) in kinds:
        return None
    kinds = tuple(kind for kind in kinds if kind is not type(None))
    alike = [kind for kind in kinds if _is_table(kind) == isinstance(value, Mapping)]
    alike = [kind for kind in alike if (get_origin(kind) is tuple) == isinstance(value, list | tuple)]
    if len(kinds) == 1 or (len(alike) == 1 and isinstance(value, Mapping | list | tuple)):  # its own message says more
        return _convert(value, (alike or kinds)[0], name, how)
    for kind in kinds:
        try:
            return _convert(value, kind, name, how)
        except ValueError:
            continue
    raise ValueError(f"{name} cannot be {_shown.repr(value)}; expected {_describe(hint)}")


def _is_table(kind: Any) -> bool:
    return get_origin(kind) is Mapping or dataclasses.is_dataclass(kind)


def _key(key: Any, hint: Any, name: str) -> Any:
    """Convert a key to the annotated type; TOML has keys of text only."""
    if hint is not int:
        return _convert(key, hint, f"a key of {name}", _How(True, False))
    try:
        number = int(key)
    except ValueError as error:
        raise ValueError(f"{name} has {_shown.repr(key)} where a number is expected") from error
    if abs(number) > _LARGEST_INTEGER:
        raise ValueError(f"{name} has {_shown.repr(key)} where a number of at most 64 bits is expected")
    return number


def _describe(hint: Any) -> str:
    words = {str: "text", int: "a whole number", float: "a number", bool: "true or false", Path: "a path"}
    origin, inner = get_origin(hint), get_args(hint)
    if origin is tuple:
        return f"a list of {_describe(inner[0])}" if inner[1:] == (...,) else f"{len(inner)} of {_describe(inner[0])}"
    if origin is UnionType:
        return " or ".join(_describe(kind) for kind in inner if kind is not type(None))
    return words.get(hint, "a table")
