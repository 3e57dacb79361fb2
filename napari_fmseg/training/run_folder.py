"""The folder of a run: whose it is, who writes into it now, and the checkpoints from which it goes on."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from napari_fmseg.core.atomic_write import as_unwritable, atomic_write
from napari_fmseg.core.errors import InvalidRecipe, UnwritableVolume, WeightsMismatch
from napari_fmseg.core.processes import is_rank_zero
from napari_fmseg.core.structuring import read_table, structure
from napari_fmseg.datasets.case import Case
from napari_fmseg.io.file_lock import Busy, hold_lock
from napari_fmseg.models.convert import read_checkpoint
from napari_fmseg.training.recipe import Recipe

__all__ = ["claim", "fingerprint", "hold", "load_checkpoint", "resolved", "restoring", "save_checkpoint"]

_MARK = "run.json"


@contextmanager
def hold(folder: Path) -> Iterator[None]:
    """Keep others from training into a folder while the block runs; of several that learn together the first does.

    Raises
    ------
    InvalidRecipe
        If another program is training into it now.
    UnwritableVolume
        If nothing can be written there.
    """
    if not is_rank_zero():
        yield
        return
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = hold_lock(folder / ".lock")
        lock.__enter__()
    except Busy as error:
        raise InvalidRecipe(
            f"Another training is writing into {folder} at this moment. Wait until it is done, stop it, or choose "
            "another folder (`out`)."
        ) from error
    except OSError as error:
        raise as_unwritable(folder / _MARK, error) from error
    try:
        yield
    finally:
        lock.__exit__(None, None, None)


@dataclass(frozen=True)
class _Mark:
    """What the mark in the folder of a run says."""

    recipe_sha256: str


def claim(folder: Path, fingerprints: Sequence[str], table: Mapping[str, Any] | None = None) -> None:
    """Make a folder the run's, or go on with what lies there if it is the same run.

    Parameters
    ----------
    folder
        See `hold`.
    fingerprints
        Of the run; the first is written down, the others are as earlier versions counted.
    table
        Of the recipe, to be read by people.

    Raises
    ------
    InvalidRecipe
        If it holds the run of another recipe, or its mark is damaged.
    """
    mark = folder / _MARK
    try:
        found = structure(_Mark, read_table(mark), known_only=True).recipe_sha256
    except FileNotFoundError:
        if is_rank_zero():
            more = {} if table is None else {"recipe": table}
            with atomic_write(mark) as file:
                file.write(json.dumps({"recipe_sha256": fingerprints[0], **more}, indent=1).encode())
        return
    except (OSError, ValueError) as error:
        raise InvalidRecipe(
            f"{mark} cannot be read: {error}. Choose another `out`, or remove the folder to begin anew."
        ) from error
    if found not in fingerprints:
        raise InvalidRecipe(f"{folder} holds the run of another recipe. Choose another `out`, or remove the folder.")


def fingerprint(table: Mapping[str, Any]) -> str:
    """Return the hash of a recipe's table."""
    return hashlib.sha256(json.dumps(table, sort_keys=True, default=str).encode()).hexdigest()


def resolved(recipe: Recipe) -> Recipe:
    """Return a recipe whose paths do not depend on the working folder, nor on links on the way."""
    replay = tuple(
        replace(
            one,
            dataset=None if one.dataset is None else one.dataset.resolve(),
            training=tuple(map(_resolved, one.training)),
            validation=tuple(map(_resolved, one.validation)),
        )
        for one in recipe.replay
    )
    start = recipe.start_from
    return replace(
        recipe,
        dataset=None if recipe.dataset is None else recipe.dataset.resolve(),
        training=tuple(map(_resolved, recipe.training)),
        validation=tuple(map(_resolved, recipe.validation)),
        replay=replay,
        start_from=str(Path(start).resolve()) if start.endswith(".toml") else start,
    )


def _resolved(case: Case) -> Case:
    """Resolve the folders of a case's files; a file may itself be a link, whose target may change its place."""
    images = tuple(path.parent.resolve() / path.name for path in case.images)
    return replace(case, images=images, labels=case.labels and case.labels.parent.resolve() / case.labels.name)


def save_checkpoint(path: Path, content: Mapping[str, Any]) -> None:
    """Write a checkpoint; the one before stays until this one is whole.

    Raises
    ------
    UnwritableVolume
        If the disk is full (`exit_code` 3), or nothing can be written there.
    """
    import torch

    try:
        with atomic_write(path) as file:
            torch.save(dict(content), file)
    except UnwritableVolume as error:
        told = UnwritableVolume(f"{error} What was learned up to the checkpoint before is kept: run it again to go on.")
        told.exit_code = error.exit_code
        raise told from error


def load_checkpoint(path: Path, parts: Sequence[str]) -> dict[str, Any] | None:
    """Read a checkpoint; None if there is none.

    Parameters
    ----------
    path
        See `save_checkpoint`.
    parts
        What must be in it.

    Raises
    ------
    WeightsMismatch
        If it is damaged, not one of ours, or would run code.
    """
    if not os.path.lexists(path):
        return None
    try:
        content = read_checkpoint(path)
    except WeightsMismatch as error:
        raise _useless(path) from error
    if not isinstance(content, dict) or any(not isinstance(content.get(part), Mapping) for part in parts):
        raise _useless(path)
    return content


@contextmanager
def restoring(path: Path) -> Iterator[None]:
    """Report it in a sentence if what was in a checkpoint does not fit what is trained.

    Raises
    ------
    WeightsMismatch
        If it does not.
    """
    try:
        yield
    except (RuntimeError, ValueError, TypeError, AttributeError, LookupError) as error:
        raise _useless(path) from error


def _useless(path: Path) -> WeightsMismatch:
    return WeightsMismatch(
        f"{path} is damaged, or no checkpoint of this run, so that it cannot go on from there. Remove the file to "
        "learn this part again, or restore it from a copy."
    )
