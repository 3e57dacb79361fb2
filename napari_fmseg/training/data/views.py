"""Training views: a region of a case is resampled once, and every view of it is one affine and elastic resampling.

Labels travel as the share of each class in a voxel, so that small structures do not vanish on a coarse grid.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from napari_fmseg.core.resampling_torch import resize, zoom
from napari_fmseg.core.volume import Box
from napari_fmseg.datasets.case import IGNORE
from napari_fmseg.pipelines.preprocessing import crop_array
from napari_fmseg.training.data.samples import Sample, Spans
from napari_fmseg.training.data.view_reader import ViewReader, places_between
from napari_fmseg.training.recipe import Augment

__all__ = ["Region", "draw_knots", "draw_view", "make_region"]

_DENSITY = 1.25
"""Voxels of a region per voxel of a view, along each axis, so that turning and zooming lose little."""

_KNOT = 14
"""Voxels of a view between two knots of the elastic deformation."""


_FINER = 4
"""Parts of the way between two knots, by which it is known what a part of a view reads."""

_Reach: TypeAlias = list[tuple[float, float]]


@dataclass(frozen=True)
class Region:
    """A part of a case, from which views are drawn.

    Attributes
    ----------
    data
        (c + k, z, y, x) float32: the channels, then maps, then the share of each of `classes` in a voxel.
    classes
        With 0, the background, only where not every voxel was labelled.
    n_classes
        Of the target, with the background.
    window
        Edges of a view without augmentation along z, y, x, in voxels of `data`.
    spacing
        Of the voxels (z, y, x) in mm.
    """

    data: Tensor
    classes: tuple[int, ...]
    n_classes: int
    window: Spans
    spacing: tuple[float, float, float]

    @cached_property
    def reaches(self) -> list[_Reach]:
        """Return where along (x, y, z) a share of each of `classes` can be read, -1..1 from edge to edge of `data`.

        A class at an edge is read beyond it, too; one that is nowhere is read nowhere.
        """
        found = []
        for share in self.data[len(self.data) - len(self.classes) :]:
            hits = [torch.nonzero(share.amax(others)) for others in ((0, 1), (0, 2), (1, 2))]
            reach = []
            for hit, n in zip(hits, reversed(share.shape), strict=True):
                if not len(hit):
                    reach.append((math.inf, -math.inf))
                    continue
                low, high = int(hit[0]), int(hit[-1]) + 1
                first = -math.inf if low == 0 else (2 * low - 1) / n - 1
                reach.append((first, math.inf if high == n else (2 * high + 1) / n - 1))
            found.append(reach)
        return found


def make_region(
    case: Sample,
    window: Spans,
    grid: Sequence[int],
    n_classes: int,
    *,
    maps: Tensor | None = None,
    margin: float = 0.0,
) -> Region:
    """Resample what views of a window can show, a little finer than their grid and no finer than the case.

    Parameters
    ----------
    case, window
        The case and the edges of the window along z, y, x in its voxels.
    grid
        Voxels (z, y, x) of a view.
    n_classes
        With the background.
    maps
        (m, z, y, x) over the whole case on a grid of its own: further inputs.
    margin
        How far the region reaches beyond the window on each side, as a share of its size; at most to the border.
    """
    part, sizes, inner = [], [], []
    for (first, last), n, voxels in zip(window, case.labels.shape, grid, strict=True):
        low = max(0, math.floor(first - margin * (last - first)))
        high = min(n, math.ceil(last + margin * (last - first)))
        low, high = (low, high) if low < high else (0, n)
        size = max(1, min(high - low, round(_DENSITY * voxels * (high - low) / (last - first))))
        part.append(slice(low, high))
        sizes.append(size)
        inner.append(((first - low) * size / (high - low), (last - low) * size / (high - low)))
    box = (part[0], part[1], part[2])
    inputs = [resize(crop_array(case.image, box), sizes)]
    if maps is not None:
        scale = [m / n for n, m in zip(case.labels.shape, maps.shape[1:], strict=True)]
        inputs.append(zoom(maps, [(s.start * k, s.stop * k) for s, k in zip(box, scale, strict=True)], sizes))
    labels = case.labels[box]
    present = {int(v) for v in torch.unique(labels)}
    classes = tuple(sorted((present - {0, IGNORE}) | ({0} if IGNORE in present else set())))
    shares = [resize((labels == v).float()[None], sizes) for v in classes]
    spacing = [s * (p.stop - p.start) / m for s, p, m in zip(case.spacing, box, sizes, strict=True)]
    data = torch.cat([*inputs, *shares]).float().contiguous()
    return Region(data, classes, n_classes, inner, (spacing[0], spacing[1], spacing[2]))


def draw_view(
    region: Region, grid: Sequence[int], augment: Augment, swap: Sequence[tuple[int, int]], rng: np.random.Generator
) -> tuple[Tensor, Tensor]:
    """Draw a view: the window turned, zoomed, shifted, mirrored and deformed at random, in one resampling.

    Returns
    -------
    tuple
        Inputs (c, z, y, x), and the target (classes, z, y, x), adding up to 1 or to the labelled share.
    """
    knots, mirrored = draw_knots(region, grid, augment, rng)
    data, n = region.data, len(region.data) - len(region.classes)
    reader = ViewReader(data.shape[1:], knots, grid, data.device)
    cells, slack = _cells(knots, grid), [reader.slack * 2 / n for n in data.shape[:0:-1]]
    whole = (slice(0, grid[0]), slice(0, grid[1]), slice(0, grid[2]))
    inputs = torch.stack([reader.read(channel, whole) for channel in data[:n]])
    target = inputs.new_zeros((region.n_classes, *grid))
    for number, share, reach in zip(region.classes, data[n:], region.reaches, strict=True):
        part = _part_that_reads(reach, cells, grid, slack)
        if _voxels(part):
            target[number][part] = reader.read(share, part)
    if 0 not in region.classes:
        target[0] = target.sum(0).neg_().add_(1).clamp_min_(0)
    if mirrored:
        order = list(range(region.n_classes))
        for a, b in swap:
            order[a], order[b] = order[b], order[a]
        target = target[order]
    return inputs, target


def draw_knots(
    region: Region, grid: Sequence[int], augment: Augment, rng: np.random.Generator
) -> tuple[npt.NDArray[np.float64], bool]:
    """Draw where a view reads its region, as places of knots for `ViewReader`; turns keep millimetres.

    A flat stack of slices is turned about x and y by less, as its height is to its width.

    Returns
    -------
    tuple
        Places (z, y, x, 3) as x, y, z, and whether x was mirrored.
    """
    size = np.array(region.data.shape[:0:-1], float)  # x, y, z from here on
    first, last = np.array(region.window[::-1], float).T
    half_mm = (last - first) / 2 * np.array(region.spacing[::-1])
    angles = np.deg2rad(rng.uniform(-augment.rotate_deg, augment.rotate_deg, 3))
    if rng.random() >= augment.rotate_p:
        angles[:] = 0
    angles[:2] *= np.minimum(
        1, half_mm[2] / half_mm[1::-1]
    )  # a thick slab of slices is hardly tilted out of its planes
    (cx, cy, cz), (sx, sy, sz) = np.cos(angles), np.sin(angles)
    about_z = np.array([[cz, -sz, 0], [sz, cz, 0], [0, 0, 1]])
    about_y = np.array([[cy, 0, sy], [0, 1, 0], [-sy, 0, cy]])
    about_x = np.array([[1, 0, 0], [0, cx, -sx], [0, sx, cx]])
    scale = np.exp(rng.uniform(-1, 1) * augment.zoom * 0.7 + rng.uniform(-1, 1, 3) * augment.zoom * 0.5)
    scale[2] *= np.exp(rng.uniform(-1, 1) * augment.stretch)
    flips = np.array([-1.0 if axis in augment.flip and rng.random() < 0.5 else 1.0 for axis in "xyz"])
    matrix = (about_z @ about_y @ about_x) * (scale * flips * half_mm)[None]
    matrix = matrix / np.array(region.spacing[::-1])[:, None]  # in voxels of the region
    shift = rng.uniform(-1, 1, 3) * augment.shift * np.array([1, 1, max(1.0, augment.stretch / 0.09)]) * (last - first)
    middle = (first + last) / 2 + shift
    theta = np.concatenate([matrix * 2 / size[:, None], (middle * 2 / size - 1)[:, None]], 1)
    knots = [max(4, round(n / _KNOT)) for n in grid]
    z, y, x = (np.linspace(1 / n - 1, 1 - 1 / n, k) for n, k in zip(grid, knots, strict=True))
    corners = np.stack(np.broadcast_arrays(x, y[:, None], z[:, None, None], 1.0), -1) @ theta.T  # (z, y, x, 3)
    if augment.elastic and rng.random() < 0.5:
        moves = rng.normal(0, augment.elastic, (3, *knots)).transpose(1, 2, 3, 0)
        corners += moves * 2 * (last - first) / np.array(knots[::-1]) / size  # as shares of the way from knot to knot
    return corners, bool(flips[0] < 0)


def _cells(knots: npt.NDArray[np.float64], grid: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Divide a view into cells between its knots and return their least and largest places (3, z, y, x)."""
    places = places_between(knots, [_FINER * (k - 1) + 1 for k in knots.shape[:3]]).permute(3, 0, 1, 2)
    least = most = places.contiguous()
    for axis, n in enumerate(least.shape[1:], 1):
        least = torch.minimum(least.narrow(axis, 0, n - 1), least.narrow(axis, 1, n - 1))
        most = torch.maximum(most.narrow(axis, 0, n - 1), most.narrow(axis, 1, n - 1))
    return least, most


def _part_that_reads(reach: _Reach, cells: tuple[Tensor, Tensor], grid: Sequence[int], slack: Sequence[float]) -> Box:
    """Return the part of a view outside of which nothing is read from `reach`, or so near it along (x, y, z)."""
    hit = torch.ones((), dtype=torch.bool)
    for (low, high), near, least, most in zip(reach, slack, *cells, strict=True):
        hit = hit & (most >= low - near) & (least <= high + near)
    part = []
    for n, others in zip(grid, ((1, 2), (0, 2), (0, 1)), strict=True):
        along = hit.amax(others)
        seen = torch.nonzero(along)
        if not len(seen):
            return slice(0), slice(0), slice(0)
        step = (n - 1) / len(along)
        part.append(slice(math.floor(int(seen[0]) * step), math.ceil((int(seen[-1]) + 1) * step) + 1))
    return part[0], part[1], part[2]


def _voxels(part: Box) -> int:
    return math.prod(one.stop - (one.start or 0) for one in part)
