"""What Teach proposes, trained for minutes of processor time: Dice on cases that chose nothing.

    python benchmarks/learning.py atrium --labels 1 2 4 8 16 --minutes 8 --seeds 3
    python benchmarks/learning.py atrium --labels 8 --minutes 30 --seeds 3
    python benchmarks/learning.py atrium --labels 8 --minutes 8 --seeds 3 --without-unlabelled
    python benchmarks/learning.py heart hippocampus head --labels 8 --minutes 8 --seeds 3
    python benchmarks/learning.py atrium heart hippocampus --minutes 5 --seeds 1 --threads 2
    python benchmarks/learning.py atrium hippocampus --seeds 1 --without-unlabelled --network monai-dynunet
    python benchmarks/learning.py heart --minutes 4 --seeds 1 --develop
    python benchmarks/learning.py phantoms --minutes 5 --seeds 1 --threads 4 --device cuda

The recipe is that of `suggest_recipe`, which the Teach panel and ``fmseg project prepare`` use, but for its clock: a
minute is one of processor time of all threads, so that another program on the machine takes none of it. ``fmseg train``
runs it with one thread. With ``--threads`` it goes by the clock instead, as in the panel, and ``seconds`` tells whether
the minutes are kept. The figures are those of the weights of the last step; the validation list chose nothing.
``--develop`` measures on training cases that are not learned from: to compare recipes before one of them is published.
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
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import budgeted
import numpy as np
from training_step import write_phantoms

from napari_fmseg.core.hardware import processor_name
from napari_fmseg.models.registry import find_card
from napari_fmseg.training import Recipe
from napari_fmseg.training.planner import suggest_recipe
from napari_fmseg.training.projects.prepare_run import write_recipe

SETS = {"atrium": "la_mr", "heart": "acdc", "hippocampus": "hippocampus", "head": "hn_ct", "phantoms": ""}
"""Where the real data lie; phantoms are written first, and need none."""
GROUPS = ("acdc_003", "acdc_023", "acdc_043", "acdc_063")
"""A patient of each of four groups, both time points: what is labelled of the heart."""


PEERS: dict[str, dict[str, Any]] = {
    "fastunet": {},
    "snet": {"width": 16},
    "monai-dynunet": {"channels": (16, 32, 64, 128)},
    "monai-segresnet": {"width": 8},
}
"""Networks of like size that ``--network`` trains in the same way, on the same grid: what the earlier Teach began with,
and MONAI's."""

PHANTOMS, PHANTOM_MM = 16, 3.0

DEVELOP = 10
"""Training cases that measure with ``--develop``."""


def listed(
    name: str, n: int, folder: Path, *, unlabelled: bool = True, develop: bool = False, only: Sequence[str] = ()
) -> Path:
    """Write a dataset.json that labels n training cases, and lists the others without labels.

    They are `only`, or evenly over the list; `develop` lets some of the others measure, and not the validation list.
    """
    source = budgeted.SHARED / SETS[name] if SETS[name] else phantoms_in(folder.parent / "phantoms")
    facts = json.loads((source / "dataset.json").read_text())

    def entry(case: dict[str, Any], *, labels: bool) -> dict[str, Any]:
        images = [case["image"]] if isinstance(case["image"], str) else case["image"]
        told = {"case": case["case"], "image": [str(source / image) for image in images]}
        return {**told, "label": str(source / case["label"])} if labels else told

    cases = facts["training"]
    chosen = {cases[i]["case"] for i in np.linspace(0, len(cases) - 1, min(n, len(cases))).round().astype(int)}
    if only:
        chosen = set(only)
    elif name == "heart":
        chosen = {case["case"] for case in cases if case["case"].startswith(GROUPS)}
    others, held = [case for case in cases if case["case"] not in chosen], facts["validation"]
    if develop:
        held = [others[i] for i in np.linspace(0, len(others) - 1, DEVELOP).round().astype(int)]
        patients = {case["case"][:8] for case in held}
        others = [case for case in others if case["case"][:8] not in patients]
    table = {
        "labels": facts["labels"],
        "channel_names": facts["channel_names"],
        "training": [entry(case, labels=True) for case in cases if case["case"] in chosen],
        "validation": [entry(case, labels=True) for case in held],
        "unlabelled": [entry(case, labels=False) for case in others] if unlabelled else [],
    }
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "dataset.json").write_text(json.dumps(table, indent=1))
    return folder


def phantoms_in(folder: Path) -> Path:
    """Write phantoms where there are none yet, an eighth of them to measure on; the same in every run."""
    if (folder / "dataset.json").exists():
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    write_phantoms(folder, PHANTOMS, PHANTOM_MM)
    facts = json.loads((folder / "dataset.json").read_text())
    n = PHANTOMS // 8
    facts["training"], facts["validation"] = facts["training"][:-n], facts["training"][-n:]
    (folder / "dataset.json").write_text(json.dumps(facts))
    return folder


def run(name: str, n: int, seed: int, options: argparse.Namespace) -> dict[str, Any]:
    """Write a recipe and train it."""
    place = options.work / f"{name}-{n}-{options.minutes:g}min{kind_of(options).replace(' ', '-')}-seed{seed}"
    data = listed(name, n, place / "data", unlabelled=options.unlabelled, develop=options.develop)
    if not (place / "recipe.toml").exists():
        recipe = suggest_recipe(data, options.minutes, device=options.device, out=place / "run").recipe
        if not options.threads:
            recipe = on_processor_time(recipe, options.minutes)
        if options.network:
            recipe = with_network(recipe, options.network)
        looks = 0 if options.network else 2  # the curve beside peers is that of all cases
        write_recipe(dataclasses.replace(recipe, seed=seed, validate_cases=looks), place / "recipe.toml")
    return train_apart(place / "recipe.toml", place / "run", options.threads or 1)


def with_network(recipe: Recipe, name: str) -> Recipe:
    """Put another network in the place of that of the first and only stage, on a grid that each of them takes."""
    (stage,) = recipe.stages
    kwargs = PEERS[name] if name != "fastunet" else dict(stage.kwargs)
    grid = [round(n / 8) * 8 for n in recipe.settings["consensus_grid"]]
    stage = dataclasses.replace(stage, network=name, kwargs=kwargs)
    return dataclasses.replace(recipe, stages=(stage,), settings={**recipe.settings, "consensus_grid": grid})


def kind_of(options: argparse.Namespace) -> str:
    """Return what sets a run apart from the plain one."""
    parts = ["" if options.unlabelled else ", labelled only", ", development" if options.develop else ""]
    parts.append(f", {options.network}" if options.network else "")
    return "".join(parts) + (f", {options.threads} threads by the clock" if options.threads else "")


def on_processor_time(recipe: Recipe, minutes: float) -> Recipe:
    """Return the recipe with the planned minutes, nothing taken off for reading, as processor time."""
    share = minutes / sum(stage.minutes for stage in recipe.stages)
    stages = tuple(dataclasses.replace(stage, minutes=stage.minutes * share) for stage in recipe.stages)
    return dataclasses.replace(recipe, stages=stages, clock="processor")


def train_apart(recipe: Path, out: Path, threads: int = 1) -> dict[str, Any]:
    """Train once with ``fmseg train``, in a process of its own; return its figures."""
    start, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_CHILDREN)
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "OMP_WAIT_POLICY": "PASSIVE"}
    command = [sys.executable, "-m", "napari_fmseg", "train", str(recipe), "--events"]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, env=environment)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    card = find_card(next(out.glob("*.toml")))
    lines = [json.loads(line) for line in (out / "history.jsonl").read_text().splitlines()]
    return {
        "dice": dict(card.scores["labels"]),
        "steps": {line["stage"]: line["step"] for line in lines if "epoch" in line},
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
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=0, help="train by the clock, with so many threads")
    parser.add_argument("--network", choices=list(PEERS), help="another network, trained in the same way")
    parser.add_argument("--develop", action="store_true", help="measure on training cases that are not learned from")
    parser.add_argument("--work", type=Path, default=Path("learning-runs"))
    parser.add_argument("--out", type=Path, default=budgeted.ROOT / "benchmarks" / "results" / "learning.json")
    options = parser.parse_args()
    if options.network and "head" in options.sets:
        parser.error("--network replaces one network, and head has two stages")
    table = json.loads(options.out.read_text()) if options.out.exists() else {"runs": {}}
    table["processor"] = processor_name()
    for name in options.sets:
        for n in options.labels:
            key = f"{name}, {n} labelled, {options.minutes:g} min{kind_of(options)}"
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
