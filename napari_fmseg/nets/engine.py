"""Which device, which precision, and the fastest right way to call a network there.

What was measured, and what was not taken up, stands in docs/speed.md.
"""

from __future__ import annotations

import copy
import platform
import time
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any, TypeAlias
from weakref import WeakKeyDictionary

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from napari_fmseg.errors import DeviceUnavailable
from napari_fmseg.nets.efficient import BaseUNet, ContextUNet, EfficientSegNet
from napari_fmseg.nets.fast import FastPyramid
from napari_fmseg.nets.fast_edge import FastEdge
from napari_fmseg.nets.lean import LeanLadder
from napari_fmseg.nets.pages import keep_pages
from napari_fmseg.nets.phased import AttnNet, EdgeNet, SNet
from napari_fmseg.processor import CAPABILITY_VARIABLE, cpu_capability

__all__ = [
    "PRECISIONS",
    "Prepared",
    "is_sparing",
    "pick_device",
    "pick_precision",
    "prepare",
    "training_precision",
]

Prepared: TypeAlias = Callable[..., Any]

PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
"""The precisions by name; `"auto"` chooses among them."""

_prepared: WeakKeyDictionary[nn.Module, dict[tuple[Any, ...], tuple[Any, Prepared]]] = WeakKeyDictionary()


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
        precision on a graphics card, float32 on the CPU, where a mask is not to depend on the kind of processor.

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


def prepare(
    net: nn.Module,
    example_inputs: Sequence[Tensor] = (),
    *,
    device: torch.device | str,
    precision: str = "auto",
    memory_format: str = "auto",
    sparing: bool = False,
) -> Prepared:
    """Give the fastest right way to call `net` in evaluation mode.

    The network itself is left as it is. The result is kept, and made anew when the weights have changed since
    (optimiser steps and `load_state_dict` are seen, writing through ``.data`` is not).

    Parameters
    ----------
    net
        Any network whose outputs are tensors.
    example_inputs
        What it will be called with, if it should be warmed up now; other sizes work as well.
    device
        Where to run; inputs are brought there.
    precision
        ``"auto"``, ``"float32"``, ``"bfloat16"`` or ``"float16"``; inputs are converted.
    memory_format
        ``"contiguous"``, ``"channels_last"``, or ``"auto"``: on a GPU channels last for half precision; on a CPU both
        are tried once per input size and the faster one stays. Without effect on networks that have a way of their own.
    sparing
        Take the form that needs least memory, where there is one (see `is_sparing`). A CPU always does.

    Returns
    -------
    Callable
        Takes the inputs of the network and gives its outputs, without gradients.

    Raises
    ------
    DeviceUnavailable
        If the precision cannot be had there.
    """
    place = torch.device(device)
    name = pick_precision(place, precision)
    if memory_format not in ("auto", "contiguous", "channels_last"):
        raise DeviceUnavailable(f"There is no memory format {memory_format!r}. Use auto, contiguous or channels_last.")
    if place.type == "cpu" and not is_sparing(net):
        keep_pages()
    kept = _prepared.setdefault(net, {})
    key, state = (place, name, memory_format, sparing), _fingerprint(net)
    if key not in kept or kept[key][0] != state:
        kept[key] = (state, _make(net, place, PRECISIONS[name], memory_format, sparing))
    run = kept[key][1]
    if example_inputs:
        run(*example_inputs)
    return run


class _Layerwise:
    """A network as it is written, on a device, in a precision and a memory format."""

    def __init__(self, net: nn.Module, device: torch.device, dtype: torch.dtype, memory_format: str) -> None:
        self._device, self._dtype = device, dtype
        formats = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last_3d}
        if memory_format == "auto" and device.type != "cpu":
            memory_format = "contiguous" if dtype == torch.float32 else "channels_last"
        wanted = formats if memory_format == "auto" else {memory_format: formats[memory_format]}
        self._nets = {}
        for layout in wanted.values():
            # Not inference tensors: the caller may be in inference mode, whose tensors could never be trained again.
            with torch.inference_mode(False):
                own = copy.deepcopy(net).eval().requires_grad_(False)
                self._nets[layout] = own.to(device, dtype).to(memory_format=layout)  # type: ignore[call-overload]
        self._choice: dict[tuple[torch.Size, ...], torch.memory_format] = {}

    @torch.inference_mode()
    def __call__(self, *inputs: Tensor) -> Any:
        sizes = tuple(x.shape for x in inputs)
        if len(self._nets) == 1:
            return self._run(next(iter(self._nets)), inputs)
        if sizes in self._choice:
            return self._run(self._choice[sizes], inputs)
        seconds = {}
        for layout in self._nets:
            start = time.perf_counter()
            output = self._run(layout, inputs)
            seconds[layout] = time.perf_counter() - start
        self._choice[sizes] = min(seconds, key=seconds.__getitem__)
        return output

    def _run(self, layout: torch.memory_format, inputs: Sequence[Tensor]) -> Any:
        brought = (x.to(self._device, self._dtype).contiguous(memory_format=_layout_of(x, layout)) for x in inputs)
        return self._nets[layout](*brought)


class _Fast:
    """A network that has a fast form of its own on the CPU."""

    def __init__(self, run: FastPyramid | FastEdge) -> None:
        self._run = run

    def __call__(self, *inputs: Tensor) -> Tensor:
        return self._run(*(x.cpu() for x in inputs))


def is_sparing(net: nn.Module) -> bool:
    """Whether a network has a form that needs a fraction of the memory, with the same result."""
    return isinstance(net, BaseUNet | ContextUNet | EfficientSegNet)


def _make(
    net: nn.Module, device: torch.device, dtype: torch.dtype, memory_format: str, sparing: bool = False
) -> Prepared:
    if is_sparing(net) and memory_format == "auto" and (sparing or device.type == "cpu"):
        values = [*net.parameters(), *net.buffers()]
        as_wanted = all(v.dtype == dtype and v.device == device for v in values)
        # The copy has the same weights, not the same again: they count where memory is short.
        own = copy.deepcopy(net, {id(v): v for v in values} if as_wanted else None)
        return LeanLadder(own.eval(), dtype, device)  # type: ignore[arg-type]
    if device.type == "cpu" and dtype != torch.float16:
        own = copy.deepcopy(net).requires_grad_(False)  # so that the one in the cache does not keep `net` alive
        if isinstance(own, AttnNet) or (isinstance(own, SNet) and own.variant == "v1"):
            return _Fast(FastPyramid(own.cpu(), dtype))
        if isinstance(own, EdgeNet) and own.variant == "v1" and own.n_classes == 2:
            return _Fast(FastEdge(own.cpu(), dtype))
        # The folded filter grows with the classes and loses from three on; tiny channel counts want channels last.
        if isinstance(own, EdgeNet) and memory_format == "auto":
            memory_format = "channels_last"
    return _Layerwise(net, device, dtype, memory_format)


def _fingerprint(net: nn.Module) -> tuple[Any, ...]:
    values = [*net.parameters(), *net.buffers()]
    return tuple((v.data_ptr(), 0 if v.is_inference() else v._version) for v in values)


def _layout_of(x: Tensor, layout: torch.memory_format) -> torch.memory_format:
    return layout if x.ndim == 5 else torch.contiguous_format


def _cuda(index: int) -> torch.device:
    if not torch.cuda.is_available():
        built = torch.version.cuda
        why = "The driver does not answer" if built else "The installed torch is a CPU build"
        raise DeviceUnavailable(f"No CUDA device was found. {why}; `fmseg doctor` tells the fix. Or use --device cpu.")
    count = torch.cuda.device_count()
    if index >= count:
        raise DeviceUnavailable(f"There is no cuda:{index}: this machine has {count}, from cuda:0 to cuda:{count - 1}.")
    return torch.device("cuda", index)


@cache
def _mps_suffices() -> bool:
    """Whether the Apple GPU can do the three operations that older versions of torch lack there."""
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
    """Whether the processor multiplies bfloat16; with AVX-512 alone torch emulates it."""
    if platform.machine().lower() in ("x86_64", "amd64"):
        known = [getattr(torch.cpu, name, None) for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported")]
        return any(bool(ask()) for ask in known if ask is not None)
    mkldnn = getattr(torch.ops, "mkldnn", None)
    return mkldnn is not None and bool(mkldnn._is_mkldnn_bf16_supported())
