"""Cross-validation: every case is once segmented by a model that never saw it; the models together are an ensemble.

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

from napari_fmseg.errors import InvalidRecipe
from napari_fmseg.evaluation import CaseScores, Evaluation, Row, evaluate, read_evaluation, summary, write_csv
from napari_fmseg.events import Progress, Saved, TrainEvent, Warned
from napari_fmseg.io.writing import written_beside
from napari_fmseg.manifest import plain
from napari_fmseg.models import ModelCard, find_card, load_model, save_model
from napari_fmseg.phantom.dataset import write_phantom_dataset
from napari_fmseg.pipelines import SegmentOptions
from napari_fmseg.training import Case, Recipe, cases_of
from napari_fmseg.training.folds import folds
from napari_fmseg.training.loop import train
from napari_fmseg.training.recipe import IGNORE_NAME, as_table

__all__ = ["Crossval", "FoldDone", "crossval"]

_ENSEMBLES = ("single", "phased")
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
    """What came of a cross-validation.

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
    """Train and measure `n` models, each without a fold of the cases, and join them to an ensemble.

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
    names, everyone, recipe = _cases(recipe)
    groups = _groups(recipe, everyone, n)
    found: list[Evaluation] = []
    for k, held in enumerate(groups, 1):
        yield Progress("folds", k - 1, n)
        own = _recipe_of(recipe, names, [c for c in everyone if c not in held], held, k)
        if not (own.out / _DONE).exists():
            yield from train(own)
            model = load_model(own.out / f"{own.name}.toml", device=recipe.device)
            options = SegmentOptions(show_stages=False, device=recipe.device)
            for event in evaluate(held, names, model, own.out, options):
                if isinstance(event, CaseScores | Progress | Warned):
                    yield event
            del model
            _write(own.out / _DONE, {"cases": [case.name for case in held]})
        found.append(read_evaluation(own.out / "evaluation.json"))
        labels = {label: found[-1].mean("dice", label) for label in found[-1].labels}
        yield FoldDone(k, n, len(held), found[-1].mean(), labels)
    yield Progress("folds", n, n)
    result = _tables(recipe, found)
    yield from _ensemble(recipe, n, result.cases)
    yield result


def _cases(recipe: Recipe) -> tuple[dict[int, str], list[Case], Recipe]:
    """Give class names by number, all cases that may be learned from, and the recipe with a dataset for phantoms."""
    if recipe.phantom:
        folder = recipe.out / "phantom"
        if not (folder / "dataset.json").exists():  # written last, so it stands for a whole dataset
            write_phantom_dataset(folder, recipe.phantom[0], recipe.phantom[1], seed=recipe.seed)
        recipe = dataclasses.replace(recipe, phantom=(), dataset=folder)
    if recipe.dataset is None:
        return dict(enumerate(recipe.labels, 1)), [*recipe.training, *recipe.validation], recipe
    names, training, validation = cases_of(recipe.dataset)
    return names, training if _is_project(recipe.dataset) else [*training, *validation], recipe


def _is_project(folder: Path) -> bool:
    return (folder / "fmseg" / "project.json").exists()


def _groups(recipe: Recipe, everyone: Sequence[Case], n: int) -> list[list[Case]]:
    """Split the cases, or take the split that was made when the run began."""
    place, by_name = recipe.out / "folds.json", {case.name: case for case in everyone}
    told = {k: v for k, v in as_table(recipe).items() if k != "out"}
    if place.exists():
        kept = json.loads(place.read_text(encoding="utf-8"))
        if kept.get("recipe") != told or len(kept.get("folds", ())) != n:
            raise InvalidRecipe(
                f"{recipe.out} holds the cross-validation of another recipe, or with another number of folds "
                f"({len(kept.get('folds', ()))}). Choose another `out`, or remove the folder."
            )
        gone = [name for names in kept["folds"] for name in names if name not in by_name]
        if gone:
            raise InvalidRecipe(f"{gone[0]} is gone since the cross-validation began. Put it back, or begin anew.")
        return [[by_name[name] for name in names] for names in kept["folds"]]
    groups = [list(group) for group in folds(everyone, n)]
    _write(place, {"recipe": told, "folds": [[case.name for case in group] for group in groups]})
    return groups


def _recipe_of(
    recipe: Recipe, names: Mapping[int, str], training: Sequence[Case], held: Sequence[Case], k: int
) -> Recipe:
    """Make the recipe of one fold."""
    own = dataclasses.replace(recipe, name=f"{recipe.name}-fold{k}", out=recipe.out / f"fold-{k}")
    if recipe.dataset is not None and not _is_project(recipe.dataset):
        return dataclasses.replace(own, holdout=tuple(case.name for case in held))
    ignore = next((value for value, name in names.items() if name == IGNORE_NAME), recipe.ignore)
    classes = {value: name for value, name in names.items() if name != IGNORE_NAME}
    if classes != dict(enumerate(recipe.labels, 1)):
        raise InvalidRecipe(
            f"The project's classes are {', '.join(f'{v} {name}' for v, name in classes.items())}; the recipe's labels "
            f"{', '.join(recipe.labels)}. Name the same classes in the same order."
        )
    return dataclasses.replace(
        own, dataset=None, holdout=(), training=tuple(training), validation=tuple(held), ignore=ignore
    )


def _tables(recipe: Recipe, found: Sequence[Evaluation]) -> Crossval:
    """Write what the folds say, and all cases."""
    rows = [
        Row(str(k), row.label, row.n, row.values)
        for k, one in enumerate(found, 1) for row in one.rows() if row.case == "mean"
    ]  # fmt: skip
    for label in dict.fromkeys(row.label for row in rows):
        rows += summary(label, [row.values for row in rows if row.label == label and row.case.isdigit()])
    cases = Evaluation(recipe.name, cases=tuple(case for one in found for case in one.cases))
    table = write_csv(rows, recipe.out / "crossval.csv", first="fold")
    write_csv(cases.rows(), recipe.out / "cases.csv")
    _write(recipe.out / "crossval.json", {
        "format": "napari-fmseg cross-validation 1", "use": "Research use only. Not a medical device.",
        "recipe": recipe.name, "folds": len(found),
        "rows": [{"fold": row.case, "label": row.label, "n": row.n, **row.values} for row in rows],
        "failed": {case.case: case.problem for case in cases.cases if case.problem},
    })  # fmt: skip
    return Crossval(tuple(rows), cases, table)


def _ensemble(recipe: Recipe, n: int, cases: Evaluation) -> Iterator[TrainEvent]:
    """Write one model of all folds' networks, whose probabilities are averaged."""
    if recipe.pipeline not in _ENSEMBLES:
        yield Warned(f"Models of the pipeline {recipe.pipeline!r} cannot be joined; each fold has its own in fold-1...")
        return
    parts: dict[str, Any] = {}
    specs: dict[str, Any] = {}
    card: ModelCard | None = None
    for k in range(1, n + 1):
        model = load_model(find_card(recipe.out / f"fold-{k}" / f"{recipe.name}-fold{k}.toml"), device="cpu")
        card = card or model.card
        for stage, net in model.nets.items():
            name = stage if k == 1 else f"{stage}-{k}"
            parts[name], specs[name] = net, model.card.nets[stage]
    assert card is not None
    dice = {label: round(cases.mean("dice", label), 4) for label in cases.labels}
    known = sum(not case.problem for case in cases.cases)
    joined = dataclasses.replace(
        card, name=recipe.name, title=recipe.title or recipe.name, nets=specs,
        scores={"labels": {label: value for label, value in dice.items() if value == value}},
        scored_on=f"{known} cases in {n} folds, each by the one network that had not seen it, for which the fold also "
        "chose the best epoch; the ensemble of all networks was not measured",
    )  # fmt: skip
    save_model(joined, parts, recipe.out, half=recipe.half)
    yield Saved(recipe.out / f"{recipe.name}.toml", True)


def _write(path: Path, table: Mapping[str, Any]) -> None:
    with written_beside(path) as file:
        file.write((json.dumps(plain(table), indent=1, allow_nan=False) + "\n").encode())
