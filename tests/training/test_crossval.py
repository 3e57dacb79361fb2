"""Cross-validation: every case validates once, a killed run goes on, and the models together are one."""

import contextlib
import csv
import dataclasses
import hashlib
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tomli_w

from napari_fmseg.core.errors import InvalidRecipe
from napari_fmseg.core.events import Saved, StepDone, Warned, drain
from napari_fmseg.core.volume import Geometry, LabelMap, Volume
from napari_fmseg.io import read_volume, write_labels, write_volume
from napari_fmseg.models.measures import measure_volume, summarise
from napari_fmseg.models.weights import load_model
from napari_fmseg.pipelines import SegmentOptions, segment, stages_of
from napari_fmseg.training import cases_of, load_recipe, train
from napari_fmseg.training.crossval import Crossval, FoldDone, crossval
from napari_fmseg.training.data.sources import cases_for

GRID = Geometry.from_spacing((16, 16, 16))


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    """Six cases with a bright box, and two steps of a tiny network."""
    rng = np.random.default_rng(0)
    for name in "abcdef":
        truth = np.zeros(GRID.shape, np.uint8)
        start = rng.integers(2, 7, 3)
        truth[tuple(slice(s, s + 7) for s in start)] = 1
        image = truth + rng.normal(0, 0.1, GRID.shape)
        write_volume(Volume(image.astype(np.float32), GRID), tmp_path / "imagesTr" / f"{name}_0000.nii.gz")
        write_labels(LabelMap(truth, GRID), tmp_path / "labelsTr" / f"{name}.nii.gz")
    facts = {"labels": {"background": 0, "box": 1}, "channel_names": {"0": "MR"}}
    (tmp_path / "dataset.json").write_text(json.dumps(facts))
    stage = {"stage": "net", "network": "unet3d", "steps": 4, "steps_per_epoch": 2, "batch": 1, "kwargs": {"width": 2}}
    table = {
        "name": "boxes", "labels": ["box"], "dataset": ".", "out": "run", "pipeline": "single", "stages": [stage],
        "settings": {"window": [16, 16, 16]}, "device": "cpu",
    }  # fmt: skip
    path = tmp_path / "recipe.toml"
    path.write_text(tomli_w.dumps(table))
    return path


def contents(folder: Path) -> dict[str, tuple[str, int]]:
    return {
        str(path.relative_to(folder)): (hashlib.sha256(path.read_bytes()).hexdigest(), path.stat().st_mtime_ns)
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def test_run_killed_in_the_third_fold_goes_on_there(recipe: Path):
    out = recipe.parent / "run"
    words = [sys.executable, "-m", "napari_fmseg", "crossval", str(recipe), "--folds", "3", "--events"]
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        assert process.stdout is not None
        n_done = 0
        for line in process.stdout:
            kind = json.loads(line)["event"]
            n_done += kind == "FoldDone"
            if n_done == 2 and kind == "StepDone":
                os.kill(process.pid, signal.SIGKILL)
                break
    assert n_done == 2
    assert not (out / "fold-3" / "fold.json").exists()
    before = {k: contents(out / f"fold-{k}") for k in (1, 2)}

    *events, last = crossval(load_recipe(recipe), 3)
    assert isinstance(last, Crossval)
    assert {k: contents(out / f"fold-{k}") for k in (1, 2)} == before
    assert [e.fold for e in events if isinstance(e, FoldDone)] == [1, 2, 3]
    assert {e.total for e in events if isinstance(e, StepDone)} <= {4}
    assert sorted(case.case for case in last.cases.cases) == list("abcdef")


def test_every_case_is_measured_by_the_model_that_never_saw_it(recipe: Path):
    *events, last = crossval(load_recipe(recipe), 3)
    out = recipe.parent / "run"
    held = [json.loads((out / f"fold-{k}" / "fold.json").read_text())["cases"] for k in (1, 2, 3)]
    assert sorted(name for names in held for name in names) == list("abcdef")
    for k, names in enumerate(held, 1):
        _, learned, validated = cases_for(dataclasses.replace(load_recipe(recipe), folds=3, fold=k))
        assert [case.name for case in validated] == names
        assert not {case.name for case in learned} & set(names)
    dice = [event.dice for event in events if isinstance(event, FoldDone)]
    rows = {(row.case, row.label): row.values["dice"] for row in last.rows}
    assert [rows[str(k), "box"] for k in (1, 2, 3)] == pytest.approx(dice)
    assert rows["mean", "box"] == pytest.approx(np.mean(dice))
    assert rows["sd", "box"] == pytest.approx(np.std(dice, ddof=1))
    with (out / "crossval.csv").open() as file:
        assert [row["fold"] for row in csv.DictReader(file) if row["label"] == "box"] == ["1", "2", "3", "mean", "sd"]
    assert len(json.loads((out / "crossval.json").read_text())["rows"]) == 2 * 5

    model = load_model(out / "boxes.toml", device="cpu")
    assert list(model.nets) == ["net", "net-2", "net-3"]
    assert stages_of(model.card) == ("net",)
    assert "not measured" in model.card.scored_on
    measured = [measure_volume(read_volume(recipe.parent / "imagesTr" / f"{name}_0000.nii.gz")) for name in "abcdef"]
    assert model.card.training_data == summarise(measured)
    volume = read_volume(recipe.parent / "imagesTr" / "a_0000.nii.gz")
    options = SegmentOptions(precision="float32")
    found = drain(segment(volume, model, options)).data
    members = [load_model(out / f"fold-{k}" / f"boxes-fold{k}.toml", device="cpu") for k in (1, 2, 3)]
    agreed = np.stack([drain(segment(volume, member, options)).data for member in members])
    same = (agreed == agreed[:1]).all(0)
    assert np.array_equal(found[same], agreed[0][same])  # where all members agree, so does their mean

    further = dataclasses.replace(load_recipe(recipe), start_from=str(out / "boxes.toml"), out=out.parent / "more")
    said = [event.text for event in train(further) if isinstance(event, Warned)]
    assert any("ensemble" in text and "first network of each stage" in text for text in said)
    tuned = load_model(out.parent / "more" / "boxes.toml", device="cpu")
    assert list(tuned.nets) == ["net"]


def test_another_recipe_or_number_of_folds_is_refused(recipe: Path):
    with contextlib.closing(crossval(load_recipe(recipe), 3)) as events:
        assert any(isinstance(event, Saved) for event in events)
    with pytest.raises(InvalidRecipe, match="other options"):
        next(crossval(load_recipe(recipe), 2))
    with pytest.raises(InvalidRecipe, match="another recipe"):
        next(crossval(dataclasses.replace(load_recipe(recipe), seed=1), 3))


def test_cases_in_lists_make_folds_too(recipe: Path):
    whole = load_recipe(recipe)
    assert whole.dataset is not None
    _, training, validation = cases_of(whole.dataset)
    listed = dataclasses.replace(
        whole, dataset=None, training=tuple(training), validation=tuple(validation), out=recipe.parent / "listed"
    )
    *events, last = crossval(listed, 2)
    assert sum(event.n for event in events if isinstance(event, FoldDone)) == 6
    assert last.table.exists()
