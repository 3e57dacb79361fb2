"""Which slices of a labels layer the user corrected, by axis and class; knows of undo and redo, nothing of a window."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

__all__ = ["ALL_CLASSES", "CORRECTED", "FINISHED", "SliceRecord", "Stroke"]

CORRECTED, FINISHED = "corrected_slices", "finished_classes"  # in a layer's own metadata

ALL_CLASSES = -1  # a slice of which the user says that it is right, whatever is in it
Place = tuple[int, int]  # axis and slice


@dataclass(frozen=True)
class Stroke:
    """One step of the user: the slices along an axis that it changed, each with the classes that gained or lost.

    A tool's own step corrects no slice, and has none.
    """

    axis: int = 0
    slices: Mapping[int, frozenset[int]] = field(default_factory=dict)


class SliceRecord:
    """The corrected slices of one layer."""

    def __init__(self) -> None:
        self._kept: dict[Place, set[int]] = {}  # can no longer be undone
        self._done: list[Stroke] = []
        self._undone: list[Stroke] = []

    # --- what happens

    def add(self, stroke: Stroke, n_undo: int) -> None:
        """Record a step; `n_undo` steps of the layer can be undone, with it."""
        self._done.append(stroke)
        self._undone.clear()
        while len(self._done) > max(n_undo, 0):
            self._keep(self._done.pop(0))

    def follow(self, n_undo: int, n_redo: int) -> bool:
        """Follow the layer's history after undo or redo; return whether there was any."""
        moved = False
        while len(self._undone) < n_redo and self._done:
            self._undone.append(self._done.pop())
            moved = True
        while len(self._undone) > n_redo and len(self._done) < n_undo:
            self._done.append(self._undone.pop())
            moved = True
        return moved

    def settle(self) -> None:
        """Keep what is done: the layer's history was emptied."""
        for stroke in self._done:
            self._keep(stroke)
        self._done, self._undone = [], []

    def mark(self, axis: int, slices: Iterable[int], classes: Iterable[int] = (ALL_CLASSES,)) -> None:
        """Count slices as corrected, although no stroke changed them."""
        for index in slices:
            self._kept.setdefault((axis, int(index)), set()).update(classes)

    def drop(self, axis: int, index: int) -> None:
        """Count a slice as not corrected, whatever was painted in it; undo does not bring it back."""
        self._kept.pop((axis, index), None)
        for strokes in (self._done, self._undone):
            for i, stroke in enumerate(strokes):
                if stroke.axis == axis and index in stroke.slices:
                    rest = {at: classes for at, classes in stroke.slices.items() if at != index}
                    strokes[i] = Stroke(axis, rest)

    def clear(self) -> None:
        """Forget everything: the layer has got other labels."""
        self.__init__()  # type: ignore[misc]

    # --- what is known

    def slices(self, axis: int, value: int | None = None) -> tuple[int, ...]:
        """List the corrected slices along an axis in their order: those in which a class changed, or all."""
        found = self._all()
        return tuple(
            sorted(
                index
                for (along, index), classes in found.items()
                if along == axis and (value is None or value in classes or ALL_CLASSES in classes)
            )
        )

    def classes(self, axis: int) -> frozenset[int]:
        """Return the classes that strokes along an axis changed, without the background."""
        found = [classes for (along, _), classes in self._all().items() if along == axis]
        return frozenset().union(*found) - {0, ALL_CLASSES}

    def axes(self) -> tuple[int, ...]:
        """List the axes along which there are corrected slices."""
        return tuple(sorted({axis for axis, _ in self._all()}))

    def _all(self) -> dict[Place, set[int]]:
        found = {place: set(classes) for place, classes in self._kept.items()}
        for stroke in self._done:
            for index, classes in stroke.slices.items():
                found.setdefault((stroke.axis, index), set()).update(classes)
        return found

    def _keep(self, stroke: Stroke) -> None:
        for index, classes in stroke.slices.items():
            self.mark(stroke.axis, (index,), classes)

    # --- as plain data

    def facts(self) -> list[tuple[int, int, tuple[int, ...]]]:
        """Return axis, slice and classes of every corrected slice, as plain data."""
        return [(axis, index, tuple(sorted(classes))) for (axis, index), classes in sorted(self._all().items())]

    @classmethod
    def from_facts(cls, facts: Any) -> SliceRecord:
        """Make a record of what `facts` returned; what is no such thing is left out."""
        record = cls()
        for fact in facts if isinstance(facts, (list, tuple)) else ():
            try:
                axis, index, classes = fact
                record.mark(int(axis), (int(index),), [int(value) for value in classes])
            except (TypeError, ValueError):
                continue
        return record
