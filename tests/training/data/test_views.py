"""Views of a case: one resampling, with labels as shares."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch
from scipy import ndimage
from torch import Tensor

from napari_fmseg.datasets.case import IGNORE
from napari_fmseg.training import Augment
from napari_fmseg.training.data.samples import Sample
from napari_fmseg.training.data.view_reader import ViewReader
from napari_fmseg.training.data.views import Region, draw_knots, draw_view, make_region

STILL = Augment(shift=0, zoom=0, rotate_p=0, contrast=0, brightness=0, gamma=0, noise=0)


def case(shape: tuple[int, int, int] = (20, 30, 40), **changes: Any) -> Sample:
    rng = np.random.default_rng(0)
    image = ndimage.gaussian_filter(rng.normal(0, 1, shape), 2).astype(np.float32)
    labels = torch.zeros(shape, dtype=torch.uint8)
    labels[5:15, 8:20, 10:30] = 1
    labels[8:12, 10:14, 12:20] = 2
    return Sample("a", torch.from_numpy(image)[None], labels, **changes)


def whole(sample: Sample) -> list[tuple[float, float]]:
    return [(0.0, float(n)) for n in sample.labels.shape]


def test_a_view_without_augmentation_shows_the_window_as_it_is() -> None:
    sample = case()
    region = make_region(sample, whole(sample), (20, 30, 40), 3)
    x, target = draw_view(region, (20, 30, 40), STILL, [], np.random.default_rng(0))
    assert torch.allclose(x, sample.image, atol=1e-5)
    assert torch.equal(target.argmax(0).to(torch.uint8), sample.labels)
    assert torch.allclose(target.sum(0), torch.ones(20, 30, 40), atol=1e-5)


def test_on_a_coarse_grid_the_shares_keep_the_volume_of_every_class() -> None:
    sample = case()
    region = make_region(sample, whole(sample), (8, 12, 16), 3)
    _, target = draw_view(region, (8, 12, 16), STILL, [], np.random.default_rng(0))
    for label in (1, 2):
        share = float(target[label].mean())
        assert share == pytest.approx(float((sample.labels == label).float().mean()), rel=0.1)


@pytest.mark.parametrize(("degrees", "tolerance"), [(12.0, 0.01), (40.0, 0.05), (170.0, 1e-4)])
def test_a_view_turns_as_scipy_turns_and_keeps_millimetres(degrees: float, tolerance: float) -> None:
    sample = case(spacing=(2.0, 1.0, 1.0))
    region = make_region(sample, whole(sample), (20, 30, 40), 3)
    turn = Augment(**{**vars(STILL), "rotate_deg": degrees, "rotate_p": 1.0})
    x, _ = draw_view(region, (20, 30, 40), turn, [], np.random.default_rng(5))
    rng = np.random.default_rng(5)
    ax, ay, az = np.deg2rad(rng.uniform(-degrees, degrees, 3))
    about_x = np.array([[1, 0, 0], [0, np.cos(ax), -np.sin(ax)], [0, np.sin(ax), np.cos(ax)]])
    about_y = np.array([[np.cos(ay), 0, np.sin(ay)], [0, 1, 0], [-np.sin(ay), 0, np.cos(ay)]])
    about_z = np.array([[np.cos(az), -np.sin(az), 0], [np.sin(az), np.cos(az), 0], [0, 0, 1]])
    turned = (about_z @ about_y @ about_x)[::-1, ::-1]  # z, y, x
    spacing = np.array([2.0, 1.0, 1.0])
    matrix = turned * spacing[None] / spacing[:, None]
    middle = (np.array([20, 30, 40]) - 1) / 2
    theirs = ndimage.affine_transform(
        sample.image[0].numpy(), matrix, middle - matrix @ middle, order=1, mode="nearest"
    )
    whole_part = ndimage.affine_transform(np.ones((20, 30, 40)), matrix, middle - matrix @ middle, order=1) > 0.999
    assert whole_part.mean() > 0.1
    values = float(np.ptp(sample.image.numpy()))
    assert np.abs(x[0].numpy() - theirs)[whole_part].max() < tolerance * values


def test_mirroring_x_exchanges_paired_organs() -> None:
    sample = case()
    region = make_region(sample, whole(sample), (20, 30, 40), 3)
    mirror = Augment(**{**vars(STILL), "flip": "x", "swap": (("a", "b"),)})
    rng = np.random.default_rng(0)
    views = [draw_view(region, (20, 30, 40), mirror, [(1, 2)], rng) for _ in range(8)]
    other = torch.tensor([0, 2, 1], dtype=torch.uint8)[sample.labels.long()].flip(2)
    kinds = {("plain" if torch.equal(t.argmax(0).to(torch.uint8), sample.labels) else "mirrored"): t for _, t in views}
    assert set(kinds) == {"plain", "mirrored"}
    assert torch.equal(kinds["mirrored"].argmax(0).to(torch.uint8), other)


def test_what_nobody_labelled_adds_up_to_nothing() -> None:
    sample = case()
    sample.labels[:4] = IGNORE
    region = make_region(sample, whole(sample), (20, 30, 40), 3)
    _, target = draw_view(region, (20, 30, 40), STILL, [], np.random.default_rng(0))
    assert target.sum(0)[:3].abs().max() < 1e-5
    assert (target.sum(0)[5:] - 1).abs().max() < 1e-5
    nothing = Sample("b", sample.image, torch.full_like(sample.labels, IGNORE))
    _, target = draw_view(
        make_region(nothing, whole(nothing), (8, 8, 8), 3), (8, 8, 8), STILL, [], np.random.default_rng(0)
    )
    assert (target == 0).all()


def test_a_window_inside_a_case_reads_only_its_surroundings() -> None:
    sample = case()
    window = [(4.0, 14.0), (6.0, 26.0), (10.0, 30.0)]
    region = make_region(sample, window, (10, 20, 20), 3, margin=0.2)
    assert region.data.shape[1:] == (14, 28, 28)
    x, target = draw_view(region, (10, 20, 20), STILL, [], np.random.default_rng(0))
    assert torch.allclose(x, sample.image[:, 4:14, 6:26, 10:30], atol=1e-5)
    assert torch.equal(target.argmax(0).to(torch.uint8), sample.labels[4:14, 6:26, 10:30])


def test_maps_on_their_own_grid_are_read_at_the_same_place() -> None:
    sample = case()
    ramp: Tensor = torch.linspace(0.5, 9.5, 10)[None, None, None, :].expand(1, 5, 6, 10).contiguous()
    region = make_region(sample, whole(sample), (20, 30, 40), 3, maps=ramp)
    both, _ = draw_view(region, (20, 30, 40), STILL, [], np.random.default_rng(0))
    assert both.shape[0] == 2
    assert both[1, 10, 15, 20].item() == pytest.approx(5.125, abs=0.05)


def test_the_same_seed_draws_the_same_place_and_elastic_moves_are_small() -> None:
    sample = case()
    region = make_region(sample, whole(sample), (20, 30, 40), 3)
    bent = Augment(**{**vars(STILL), "elastic": 0.1})
    drawn = [draw_knots(region, (20, 30, 40), bent, np.random.default_rng(s))[0] for s in (1, 1, 2, 3, 4)]
    still, _ = draw_knots(region, (20, 30, 40), STILL, np.random.default_rng(1))
    assert (drawn[0] == drawn[1]).all()
    moves = [float(np.abs(knots - still).max()) for knots in drawn]
    assert max(moves) > 0.01
    assert max(moves) < 0.3


@pytest.mark.parametrize("seed", [*range(12), 85, 285, 1222])
@pytest.mark.parametrize(("degrees", "elastic"), [(12.0, 0.14), (40.0, 0.3)])
def test_small_structures_are_read_as_large_ones_are(seed: int, degrees: float, elastic: float) -> None:
    rng = np.random.default_rng(seed)
    grid = tuple(int(n) for n in rng.integers(1, 40, 3))
    shape = [n + 5 for n in grid]
    data = torch.zeros(6, *shape)
    data[0] = torch.from_numpy(rng.random(shape))
    for number in range(1, 5):  # the last class is nowhere
        low = rng.integers(0, shape)
        high = [int(rng.integers(a + 1, n + 1)) for a, n in zip(low, shape, strict=True)]
        box = tuple(slice(int(a), b) for a, b in zip(low, high, strict=True))
        data[number][box] = torch.from_numpy(rng.random(data[number][box].shape)).float() / 4
    window = [(-0.2 * n, 0.9 * n) for n in shape]  # reads beyond the edges
    region = Region(data, (1, 2, 3, 4, 5), 6, window, (2.0, 1.0, 1.0))
    bent = dataclasses.replace(STILL, rotate_deg=degrees, rotate_p=1.0, zoom=0.3, shift=0.2, elastic=elastic, flip="x")
    knots, mirrored = draw_knots(region, grid, bent, np.random.default_rng(seed))
    reader = ViewReader(shape, knots, grid, data.device)
    expected = torch.stack(
        [reader.read(channel, (slice(0, grid[0]), slice(0, grid[1]), slice(0, grid[2]))) for channel in data]
    )
    image, target = draw_view(region, grid, bent, [(1, 2)], np.random.default_rng(seed))
    order = [2, 1, 3, 4, 5] if mirrored else [1, 2, 3, 4, 5]
    torch.testing.assert_close(image, expected[:1], rtol=0, atol=1e-5)
    torch.testing.assert_close(target[1:], expected[order], rtol=0, atol=1e-5)
    torch.testing.assert_close(target[0], (1 - expected[1:].sum(0)).clamp_min(0), rtol=0, atol=1e-5)


def test_a_flat_stack_is_hardly_turned_out_of_its_planes() -> None:
    sample = case((6, 60, 60))
    region = make_region(sample, whole(sample), (6, 60, 60), 3)
    turn = Augment(**{**vars(STILL), "rotate_deg": 20.0, "rotate_p": 1.0})
    still, _ = draw_knots(region, (6, 60, 60), STILL, np.random.default_rng(0))
    moves = [
        np.abs(draw_knots(region, (6, 60, 60), turn, np.random.default_rng(seed))[0] - still).max((0, 1, 2))
        for seed in range(10)
    ]
    assert max(float(move[2]) for move in moves) < 1.0  # half the stack, which was ten times as wide
    assert max(float(move[0]) for move in moves) > 0.2
