"""Which devices to offer, found without loading torch: the engine's process has the last word."""

from __future__ import annotations

import sys
from pathlib import Path

__all__ = ["list_device_names"]


def list_device_names() -> tuple[str, ...]:
    """Return the names for a list of devices, ``"auto"`` first."""
    cards = sorted(Path("/dev").glob("nvidia[0-9]*")) if sys.platform.startswith("linux") else []
    if sys.platform == "darwin":
        return ("auto", "cpu", "mps")
    return ("auto", "cpu", "cuda", *(f"cuda:{i}" for i in range(1, len(cards))))
