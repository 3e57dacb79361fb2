"""Atomic writing: a file is written beside its place, then renamed."""

from __future__ import annotations

import csv
import errno
import io
import os
import shutil
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from napari_fmseg.core.errors import UnwritableVolume
from napari_fmseg.core.temporary_files import passing_name, sweep

__all__ = [
    "as_unwritable",
    "atomic_write",
    "atomic_write_csv",
    "atomic_write_files",
    "check_folder",
    "check_name",
    "is_full",
    "remove_folders",
]

_LONGEST_NAME = 255  # bytes on Linux, characters elsewhere
_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


def is_full(error: BaseException) -> bool:
    """Return whether a failure to write means that the disk or the quota is full."""
    if not isinstance(error, OSError):
        return False
    return error.errno in _FULL or (error.errno is None and "requested and" in str(error))  # numpy gives no number


def as_unwritable(path: Path, error: OSError) -> UnwritableVolume:
    """Turn an error of the file system at `path` into one that states what the user can do about it."""
    if is_full(error):
        trouble = UnwritableVolume(
            f"{path.name} was not written: the disk or quota at {path.parent} is full. "
            "Free some space or choose another folder; nothing was left behind."
        )
        trouble.exit_code = 3
        return trouble
    if isinstance(error, PermissionError) or error.errno == errno.EROFS:
        return UnwritableVolume(
            f"{path.name} was not written: no permission to write in {path.parent}. Choose a folder of your own."
        )
    return UnwritableVolume(
        f"{path.name} was not written in {path.parent}: {error.strerror or error}. Choose another name or folder."
    )


def check_folder(path: Path) -> list[Path]:
    """Create the folder of `path` where it is missing, and return the folders that were created.

    Raises
    ------
    UnwritableVolume
        If the place is a folder itself, its name is too long, or its folder cannot be made or written to.
    """
    check_name(path)
    try:
        is_folder = path.is_dir()
        missing = [folder for folder in path.parents if not folder.exists()]
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise as_unwritable(path, error) from error
    if is_folder:
        raise UnwritableVolume(
            f"{path} is a folder. Give the name of the file to write, such as {path / 'labels.nii.gz'}."
        )
    if not os.access(path.parent, os.W_OK | os.X_OK):
        raise as_unwritable(path, PermissionError(errno.EACCES, "no permission"))
    return missing


def check_name(path: Path) -> None:
    """Refuse a file name that is longer than the file system takes, with `UnwritableVolume`, which says by how much."""
    name = os.fsencode(path.name) if sys.platform.startswith("linux") else path.name
    if len(name) > _LONGEST_NAME:
        raise UnwritableVolume(
            f"{path.name} is too long for the name of a file: {len(name)} bytes, and {_LONGEST_NAME} are possible. "
            "Choose a shorter name for the output."
        )


def remove_folders(folders: list[Path]) -> None:
    """Remove the folders that `check_folder` created, as far as they are still empty."""
    for folder in folders:
        with suppress(OSError):
            folder.rmdir()


@contextmanager
def atomic_write(path: Path) -> Iterator[IO[bytes]]:
    """Yield a file to write to, which becomes `path` when the block ends and vanishes when it fails.

    Missing folders are created, and removed again on failure.

    Raises
    ------
    UnwritableVolume
        If there is no space (`exit_code` 3), no permission, or any other trouble with the file system.
    """
    made = check_folder(path)
    sweep(path.parent)
    part = path.parent / f".{passing_name()}.part"  # short, since the name itself may be as long as names can be
    raw: _Raw | None = None
    try:
        raw = _Raw(part, "xb")
        with io.BufferedWriter(raw) as file:
            yield file
        os.replace(part, path)
    except BaseException as error:  # an interruption, too, must leave nothing behind
        part.unlink(missing_ok=True)
        remove_folders(made)
        if isinstance(error, OSError):
            raise as_unwritable(path, error) from error
        if raw is not None and raw.trouble is not None and isinstance(error, Exception):
            raise as_unwritable(path, raw.trouble) from error
        raise


def atomic_write_csv(path: Path | str, header: Sequence[str], rows: Iterable[Iterable[Any]]) -> Path:
    """Write a CSV file; one of that name is replaced only when the new one is complete. Raises as `atomic_write`."""
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(header)
    writer.writerows(rows)
    with atomic_write(Path(path)) as file:
        file.write(text.getvalue().encode())
    return Path(path)


class _Raw(io.FileIO):
    """A file that remembers why it could not be written: what writes into it, such as torch, may not pass that on."""

    trouble: OSError | None = None

    def write(self, data: Any, /) -> int:
        try:
            return super().write(data) or 0
        except OSError as error:
            self.trouble = error
            raise


@contextmanager
def atomic_write_files(folder: Path) -> Iterator[Path]:
    """Yield an empty folder whose files move into `folder` when the block ends, and vanish when it fails.

    Raises
    ------
    UnwritableVolume
        As `atomic_write`; and if a folder has the name of one of the files.
    """
    made = check_folder(folder / "The export")
    sweep(folder)
    part = folder / f".{passing_name()}.part"
    try:
        part.mkdir()
        yield part
        for file in sorted(part.iterdir()):
            check_folder(folder / file.name)
        for file in sorted(part.iterdir()):
            os.replace(file, folder / file.name)
        shutil.rmtree(part, ignore_errors=True)
    except BaseException as error:  # an interruption, too, must leave nothing behind
        shutil.rmtree(part, ignore_errors=True)
        remove_folders(made)
        if isinstance(error, OSError):
            raise as_unwritable(folder / "The export", error) from error
        raise
