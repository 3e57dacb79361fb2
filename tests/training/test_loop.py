from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from napari_fmseg.core.errors import InvalidRecipe
from napari_fmseg.core.events import EpochDone, Saved, StageResult, StepDone, Warned, drain, from_json
from napari_fmseg.core.volume import Geometry, LabelMap, Volume
from napari_fmseg.io import read_labels, read_volume, write_labels, write_volume
from napari_fmseg.models.measures import measure_volume, summarise
from napari_fmseg.models.registry import find_card
from napari_fmseg.models.weights import load_model
from napari_fmseg.nets import build
from napari_fmseg.nets.traits import class_probabilities
from napari_fmseg.pipelines import SegmentOptions, segment, stages_of
from napari_fmseg.pipelines.phased import _Stages
from napari_fmseg.training import Augment, Case, Recipe, StageRecipe, train

RECIPE = """
name = "cube"
dataset = "data"
out = "run"
labels = ["cube"]
device = "cpu"
[settings]
consensus_grid = [32, 32, 32]
attention_grid = [32, 32, 32]
[[stages]]
stage = "consensus"
network = "snet"
steps = 12
steps_per_epoch = 4
kwargs = {width = 4}
[[stages]]
stage = "attention"
network = "attnnet"
init_from = "consensus"
steps = 8
steps_per_epoch = 4
kwargs = {width = 4}
[[stages]]
stage = "edge"
network = "edgenet"
steps = 4
steps_per_epoch = 2
"""


def write_case(folder: Path, name: str, rng: np.random.Generator) -> None:
    data = rng.normal(0, 8, (22, 24, 26))
    labels = np.zeros(data.shape, np.uint8)
    z, y, x = rng.integers(3, 10, 3)
    labels[z : z + 9, y : y + 9, x : x + 9] = 1
    data[labels == 1] += 100
    geometry = Geometry.from_spacing(data.shape, (2, 1.5, 1.5))
    for part in ("imagesTr", "labelsTr"):
        (folder / part).mkdir(parents=True, exist_ok=True)
    write_volume(Volume(data.astype(np.float32), geometry), folder / "imagesTr" / f"{name}_0000.nii.gz")
    write_labels(LabelMap(labels, geometry), folder / "labelsTr" / f"{name}.nii.gz")


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("FMSEG_HOME", str(tmp_path / "home"))
    rng = np.random.default_rng(5)
    for i in range(5):
        write_case(tmp_path / "data", f"c{i}", rng)
    facts = {"labels": {"background": 0, "cube": 1}, "channel_names": {"0": "CT"}}
    (tmp_path / "data" / "dataset.json").write_text(json.dumps(facts))
    (tmp_path / "recipe.toml").write_text(RECIPE)
    return tmp_path


def stage(name: str, network: str, **changes: object) -> StageRecipe:
    plain = {"steps": 6, "steps_per_epoch": 3, "kwargs": {"width": 4} if network != "edgenet" else {}}
    return StageRecipe(name, network, **{**plain, **changes})  # type: ignore[arg-type]


def recipe(home: Path, *stages: StageRecipe, **changes: object) -> Recipe:
    plain = {
        "name": "cube",
        "labels": ("cube",),
        "dataset": home / "data",
        "out": home / "out",
        "device": "cpu",
        "settings": {"consensus_grid": [32, 32, 32], "attention_grid": [32, 32, 32]},
        "stages": stages or (stage("consensus", "snet"),),
    }
    return Recipe(**{**plain, **changes})  # type: ignore[arg-type]


def test_three_stages_learn_a_bright_cube_and_the_model_segments_an_unseen_one(home: Path) -> None:
    stages = (
        stage("consensus", "snet", steps=40, steps_per_epoch=40, lr=5e-3, kwargs={"width": 8}),
        stage("attention", "attnnet", steps=20, steps_per_epoch=20, init_from="consensus", kwargs={"width": 8}),
        stage("edge", "edgenet", steps=10, steps_per_epoch=10),
    )
    events = list(train(recipe(home, *stages)))
    assert isinstance(events[-1], Saved)
    model = load_model(events[-1].path, device="cpu")
    held_out = "c4"  # every fifth case by name
    volume = read_volume(home / "data" / "imagesTr" / f"{held_out}_0000.nii.gz")
    truth = read_labels(home / "data" / "labelsTr" / f"{held_out}.nii.gz").data
    found = drain(segment(volume, model)).data
    dice = 2 * ((found == 1) & (truth == 1)).sum() / ((found == 1).sum() + (truth == 1).sum())
    assert dice > 0.9
    # The card's figure is of the same case by the same pipeline.
    assert model.card.scores["labels"]["cube"] == pytest.approx(dice, abs=2e-3)
    assert list(model.card.scores) == ["consensus", "attention", "edge", "labels"]
    assert model.card.scores["edge"]["cube"] > model.card.scores["consensus"]["cube"]


def test_the_card_holds_what_was_measured_of_the_training_volumes(home: Path) -> None:
    *_, last = train(recipe(home, stage("consensus", "snet", steps=1, steps_per_epoch=1)))
    data = find_card(last.path).training_data
    learned = [read_volume(home / "data" / "imagesTr" / f"c{i}_0000.nii.gz") for i in range(4)]  # the fifth is held out
    assert data == summarise(measure_volume(volume) for volume in learned)
    assert data.n_cases == 4
    assert data.low.spacing_mm == data.high.spacing_mm == (2, 1.5, 1.5)
    assert data.low.channels[0].median == pytest.approx(min(np.median(v.data) for v in learned), rel=1e-3)


def test_events_count_steps_and_epochs_of_every_stage(home: Path) -> None:
    events = list(train(recipe(home)))
    steps = [e.step for e in events if isinstance(e, StepDone)]
    assert steps == [1, 2, 3, 4, 5, 6]
    epochs = [e for e in events if isinstance(e, EpochDone)]
    assert [e.epoch for e in epochs] == [1, 2]
    assert set(epochs[0].metrics) == {"dice", "dice/cube"}


def weights_of(folder: Path) -> str:
    return hashlib.sha256((folder / "cube.safetensors").read_bytes()).hexdigest()


def start(home: Path, out: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "napari_fmseg", "train", str(home / "recipe.toml"), "--events"]
    command += ["--out", str(home / out), "--dataset", str(home / "data")]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=environment)


def test_a_run_that_was_killed_goes_on_and_ends_with_the_same_weights(home: Path) -> None:
    whole = start(home, "whole")
    whole.communicate(timeout=250)
    assert whole.returncode == 0

    for last in (("consensus", 6), ("attention", 7)):  # in the middle of an epoch, in two stages
        victim = start(home, "killed")
        assert victim.stdout is not None
        for line in victim.stdout:
            event = from_json(line)
            if isinstance(event, StepDone) and (event.stage, event.step) == last:
                break
        victim.send_signal(signal.SIGKILL)
        victim.wait(timeout=30)
        victim.stdout.close()
        assert not (home / "killed" / "cube.toml").exists()

    again = start(home, "killed")
    text, _ = again.communicate(timeout=250)
    assert again.returncode == 0
    steps = [(e.stage, e.step) for e in map(from_json, text.splitlines()) if isinstance(e, StepDone)]
    assert steps[0] == ("attention", 5)  # what was finished is not done again
    assert weights_of(home / "killed") == weights_of(home / "whole")


def test_a_folder_with_another_recipes_run_is_refused(home: Path) -> None:
    list(train(recipe(home)))
    with pytest.raises(InvalidRecipe, match="another recipe"):
        list(train(recipe(home, seed=1)))


def test_new_words_for_the_card_need_no_new_training(home: Path) -> None:
    list(train(recipe(home)))
    events = list(train(recipe(home, licence="CC0-1.0")))
    assert not any(isinstance(e, StepDone) for e in events)
    assert find_card(home / "out" / "cube.toml").licence == "CC0-1.0"


def test_a_stage_whose_forerunner_is_missing_is_refused(home: Path) -> None:
    with pytest.raises(InvalidRecipe, match="Train that first"):
        list(train(recipe(home, stage("attention", "attnnet"))))


def test_fine_tuning_starts_from_the_models_weights_and_names_its_parent(home: Path) -> None:
    list(train(recipe(home)))
    parent = home / "out" / "cube.toml"
    tuned = recipe(home, stage("consensus", "snet", lr=1e-12), start_from=str(parent), out=home / "tuned")
    list(train(tuned))
    before, after = load_model(parent, device="cpu"), load_model(home / "tuned" / "cube.toml", device="cpu")
    for key, value in before.nets["consensus"].state_dict().items():
        torch.testing.assert_close(after.nets["consensus"].state_dict()[key], value, atol=1e-5, rtol=0)
    assert after.card.parent == str(parent)


def test_a_second_member_of_a_stage_is_trained_after_the_first_and_both_are_averaged(home: Path) -> None:
    first = stage("attention", "fastunet", kwargs={"widths": [4, 8], "strides": [[2, 2, 2], [2, 2, 2]], "maps": 1})
    by_voxel = {"widths": [2, 4, 8], "strides": [[1, 1, 1], [2, 2, 2], [2, 2, 2]], "maps": 1}
    second = dataclasses.replace(first, stage="attention-2", init_from="attention", kwargs=by_voxel)
    events = list(train(recipe(home, stage("consensus", "snet"), first, second)))
    assert [event.stage for event in events if isinstance(event, EpochDone)][-1] == "attention-2"
    model = load_model(home / "out" / "cube.toml", device="cpu")
    assert list(model.nets) == ["consensus", "attention", "attention-2"]
    assert list(model.card.scores) == ["consensus", "attention", "labels"]
    assert stages_of(model.card) == ("consensus", "attention")
    volume = read_volume(home / "data" / "imagesTr" / "c0_0000.nii.gz")
    single = dataclasses.replace(model, nets={k: v for k, v in model.nets.items() if k != "attention-2"})
    both = _Stages(volume, model, SegmentOptions())._probabilities
    x, a = torch.rand(1, 1, 32, 32, 32), torch.rand(1, 1, 32, 32, 32)
    alone = _Stages(volume, single, SegmentOptions())._probabilities("attention", x, a)
    other = class_probabilities(model.nets["attention-2"], model.nets["attention-2"](x, a))[0]
    torch.testing.assert_close(both("attention", x, a), (alone + other) / 2, atol=1e-4, rtol=0)


def test_a_run_that_is_stopped_in_a_second_member_keeps_the_first(home: Path) -> None:
    first = stage("consensus", "snet")
    events = train(recipe(home, first, dataclasses.replace(first, stage="consensus-2")))
    for event in events:
        if isinstance(event, StepDone) and event.stage == "consensus-2":
            break
    events.close()
    assert "consensus" in load_model(home / "out" / "cube.toml", device="cpu").nets


def test_training_stops_early_when_validation_stalls(home: Path) -> None:
    quick = stage("consensus", "snet", steps=40, steps_per_epoch=2, lr=1e-9, patience=2)
    events = list(train(recipe(home, quick)))
    assert len([e for e in events if isinstance(e, EpochDone)]) < 8


def test_a_step_whose_gradient_is_not_finite_changes_nothing(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from napari_fmseg.training.tasks import base as task_base

    real, count = task_base.make_loss("dice_ce"), iter(range(100))

    def poisoned(prediction: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        return real(prediction, target) * (float("nan") if next(count) < 4 else 1.0)

    monkeypatch.setattr(task_base, "make_loss", lambda name: poisoned)
    list(train(recipe(home)))
    net = load_model(home / "out" / "cube.toml", device="cpu").nets["consensus"]
    assert all(p.isfinite().all() for p in net.parameters())


def test_a_class_that_no_case_has_is_told_before_training(home: Path) -> None:
    facts = {"labels": {"background": 0, "cube": 1, "ball": 2}}
    (home / "data" / "dataset.json").write_text(json.dumps(facts))
    events = train(recipe(home, labels=("cube", "ball")))
    assert any(isinstance(e, Warned) and "ball" in e.text for e in events)


def spoil(path: Path, value: float, voxels: int) -> None:
    """Write another value into the first voxels of a file."""
    volume = read_volume(path)
    data = volume.data.astype(np.float32)
    data.flat[:voxels] = value
    write_volume(Volume(data, volume.geometry), path)


@pytest.mark.parametrize("case", ["c0", "c4"])  # one is trained on, one is held out
def test_what_was_repaired_in_a_case_or_has_no_name_is_said(home: Path, case: str) -> None:
    spoil(home / "data" / "imagesTr" / f"{case}_0000.nii.gz", np.nan, 2)
    spoil(home / "data" / "labelsTr" / f"{case}.nii.gz", 5, 3)
    told = [e.text for e in train(recipe(home)) if isinstance(e, Warned) and e.text.startswith(case)]
    assert len(told) == 2
    assert "2 voxels that were NaN" in told[0]
    assert told[1] == f"{case}: 3 voxels have numbers of no class (5) and count as background."


@pytest.mark.parametrize("case", ["c0", "c4"])  # one is trained on, one is held out
def test_a_case_without_one_of_the_channels_is_refused_by_name(home: Path, case: str) -> None:
    images = home / "data" / "imagesTr"
    for path in sorted(images.glob("*_0000.nii.gz")):
        if not path.name.startswith(case):
            shutil.copy(path, images / path.name.replace("_0000", "_0001"))
    with pytest.raises(InvalidRecipe, match=rf"{case} has 1 channel\(s\) and the recipe 2 \(T1, T2\)"):
        list(train(recipe(home, channels=("T1", "T2"))))


def test_cases_can_be_listed_instead_of_a_folder(home: Path) -> None:
    data = home / "data"
    cases = tuple(
        Case(f"c{i}", (data / "imagesTr" / f"c{i}_0000.nii.gz",), data / "labelsTr" / f"c{i}.nii.gz") for i in range(2)
    )
    listed = dataclasses.replace(recipe(home), dataset=None, training=cases, validation=cases[:1])
    assert isinstance(list(train(listed))[-1], Saved)


@pytest.mark.parametrize("name", ["c0", "copy"])
def test_a_validation_case_that_is_trained_on_too_is_warned_of(home: Path, name: str) -> None:
    data = home / "data"
    shutil.copy(data / "imagesTr" / "c0_0000.nii.gz", data / "imagesTr" / "copy_0000.nii.gz")
    shutil.copy(data / "labelsTr" / "c0.nii.gz", data / "labelsTr" / "copy.nii.gz")
    both = [
        Case(n, (data / "imagesTr" / f"{n}_0000.nii.gz",), data / "labelsTr" / f"{n}.nii.gz")
        for n in ("c0", "c1", name)
    ]
    listed = dataclasses.replace(recipe(home), dataset=None, training=tuple(both[:2]), validation=(both[2],))
    told = [e.text for e in train(listed) if isinstance(e, Warned)]
    assert [text for text in told if "validation" in text] == [
        f"1 validation case(s) are trained on, too, such as {name}: the Dice measured on them is too high."
    ]


def test_augmentation_may_be_switched_off(home: Path) -> None:
    still = Augment(shift=0, zoom=0, rotate_p=0, contrast=0, brightness=0, gamma=0, noise=0)
    assert isinstance(list(train(recipe(home, augment=still)))[-1], Saved)


def test_published_losses_and_schedules_train_too(home: Path) -> None:
    stages = (
        stage("consensus", "snet", loss="attn", schedule="plateau"),
        stage("attention", "attnnet", loss="tversky", schedule="constant"),
        stage("edge", "edgenet", loss="attn"),
    )
    events = list(train(recipe(home, *stages)))
    assert {e.stage for e in events if isinstance(e, EpochDone)} == {"consensus", "attention", "edge"}


def test_edge_starts_by_passing_its_segmentation_through() -> None:
    net = build("edgenet", in_channels=1, n_classes=3)
    net.init_as_identity()  # type: ignore[operator]
    s = torch.zeros(1, 3, 8, 8, 8)
    s[:, 1] = 1
    found = net.eval()(torch.rand(1, 1, 8, 8, 8), s)
    assert (found.argmax(1)[..., 2:-2, 2:-2, 2:-2] == 1).all()


def test_the_held_out_result_is_a_stage_result_on_the_volumes_grid(home: Path) -> None:
    list(train(recipe(home)))
    model = load_model(home / "out" / "cube.toml", device="cpu")
    volume = read_volume(home / "data" / "imagesTr" / "c0_0000.nii.gz")
    *_, last = segment(volume, model)
    assert isinstance(last, StageResult)
    assert last.output.geometry == volume.geometry
