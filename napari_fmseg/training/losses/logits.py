"""Losses on logits, for FMUNet, PCT-Net and Volume Fusion: Dice and cross entropy, with deep supervision.

Definitions after the public code of PyMIC (github.com/HiLab-git/PyMIC), with log_softmax where it takes a logarithm of
the softmax. `target` is one-hot (b, classes, z, y, x); it may be fractional. `weight` is (b, 1, z, y, x), not negative;
a voxel of weight 0 (unlabelled) has no influence. Where several processes share a batch, `summed` adds up what a sum
over the batch is made of; means over voxels are left to the mean over processes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from napari_fmseg.core.errors import GeometryMismatch, InvalidRecipe

__all__ = ["cross_entropy", "deeply_supervised", "dice_ce_of_logits", "dice_of_logits"]

Loss = Callable[..., Tensor]
Summed = Callable[[Tensor], Tensor]


def dice_of_logits(
    logits: Tensor, target: Tensor, weight: Tensor | None = None, summed: Summed | None = None
) -> Tensor:
    """Return 1 - mean over the classes, background included, of (2 sum pt + 1e-5) / (sum p + sum t + 1e-5).

    Sums run over the whole batch, so that a class that is absent from one patch is no class of its own.
    """
    _check(logits, target)
    return 1 - _overlap(logits, target, weight, summed).mean()


def cross_entropy(logits: Tensor, target: Tensor, weight: Tensor | None = None) -> Tensor:
    """Return the mean over the voxels of -sum t log softmax(logits); finite for logits of any size."""
    _check(logits, target)
    entropy = -(target * logits.float().log_softmax(1)).sum(1, keepdim=True)
    return entropy.mean() if weight is None else (entropy * weight).sum() / weight.sum().clamp_min(1e-12)


def dice_ce_of_logits(
    logits: Tensor, target: Tensor, weight: Tensor | None = None, summed: Summed | None = None
) -> Tensor:
    """Return the half of `dice_of_logits` and half of `cross_entropy`."""
    return 0.5 * dice_of_logits(logits, target, weight, summed) + 0.5 * cross_entropy(logits, target, weight)


def deeply_supervised(
    loss: Loss, heads: Sequence[Tensor], target: Tensor, weights: Sequence[float] = (), how: str = "pooled"
) -> Tensor:
    """Return the weighted mean of a loss over the heads of a network, finest first.

    Parameters
    ----------
    loss
        One of this module's.
    heads
        Logits, each on a grid of its own.
    target
        On the finest grid.
    weights
        One per head; 1, 1/2, 1/4... if empty. They are divided by their sum.
    how
        ``"pooled"``: the target is averaged down to the head's grid, as published. ``"interpolated"``: it is
        interpolated there. ``"upsampled"``: the head is interpolated to the target's grid.

    Raises
    ------
    InvalidRecipe
        If there is no such way, or not one weight per head.
    """
    weights = weights or [0.5**i for i in range(len(heads))]
    if how not in ("pooled", "interpolated", "upsampled") or len(weights) != len(heads):
        raise InvalidRecipe(
            f"Deep supervision is 'pooled', 'interpolated' or 'upsampled' with one weight for each of {len(heads)} "
            f"heads, not {how!r} with {len(weights)}."
        )
    parts = [w * loss(*_to_one_grid(head, target, how)) for w, head in zip(weights, heads, strict=True)]
    return torch.stack(parts).sum() / sum(weights)


def _to_one_grid(head: Tensor, target: Tensor, how: str) -> tuple[Tensor, Tensor]:
    """Bring a head and the target to one grid."""
    z, y, x = head.shape[2:]
    if head.shape[2:] == target.shape[2:]:
        return head, target
    if how == "upsampled":
        return F.interpolate(head, size=target.shape[2:], mode="trilinear"), target
    if how == "interpolated":
        return head, F.interpolate(target, size=(z, y, x), mode="trilinear")
    return head, F.adaptive_avg_pool3d(target, (z, y, x))


def _overlap(logits: Tensor, target: Tensor, weight: Tensor | None, summed: Summed | None) -> Tensor:
    """Return the soft Dice per class, pooled over the batch: (classes,)."""
    p, space = logits.float().softmax(1), (0, 2, 3, 4)
    w = 1.0 if weight is None else weight
    sums = torch.stack([(v * w).sum(space) for v in (p * target, p, target)])
    both, found, true = sums if summed is None else summed(sums)
    overlap: Tensor = (2 * both + 1e-5) / (found + true + 1e-5)
    return overlap


def _check(logits: Tensor, target: Tensor) -> None:
    if logits.shape != target.shape or logits.ndim != 5:
        raise GeometryMismatch(
            f"Logits and target must both be (batch, classes, z, y, x), not {tuple(logits.shape)} and "
            f"{tuple(target.shape)}. Is the target one-hot and on the logits' grid?"
        )
