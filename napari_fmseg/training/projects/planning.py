"""The recipe of a project's next training."""

from __future__ import annotations

from typing import Any

from napari_fmseg.core.errors import InvalidRecipe
from napari_fmseg.datasets.projects.training_plan import Run
from napari_fmseg.training.projects.names import model_name
from napari_fmseg.training.recipe import Recipe, StageRecipe

__all__ = ["recipe_for"]


def recipe_for(run: Run, stages: tuple[StageRecipe, ...], *, name: str = "", **fields: Any) -> Recipe:
    """Make the recipe of a run: its cases as they are, the model in the run's folder.

    Parameters
    ----------
    run
        See `start_run`.
    stages
        What to train.
    name
        Of the model; by default the project's.
    **fields
        Of `Recipe`, such as ``start_from``, ``settings`` or ``intensity``.

    Raises
    ------
    InvalidRecipe
        If the recipe cannot be carried out, or the classes are not numbered 1, 2, 3...
    """
    plan, facts = run.plan, run.project.facts
    if list(plan.names) != list(range(1, len(plan.names) + 1)):
        raise InvalidRecipe(
            f"The classes have the numbers {', '.join(map(str, plan.names))}. Number them 1, 2, 3... without a gap, as "
            "nnU-Net wants them."
        )
    given = {"modality": facts.channels[0] if facts.channels[0] in ("CT", "MR", "PET") else "", **fields}
    return Recipe(
        name=name or model_name(run.project),
        stages=stages,
        labels=plan.labels,
        training=plan.training,
        validation=plan.validation,
        ignore=plan.ignore or 0,
        channels=facts.channels,
        out=run.folder,
        **given,
    )
