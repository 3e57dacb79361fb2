"""EdgeNet v1 on a CPU as the one filter that it is.

Two convolutions with nothing between them are one convolution of 5x5x5, except that the hidden maps are
padded with zeros: what the one filter sees of hidden maps beyond the border is computed on the six faces and
taken off again. Eight slices are computed at once, as eight output channels of a plane convolution, since a
filter with a single output would use an eighth of the processor.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

if TYPE_CHECKING:
    from napari_fmseg.nets.fmsf import EdgeNet

__all__ = ["EdgeNetCpu"]

_BLOCK = 8
_REACH = 2


class EdgeNetCpu:
    """The evaluation of an `EdgeNet` v1 with two classes, its two convolutions folded into one.

    Parameters
    ----------
    net
        The network; later changes of its weights are not seen.
    dtype
        torch.float32, or torch.bfloat16 where the processor computes with it.
    """

    def __init__(self, net: EdgeNet, dtype: torch.dtype = torch.float32) -> None:
        self._check = net.check
        self._dtype = dtype
        first, second = net.fc[0], net.fc[1]
        w1, b1 = first.weight.detach().double(), first.bias.detach().double()  # type: ignore[operator]
        w2, b2 = second.weight.detach().double(), second.bias.detach().double()  # type: ignore[operator]
        # The softmax of two classes is the sigmoid of the difference of their logits.
        w2, b2 = w2[1:] - w2[:1], b2[1] - b2[0]
        # Filters in a row convolve each other: (c, h, 3, 3, 3) with (1, h, 3, 3, 3) gives (c, 1, 5, 5, 5).
        filter_5 = F.conv3d(w1.transpose(0, 1), w2.flip(2, 3, 4), padding=2)[:, 0]  # (c, 5, 5, 5)
        self._bias = (b2 + (w2[0].sum((1, 2, 3)) * b1).sum()).to(dtype).repeat(_BLOCK)
        blocks = filter_5.new_zeros(_BLOCK, len(filter_5), _BLOCK + 2 * _REACH, 5, 5)  # (out slice, c, in slice, y, x)
        for z in range(_BLOCK):
            blocks[z, :, z : z + 5] = filter_5
        self._blocks = blocks.flatten(1, 2).to(dtype).contiguous(memory_format=torch.channels_last)
        self._w1, self._b1, self._w2 = w1.to(dtype), b1.to(dtype), w2.to(dtype)

    @torch.inference_mode()
    def __call__(self, x: Tensor, segmentation: Tensor) -> Tensor:
        """Return the probabilities (b, 2, z, y, x) float32; see `EdgeNet.forward`."""
        self._check(x, segmentation)
        both = torch.cat([x, segmentation], 1).to(self._dtype)
        return torch.stack([self._one(volume) for volume in both])

    def _one(self, volume: Tensor) -> Tensor:
        logits = self._filter(volume).float()
        for axis in range(3):
            logits.select(axis, 0).sub_(self._beyond(volume, axis, first=True))
            logits.select(axis, -1).sub_(self._beyond(volume, axis, first=False))
        foreground = logits.sigmoid_()
        return torch.stack([1 - foreground, foreground])

    def _filter(self, volume: Tensor) -> Tensor:
        """Run the 5x5x5 filter over (c, z, y, x), zeros outside; gives logits (z, y, x)."""
        _, d, h, w = volume.shape
        blocks = -(-d // _BLOCK)
        padded = F.pad(volume, (0, 0, 0, 0, _REACH, blocks * _BLOCK - d + _REACH))
        out = volume.new_empty(blocks * _BLOCK, h, w)
        for z in range(0, blocks * _BLOCK, _BLOCK):
            part = padded[:, z : z + _BLOCK + 2 * _REACH].flatten(0, 1)  # (c * slice, y, x)
            part = part.flatten(1).T.contiguous().view(1, h, w, -1).permute(0, 3, 1, 2)  # channels last
            out[z : z + _BLOCK] = F.conv2d(part, self._blocks, self._bias, padding=_REACH)[0]
        return out[:d]

    def _beyond(self, volume: Tensor, axis: int, first: bool) -> Tensor:
        """Return what hidden maps one voxel beyond a face add to the logits on that face.

        The faces of the axes before own the rim that they share with this one, so that every hidden voxel counts once.
        """
        face = volume.select(axis + 1, 0 if first else -1)[None]  # (1, c, ., .): all that those hidden maps see
        seen, given = (2, 0) if first else (0, 2)
        rim = [1 if other < axis else 2 for other in range(3) if other != axis]
        hidden = F.conv2d(face, self._w1.select(axis + 2, seen), self._b1, padding=rim)
        return F.conv2d(hidden, self._w2.select(axis + 2, given), padding=[2 - r for r in rim])[0, 0].float()
