"""Facts about the machine: processor cores, names of processor and device."""

from __future__ import annotations

import contextlib
import os
import platform
import sys
from pathlib import Path
from typing import TYPE_CHECKING

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
    "wait_asleep",
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
