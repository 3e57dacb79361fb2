"""Exit codes and the messages that go with them."""

from __future__ import annotations

import errno
import sys
import traceback
from pathlib import Path

from napari_fmseg.core.errors import FmsegError

_DEFECT = 70  # EX_SOFTWARE: not to be mistaken for a fault of the input

_STOPPED = 130  # 128 + SIGINT, as shells have it


class _Usage(FmsegError):
    """A command that contradicts itself."""

    exit_code = 2


def _explain(error: Exception) -> tuple[int, str]:
    """Exit code and text for an exception."""
    if isinstance(error, FmsegError):
        return error.exit_code, str(error)
    if _is_out_of_memory(error):
        return 3, ("There is not enough memory. Close other programs, use --device cpu instead of a small graphics "
                   f"card, or a smaller volume. ({_first_line(error)})")  # fmt: skip
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return 3, f"The disk is full{f': {error.filename}' if error.filename else ''}. Make room, or choose another."
    if isinstance(error, OSError) and error.filename:
        return 1, f"{error.filename}: {error.strerror}. Check the path and its permissions."
    where = traceback.extract_tb(error.__traceback__)[-1]
    return _DEFECT, (
        f"A defect of the program, not of your input: {type(error).__name__}: {_first_line(error)} "
        f"({Path(where.filename).name}:{where.lineno}). Run it again with FMSEG_DEBUG=1 and report what it prints."
    )


def _is_out_of_memory(error: Exception) -> bool:
    torch = sys.modules.get("torch")
    if isinstance(error, MemoryError) or (torch is not None and isinstance(error, torch.OutOfMemoryError)):
        return True
    return isinstance(error, RuntimeError) and "can't allocate memory" in str(error)  # torch's processor allocator


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
