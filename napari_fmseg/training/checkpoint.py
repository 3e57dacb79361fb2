"""Checkpoints of a run: written atomically, read without running code, and restored with a clear message."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from napari_fmseg.core.atomic_write import atomic_write
from napari_fmseg.core.errors import UnwritableVolume, WeightsMismatch
from napari_fmseg.models.convert import read_checkpoint

__all__ = ["load_checkpoint", "restoring", "save_checkpoint"]


def save_checkpoint(path: Path, content: Mapping[str, Any]) -> None:
    """Write a checkpoint atomically; the previous one stays until this one is complete.

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
        explained = UnwritableVolume(f"{error} The previous checkpoint is kept: run it again to resume from there.")
        explained.exit_code = error.exit_code
        raise explained from error


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
        raise _mismatch(path) from error
    if not isinstance(content, dict) or any(not isinstance(content.get(part), Mapping) for part in parts):
        raise _mismatch(path)
    return content


@contextmanager
def restoring(path: Path) -> Iterator[None]:
    """Raise WeightsMismatch if the content of a checkpoint does not fit what is being trained.

    Raises
    ------
    WeightsMismatch
        If it does not.
    """
    try:
        yield
    except (RuntimeError, ValueError, TypeError, AttributeError, LookupError) as error:
        raise _mismatch(path) from error


def _mismatch(path: Path) -> WeightsMismatch:
    return WeightsMismatch(
        f"{path} is damaged, or is not a checkpoint of this run, so that it cannot be resumed from there. Remove the "
        "file to train this part again, or restore it from a copy."
    )
