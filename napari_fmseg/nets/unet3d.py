"""U-Net and V-Net with attention by name, as AttentionBased-MIS compares them.

Written after a description of the public code (github.com/Puzzled-Hui/AttentionBased-MIS, paper doi 10.1002/mp.15369);
state dicts carry the published names. Both give LOGITS, where the published networks end with a softmax. Any batch and
any size that can be halved three (four) times; the published code wanted a batch of one.
"""

from __future__ import annotations

from collections.abc import Callable

import torch.nn.functional as F
from torch import Tensor, nn

from napari_fmseg.core.errors import GeometryMismatch, UnknownModel
from napari_fmseg.nets.layers.attention import (
    CBAM,
    AttentionGate,
    ChannelAttention,
    DualAttention,
    ProjectExcite,
    SpaceChannelAttention,
    SpatialAttention,
    SpatialTransformer,
    SplitAttention,
    inverse,
    warp,
)
from napari_fmseg.nets.layers.blocks import (
    ACTIVATIONS,
    Unit,
    check_channels,
    check_choice,
    check_image,
    join,
    sequence,
    tracing,
)
from napari_fmseg.nets.layers.slice_attention import (
    ChannelThenSlice,
    ProgressiveAttention,
    SliceAttention,
    SliceThenChannel,
)

__all__ = ["ATTENTIONS", "UNet3D"]

ATTENTIONS = {
    "none": "none",
    "cse": "channels, by their mean (AnatomyNet in the public code)",
    "sse": "voxels, by their channels",
    "scse": "channels and voxels",
    "cbam": "channels, then voxels by a large kernel",
    "pe": "voxels, by the means of their planes (as in the public code); encoder only",
    "pe-sum": "the same as in its paper; encoder only",
    "slice": "slices of each channel",
    "csa": "channels, then slices",
    "sca": "slices, then channels",
    "pam": "slices, then channels by the key slices (PANet)",
    "split": "a choice between two convolutions",
    "dual": "positions and channels, at the deepest level",
    "gate": "skips, by the deeper map",
    "stn": "the whole image is turned and scaled, and the result turned back",
}
"""The kinds of attention by name, and what each takes as input."""

# Below these names the published files keep the module itself; below "sSE" and "cSE" the parts of csa, sca and pam.
_PUBLISHED = {"cse": "{}cSE", "slice": "{}sSE", "pe": "pe_layer"}

_IN_PARTS = ("csa", "sca", "pam")


class _WithAttention(nn.Module):
    """A layer that ends with attention, if any."""

    _attention: nn.Module | None = None

    def _attend(self, x: Tensor) -> Tensor:
        return x if self._attention is None else self._attention(x)

    def _take(self, kind: str, attention: nn.Module | None, prefix: str) -> None:
        """Register `attention` as the published files name it."""
        if attention is None:
            return
        # Past nn.Module's registration: the files name the parts of some modules, not the module that combines them.
        object.__setattr__(self, "_attention", attention)
        if kind in _IN_PARTS:
            for name, part in attention.named_children():
                self.add_module(prefix + name, part)
        else:
            self.add_module(_PUBLISHED.get(kind, "attention").format(prefix), attention)


class _AttentionNet(nn.Module):
    """What the two networks share: their arguments, the check of an image, the last layer."""

    _halvings = 3

    def __init__(
        self, in_channels: int, n_classes: int, width: int, attention: str, gated: bool, slices: int, activation: str
    ) -> None:
        super().__init__()
        name = type(self).__name__
        check_channels(name, in_channels, n_classes)
        check_choice(name, "attention", attention, tuple(ATTENTIONS))
        check_choice(name, "activation", activation, ACTIVATIONS)
        if width < 2 or width % 2 or slices < 1:
            raise UnknownModel(f"{name} needs an even width and at least one slice, not {width} and {slices}.")
        self.in_channels, self.n_classes, self.activation = in_channels, n_classes, activation
        self.attention, self.gated = attention, gated or attention == "gate"

    def _add_last(self, width: int) -> None:
        self.final_conv = nn.Conv3d(width, self.n_classes - (self.activation == "sigmoid"), 1)
        self.transformer = SpatialTransformer(self.in_channels) if self.attention == "stn" else None

    def forward(self, x: Tensor) -> Tensor:
        """Return logits (b, n_classes, z, y, x), one channel less with a sigmoid, of images that pass `check`.

        Along z they best have as many slices as in training.
        """
        self.check(x)
        if self.transformer is None:
            out: Tensor = self.final_conv(self._features(x))
            return out
        matrix = self.transformer.matrix(x)
        logits = self.final_conv(self._features(warp(x, matrix)))
        return warp(logits, inverse(matrix), outside="border")

    def check(self, x: Tensor) -> None:
        """Refuse an image that is too small or has other channels, with `GeometryMismatch`."""
        smallest = 2**self._halvings
        name = type(self).__name__
        check_image(name, x, self.in_channels, smallest)
        if not tracing() and max(x.shape[2:]) < 2 * smallest:
            raise GeometryMismatch(
                f"{name} normalises maps of 1/{smallest} of the size and needs {2 * smallest} voxels along one axis, "
                f"not {tuple(x.shape[2:])}. Resample or pad the volume."
            )

    def _features(self, x: Tensor) -> Tensor:
        raise NotImplementedError


class UNet3D(_AttentionNet):
    """3D U-Net of four levels with attention after every level.

    Parameters
    ----------
    in_channels, n_classes
        Channels of the image; classes with background, which is class 0.
    width
        Channels of the first level; doubled with every level. Published: 16.
    attention
        A key of `ATTENTIONS`.
    gated
        Attention gates on the skips too.
    slices
        Along z in training, for attention among slices; other numbers are resampled.
    reduction, slice_reduction
        Of the hidden layers of channel and slice attention. Published: 8 (2 for pe) and 16.
    pooling
        How a map or a slice becomes one number: ``"avg"``, ``"max"``, ``"avg_and_max"``.
    compat
        Average where the public code does so although a maximum is requested.
    activation
        How the logits are to be read: ``"softmax"``, or ``"sigmoid"`` with a channel less and no background.
    """

    def __init__(
        self,
        in_channels: int = 1,
        n_classes: int = 2,
        width: int = 16,
        attention: str = "none",
        gated: bool = False,
        slices: int = 64,
        reduction: int = 8,
        slice_reduction: int = 16,
        pooling: str = "avg",
        compat: bool = False,
        activation: str = "softmax",
    ) -> None:
        super().__init__(in_channels, n_classes, width, attention, gated, slices, activation)
        make = _factory(attention, slices, reduction, slice_reduction, pooling, compat)
        wide = [width * 2**i for i in range(4)]
        for i, (ins, outs) in enumerate(zip([in_channels, *wide], wide, strict=False)):
            self.add_module(f"EncoderLayer{i + 1}", _Encoder(ins, outs, i > 0, attention, make(outs, i, True, i == 3)))
        # The networks of the source differ in this, and their weights with it.
        smooth = attention in ("pe", "pam")
        for i in (2, 1, 0):
            layer = _Decoder(wide[i + 1], wide[i], self.gated, smooth, attention, make(wide[i], i, False, False))
            self.add_module(f"DecoderLayer{3 - i}", layer)
        self._add_last(width)

    def _features(self, x: Tensor) -> Tensor:
        skips = []
        for i in range(1, 5):
            x = getattr(self, f"EncoderLayer{i}")(x)
            skips.append(x)
        x = skips.pop()
        for i in range(1, 4):
            x = getattr(self, f"DecoderLayer{i}")(x, skips.pop())
        return x


class _Encoder(_WithAttention):
    def __init__(self, ins: int, outs: int, pool: bool, kind: str, attention: nn.Module | None) -> None:
        super().__init__()
        self._pool = pool
        self.basic_module = _double(ins, max(outs // 2, ins), outs)
        self._take(kind, attention, "encoder_")

    def forward(self, x: Tensor) -> Tensor:
        return self._attend(self.basic_module(F.max_pool3d(x, 2) if self._pool else x))


class _Decoder(_WithAttention):
    def __init__(
        self, below: int, outs: int, gated: bool, smooth: bool, kind: str, attention: nn.Module | None
    ) -> None:
        super().__init__()
        self._mode = "trilinear" if smooth else "nearest"
        self.basic_module = _double(below + outs, outs, outs)
        self._take(kind, attention, "decoder_")
        self.attention_module = AttentionGate(outs, below) if gated else None

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        if self.attention_module is not None:
            skip = self.attention_module(skip, x)
        return self._attend(join(self.basic_module, skip, x, like=skip, mode=self._mode, align_corners=False))


def _double(ins: int, between: int, outs: int) -> nn.Sequential:
    return sequence(Conv1=Unit(ins, between), Conv2=Unit(between, outs))


def _factory(
    kind: str, slices: int, reduction: int, slice_reduction: int, pooling: str, compat: bool
) -> Callable[[int, int, bool, bool], nn.Module | None]:
    """Return what makes the attention of one level: of (channels, level, is in the encoder, is the deepest)."""

    def make(channels: int, level: int, encoder: bool, deepest: bool) -> nn.Module | None:
        depth = max(slices // 2**level, 1)
        if kind in _IN_PARTS:
            combined = {"csa": ChannelThenSlice, "sca": SliceThenChannel, "pam": ProgressiveAttention}[kind]
            part: nn.Module = combined(channels, depth, reduction, slice_reduction, pooling, compat=compat)
            return part
        if kind in ("pe", "pe-sum"):
            return ProjectExcite(channels, reduction, original=kind == "pe-sum") if encoder else None
        if kind == "dual":
            return DualAttention(channels, channels, reduction) if deepest else None
        makers: dict[str, Callable[[], nn.Module]] = {
            "cse": lambda: ChannelAttention(channels, reduction, pooling),
            "sse": lambda: SpatialAttention(channels),
            "scse": lambda: SpaceChannelAttention(channels, reduction),
            "cbam": lambda: CBAM(channels, reduction),
            "slice": lambda: SliceAttention(channels, depth, slice_reduction, pooling, compat=compat),
            "split": lambda: SplitAttention(channels, channels),
        }
        return makers[kind]() if kind in makers else None

    return make
