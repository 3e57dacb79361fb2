"""Warnings while a model is being trained, early enough to stop it."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor

from napari_fmseg.core.events import Warned
from napari_fmseg.training.data.samples import Sample
from napari_fmseg.training.recipe import Recipe

__all__ = ["TrainingMonitor"]

_UNLEARNED, _FORGOTTEN = 0.01, 0.05
"""Dice below which a class is not learned, and fall of the old classes' Dice from which they are being forgotten."""


class TrainingMonitor:
    """Warns early, and once, of a class that is not being learned or is being forgotten."""

    def __init__(self, recipe: Recipe, samples: Sequence[Sample], epochs: int, first: int) -> None:
        counts = range(1, len(recipe.labels) + 1)  # a class that no case has was told before
        self.there = {recipe.labels[c - 1] for c in counts if any(bool((s.labels == c).any()) for s in samples)}
        self.labels, self.epochs = recipe.labels, epochs
        self.after = max(1, math.ceil(epochs / 3), first + 1)
        self.seen: Tensor | None = None
        self.told = False

    def saw(self, drawn: Sequence[tuple[list[Tensor], Tensor]]) -> None:
        """Count the voxels of each class in samples."""
        voxels = torch.stack([target.sum((1, 2, 3)) for _, target in drawn]).sum(0)
        self.seen = voxels if self.seen is None else self.seen + voxels

    def warnings(self, stage: str, epoch: int, before: float, metrics: Mapping[str, float]) -> Iterator[Warned]:
        """Yield warnings after an epoch; `before` is the mean Dice of the previous classes at the start."""
        lost = before - metrics.get("old", math.nan)
        if lost > _FORGOTTEN and not self.told:
            self.told = True
            yield Warned(
                f"{stage}: the classes of before are being forgotten: their mean Dice fell from {before:.2f} to "
                f"{before - lost:.2f}. Replay cases of before, or raise distillation_weight.",
                "forgetting",
            )
        if epoch != self.after or self.seen is None:
            return
        for name, voxels in zip(self.labels, self.seen.tolist()[1:], strict=True):
            dice = metrics.get(f"dice/{name}", math.nan)
            if name not in self.there:
                continue
            if voxels == 0:
                text = f"{stage}: {name!r} was in no sample so far. Set balance, or add cases that have it."
                yield Warned(text, f"not-sampled: {name}")
            elif dice < _UNLEARNED:
                yield Warned(
                    f"{stage}: {name!r} is not being learned: its Dice is {dice:.2f} after {epoch} of "
                    f"{self.epochs} epochs. Are its labels right? A finer grid, balance or the loss dice_ce_by_class "
                    "may help.",
                    f"not-learned: {name}",
                )
