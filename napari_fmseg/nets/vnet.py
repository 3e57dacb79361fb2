"""V-Net with attention (Milletari et al., 3DV 2016; AttentionBased-MIS)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from napari_fmseg.nets.layers.attention import AttentionGate, ChannelAttention
from napari_fmseg.nets.layers.blocks import Unit, resize, sequence
from napari_fmseg.nets.unet3d import _IN_PARTS, _AttentionNet, _factory, _WithAttention

__all__ = ["VNet"]


class VNet(_AttentionNet):
    """V-Net of five levels with attention after every level.

    Parameters
    ----------
    in_channels, n_classes, attention, gated, slices, pooling, compat, activation
        As in `UNet3D`.
    width
        Twice the channels at full size. Published: 16.
    reduction, slice_reduction
        Published: 4 (8 for cse) and 8.
    """

    _halvings = 4

    def __init__(
        self,
        in_channels: int = 1,
        n_classes: int = 2,
        width: int = 16,
        attention: str = "none",
        gated: bool = False,
        slices: int = 64,
        reduction: int = 4,
        slice_reduction: int = 8,
        pooling: str = "avg",
        compat: bool = False,
        activation: str = "softmax",
    ) -> None:
        super().__init__(in_channels, n_classes, width, attention, gated, slices, activation)
        make = _factory(attention, slices, reduction, slice_reduction, pooling, compat)
        wide = [width * 2**i // 2 for i in range(5)]
        for i, n_convs in enumerate((1, 2, 3, 3)):
            ins = wide[i] if i else in_channels
            part = make(wide[i], i, True, i == 3)
            self.add_module(f"Encoder_layer{i + 1}", _VEncoder(ins, wide[i], wide[i + 1], n_convs, attention, part))
        self.Bottleneck_layer = Unit(wide[4], wide[4], 5)
        whole = attention in ("cse", *_IN_PARTS)
        self.Bottleneck_cSE = ChannelAttention(wide[4], reduction) if whole else None
        for i, n_convs in zip((3, 2, 1, 0), (3, 3, 2, 1), strict=True):
            part = make(wide[i], i, False, False)
            self.add_module(
                f"Decoder_layer{4 - i}", _VDecoder(wide[i + 1], wide[i], n_convs, self.gated, attention, part)
            )
        self._add_last(wide[0])

    def _features(self, x: Tensor) -> Tensor:
        skips = []
        for i in range(1, 5):
            skip, x = getattr(self, f"Encoder_layer{i}")(x)
            skips.append(skip)
        x = self.Bottleneck_layer(x)
        if self.Bottleneck_cSE is not None:
            x = self.Bottleneck_cSE(x)
        for i in range(1, 5):
            x = getattr(self, f"Decoder_layer{i}")(x, skips.pop())
        return x


class _Residual(nn.Module):
    """Convolutions of 5 voxels, each with slope and norm; the last slope comes after the sum with `identity`."""

    def __init__(self, ins: int, outs: int, n_convs: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for i in range(n_convs):
            layers.append(nn.Conv3d(outs if i else ins, outs, 5, padding=2))
            if i < n_convs - 1:
                layers.append(nn.PReLU(outs))
            layers.append(nn.InstanceNorm3d(outs, affine=True))
        self.convblock = nn.Sequential(*layers)
        self.final_nolinear_activation = nn.PReLU(outs)

    def forward(self, x: Tensor, identity: Tensor) -> Tensor:
        out: Tensor = self.final_nolinear_activation(self.convblock(x) + identity)
        return out


class _VEncoder(_WithAttention):
    def __init__(self, ins: int, outs: int, below: int, n_convs: int, kind: str, attention: nn.Module | None) -> None:
        super().__init__()
        self._same = ins in (1, outs)
        self.conv_layer = _Residual(ins, outs, n_convs)
        self.downsample_layer = Unit(outs, below, 2, stride=2)
        self._take(kind, attention, "")

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        # The published sum works for one channel only, or as many as there are maps; several are averaged here.
        identity = x if self._same else x.mean(1, keepdim=True)
        x = self._attend(self.conv_layer(x, identity))
        return x, self.downsample_layer(x)


class _VDecoder(_WithAttention):
    def __init__(
        self, below: int, outs: int, n_convs: int, gated: bool, kind: str, attention: nn.Module | None
    ) -> None:
        super().__init__()
        self.conv_layer = _Residual(2 * outs, outs, n_convs)
        larger = nn.ConvTranspose3d(below, outs, 2, stride=2)
        norm = nn.InstanceNorm3d(outs, affine=True)
        self.upsample_layer = sequence(convtranspose3d=larger, pReLU=nn.PReLU(outs), instancenorm=norm)
        self._take(kind, attention, "")
        self.attention_module = AttentionGate(outs, below) if gated else None

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        if self.attention_module is not None:
            skip = self.attention_module(skip, x)
        x = resize(self.upsample_layer(x), skip.shape[2:], mode="nearest")
        return self._attend(self.conv_layer(torch.cat([skip, x], 1), x))
