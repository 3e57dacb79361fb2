"""Several files that change together: after a kill at any moment all of them are old, or all of them are new.

New files are first written into ``fmseg/staging``. Then one file, ``fmseg/commit.json``, says which of them goes where;
it appears by one rename, and with it the change has happened. Whoever opens the project next, this process or another,
moves what was not moved yet, or throws away what was never committed. One process writes at a time: a lock on
``fmseg/lock`` is given back by the operating system however a process ends.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from napari_fmseg.core.atomic_write import as_unwritable
from napari_fmseg.core.errors import FmsegError, UnwritableVolume
from napari_fmseg.core.structuring import read_table, structure
from napari_fmseg.io.file_lock import Busy, hold_lock

__all__ = ["STATE_DIR", "Transaction", "inside", "recover", "transaction"]

STATE_DIR = "fmseg"
"""The folder of a project that is ours; the rest is nnU-Net's layout."""

_COMMIT, _STAGING, _LOCK = "commit.json", "staging", "lock"
_PATIENCE_SECONDS = 60.0


class Transaction:
    """What is to change in a project, collected in a staging folder.

    Paths are relative to the project, with forward slashes. Nothing is seen of it before the commit.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._staging = folder / STATE_DIR / _STAGING / uuid.uuid4().hex[:12]
        self._moves: list[tuple[str, str]] = []
        self._removals: list[str] = []

    def place(self, path: str) -> Path:
        """Return the place where the file or folder that becomes `path` is to be written; its name has the same end."""
        self._staging.mkdir(parents=True, exist_ok=True)
        staged = self._staging / f"{len(self._moves):03d}-{PurePosixPath(path).name}"
        self._moves.append((staged.relative_to(self._folder).as_posix(), path))
        return staged

    def text(self, path: str, content: str) -> None:
        """Write text as `path`."""
        self.place(path).write_text(content, encoding="utf-8")

    def table(self, path: str, content: object) -> None:
        """Write JSON as `path`."""
        self.text(path, json.dumps(content, indent=1) + "\n")

    def copy(self, source: Path, path: str) -> None:
        """Copy a file as `path`."""
        shutil.copyfile(source, self.place(path))

    def link(self, target: Path, path: str) -> None:
        """Make `path` a symbolic link to a file outside of the project; `UnwritableVolume` where links are unknown."""
        try:
            self.place(path).symlink_to(target.absolute())
        except OSError as error:
            raise UnwritableVolume(
                f"{target.name} cannot be linked from {self._folder}: {error.strerror or error}. Copy it instead."
            ) from error

    def move(self, source: str, path: str) -> None:
        """Move a file within the project."""
        self._moves.append((source, path))

    def remove(self, path: str) -> None:
        """Remove a file of the project."""
        self._removals.append(path)

    def commit(self) -> None:
        """Commit all collected changes."""
        if not self._moves and not self._removals:
            return
        self._check()
        self._to_disk()
        document = json.dumps({"moves": self._moves, "removals": self._removals})
        self._staging.mkdir(parents=True, exist_ok=True)
        ready = self._staging / _COMMIT
        ready.write_text(document, encoding="utf-8")
        _flush(ready)
        os.replace(ready, self._folder / STATE_DIR / _COMMIT)  # here it happens
        _carry_out(self._folder)

    def discard(self) -> None:
        """Discard what was not committed."""
        shutil.rmtree(self._staging, ignore_errors=True)
        with suppress(OSError):
            self._staging.parent.rmdir()

    def _check(self) -> None:
        """Refuse before the commit what could not be carried out after it."""
        for path in (*(path for move in self._moves for path in move), *self._removals):
            inside(self._folder, path)
        for path in (*(target for _, target in self._moves), *self._removals):
            target = self._folder / path
            target.parent.mkdir(parents=True, exist_ok=True)
            if not os.access(target.parent, os.W_OK | os.X_OK):
                raise PermissionError(errno.EACCES, "no permission", str(target.parent))

    def _to_disk(self) -> None:
        for place in self._staging.rglob("*") if self._staging.exists() else ():
            if place.is_file() and not place.is_symlink():
                _flush(place)


@contextmanager
def transaction(folder: Path) -> Iterator[Transaction]:
    """Change files of a project together: committed when the block ends, discarded when it fails.

    Raises
    ------
    UnwritableVolume
        If the disk is full (`exit_code` 3) or the project may not be written.
    FmsegError
        If another process has been writing for a minute.
    """
    try:
        check_ours(folder)
        (folder / STATE_DIR).mkdir(parents=True, exist_ok=True)
        with _hold(folder, _PATIENCE_SECONDS):
            _recover(folder)
            change = Transaction(folder)
            try:
                yield change
                change.commit()
            finally:
                change.discard()
    except OSError as error:
        raise as_unwritable(folder / "The project", error) from error


def recover(folder: Path, *, tidy: bool = True) -> None:
    """Finish what a killed process had committed, and discard the rest.

    Where another process is at work, or nothing may be written, everything stays as it is.

    Parameters
    ----------
    folder
        Of the project.
    tidy
        Throw away, too. Without it nothing is written unless a commit has to be finished.

    Raises
    ------
    FmsegError
        If the commit file is damaged, or names a place outside of the project: then nothing of it is done.
    """
    ours = folder / STATE_DIR
    check_ours(folder)
    committed = (ours / _COMMIT).exists()
    if not committed and not (tidy and (ours / _STAGING).exists()):
        return
    # Without a commit file another process may still be preparing: what can be read is whole, and nobody waits.
    with suppress(Busy, OSError), _hold(folder, _PATIENCE_SECONDS if committed else 0):
        _recover(folder)


@dataclass(frozen=True)
class _Document:
    """What the commit file holds."""

    moves: tuple[tuple[str, str], ...]
    removals: tuple[str, ...]


def _recover(folder: Path) -> None:
    if (folder / STATE_DIR / _COMMIT).exists():
        _carry_out(folder)
    shutil.rmtree(folder / STATE_DIR / _STAGING, ignore_errors=True)


def _carry_out(folder: Path) -> None:
    """Carry out the steps of the commit file that are not done; every step can be done twice."""
    commit = folder / STATE_DIR / _COMMIT
    try:
        document = structure(_Document, read_table(commit))
    except ValueError as error:
        raise FmsegError(f"{commit} is damaged: {error}. Restore the project from a copy.") from error
    targets = [PurePosixPath(target) for _, target in document.moves]
    named = [path for move in document.moves for path in move] + list(document.removals)
    for path in named:
        inside(folder, path, commit)
        if set(PurePosixPath(path).parents) & set(targets):  # a link that is moved there would lead out
            raise FmsegError(f"{commit} is damaged: it moves something into {path!r}, too. Restore a copy.")
    for source, target in document.moves:
        if os.path.lexists(folder / source):
            (folder / target).parent.mkdir(parents=True, exist_ok=True)
            _replace(inside(folder, source, commit), inside(folder, target, commit))
    for path in document.removals:
        inside(folder, path, commit).unlink(missing_ok=True)
    commit.unlink()


def check_ours(folder: Path) -> None:
    """Refuse a project whose ``fmseg``, staging folder or lock is a link: what is written there would lie elsewhere."""
    for place in (folder / STATE_DIR, folder / STATE_DIR / _STAGING, folder / STATE_DIR / _LOCK):
        if place.is_symlink():
            raise FmsegError(
                f"{place} is a link. What belongs to a project must lie in it: put the folder itself in its place, or "
                "do not use this project if it is not your own. Nothing was written, moved or removed."
            )


def inside(folder: Path, path: str, named_by: Path | None = None) -> Path:
    """Return the place of `path` in a project if it lies there, whatever links lead to it.

    A project from elsewhere must not make us write, move or remove anything outside of itself. The last part may be a
    link: it is itself replaced or removed, and not what it leads to.

    Parameters
    ----------
    folder
        Of the project.
    path
        Relative to it, with forward slashes.
    named_by
        The file that names it, for the message.

    Raises
    ------
    FmsegError
        If it leaves the project.
    """
    pure = PurePosixPath(path)
    windows = os.name == "nt" and ("\\" in path or ":" in path)
    place = folder / pure
    leaves = pure.is_absolute() or ".." in pure.parts or not pure.parts or windows or "\0" in path
    if not leaves:
        try:
            leaves = not place.parent.resolve().is_relative_to(folder.resolve())
        except (OSError, RuntimeError):  # links that lead in a circle
            leaves = True
    if leaves:
        said = f"{named_by} names {path!r}, which" if named_by is not None else f"{path!r} in {folder}"
        raise FmsegError(
            f"{said} lies outside of the project, or is reached through a link that leads there. Nothing was written, "
            "moved or removed. Put folders in the place of links, or do not use this project if it is not your own."
        )
    return place


def _replace(source: Path, target: Path) -> None:
    try:
        os.replace(source, target)
    except OSError as error:
        if error.errno != errno.EXDEV:
            raise
        beside = target.with_name(f".{uuid.uuid4().hex[:12]}.part")  # imagesTr may be another disk, mounted there
        shutil.copyfile(source, beside, follow_symlinks=False)
        os.replace(beside, target)
        source.unlink()


def _flush(path: Path) -> None:
    """Wait until the content has reached the disk, so that a power cut cannot keep the name and lose the file."""
    with path.open("rb+") as file:
        os.fsync(file.fileno())


@contextmanager
def _hold(folder: Path, patience: float) -> Iterator[None]:
    try:
        with hold_lock(folder / STATE_DIR / _LOCK, patience):
            yield
    except Busy as error:
        raise Busy(
            f"Another program has been writing into {folder} for {patience:.0f} s. Wait until it is done, or "
            "end it if it hangs; nothing was changed."
        ) from error
