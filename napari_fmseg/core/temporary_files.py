"""Temporary files: unpacked scans and half-written files, named by their process, removed after it ended.

A process that is killed cannot tidy up. So whatever it makes for a while carries its mark, the machine and its number,
and the next one removes what bears the mark of a process that is no more.
"""

from __future__ import annotations

import hashlib
import os
import platform
import re
import shutil
import uuid
from contextlib import suppress
from pathlib import Path

__all__ = ["passing_name", "remove_own", "sweep"]

_NAME = re.compile(r"\.?fmseg-([0-9a-f]{8})-(\d+)-[0-9a-f]{8}(\.part)?")
_swept: set[Path] = set()


def passing_name() -> str:
    """Return a new name, without suffix, for a temporary file of this process."""
    return f"fmseg-{_machine()}-{os.getpid()}-{uuid.uuid4().hex[:8]}"


def sweep(folder: Path, *, again: bool = False) -> None:
    """Remove the temporary files that ended processes left in a folder, once for each folder unless `again`.

    Only what has a name of `passing_name` is touched, and only if its process ran on this machine and is no more.
    What cannot be removed stays without a word.
    """
    if folder in _swept and not again:
        return
    _swept.add(folder)
    with suppress(OSError), os.scandir(folder) as entries:
        for entry in entries:
            found = _NAME.fullmatch(entry.name)
            if found and found[1] == _machine() and not _lives(int(found[2]), Path(entry.path)):
                _remove(Path(entry.path))


def remove_own() -> None:
    """Remove the temporary files of this process, which is about to end while threads of it may still be at work."""
    for folder in _swept:
        with suppress(OSError), os.scandir(folder) as entries:
            for entry in entries:
                found = _NAME.fullmatch(entry.name)
                if found and found[1] == _machine() and int(found[2]) == os.getpid():
                    _remove(Path(entry.path))


def _machine() -> str:
    """Return an identifier of this machine or container; process ids are unique in one only."""
    space = ""
    with suppress(OSError):
        space = os.readlink("/proc/self/ns/pid")
    return hashlib.sha256(f"{platform.node()} {space}".encode()).hexdigest()[:8]


def _lives(number: int, made: Path) -> bool:
    """Return whether the process that created a file is alive, and is not a later one with the same id."""
    if number == os.getpid():
        return True
    import psutil

    try:
        return bool(psutil.Process(number).create_time() <= made.lstat().st_mtime + 60)
    except psutil.NoSuchProcess:
        return False
    except (psutil.Error, OSError):
        return True


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
        return
    with suppress(OSError):
        path.unlink()
