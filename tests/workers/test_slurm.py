"""Batch files for SLURM: what they ask for, and a run on a real SLURM of one node where it is installed."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import psutil
import pytest

from napari_fmseg.cli import main as cli_main
from napari_fmseg.core.errors import InvalidRecipe
from napari_fmseg.core.volume import Geometry, Volume
from napari_fmseg.io import read_labels, write_volume
from napari_fmseg.workers.slurm import SlurmOptions, sbatch_text

ROOT = Path(__file__).parents[2]
SEGMENT = ["segment", "my scans", "--model", "one", "--output", "out"]
N = 40


def settings(text: str) -> dict[str, str]:
    """Return what a batch file asks SLURM for."""
    lines = [line.removeprefix("#SBATCH --") for line in text.splitlines() if line.startswith("#SBATCH --")]
    return dict(line.split("=", 1) for line in lines)


def test_eight_workers_with_a_card_each_are_eight_nodes_with_one():
    options = SlurmOptions(8, gres="gpu:1", time="12:00:00", mem="32G", cpus=6, partition="long", account="lab")
    asked = settings(sbatch_text(SEGMENT, options, "/share"))
    assert asked == {
        "job-name": "fmseg-segment", "nodes": "8", "ntasks-per-node": "1", "cpus-per-task": "6", "gres": "gpu:1",
        "time": "12:00:00", "mem": "32G", "partition": "long", "account": "lab", "output": "fmseg-segment-%j.log",
    }  # fmt: skip


def test_volumes_are_shared_out_by_a_scheduler_with_keys_and_what_is_done_is_left_alone():
    text = sbatch_text(SEGMENT, SlurmOptions(4, 2), "/share/my data", "/opt/py thon")
    assert "cd '/share/my data'" in text
    assert "python=('/opt/py thon')" in text
    assert "segment 'my scans' --model one --output out --resume" in text
    assert text.count("--protocol tls") == 2
    assert text.count("--no-dashboard") == 2
    assert "srun --ntasks=4 " in text
    assert sbatch_text([*SEGMENT, "--resume"], SlurmOptions(), "/").count("--resume") == 1
    assert "--resume" not in sbatch_text(["evaluate", "data"], SlurmOptions(), "/")


@pytest.mark.parametrize("command", ["train", "pretrain"])
def test_training_starts_one_torchrun_on_each_node(command):
    text = sbatch_text([command, "recipe.toml"], SlurmOptions(8, 4, gres="gpu:4", cpus=3), "/share")
    asked = settings(text)
    assert (asked["nodes"], asked["ntasks-per-node"], asked["cpus-per-task"]) == ("2", "1", "12")
    assert "srun --ntasks=2 " in text
    assert "-m torch.distributed.run" in text
    assert "--nnodes 2 --nproc-per-node 4" in text
    assert f"-m napari_fmseg {command} recipe.toml" in text
    assert "dask" not in text


def test_in_a_container_its_own_python_is_used():
    text = sbatch_text(SEGMENT, SlurmOptions(container="/images/fm seg.sif", gres="gpu:1"), "/share", "/opt/python")
    assert "python=(apptainer exec --nv --bind \"$PWD\" '/images/fm seg.sif' python)" in text
    assert "/opt/python" not in text


@pytest.mark.parametrize("options", [SlurmOptions(3), SlurmOptions(4, 2, container="a.sif")])
@pytest.mark.parametrize("command", [SEGMENT, ["train", "it's.toml"]])
def test_the_shell_reads_every_batch_file(options, command):
    done = subprocess.run(["bash", "-n"], input=sbatch_text(command, options, "/a b"), text=True, capture_output=True)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize(
    "wrong", [{"workers": 0}, {"workers": 3, "per_node": 2}, {"cpus": 0}, {"gres": "gpu:1\n#SBATCH --x"}, {"time": ""}]
)
def test_what_slurm_cannot_give_is_refused(wrong):
    with pytest.raises(InvalidRecipe):
        SlurmOptions(**wrong)


def run(*words: object) -> int:
    return cli_main.main([str(word) for word in words])


def test_the_command_writes_the_file_and_checks_the_words_first(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert run("cluster", "slurm", "scans", "--workers", 2, "--model", "one", "--output", "o", "--mem", "8G") == 0
    text = (tmp_path / "fmseg-segment.sbatch").read_text()
    assert "-m napari_fmseg segment scans --model one --output o --resume" in text
    assert settings(text)["mem"] == "8G"
    assert "sbatch fmseg-segment.sbatch" in capsys.readouterr().err
    assert run("cluster", "slurm", "train", "r.toml", "--file", "mine.sbatch") == 0
    assert (tmp_path / "mine.sbatch").exists()
    assert run("cluster", "slurm", "scans", "--output", "o") == 2  # no model
    assert run("cluster", "slurm", "scans", "--model", "m", "--output", "o", "--scheduler", "local:2") == 2
    assert run("cluster", "nothing") == 2
    assert run("cluster", "--help") == 0


def test_without_slurm_the_file_is_written_and_the_message_says_so(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert run("cluster", "slurm", "train", "r.toml", "--submit") == 1
    assert (tmp_path / "fmseg-train.sbatch").exists()
    assert "no sbatch on this machine" in capsys.readouterr().err


# --- a real SLURM of one node, as Debian's package slurm-wlm has it


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


def wait_until(holds: Callable[[], bool], seconds: float = 240) -> None:
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end, "it took too long"
        threading.Event().wait(0.2)


@pytest.fixture
def slurm(tmp_path, monkeypatch) -> Iterator[Path]:
    """Start a controller and a node, without authentication, in a folder of their own; give the folder."""
    missing = [name for name in ("slurmctld", "slurmd", "sbatch", "srun", "openssl") if shutil.which(name) is None]
    if missing:
        pytest.skip(f"needs SLURM (Debian: apt install slurm-wlm): {', '.join(missing)} not found")
    if not hasattr(os, "geteuid") or os.geteuid() != 0:
        pytest.skip("SLURM's daemons are started as root")
    pytest.importorskip("distributed")
    host = socket.gethostname().split(".")[0]
    for name in ("state", "spool"):
        (tmp_path / name).mkdir()
    (tmp_path / "slurm.conf").write_text(f"""
ClusterName=fmseg
SlurmctldHost={host}(127.0.0.1)
AuthType=auth/none
CredType=cred/none
SlurmUser=root
SlurmctldPort={free_port()}
SlurmdPort={free_port()}
StateSaveLocation={tmp_path}/state
SlurmdSpoolDir={tmp_path}/spool
SlurmctldPidFile={tmp_path}/slurmctld.pid
SlurmdPidFile={tmp_path}/slurmd.pid
SlurmctldLogFile={tmp_path}/slurmctld.log
SlurmdLogFile={tmp_path}/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
MpiDefault=none
ReturnToService=2
SlurmdParameters=config_overrides
NodeName={host} NodeAddr=127.0.0.1 CPUs=8 State=UNKNOWN
PartitionName=all Nodes=ALL Default=YES MaxTime=INFINITE State=UP
""")
    monkeypatch.setenv("SLURM_CONF", str(tmp_path / "slurm.conf"))
    with (
        subprocess.Popen(["slurmctld", "-D"], stderr=subprocess.DEVNULL) as controller,
        subprocess.Popen(["slurmd", "-D"], stderr=subprocess.DEVNULL) as node,
    ):
        try:
            wait_until(lambda: b"UP" in subprocess.run(["scontrol", "ping"], capture_output=True).stdout)
            yield tmp_path
        finally:
            node.terminate()
            controller.terminate()


def n_jobs() -> int:
    done = subprocess.run(["squeue", "-h"], capture_output=True, text=True, check=True)
    return len(done.stdout.splitlines())


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_forty_volumes_on_two_workers_of_a_real_slurm_of_which_one_is_killed(slurm, monkeypatch, save_tiny_model):
    monkeypatch.chdir(slurm)
    monkeypatch.setenv("FMSEG_HOME", str(slurm / "home"))
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    save_tiny_model(slurm / "home" / "models")
    for n in range(N):
        data = np.random.default_rng(n).normal(100, 30, (12, 14, 16)).astype(np.int16)
        write_volume(Volume(data, Geometry.from_spacing(data.shape, (2, 1, 1))), Path(f"scans/case{n:02d}.nii.gz"))
    words = ("scans", "--model", "tiny", "--device", "cpu")
    assert run("segment", *words, "--output", "single") == 0
    submit = ("cluster", "slurm", *words, "--output", "out", "--workers", 2, "--per-node", 2, "--cpus", 1, "--submit")
    assert run(*submit) == 0
    (log,) = (Path("fmseg-segment-1.log"),)
    wait_until(lambda: log.exists() and log.read_text().count("_seg.nii.gz") >= N // 2)
    nannies = [one for one in psutil.process_iter(["cmdline"])
               if {"distributed.cli.dask_worker", "--protocol"} <= set(one.info["cmdline"] or ())
               and any(str(slurm) in word for word in one.info["cmdline"])
               and "python" in Path(one.info["cmdline"][0]).name]  # fmt: skip
    workers = [child for nanny in nannies for child in nanny.children() if "spawn_main" in " ".join(child.cmdline())]
    assert len(workers) == 2
    workers[0].kill()
    wait_until(lambda: n_jobs() == 0)
    told = log.read_text()
    assert f"{N} of {N} volumes\n" in told, told
    for n in range(N):
        ours, single = (read_labels(Path(folder, f"case{n:02d}_seg.nii.gz")) for folder in ("out", "single"))
        np.testing.assert_array_equal(ours.data, single.data)
    before = {path.name: path.stat().st_mtime_ns for path in Path("out").iterdir()}
    assert len(before) == 2 * N
    subprocess.run(["sbatch", "--wait", "fmseg-segment.sbatch"], check=True, timeout=240)
    assert f"{N} of {N} volumes are done already" in Path("fmseg-segment-2.log").read_text()
    assert {path.name: path.stat().st_mtime_ns for path in Path("out").iterdir()} == before
    assert list(slurm.glob(".fmseg-*")) == []  # no keys are left
