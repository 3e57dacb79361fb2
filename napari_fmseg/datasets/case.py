"""One labelled or unlabelled case: its files, reading them, labels that are to be ignored."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from napari_fmseg.core.errors import GeometryMismatch, InvalidRecipe
from napari_fmseg.core.structuring import structure
from napari_fmseg.core.volume import LabelMap, Volume
from napari_fmseg.datasets.dataset_json import CaseEntry
from napari_fmseg.io import read_labels
from napari_fmseg.io.channels import differ, read_channels

__all__ = ["IGNORE", "Case", "missing_in", "read_case"]


def missing_in(case: Case, names: Mapping[int, str], labels: Sequence[str]) -> tuple[int, ...]:
    """Return the recipe's labels, from 1 on, that a case was never labelled with; refuse classes of no dataset."""
    if not case.classes:
        return ()
    unknown = [name for name in case.classes if name not in names.values()]
    if unknown:
        raise InvalidRecipe(
            f"{case.name} says that it was labelled with {unknown[0]!r}, which is none of the classes "
            f"{', '.join(names.values())}. Correct its classes."
        )
    return tuple(i for i, name in enumerate(labels, 1) if name not in case.classes)


def read_case(case: Case, names: Mapping[int, str], labels: Sequence[str], ignore: int = 0) -> tuple[Volume, LabelMap]:
    """Read a case; its labels are renumbered to the recipe's order, and what nobody labelled becomes `IGNORE`.

    Parameters
    ----------
    case
        With labels.
    names
        Class names by the number in the file.
    labels
        The recipe's class names; others become background.
    ignore
        The number in the file that means "not labelled"; 0 for the one that `names` calls "ignore".

    Returns
    -------
    tuple
        Image and labels. The labels' warnings count the voxels whose number `names` does not have.

    Raises
    ------
    InvalidRecipe
        If the case has no labels, or the channels do not lie on one grid.
    GeometryMismatch
        If the labels do not lie on the image.
    """
    if case.labels is None:
        raise InvalidRecipe(f"{case.name} has no labels. Only labelled cases can be trained or validated on.")
    volume, truth = read_channels(case.images), read_labels(case.labels)
    if wrong := differ(volume.geometry, truth.geometry):
        raise GeometryMismatch(
            f"{case.name}: the files do not lie on one grid: the labels are {wrong}. Export them on the image's grid."
        )
    surplus = max([ignore, *names]) + 1  # stands for every higher number
    table = np.zeros(surplus + 1, np.uint8)
    for value, name in names.items():
        if name in labels:
            table[value] = labels.index(name) + 1
        elif name == IGNORE_NAME and not ignore:
            table[value] = IGNORE
    numbered = dict(enumerate(labels, 1))
    data = truth.data.clip(0, max(0, min(surplus, int(truth.data.max()))))  # below 0 it would count from the end
    marks = table[data]
    if ignore:
        marks[truth.data == ignore] = IGNORE
    meta = {key: truth.meta.get(key, []) for key in ("repaired", "warnings")}
    nameless = np.ones(len(table), bool)
    nameless[[0, ignore, *names]] = False
    meta["warnings"] = [*meta["warnings"], *_warn_of_nameless(truth.data[nameless[data] | (truth.data < 0)])]
    return volume, LabelMap(marks, volume.geometry, meta, numbered)


def _warn_of_nameless(values: npt.NDArray[np.integer]) -> Iterator[str]:
    """Yield a sentence about voxels that no class has the number of, if there are any."""
    numbers = np.unique(values).tolist()
    if numbers:
        some = ", ".join(map(str, numbers[:5])) + (", ..." if numbers[5:] else "")
        yield f"{len(values):,} voxels have numbers of no class ({some}) and count as background."


IGNORE = 255

IGNORE_NAME = "ignore"


@dataclass(frozen=True)
class Case:
    """One patient's volume and its labels.

    Parameters
    ----------
    name
        What it is called in tables; never a patient's name.
    images
        One file per channel, or one file with all channels.
    labels
        The label file, or None.
    classes
        The classes that somebody looked for in this case, whether they are there or not; empty for all. In the
        background of the others it stays open whether it is background or one of them.
    """

    name: str
    images: tuple[Path, ...]
    labels: Path | None = None
    classes: tuple[str, ...] = ()


def case_from(entry: Any, folder: Path) -> Case:
    """Read one entry of a list of cases; paths are relative to `folder`.

    Raises
    ------
    ValueError
        If it names no image, or a value of it cannot be what it is.
    """
    return _case_of(structure(CaseEntry, entry, "case.", known_only=True), folder)


def _case_of(entry: CaseEntry, folder: Path) -> Case:
    """Return the case of an entry; paths are relative to `folder`."""
    images = entry.images or entry.image or ()
    images = (images,) if isinstance(images, str) else images
    if not images or "" in images:
        raise ValueError(f"a case needs an image: {entry.case or entry.name or 'one'} has none")
    labels = entry.labels or entry.label
    name = str(entry.name or entry.case or _stem(Path(images[0])))
    if isinstance(entry.classes, str):
        raise ValueError(f"the classes of case {name!r} are a list of names, not {entry.classes!r}")
    return Case(
        name, tuple(folder / i for i in images), folder / labels if labels else None, tuple(entry.classes or ())
    )


def _stem(path: Path) -> str:
    """Name a file without its ending; dots within the name stay, as in DICOM's numbers."""
    name = path.name.removesuffix(".gz")
    return name.rpartition(".")[0] or name
