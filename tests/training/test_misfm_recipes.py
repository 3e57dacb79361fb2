"""The recipes of MIS-FM's left-atrium demo and of its pretraining: what they say, and a step of each, shrunken."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from napari_fmseg.core.events import Saved, StepDone, Warned
from napari_fmseg.core.volume import Geometry, LabelMap, Volume
from napari_fmseg.io import write_labels, write_volume
from napari_fmseg.models.registry import find_card
from napari_fmseg.training import Case, load_pretrain_recipe, load_recipe, pretrain, train
from napari_fmseg.training.optimisation import rate_of

RECIPES = Path(__file__).parents[2] / "resources" / "recipes"
NETWORKS = {
    "fmunet": {"widths": [4, 4, 4, 4, 8]},
    "pctnet": {"widths": [4, 4, 8, 8, 8], "heads": [1, 1, 1], "windows": [2, 2, 2]},
}


@pytest.fixture(scope="module")
def cases(tmp_path_factory):
    """Two volumes with a ball in them."""
    folder = tmp_path_factory.mktemp("cases")
    found = []
    for i in range(2):
        z, y, x = np.indices((24, 36, 32))
        ball = (z - 12) ** 2 + (y - 17 - i) ** 2 + (x - 16) ** 2 < 50
        noise = np.random.default_rng(i).normal(size=ball.shape)
        geometry = Geometry.from_spacing(ball.shape, (2.0, 2.0, 2.0))
        image = write_volume(Volume((100 * ball + 10 * noise).astype(np.float32), geometry), folder / f"{i}.nii")
        labels = write_labels(LabelMap(ball.astype(np.uint8), geometry), folder / f"{i}-labels.nii")
        found.append(Case(f"case{i}", (image,), labels))
    return found


def shrunken(recipe, out, cases, network, **changes):
    (stage,), (one, other) = recipe.stages, cases
    kwargs = {**stage.kwargs, **NETWORKS[network]}
    stage = dataclasses.replace(stage, steps=1, steps_per_epoch=1, kwargs=kwargs)
    settings = {**recipe.settings, "window": [16, 24, 24]}
    return dataclasses.replace(
        recipe, stages=(stage,), settings=settings, dataset=None, training=(one,), validation=(other,), out=out,
        device="cpu", precision="float32", **changes,
    )  # fmt: skip


@pytest.mark.parametrize("size", ["", "-small"])
@pytest.mark.parametrize("network", NETWORKS)
def test_a_step_of_each_recipe_is_taken(network, size, cases, tmp_path):
    recipe = load_recipe(RECIPES / f"misfm-left-atrium-{network}{size}.toml")
    events = list(train(shrunken(recipe, tmp_path, cases, network)))
    (step,) = (event for event in events if isinstance(event, StepDone))
    assert np.isfinite(step.loss)
    assert isinstance(events[-1], Saved)
    assert find_card(events[-1].path).nets["net"].network == network


@pytest.mark.parametrize("network", NETWORKS)
def test_small_recipe_goes_on_from_its_pretraining(network, cases, tmp_path):
    recipe = load_pretrain_recipe(RECIPES / f"{network}-small-volf.toml", volumes=cases[0].images[0].parent)
    small = load_recipe(RECIPES / f"misfm-left-atrium-{network}-small.toml")
    (stage,) = small.stages
    assert (recipe.network, recipe.kwargs) == (stage.network, stage.kwargs)
    assert list(recipe.spacing_mm) == list(small.settings["spacing_mm"])
    assert list(recipe.fusion.patch) == list(small.settings["window"])
    fusion = dataclasses.replace(recipe.fusion, patch=(16, 24, 24), block=((4, 4, 4), (8, 8, 8)))
    recipe = dataclasses.replace(
        recipe, out=tmp_path / "volf", kwargs=NETWORKS[network], fusion=fusion, steps=1, device="cpu"
    )
    *_, last = pretrain(recipe)
    events = list(train(shrunken(small, tmp_path / "run", cases, network, start_from=str(last.path))))
    told = next(event.text for event in events if isinstance(event, Warned))
    assert f"tensors were taken from {network}-small-volf as they are" in told
    assert "drawn anew" in told  # the heads


@pytest.mark.parametrize("network", NETWORKS)
def test_the_demo_is_as_published(network):
    recipe = load_recipe(RECIPES / f"misfm-left-atrium-{network}.toml")
    (stage,) = recipe.stages
    assert (stage.optimiser, stage.lr, stage.weight_decay, stage.batch) == ("adam", 1e-3, 1e-5, 2)
    assert (stage.steps, stage.steps_per_epoch, stage.steps_per_epoch * stage.patience) == (6000, 250, 3000)
    rates = [1e-3 * rate_of(stage, turn / 24) for turn in (0, 1, 2, 23)]
    np.testing.assert_allclose(rates, [1e-3, 9.665e-4, 9.328e-4, 7.867e-5], rtol=1e-3)
    assert list(recipe.settings["window"]) == [64, 128, 128]
    assert (recipe.augment.flip, recipe.augment.focus) == ("yx", 0.0)
    assert stage.heads == (1 if network == "fmunet" else 0)
