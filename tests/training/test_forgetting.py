"""New classes without forgetting: replay, answers and weights of before, early warnings; a stop keeps the best."""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tomli_w
import torch

from napari_fmseg.core.errors import InvalidRecipe
from napari_fmseg.core.events import EpochDone, Saved, StepDone, Warned, from_json
from napari_fmseg.core.volume import Geometry, LabelMap, Volume
from napari_fmseg.datasets.case import Case
from napari_fmseg.io import write_labels, write_volume
from napari_fmseg.models.card import Intensity
from napari_fmseg.models.weights import load_model
from napari_fmseg.training import Augment, Recipe, Replay, StageRecipe, load_recipe, train
from napari_fmseg.training.data.samples import Sample
from napari_fmseg.training.forgetting import Teacher, class_merging_matrix, l2sp_penalty
from napari_fmseg.training.loop import _Run
from napari_fmseg.training.monitor import TrainingMonitor

STILL = Augment(shift=0.05, zoom=0, rotate_deg=0, contrast=0, brightness=0, gamma=0, noise=0)
WINDOW = Intensity("window", 0, 100)
GRIDS = {"consensus_grid": [32, 32, 32], "attention_grid": [32, 32, 32]}


def dataset(folder: Path, name: str, value: float, n: int = 4, *, seed: int = 0) -> Path:
    """Cubes of one class on noise."""
    rng = np.random.default_rng(seed)
    for part in ("imagesTr", "labelsTr"):
        (folder / part).mkdir(parents=True, exist_ok=True)
    for i in range(n):
        data, labels = rng.normal(0, 3, (24, 24, 24)).astype(np.float32), np.zeros((24, 24, 24), np.uint8)
        z, y, x = rng.integers(2, 10, 3)
        labels[z : z + 12, y : y + 12, x : x + 12] = 1
        data[labels == 1] += value
        geometry = Geometry.from_spacing(labels.shape)
        write_volume(Volume(data, geometry), folder / "imagesTr" / f"c{i}_0000.nii.gz")
        write_labels(LabelMap(labels, geometry), folder / "labelsTr" / f"c{i}.nii.gz")
    (folder / "dataset.json").write_text(json.dumps({"labels": {"background": 0, name: 1}}))
    return folder


def recipe(folder: Path, out: str, labels: tuple[str, ...], data: str = "bright", **changes: Any) -> Recipe:
    stage = {"steps": 20, "steps_per_epoch": 10, "lr": 5e-3, "kwargs": {"width": 8}, **changes.pop("stage", {})}
    facts = {"stages": (StageRecipe("consensus", "snet", **stage),), "dataset": folder / data, "settings": GRIDS,
             "device": "cpu", "holdout": ("c0",), "augment": STILL, "intensity": WINDOW, **changes}  # fmt: skip
    return Recipe("m", labels=labels, out=folder / out, **facts)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two sets of one class each, and a model of the first."""
    folder = tmp_path_factory.mktemp("remember")
    dataset(folder / "bright", "bright", 45)
    dataset(folder / "dark", "dark", 100, seed=1)
    list(train(recipe(folder, "old", ("bright",), stage={"steps": 30, "steps_per_epoch": 30})))
    assert load_model(folder / "old" / "m.toml", device="cpu").card.scores["labels"]["bright"] > 0.8
    return folder


def after(home: Path, out: str, **changes: Any) -> list[Any]:
    start = {
        "start_from": str(home / "old" / "m.toml"),
        "stage": {"steps": 40, "steps_per_epoch": 20, "lr": 1e-3, "clip": 3.0},
    }
    return list(train(recipe(home, out, ("bright", "dark"), "dark", **{**start, **changes})))


def old_dice(events: list[Any]) -> list[float]:
    return [e.metrics["old"] for e in events if isinstance(e, EpochDone)]


def test_replayed_cases_keep_the_old_class_and_its_dice_is_told_every_epoch(home: Path) -> None:
    seen = Replay(home / "bright", holdout=("c0",))
    events = after(home, "replay", replay=(seen,))
    assert len(old_dice(events)) == 2
    last = [e for e in events if isinstance(e, EpochDone)][-1]
    assert last.metrics["old"] == last.metrics["dice/bright"] > 0.6
    assert "dice/dark" in last.metrics


@pytest.mark.parametrize("data", ["bright", "dark"])
def test_held_out_cases_of_one_name_in_two_sets_are_both_known_among_unlabelled_volumes(home: Path, data: str) -> None:
    copy = home / f"copy-{data}.nii.gz"
    shutil.copy(home / data / "imagesTr" / "c0_0000.nii.gz", copy)
    facts = {"unlabelled": (Case("copy", (copy,)),), "unlabelled_weight": 0.5, "stage": {"ema": 0.9}}
    replay = (Replay(home / "bright", holdout=("c0",)),)
    events = train(recipe(home, f"known-{data}", ("bright", "dark"), "dark", replay=replay, **facts))
    told = [e.text for e in itertools.takewhile(lambda e: not isinstance(e, StepDone), events) if isinstance(e, Warned)]
    assert any(text.startswith("1 volume(s) that should have no labels are left out") for text in told)


def test_without_replay_the_old_class_may_be_watched_and_forgetting_is_told(home: Path) -> None:
    watch = Replay(home / "bright", holdout=("c0",), watch=True)
    # The new labels say that nothing there is the old class, as labels of one structure do.
    facts = {"labels": {"background": 0, "dark": 1, "bright": 2}}
    before = (home / "dark" / "dataset.json").read_text()
    (home / "dark" / "dataset.json").write_text(json.dumps(facts))
    events = after(home, "naive", replay=(watch,))
    (home / "dark" / "dataset.json").write_text(before)
    watched = old_dice(events)
    assert len(watched) == 2
    told = [e.text for e in events if isinstance(e, Warned) and "forgotten" in e.text]
    assert min(watched) < 0.3
    assert told


def test_kept_weights_move_less(home: Path) -> None:
    before = load_model(home / "old" / "m.toml", device="cpu").nets["consensus"].state_dict()

    def moved(out: str, strength: float) -> float:
        after(home, out, l2sp_weight=strength, stage={"steps": 4, "steps_per_epoch": 4, "keep": "last"})
        new = load_model(home / out / "m.toml", device="cpu").nets["consensus"].state_dict()
        return float(sum((new[k] - v).square().sum() for k, v in before.items() if new[k].shape == v.shape))

    assert moved("held", 100.0) < 0.7 * moved("free", 0.0)


def test_the_teacher_counts_what_is_new_as_background_and_reads_the_classes_by_name() -> None:
    class Fixed(torch.nn.Module):
        """Says a third of everything, in logits."""

        def __init__(self) -> None:
            super().__init__()
            self.p = torch.nn.Parameter(torch.zeros(1))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.log(torch.tensor([0.7, 0.2, 0.1])).reshape(1, 3, 1, 1, 1).expand(1, 3, *x.shape[2:]) + self.p

    teacher = Teacher(Fixed(), {1: "a", 2: "b"}, ("new", "b", "a"))
    x = torch.zeros(1, 1, 4, 4, 4)
    right = torch.tensor([0.3, 0.4, 0.1, 0.2]).reshape(1, 4, 1, 1, 1).expand(1, 4, 4, 4, 4)
    wrong = torch.tensor([0.3, 0.4, 0.2, 0.1]).reshape(1, 4, 1, 1, 1).expand(1, 4, 4, 4, 4)
    best = right.clone().requires_grad_()
    teacher.loss(best, [x]).backward()
    assert best.grad is not None
    torch.testing.assert_close(best.grad[:, 0], best.grad[:, 1])  # new or background: the teacher does not mind
    assert teacher.loss(right, [x]) < teacher.loss(wrong, [x])
    assert class_merging_matrix(("new", "b", "a"), ("a", "b")).tolist() == [[1, 1, 0, 0], [0, 0, 0, 1], [0, 0, 1, 0]]


def test_answers_of_before_are_kept_without_any_case_of_before(home: Path) -> None:
    watch = Replay(home / "bright", holdout=("c0",), watch=True)
    events = after(home, "answers", replay=(watch,), distillation_weight=1.0)
    assert old_dice(events)[-1] > 0.4  # 0.0 without
    assert any("bright" in e.text and "kept as it is" in e.text for e in events if isinstance(e, Warned))


def test_distance_is_half_the_squared_way() -> None:
    net = torch.nn.Linear(2, 1)
    anchors = {"weight": net.weight.detach() - 2}
    assert l2sp_penalty(net, anchors).item() == pytest.approx(0.5 * 2 * 4)
    assert l2sp_penalty(net, {}).item() == 0


def test_balance_draws_a_rare_class_as_often_as_a_common_one(tmp_path: Path) -> None:
    folder = dataset(tmp_path / "data", "common", 100, 8)
    grid = Geometry.from_spacing((24, 24, 24))
    rare = np.zeros(grid.shape, np.uint8)
    rare[5, 5, 5] = 2
    write_labels(LabelMap(rare, grid), folder / "labelsTr" / "c3.nii.gz")
    (folder / "dataset.json").write_text(json.dumps({"labels": {"background": 0, "common": 1, "rare": 2}}))
    run = _Run(dataclasses.replace(recipe(tmp_path, "out", ("common", "rare"), "data"), balance=True))
    list(run.prepare())
    picks = run.drawing.picks(400, np.random.default_rng(0))
    rares = [i for i, focus in picks if focus == 2]
    assert len(rares) == pytest.approx(200, abs=40)
    assert {run.samples[i].name for i in rares} == {"c3"}
    assert len({i for i, focus in picks if focus == 1}) == 6


def test_a_share_of_the_samples_is_replayed(home: Path) -> None:
    run = _Run(recipe(home, "shares", ("bright", "dark"), "dark", replay=(Replay(home / "bright"),), replay_share=0.25))
    list(run.prepare())
    picks = run.drawing.picks(400, np.random.default_rng(0))
    assert sum(run.drawing.replayed[i] for i, _ in picks) == pytest.approx(100, abs=30)
    missing = {replayed: s.missing for replayed, s in zip(run.drawing.replayed, run.samples, strict=True)}
    assert missing == {False: (1,), True: (2,)}


def test_a_class_that_is_not_learned_is_told_after_a_third(home: Path) -> None:
    facts = {"stage": {"steps": 6, "steps_per_epoch": 2, "lr": 1e-9}}
    events = after(home, "unlearned", **facts, replay=(Replay(home / "bright", holdout=("c0",), watch=True),))
    epochs = [i for i, e in enumerate(events) if isinstance(e, EpochDone)]
    told = [(i, e.text) for i, e in enumerate(events) if isinstance(e, Warned) and "Dice is" in e.text]
    assert any("'dark' is not being learned" in text and "1 of 3 epochs" in text for _, text in told)
    assert not any("'bright' was" in e.text for e in events if isinstance(e, Warned))  # no case has it: told before
    assert all(epochs[0] < i < epochs[1] for i, _ in told)


def test_a_class_that_no_sample_shows_is_told_once() -> None:
    here = Sample("a", torch.zeros(1, 2, 2, 2), torch.ones(2, 2, 2, dtype=torch.uint8))
    watch = TrainingMonitor(recipe(Path(), "x", ("bright", "dark")), [here], 6, 0)
    watch.saw([([], torch.stack([torch.ones(2, 2, 2), torch.zeros(2, 2, 2), torch.zeros(2, 2, 2)]))])
    told = [list(watch.warnings("net", epoch, math.nan, {})) for epoch in range(1, 5)]
    assert [len(t) for t in told] == [0, 1, 0, 0]
    assert "'bright' was in no sample" in told[1][0].text


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"replay_share": 1.5}, "replay_share"),
        ({"distillation_weight": -1.0}, "distillation_weight"),
        ({"l2sp_weight": 1.0}, "start"),
    ],
)
def test_memory_that_makes_no_sense_is_refused(tmp_path: Path, changes: dict[str, Any], named: str) -> None:
    with pytest.raises(InvalidRecipe, match=named):
        recipe(tmp_path, "out", ("a",), **changes)


def test_a_replay_is_read_from_toml_relative_to_the_file(tmp_path: Path) -> None:
    table = {"name": "m", "labels": ["a"], "dataset": "d", "out": "o", "start_from": "x", "distillation_weight": 1,
             "stages": [{"stage": "consensus", "network": "snet"}],
             "replay": [{"dataset": "before", "names": {"A": "a"}, "most": 3}]}  # fmt: skip
    (tmp_path / "r.toml").write_text(tomli_w.dumps(table))
    (replay,) = load_recipe(tmp_path / "r.toml").replay
    assert replay == Replay(tmp_path / "before", names={"A": "a"}, most=3)


def test_closing_the_iterator_keeps_the_best_so_far_and_the_run_goes_on_later(home: Path) -> None:
    plan = recipe(home, "closed", ("bright",), stage={"steps": 30, "steps_per_epoch": 10})
    events = train(plan)
    for event in events:
        if isinstance(event, EpochDone):
            break
    for event in events:
        if isinstance(event, StepDone):
            break
    start = time.perf_counter()
    events.close()
    sys.stdout.write(f"closing took {time.perf_counter() - start:.2f} s\n")
    model = load_model(home / "closed" / "m.toml", device="cpu")
    assert "stopped" in model.card.limits
    assert model.card.scores["consensus"]["bright"] > 0
    again = list(train(plan))
    assert next(e.step for e in again if isinstance(e, StepDone)) == 11
    assert "stopped" not in load_model(home / "closed" / "m.toml", device="cpu").card.limits


def test_a_stop_before_the_first_epoch_leaves_no_model(home: Path) -> None:
    events = train(recipe(home, "early", ("bright",)))
    next(e for e in events if isinstance(e, StepDone))
    events.close()
    assert not (home / "early" / "m.toml").exists()


def stopped(child: subprocess.Popen[str]) -> tuple[list[Any], float]:
    """Ask a training to end in the middle of its second epoch; give what it still says, and the seconds."""
    seen = map(from_json, child.stdout or ())
    next(e for e in seen if isinstance(e, Saved))
    next(e for e in seen if isinstance(e, StepDone))
    start = time.perf_counter()
    child.send_signal(signal.SIGTERM)
    rest = list(seen)
    sys.stdout.write(f"its output ended {time.perf_counter() - start:.2f} s after the request\n")
    child.wait(timeout=60)
    return rest, time.perf_counter() - start


def test_a_request_to_end_stops_the_process_and_keeps_the_best(home: Path) -> None:
    table = {"name": "m", "labels": ["bright"], "dataset": str(home / "bright"), "out": str(home / "asked"),
             "device": "cpu", "settings": GRIDS, "holdout": ["c0"],
             "stages": [{"stage": "consensus", "network": "snet", "steps": 400, "steps_per_epoch": 8,
                         "kwargs": {"width": 8}}]}  # fmt: skip
    (home / "asked.toml").write_text(tomli_w.dumps(table))
    command = [sys.executable, "-m", "napari_fmseg", "train", str(home / "asked.toml"), "--events"]
    child = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
                             env={**os.environ, "OMP_NUM_THREADS": "1"})  # fmt: skip
    assert child.stdout is not None
    with child.stdout:
        rest, seconds = stopped(child)
    sys.stdout.write(f"it stopped {seconds:.2f} s after the request\n")
    assert child.returncode == 130
    assert load_model(home / "asked" / "m.toml", device="cpu").nets
    saved = [e.path for e in rest if isinstance(e, Saved)]
    assert not saved or saved[-1] == home / "asked" / "m.toml"
