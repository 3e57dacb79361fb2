"""The history of a run: a line per step and epoch, none twice after a resume, TensorBoard's files where wanted."""

import json
import sys

import numpy as np
import pytest

from napari_fmseg.core.errors import MissingExtra
from napari_fmseg.core.events import EpochDone, Pictures, Progress, StepDone
from napari_fmseg.training.history import read_dice_curve, record_history


def learning(first, last, stage="net"):
    yield Progress("reading", 0, 1)
    for step in range(first, last + 1):
        yield StepDone(stage, step, 4, 1.0 / step, 0.1)
        if step % 2 == 0:
            yield EpochDone(stage, step // 2, 2, 0.5, 1.5, {"dice/liver": 0.1 * step})


def rows(folder):
    return [json.loads(line) for line in (folder / "history.jsonl").read_text().splitlines()]


def test_events_pass_and_leave_a_line_each(tmp_path):
    assert list(record_history(learning(1, 4), tmp_path)) == list(learning(1, 4))
    assert rows(tmp_path)[:3] == [
        {"stage": "net", "step": 1, "loss": 1.0, "lr": 0.1},
        {"stage": "net", "step": 2, "loss": 0.5, "lr": 0.1},
        {"stage": "net", "step": 2, "epoch": 1, "loss": 0.5, "seconds": 1.5, "dice/liver": 0.2},
    ]
    assert [row["step"] for row in rows(tmp_path)] == [1, 2, 2, 3, 4, 4]
    assert not (tmp_path / "tensorboard").exists()


def test_what_a_resumed_run_does_again_stands_there_once(tmp_path):
    list(record_history(learning(1, 2, "before"), tmp_path))
    killed = record_history(learning(1, 4), tmp_path)
    for event in killed:
        if isinstance(event, StepDone) and event.step == 3:
            break
    with (tmp_path / "history.jsonl").open("a") as file:
        file.write('{"stage": "net", "st')  # a kill amid a line
    list(record_history(learning(3, 4), tmp_path))
    assert [(row["stage"], row["step"]) for row in rows(tmp_path)] == [
        *[("before", step) for step in (1, 2, 2)],
        *[("net", step) for step in (1, 2, 2, 3, 4, 4)],
    ]
    killed.close()


def test_the_curve_is_that_of_the_last_stage_and_empty_where_nothing_was_measured(tmp_path):
    def measured(stage, *dice):
        for epoch, value in enumerate(dice, 1):
            yield StepDone(stage, epoch, len(dice), 0.5, 0.1)
            yield EpochDone(stage, epoch, len(dice), 0.5, 1.0, {"dice": value, "dice/liver": 0.9})

    assert read_dice_curve(tmp_path) == ()
    list(record_history(measured("first", 0.7), tmp_path))
    list(record_history(measured("last", 0.1, 0.3), tmp_path))
    assert read_dice_curve(tmp_path) == (0.1, 0.3)
    list(record_history(learning(1, 4, "without"), tmp_path))
    assert read_dice_curve(tmp_path) == ()


def test_closing_closes_the_training(tmp_path):
    closed = []

    def run():
        try:
            yield from learning(1, 4)
        finally:
            closed.append(True)

    events = record_history(run(), tmp_path)
    next(events)
    events.close()
    assert closed == [True]


def test_a_process_that_follows_gives_and_writes_nothing(tmp_path, monkeypatch):
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert list(record_history(learning(1, 4), tmp_path, tensorboard=True)) == []
    assert list(tmp_path.iterdir()) == []


def test_tensorboard_reads_the_numbers_and_the_pictures(tmp_path):
    reading = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    with (tmp_path / "pictures.npz").open("wb") as file:
        np.savez(file, spacing=np.ones(3), **{"fused volume": np.random.default_rng(0).random((3, 8, 8))})
    events = [*learning(1, 4), Pictures("net", 4, tmp_path / "pictures.npz")]
    list(record_history((event for event in events), tmp_path, tensorboard=True))
    found = reading.EventAccumulator(str(tmp_path / "tensorboard" / "net")).Reload()
    assert [e.step for e in found.Scalars("step/loss")] == [1, 2, 3, 4]
    assert [e.value for e in found.Scalars("step/loss")] == pytest.approx([1 / step for step in range(1, 5)])
    assert [e.step for e in found.Scalars("validation/dice/liver")] == [2, 4]
    assert [e.value for e in found.Scalars("validation/dice/liver")] == pytest.approx([0.2, 0.4])
    assert [e.step for e in found.Images("fused-volume")] == [4]


def test_without_tensorboard_the_option_says_what_to_install_before_anything_is_done(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    done = []
    with pytest.raises(MissingExtra, match=r"napari-fmseg\[tensorboard\]"):
        next(record_history((done.append(i) for i in range(2)), tmp_path, tensorboard=True))
    assert done == []
