"""A pipeline and a network that others bring: registered by a line each, used everywhere."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
from torch import Tensor, nn  # noqa: E402

from napari_fmseg.core.errors import InvalidRecipe  # noqa: E402
from napari_fmseg.core.events import Event, StageResult, StepDone, drain  # noqa: E402
from napari_fmseg.core.volume import Box, Geometry, LabelMap, Volume  # noqa: E402
from napari_fmseg.explain.gradcam import grad_cam  # noqa: E402
from napari_fmseg.io import write_labels, write_volume  # noqa: E402
from napari_fmseg.models.card import Intensity  # noqa: E402
from napari_fmseg.models.settings import PIPELINES, Pipeline, PipelineSettings  # noqa: E402
from napari_fmseg.models.weights import Model, load_model  # noqa: E402
from napari_fmseg.nets import NETWORKS  # noqa: E402
from napari_fmseg.nets.runtime.prepare import prepare  # noqa: E402
from napari_fmseg.pipelines import segment, stages_of  # noqa: E402
from napari_fmseg.pipelines.network_inputs import NetworkInputs  # noqa: E402
from napari_fmseg.training import Recipe, StageRecipe, train  # noqa: E402
from napari_fmseg.training.tasks import TASKS, TrainingTask  # noqa: E402
from napari_fmseg.training.tasks.base import Labelled  # noqa: E402

SHAPE = (6, 7, 8)
fast_calls: list[int] = []


class ToyNet(nn.Module):
    """One convolution; states its activation, its first weights and a faster form."""

    activation = "sigmoid"
    cpu_form = f"{__name__}:ToyCpu"

    def __init__(self, in_channels: int = 1, n_classes: int = 2) -> None:
        super().__init__()
        self.conv = nn.Conv3d(in_channels, n_classes - 1, 1)

    def init_weights(self, generator: torch.Generator) -> None:
        """Begin with the image as logit."""
        nn.init.ones_(self.conv.weight)
        nn.init.constant_(self.conv.bias, -0.5)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits (b, n_classes - 1, z, y, x)."""
        return self.conv(x)


class ToyCpu:
    """The same, counted."""

    def __init__(self, net: ToyNet, dtype: torch.dtype) -> None:
        self._net = net

    @torch.inference_mode()
    def __call__(self, x: Tensor) -> Tensor:
        fast_calls.append(1)
        return self._net(x)


@dataclass(frozen=True)
class ToySettings(PipelineSettings):
    """One number."""

    threshold: float = 0.0

    def input_size(self, stage: str) -> tuple[int, int, int]:
        """Return the voxels of the network's input."""
        return SHAPE


def run(volume: Volume, model: Model, options: Any) -> Iterator[Event]:
    """Compare the logits of the whole volume with a threshold."""
    settings = ToySettings.of(model.card.settings)
    logits = prepare(model.nets["toy"], device=model.device)(torch.from_numpy(volume.data).float()[None, None])
    labels = (logits[0, 0] > settings.threshold).cpu().numpy().astype(np.uint8)
    yield StageResult("labels", LabelMap(labels, volume.geometry, {}, model.card.labels, model.card.colors), 0.0)


def explain_inputs(volume: Volume, model: Model, place: Box | None) -> NetworkInputs:
    """Return the whole volume."""
    return NetworkInputs(model.nets["toy"], (torch.from_numpy(volume.data).float()[None, None],), volume.geometry)


class ToyTask(Labelled):
    """Whole cases."""

    def __init__(self, stage: StageRecipe, recipe: Recipe, samples: Any, frozen: Any) -> None:
        super().__init__(stage, recipe, samples)

    def sample(self, index: int, rng: Any, noise: Any, focus: int = 0) -> tuple[list[Tensor], Tensor]:
        """Return a case as it is."""
        case = self.samples[index]
        return [case.image], torch.stack([case.labels == 0, case.labels == 1]).float()


@pytest.fixture
def toy(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Recipe:
    """The lines that register, and a recipe that names what they registered."""
    monkeypatch.setitem(NETWORKS, "toynet", f"{__name__}:ToyNet")
    monkeypatch.setitem(PIPELINES, "toy", Pipeline("toy", ("toy",), ToySettings, __name__))
    monkeypatch.setitem(TASKS, "toy", TrainingTask(f"{__name__}:ToyTask"))
    for part in ("imagesTr", "labelsTr"):
        (tmp_path / part).mkdir()
    for name in ("a", "b"):
        write_volume(image(), tmp_path / "imagesTr" / f"{name}_0000.nii.gz")
        labels = (image().data > 0.5).astype(np.uint8)
        write_labels(LabelMap(labels, image().geometry), tmp_path / "labelsTr" / f"{name}.nii.gz")
    (tmp_path / "dataset.json").write_text('{"labels": {"background": 0, "cube": 1}}')
    return Recipe(
        "m", (StageRecipe("toy", "toynet", steps=3, steps_per_epoch=3, lr=1e-3),), ("cube",), tmp_path / "out",
        dataset=tmp_path, pipeline="toy", settings={"threshold": 0.0}, intensity=Intensity("window", 0, 1),
        device="cpu", holdout=("b",),
    )  # fmt: skip


def image() -> Volume:
    data = np.zeros(SHAPE, np.float32)
    data[1:4, 2:5, 3:6] = 1
    return Volume(data, Geometry.from_spacing(SHAPE))


def test_a_pipeline_and_a_network_that_are_only_registered_train_segment_and_explain(toy: Recipe) -> None:
    fast_calls.clear()
    assert sum(isinstance(event, StepDone) for event in train(toy)) == 3
    model = load_model(Path(toy.out) / "m.toml", device="cpu")
    assert stages_of(model.card) == ("toy",)
    np.testing.assert_array_equal(drain(segment(image(), model)).data, image().data > 0.5)
    assert fast_calls  # the form that the network states was used
    *_, last = grad_cam(image(), model, "cube", point=(2, 3, 4))
    assert isinstance(last, StageResult)
    assert last.output.geometry == image().geometry


def test_a_pipeline_without_a_training_task_segments_and_says_that_it_cannot_be_trained(
    toy: Recipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delitem(TASKS, "toy")
    with pytest.raises(InvalidRecipe, match="'toy' cannot be trained"):
        list(train(toy))
