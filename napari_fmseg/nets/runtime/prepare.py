"""Which device, which precision, and the fastest right way to call a network there.

What was measured, and what was not taken up, stands in docs/developers/speed.md.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from napari_fmseg.core.allocator import keep_freed_memory
from napari_fmseg.core.errors import DeviceUnavailable
from napari_fmseg.nets import load
from napari_fmseg.nets.runtime.device import PRECISIONS, pick_precision
from napari_fmseg.nets.runtime.fast_layers import use_fast_layers

__all__ = ["Prepared", "forget", "has_low_memory_form", "prepare"]

Prepared: TypeAlias = Callable[..., Any]

_prepared: WeakKeyDictionary[nn.Module, dict[tuple[Any, ...], tuple[Any, Prepared]]] = WeakKeyDictionary()


def prepare(
    net: nn.Module,
    example_inputs: Sequence[Tensor] = (),
    *,
    device: torch.device | str,
    precision: str = "auto",
    memory_format: str = "auto",
    low_memory: bool = False,
) -> Prepared:
    """Return the fastest right way to call `net` in evaluation mode.

    The network itself is left as it is. The result is kept, and made anew when the weights have changed since
    (optimiser steps and `load_state_dict` are seen, writing through ``.data`` is not). It may share weights with the
    network: after they have changed, ask for it again.

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
        ``"contiguous"``, ``"channels_last"``, or ``"auto"``: on a GPU channels last for half precision, on a CPU
        channels last with faster layers. Without effect on networks that have a way of their own.
    low_memory
        Take the form that needs least memory, where there is one (see `has_low_memory_form`). A CPU always does.

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
    if place.type == "cpu" and not has_low_memory_form(net):
        keep_freed_memory()
    kept = _prepared.setdefault(net, {})
    key, state = (place, name, memory_format, low_memory), _fingerprint(net)
    if key not in kept or kept[key][0] != state:
        kept[key] = (state, _make(net, place, PRECISIONS[name], memory_format, low_memory))
    run = kept[key][1]
    if example_inputs:
        run(*example_inputs)
    return run


def forget(net: nn.Module) -> None:
    """Free what `prepare` keeps of a network."""
    _prepared.pop(net, None)


class _Layerwise:
    """A network as it is written, on a device, in a precision and a memory format."""

    def __init__(self, net: nn.Module, device: torch.device, dtype: torch.dtype, memory_format: str) -> None:
        self._device, self._dtype = device, dtype
        fast = memory_format == "auto" and device.type == "cpu"
        if memory_format == "auto":
            memory_format = "contiguous" if device.type != "cpu" and dtype == torch.float32 else "channels_last"
        self._layout = torch.channels_last_3d if memory_format == "channels_last" else torch.contiguous_format
        # Not inference tensors: the caller may be in inference mode, whose tensors could never be trained again.
        with torch.inference_mode(False):
            own = _copy_of(net) if fast else copy.deepcopy(net)
            own = own.eval().requires_grad_(False).to(device, dtype)
            if not fast:
                own = own.to(memory_format=self._layout)  # type: ignore[call-overload]
            self._net: nn.Module = use_fast_layers(own) if fast else own

    @torch.inference_mode()
    def __call__(self, *inputs: Tensor) -> Any:
        layouts = [self._layout if x.ndim == 5 else torch.contiguous_format for x in inputs]
        brought = (x.to(self._device, self._dtype) for x in inputs)
        return self._net(*(x.contiguous(memory_format=own) for x, own in zip(brought, layouts, strict=True)))


class _OnCpu:
    """A form of a network for the CPU, whose inputs are brought there."""

    def __init__(self, form: Any) -> None:
        self._form = form
        if hasattr(form, "stream"):
            self.stream = form.stream

    def __call__(self, *inputs: Tensor) -> Any:
        return self._form(*(x.cpu() for x in inputs))


def has_low_memory_form(net: nn.Module) -> bool:
    """Return whether a network has a form that needs a fraction of the memory, with the same result."""
    return bool(getattr(net, "low_memory_form", ""))


def _make(
    net: nn.Module, device: torch.device, dtype: torch.dtype, memory_format: str, low_memory: bool = False
) -> Prepared:
    own: Any
    if has_low_memory_form(net) and memory_format == "auto" and (low_memory or device.type == "cpu"):
        values = [*net.parameters(), *net.buffers()]
        as_wanted = all(v.dtype == dtype and v.device == device for v in values)
        # The copy has the same weights, not the same again: they count where memory is short.
        own = copy.deepcopy(net, {id(v): v for v in values} if as_wanted else None)
        low: Prepared = load(own.low_memory_form)(own.eval(), dtype, device)
        return low
    cpu_form: str = getattr(net, "cpu_form", "")
    if cpu_form and device.type == "cpu" and dtype != torch.float16:
        return _OnCpu(load(cpu_form)(_copy_of(net).cpu(), dtype))
    return _Layerwise(net, device, dtype, memory_format)


def _copy_of(net: nn.Module) -> nn.Module:
    """Copy a network, so that the one in the cache does not keep it alive; its weights are those of `net`."""
    return copy.deepcopy(net, {id(v): _view_of(v) for v in [*net.parameters(), *net.buffers()]})


def _view_of(value: Tensor) -> Tensor:
    """Return a parameter or a buffer with the same memory, that needs no gradient."""
    same = value.detach()
    return nn.Parameter(same, requires_grad=False) if isinstance(value, nn.Parameter) else same


def _fingerprint(net: nn.Module) -> tuple[Any, ...]:
    values = [*net.parameters(), *net.buffers()]
    return tuple((v.data_ptr(), 0 if v.is_inference() else v._version) for v in values)
