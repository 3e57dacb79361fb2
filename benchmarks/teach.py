"""How well a model is taught: from few volumes, from few slices, without forgetting, and what to label next.

    python benchmarks/teach.py curve [--minutes 30] [--volumes 1 2 4 8 16] [--start scratch]
    python benchmarks/teach.py sparse [--minutes 30] [--volumes 8] [--every 10]
    python benchmarks/teach.py forgetting [--minutes 30] [--volumes 8] [--ways replay answers nothing]
    python benchmarks/teach.py next [--minutes 10] [--rounds 4] [--seeds 3]

Minutes are those of one training. Data: the folder FMSEG_SHARED (by default ../shared beside the project). Every
finished training is written to benchmarks/results at once; the same command goes on where it was stopped, with the
steps that were planned at the start. Dice is that of the validation list, which also chose the best epoch.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import budgeted
import numpy as np
import torch

from napari_fmseg.core.events import EpochDone, StageResult, Warned
from napari_fmseg.core.volume import LabelMap
from napari_fmseg.explain.uncertainty import rank_by_uncertainty, uncertainty
from napari_fmseg.io import read_labels, read_volume, write_labels
from napari_fmseg.models.registry import find_card
from napari_fmseg.models.weights import load_model
from napari_fmseg.training import Case, Recipe, Replay, StageRecipe, cases_of, load_recipe, train
from napari_fmseg.training.planner import _set_duration, facts_of

ROOT, SHARED = budgeted.ROOT, budgeted.SHARED
HIPPOCAMPUS = "fmsf-hippocampus-mr"


class Results(budgeted.Results):
    """What is finished of one question, on disk after every training."""

    def __init__(self, what: str, options: argparse.Namespace) -> None:
        self.work = options.work / f"{what}-{options.minutes:g}min"
        super().__init__(options.out / f"teach-{what}-{options.minutes:g}min.json", options.minutes)
        self.steps = options.steps

    def planned_for(self, recipe: Recipe, minutes: float, cases: Sequence[Case], names: dict[int, str]) -> Recipe:
        """Fill the time with steps, measured once for a kind of recipe and kept."""
        key = f"{recipe.start_from or 'scratch'} {recipe.settings}"
        if self.steps:
            steps = zip(recipe.stages, self.steps, strict=True)
            self.table["plans"][key] = {stage.stage: [n, max(1, n // 2)] for stage, n in steps}
        elif key not in self.table["plans"]:
            device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
            facts = facts_of(cases[:2], names, [n for n in recipe.labels if n in names.values()])
            stages, told = _set_duration(recipe, facts, device, minutes * 60, None)
            self.table["plans"][key] = {s.stage: [s.steps, s.steps_per_epoch] for s in stages}
            print("\n".join(told), flush=True)
            self.save()
        plan = self.table["plans"][key]
        stages = tuple(dataclasses.replace(s, steps=plan[s.stage][0], steps_per_epoch=plan[s.stage][1])
                       for s in recipe.stages)  # fmt: skip
        return dataclasses.replace(recipe, stages=stages)

    def run(self, key: str, recipe: Recipe, **facts: Any) -> dict[str, Any]:
        """Train, or take what was trained before."""
        if key in self.table["runs"]:
            return self.table["runs"][key]
        start, epochs = time.perf_counter(), []
        for event in train(recipe):
            if isinstance(event, EpochDone):
                epochs.append({"stage": event.stage, "loss": event.loss, **event.metrics})
                told = " ".join(f"{k} {v:.3f}" for k, v in event.metrics.items())
                print(f"{key}: {event.stage} {event.epoch}/{event.total} loss {event.loss:.3f} {told}", flush=True)
            elif isinstance(event, Warned):
                print(f"{key}: {event.text}", flush=True)
        card = find_card(recipe.out / f"{recipe.name}.toml")
        done = {"dice": dict(card.scores.get("labels", {})), "seconds": round(time.perf_counter() - start, 1),
                "steps": {s.stage: s.steps for s in recipe.stages}, "epochs": epochs, **facts}  # fmt: skip
        self.table["runs"][key] = done
        self.save()
        print(f"{key}: {done['dice']} in {done['seconds']} s", flush=True)
        return done


def atrium(most: int = 0) -> tuple[dict[int, str], list[Case], list[Case]]:
    """Give class names, training and validation cases (at most so many) of the left atrium."""
    names, training, validation = cases_of(SHARED / "la_mr")
    return names, training, validation[:most] if most else validation


def spread(cases: Sequence[Case], n: int) -> tuple[Case, ...]:
    """Give n cases, evenly over the list."""
    return tuple(cases[i] for i in np.linspace(0, len(cases) - 1, n).round().astype(int))


def atrium_recipe(out: Path, training: Sequence[Case], options: argparse.Namespace, start: str = "scratch") -> Recipe:
    """Give the shipped recipe's networks and grids, without its steps."""
    _, _, validation = atrium(options.check)
    shipped = load_recipe(ROOT / "resources" / "recipes" / "fmsf-left-atrium-mr.toml")
    width = {"width": 16} if start == "scratch" else {}
    stages = (
        StageRecipe("consensus", "snet", kwargs=width, lr=1.5e-3, clip=3.0),
        StageRecipe("attention", "attnnet", kwargs=width, lr=1.5e-3, clip=3.0, init_from="consensus"),
        StageRecipe("edge", "edgenet", batch=1, lr=5e-4, clip=3.0),
    )
    if start != "scratch":
        stages = tuple(dataclasses.replace(s, init_from="") for s in stages)
    return dataclasses.replace(
        shipped, stages=stages, dataset=None, training=tuple(training), validation=tuple(validation), out=out,
        start_from="" if start == "scratch" else start, validate_cases=3, device="auto",
    )  # fmt: skip


def curve(options: argparse.Namespace) -> None:
    """Dice by the number of labelled volumes, the same time for each."""
    results = Results(f"curve-{options.start}", options)
    names, training, _ = atrium()
    for n in options.volumes:
        recipe = atrium_recipe(results.work / f"{n}", spread(training, n), options, options.start)
        results.run(f"{n} volumes", results.planned_for(recipe, options.minutes, training, names), volumes=n)


def sparse(options: argparse.Namespace) -> None:
    """Every n-th slice labelled against all slices: the same volumes, steps and seeds."""
    results = Results("sparse", options)
    names, training, _ = atrium()
    chosen = spread(training, options.volumes[0])
    # The curve trains the same recipe on the same volumes.
    curve_table = Results("curve-scratch", options).table
    if f"{len(chosen)} volumes" in curve_table["runs"] and not results.table["runs"]:
        results.table["plans"] = curve_table["plans"]
        results.table["runs"]["all slices"] = curve_table["runs"][f"{len(chosen)} volumes"]
    recipe = results.planned_for(
        atrium_recipe(results.work / "full", chosen, options), options.minutes, training, names
    )
    full = results.run("all slices", recipe)
    thinned = tuple(_thinned(case, results.work / "labels", options.every) for case in chosen)
    few = dataclasses.replace(recipe, training=thinned, ignore=2, out=results.work / "sparse")
    part = results.run(f"every {options.every}th slice", few)
    results.table["share"] = part["dice"]["left_atrium"] / max(1e-9, full["dice"]["left_atrium"])
    results.save()
    print(f"{100 * results.table['share']:.1f} % of the Dice of full labels")


def _thinned(case: Case, folder: Path, every: int) -> Case:
    """Leave every n-th slice's labels; 2 stands for not labelled."""
    path = folder / f"{case.name}.nii.gz"
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        truth = read_labels(case.labels)
        data = np.full(truth.data.shape, 2, np.uint8)
        data[every // 2 :: every] = truth.data[every // 2 :: every] == 1
        write_labels(LabelMap(data, truth.geometry), path)
    return dataclasses.replace(case, labels=path)


def forgetting(options: argparse.Namespace) -> None:
    """Teach the hippocampus model the left atrium, and see what is left of the hippocampus."""
    results = Results("forgetting", options)
    parent = find_card(HIPPOCAMPUS)
    names, training, validation = atrium(options.check)
    labels = (*parent.labels.values(), "left_atrium")
    before = results.table.setdefault("before", dict(parent.scores["labels"]))
    stages = tuple(
        StageRecipe(s, spec.network, lr=1e-3 if s != "edge" else 5e-4, clip=3.0, batch=1 if s == "edge" else 2)
        for s, spec in parent.nets.items()
    )
    plain = Recipe(
        "m", stages, labels, results.work, training=spread(training, options.volumes[0]), validation=tuple(validation),
        start_from=HIPPOCAMPUS, settings=parent.settings, intensity=parent.intensity, channels=parent.channels,
        validate_cases=5, precision="float32",
    )  # fmt: skip
    # Listed cases number their labels by the recipe; the atrium's files say 1 for the atrium.
    old = SHARED / "hippocampus"
    plain = dataclasses.replace(plain, training=(), validation=(), dataset=_listed(results.work, plain))
    some = tuple(c.name for c in cases_of(old)[2][: options.check]) if options.check else ()
    watch = Replay(old, watch=True, holdout=some)
    ways = {
        "replay": {"replay": (Replay(old, most=options.replayed, classes=labels, holdout=some),)},
        "answers": {"replay": (watch,), "distillation_weight": 1.0},
        "weights": {"replay": (watch,), "l2sp_weight": 0.01},
        "nothing": {"replay": (watch,)},
    }
    for way in options.ways:
        recipe = dataclasses.replace(plain, out=results.work / way, **ways[way])
        done = results.run(way, results.planned_for(recipe, options.minutes, training, names), way=way)
        lost = {n: round(before[n] - done["dice"][n], 4) for n in before}
        done["lost"] = lost
        results.save()
        print(f"{way}: the hippocampus lost {lost}", flush=True)


def _listed(folder: Path, recipe: Recipe) -> Path:
    """Write a dataset.json that lists cases where they lie."""
    place = folder / "atrium"
    place.mkdir(parents=True, exist_ok=True)

    def entry(case: Case) -> dict[str, str]:
        return {"case": case.name, "image": str(case.images[0].absolute()), "label": str(case.labels.absolute())}

    facts = {"labels": {"background": 0, "left_atrium": 1}, "training": [entry(c) for c in recipe.training],
             "validation": [entry(c) for c in recipe.validation]}  # fmt: skip
    (place / "dataset.json").write_text(json.dumps(facts))
    return place


def label_next(options: argparse.Namespace) -> None:
    """Label what the model doubts most, against labelling at random: Dice by round."""
    results = Results("next", options)
    names, pool, _ = atrium()
    pool = list(spread(pool, options.pool or len(pool)))
    ways = ["doubt", *(f"random {seed}" for seed in range(options.seeds))]
    for way in ways:
        rng = np.random.default_rng(100 + int(way.split()[1]) if way != "doubt" else 0)
        chosen = [c.name for c in spread(pool, 2)]
        for turn in range(options.rounds):
            # The first round is the same for all, and is trained once.
            key = f"{way}, round {turn}" if turn else "round 0"
            training = [c for c in pool if c.name in chosen]
            recipe = atrium_recipe(results.work / key.replace(", ", "-").replace(" ", ""), training, options)
            recipe = results.planned_for(recipe, options.minutes, pool, names)
            done = results.run(key, recipe, volumes=len(chosen), chosen=list(chosen))
            rest = [c for c in pool if c.name not in chosen]
            if turn == options.rounds - 1:
                break
            if way == "doubt":
                if "doubts" not in done:
                    done["doubts"] = _doubts(recipe, rest, options.flips)
                    results.save()
                order = rank_by_uncertainty(done["doubts"])
            else:
                order = tuple(rng.permutation([c.name for c in rest]))
            chosen += order[: options.add]
    last = options.rounds - 1
    got = {w: results.table["runs"][f"{w}, round {last}" if last else "round 0"]["dice"]["left_atrium"] for w in ways}
    chance = [v for k, v in got.items() if k != "doubt"]
    results.table["last_round"] = got
    results.save()
    print(f"doubt {got['doubt']:.3f}, random {np.mean(chance):.3f} ({', '.join(f'{v:.3f}' for v in chance)})")


def _doubts(recipe: Recipe, cases: Sequence[Case], flips: str) -> dict[str, float]:
    model = load_model(recipe.out / f"{recipe.name}.toml")
    found = {}
    for case in cases:
        *_, last = uncertainty(read_volume(case.images[0]), model, flips=flips)
        assert isinstance(last, StageResult)
        found[case.name] = float(last.output.meta["doubt"])
    return found


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["curve", "sparse", "forgetting", "next"])
    parser.add_argument("--minutes", type=float, default=30.0, help="of one training")
    parser.add_argument("--steps", type=int, nargs="+", default=(), help="of each stage, instead of minutes")
    parser.add_argument("--volumes", type=int, nargs="+", default=None)
    parser.add_argument("--start", default="scratch", help="scratch, or a model such as fmsf-hippocampus-mr")
    parser.add_argument("--every", type=int, default=10)
    parser.add_argument("--ways", nargs="+", default=["replay", "answers", "nothing"])
    parser.add_argument("--replayed", type=int, default=40, help="cases of before that are replayed")
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--add", type=int, default=2, help="cases that are labelled per round")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--flips", default="")
    parser.add_argument("--check", type=int, default=0, help="validate on so many cases only, for a trial; 0 all")
    parser.add_argument("--pool", type=int, default=0, help="rank among so many cases only, for a trial; 0 all")
    parser.add_argument("--work", type=Path, default=ROOT / "runs" / "teach")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results")
    options = parser.parse_args()
    options.volumes = options.volumes or ([1, 2, 4, 8, 16] if options.what == "curve" else [8])
    {"curve": curve, "sparse": sparse, "forgetting": forgetting, "next": label_next}[options.what](options)


if __name__ == "__main__":
    main()
