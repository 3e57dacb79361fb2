"""How a result was made: a small JSON file beside it, without anything of the patient.

It holds no path, no name of an input file and no intensities or volumes, but for those that a warning of what does not
fit names: only the result's own file name and hash, the model, the options, the machine and the time taken. (A result
that is named after a patient carries that name in its own file name: choose another with --output.)
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import platform
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from napari_fmseg.core.atomic_write import atomic_write
from napari_fmseg.core.json_values import plain
from napari_fmseg.core.package import __version__
from napari_fmseg.models.card import ModelCard
from napari_fmseg.models.weights import Model

__all__ = ["Manifest", "manifest_path", "precision_of", "read_hashes", "versions", "write_manifest"]

_FORMAT = "napari-fmseg run 1"

_PACKAGES = ("torch", "numpy", "SimpleITK", "safetensors")


@dataclass(frozen=True)
class Manifest:
    """What is recorded of one run.

    Attributes
    ----------
    model
        The card: its name, version, licence and restriction, and the sha256 of its weights, are recorded.
    device, precision
        What the networks ran on and in, as ``"cuda:0 NVIDIA H100"``, ``"bf16"``.
    options
        The options of the run.
    seconds
        Time per part: reading, every stage, writing.
    shape, spacing_mm
        The input's grid (z, y, x).
    notes
        What the pipeline remarked.
    misfits
        How the volume differs from those that the model was trained on, a sentence by its kind.
    threads
        How many threads computed on the CPU; 0 where nobody says.
    hashes
        What the result follows from, by which a later run knows that it is done; see `pipelines.folders.finished`.
    """

    model: ModelCard
    device: str
    precision: str
    options: Mapping[str, Any]
    seconds: Mapping[str, float]
    shape: tuple[int, int, int]
    spacing_mm: tuple[float, float, float]
    notes: tuple[str, ...] = field(default=())
    misfits: Mapping[str, str] = field(default_factory=dict)
    threads: int = 0
    hashes: Mapping[str, str] = field(default_factory=dict)


def manifest_path(result: Path) -> Path:
    """Return where the manifest of `result` lies: ``liver.nii.gz`` has ``liver.nii.gz.json``."""
    return result.with_name(result.name + ".json")


def write_manifest(manifest: Manifest, result: Path) -> Path:
    """Write the manifest of the finished file `result` beside it, atomically."""
    card = manifest.model
    content = {
        "format": _FORMAT,
        "use": "Research use only. Not a medical device.",
        "made": datetime.now(UTC).isoformat(timespec="seconds"),
        "result": {"file": result.name, "sha256": hashlib.sha256(result.read_bytes()).hexdigest()},
        "model": {"name": card.name, "version": card.version, "weights_sha256": card.sha256,
                  "licence": card.licence, "restriction": card.restriction},
        **{k: v for k, v in asdict(manifest).items() if k != "model"},
        "versions": versions(),
        "platform": f"{platform.system()} {platform.machine()}",
    }  # fmt: skip
    path = manifest_path(result)
    with atomic_write(path) as file:
        file.write(json.dumps(plain(content), indent=1, allow_nan=False).encode() + b"\n")
    return path


def read_seconds(path: Path) -> dict[str, float]:
    """Read the seconds of each step from a manifest; {} if there is none that can be read."""
    try:
        seconds = json.loads(path.read_text(encoding="utf-8"))["seconds"]
        return {str(name): float(value) for name, value in seconds.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return {}


def read_hashes(path: Path) -> dict[str, str] | None:
    """Read what the result beside a manifest follows from; None if the file is no manifest, {} if it does not say."""
    try:
        table = json.loads(path.read_text(encoding="utf-8"))
        if table["format"] != _FORMAT:
            return None
        return {str(name): str(value) for name, value in table.get("hashes", {}).items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def precision_of(model: Model, precision: str) -> str:
    """Name the precision that a run asked for with `precision` really has on the model's device."""
    from napari_fmseg.nets.runtime.device import pick_precision

    return pick_precision(model.device, precision, half_precision_ok=model.card.half_precision_ok)


def versions() -> dict[str, str]:
    """Return the versions of Python and of the packages that a result depends on, where they are installed."""
    found = {"napari-fmseg": __version__, "python": platform.python_version()}
    for name in _PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found
