"""Measure shipped models on the held-out cases of their recipes: surfaces beside Dice, written into their cards.

python scripts/score_cards.py CARD.toml... [--tolerance-mm 2] [--output FOLDER]

The cases are those that `resources/recipes` names under the model's name, by default in ../shared beside the project.
What was measured is kept in the output folder, a table per model, and is not measured again.
"""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path

from napari_fmseg.evaluation import Evaluation, evaluate
from napari_fmseg.models import load_model, read_card, write_card
from napari_fmseg.training import load_recipe
from napari_fmseg.training.sources import cases_for

ROOT = Path(__file__).parents[1]


def measured(path: Path, output: Path, tolerance_mm: float) -> Evaluation:
    """Run the model of a card on all cases that its recipe holds out."""
    recipe = load_recipe(ROOT / "resources" / "recipes" / path.name)
    names, _, validation = cases_for(dataclasses.replace(recipe, out=output / path.stem))
    model = load_model(path)
    *_, whole = evaluate(validation, names, model, output / path.stem, tolerance_mm=tolerance_mm)
    assert isinstance(whole, Evaluation)
    return whole


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cards", nargs="+", type=Path)
    parser.add_argument("--tolerance-mm", type=float, default=2.0)
    parser.add_argument("--output", type=Path, default=ROOT / "runs" / "scores")
    asked = parser.parse_args()
    for path in asked.cards:
        whole = measured(path, asked.output, asked.tolerance_mm)
        card = read_card(path)
        surface = {name: round(whole.mean("nsd", name), 4) for name in card.labels.values() if name in whole.labels}
        write_card(dataclasses.replace(card, surface=surface, surface_mm=asked.tolerance_mm), path)
        for name in surface:
            now = whole.mean("dice", name)
            print(f"{card.name} {name}: Dice {now:.4f} (card {card.scores['labels'][name]:.4f}), "
                  f"surface {surface[name]:.4f}")  # fmt: skip


if __name__ == "__main__":
    main()
