"""After a training: the new model is measured, kept as a version, and used if it is better."""

from __future__ import annotations

import json
from collections.abc import Generator
from dataclasses import replace

from napari_fmseg.core.atomic_write import atomic_write
from napari_fmseg.core.errors import FmsegError
from napari_fmseg.core.events import Progress, Saved, Warned
from napari_fmseg.datasets.projects.project import Project
from napari_fmseg.datasets.projects.training_plan import open_run, todays_labels
from napari_fmseg.models.card import read_card
from napari_fmseg.models.weights import load_model
from napari_fmseg.pipelines import SegmentOptions
from napari_fmseg.training.projects.case_table import record_scores
from napari_fmseg.training.projects.leave_one_out import leave_one_out
from napari_fmseg.training.projects.prepare_run import KEPT, recipe_file
from napari_fmseg.training.projects.score import cases_to_score, measure
from napari_fmseg.training.projects.versions import VersionResult, active_version, add_version, publish
from napari_fmseg.training.recipe_file import load_recipe

__all__ = ["finish_run"]


def finish_run(
    project: Project, number: int, *, force: bool = False
) -> Generator[Progress | Warned | Saved, None, VersionResult]:
    """Measure the model of a run, and the model in use where it was not measured yet; keep it as a version.

    It is measured on the held-out cases. With two or three labelled images there are none: the training is repeated
    without each image in turn, and what is measured is how well such models do on the image that they never saw.

    Parameters
    ----------
    project
        See `Project`.
    number
        Of the run; its folder holds the recipe and the model, finished or the best until it was stopped.
    force
        Use it whatever its scores.

    Yields
    ------
    Progress, Warned or Saved
        Per case; then why it is in use or not, and the card of the version.

    Returns
    -------
    Kept
        What became of it.

    Raises
    ------
    FmsegError
        If the run has no model yet.
    """
    run = open_run(project, number)
    recipe = load_recipe(recipe_file(run))
    path = run.folder / f"{recipe.name}.toml"
    if not path.exists():
        raise FmsegError(f"Run {number} has no model yet: it was ended before anything was learned. Resume it.")
    held = [case.name for case in run.plan.validation]
    options = SegmentOptions(show_stages=False, device=recipe.device)
    card = read_card(path)
    card = replace(card, labels=todays_labels(run, card.labels))
    model = load_model(card, device=recipe.device)
    if run.plan.folds:
        scores = yield from leave_one_out(run, recipe, options)
    else:
        scores = yield from measure(project, model, held, options, run=run.folder)
    old = active_version(project)
    if old is not None and (waiting := cases_to_score(project, old.number)):
        found = yield from measure(project, load_model(old.card, device=recipe.device), waiting, options)
        project = record_scores(project, old.number, found)
    kept = add_version(run, card, recipe=recipe, scores=scores, force=force)
    if not scores:  # one image: little to say, but a case on which even its own model fails shows
        names = [case.name for case in run.plan.training]
        found = yield from measure(kept.project, model, names, options)
        record_scores(kept.project, kept.version.number, found)
    if kept.in_use:
        publish(kept.project)
    with atomic_write(run.folder / KEPT) as file:
        file.write(json.dumps({"version": kept.version.number, "in_use": kept.in_use, "why": kept.why}).encode())
    yield Warned(kept.why)
    yield Saved(kept.version.card.folder / f"{kept.version.card.name}.toml", kept.in_use)
    return kept
