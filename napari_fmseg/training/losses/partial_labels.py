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

from napari_fmseg.core.errors import GeometryMismatch

__all__ = ["merge_missing", "partial_loss", "partial_structures", "shares"]


_LEAST_SHARE = 1e-4
"""Labelled share of a voxel, below which it is none: as much is left where single precision resamples 0 and 1."""


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


def merge_missing(values: Tensor, missing: Sequence[int]) -> Tensor:
    """Add missing classes to the background and leave them out.

    Parameters
    ----------
    values
        (b, classes, z, y, x): probabilities or targets.
    missing
        Classes; never the background.

    Returns
    -------
    Tensor
        (b, classes that are left, z, y, x).

    Raises
    ------
    GeometryMismatch
        If `missing` names the background or no class of `values`.
    """
    if not missing:
        return values
    if min(missing) < 1 or max(missing) >= values.shape[1]:
        raise GeometryMismatch(
            f"Missing classes lie between 1 and {values.shape[1] - 1}, and the background is none; not {list(missing)}."
        )
    kept = [c for c in range(1, values.shape[1]) if c not in missing]
    background = values[:, [0, *missing]].sum(1, keepdim=True)
    return torch.cat([background, values[:, kept]], 1)


def partial_loss(
    criterion: Callable[..., Tensor],
    prediction: Tensor,
    target: Tensor,
    *,
    sparse: bool = True,
    missing: Sequence[Sequence[int]] = (),
) -> Tensor:
    """Compare probabilities with a target that may leave voxels and classes open.

    Parameters
    ----------
    criterion
        A loss of `napari_fmseg.training.losses.fmsf`: prediction, target and, where it is needed, a weight.
    prediction
        Probabilities (b, classes, z, y, x).
    target
        Of the same shape, adding up to the labelled share of each voxel.
    sparse
        False if every voxel was labelled, which saves a look at them.
    missing
        For each sample the classes that it was never labelled with; empty if all have all. A loss sees such a sample
        without these classes, so that those that are there keep their weight.
    """
    sets = [tuple(gone) for gone in missing]
    if any(sets):
        total = torch.zeros((), device=prediction.device)
        for gone in dict.fromkeys(sets):
            own = [i for i, other in enumerate(sets) if other == gone]
            parts = [merge_missing(values[own], gone) for values in (prediction, target)]
            if parts[0].shape[1] > 1:
                total = total + partial_loss(criterion, parts[0], parts[1], sparse=sparse) * (len(own) / len(sets))
        return total
    if not sparse or getattr(criterion, "takes_shares", False):
        return criterion(prediction, target)
    told, share = shares(target)
    return criterion(prediction, told, share)


def partial_structures(
    criterion: Callable[..., Tensor],
    prediction: Tensor,
    target: Tensor,
    *,
    sparse: bool = True,
    missing: Sequence[Sequence[int]] = (),
) -> Tensor:
    """Compare structures that may overlap with a target that may leave voxels and classes open.

    Every structure is asked about alone, so that one that a sample was never labelled with is simply not asked about.

    Parameters
    ----------
    criterion
        Takes probabilities and targets without a background and, where it is needed, a weight.
    prediction
        Probabilities (b, classes - 1, z, y, x).
    target
        (b, classes, z, y, x) with the background, adding up to the labelled share of each voxel.
    sparse, missing
        As in `partial_loss`.
    """
    sets = [tuple(gone) for gone in missing]
    if any(sets):
        total = torch.zeros((), device=prediction.device)
        for gone in dict.fromkeys(sets):
            own = [i for i, other in enumerate(sets) if other == gone]
            left = [c - 1 for c in range(1, target.shape[1]) if c not in gone]
            if left:
                rest = partial_structures(
                    criterion, prediction[own][:, left], merge_missing(target[own], gone), sparse=sparse
                )
                total = total + rest * (len(own) / len(sets))
        return total
    if not sparse:
        return criterion(prediction, target[:, 1:])
    told, share = shares(target)
    return criterion(prediction, told[:, 1:], share)
