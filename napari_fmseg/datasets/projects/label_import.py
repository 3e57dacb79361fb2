"""Labels from any tool, in the numbers of a project: matched by name, on the image's grid, unlabelled voxels marked."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from napari_fmseg.core.errors import FmsegError, GeometryMismatch
from napari_fmseg.core.volume import Geometry, LabelMap
from napari_fmseg.datasets.nnunet_json import DatasetInfo, add_classes
from napari_fmseg.datasets.projects.painted_slices import PaintedSlices
from napari_fmseg.datasets.projects.scan import labelled_share
from napari_fmseg.io.voxel_values import smallest_integer

__all__ = ["LabelOptions", "Labelled", "import_labels"]


@dataclass(frozen=True)
class LabelOptions:
    """How labels are understood.

    Parameters
    ----------
    resample
        Read labels that lie on another grid on the image's, nearest voxel. Without it they are refused.
    unlabelled
        What was not labelled: ``"nothing"`` (a voxel without a label is background), ``"empty-slices"`` (a slice
        without any label was not looked at) or ``"zeros"`` (scribbles: only painted voxels count, and background is
        painted with a label called background). ``"unstated"`` is nothing, but is refused where only a few slices seem
        to have been painted. A label called ignore always means not labelled.
    axis
        Along which axis of the array slices were labelled: 0 z, 1 y, 2 x.
    classes
        The classes that were looked for in this case; () takes those that the labels name, else all.
    new_classes
        Take classes that the project does not have yet.
    """

    resample: bool = False
    unlabelled: str = "unstated"
    axis: int = 0
    classes: tuple[str, ...] = ()
    new_classes: bool = False

    def __post_init__(self) -> None:
        if self.unlabelled not in ("unstated", "nothing", "empty-slices", "zeros") or self.axis not in (0, 1, 2):
            raise FmsegError(
                "What is unlabelled is unstated, nothing, empty-slices or zeros, along axis 0, 1 or 2; not "
                f"{self.unlabelled!r} along {self.axis}."
            )


@dataclass(frozen=True)
class Labelled:
    """Labels as the project has them.

    Attributes
    ----------
    labels
        (z, y, x) in the project's numbers, with its names.
    facts
        The project's, with new classes and the ignore label where they were needed.
    classes
        What the labels tell of.
    sparse
        Whether voxels are marked as not labelled.
    share
        Of slices with labels, 0..1.
    """

    labels: LabelMap
    facts: DatasetInfo
    classes: tuple[str, ...]
    sparse: bool
    share: float


def import_labels(
    labels: LabelMap,
    grid: Geometry,
    facts: DatasetInfo,
    options: LabelOptions,
    folder: Path,
    *,
    before: tuple[str, ...] = (),
) -> Labelled:
    """Convert labels to the classes and the grid of a project.

    Classes are matched by name where the labels have names (capitals do not matter), else by number.

    Parameters
    ----------
    labels
        From any tool.
    grid
        Of the image.
    facts
        Of the project.
    options
        See `LabelOptions`.
    folder
        Of the project.
    before
        The classes that the case told of before, taken where nothing else says.

    Raises
    ------
    GeometryMismatch
        If they lie on another grid and `options.resample` is False, or the grids are turned against each other.
    FmsegError
        If there is a class that the project does not have and `options.new_classes` is False, a number that has no
        name, a class beside the stated ones, or only a few slices were painted and nobody said what the others mean.
    """
    names = {value: name.strip() for value, name in labels.names.items() if value != 0 and name.strip()}
    labels, outside = _on(labels, grid, options)
    present = [int(v) for v in np.unique(labels.data) if v != 0]
    meaning = _meaning(names, present, facts)
    sparse_words = (
        options.unlabelled in ("empty-slices", "zeros") or "ignore" in meaning.values() or bool(outside.any())
    )
    unknown = dict.fromkeys(n for n in meaning.values() if n not in (*facts.numbers, "ignore", "background"))
    stated = tuple(_match_name(name, [*facts.numbers, *unknown]) or name for name in options.classes)
    unknown |= dict.fromkeys(name for name in stated if name not in (*facts.numbers, *unknown))
    if unknown and not options.new_classes:
        raise FmsegError(
            f"The project has no class {', '.join(map(repr, unknown))}, but {', '.join(facts.numbers)}. Name the "
            "labels after these, say that new classes are wanted (--new-classes), or rename the class of the project "
            "(`fmseg project rename-class`)."
        )
    found = {meaning[value] for value in present} - {"ignore", "background"}
    if stated and found - {*stated}:
        surplus = ", ".join(sorted(found - {*stated}))
        raise FmsegError(
            f"The case is said to tell of {', '.join(stated)}, but it has voxels of {surplus}. "
            "State all classes that were looked for, or remove those voxels."
        )
    new = add_classes(facts, tuple(unknown), sparse=sparse_words, folder=folder) if unknown or sparse_words else facts
    data, ignored = _renumber(labels.data, meaning, new, options, outside)
    if options.unlabelled == "unstated" and not ignored.any():
        _check_whole(PaintedSlices.of(data, grid))
    named = {name for name in meaning.values() if name in new.numbers} if names else {*before, *found}
    classes = stated or (tuple(n for n in new.numbers if n in named) if names or before else tuple(new.numbers))
    if not ignored.any() and "ignore" not in meaning.values():  # asked for, but everything is labelled
        new = add_classes(facts, tuple(unknown), sparse=False, folder=folder) if unknown else facts
    told = {**new.labels, **({new.ignore: "ignore"} if new.ignore is not None and ignored.any() else {})}
    return Labelled(
        LabelMap(data, grid, {}, told, {}), new, classes, bool(ignored.any()), labelled_share(ignored)
    )  # fmt: skip


def _check_whole(found: PaintedSlices) -> None:
    if found.look_partial:
        raise FmsegError(
            f"Only {found.painted} of {found.total} slices have labels: were the others looked at? If they were and "
            "hold no structure, say so (--unlabelled nothing); if not, let them count as not labelled (--unlabelled "
            "empty-slices)."
        )


def _on(labels: LabelMap, grid: Geometry, options: LabelOptions) -> tuple[LabelMap, npt.NDArray[np.bool_]]:
    """Return the labels on the image's grid, and which of its voxels lie outside of them."""
    if labels.geometry.matches(grid, atol_mm=0.1):
        return labels, np.zeros(grid.shape, bool)
    if not options.resample:
        raise GeometryMismatch(
            f"The labels lie on another grid than the image: {labels.geometry.shape} voxels at "
            f"{np.round(labels.geometry.origin, 1).tolist()} mm, the image {grid.shape} at "
            f"{np.round(grid.origin, 1).tolist()} mm. Export them on the image's grid, or allow "
            "resampling (--resample)."
        )
    found, outside = _nearest(labels, grid)
    return LabelMap(found, grid, {}, labels.names), outside


def _nearest(labels: LabelMap, grid: Geometry) -> tuple[npt.NDArray[np.generic], npt.NDArray[np.bool_]]:
    """Read labels at the voxels of another grid, however turned, plane by plane; say which lie outside."""
    to_source = np.linalg.inv(labels.geometry.affine) @ grid.affine
    z, y, x = grid.shape
    found, outside = np.zeros(grid.shape, labels.data.dtype), np.ones(grid.shape, bool)
    rows, columns = np.mgrid[:y, :x].reshape(2, -1)
    size = np.array(labels.geometry.shape)
    for plane in range(z):
        at = np.stack([np.full(len(rows), plane), rows, columns, np.ones(len(rows))])
        index = np.floor((to_source @ at)[:3].T + 0.5).astype(np.int64)
        inside = ((index >= 0) & (index < size)).all(1)
        found[plane].reshape(-1)[inside] = labels.data[tuple(index[inside].T)]
        outside[plane].reshape(-1)[inside] = False
    return found, outside


def _meaning(names: Mapping[int, str], present: list[int], facts: DatasetInfo) -> dict[int, str]:
    """Return for every number of the labels its class in the project, or the new one."""
    meaning = {}
    for value in sorted({*names, *present}):
        word = names.get(value, "")
        if not word and value == facts.ignore:
            word = "ignore"
        word = word or facts.labels.get(value, "")
        if not word:
            known = ", ".join(f"{number} {name}" for number, name in facts.labels.items())
            raise FmsegError(
                f"The labels hold the number {value}, which has no name, and the project does not know it: {known}. "
                "Name the label, or remove its voxels."
            )
        meaning[value] = _match_name(word, [*facts.numbers, "ignore", "background"]) or word
    return meaning


def _match_name(word: str, names: list[str]) -> str:
    """Find a name, first as it is written, then whatever its capitals."""
    return word if word in names else next((n for n in names if n.casefold() == word.casefold()), "")


def _renumber(
    data: npt.NDArray[np.generic],
    meaning: Mapping[int, str],
    facts: DatasetInfo,
    options: LabelOptions,
    outside: npt.NDArray[np.bool_],
) -> tuple[npt.NDArray[np.integer], npt.NDArray[np.bool_]]:
    """Return the data in the project's numbers, and which voxels were not labelled."""
    ignore = -1 if facts.ignore is None else facts.ignore
    numbers = {**facts.numbers, "background": 0, "ignore": ignore}
    out = np.zeros(data.shape, smallest_integer(-1, max([0, ignore, *facts.labels])))
    for value, name in meaning.items():
        out[data == value] = numbers[name]
    ignored: npt.NDArray[np.bool_] = outside | ((out == ignore) if ignore >= 0 else np.zeros(out.shape, bool))
    others = tuple(a for a in range(3) if a != options.axis)
    if options.unlabelled == "zeros":
        ignored |= data == 0
    elif options.unlabelled == "empty-slices":
        ignored |= ~(data != 0).any(others, keepdims=True)
    out[ignored] = max(ignore, 0)
    return out.astype(smallest_integer(0, int(out.max()))), ignored
