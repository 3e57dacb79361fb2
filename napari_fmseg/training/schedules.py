"""How the learning rate goes over a run, as a factor of the highest one."""

from __future__ import annotations

import math

from napari_fmseg.training.recipe import StageRecipe

__all__ = ["rate_of"]


def rate_of(stage: StageRecipe, step: int) -> float:
    """Return the factor of the learning rate at a step, 0 up; ``"plateau"`` depends on the loss and is not told here.

    ``"cosine"`` rises over at most 100 steps, then falls to a thousandth; ``"polynomial"`` is (1 - share)^0.8 of the
    epochs that are over, as MIS-FM is fine-tuned.
    """
    epochs = max(1, math.ceil(stage.steps / stage.steps_per_epoch))
    total = stage.steps_per_epoch * epochs
    if stage.schedule == "constant":
        return 1.0
    if stage.schedule == "polynomial":
        return math.pow(max(0.0, 1 - step // stage.steps_per_epoch / epochs), 0.8)
    rise = max(1, min(100, total // 10))
    return min((step + 1) / rise, 0.5 * (1 + math.cos(math.pi * min(1.0, step / total))) + 1e-3)
