"""The folder of a long run: which run it belongs to, and that one program at a time writes into it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from napari_fmseg.core.atomic_write import as_unwritable, atomic_write
from napari_fmseg.core.errors import InvalidRecipe
from napari_fmseg.core.processes import is_rank_zero
from napari_fmseg.core.structuring import read_table
from napari_fmseg.io.file_lock import Busy, hold_lock

__all__ = ["FOLDS_MARK", "claim_run_folder", "fingerprint"]

MARK, FOLDS_MARK = "run.json", "folds.json"
_HASH = "recipe_sha256"
_LOCK = ".lock"


@contextmanager
def claim_run_folder(
    folder: Path,
    fingerprints: Sequence[str] = (),
    content: Mapping[str, Any] | None = None,
    *,
    mark: str = MARK,
    run: str = "training",
) -> Iterator[None]:
    """Make a folder the run's, or continue the same run in it, and keep other programs out while the block runs.

    A folder is still free where a run left nothing but its mark, since its recipe could not be carried out. Of several
    processes that train together the first one holds the lock and writes the mark.

    Parameters
    ----------
    folder
        Created if it is missing.
    fingerprints
        Of the run; the first is written into the mark, the others are those that earlier versions computed. Without
        any the folder is only locked.
    content
        What else is written into the mark, to be read by people.
    mark
        The name of the file.
    run
        What the run is called in messages.

    Raises
    ------
    InvalidRecipe
        If another program is writing into it now, if it holds another run, or if its mark is damaged.
    UnwritableVolume
        If nothing can be written there.
    """
    with _lock(folder, run):
        if fingerprints:
            _check_mark(folder / mark, fingerprints, dict(content or {}), run)
        yield


def fingerprint(table: Mapping[str, Any]) -> str:
    """Return the hash of a run's table."""
    return hashlib.sha256(json.dumps(table, sort_keys=True, default=str).encode()).hexdigest()


@contextmanager
def _lock(folder: Path, run: str) -> Iterator[None]:
    if not is_rank_zero():
        yield
        return
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = hold_lock(folder / _LOCK)
        lock.__enter__()
    except Busy as error:
        raise InvalidRecipe(
            f"Another {run} is writing into {folder} at this moment. Wait until it is done, stop it, or choose "
            "another folder for the results."
        ) from error
    except OSError as error:
        raise as_unwritable(folder / MARK, error) from error
    try:
        yield
    finally:
        lock.__exit__(None, None, None)


def _check_mark(mark: Path, fingerprints: Sequence[str], content: dict[str, Any], run: str) -> None:
    """Compare the mark with the run; write it if there is none, or nothing beside it."""
    try:
        table = read_table(mark)
    except FileNotFoundError:
        _write_mark(mark, fingerprints[0], content)
        return
    except (OSError, ValueError) as error:
        raise _mark_error(mark, str(error)) from error
    # An earlier version wrote the content alone.
    found = table.get(_HASH, fingerprint(table) if content and table.keys() == content.keys() else None)
    if not isinstance(found, str):
        raise _mark_error(mark, f"it has no text {_HASH!r}")
    if found not in fingerprints and _holds_nothing(mark.parent):
        _write_mark(mark, fingerprints[0], content)
    elif found not in fingerprints:
        raise InvalidRecipe(
            f"{mark.parent} holds another {run}: the run of another recipe or of other options. Choose another folder "
            "for the results (`out`), or remove this one."
        )


def _holds_nothing(folder: Path) -> bool:
    """Return whether no file of a run lies in a folder or below it, but for marks and locks."""
    return {path.name for path in folder.rglob("*") if not path.is_dir()} <= {MARK, FOLDS_MARK, _LOCK}


def _write_mark(mark: Path, fingerprint: str, content: Mapping[str, Any]) -> None:
    if is_rank_zero():
        with atomic_write(mark) as file:
            file.write(json.dumps({_HASH: fingerprint, **content}, indent=1).encode())


def _mark_error(mark: Path, reason: str) -> InvalidRecipe:
    return InvalidRecipe(
        f"{mark} cannot be read: {reason}. Choose another folder for the results (`out`), or remove this one to begin "
        "anew."
    )
