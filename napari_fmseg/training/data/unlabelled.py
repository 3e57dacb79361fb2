"""Volumes without labels that a training learns from: which ones, and reading them; never one of a labelled case."""

from __future__ import annotations

import os
from collections.abc import Collection, Generator, Sequence
from pathlib import Path

import numpy as np
import torch

from napari_fmseg.core.errors import FmsegError, InvalidRecipe, UnreadableVolume
from napari_fmseg.core.events import Progress, TrainEvent, Warned
from napari_fmseg.datasets.case import Case
from napari_fmseg.datasets.nnunet_raw import find_unlabelled
from napari_fmseg.pipelines.batch import group_channels, volumes_in
from napari_fmseg.pipelines.folders.steps import stem_of
from napari_fmseg.training.data.samples import Sample, check_channels, load_unlabelled
from napari_fmseg.training.data.sources import Source
from napari_fmseg.training.recipe import Recipe
from napari_fmseg.training.tasks import TASKS

__all__ = ["choose_unlabelled", "read_unlabelled"]

_MOST_UNLABELLED = 100
"""They are all kept in memory."""


def choose_unlabelled(recipe: Recipe, sources: Sequence[Source]) -> list[Case]:
    """Return the cases without labels that a recipe learns from; of many, evenly chosen.

    Parameters
    ----------
    recipe
        See `Recipe`.
    sources
        The cases with labels; their files are no cases without.

    Raises
    ------
    InvalidRecipe
        If the folder that the recipe names is missing or holds no volume.
    """
    learns = recipe.unlabelled_weight and any(stage.ema for stage in recipe.stages)
    if not learns or TASKS[recipe.pipeline].caches_cases:
        return []
    if isinstance(recipe.unlabelled, Path):
        cases = _cases_below(recipe.unlabelled, len(recipe.channels))
    else:
        cases = list(recipe.unlabelled) or ([] if recipe.dataset is None else find_unlabelled(recipe.dataset))
    labelled = [case for source in sources for case in (*source.training, *source.validation)]
    known = {os.path.realpath(path) for case in labelled for path in (*case.images, case.labels or "")}
    cases = [case for case in cases if known.isdisjoint(map(os.path.realpath, case.images))]
    if len(cases) > _MOST_UNLABELLED:
        cases = [cases[i] for i in np.linspace(0, len(cases) - 1, _MOST_UNLABELLED).round().astype(int)]
    return cases


def read_unlabelled(
    cases: Sequence[Case], recipe: Recipe, labelled: Collection[str], device: torch.device
) -> Generator[TrainEvent, None, list[Sample]]:
    """Read the cases without labels; one that cannot be used, or shows a labelled case, is left out with a warning.

    Parameters
    ----------
    cases
        See `choose_unlabelled`.
    recipe
        See `Recipe`.
    labelled
        Hashes of the images that have labels.
    device
        Where the samples are kept.
    """
    found: list[Sample] = []
    known = []
    crop_above = recipe.settings.get("crop_above") if TASKS[recipe.pipeline].crops_cases else None
    for done, case in enumerate(cases):
        yield Progress("reading", done, len(cases))
        try:
            sample = load_unlabelled(case, recipe.intensity, crop_above, device)
            check_channels(case, len(sample.image), recipe.channels)
        except FmsegError as error:
            yield Warned(f"{case.name} cannot be learned from without labels: {error}")
            continue
        if sample.image_hash in labelled:
            known.append(case.name)
            continue
        found.append(sample)
        yield from (Warned(f"{case.name}: {text}") for text in sample.warnings)
    if known:
        yield Warned(
            f"{len(known)} volume(s) that should have no labels are left out, since they show labelled cases, such as "
            f"{known[0]}."
        )
    return found


def _cases_below(folder: Path, channels: int) -> list[Case]:
    try:
        groups = group_channels(volumes_in(folder), channels)
    except UnreadableVolume as error:
        raise InvalidRecipe(f"unlabelled: {error}") from error
    return [Case(stem_of(paths[0]).removesuffix("_0000" if paths[1:] else ""), paths) for paths in groups]
