"""Why here? The map is what a hand calculation gives, in its place in the patient, for every kind of model."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from napari_fmseg.cli.main import main
from napari_fmseg.core.errors import GeometryMismatch, InvalidRecipe, UnknownModel
from napari_fmseg.core.events import Progress, StageResult
from napari_fmseg.core.volume import Geometry, Volume
from napari_fmseg.explain.gradcam import STAGE, grad_cam
from napari_fmseg.io import read_volume, write_volume
from napari_fmseg.models.card import Intensity, ModelCard, NetSpec
from napari_fmseg.models.weights import Model, save_model
from napari_fmseg.nets import build

SHAPE = (9, 10, 11)


class TwoLayers(nn.Module):
    """The image as it is, then the sum of 3 x 3 x 3 voxels as logit of the organ."""

    activation = "softmax"

    def __init__(self):
        super().__init__()
        self.first = nn.Conv3d(1, 1, 1, bias=False).requires_grad_(False)
        self.second = nn.Conv3d(1, 2, 3, padding=1, bias=False).requires_grad_(False)
        self.first.weight[:] = 1
        self.second.weight[0], self.second.weight[1] = 0, 1

    def forward(self, x, *beside):
        return self.second(self.first(x))


class Certain(TwoLayers):
    """The same as probabilities, as phased networks give them."""

    activation = "none"

    def forward(self, x, *beside):
        return (super().forward(x) - 9).softmax(1)


def model_of(nets, pipeline, **settings):
    card = ModelCard(
        name="one", title="One", pipeline=pipeline, nets={name: NetSpec("conv") for name in nets},
        labels={1: "organ"}, intensity=Intensity("window", 0.0, 1.0), settings=settings,
    )  # fmt: skip
    return Model(card, nets, torch.device("cpu"))


def single(window=(32, 32, 32), **settings):
    return model_of({"net": TwoLayers().eval()}, "single", window=window, **settings)


def why(volume, model, label=1, **kwargs):
    *events, last = grad_cam(volume, model, label, **kwargs)
    assert isinstance(last, StageResult)
    assert last.stage == STAGE
    assert Progress(STAGE, 1, 1) in events
    return last


@pytest.fixture
def image():
    return np.random.default_rng(0).uniform(0.1, 1, SHAPE).astype(np.float32)


def by_hand(image, point):
    """What the first layer shows where the second looks from `point`, scaled to 1; the mean gradient scales it only."""
    seen = np.zeros_like(image)
    box = tuple(slice(max(0, p - 1), p + 2) for p in point)
    seen[box] = image[box]
    return seen / seen.max()


@pytest.mark.parametrize("point", [(4, 5, 6), (0, 9, 3)])
def test_map_is_the_hand_calculation_and_0_beyond_the_kernel(image, point):
    volume = Volume(image, Geometry.from_spacing(SHAPE, (2.0, 1.0, 1.5), (5, 6, 7)))
    found = why(volume, single(), point=point, layer="first")
    assert found.output.geometry.matches(volume.geometry)
    np.testing.assert_allclose(found.output.data, by_hand(image, point), rtol=1e-5)
    assert (found.output.data > 0).sum() == np.prod(
        [min(p + 2, n) - max(p - 1, 0) for p, n in zip(point, SHAPE, strict=True)]
    )
    assert found.output.meta == {"label": 1, "name": "organ"}


@pytest.mark.parametrize("direction", [np.diag([-1, 1, -1]), np.eye(3)[[1, 2, 0]]])
def test_map_lies_on_the_patient_however_the_file_is_turned(image, direction):
    volume = Volume(image, Geometry.from_spacing(SHAPE, (2.0, 1.0, 1.5), (5, 6, 7), direction))
    point = (2, 7, 4)
    found = why(volume, single(), point=point, layer="first").output
    assert found.geometry.shape == volume.geometry.canonical()[0].shape
    brightest = found.geometry.place(np.unravel_index(found.data.argmax(), found.data.shape))
    expected = by_hand(image, point)
    np.testing.assert_allclose(
        brightest, volume.geometry.place(np.unravel_index(expected.argmax(), expected.shape)), atol=1e-6
    )


def test_only_a_window_around_the_place_is_looked_at(image):
    volume = Volume(image, Geometry.from_spacing(SHAPE))
    found = why(volume, single((5, 5, 5)), point=(0, 5, 10), layer="first").output
    assert found.geometry.shape == (5, 5, 5)
    np.testing.assert_allclose(found.geometry.origin, (0, 3, 6))
    np.testing.assert_allclose(found.data, by_hand(image, (0, 5, 10))[0:5, 3:8, 6:11], rtol=1e-5)


def test_box_is_asked_about_as_a_whole(image):
    volume = Volume(image, Geometry.from_spacing(SHAPE))
    found = why(volume, single(), box=(slice(3, 6), slice(3, 6), slice(3, 6)), layer="first").output.data
    assert (found > 0).sum() == 5**3


def test_without_a_place_it_is_what_the_network_finds():
    image = np.zeros(SHAPE, np.float32)
    image[2:4, 3:6, 7:9] = 1
    found = why(Volume(image, Geometry.from_spacing(SHAPE)), single((7, 7, 7)), layer="first")
    assert found.note == ""
    inside = found.output.data[found.output.data > 0]
    assert len(inside) == 2 * 3 * 2
    np.testing.assert_allclose(inside, 1)


def test_class_that_is_not_found_is_said():
    volume = Volume(np.zeros(SHAPE, np.float32), Geometry.from_spacing(SHAPE))
    found = why(volume, single(), "organ", point=(4, 4, 4))
    assert "does not find organ here" in found.note
    assert not found.output.data.any()


@pytest.mark.parametrize("stages", [("consensus",), ("consensus", "attention"), ("consensus", "attention", "edge")])
def test_phased_model_is_asked_in_the_stage_that_looked_closest(stages):
    shape = (20, 22, 24)
    image = np.zeros(shape, np.float32)
    image[8:14, 8:14, 10:16] = 1
    volume = Volume(image, Geometry.from_spacing(shape, (1.0, 2.0, 1.0), (3, 2, 1)))
    nets = {stage: Certain().eval() for stage in stages}
    grids = {"consensus_grid": (20, 22, 24), "attention_grid": (18, 18, 18), "window_margin": (2, 3)}
    found = why(volume, model_of(nets, "phased", **grids), point=(10, 10, 12), layer="first").output
    assert found.geometry.shape == ((20, 22, 24) if len(stages) == 1 else (18, 18, 18))
    bright = found.geometry.place(np.argwhere(found.data > 0.5))
    assert len(bright) > 0
    assert (np.abs(bright - volume.geometry.place((10, 10, 12))) <= (2.5, 5, 2.5)).all()


@pytest.mark.parametrize("stages", [("coarse",), ("coarse", "fine")])
def test_coarse_to_fine_model_is_asked_in_the_box_that_was_looked_at(stages):
    shape = (20, 22, 24)
    image = np.zeros(shape, np.float32)
    image[8:14, 8:14, 10:16] = 1
    volume = Volume(image, Geometry.from_spacing(shape, (1.0, 2.0, 1.0), (3, 2, 1)))
    nets = {stage: TwoLayers().eval() for stage in stages}
    sizes = {"coarse_size": shape, "fine_size": (12, 12, 12), "margin_mm": 2.0}
    found = why(volume, model_of(nets, "coarse_fine", **sizes), point=(10, 10, 12), layer="first").output
    assert found.geometry.shape == (shape if len(stages) == 1 else (12, 12, 12))
    bright = found.geometry.place(np.argwhere(found.data > 0.5))
    assert len(bright) > 0
    assert (np.abs(bright - volume.geometry.place((10, 10, 12))) <= (2.5, 5, 2.5)).all()


def test_impossible_questions_are_refused(image):
    volume = Volume(image, Geometry.from_spacing(SHAPE))
    with pytest.raises(UnknownModel, match=r"no class 'spleen'.*organ"):
        why(volume, single(), "spleen")
    with pytest.raises(UnknownModel, match="no layer 'deep'"):
        why(volume, single(), point=(4, 4, 4), layer="deep")
    with pytest.raises(GeometryMismatch, match="not in a volume"):
        why(volume, single(), point=(4, 4, 11))
    with pytest.raises(GeometryMismatch, match="takes 1 channel"):
        why(Volume(np.stack([image, image]), volume.geometry), single(), point=(4, 4, 4))
    with pytest.raises(InvalidRecipe, match="needs the pipeline 'other'"):
        why(volume, model_of({"net": TwoLayers()}, "other"), point=(4, 4, 4))


def test_command_writes_the_map(tmp_path: Path, capsys):
    torch.manual_seed(0)
    card = single((16, 16, 16)).card
    spec = {"net": NetSpec("unet3d", {"width": 2})}
    save_model(ModelCard(**{**card.__dict__, "nets": spec}), {"net": build("unet3d", width=2)}, tmp_path)
    image = np.random.default_rng(0).uniform(0, 1, (16, 16, 16)).astype(np.float32)
    write_volume(Volume(image, Geometry.from_spacing(image.shape)), tmp_path / "image.nii.gz")
    words = ["explain", str(tmp_path / "image.nii.gz"), "--model", str(tmp_path / "one.toml"), "--label", "organ"]
    assert main([*words, "--output", str(tmp_path / "why.nii.gz"), "--voxel", "8", "8", "8", "--device", "cpu"]) == 0
    heat = read_volume(tmp_path / "why.nii.gz").data
    assert heat.shape == (16, 16, 16)
    assert 0 <= heat.min() <= heat.max() <= 1
    assert "why.nii.gz" in capsys.readouterr().out
