"""Training volumes in memory, and how they are varied: windows, flips, turns, intensities."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from napari_fmseg.errors import GeometryMismatch, InvalidRecipe
from napari_fmseg.grid import to_canonical, to_tensor, zoom
from napari_fmseg.io import read_labels
from napari_fmseg.io.channels import differ, read_channels
from napari_fmseg.models import Intensity
from napari_fmseg.pipelines.phased import PhasedSettings, body_box, cut, normalise
from napari_fmseg.training.partial import IGNORE
from napari_fmseg.training.recipe import IGNORE_NAME, Augment, Case
from napari_fmseg.volume import LabelMap, Volume

__all__ = [
    "Held",
    "Sample",
    "Spans",
    "load_sample",
    "missing_in",
    "one_hot",
    "read_case",
    "target_in",
    "varied",
    "vary_intensity",
    "window_around",
]

Spans = list[tuple[float, float]]


@dataclass(frozen=True)
class Sample:
    """A case in memory, canonical and normalised, on the device.

    Attributes
    ----------
    image
        (c, z, y, x) float32 in 0..1.
    labels
        (z, y, x) uint8; 0 background, then the recipe's labels in order; `IGNORE` where nobody labelled.
    missing
        Classes that the case was never labelled with.
    spacing
        Of the voxels (z, y, x) in mm.
    """

    name: str
    image: Tensor
    labels: Tensor
    missing: tuple[int, ...] = ()
    spacing: tuple[float, float, float] = (1.0, 1.0, 1.0)

    @property
    def is_sparse(self) -> bool:
        """Whether some voxels are not labelled."""
        return bool((self.labels == IGNORE).any())


@dataclass(frozen=True)
class Held:
    """A case that is never learned from.

    Attributes
    ----------
    volume, truth
        As in the files; the labels in the recipe's order, with `IGNORE`.
    missing
        Classes that the case was never labelled with, for which it has no score.
    watched
        Whether it only shows what becomes of earlier classes, and does not choose the best epoch.
    """

    volume: Volume
    truth: LabelMap
    missing: tuple[int, ...] = ()
    watched: bool = False


def missing_in(case: Case, names: Mapping[int, str], labels: Sequence[str]) -> tuple[int, ...]:
    """Give the recipe's labels, counted from 1, that a case was never labelled with.

    Raises
    ------
    InvalidRecipe
        If the case names a class that the dataset does not have.
    """
    if not case.classes:
        return ()
    unknown = [name for name in case.classes if name not in names.values()]
    if unknown:
        raise InvalidRecipe(
            f"{case.name} says that it was labelled with {unknown[0]!r}, which is none of the classes "
            f"{', '.join(names.values())}. Correct its classes."
        )
    return tuple(i for i, name in enumerate(labels, 1) if name not in case.classes)


def read_case(case: Case, names: Mapping[int, str], labels: Sequence[str], ignore: int = 0) -> tuple[Volume, LabelMap]:
    """Read a case; its labels are renumbered to the recipe's order, and what nobody labelled becomes `IGNORE`.

    Parameters
    ----------
    case
        With labels.
    names
        Class names by the number in the file.
    labels
        The recipe's class names; others become background.
    ignore
        The number in the file that means "not labelled"; 0 for the one that `names` calls "ignore".

    Raises
    ------
    InvalidRecipe
        If the case has no labels, or the channels do not lie on one grid.
    GeometryMismatch
        If the labels do not lie on the image.
    """
    if case.labels is None:
        raise InvalidRecipe(f"{case.name} has no labels. Only labelled cases can be trained or validated on.")
    volume, truth = read_channels(case.images), read_labels(case.labels)
    if wrong := differ(volume.geometry, truth.geometry):
        raise GeometryMismatch(
            f"{case.name}: the files do not lie on one grid: the labels are {wrong}. Export them on the image's grid."
        )
    table = np.zeros(max(int(truth.data.max()), *names) + 1, np.uint8)
    for value, name in names.items():
        if name in labels:
            table[value] = labels.index(name) + 1
        elif name == IGNORE_NAME and not ignore:
            table[value] = IGNORE
    numbered = dict(enumerate(labels, 1))
    data = truth.data if truth.data.dtype.kind != "i" else truth.data.clip(0)  # below 0 it would count from the end
    marks = table[data]
    if ignore:
        marks[truth.data == ignore] = IGNORE
    meta = {key: truth.meta.get(key, []) for key in ("repaired", "warnings")}
    return volume, LabelMap(marks, volume.geometry, meta, numbered)


def load_sample(
    case: Case,
    names: Mapping[int, str],
    labels: Sequence[str],
    intensity: Intensity,
    settings: PhasedSettings,
    device: torch.device,
    ignore: int = 0,
) -> Sample:
    """Read a case as the networks see it: canonical, normalised, and cut to what the model looks at."""
    volume, truth = read_case(case, names, labels, ignore)
    data, geometry = to_canonical(volume)
    marks, _ = to_canonical(truth)
    image = normalise(to_tensor(data, device), intensity)
    box = body_box(image, settings)
    within = to_tensor(marks, device)[0][box].contiguous()
    return Sample(case.name, cut(image, box).contiguous(), within, missing_in(case, names, labels), geometry.spacing)


def one_hot(labels: Tensor, n_classes: int) -> Tensor:
    """(z, y, x) labels to (n_classes, z, y, x) float32; 0 in every class where nobody labelled."""
    classes = torch.arange(n_classes, device=labels.device, dtype=labels.dtype)
    return (labels[None] == classes[:, None, None, None]).float()


def window_around(spans: Sequence[tuple[float, float]], augment: Augment, rng: np.random.Generator) -> Spans:
    """Shift and zoom a window (edges along z, y, x) at random."""
    out = []
    common = rng.uniform(-augment.zoom, augment.zoom)
    for first, last in spans:
        size = last - first
        grown = size * (1 + 0.5 * common + 0.5 * rng.uniform(-augment.zoom, augment.zoom))
        centre = (first + last) / 2 + size * rng.uniform(-augment.shift, augment.shift)
        out.append((centre - grown / 2, centre + grown / 2))
    return out


def target_in(labels: Tensor, spans: Sequence[tuple[float, float]], shape: Sequence[int], n_classes: int) -> Tensor:
    """One-hot labels between the edges `spans` on a grid: fractions at the borders; background outside.

    Where a part of a voxel was not labelled, its classes add up to the labelled part, and outside of a volume that was
    labelled in parts nothing is known.

    Returns
    -------
    Tensor
        (n_classes, z, y, x) of `shape`, float32, adding up to 1, or to the labelled share.
    """
    size = labels.shape
    if any(b <= 0 or a >= n for (a, b), n in zip(spans, size, strict=True)):
        nothing = IGNORE if (labels == IGNORE).any() else 0
        return one_hot(labels.new_full(tuple(shape), nothing), n_classes)
    inner = [slice(max(0, math.floor(a) - 1), min(n, math.ceil(b) + 1)) for (a, b), n in zip(spans, size, strict=True)]
    seen = labels[tuple(inner)]
    sparse = bool((seen == IGNORE).any())
    part = one_hot(seen, n_classes)[0 if sparse else 1 :]
    local = [(a - s.start, b - s.start) for (a, b), s in zip(spans, inner, strict=True)]
    found = zoom(part, local, shape)
    for axis, ((a, b), n) in enumerate(zip(spans, size, strict=True)):
        if a < 0 or b > n:  # beyond the border `zoom` repeats the last voxel, which is right for images only
            centres = a + (torch.arange(shape[axis], device=labels.device) + 0.5) * (b - a) / shape[axis]
            inside = ((centres >= 0) & (centres <= n)).float()
            found = found * inside.reshape([-1 if i == axis + 1 else 1 for i in range(4)])
    return found if sparse else torch.cat([1 - found.sum(0, keepdim=True), found])


def varied(
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


def vary_intensity(image: Tensor, augment: Augment, rng: np.random.Generator, noise: torch.Generator) -> Tensor:
    """Change contrast, brightness and gamma of each channel (c, z, y, x), and add noise."""
    channels = []
    for channel in image:
        gamma = float(np.exp(rng.uniform(-augment.gamma, augment.gamma)))
        factor = 1 + float(rng.uniform(-augment.contrast, augment.contrast))
        shift = float(rng.uniform(-augment.brightness, augment.brightness))
        channels.append(channel.clamp_min(0).pow(gamma).mul(factor).add(shift))
    out = torch.stack(channels)
    if augment.noise > 0 and rng.random() < 0.5:
        grains = torch.randn(out.shape, generator=noise, device=noise.device)
        out = out + float(rng.uniform(0, augment.noise)) * grains.to(out.device)
    return out
