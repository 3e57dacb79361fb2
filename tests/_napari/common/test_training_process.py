"""A training as a dock sees it: its states, Stop, Resume after a kill, and that it ends with the dock."""

from __future__ import annotations

import os
import signal
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

pytest.importorskip("napari")
from qtpy.QtWidgets import QWidget

from napari_fmseg._napari.common import training_process
from napari_fmseg._napari.common.training_process import TrainingRun
from napari_fmseg.core.errors import FmsegError
from napari_fmseg.core.events import EpochDone, Progress, Saved, StepDone, TrainEvent

HEAD = """
import json, os, pathlib, signal, sys, time
def tell(event, **facts): print(json.dumps({"event": event, **facts}), flush=True)
def step(n, stage="net", total=9, loss=0.5): tell("StepDone", stage=stage, step=n, total=total, loss=loss, lr=0.1)
"""
Make = Callable[[str], TrainingRun]


@pytest.fixture
def make_run(qtbot: Any, tmp_path: Path) -> Iterator[Make]:
    runs: list[TrainingRun] = []

    def made(code: str) -> TrainingRun:
        dock = QWidget()
        (tmp_path / "standin.py").write_text(HEAD + textwrap.dedent(code))
        run = TrainingRun(dock, program=(sys.executable, str(tmp_path / "standin.py")))
        run.states, run.events, run.dock = [], [], dock  # type: ignore[attr-defined]
        run.changed.connect(run.states.append)  # type: ignore[attr-defined]
        run.event.connect(run.events.append)  # type: ignore[attr-defined]
        runs.append(run)
        return run

    yield made
    for run in runs:
        run.close()
        run.__dict__.pop("dock")
    runs.clear()


def wait(qtbot: Any, run: TrainingRun, state: str) -> None:
    qtbot.waitUntil(lambda: run.state == state, timeout=60_000)


def test_it_goes_through_its_states_and_hands_on_its_events(make_run: Make, qtbot: Any) -> None:
    run: Any = make_run("""
        tell("Progress", stage="reading", done=0, total=1)
        step(1)
        tell("Progress", stage="validating", done=0, total=1)
        tell("EpochDone", stage="net", epoch=1, total=2, loss=0.5, seconds=1, metrics={"dice": 0.5})
        step(2)
        tell("Saved", path="m.toml", best=True)
        """)
    assert run.state == "idle"
    run.start(["train", "r.toml"])
    assert run.running
    run.start(["train", "another.toml"])  # does nothing: one at a time
    wait(qtbot, run, "done")
    assert run.states == ["preparing", "training", "validating", "training", "done"]
    kinds = [type(event) for event in run.events]
    assert kinds == [Progress, StepDone, Progress, EpochDone, StepDone, Saved]
    assert not run.running
    assert not run.can_resume
    assert run.fraction == pytest.approx(2 / 9)


def test_stop_keeps_what_the_training_writes_at_its_end_and_resume_goes_on(make_run: Make, qtbot: Any) -> None:
    run: Any = make_run("""
        mark = pathlib.Path(__file__).with_name("mark")
        def stop(*_):
            mark.touch()
            tell("Saved", path="kept.toml", best=True)
            sys.exit(130)
        signal.signal(signal.SIGTERM, stop)
        step(6 if mark.exists() else 1)
        if not mark.exists():
            time.sleep(60)
        """)
    run.start(["train", "r.toml"])
    wait(qtbot, run, "training")
    start = time.monotonic()
    run.stop()
    assert run.stopping
    wait(qtbot, run, "stopped")
    print(f"stopped after {time.monotonic() - start:.2f} s")  # noqa: T201
    assert run.events[-1] == Saved(Path("kept.toml"), True)
    assert run.pid is None
    assert run.can_resume
    run.resume()
    wait(qtbot, run, "done")
    assert run.events[-1].step == 6


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="there is no kill -9 here")
def test_a_killed_training_is_failed_and_can_be_resumed(make_run: Make, qtbot: Any) -> None:
    run: Any = make_run("step(1)\ntime.sleep(60)")
    failures: list[FmsegError] = []
    run.failed.connect(failures.append)
    run.start(["train", "r.toml"])
    wait(qtbot, run, "training")
    os.kill(run.pid, signal.SIGKILL)
    wait(qtbot, run, "failed")
    assert failures == [run.error]
    assert "resume it" in str(run.error)
    run.resume()
    assert run.error is None
    wait(qtbot, run, "training")
    run.stop()
    wait(qtbot, run, "stopped")


@pytest.mark.parametrize("how", ["close", "delete"])
def test_the_process_ends_with_the_dock(make_run: Make, qtbot: Any, how: str) -> None:
    run: Any = make_run("step(1)\ntime.sleep(60)")
    run.start(["train", "r.toml"])
    wait(qtbot, run, "training")
    pid = run.pid
    if how == "close":
        run.close()
    else:
        run.dock.deleteLater()
    qtbot.waitUntil(lambda: not psutil.pid_exists(pid), timeout=60_000)
    assert run.states[-1] == "training"  # nothing is told any more


def test_the_time_left_takes_in_the_stages_to_come(make_run: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    run = make_run("")
    now = 100.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    run._clock.steps = {"consensus": 100, "edge": 50}
    run._clock.take(StepDone("consensus", 11, 100, 0.5, 0.1), now)  # resumed: ten steps were done before
    assert run.seconds_left is None
    now = 120.0
    run._clock.take(StepDone("consensus", 21, 100, 0.5, 0.1), now)
    assert run.seconds_left == pytest.approx(2.0 * (79 + 50))
    assert run.fraction == pytest.approx(21 / 150)
    now = 300.0
    run._clock.take(StepDone("edge", 10, 50, 0.5, 0.1), now)
    assert run.seconds_left == pytest.approx(200 / 20 * 40)
    assert run.fraction == pytest.approx(110 / 150)


def test_a_training_by_time_goes_by_its_minutes_whatever_its_steps_turn_out_to_be(
    make_run: Make, monkeypatch: pytest.MonkeyPatch, qtbot: Any
) -> None:
    now = 100.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    run: Any = make_run("")
    run.start(["train", "r.toml"], steps={"coarse": 40, "fine": 10}, minutes={"coarse": 2.0, "fine": 1.0})
    run._clock.take(StepDone("coarse", 1, 40, 0.5, 0.1), now)
    shares, left = [], []
    for now, stage, step, total in (
        (130.0, "coarse", 20, 40),
        (160.0, "coarse", 21, 400),  # it is much faster than was guessed
        (190.0, "coarse", 200, 300),
        (250.0, "coarse", 299, 300),  # later than planned
        (251.0, "fine", 1, 90),
        (281.0, "fine", 40, 90),
    ):
        run._clock.take(StepDone(stage, step, total, 0.5, 0.1), now)
        shares.append(run.fraction)
        left.append(run.seconds_left)
    assert shares == pytest.approx([30 / 180, 60 / 180, 90 / 180, 120 / 180, 120 / 180, 150 / 180])
    assert left == pytest.approx([150, 120, 90, 60, 60, 30])
    wait(qtbot, run, "done")


def test_a_resumed_training_by_time_goes_on_at_its_share_and_the_bar_never_falls(
    make_run: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 100.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    run = make_run("")
    run._clock = training_process._Clock({}, {"net": 60.0})
    run._clock.take(StepDone("net", 51, 100, 0.5, 0.1), now)
    now = 115.0
    assert (run.fraction, run.seconds_left) == (pytest.approx(0.75), pytest.approx(15.0))
    run._clock = training_process._Clock({"net": 100}, {})  # by steps, of which there are more than were guessed
    run._clock.take(StepDone("net", 40, 100, 0.5, 0.1), now)
    assert run.fraction == pytest.approx(0.75)


def test_of_fast_steps_the_mean_loss_is_told_and_the_last_before_anything_else(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(time, "monotonic", lambda: 100.0)

    def events() -> Iterator[TrainEvent]:
        for number in range(1, 6):
            yield StepDone("net", number, 5, float(number), 0.1)
        yield Saved(Path("a"), True)
        yield StepDone("edge", 1, 5, 7.0, 0.1)

    found: list[Any] = list(training_process._thin_steps(events()))
    assert [(type(e), getattr(e, "step", 0)) for e in found] == [
        (StepDone, 1),
        (StepDone, 5),
        (Saved, 0),
        (StepDone, 1),
    ]
    assert found[1].loss == pytest.approx((2 + 3 + 4 + 5) / 4)
