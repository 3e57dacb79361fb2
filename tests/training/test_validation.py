"""The labels of a run are the last label map, whatever is said after it."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch")
from napari_fmseg.core.events import Event, StageResult, Warned
from napari_fmseg.core.volume import Geometry, LabelMap, Volume
from napari_fmseg.models.card import Intensity, ModelCard, NetSpec
from napari_fmseg.models.settings import PIPELINES
from napari_fmseg.models.weights import Model
from napari_fmseg.pipelines import segment
from napari_fmseg.training.data.samples import ValidationCase
from napari_fmseg.training.projects import add_case, init_project
from napari_fmseg.training.projects.score import measure
from napari_fmseg.training.validation import validate_model

GRID = Geometry.from_spacing((6, 8, 8))
TRUTH = np.zeros(GRID.shape, np.uint8)
TRUTH[1:5, 1:5, 1:5] = 1
IMAGE = Volume(TRUTH.astype(np.float32), GRID)


@pytest.fixture
def model(monkeypatch: pytest.MonkeyPatch) -> Model:
    """A model whose pipeline has a remark when all is done, as that on memory."""

    def run(volume: Volume, model: Model, options: Any) -> Iterator[Event]:
        yield StageResult("labels", LabelMap((volume.data > 0.5).astype(np.uint8), volume.geometry), 0.1)
        yield Warned("The run took more memory than allowed.")

    pipeline = ModuleType("pipeline_with_a_remark")
    pipeline.run = run  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, pipeline.__name__, pipeline)
    monkeypatch.setitem(PIPELINES, "single", replace(PIPELINES["single"], module=pipeline.__name__))
    card = ModelCard(
        name="one", title="One", pipeline="single", nets={"net": NetSpec("conv")}, labels={1: "organ"},
        intensity=Intensity("window", 0.0, 1.0), settings={"window": (8, 8, 8)},
    )  # fmt: skip
    import torch

    return Model(card, {}, torch.device("cpu"))


def value_of(work: Any) -> Any:
    while True:
        try:
            next(work)
        except StopIteration as done:
            return done.value


def test_validation_takes_the_labels_although_a_warning_follows(model: Model) -> None:
    assert isinstance(list(segment(IMAGE, model))[-1], Warned)
    held = ValidationCase(IMAGE, LabelMap(TRUTH, GRID))
    scores, first = value_of(validate_model(model, "net", [held], ("organ",)))
    assert scores["dice/organ"] == 1
    np.testing.assert_array_equal(first.data, TRUTH)


def test_a_project_is_measured_although_a_warning_follows(model: Model, tmp_path: Path) -> None:
    project = add_case(init_project(tmp_path / "p", ("organ",)), "a", IMAGE, LabelMap(TRUTH, GRID))
    assert value_of(measure(project, model, ["a"])) == {"a": {"organ": 1.0}}
