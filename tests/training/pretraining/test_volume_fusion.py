import itertools
import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from napari_fmseg.core.errors import GeometryMismatch, InvalidRecipe
from napari_fmseg.training.pretraining.recipe import Fusion
from napari_fmseg.training.pretraining.volume_fusion import (
    adaptive_contrast,
    draw_block_map,
    draw_box_map,
    draw_crop,
    draw_pair,
    fuse,
    fusion_sample,
    gamma_corrected,
    resized_crop,
)

SHARED = Path(os.environ.get("FMSEG_SHARED", Path(__file__).parents[3].parent / "shared")) / "golden"
CASES = {
    "default": (Fusion((32, 64, 64)), 300),
    "luna": (Fusion((64, 128, 128), block=((5, 8, 8), (20, 32, 32))), 200),
    "two_classes": (Fusion((24, 40, 48), 2, share=0.5, block=((4, 6, 6), (10, 14, 18))), 400),
}


@pytest.fixture
def published():
    if not SHARED.is_dir():
        pytest.skip(f"the golden vectors are not beside the project ({SHARED})")
    return json.loads((SHARED / "volf_stats.json").read_text())


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def within(sample, expected, errors=3):
    """Whether the mean of a sample is what is expected, by its standard error."""
    sample = np.asarray(sample, float)
    return abs(sample.mean() - expected) <= errors * sample.std(ddof=1) / len(sample) ** 0.5


def expectation(fusion):
    """Share of foreground, covered share and number of blocks, over all block sizes with equal chances."""
    sizes = itertools.product(*(range(a, b + 1) for a, b in zip(*fusion.block, strict=True)))
    rows = []
    for size in sizes:
        count = np.prod([n // s for n, s in zip(fusion.patch, size, strict=True)])
        volume = np.prod(size) / np.prod(fusion.patch)
        rows.append((int(count * fusion.share) * volume, count * volume, count))
    return np.mean(rows, 0)


@pytest.mark.real
@pytest.mark.parametrize("name", CASES)
def test_expectations_are_the_published_ones(name, published):
    facts = published["blocks"][name]["expected"]
    np.testing.assert_allclose(
        expectation(CASES[name][0]), [facts["foreground_fraction"], facts["grid_coverage"], facts["blocks"]], rtol=1e-9
    )


@pytest.mark.parametrize("name", CASES)
def test_block_maps_have_the_exact_expectation(name):
    fusion, n = CASES[name]
    generator = seeded(5)
    maps = [draw_block_map(fusion.patch, fusion, generator) for _ in range(n)]
    shares = np.array([torch.bincount(m.flatten().long(), minlength=fusion.classes + 1) / m.numel() for m in maps])
    assert shares.shape == (n, fusion.classes + 1)
    foreground = expectation(fusion)[0]
    assert within(1 - shares[:, 0], foreground)
    for k in range(1, fusion.classes + 1):
        assert within(shares[:, k], foreground / fusion.classes)


@pytest.mark.real
@pytest.mark.parametrize("kind", ["blocks", "blocks_shuffled"])
def test_block_maps_are_distributed_as_the_published_ones(kind, published):
    fusion, n = CASES["default"]
    measured = published[kind]["default"]["measured"]["foreground_fraction"]
    generator = seeded(6)
    ours = np.array([(draw_block_map(fusion.patch, fusion, generator) > 0).double().mean().item() for _ in range(n)])
    error = measured["std"] * (1 / n + 1 / 200) ** 0.5
    assert abs(ours.mean() - measured["mean"]) < 3 * error
    assert ours.std() == pytest.approx(measured["std"], rel=0.15)


def box_expectation(fusion):
    """Chance that no box covers a voxel, averaged: sizes and middles are uniform, the boxes independent."""
    covers = []
    for n, low, high in zip(fusion.patch, *fusion.box, strict=True):
        at = np.arange(n)
        first = np.arange(n)[:, None, None] - np.arange(low, high + 1)[None, :, None] // 2
        last = first + np.arange(low, high + 1)[None, :, None]
        covers.append(((at >= first) & (at < last)).mean((0, 1)))
    one = covers[0][:, None, None] * covers[1][:, None] * covers[2]
    return np.mean([((1 - one) ** m).mean() for m in range(fusion.boxes[0], fusion.boxes[1] + 1)])


def test_box_maps_have_the_exact_expectation():
    fusion, n = Fusion((64, 128, 128), mode="boxes"), 200
    generator = seeded(7)
    maps = [draw_box_map(fusion.patch, fusion, generator) for _ in range(n)]
    shares = np.array([torch.bincount(m.flatten().long(), minlength=5) / m.numel() for m in maps])
    background = box_expectation(fusion)
    assert within(shares[:, 0], background)
    for k in range(1, 5):
        assert within(shares[:, k], (1 - background) / 4)


@pytest.mark.real
def test_box_maps_are_distributed_as_the_published_ones(published):
    facts = published["boxes"]["measured"]["foreground_fraction"]
    error = facts["std"] / 400**0.5
    assert abs(1 - box_expectation(Fusion((64, 128, 128), mode="boxes")) - facts["mean"]) < 3 * error


@pytest.mark.real
def test_crops_are_distributed_as_the_published_ones(published):
    from scipy import ndimage

    facts = published["crops"]
    drawn = np.random.Generator(np.random.PCG64(13)).standard_normal((1, 40, 64, 64)).astype(np.float32)
    volume = torch.from_numpy(ndimage.gaussian_filter(drawn, (0, 2, 2, 2))[0])
    n, generator = 200, seeded(8)
    boxes = [draw_crop(volume.shape, facts["output_size"], generator) for _ in range(n)]
    sizes = np.array([[s.stop - s.start for s in box] for box in boxes])
    expected = [np.floor(np.linspace(0.7, 1.5, 100_001)[:-1] * p).mean() for p in facts["output_size"]]
    assert all(within(sizes[:, i], expected[i]) for i in range(3))
    for name, spatial, intensity in [("none", 0, 0), ("intensity", 0, 1), ("spatial", 1, 0), ("both", 1, 1)]:
        fusion = Fusion(tuple(facts["output_size"]), spatial=bool(spatial), intensity=bool(intensity))
        patches = [p.numpy() for _ in range(n // 2) for p in draw_pair(volume, fusion, generator)]
        for key, of in [("mean", np.mean), ("std", np.std), ("min", np.min), ("max", np.max)]:
            theirs = facts[name][f"patch_{key}"]
            ours = np.array([of(p) for p in patches])
            # The two patches of a pair are inverted together, so that only half of them count in full.
            error = max(ours.std(), theirs["std"]) * (2 / n + 2 / 400) ** 0.5
            assert abs(ours.mean() - theirs["mean"]) <= 3 * error + 1e-6, (name, key)


@pytest.mark.real
def test_contrast_gamma_and_crop_are_the_published_ones():
    if not SHARED.is_dir():
        pytest.skip(f"the golden vectors are not beside the project ({SHARED})")
    with np.load(SHARED / "misfm_transforms.npz") as data:
        arrays = {key: data[key] for key in data.files}
    image = np.random.Generator(np.random.PCG64(21)).standard_normal((1, 12, 14, 16)).astype(np.float32)[0]
    patch = torch.from_numpy(image)
    ours = {f"contrast_{a}_{b}": adaptive_contrast(patch, float(a), float(b))
            for a, b in [("0.1", "99.9"), ("1.3", "98.7"), ("2", "98")]}  # fmt: skip
    ours |= {f"gamma_{e}": gamma_corrected(patch, float(e)) for e in ("0.7", "1.5")}
    ours["crop_up"] = resized_crop(patch[4:12, 0:9, 6:16], (16, 18, 20))
    ours["crop_down"] = resized_crop(patch[0:12, 0:12, 2:14], (8, 8, 8))
    for name, value in ours.items():
        np.testing.assert_allclose(value.numpy(), arrays[name][0], rtol=1e-5, atol=1e-5, err_msg=name)


sizes = st.tuples(*[st.integers(1, 20)] * 3)


@settings(deadline=None, max_examples=60)
@given(
    shape=sizes, patch=sizes, mode=st.sampled_from(["blocks", "boxes"]), classes=st.integers(1, 9),
    spatial=st.booleans(), intensity=st.booleans(), seed=st.integers(0, 2**31),
    kind=st.sampled_from(["noise", "flat", "nearly flat", "huge", "two values", "not finite"]),
)  # fmt: skip
def test_samples_are_finite_and_are_what_their_map_says(shape, patch, mode, classes, spatial, intensity, seed, kind):
    generator = seeded(seed)
    volume = torch.randn(shape, generator=generator)
    volume = {
        "noise": volume, "flat": torch.full(shape, -1000.0), "nearly flat": 1 + 1e-7 * volume, "huge": 1e30 * volume,
        "two values": (volume > 2).float(), "not finite": torch.where(volume > 1, torch.nan, volume),
    }[kind]  # fmt: skip
    before = volume.clone()
    fusion = Fusion(patch, classes, mode, spatial=spatial, intensity=intensity)
    state = generator.get_state()
    x, labels = fusion_sample(volume, fusion, generator)
    assert torch.equal(volume.nan_to_num(), before.nan_to_num())
    assert x.shape == labels.shape == torch.Size(patch)
    assert x.isfinite().all()
    assert labels.max() <= classes
    if intensity:
        assert x.min() >= -1e-6
        assert x.max() <= 1 + 1e-6
    generator.set_state(state)
    background, foreground = draw_pair(volume, fusion, generator)
    for k in range(classes + 1):
        alpha, here = torch.tensor(k / classes, dtype=torch.float32), labels == k
        assert torch.equal(x[here], (alpha * foreground + (1 - alpha) * background)[here])


@given(shape=sizes, seed=st.integers(0, 2**31))
@settings(deadline=None, max_examples=60)
def test_no_axis_is_too_short_for_a_block(shape, seed):
    fusion = Fusion(share=1.0)
    labels = draw_block_map(shape, fusion, seeded(seed))
    assert (labels > 0).any()


def test_seed_decides_the_sample():
    volume, fusion = torch.rand(20, 24, 28, generator=seeded()), Fusion((8, 12, 16), block=((2, 2, 2), (4, 4, 4)))
    one, two, three = (fusion_sample(volume, fusion, seeded(s)) for s in (1, 1, 2))
    assert torch.equal(one[0], two[0])
    assert torch.equal(one[1], two[1])
    assert not torch.equal(one[0], three[0])


def test_foreground_comes_from_the_other_volume():
    fusion = Fusion((8, 8, 8), 1, "boxes", box=((3, 3, 3), (5, 5, 5)), intensity=False)
    x, labels = fusion_sample(torch.zeros(9, 9, 9), fusion, seeded(), other=torch.ones(9, 9, 9))
    assert torch.equal(x, labels.float())


def test_contrast_keeps_the_order():
    values = torch.linspace(-3, 5, 101)
    ours = adaptive_contrast(values, 2.0, 98.0)
    assert (ours.diff() >= 0).all()
    assert (ours.min(), ours.max()) == (0, 1)
    assert torch.equal(fuse(values, 0 * values, torch.full((101,), 4), 4), values)


@pytest.mark.parametrize("kwargs", [
    {"patch": (0, 8, 8)}, {"block": ((9, 9, 9), (8, 8, 8))}, {"mode": "balls"}, {"classes": 0}, {"share": 0},
    {"scale": (1.5, 0.7)}, {"boxes": (0, 4)},
])  # fmt: skip
def test_impossible_fusion_is_refused(kwargs):
    with pytest.raises(InvalidRecipe, match="not "):
        Fusion(**kwargs)


def test_volume_with_channels_is_refused():
    with pytest.raises(GeometryMismatch, match="one channel"):
        fusion_sample(torch.zeros(1, 8, 8, 8), Fusion((8, 8, 8)), seeded())
