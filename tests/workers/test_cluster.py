"""Work shared out by dask.distributed: nothing is lost with a worker, results are those of one process."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import psutil
import pytest

from napari_fmseg.cli import main as cli_main
from napari_fmseg.core.errors import FmsegError, MissingExtra
from napari_fmseg.core.volume import Geometry, Volume
from napari_fmseg.evaluation.evaluate import read_evaluation
from napari_fmseg.io import read_labels, write_labels, write_volume
from napari_fmseg.workers.cluster import Answer, Workers, connect

distributed = pytest.importorskip("distributed")

ROOT = Path(__file__).parents[2]
N = 40


def run(*words: object) -> int:
    return cli_main.main([str(word) for word in words])


@pytest.fixture(scope="module")
def scans(tmp_path_factory, save_tiny_model) -> Path:
    """Forty small volumes, and their masks by one process in the folder "single"."""
    top = tmp_path_factory.mktemp("cluster")
    save_tiny_model(top / "home" / "models")
    for n in range(N):
        data = np.random.default_rng(n).normal(100, 30, (12, 14, 16)).astype(np.int16)
        geometry = Geometry.from_spacing(data.shape, (2, 1, 1))
        write_volume(Volume(data, geometry), top / "scans" / f"case{n:02d}.nii.gz")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FMSEG_HOME", str(top / "home"))
        words = ("--model", "tiny", "--device", "cpu", "--output", top / "single")
        assert run("segment", top / "scans", *words) == 0
    return top / "scans"


@pytest.fixture
def home(scans, monkeypatch):
    monkeypatch.setenv("FMSEG_HOME", str(scans.parent / "home"))
    return scans.parent


def start(folder: Path, *words: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "napari_fmseg", *words], cwd=folder, text=True, stdout=subprocess.PIPE,
        stderr=subprocess.PIPE, env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
    )  # fmt: skip


def test_forty_volumes_on_two_workers_of_which_one_is_killed_half_way(home):
    words = ("segment", "scans", "--model", "tiny", "--device", "cpu", "--output", "out", "--scheduler", "local:2")
    with start(home, *words) as process:
        assert process.stdout is not None
        lines = [process.stdout.readline() for _ in range(N // 2)]
        workers = [child for child in psutil.Process(process.pid).children(recursive=True)
                   if any("spawn_main" in word for word in child.cmdline())]  # fmt: skip
        assert len(workers) == 2
        workers[0].send_signal(signal.SIGKILL)
        rest, told = process.communicate(timeout=240)
        lines += rest.splitlines()
    assert process.returncode == 0, told
    assert len(lines) == N
    assert f"{N} of {N} volumes\n" in told
    for n in range(N):
        name = f"case{n:02d}_seg.nii.gz"
        ours, single = (read_labels(home / folder / name) for folder in ("out", "single"))
        np.testing.assert_array_equal(ours.data, single.data)
        assert 0 < np.count_nonzero(ours.data) < ours.data.size
    assert len(list((home / "out").iterdir())) == 2 * N  # a mask and a manifest for each, and nothing half
    before = {path.name: path.stat().st_mtime_ns for path in (home / "out").iterdir()}
    assert run(*(home / word if word in ("scans", "out") else word for word in words), "--resume") == 0
    assert {path.name: path.stat().st_mtime_ns for path in (home / "out").iterdir()} == before


# --- with workers that are threads of this process


@pytest.fixture
def workers() -> Iterator[Workers]:
    with (
        distributed.LocalCluster(
            n_workers=2, threads_per_worker=1, processes=False, dashboard_address=None, protocol="inproc://"
        ) as cluster,
        distributed.Client(cluster, set_as_default=False) as client,
    ):
        yield Workers(client, "test")


def answer_by_place(item: Mapping[str, Any]) -> dict[str, Any]:
    """Fail on the first worker, whichever it is, and say where it was done."""
    here = distributed.get_worker().address
    bad = sorted(item["workers"])[0]
    if here == bad or item["always"]:
        return {"error": "X", "cause": "", "fix": "", "exit_code": item["exit_code"], "worker": here}
    return {"done_on": here}


def answers(workers: Workers, items: list[dict[str, Any]]) -> dict[int, Mapping[str, Any]]:
    everything = {"workers": workers.addresses(), "always": False, "exit_code": 3}
    found = list(workers.run(answer_by_place, [{**everything, **item} for item in items]))
    assert all(isinstance(answer, Answer) for answer in found)
    assert sorted(answer.number for answer in found) == list(range(len(items)))
    return {answer.number: answer.values for answer in found}


def test_a_fault_of_the_machine_is_tried_on_another_worker(workers):
    good = sorted(workers.addresses())[1]
    assert all(values == {"done_on": good} for values in answers(workers, [{}] * 6).values())


def test_a_fault_of_the_input_is_reported_at_once_and_one_of_all_machines_at_last(workers):
    found = answers(workers, [{"exit_code": 1, "always": True}, {"always": True}])
    assert [found[n]["exit_code"] for n in range(2)] == [1, 3]


def fail(_: Mapping[str, Any]) -> dict[str, Any]:
    raise ZeroDivisionError("a defect")


def test_a_defect_on_a_worker_ends_the_run(workers):
    with pytest.raises(ZeroDivisionError):
        list(workers.run(fail, [{}]))


def test_no_item_is_no_work(workers):
    assert list(workers.run(fail, [])) == []


@pytest.fixture
def connected(workers, monkeypatch):
    """Make the commands find these workers, whatever scheduler they name."""
    monkeypatch.setattr("napari_fmseg.workers.cluster.connect", lambda _: contextlib.nullcontext(workers))


def test_an_evaluation_on_workers_has_the_scores_of_one_process(home, connected, tmp_path):
    for n in range(4):
        name = f"case{n:02d}"
        (tmp_path / "data" / "images").mkdir(parents=True, exist_ok=True)
        (tmp_path / "data" / "images" / f"{name}.nii.gz").write_bytes((home / "scans" / f"{name}.nii.gz").read_bytes())
        labels = read_labels(home / "single" / f"{name}_seg.nii.gz")
        labels.data[:, :n] = 0
        write_labels(labels, tmp_path / "data" / "labels" / f"{name}.nii.gz")
    (tmp_path / "data" / "images" / "case03.nii.gz").write_bytes(b"\x1f\x8b rubbish")
    words = ("evaluate", tmp_path / "data", "--model", "tiny", "--device", "cpu", "--part", "all", "--keep-labels")
    for folder, more in (("here", ()), ("there", ("--scheduler", "tcp://somewhere:1"))):
        assert run(*words, "--output", tmp_path / folder, *more) == 1
    here, there = (read_evaluation(tmp_path / folder / "evaluation.json") for folder in ("here", "there"))
    assert [case.case for case in there.cases] == [case.case for case in here.cases]
    assert [case.scores for case in there.cases[:3]] == [case.scores for case in here.cases[:3]]
    assert there.cases[0].mean("dice") == 1 > there.cases[2].mean("dice") > 0
    assert "case03.nii.gz" in there.cases[3].problem
    assert (tmp_path / "there" / "labels" / "case02.nii.gz").exists()


def test_volumes_for_pretraining_are_decoded_by_workers(home, connected, tmp_path, capsys):
    words = ("pretrain", home / "scans", "--output", tmp_path / "run", "--network", "unet3d", "--device", "cpu",
             "--steps", 1, "--patch", 16, 16, 16, "--scheduler", "tcp://somewhere:1", "--events")  # fmt: skip
    assert run(*words) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    decoded = [line["done"] for line in lines if line.get("stage") == "decoding"]
    assert decoded == list(range(1, N + 1))
    assert len(list((tmp_path / "run" / "volumes").glob("*.npy"))) == N


@pytest.mark.parametrize("scheduler", ["local:0", "local:", "local:two", "somewhere", "http://host:1"])
def test_a_scheduler_that_makes_no_sense_is_refused(scheduler):
    with pytest.raises(FmsegError, match="local:N"), connect(scheduler):
        pass


def test_a_missing_scheduler_file_is_named(tmp_path):
    with pytest.raises(FmsegError, match=r"There is no .*scheduler\.json"), connect(str(tmp_path / "scheduler.json")):
        pass


def test_without_dask_the_message_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "distributed", None)
    with pytest.raises(MissingExtra, match=r"napari-fmseg\[cluster\]"), connect("local:2"):
        pass


class Ended:
    """A future whose result is an exception."""

    def __init__(self, error: Exception) -> None:
        self.error, self.released = error, False

    def result(self, timeout: float) -> None:
        raise self.error

    def release(self) -> None:
        self.released = True


def test_a_volume_with_which_several_workers_died_is_given_up_with_a_reason(workers):
    worker = SimpleNamespace(address="tcp://10.0.0.3:4")
    future = Ended(distributed.KilledWorker("fmseg-1", worker, 3))
    values = workers._values(future)
    assert (values["error"], values["exit_code"]) == ("DeviceMemory", 3)
    assert "4 workers ended" in values["cause"]
    assert "10.0.0.3" in values["cause"]


def test_an_answer_that_was_lost_with_its_worker_is_waited_for_again(workers):
    future = Ended(TimeoutError())
    assert workers._values(future) is None
    assert not future.released


@pytest.mark.parametrize("error", [distributed.CancelledError(), OSError("closed")])
def test_a_scheduler_that_is_gone_is_named_with_what_to_do(workers, error):
    with pytest.raises(FmsegError, match=r"scheduler test is gone.*--resume"):
        workers._values(Ended(error))
