"""A lock that one process holds at a time; the operating system gives it back however that process ends."""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from napari_fmseg.core.errors import FmsegError

__all__ = ["Busy", "locked"]


class Busy(FmsegError):
    """Another process holds the lock."""


@contextmanager
def locked(path: Path, patience: float = 0.0) -> Iterator[None]:
    """Return the hold the lock on a file while the block runs.

    Parameters
    ----------
    path
        Made, empty, if it is not there; a link is never followed.
    patience
        Seconds to wait for whoever holds it.

    Raises
    ------
    Busy
        If it is held all that time.
    OSError
        If the file cannot be made, or is a link.
    """
    flags = os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_CLOEXEC", 0)
    with os.fdopen(os.open(path, flags, 0o666), "r+b") as file:
        end = time.monotonic() + patience
        while not _take(file):
            if time.monotonic() >= end:
                raise Busy(f"Another program holds {path}. Wait until it is done, or end it if it hangs.")
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
