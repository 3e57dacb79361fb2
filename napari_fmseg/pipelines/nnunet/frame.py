"""Where a volume lies for the network: which way its axes run, which part is cropped, and the way back."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from napari_fmseg.core.resampling_torch import bounding_box
from napari_fmseg.core.volume import Box, Geometry, Volume
from napari_fmseg.models.settings import NNUNetSettings
from napari_fmseg.pipelines.preprocessing import whole_box

__all__ = ["Frame"]

Size = tuple[int, int, int]


@dataclass(frozen=True)
class Frame:
    """How the voxels of a file become those of the network, until they are resampled.

    Attributes
    ----------
    geometry
        Of the file.
    order, flips
        ``np.flip(data.transpose(order), flips)`` lists its voxels as the network wants them.
    box
        The part that is not 0 in every channel, in the network's order.
    spacing
        In mm, in the network's order, with the digits of the file: some of nnU-Net's rules compare them exactly.
    """

    geometry: Geometry
    order: Size
    flips: tuple[int, ...]
    box: Box
    spacing: tuple[float, float, float]

    @classmethod
    def of(cls, volume: Volume, settings: NNUNetSettings) -> Frame:
        """Find the frame of a volume."""
        order: tuple[int, ...] = (0, 1, 2)
        flips: tuple[int, ...] = ()
        if settings.orientation == "RAS":
            _, order, flips = volume.geometry.canonical()
            flips = tuple({1, 2} ^ set(flips))  # canonical axes run to posterior and left
        z, y, x = (order[axis] for axis in settings.axes)
        turned = tuple(i for i, axis in enumerate(settings.axes) if axis in flips)
        spacing = _spacing(volume)
        frame = cls(volume.geometry, (z, y, x), turned, whole_box((1, 1, 1)), (spacing[z], spacing[y], spacing[x]))
        filled = np.zeros(frame.turn(np.empty(volume.geometry.shape, bool)).shape, bool)
        for channel in volume.channels:
            filled |= frame.turn(channel) != 0
        return replace(frame, box=bounding_box(filled) or whole_box(filled.shape))

    def turn(self, data: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """Return a view (z, y, x) of the file's voxels in the network's order."""
        return np.flip(data.transpose(self.order), self.flips)

    def turn_back(self, data: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """Return voxels in the network's order in the order of the file: the inverse of `turn`."""
        return np.flip(data, self.flips).transpose(np.argsort(self.order))

    @property
    def shape(self) -> Size:
        """Voxels of the part inside the box."""
        a, b, c = (s.stop - s.start for s in self.box)
        return a, b, c

    def grid_spacing(self, settings: NNUNetSettings) -> tuple[float, float, float]:
        """Return the spacing on which the network sees the volume."""
        a, b, c = (want or have for want, have in zip(settings.spacing_mm, self.spacing, strict=True))
        return a, b, c

    def grid_shape(self, settings: NNUNetSettings) -> Size:
        """Return the voxels on which the network sees the part inside the box."""
        if settings.image.how == "none":
            return self.shape
        new = self.grid_spacing(settings)
        a, b, c = (round(have / want * n) for have, want, n in zip(self.spacing, new, self.shape, strict=True))
        return max(1, a), max(1, b), max(1, c)

    @cached_property
    def network_geometry(self) -> Geometry:
        """The geometry of the part inside the box, with the axes of the network."""
        to_file = np.zeros((4, 4))
        to_file[3, 3] = 1
        shape = [self.geometry.shape[axis] for axis in self.order]
        for i, axis in enumerate(self.order):
            to_file[axis, i] = -1 if i in self.flips else 1
            to_file[axis, 3] = shape[i] - 1 if i in self.flips else 0
        return Geometry((shape[0], shape[1], shape[2]), self.geometry.affine @ to_file).crop(self.box)

    def file_grid(self, shape: Sequence[int]) -> Geometry:
        """Return the geometry of the part inside the box on a grid of `shape`, both in the order of the file."""
        spans: list[slice] = [slice(0)] * 3
        sizes = [0, 0, 0]
        for i, axis in enumerate(self.order):
            n, span = self.geometry.shape[axis], self.box[i]
            spans[axis] = slice(n - span.stop, n - span.start) if i in self.flips else span
            sizes[axis] = shape[i]
        return self.geometry.crop((spans[0], spans[1], spans[2])).resize((sizes[0], sizes[1], sizes[2]))


def _spacing(volume: Volume) -> list[float]:
    """Return the spacing (z, y, x) as the file states it: NIfTI's in float32."""
    own = np.round(volume.geometry.spacing, 9)
    stated = np.abs(np.asarray(volume.meta.get("nifti", {}).get("pixdim", ())[1:4][::-1], np.float64))
    if len(stated) == 3 and np.allclose(stated, own, rtol=1e-3):
        return [float(mm) for mm in stated]
    return [float(mm) for mm in own]
