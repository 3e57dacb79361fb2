"""From the file of a large CT to the file of its mask, in parts.

    python -m benchmarks file_to_mask [--shape 200 512 512] [--models efficient-phantom-ct fmsf-phantom-ct] [--rounds 3]

The CT is a phantom. Parts: *reading*; *inputs*, everything before and between the networks (cropping, resizing,
normalising, components); *networks*; *labels* on the CT's own grid; *writing*. Every run is a process of its own with
the settings of `fmseg segment`, after one small volume that warms it up. The share of everything but the networks is
that of the processor's time, which other programs disturb least.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import measuring
import torch
from coarse_fine_cpu import large_ct

from napari_fmseg.core.events import StageResult, drain
from napari_fmseg.core.processes import environment, peak_bytes
from napari_fmseg.core.volume import LabelMap
from napari_fmseg.datasets.phantom import phantom_ct
from napari_fmseg.io import read_volume, write_labels, write_volume
from napari_fmseg.models.registry import find_card
from napari_fmseg.models.weights import load_model
from napari_fmseg.pipelines import SegmentOptions, segment
from napari_fmseg.pipelines.executor import InferenceRunner

PARTS = ("reading", "inputs", "networks", "labels", "writing")


class Clock:
    """Adds up seconds by the clock and of the processor, by part."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self.parts = {name: [0.0, 0.0] for name in PARTS}
        self._last = time.perf_counter(), time.process_time()

    def note(self, part: str) -> None:
        """Add what has passed since the last note to a part; a graphics card ends what it was asked to first."""
        measuring.wait_for(self._device)
        now = time.perf_counter(), time.process_time()
        for i in range(2):
            self.parts[part][i] += now[i] - self._last[i]
        self._last = now


def watch_networks(clock: Clock) -> None:
    """Make every call of a network note its time; what a network streams into is not its own."""
    attempt, stream = InferenceRunner.attempt, InferenceRunner.stream

    def timed_attempt(own: Any, net: Any, *inputs: Any) -> Any:
        clock.note("inputs")
        out = attempt(own, net, *inputs)
        clock.note("networks")
        return out

    def timed_stream(own: Any, net: Any, x: Any, take: Callable[..., None]) -> None:
        def timed_take(*given: Any) -> None:
            clock.note("networks")
            take(*given)
            clock.note("labels")

        clock.note("inputs")
        stream(own, net, x, timed_take)
        clock.note("networks")

    InferenceRunner.attempt = timed_attempt  # type: ignore[method-assign]
    InferenceRunner.stream = timed_stream  # type: ignore[method-assign]


def run_once(path: Path, model_name: str, result: Path, device: torch.device) -> dict[str, Any]:
    """Segment one file into another in this process."""
    measuring.be_like_the_command()
    model, options = load_model(find_card(model_name), device=str(device)), SegmentOptions(device=str(device))
    small = write_volume(phantom_ct(1, spacing=(24.0, 24.0, 24.0))[0], result.with_name("small.nii.gz"))
    write_labels(drain(segment(read_volume(small), model, options)), result)
    base = peak_bytes()
    clock = Clock(device)
    watch_networks(clock)
    clock.note("reading")
    clock.parts["reading"] = [0.0, 0.0]
    volume = read_volume(path)
    clock.note("reading")
    labels: Any = None
    for event in segment(volume, model, options):
        if isinstance(event, StageResult):
            clock.note("labels" if event.stage == "labels" else "inputs")
            labels = event.output if isinstance(event.output, LabelMap) else labels
    write_labels(labels, result, source=volume)
    clock.note("writing")
    return {"parts": clock.parts, "base_mb": base / 1e6, "peak_mb": peak_bytes() / 1e6, **measuring.gpu_peak_mb()}


def measure(model: str, path: Path, result: Path, rounds: int, device: torch.device) -> dict[str, Any]:
    """Run again and again, each time in a new process."""
    runs = []
    for _ in range(rounds):
        words = [sys.executable, __file__, "--child", str(path), "--models", model, "--result", str(result)]
        words += ["--device", str(device)]
        variables = {**environment(), **measuring.COMMANDS_VARIABLES}
        done = subprocess.run(words, stdout=subprocess.PIPE, text=True, check=True, env=variables)
        runs.append(json.loads(done.stdout.splitlines()[-1]))
    totals = [sum(parts[1] for parts in run["parts"].values()) for run in runs]
    shares = [1 - run["parts"]["networks"][1] / total for run, total in zip(runs, totals, strict=True)]
    return {
        "seconds": {part: measuring.summarise([run["parts"][part][0] for run in runs]) for part in PARTS},
        "processor_seconds": {part: measuring.summarise([run["parts"][part][1] for run in runs]) for part in PARTS},
        "share_beside_networks": measuring.summarise(shares),
        "base_mb": round(min(run["base_mb"] for run in runs)),
        "peak_mb": round(max(run["peak_mb"] for run in runs)),
        **{name: max(run[name] for run in runs) for name in runs[0] if name == "gpu_peak_mb"},
    }


def main() -> None:
    """Write the CT, segment it with one model after the other."""
    parser = measuring.parser_for(__doc__, "file_to_mask", with_device=True)
    parser.add_argument("--shape", type=int, nargs=3, default=(200, 512, 512))
    parser.add_argument("--models", nargs="+", default=["efficient-phantom-ct", "fmsf-phantom-ct"])
    parser.add_argument("--child", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--result", type=Path, help=argparse.SUPPRESS)
    settings = parser.parse_args()
    if settings.child:
        sys.stdout.write(
            json.dumps(run_once(settings.child, settings.models[0], settings.result, settings.device)) + "\n"
        )
        return
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory(prefix="fmseg-file-to-mask-") as folder:
        z, y, x = settings.shape
        path = write_volume(large_ct((z, y, x)), Path(folder) / "ct.nii.gz")
        for model in settings.models:
            found[model] = measure(model, path, Path(folder) / "mask.nii.gz", settings.rounds, settings.device)
            row = found[model]
            told = ", ".join(f"{part} {row['processor_seconds'][part]['median']:.2f}" for part in PARTS)
            share = 100 * row["share_beside_networks"]["median"]
            sys.stdout.write(f"{model}: processor seconds: {told}; {share:.0f} % beside the networks\n")
            measuring.keep(settings.out, "file_to_mask", settings, {"models": found})


if __name__ == "__main__":
    main()
