"""Where the training cases come from: a folder, a list, phantoms, folds of them, and replayed cases."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from napari_fmseg.core.errors import InvalidRecipe, UnreadableVolume
from napari_fmseg.datasets.case import Case, missing_in
from napari_fmseg.datasets.folds import folds
from napari_fmseg.datasets.nnunet_raw import cases_of, find_unlabelled
from napari_fmseg.datasets.phantom.dataset import write_phantom_dataset
from napari_fmseg.pipelines.batch import group_channels, volumes_in
from napari_fmseg.pipelines.folders.steps import stem_of
from napari_fmseg.training.recipe import Recipe

__all__ = ["Source", "cases_for", "choose_unlabelled", "sources_of"]

_MOST_UNLABELLED = 100
"""They are all kept in memory."""


@dataclass(frozen=True)
class Source:
    """Cases of one folder, if they are of one, and what they were labelled with."""

    names: Mapping[int, str]
    training: Sequence[Case]
    validation: Sequence[Case]
    classes: tuple[str, ...] = ()
    watched: bool = False
    folder: Path | None = None

    def missing(self, case: Case, labels: Sequence[str]) -> tuple[int, ...]:
        """Return the recipe's labels that may hide in the background of a case."""
        looked_for = self.classes or tuple(self.names.values())
        gone = set(missing_in(case, self.names, labels))
        return tuple(
            i for i, name in enumerate(labels, 1) if name not in looked_for or (i in gone and not self.classes)
        )


def sources_of(recipe: Recipe) -> Iterator[Source]:
    """Yield the cases of the recipe, then the replayed ones."""
    names, training, validation = cases_for(recipe)
    yield Source(names, training, validation, folder=recipe.dataset)
    for replay in recipe.replay:
        theirs: Mapping[int, str] = dict(enumerate(recipe.labels, 1))
        training, validation = list(replay.training), list(replay.validation)
        if replay.dataset is not None:
            theirs, training, validation = cases_of(replay.dataset, replay.holdout)
        if replay.most and len(training) > replay.most:
            training = [training[i] for i in np.linspace(0, len(training) - 1, replay.most).round().astype(int)]
        called = {value: replay.names.get(name, name) for value, name in theirs.items()}
        yield Source(called, [] if replay.watch else training, validation, replay.classes, replay.watch, replay.dataset)


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
    if not recipe.unlabelled_weight or not any(stage.ema for stage in recipe.stages):
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


def _cases_below(folder: Path, channels: int) -> list[Case]:
    try:
        groups = group_channels(volumes_in(folder), channels)
    except UnreadableVolume as error:
        raise InvalidRecipe(f"unlabelled: {error}") from error
    return [Case(stem_of(paths[0]).removesuffix("_0000" if paths[1:] else ""), paths) for paths in groups]


def cases_for(recipe: Recipe) -> tuple[dict[int, str], list[Case], list[Case]]:
    """Return class names by number, training and validation cases of a recipe; phantoms are made if need be."""
    if recipe.phantom:
        folder = recipe.out / "phantom"
        if not (folder / "dataset.json").exists():  # written last, so it stands for a whole dataset
            write_phantom_dataset(folder, recipe.phantom[0], recipe.phantom[1], seed=recipe.seed)
        return _choose_fold(recipe, *cases_of(folder))
    if recipe.dataset is not None:
        return _choose_fold(recipe, *cases_of(recipe.dataset, recipe.holdout))
    return _choose_fold(recipe, dict(enumerate(recipe.labels, 1)), list(recipe.training), list(recipe.validation))


def _choose_fold(
    recipe: Recipe, names: dict[int, str], training: list[Case], validation: list[Case]
) -> tuple[dict[int, str], list[Case], list[Case]]:
    """Split the cases anew for cross-validation, where the recipe asks for it; a project's locked cases stay away."""
    if not recipe.fold:
        return names, training, validation
    locked = recipe.dataset is not None and (recipe.dataset / "fmseg" / "project.json").exists()
    groups = folds(training if locked else [*training, *validation], recipe.folds)
    held = list(groups[recipe.fold - 1])
    return names, [case for group in groups for case in group if case not in held], held
