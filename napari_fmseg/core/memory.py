"""Free memory, and the peak memory of this process and its GPU."""

from __future__ import annotations

import contextlib
import threading
from pathlib import Path
from typing import TYPE_CHECKING

import psutil

if TYPE_CHECKING:
    import torch

__all__ = ["MemoryWatch", "free_bytes"]


class MemoryWatch:
    """Measures the process's peak memory from a thread, every few milliseconds; exact on a GPU.

    Parameters
    ----------
    device
        The device that computes.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._peak = 0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> MemoryWatch:
        self._thread.start()
        self.peak_mb()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._stop.wait(0.004):
            self._peak = max(self._peak, _resident_bytes())

    def peak_mb(self) -> tuple[float, float]:
        """Return the peak memory of the process and of the GPU since the last call, in MB."""
        peak, self._peak = max(self._peak, _resident_bytes()), 0
        if self._device.type != "cuda":
            return peak / 1e6, 0.0
        import torch

        gpu = torch.cuda.max_memory_allocated(self._device)
        torch.cuda.reset_peak_memory_stats(self._device)
        return peak / 1e6, gpu / 1e6


def free_bytes() -> int:
    """Return how many bytes this process can still allocate, by the machine, its container and its own limit."""
    limits = [int(psutil.virtual_memory().available)]
    for most, used in (
        ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current"),
        ("/sys/fs/cgroup/memory/memory.limit_in_bytes", "/sys/fs/cgroup/memory/memory.usage_in_bytes"),
    ):
        with contextlib.suppress(OSError, ValueError):  # no container, or no limit ("max")
            limits.append(int(Path(most).read_text()) - int(Path(used).read_text()))
    with contextlib.suppress(ImportError, OSError, ValueError):
        import resource

        soft, _ = resource.getrlimit(resource.RLIMIT_AS)
        if soft != resource.RLIM_INFINITY:
            limits.append(soft - int(psutil.Process().memory_info().vms))
    return max(0, min(limits))


def _resident_bytes() -> int:
    """Return the resident memory of this process."""
    return int(psutil.Process().memory_info().rss)
