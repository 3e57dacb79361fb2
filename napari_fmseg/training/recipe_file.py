"""Recipes as TOML files: read, check, write."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from napari_fmseg.core.errors import InvalidRecipe, UnknownModel
from napari_fmseg.core.structuring import read_table, structure, with_new_spellings, with_old_spellings
from napari_fmseg.datasets.case import Case, case_from
from napari_fmseg.models.settings import PIPELINES
from napari_fmseg.training.recipe import Recipe

__all__ = ["as_table", "load_recipe", "recipe_tables", "resolve_paths"]


def load_recipe(path: Path | str, **changes: Any) -> Recipe:
    """Read a recipe from TOML; paths in it are relative to the file's folder.

    Parameters
    ----------
    path
        The TOML file.
    **changes
        Fields to replace, such as ``out=...``; a `dataset` takes the place of phantoms and of lists of cases, too.

    Raises
    ------
    InvalidRecipe
        If the file cannot be read, or a field is unknown, missing or of the wrong kind.
    """
    path = Path(path)
    for name in ("dataset", "out", "prepared"):
        if changes.get(name) is not None:
            changes[name] = Path(changes[name]).absolute()
    instead = ("phantom", "training", "validation") if changes.get("dataset") is not None else ()
    try:
        table = {name: value for name, value in read_table(path, toml=True).items() if name not in instead}
        return _from_table({**table, **changes}, path.resolve().parent)
    except InvalidRecipe as error:
        raise InvalidRecipe(f"{path.name}: {error}") from error
    except FileNotFoundError as error:
        raise InvalidRecipe(f"There is no {path}. Check the name of the recipe.") from error
    except (OSError, ValueError, UnknownModel) as error:
        raise InvalidRecipe(
            f"{path.name} is no recipe: {error}. docs/reference/recipes.md lists its fields."
        ) from error


def _from_table(table: dict[str, Any], folder: Path) -> Recipe:
    for name in ("dataset", "out", "prepared", "unlabelled"):
        if isinstance(table.get(name), str | Path):
            table[name] = folder / os.path.expanduser(table[name])
    for name in ("training", "validation", "unlabelled"):
        if isinstance(table.get(name), list):
            table[name] = [case_from(entry, folder) for entry in table[name]]
    if isinstance(table.get("replay"), list):
        table["replay"] = [_replay(entry, folder) for entry in table["replay"]]
    pipeline = PIPELINES.get(str(table.get("pipeline", "phased")))
    if pipeline is not None and isinstance(table.get("settings"), Mapping):
        known = {field.name for field in dataclasses.fields(pipeline.settings)}
        table["settings"] = with_new_spellings(table["settings"], known, "settings.")
    start = table.get("start_from")
    if isinstance(start, str) and start.endswith(".toml"):
        table["start_from"] = str(folder / os.path.expanduser(start))
    return structure(Recipe, table)


def _replay(entry: Any, folder: Path) -> Any:
    if not isinstance(entry, Mapping):
        return entry
    table = dict(entry)
    if isinstance(table.get("dataset"), str):
        table["dataset"] = folder / os.path.expanduser(table["dataset"])
    for name in ("training", "validation"):
        if isinstance(table.get(name), list):
            table[name] = [case_from(case, folder) for case in table[name]]
    return table


def as_table(recipe: Recipe) -> dict[str, Any]:
    """Return the recipe as plain values, for hashing, cards and JSON."""
    table: dict[str, Any] = json.loads(json.dumps(dataclasses.asdict(recipe), default=str))
    for name in ("unit", "channels"):  # younger than some runs, which must go on with the hash that they have
        if not table["intensity"][name]:
            del table["intensity"][name]
    return table


def recipe_tables(recipe: Recipe, without: Collection[str]) -> list[dict[str, Any]]:
    """Return the tables by which a run folder knows its recipe, the present one first.

    Earlier versions recorded paths as they were given, and the fields under their old names.
    """
    tables = [
        {name: value for name, value in as_table(one).items() if name not in without}
        for one in (resolve_paths(recipe), recipe)
    ]
    return [*tables, *map(with_old_spellings, tables)]


def resolve_paths(recipe: Recipe) -> Recipe:
    """Return a recipe whose paths do not depend on the working folder, nor on links on the way."""
    replay = tuple(
        dataclasses.replace(
            one,
            dataset=None if one.dataset is None else one.dataset.resolve(),
            training=tuple(map(_resolve_case, one.training)),
            validation=tuple(map(_resolve_case, one.validation)),
        )
        for one in recipe.replay
    )
    start, unlabelled = recipe.start_from, recipe.unlabelled
    return dataclasses.replace(
        recipe,
        dataset=None if recipe.dataset is None else recipe.dataset.resolve(),
        training=tuple(map(_resolve_case, recipe.training)),
        validation=tuple(map(_resolve_case, recipe.validation)),
        replay=replay,
        unlabelled=unlabelled.resolve() if isinstance(unlabelled, Path) else tuple(map(_resolve_case, unlabelled)),
        start_from=str(Path(start).resolve()) if start.endswith(".toml") else start,
    )


def _resolve_case(case: Case) -> Case:
    """Resolve the folders of a case's files; a file may itself be a link, whose target may change its place."""
    images = tuple(path.parent.resolve() / path.name for path in case.images)
    return dataclasses.replace(
        case, images=images, labels=case.labels and case.labels.parent.resolve() / case.labels.name
    )
