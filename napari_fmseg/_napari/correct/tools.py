"""The tools as jobs: what the visible slice becomes first, then the whole; plain functions that run in a thread."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from threading import Lock
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from napari_fmseg._napari.correct.tracking.slice_record import Stroke
from napari_fmseg.core.errors import FmsegError
from napari_fmseg.core.resampling import resample
from napari_fmseg.core.volume import LabelMap
from napari_fmseg.pipelines.correction import (
    CorrectionSpread,
    Edit,
    copy_class,
    fill_between_slices,
    fill_holes,
    grow,
    keep_component,
    merge_classes,
    remove_component,
    smooth,
    split_component,
    swap_classes,
)

__all__ = ["SPREAD", "Place", "Spread", "Tool", "copy", "fill", "holes", "islands", "merge", "resize", "smoothing",
           "split", "spread", "swap"]  # fmt: skip

SPREAD = "Spread the correction"
Labels: TypeAlias = npt.NDArray[Any]
Spacing: TypeAlias = tuple[float, float, float]


@dataclass(frozen=True)
class Place:
    """Where the user works.

    Parameters
    ----------
    value
        The active class.
    axis, index
        The slice on the screen.
    spacing
        Size of voxels in mm.
    finished
        Classes that must not change.
    """

    value: int
    axis: int
    index: int
    spacing: Spacing
    finished: tuple[int, ...] = ()

    @property
    def plane(self) -> tuple[int, int]:
        """Axis and slice."""
        return self.axis, self.index


@dataclass(frozen=True)
class Tool:
    """What a tool does.

    Parameters
    ----------
    title
        What it does, for the preview.
    whole
        Computes the edit from the labels, in a thread.
    visible
        Computes that of the visible slice before, where that is quicker.
    corrected
        Slices that count as corrected once it is accepted.
    nothing
        What to tell if nothing would change.
    """

    title: str
    whole: Callable[[Labels], Edit]
    visible: Callable[[Labels], Edit] | None = None
    corrected: Stroke | None = None
    nothing: str = "Nothing would change."


def slices_to_fill(labels: Labels, place: Place, corrected: tuple[int, ...], answer: Labels | None) -> tuple[int, ...]:
    """Return the slices between which a class is filled.

    Those that the user painted. Where no model found the class, also those on both sides of a gap: they were painted
    before anybody kept record, perhaps by another program.
    """
    if answer is not None and not _is_sparse(_slices_with(answer, place)):
        return corrected
    there = _slices_with(labels, place)
    gaps = np.flatnonzero(np.diff(there) > 1)
    return tuple(sorted({*corrected, *there[gaps].tolist(), *there[gaps + 1].tolist()}))


def _slices_with(labels: Labels, place: Place) -> npt.NDArray[np.intp]:
    """Return the slices that hold the class; plane by plane, which takes a tenth of the time of the whole at once."""
    if place.axis == 0:
        return np.flatnonzero([(plane == place.value).any() for plane in labels])
    seen = np.zeros(labels.shape[1:], bool)
    for plane in labels:
        seen |= plane == place.value
    return np.flatnonzero(seen.any(axis=2 - place.axis))


def _is_sparse(slices: npt.NDArray[np.intp]) -> bool:
    """Return whether slices look as if somebody painted single ones: most have no neighbour."""
    steps = np.diff(slices, prepend=-2, append=np.iinfo(np.intp).max) > 1
    return bool(2 * np.count_nonzero(steps[:-1] & steps[1:]) >= len(slices))


def fill(place: Place, corrected: tuple[int, ...], answer: Callable[[], Labels | None], name: str) -> Tool:
    """Fill the active class between painted slices; `answer` is what the labels were before they were corrected."""

    def edit(labels: Labels, plane: int | None) -> Edit:
        slices = slices_to_fill(labels, place, corrected, answer())
        if len(slices) < 2:
            what = "No slice was" if not slices else f"Only slice {slices[0]} was"
            raise FmsegError(
                f"{what} painted with “{name}” along this axis. Filling needs two or more: paint every third to tenth "
                "slice, then press Fill again."
            )
        return fill_between_slices(
            labels, place.value, slices, place.axis, place.spacing, protected=place.finished, plane=plane
        )

    classes = frozenset((place.value,))
    return Tool(
        f"Fill “{name}” between slices",
        lambda labels: edit(labels, None),
        lambda labels: edit(labels, place.index),
        Stroke(place.axis, dict.fromkeys(corrected, classes)),
        "The slices between the painted ones are filled already.",
    )


class Spread:
    """A correction that is being spread: measured once, shown for any fade."""

    def __init__(self, place: Place, slices: tuple[int, ...], answer: Callable[[], Labels | None]) -> None:
        self._place, self._slices, self._answer = place, slices, answer
        self._measured: CorrectionSpread | None = None
        self._lock = Lock()  # two threads must not measure the same

    def edit(self, labels: Labels, fade: float, *, visible: bool) -> Edit:
        """Return the edit of the visible slice, or that of all."""
        with self._lock:
            if self._measured is None:
                self._measured = self._measure(labels)
        return self._measured.edit(fade, self._place.index if visible else None)

    def _measure(self, labels: Labels) -> CorrectionSpread:
        answer = self._answer()
        if not self._slices or answer is None:
            raise FmsegError(
                "No slice was corrected along this axis since the model's answer. Correct one or more slices with the "
                "brush, then press Spread again."
            )
        if not answer.any():
            raise FmsegError(
                "These labels were empty before you painted, so there is no model's answer to correct. To fill a class "
                "between painted slices, press Fill between slices."
            )
        place = self._place
        return CorrectionSpread(labels, answer, self._slices, place.axis, place.spacing, protected=place.finished)


def spread(source: Spread, fade: float) -> Tool:
    """Spread the correction of the corrected slices."""
    return Tool(
        SPREAD,
        lambda labels: source.edit(labels, fade, visible=False),
        lambda labels: source.edit(labels, fade, visible=True),
        nothing="The corrected slices agree with the model's answer, or the correction fades before the next slice.",
    )


def smoothing(place: Place, radius_mm: float, name: str) -> Tool:
    """Smooth the active class."""

    def edit(labels: Labels, plane: tuple[int, int] | None) -> Edit:
        return smooth(labels, place.value, radius_mm, place.spacing, protected=place.finished, plane=plane)

    title = f"Smooth “{name}” by {radius_mm:g} mm"
    return Tool(title, lambda labels: edit(labels, None), lambda labels: edit(labels, place.plane))


def resize(place: Place, distance_mm: float, name: str) -> Tool:
    """Grow the active class, or shrink it."""

    def edit(labels: Labels, plane: tuple[int, int] | None) -> Edit:
        return grow(labels, place.value, distance_mm, place.spacing, protected=place.finished, plane=plane)

    title = f"{'Grow' if distance_mm > 0 else 'Shrink'} “{name}” by {abs(distance_mm):g} mm"
    return Tool(title, lambda labels: edit(labels, None), lambda labels: edit(labels, place.plane))


def holes(place: Place, name: str, *, in_slices: bool) -> Tool:
    """Fill the holes of the active class: in its slices along the shown axis, or enclosed on all sides."""

    def edit(labels: Labels, plane: tuple[int, int] | None) -> Edit:
        axis = place.axis if in_slices else None
        return fill_holes(labels, place.value, axis=axis, protected=place.finished, plane=plane)

    return Tool(
        f"Fill the holes of “{name}”",
        lambda labels: edit(labels, None),
        (lambda labels: edit(labels, place.plane)) if in_slices else None,
        nothing=f"“{name}” has no hole.",
    )


def islands(place: Place, voxel: tuple[int, int, int], *, keep: bool) -> Tool:
    """Keep only the connected component at a voxel, or remove it."""
    tool = keep_component if keep else remove_component
    title = "Keep only this island" if keep else "Remove this island"
    nothing = "This class has only this island."
    return Tool(title, lambda labels: tool(labels, voxel, protected=place.finished), nothing=nothing)


def split(place: Place, voxel: tuple[int, int, int], cut: Labels, new_value: int, *, through: bool) -> Tool:
    """Change the class of the part of a component at a voxel, beside a painted cut."""

    def edit(labels: Labels) -> Edit:
        axis = place.axis if through else None
        return split_component(labels, voxel, cut != 0, new_value, through=axis, protected=place.finished)

    return Tool("Split along the cut", edit)


def copy(place: Place, source: LabelMap, value: int, target: LabelMap, name: str) -> Tool:
    """Copy a class of other labels into the active class; they may lie on another grid."""

    def edit(labels: Labels) -> Edit:
        there = source.data
        if not source.geometry.matches(target.geometry, atol_mm=0.01):
            one = LabelMap((there == value).astype(np.uint8) * value, source.geometry)
            there = resample(one, target.geometry, order=0).data
        return copy_class(there, value, labels, place.value, protected=place.finished)

    return Tool(f"Copy to “{name}”", edit)


def swap(place: Place, other: int, name: str, other_name: str) -> Tool:
    """Exchange the active class and another."""

    def edit(labels: Labels) -> Edit:
        return swap_classes(labels, place.value, other, protected=place.finished)

    return Tool(f"Swap “{name}” and “{other_name}”", edit, lambda labels: _edit_of_plane(labels, place, edit))


def merge(place: Place, other: int, name: str, other_name: str) -> Tool:
    """Merge the active class into another."""

    def edit(labels: Labels) -> Edit:
        return merge_classes(labels, place.value, other, protected=place.finished)

    title, nothing = f"Merge “{name}” into “{other_name}”", f"“{name}” has no voxel."
    return Tool(title, edit, lambda labels: _edit_of_plane(labels, place, edit), nothing=nothing)


def _edit_of_plane(labels: Labels, place: Place, edit: Callable[[Labels], Edit]) -> Edit:
    """Return what a tool that treats every voxel alike does to the visible slice."""
    plane = slice(place.index, place.index + 1)
    found = edit(labels[(slice(None),) * place.axis + (plane,)])
    if found.is_empty:
        return Edit.nothing(labels)
    box = list(found.box)
    box[place.axis] = plane
    z, y, x = box
    return Edit((z, y, x), found.values)
