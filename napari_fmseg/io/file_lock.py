"""A lock that one process holds at a time; the operating system releases it however that process ends."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from napari_fmseg.core.errors import FmsegError

__all__ = ["Busy", "hold_lock"]

_NO_LOCKS = (errno.ENOLCK, errno.ENOTSUP, errno.EINVAL)


class Busy(FmsegError):
    """Another process holds the lock."""


@contextmanager
def hold_lock(path: Path, patience: float = 0.0) -> Iterator[None]:
    """Hold the lock on a file while the block runs.

    On a network disk without locks nothing is held: there the user has to run one program at a time.

    Parameters
    ----------
    path
        Created, empty, if it does not exist; a link is never followed.
    patience
        Seconds to wait for the process that holds it.

    Raises
    ------
    Busy
        If it is held all that time.
    OSError
        If the file cannot be created, or is a link.
    """
    lock = FileLock(path, timeout=patience, poll_interval=0.02, thread_local=False)
    try:
        lock.acquire()
    except Timeout as error:
        raise Busy(f"Another program holds {path}. Wait until it is done, or end it if it hangs.") from error
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise
    try:
        yield
    finally:
        lock.release()
