"""Does a general start help? FastUNet taught on other sets first, against weights drawn at random.

    python benchmarks/general_start.py [--sets atrium heart] [--minutes 1 2 4 8] [--seeds 3] [--pretrain 25]

Two starts are trained for the same processor time: with supervision on two sets at once (head and neck, phantoms: what
may be shipped under the MIT licence; every case tells only of its own set's classes), and by Volume Fusion on the same
volumes. Each is then the start on sets it never saw, with the network, grid and recipe that Teach proposes
for them and 8 labelled volumes; tensors that do not fit (the first layer of other strides, the head) are drawn anew.
Every training is written to benchmarks/results at once; the same command goes on where it was stopped.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
from pathlib import Path
from typing import Any

import budgeted
import numpy as np
from learning import listed, on_processor_time, train_apart

from napari_fmseg.datasets.phantom.dataset import write_phantom_dataset
from napari_fmseg.io import read_labels, write_labels
from napari_fmseg.models.weights import load_model, save_model
from napari_fmseg.training import Recipe
from napari_fmseg.training.planner import suggest_recipe
from napari_fmseg.training.pretraining.loop import pretrain
from napari_fmseg.training.pretraining.recipe import Fusion, PretrainRecipe
from napari_fmseg.training.projects.prepare_run import write_recipe

TAUGHT_ON = ("hn_ct",)
GRID = [48, 80, 80]
NET: dict[str, Any] = {"widths": (16, 32, 64, 128), "strides": ((2, 2, 2),) * 4}
WAYS = ("random", "supervised", "volume fusion")


def main() -> None:
    """Train the starts, then from each of them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sets", nargs="+", default=["atrium", "heart"], choices=["atrium", "heart"])
    parser.add_argument("--minutes", nargs="+", type=float, default=[1.0, 2.0, 4.0, 8.0])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--ways", nargs="+", default=list(WAYS), choices=WAYS)
    parser.add_argument("--pretrain", type=float, default=25.0, help="minutes of processor time of each start")
    parser.add_argument("--phantoms", type=int, default=30)
    parser.add_argument("--work", type=Path, default=budgeted.ROOT / "runs" / "general-start")
    parser.add_argument("--out", type=Path, default=budgeted.ROOT / "benchmarks" / "results" / "general-start.json")
    options = parser.parse_args()
    results = budgeted.Results(options.out, options.pretrain)
    data = everything(options.work / "data", options.phantoms)
    starts = {"supervised": taught(data, options), "volume fusion": fused(data, options)}
    for name in options.sets:
        for minutes in options.minutes:
            for way in options.ways:
                key = f"{name}, {minutes:g} min, {way}"
                runs = results.table["runs"].setdefault(key, {})
                for seed in range(options.seeds):
                    if str(seed) not in runs:
                        place = options.work / f"{name}-{minutes:g}min-{way.replace(' ', '-')}-{seed}"
                        runs[str(seed)] = learn(name, minutes, starts.get(way), seed, place)
                        results.save()
                means = [float(np.mean(list(run["dice"].values()))) for run in runs.values()]
                print(f"{key}: {np.mean(means):.3f} ({min(means):.3f} to {max(means):.3f})", flush=True)


def everything(folder: Path, phantoms: int) -> Path:
    """Write one dataset of all sets, with their classes numbered one after the other."""
    if (folder / "dataset.json").exists():
        return folder
    write_phantom_dataset(folder / "phantom", phantoms, 0, seed=1)
    numbers: dict[str, int] = {}
    entries, classes = [], {}
    for source in (*(budgeted.SHARED / name for name in TAUGHT_ON), folder / "phantom"):
        facts = json.loads((source / "dataset.json").read_text())
        own = {name: value for name, value in facts["labels"].items() if value}
        for name in own:
            numbers.setdefault(f"{source.name} {name}", len(numbers) + 1)
        for case in [*facts["training"], *facts.get("training_partial", [])]:
            known = [name for name in own if name in case.get("classes", own)]
            truth = read_labels(source / case["label"])
            table = np.zeros(max(own.values()) + 1, np.uint8)
            for name in known:
                table[own[name]] = numbers[f"{source.name} {name}"]
            path = folder / "labels" / f"{case['case']}.nii.gz"
            path.parent.mkdir(parents=True, exist_ok=True)
            write_labels(dataclasses.replace(truth, data=table[truth.data], names={}), path)
            entries.append({"case": case["case"], "image": [str(source / case["image"])], "label": str(path)})
            classes[case["case"]] = [f"{source.name} {name}" for name in known]
    held = entries[::40]
    facts = {
        "labels": {"background": 0, **numbers},
        "channel_names": {"0": "image"},
        "training": [entry for entry in entries if entry not in held],
        "validation": held,
        "classes": classes,
    }
    (folder / "dataset.json").write_text(json.dumps(facts))
    return folder


def taught(data: Path, options: argparse.Namespace) -> Path:
    """Train on all sets at once; return the card."""
    place = options.work / "supervised"
    if not list((place / "run").glob("*.toml")):
        recipe = suggest_recipe(data, options.pretrain, device="cpu", out=place / "run", name="general").recipe
        stage = dataclasses.replace(recipe.stages[0], kwargs=NET)
        recipe = dataclasses.replace(recipe, stages=(stage,), settings={"consensus_grid": GRID}, unlabelled_weight=0.0)
        place.mkdir(parents=True, exist_ok=True)
        write_recipe(on_processor_time(recipe, options.pretrain), place / "recipe.toml")
        train_apart(place / "recipe.toml", place / "run")
    return _card_in(place / "run")


def _card_in(folder: Path) -> Path:
    return next(folder.glob("*.toml"))


def fused(data: Path, options: argparse.Namespace) -> Path:
    """Pretrain by Volume Fusion on the same volumes; return the card, as that of a phased model."""
    place = options.work / "fusion"
    if not list((place / "phased").glob("*.toml")):
        for entry in json.loads((data / "dataset.json").read_text())["training"]:
            link = place / "volumes" / Path(entry["image"][0]).name
            link.parent.mkdir(parents=True, exist_ok=True)
            if not link.is_symlink():
                link.symlink_to(entry["image"][0])
        recipe = PretrainRecipe(
            name="fusion", volumes=place / "volumes", out=place / "run", network="fastunet", kwargs=NET,
            fusion=Fusion(patch=(48, 80, 80)), minutes=options.pretrain, batch=2, lr=2e-3, device="cpu",
        )  # fmt: skip
        for _ in pretrain(recipe):
            pass
        model = load_model(_card_in(place / "run"), device="cpu")
        card = model.card
        (stage,) = card.nets
        phased = dataclasses.replace(card, pipeline="phased", nets={"consensus": card.nets[stage]}, settings={})
        save_model(phased, {"consensus": model.nets[stage]}, place / "phased")
    return _card_in(place / "phased")


def learn(name: str, minutes: float, start: Path | None, seed: int, place: Path) -> dict[str, Any]:
    """Train what Teach proposes, from a start or anew."""
    data = listed(name, 8, place / "data")
    recipe: Recipe = on_processor_time(suggest_recipe(data, minutes, device="cpu", out=place / "run").recipe, minutes)
    if start:
        recipe = dataclasses.replace(recipe, start_from=str(start))
    write_recipe(dataclasses.replace(recipe, seed=seed, validate_cases=2), place / "recipe.toml")
    return train_apart(place / "recipe.toml", place / "run")


if __name__ == "__main__":
    main()
