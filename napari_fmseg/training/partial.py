"""Learning from what is not labelled everywhere: unlabelled voxels, and cases that have only some of the classes.

A target (b, classes, z, y, x) adds up to 1 where the voxel was labelled, to 0 where it was not, and to the labelled
share where a coarse voxel holds both. Cropping, zooming, pooling, flipping and turning are linear, so the share
travels with the target and no second array is needed.

A class that a case was never labelled with may hide in its background. There the background of the case means
"background or one of the missing classes": their probabilities are added up before any loss sees them (the marginal
loss of Shi et al., Marginal loss and exclusion loss for partially supervised multi-organ segmentation, Med. Image Anal.
70, 2021).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from napari_fmseg.errors import GeometryMismatch

__all__ = ["IGNORE", "merged", "missing_of", "partial_loss", "shares"]

IGNORE = 255
"""What stands for "not labelled" in a training sample's labels, whatever the files call it."""

_LEAST_SHARE = 1e-6


def shares(target: Tensor) -> tuple[Tensor, Tensor]:
    """Split a target into what it says and how much of each voxel says it.

    Parameters
    ----------
    target
        (b, classes, z, y, x), adding up to the labelled share of the voxel.

    Returns
    -------
    tuple
        The target of the labelled part, adding up to 1 (0 where nothing was labelled), and the share
        (b, 1, z, y, x) in 0..1.
    """
    share = target.sum(1, keepdim=True).clamp(0, 1)
    told = torch.where(share > _LEAST_SHARE, target / share.clamp_min(_LEAST_SHARE), torch.zeros_like(target))
    return told, torch.where(share > _LEAST_SHARE, share, torch.zeros_like(share))


def missing_of(samples: Sequence[Sequence[int]], n_classes: int) -> Tensor | None:
    """Give which classes each sample of a batch was never labelled with, (b, classes) bool; None if it is none."""
    if not any(samples):
        return None
    table = torch.zeros(len(samples), n_classes, dtype=torch.bool)
    for row, classes in zip(table, samples, strict=True):
        row[list(classes)] = True
    return table


def merged(values: Tensor, missing: Tensor) -> Tensor:
    """Add the missing classes to the background, sample by sample.

    Parameters
    ----------
    values
        (b, classes, z, y, x): probabilities or targets.
    missing
        (b, classes) bool; never True for the background.

    Returns
    -------
    Tensor
        Of the same shape; 0 in the missing classes.

    Raises
    ------
    GeometryMismatch
        If `missing` does not fit, or names the background.
    """
    if missing.shape != values.shape[:2] or bool(missing[:, 0].any()):
        raise GeometryMismatch(
            f"missing must be {tuple(values.shape[:2])} and never name the background, not {tuple(missing.shape)}."
        )
    away = missing.to(values.device)[:, :, None, None, None]
    hidden = (values * away).sum(1, keepdim=True)
    kept = values.masked_fill(away, 0)
    return torch.cat([kept[:, :1] + hidden, kept[:, 1:]], 1)


def partial_loss(
    criterion: Callable[..., Tensor],
    prediction: Tensor,
    target: Tensor,
    *,
    sparse: bool = True,
    missing: Tensor | None = None,
) -> Tensor:
    """Compare probabilities with a target that may leave voxels and classes open.

    Parameters
    ----------
    criterion
        A loss of `napari_fmseg.training.losses`: prediction, target and, where it is needed, a weight.
    prediction
        Probabilities (b, classes, z, y, x).
    target
        Of the same shape, adding up to the labelled share of each voxel.
    sparse
        False if every voxel was labelled, which saves a look at them.
    missing
        (b, classes) bool: see `merged`. None if every case has every class.
    """
    if missing is not None:
        prediction, target = merged(prediction, missing), merged(target, missing)
    if not sparse:
        return criterion(prediction, target)
    told, share = shares(target)
    return criterion(prediction, told, share)
