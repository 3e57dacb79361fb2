"""What this machine has and lacks: every finding in a sentence, with the exact fix."""

from __future__ import annotations

import hashlib
import importlib.metadata
import importlib.util
import os
import platform
import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from napari_fmseg.core.errors import DeviceUnavailable, UnknownModel, WeightsMismatch
from napari_fmseg.core.hardware import CAPABILITY_VARIABLE, cpu_capability, n_cores, processor_name
from napari_fmseg.core.package import __version__
from napari_fmseg.models.card import ModelCard, read_card
from napari_fmseg.models.folders import user_models_folder
from napari_fmseg.models.registry import list_models

__all__ = ["Finding", "State", "examine"]

State = Literal["ok", "warn", "bad"]

_GB = 1e9

# package to import, its name for pip, the extra that brings it ("" for the base), what is lost without it
_PACKAGES = (
    ("SimpleITK", "SimpleITK", "", "NRRD, MHA and DICOM cannot be read"),
    ("nibabel", "nibabel", "", "NIfTI with sheared axes cannot be read"),
    ("safetensors", "safetensors", "", "weights cannot be loaded"),
    ("isal", "isal", "", "compressed volumes cannot be read"),
    ("cc3d", "connected-components-3d", "", "masks cannot be cleaned"),
    ("fill_voids", "fill-voids", "", "holes cannot be filled"),
    ("psutil", "psutil", "", "memory cannot be measured"),
    ("lightning_fabric", "lightning-fabric", "", "no training"),
    ("pydicom", "pydicom", "", "DICOM cannot be read"),
    ("highdicom", "highdicom", "dicom", "no DICOM segmentations"),
    ("napari", "napari", "all", "no viewer; the command line works"),
)

_QT = (("PyQt6", "PyQt6"), ("PySide6", "PySide6"), ("PyQt5", "PyQt5"))


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at.

    Attributes
    ----------
    name
        What was looked at: "torch", "device", "memory", …
    state
        "ok", "warn" (works, but slower or not everything) or "bad" (does not work).
    text
        What was found.
    fix
        What to do about it, or "".
    """

    name: str
    state: State
    text: str
    fix: str = ""


def examine() -> list[Finding]:
    """Check Python, torch, devices, memory, disk, packages and models; nothing is changed and nothing leaves here.

    Returns
    -------
    list of Finding
        In the order in which a problem should be mended.
    """
    return [
        *_python(),
        *_torch(),
        *_processor(),
        *_memory(),
        *_disk(),
        *(_package(*row) for row in _PACKAGES),
        *_qt(),
        *_models(),
    ]


def _python() -> Iterator[Finding]:
    yield Finding("python", "ok", f"Python {platform.python_version()} ({sys.executable})")
    yield Finding("platform", "ok", f"{platform.system()} {platform.release()}, {platform.machine()}")
    yield Finding(
        "napari-fmseg", "ok", f"{__version__}{'' if _version('napari-fmseg') else ', run from its source folder'}"
    )


def _torch() -> Iterator[Finding]:
    try:
        import torch
    except ImportError as error:
        yield Finding("torch", "bad", f"torch cannot be imported: {error}", "pip install torch")
        return
    except OSError as error:  # a shared library of the wheel is missing or of another build
        yield Finding("torch", "bad", f"torch is broken: {error}", "pip install --force-reinstall torch")
        return
    build = _build(torch)
    if build == "cpu" and _has_nvidia():
        yield Finding("torch", "warn", f"torch {torch.__version__} for the CPU only, but there is an NVIDIA GPU",
                      _cuda_fix())  # fmt: skip
    else:
        yield Finding("torch", "ok", f"torch {torch.__version__} ({build})")
    yield from _devices(torch, build)
    yield _precision(torch)
    threads, cores = torch.get_num_threads(), n_cores()
    if threads < min(cores, 4):
        limits = [f"{k}={os.environ[k]}" for k in ("OMP_NUM_THREADS", "MKL_NUM_THREADS") if k in os.environ]
        told = f" ({', '.join(limits)})" if limits else ""
        yield Finding("threads", "warn", f"torch computes with {threads} of {cores} cores{told}",
                      f"Unset OMP_NUM_THREADS and MKL_NUM_THREADS, or set them to {cores}.")  # fmt: skip
    else:
        yield Finding("threads", "ok", f"torch computes with {threads} threads")


def _build(torch: Any) -> str:
    """Return for what the torch wheel was built: "cuda 13.0", "rocm 6.4" or "cpu"."""
    if torch.version.cuda:
        return f"cuda {torch.version.cuda}"
    return f"rocm {torch.version.hip}" if torch.version.hip else "cpu"


def _has_nvidia() -> bool:
    return Path("/dev/nvidia0").exists() or Path("/proc/driver/nvidia").exists() or bool(shutil.which("nvidia-smi"))


def _cuda_fix() -> str:
    if platform.system() == "Linux":
        return "pip install --force-reinstall torch (the usual Linux wheel has CUDA; a '+cpu' one was installed)"
    return "Uninstall torch, then install it with the command that pytorch.org gives for your CUDA version."


def _devices(torch: Any, build: str) -> Iterator[Finding]:
    if torch.cuda.is_available():
        for index in range(torch.cuda.device_count()):
            yield _cuda(torch, index)
    elif build != "cpu":
        yield Finding("device", "warn", f"torch is built for {build}, but finds no usable GPU: the CPU is used",
                      "Run nvidia-smi: if it fails, install the driver; if it shows an older CUDA than torch's, update "
                      "it. Inside a container start it with --gpus all.")  # fmt: skip
    elif torch.backends.mps.is_available():
        yield Finding("device", "ok", "Apple graphics (mps)")
    else:
        yield Finding("device", "ok", "the CPU (no GPU that torch can use)")


def _cuda(torch: Any, index: int) -> Finding:
    name = torch.cuda.get_device_name(index)
    try:
        free, total = torch.cuda.mem_get_info(index)
        torch.ones(8, device=f"cuda:{index}").sum().item()
    except RuntimeError as error:
        first = str(error).strip().splitlines()[0]
        return Finding("device", "bad", f"cuda:{index} {name} cannot compute: {first}",
                       "The card may be too old or too new for this torch, or taken by another program: look at "
                       "nvidia-smi, then reinstall torch for your card, or use --device cpu.")  # fmt: skip
    text = f"cuda:{index} {name}, {free / _GB:.1f} of {total / _GB:.1f} GB free"
    if free < 2 * _GB:
        return Finding("device", "warn", text, "Close what else uses the card (nvidia-smi lists it).")
    return Finding("device", "ok", text)


def _precision(torch: Any) -> Finding:
    """Return what the processor computes in when nobody chooses, and what of it is hidden."""
    from napari_fmseg.nets.runtime.device import pick_precision

    try:
        half = pick_precision(torch.device("cpu"), half_precision_ok=True)
    except DeviceUnavailable as error:
        return Finding("precision", "bad", str(error), f"Unset {CAPABILITY_VARIABLE}, or set it to default or avx2.")
    told = f"the CPU computes in float32 ({torch.backends.cpu.get_cpu_capability()})"
    if cpu_capability():
        told += f"; {CAPABILITY_VARIABLE}={cpu_capability()} hides the rest of what it can"
    elif half != "float32":
        told += f"; in {half} for models whose card proves that the mask is the same, or with --precision {half}"
    return Finding("precision", "ok", told)


def _processor() -> Iterator[Finding]:
    text = f"{processor_name()}, {n_cores()} cores to use"
    yield Finding("processor", "ok", text)


def _memory() -> Iterator[Finding]:
    import psutil

    memory = psutil.virtual_memory()
    free, total = int(memory.available), int(memory.total)
    text = f"{free / _GB:.1f} of {total / _GB:.1f} GB free"
    if free < 4 * _GB:
        yield Finding("memory", "warn", text, "Close other programs: a volume of 512 x 512 x 300 needs up to 4 GB.")
    else:
        yield Finding("memory", "ok", text)


def _disk() -> Iterator[Finding]:
    folder = user_models_folder()
    there = next(p for p in (folder, *folder.parents) if p.exists())
    free = shutil.disk_usage(there).free
    text = f"{free / _GB:.1f} GB free for models in {folder}"
    if not os.access(there, os.W_OK):
        yield Finding("disk", "bad", f"{folder} cannot be written", f"Give yourself the right to write in {there}.")
    elif free < _GB:
        yield Finding("disk", "warn", text, "Make room: a model needs up to 100 MB, a run's results about as much.")
    else:
        yield Finding("disk", "ok", text)


def _package(module: str, name: str, extra: str, loss: str) -> Finding:
    if importlib.util.find_spec(module) is not None:
        return Finding(module, "ok", _version(name) or "installed")
    fix = f"pip install 'napari-fmseg[{extra}]'" if extra else f"pip install {name}"
    return Finding(module, "warn" if extra else "bad", f"not installed: {loss}", fix)


def _version(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return ""


def _qt() -> Iterator[Finding]:
    found = [f"{name} {_version(name)}".strip() for module, name in _QT if importlib.util.find_spec(module)]
    if not found:
        yield Finding("Qt", "warn", "no Qt binding: no viewer", "pip install 'napari-fmseg[all]'")
    elif platform.system() == "Linux" and not {"DISPLAY", "WAYLAND_DISPLAY"} & os.environ.keys():
        yield Finding("Qt", "warn", f"{', '.join(found)}, but there is no screen (DISPLAY is not set)",
                      "Start napari in a desktop session; the command line needs none.")  # fmt: skip
    elif len(found) > 1:
        yield Finding("Qt", "warn", f"several Qt bindings: {', '.join(found)}",
                      "Keep one of them, or choose with the environment variable QT_API.")  # fmt: skip
    else:
        yield Finding("Qt", "ok", found[0])


def _models() -> Iterator[Finding]:
    """Yield every model with the state of its weights, and every card of the user's that cannot be read."""
    cards = list_models()
    if not cards:
        yield Finding("models", "bad", "no model is installed", "pip install --force-reinstall napari-fmseg")
    for card in cards:
        yield _weights(card)
    folder = user_models_folder()
    for path in sorted([*folder.glob("*.toml"), *folder.glob("*/*.toml")]):
        try:
            read_card(path)
        except UnknownModel as error:
            yield Finding("models", "warn", str(error), f"Mend or remove {path}.")


def _weights(card: ModelCard) -> Finding:
    name = f"model {card.name}"
    try:
        content = card.weights_path.read_bytes()
    except (WeightsMismatch, OSError) as error:
        return Finding(name, "bad", str(error), f"Install the model again, or remove its card from {card.folder}.")
    if card.sha256 and hashlib.sha256(content).hexdigest() != card.sha256:
        return Finding(name, "bad", f"{card.weights} was altered: its sha256 is not the one on the card",
                       f"Copy {card.weights} again from where it came.")  # fmt: skip
    return Finding(
        name, "ok", f"{card.weights}, {len(content) / 1e6:.1f} MB{', sha256 as on the card' if card.sha256 else ''}"
    )
