"""Two processes that pretrain together give what one gives, and only the first of them tells and writes."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tomli_w
import torch
from scipy import ndimage

from napari_fmseg.core.events import EpochDone, Saved, StepDone, from_json
from napari_fmseg.core.processes import environment, is_rank_zero
from napari_fmseg.core.volume import Geometry, Volume
from napari_fmseg.io import write_volume
from napari_fmseg.training.distributed import all_reduce_sum, broadcast_ints, make_fabric
from napari_fmseg.training.losses.logits import dice_of_logits


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    top = tmp_path_factory.mktemp("volumes")
    for i in range(4):
        noise = np.random.default_rng(i).normal(size=(20, 24, 22 + i))
        data = ndimage.gaussian_filter(noise, 2).astype(np.float32)
        write_volume(Volume(data, Geometry.from_spacing(data.shape, (2.0, 1.0, 1.0))), top / f"{i}.nii")
    return top


def start(folder: Path, out: Path, *words: str, steps: int = 4) -> subprocess.Popen:
    table = {
        "name": "small", "volumes": str(folder), "out": str(out), "steps": steps, "steps_per_epoch": 2, "batch": 2,
        "kwargs": {"widths": [4, 4, 4, 4, 4], "dropout": 0.0}, "validate_samples": 2, "device": "cpu",
        "lr": 1e-5,  # Adam makes large steps of gradients that are noise around 0; they shall not matter
        "fusion": {"patch": [32, 32, 32], "classes": 2, "block": [[4, 4, 4], [8, 8, 8]]},
    }  # fmt: skip
    path = out.with_suffix(".toml")
    path.write_text(tomli_w.dumps(table))
    return subprocess.Popen(
        [sys.executable, "-m", "napari_fmseg", "pretrain", str(path), "--events", *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**environment(), "OMP_NUM_THREADS": "1"},
    )


def finished(process: subprocess.Popen) -> list:
    out, told = process.communicate(timeout=240)
    assert process.returncode == 0, told
    return [from_json(line) for line in out.splitlines()]  # every line: nothing else may be printed


def gradients(out: Path) -> torch.Tensor:
    state = torch.load(out / "checkpoint.pt", weights_only=True)["optimiser"]["state"]
    return torch.cat([state[i]["exp_avg"].flatten() for i in sorted(state)])


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_two_processes_learn_what_one_learns_from_the_same_batches(folder, tmp_path):
    one = finished(start(folder, tmp_path / "one"))
    two = finished(start(folder, tmp_path / "two", "--devices", "2"))
    curves = [[e.loss for e in events if isinstance(e, StepDone)] for events in (one, two)]
    assert len(curves[0]) == len(curves[1]) == 4  # told once, not by each
    np.testing.assert_allclose(*curves, rtol=1e-5)
    held = [[e.metrics["loss"] for e in events if isinstance(e, EpochDone)] for events in (one, two)]
    np.testing.assert_allclose(*held, rtol=1e-5)
    # Adam's first moment is a mean of the gradients so far: those of the whole batch, whoever computed them.
    # Noise of 1e-7 in the image alone changes this network's gradient by 4e-4 of its length; four steps add up.
    mine, others = (gradients(tmp_path / name) for name in ("one", "two"))
    assert float((others - mine).norm()) < 1e-2 * float(mine.norm())
    assert [e.path.name for e in two if isinstance(e, Saved)] == ["checkpoint.pt", "checkpoint.pt", "small.toml"]
    lines = (tmp_path / "two" / "history.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [1, 2, 2, 3, 4, 4]


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_two_processes_stop_together_when_asked_and_one_goes_on_alone(folder, tmp_path):
    process = start(folder, tmp_path / "run", "--devices", "2", steps=100_000)
    for line in process.stdout:
        event = from_json(line)
        if isinstance(event, StepDone) and event.step == 4:
            break
    os.kill(process.pid, signal.SIGTERM)
    _, told = process.communicate(timeout=120)
    assert process.returncode == 130, told
    assert "Traceback" not in told
    assert "defect" not in told
    state = torch.load(tmp_path / "run" / "checkpoint.pt", weights_only=True)["state"]
    assert state["step"] >= 4
    alone = start(folder, tmp_path / "run", steps=100_000)
    first = next(e for e in map(from_json, alone.stdout) if isinstance(e, StepDone))
    alone.kill()
    alone.communicate()
    assert first.step == state["step"] + 1


@pytest.mark.parametrize(
    ("facts", "first"),
    [
        ({}, True),
        ({"LOCAL_RANK": "0"}, True),
        ({"LOCAL_RANK": "1"}, False),
        ({"RANK": "2", "LOCAL_RANK": "0"}, False),
        ({"RANK": "0", "LOCAL_RANK": "0"}, True),
        ({"NODE_RANK": "1", "LOCAL_RANK": "0"}, False),
    ],
)
def test_the_first_process_leads(facts, first, monkeypatch):
    for name in ("RANK", "LOCAL_RANK", "NODE_RANK"):
        monkeypatch.delenv(name, raising=False)
    for name, value in facts.items():
        monkeypatch.setenv(name, value)
    assert is_rank_zero() is first


def test_one_process_agrees_with_itself():
    fabric = make_fabric("cpu", "float32")
    own = torch.rand(3, requires_grad=True)
    assert all_reduce_sum(fabric, own) is own
    assert broadcast_ints(fabric, 1, 0, 7) == [1, 0, 7]


def test_means_of_gradients_of_parts_are_the_gradient_of_the_whole_batch():
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 3, 4, 4, 4, generator=generator)
    labels = torch.randint(3, (2, 4, 4, 4), generator=generator)
    target = torch.nn.functional.one_hot(labels, 3).movedim(-1, 1).float()
    whole = logits.clone().requires_grad_()
    dice_of_logits(whole, target).backward()
    p = logits.softmax(1)
    others = [torch.stack([(v[i : i + 1]).sum((0, 2, 3, 4)) for v in (p * target, p, target)]) for i in (1, 0)]
    for i in range(2):  # two processes, each knowing only the other one's sums
        part = logits[i : i + 1].clone().requires_grad_()
        loss = dice_of_logits(part, target[i : i + 1], summed=lambda own, i=i: own + others[i] + (own - own.detach()))
        loss.backward()
        torch.testing.assert_close(part.grad / 2, whole.grad[i : i + 1])
        torch.testing.assert_close(loss, dice_of_logits(logits, target))


def test_a_task_of_a_slurm_job_trains_alone_unless_torchrun_has_started_it(tmp_path, monkeypatch):
    srun = tmp_path / "srun"
    srun.write_text("#!/bin/sh\n")
    srun.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    assert make_fabric("cpu", "float32").world_size == 1  # and warns of nothing
    for name, value in {"JOB_ID": 7, "JOB_NAME": "fmseg", "NTASKS": 4, "PROCID": 2, "LOCALID": 2, "NODEID": 0}.items():
        monkeypatch.setenv(f"SLURM_{name}", str(value))
    alone = make_fabric("cpu", "float32")
    assert (alone.world_size, alone.global_rank) == (1, 0)
