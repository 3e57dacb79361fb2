"""The models in the repository do what their cards say, on the cases that they were not trained on."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from napari_fmseg.core.errors import FmsegError
from napari_fmseg.core.events import drain
from napari_fmseg.core.volume import Volume
from napari_fmseg.datasets.case import missing_in, read_case
from napari_fmseg.datasets.phantom import phantom_ct
from napari_fmseg.evaluation.metrics import dice_per_label
from napari_fmseg.models.card import ModelCard
from napari_fmseg.models.registry import list_models
from napari_fmseg.models.weights import load_model
from napari_fmseg.nets.runtime import device as runtime_device
from napari_fmseg.pipelines import SegmentOptions, segment, stages_of
from napari_fmseg.training import cases_of

ROOT = Path(__file__).parents[2]
DATA = Path(os.environ.get("FMSEG_SHARED", ROOT.parent / "shared")) / "data"
RECIPES = ROOT / "resources" / "recipes"
SETS = {
    "hippocampus-mr": ("hippocampus", 0.88),
    "left-atrium-mr": ("la_mr", 0.915),
    "headneck-ct": ("hn_ct", 0.74),
    "cardiac-mr": ("acdc", 0.87),
    "lesion-pet": ("lbt_pet", 0.48),
}


@pytest.fixture(autouse=True)
def nobodys_own_models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FMSEG_HOME", str(tmp_path))


@pytest.mark.parametrize("card", list_models(), ids=lambda card: card.name)
def test_every_shipped_model_loads_and_its_card_is_complete(card) -> None:
    model = load_model(card.name, device="cpu")
    assert set(model.nets) == set(card.nets)
    for field in ("title", "modality", "licence", "citation", "trained_on", "limits", "sha256"):
        assert getattr(card, field), f"{card.name} has no {field}"
    assert card.training_data, f"{card.name}: scripts/score_cards.py --training-data measures its training volumes"
    if not card.scored_on:
        assert "nobody to validate on" in card.trained_on
        assert "of no worth" in card.limits
        return
    assert set(card.scores) == {*stages_of(card), "labels"}
    assert set(card.scores["labels"]) == set(card.labels.values())
    assert set(card.surface) == set(card.labels.values())
    assert card.surface_mm > 0


@pytest.mark.parametrize("card", list_models(), ids=lambda card: card.name)
def test_every_shipped_model_has_the_recipe_that_made_it(card) -> None:
    assert (RECIPES / f"{card.name}.toml").is_file()


def test_models_with_a_restriction_are_not_where_the_wheel_takes_its_files_from() -> None:
    restricted = [card for card in list_models() if card.restriction]
    assert all(card.folder.name == "research" and card.weights_path.parent.name == "research" for card in restricted)


def test_the_weights_that_are_shipped_are_small() -> None:
    for folder, most in ((ROOT / "weights", 20e6), (ROOT / "weights" / "research", 14e6)):  # the latter in no wheel
        assert sum(p.stat().st_size for p in folder.glob("*.safetensors")) <= most


def test_the_phantom_model_finds_the_organs_of_a_phantom_that_it_never_saw() -> None:
    volume, truth = phantom_ct(20261, spacing=(4.0, 3.0, 3.0), difficulty="easy")
    found = drain(segment(volume, load_model("fmsf-phantom-ct", device="cpu")))
    dice = dice_per_label(found.data, truth.data, 6)
    assert dice[0] > 0.9  # liver
    assert np.nanmean(dice[:3]) > 0.8


@pytest.mark.parametrize("card", list_models(), ids=lambda card: card.name)
def test_a_mask_does_not_depend_on_whether_the_processor_has_half_precision(
    card: ModelCard, monkeypatch: pytest.MonkeyPatch
) -> None:
    if card.half_precision is None:  # whatever the processor is; where the card proves it, it must be what it says
        monkeypatch.setattr(runtime_device, "_cpu_has_bfloat16", lambda: True)
    one, _ = phantom_ct(20261, spacing=(8.0, 6.0, 6.0), difficulty="easy")
    data = one.data if len(card.channels) == 1 else np.stack([one.data] * len(card.channels))
    volume = Volume(data, one.geometry)
    model = load_model(card.name, device="cpu")
    exact, auto = (
        drain(segment(volume, model, SegmentOptions(precision=precision, show_stages=False))).data
        for precision in ("float32", "auto")
    )
    dice = dice_per_label(auto, exact, card.n_classes)
    assert (dice[~np.isnan(dice)] >= 0.999).all()


@pytest.mark.real
@pytest.mark.parametrize("name", SETS)
def test_a_model_reaches_its_cards_dice_on_the_validation_cases(name: str) -> None:
    folder, least = SETS[name]
    if not (DATA / folder).is_dir():
        pytest.skip(f"the real volumes of {folder} are not beside the project")
    model = load_model(name, device="cpu")
    card = model.card
    names, _, held = cases_of(DATA / folder)
    labels = [card.labels[i] for i in sorted(card.labels)]
    table = []
    for case in held:
        volume, truth = read_case(case, names, labels)
        found = drain(segment(volume, model, SegmentOptions(show_stages=False)))
        assert found.geometry == volume.geometry
        table.append(dice_per_label(found.data, truth.data, card.n_classes))
        table[-1][[label - 1 for label in missing_in(case, names, labels)]] = np.nan
    means = np.nanmean(np.array(table), 0)
    assert means == pytest.approx([card.scores["labels"][label] for label in labels], abs=0.01)
    assert means.mean() >= least
    if name.endswith("headneck-ct"):
        assert min(means[labels.index(organ)] for organ in ("mandible", "brainstem")) >= 0.82


def test_the_last_stage_is_not_worse_than_the_first() -> None:
    cards = [card for card in list_models() if card.scores]
    if not cards:
        raise FmsegError("no shipped model has scores")
    for card in cards:
        means = [np.mean(list(card.scores[stage].values())) for stage in stages_of(card)]
        assert means[-1] >= means[0], card.name
