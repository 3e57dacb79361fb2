"""Measure shipped models on the held-out cases of their recipes: surfaces, intervals, worst cases, into their cards.

python scripts/score_cards.py CARD.toml... [--tolerance-mm 2] [--dice] [--output FOLDER]
python scripts/score_cards.py CARD.toml... --half-precision
python scripts/score_cards.py CARD.toml... --training-data [--cases PATTERN]

The cases are those that `resources/recipes` names under the model's name, by default in ../shared beside the project.
What was measured is kept in the output folder, a table per model, and is not measured again. With --half-precision
every case is segmented in float32 and in bfloat16 instead, and the card gets the lowest Dice between the two masks by
class: from 0.999 on, bfloat16 is taken where the processor computes in it. With --training-data the volumes that the
recipe learns from are measured, and the card gets the ranges of their values, voxels and sizes, nothing of a single
one: by them a volume is judged that does not fit. --cases names those that older weights learned from: 'acdc_0[01]*'.
"""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Mapping, Sequence
from fnmatch import fnmatch
from pathlib import Path

import numpy as np

from napari_fmseg.core.events import drain
from napari_fmseg.core.hardware import processor_name
from napari_fmseg.datasets.case import read_case
from napari_fmseg.evaluation.evaluate import Evaluation, evaluate
from napari_fmseg.evaluation.metrics import dice_per_label
from napari_fmseg.io.channels import read_channels
from napari_fmseg.models.card import ModelCard, read_card, write_card
from napari_fmseg.models.half_precision import HalfPrecision
from napari_fmseg.models.measures import TrainingData, measure_volume, summarise
from napari_fmseg.models.validation import summarise_cases
from napari_fmseg.models.weights import Model, load_model
from napari_fmseg.pipelines import SegmentOptions, segment, stages_of
from napari_fmseg.training import Case, load_recipe
from napari_fmseg.training.data.sources import cases_for

ROOT = Path(__file__).parents[1]
DISEASES = ("dilated", "hypertrophic", "infarction", "normal", "abnormal right ventricle")


def patient_of(case: str) -> str:
    """Return whose a case is: of the heart there are two volumes of a patient, of the other sets one."""
    return case[:8] if case.startswith("acdc_") else case


def disease_of(patient: str) -> str:
    """Return the group of a patient of ACDC, which are numbered by it, twenty of each."""
    return DISEASES[(int(patient.removeprefix("acdc_")) - 1) // 20]


def cases_of_recipe(path: Path, output: Path) -> tuple[Mapping[int, str], Sequence[Case], Sequence[Case]]:
    """Find the classes by their number, and the training and held-out cases, of the recipe of a card."""
    recipe = load_recipe(ROOT / "resources" / "recipes" / path.name)
    return cases_for(dataclasses.replace(recipe, out=output / path.stem))


def held_out(path: Path, output: Path) -> tuple[Mapping[int, str], Sequence[Case]]:
    """Find the cases that the recipe of a card holds out, and the classes by their number there."""
    names, _, validation = cases_of_recipe(path, output)
    return names, validation


def training_data(path: Path, output: Path, pattern: str) -> TrainingData | None:
    """Measure the volumes that the recipe of a card learns from, or those of them whose names are like a pattern."""
    _, training, _ = cases_of_recipe(path, output)
    learned = [case for case in training if fnmatch(case.name, pattern)]
    return summarise(measure_volume(read_channels(case.images)) for case in learned)


def measured(path: Path, output: Path, tolerance_mm: float) -> Evaluation:
    """Run the model of a card on all cases that its recipe holds out."""
    names, validation = held_out(path, output)
    *_, whole = evaluate(validation, names, load_model(path), output / path.stem, tolerance_mm=tolerance_mm)
    assert isinstance(whole, Evaluation)
    return whole


def compare_precisions(model: Model, names: Mapping[int, str], cases: Sequence[Case]) -> HalfPrecision:
    """Segment cases in float32 and in bfloat16; a class that is in neither mask of a case does not count there."""
    labels = [model.card.labels[i] for i in sorted(model.card.labels)]
    table = []
    for case in cases:
        volume, _ = read_case(case, names, labels)
        exact, half = (
            drain(segment(volume, model, SegmentOptions(precision=precision, show_stages=False))).data
            for precision in ("float32", "bfloat16")
        )
        table.append(dice_per_label(half, exact, model.card.n_classes))
    lowest = np.nanmin(np.array(table), 0)
    dice = {label: round(float(value), 5) for label, value in zip(labels, lowest, strict=True)}
    device = processor_name() if model.device.type == "cpu" else str(model.device)
    return HalfPrecision(dice, len(cases), model.card.sha256, "the held-out cases of its recipe", device)


def score(path: Path, card: ModelCard, asked: argparse.Namespace) -> ModelCard:
    """Measure the surfaces of a card, and with --dice its Dice anew; tell both."""
    whole = measured(path, asked.output, asked.tolerance_mm)
    classes = [name for name in card.labels.values() if name in whole.labels]
    dice = {name: round(whole.mean("dice", name), 4) for name in classes}
    surface = {name: round(whole.mean("nsd", name), 4) for name in classes}
    for name in classes:
        print(f"{card.name} {name}: Dice {dice[name]:.4f} (card {card.scores['labels'][name]:.4f}), "
              f"surface {surface[name]:.4f}")  # fmt: skip
    scores = {**card.scores, "labels": dice}
    if len(stages_of(card)) == 1:  # the labels are made of this very stage
        scores = {stages_of(card)[0]: dice, "labels": dice}
    cases = {case.case: {name: values["dice"] for name, values in case.scores.items()} for case in whole.cases}
    group = disease_of if all(case.startswith("acdc_") for case in cases) else None
    validation = summarise_cases(cases, card.sha256, patient=patient_of, group=group)
    print(
        f"{card.name}: {validation.overall}; " + "; ".join(f"{name} {one}" for name, one in validation.groups.items())
    )
    card = dataclasses.replace(card, surface=surface, surface_mm=asked.tolerance_mm, validation=validation)
    return dataclasses.replace(card, scores=scores) if asked.dice else card


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cards", nargs="+", type=Path)
    parser.add_argument("--tolerance-mm", type=float, default=2.0)
    parser.add_argument("--dice", action="store_true", help="write the Dice of the labels, too")
    parser.add_argument("--half-precision", action="store_true", help="compare bfloat16 with float32")
    parser.add_argument("--training-data", action="store_true", help="measure the volumes that were learned from")
    parser.add_argument("--cases", default="*", help="which of them")
    parser.add_argument("--output", type=Path, default=ROOT / "runs" / "scores")
    asked = parser.parse_args()
    for path in asked.cards:
        card = read_card(path)
        if asked.training_data:
            measured_data = training_data(path, asked.output, asked.cases)
            print(f"{card.name}: {measured_data}")
            write_card(dataclasses.replace(card, training_data=measured_data), path)
        elif asked.half_precision:
            names, cases = held_out(path, asked.output)
            found = compare_precisions(load_model(path), names, cases)
            print(f"{card.name}: {found}")
            write_card(dataclasses.replace(card, half_precision=found), path)
        else:
            write_card(score(path, card, asked), path)


if __name__ == "__main__":
    main()
