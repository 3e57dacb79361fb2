"""The pyramid of SNet and AttnNet v1 on a CPU, several times faster than layer by layer.

The same sums in another order. What makes it fast:

- The first convolution writes 32 full-size maps only for the pooling to keep an eighth of them. Both run together on a
  few slices at a time, which stay in the cache; the full-size maps never exist.
- Activations lie as (z, y, x, channel), so that pooling and upsampling work on whole vectors.
- In float32, wide convolutions use Winograd's minimal filtering along z; see `napari_fmseg.nets.runtime.convolution`.
- Only the finest head is computed, with one class less than asked for (probabilities add up to 1), at half size.

Nothing here keeps gradients.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from napari_fmseg.core.resampling_torch import linear_weights
from napari_fmseg.nets.runtime.convolution import Winograd

if TYPE_CHECKING:
    from napari_fmseg.nets.fmsf import AttnNet, SNet

__all__ = ["SNetCpu"]

# Slices that one step of the first layer takes per thread: few enough for the cache, enough to outweigh the calls.
_SLAB = 4


class SNetCpu:
    """The evaluation of an `SNet` or `AttnNet` (v1) with its weights laid out for speed.

    Parameters
    ----------
    net
        The network; later changes of its weights are not seen.
    dtype
        torch.float32, or torch.bfloat16 where the processor computes with it.

    Notes
    -----
    Call it as the network is called in evaluation mode. Sizes may differ from call to call.
    """

    def __init__(self, net: SNet | AttnNet, dtype: torch.dtype = torch.float32) -> None:
        self._net = net
        self._dtype = dtype
        weight, self._first_bias = _parts(net.encoders[0], dtype)
        # A 3-D convolution of depth 3 is a plane convolution with three slices as channels.
        self._first = weight.flatten(1, 2).contiguous(memory_format=torch.channels_last)
        self._encoders = [_Conv(conv, dtype) for conv in list(net.encoders)[1:]]
        self._con = _Conv(net.con, dtype)
        self._decoders = [_Conv(conv, dtype) for conv in net.decoders]
        weight, bias = _parts(net.maps[0][0], torch.float32)  # type: ignore[index]
        weight = weight.flatten(1)  # (n_classes, width)
        if net.n_classes == 2:  # the softmax of two is the sigmoid of their difference
            weight, bias = weight[1:] - weight[:1], bias[1:] - bias[:1]
        self._head = weight.to(dtype)  # (n_logits, width)
        self._head_bias = bias

    @torch.inference_mode()
    def __call__(self, x: Tensor, attention: Tensor | None = None) -> Tensor:
        """Return the probabilities (b, n_classes, z, y, x) float32 of images (b, in_channels, z, y, x)."""
        self._net.check(x, *([] if attention is None else [attention]))
        gates = [None] * len(x) if attention is None else attention
        return torch.stack([self._one(image, gate) for image, gate in zip(x, gates, strict=True)])

    def _one(self, image: Tensor, gate: Tensor | None) -> Tensor:
        x = self._first_level(image.to(self._dtype))
        skips = [x]
        for conv in self._encoders:
            x = conv.convolve_and_pool(x)
            skips.append(x)
        x = self._con(x)
        for conv, skip in zip(self._decoders, reversed(skips), strict=True):
            x = conv(_gate(gate, x, skip), relu=True)
        return self._probabilities(x, image.shape[1:])

    def _first_level(self, image: Tensor) -> Tensor:
        """Convolve, pool and clip `image` (c, z, y, x): gives (z/2, y/2, x/2, width)."""
        d, h, w = (n // 2 for n in image.shape[1:])
        padded = F.pad(image, (0, 0, 0, 0, 1, 1)).permute(1, 2, 3, 0)  # (z + 2, y, x, c)
        neighbours = padded.unfold(0, 3, 1)  # (z, y, x, c, 3)
        out = image.new_empty(d, h, w, len(self._first))
        step = _SLAB * torch.get_num_threads()
        for z in range(0, 2 * d, step):
            slab = neighbours[z : min(z + step, 2 * d)].flatten(3).contiguous()  # (s, y, x, 3 c)
            y = F.conv2d(slab.permute(0, 3, 1, 2), self._first, self._first_bias, padding=1).permute(0, 2, 3, 1)
            _pool(y, out[z // 2 : (z + step) // 2])
        return out

    def _probabilities(self, x: Tensor, size: torch.Size) -> Tensor:
        """Turn features (z/2, y/2, x/2, width) into probabilities (n_classes, z, y, x)."""
        logits = F.linear(x, self._head).float().flatten(0, 2).T + self._head_bias[:, None]  # (n_logits, voxels)
        coarse = logits.sigmoid() if len(logits) == 1 else logits.softmax(0)[1:]
        foreground = _enlarge(coarse.reshape(-1, *x.shape[:3]), size)  # (n_classes - 1, z, y, x)
        return torch.cat([1 - foreground.sum(0, keepdim=True), foreground])


class _Conv:
    """A 3x3x3 convolution with padding 1 on (z, y, x, channel)."""

    def __init__(self, conv: nn.Module, dtype: torch.dtype) -> None:
        weight, self._bias = _parts(conv, dtype)
        self._weight = weight.contiguous(memory_format=torch.channels_last_3d)
        self._winograd = Winograd(weight, self._bias) if Winograd.fits(weight) else None

    def __call__(self, x: Tensor, relu: bool = False) -> Tensor:
        if self._winograd is None or len(x) < 8:
            y = _volume(F.conv3d(_batch(x), self._weight, self._bias, padding=1))
        else:
            y = self._winograd(x)
        return y.clamp_(min=0) if relu else y

    def convolve_and_pool(self, x: Tensor) -> Tensor:
        """Convolve, pool by 2 and clip at 0."""
        d, h, w = (n // 2 for n in x.shape[:3])
        out = x.new_empty(d, h, w, len(self._weight))
        _pool(self(x), out)
        return out


def _parts(conv: nn.Module, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Return the weight and bias of a convolution, apart from the network."""
    weight, bias = (value.detach().to(dtype) for value in (conv.weight, conv.bias))  # type: ignore[operator]
    return weight, bias


def _pool(y: Tensor, out: Tensor) -> None:
    """Maximum over 2x2x2 of `y` (z, y, x, c), at least 0, into `out`."""
    d, h, w = (2 * n for n in out.shape[:3])
    y = torch.maximum(y[0:d:2, :h, :w], y[1:d:2, :h, :w])
    y = torch.maximum(y[:, 0::2], y[:, 1::2])
    torch.maximum(y[:, :, 0::2], y[:, :, 1::2], out=out).clamp_(min=0)


def _gate(gate: Tensor | None, x: Tensor, skip: Tensor) -> Tensor:
    """Return `skip` plus `x` upsampled to it, times the gate; all (z, y, x, c), the gate (1, z, y, x)."""
    if x.shape[:3] != skip.shape[:3]:
        x = _volume(F.interpolate(_batch(x), size=skip.shape[:3], mode="trilinear", align_corners=True))
    x = x.add_(skip)
    if gate is not None:
        small = F.interpolate(gate[None].float(), size=skip.shape[:3], mode="trilinear", align_corners=True)
        x.mul_(small[0, 0, ..., None].to(x.dtype))
    return x


def _batch(x: Tensor) -> Tensor:
    """View (z, y, x, c) as a batch of one in channels_last_3d; the new axis comes first, or torch does not see it."""
    return x[None].permute(0, 4, 1, 2, 3)


def _volume(x: Tensor) -> Tensor:
    """View a batch of one in channels_last_3d as (z, y, x, c)."""
    return x[0].permute(1, 2, 3, 0)


def _enlarge(x: Tensor, size: torch.Size) -> Tensor:
    """Enlarge `x` (c, z, y, x) linearly to `size` with aligned corners, one axis after the other."""
    for axis in (3, 2, 1):
        matrix = linear_weights(x.shape[axis], size[axis - 1]).to(x)  # (new, old)
        if axis == 3:
            x = x @ matrix.T
        elif axis == 2:
            x = matrix @ x
        else:
            x = (matrix @ x.flatten(2)).reshape(len(x), *size)
    return x
