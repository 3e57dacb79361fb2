"""A training in another process is followed: its events arrive, it stops softly, and it never outlives its parent."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

from napari_fmseg.core.errors import DeviceMemory, FmsegError
from napari_fmseg.core.events import EpochDone, Pictures, Progress, Saved, StepDone, from_json, to_json
from napari_fmseg.core.volume import Geometry, LabelMap, Volume
from napari_fmseg.io import write_labels, write_volume
from napari_fmseg.workers.training import PROGRAM, RemoteTraining

ROOT = Path(__file__).parents[2]
GUARD = PROGRAM[:-1]
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
steps = 5000
steps_per_epoch = 2
kwargs = {width = 4}
"""
STEP = 'print(json.dumps({{"event": "StepDone", "stage": "net", "step": {step}, "total": 9, "loss": 0.5, "lr": 0.1}}))'
HEAD = "import json, os, pathlib, signal, sys, time\n"


def program(folder: Path, code: str) -> tuple[str, ...]:
    """Write a program that stands for `fmseg`, and give the words that start it."""
    (folder / "standin.py").write_text(HEAD + textwrap.dedent(code))
    return (sys.executable, "-u", str(folder / "standin.py"))


def step(number: int) -> str:
    return STEP.format(step=number)


def wait_for(true: Any, seconds: float = 30) -> None:
    until = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < until, "it did not come"
        time.sleep(0.01)


def gone(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def test_events_arrive_in_order_and_what_libraries_print_is_passed_over(tmp_path: Path) -> None:
    code = f"""
        assert sys.argv[1:] == ["train", "x.toml", "--events"], sys.argv
        print("Using 16bit precision")
        print(json.dumps({{"event": "Progress", "stage": "reading", "done": 0, "total": 1}}))
        {step(1)}
        print(json.dumps({{"event": "NotOfOurTime", "colour": "red"}}))
        print(json.dumps({{"event": "Saved", "path": "m.toml", "best": True}}))
        """
    found = list(RemoteTraining(["train", "x.toml"], program=program(tmp_path, code)).events())
    assert found == [Progress("reading", 0, 1), StepDone("net", 1, 9, 0.5, 0.1), Saved(Path("m.toml"), True)]


def test_closing_lets_the_process_write_what_it_keeps(tmp_path: Path) -> None:
    code = f"""
        def stop(*_):
            pathlib.Path({str(tmp_path / "kept")!r}).write_text("best")
            sys.exit(0)
        signal.signal(signal.SIGTERM, stop)
        {step(1)}
        time.sleep(60)
        """
    events = RemoteTraining(["train"], program=program(tmp_path, code)).events()
    assert next(events) == StepDone("net", 1, 9, 0.5, 0.1)
    events.close()
    assert (tmp_path / "kept").read_text() == "best"


def test_after_a_stop_from_another_thread_the_last_events_still_arrive(tmp_path: Path) -> None:
    code = f"""
        def stop(*_):
            print(json.dumps({{"event": "Saved", "path": "kept.toml", "best": True}}))
            sys.exit(130)
        signal.signal(signal.SIGTERM, stop)
        {step(1)}
        time.sleep(60)
        """
    training = RemoteTraining(["train"], program=program(tmp_path, code))
    found = []
    for event in training.events():
        found.append(event)
        training.stop()
    assert found == [StepDone("net", 1, 9, 0.5, 0.1), Saved(Path("kept.toml"), True)]
    assert training.pid is None


def test_a_process_that_does_not_stop_is_killed_and_so_is_what_it_started(tmp_path: Path) -> None:
    code = """
        import subprocess
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        inner = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
        print(json.dumps({"event": "Progress", "stage": "inner", "done": inner.pid, "total": 1}))
        time.sleep(60)
        """
    training = RemoteTraining(["train"], program=program(tmp_path, code))
    events = training.events()
    inner = next(events)
    assert isinstance(inner, Progress)
    pid = training.pid
    assert pid is not None
    events.close()
    assert gone(pid)
    wait_for(lambda: gone(inner.done))


def test_stopped_before_it_began_nothing_is_started(tmp_path: Path) -> None:
    training = RemoteTraining(["train"], program=program(tmp_path, "pathlib.Path('began').touch()"))
    training.stop()
    assert list(training.events()) == []


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="there is no kill -9 here")
def test_a_killed_process_is_told_with_what_to_do(tmp_path: Path) -> None:
    training = RemoteTraining(["train"], program=program(tmp_path, f"{step(1)}\ntime.sleep(60)"))
    events = training.events()
    next(events)
    assert training.pid is not None
    os.kill(training.pid, signal.SIGKILL)
    with pytest.raises(DeviceMemory, match=r"was ended .*resume it"):
        next(events)


def test_what_the_command_told_is_the_error_and_its_exit_code_stays(tmp_path: Path) -> None:
    code = """
        print("a warning", file=sys.stderr)
        print("fmseg: Choose another folder.\\nThat one is full.", file=sys.stderr)
        sys.exit(3)
        """
    with pytest.raises(FmsegError) as told:
        list(RemoteTraining(["train"], program=program(tmp_path, code)).events())
    assert str(told.value) == "Choose another folder.\nThat one is full."
    assert told.value.exit_code == 3


def test_last_words_name_no_file_of_a_patient(tmp_path: Path) -> None:
    code = 'raise ValueError("cannot read /data/scans/Doe_John/ct.nii.gz")'
    with pytest.raises(FmsegError, match=r"ended unexpectedly \(exit code 1\)") as told:
        list(RemoteTraining(["train"], program=program(tmp_path, code)).events())
    assert "ValueError: cannot read (a file)" in str(told.value)
    assert "Doe" not in str(told.value)
    assert "standin.py" in str(told.value)


def test_a_program_that_is_not_there_is_told(tmp_path: Path) -> None:
    with pytest.raises(FmsegError, match="could not be started"):
        list(RemoteTraining(["train"], program=[str(tmp_path / "nothing")]).events())


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="there is no kill -9 here")
def test_the_process_ends_softly_with_a_parent_that_was_killed(tmp_path: Path) -> None:
    (tmp_path / "standin.py").write_text(
        HEAD
        + textwrap.dedent(f"""
            try:
                {step(1)}
                sys.stdout.flush()
                time.sleep(60)
            except KeyboardInterrupt:
                pathlib.Path({str(tmp_path / "kept")!r}).write_text("best")
            """)
    )
    code = f"""
        from napari_fmseg.workers.training import RemoteTraining
        training = RemoteTraining(["train"], program={(*GUARD, "standin")!r})
        for event in training.events():
            print(training.pid, flush=True)
        """
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(tmp_path)])}
    command = [sys.executable, "-c", textwrap.dedent(code)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as parent:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        parent.kill()
    wait_for(lambda: gone(pid))
    assert (tmp_path / "kept").read_text() == "best"


def test_every_kind_of_event_survives_the_way() -> None:
    for event in (Pictures("net", 3, Path("a.npz")), EpochDone("net", 1, 2, 0.5, 1.0, {"dice": 0.5})):
        assert from_json(to_json(event)) == event


def test_a_real_training_runs_in_its_process_and_is_stopped(tmp_path: Path) -> None:
    rng = np.random.default_rng(5)
    for i in range(3):
        data, labels = rng.normal(0, 8, (22, 24, 26)).astype(np.float32), np.zeros((22, 24, 26), np.uint8)
        labels[5 + i : 15, 5:15, 5:15] = 1
        data[labels == 1] += 100
        geometry = Geometry.from_spacing(data.shape, (2, 1.5, 1.5))
        for part in ("imagesTr", "labelsTr"):
            (tmp_path / "data" / part).mkdir(parents=True, exist_ok=True)
        write_volume(Volume(data, geometry), tmp_path / "data" / "imagesTr" / f"c{i}_0000.nii.gz")
        write_labels(LabelMap(labels, geometry), tmp_path / "data" / "labelsTr" / f"c{i}.nii.gz")
    facts = {"labels": {"background": 0, "cube": 1}, "channel_names": {"0": "CT"}}
    (tmp_path / "data" / "dataset.json").write_text(json.dumps(facts))
    (tmp_path / "recipe.toml").write_text(RECIPE)
    training = RemoteTraining(["train", str(tmp_path / "recipe.toml")])
    found = []
    for event in training.events():
        found.append(event)
        if isinstance(event, StepDone) and event.step == 3:
            training.stop()
    steps = [event.step for event in found if isinstance(event, StepDone)]
    assert steps[:3] == [1, 2, 3]
    assert max(steps) < 5000
    assert (tmp_path / "run" / "0-consensus.pt").exists()
