"""Optimiser, learning-rate schedule and optimiser step; where half precision is not safe."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from lightning_fabric import Fabric
from torch import Tensor, nn

from napari_fmseg.core.errors import InvalidRecipe
from napari_fmseg.training.stage_recipe import StageRecipe

__all__ = [
    "SAFE_VOXELS",
    "UnsafePrecision",
    "WeightAverage",
    "make_optimiser",
    "make_scheduler",
    "optimiser_step",
    "rate_of",
    "refuse_unsafe_convolutions",
]

SAFE_VOXELS = 64
"""Along y and x: bfloat16 gradients of convolutions of larger planes write beyond their memory (CPU, torch 2.13)."""


class UnsafePrecision(InvalidRecipe):
    """A network cannot be trained in the precision that was asked for."""


@contextmanager
def refuse_unsafe_convolutions(net: nn.Module) -> Iterator[None]:
    """Raise `UnsafePrecision` where a convolution is called inside whose gradient would corrupt the process.

    Sizes are the same in every step of a training: to look at the first one is enough.
    """

    def look(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        y, x = inputs[0].shape[-2:]
        is_half = torch.is_autocast_enabled("cpu") and torch.get_autocast_dtype("cpu") == torch.bfloat16
        if inputs[0].device.type == "cpu" and is_half and max(y, x) > SAFE_VOXELS:
            raise UnsafePrecision(
                f"Training in bfloat16 on a CPU is not possible here: torch would corrupt memory in convolutions of "
                f'planes above {SAFE_VOXELS} x {SAFE_VOXELS}, and these have {y} x {x}. Set precision to "auto", '
                "or choose a smaller grid."
            )

    kinds = (nn.Conv2d, nn.Conv3d, nn.ConvTranspose3d)
    convolutions = [part for part in net.modules() if isinstance(part, kinds)]
    handles = [part.register_forward_pre_hook(look) for part in convolutions]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def make_optimiser(stage: StageRecipe, net: nn.Module) -> torch.optim.Optimizer:
    """Make the optimiser of a stage; norms and biases (one axis) do not decay."""
    kind: type[torch.optim.Optimizer] = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[stage.optimiser]
    learned = [p for p in net.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in learned if p.ndim > 1], "weight_decay": stage.weight_decay},
        {"params": [p for p in learned if p.ndim <= 1], "weight_decay": 0.0},
    ]
    return kind([group for group in groups if group["params"]], lr=stage.lr)  # type: ignore[call-arg]


def make_scheduler(optimiser: torch.optim.Optimizer) -> torch.optim.lr_scheduler.ReduceLROnPlateau:
    """Make what lowers the learning rate to a fifth when the loss of epochs stalls, for ``"plateau"``."""
    return torch.optim.lr_scheduler.ReduceLROnPlateau(optimiser, factor=0.2, patience=4)


def optimiser_step(fabric: Fabric, model: Any, optimiser: Any, loss: Tensor, clip: float) -> bool:
    """Compute the gradient, clip its norm and take a step; return whether the step was taken.

    bf16 convolutions on the CPU may give uninitialised gradients (torch 2.13, depth 2): such a step is skipped.
    """
    optimiser.zero_grad()
    fabric.backward(loss)
    norm = fabric.clip_gradients(model, optimiser, max_norm=clip, error_if_nonfinite=False)
    finite = norm is None or bool(torch.isfinite(torch.as_tensor(norm)))
    if finite:
        optimiser.step()
    return finite


def rate_of(stage: StageRecipe, progress: float, step: float = 1e-3) -> float:
    """Return the factor of the learning rate, for all schedules but ``"plateau"``.

    ``"cosine"`` rises over a twentieth of the training, then falls to a thousandth; ``"polynomial"`` is
    (1 - share)^0.8 of the epochs that are done, as MIS-FM is fine-tuned.

    Parameters
    ----------
    stage
        With the schedule.
    progress, step
        Share of the training that is done, 0..1, and that of one step.
    """
    epochs = max(1, math.ceil(stage.steps / stage.steps_per_epoch))
    if stage.schedule == "constant":
        return 1.0
    if stage.schedule == "polynomial":
        return math.pow(max(0.0, 1 - math.floor(progress * epochs + 1e-9) / epochs), 0.8)
    return min((progress + step) / max(0.05, step), 0.5 * (1 + math.cos(math.pi * min(1.0, progress))) + 1e-3)


class WeightAverage:
    """The exponential moving average of a network's weights.

    Parameters
    ----------
    net
        Of which; buffers are copied as they are.
    decay
        Share of the average that stays at each step; smaller in the first steps, which tell nothing yet.

    Attributes
    ----------
    net
        The averaged network, in evaluation mode.
    """

    def __init__(self, net: nn.Module, decay: float) -> None:
        self.net, self._decay = copy.deepcopy(net).requires_grad_(False).eval(), decay

    @torch.no_grad()
    def update(self, net: nn.Module, step: int) -> None:
        """Move towards the weights after a step, counted from 0."""
        share = 1 - min(self._decay, (1 + step) / (10 + step))
        torch._foreach_lerp_(list(self.net.parameters()), list(net.parameters()), share)
        for own, other in zip(self.net.buffers(), net.buffers(), strict=True):
            own.copy_(other)
