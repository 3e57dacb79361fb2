"""Training views: a region of a case is resampled once, and every view of it is one affine and elastic resampling.

Labels travel as the share of each class in a voxel, so that small structures do not vanish on a coarse grid.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import product
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from napari_fmseg.core.resampling_torch import linear_weights, resize, zoom
from napari_fmseg.core.volume import Box
from napari_fmseg.datasets.case import IGNORE
from napari_fmseg.pipelines.preprocessing import crop_array
from napari_fmseg.training.data.samples import Sample, Spans
from napari_fmseg.training.recipe import Augment

__all__ = ["Region", "draw_view", "make_region", "sampling_grid"]

_DENSITY = 1.25
"""Voxels of a region per voxel of a view, along each axis, so that turning and zooming lose little."""

_SMALL = 1 / 3
"""Share of a view, below which a structure is read by itself."""

_KNOT = 14
"""Voxels of a view between two knots of the elastic deformation."""


_EIGHT = list(product((0, 1), repeat=3))

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
    knots, mirrored = _knots(region, grid, augment, rng)
    places = _between(knots, grid)[None].to(region.data.device)
    data, n = region.data, len(region.data) - len(region.classes)
    parts = [_part_that_reads(reach, knots, grid) for reach in region.reaches]
    small = [_voxels(part) < _SMALL * math.prod(grid) for part in parts]
    # Small structures are read where they are: a call takes as long for where to read as for two channels.
    kept = [i for i in range(len(data)) if i < n or not small[i - n]]
    shared = data[: len(kept)] if kept[-1] == len(kept) - 1 else data[kept]
    seen = _read(shared, places)
    inputs, whole = seen[:n], iter(seen[n:])
    target = inputs.new_zeros((region.n_classes, *inputs.shape[1:]))
    for number, share, part, is_small in zip(region.classes, data[n:], parts, small, strict=True):
        if not is_small:
            target[number] = next(whole)
        elif _voxels(part):
            target[number][part] = _read(share[None], places[(slice(None), *part)])[0]
    if 0 not in region.classes:
        target[0] = target.sum(0).neg_().add_(1).clamp_min_(0)
    if mirrored:
        order = list(range(region.n_classes))
        for a, b in swap:
            order[a], order[b] = order[b], order[a]
        target = target[order]
    return inputs, target


def sampling_grid(
    region: Region, grid: Sequence[int], augment: Augment, rng: np.random.Generator
) -> tuple[Tensor, bool]:
    """Draw where a view reads its region, for `torch.nn.functional.grid_sample`; turns keep millimetres.

    A flat stack of slices is turned about x and y by less, as its height is to its width.

    Returns
    -------
    tuple
        Places (1, z, y, x, 3), and whether x was mirrored.
    """
    knots, mirrored = _knots(region, grid, augment, rng)
    return _between(knots, grid)[None], mirrored


def _knots(
    region: Region, grid: Sequence[int], augment: Augment, rng: np.random.Generator
) -> tuple[npt.NDArray[np.float64], bool]:
    """Draw the places (z, y, x, 3) of knots, between which those of the voxels lie; see `sampling_grid`."""
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


def _between(knots: npt.NDArray[np.float64], grid: Sequence[int]) -> Tensor:
    """Return what lies between knots (z, y, x, c), of which the outermost are the outermost voxels of a grid."""
    z, y, x = grid
    by_z, by_y, by_x = (linear_weights(k, n).float() for k, n in zip(knots.shape, grid, strict=False))
    rows = by_x @ torch.from_numpy(knots.astype(np.float32))  # (knots z, knots y, x, c)
    planes = by_y @ rows.flatten(2)  # (knots z, y, x * c)
    return (by_z @ planes.flatten(1)).view(z, y, x, knots.shape[3])


def _part_that_reads(reach: _Reach, knots: npt.NDArray[np.float64], grid: Sequence[int]) -> Box:
    """Return the part of a view outside of which nothing is read from `reach`; the voxels are those between knots."""
    between = np.stack([knots[z : z - 1 or None, y : y - 1 or None, x : x - 1 or None] for z, y, x in _EIGHT])
    low, high = np.array(reach).T
    hit = ((between.max(0) >= low) & (between.min(0) <= high)).all(-1)  # of the cells between knots
    part = []
    for axis, (n, k) in enumerate(zip(grid, knots.shape, strict=False)):
        cells = np.flatnonzero(hit.any(axis=tuple(other for other in range(3) if other != axis)))
        if not len(cells):
            return slice(0), slice(0), slice(0)
        step = (n - 1) / (k - 1)
        part.append(slice(math.floor(cells[0] * step), math.ceil((cells[-1] + 1) * step) + 1))
    return part[0], part[1], part[2]


def _voxels(part: Box) -> int:
    return math.prod(one.stop - (one.start or 0) for one in part)


def _read(data: Tensor, places: Tensor) -> Tensor:
    """Read maps (c, z, y, x) at places (1, z, y, x, 3)."""
    return F.grid_sample(data[None], places, padding_mode="border", align_corners=False)[0]
