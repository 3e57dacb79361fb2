"""Intensity normalisation, body bounding box and crops before the networks."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from napari_fmseg.core.resampling_torch import box_above, slabs
from napari_fmseg.core.volume import Box
from napari_fmseg.models.card import Intensity

__all__ = ["IntensityMap", "body_box", "crop_array", "minmax_normalise", "normalise", "whole_box"]

_SORTED_VOXELS = 2_000_000
"""Of a volume, by which its percentiles are taken."""


@dataclass(frozen=True)
class IntensityMap:
    """How the intensities of each channel of one volume become a network's input.

    Attributes
    ----------
    channels
        Of each channel (low, high, shift, scale): values are clamped to low..high, minus shift, over scale. None: as
        it is stored.
    """

    channels: tuple[tuple[float, float, float, float] | None, ...]

    @classmethod
    def of(cls, intensity: Intensity, shape: Sequence[int], parts: Callable[[], Iterable[Tensor]]) -> IntensityMap:
        """Return what a card states, by the percentiles, mean and standard deviation of a volume where it needs them.

        Parameters
        ----------
        intensity
            The card's.
        shape
            Of the volume (c, z, y, x).
        parts
            Gives the volume in slabs (c, z, y, x), one after the other, in any number type.
        """
        voxels = math.prod(shape[1:])
        return cls(tuple(_map_of_channel(intensity.of_channel(n), n, voxels, parts) for n in range(shape[0])))

    def __call__(self, data: Tensor) -> Tensor:
        """Return (c, z, y, x), which may be a part of the volume, mapped; float32."""
        out = data.to(torch.float32, copy=True)
        for channel, how in zip(out, self.channels, strict=True):
            if how is not None:
                low, high, shift, scale = how
                if math.isfinite(low) or math.isfinite(high):
                    channel.clamp_(low, high)
                channel.sub_(shift).div_(scale)
        return out


def normalise(data: Tensor, intensity: Intensity) -> Tensor:
    """Map intensities (c, z, y, x) as the card states: to 0..1 by a window or by percentiles, or to z-scores."""
    return IntensityMap.of(intensity, data.shape, lambda: (data[:, planes] for planes in slabs(data.shape[1:])))(data)


def _map_of_channel(
    intensity: Intensity, number: int, voxels: int, parts: Callable[[], Iterable[Tensor]]
) -> tuple[float, float, float, float] | None:
    kind, low, high = intensity.kind, intensity.low, intensity.high
    if kind == "none":
        return None
    if kind == "fixed_zscore":
        return low, high, intensity.mean, max(intensity.std, 1e-8)
    if kind in ("zscore", "window_zscore"):
        low, high = (low, high) if kind == "window_zscore" else (-math.inf, math.inf)
        mean, std = _mean_and_std(part[number].float().clamp(low, high) for part in parts())
        return low, high, mean, std + 1e-5
    if kind == "percentile":
        low, high = _percentiles((part[number] for part in parts()), voxels, low, high)
    return low, high, low, max(high - low, 1e-12)


def _mean_and_std(parts: Iterable[Tensor]) -> tuple[float, float]:
    """Return both over all parts of a volume.

    By the update of Chan, Golub and LeVeque, Updating formulae and a pairwise algorithm for computing sample
    variances, 1979.
    """
    n, mean, squares = 0, 0.0, 0.0
    for part in parts:
        m = part.numel()
        std, middle = (float(v) for v in torch.std_mean(part, correction=0))
        squares += std**2 * m + (middle - mean) ** 2 * n * m / (n + m)
        mean += (middle - mean) * m / (n + m)
        n += m
    return mean, math.sqrt(squares / n)


def _percentiles(parts: Iterable[Tensor], voxels: int, low: float, high: float) -> tuple[float, float]:
    """Return the percentiles of every n-th voxel, so that a large volume costs no sort of all its voxels."""
    step, place, seen = max(1, voxels // _SORTED_VOXELS), 0, []
    for part in parts:
        seen.append(part.flatten()[-place % step :: step].float())
        place += part.numel()
    values = torch.cat(seen).sort().values
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
