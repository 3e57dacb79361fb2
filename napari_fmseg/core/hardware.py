"""Facts about the machine: processor cores, names of processor and device."""

from __future__ import annotations

import contextlib
import os
import platform
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from napari_fmseg.core.errors import DeviceUnavailable

if TYPE_CHECKING:
    import torch

__all__ = [
    "CAPABILITY_VARIABLE",
    "apply_cpu_capability",
    "cpu_capability",
    "device_name",
    "instruction_sets",
    "n_cores",
    "processor_name",
    "use_free_cores",
    "wait_asleep",
    "watch_cores",
]


def n_cores() -> int:
    """Return the number of cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def processor_name() -> str:
    """Return the model name of the CPU."""
    for line in _lines("/proc/cpuinfo"):
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


_FAST = (
    *("sse4_2", "avx", "avx2", "fma", "avx512f", "avx512_vnni", "avx512_bf16", "avx512_fp16", "avx_vnni"),
    *("amx_tile", "amx_bf16", "amx_int8", "asimd", "asimdhp", "bf16", "sve", "sve2"),
)
"""Instruction sets of x86 and Arm that decide how fast networks are."""


def instruction_sets() -> tuple[str, ...]:
    """Return those of the CPU that decide how fast networks are; () where the system does not list them."""
    for line in _lines("/proc/cpuinfo"):
        name, _, words = line.partition(":")
        if name.strip() in ("flags", "Features"):
            found = set(words.split())
            return tuple(name for name in _FAST if name in found)
    return ()


def device_name(device: torch.device) -> str:
    """Name what the networks run on: ``"cuda:0 NVIDIA H100"``, ``"cpu"``."""
    if device.type != "cuda":
        return str(device)
    import torch

    return f"{device} {torch.cuda.get_device_name(device)}"


def _lines(path: str) -> list[str]:
    try:
        return Path(path).read_text(errors="replace").splitlines()
    except OSError:
        return []


CAPABILITY_VARIABLE = "FMSEG_CPU_CAPABILITY"

_LIMITS = {
    "default": {"ATEN_CPU_CAPABILITY": "default", "ONEDNN_MAX_CPU_ISA": "SSE41", "MKL_ENABLE_INSTRUCTIONS": "SSE4_2"},
    "avx2": {"ATEN_CPU_CAPABILITY": "avx2", "ONEDNN_MAX_CPU_ISA": "AVX2", "MKL_ENABLE_INSTRUCTIONS": "AVX2"},
}
"""Environment variables of torch, oneDNN and MKL for each value of the variable."""


def cpu_capability() -> str:
    """Return how much of the processor may be used: ``"avx2"``, ``"default"`` (less), or "" for all of it.

    Raises
    ------
    DeviceUnavailable
        If the variable holds anything else.
    """
    value = os.environ.get(CAPABILITY_VARIABLE, "").strip().lower()
    if value and value not in _LIMITS:
        raise DeviceUnavailable(
            f"{CAPABILITY_VARIABLE} is {value!r}; expected {' or '.join(sorted(_LIMITS))}. Correct it, or unset it to "
            "use all that the processor has."
        )
    return value


def apply_cpu_capability() -> None:
    """Set what torch and the libraries below it read when they are loaded; child processes inherit it.

    Nothing is set unless the user asks for it. A wrong value is refused later, where a device is chosen: an import has
    nobody to tell.
    """
    with contextlib.suppress(DeviceUnavailable):
        value = cpu_capability()
        limits = _LIMITS.get(value, {})
        if platform.machine().lower() not in ("x86_64", "amd64"):  # its libraries have other names, or none, for these
            limits = {name: told for name, told in limits.items() if told == "default"}
        os.environ.update(limits)


def wait_asleep() -> None:
    """Make the threads of OpenMP sleep while they wait for each other, unless the user has chosen how they wait.

    Where other programs run too, waiting awake takes the processor from the very thread that is waited for: the same
    run took several times longer (docs/developers/speed.md). It has an effect only before torch, and with it OpenMP,
    is loaded.
    """
    if "torch" not in sys.modules and "GOMP_SPINCOUNT" not in os.environ:
        os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


class _Use(NamedTuple):
    """Seconds: by the clock, of all cores doing nothing, and of this process on any core."""

    clock: float
    idle: float
    own: float


_at_start: _Use | None = None


def _use_of_cores() -> _Use | None:
    """Return how the cores were used up to now; None where the system does not say."""
    words = next((line.split() for line in _lines("/proc/stat") if line.startswith("cpu ")), [])
    if len(words) < 6:
        return None
    return _Use(time.perf_counter(), (int(words[4]) + int(words[5])) / os.sysconf("SC_CLK_TCK"), time.process_time())


def watch_cores() -> None:
    """Begin to watch how many cores other programs use; see `use_free_cores`."""
    global _at_start
    _at_start = _use_of_cores()


def use_free_cores() -> int:
    """Limit the threads of torch to the cores that other programs left free since `watch_cores`.

    On a machine that is busy with other work more threads wait for each other and are slower than fewer. The masks do
    not depend on their number. Whoever sets OMP_NUM_THREADS or MKL_NUM_THREADS has chosen; where the system does not
    say what is free, torch's own choice stays.

    Returns
    -------
    int
        The number of threads.
    """
    import torch

    start, now, most = _at_start, _use_of_cores(), int(torch.get_num_threads())
    if start is None or now is None or {"OMP_NUM_THREADS", "MKL_NUM_THREADS"} & os.environ.keys():
        return most
    seconds = now.clock - start.clock
    if seconds < _LEAST_WATCHED_S:
        return most
    ours = (now.idle - start.idle + now.own - start.own) / seconds
    threads = max(1, min(most, round(ours)))
    torch.set_num_threads(threads)
    return threads


_LEAST_WATCHED_S = 0.3
"""The system counts in hundredths of a second."""
