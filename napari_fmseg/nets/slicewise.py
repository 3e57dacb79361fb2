"""Networks on slices: U-Net, FCN and DeepLabV3+ as they were published, for images; and the same in 3-D.

They are 3-D modules whose kernels are one slice thick (``dims=2``), which is the 2-D network on every slice: so they
take and give volumes as all others do. With ``dims=3`` the same definition has cubes for kernels. A volume of any size
is filled up with its border to what the network can halve, and the forward_padded is cut back. All give LOGITS.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from napari_fmseg.core.errors import GeometryMismatch, UnknownModel
from napari_fmseg.nets.layers.blocks import check_channels, check_choice, check_image, resize, tracing
from napari_fmseg.nets.monai_nets import from_monai

__all__ = ["FCN", "DeepLab", "SlicewiseNet", "UNet2D", "conv_norm", "inflate_2d_to_3d", "kernel_size"]

_SMALLEST = 8
_ENCODERS = {
    "resnet10": ("basic", (1, 1, 1, 1)),
    "resnet18": ("basic", (2, 2, 2, 2)),
    "resnet34": ("basic", (3, 4, 6, 3)),
    "resnet50": ("bottleneck", (3, 4, 6, 3)),
    "resnet101": ("bottleneck", (3, 4, 23, 3)),
}


def kernel_size(n: int, dims: int, through: int = 1) -> tuple[int, int, int]:
    """Return a size for (z, y, x): `n` along all axes in 3-D, `through` along z for networks on slices."""
    return (n if dims == 3 else through, n, n)


def conv_norm(ins: int, outs: int, kernel: int, dims: int) -> list[nn.Module]:
    """Make a convolution that keeps the size, batch norm, ReLU."""
    conv = nn.Conv3d(ins, outs, kernel_size(kernel, dims), padding=kernel_size(kernel // 2, dims, 0), bias=False)
    return [conv, nn.BatchNorm3d(outs), nn.ReLU()]


class SlicewiseNet(nn.Module, ABC):
    """What networks on slices share: their arguments, the check of an image, filling up and cutting back.

    Parameters
    ----------
    in_channels, n_classes
        Channels of the image; classes with background.
    dims
        2 for kernels within slices, 3 for cubes.
    step
        The sizes (z, y, x) that the network takes are multiples of these.
    """

    def __init__(self, in_channels: int, n_classes: int, dims: int, step: tuple[int, int, int]) -> None:
        super().__init__()
        check_channels(type(self).__name__, in_channels, n_classes)
        check_choice(type(self).__name__, "dims", dims, (2, 3))
        self.in_channels, self.n_classes, self.activation = in_channels, n_classes, "softmax"
        self.dims, self._step = dims, step

    def check(self, x: Tensor) -> None:
        """Refuse an image with other channels or under 8 voxels along an axis of a slice, with `GeometryMismatch`."""
        name = type(self).__name__
        check_image(name, x, self.in_channels, _SMALLEST if self.dims == 3 else 1)
        if not tracing() and min(x.shape[3:]) < _SMALLEST:
            raise GeometryMismatch(
                f"{name} needs at least {_SMALLEST} voxels along y and x, not {tuple(x.shape[2:])}. Resample or pad "
                "the volume."
            )

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, ...]:
        """Return logits (b, n_classes, z, y, x) for images (b, in_channels, z, y, x)."""
        self.check(x)
        z, y, x_size = x.shape[2:]
        missing = [-n % step for n, step in zip((z, y, x_size), self._step, strict=True)]
        whole = F.pad(x, (0, missing[2], 0, missing[1], 0, missing[0]), mode="replicate") if any(missing) else x
        out = self.forward_padded(whole)
        if isinstance(out, tuple):
            return tuple(part[:, :, :z, :y, :x_size] for part in out)
        return out[:, :, :z, :y, :x_size]

    @abstractmethod
    def forward_padded(self, x: Tensor) -> Tensor | tuple[Tensor, ...]:
        """Return the logits of a volume whose sizes fit."""


class UNet2D(SlicewiseNet):
    """U-Net on slices: two convolutions per level, max pooling, transposed convolutions (Ronneberger 2015).

    With batch norm and filled-up borders, which the paper does not have.

    Parameters
    ----------
    in_channels, n_classes, dims
        As in `SlicewiseNet`.
    widths
        Channels of the levels, finest first. Published: 64, 128, 256, 512, 1024.
    """

    def __init__(
        self,
        in_channels: int = 1,
        n_classes: int = 2,
        widths: Sequence[int] = (64, 128, 256, 512, 1024),
        dims: int = 2,
    ) -> None:
        if len(widths) < 2 or min(widths) < 1:
            raise UnknownModel(f"UNet2D needs two levels or more with channels, not {tuple(widths)}.")
        super().__init__(in_channels, n_classes, dims, kernel_size(2 ** (len(widths) - 1), dims))
        pairs = list(pairwise(widths))
        self.down = nn.ModuleList(_double(a, b, dims) for a, b in pairwise((in_channels, *widths)))
        two = kernel_size(2, dims)
        self.enlarge = nn.ModuleList(nn.ConvTranspose3d(b, a, two, stride=two) for a, b in reversed(pairs))
        self.up = nn.ModuleList(_double(2 * a, a, dims) for a, _ in reversed(pairs))
        self.last = nn.Conv3d(widths[0], n_classes, 1)

    def forward_padded(self, x: Tensor) -> Tensor:
        """Return the logits of a volume whose sizes fit."""
        skips: list[Tensor] = []
        for i, level in enumerate(self.down):
            x = level(F.max_pool3d(x, kernel_size(2, self.dims)) if i else x)
            skips.append(x)
        skips.pop()
        for enlarge, level in zip(self.enlarge, self.up, strict=True):
            x = level(torch.cat([skips.pop(), enlarge(x)], 1))
        out: Tensor = self.last(x)
        return out


def _double(ins: int, outs: int, dims: int) -> nn.Sequential:
    return nn.Sequential(*conv_norm(ins, outs, 3, dims), *conv_norm(outs, outs, 3, dims))


class FCN(SlicewiseNet):
    """FCN-8s: scores of three depths, each enlarged by two and added, at last by eight (Long 2015).

    The convolutions are those of VGG16 with batch norm, so that it can be trained from scratch.

    Parameters
    ----------
    in_channels, n_classes, dims
        As in `SlicewiseNet`.
    widths
        Channels of the five groups of convolutions. Published: 64, 128, 256, 512, 512.
    hidden
        Channels of the two layers at the end. Published: 4096, which makes most of its 134 million parameters.
    dropout
        In these two.
    """

    def __init__(
        self,
        in_channels: int = 1,
        n_classes: int = 2,
        widths: Sequence[int] = (64, 128, 256, 512, 512),
        hidden: int = 1024,
        dropout: float = 0.5,
        dims: int = 2,
    ) -> None:
        if len(widths) != 5 or min(*widths, hidden) < 1:
            raise UnknownModel(f"FCN needs five groups with channels, not {tuple(widths)} and {hidden}.")
        super().__init__(in_channels, n_classes, dims, kernel_size(32, dims))
        groups = []
        for (ins, outs), depth in zip(pairwise((in_channels, *widths)), (2, 2, 3, 3, 3), strict=True):
            layers = [layer for i in range(depth) for layer in conv_norm(outs if i else ins, outs, 3, dims)]
            groups.append(nn.Sequential(*layers, nn.MaxPool3d(kernel_size(2, dims))))
        self.groups = nn.ModuleList(groups)
        drop = nn.Dropout(dropout)
        self.head = nn.Sequential(
            *conv_norm(widths[4], hidden, 7, dims), drop, *conv_norm(hidden, hidden, 1, dims), drop
        )
        self.scores = nn.ModuleList(nn.Conv3d(width, n_classes, 1) for width in (hidden, widths[3], widths[2]))

    def forward_padded(self, x: Tensor) -> Tensor:
        """Return the logits of a volume whose sizes fit."""
        size, kept = x.shape[2:], []
        for group in self.groups:
            x = group(x)
            kept.append(x)
        seen = self.scores[0](self.head(x))
        for score, deeper in zip(self.scores[1:], (kept[3], kept[2]), strict=True):
            seen = resize(seen, deeper.shape[2:], align_corners=False) + score(deeper)
        return resize(seen, size, align_corners=False)


class DeepLab(SlicewiseNet):
    """DeepLabV3+: a dilated ResNet, views of several reaches side by side, one skip (Chen 2018).

    Encoder and pyramid are MONAI's. The mean of the whole map has no norm, since of one value there is none.

    Parameters
    ----------
    in_channels, n_classes, dims
        As in `SlicewiseNet`.
    encoder
        ``"resnet10"``, ``"resnet18"``, ``"resnet34"``, ``"resnet50"`` or ``"resnet101"``.
    width
        Channels of the encoder's first stage; doubled with every stage. Published: 64.
    hidden
        Channels after the pyramid and in the decoder. Published: 256.
    side
        Channels of the skip. Published: 48.
    dilations
        Reaches of the pyramid, in voxels of a map of a sixteenth of the size. Published: 1, 6, 12, 18.

    Raises
    ------
    MissingExtra
        If MONAI is not installed.
    """

    def __init__(
        self,
        in_channels: int = 1,
        n_classes: int = 2,
        encoder: str = "resnet50",
        width: int = 64,
        hidden: int = 256,
        side: int = 48,
        dilations: Sequence[int] = (1, 6, 12, 18),
        dims: int = 2,
    ) -> None:
        if min(width, side) < 1 or not dilations or hidden < len(dilations):
            raise UnknownModel(
                f"DeepLab needs channels and a reach, not width={width}, hidden={hidden}, side={side} and "
                f"dilations={tuple(dilations)}."
            )
        check_choice("DeepLab", "encoder", encoder, tuple(_ENCODERS))
        super().__init__(in_channels, n_classes, dims, kernel_size(16, dims))
        block, layers = _ENCODERS[encoder]
        first, last = (width, 8 * width) if block == "basic" else (4 * width, 32 * width)
        widths = [width * 2**i for i in range(4)]
        nets, blocks = (
            from_monai("DeepLab", "monai.networks.nets.resnet"),
            from_monai("DeepLab", "monai.networks.blocks"),
        )
        resnet = nets.ResNet(
            block, list(layers), widths, spatial_dims=dims, n_input_channels=in_channels, conv1_t_stride=2,
            feed_forward=False, bias_downsample=False,
        )  # fmt: skip
        self.stem = inflate_2d_to_3d(nn.Sequential(resnet.conv1, resnet.bn1, resnet.act))
        self.shrink = inflate_2d_to_3d(nn.Sequential(resnet.maxpool))
        self.stages = nn.ModuleList(inflate_2d_to_3d(getattr(resnet, f"layer{i}")) for i in range(1, 5))
        _dilate(self.stages[3], dims)
        kernels = tuple(1 if reach == 1 else 3 for reach in dilations)
        share = hidden // len(dilations)
        self.pyramid = inflate_2d_to_3d(
            blocks.SimpleASPP(dims, last, share, kernels, tuple(dilations), acti_type="RELU")
        )
        self.whole = nn.Sequential(nn.Conv3d(last, share, 1), nn.ReLU())
        self.join = nn.Sequential(*conv_norm(share * (len(dilations) + 1), hidden, 1, dims))
        self.skip = nn.Sequential(*conv_norm(first, side, 1, dims))
        self.last = nn.Sequential(
            *conv_norm(hidden + side, hidden, 3, dims), *conv_norm(hidden, hidden, 3, dims),
            nn.Conv3d(hidden, n_classes, 1),
        )  # fmt: skip

    def forward_padded(self, x: Tensor) -> Tensor:
        """Return the logits of a volume whose sizes fit."""
        size = x.shape[2:]
        x = self.stages[0](self.shrink(self.stem(x)))  # a quarter of the size
        fine = self.skip(x)
        for stage in self.stages[1:]:
            x = stage(x)
        mean = self.whole(x.mean((2, 3, 4) if self.dims == 3 else (3, 4), keepdim=True))
        x = self.join(torch.cat([self.pyramid(x), mean.expand(*mean.shape[:2], *x.shape[2:])], 1))
        x = torch.cat([resize(x, fine.shape[2:], align_corners=False), fine], 1)
        return resize(self.last(x), size, align_corners=False)


def _dilate(stage: nn.Module, dims: int) -> None:
    """Allow a stage keep the size, and its kernels reach twice as far instead."""
    for part in stage.modules():
        if isinstance(part, nn.Conv3d):
            part.stride = (1, 1, 1)
            if part.kernel_size[2] > 1:
                part.dilation, part.padding = kernel_size(2, dims), kernel_size(2, dims, 0)


def inflate_2d_to_3d(net: nn.Module) -> nn.Module:
    """Turn the 2-D layers of a network into 3-D ones of one slice, in place; their weights get one more axis."""
    if isinstance(net, nn.Conv2d | nn.BatchNorm2d | nn.MaxPool2d):
        return _thick(net)
    for name, part in net.named_children():
        setattr(net, name, inflate_2d_to_3d(part))
    return net


def _thick(part: nn.Module) -> nn.Module:
    if isinstance(part, nn.Conv2d):
        padding: Any = part.padding
        (a, b), (c, d), (e, f), (g, h) = part.kernel_size, part.stride, padding, part.dilation
        conv = nn.Conv3d(
            part.in_channels, part.out_channels, (1, a, b), (1, c, d), (0, e, f), (1, g, h),
            groups=part.groups, bias=part.bias is not None,
        )  # fmt: skip
        conv.load_state_dict({k: v.unsqueeze(2) if k == "weight" else v for k, v in part.state_dict().items()})
        return conv
    if isinstance(part, nn.BatchNorm2d):
        norm = nn.BatchNorm3d(part.num_features, part.eps, part.momentum)
        norm.load_state_dict(part.state_dict())
        return norm.train(part.training)
    pool: Any = part
    return nn.MaxPool3d(
        (1, pool.kernel_size, pool.kernel_size), (1, pool.stride, pool.stride), (0, pool.padding, pool.padding)
    )
