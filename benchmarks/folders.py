"""A folder of 200 small volumes: volumes per second with and without overlap of reading and writing, and memory.

``python benchmarks/folders.py [--volumes 200] [--block 20] [--shape 36 52 36] [--model hippocampus-mr]``

The volumes are made up: noise of the size of a cropped hippocampus MR, so that reading and writing weigh as much as
they ever do. Blocks of volumes are segmented in turns with and without overlap, in an order that changes, so that a
busy neighbour disturbs both alike; the median of the ratios of the pairs is kept. Then all of them go through one
`fmseg segment`, whose memory is looked at after the first ten and at the end.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from napari_fmseg.core.volume import Geometry, Volume
from napari_fmseg.evaluation.machine import machine_facts
from napari_fmseg.io import write_volume
from napari_fmseg.models.weights import Model, load_model
from napari_fmseg.nets.runtime.device import pick_device
from napari_fmseg.pipelines import SegmentOptions
from napari_fmseg.pipelines.batch import JobOptions, SegmentationJob, plan_jobs
from napari_fmseg.pipelines.folders.outcome import VolumeDone
from napari_fmseg.pipelines.folders.overlap import segment_jobs

SHAPE = (36, 52, 36)
EARLY = 10


def write_volumes(folder: Path, n: int, shape: tuple[int, int, int]) -> None:
    """Write `n` volumes of noise around a bright middle."""
    rng = np.random.default_rng(0)
    z, y, x = np.ogrid[-1 : 1 : shape[0] * 1j, -1 : 1 : shape[1] * 1j, -1 : 1 : shape[2] * 1j]
    middle = z**2 + y**2 + x**2 < 0.3
    for number in range(n):
        data = 60 * rng.standard_normal(shape, np.float32) + np.where(middle, np.float32(500), np.float32(200))
        volume = Volume(data.clip(0).astype(np.uint16), Geometry.from_spacing(shape, (1.0, 1.0, 1.0)))
        write_volume(volume, folder / f"case{number:04d}.nii.gz")


def seconds_of(jobs: list[SegmentationJob], model: Model, *, overlap: bool) -> float:
    """Segment some volumes and return the seconds."""
    options = JobOptions(SegmentOptions(device=str(model.device)))
    start = time.perf_counter()
    done = sum(isinstance(event, VolumeDone) for event in segment_jobs(jobs, model, options, overlap=overlap))
    assert done == len(jobs)
    return time.perf_counter() - start


def compare(jobs: list[SegmentationJob], model: Model, block: int) -> dict[str, Any]:
    """Segment the volumes in blocks, each with and without overlap."""
    seconds: dict[bool, list[float]] = {True: [], False: []}
    seconds_of(jobs[:block], model, overlap=True)  # warms up and does not count
    for number, start in enumerate(range(0, len(jobs), block)):
        for overlap in (True, False) if number % 2 else (False, True):
            seconds[overlap].append(seconds_of(jobs[start : start + block], model, overlap=overlap))
    ratios = [without / with_it for with_it, without in zip(seconds[True], seconds[False], strict=True)]
    return {
        "volumes_per_s_with_overlap": round(block / statistics.median(seconds[True]), 2),
        "volumes_per_s_without": round(block / statistics.median(seconds[False]), 2),
        "median_of_paired_ratios": round(statistics.median(ratios), 3),
        "paired_ratios": [round(ratio, 3) for ratio in ratios],
        "block": block,
    }


def memory_of_one_run(scans: Path, output: Path, model: str, device: str, n: int) -> dict[str, Any]:
    """Segment all of them with one command and look at its memory after the first ten and at the end."""
    words = ["segment", str(scans), "--model", model, "--output", str(output), "--device", device]
    command = [sys.executable, "-m", "napari_fmseg", *words]
    held = []
    start = time.perf_counter()
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        watched = psutil.Process(process.pid)
        assert process.stdout is not None
        for _ in range(n):
            assert process.stdout.readline()
            held.append(watched.memory_info().rss / 1e6)
        seconds = time.perf_counter() - start
    assert process.returncode == 0
    return {
        "mb_after_the_first_ten": round(held[EARLY - 1], 1),
        "mb_at_the_end": round(held[-1], 1),
        "ratio": round(held[-1] / held[EARLY - 1], 4),
        "mb_at_most": round(max(held), 1),
        "seconds_with_start": round(seconds, 1),
    }


def main() -> None:
    """Measure and write the figures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--volumes", type=int, default=200)
    parser.add_argument("--block", type=int, default=20)
    parser.add_argument("--shape", type=int, nargs=3, default=SHAPE, help="voxels along z, y, x")
    parser.add_argument("--model", default="hippocampus-mr")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "folders.json")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        scans, output = Path(place) / "scans", Path(place) / "masks"
        write_volumes(scans, args.volumes, tuple(args.shape))
        jobs = plan_jobs([scans], output)
        speed = compare(jobs, load_model(args.model, device=args.device), args.block)
        print(speed)
        shutil.rmtree(output)
        memory = memory_of_one_run(scans, output, args.model, args.device, args.volumes)
        print(memory)
    facts = {
        "machine": machine_facts(pick_device(args.device)),
        "model": args.model,
        "volumes": args.volumes,
        "shape_zyx": args.shape,
        "speed": speed,
        "memory_of_one_command": memory,
    }
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps(facts, indent=1) + "\n")


if __name__ == "__main__":
    main()
