"""What to train, from what, and for how long: a recipe that follows from the cases and the time that there is."""

from __future__ import annotations

from collections.abc import Generator, Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import tomli_w

from napari_fmseg.core.atomic_write import atomic_write
from napari_fmseg.core.errors import FmsegError
from napari_fmseg.core.events import Progress, Saved, Warned
from napari_fmseg.core.structuring import Range, wrong_number
from napari_fmseg.datasets.projects.project import Project
from napari_fmseg.datasets.projects.scan import scan_cases
from napari_fmseg.datasets.projects.training_plan import Run, start_run, training_plan
from napari_fmseg.datasets.projects.transaction import STATE_DIR
from napari_fmseg.models.card import ModelCard
from napari_fmseg.models.registry import GENERAL_START, find_card
from napari_fmseg.training.projects.names import model_name
from napari_fmseg.training.projects.planning import recipe_for
from napari_fmseg.training.projects.versions import active_version, leaked_cases
from napari_fmseg.training.recipe import Augment, Recipe
from napari_fmseg.training.recipe_file import as_table

__all__ = [
    "ACTIVE_VERSION",
    "FROM_SCRATCH",
    "TrainingOptions",
    "prepare_run",
    "recipe_file",
    "unfinished_run",
    "write_recipe",
]

ACTIVE_VERSION, FROM_SCRATCH = "project", ""
"""To start from the project's model in use, or from nothing."""

_LOOKS = 4
"""At the held-out cases during a stage, at least: a curve of one point says nothing."""

KEPT = "kept.json"
"""In the folder of a run whose model became a version."""


_RANGES = {
    "minutes": Range(0, 7 * 24 * 60, open="low"),
    "rate": Range(0, 1000, open="low"),
    "seed": Range(0, 2**32 - 1),
}


@dataclass(frozen=True)
class TrainingOptions:
    """Options of a training beside what it starts from; by default all of them follow from the data.

    Parameters
    ----------
    minutes
        About how long it may take. More minutes see more detail and learn it better.
    rate
        Factor on the learning rate: below 1 learns more carefully, above 1 faster and less surely.
    seed
        Random seed: the same one gives the same model on a processor.
    device
        Where it runs: auto takes a graphics card where there is one.
    precision
        auto takes 16 bit on a graphics card; float32 is the most exact.
    """

    minutes: float = 5.0
    rate: float = 1.0
    seed: int = 0
    device: str = "auto"
    precision: str = "auto"

    def __post_init__(self) -> None:
        if wrong := wrong_number(self, _RANGES):
            raise FmsegError(f"{wrong}. A training takes more than 0 minutes and at most a week.")


def prepare_run(
    project: Project,
    start: str = ACTIVE_VERSION,
    options: TrainingOptions = TrainingOptions(),
    augment: Augment | None = None,
) -> Generator[Progress | Warned | Saved, None, Run]:
    """Open a run and write its recipe, ready for ``fmseg train``; torch measures this machine for it.

    Parameters
    ----------
    project
        With labelled cases.
    start
        `ACTIVE_VERSION`, `GENERAL_START`, `FROM_SCRATCH`, the name of a model, or the path of a card.
    options, augment
        See there.

    Yields
    ------
    Progress, Warned or Saved
        Cases that are examined, the reasons for what was chosen, and the recipe.

    Returns
    -------
    Run
        Its folder holds ``recipe.toml``; see `recipe_file`.

    Raises
    ------
    FmsegError
        If there is nothing to learn from, or the model to start from does not fit the project.
    """
    from napari_fmseg.training.planner import suggest_recipe

    project = yield from scan_cases(project)
    plan = training_plan(project)
    card = _card(project, start)
    yield Progress("choosing", 0, 1)
    rounds = 1 + len(plan.folds)
    if plan.folds:
        yield Warned(
            f"The time is for {rounds} trainings: one on all images, and one without each of them, to measure on it."
        )
    suggestion = suggest_recipe(
        plan.training,
        options.minutes / rounds,
        _name(card) or None,
        None if options.device == "auto" else options.device,
        labels=plan.labels,
        validation=plan.validation,
        unlabelled=plan.unlabelled,
    )
    for word in suggestion.words:
        yield Warned(word)
    found = suggestion.recipe
    stages = tuple(
        replace(
            stage,
            lr=stage.lr * options.rate,
            steps_per_epoch=max(5, min(stage.steps_per_epoch, -(-stage.steps // _LOOKS)))
            if plan.validation
            else stage.steps_per_epoch,
        )
        for stage in found.stages
    )
    known = card is not None and any(name in plan.labels for name in card.labels.values())
    run = start_run(project, plan)
    start_from = found.start_from if card is not None and card.name == GENERAL_START else _name(card)
    recipe = recipe_for(
        run,
        stages,
        name=model_name(run.project),
        title=str(project.facts.table.get("name") or project.folder.name),
        start_from=start_from,
        pipeline=found.pipeline,
        settings=found.settings,
        intensity=found.intensity,
        augment=_merge(found.augment, augment or Augment()),
        balance=found.balance,
        distillation_weight=found.distillation_weight if known else 0.0,
        unlabelled=found.unlabelled,
        unlabelled_weight=found.unlabelled_weight,
        validate_cases=min(3, found.validate_cases),
        seed=options.seed,
        device=options.device,
        precision=found.precision if options.precision == "auto" else options.precision,
        trained_on=f"{len(plan.training)} case(s) of a project; {len(plan.validation)} held out."
        + (f" It started from {card.name} ({card.licence})." if card and start_from and card.licence else ""),
    )
    write_recipe(recipe, recipe_file(run))
    yield Saved(recipe_file(run), True)
    return run


def _merge(found: Augment, given: Augment) -> Augment:
    """Return the augmentation that follows from the data, with what somebody set instead of the default."""
    default = Augment()
    names = [field.name for field in fields(Augment)]
    return replace(found, **{n: getattr(given, n) for n in names if getattr(given, n) != getattr(default, n)})


def recipe_file(run: Run) -> Path:
    """Return the path of a run's recipe."""
    return run.folder / "recipe.toml"


def unfinished_run(project: Project) -> int:
    """Return the number of the last run if it has no version yet, so that it can be resumed; else 0."""
    runs = [p for p in (project.folder / STATE_DIR / "runs").glob("[0-9]*") if p.name.isdecimal()]
    last = max(runs, key=lambda p: int(p.name), default=None)
    if last is None or (last / KEPT).exists() or not (last / "recipe.toml").exists():
        return 0
    return int(last.name)


def _card(project: Project, start: str) -> ModelCard | None:
    if start == ACTIVE_VERSION:
        present = active_version(project)
        return present.card if present is not None else None
    if start == FROM_SCRATCH:
        return None
    card = find_card(start)
    if len(card.channels) != len(project.facts.channels):
        raise FmsegError(
            f"{card.name} takes {len(card.channels)} channel(s) and the project has {len(project.facts.channels)}. "
            "Start from another model, or from scratch."
        )
    leaked = leaked_cases(project, card)
    if leaked:
        raise FmsegError(
            f"{card.name} has learned from {leaked[0]}, which is held out in this project to measure honestly. Start "
            "from another model, or from scratch."
        )
    return card


def _name(card: ModelCard | None) -> str:
    if card is None:
        return ""
    if card.name == GENERAL_START:
        return GENERAL_START
    own = card.folder / f"{card.name}.toml"
    return str(own) if own.exists() else card.name


def write_recipe(recipe: Recipe, path: Path) -> None:
    """Write a recipe as TOML, for `load_recipe`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    text = tomli_w.dumps(_without_empty(as_table(recipe)))
    with atomic_write(path) as file:
        file.write(text.encode())


def _without_empty(table: Mapping[str, Any]) -> dict[str, Any]:
    """Leave out what is empty: TOML has no word for None."""
    filled = {}
    for name, value in table.items():
        if isinstance(value, Mapping):
            value = _without_empty(value)
        elif isinstance(value, list):
            value = [_without_empty(v) if isinstance(v, Mapping) else v for v in value]
        if value is not None and value != {} and value != []:
            filled[name] = value
    return filled
