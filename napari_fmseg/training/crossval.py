"""Cross-validation: every case is segmented by a model that was not trained on it; all models form an ensemble.

Each fold is a training run in a folder of its own. A run that was stopped or killed goes on in the fold where it was;
finished folds are read, not touched.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from napari_fmseg.core.atomic_write import atomic_write
from napari_fmseg.core.errors import InvalidRecipe
from napari_fmseg.core.events import Progress, Saved, TrainEvent, Warned
from napari_fmseg.core.json_values import plain
from napari_fmseg.datasets.phantom.dataset import write_phantom_dataset
from napari_fmseg.datasets.run_folder import FOLDS_MARK, claim_run_folder, fingerprint
from napari_fmseg.evaluation.case_table import CaseScores, write_cases
from napari_fmseg.evaluation.evaluate import Evaluation, Row, evaluate, read_evaluation, summary, write_csv
from napari_fmseg.models.card import ModelCard
from napari_fmseg.models.measures import TrainingData, join
from napari_fmseg.models.registry import find_card
from napari_fmseg.models.weights import load_model, save_model
from napari_fmseg.pipelines import SegmentOptions
from napari_fmseg.training import Recipe
from napari_fmseg.training.data.sources import cases_for
from napari_fmseg.training.loop import train
from napari_fmseg.training.recipe_file import recipe_tables

__all__ = ["Crossval", "FoldDone", "crossval"]

_DONE = "fold.json"


@dataclass(frozen=True)
class FoldDone:
    """Fold `fold` of `total` has a model, which was measured on its `n` cases; mean Dice over all classes, and each."""

    fold: int
    total: int
    n: int
    dice: float
    labels: Mapping[str, float]


@dataclass(frozen=True)
class Crossval:
    """The result of a cross-validation.

    Attributes
    ----------
    rows
        For each fold and class the mean over the fold's cases; then mean and standard deviation over the folds.
    cases
        All cases, each by the model that had not seen it.
    table
        The file with the rows; crossval.json lies beside it, and cases.csv with the cases.
    """

    rows: tuple[Row, ...]
    cases: Evaluation
    table: Path


def crossval(recipe: Recipe, n: int = 5) -> Generator[TrainEvent | CaseScores | FoldDone | Crossval, None, None]:
    """Train and evaluate `n` models, each without one fold of the cases, and merge them into an ensemble.

    The fold of a case follows from its image's content, not from its name; held-out cases of a project stay out
    altogether. The fold that measures a model also chose its best epoch.

    Parameters
    ----------
    recipe
        `out` becomes the folder of all folds: fold-1, fold-2 and so on, the tables, and the ensemble as a model
        of the recipe's name.
    n
        Folds.

    Yields
    ------
    Progress, Warned, StepDone, EpochDone, Pictures or Saved
        Of the trainings and measurements; `Progress` of "folds" for the whole.
    CaseScores, FoldDone
        After each case and fold.
    Crossval
        At last.

    Raises
    ------
    InvalidRecipe
        If there are too few cases, or the folder holds another recipe's or number of folds.
    """
    if n < 2 or recipe.fold:
        raise InvalidRecipe(f"Cross-validation takes 2 folds or more, not {n}, and a recipe without `fold`.")
    marks = [{"folds": n, "recipe": table} for table in recipe_tables(recipe, without=("out",))]
    with claim_run_folder(
        recipe.out, [fingerprint(one) for one in marks], marks[0], mark=FOLDS_MARK, run="cross-validation"
    ):
        yield from _events(_with_phantom_dataset(recipe), n)


def _events(recipe: Recipe, n: int) -> Generator[TrainEvent | CaseScores | FoldDone | Crossval, None, None]:
    found: list[Evaluation] = []
    for k in range(1, n + 1):
        yield Progress("folds", k - 1, n)
        own = dataclasses.replace(
            recipe, name=f"{recipe.name}-fold{k}", out=recipe.out / f"fold-{k}", folds=n, fold=k,
            prepared=recipe.prepared or recipe.out / "prepared",
        )  # fmt: skip
        if not (own.out / _DONE).exists():
            yield from train(own)
            names, _, held = cases_for(own)
            model = load_model(own.out / f"{own.name}.toml", device=recipe.device)
            for event in evaluate(held, names, model, own.out, SegmentOptions(device=recipe.device)):
                if isinstance(event, CaseScores | Progress | Warned):
                    yield event
            del model
            _write(own.out / _DONE, {"cases": [case.name for case in held]})
        found.append(read_evaluation(own.out / "evaluation.json"))
        labels = {label: found[-1].mean("dice", label) for label in found[-1].labels}
        yield FoldDone(k, n, len(found[-1].cases), found[-1].mean(), labels)
    yield Progress("folds", n, n)
    result = _tables(recipe, found)
    yield from _ensemble(recipe, n, result.cases)
    yield result


def _with_phantom_dataset(recipe: Recipe) -> Recipe:
    """Write the phantoms that a recipe asks for; return the recipe with their folder as its dataset."""
    if not recipe.phantom:
        return recipe
    folder = recipe.out / "phantom"
    if not (folder / "dataset.json").exists():  # written last, so it stands for a whole dataset
        write_phantom_dataset(folder, recipe.phantom[0], recipe.phantom[1], seed=recipe.seed)
    return dataclasses.replace(recipe, phantom=(), dataset=folder)


def _tables(recipe: Recipe, found: Sequence[Evaluation]) -> Crossval:
    """Write the tables of the folds and of all cases."""
    rows = [
        Row(str(k), row.label, row.n, row.values)
        for k, one in enumerate(found, 1) for row in one.rows() if row.case == "mean"
    ]  # fmt: skip
    for label in dict.fromkeys(row.label for row in rows):
        rows += summary(label, [row.values for row in rows if row.label == label and row.case.isdigit()])
    cases = Evaluation(recipe.name, cases=tuple(case for one in found for case in one.cases))
    table = write_csv(rows, recipe.out / "crossval.csv", first="fold")
    write_cases(cases.cases, recipe.out / "cases.csv", found[0].setup["tolerance_mm"])
    _write(recipe.out / "crossval.json", {
        "format": "napari-fmseg cross-validation 1", "use": "Research use only. Not a medical device.",
        "recipe": recipe.name, "folds": len(found),
        "rows": [{"fold": row.case, "label": row.label, "n": row.n, **row.values} for row in rows],
        "failed": {case.case: case.problem for case in cases.cases if case.problem},
    })  # fmt: skip
    return Crossval(tuple(rows), cases, table)


def _ensemble(recipe: Recipe, n: int, cases: Evaluation) -> Iterator[TrainEvent]:
    """Write one model of all folds' networks, whose probabilities are averaged."""
    parts: dict[str, Any] = {}
    specs: dict[str, Any] = {}
    card: ModelCard | None = None
    learned: list[TrainingData] = []
    for k in range(1, n + 1):
        model = load_model(find_card(recipe.out / f"fold-{k}" / f"{recipe.name}-fold{k}.toml"), device="cpu")
        card = card or model.card
        learned += [model.card.training_data] if model.card.training_data else []
        for stage, net in model.nets.items():
            name = stage if k == 1 else f"{stage}-{k}"
            parts[name], specs[name] = net, model.card.nets[stage]
    assert card is not None
    dice = {label: round(cases.mean("dice", label), 4) for label in cases.labels}
    known = sum(not case.problem for case in cases.cases)
    joined = dataclasses.replace(
        card, training_data=join(learned, len(cases.cases)),
        name=recipe.name, title=recipe.title or recipe.name, nets=specs,
        scores={"labels": {label: value for label, value in dice.items() if value == value}},
        scored_on=f"{known} cases in {n} folds, each by the one network that had not seen it, for which the fold also "
        "chose the best epoch; the ensemble of all networks was not measured",
    )  # fmt: skip
    save_model(joined, parts, recipe.out, half=recipe.half)
    yield Saved(recipe.out / f"{recipe.name}.toml", True)


def _write(path: Path, table: Mapping[str, Any]) -> None:
    with atomic_write(path) as file:
        file.write((json.dumps(plain(table), indent=1, allow_nan=False) + "\n").encode())
