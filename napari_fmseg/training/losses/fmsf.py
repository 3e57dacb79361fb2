"""Losses and overlap metrics of FMSF-PT on probabilities, with an optional weight per voxel.

`prediction` and `target` are (b, C, z, y, x) with values from 0 to 1 and class 0 as background; targets may be
fractional. `weight` is (b, 1, z, y, x), not negative; a voxel of weight 0 (unlabelled) has no influence.
Sums run in float32 whatever the network's precision. Definitions after the public code of FMSF-PT
(github.com/Human9000/FMST-PT), with its oddities, which the docstrings name.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from napari_fmseg.core.errors import GeometryMismatch

__all__ = [
    "AttnLoss",
    "AttnLossV2",
    "DeepSupervision",
    "DiceCELoss",
    "DiceLoss",
    "JaccardLoss",
    "TverskyLoss",
    "attn_dice",
    "deep_supervision_weights",
    "dice",
]

_SPACE = (2, 3, 4)


def dice(prediction: Tensor, target: Tensor, weight: Tensor | None = None) -> Tensor:
    """Return the overlap per class, pooled over the batch: (1 + 2 sum pt) / (1 + sum p + sum t).

    Returns
    -------
    Tensor
        (C,); 1 for a class that is absent in both.
    """
    p, t, w = _check_shapes(prediction, target, weight)
    return (1 + 2 * _batch_sums(p * t, w)) / (1 + _batch_sums(p + t, w))


def attn_dice(prediction: Tensor, target: Tensor, weight: Tensor | None = None) -> Tensor:
    """Return the overlap per class that is fair to fractional targets: (1 + 2 sum pt) / (1 + sum p² + sum t²).

    It equals `dice` on masks of 0 and 1, is greater as soon as one value lies between, and is 1 only for p = t.

    Returns
    -------
    Tensor
        (C,), pooled over the batch; 1 for a class that is absent in both.
    """
    p, t, w = _check_shapes(prediction, target, weight)
    return (1 + 2 * _batch_sums(p * t, w)) / (1 + _batch_sums(p * p + t * t, w))


class AttnLoss(nn.Module):
    """Absolute difference and two overlaps; the loss of the consensus and edge stages.

    10 a mean|p - t| + 10 (1 - a) mean_b(1 - mean_c((1 + I) / (1 + sum(p + t)) + (1 + I) / (1 + sum(p² + t²)))) with
    I = sum pt. It is not 1 - AttnDice: a perfect prediction falls slightly below 0, and an absent class that is
    predicted absent takes 10 (1 - a) / C off.

    Parameters
    ----------
    share
        a, the share of the absolute difference.
    """

    def __init__(self, share: float = 0.1) -> None:
        super().__init__()
        self.share = share

    def forward(self, prediction: Tensor, target: Tensor, weight: Tensor | None = None) -> Tensor:
        """Return the loss, a scalar."""
        p, t, w = _check_shapes(prediction, target, weight)
        both = 1 + _sums(p * t, w)
        overlap = both / (1 + _sums(p + t, w)) + both / (1 + _sums(p * p + t * t, w))  # (b, C)
        return 10 * self.share * _mean((p - t).abs(), w) + 10 * (1 - self.share) * (1 - overlap.mean())


class AttnLossV2(nn.Module):
    """The loss of the 2023 variants; negative for a good prediction.

    r1 (0.04 mean|p0 - t0| + 0.16 mean|p_fg - t_fg|) - r5 mean_b(1/C sum_{c >= 1}((1 + I) / (1 + sum(p² + t²))
    + 0.5 (1 + I) / (1 + sum(p + t - pt)))).

    Parameters
    ----------
    r1, r5
        Weights of the absolute differences and of the overlaps.
    """

    def __init__(self, r1: float = 0.1, r5: float = 1.0) -> None:
        super().__init__()
        self.r1, self.r5 = r1, r5

    def forward(self, prediction: Tensor, target: Tensor, weight: Tensor | None = None) -> Tensor:
        """Return the loss, a scalar."""
        p, t, w = _check_shapes(prediction, target, weight)
        difference = (p - t).abs()
        apart = 0.04 * _mean(difference[:, :1], w) + 0.16 * _mean(difference[:, 1:], w)
        product = p * t
        both, union = 1 + _sums(product, w), 1 + _sums(p + t - product, w)
        overlap = both / (1 + _sums(p * p + t * t, w)) + 0.5 * both / union  # (b, C)
        return self.r1 * apart - self.r5 * overlap[:, 1:].sum(1).mean() / p.shape[1]


class TverskyLoss(nn.Module):
    """1 - mean_c I / (I + alpha sum p(1 - t) + beta sum (1 - p)t + 1), from 0 to 2; the loss of the attention stage.

    The 1 stands in the denominator only, so that an absent class costs 1/C whatever is predicted.

    Parameters
    ----------
    alpha, beta
        What a false positive and a false negative cost.
    """

    def __init__(self, alpha: float = 0.3, beta: float = 0.7) -> None:
        super().__init__()
        self.alpha, self.beta = alpha, beta

    def forward(self, prediction: Tensor, target: Tensor, weight: Tensor | None = None) -> Tensor:
        """Return the loss, a scalar."""
        p, t, w = _check_shapes(prediction, target, weight)
        both, predicted, true = _sums(p * t, w), _sums(p, w), _sums(t, w)
        index = both / (both + self.alpha * (predicted - both) + self.beta * (true - both) + 1)
        return (1 - index.mean(1)).mean().clamp(0, 2)


class DiceLoss(nn.Module):
    """1 - mean_c 2I / (sum p² + sum t² + 1), from 0 to 1; an absent class costs 1/C."""

    def forward(self, prediction: Tensor, target: Tensor, weight: Tensor | None = None) -> Tensor:
        """Return the loss, a scalar."""
        p, t, w = _check_shapes(prediction, target, weight)
        return (1 - 2 * _sums(p * t, w) / (_sums(p * p + t * t, w) + 1)).mean().clamp(0, 1)


class JaccardLoss(nn.Module):
    """1 - mean_c I / (sum p² + sum t² - I + 1), from 0 to 1; an absent class costs 1/C."""

    def forward(self, prediction: Tensor, target: Tensor, weight: Tensor | None = None) -> Tensor:
        """Return the loss, a scalar."""
        p, t, w = _check_shapes(prediction, target, weight)
        both = _sums(p * t, w)
        return (1 - both / (_sums(p * p + t * t, w) - both + 1)).mean().clamp(0, 1)


class DiceCELoss(nn.Module):
    """Mean of 1 - Dice over the structures, plus cross entropy: what most of the field trains with.

    Dice_c = (2 sum pt + s) / (sum p² + sum t² + s) per sample and without the background. s is small, so that a
    structure of a few voxels on a coarse head still counts; an absent one that is not predicted costs nothing. Cross
    entropy is taken of the probabilities with a floor of 1e-30: one as high as 1e-5 leaves no gradient where a class is
    as good as excluded.

    Parameters
    ----------
    balanced
        Weigh structure voxels by (background / structure voxels)^0.75, at most 60. Without it a network that has no
        normalisation may settle for background everywhere when the structures fill less than a hundredth.
    by_class
        Weigh the voxels of each class by (background / voxels of the class)^0.75 instead, at most 60, so that a small
        class inside a large one (a tumour in a liver) is not left to the large one.
    """

    smooth = 0.05

    def __init__(self, balanced: bool = False, by_class: bool = False) -> None:
        super().__init__()
        self.balanced, self.by_class = balanced, by_class

    def forward(self, prediction: Tensor, target: Tensor, weight: Tensor | None = None) -> Tensor:
        """Return the loss, a scalar."""
        p, t, w = _check_shapes(prediction, target, weight)
        overlap = (2 * _sums(p * t, w) + self.smooth) / (_sums(p * p + t * t, w) + self.smooth)  # (b, C)
        if self.by_class:
            voxels = _weighted_values(t, w).sum((0, 2, 3, 4), keepdim=True)  # (1, C, 1, 1, 1)
            ratio = (voxels[:, :1] / voxels.clamp_min(1)).pow(0.75).clamp(1, 60)
            emphasis = (t * ratio).sum(1, keepdim=True)
            w = emphasis if w is None else w * emphasis
        elif self.balanced:
            background = t[:, :1]
            voxels = _weighted_values(torch.cat([background, 1 - background], 1), w).sum((0, 2, 3, 4))
            ratio = (voxels[0] / voxels[1].clamp_min(1)).pow(0.75).clamp(1, 60)
            emphasis = background + ratio * (1 - background)
            w = emphasis if w is None else w * emphasis
        entropy = -(t * p.clamp_min(1e-30).log()).sum(1, keepdim=True)
        return (1 - overlap[:, 1:]).mean() + _mean(entropy, w)


def deep_supervision_weights(n_heads: int = 4) -> tuple[float, ...]:
    """Return the weights of the heads, finest first: 1, then 1.5 - 1 / (1 + 2.7^-i)."""
    return (1.0, *(1.5 - 1 / (1 + 2.7**-i) for i in range(1, n_heads)))


class DeepSupervision(nn.Module):
    """The weighted sum of one loss over the heads of a network, finest first.

    Parameters
    ----------
    loss
        One of this module's losses.
    """

    def __init__(self, loss: nn.Module) -> None:
        super().__init__()
        self.loss = loss

    def forward(self, heads: Sequence[Tensor], target: Tensor, weight: Tensor | None = None) -> Tensor:
        """Return the loss of `heads`, each on the grid of `target`; a scalar."""
        weights = deep_supervision_weights(len(heads))
        losses = [w * self.loss(head, target, weight) for w, head in zip(weights, heads, strict=True)]
        return torch.stack(losses).sum()


def _check_shapes(prediction: Tensor, target: Tensor, weight: Tensor | None) -> tuple[Tensor, Tensor, Tensor | None]:
    if prediction.shape != target.shape or prediction.ndim != 5:
        raise GeometryMismatch(
            f"Prediction and target must both be (batch, classes, z, y, x), not {tuple(prediction.shape)} "
            f"and {tuple(target.shape)}. Is the target one-hot and on the prediction's grid?"
        )
    if weight is not None and weight.shape != (target.shape[0], 1, *target.shape[2:]):
        expected = (target.shape[0], 1, *target.shape[2:])
        raise GeometryMismatch(f"The weight must have one channel, {expected}, not {tuple(weight.shape)}.")
    dtype = torch.promote_types(torch.promote_types(prediction.dtype, target.dtype), torch.float32)
    return prediction.to(dtype), target.to(dtype), None if weight is None else weight.to(dtype)


def _weighted_values(values: Tensor, weight: Tensor | None) -> Tensor:
    """Return what counts of `values`: class weights are counted on labelled voxels only."""
    return values if weight is None else values * weight


def _sums(values: Tensor, weight: Tensor | None) -> Tensor:
    """Sum over space: (b, C)."""
    return (values if weight is None else values * weight).sum(_SPACE)


def _batch_sums(values: Tensor, weight: Tensor | None) -> Tensor:
    """Sum over space and batch: (C,)."""
    return _sums(values, weight).sum(0)


def _mean(values: Tensor, weight: Tensor | None) -> Tensor:
    """Return the mean over the voxels that count; 0 if none does."""
    if weight is None:
        return values.mean()
    return (values * weight).sum() / (values.shape[1] * weight.sum()).clamp(min=torch.finfo(values.dtype).tiny)
