"""Running networks on a device, with fallbacks for when its memory runs out."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import TracebackType

import torch
from torch import Tensor, nn

from napari_fmseg.core.errors import DeviceMemory
from napari_fmseg.core.events import Warned
from napari_fmseg.core.processes import peak_bytes
from napari_fmseg.nets.runtime.device import pick_precision
from napari_fmseg.nets.runtime.prepare import has_low_memory_form, prepare
from napari_fmseg.nets.traits import probabilities

__all__ = ["InferenceRunner", "MemoryLimit", "ensemble_mean", "ensemble_members", "out_of_memory_as_error"]


class InferenceRunner:
    """Runs networks on one device in one precision; falls back when the device's memory is full.

    The fallbacks, each of them reported: a network that can runs in slabs, with the same result; float32 that nobody
    requested becomes 16 bit, with nearly the same result; at last the CPU.

    Parameters
    ----------
    device
        Where to run.
    precision
        ``"auto"``, ``"float32"``, ``"bfloat16"`` or ``"float16"``.
    half_precision_ok
        What the model's card states on half precision; see `pick_precision`.

    Attributes
    ----------
    notes
        Every fallback that was taken, in a sentence for the user.
    """

    def __init__(self, device: torch.device, precision: str = "auto", *, half_precision_ok: bool | None = None) -> None:
        self.device = device
        self._asked, self._half_precision_ok = precision, half_precision_ok
        self.precision = pick_precision(device, precision, half_precision_ok=half_precision_ok)
        self.notes: list[str] = []
        self._low_memory = False

    def __call__(self, net: nn.Module, *inputs: Tensor) -> Tensor:
        """Return the network's output on the device of the first input; `DeviceMemory` if the CPU has no room, too."""
        out = self.attempt(net, *inputs)
        if out is None and self._use_slabs(net):
            out = self.attempt(net, *inputs)
        if out is None and self._use_half_precision():
            out = self.attempt(net, *inputs)
        return self._fall_back_to_cpu(net, inputs).to(inputs[0].device) if out is None else out

    def stream(self, net: nn.Module, x: Tensor, take: Callable[[slice, Tensor], None]) -> None:
        """Call `take` with planes of one image and their output (c, planes, y, x), as they come where the network can.

        What is given is overwritten afterwards.
        """
        form = prepare(net, device=self.device, precision=self.precision) if self.device.type == "cpu" else None
        if form is None or not hasattr(form, "stream"):
            take(slice(0, x.shape[2]), self(net, x)[0])
            return
        try:
            with _out_of_memory():
                form.stream(x, take)
        except torch.OutOfMemoryError as error:
            raise self._too_large(x) from error

    def attempt(self, net: nn.Module, *inputs: Tensor) -> Tensor | None:
        """Return the network's output on the device of the first input, or None if memory runs out."""
        try:
            return self._run(net, inputs).to(inputs[0].device)
        except torch.OutOfMemoryError:
            pass
        # Outside the handler: the exception's traceback would keep the tensors of the failed run alive.
        self.free()
        return None

    def free(self) -> None:
        """Pass back what a failed run has left."""
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    def warnings(self) -> Iterator[Warned]:
        """Yield the fallbacks that were taken since the last call."""
        yield from (Warned(text) for text in self.notes)
        self.notes.clear()

    def _run(self, net: nn.Module, inputs: tuple[Tensor, ...]) -> Tensor:
        form = prepare(net, device=self.device, precision=self.precision, low_memory=self._low_memory)
        with _out_of_memory():
            out: Tensor = form(*inputs)
        return out

    def _use_slabs(self, net: nn.Module) -> bool:
        """Run networks in slabs from now on, where this one can and does not yet."""
        if self.device.type == "cpu" or self._low_memory or not has_low_memory_form(net):
            return False
        self._low_memory = True
        self.notes.append(f"The memory of {self.device} did not suffice: the network runs in slabs, a little slower.")
        return True

    def _use_half_precision(self) -> bool:
        """Continue in 16 bit, unless it is so already, 32 bit was requested, or the device cannot."""
        if self.device.type == "cpu" or self.precision != "float32" or self._asked == "float32":
            return False
        self.precision = pick_precision(self.device, half_precision_ok=True)
        if self.precision == "float32":
            return False
        self.notes.append(
            f"The memory of {self.device} did not suffice in 32 bit: continued in 16 bit ({self.precision}). A few "
            "voxels at borders may differ."
        )
        return True

    @staticmethod
    def _too_large(x: Tensor) -> DeviceMemory:
        size = " x ".join(str(n) for n in x.shape[2:])
        return DeviceMemory(
            f"A network on {size} voxels does not fit into this computer's memory. Close other programs, or use a "
            "model with a smaller grid."
        )

    def _fall_back_to_cpu(self, net: nn.Module, inputs: tuple[Tensor, ...]) -> Tensor:
        size = " x ".join(str(n) for n in inputs[0].shape[2:])
        if self.device.type == "cpu":
            raise self._too_large(inputs[0])
        self.notes.append(f"The memory of {self.device} did not suffice for {size} voxels: continued on the CPU.")
        self.device = torch.device("cpu")
        wanted = "float32" if self._asked == "float32" else "auto"  # a GPU's 16 bit type may be none of the CPU's
        self.precision = pick_precision(self.device, wanted, half_precision_ok=self._half_precision_ok)
        try:
            return self._run(net, tuple(x.cpu() for x in inputs))
        except torch.OutOfMemoryError as error:
            raise DeviceMemory(
                f"A network on {size} voxels fits neither into the device's nor into this computer's memory. Close "
                "other programs, or use a model with a smaller grid."
            ) from error


@contextmanager
def _out_of_memory() -> Iterator[None]:
    """Raise torch's own error where the CPU's allocator raises a plain one."""
    try:
        yield
    except RuntimeError as error:
        if "not enough memory" in str(error) or "can't allocate memory" in str(error):
            raise torch.OutOfMemoryError(str(error)) from error
        raise


def ensemble_members(nets: Mapping[str, nn.Module], stage: str) -> list[nn.Module]:
    """Return the networks of a stage: ``"net"``, and of an ensemble ``"net-2"``, ``"net-3"`` and so on, too."""
    return [net for name, net in nets.items() if name == stage or name.startswith(f"{stage}-")]


def ensemble_mean(call: Callable[..., Tensor | None], nets: Sequence[nn.Module], *inputs: Tensor) -> Tensor | None:
    """Return the output of one network, or the mean probabilities of several; None if `call` gives None."""
    if len(nets) == 1:
        return call(nets[0], *inputs)
    total: Tensor | None = None
    for net in nets:
        out = call(net, *inputs)
        if out is None:
            return None
        p = probabilities(net, out)
        total = p.float().clone() if total is None else total.add_(p)
    return None if total is None else total.div_(len(nets))


@contextmanager
def out_of_memory_as_error(size: str, device: torch.device) -> Iterator[None]:
    """Raise `DeviceMemory`, with what to do, when memory runs out beside the networks, which have fallbacks."""
    try:
        yield
    except (torch.OutOfMemoryError, MemoryError) as error:
        raise DeviceMemory(
            f"A volume of {size} voxels does not fit into the memory of {device}. Close other programs, crop the "
            "volume, or use --device cpu."
        ) from error


class MemoryLimit:
    """Limits a run to a number of GB while it is entered.

    On a CUDA device torch refuses what goes beyond, as if the GPU were smaller, so that the fallbacks follow. On the
    CPU nothing can be refused; `warnings` reports what was exceeded.

    Parameters
    ----------
    device
        Where the run computes.
    gb
        The limit; 0 for none.
    """

    def __init__(self, device: torch.device, gb: float) -> None:
        self._device, self._gb = device, gb
        self._before = 0

    def __enter__(self) -> MemoryLimit:
        self._before = peak_bytes()
        self._share(self._gb)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._gb:
            self._share(0)

    def warnings(self) -> Iterator[str]:
        """Yield a sentence if the program has held more than the limit since it was entered."""
        peak = peak_bytes()
        if self._gb and peak > max(self._before, self._gb * 1e9):
            yield (
                f"The run took {peak / 1e9:.1f} GB of this computer's memory, more than the {self._gb:g} GB allowed: "
                "the networks and the volume need that much. Crop the volume, or use a model with a smaller grid."
            )

    def _share(self, gb: float) -> None:
        if self._device.type == "cuda" and (gb or self._gb):
            total = torch.cuda.get_device_properties(self._device).total_memory
            torch.cuda.set_per_process_memory_fraction(min(1.0, gb * 1e9 / total) if gb else 1.0, self._device)
