"""The machine that a figure was measured on, as every benchmark states it."""

from __future__ import annotations

import importlib.metadata
import os
import platform
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from napari_fmseg.core.hardware import cpu_capability, device_name, instruction_sets, n_cores, processor_name
from napari_fmseg.core.processes import peak_bytes
from napari_fmseg.models.provenance import versions

if TYPE_CHECKING:
    import torch

__all__ = ["machine_facts"]


def machine_facts(device: torch.device | None = None, *, packages: Sequence[str] = ()) -> dict[str, Any]:
    """Report on what was measured: device, processor, cores, threads, load, memory, versions.

    Parameters
    ----------
    device
        What the networks ran on; None for the CPU.
    packages
        Further packages whose versions matter.

    Returns
    -------
    dict
        ``device``, ``processor``, ``instruction_sets`` that it has and that matter here, ``capability`` that torch uses
        of them, ``limited_to`` ("" for all; see `FMSEG_CPU_CAPABILITY`), ``cores`` that this process may use,
        ``threads`` of torch, ``precision`` that auto means, ``load`` of the last 1, 5 and 15 minutes (None where the
        system does not say), ``peak_mb`` of this process so far, ``system`` and ``versions``.
    """
    import torch

    from napari_fmseg.nets.runtime.device import pick_precision

    place = torch.device("cpu") if device is None else device
    return {
        "device": device_name(place),
        "processor": processor_name(),
        "instruction_sets": list(instruction_sets()),
        "capability": torch.backends.cpu.get_cpu_capability(),
        "limited_to": cpu_capability(),
        "cores": n_cores(),
        "threads": torch.get_num_threads(),
        "precision": pick_precision(place),
        "load": [round(part, 2) for part in os.getloadavg()] if hasattr(os, "getloadavg") else None,
        "peak_mb": round(peak_bytes() / 1e6),
        "system": f"{platform.system()} {platform.machine()}",
        "versions": {**versions(), **_versions_of(packages)},
    }


def _versions_of(packages: Sequence[str]) -> dict[str, str]:
    """Return the versions of packages; "not installed" where one is not."""
    found = {}
    for name in packages:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = "not installed"
    return found
