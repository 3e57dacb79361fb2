"""Does the progressive attention (PAM) help a plain U-Net on the left atrium: same time, several seeds.

    python benchmarks/pam_atrium.py [--minutes 10] [--seeds 3]

Minutes are those of one training; both networks have the same, by the time of one step that is measured first, so that
the attention has fewer steps. Nothing chooses among epochs but the training loss; Dice, HD95 and ASSD are those of the
validation list, by the pipeline that users run. Data: the folder FMSEG_SHARED (by default ../shared beside the
project). Every finished training, and every case that was measured, is written to benchmarks/results at once; the same
command goes on where it was stopped.
"""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path

import numpy as np
from budgeted import SHARED, Results, options_of, trained

from napari_fmseg.core.events import drain
from napari_fmseg.evaluation.metrics import score
from napari_fmseg.io import read_labels, read_volume
from napari_fmseg.models.weights import load_model
from napari_fmseg.pipelines import SegmentOptions, segment
from napari_fmseg.training import Augment, Case, Recipe, StageRecipe, cases_of

NETS = {"unet3d": {}, "pam-unet3d": {"attention": "pam"}}


def recipe_of(net: str, seed: int, training: list[Case], options: argparse.Namespace) -> Recipe:
    """Give a recipe in windows of half the fineness, in which the whole atrium is seen."""
    stage = StageRecipe("net", "unet3d", kwargs=NETS[net], batch=1, lr=5e-3, clip=3.0)
    return Recipe(
        net, (stage,), ("left_atrium",), options.work / f"{options.minutes:g}min-seed{seed}" / net,
        training=tuple(training), pipeline="single", modality="MR", augment=Augment(contrast=0.3),
        settings={"window": [48, 64, 64], "spacing_mm": [1.25, 1.5, 1.5], "overlap": 0.25, "keep_largest": "each"},
        seed=seed, precision="float32", device=options.device,
    )  # fmt: skip


def measured(card: Path, case: Case, device: str) -> dict[str, float]:
    """Segment one case and compare it with the truth."""
    found = drain(segment(read_volume(case.images[0]), load_model(card, device=device), SegmentOptions()))
    assert case.labels is not None
    row = score(found, dataclasses.replace(read_labels(case.labels), names={1: "left_atrium"}))["left_atrium"]
    return {k: round(float(row[k]), 4) for k in ("dice", "hd95_mm", "assd_mm")}


def main() -> None:
    """Train and measure seed after seed, the two networks in turns."""
    parser = options_of(__doc__ or "", "pam_atrium", minutes=10.0)
    parser.add_argument("--seeds", type=int, default=3)
    options = parser.parse_args()
    results = Results(options.out / f"pam-atrium-{options.minutes:g}min.json", options.minutes)
    _, training, validation = cases_of(SHARED / "la_mr")
    training, validation = training[: options.cases or None], validation[: options.check or None]
    for seed in range(options.seeds):
        for net in NETS:
            recipe = results.planned(net, recipe_of(net, seed, training, options))
            run = results.table["runs"].setdefault(f"{net}, seed {seed}", {})
            if "training" not in run:
                run["training"] = trained(f"{net}, seed {seed}", recipe)
                results.save()
            for case in validation:
                if case.name not in run.setdefault("cases", {}):
                    run["cases"][case.name] = measured(recipe.out / f"{net}.toml", case, options.device)
                    results.save()
            rows = list(run["cases"].values())
            run["all"] = {k: round(float(np.mean([row[k] for row in rows])), 4) for k in rows[0]}
            results.save()
            print(f"{net}, seed {seed}: {run['all']}", flush=True)
    for net in NETS:
        dice = [run["all"]["dice"] for key, run in results.table["runs"].items() if key.startswith(f"{net},")]
        results.table[net] = {
            "dice": dice,
            "mean": round(float(np.mean(dice)), 4),
            "spread": round(float(np.std(dice)), 4),
        }
        print(f"{net}: Dice {results.table[net]}")
    results.save()


if __name__ == "__main__":
    main()
