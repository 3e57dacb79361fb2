"""The three networks of FMSF-PT: consensus (SNet), attention (AttnNet) and edge (EdgeNet).

Written after the public code of FMSF-PT (github.com/Human9000/FMST-PT); state dicts carry the published names.
All three give PROBABILITIES, since the published weights were trained with the softmax before the last upsampling.
They keep no state besides their weights. Half precision stops at the logits: softmax and the last
upsampling run in float32, so that a tie between two classes is not made by rounding.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from napari_fmseg.core.errors import GeometryMismatch
from napari_fmseg.nets.layers.blocks import check_channels, check_choice, check_image, resize, tracing

__all__ = ["HALO", "MIN_SIZE", "AttnNet", "EdgeNet", "SNet", "kaiming_init"]

MIN_SIZE = 32
"""Smallest size per axis in voxels of SNet and AttnNet: five poolings."""

HALO = 2
"""Voxels around a tile that EdgeNet v1 must see for the inside of the tile to be exact."""

Maps: TypeAlias = Tensor | tuple[Tensor, ...]

_SNET_CPU = "napari_fmseg.nets.runtime.snet_cpu:SNetCpu"
_EDGENET_CPU = "napari_fmseg.nets.runtime.edgenet_cpu:EdgeNetCpu"


def kaiming_init(net: nn.Module, generator: torch.Generator | None = None) -> nn.Module:
    """Draw all convolutions anew: Kaiming normal with slope 0.25, bias 0. Give `net` back."""
    for part in net.modules():
        if isinstance(part, nn.Conv3d):
            nn.init.kaiming_normal_(part.weight, a=0.25, generator=generator)
            if part.bias is not None:
                nn.init.zeros_(part.bias)
    return net


@torch.no_grad()
def lsuv_init(net: nn.Module, *inputs: Tensor) -> nn.Module:
    """Scale freshly drawn convolutions so that each gives unit variance on `inputs`. Give `net` back.

    Without normalisation, pooling and added skips let the signal grow a hundredfold on the way; the softmax then starts
    saturated, and with many small structures nothing is learned but background. One forward pass finds the
    factors, layer by layer (after Mishkin and Matas, All you need is a good init, ICLR 2016). The layers in front
    of a softmax get a standard deviation of 1/4, which is undecided.
    """
    heads = {id(p[0]) for p in net.modules() if isinstance(p, nn.Sequential) and isinstance(p[-1], nn.Softmax)}

    def scale(conv: nn.Module, _: object, out: Tensor) -> Tensor:
        factor = out.std().clamp_min(1e-6) * (4 if id(conv) in heads else 1)
        conv.weight.div_(factor)  # type: ignore[operator]
        return out / factor

    hooks = [p.register_forward_hook(scale) for p in net.modules() if isinstance(p, nn.Conv3d)]
    was_training = net.training
    net.train()(*inputs)
    net.train(was_training)
    for hook in hooks:
        hook.remove()
    return net


class _Pyramid(nn.Module):
    """Five poolings down, five additive skips up; what SNet, AttnNet and EdgeNet v2 share.

    Parameters
    ----------
    variant
        ``"v1"`` (2022) or ``"v2"`` (2023).
    """

    activation = "none"
    encoders: nn.ModuleList
    con: nn.Conv3d
    decoders: nn.ModuleList
    maps: nn.ModuleList

    def __init__(self, variant: str, in_channels: int, n_classes: int) -> None:
        super().__init__()
        check_choice(type(self).__name__, "variant", variant, ("v1", "v2"))
        check_channels(type(self).__name__, in_channels, n_classes)
        self.variant = variant
        self.in_channels = in_channels
        self.n_classes = n_classes
        self._normalised = False

    def init_weights(self, generator: torch.Generator | None = None) -> None:
        """Draw the weights anew: see `kaiming_init`."""
        kaiming_init(self, generator)

    def _add_layers(self, width: int) -> None:
        """Register the layers under their published names."""
        wide = [width] * 4
        self.encoders = _convs([self.in_channels, *wide], [*wide, 2 * width])
        self.con = nn.Conv3d(2 * width, 2 * width, 3, padding=1)
        self.decoders = _convs([2 * width, *wide], [width, *wide])
        self.maps = _heads(width, self.n_classes)

    def _norm(self, x: Tensor) -> Tensor:
        return F.instance_norm(x) if self._normalised else x

    def _pyramid(self, x: Tensor, attention: Tensor | None = None) -> list[Tensor]:
        """Return the decoder's maps, finest first: 1/2, 1/4, 1/8, 1/16 of the size of `x`."""
        _Pyramid.check(self, x)
        skips = []
        for conv in self.encoders:
            # Pooling before ReLU is the published order; it gives the same as the reverse, on an eighth of the voxels.
            x = F.relu_(F.max_pool3d(self._norm(conv(x)), 2))  # (b, width, z/2, y/2, x/2)
            skips.append(x)
        x = self.con(x)  # (b, 2 width, z/32, y/32, x/32)
        features = []
        for conv, skip in zip(self.decoders, reversed(skips), strict=True):
            x = skip + _resize(x, skip)
            if attention is not None:
                x = _resize(attention, skip) * x
            x = F.relu_(self._norm(conv(x)))  # (b, width, ...) at the skip's size
            features.append(x)
        return features[:0:-1]

    def check(self, x: Tensor) -> None:
        """Refuse an image that is too small or has other channels, with `GeometryMismatch`."""
        if tracing():
            return
        name = type(self).__name__
        check_image(name, x, self.in_channels)
        if min(x.shape[2:]) < MIN_SIZE:
            raise GeometryMismatch(
                f"{name} halves its input five times and needs at least {MIN_SIZE} voxels along each axis, "
                f"not {tuple(x.shape[2:])}. Resample or pad the volume."
            )
        if self._normalised and max(x.shape[2:]) < 2 * MIN_SIZE:
            raise GeometryMismatch(
                f"{name} v2 normalises its deepest map and needs at least {2 * MIN_SIZE} voxels along one axis, "
                f"not {tuple(x.shape[2:])}. Resample or pad the volume."
            )


class _LevelNet(_Pyramid):
    """What SNet and AttnNet share: four levels that each give probabilities; further inputs weight the decoder."""

    def init_on_sample(self, *inputs: Tensor) -> None:
        """Scale new weights on one image and what is given beside it: see `lsuv_init`."""
        lsuv_init(self, *inputs)

    def _answer(self, *inputs: Tensor) -> Maps:
        if self.training:
            return self.training_heads(*inputs)
        return _head(self.maps[0], self._levels(*inputs)[0], inputs[0])

    def _levels(self, *inputs: Tensor) -> list[Tensor]:
        return self._pyramid(*inputs)

    def training_heads(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        """Return what training compares: the finest level at the size of the image, the others at their own size."""
        levels = zip(self.maps, self._levels(*inputs), strict=True)
        finest, *others = (_softmax(head[0](features)) for head, features in levels)  # type: ignore[index]
        return (_resize(finest, inputs[0]), *others)

    def heads(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        """Return the probabilities of the four levels (1/2, 1/4, 1/8, 1/16), each upsampled to the image's size."""
        return tuple(_head(m, f, inputs[0]) for m, f in zip(self.maps, self._levels(*inputs), strict=True))


class SNet(_LevelNet):
    """Consensus network: coarse to fine on the whole volume.

    Parameters
    ----------
    in_channels, n_classes
        Channels of the image; classes with background, which is class 0.
    variant
        ``"v2"`` adds instance norm; both have the same state dict and different results.
    width
        Channels of every level but the deepest, which has twice as many. Published: 32.
    """

    def __init__(self, in_channels: int = 1, n_classes: int = 2, variant: str = "v1", width: int = 32) -> None:
        super().__init__(variant, in_channels, n_classes)
        self._normalised = variant == "v2"
        self.cpu_form = _SNET_CPU if variant == "v1" else ""
        self._add_layers(width)

    def forward(self, x: Tensor) -> Maps:
        """Return probabilities (b, n_classes, z, y, x) float32; in training mode the four of `training_heads`.

        Parameters
        ----------
        x
            (b, in_channels, z, y, x), each axis at least 32, or `GeometryMismatch` is raised.
        """
        return self._answer(x)


class AttnNet(_LevelNet):
    """Attention network: SNet whose decoder is weighted by an attention map. Its weights fit SNet too.

    Parameters
    ----------
    in_channels, n_classes, width
        As in `SNet`.
    variant
        ``"v1"`` and ``"v2"`` are the same.
    """

    cpu_form = _SNET_CPU
    map_channels = (1,)

    def __init__(self, in_channels: int = 1, n_classes: int = 2, variant: str = "v1", width: int = 32) -> None:
        super().__init__(variant, in_channels, n_classes)
        self._add_layers(width)

    def forward(self, x: Tensor, attention: Tensor) -> Maps:
        """Return probabilities (b, n_classes, z, y, x) float32; in training mode the four of `training_heads`.

        Parameters
        ----------
        x
            As in `SNet.forward`.
        attention
            (b, 1, z, y, x) on the image's grid, from 1/11 to 1: see `attention_map`.
        """
        return self._answer(x, attention)

    def check(self, x: Tensor, attention: Tensor) -> None:  # type: ignore[override]
        """Refuse an image or an attention map that the network cannot take, as `SNet.check` does."""
        super().check(x)
        _check_beside(self, x, attention, 1, "attention")

    def _levels(self, x: Tensor, attention: Tensor) -> list[Tensor]:  # type: ignore[override]
        _check_beside(self, x, attention, 1, "attention")
        return self._pyramid(x, attention)


class EdgeNet(_Pyramid):
    """Edge network: sharpens a segmentation with the image beside it.

    Version 1 is two convolutions without anything between them and reaches 2 voxels far. It is exact on tiles: give it
    the tile with `HALO` more voxels on each side that is not a border of the volume, and cut them off the
    result. Only the volume's true borders may be padded, which the network does itself (also on its hidden map).
    Version 2 takes the whole volume.

    Parameters
    ----------
    in_channels
        Channels of the image.
    n_classes
        Classes with background, of input and output.
    variant
        ``"v1"``, or ``"v2"``, which also gives the border.
    hidden
        Channels between the two convolutions of v1. Published: 8.
    width
        Channels of the pyramid of v2. Published: 32.
    """

    trains_channels_last = False

    def __init__(
        self, in_channels: int = 1, n_classes: int = 2, variant: str = "v1", hidden: int = 8, width: int = 32
    ) -> None:
        super().__init__(variant, in_channels, n_classes)
        self.map_channels = (n_classes,)
        self.useful_untrained = variant == "v1"
        # With more classes the folded filter grows and loses.
        self.cpu_form = _EDGENET_CPU if variant == "v1" and n_classes == 2 else ""
        if variant == "v1":
            both = in_channels + n_classes
            first, second = nn.Conv3d(both, hidden, 3, padding=1), nn.Conv3d(hidden, n_classes, 3, padding=1)
            self.fc = nn.Sequential(first, second, nn.Softmax(1))
            return
        self._normalised = True
        self._add_layers(width)
        merged = 4 * n_classes + in_channels
        self.firsten = nn.Conv3d(in_channels + n_classes, width, 1)  # never used, but the published files have it
        self.borderMap = _heads(width, n_classes)
        self.merge_seg = nn.Sequential(nn.Conv3d(merged, n_classes, 1), nn.Softmax(1))
        self.merge_border = nn.Sequential(nn.Conv3d(merged, n_classes, 1), nn.Softmax(1))

    def forward(self, x: Tensor, segmentation: Tensor) -> Maps:
        """Return sharper probabilities (b, n_classes, z, y, x) float32; of v2 in training mode (segmentation, border).

        Parameters
        ----------
        x
            Image (b, in_channels, z, y, x).
        segmentation
            Probabilities (b, n_classes, z, y, x) of the stage before; on another grid `GeometryMismatch` is raised.
        """
        if self.training and self.variant == "v2":
            return self.heads(x, segmentation)
        return self.heads(x, segmentation)[0] if self.variant == "v1" else self._merge(x, segmentation, border=False)[0]

    def init_weights(self, generator: torch.Generator | None = None) -> None:
        """Draw the weights anew, those of v1 so that the segmentation passes through."""
        super().init_weights(generator)
        self.init_as_identity()

    def init_as_identity(self, gain: float = 8.0) -> None:
        """Set the weights of v1 so that it gives its segmentation back, more decided by `gain`: a start for training.

        Needs as many hidden channels as classes; otherwise, and in v2, nothing is changed.
        """
        if self.variant != "v1":
            return
        first, second = (conv for conv in self.fc if isinstance(conv, nn.Conv3d))
        if first.out_channels < self.n_classes:
            return
        with torch.no_grad():
            first.weight.mul_(0.1)
            second.weight.mul_(0.1)
            for i in range(self.n_classes):
                first.weight[i, self.in_channels + i, 1, 1, 1] += 1
                second.weight[i, i, 1, 1, 1] += gain

    def check(self, x: Tensor, segmentation: Tensor) -> None:  # type: ignore[override]
        """Refuse an image and a segmentation that do not fit together, or that v2 cannot take."""
        _check_beside(self, x, segmentation, self.n_classes, "segmentation")
        if self.variant == "v2":
            super().check(x)

    def heads(self, x: Tensor, segmentation: Tensor) -> tuple[Tensor, ...]:
        """Return (segmentation,) in v1 and (segmentation, border) in v2."""
        if self.variant == "v2":
            return self._merge(x, segmentation, border=True)
        self.check(x, segmentation)
        logits = self.fc[1](self.fc[0](torch.cat([x, segmentation], 1)))
        return (_softmax(logits),)

    def _merge(self, x: Tensor, segmentation: Tensor, border: bool) -> tuple[Tensor, ...]:
        self.check(x, segmentation)
        flat = _flatten_interior(x, segmentation)  # (b, in_channels, z, y, x)
        features = self._pyramid(flat)
        pairs = [(self.maps, self.merge_seg), (self.borderMap, self.merge_border)]
        outputs = []
        for maps, merge in pairs[: 1 + border]:
            parts = [_head(m, f, x).to(x.dtype) for m, f in zip(maps, features, strict=True)]
            outputs.append(_softmax(merge[0](torch.cat([flat, *parts], 1))))
        return tuple(outputs)


def _convs(ins: Iterable[int], outs: Iterable[int]) -> nn.ModuleList:
    return nn.ModuleList(nn.Conv3d(i, o, 3, padding=1) for i, o in zip(ins, outs, strict=True))


def _heads(width: int, n_classes: int) -> nn.ModuleList:
    return nn.ModuleList(nn.Sequential(nn.Conv3d(width, n_classes, 1), nn.Softmax(1)) for _ in range(4))


def _resize(x: Tensor, like: Tensor) -> Tensor:
    return resize(x, like.shape[2:])


def _softmax(logits: Tensor) -> Tensor:
    return logits.to(torch.promote_types(logits.dtype, torch.float32)).softmax(1)


def _head(head: nn.Module, features: Tensor, like: Tensor) -> Tensor:
    """Return the class probabilities of `features`, upsampled to the size of `like`: they still add up to 1."""
    return _resize(_softmax(head[0](features)), like)  # type: ignore[index]


def _flatten_interior(x: Tensor, segmentation: Tensor) -> Tensor:
    """Fold the intensities around the mean of the segmentation's inside: the inside's mean becomes the brightest."""
    foreground = segmentation[:, 1:].sum(1, keepdim=True)
    inside = 2 - F.max_pool3d(segmentation[:, :1] - foreground + 1, 5, stride=1, padding=2) > 0.5  # (b, 1, z, y, x)
    count = inside.sum((2, 3, 4), keepdim=True)
    mean = (x * inside).sum((2, 3, 4), keepdim=True) / count.clamp(min=1)
    # Upstream gives NaN everywhere for an empty inside; the mean of the volume is as good as any.
    mean = torch.where(count > 0, mean, x.mean((2, 3, 4), keepdim=True)).to(x.dtype)
    return torch.minimum((mean - (x - mean).abs()).clamp(min=0), mean)


def _check_beside(net: _Pyramid, x: Tensor, other: Tensor, channels: int, what: str) -> None:
    if tracing():
        return
    expected = (x.shape[0], channels, *x.shape[2:])
    if x.ndim != 5 or x.shape[1] != net.in_channels or tuple(other.shape) != expected:
        raise GeometryMismatch(
            f"{type(net).__name__} takes an image (batch, {net.in_channels}, z, y, x) and a map '{what}' with "
            f"{channels} channels on the same grid, not {tuple(x.shape)} and {tuple(other.shape)}."
        )
