"""Memory of large tensors: in large pages, and kept by the C library while networks run or given back to the system.

Both change the whole process. They are done only where the process is our own, the command line's or a child's: a
program that uses the library, napari for one, is left as it is, unless it calls `own_process` itself.
"""

from __future__ import annotations

import ctypes
import os
import platform
import sys
from functools import cache

__all__ = ["keep_freed_memory", "own_process", "trim_heap", "use_large_pages"]

_is_own = False


def own_process() -> None:
    """Allow settings that hold for this whole process, because it does nothing but our work."""
    global _is_own
    _is_own = True


def use_large_pages() -> None:
    """Set the variable by which torch asks Linux for pages of 2 MB, here and in child processes, if it is not set.

    A new tensor of 200 MB is then filled in 16 instead of 80 ms, since the system hands out a hundred pages and not
    fifty thousand. It has an effect only before torch is loaded, and where the system grants such pages on request.
    """
    if "torch" not in sys.modules:
        os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")


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
