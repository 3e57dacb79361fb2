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
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path, PurePosixPath
from typing import IO

from napari_fmseg.errors import FmsegError, UnwritableVolume
from napari_fmseg.io.writing import unwritable

__all__ = ["OURS", "Change", "changing", "settle"]

OURS = "fmseg"
"""The folder of a project that is ours; the rest is nnU-Net's layout."""

_COMMIT, _STAGING, _LOCK = "commit.json", "staging", "lock"
_PATIENCE_SECONDS = 60.0


class Change:
    """What is to change in a project, collected in a staging folder.

    Paths are relative to the project, with forward slashes. Nothing is seen of it before the commit.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._staging = folder / OURS / _STAGING / uuid.uuid4().hex[:12]
        self._moves: list[tuple[str, str]] = []
        self._removals: list[str] = []

    def place(self, path: str) -> Path:
        """Give the place where the file or folder that becomes `path` is to be written; its name has the same end."""
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
        """Make `path` a symbolic link to a file outside of the project.

        Raises
        ------
        UnwritableVolume
            If the file system knows no links.
        """
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
        """Make everything happen; with nothing collected, nothing does."""
        if not self._moves and not self._removals:
            return
        self._check()
        self._to_disk()
        document = json.dumps({"moves": self._moves, "removals": self._removals})
        self._staging.mkdir(parents=True, exist_ok=True)
        ready = self._staging / _COMMIT
        ready.write_text(document, encoding="utf-8")
        _flush(ready)
        os.replace(ready, self._folder / OURS / _COMMIT)  # here it happens
        _carry_out(self._folder)

    def discard(self) -> None:
        """Throw away what was not committed."""
        shutil.rmtree(self._staging, ignore_errors=True)
        with suppress(OSError):
            self._staging.parent.rmdir()

    def _check(self) -> None:
        """Refuse before the commit what could not be carried out after it."""
        for path in (*(target for _, target in self._moves), *self._removals):
            target = _inside(self._folder, path)
            target.parent.mkdir(parents=True, exist_ok=True)
            if not os.access(target.parent, os.W_OK | os.X_OK):
                raise PermissionError(errno.EACCES, "no permission", str(target.parent))

    def _to_disk(self) -> None:
        for place in self._staging.rglob("*") if self._staging.exists() else ():
            if place.is_file() and not place.is_symlink():
                _flush(place)


@contextmanager
def changing(folder: Path) -> Iterator[Change]:
    """Change files of a project together: committed when the block ends, forgotten when it fails.

    Raises
    ------
    UnwritableVolume
        If the disk is full (`exit_code` 3) or the project may not be written.
    FmsegError
        If another process has been writing for a minute.
    """
    try:
        (folder / OURS).mkdir(parents=True, exist_ok=True)
        with _locked(folder, _PATIENCE_SECONDS):
            _recover(folder)
            change = Change(folder)
            try:
                yield change
                change.commit()
            finally:
                change.discard()
    except OSError as error:
        raise unwritable(folder / "The project", error) from error


def settle(folder: Path) -> None:
    """Finish or throw away what a killed process left behind.

    Where another process is at work, or nothing may be written, everything stays as it is.
    """
    ours = folder / OURS
    if not (ours / _COMMIT).exists() and not (ours / _STAGING).exists():
        return
    # Without a commit file another process may still be preparing: what can be read is whole, and nobody waits.
    patience = _PATIENCE_SECONDS if (ours / _COMMIT).exists() else 0
    with suppress(_Busy, OSError), _locked(folder, patience):
        _recover(folder)


def _recover(folder: Path) -> None:
    if (folder / OURS / _COMMIT).exists():
        _carry_out(folder)
    shutil.rmtree(folder / OURS / _STAGING, ignore_errors=True)


def _carry_out(folder: Path) -> None:
    """Do what the commit file says, as far as it is not done; every step can be done twice."""
    commit = folder / OURS / _COMMIT
    try:
        document = json.loads(commit.read_text(encoding="utf-8"))
        moves = [(_inside(folder, a), _inside(folder, b)) for a, b in document["moves"]]
        removals = [_inside(folder, path) for path in document["removals"]]
    except (ValueError, KeyError, TypeError) as error:
        raise FmsegError(f"{commit} is damaged: {error}. Restore the project from a copy.") from error
    for source, target in moves:
        if os.path.lexists(source):
            target.parent.mkdir(parents=True, exist_ok=True)
            _replace(source, target)
    for path in removals:
        path.unlink(missing_ok=True)
    commit.unlink()


def _inside(folder: Path, path: str) -> Path:
    """Give `path` within the project; a project from elsewhere must not name files outside of itself."""
    pure = PurePosixPath(path)
    windows = os.name == "nt" and ("\\" in path or ":" in path)
    if pure.is_absolute() or ".." in pure.parts or windows:
        raise ValueError(f"it names {path}, which lies outside of the project")
    return folder / pure


def _replace(source: Path, target: Path) -> None:
    try:
        os.replace(source, target)
    except OSError as error:
        if error.errno != errno.EXDEV:
            raise
        beside = target.with_name(f".{target.name}.part")  # imagesTr may be a link to another disk
        shutil.copyfile(source, beside, follow_symlinks=False)
        os.replace(beside, target)
        source.unlink()


def _flush(path: Path) -> None:
    """Wait until the content has reached the disk, so that a power cut cannot keep the name and lose the file."""
    with path.open("rb+") as file:
        os.fsync(file.fileno())


class _Busy(FmsegError):
    """Another process writes."""


@contextmanager
def _locked(folder: Path, patience: float) -> Iterator[None]:
    with (folder / OURS / _LOCK).open("a+b") as file:
        end = time.monotonic() + patience
        while not _take(file):
            if time.monotonic() >= end:
                raise _Busy(
                    f"Another program has been writing into {folder} for {patience:.0f} s. Wait until it is done, or "
                    "end it if it hangs; nothing was changed."
                )
            time.sleep(0.02)
        yield  # closing the file gives the lock back


def _take(file: IO[bytes]) -> bool:
    """Try to get the lock."""
    try:
        if os.name == "nt":
            import msvcrt

            file.seek(0)
            msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)  # type: ignore[attr-defined,unused-ignore]
        else:
            import fcntl

            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        # Some network disks know no locks: there one program at a time is the user's word.
        return error.errno in (errno.ENOLCK, errno.ENOTSUP, errno.EINVAL)
    return True
