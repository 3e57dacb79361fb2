"""What one network of a model takes as input around a place in a volume; Grad-CAM is computed on it."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import numpy as np
from torch import Tensor, nn

from napari_fmseg.core.volume import Box, Geometry

__all__ = ["NetworkInputs", "box_on"]


@dataclass(frozen=True)
class NetworkInputs:
    """A network, its inputs, and where they lie.

    Parameters
    ----------
    net
        The network.
    inputs
        Each (1, c, z, y, x).
    grid
        Of the inputs; where they were padded, of the part before the padding.
    """

    net: nn.Module
    inputs: tuple[Tensor, ...]
    grid: Geometry

    def region(self, source: Geometry, box: Box) -> Box | None:
        """Return the voxels of the grid that a box of another grid touches, None if there are none."""
        there = box_on(self.grid, source, box)
        z, y, x = (slice(max(0, s.start), min(n, s.stop)) for s, n in zip(there, self.grid.shape, strict=True))
        return (z, y, x) if all(s.start < s.stop for s in (z, y, x)) else None

    def covers(self, source: Geometry, box: Box | None) -> bool:
        """Return whether a box of another grid touches the grid; the whole volume, None, does."""
        return box is None or self.region(source, box) is not None


def box_on(grid: Geometry, source: Geometry, box: Box) -> Box:
    """Return the voxels of a grid that a box of another grid touches, one at least along each axis."""
    edges = [(s.start - 0.5, s.stop - 0.5) for s in box]
    corners = source.place(list(itertools.product(*edges)))
    inside = (corners - grid.affine[:3, 3]) @ np.linalg.inv(grid.affine[:3, :3]).T + 0.5
    low, high = np.floor(inside.min(0) + 1e-6).astype(int), np.ceil(inside.max(0) - 1e-6).astype(int)
    z, y, x = (slice(int(a), int(max(a + 1, b))) for a, b in zip(low, high, strict=True))
    return (z, y, x)
