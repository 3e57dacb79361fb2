"""How well a model is taught: from few slices, without forgetting, and what to label next.

    python benchmarks/teach.py sparse [--minutes 8] [--volumes 8] [--every 10]
    python benchmarks/teach.py forgetting [--minutes 8] [--volumes 8] [--ways replay distillation nothing]
    python benchmarks/teach.py next [--minutes 3] [--volumes 4] [--add 4] [--seeds 5]

Minutes are those of one training, of processor time of all threads (see learning.py, which measures Dice by the number
of labelled volumes). Data: the folder FMSEG_SHARED (by default ../shared beside the project). Every finished training
is written to benchmarks/results at once; the same command goes on where it was stopped. Dice is that of the validation
list and of the weights of the last step.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import budgeted
import numpy as np
from learning import listed, on_processor_time, train_apart

from napari_fmseg.core.events import StageResult
from napari_fmseg.core.volume import LabelMap
from napari_fmseg.explain.uncertainty import rank_by_uncertainty, uncertainty
from napari_fmseg.io import read_labels, read_volume, write_labels
from napari_fmseg.models.weights import load_model
from napari_fmseg.training import Recipe, Replay
from napari_fmseg.training.planner import suggest_recipe
from napari_fmseg.training.projects.prepare_run import write_recipe

HIPPOCAMPUS = ("anterior", "posterior")
GRID, STRIDES = [48, 80, 96], ((2, 2, 2), (2, 2, 2), (2, 2, 2), (1, 2, 2))
"""Of both structures: those that are proposed for the left atrium."""


class Results(budgeted.Results):
    """What is finished of one question, on disk after every training."""

    def __init__(self, what: str, options: argparse.Namespace) -> None:
        self.work = options.work / f"{what}-{options.minutes:g}min"
        super().__init__(options.out / f"teach-{what}-{options.minutes:g}min.json", options.minutes)

    def run(self, key: str, plan: Callable[[Path], Recipe]) -> dict[str, Any]:
        """Train what `plan` returns for a folder, or take what was trained before."""
        if key not in self.table["runs"]:
            place = self.work / key.replace(", ", "-").replace(" ", "-")
            if not (place / "recipe.toml").exists():
                recipe = on_processor_time(plan(place), self.table["minutes"])
                place.mkdir(parents=True, exist_ok=True)
                write_recipe(dataclasses.replace(recipe, out=place / "run", validate_cases=2), place / "recipe.toml")
            self.table["runs"][key] = train_apart(place / "recipe.toml", place / "run")
            self.save()
            print(f"{key}: {self.table['runs'][key]['dice']}", flush=True)
        return self.table["runs"][key]

    def card(self, key: str) -> Path:
        """Return the card of a model that `run` trained."""
        return next((self.work / key.replace(", ", "-").replace(" ", "-") / "run").glob("*.toml"))


def sparse(options: argparse.Namespace) -> None:
    """Every n-th slice labelled against all slices: the same volumes and time."""
    results = Results("sparse", options)

    def plan(place: Path, every: int) -> Recipe:
        data = listed("atrium", options.volumes, place / "data")
        if every > 1:
            facts = json.loads((data / "dataset.json").read_text())
            for entry in facts["training"]:
                entry["label"] = str(_thinned(Path(entry["label"]), place / "labels", every))
            facts["labels"]["ignore"] = 2
            (data / "dataset.json").write_text(json.dumps(facts))
        return suggest_recipe(data, options.minutes, device="cpu").recipe

    full = results.run("all slices", lambda place: plan(place, 1))
    part = results.run(f"every {options.every}th slice", lambda place: plan(place, options.every))
    results.table["share"] = part["dice"]["left_atrium"] / max(1e-9, full["dice"]["left_atrium"])
    results.save()
    print(f"{100 * results.table['share']:.1f} % of the Dice of full labels")


def _thinned(labels: Path, folder: Path, every: int) -> Path:
    """Leave every n-th slice's labels; 2 stands for not labelled."""
    path = folder / labels.name
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        truth = read_labels(labels)
        data = np.full(truth.data.shape, 2, np.uint8)
        data[every // 2 :: every] = truth.data[every // 2 :: every] == 1
        write_labels(LabelMap(data, truth.geometry), path)
    return path


def forgetting(options: argparse.Namespace) -> None:
    """Learn the hippocampus, then the left atrium with the same network, and see what is left of the hippocampus."""
    results = Results("forgetting", options)

    def first(place: Path) -> Recipe:
        data = listed("hippocampus", options.replayed, place / "data", develop=options.develop)
        recipe = suggest_recipe(data, options.minutes, device="cpu").recipe
        (stage,) = recipe.stages
        stages = (dataclasses.replace(stage, kwargs={**stage.kwargs, "strides": STRIDES}),)
        settings = {**recipe.settings, "consensus_grid": GRID}
        return dataclasses.replace(recipe, name="hippocampus", stages=stages, settings=settings)

    before = results.run("hippocampus", first)["dice"]
    old = results.work / "hippocampus" / "data"
    ways: dict[str, dict[str, Any]] = {
        "replay": {"replay": (Replay(old, classes=(*HIPPOCAMPUS, "left_atrium")),), "distillation_weight": 0.0},
        "distillation": {"replay": (Replay(old, watch=True),)},
        "nothing": {"replay": (Replay(old, watch=True),), "distillation_weight": 0.0},
    }

    def second(place: Path, way: str) -> Recipe:
        data = listed("atrium", options.volumes, place / "data", develop=options.develop)
        start = str(results.card("hippocampus"))
        labels = (*HIPPOCAMPUS, "left_atrium")
        recipe = suggest_recipe(data, options.minutes, start, device="cpu", labels=labels).recipe
        return dataclasses.replace(recipe, **ways[way])

    for way in options.ways:
        done = results.run(way, lambda place, way=way: second(place, way))
        done["lost"] = {name: round(before[name] - done["dice"][name], 4) for name in before}
        results.save()
        print(f"{way}: the hippocampus lost {done['lost']}", flush=True)


def label_next(options: argparse.Namespace) -> None:
    """Label what the model is unsure of, against labelling at random, from the same model."""
    results = Results("next", options)

    def plan(place: Path, names: list[str], seed: int) -> Recipe:
        data = listed("atrium", 0, place / "data", only=names)
        return dataclasses.replace(suggest_recipe(data, options.minutes, device="cpu").recipe, seed=seed)

    pool = [case["case"] for case in json.loads((budgeted.SHARED / "la_mr" / "dataset.json").read_text())["training"]]
    images = {name: budgeted.SHARED / "la_mr" / "images" / f"{name}.nii.gz" for name in pool}
    gains = []
    for seed in range(options.seeds):
        order = [str(name) for name in np.random.default_rng(seed).permutation(pool)]
        first, rest = order[: options.volumes], order[options.volumes :]
        key = f"seed {seed}, first"
        done = results.run(key, lambda place, names=first, seed=seed: plan(place, names, seed))
        if "uncertainty" not in done:
            done["uncertainty"] = _uncertainties(results.card(key), {name: images[name] for name in rest})
            results.save()
        chosen = {"uncertainty": rank_by_uncertainty(done["uncertainty"]), "random": rest}
        dice = {}
        for way, names in chosen.items():
            more = [*first, *names[: options.add]]
            run = results.run(f"seed {seed}, {way}", lambda place, names=more, seed=seed: plan(place, names, seed))
            dice[way] = run["dice"]["left_atrium"]
        gains.append(dice["uncertainty"] - dice["random"])
        print(f"seed {seed}: {dice}", flush=True)
    results.table["by uncertainty minus at random"] = [round(gain, 4) for gain in gains]
    results.save()
    print(f"by uncertainty minus at random: {np.mean(gains):.4f} ({min(gains):.4f} to {max(gains):.4f})")


def _uncertainties(card: Path, images: dict[str, Path]) -> dict[str, float]:
    model = load_model(card)
    found = {}
    for name, image in images.items():
        *_, last = uncertainty(read_volume(image), model)
        assert isinstance(last, StageResult)
        found[name] = float(last.output.meta["doubt"])
    return found


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["sparse", "forgetting", "next"])
    parser.add_argument("--minutes", type=float, default=None, help="of one training; 8, or 3 for next")
    parser.add_argument("--volumes", type=int, default=None, help="labelled at first; 8, or 4 for next")
    parser.add_argument("--every", type=int, default=10)
    parser.add_argument("--ways", nargs="+", default=["replay", "distillation", "nothing"])
    parser.add_argument("--replayed", type=int, default=40, help="cases of before that are replayed")
    parser.add_argument("--add", type=int, default=4, help="cases that are labelled next")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--develop", action="store_true", help="measure on training cases that are not learned from")
    parser.add_argument("--work", type=Path, default=budgeted.ROOT / "runs" / "teach")
    parser.add_argument("--out", type=Path, default=budgeted.ROOT / "benchmarks" / "results")
    options = parser.parse_args()
    options.minutes = options.minutes or (3.0 if options.what == "next" else 8.0)
    options.volumes = options.volumes or (4 if options.what == "next" else 8)
    {"sparse": sparse, "forgetting": forgetting, "next": label_next}[options.what](options)


if __name__ == "__main__":
    main()
