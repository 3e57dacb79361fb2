"""Intensity normalisation, body bounding box and crops before the networks."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from napari_fmseg.core.resampling_torch import box_above
from napari_fmseg.core.volume import Box
from napari_fmseg.models.card import Intensity

__all__ = ["body_box", "crop_array", "minmax_normalise", "normalise", "whole_box"]


def normalise(data: Tensor, intensity: Intensity) -> Tensor:
    """Map intensities (c, z, y, x) as the card states: to 0..1 by a window or by percentiles, or to z-scores."""
    out = data.float() if data.dtype != torch.float32 else data.clone()
    for number, channel in enumerate(out):
        own = intensity.of_channel(number)
        if own.kind == "none":
            continue
        if own.kind in ("window_zscore", "fixed_zscore"):
            channel.clamp_(own.low, own.high)
        if own.kind == "fixed_zscore":
            channel.sub_(own.mean).div_(max(own.std, 1e-8))
            continue
        if own.kind in ("zscore", "window_zscore"):
            std, mean = torch.std_mean(channel, correction=0)
            channel.sub_(mean).div_(std + 1e-5)
            continue
        low, high = own.low, own.high
        if own.kind == "percentile":
            low, high = _percentiles(channel, low, high)
        channel.clamp_(low, high).sub_(low).div_(max(high - low, 1e-12))
    return out


def _percentiles(channel: Tensor, low: float, high: float, most: int = 2_000_000) -> tuple[float, float]:
    """Return the percentiles of every n-th voxel, so that a large volume costs no sort of all its voxels."""
    values = channel.flatten()[:: max(1, channel.numel() // most)].sort().values
    at = torch.tensor([low, high], device=values.device) / 100 * (len(values) - 1)
    below = at.floor().long()
    above = (below + 1).clamp(max=len(values) - 1)
    found = torch.lerp(values[below], values[above], (at - below).to(values.dtype))
    return float(found[0]), float(found[1])


def body_box(image: Tensor, crop_above: float | None) -> Box:
    """Return the box around all voxels of a normalised volume (c, z, y, x) above a value, or all of it if None."""
    if crop_above is None:
        return whole_box(image.shape[1:])
    return box_above(image, crop_above) or whole_box(image.shape[1:])


def whole_box(shape: Sequence[int]) -> Box:
    """Return the box of a whole grid (z, y, x)."""
    z, y, x = (slice(0, n) for n in shape)
    return z, y, x


def minmax_normalise(image: Tensor, intensity: Intensity) -> Tensor:
    """Stretch each channel of (c, z, y, x) to 0..1 once more, where the card states so."""
    if not intensity.minmax:
        return image
    low, high = image.amin((1, 2, 3), keepdim=True), image.amax((1, 2, 3), keepdim=True)
    return (image - low) / (high - low).clamp_min(1e-6)  # a constant volume becomes 0, not NaN


def crop_array(data: Tensor, box: Box) -> Tensor:
    """Return the part of (c, z, y, x) inside the box."""
    return data[(slice(None), *box)]
