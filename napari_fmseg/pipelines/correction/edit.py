"""An edit: new values for a box of a label array, which a viewer applies as one undo step."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from napari_fmseg.core.components import bounding_box
from napari_fmseg.core.errors import FmsegError
from napari_fmseg.core.volume import Box

__all__ = ["Edit", "check_unprotected", "is_free"]

Labels = npt.NDArray[Any]
Indices = tuple[npt.NDArray[np.intp], npt.NDArray[np.intp], npt.NDArray[np.intp]]


@dataclass(frozen=True, eq=False)
class Edit:
    """What a tool changes.

    Parameters
    ----------
    box
        The part of the label array that is touched; three empty slices where nothing is.
    values
        The new values of the box, in the dtype of the labels.
    """

    box: Box
    values: Labels

    @classmethod
    def nothing(cls, labels: Labels) -> Edit:
        """Return the edit that changes nothing."""
        return cls((slice(0, 0), slice(0, 0), slice(0, 0)), np.zeros((0, 0, 0), labels.dtype))

    @classmethod
    def between(cls, labels: Labels, box: Box, values: Labels) -> Edit:
        """Return the edit that gives `box` of `labels` these values, its box as small as possible."""
        inner = bounding_box(labels[box] != values)
        if inner is None:
            return cls.nothing(labels)
        z, y, x = (
            slice(outer.start + part.start, outer.start + part.stop) for outer, part in zip(box, inner, strict=True)
        )
        return cls((z, y, x), np.ascontiguousarray(values[inner], labels.dtype))

    @property
    def is_empty(self) -> bool:
        """Whether nothing is touched."""
        return not self.values.size

    def n_changed(self, labels: Labels) -> int:
        """Return how many voxels of `labels` would change."""
        return int(np.count_nonzero(labels[self.box] != self.values))

    def changes(self, labels: Labels) -> tuple[Indices, Labels, Labels]:
        """Return the indices (z, y, x) of the voxels that would change, their old and their new values."""
        old = labels[self.box]
        where = old != self.values
        z, y, x = (found + part.start for found, part in zip(np.nonzero(where), self.box, strict=True))
        return (z, y, x), old[where], self.values[where]

    def apply(self, labels: Labels) -> None:
        """Write the new values into `labels`."""
        labels[self.box] = self.values


def is_free(labels: Labels, protected: Collection[int]) -> npt.NDArray[np.bool_]:
    """Return where a tool may write: everywhere but in finished classes."""
    kept = [value for value in protected if value]
    if not kept:
        return np.ones(labels.shape, bool)
    return np.isin(labels, kept, invert=True)


def check_unprotected(value: int, protected: Collection[int]) -> None:
    """Refuse to change a class that is finished."""
    if value and value in protected:
        raise FmsegError(f"Class {value} is marked as finished and stays as it is. Unmark it first, to change it.")
