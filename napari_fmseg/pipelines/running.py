"""Calling a network the fast way, and what to do when the device's memory does not suffice."""

from __future__ import annotations

import gc
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn

from napari_fmseg.errors import DeviceMemory
from napari_fmseg.nets.engine import pick_precision, prepare

__all__ = ["Engine", "averaged", "members"]


class Engine:
    """Runs networks on one device in one precision; steps down to the CPU when the device's memory is full.

    Parameters
    ----------
    device
        Where to run.
    precision
        ``"auto"``, ``"float32"``, ``"bfloat16"`` or ``"float16"``.
    half_is_right
        False if the model's card says that its masks differ in half precision.

    Attributes
    ----------
    notes
        What the user should know: every step down that was taken.
    """

    def __init__(self, device: torch.device, precision: str = "auto", *, half_is_right: bool = True) -> None:
        self.device = device
        self._asked, self._half_is_right = precision, half_is_right
        self.precision = pick_precision(device, precision, half_is_right=half_is_right)
        self.notes: list[str] = []

    def __call__(self, net: nn.Module, *inputs: Tensor) -> Tensor:
        """Give the network's output on the device of the first input.

        Raises
        ------
        DeviceMemory
            If the memory does not suffice on the CPU either.
        """
        out = self.attempt(net, *inputs)
        return self._step_down(net, inputs).to(inputs[0].device) if out is None else out

    def attempt(self, net: nn.Module, *inputs: Tensor) -> Tensor | None:
        """Give the network's output on the device of the first input, or None if the memory does not suffice."""
        try:
            return self._run(net, inputs).to(inputs[0].device)
        except torch.OutOfMemoryError:
            pass
        # Outside the handler: the exception's traceback would keep the tensors of the failed run alive.
        self.free()
        return None

    def free(self) -> None:
        """Give back what a failed run has left."""
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    def _run(self, net: nn.Module, inputs: tuple[Tensor, ...]) -> Tensor:
        try:
            out: Tensor = prepare(net, device=self.device, precision=self.precision)(*inputs)
        except RuntimeError as error:
            if "not enough memory" in str(error) or "can't allocate memory" in str(error):
                raise torch.OutOfMemoryError(str(error)) from error
            raise
        return out

    def _step_down(self, net: nn.Module, inputs: tuple[Tensor, ...]) -> Tensor:
        size = " x ".join(str(n) for n in inputs[0].shape[2:])
        if self.device.type == "cpu":
            raise DeviceMemory(
                f"A network on {size} voxels does not fit into this computer's memory. Close other programs, or use a "
                "model with a smaller grid."
            )
        self.notes.append(f"The memory of {self.device} did not suffice for {size} voxels: continued on the CPU.")
        self.device = torch.device("cpu")
        wanted = "float32" if self._asked == "float32" else "auto"  # a GPU's 16 bit type may be none of the CPU's
        self.precision = pick_precision(self.device, wanted, half_is_right=self._half_is_right)
        try:
            return self._run(net, tuple(x.cpu() for x in inputs))
        except torch.OutOfMemoryError as error:
            raise DeviceMemory(
                f"A network on {size} voxels fits neither into the device's nor into this computer's memory. Close "
                "other programs, or use a model with a smaller grid."
            ) from error


def members(nets: Mapping[str, nn.Module], stage: str) -> list[nn.Module]:
    """Give the networks of a stage: ``"net"``, and of an ensemble ``"net-2"``, ``"net-3"`` and so on, too."""
    return [net for name, net in nets.items() if name == stage or name.startswith(f"{stage}-")]


def averaged(call: Callable[..., Tensor | None], nets: Sequence[nn.Module], *inputs: Tensor) -> Tensor | None:
    """Give what one network says; of several the mean of their probabilities, None if `call` gives None."""
    if len(nets) == 1:
        return call(nets[0], *inputs)
    total: Tensor | None = None
    for net in nets:
        out = call(net, *inputs)
        if out is None:
            return None
        p = probabilities(net, out)
        total = p if total is None else total.add_(p)
    return None if total is None else total.div_(len(nets))


def probabilities(net: nn.Module, out: Tensor) -> Tensor:
    """Turn the output of a network into probabilities, new and float32; the phased ones give them already."""
    activation = getattr(net, "activation", "")
    if activation == "sigmoid":
        return out.float().sigmoid()
    return out.float().softmax(1) if activation else out.float().clone()
