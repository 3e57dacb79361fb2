"""Hard-example mining: cases with a low Dice are sampled more often."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from lightning_fabric import Fabric
from torch import Tensor

from napari_fmseg.core.errors import InvalidRecipe
from napari_fmseg.training.losses.soft_dice_ce import sums_of_products
from napari_fmseg.training.recipe import Recipe

__all__ = ["HardExampleMiner", "dice_of_samples", "soft_dice"]

_SHARE = 0.2  # of the cases is called hard
_PART = 0.5  # share of a coarse voxel from which the truth counts as inside


class HardExampleMiner:
    """Keeps for every training case the Dice of its samples in the last epoch that sampled it.

    Parameters
    ----------
    recipe
        Its `hard_cases` are hard whatever happens; else the fifth of the cases with the lowest Dice is.
    names
        Of the training cases.
    seen
        What an earlier run ended an epoch with; empty at the start.

    Raises
    ------
    InvalidRecipe
        If a hard case is no training case.
    """

    def __init__(self, recipe: Recipe, names: Sequence[str], seen: Sequence[float] = ()) -> None:
        unknown = [name for name in recipe.hard_cases if name not in names]
        if unknown:
            raise InvalidRecipe(f"hard_cases names {unknown[0]!r}, which is none of the {len(names)} training cases.")
        self._named = [i for i, name in enumerate(names) if name in recipe.hard_cases]
        self._measures = bool(recipe.hard_case_weight) and not self._named
        self._seen = np.array(seen or [math.nan] * len(names))
        self._sums, self._counts = np.zeros(len(names)), np.zeros(len(names))

    def hard(self) -> list[int]:
        """Return the indices of the hard cases; none before the first epoch."""
        if not self._measures:
            return self._named
        known = np.flatnonzero(np.isfinite(self._seen))
        order = known[np.argsort(self._seen[known], kind="stable")]
        return [int(i) for i in order[: math.ceil(_SHARE * len(self._seen))]]

    def saw(self, cases: Sequence[int], prediction: Tensor, target: Tensor, missing: Sequence[Sequence[int]]) -> None:
        """Record the Dice of a batch: probabilities and target (b, classes, z, y, x)."""
        if not self._measures:
            return
        for case, dice in zip(cases, dice_of_samples(prediction.detach(), target, missing), strict=True):
            if dice == dice:
                self._sums[case] += dice
                self._counts[case] += 1

    def end_epoch(self, fabric: Fabric) -> list[float]:
        """End an epoch: return the latest Dice of every case over all processes; nan for those never sampled."""
        if not self._measures:
            return []
        both = torch.tensor(np.stack([self._sums, self._counts]), device=fabric.device, dtype=torch.float32)
        everyone = fabric.all_reduce(both, reduce_op="sum")
        assert isinstance(everyone, Tensor)
        sums, counts = everyone.cpu().numpy().astype(np.float64)
        self._seen = np.where(counts > 0, sums / np.maximum(counts, 1), self._seen)
        self._sums[:], self._counts[:] = 0, 0
        return [float(v) for v in self._seen]


@torch.no_grad()
def soft_dice(prediction: Tensor, target: Tensor) -> Tensor:
    """Return the Dice of probabilities (b, classes, z, y, x) per structure over a batch; nan where it shows none.

    The target adds up to the labelled share of each voxel. Where structures may overlap, the prediction has no
    background.
    """
    true = target[:, 1:].flatten(2)
    p = prediction[:, prediction.shape[1] - true.shape[1] :].flatten(2).to(true.dtype)
    both, voxels = sums_of_products(p, true).sum(0), true.sum((0, 2))
    found = sums_of_products(p, target.flatten(2).sum(1, keepdim=True)).sum(0)
    dice = 2 * both / (found + voxels).clamp_min(1e-6)
    return torch.where(voxels > 1, dice, torch.nan)


def dice_of_samples(prediction: Tensor, target: Tensor, missing: Sequence[Sequence[int]] = ()) -> list[float]:
    """Return the mean Dice of each sample over the classes that it shows; nan where it shows none.

    Parameters
    ----------
    prediction
        Probabilities (b, classes, z, y, x), or (b, classes - 1, z, y, x) where structures may overlap.
    target
        (b, classes, z, y, x), adding up to the labelled share of each voxel.
    missing
        For each sample the classes that it was never labelled with.
    """
    z, y, x = prediction.shape[2:]
    target = F.adaptive_avg_pool3d(target, (z, y, x)) if target.shape[2:] != prediction.shape[2:] else target
    overlapping = prediction.shape[1] == target.shape[1] - 1
    best = None if overlapping else prediction.argmax(1, keepdim=True)
    told = target.sum(1) > _PART
    means = []
    for b in range(len(target)):
        found = []
        for c in range(1, target.shape[1]):
            true = target[b, c] > _PART
            if (missing and c in missing[b]) or not bool(true.any()):
                continue
            mine = prediction[b, c - 1] >= 0.5 if best is None else best[b, 0] == c
            mine = mine & told[b]
            found.append(float(2 * (mine & true).sum() / (mine.sum() + true.sum())))
        means.append(float(np.mean(found)) if found else math.nan)
    return means
