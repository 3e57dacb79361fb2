"""A model that nnU-Net trained learns a further class from a few cases."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from napari_fmseg.core.errors import InvalidRecipe
from napari_fmseg.core.events import Warned, drain
from napari_fmseg.core.volume import Geometry, LabelMap, Volume
from napari_fmseg.datasets.projects.project import open_project
from napari_fmseg.io import write_labels, write_volume
from napari_fmseg.models.card import Intensity, ModelCard, NetSpec
from napari_fmseg.models.nnunet import import_nnunet
from napari_fmseg.models.weights import load_model, save_model
from napari_fmseg.nets import build
from napari_fmseg.pipelines import SegmentOptions, segment
from napari_fmseg.training import Recipe, StageRecipe, train
from napari_fmseg.training.projects.prepare_run import TrainingOptions, prepare_run
from napari_fmseg.training.recipe_file import load_recipe
from napari_fmseg.training.validation import validate_model

SHAPE = (20, 24, 22)


def case(seed: int) -> tuple[Volume, np.ndarray]:
    """Return a bright and a dark cube in noise; the cubes are the classes 1 and 2."""
    rng = np.random.default_rng(seed)
    data, labels = rng.normal(0, 20, SHAPE), np.zeros(SHAPE, np.uint8)
    for label, value in ((1, 200), (2, -150)):
        low = rng.integers(1, 10, 3) + (0 if label == 1 else 3)
        box = tuple(slice(int(a), int(a) + 8) for a in low)
        data[box], labels[box] = value, label
    return Volume(data.astype(np.int16), Geometry.from_spacing(SHAPE)), labels


def dice(model: Any, label: int) -> float:
    volume, truth = case(99)
    found = drain(segment(volume, model, SegmentOptions(device="cpu", mirror=False))).data
    return float(2 * ((found == label) & (truth == label)).sum() / ((found == label).sum() + (truth == label).sum()))


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    folder = tmp_path / "data"
    for part in ("imagesTr", "labelsTr"):
        (folder / part).mkdir(parents=True)
    for seed in range(4):
        volume, labels = case(seed)
        write_volume(volume, folder / "imagesTr" / f"case{seed}_0000.nii.gz")
        write_labels(LabelMap(labels, volume.geometry), folder / "labelsTr" / f"case{seed}.nii.gz")
    (folder / "dataset.json").write_text(json.dumps({"labels": {"background": 0, "bright": 1, "dark": 2}}))
    return folder


def recipe(dataset: Path, out: Path, start: Path, labels: tuple[str, ...], steps: int, **more: Any) -> Recipe:
    from napari_fmseg.models.card import read_card

    card = read_card(start)
    stage = StageRecipe("windows", "plainconvunet", steps=steps, steps_per_epoch=steps, lr=1e-2, clip=3.0)
    settings = dict(card.settings) | {"orientation": "RAS", "mirror": []}
    return Recipe(
        "m", (stage,), labels, out, dataset=dataset, pipeline="nnunet", settings=settings, intensity=card.intensity,
        device="cpu", start_from=str(start), holdout=("case3",), seed=1, **more,
    )  # fmt: skip


def test_an_imported_model_learns_a_new_class_and_keeps_the_old_one(
    nnunet_plans: Any, nnunet_results: Any, dataset: Path, tmp_path: Path
) -> None:
    plans = nnunet_plans((16, 16, 16), (1.0, 1.0, 1.0))
    folder = nnunet_results(tmp_path / "results", plans, labels={"background": 0, "bright": 1})
    (card,) = import_nnunet(folder, tmp_path / "models").cards
    list(train(recipe(dataset, tmp_path / "first", card.folder / f"{card.name}.toml", ("bright",), 200)))
    first = load_model(tmp_path / "first" / "m.toml", device="cpu")
    before = dice(first, 1)
    assert before > 0.7
    start = tmp_path / "first" / "m.toml"
    events = list(train(recipe(dataset, tmp_path / "second", start, ("bright", "dark"), 200)))
    assert any("were given rows for dark" in event.text for event in events if isinstance(event, Warned))
    second = load_model(tmp_path / "second" / "m.toml", device="cpu")
    assert second.card.labels == {1: "bright", 2: "dark"}
    assert dice(second, 2) > 0.7
    assert dice(second, 1) > before - 0.05


def test_of_an_ensemble_of_folds_the_first_network_is_trained_further(
    nnunet_results: Any, dataset: Path, tmp_path: Path
) -> None:
    folder = nnunet_results(tmp_path / "results", folds=2)
    (card,) = import_nnunet(folder, tmp_path / "models").cards
    start = card.folder / f"{card.name}.toml"
    assert list(card.nets) == ["windows", "windows-2"]
    names = tuple(card.labels.values())
    facts = {"labels": {"background": 0, **{name: i for i, name in enumerate(names, 1)}}}
    (dataset / "dataset.json").write_text(json.dumps(facts))
    slow = recipe(dataset, tmp_path / "out", start, names, 1)
    slow = dataclasses.replace(slow, stages=(dataclasses.replace(slow.stages[0], lr=1e-12),))
    said = [event.text for event in train(slow) if isinstance(event, Warned)]
    assert any("ensemble" in text for text in said)
    before, after = load_model(start, device="cpu"), load_model(tmp_path / "out" / "m.toml", device="cpu")
    assert list(after.nets) == ["windows"]
    for name, weight in before.nets["windows"].state_dict().items():
        torch.testing.assert_close(after.nets["windows"].state_dict()[name], weight, atol=1e-5, rtol=0)


def test_new_classes_change_no_logit_of_the_old_ones(nnunet_results: Any, tmp_path: Path) -> None:
    from napari_fmseg.training.class_growth import extend_classes

    (card,) = import_nnunet(nnunet_results(tmp_path), tmp_path / "models").cards
    model = load_model(card, device="cpu")
    grown, spec, how = extend_classes(
        card.nets["windows"], model.nets["windows"], card.labels, ("liver", "kidneys", "tumour")
    )
    x = torch.rand(1, 1, 16, 16, 16)
    with torch.no_grad():
        torch.testing.assert_close(grown.eval()(x)[:, :3], model.nets["windows"](x))
    assert spec.kwargs["n_classes"] == 4
    assert how.added == ("tumour",)
    assert not how.fresh


def test_a_model_that_sees_slices_is_trained_further(dataset: Path, tmp_path: Path) -> None:
    kwargs = {"n_classes": 2, "features": [8, 12, 16], "kernels": [[1, 3, 3]], "slicewise": True,
              "strides": [1, [1, 2, 2], [1, 2, 2]]}  # fmt: skip
    settings = {"window": [1, 24, 24], "spacing_mm": [0.0, 1.0, 1.0], "axes": [1, 0, 2]}  # coronal
    nets = {"windows": NetSpec("plainconvunet", kwargs)}
    card = ModelCard("flat", "flat", "nnunet", nets, {1: "bright"}, intensity=Intensity("zscore"), settings=settings)
    torch.manual_seed(0)
    save_model(card, {"windows": build("plainconvunet", **kwargs)}, tmp_path / "flat")
    own = recipe(dataset, tmp_path / "out", tmp_path / "flat" / "flat.toml", ("bright", "dark"), 200)
    stage = dataclasses.replace(
        own.stages[0], loss="soft_dice_ce_by_class", lr=5e-3, batch=12, ema=0.99, keep="last", steps_per_epoch=50
    )
    list(train(dataclasses.replace(own, stages=(stage,))))
    model = load_model(tmp_path / "out" / "m.toml", device="cpu")
    assert model.card.labels == {1: "bright", 2: "dark"}
    assert min(dice(model, 1), dice(model, 2)) > 0.8


def test_what_cannot_be_trained_further_is_refused(nnunet_results: Any, dataset: Path, tmp_path: Path) -> None:
    from dataclasses import replace

    (card,) = import_nnunet(nnunet_results(tmp_path), tmp_path / "models").cards
    regions = replace(card, name="regions", settings={**card.settings, "regions": [1, 2]})
    save_model(regions, load_model(card, device="cpu").nets, tmp_path / "regions")
    with pytest.raises(InvalidRecipe, match="not trained further"):
        list(train(recipe(dataset, tmp_path / "out", tmp_path / "regions" / "regions.toml", ("bright",), 5)))


def test_a_project_plans_a_training_from_an_imported_model(
    nnunet_plans: Any, nnunet_results: Any, dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FMSEG_HOME", str(tmp_path / "home"))
    plans = nnunet_plans((16, 16, 16), (1.0, 1.0, 1.0))
    (card,) = import_nnunet(nnunet_results(tmp_path / "results", plans, labels={"background": 0, "bright": 1})).cards
    table = json.loads((dataset / "dataset.json").read_text())
    (dataset / "dataset.json").write_text(json.dumps({**table, "numTraining": 4, "file_ending": ".nii.gz"}))
    options = TrainingOptions(minutes=0.5, device="cpu")
    *said, saved = prepare_run(open_project(dataset), card.name, options)
    planned = load_recipe(saved.path)
    assert planned.pipeline == "nnunet"
    assert [(stage.stage, stage.network) for stage in planned.stages] == [("windows", "plainconvunet")]
    assert planned.labels == ("bright", "dark")
    assert planned.settings["orientation"] == "RAS"
    assert planned.intensity == card.intensity
    assert planned.augment.flip == "zyx"  # nnU-Net's windows are mirrored, too
    assert not any("window around every piece" in event.text for event in said if isinstance(event, Warned))
    quick = dataclasses.replace(planned, stages=(dataclasses.replace(planned.stages[0], steps=3, steps_per_epoch=3),))
    list(train(quick))
    assert load_model(Path(quick.out) / f"{quick.name}.toml", device="cpu").card.labels == {1: "bright", 2: "dark"}


def test_epochs_are_validated_without_mirrored_windows_and_the_model_with_them(
    nnunet_plans: Any, nnunet_results: Any, dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plans = nnunet_plans((16, 16, 16), (1.0, 1.0, 1.0))
    (card,) = import_nnunet(nnunet_results(tmp_path / "results", plans), tmp_path / "models").cards
    mirrored: list[bool] = []

    def look(*args: Any, **kwargs: Any) -> Any:
        mirrored.append(kwargs["mirror"])
        return validate_model(*args, **kwargs)

    monkeypatch.setattr("napari_fmseg.training.loop.validate_model", look)
    list(train(recipe(dataset, tmp_path / "out", card.folder / f"{card.name}.toml", ("bright", "dark"), 2)))
    assert mirrored == [False, False, True]  # at the start, after the epoch, at last
