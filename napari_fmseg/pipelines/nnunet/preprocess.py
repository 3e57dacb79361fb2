"""From a volume to the input of nnU-Net's networks: cropped, normalised, then resampled, in float32."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from napari_fmseg.core.volume import Volume
from napari_fmseg.models.card import Intensity
from napari_fmseg.models.settings import NNUNetSettings
from napari_fmseg.pipelines.nnunet.frame import Frame
from napari_fmseg.pipelines.nnunet.resample import resample_image, resample_labels

__all__ = ["network_input", "previous_channels"]


def network_input(volume: Volume, frame: Frame, settings: NNUNetSettings, intensity: Intensity) -> Tensor:
    """Return the channels (c, a0, a1, a2) on the network's grid."""
    shape, new = frame.grid_shape(settings), frame.grid_spacing(settings)
    inside = inside_of(volume, frame) if any(settings.masked) else None
    out = torch.empty((volume.n_channels, *shape))
    for number, channel in enumerate(volume.channels):
        values = np.ascontiguousarray(frame.turn(channel)[frame.box], np.float32)
        if np.shares_memory(values, channel):
            values = values.copy()
        masked = settings.masked[number] if number < len(settings.masked) else False
        _normalise(values, intensity.of_channel(number), inside if masked else None)
        # Counted from the lowest value, so that air has one value afterwards, too, without the rounding of the splines.
        low = 0.0 if shape == frame.shape else float(values.min())
        values -= low
        out[number] = resample_image(torch.from_numpy(values), shape, settings.image, frame.spacing, new)
        out[number] += low
    return out


def inside_of(volume: Volume, frame: Frame) -> npt.NDArray[np.bool_]:
    """Return the voxels of the box around which the volume is not 0 in every channel, holes filled."""
    import fill_voids

    mask = np.zeros(frame.shape, bool)
    for channel in volume.channels:
        mask |= frame.turn(channel)[frame.box] != 0
    return np.asarray(fill_voids.fill(np.ascontiguousarray(mask)), bool) if mask.any() else ~mask


def _normalise(values: npt.NDArray[np.float32], rule: Intensity, inside: npt.NDArray[np.bool_] | None) -> None:
    """Normalise one channel in place."""
    if rule.kind == "zscore":
        part: Any = values if inside is None else values[inside]
        mean, std = part.mean(), part.std()
        part -= mean
        part /= max(std, 1e-8)
        if inside is not None:
            values[inside] = part
    elif rule.kind == "fixed_zscore":
        np.clip(values, rule.low, rule.high, out=values)
        values -= rule.mean
        values /= max(rule.std, 1e-8)
    elif rule.kind == "percentile":
        values -= values.min()
        values /= max(values.max(), 1e-8)
    elif rule.kind == "window":
        values /= rule.high


def previous_channels(labels: npt.NDArray[Any], volume: Volume, frame: Frame, settings: NNUNetSettings) -> Tensor:
    """Return the labels of the earlier stage (z, y, x), in the file's order, as a channel for each class."""
    seen = torch.from_numpy(frame.turn(labels)[frame.box].astype(np.int16))
    seen[(seen == 0) & torch.from_numpy(~inside_of(volume, frame))] = -1
    shape, new = frame.grid_shape(settings), frame.grid_spacing(settings)
    seen = resample_labels(seen, shape, settings.labels, frame.spacing, new)
    return torch.stack([(seen == label).float() for label in settings.previous])
