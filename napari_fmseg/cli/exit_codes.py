"""Exit codes of the command line beside those of `napari_fmseg.core.errors.explain`."""

from __future__ import annotations

from napari_fmseg.core.errors import DEFECT as _DEFECT
from napari_fmseg.core.errors import FmsegError
from napari_fmseg.core.errors import explain as _explain

__all__ = ["_DEFECT", "_STOPPED", "_Usage", "_explain"]

_STOPPED = 130  # 128 + SIGINT, as shells have it


class _Usage(FmsegError):
    """A command that contradicts itself."""

    exit_code = 2
