"""Which slices of a volume were painted, and whether that looks like a few slices of many rather than all of them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from napari_fmseg.core.volume import Geometry

__all__ = ["PaintedSlices"]

_FLAT = 3.0
"""A painted stack that is this many times wider than thick is taken for some slices of something thicker."""


@dataclass(frozen=True)
class PaintedSlices:
    """The slices with a label, along the axis where they are fewest: that is how slices are painted.

    Attributes
    ----------
    axis
        Of the array: 0 z, 1 y, 2 x.
    painted, total
        Slices with a label, and all slices.
    span
        Slices from the first to the last one with a label.
    thickness_mm, width_mm
        Of what was painted: along the axis, and across it where it is narrower.
    """

    axis: int
    painted: int
    total: int
    span: int
    thickness_mm: float
    width_mm: float

    @classmethod
    def of(cls, labels: npt.NDArray[np.generic], grid: Geometry) -> PaintedSlices:
        """Count the painted slices of labels (z, y, x); 0 is not painted."""
        rows = [np.flatnonzero((labels != 0).any(tuple(b for b in range(3) if b != a))) for a in range(3)]
        spans = [int(row[-1] - row[0] + 1) if len(row) else 0 for row in rows]
        axis = int(np.argmin([len(row) / n for row, n in zip(rows, labels.shape, strict=True)]))
        sizes = [float(span * mm) for span, mm in zip(spans, grid.spacing, strict=True)]
        across = min(size for a, size in enumerate(sizes) if a != axis)
        return cls(axis, len(rows[axis]), labels.shape[axis], spans[axis], sizes[axis], across)

    @property
    def look_partial(self) -> bool:
        """Whether most slices are empty in a way that structures seldom are: between painted ones, or around a sheet.

        Nothing painted at all counts as well.
        """
        if not self.painted:
            return True
        between = 2 * self.painted < self.span
        sheet = 2 * self.painted < self.total and _FLAT * self.thickness_mm <= self.width_mm
        return between or sheet
