"""Where the training cases come from: a folder, a list, phantoms, folds of them, and replayed cases."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from napari_fmseg.datasets.case import Case, missing_in
from napari_fmseg.datasets.folds import folds
from napari_fmseg.datasets.nnunet_raw import cases_of
from napari_fmseg.datasets.phantom.dataset import write_phantom_dataset
from napari_fmseg.training.recipe import Recipe

__all__ = ["Source", "cases_for", "sources_of"]


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
