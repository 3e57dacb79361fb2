"""nnU-Net's resampling as small matrix products, one per axis: splines are linear, too.

Voxels are compared edge to edge and nothing is anti-aliased, also where the new grid is coarser.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from napari_fmseg.models.settings import Resampling

__all__ = ["axis_matrices", "resample_image", "resample_labels", "separate_axis"]

Floats = npt.NDArray[np.float64]


def separate_axis(rule: Resampling, current: Sequence[float], new: Sequence[float]) -> int | None:
    """Return the axis that is resampled by itself, or None: that of the largest spacing, where grids are anisotropic.

    Parameters
    ----------
    rule
        When.
    current, new
        The spacings before and after.
    """
    if rule.separate == "never" or rule.how == "none":
        return None
    for spacing in (current, new):
        largest = max(spacing)
        if rule.separate == "always" or largest / min(spacing) > rule.threshold:
            axes = [axis for axis, mm in enumerate(spacing) if mm == largest]
            return axes[0] if len(axes) == 1 else None
    return None


def axis_matrices(
    rule: Resampling, before: Sequence[int], after: Sequence[int], separate: int | None
) -> list[Floats | None]:
    """Return the weights (n_out, n_in) for each axis; None where the length stays."""
    found: list[Floats | None] = []
    for axis, (n_in, n_out) in enumerate(zip(before, after, strict=True)):
        order = 1 if rule.how == "torch" else rule.order
        if axis == separate:
            order = 0 if rule.how == "torch" else rule.order_z
        found.append(None if n_in == n_out else _weights(n_in, n_out, order))
    return found


@lru_cache(maxsize=32)
def _weights(n_in: int, n_out: int, order: int) -> Floats:
    places = n_in / n_out * (np.arange(n_out) + 0.5) - 0.5
    if order == 0:
        nearest = np.clip(np.floor(places + 0.5), 0, n_in - 1)
        return np.asarray(nearest[:, None] == np.arange(n_in), np.float64)
    if order == 1:
        centre = np.clip(places, 0, n_in - 1)
        return np.asarray(np.maximum(1 - np.abs(np.arange(n_in) - centre[:, None]), 0), np.float64)
    from scipy.ndimage import zoom

    # What a spline makes of a single 1 is the column of its matrix.
    factors = (n_out / n_in, 1)
    return np.asarray(zoom(np.eye(n_in), factors, order=order, mode="nearest", grid_mode=True), np.float64)


def resample_image(
    image: Tensor, after: Sequence[int], rule: Resampling, current: Sequence[float], new: Sequence[float]
) -> Tensor:
    """Resample one channel (a0, a1, a2) to `after`; splines stay within the range of what they came from."""
    if tuple(image.shape) == tuple(after) or rule.how == "none":
        return image
    separate = separate_axis(rule, current, new)
    matrices = axis_matrices(rule, image.shape, after, separate)
    alone = None if separate is None else matrices[separate]
    if separate is not None:
        matrices[separate] = None
    axes = (0, 1, 2) if separate is None else tuple(axis for axis in range(3) if axis != separate)
    low, high = image.amin(axes, keepdim=True), image.amax(axes, keepdim=True)
    out = _apply(image, matrices)
    if rule.how == "spline":
        out = torch.maximum(torch.minimum(out, high), low)
    return out if separate is None or alone is None else _along(out, alone, separate)


def resample_labels(
    labels: Tensor, after: Sequence[int], rule: Resampling, current: Sequence[float], new: Sequence[float]
) -> Tensor:
    """Resample labels (a0, a1, a2): each as a volume of 0 and 1, of which a voxel takes the largest.

    Equal ones give the label that lies nearest if it is among them, else the smallest.
    """
    if tuple(labels.shape) == tuple(after) or rule.how == "none":
        return labels
    separate = separate_axis(rule, current, new)
    matrices = axis_matrices(rule, labels.shape, after, separate)
    nearest = labels
    for axis, (n_in, n_out) in enumerate(zip(labels.shape, after, strict=True)):
        if n_in != n_out:
            nearest = nearest.index_select(axis, torch.from_numpy(_weights(n_in, n_out, 0).argmax(1)))
    best = torch.full(tuple(after), -torch.inf, dtype=torch.float64)
    found = torch.zeros(tuple(after), dtype=labels.dtype)
    for label in np.unique(labels.numpy()).tolist():
        share = _apply((labels == label).double(), matrices)
        found[(share > best) | ((share == best) & (nearest == label))] = label
        torch.maximum(best, share, out=best)
    return found


def _apply(data: Tensor, matrices: Sequence[Floats | None]) -> Tensor:
    wanted = [(m.shape[0] / m.shape[1], axis, m) for axis, m in enumerate(matrices) if m is not None]
    for _, axis, matrix in sorted(wanted, key=lambda one: one[:2]):  # the strongest reduction first
        data = _along(data, matrix, axis)
    return data


def _along(data: Tensor, matrix: Floats, axis: int) -> Tensor:
    """Apply (n_out, n_in) to an axis of (a0, a1, a2)."""
    weights = torch.from_numpy(matrix).to(data)
    if axis == 2:
        return torch.matmul(data, weights.T)
    if axis == 1:
        return torch.matmul(weights, data)
    return torch.matmul(weights, data.flatten(1)).reshape(-1, *data.shape[1:])
