"""Memory that was freed: kept by the C library for speed while networks run, or given back to the system.

Keeping it changes the whole process. It is done only where the process is our own, the command line's or a child's: a
program that uses the library, napari for one, is left as it is, unless it calls `own_process` itself.
"""

from __future__ import annotations

import ctypes
import platform
from functools import cache

__all__ = ["keep_freed_memory", "own_process", "trim_heap"]

_is_own = False


def own_process() -> None:
    """Allow settings that hold for this whole process, because it does nothing but our work."""
    global _is_own
    _is_own = True


def keep_freed_memory() -> bool:
    """Make the C library keep freed memory, if the process is our own (see `own_process`).

    Large tensors are otherwise mapped and unmapped at every layer, and the page faults cost as much as the arithmetic.
    The process holds on to its peak until `trim_heap`.

    Returns
    -------
    bool
        Whether it was done: on glibc only.
    """
    return _is_own and _set_options()


@cache
def _set_options() -> bool:
    if platform.libc_ver()[0] != "glibc":
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return False
    one_arena, no_mapping, no_trimming = (-8, 1), (-4, 0), (-1, 2**31 - 1)
    # Without the limit to one arena, worker threads keep memory of their own and fault all the same.
    return all(mallopt(*option) == 1 for option in (one_arena, no_mapping, no_trimming))


def trim_heap() -> bool:
    """Return freed memory to the system after a run, and whether that was possible."""
    if platform.libc_ver()[0] != "glibc":
        return False
    try:
        return bool(ctypes.CDLL(None).malloc_trim(0))
    except (OSError, AttributeError):
        return False
