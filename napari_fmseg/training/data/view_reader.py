"""Read a bent view of a region: in two passes where it leans little, which is faster on a CPU.

In the first pass every plane of the region is read where the columns of the view (one y and x) cross it, in the second
one the columns are read along z (after Catmull and Smith, 3-D transformations of images in scanline order, SIGGRAPH
1980). Both are what torch computes with vectors, which it does not in three dimensions. A voxel lies where it does in
one trilinear reading; its neighbours above and below are those along its column. Through thick slices columns lean far:
there they run along y. Where these lean far or fold, too, and on a GPU, there is one reading in three dimensions.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from napari_fmseg.core.resampling_torch import linear_weights
from napari_fmseg.core.volume import Box

__all__ = ["LEAN", "ViewReader", "places_between"]

LEAN = 1.0
"""Voxels that a column may move within a plane of the region from one plane to the next."""

_ORDERS = (0, 1, 2), (1, 0, 2)
"""Columns along z, or along y: the axes of a region in the order in which the two passes see them."""

_SLACK = 2
"""Voxels of a region by which bent columns may pass the places between knots."""

_FOLD = 0.35
"""Of the mean way from knot to knot along a column, the least one."""


@dataclass(frozen=True)
class _Passes:
    """Where the two passes read.

    Attributes
    ----------
    first
        The plane of the region with which `across` begins.
    across
        (planes, y, x, 2): where, as x and y, the columns of the view cross each plane of the region, -1..1.
    along
        (y, z, x): in which of these planes each voxel of the view lies, with fractions.
    """

    first: int
    across: Tensor
    along: Tensor


class ViewReader:
    """Reads maps of one region where the voxels of a view lie.

    Parameters
    ----------
    shape
        Of the region (z, y, x).
    knots
        (z, y, x, 3): places as x, y, z, -1..1 from edge to edge of the region, of knots of which the outermost are
        the outermost voxels of the view; what lies between them is linear.
    grid
        Voxels (z, y, x) of the view.
    device
        Of the region.

    Attributes
    ----------
    slack
        Voxels of the region by which a voxel of the view may be read beside the place that lies between its knots:
        bent columns pass it by a little, and leaning ones that end at the edge of the region by more.
    """

    def __init__(
        self, shape: Sequence[int], knots: npt.NDArray[np.float64], grid: Sequence[int], device: torch.device
    ) -> None:
        self.order, self.passes, self.slack = _ORDERS[0], None, 0.0
        if device.type == "cpu":
            leans = [_lean(*_reorder(shape, knots, order)) for order in _ORDERS]
            along_y = leans[1] < leans[0] / 2  # planes across y are read a little more slowly
            self.order = _ORDERS[along_y]
            if leans[along_y] <= LEAN:
                there = _reorder(shape, knots, self.order)
                self.passes = _passes(*there, [grid[axis] for axis in self.order])
                depth = _depth(*there)
                beyond = max(0.0, -float(depth.min()), float(depth.max()) - there[0][0] + 1)
                self.slack = _SLACK + leans[along_y] * beyond
        self.places = None if self.passes else places_between(knots, grid).to(device)

    def read(self, data: Tensor, part: Box) -> Tensor:
        """Return what a map (z, y, x) of the region shows in a part of the view; beyond its edges, what is there."""
        z, y, x = part
        if self.passes is None:
            assert self.places is not None
            return _sample(data[None, None], self.places[z, y, x][None])[0, 0]
        data = data.permute(self.order)
        z, y, x = (part[axis] for axis in self.order)
        along = self.passes.along[y, z, x]
        low, high = (float(v) for v in along.aminmax())
        first, last = (min(max(round(v), 0), len(self.passes.across) - 1) for v in (math.floor(low), math.ceil(high)))
        planes = slice(first, last + 1)
        start = self.passes.first + first
        crossed = _sample(data[start : start + last + 1 - first, None], self.passes.across[planes, y, x].contiguous())
        found = _sample(crossed.permute(2, 1, 0, 3), _columns(along, first, last + 1 - first))[:, 0].transpose(0, 1)
        return found.permute(self.order)  # which undoes itself


def places_between(knots: npt.NDArray[np.float64], grid: Sequence[int]) -> Tensor:
    """Return what lies between knots (z, y, x, c), of which the outermost are the outermost voxels of a grid.

    Returns
    -------
    Tensor
        (z, y, x, c) float32.
    """
    planes = _between_in_planes(knots, grid[1:])
    return (linear_weights(len(knots), grid[0]).float() @ planes.flatten(1)).view(*grid, knots.shape[3])


def _between_in_planes(knots: npt.NDArray[np.float64], size: Sequence[int]) -> Tensor:
    """Return what lies between knots (z, y, x, c) in the planes (y, x) that they are in, float32."""
    by_y, by_x = (linear_weights(k, n).float() for k, n in zip(knots.shape[1:], size, strict=False))
    rows = by_x @ torch.from_numpy(knots.astype(np.float32))  # (z, knots y, x, c)
    return (by_y @ rows.flatten(2)).view(len(knots), *size, knots.shape[3])


def _reorder(
    shape: Sequence[int], knots: npt.NDArray[np.float64], order: Sequence[int]
) -> tuple[list[int], npt.NDArray[np.float64]]:
    """Return the shape of the region and the knots with their axes, and places, in another order."""
    return [shape[axis] for axis in order], knots.transpose(*order, 3)[..., [2 - axis for axis in reversed(order)]]


def _depth(shape: Sequence[int], knots: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Return in which planes of the region knots lie."""
    return ((knots[..., 2] + 1) * shape[0] - 1) / 2


def _lean(shape: Sequence[int], knots: npt.NDArray[np.float64]) -> float:
    """Return how many voxels columns move at most from plane to plane; infinity where one folds."""
    steps = np.diff(_depth(shape, knots), axis=0)
    mean = steps.mean()
    if mean == 0 or (steps / mean).min() < _FOLD:
        return math.inf
    moves = np.abs(np.diff(knots[..., :2], axis=0)) * (np.array(shape[:0:-1]) / 2)
    return float((moves / np.abs(steps)[..., None]).max())


def _passes(shape: Sequence[int], knots: npt.NDArray[np.float64], grid: Sequence[int]) -> _Passes:
    """Return where two passes read."""
    depth, moves = _depth(shape, knots), np.diff(knots[..., :2], axis=0)
    steps = np.diff(depth, axis=0)
    first, last = (min(max(int(v), 0), shape[0] - 1) for v in (np.floor(depth.min()), np.ceil(depth.max())))
    planes = np.arange(first, last + 1)[:, None, None]
    beyond = planes[:, None] >= depth[1:-1] if steps.mean() > 0 else planes[:, None] <= depth[1:-1]
    between = beyond.sum(1)  # which two knots of each column a plane lies between, or is nearest to
    share = (planes - np.take_along_axis(depth, between, 0)) / np.take_along_axis(steps, between, 0)
    crossing = np.take_along_axis(knots[..., :2], between[..., None], 0)
    crossing = crossing + share[..., None] * np.take_along_axis(moves, between[..., None], 0)
    across = _between_in_planes(crossing, grid[1:])
    along = places_between((depth - first).transpose(1, 0, 2)[..., None], (grid[1], grid[0], grid[2]))
    return _Passes(first, across, along[..., 0])


def _columns(along: Tensor, first: int, planes: int) -> Tensor:
    """Return where (y, z, x, 2) voxels in planes `along` (y, z, x) are read from those that begin with `first`."""
    width = along.shape[2]
    places = along.new_empty((*along.shape, 2))
    places[..., 0] = torch.arange(1 - width, width, 2) / width
    torch.add((2 * (0.5 - first) - planes) / planes, along, alpha=2 / planes, out=places[..., 1])
    return places


def _sample(data: Tensor, places: Tensor) -> Tensor:
    return F.grid_sample(data, places, padding_mode="border", align_corners=False)
