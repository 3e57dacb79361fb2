"""Losses of EfficientSegmentation, for structures that each have a channel of their own and may overlap.

`logits` and `target` are (b, K, z, y, x) without a background channel; targets are 0 or 1. `weight` is (b, 1, z, y, x),
not negative; a voxel of weight 0 (unlabelled) has no influence. Definitions after a description of the public code
(github.com/Shanghai-Aitrox-Technology/EfficientSegmentation), with its oddities, which the docstrings name.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from napari_fmseg.core.errors import GeometryMismatch, InvalidRecipe
from napari_fmseg.core.resampling_torch import bounding_box

__all__ = [
    "STRUCTURE_LOSSES",
    "StructureLoss",
    "structure_boundary",
    "structure_dice",
    "structure_entropy",
    "structure_focal",
    "structure_topk",
]

_SPACE = (2, 3, 4)

STRUCTURE_LOSSES = ("dice", "dice+bce", "dice+focal", "dice+topk", "dice+boundary")
"""The losses by name; the second part is added to the first."""


class StructureLoss(nn.Module):
    """One of the published losses, on logits.

    Parameters
    ----------
    kind
        One of `STRUCTURE_LOSSES`.
    activation
        ``"sigmoid"`` (published) or ``"softmax"`` over the channels.
    hardest
        For ``"dice+topk"``: the share of voxels per structure that counts; one number for all, or one each.
    """

    def __init__(self, kind: str = "dice", activation: str = "sigmoid", hardest: float | Sequence[float] = 0.3) -> None:
        super().__init__()
        if kind not in STRUCTURE_LOSSES or activation not in ("sigmoid", "softmax"):
            raise InvalidRecipe(
                f"There is no loss {kind!r} of {activation!r} outputs. Choose one of {', '.join(STRUCTURE_LOSSES)}, "
                "with sigmoid or softmax."
            )
        self.kind, self.activation, self.hardest = kind, activation, hardest

    def forward(self, logits: Tensor, target: Tensor, weight: Tensor | None = None) -> Tensor:
        """Return the loss, a scalar."""
        if logits.shape != target.shape or logits.ndim != 5:
            raise GeometryMismatch(
                f"Logits and target must both be (batch, structures, z, y, x), not {tuple(logits.shape)} and "
                f"{tuple(target.shape)}. Is the target on the grid of the logits, and without the background?"
            )
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        p = logits.sigmoid() if self.activation == "sigmoid" else logits.softmax(1)
        return self.of(p, target.to(p.dtype), weight)

    def of(self, p: Tensor, target: Tensor, weight: Tensor | None = None) -> Tensor:
        """Return the loss of probabilities (b, K, z, y, x), a scalar."""
        target = target.clamp(0, 1)  # resampling leaves a last digit too much, which torch refuses
        loss = structure_dice(p, target, weight)
        if self.kind == "dice+bce":
            return loss + structure_entropy(p, target, weight)
        if self.kind == "dice+focal":
            return loss + structure_focal(p, target, weight)
        if self.kind == "dice+topk":
            return loss + structure_topk(p, target, self.hardest, weight)
        if self.kind == "dice+boundary":
            return loss + structure_boundary(p, target, weight)
        return loss


def structure_dice(p: Tensor, target: Tensor, weight: Tensor | None = None) -> Tensor:
    """Return 1 - mean over samples and structures of (2 sum pt + s) / (sum p² + sum t² + s), with s = 1e-8.

    A structure that is absent costs 1 for the faintest trace of it.
    """
    w = torch.ones_like(p[:, :1]) if weight is None else weight
    both, squares = (w * p * target).sum(_SPACE), (w * (p * p + target * target)).sum(_SPACE)
    return (1 - (2 * both + 1e-8) / (squares + 1e-8)).mean()


def structure_entropy(p: Tensor, target: Tensor, weight: Tensor | None = None) -> Tensor:
    """Return the binary cross entropy, averaged over everything."""
    entropy = _entropies(p, target)
    return entropy.mean() if weight is None else (entropy * weight).sum() / (p.shape[1] * weight.sum()).clamp_min(1e-8)


def structure_focal(p: Tensor, target: Tensor, weight: Tensor | None = None, *, per_class: bool = False) -> Tensor:
    """Return the focal term as published: b sum(w) / max(sum t, 1), with w = (1 - p)²/2 inside and p²/2 outside.

    b is the cross entropy averaged over everything and multiplies the sum; it is not that of each voxel, as in the
    focal loss of the literature.

    Parameters
    ----------
    p, target, weight
        As in this module.
    per_class
        Take the term of each structure alone, then the mean over them.
    """
    if per_class:
        parts = [structure_focal(p[:, i : i + 1], target[:, i : i + 1], weight) for i in range(p.shape[1])]
        return torch.stack(parts).mean()
    p = p.clamp(1e-4, 1 - 1e-4)
    hardness = 0.5 * torch.where(target > 0.5, 1 - p, p).square()
    counts = target if weight is None else target * weight
    hardness = hardness if weight is None else hardness * weight
    return structure_entropy(p, target, weight) * hardness.sum() / counts.sum().clamp_min(1)


def structure_topk(
    p: Tensor, target: Tensor, share: float | Sequence[float] = 0.3, weight: Tensor | None = None
) -> Tensor:
    """Return the mean cross entropy of each structure's hardest voxels, averaged over the structures.

    Parameters
    ----------
    p, target, weight
        As in this module.
    share
        Of the labelled voxels that counts, above 0 and at most 1; published for four organs: 0.3, 0.3, 0.3, 0.1.
    """
    n = p.shape[1]
    shares = [float(share)] * n if isinstance(share, (int, float)) else list(share)
    if len(shares) != n or not all(0 < s <= 1 for s in shares):
        raise InvalidRecipe(f"The hardest voxels need a share from 0 to 1 per structure ({n} of them), not {shares}.")
    entropy = _entropies(p, target)
    entropy = entropy if weight is None else entropy * weight
    counted = entropy[:, 0].numel() if weight is None else int((weight > 0).sum())
    parts = []
    for i, part in enumerate(shares):
        parts.append(entropy[:, i].flatten().topk(max(int(counted * part), 1)).values.mean())
    return torch.stack(parts).mean()


def structure_boundary(p: Tensor, target: Tensor, weight: Tensor | None = None) -> Tensor:
    """Return the mean of (p - t)² (d_p² + d_t²), with the distances in voxels from inside each mask to its border.

    Errors deep inside a structure, predicted or true, cost most. Distances are computed on the CPU.
    """
    far = _depths(p.detach() >= 0.5) ** 2 + _depths(target >= 0.5) ** 2
    cost = (p - target).square() * far.to(p)
    return cost.mean() if weight is None else (cost * weight).sum() / (p.shape[1] * weight.sum()).clamp_min(1e-8)


def _entropies(p: Tensor, target: Tensor) -> Tensor:
    with torch.autocast(p.device.type, enabled=False):
        return F.binary_cross_entropy(p, target, reduction="none")


def _depths(masks: Tensor) -> Tensor:
    """Return the distance of each voxel inside a mask to the next one outside; 0 outside."""
    from scipy.ndimage import distance_transform_edt

    depths = torch.zeros(masks.shape, dtype=torch.float64)
    for mask, depth in zip(masks.flatten(0, 1), depths.flatten(0, 1), strict=True):
        box = bounding_box(mask)
        if box is None or mask.all():  # without an outside there is no border, and scipy's distances mean nothing
            continue
        z, y, x = (slice(max(0, s.start - 1), s.stop + 1) for s in box)  # the next voxel outside is never farther
        depth[z, y, x] = torch.from_numpy(distance_transform_edt(mask[z, y, x].cpu().numpy()))
    return depths
