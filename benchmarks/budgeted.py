"""What benchmarks share that train: results on disk after every training, and as many steps as a time allows."""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import json
import os
import statistics
import time
from pathlib import Path
from typing import Any

import torch

from napari_fmseg.core.events import EpochDone, StepDone, Warned
from napari_fmseg.evaluation.machine import machine_facts
from napari_fmseg.nets.runtime.device import pick_device
from napari_fmseg.training import Recipe, StageRecipe, train

ROOT = Path(__file__).parents[1]
SHARED = Path(os.environ.get("FMSEG_SHARED", ROOT.parent / "shared")) / "data"


class Results:
    """What is finished, in a file that is whole at any moment."""

    def __init__(self, path: Path, minutes: float) -> None:
        self.path = path
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.table: dict[str, Any] = {"runs": {}, "plans": {}}
        if self.path.exists():
            self.table = json.loads(self.path.read_text())
        self.table["machine"] = machine_facts(pick_device("auto"))
        self.table["minutes"] = minutes

    def save(self) -> None:
        """Write beside and rename."""
        beside = self.path.with_suffix(".part")
        beside.write_text(json.dumps(self.table, indent=1) + "\n")
        os.replace(beside, self.path)

    def planned(self, key: str, recipe: Recipe) -> Recipe:
        """Give a recipe of one stage the steps that fit into the time, measured once for `key` and kept."""
        if key not in self.table["plans"]:
            cost = seconds_per_step(recipe)
            self.table["plans"][key] = {
                "seconds_per_step": round(cost, 4),
                "steps": max(4, int(self.table["minutes"] * 60 / cost)),
            }
            self.save()
            print(f"{key}: {self.table['plans'][key]}", flush=True)
        steps = self.table["plans"][key]["steps"]
        stage = dataclasses.replace(recipe.stages[0], steps=steps, steps_per_epoch=-(-steps // 4))
        return dataclasses.replace(recipe, stages=(stage,))


def seconds_per_step(recipe: Recipe) -> float:
    """Train for a few steps, validating on nothing, and give the median time of one.

    On a CPU it is the time of the processor, shared by the threads, so that other work beside does not count.
    """
    on_gpu = torch.cuda.is_available() and recipe.device != "cpu"
    steps = 40 if on_gpu else 6
    stage: StageRecipe = dataclasses.replace(recipe.stages[0], steps=steps, steps_per_epoch=steps)
    trial = dataclasses.replace(
        recipe, stages=(stage,), training=recipe.training[:2], validation=(), out=recipe.out.with_name("timing")
    )
    marks = []
    for event in train(trial):
        if isinstance(event, StepDone):
            marks.append(time.perf_counter() if on_gpu else time.process_time() / torch.get_num_threads())
    for file in trial.out.iterdir():
        file.unlink()
    trial.out.rmdir()
    return statistics.median(b - a for a, b in itertools.pairwise(marks))


def trained(key: str, recipe: Recipe) -> dict[str, Any]:
    """Train to the end and tell how long that took; a training that was stopped goes on."""
    start, processor, epochs = time.perf_counter(), time.process_time(), []
    for event in train(recipe):
        if isinstance(event, EpochDone):
            epochs.append({"loss": round(event.loss, 5), **event.metrics})
            print(f"{key}: epoch {event.epoch}/{event.total} loss {event.loss:.3f}", flush=True)
        elif isinstance(event, Warned):
            print(f"{key}: {event.text}", flush=True)
    return {
        "steps": recipe.stages[0].steps,
        "seconds": round(time.perf_counter() - start, 1),
        "processor_seconds": round(time.process_time() - processor, 1),
        "epochs": epochs,
    }


def options_of(doc: str, name: str, minutes: float) -> argparse.ArgumentParser:
    """Make the parser with the options that all these benchmarks have."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=minutes, help="of one training")
    parser.add_argument("--check", type=int, default=0, help="measure on so many cases only, for a trial; 0 all")
    parser.add_argument("--cases", type=int, default=0, help="learn from so many cases only, for a trial; 0 all")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--work", type=Path, default=ROOT / "runs" / name)
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results")
    return parser
