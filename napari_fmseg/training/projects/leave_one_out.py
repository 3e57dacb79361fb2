"""With two or three labelled images: the training is repeated without each of them in turn, to measure on it."""

from __future__ import annotations

import json
from collections.abc import Generator, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path

from napari_fmseg.core.atomic_write import atomic_write
from napari_fmseg.core.errors import FmsegError
from napari_fmseg.core.events import Progress, StepDone
from napari_fmseg.core.structuring import read_table, structure
from napari_fmseg.datasets.projects.project import Project
from napari_fmseg.datasets.projects.training_plan import LEAVING, Fold, Run, todays_labels
from napari_fmseg.models.card import ModelCard, read_card
from napari_fmseg.models.registry import find_card
from napari_fmseg.models.weights import load_model
from napari_fmseg.pipelines import SegmentOptions
from napari_fmseg.training.loop import train
from napari_fmseg.training.projects.score import measure
from napari_fmseg.training.projects.versions import list_versions, newest_version_without
from napari_fmseg.training.recipe import Recipe, StageRecipe

__all__ = ["leave_one_out"]


@dataclass(frozen=True)
class _Scores:
    """What is kept of a fold."""

    dice: Mapping[str, Mapping[str, float]]


def leave_one_out(
    run: Run, recipe: Recipe, options: SegmentOptions
) -> Generator[Progress, None, dict[str, dict[str, float]]]:
    """Train as the run was, once without every image, and measure each model on the image that it never saw.

    A fold whose start has seen its image starts from an older version that has not, from the model that the project
    began with, or from scratch. What is finished is kept in the run's folder and not repeated.

    Parameters
    ----------
    run
        With `Plan.folds`.
    recipe
        What the run was trained with.
    options
        Of the pipeline.

    Yields
    ------
    Progress
        In optimiser steps, and per case that is measured.

    Returns
    -------
    dict
        Dice by case and class, as `measure` gives it.
    """
    steps = sum(-(-s.steps // s.steps_per_epoch) * s.steps_per_epoch for s in recipe.stages)
    found: dict[str, dict[str, float]] = {}
    for i, fold in enumerate(run.plan.folds):
        folder = run.folder / "left-out" / str(i + 1)
        done = folder / "dice.json"
        if not done.exists():
            total = steps * len(run.plan.folds)
            yield from _train_with_progress(_recipe_of(run, fold, recipe, folder), i * steps, total)
            card = read_card(folder / f"{recipe.name}.toml")
            model = load_model(replace(card, labels=todays_labels(run, card.labels)), device=recipe.device)
            names = [case.name for case in fold.validation]
            scores = yield from measure(run.project, model, names, options, run=run.folder)
            with atomic_write(done) as file:
                file.write(json.dumps(scores).encode())
        try:
            told = structure(_Scores, {"dice": read_table(done)}, finite=False).dice
        except (OSError, ValueError) as error:
            raise FmsegError(f"{done} cannot be read: {error}. Remove it to measure again.") from error
        found |= {name: dict(scores) for name, scores in told.items()}
    return found


def _train_with_progress(recipe: Recipe, before: int, total: int) -> Iterator[Progress]:
    """Train, and tell of it only how far it is."""
    step = 0
    yield Progress(LEAVING, before, total)
    with closing(train(recipe)) as events:
        for event in events:
            if isinstance(event, StepDone):
                step += 1  # a training for minutes may take more steps than were guessed
                yield Progress(LEAVING, min(before + step, total), total)


def _recipe_of(run: Run, fold: Fold, recipe: Recipe, folder: Path) -> Recipe:
    images = {run.plan.images[case.name] for case in fold.validation}
    card = find_card(recipe.start_from) if recipe.start_from else None
    start = _start(run.project, card, images)
    stages = recipe.stages
    if card is not None and start is None:
        stages = tuple(_anew(stage, card, recipe) for stage in stages)
    return replace(
        recipe,
        training=fold.training,
        validation=(),
        out=folder,
        prepared=None,
        stages=stages,
        start_from="" if start is None else str(start.folder / f"{start.name}.toml"),
    )


def _start(project: Project, card: ModelCard | None, images: set[str]) -> ModelCard | None:
    """Return a model to start from that has learned from none of the images; None starts anew."""
    if card is None or not images & set(card.cases):
        return card
    clean = newest_version_without(project, images)
    if clean is not None:
        return clean.card
    for version in list_versions(project):
        if not version.lineage.parent and version.lineage.started_from:
            try:
                first = find_card(version.lineage.started_from)
            except FmsegError:  # it is not on this machine
                continue
            if not images & set(first.cases) and first.pipeline == card.pipeline:
                return first
    return None


def _anew(stage: StageRecipe, card: ModelCard, recipe: Recipe) -> StageRecipe:
    """Return the network the size that it has in `card`, without its weights."""
    kwargs = {k: v for k, v in card.nets[stage.stage].kwargs.items() if k not in ("in_channels", "n_classes", "hidden")}
    known = [other.stage for other in recipe.stages]
    first = "consensus" if stage.stage == "attention" and "consensus" in known else ""
    return replace(stage, kwargs={**kwargs, **stage.kwargs}, init_from=first)
