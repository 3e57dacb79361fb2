"""Fields of dataset.json, as both versions of nnU-Net, the Decathlon and we write them; every value is checked.

Unknown fields belong to other programs and are ignored.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

from napari_fmseg.core.structuring import read_table, structure

__all__ = ["CaseEntry", "DatasetTable", "as_dataset_table", "labels_in", "read_dataset_table"]

_LARGEST_LABEL = 65535


@dataclass(frozen=True)
class CaseEntry:
    """A case in one of the lists; each of image, label and name has two spellings."""

    image: str | tuple[str, ...] | None = None
    images: str | tuple[str, ...] | None = None
    label: str | None = None
    labels: str | None = None
    case: str | int | None = None
    name: str | int | None = None
    classes: str | tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        for name in (self.case, self.name):
            _check_name(str(name or ""))


@dataclass(frozen=True)
class DatasetTable:
    """The fields of dataset.json that we know."""

    labels: Mapping[str, int | str | tuple[int, ...]]
    channel_names: Mapping[str, str | int] | str | None = None
    modality: Mapping[str, str | int] | str | None = None
    file_ending: str | None = None
    training: tuple[CaseEntry | str, ...] = ()
    validation: tuple[CaseEntry | str, ...] = ()
    training_partial: tuple[CaseEntry, ...] = ()
    validation_partial: tuple[CaseEntry, ...] = ()
    unlabelled: tuple[CaseEntry | str, ...] = ()
    test: tuple[CaseEntry | str, ...] = ()
    dataset: Mapping[str, CaseEntry] | str | None = None
    classes: Mapping[str, tuple[str, ...]] | tuple[str, ...] | str | int | None = field(default=None)

    def __post_init__(self) -> None:
        if isinstance(self.dataset, Mapping):
            for name in self.dataset:
                _check_name(name)
        labels_in(self.labels)
        for entry in (*self.training_partial, *self.validation_partial):
            if not entry.classes:
                name = str(entry.case or entry.name or entry.image or entry.images)[:80]
                raise ValueError(f"{name!r} is listed as labelled in part, but has no 'classes' that say with which")
        for what, named in (("channel_names", self.channel_names), ("modality", self.modality)):
            for key in named if isinstance(named, Mapping) else ():
                if not key.isdecimal():
                    raise ValueError(f"{what} has {key[:80]!r} where a number is expected")


def read_dataset_table(folder: Path) -> dict[str, Any]:
    """Read and check the dataset.json of a folder; unknown fields are kept.

    Raises
    ------
    OSError
        If it cannot be opened.
    ValueError
        If it is no table, or one of the known fields cannot be what it is; names it.
    """
    table = read_table(folder / "dataset.json")
    as_dataset_table(table)
    return table


def as_dataset_table(table: Mapping[str, Any]) -> DatasetTable:
    """Return the known fields of a dataset.json; `ValueError` names one that is missing or cannot be what it is."""
    return structure(DatasetTable, table, known_only=True)


def labels_in(labels: Mapping[str, Any]) -> tuple[dict[int, str], int | None]:
    """Read name to number, number to name, and regions (name to several numbers).

    Returns
    -------
    tuple
        Class names by number without the background; the number that means "not labelled", or None.

    Raises
    ------
    ValueError
        If a number is none, or is larger than any label can be.
    """
    found: dict[int, str] = {}
    ignore = None
    parts: list[int] = []
    for key, value in labels.items():
        if str(key).isdecimal():
            found[_label(key, key)] = str(value)
        elif isinstance(value, list | tuple):
            parts += [_label(v, key) for v in value]
            if len(value) == 1:
                found[_label(value[0], key)] = str(key)
        elif str(key) == "ignore":
            ignore = _label(value, key)
        else:
            found[_label(value, key)] = str(key)
    for part in parts:  # only regions that hold several numbers say what it is
        found.setdefault(part, f"label {part}")
    return {value: name for value, name in sorted(found.items()) if value != 0}, ignore


def _label(value: object, key: str) -> int:
    text = str(value)
    if not text.isdecimal() or len(text) > 9 or int(text) > _LARGEST_LABEL:
        raise ValueError(f"labels.{key[:80]} is a whole number from 0 to {_LARGEST_LABEL}, not {text[:80]!r}")
    return int(text)


def _check_name(name: str) -> None:
    """Refuse a case name that would lead files out of the folder."""
    parts = {*PurePosixPath(name).parts, *PureWindowsPath(name).parts}
    if ".." in parts or PurePosixPath(name).is_absolute() or PureWindowsPath(name).anchor:
        raise ValueError(f"a case cannot be called {name[:80]!r}, which leads out of the folder")
