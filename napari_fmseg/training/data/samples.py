"""Training volumes in memory, and their targets."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from napari_fmseg.core.errors import InvalidRecipe
from napari_fmseg.core.resampling_torch import to_canonical, to_tensor, zoom
from napari_fmseg.core.volume import Box, LabelMap, Volume
from napari_fmseg.datasets.case import IGNORE, Case, missing_in, read_case
from napari_fmseg.datasets.projects.image_hash import image_hash
from napari_fmseg.io.channels import read_channels
from napari_fmseg.models.card import Intensity
from napari_fmseg.models.measures import Measures, measure_volume
from napari_fmseg.pipelines.preprocessing import body_box, crop_array, normalise

__all__ = [
    "Sample",
    "Spans",
    "ValidationCase",
    "check_channels",
    "load_sample",
    "load_unlabelled",
    "one_hot",
    "target_in",
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
    source
        What was measured of the whole volume, as its files have it.
    image_hash
        Of the whole volume; see `napari_fmseg.datasets.projects.image_hash`.
    warnings
        What was repaired while its files were read, and what looks odd in them.
    """

    name: str
    image: Tensor
    labels: Tensor
    missing: tuple[int, ...] = ()
    spacing: tuple[float, float, float] = (1.0, 1.0, 1.0)
    source: Measures | None = dataclasses.field(default=None, kw_only=True)
    image_hash: str = dataclasses.field(default="", kw_only=True)
    warnings: tuple[str, ...] = dataclasses.field(default=(), kw_only=True)

    @property
    def is_sparse(self) -> bool:
        """Whether some voxels are not labelled."""
        return bool((self.labels == IGNORE).any())


@dataclass(frozen=True)
class ValidationCase:
    """A validation case.

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


def load_sample(
    case: Case,
    names: Mapping[int, str],
    labels: Sequence[str],
    intensity: Intensity,
    crop_above: float | None,
    device: torch.device,
    ignore: int = 0,
) -> Sample:
    """Read a case as the networks receive it: canonical, normalised, and cropped as the model crops it."""
    volume, truth = read_case(case, names, labels, ignore)
    marks, _ = to_canonical(truth)
    sample, box = _sample_of(case.name, volume, intensity, crop_above, device)
    within = to_tensor(marks, device)[0][box].contiguous()
    found = (*sample.warnings, *truth.warnings)
    return dataclasses.replace(sample, labels=within, missing=missing_in(case, names, labels), warnings=found)


def check_channels(case: Case, n: int, names: Sequence[str]) -> None:
    """Refuse a case of `n` channels where the recipe has others; `InvalidRecipe` names it."""
    if n != len(names):
        raise InvalidRecipe(
            f"{case.name} has {n} channel(s) and the recipe {len(names)} ({', '.join(names)}). Is a file missing?"
        )


def load_unlabelled(case: Case, intensity: Intensity, crop_above: float | None, device: torch.device) -> Sample:
    """Read a case without labels as `load_sample` does; all its voxels are `IGNORE`."""
    sample, _ = _sample_of(case.name, read_channels(case.images), intensity, crop_above, device)
    return sample


def _sample_of(
    name: str, volume: Volume, intensity: Intensity, crop_above: float | None, device: torch.device
) -> tuple[Sample, Box]:
    """Return a volume as a sample that nobody labelled, and the box of the body that it shows."""
    data, geometry = to_canonical(volume)
    image = normalise(to_tensor(data, device), intensity)
    box = body_box(image, crop_above)
    shown = crop_array(image, box).contiguous()
    nothing = torch.full(tuple(shown.shape[1:]), IGNORE, dtype=torch.uint8, device=device)
    sample = Sample(
        name, shown, nothing, (), geometry.spacing,
        source=measure_volume(volume), image_hash=image_hash(volume), warnings=volume.warnings,
    )  # fmt: skip
    return sample, box


def one_hot(labels: Tensor, n_classes: int) -> Tensor:
    """Convert (z, y, x) labels to (n_classes, z, y, x) float32; 0 in every class where a voxel is unlabelled."""
    classes = torch.arange(n_classes, device=labels.device, dtype=labels.dtype)
    return (labels[None] == classes[:, None, None, None]).float()


def target_in(labels: Tensor, spans: Sequence[tuple[float, float]], shape: Sequence[int], n_classes: int) -> Tensor:
    """Return the one-hot labels between the edges `spans` on a grid: fractions at the borders; background outside.

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
