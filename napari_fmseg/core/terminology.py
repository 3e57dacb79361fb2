"""Title, colour and SNOMED CT code of a class; a general code for unknown ones."""

from __future__ import annotations

import colorsys
import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache

from napari_fmseg.core.package import data_folder
from napari_fmseg.core.structuring import structure

__all__ = ["Code", "LabelInfo", "class_color", "label_info"]


@dataclass(frozen=True)
class Code:
    """A concept of a coding scheme, as DICOM writes it.

    Attributes
    ----------
    value
        Such as ``"10200004"``.
    meaning
        The same in words: ``"Liver"``.
    scheme
        ``"SCT"`` is SNOMED CT.
    """

    value: str
    meaning: str
    scheme: str = "SCT"


@dataclass(frozen=True)
class LabelInfo:
    """What is known of a class.

    Attributes
    ----------
    title
        Its name for people.
    category, kind
        What DICOM calls the category and the type of a segmented property.
    modifiers
        Which side or part of `kind` it is.
    color
        Red, green, blue in 0..1; None if there is no usual one.
    aliases
        Other names of it. The order of words and the way of joining them never matter.
    alias_of
        If not "", the aliases hold only for models with this word in their name.
    is_known
        False where the codes are the general ones.
    """

    title: str
    category: Code
    kind: Code
    modifiers: tuple[Code, ...] = ()
    color: tuple[float, float, float] | None = None
    aliases: tuple[str, ...] = ()
    alias_of: str = ""
    is_known: bool = True


_TISSUE = Code("85756007", "Tissue")  # CID 7150 and CID 7151
_GENERAL = LabelInfo("", _TISSUE, _TISSUE, is_known=False)


def label_info(name: str, *, model: str = "") -> LabelInfo:
    """Return colour, code and title of a class, by its name.

    Parameters
    ----------
    name
        Such as ``"parotid_left"``; ``"Left parotid"`` is the same.
    model
        The model it comes from, if any: some names say little without it (``"anterior"`` of the hippocampus).

    Returns
    -------
    LabelInfo
        For an unknown name the general code "Tissue", the name itself as title, and no colour.
    """
    words = _words(name)
    for info, names, aliases in _label_table():
        if words in names or (words in aliases and info.alias_of in model.lower()):
            return info
    return replace(_GENERAL, title=" ".join(name.split()) or "label")


def class_color(label: int) -> tuple[float, float, float]:
    """Return the colour of a class that has none of its own: neighbours are a golden angle apart on the hue circle."""
    return colorsys.hsv_to_rgb((0.02 + 0.381966 * (label - 1)) % 1, 0.75, 0.95)


def _words(name: str) -> tuple[str, ...]:
    """Sort the words of a name: "Left parotid" and "parotid_left" are one thing."""
    return tuple(sorted(re.findall(r"[^\W_]+", name.casefold())))


_Entry = tuple[LabelInfo, frozenset[tuple[str, ...]], frozenset[tuple[str, ...]]]


@cache
def _label_table() -> tuple[_Entry, ...]:
    found: list[_Entry] = []
    for path in sorted((data_folder("resources") / "labels").glob("*.toml")):
        tables: Mapping[str, Mapping[str, object]] = tomllib.loads(path.read_text(encoding="utf-8"))
        for name, table in tables.items():
            info = structure(LabelInfo, table, f"{path.name}: {name}.")
            found.append((info, frozenset({_words(name), _words(info.title)}), frozenset(map(_words, info.aliases))))
    return tuple(found)
