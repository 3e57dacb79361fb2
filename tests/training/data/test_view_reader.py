"""Reading a bent view of a region: in two passes where it leans little, else in one."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from scipy import ndimage
from torch import Tensor
from torch.nn import functional

from napari_fmseg.core.volume import Box
from napari_fmseg.training import Augment
from napari_fmseg.training.data.view_reader import LEAN, ViewReader, places_between
from napari_fmseg.training.data.views import Region, draw_knots

SHAPE, GRID = (30, 40, 50), (24, 32, 40)
CPU = torch.device("cpu")
WHOLE: Box = (slice(0, 24), slice(0, 32), slice(0, 40))
STILL = Augment(shift=0, zoom=0, rotate_p=0, contrast=0, brightness=0, gamma=0, noise=0)
TURNED = dataclasses.replace(STILL, rotate_deg=20.0, rotate_p=1.0, zoom=0.15, stretch=0.15, shift=0.06, flip="zyx")


def knots_of(augment: Augment, seed: int) -> np.ndarray:
    region = Region(torch.zeros(1, *SHAPE), (), 1, [(3.0, 27.0), (4.0, 36.0), (5.0, 45.0)], (1.0, 1.0, 1.0))
    return draw_knots(region, GRID, augment, np.random.default_rng(seed))[0]


def voxels_of(places: Tensor) -> Tensor:
    """Return places (..., x y z) in voxels along z, y, x."""
    return torch.stack([((places[..., 2 - axis] + 1) * n - 1) / 2 for axis, n in enumerate(SHAPE)])


def distances(reader: ViewReader, knots: np.ndarray) -> tuple[Tensor, float]:
    """Return how far from its place along z, y, x each voxel inside the region is read, and the share of these."""
    ramps = torch.meshgrid(*[torch.arange(n, dtype=torch.float32) for n in SHAPE], indexing="ij")
    seen, expected = torch.stack([reader.read(ramp, WHOLE) for ramp in ramps]), voxels_of(places_between(knots, GRID))
    inside = torch.stack([(expected[a] > 2) & (expected[a] < n - 3) for a, n in enumerate(SHAPE)]).all(0)
    return (seen - expected)[:, inside].abs(), float(inside.float().mean())


def in_one_pass(data: Tensor, knots: np.ndarray) -> Tensor:
    places = places_between(knots, GRID)[None]
    return functional.grid_sample(data[None, None], places, padding_mode="border", align_corners=False)[0, 0]


@pytest.mark.parametrize("seed", range(8))
def test_a_turned_view_has_its_voxels_where_one_trilinear_reading_has_them(seed: int) -> None:
    knots = knots_of(TURNED, seed)
    reader = ViewReader(SHAPE, knots, GRID, CPU)
    assert reader.passes is not None
    moved, inside = distances(reader, knots)
    assert inside > 0.5
    assert moved.max() < 1e-3


@pytest.mark.parametrize("seed", range(12))
def test_a_deformed_view_has_its_voxels_within_a_fraction_of_a_voxel(seed: int) -> None:
    knots = knots_of(dataclasses.replace(TURNED, rotate_deg=12.0, elastic=0.14), seed)
    reader = ViewReader(SHAPE, knots, GRID, CPU)
    moved, inside = distances(reader, knots)
    assert inside > 0.5
    assert moved.mean() < 0.1
    assert moved.max() < 1


def test_two_passes_read_between_planes_along_the_columns_of_the_view() -> None:
    data = torch.from_numpy(np.random.default_rng(0).random(SHAPE)).float()
    knots = knots_of(TURNED, 3)
    reader = ViewReader(SHAPE, knots, GRID, CPU)
    assert reader.passes is not None
    z, y, x = voxels_of(places_between(knots, GRID)).double().numpy()
    step = np.array([float(np.diff(axis, axis=0).mean()) for axis in (z, y, x)])  # from voxel to voxel of a column
    expected = np.zeros(GRID)
    for plane in (np.floor(z), np.floor(z) + 1):
        way = (plane - z) / step[0]
        share = 1 - np.abs(plane - z)
        places = [np.clip(plane, 0, SHAPE[0] - 1), y + way * step[1], x + way * step[2]]
        expected += share * ndimage.map_coordinates(data.numpy(), places, order=1, mode="nearest")
    inside = (z > 0) & (z < SHAPE[0] - 1)
    assert np.abs(reader.read(data, WHOLE).numpy() - expected)[inside].max() < 1e-3


@pytest.mark.parametrize("seed", range(6))
def test_a_part_is_read_as_the_whole_is(seed: int) -> None:
    rng = np.random.default_rng(seed)
    data = torch.from_numpy(rng.random(SHAPE)).float()
    reader = ViewReader(SHAPE, knots_of(dataclasses.replace(TURNED, elastic=0.14), seed), GRID, CPU)
    first = rng.integers(0, GRID)
    part = tuple(slice(int(a), int(rng.integers(a, n)) + 1) for a, n in zip(first, GRID, strict=True))
    assert len(part) == 3
    assert torch.allclose(reader.read(data, part), reader.read(data, WHOLE)[part], atol=1e-4)


def lean(knots: np.ndarray, voxels: float, *, axis: int) -> np.ndarray:
    """Return knots whose columns along z (0) or y (1) move so many voxels further in x from plane to plane."""
    knots = knots.copy()
    planes = ((knots[..., 2 - axis] + 1) * SHAPE[axis] - 1) / 2
    knots[..., 0] += voxels * (planes - planes.mean()) * 2 / SHAPE[2]
    return knots


def test_through_thick_slices_columns_run_along_y() -> None:
    knots = lean(knots_of(dataclasses.replace(TURNED, rotate_deg=5.0), 3), 2.0, axis=0)
    reader = ViewReader(SHAPE, knots, GRID, CPU)
    assert reader.passes is not None
    moved, inside = distances(reader, knots)
    assert inside > 0.1
    assert moved.max() < 1e-3
    data = torch.from_numpy(np.random.default_rng(0).random(SHAPE)).float()
    part = (slice(3, 20), slice(10, 31), slice(0, 9))
    assert torch.allclose(reader.read(data, part), reader.read(data, WHOLE)[part], atol=1e-4)


@pytest.mark.parametrize("kind", ["leans", "folds", "lies"])
def test_what_leans_too_far_or_folds_is_read_in_one_pass(kind: str) -> None:
    knots = knots_of(STILL, 0)
    if kind == "leans":  # by a bit more than it may
        knots = lean(lean(knots, 1.02 * LEAN, axis=0), 1.02 * LEAN, axis=1)
    elif kind == "folds":
        knots[2, 2, 1] = knots[0, 0, 1]
    else:
        knots = np.ascontiguousarray(knots.transpose(1, 2, 0, 3))  # columns run along x and z
    data = torch.from_numpy(np.random.default_rng(0).random(SHAPE)).float()
    reader = ViewReader(SHAPE, knots, GRID, CPU)
    assert reader.passes is None
    assert torch.equal(reader.read(data, WHOLE), in_one_pass(data, knots))
