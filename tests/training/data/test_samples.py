"""Training samples: image and labels stay together, sides stay sides, and the seed decides."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from scipy import ndimage

from napari_fmseg.core.errors import GeometryMismatch, InvalidRecipe
from napari_fmseg.core.volume import Geometry, LabelMap, Volume
from napari_fmseg.datasets.case import Case, read_case
from napari_fmseg.io import write_labels, write_volume
from napari_fmseg.models.card import Intensity
from napari_fmseg.pipelines.phased import PhasedSettings
from napari_fmseg.pipelines.preprocessing import minmax_normalise, whole_box
from napari_fmseg.pipelines.slab_reader import SlabReader
from napari_fmseg.training.data.augmentation import augment_intensity, augment_spatial, jitter_window
from napari_fmseg.training.data.samples import Sample, load_sample, one_hot, target_in
from napari_fmseg.training.recipe import Augment, Recipe, StageRecipe
from napari_fmseg.training.tasks.phased import phased_task

STILL = Augment(shift=0, zoom=0, rotate_deg=0, contrast=0, brightness=0, gamma=0, noise=0)
NAMES = {1: "left", 2: "right", 7: "middle"}


def random_labels(shape: tuple[int, int, int] = (6, 7, 8), n_classes: int = 4) -> torch.Tensor:
    return torch.randint(0, n_classes, shape, generator=torch.Generator().manual_seed(1)).to(torch.uint8)


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def test_one_hot_adds_up_to_one_and_names_every_voxel() -> None:
    labels = random_labels()
    hot = one_hot(labels, 4)
    assert hot.shape == (4, 6, 7, 8)
    assert (hot.sum(0) == 1).all()
    assert (hot.argmax(0) == labels).all()


class Always(np.random.Generator):
    """Draws a coin that always falls on the same side."""

    def __init__(self) -> None:
        super().__init__(np.random.PCG64(0))

    def random(self, *_: Any, **__: Any) -> float:  # type: ignore[override]
        return 0.0


def test_a_mirror_along_x_swaps_left_and_right() -> None:
    labels = torch.zeros(4, 4, 8, dtype=torch.uint8)
    labels[..., :2], labels[..., 4], labels[..., 6:] = 1, 3, 2
    target = one_hot(labels, 4)
    _, mirrored = augment_spatial([target[:1]], target, Augment(flip="x", rotate_deg=0), [(1, 2)], Always())
    found = mirrored.argmax(0)
    assert (found[..., :2] == 1).all()  # what lay at the far end was 2, and is 1 in the mirror
    assert (found[..., 6:] == 2).all()
    assert (found[..., 3] == 3).all()  # in the middle: mirrored, not renamed


@pytest.mark.parametrize("flip", ["z", "y", "zy"])
def test_other_mirrors_rename_nothing(flip: str) -> None:
    target = one_hot(random_labels(), 4)
    _, mirrored = augment_spatial([], target, Augment(flip=flip, rotate_deg=0), [(1, 2)], Always())
    assert torch.equal(mirrored, target.flip(["zyx".index(a) + 1 for a in flip]))


@pytest.mark.parametrize("seed", range(6))
def test_a_bright_cube_stays_under_its_label(seed: int) -> None:
    labels = torch.zeros(20, 24, 22, dtype=torch.uint8)
    labels[3:9, 12:20, 5:12] = 1
    target = one_hot(labels, 2)
    augment = Augment(flip="zyx", rotate_deg=40, rotate_p=1)
    (image, beside), turned = augment_spatial([target[1:], 1 - target[1:]], target, augment, [], rng(seed))
    torch.testing.assert_close(image[0], turned[1], atol=1e-5, rtol=0)
    torch.testing.assert_close(beside[0], turned[0], atol=1e-5, rtol=0)
    torch.testing.assert_close(turned.sum(0), torch.ones(20, 24, 22), atol=1e-6, rtol=0)
    assert not torch.equal(turned, target)
    assert turned[1].sum() == pytest.approx(float(target[1].sum()), rel=0.1)


def test_a_turn_is_a_turn_of_cubes_about_the_centre(monkeypatch: pytest.MonkeyPatch) -> None:
    """SimpleITK turns the same volume by the same angle about z."""
    from napari_fmseg.training.data.augmentation import _turn

    data = torch.rand(1, 6, 20, 28, generator=torch.Generator().manual_seed(0))
    angle = 0.3
    turn = sitk.Euler3DTransform((13.5, 9.5, 2.5), 0, 0, angle)
    image = sitk.GetImageFromArray(data[0].numpy())
    expected = sitk.GetArrayFromImage(sitk.Resample(image, image, turn, sitk.sitkLinear, -1.0))
    found = _turn(data, np.array([angle, 0, 0]))[0].numpy()
    inside = expected > -0.5
    assert inside.mean() > 0.6
    np.testing.assert_allclose(found[inside], expected[inside], atol=1e-4)


def test_a_window_at_rest_shows_the_labels_as_they_are() -> None:
    labels = random_labels()
    spans = [(0.0, float(n)) for n in labels.shape]
    assert jitter_window(spans, STILL, rng()) == spans
    assert torch.equal(target_in(labels, spans, labels.shape, 4), one_hot(labels, 4))


def test_a_window_within_the_volume_shows_its_part() -> None:
    labels = random_labels()
    part = target_in(labels, [(1, 5), (2, 6), (3, 8)], (4, 4, 5), 4)
    assert torch.equal(part, one_hot(labels[1:5, 2:6, 3:8], 4))


def test_a_window_beyond_the_border_is_background_there() -> None:
    labels = torch.ones(6, 6, 6, dtype=torch.uint8)
    target = target_in(labels, [(-3, 6), (0, 9), (-3, 9)], (9, 9, 12), 2)
    expected = torch.zeros(9, 9, 12)
    expected[3:, :6, 3:9] = 1
    torch.testing.assert_close(target[1], expected, atol=1e-6, rtol=0)
    assert torch.equal(target.sum(0), torch.ones(9, 9, 12))


@pytest.mark.parametrize("span", [(-12.0, -6.0), (6.0, 12.0), (20.0, 26.0)])
def test_a_window_wholly_outside_is_background(span: tuple[float, float]) -> None:
    labels = torch.ones(6, 6, 6, dtype=torch.uint8)
    target = target_in(labels, [(0, 6), span, (0, 6)], (4, 4, 4), 3)
    assert torch.equal(target, one_hot(torch.zeros(4, 4, 4), 3))


def test_a_coarse_target_holds_fractions_that_add_up_to_one() -> None:
    labels = random_labels((12, 12, 12))
    target = target_in(labels, [(0.0, 12.0)] * 3, (5, 4, 3), 4)
    assert ((target > 0.05) & (target < 0.95)).any()
    torch.testing.assert_close(target.sum(0), torch.ones(5, 4, 3), atol=1e-6, rtol=0)
    shares = torch.stack([(labels == i).float().mean() for i in range(4)])
    torch.testing.assert_close(target.mean((1, 2, 3)), shares, atol=0.05, rtol=0)


def test_a_window_keeps_within_the_largest_shift_and_zoom() -> None:
    spans, augment, generator = [(10.0, 30.0), (0.0, 100.0)], Augment(shift=0.1, zoom=0.2), rng()
    drawn = np.array([jitter_window(spans, augment, generator) for _ in range(300)])
    for (first, last), axis in zip(spans, (0, 1), strict=True):
        size = drawn[:, axis, 1] - drawn[:, axis, 0]
        assert (np.abs(size / (last - first) - 1) <= 0.2).all()
        assert (np.abs(drawn[:, axis].mean(1) - (first + last) / 2) <= 0.1 * (last - first)).all()
        assert np.ptp(size) > 0.2 * (last - first)


def test_intensities_are_varied_within_bounds_and_left_alone_at_rest() -> None:
    image = torch.rand(2, 5, 6, 7, generator=torch.Generator().manual_seed(0))
    noise = torch.Generator().manual_seed(0)
    torch.testing.assert_close(augment_intensity(image, STILL, rng(), noise), image)
    augment = Augment(contrast=0.2, brightness=0.1, gamma=0, noise=0)
    for seed in range(20):
        out = augment_intensity(image, augment, rng(seed), noise)
        assert (out - image).abs().max() <= 0.2 + 0.1 + 1e-6
        assert not torch.equal(out[0] - image[0], out[1] - image[1])


@pytest.mark.parametrize("shape", [(2, 5, 6, 7), (1, 1, 3, 2)])
def test_a_blurred_image_lies_between_itself_and_the_mean_of_its_neighbours(shape: tuple[int, ...]) -> None:
    image = torch.rand(shape, generator=torch.Generator().manual_seed(0))
    mean = torch.from_numpy(ndimage.uniform_filter(image.numpy(), (1, 3, 3, 3), mode="nearest"))
    for seed in range(5):
        out = augment_intensity(image, dataclasses.replace(STILL, blur=1.0), rng(seed), torch.Generator())
        share = float(((out - image) * (mean - image)).sum() / ((mean - image) ** 2).sum())
        assert 0.3 - 1e-4 <= share <= 1 + 1e-4
        torch.testing.assert_close(out, torch.lerp(image, mean, share), atol=1e-5, rtol=0)


def sample(shape: tuple[int, int, int] = (16, 18, 20)) -> Sample:
    labels = torch.zeros(shape, dtype=torch.uint8)
    labels[5:10, 6:12, 7:14] = 1
    return Sample("a", labels[None].float(), labels)


def recipe_of(**changes: Any) -> Recipe:
    facts = {
        "augment": Augment(flip="x"),
        "settings": {"consensus_grid": [8, 9, 10], "attention_grid": [9, 10, 11]},
        **changes,
    }
    stages = tuple(StageRecipe(s, "snet") for s in ("consensus", "attention", "edge"))
    return Recipe("m", stages, ("organ",), Path("runs"), phantom=(1, 1), **facts)


class Bright(torch.nn.Module):
    """Background is what is dark."""

    activation = "none"

    def forward(self, x: torch.Tensor, *beside: torch.Tensor) -> torch.Tensor:
        return torch.cat([1 - x, x], 1)


FROZEN = {"consensus": Bright(), "attention": Bright()}


def draw(stage: int, seed: int, recipe: Recipe | None = None) -> list[torch.Tensor]:
    recipe = recipe or recipe_of()
    task = phased_task(recipe.stages[stage], recipe, [sample()], FROZEN)
    inputs, target = task.sample(0, rng(seed), torch.Generator().manual_seed(seed))
    return [*inputs, target]


@pytest.mark.parametrize("stage", [0, 1, 2])
def test_the_same_seed_gives_the_same_sample_and_another_seed_another(stage: int) -> None:
    first, again, other = draw(stage, 3), draw(stage, 3), draw(stage, 4)
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not torch.equal(first[0], other[0])


@pytest.mark.parametrize(("stage", "channels"), [(0, [1, 2]), (1, [1, 1, 2]), (2, [1, 2, 2])])
def test_a_sample_has_what_its_network_takes_on_one_grid(stage: int, channels: list[int]) -> None:
    parts = draw(stage, 0)
    assert [part.shape[0] for part in parts] == channels
    assert len({part.shape[1:] for part in parts}) == 1
    torch.testing.assert_close(parts[-1].sum(0), torch.ones(parts[-1].shape[1:]), atol=1e-5, rtol=0)


@pytest.mark.parametrize("minmax", [False, True])
def test_without_variation_the_consensus_learns_on_what_it_will_see(minmax: bool) -> None:
    intensity = Intensity(minmax=minmax)
    recipe = recipe_of(augment=STILL, intensity=intensity)
    case = sample()
    case = Sample("a", 0.2 + 0.3 * case.image, case.labels)
    task = phased_task(recipe.stages[0], recipe, [case], {})
    (x,), _ = task.sample(0, rng(), torch.Generator())
    source = SlabReader(case.image.numpy(), torch.device("cpu"))  # as a run reads a volume
    grid = PhasedSettings.of(recipe.settings).consensus_grid
    seen = minmax_normalise(source.read(whole_box(case.labels.shape), grid), intensity)
    assert (x - seen).abs().mean() < 0.01  # resampled twice, it is a little softer
    assert (x - seen).abs().max() < 0.1 * float(seen.max() - seen.min()) + 0.06


def test_a_stage_without_those_before_it_is_refused() -> None:
    recipe = recipe_of()
    with pytest.raises(InvalidRecipe, match="consensus, attention"):
        phased_task(recipe.stages[2], recipe, [sample()], {})
    with pytest.raises(InvalidRecipe, match="no stage 'final'"):
        phased_task(StageRecipe("final", "snet"), recipe, [sample()], {})


def written(folder: Path, labels: np.ndarray, *, move_mm: float = 0.0, channels: int = 1) -> Case:
    """A case in files; flipped and permuted, so that reading has something to put right."""
    turned = np.eye(3)[:, [1, 2, 0]] @ np.diag([1.0, -1.0, 1.0])
    grid = Geometry.from_spacing(labels.shape, (2, 1, 1), (5, 6, 7), turned)
    moved = Geometry.from_spacing(labels.shape, (2, 1, 1), (5 + move_mm, 6, 7), turned)
    images = []
    for i in range(channels):
        images.append(folder / f"a_{i:04d}.nii.gz")
        write_volume(Volume((labels == 7).astype(np.float32) * 100 * (i + 1), grid), images[-1])
    write_labels(LabelMap(labels, moved), folder / "a.nii.gz")
    return Case("a", tuple(images), folder / "a.nii.gz")


def numbered(value: int = 7) -> np.ndarray:
    labels = np.zeros((6, 7, 8), np.int16)
    labels[1:3, 2:4, 3:5], labels[4, 4, 4] = value, 1
    return labels


def test_labels_are_renumbered_to_the_recipes_order_and_others_are_background(tmp_path: Path) -> None:
    labels = numbered()
    labels[0, 0, 0], labels[0, 0, 1] = 2, 30
    _, found = read_case(written(tmp_path, labels), NAMES, ("middle", "left"))
    np.testing.assert_array_equal(found.data, np.select([labels == 7, labels == 1], [1, 2], 0))
    assert found.names == {1: "middle", 2: "left"}


def test_a_negative_label_is_background(tmp_path: Path) -> None:
    labels = numbered()
    labels[0, 0, 0] = -1  # the ignore label of some data sets; counted from the end it would be "middle"
    _, found = read_case(written(tmp_path, labels), NAMES, ("middle", "left"))
    assert found.data[0, 0, 0] == 0
    assert found.data[1, 2, 3] == 1


def test_a_label_of_any_size_takes_no_memory(tmp_path: Path) -> None:
    labels = numbered().astype(np.int64)
    labels[0, 0, 0] = 10**12
    _, found = read_case(written(tmp_path, labels), NAMES, ("middle",))
    np.testing.assert_array_equal(found.data, labels == 7)


def test_numbers_that_no_class_is_called_by_are_warned_of(tmp_path: Path) -> None:
    labels = numbered()
    assert read_case(written(tmp_path, labels), NAMES, ("middle",))[1].warnings == ()
    labels[0, 0, :3], labels[0, 1, 0], labels[0, 2, 0] = 30, -1, 9
    _, found = read_case(written(tmp_path, labels), NAMES, ("middle",), ignore=9)
    assert found.warnings == ("4 voxels have numbers of no class (-1, 30) and count as background.",)


def test_channels_are_put_together_in_order(tmp_path: Path) -> None:
    volume, _ = read_case(written(tmp_path, numbered(), channels=2), NAMES, ("middle",))
    assert volume.data.shape == (2, 6, 7, 8)
    np.testing.assert_array_equal(volume.data[1], 2 * volume.data[0])


def test_labels_that_lie_elsewhere_are_refused(tmp_path: Path) -> None:
    with pytest.raises(GeometryMismatch, match="a: the files do not lie on one grid"):
        read_case(written(tmp_path, numbered(), move_mm=1), NAMES, ("middle",))


def test_a_case_without_labels_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidRecipe, match="a has no labels"):
        read_case(Case("a", (tmp_path / "a.nii",)), NAMES, ("middle",))


@pytest.mark.parametrize("crop_above", [None, 0.5])
def test_a_sample_is_canonical_normalised_and_its_labels_lie_on_it(tmp_path: Path, crop_above: float | None) -> None:
    case = written(tmp_path, numbered())
    found = load_sample(case, NAMES, ("middle",), Intensity("window", 0, 100), crop_above, torch.device("cpu"))
    whole = sitk.GetArrayFromImage(sitk.DICOMOrient(sitk.ReadImage(str(case.images[0])), "LPS")) / 100
    expected = whole if crop_above is None else np.ones((found.labels.shape), np.float32)
    np.testing.assert_array_equal(found.image[0].numpy(), expected)
    np.testing.assert_array_equal(found.labels.numpy(), expected)
    assert found.labels.sum() == 8
