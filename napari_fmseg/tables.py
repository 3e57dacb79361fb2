"""From a TOML table to a frozen dataclass: every value is checked against the annotation of its field."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from types import UnionType
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

__all__ = ["dataclass_from"]

T = TypeVar("T")


def dataclass_from(kind: type[T], table: Mapping[str, Any], where: str = "") -> T:
    """Make a dataclass from a table; lists become tuples, inner tables dataclasses.

    Parameters
    ----------
    kind
        The dataclass. Its fields may be text, numbers, paths, dataclasses, tuples and mappings of these, or None.
    table
        Its fields by name.
    where
        What stands before a field's name in messages, such as ``"augment."``.

    Raises
    ------
    ValueError
        If a field is unknown, missing or of the wrong type; names it.
    """
    known = {f.name: f for f in dataclasses.fields(kind)}  # type: ignore[arg-type]
    surplus = sorted(table.keys() - known.keys())
    if surplus:
        raise ValueError(f"there is no field {where}{surplus[0]}; known are {', '.join(known)}")
    nothing = dataclasses.MISSING
    needed = [n for n, f in known.items() if f.default is nothing and f.default_factory is nothing]
    missing = [name for name in needed if name not in table]
    if missing:
        raise ValueError(f"the field {where}{missing[0]} is missing")
    hints = _hints(kind)  # type: ignore[arg-type]
    return kind(**{name: _fitted(value, hints[name], where + name) for name, value in table.items()})


@cache
def _hints(kind: type) -> dict[str, Any]:
    """Look up the annotations once: a table may hold hundreds of the same kind."""
    return get_type_hints(kind)


def _fitted(value: Any, hint: Any, name: str) -> Any:
    """Give `value` as `hint` wants it."""
    origin, inner = get_origin(hint), get_args(hint)
    if hint is Any or (isinstance(hint, type) and type(value) is hint):
        return value
    if origin is UnionType:
        return None if value is None else _fitted(value, inner[0], name)
    if origin is tuple and isinstance(value, list | tuple):
        kinds = [inner[0]] * len(value) if inner[1:] == (...,) else list(inner)
        if len(kinds) == len(value):
            return tuple(_fitted(v, k, name) for v, k in zip(value, kinds, strict=True))
    if origin is Mapping and isinstance(value, Mapping):
        return {_key(k, inner[0], name): _fitted(v, inner[1], f"{name}.{k}") for k, v in value.items()}
    if dataclasses.is_dataclass(hint) and isinstance(hint, type) and isinstance(value, Mapping):
        return dataclass_from(hint, value, f"{name}.")
    if hint is Path and isinstance(value, str | Path):
        return Path(value)
    if hint is float and type(value) is int:
        return value
    raise ValueError(f"{name} cannot be {value!r}; expected {_said(hint)}")


def _key(key: Any, hint: Any, name: str) -> Any:
    """TOML knows keys of text only."""
    if hint is not int:
        return key
    try:
        return int(key)
    except ValueError as error:
        raise ValueError(f"{name} has {key!r} where a number is expected") from error


def _said(hint: Any) -> str:
    words = {str: "text", int: "a whole number", float: "a number", bool: "true or false", Path: "a path"}
    origin, inner = get_origin(hint), get_args(hint)
    if origin is tuple:
        return f"a list of {_said(inner[0])}" if inner[1:] == (...,) else f"{len(inner)} of {_said(inner[0])}"
    if origin is UnionType:
        return _said(inner[0])
    return words.get(hint, "a table")
