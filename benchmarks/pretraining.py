"""Does pretraining by Volume Fusion help? Left atrium with few labels, from pretrained weights against from scratch.

    python benchmarks/pretraining.py prepare
    python benchmarks/pretraining.py pretrain [--steps 700]
    python benchmarks/pretraining.py resume [--steps 60]
    python benchmarks/pretraining.py compare [--volumes 4 8] [--seeds 3] [--steps 60]
    python benchmarks/pretraining.py show

`prepare` makes a folder of links to the images that may be learned from, `pretrain` learns from them without labels,
`resume` does so twice, once with a kill -9 in the middle, and compares every loss, and `compare` trains the left
atrium. Data: the folder FMSEG_SHARED (by default ../shared beside the project). What is finished is written to
benchmarks/results at once; the same command goes on where it was stopped. All runs take one thread where
OMP_NUM_THREADS=1 is set. Dice is that of the ten validation cases, which also chose the best epoch; their images are
not among those that the network was pretrained on.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import tomli_w
import torch

from napari_fmseg.core.events import EpochDone, Saved, StepDone, Warned, from_json
from napari_fmseg.evaluation.machine import machine_facts
from napari_fmseg.models.registry import find_card
from napari_fmseg.nets.runtime.device import pick_device
from napari_fmseg.training import PretrainRecipe, Recipe, cases_of, load_pretrain_recipe, load_recipe, pretrain, train

ROOT = Path(__file__).parents[1]
SHARED = Path(os.environ.get("FMSEG_SHARED", ROOT.parent / "shared")) / "data"
LEFT_OUT = {"quirks": "broken on purpose", "brats": "non-commercial", "prostate_dicom": "non-commercial"}
"""Sets that are not learned from. A share-alike licence (hippocampus) and a non-commercial one do not go together."""
NON_COMMERCIAL = ("chris_",)

RECIPES = ROOT / "resources" / "recipes"


class Results:
    """What is finished, on disk after every training."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "pretraining.json"
        folder.mkdir(parents=True, exist_ok=True)
        self.table: dict[str, Any] = json.loads(self.path.read_text()) if self.path.exists() else {}
        self.table["machine"] = machine_facts(pick_device("auto"))

    def write(self, name: str, value: Any) -> None:
        """Set a part and write the file beside, then rename it."""
        self.table[name] = value
        beside = self.path.with_suffix(".part")
        beside.write_text(json.dumps(self.table, indent=1) + "\n")
        os.replace(beside, self.path)


def prepare(options: argparse.Namespace, results: Results) -> None:
    """Link the images that may be learned from: of every set at most so many, and none that scores anything."""
    folder = options.work / "scans"
    shutil.rmtree(folder, ignore_errors=True)
    counts = {}
    for place in sorted(SHARED.iterdir()):
        if place.name in LEFT_OUT or not place.is_dir():
            continue
        images = list(_images(place))
        chosen = [images[i] for i in sorted(set(np.linspace(0, len(images) - 1, options.most).round().astype(int)))]
        for image in chosen:
            link = folder / place.name / image.name
            link.parent.mkdir(parents=True, exist_ok=True)
            if image.is_dir():  # a DICOM series
                link.mkdir()
                for file in image.iterdir():
                    (link / file.name).symlink_to(file.resolve())
            else:
                link.symlink_to(image.resolve())
        counts[place.name] = len(chosen)
    results.write("scans", {"sets": counts, "volumes": sum(counts.values()), "left_out": LEFT_OUT})
    print(f"{sum(counts.values())} volumes of {len(counts)} sets in {folder}")


def _images(place: Path) -> Iterator[Path]:
    """Give the images of a set that nothing is scored on, the first of their channels only."""
    if not (place / "dataset.json").exists():
        found = [p for p in sorted(place.rglob("*.nii.gz")) if not p.name.startswith(NON_COMMERCIAL)]
        yield from found
        return
    facts = json.loads((place / "dataset.json").read_text())
    for kind in ("training", "unlabelled"):
        for entry in facts.get(kind, ()):
            image = entry["image"] if isinstance(entry["image"], str) else entry["image"][0]
            yield place / image


def recipe_of(options: argparse.Namespace, name: str, steps: int, per_epoch: int) -> PretrainRecipe:
    """Give the recipe of a narrow FMUNet on small samples, for which a thread of a processor is enough."""
    recipe = load_pretrain_recipe(
        RECIPES / "fmunet-small-volf.toml",
        volumes=options.work / "scans",
        out=options.work / name,
        cache=options.work / "volumes",
    )
    return dataclasses.replace(recipe, steps=steps, steps_per_epoch=per_epoch, device=options.device)


def pretrained(options: argparse.Namespace, results: Results) -> None:
    """Learn from the scans, and write the curve."""
    steps = options.steps or 700
    recipe = recipe_of(options, "pretrained", steps, max(1, steps // 20))
    told = results.table.get("pretraining", {})
    told = told if told.get("steps") == steps else {"steps": steps, "left_out": [], "epochs": []}
    start = time.perf_counter()
    for event in pretrain(recipe):
        if isinstance(event, Warned):
            told["left_out"] = sorted({*told["left_out"], event.text})
        elif isinstance(event, EpochDone):
            told["epochs"].append(
                {"step": event.epoch * recipe.steps_per_epoch, "training_loss": event.loss,
                 "seconds": event.seconds, **event.metrics}
            )  # fmt: skip
            print(f"{event.epoch}/{event.total} {event.loss:.4f} {event.metrics}", flush=True)
            waited = float(np.mean([e["waiting"] for e in told["epochs"]]))
            told |= {"compute_share": 1 - waited, "minutes": round((time.perf_counter() - start) / 60, 1)}
            results.write("pretraining", told)
    print(f"{100 * told['compute_share']:.1f} % of the time of the steps was spent computing")


def resume(options: argparse.Namespace, results: Results) -> None:
    """Take the same steps twice, once with a kill -9 in the middle, and compare every loss."""
    steps = options.steps or 60
    curves: dict[str, dict[int, float]] = {}
    for name in ("whole", "killed"):
        recipe = recipe_of(options, name, steps, max(1, steps // 3))
        shutil.rmtree(recipe.out, ignore_errors=True)
        curves[name] = {}
        if name == "killed":
            _steps_of(recipe, curves[name], until=steps // 2)
        _steps_of(recipe, curves[name])
    same = curves["whole"] == curves["killed"]
    states = [torch.load(options.work / n / "checkpoint.pt", weights_only=True)["net"] for n in curves]
    weights = all(torch.equal(states[0][key], states[1][key]) for key in states[0])
    told = {"steps": steps, "killed_after": steps // 2, "losses_equal": same, "weights_equal": weights,
            "losses": [curves["whole"][k] for k in sorted(curves["whole"])]}  # fmt: skip
    results.write("resume", told)
    print(f"{steps} steps: losses {'equal' if same else 'DIFFER'}, weights {'equal' if weights else 'DIFFER'}")


def _steps_of(recipe: PretrainRecipe, curve: dict[int, float], until: int = 0) -> None:
    """Run `fmseg pretrain` as a process of its own, killed after a step if one is given, and note the losses."""
    table = json.loads(json.dumps(dataclasses.asdict(recipe), default=str))
    recipe.out.mkdir(parents=True, exist_ok=True)
    path = recipe.out / "recipe.toml"
    path.write_text(tomli_w.dumps(table))
    words = [sys.executable, "-m", "napari_fmseg", "pretrain", str(path), "--events"]
    process = subprocess.Popen(words, stdout=subprocess.PIPE, text=True, env={**os.environ, "PYTHONPATH": str(ROOT)})
    assert process.stdout is not None
    for line in process.stdout:
        event = from_json(line)
        if isinstance(event, StepDone):
            before = curve.setdefault(event.step, event.loss)
            if before != event.loss:  # a step that was taken again after the kill must give the same
                curve[event.step] = float("nan")
            if until and event.step >= until:
                os.kill(process.pid, signal.SIGKILL)
                break
    process.stdout.close()
    process.wait()


def compare(options: argparse.Namespace, results: Results) -> None:
    """Train the left atrium from both starts, seed by seed, and write means and spreads."""
    steps = options.steps or 60
    start = options.work / "pretrained" / "fmunet-small-volf.toml"
    told = results.table.get("compare", {})
    told = told if told.get("steps") == steps else {"steps": steps, "runs": {}}
    for seed in range(options.seeds):
        for volumes in options.volumes:
            for way in ("scratch", "pretrained"):
                key = f"{volumes} volumes, {way}, seed {seed}"
                if key not in told["runs"]:
                    out = options.work / f"{steps}-{key.replace(', ', '-').replace(' ', '')}"
                    recipe = _atrium(out, volumes, seed, steps, start if way == "pretrained" else None, options.device)
                    told["runs"][key] = _trained(recipe) | {"volumes": volumes, "way": way, "seed": seed}
                    print(f"{key}: {told['runs'][key]['dice']}", flush=True)
                told["summary"] = _summary(list(told["runs"].values()))
                results.write("compare", told)
    show(options, results)


def show(options: argparse.Namespace, results: Results) -> None:
    """Print the comparison as the table of docs/tutorials/pretrain.md."""
    told = results.table["compare"]
    print(f"| labelled volumes | start | Dice, mean of seeds | spread | seeds | ({told['steps']} steps each)")
    print("| ---: | --- | ---: | ---: | ---: |")
    for row in told["summary"]:
        spread = "" if row["spread"] is None else f"{row['spread']:.3f}"
        print(f"| {row['volumes']} | {row['way']} | {row['mean']:.3f} | {spread} | {row['seeds']} |")


def _atrium(out: Path, volumes: int, seed: int, steps: int, start: Path | None, device: str) -> Recipe:
    recipe = load_recipe(RECIPES / "misfm-left-atrium-fmunet-small.toml", out=out)
    _, training, validation = cases_of(SHARED / "la_mr")
    chosen = [training[i] for i in np.random.default_rng(seed).permutation(len(training))[:volumes]]
    stages = tuple(dataclasses.replace(s, steps=steps, steps_per_epoch=max(1, steps // 4)) for s in recipe.stages)
    return dataclasses.replace(
        recipe, stages=stages, dataset=None, training=tuple(chosen), validation=tuple(validation),
        start_from=str(start or ""), seed=seed, device=device,
    )  # fmt: skip


def _trained(recipe: Recipe) -> dict[str, Any]:
    start, epochs, said, last = time.perf_counter(), [], [], None
    for event in train(recipe):
        if isinstance(event, EpochDone):
            epochs.append({"epoch": event.epoch, "loss": event.loss, "dice": event.metrics["dice"]})
        elif isinstance(event, Warned):
            said.append(event.text)
        elif isinstance(event, Saved):
            last = event.path
    assert last is not None
    dice = find_card(last).scores["labels"]["left_atrium"]
    cases = [case.name for case in recipe.training]
    seconds = round(time.perf_counter() - start, 1)
    return {"dice": dice, "seconds": seconds, "cases": cases, "epochs": epochs, "warnings": said}


def _summary(runs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Mean and spread (sample standard deviation) of the Dice by start and number of volumes."""
    out = []
    for volumes in sorted({run["volumes"] for run in runs}):
        for way in ("scratch", "pretrained"):
            dice = [run["dice"] for run in runs if (run["volumes"], run["way"]) == (volumes, way)]
            if dice:
                spread = float(np.std(dice, ddof=1)) if len(dice) > 1 else None
                mean = round(float(np.mean(dice)), 4)
                out.append({"volumes": volumes, "way": way, "seeds": len(dice), "mean": mean, "spread": spread})
    return out


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["prepare", "pretrain", "resume", "compare", "show"])
    parser.add_argument("--steps", type=int, default=0)
    parser.add_argument("--most", type=int, default=40, help="volumes of one set")
    parser.add_argument("--volumes", type=int, nargs="+", default=[4, 8])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--work", type=Path, default=ROOT / "runs" / "pretraining")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results")
    options = parser.parse_args()
    kinds = {"prepare": prepare, "pretrain": pretrained, "resume": resume, "compare": compare, "show": show}
    kinds[options.what](options, Results(options.out))


if __name__ == "__main__":
    main()
