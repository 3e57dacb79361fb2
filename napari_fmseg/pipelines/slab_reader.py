"""A volume on the grid of a network's input: read slab by slab, whether it lies on the device or in the computer."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from napari_fmseg.core.resampling_torch import axis_weights, box_above, slabs, to_tensor, zoom
from napari_fmseg.core.volume import Box
from napari_fmseg.models.card import Intensity
from napari_fmseg.pipelines.preprocessing import IntensityMap, whole_box

__all__ = ["SlabReader"]

_T = TypeVar("_T")


class SlabReader:
    """Reads boxes of a volume on small grids, linear and anti-aliased, without ever holding the volume as floats.

    The arithmetic is the same wherever the volume lies, so that its place changes nothing in the result. Where the
    device has no room even for slabs, everything is read in the computer's memory.

    Parameters
    ----------
    data
        (c, z, y, x), any integer or float type; may be a view with flipped or exchanged axes.
    device
        Where the results are wanted.
    intensity
        By which voxels are mapped before anything else; percentiles, means and standard deviations are those of the
        whole volume. None: as they are stored.

    Attributes
    ----------
    device
        As given; the CPU once the device had no room.
    """

    def __init__(self, data: np.ndarray, device: torch.device, intensity: Intensity | None = None) -> None:
        self._data = data
        self.device = device
        self._intensity = intensity
        self._there: Tensor | None = None

    @property
    def on_device(self) -> bool:
        """Whether the whole volume lies on the device."""
        return self._there is not None

    def to_device(self) -> bool:
        """Put the whole volume on the device, as it is stored, so that it travels once; False if it has no room."""
        if self.device.type == "cpu":
            return True  # it is there, and need not be copied
        try:
            self._there = to_tensor(self._data, self.device)
        except torch.OutOfMemoryError:
            return False
        return True

    def release_tensor(self) -> None:
        """Free the device of the volume; it is read from the computer's memory from now on."""
        self._there = None

    def read(self, box: Box, size: Sequence[int], around: Box | None = None) -> Tensor:
        """Return the part inside a box on a grid of `size`, edge to edge.

        Parameters
        ----------
        box
            In voxels.
        size
            Voxels (z, y, x) of the result.
        around
            A box in which the first one lies: its voxels count, too, where the means at the edges reach beyond the
            first. None: none do, the outermost voxels are repeated.

        Returns
        -------
        Tensor
            (c, z, y, x) of `size`, float32, on the device.
        """
        if tuple(size) == tuple(s.stop - s.start for s in box):
            return self.voxels(box)
        return self._where_there_is_room(lambda: self._resample(box, size, around or box))

    def voxels(self, box: Box) -> Tensor:
        """Return the voxels (c, z, y, x) inside a box, float32, on the device."""
        return self._where_there_is_room(lambda: self._values(box))

    def body(self, crop_above: float | None) -> Box:
        """Return the box around all voxels above a value in any channel; the whole volume if there is none, or None."""
        whole = whole_box(self._data.shape[1:])
        return whole if crop_above is None else self._where_there_is_room(lambda: self._above(crop_above)) or whole

    @cached_property
    def _map(self) -> IntensityMap | None:
        return IntensityMap.of(self._intensity, self._data.shape, self._slabs) if self._intensity else None

    def _slabs(self) -> Iterator[Tensor]:
        shape = self._data.shape
        for planes in slabs(shape[1:], shape[0]):
            yield self._raw((planes, *whole_box(shape[1:])[1:]))

    def _above(self, value: float) -> Box | None:
        return box_above(self._data if self._there is None else self._there, value, self._map)

    def _where_there_is_room(self, read: Callable[[], _T]) -> _T:
        """Return what is read; once more from the computer's memory where the device has no room for it."""
        try:
            return read()
        except torch.OutOfMemoryError:
            if self.device.type == "cpu":
                raise
        self.release_tensor()
        self.device = torch.device("cpu")
        return read()

    def _resample(self, box: Box, size: Sequence[int], around: Box) -> Tensor:
        near, spans = [], []
        for inner, outer, n in zip(box, around, size, strict=True):
            reach = math.ceil((inner.stop - inner.start) / n) + 1  # voxels that a mean can reach beyond the edge
            first, last = max(outer.start, inner.start - reach), min(outer.stop, inner.stop + reach)
            near.append(slice(first, last))
            spans.append((inner.start - first, inner.stop - first))
        shape = [s.stop - s.start for s in near]
        step = (spans[0][1] - spans[0][0]) / size[0]
        weights = axis_weights(shape[0], size[0], spans[0][0] + (step - 1) / 2, step).to(self.device)
        out = torch.zeros((len(self._data), *size), device=self.device)
        for planes in slabs(shape, len(self._data)):
            part = self._values((slice(near[0].start + planes.start, near[0].start + planes.stop), near[1], near[2]))
            part = zoom(part, [(0, part.shape[1]), *spans[1:]], (part.shape[1], *size[1:]))
            rows = weights[:, planes]
            used = rows.any(1).nonzero()
            if len(used):
                here = slice(int(used[0]), int(used[-1]) + 1)
                out[:, here] += torch.einsum("oz,czyx->coyx", rows[here], part)
        return out

    def _values(self, box: Box) -> Tensor:
        raw = self._raw(box)
        return raw.float() if self._map is None else self._map(raw)

    def _raw(self, box: Box) -> Tensor:
        where = (slice(None), *box)
        return to_tensor(self._data[where], self.device) if self._there is None else self._there[where]
