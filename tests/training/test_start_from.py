"""Starting from a model: new classes, old classes, networks of one stage, and what is told of the weights."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from napari_fmseg.core.errors import InvalidRecipe
from napari_fmseg.core.events import STARTING_WEIGHTS, EpochDone, StepDone, Warned, drain
from napari_fmseg.core.volume import Geometry, LabelMap, Volume
from napari_fmseg.io import read_volume, write_labels, write_volume
from napari_fmseg.models.weights import load_model
from napari_fmseg.pipelines import segment
from napari_fmseg.training import Augment, Recipe, StageRecipe, train

STILL = Augment(shift=0.05, zoom=0, rotate_deg=0, contrast=0, brightness=0, gamma=0, noise=0)
GRIDS = {"consensus_grid": [32, 32, 32], "attention_grid": [32, 32, 32]}


def dataset(folder: Path, names: dict[str, int], n: int = 4, *, seed: int = 0) -> Path:
    """Cubes: class 1 is bright, class 2 is dark."""
    rng = np.random.default_rng(seed)
    for part in ("imagesTr", "labelsTr"):
        (folder / part).mkdir(parents=True, exist_ok=True)
    for i in range(n):
        data, labels = rng.normal(0, 3, (24, 26, 28)).astype(np.float32), np.zeros((24, 26, 28), np.uint8)
        for label, (x, value) in enumerate(((2, 100), (15, -100)), 1):
            z, y = rng.integers(2, 12, 2)
            box = (slice(z, z + 10), slice(y, y + 10), slice(x, x + 10))
            data[box] += value
            labels[box] = label if label in names.values() else 0
        geometry = Geometry.from_spacing(labels.shape)
        write_volume(Volume(data, geometry), folder / "imagesTr" / f"c{i}_0000.nii.gz")
        write_labels(LabelMap(labels, geometry), folder / "labelsTr" / f"c{i}.nii.gz")
    (folder / "dataset.json").write_text(json.dumps({"labels": {"background": 0, **names}}))
    return folder


def recipe(folder: Path, out: str, labels: tuple[str, ...], **changes: Any) -> Recipe:
    stages = (
        StageRecipe("consensus", "snet", steps=8, steps_per_epoch=4, lr=5e-3, kwargs={"width": 4}),
        StageRecipe("attention", "attnnet", steps=4, steps_per_epoch=4, kwargs={"width": 4}),
        StageRecipe("edge", "edgenet", steps=2, steps_per_epoch=2),
    )
    facts = {"stages": stages, "dataset": folder / "data", "settings": GRIDS, "device": "cpu", "holdout": ("c0",)}
    return Recipe("m", labels=labels, out=folder / out, **{**facts, "augment": STILL, **changes})


def single(**changes: Any) -> dict[str, Any]:
    net = StageRecipe("net", "fmunet", steps=8, steps_per_epoch=4, lr=3e-3, kwargs={"widths": [4, 4, 8, 8, 8]})
    plain = {
        "pipeline": "single",
        "settings": {"window": [24, 24, 24]},
        "stages": (dataclasses.replace(net, **changes),),
    }
    return plain


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("FMSEG_HOME", str(tmp_path / "home"))
    dataset(tmp_path / "data", {"bright": 1, "dark": 2})
    return tmp_path


def labels_of(home: Path, card: Path) -> np.ndarray:
    volume = read_volume(home / "data" / "imagesTr" / "c1_0000.nii.gz")
    return drain(segment(volume, load_model(card, device="cpu"))).data


@pytest.mark.parametrize("kind", ["phased", "single"])
def test_a_model_with_a_new_class_starts_with_the_labels_of_the_old_one(home: Path, kind: str) -> None:
    own = single() if kind == "single" else {}
    list(train(recipe(home, "old", ("bright",), **own)))
    frozen = [dataclasses.replace(s, lr=1e-12) for s in recipe(home, "x", ("bright",), **own).stages]
    changes = {**own, "stages": tuple(frozen), "start_from": str(home / "old" / "m.toml")}
    events = list(train(recipe(home, "new", ("dark", "bright"), **changes)))
    told = [e.text for e in events if isinstance(e, Warned) and e.code == STARTING_WEIGHTS]
    assert any("dark" in text and "taken from m" in text for text in told)
    old, new = labels_of(home, home / "old" / "m.toml"), labels_of(home, home / "new" / "m.toml")
    assert old.any()
    if kind == "single":
        np.testing.assert_array_equal(new, 2 * old)
    else:  # what a stage hands to the next one holds the new class's small share, which may tip a tie
        assert (new == 2 * old).mean() > 0.99
        assert set(np.unique(new)) <= {0, 2}


def test_a_network_of_one_stage_learns_two_cubes_from_patches(home: Path) -> None:
    own = single(steps=30, steps_per_epoch=30, lr=1e-2)
    events = list(train(recipe(home, "out", ("bright", "dark"), **own)))
    (epoch,) = (e for e in events if isinstance(e, EpochDone))
    assert min(epoch.metrics["dice/bright"], epoch.metrics["dice/dark"]) > 0.5
    model = load_model(home / "out" / "m.toml", device="cpu")
    assert model.card.pipeline == "single"
    assert model.card.scores["labels"]["bright"] == pytest.approx(epoch.metrics["dice/bright"], abs=1e-3)


def test_patches_lie_at_the_pipelines_spacing(home: Path) -> None:
    from napari_fmseg.training.data.samples import Sample
    from napari_fmseg.training.tasks.single import PatchTask

    labels = torch.zeros(40, 40, 40, dtype=torch.uint8)
    labels[10:30, 10:30, 10:30] = 1
    case = Sample("a", labels[None].float(), labels, spacing=(1.0, 1.0, 1.0))
    own = {**single(), "settings": {"window": [10, 10, 10], "spacing_mm": [4.0, 4.0, 4.0]}}
    still = dataclasses.replace(STILL, shift=0.0)
    task = PatchTask(own["stages"][0], recipe(home, "x", ("bright",), **{**own, "augment": still}), [case], {})
    (x,), target = task.sample(0, np.random.default_rng(0), torch.Generator())
    assert x.shape == (1, 10, 10, 10)
    assert ((x[0] > 0.1) | (target[1] < 0.5)).all()
    assert ((x[0] < 0.9) | (target[1] > 0.5)).all()
    for part in (x[0], target[1]):
        assert part.mean() == pytest.approx(0.125, abs=0.01)  # the whole volume is seen


def test_a_patch_lies_around_what_was_labelled(home: Path) -> None:
    from napari_fmseg.datasets.case import IGNORE
    from napari_fmseg.training.data.samples import Sample
    from napari_fmseg.training.tasks.single import PatchTask

    labels = torch.full((60, 60, 60), IGNORE, dtype=torch.uint8)
    labels[50] = 0
    labels[50, 5:9, 5:9] = 2
    case = Sample("a", torch.rand(1, 60, 60, 60), labels)
    task = PatchTask(single()["stages"][0], recipe(home, "x", ("bright", "dark"), **single()), [case], {})
    rng, noise = np.random.default_rng(0), torch.Generator()
    targets = [task.sample(0, rng, noise)[1] for _ in range(20)]
    assert all(t.sum() > 50 for t in targets)
    assert all(task.sample(0, rng, noise, focus=2)[1][2].sum() > 3 for _ in range(20))


@pytest.mark.parametrize("focus", [0.0, 1.0])
def test_the_share_of_patches_around_a_structure_is_that_of_the_recipe(home: Path, focus: float) -> None:
    from napari_fmseg.training.data.samples import Sample
    from napari_fmseg.training.tasks.single import PatchTask

    labels = torch.zeros(60, 60, 60, dtype=torch.uint8)
    labels[50, 5:9, 5:9] = 1
    case = Sample("a", torch.rand(1, 60, 60, 60), labels)
    own = {**single(), "augment": dataclasses.replace(STILL, focus=focus)}
    task = PatchTask(own["stages"][0], recipe(home, "x", ("bright",), **own), [case], {})
    rng, noise = np.random.default_rng(0), torch.Generator()
    seen = [bool(task.sample(0, rng, noise)[1][1].any()) for _ in range(20)]
    assert sum(seen) == 20 if focus else sum(seen) < 10


def test_a_seed_gives_the_same_steps_again_also_where_features_are_dropped_and_heads_are_new(home: Path) -> None:
    list(train(recipe(home, "old", ("bright",), **single())))
    curves = []
    for turn in range(2):
        torch.manual_seed(turn)  # what others have drawn before shall not matter
        events = train(recipe(home, f"new{turn}", ("dark",), **single(), start_from=str(home / "old" / "m.toml")))
        curves.append([event.loss for event in events if isinstance(event, StepDone)])
    assert curves[0] == curves[1]


@pytest.mark.parametrize("optimiser", ["adam", "adamw"])
def test_the_recipes_optimiser_steps(home: Path, optimiser: str) -> None:
    # Adam's decay goes through the gradient, which its first step divides by its size; AdamW's shrinks the weights.
    own = single(steps=1, steps_per_epoch=1, optimiser=optimiser, lr=1e-3, weight_decay=100.0)
    list(train(recipe(home, "run", ("bright",), **{**own, "seed": 3})))
    saved = torch.load(home / "run" / "0-net.pt", weights_only=True)
    plain = single(steps=1, steps_per_epoch=1, lr=1e-12, weight_decay=0.0)
    list(train(recipe(home, "still", ("bright",), **{**plain, "seed": 3})))
    before = torch.load(home / "still" / "0-net.pt", weights_only=True)["net"]["project.weight"]
    moved = (saved["net"]["project.weight"] - before).abs().max()
    if optimiser == "adam":
        assert moved == pytest.approx(1e-3, rel=0.05)
    else:
        assert moved > 0.03 * before.abs().max()


def test_only_the_first_heads_are_compared_where_the_recipe_says_so(home: Path) -> None:
    for heads in (0, 1):
        list(train(recipe(home, f"heads{heads}", ("bright",), **single(steps=2, steps_per_epoch=2, heads=heads))))
    coarse = "out_layers.3.2.weight"
    moved, still = (torch.load(home / f"heads{n}" / "0-net.pt", weights_only=True)["net"][coarse] for n in (0, 1))
    list(train(recipe(home, "start", ("bright",), **single(steps=1, steps_per_epoch=1, lr=1e-12, weight_decay=0.0))))
    first = torch.load(home / "start" / "0-net.pt", weights_only=True)["net"][coarse]
    torch.testing.assert_close(still, first, rtol=1e-4, atol=1e-6)
    assert not torch.allclose(moved, first, rtol=1e-3, atol=1e-5)


def test_a_model_of_another_kind_is_no_start(home: Path) -> None:
    list(train(recipe(home, "old", ("bright",), **single())))
    with pytest.raises(InvalidRecipe, match="single model"):
        list(train(recipe(home, "new", ("bright",), start_from=str(home / "old" / "m.toml"))))


class TwoBlobs(torch.nn.Module):
    """A consensus network that finds the bright cube, and a larger dark one apart from it."""

    activation = "none"

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        p = torch.zeros(len(x), 3, *x.shape[2:])
        p[:, 1, 4:10, 4:10, 2:10] = 1
        p[:, 2, 4:28, 4:28, 17:30] = 1
        p[:, 0] = 1 - p.sum(1)
        return p


@pytest.mark.parametrize("window", ["largest", "all"])
def test_a_structure_outside_of_the_window_is_told_before_the_attention_stage_learns(home: Path, window: str) -> None:
    from napari_fmseg.training.data.samples import Sample
    from napari_fmseg.training.tasks.phased import phased_task

    labels = torch.zeros(32, 32, 32, dtype=torch.uint8)
    labels[4:10, 4:10, 2:10] = 1
    labels[4:28, 4:28, 17:30] = 2
    samples = [Sample(name, torch.rand(1, 32, 32, 32), labels) for name in "ab"]
    plan = recipe(home, "x", ("bright", "dark"), settings={**GRIDS, "window": window})
    task = phased_task(plan.stages[1], plan, samples, {"consensus": TwoBlobs()})
    if window == "all":
        assert not task.remarks
        return
    (remark,) = task.remarks
    assert "'bright' lies outside of the window" in remark
    assert "2 of 2 cases" in remark
