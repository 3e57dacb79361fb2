"""Attention among the slices of a volume: slice attention and the progressive attention module (PAM).

After a description of the public code of AttentionBased-MIS (github.com/Puzzled-Hui/AttentionBased-MIS, paper
doi 10.1002/mp.15369), whose names the state dicts carry. Ours takes any batch and, beyond the published code, any
number of slices: descriptors are resampled to the number the module was built for, and the weights back.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from napari_fmseg.nets.layers.attention import POOLINGS, ChannelAttention, spread, two_layers
from napari_fmseg.nets.layers.blocks import check_choice, sequence

__all__ = ["ChannelThenSlice", "ProgressiveAttention", "SliceAttention", "SliceThenChannel", "key_slices"]


class SliceAttention(nn.Module):
    """Each slice of each channel is weighted by all slices of the channel.

    Parameters
    ----------
    channels
        Of the map.
    slices
        Along z, in training.
    reduction
        The hidden layer of a channel has `slices` / `reduction` units, at least one.
    pooling
        One of `POOLINGS`, of the descriptor of a slice.
    compat
        The public code of slice attention without selection takes the mean for the maximum; True does so too.
    """

    def __init__(
        self, channels: int, slices: int, reduction: int = 16, pooling: str = "avg", *, compat: bool = False
    ) -> None:
        super().__init__()
        check_choice("SliceAttention", "pooling", pooling, POOLINGS)
        self.slices, self.pooling, self.compat = slices, pooling, compat
        self.Slice_SE_encoder = nn.ModuleList(
            sequence(fc=two_layers(slices, min(reduction, slices))) for _ in range(channels)
        )

    def forward(self, x: Tensor) -> Tensor:
        """Return `x` (b, c, z, y, x), weighted."""
        return x * self.weights(x)[..., None, None]

    def weights(self, x: Tensor) -> Tensor:
        """Return the weights (b, c, z) of the slices, from 0 to 1."""
        mean = x.mean((3, 4))
        most = mean if self.compat or self.pooling == "avg" else x.amax((3, 4))
        layers = [part.fc for part in self.Slice_SE_encoder]
        # One perceptron per channel, all at once.
        w1, b1, w2, b2 = (
            torch.stack([getattr(layer[i], name) for layer in layers])  # type: ignore[index]
            for i, name in ((0, "weight"), (0, "bias"), (2, "weight"), (2, "bias"))
        )

        def perceptrons(s: Tensor) -> Tensor:
            hidden = F.relu(torch.einsum("bcs,chs->bch", _of_length(s, self.slices), w1) + b1)
            return torch.einsum("bch,csh->bcs", hidden, w2) + b2

        logits = perceptrons(most if self.pooling == "max" else mean)
        if self.pooling == "avg_and_max":
            logits = logits + perceptrons(most)
        return _of_length(logits.sigmoid(), x.shape[2])


def key_slices(weights: Tensor) -> Tensor:
    """Find the slices whose share is at least the mean one: weights (b, c, z) give a mask (b, c, z) of 0 and 1.

    The share is the softmax over the slices; its mean is 1/z. At least one slice is always a key slice.
    """
    weights = weights.detach()
    # The threshold on the weight itself: log of the mean of exp, which needs no division per slice.
    threshold = weights.float().exp().mean(2, keepdim=True).log()
    # Rounding must not leave a channel without any slice when all weights are equal.
    return ((weights >= threshold) | (weights == weights.amax(2, keepdim=True))).to(weights)


class ProgressiveAttention(nn.Module):
    """PAM: slice attention, then channel attention by the key slices.

    Parameters
    ----------
    channels, slices
        As in `SliceAttention`.
    reduction, slice_reduction
        Of the channel and of the slice attention.
    pooling
        One of `POOLINGS`.
    compat
        The public code averages in the channel attention even where a maximum is requested; True does so too.
    """

    def __init__(
        self,
        channels: int,
        slices: int,
        reduction: int = 8,
        slice_reduction: int = 16,
        pooling: str = "avg",
        *,
        compat: bool = False,
    ) -> None:
        super().__init__()
        self.pooling, self.compat = pooling, compat
        self.sSE = SliceAttention(channels, slices, slice_reduction, pooling)
        self.cSE = ChannelAttention(channels, reduction, pooling)

    def forward(self, x: Tensor) -> Tensor:
        """Return `x` (b, c, z, y, x), weighted."""
        return self.select(x)[0]

    def select(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return `x`, weighted, and the mask (b, c, z) of the key slices."""
        weights = self.sSE.weights(x)
        x = x * weights[..., None, None]
        mask = key_slices(weights)
        # The descriptor carries no gradient; the perceptron and the product do.
        logits = self._descriptors(x.detach(), mask)
        return x * spread(logits), mask

    def _descriptors(self, x: Tensor, mask: Tensor) -> Tensor:
        mean = (x.mean((3, 4)) * mask).sum(2) / mask.sum(2)  # (b, c), over the key slices only
        if self.pooling == "avg" or (self.compat and self.pooling == "max"):
            return self._of(mean)
        most = mean if self.compat else x.amax((3, 4)).masked_fill(mask == 0, -torch.inf).amax(2)
        return self._of(most) if self.pooling == "max" else self._of(mean) + self._of(most)

    def _of(self, descriptor: Tensor) -> Tensor:
        out: Tensor = self.cSE.fc(descriptor)
        return out


class ChannelThenSlice(nn.Module):
    """csA: channel attention, then slice attention. Arguments as in `ProgressiveAttention`."""

    def __init__(
        self,
        channels: int,
        slices: int,
        reduction: int = 8,
        slice_reduction: int = 16,
        pooling: str = "avg",
        *,
        compat: bool = False,
    ) -> None:
        super().__init__()
        self.cSE = ChannelAttention(channels, reduction, pooling)
        self.sSE = SliceAttention(channels, slices, slice_reduction, pooling, compat=compat)

    def forward(self, x: Tensor) -> Tensor:
        """Return `x` (b, c, z, y, x), weighted."""
        out: Tensor = self.sSE(self.cSE(x))
        return out


class SliceThenChannel(ChannelThenSlice):
    """scA: slice attention, then channel attention. Arguments as in `ProgressiveAttention`."""

    def forward(self, x: Tensor) -> Tensor:
        """Return `x` (b, c, z, y, x), weighted."""
        out: Tensor = self.cSE(self.sSE(x))
        return out


def _of_length(x: Tensor, n: int) -> Tensor:
    """Resample the last axis of `x` (b, c, z) to `n`."""
    return x if x.shape[2] == n else F.interpolate(x, size=n, mode="linear", align_corners=False)
