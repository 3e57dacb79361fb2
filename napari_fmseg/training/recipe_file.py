"""Recipes as TOML files: read, check, write."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from napari_fmseg.core.errors import InvalidRecipe, UnknownModel
from napari_fmseg.core.structuring import read_table, structure
from napari_fmseg.datasets.case import case_from
from napari_fmseg.training.recipe import Recipe

__all__ = ["load_recipe"]


def load_recipe(path: Path | str, **changes: Any) -> Recipe:
    """Read a recipe from TOML; paths in it are relative to the file's folder.

    Parameters
    ----------
    path
        The TOML file.
    **changes
        Fields to replace, such as ``out=...``.

    Raises
    ------
    InvalidRecipe
        If the file cannot be read, or a field is unknown, missing or of the wrong kind.
    """
    path = Path(path)
    for name in ("dataset", "out", "prepared"):
        if changes.get(name) is not None:
            changes[name] = Path(changes[name]).absolute()
    try:
        return _from_table({**read_table(path, toml=True), **changes}, path.resolve().parent)
    except InvalidRecipe as error:
        raise InvalidRecipe(f"{path.name}: {error}") from error
    except (OSError, ValueError, UnknownModel) as error:
        raise InvalidRecipe(
            f"{path.name} is no recipe: {error}. docs/reference/recipes.md lists its fields."
        ) from error


def _from_table(table: dict[str, Any], folder: Path) -> Recipe:
    for name in ("dataset", "out", "prepared"):
        if isinstance(table.get(name), str | Path):
            table[name] = folder / os.path.expanduser(table[name])
    for name in ("training", "validation"):
        if isinstance(table.get(name), list):
            table[name] = [case_from(entry, folder) for entry in table[name]]
    if isinstance(table.get("replay"), list):
        table["replay"] = [_replay(entry, folder) for entry in table["replay"]]
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
