"""Maps beside each other, as a decoder joins them, of which some planes at a time are made: the whole never exists."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from napari_fmseg.nets.layers.blocks import join_maps
from napari_fmseg.nets.runtime.convolution import slabs

__all__ = ["JoinedMaps"]


class JoinedMaps:
    """Maps (b, c, z, y, x) with channels last on one grid, joined along their channels.

    Parameters
    ----------
    maps
        What is joined; those of another size are resized.
    size
        Of the grid (z, y, x).
    mode, align_corners
        How they are resized, see `napari_fmseg.nets.layers.blocks.resize`.
    """

    def __init__(self, maps: Sequence[Tensor], size: Sequence[int], mode: str, align_corners: bool) -> None:
        self._maps, self._mode, self._corners = maps, mode, align_corners
        self.shape = torch.Size([len(maps[0]), sum(one.shape[1] for one in maps), *size])
        self._rows = [self._rows_of(one.shape[2]) for one in maps]

    @property
    def like(self) -> Tensor:
        """Return a tensor of the type and on the device of the maps."""
        return self._maps[0]

    def whole(self) -> Tensor:
        """Return them as one tensor."""
        return join_maps(self._maps, self.shape[2:], mode=self._mode, align_corners=self._corners)

    def parts(self, i: int) -> Iterator[Tensor]:
        """Yield the voxels (n, c) of map `i` of the batch, some planes at a time."""
        _, channels, *size = self.shape
        for some in slabs(self.like.new_empty(0).expand(*size, 0), channels):
            planes = self.like.new_empty((some.stop - some.start, *size[1:], channels))
            self.write(i, some.start, some.stop, planes)
            yield planes.view(-1, channels)

    def write(self, i: int, a: int, b: int, out: Tensor) -> None:
        """Write planes a to b of map `i` of the batch to `out` (b - a, y, x, c)."""
        first = 0
        for maps, rows in zip(self._maps, self._rows, strict=True):
            planes, last = maps[i].permute(1, 2, 3, 0), first + maps.shape[1]
            out[..., first:last] = planes[a:b] if maps.shape[2:] == self.shape[2:] else self._resize(planes, rows[a:b])
            first = last

    def _rows_of(self, old: int) -> Tensor:
        """Return the matrix (new, old) by which planes are mixed along z."""
        each = torch.eye(old, dtype=torch.float64)[None]
        return self._interpolate(each, self.shape[2:3], {"trilinear": "linear"}.get(self._mode, self._mode))[0].T

    def _resize(self, planes: Tensor, rows: Tensor) -> Tensor:
        needed = rows.any(0).nonzero().flatten()
        low, high = int(needed[0]), int(needed[-1]) + 1
        few = planes[low:high].float()  # weights of half precision would be rounded
        mixed = (rows[:, low:high].float() @ few.flatten(1)).view(len(rows), *few.shape[1:]).permute(0, 3, 1, 2)
        mode = {"trilinear": "bilinear"}.get(self._mode, self._mode)
        return self._interpolate(mixed, self.shape[3:], mode).permute(0, 2, 3, 1)

    def _interpolate(self, x: Tensor, size: Sequence[int], mode: str) -> Tensor:
        return F.interpolate(x, tuple(size), mode=mode, align_corners=None if mode == "nearest" else self._corners)
