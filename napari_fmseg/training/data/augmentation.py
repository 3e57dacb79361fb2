"""Random spatial and intensity augmentation."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from napari_fmseg.training.data.samples import Spans
from napari_fmseg.training.recipe import Augment

__all__ = ["augment_intensity", "augment_spatial", "jitter_window"]


def jitter_window(spans: Sequence[tuple[float, float]], augment: Augment, rng: np.random.Generator) -> Spans:
    """Shift and zoom a window (edges along z, y, x) at random."""
    out = []
    common = rng.uniform(-augment.zoom, augment.zoom)
    for first, last in spans:
        size = last - first
        grown = size * (1 + 0.5 * common + 0.5 * rng.uniform(-augment.zoom, augment.zoom))
        centre = (first + last) / 2 + size * rng.uniform(-augment.shift, augment.shift)
        out.append((centre - grown / 2, centre + grown / 2))
    return out


def augment_spatial(
    parts: Sequence[Tensor], target: Tensor, augment: Augment, swap: Sequence[tuple[int, int]], rng: np.random.Generator
) -> tuple[list[Tensor], Tensor]:
    """Flip and turn images and target (c, z, y, x) together.

    Parameters
    ----------
    parts
        Image and further maps on the same grid.
    target
        One-hot labels.
    augment
        What may be done.
    swap
        Labels that change places when x is mirrored.
    rng
        Draws.
    """
    parts = list(parts)
    axes = [1 + "zyx".index(a) for a in augment.flip if rng.random() < 0.5]
    if axes:
        parts, target = [p.flip(axes) for p in parts], target.flip(axes)
    if 3 in axes:
        order = list(range(target.shape[0]))
        for a, b in swap:
            order[a], order[b] = order[b], order[a]
        target = target[order]
    if augment.rotate_deg > 0 and rng.random() < augment.rotate_p:
        angles = np.deg2rad(rng.uniform(-augment.rotate_deg, augment.rotate_deg, 3))
        turned = _turn(torch.cat([*parts, target]), angles)
        sizes = [p.shape[0] for p in parts]
        whole = bool((target.sum(0) > 1 - 1e-4).all())
        *parts, target = torch.split(turned, [*sizes, target.shape[0]])
        if whole:
            target = torch.cat([1 - target[1:].sum(0, keepdim=True), target[1:]])
    return list(parts), target


def _turn(data: Tensor, angles: np.ndarray) -> Tensor:
    """Turn (c, z, y, x) about its centre by angles about z, y, x; the voxels are taken as cubes."""
    (cz, cy, cx), (sz, sy, sx) = np.cos(angles), np.sin(angles)
    about_z = np.array([[cz, -sz, 0], [sz, cz, 0], [0, 0, 1]])
    about_y = np.array([[cy, 0, sy], [0, 1, 0], [-sy, 0, cy]])
    about_x = np.array([[1, 0, 0], [0, cx, -sx], [0, sx, cx]])
    size = np.array(data.shape[:0:-1], float)  # x, y, z
    matrix = (about_z @ about_y @ about_x) * size[None] / size[:, None]
    theta = torch.tensor(np.concatenate([matrix, np.zeros((3, 1))], 1)[None], dtype=torch.float32, device=data.device)
    places = F.affine_grid(theta, [1, 1, *data.shape[1:]], align_corners=False)
    return F.grid_sample(data[None], places, padding_mode="border", align_corners=False)[0]


def augment_intensity(image: Tensor, augment: Augment, rng: np.random.Generator, noise: torch.Generator) -> Tensor:
    """Change contrast, brightness and gamma of each channel (c, z, y, x); shade, blur, and add noise."""
    channels = []
    for channel in image:
        gamma = float(np.exp(rng.uniform(-augment.gamma, augment.gamma)))
        factor = 1 + float(rng.uniform(-augment.contrast, augment.contrast))
        shift = float(rng.uniform(-augment.brightness, augment.brightness))
        channels.append(channel.clamp_min(0).pow(gamma).mul(factor).add(shift))
    out = torch.stack(channels)
    if augment.bias and rng.random() < 0.3:
        field = torch.from_numpy(rng.normal(0, augment.bias, (1, 1, 3, 3, 3)).astype(np.float32)).to(out.device)
        z, y, x = out.shape[1:]
        out = out * (1 + F.interpolate(field, size=(z, y, x), mode="trilinear", align_corners=True)[0])
    if augment.blur and rng.random() < augment.blur:
        out = torch.lerp(out, _mean_of_neighbours(out), float(rng.uniform(0.3, 1)))
    if augment.noise > 0 and rng.random() < 0.5:
        grains = torch.randn(out.shape, generator=noise, device=noise.device)
        out = out + float(rng.uniform(0, augment.noise)) * grains.to(out.device)
    return out


def _mean_of_neighbours(image: Tensor) -> Tensor:
    """Return the mean over 3 x 3 x 3 voxels of an image (c, z, y, x), which goes on beyond its edges as it ends.

    One axis after the other: torch's pooling takes six times as long.
    """
    for axis in (1, 2, 3):
        n = image.shape[axis]
        total = image + torch.cat([image.narrow(axis, 0, 1), image.narrow(axis, 0, n - 1)], axis)
        image = total.add_(torch.cat([image.narrow(axis, 1, n - 1), image.narrow(axis, n - 1, 1)], axis)).div_(3)
    return image
