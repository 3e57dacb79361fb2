"""Which network finds lesions on PET best in the same time: MA3DSeg, UNet3D, PAM-UNet3D and 3D UX-Net.

    python benchmarks/lesions.py [--minutes 20] [--nets ma3dseg unet3d pam-unet3d uxnet3d] [--seed 0]

Minutes are those of one training; every network has the same, by the time of one step that is measured first, and the
same recipe (resources/recipes/ma3dseg-lesion-pet.toml, at a rate of 5e-3) but for its name. Nothing chooses among
epochs but the training loss, so that the validation list is not learned from in any way. It is measured by the
pipeline that users run: Dice, how many lesions are found, and the volumes in ml that are false and missed.

Data: the folder FMSEG_SHARED (by default ../shared beside the project). Every finished training, and every case that
was measured, is written to benchmarks/results at once; the same command goes on where it was stopped.
"""

from __future__ import annotations

import argparse
import dataclasses
import time
from pathlib import Path
from typing import Any

import numpy as np
from budgeted import ROOT, SHARED, Results, options_of, trained

from napari_fmseg.core.events import drain
from napari_fmseg.evaluation.lesion_metrics import score_lesions
from napari_fmseg.io import read_labels, read_volume
from napari_fmseg.models.weights import load_model
from napari_fmseg.pipelines import SegmentOptions, segment
from napari_fmseg.training import Case, Recipe, cases_of, load_recipe

NETS: dict[str, tuple[str, dict[str, Any]]] = {
    "ma3dseg": ("ma3dseg", {}),
    "unet3d": ("unet3d", {}),
    "pam-unet3d": ("unet3d", {"attention": "pam"}),
    "uxnet3d": ("uxnet3d", {}),
}


def recipe_of(net: str, training: list[Case], options: argparse.Namespace) -> Recipe:
    """Give the shipped recipe with another network."""
    shipped = load_recipe(ROOT / "resources" / "recipes" / "ma3dseg-lesion-pet.toml")
    network, kwargs = NETS[net]
    stage = dataclasses.replace(shipped.stages[0], network=network, kwargs=kwargs, lr=5e-3)
    return dataclasses.replace(
        shipped, name=net, stages=(stage,), dataset=None, training=tuple(training), validation=(),
        out=options.work / f"{options.minutes:g}min-seed{options.seed}" / net, device=options.device,
        seed=options.seed,
    )  # fmt: skip


def measured(card: Path, case: Case, device: str) -> dict[str, float]:
    """Segment one case and compare its lesions with the true ones."""
    start = time.perf_counter()
    found = drain(segment(read_volume(case.images[0]), load_model(card, device=device), SegmentOptions()))
    seconds = time.perf_counter() - start
    assert case.labels is not None
    row = score_lesions(found, dataclasses.replace(read_labels(case.labels), names={1: "tumour"}))["tumour"]
    return {**{k: round(float(v), 4) for k, v in row.items()}, "seconds": round(seconds, 1)}


def summed(rows: list[dict[str, float]]) -> dict[str, float]:
    """Means over the cases; the sensitivity also over all lesions together."""
    total = {k: sum(row[k] for row in rows) for k in ("true_lesions", "found", "predicted_lesions", "false_lesions")}
    means = {k: round(float(np.nanmean([r[k] for r in rows])), 4)
             for k in ("dice", "sensitivity", "false_positive_ml", "false_negative_ml", "seconds")}  # fmt: skip
    return {**means, **total, "sensitivity_of_all": round(total["found"] / max(1, total["true_lesions"]), 4)}


def main() -> None:
    """Train and measure one network after the other."""
    parser = options_of(__doc__ or "", "lesions", minutes=20.0)
    parser.add_argument("--nets", nargs="+", choices=list(NETS), default=list(NETS))
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    results = Results(options.out / f"lesions-{options.minutes:g}min-seed{options.seed}.json", options.minutes)
    _, training, validation = cases_of(SHARED / "lbt_pet")
    training, validation = training[: options.cases or None], validation[: options.check or None]
    recipes = {net: recipe_of(net, training, options) for net in options.nets}  # one file, read once for all
    for net in options.nets:
        recipe = results.planned(net, recipes[net])
        run = results.table["runs"].setdefault(net, {})
        if "training" not in run:
            run["training"] = trained(net, recipe)
            results.save()
        for case in validation:
            if case.name not in run.setdefault("cases", {}):
                run["cases"][case.name] = measured(recipe.out / f"{recipe.name}.toml", case, options.device)
                results.save()
                print(f"{net}: {case.name} {run['cases'][case.name]}", flush=True)
        run["all"] = summed(list(run["cases"].values()))
        results.save()
        print(f"{net}: {run['all']}", flush=True)


if __name__ == "__main__":
    main()
