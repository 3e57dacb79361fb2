"""Exit codes of the command line beside those of `napari_fmseg.core.errors.explain`."""

from __future__ import annotations

import traceback
from pathlib import Path

from napari_fmseg.core.errors import DEFECT as _DEFECT
from napari_fmseg.core.errors import FmsegError
from napari_fmseg.core.errors import explain as _explain

__all__ = ["_DEFECT", "_STOPPED", "_Usage", "_defect_in_words", "_explain"]

_STOPPED = 130  # 128 + SIGINT, as shells have it


def _defect_in_words(error: Exception) -> str:
    """Return the type of an unforeseen error and the line of the program that raised it: nothing out of a scan."""
    where = traceback.extract_tb(error.__traceback__)[-1]
    return f"{type(error).__name__} at {Path(where.filename).name}:{where.lineno}"


class _Usage(FmsegError):
    """A command that contradicts itself."""

    exit_code = 2
