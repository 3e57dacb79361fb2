"""What Teach proposes, trained for minutes of processor time: Dice on cases that chose nothing.

    python benchmarks/learning.py atrium --labels 1 2 4 8 16 --minutes 8 --seeds 3
    python benchmarks/learning.py atrium --labels 8 --minutes 30 --seeds 3
    python benchmarks/learning.py atrium --labels 8 --minutes 8 --seeds 3 --without-unlabelled
    python benchmarks/learning.py heart hippocampus head --labels 8 --minutes 8 --seeds 3

The recipe is that of `suggest_recipe`, which the Teach panel and ``fmseg project prepare`` use, but for its clock: a
minute is one of processor time of all threads, so that another program on the machine takes none of it. ``fmseg train``
runs it with one thread. The figures are those of the weights of the last step; the validation list chose nothing.
Every training is written to benchmarks/results at once, and the same command goes on where it was stopped.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import resource
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import budgeted
import numpy as np

from napari_fmseg.core.hardware import processor_name
from napari_fmseg.models.registry import find_card
from napari_fmseg.training.planner import suggest_recipe
from napari_fmseg.training.projects.prepare_run import write_recipe

SETS = {"atrium": "la_mr", "heart": "acdc", "hippocampus": "hippocampus", "head": "hn_ct"}
GROUPS = ("acdc_003", "acdc_023", "acdc_043", "acdc_063")
"""A patient of each of four groups, both time points: what is labelled of the heart."""


def listed(name: str, n: int, folder: Path, *, unlabelled: bool) -> Path:
    """Write a dataset.json that labels n training cases, evenly over the list, and lists the others without labels."""
    source = budgeted.SHARED / SETS[name]
    facts = json.loads((source / "dataset.json").read_text())

    def entry(case: dict[str, Any], *, labels: bool) -> dict[str, Any]:
        images = [case["image"]] if isinstance(case["image"], str) else case["image"]
        told = {"case": case["case"], "image": [str(source / image) for image in images]}
        return {**told, "label": str(source / case["label"])} if labels else told

    cases = facts["training"]
    chosen = {cases[i]["case"] for i in np.linspace(0, len(cases) - 1, min(n, len(cases))).round().astype(int)}
    if name == "heart":
        chosen = {case["case"] for case in cases if case["case"].startswith(GROUPS)}
    table = {
        "labels": facts["labels"],
        "channel_names": facts["channel_names"],
        "training": [entry(case, labels=True) for case in cases if case["case"] in chosen],
        "validation": [entry(case, labels=True) for case in facts["validation"]],
        "unlabelled": [entry(case, labels=False) for case in cases if case["case"] not in chosen] if unlabelled else [],
    }
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "dataset.json").write_text(json.dumps(table, indent=1))
    return folder


def run(name: str, n: int, seed: int, options: argparse.Namespace) -> dict[str, Any]:
    """Train once in a process of its own."""
    kind = "" if options.unlabelled else "-labelled-only"
    place = options.work / f"{name}-{n}-{options.minutes:g}min{kind}-seed{seed}"
    data = listed(name, n, place / "data", unlabelled=options.unlabelled)
    if not (place / "recipe.toml").exists():
        recipe = suggest_recipe(data, options.minutes, device="cpu", out=place / "run").recipe
        # The planned time without what reading takes from it: it is processor time of the training alone.
        share = options.minutes / sum(stage.minutes for stage in recipe.stages)
        stages = tuple(dataclasses.replace(stage, minutes=stage.minutes * share) for stage in recipe.stages)
        recipe = dataclasses.replace(recipe, stages=stages, clock="processor", seed=seed, validate_cases=2)
        write_recipe(recipe, place / "recipe.toml")
    start, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_CHILDREN)
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"}
    command = [sys.executable, "-m", "napari_fmseg", "train", str(place / "recipe.toml"), "--events"]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, env=environment)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    card = find_card(next((place / "run").glob("*.toml")))
    lines = [json.loads(line) for line in (place / "run" / "history.jsonl").read_text().splitlines()]
    steps = {line["stage"]: line["step"] for line in lines if "epoch" in line}
    return {
        "dice": dict(card.scores["labels"]),
        "steps": steps,
        "process_seconds": round(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime),
        "seconds": round(time.perf_counter() - start),
        "curve": [round(line["dice"], 4) for line in lines if "dice" in line],
    }


def main() -> None:
    """Train what is asked for and print means and spreads."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sets", nargs="+", choices=list(SETS))
    parser.add_argument("--labels", nargs="+", type=int, default=[8])
    parser.add_argument("--minutes", type=float, default=8.0)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--without-unlabelled", dest="unlabelled", action="store_false")
    parser.add_argument("--work", type=Path, default=Path("learning-runs"))
    parser.add_argument("--out", type=Path, default=budgeted.ROOT / "benchmarks" / "results" / "learning.json")
    options = parser.parse_args()
    table = json.loads(options.out.read_text()) if options.out.exists() else {"runs": {}}
    table["processor"] = processor_name()
    for name in options.sets:
        for n in options.labels:
            key = f"{name}, {n} labelled, {options.minutes:g} min" + ("" if options.unlabelled else ", labelled only")
            runs = table["runs"].setdefault(key, {})
            for seed in range(options.seeds):
                if str(seed) not in runs:
                    runs[str(seed)] = run(name, n, seed, options)
                    options.out.write_text(json.dumps(table, indent=1))
                print(f"{key}, seed {seed}: {runs[str(seed)]['dice']}", flush=True)
            means = [float(np.mean(list(done["dice"].values()))) for done in runs.values()]
            print(f"{key}: {np.mean(means):.3f} ({min(means):.3f} to {max(means):.3f})", flush=True)


if __name__ == "__main__":
    main()
