"""Optimiser, learning-rate schedule and optimiser step."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import torch
from lightning_fabric import Fabric
from torch import Tensor, nn

from napari_fmseg.training.stage_recipe import StageRecipe

__all__ = ["make_optimiser", "make_scheduler", "optimiser_step", "rate_of"]


def make_optimiser(stage: StageRecipe, net: nn.Module) -> torch.optim.Optimizer:
    """Make the optimiser of a stage for all parameters of its network."""
    kind: type[torch.optim.Optimizer] = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[stage.optimiser]
    return kind(net.parameters(), lr=stage.lr, weight_decay=stage.weight_decay)  # type: ignore[call-arg]


def make_scheduler(optimiser: torch.optim.Optimizer, stage: StageRecipe) -> Any:
    """Make what changes the learning rate: after every epoch for ``"plateau"``, else after every step."""
    if stage.schedule == "plateau":
        return torch.optim.lr_scheduler.ReduceLROnPlateau(optimiser, factor=0.2, patience=4)
    return torch.optim.lr_scheduler.LambdaLR(optimiser, partial(rate_of, stage))


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


def rate_of(stage: StageRecipe, step: int) -> float:
    """Return the factor of the learning rate at a step, 0 up, for all schedules but ``"plateau"``.

    ``"cosine"`` rises over at most 100 steps, then falls to a thousandth; ``"polynomial"`` is (1 - share)^0.8 of the
    epochs that are done, as MIS-FM is fine-tuned.
    """
    epochs = max(1, math.ceil(stage.steps / stage.steps_per_epoch))
    total = stage.steps_per_epoch * epochs
    if stage.schedule == "constant":
        return 1.0
    if stage.schedule == "polynomial":
        return math.pow(max(0.0, 1 - step // stage.steps_per_epoch / epochs), 0.8)
    rise = max(1, min(100, total // 10))
    return min((step + 1) / rise, 0.5 * (1 + math.cos(math.pi * min(1.0, step / total))) + 1e-3)
