"""Volume Fusion: two crops are mixed by a random map, and a network learns from nothing but the mixing.

A map holds classes 0 to K; class k takes k / K of one crop (the foreground) and the rest of the other. The network has
to say which class each voxel has. Two kinds of maps are published: a grid of blocks (Wang et al., IEEE TIP 34, 2025)
and random boxes (Wang et al., arXiv 2306.16925, 2023). Their parameters do not mix.

Written after the public description. Mended: flat patches give no NaN and are drawn again, a block is never longer
than the axis, settings are never changed by use.

Every function draws from a torch.Generator on the CPU, whatever device the volumes are on, so that a seed gives the
same samples everywhere.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from napari_fmseg.core.errors import GeometryMismatch
from napari_fmseg.core.volume import Box
from napari_fmseg.training.pretraining.recipe import Fusion

__all__ = [
    "adaptive_contrast",
    "draw_block_map",
    "draw_box_map",
    "draw_crop",
    "draw_pair",
    "fuse",
    "fusion_sample",
    "gamma_corrected",
    "resized_crop",
]

_TRIES = 8


def fusion_sample(
    volume: Tensor, fusion: Fusion, generator: torch.Generator, other: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Draw one sample.

    Parameters
    ----------
    volume
        (z, y, x), any size and device; the background, and the foreground too if there is no other.
    fusion
        See `Fusion`.
    generator
        On the CPU.
    other
        A volume to take the foreground from, as published in 2023; from 2024 on, both crops are of one volume.

    Returns
    -------
    tuple of Tensor
        The fused patch (z, y, x) float32 and its classes (z, y, x) uint8, on the volume's device.
    """
    background, foreground = draw_pair(volume, fusion, generator, other)
    if fusion.mode == "blocks":
        labels = draw_block_map(fusion.patch, fusion, generator)
    else:
        labels = draw_box_map(fusion.patch, fusion, generator)
    labels = labels.to(volume.device)
    return fuse(foreground, background, labels, fusion.classes), labels


def fuse(foreground: Tensor, background: Tensor, labels: Tensor, classes: int) -> Tensor:
    """Return the mix two patches (z, y, x) by labels / `classes`: class 0 is background alone, the last one
    foreground alone.
    """
    alpha = labels.to(foreground.dtype) / classes
    return alpha * foreground + (1 - alpha) * background


def draw_block_map(shape: Sequence[int], fusion: Fusion, generator: torch.Generator) -> Tensor:
    """Draw a map of blocks.

    One size of block and one place of the grid are drawn; of the whole blocks that fit, exactly the share, rounded
    down, is foreground, each of its own class.

    Returns
    -------
    Tensor
        Classes (z, y, x) uint8.
    """
    size = [_integer(min(a, n), min(b, n), generator) for n, a, b in zip(shape, *fusion.block, strict=True)]
    count = [n // s for n, s in zip(shape, size, strict=True)]
    first = [_integer(0, n % s, generator) for n, s in zip(shape, size, strict=True)]
    grid = torch.zeros(count[0] * count[1] * count[2], dtype=torch.uint8)
    n_chosen = int(len(grid) * fusion.share)
    chosen = torch.randperm(len(grid), generator=generator)[:n_chosen]
    grid[chosen] = torch.randint(1, fusion.classes + 1, (n_chosen,), generator=generator, dtype=torch.uint8)
    blocks = grid.view(*count)
    for axis, s in enumerate(size):
        blocks = blocks.repeat_interleave(s, axis)
    labels = torch.zeros(*shape, dtype=torch.uint8)
    z, y, x = (slice(f, f + n) for f, n in zip(first, blocks.shape, strict=True))
    labels[z, y, x] = blocks
    return labels


def draw_box_map(shape: Sequence[int], fusion: Fusion, generator: torch.Generator) -> Tensor:
    """Draw a map of boxes: each of its own size, place and class, later ones over earlier ones.

    Returns
    -------
    Tensor
        Classes (z, y, x) uint8.
    """
    labels = torch.zeros(*shape, dtype=torch.uint8)
    for _ in range(_integer(*fusion.boxes, generator)):
        spans = []
        for n, low, high in zip(shape, *fusion.box, strict=True):
            size = _integer(low, high, generator)
            first = _integer(0, n - 1, generator) - size // 2  # a middle anywhere in the patch
            spans.append(slice(max(0, first), first + size))
        labels[spans[0], spans[1], spans[2]] = _integer(1, fusion.classes, generator)
    return labels


def draw_pair(
    volume: Tensor, fusion: Fusion, generator: torch.Generator, other: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Draw two patches (z, y, x) float32, the second from `other` if there is one, varied each in its own way."""
    pair = [_augment_patch(source, fusion, generator) for source in (volume, volume if other is None else other)]
    if fusion.intensity and _chance(0.25, generator):
        pair = [1 - patch for patch in pair]
    return pair[0], pair[1]


def _augment_patch(volume: Tensor, fusion: Fusion, generator: torch.Generator) -> Tensor:
    patch = _sample_crop(volume, fusion, generator)
    if fusion.spatial:
        patch = patch.flip([axis for axis in range(3) if _chance(0.5, generator)])
    if fusion.intensity:
        low, high = _uniform(0.1, 2.0, generator), _uniform(98.0, 99.9, generator)
        patch = gamma_corrected(adaptive_contrast(patch, low, high), _uniform(0.7, 1.5, generator))
    return patch


def _sample_crop(volume: Tensor, fusion: Fusion, generator: torch.Generator) -> Tensor:
    """Draw a crop that is not all of one value, if that can be found in a few tries."""
    if volume.ndim != 3 or volume.numel() == 0:
        raise GeometryMismatch(f"Volume Fusion takes one channel (z, y, x) with voxels, not {tuple(volume.shape)}.")
    scale = fusion.scale if fusion.spatial else (1.0, 1.0)
    for _ in range(_TRIES):
        crop = volume[draw_crop(volume.shape, fusion.patch, generator, scale)].float()
        crop = crop.nan_to_num(0.0, 0.0, 0.0)
        if bool(crop.amin() < crop.amax()):
            break
    return resized_crop(crop, fusion.patch)


def draw_crop(
    shape: Sequence[int], patch: Sequence[int], generator: torch.Generator, scale: tuple[float, float] = (0.7, 1.5)
) -> Box:
    """Draw a box within `shape` whose sides are the patch's, each times its own factor, at most the whole axis."""
    spans = []
    for n, p in zip(shape, patch, strict=True):
        size = min(n, max(1, int(p * _uniform(*scale, generator))))
        first = _integer(0, n - size, generator)
        spans.append(slice(first, first + size))
    return (spans[0], spans[1], spans[2])


def resized_crop(crop: Tensor, size: Sequence[int]) -> Tensor:
    """Resample (z, y, x) linearly to another size, corner voxels on corner voxels."""
    if tuple(crop.shape) == tuple(size):
        return crop
    return F.interpolate(crop[None, None], size=tuple(size), mode="trilinear", align_corners=True)[0, 0]


def adaptive_contrast(patch: Tensor, low: float, high: float) -> Tensor:
    """Map a patch to 0..1 so that what lies between two percentiles fills 0.1 to 0.9.

    Parameters
    ----------
    patch
        Any shape.
    low, high
        Percentiles, 0 to 100.

    Returns
    -------
    Tensor
        In 0..1, in the order of the input. A patch of one value becomes 0.1.
    """
    values = patch.flatten().sort().values
    ends = [values[0], _percentile(values, low), _percentile(values, high), values[-1]]
    levels = (0.0, 0.1, 0.9, 1.0)
    # Where two ends coincide nothing lies between them.
    parts = [
        bottom + (top - bottom) * ((patch - a) / (b - a).clamp_min(torch.finfo(patch.dtype).tiny)).clamp(0, 1)
        for (bottom, a), (top, b) in itertools.pairwise(zip(levels, ends, strict=True))
    ]
    return torch.where(patch < ends[1], parts[0], torch.where(patch <= ends[2], parts[1], parts[2]))


def gamma_corrected(patch: Tensor, exponent: float) -> Tensor:
    """Raise a patch, stretched to 0..1, to a power and bring it back to its range; one value stays as it is."""
    low, high = patch.amin(), patch.amax()
    width = (high - low).clamp_min(torch.finfo(patch.dtype).tiny)
    return ((patch - low) / width).pow(exponent) * (high - low) + low


def _percentile(values: Tensor, percent: float) -> Tensor:
    """Interpolate between the neighbours of a percentile in sorted values."""
    at = percent / 100 * (len(values) - 1)
    below = int(at)
    above = min(below + 1, len(values) - 1)
    return torch.lerp(values[below], values[above], at - below)


def _integer(low: int, high: int, generator: torch.Generator) -> int:
    return int(torch.randint(low, high + 1, (), generator=generator))


def _uniform(low: float, high: float, generator: torch.Generator) -> float:
    return low + (high - low) * float(torch.rand((), generator=generator))


def _chance(probability: float, generator: torch.Generator) -> bool:
    return float(torch.rand((), generator=generator)) < probability
