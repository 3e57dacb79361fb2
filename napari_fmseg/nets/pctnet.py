"""PCT-Net: convolution and windowed attention side by side, pretrained by Volume Fusion.

Written after the public description of MIS-FM (github.com/openmedlab/MIS-FM); state dicts carry the published names.
It gives LOGITS. The published network takes one size only, numbers its relative positions wrongly and lets the zeros
that fill up a window take part in attention; its weights need the last two, which `legacy` turns on.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

from torch import Tensor, nn

from napari_fmseg.core.errors import UnknownModel
from napari_fmseg.nets.layers.blocks import check_channels, check_image, conv, default_init, join, sequence, stride
from napari_fmseg.nets.layers.swin import WindowedTransformer

__all__ = ["PCTNet"]

_FLAT = ((False, False), (True, False), (True, True))
"""By number of flat levels: whether the first and the second level act within slices only."""

Attention = Callable[[], WindowedTransformer]
"""Makes the transformer of a level."""


class PCTNet(nn.Module):
    """Pyramid of five levels, the three deepest with a convolutional and a transformer branch; takes any size.

    Parameters
    ----------
    in_channels, n_classes
        Channels of the image; classes with background, which is class 0.
    input_size
        The (z, y, x) that published weights were made for: where its token grid is no longer than a window, the
        window is as long as the grid's shortest axis, and is not shifted. Empty for windows as given.
    widths
        Channels of the five levels, finest first. Published weights: 24, 48, 128, 256, 512.
    dropout
        Share of features dropped per level while training.
    depths, heads, windows
        Transformer blocks, their heads and the tokens along a window, for the levels 2, 3 and 4.
    flat_levels
        How many of the two finest levels act within slices only and keep their number: for thick slices.
    legacy
        Compute what the published weights were trained with. Leave it off for new training.
    """

    activation = "softmax"

    def __init__(
        self,
        in_channels: int = 1,
        n_classes: int = 2,
        input_size: Sequence[int] = (),
        widths: Sequence[int] = (24, 48, 128, 256, 512),
        dropout: Sequence[float] = (0, 0, 0.2, 0.2, 0.2),
        depths: Sequence[int] = (2, 2, 2),
        heads: Sequence[int] = (4, 8, 16),
        windows: Sequence[int] = (6, 6, 6),
        flat_levels: int = 0,
        legacy: bool = False,
    ) -> None:
        super().__init__()
        lists = (widths, dropout, depths, heads, windows, input_size or (1, 1, 1))
        if tuple(map(len, lists)) != (5, 5, 3, 3, 3, 3) or flat_levels not in (0, 1, 2):
            raise UnknownModel(
                "PCTNet takes 5 widths and dropouts, 3 depths, heads and windows, an input_size of 3 or none and "
                f"0, 1 or 2 flat levels; not {', '.join(str(tuple(v)) for v in lists)} and {flat_levels}."
            )
        check_channels("PCTNet", in_channels, n_classes)
        if any(w % h for w, h in zip(widths[2:], heads, strict=True)):
            raise UnknownModel(
                f"PCTNet needs widths that its heads divide, not {tuple(widths[2:])} for {tuple(heads)}."
            )
        self.in_channels, self.n_classes = in_channels, n_classes
        self.legacy, self.mode = legacy, flat_levels
        self.embeddings = nn.ModuleList(_Embedding(in_channels, widths, dropout, flat) for flat in _FLAT)
        grid = _token_grid(input_size, flat_levels)
        attention = [
            _attention(width, depth, n, window, [-(-m // 2**level) for m in grid], p, legacy)
            for level, (width, depth, n, window, p) in enumerate(
                zip(widths[2:], depths, heads, windows, dropout[2:], strict=True)
            )
        ]
        self.pyramid_ct = _Pyramid(widths, dropout, n_classes, attention)
        self.pred_heads = nn.ModuleList(_Head(widths, dropout, n_classes, flat) for flat in _FLAT)
        default_init(self, slope=0.25)
        self._still_what_is_unused()

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, ...]:
        """Return logits (b, n_classes, z, y, x) float32 of images of any size; in training `training_heads`."""
        if self.training:
            return self.training_heads(x)
        fine, _, _, _ = self._features(x)
        out: Tensor = self.pred_heads[self.mode].out_conv0(fine).float()  # type: ignore[operator]
        return out

    def training_heads(self, x: Tensor) -> tuple[Tensor, ...]:
        """Return what training compares: logits at full size and at the three levels below."""
        head, pyramid = self.pred_heads[self.mode], self.pyramid_ct
        layers = (head.out_conv0, head.out_conv1, pyramid.out_conv2, pyramid.out_conv3)
        return tuple(layer(f).float() for layer, f in zip(layers, self._features(x), strict=True))  # type: ignore[operator]

    def check(self, x: Tensor) -> None:
        """Refuse an image with another number of channels, with `GeometryMismatch`."""
        check_image("PCTNet", x, self.in_channels)

    def _features(self, x: Tensor) -> tuple[Tensor, ...]:
        """Return the decoder's maps, finest first."""
        self.check(x)
        x0, x1, x2 = self.embeddings[self.mode](x)
        d2, d3 = self.pyramid_ct(x2)
        d0, d1 = self.pred_heads[self.mode](x0, x1, d2)
        return d0, d1, d2, d3

    def _still_what_is_unused(self) -> None:
        """Freeze the parts that only the published files have; several GPUs would wait for it."""
        for parts in (self.embeddings, self.pred_heads):
            for mode, part in enumerate(parts):
                part.requires_grad_(mode == self.mode)
        for name, parameter in self.named_parameters():
            if ".norm_layer." in name:
                parameter.requires_grad_(False)


class _Embedding(nn.Module):
    """The two finest levels, down to the first one with attention."""

    def __init__(self, ins: int, widths: Sequence[int], dropout: Sequence[float], flat: tuple[bool, bool]) -> None:
        super().__init__()
        self.proj = conv(ins, widths[0], flat[0])
        self.conv0 = _conv_block(widths[0], flat[0], dropout[0])
        self.conv1 = _conv_block(widths[1], flat[1], dropout[1])
        self.down1 = _down(widths[0], widths[1], flat[0], flat[1])
        self.down2 = _down(widths[1], widths[2], flat[1], False)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        x0 = self.conv0(self.proj(x))  # (b, widths[0], z, y, x)
        x1 = self.conv1(self.down1(x0))
        return x0, x1, self.down2(x1)


class _Pyramid(nn.Module):
    convtrans_e2: nn.Module
    convtrans_d2: nn.Module
    convtrans_e3: nn.Module
    convtrans_d3: nn.Module
    convtrans_e4: nn.Module

    def __init__(
        self, widths: Sequence[int], dropout: Sequence[float], n_classes: int, attention: Sequence[Attention]
    ) -> None:
        super().__init__()
        c2, c3, c4 = widths[2:]
        self.down3, self.down4 = _down(c2, c3, False, False), _down(c3, c4, False, False)
        self.up3, self.up4 = _UpCat(c2, c3, False), _UpCat(c3, c4, False)
        for name in ("e2", "d2", "e3", "d3", "e4"):
            level = int(name[1])
            setattr(self, f"convtrans_{name}", _ConvTrans(widths[level], dropout[level], attention[level - 2]()))
        self.out_conv2, self.out_conv3 = _logits(c2, n_classes), _logits(c3, n_classes)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x2 = self.convtrans_e2(x)
        x3 = self.convtrans_e3(self.down3(x2))
        x4 = self.convtrans_e4(self.down4(x3))
        d3 = self.convtrans_d3(self.up4(x3, x4))
        return self.convtrans_d2(self.up3(x2, d3)), d3


class _Head(nn.Module):
    """The two finest levels of the way up."""

    def __init__(
        self, widths: Sequence[int], dropout: Sequence[float], n_classes: int, flat: tuple[bool, bool]
    ) -> None:
        super().__init__()
        self.up1, self.up2 = _UpCat(widths[0], widths[1], flat[0]), _UpCat(widths[1], widths[2], flat[1])
        self.conv0 = _conv_block(widths[0], flat[0], dropout[0])
        self.conv1 = _conv_block(widths[1], flat[1], dropout[1])
        self.out_conv0, self.out_conv1 = _logits(widths[0], n_classes), _logits(widths[1], n_classes)

    def forward(self, x0: Tensor, x1: Tensor, d2: Tensor) -> tuple[Tensor, Tensor]:
        d1 = self.conv1(self.up2(x1, d2))
        return self.conv0(self.up1(x0, d1)), d1


class _ConvTrans(nn.Module):
    """Convolution and transformer side by side; their sum is passed on."""

    def __init__(self, width: int, dropout: float, trans: WindowedTransformer) -> None:
        super().__init__()
        self.conv = _conv_block(width, False, dropout)
        self.trans = trans
        self.norm_layer = nn.LayerNorm(width)  # never used, but the published files have it

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.conv(x) + self.trans(x)
        return out


def _conv_block(width: int, flat: bool, dropout: float) -> nn.Module:
    first, second = conv(width, width, flat), conv(width, width, flat)
    return sequence(conv_conv=nn.Sequential(*_active(width), first, *_active(width), nn.Dropout(dropout), second))


def _down(ins: int, outs: int, flat: bool, then_flat: bool) -> nn.Module:
    """Make what halves a map; a size that is odd is rounded up."""
    pool = nn.MaxPool3d(stride(flat), ceil_mode=True)
    return sequence(pool=pool, conv=nn.Sequential(*_active(ins), conv(ins, outs, then_flat)))


class _UpCat(nn.Module):
    """Brings the deeper map to the skip's size and merges the two."""

    def __init__(self, width: int, deeper: int, flat: bool) -> None:
        super().__init__()
        by = stride(flat)
        self.up = nn.Sequential(*_active(deeper), nn.ConvTranspose3d(deeper, width, by, by))
        self.conv = nn.Sequential(*_active(2 * width), conv(2 * width, width, flat))

    def forward(self, skip: Tensor, deeper: Tensor) -> Tensor:
        z, y, x = skip.shape[2:]
        return join(self.conv, skip, self.up(deeper)[:, :, :z, :y, :x], like=skip)


def _logits(width: int, n_classes: int) -> nn.Module:
    return sequence(conv=nn.Sequential(*_active(width), nn.Conv3d(width, n_classes, 1)))


def _active(width: int) -> tuple[nn.Module, nn.Module]:
    return nn.BatchNorm3d(width), nn.PReLU()


def _attention(
    width: int, depth: int, heads: int, window: int, grid: Sequence[int], dropout: float, legacy: bool
) -> Attention:
    fits = not grid or min(grid) > window
    size = window if fits else min(grid)
    return partial(WindowedTransformer, width, depth, heads, size, shifted=fits, dropout=dropout, legacy=legacy)


def _token_grid(input_size: Sequence[int], flat_levels: int) -> tuple[int, ...]:
    """Return tokens along (z, y, x) at level 2; empty if the size is open."""
    if not input_size:
        return ()
    z, y, x = input_size
    return (-(-z // (4, 2, 1)[flat_levels]), -(-y // 4), -(-x // 4))
