"""The classes of a label map: which occur, names for their files, a selection of them."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import replace

import numpy as np

from napari_fmseg.core.volume import LabelMap

__all__ = ["class_name", "file_stems", "only", "present"]

_UNWRITABLE = re.compile(r"[\x00-\x1f\x7f-\x9f\ud800-\udfff\ufffe\uffff]")
"""Control characters, halves of a character, and what XML forbids."""


def present(labels: LabelMap) -> list[int]:
    """List the values above 0 that occur, in ascending order, in one pass."""
    data = labels.data
    low, high = int(data.min()), int(data.max())
    if high >= 1 << 20 or low < -(1 << 20):  # too wide for a table of what was seen
        return [int(value) for value in np.unique(data) if value > 0]
    seen = np.zeros(high - low + 1, bool)
    for plane in data:
        seen[plane.astype(np.intp) - low] = True
    return [value for value in (np.flatnonzero(seen) + low).tolist() if value > 0]


def class_name(labels: LabelMap, value: int) -> str:
    """Name a class in one line that every format can hold; one without a name is called by its number."""
    return " ".join(_UNWRITABLE.sub(" ", str(labels.names.get(value, ""))).split()) or f"label {value}"


def only(labels: LabelMap, values: Iterable[int]) -> LabelMap:
    """Keep some classes; the others become background and lose their names."""
    wanted = set(values)
    data = np.where(np.isin(labels.data, list(wanted)), labels.data, 0)
    names = {value: name for value, name in labels.names.items() if value in wanted}
    colors = {value: color for value, color in labels.colors.items() if value in wanted}
    return replace(labels, data=data.astype(labels.data.dtype, copy=False), names=names, colors=colors)


def file_stems(labels: LabelMap, values: Iterable[int]) -> dict[int, str]:
    """Make a file name without a suffix for each class, safe on every system and different from all others."""
    stems: dict[int, str] = {}
    taken: set[str] = set()
    for value in values:
        stem = re.sub(r"[^\w-]+", "_", class_name(labels, value)).strip("_") or f"label_{value}"
        while stem.casefold() in taken:
            stem = f"{stem}_{value}"
        taken.add(stem.casefold())
        stems[value] = stem
    return stems
