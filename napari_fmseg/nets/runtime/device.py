"""Choice of device and precision."""

from __future__ import annotations

import platform
from functools import cache

import torch
import torch.nn.functional as F

from napari_fmseg.core.errors import DeviceUnavailable
from napari_fmseg.core.hardware import CAPABILITY_VARIABLE, cpu_capability

__all__ = ["PRECISIONS", "pick_device", "pick_precision", "training_precision"]

PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def pick_device(name: str = "auto") -> torch.device:
    """Find the device to compute on.

    Parameters
    ----------
    name
        ``"auto"`` takes CUDA, then MPS if it can do what the networks need, then the CPU; or ``"cpu"``, ``"cuda"``,
        ``"cuda:1"``, ``"mps"``.

    Raises
    ------
    DeviceUnavailable
        If the machine, or the installed torch, does not have it, or FMSEG_CPU_CAPABILITY makes no sense.
    """
    cpu_capability()
    if name == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda", 0)
        return torch.device("mps" if _mps_suffices() else "cpu")
    try:
        device = torch.device(name)
    except (RuntimeError, TypeError) as error:
        raise DeviceUnavailable(f"There is no device {name!r}. Use auto, cpu, cuda, cuda:0 or mps.") from error
    if device.type == "cuda":
        return _cuda(device.index or 0)
    if device.type == "mps" and not torch.backends.mps.is_available():
        raise DeviceUnavailable("This machine has no Apple GPU that torch can use. Use --device auto or cpu.")
    if device.type not in ("cpu", "mps"):
        raise DeviceUnavailable(f"The device {name!r} is not supported. Use auto, cpu, cuda, cuda:0 or mps.")
    return device


def pick_precision(device: torch.device, name: str = "auto", *, half_precision_ok: bool | None = None) -> str:
    """Find the precision to segment with: ``"float32"``, ``"bfloat16"`` or ``"float16"``.

    Parameters
    ----------
    device
        Where it will run.
    name
        ``"auto"`` or one of the three.
    half_precision_ok
        Whether the model's card proves that its masks are the same in half precision (see `ModelCard`): ``"auto"``
        takes it where the device computes in it. False: ``"auto"`` is float32. None, nobody has measured it: half
        precision on a GPU, float32 on the CPU, where a mask is not to depend on the kind of processor.

    Raises
    ------
    DeviceUnavailable
        If the name is unknown, or the processor can do this precision in emulation only, a hundred times slower.
    """
    if name == "auto":
        wanted = device.type != "cpu" if half_precision_ok is None else half_precision_ok
        return _best_half(device) if wanted else "float32"
    if name not in PRECISIONS:
        raise DeviceUnavailable(f"There is no precision {name!r}. Use auto, {', '.join(PRECISIONS)}.")
    if device.type == "cpu" and name != "float32" and _best_half(device) != name:
        hidden = f", since {CAPABILITY_VARIABLE} is {cpu_capability()}" if cpu_capability() else ""
        raise DeviceUnavailable(
            f"This processor ({torch.backends.cpu.get_cpu_capability()}{hidden}) does not compute in {name}; it would "
            "be far slower than float32. Use --precision auto or float32."
        )
    return name


def training_precision(device: torch.device, name: str = "auto") -> str:
    """Find the precision to train with.

    ``"auto"`` is half precision on CUDA and float32 elsewhere: on the CPU torch's bfloat16 weight gradient of a
    convolution is uninitialised memory wherever the input has a depth of 2 (seen in torch 2.13).

    Raises
    ------
    DeviceUnavailable
        As in `pick_precision`.
    """
    if name == "auto" and device.type != "cuda":
        return "float32"
    return pick_precision(device, name)


def _cuda(index: int) -> torch.device:
    if not torch.cuda.is_available():
        built = torch.version.cuda
        why = "The driver does not answer" if built else "The installed torch is a CPU build"
        raise DeviceUnavailable(f"No CUDA device was found. {why}; `fmseg doctor` names the fix. Or use --device cpu.")
    count = torch.cuda.device_count()
    if index >= count:
        raise DeviceUnavailable(f"There is no cuda:{index}: this machine has {count}, from cuda:0 to cuda:{count - 1}.")
    return torch.device("cuda", index)


@cache
def _mps_suffices() -> bool:
    """Return whether the Apple GPU can do the three operations that older versions of torch lack there."""
    if not torch.backends.mps.is_available():
        return False
    try:
        x = F.conv3d(torch.zeros(1, 1, 4, 4, 4, device="mps"), torch.zeros(1, 1, 3, 3, 3, device="mps"), padding=1)
        F.interpolate(F.max_pool3d(x, 2), scale_factor=2, mode="trilinear", align_corners=True).cpu()
    except (NotImplementedError, RuntimeError):
        return False
    return True


def _best_half(device: torch.device) -> str:
    """Name the precision that is fastest on `device` and right enough for probabilities."""
    if device.type == "cuda":
        major, _ = torch.cuda.get_device_capability(device)
        return "bfloat16" if major >= 8 else "float16" if major >= 7 else "float32"
    return "bfloat16" if device.type == "cpu" and not cpu_capability() and _cpu_has_bfloat16() else "float32"


@cache
def _cpu_has_bfloat16() -> bool:
    """Return whether the processor multiplies bfloat16; with AVX-512 alone torch emulates it."""
    if platform.machine().lower() in ("x86_64", "amd64"):
        known = [getattr(torch.cpu, name, None) for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported")]
        return any(bool(ask()) for ask in known if ask is not None)
    mkldnn = getattr(torch.ops, "mkldnn", None)
    return mkldnn is not None and bool(mkldnn._is_mkldnn_bf16_supported())
