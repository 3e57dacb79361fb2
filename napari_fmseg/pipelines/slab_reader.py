"""A volume on the grid of a network's input: read slab by slab, whether it lies on the device or in the computer."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from napari_fmseg.core.resampling_torch import axis_weights, box_above, slabs, to_tensor, zoom
from napari_fmseg.core.volume import Box

__all__ = ["SlabReader"]


class SlabReader:
    """Reads boxes of a volume on small grids, linear and anti-aliased, without ever holding the volume as floats.

    The arithmetic is the same wherever the volume lies, so that its place changes nothing in the result.

    Parameters
    ----------
    data
        (c, z, y, x), any integer or float type; may be a view with flipped or exchanged axes.
    device
        Where the results are wanted.

    Attributes
    ----------
    device
        As given; may be changed.
    """

    def __init__(self, data: np.ndarray, device: torch.device) -> None:
        self._data = data
        self.device = device
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

    def read(self, box: Box, size: Sequence[int]) -> Tensor:
        """Return the part inside a box on a grid of `size`, edge to edge.

        Returns
        -------
        Tensor
            (c, z, y, x) of `size`, float32, on the device.
        """
        first = box[0].start
        n, shape = box[0].stop - first, (len(self._data), *(s.stop - s.start for s in box))
        step = n / size[0]
        weights = axis_weights(n, size[0], (step - 1) / 2, step).to(self.device)
        out = torch.zeros((shape[0], *size), device=self.device)
        for planes in slabs(shape[1:], shape[0]):
            part = self._slab((slice(first + planes.start, first + planes.stop), *box[1:]))
            part = zoom(part, [(0, n) for n in part.shape[1:]], (part.shape[1], *size[1:]))
            rows = weights[:, planes]
            used = rows.any(1).nonzero()
            if len(used):
                here = slice(int(used[0]), int(used[-1]) + 1)
                out[:, here] += torch.einsum("oz,czyx->coyx", rows[here], part)
        return out

    def above(self, value: float) -> Box | None:
        """Return the box around all voxels above a value in any channel, None if there is none."""
        return box_above(self._data, value)

    def _slab(self, box: Box) -> Tensor:
        where = (slice(None), *box)
        raw = to_tensor(self._data[where], self.device) if self._there is None else self._there[where]
        return raw.float()
