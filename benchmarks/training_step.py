"""Steps per second of what Teach proposes, and where the time of a step goes.

    python -m benchmarks training_step [--data FOLDER] [--steps 12] [--rounds 3] [--threads 1]

The recipe is that of `suggest_recipe`, for phantoms or for the cases of a folder with a dataset.json; its first stage
is trained for some steps, without validation. Parts: *sampling* draws and augments (in a thread, one step ahead),
*forward* is the network with its loss, *backward* the gradient, *optimiser* the clipped step with the average of the
weights; *other* is what is left. Seconds of the processor are those of the thread that does the part; with one thread
they are all there is. *Waiting* is by the clock: how long a step waits for its samples, which another core draws
meanwhile. The first steps do not count.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import measuring
from lightning_fabric import Fabric

from napari_fmseg.core.events import StepDone
from napari_fmseg.core.processes import environment, peak_bytes
from napari_fmseg.datasets.nnunet_raw import cases_of
from napari_fmseg.datasets.phantom import phantom_ct
from napari_fmseg.io import write_labels, write_volume
from napari_fmseg.training import Recipe, stage_trainer, suggest_recipe, train
from napari_fmseg.training.optimisation import WeightAverage
from napari_fmseg.training.stage_trainer import StageTrainer

PARTS = ("sampling", "forward", "backward", "optimiser", "other")
WATCHED = (*PARTS, "waiting")
WARM_UP = 3
AHEAD = 2
"""Steps after those that count: the samples of the next step are drawn while a step is computed."""


class Spent:
    """Seconds of each part, by the clock and of the thread that did it."""

    def __init__(self) -> None:
        self.parts = {name: [0.0, 0.0] for name in WATCHED}

    @contextmanager
    def time(self, part: str) -> Iterator[None]:
        """Add what happens inside to a part."""
        wall, thread = time.perf_counter(), time.thread_time()
        try:
            yield
        finally:
            self.parts[part][0] += time.perf_counter() - wall
            self.parts[part][1] += time.thread_time() - thread

    def watch(self, function: Callable[..., Any], part: str) -> Callable[..., Any]:
        """Return a function whose calls are added to a part."""

        def call(*given: Any, **named: Any) -> Any:
            with self.time(part):
                return function(*given, **named)

        return call

    def take(self) -> dict[str, list[float]]:
        """Return what was added so far, and begin anew."""
        found, self.parts = self.parts, {name: [0.0, 0.0] for name in WATCHED}
        return found


def watch_training(spent: Spent) -> None:
    """Make the trainer add its time to the parts."""
    begin, draw_ahead, step = StageTrainer.__init__, StageTrainer._draw_ahead, stage_trainer.optimiser_step

    def begin_watched(own: Any, *given: Any, **named: Any) -> None:
        begin(own, *given, **named)
        own.task.sample = spent.watch(own.task.sample, "sampling")

    def draw_watched(*given: Any) -> Iterator[Any]:
        drawn = draw_ahead(*given)
        while True:
            with spent.time("waiting"):
                one = next(drawn, None)
            if one is None:
                return
            yield one

    def step_watched(*given: Any) -> bool:
        before = list(spent.parts["backward"])
        with spent.time("optimiser"):
            done = step(*given)
        for i in range(2):  # the gradient is computed inside
            spent.parts["optimiser"][i] -= spent.parts["backward"][i] - before[i]
        return done

    StageTrainer.__init__ = begin_watched  # type: ignore[method-assign]
    StageTrainer._draw_ahead = draw_watched  # type: ignore[method-assign]
    StageTrainer._loss = spent.watch(StageTrainer._loss, "forward")  # type: ignore[method-assign]
    Fabric.backward = spent.watch(Fabric.backward, "backward")  # type: ignore[method-assign]
    WeightAverage.update = spent.watch(WeightAverage.update, "optimiser")  # type: ignore[method-assign]
    stage_trainer.optimiser_step = step_watched


def write_phantoms(folder: Path, n: int, spacing: float) -> Path:
    """Write phantoms to learn from; they are the same in every run."""
    folder.mkdir()
    cases, names = [], {}
    for seed in range(n):
        volume, labels = phantom_ct(seed, spacing=(spacing,) * 3)
        write_volume(volume, folder / f"{seed}.nii.gz")
        write_labels(labels, folder / f"{seed}_labels.nii.gz")
        cases.append({"case": str(seed), "image": f"{seed}.nii.gz", "label": f"{seed}_labels.nii.gz"})
        names = {name: value for value, name in labels.names.items()}
    facts = {"labels": {"background": 0, **names}, "channel_names": {"0": "CT"}, "training": cases, "validation": []}
    (folder / "dataset.json").write_text(json.dumps(facts), encoding="utf-8")
    return folder


def recipe_for(data: Path, folder: Path, steps: int, device: str) -> Recipe:
    """Return what Teach proposes for a folder, cut to the first steps of its first stage."""
    names, training, _ = cases_of(data)
    labels = [name for name in names.values() if name != "ignore"]
    recipe = suggest_recipe(training, 5.0, device=device, labels=labels, out=folder / "run").recipe
    n = steps + WARM_UP + AHEAD
    stage = replace(recipe.stages[0], steps=n, steps_per_epoch=n, minutes=0.0)
    return replace(recipe, stages=(stage,), validation=(), unlabelled=())


def run_once(data: Path, folder: Path, steps: int, device: str) -> dict[str, Any]:
    """Train in this process."""
    measuring.be_like_the_command()
    recipe = recipe_for(data, folder, steps, device)
    spent = Spent()
    watch_training(spent)
    wall, processor, parts = 0.0, 0.0, spent.parts
    with_training = train(recipe)
    for event in with_training:
        if not isinstance(event, StepDone):
            continue
        if event.step == WARM_UP:
            spent.take()
            wall, processor = time.perf_counter(), time.process_time()
        elif event.step == WARM_UP + steps:
            wall, processor = time.perf_counter() - wall, time.process_time() - processor
            parts = spent.take()
            break
    with_training.close()
    parts["other"] = [0.0, max(0.0, processor - sum(seconds[1] for seconds in parts.values()))]
    stage = recipe.stages[0]
    return {
        "network": stage.network, "batch": stage.batch, "precision": recipe.precision,
        "grid": list(recipe.settings["consensus_grid"]), "steps": steps, "wall": wall, "processor": processor,
        "parts": parts, "peak_mb": peak_bytes() / 1e6, **measuring.gpu_peak_mb(),
    }  # fmt: skip


def measure(data: Path, folder: Path, settings: argparse.Namespace) -> dict[str, Any]:
    """Train again and again, each time in a new process."""
    runs = []
    variables = {"OMP_NUM_THREADS": str(settings.threads), "OMP_WAIT_POLICY": "PASSIVE"}
    for number in range(settings.rounds):
        words = ["--child", str(folder / str(number)), "--data", str(data), "--steps", str(settings.steps)]
        words += ["--device", str(settings.device)]
        done = subprocess.run(
            [sys.executable, __file__, *words], stdout=subprocess.PIPE, text=True, check=True,
            env={**environment(), **variables},
        )  # fmt: skip
        runs.append(json.loads(done.stdout.splitlines()[-1]))
    first, steps = runs[0], settings.steps
    per_part = {part: [run["parts"][part][1] / steps for run in runs] for part in PARTS}
    shares = [run["parts"]["sampling"][1] / run["processor"] for run in runs]
    waits = [run["parts"]["waiting"][0] / run["wall"] for run in runs]
    return {
        **{name: first[name] for name in ("network", "batch", "precision", "grid", "steps")},
        "steps_per_second": measuring.summarise([steps / run["wall"] for run in runs], 3),
        "steps_per_processor_second": measuring.summarise([steps / run["processor"] for run in runs], 3),
        "processor_seconds_per_step": {part: measuring.summarise(values, 5) for part, values in per_part.items()},
        "sampling_share": measuring.summarise(shares),
        "waiting_share": measuring.summarise(waits),
        "peak_mb": round(max(run["peak_mb"] for run in runs)),
        **{name: max(run[name] for run in runs) for name in first if name == "gpu_peak_mb"},
    }


def main() -> None:
    """Train on phantoms, or on the cases of a folder."""
    parser = measuring.parser_for(__doc__, "training_step", with_device=True)
    parser.add_argument("--data", type=Path, help="a folder with a dataset.json; phantoms without one")
    parser.add_argument("--cases", type=int, default=3, help="phantoms to learn from")
    parser.add_argument("--spacing", type=float, default=3.0, help="mm between the voxels of a phantom")
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--child", type=Path, help=argparse.SUPPRESS)
    settings = parser.parse_args()
    if settings.child:
        sys.stdout.write(
            json.dumps(run_once(settings.data, settings.child, settings.steps, str(settings.device))) + "\n"
        )
        return
    with tempfile.TemporaryDirectory(prefix="fmseg-training-") as place:
        folder = Path(place)
        data = settings.data or write_phantoms(folder / "phantoms", settings.cases, settings.spacing)
        found = measure(data, folder, settings)
    for part in PARTS:
        sys.stdout.write(f"{part:10} {found['processor_seconds_per_step'][part]['median']:8.4f} s of the processor\n")
    rate, share = found["steps_per_processor_second"]["median"], 100 * found["sampling_share"]["median"]
    wait = 100 * found["waiting_share"]["median"]
    sys.stdout.write(f"{rate:.2f} steps per second of the processor, sampling {share:.1f} % of it\n")
    sys.stdout.write(f"waiting for samples: {wait:.1f} % of the time by the clock\n")
    measuring.keep(settings.out, "training_step", settings, {"data": "phantoms" if not settings.data else data.name,
                                                            "training": found})  # fmt: skip


if __name__ == "__main__":
    main()
