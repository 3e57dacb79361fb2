"""What networks of several families share: checks of arguments and images, resizing, convolutions, fresh weights."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from typing import Any, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from napari_fmseg.core.errors import GeometryMismatch, UnknownModel

__all__ = [
    "ACTIVATIONS",
    "ConvNorm",
    "Kernel",
    "check_channels",
    "check_choice",
    "check_image",
    "conv",
    "default_init",
    "draw_as_torch",
    "join",
    "join_maps",
    "resize",
    "sequence",
    "stride",
    "tracing",
]

ACTIVATIONS = ("softmax", "sigmoid")
"""How logits are read: classes exclude each other (with the background), or structures may overlap (without it)."""

Kernel: TypeAlias = tuple[int, int, int]


def tracing() -> bool:
    """Return whether torch is recording a trace: comparing sizes would warn there.

    Whoever traces has run the network on the same sizes before.
    """
    return bool(torch.jit.is_tracing())  # type: ignore[attr-defined, no-untyped-call]


def resize(x: Tensor, size: Sequence[int], *, mode: str = "trilinear", align_corners: bool = True) -> Tensor:
    """Resize `x` (b, c, z, y, x) to `size` (z, y, x); `x` itself if it has that size.

    Parameters
    ----------
    x, size
        The maps and the size they shall have.
    mode
        ``"trilinear"`` or ``"nearest"``.
    align_corners
        Whether the outermost voxel centres lie on each other (trilinear only).
    """
    if tuple(x.shape[2:]) == tuple(size):
        return x
    return F.interpolate(x, size=tuple(size), mode=mode, align_corners=align_corners if mode == "trilinear" else None)


def join_maps(
    maps: Sequence[Tensor], size: Sequence[int], *, mode: str = "trilinear", align_corners: bool = True
) -> Tensor:
    """Join maps (b, c, ...) along their channels; those of another size than (z, y, x) are resized."""
    return torch.cat([resize(one, size, mode=mode, align_corners=align_corners) for one in maps], 1)


def join(layers: nn.Module, *maps: Tensor, like: Tensor, mode: str = "trilinear", align_corners: bool = True) -> Tensor:
    """Return what `layers` make of maps joined along their channels.

    Those of another size than `like` (b, c, z, y, x) are resized, see `resize`. The fast form of layers may take the
    maps as they are and join some planes at a time.
    """
    size = like.shape[2:]
    take = getattr(layers, "take_joined", None)
    if take is None:
        out: Tensor = layers(join_maps(maps, size, mode=mode, align_corners=align_corners))
    else:
        out = take(maps, size, mode, align_corners)
    return out


def check_channels(name: str, in_channels: int, n_classes: int) -> None:
    """Refuse, with `UnknownModel`, to build a network without a channel or a structure beside the background."""
    if in_channels < 1 or n_classes < 2:
        raise UnknownModel(
            f"{name} needs at least one channel and two classes (background and one structure), "
            f"not in_channels={in_channels}, n_classes={n_classes}."
        )


def check_choice(name: str, argument: str, value: object, known: Sequence[object]) -> None:
    """Refuse an argument that is none of those known, with `UnknownModel`, which lists them."""
    if value not in known:
        raise UnknownModel(f"{name} does not know {argument}={value!r}. Choose one of: {', '.join(map(str, known))}.")


def check_image(name: str, x: Tensor, in_channels: int, smallest: int = 1) -> None:
    """Refuse an image with other axes or channels, or an axis below `smallest` voxels, with `GeometryMismatch`."""
    if tracing():
        return
    if x.ndim != 5 or x.shape[1] != in_channels:
        raise GeometryMismatch(f"{name} takes (batch, {in_channels}, z, y, x), not {tuple(x.shape)}.")
    if min(x.shape[2:]) < smallest:
        raise GeometryMismatch(
            f"{name} needs at least {smallest} voxels along each axis, not {tuple(x.shape[2:])}. "
            "Resample or pad the volume."
        )


def default_init(net: nn.Module, generator: torch.Generator | None = None, *, slope: float = 0.01) -> nn.Module:
    """Draw the weights anew: convolutions Kaiming normal for a leaky ReLU of `slope`, linear layers normal with 0.02.

    Biases become 0; norms and slopes stay as they are. A part that must start otherwise has a method
    ``draw_own(generator)``, which has the last word. Gives `net` back.
    """
    for part in net.modules():
        if isinstance(part, nn.Conv3d | nn.ConvTranspose3d):
            # A transposed convolution lists its channels the other way round.
            nn.init.kaiming_normal_(
                part.weight, a=slope, mode="fan_in" if isinstance(part, nn.Conv3d) else "fan_out", generator=generator
            )
        elif isinstance(part, nn.Linear):
            nn.init.trunc_normal_(part.weight, std=0.02, generator=generator)
        else:
            continue
        if part.bias is not None:
            nn.init.zeros_(part.bias)
    for part in net.modules():
        own: Any = getattr(part, "draw_own", None)
        if own is not None:
            own(generator)
    return net


def draw_as_torch(net: nn.Module, generator: torch.Generator | None = None) -> None:
    """Draw the convolutions anew as torch draws them when it makes them: uniform, biases too."""
    for part in net.modules():
        if isinstance(part, nn.Conv3d | nn.ConvTranspose3d):
            nn.init.kaiming_uniform_(part.weight, a=5**0.5, generator=generator)
            if part.bias is not None:
                bound = part.weight[0].numel() ** -0.5
                nn.init.uniform_(part.bias, -bound, bound, generator=generator)


def conv(ins: int, outs: int, flat: bool, *, halve: bool = False) -> nn.Conv3d:
    """Make a 3 x 3 x 3 convolution, or a 1 x 3 x 3 one where the level is `flat`; with `halve` its stride is 2."""
    kernel, padding = ((1, 3, 3), (0, 1, 1)) if flat else ((3, 3, 3), (1, 1, 1))
    return nn.Conv3d(ins, outs, kernel, stride(flat) if halve else 1, padding)


def stride(flat: bool) -> Kernel:
    """Return by how much a level shrinks (z, y, x); a flat one keeps its slices."""
    return (1, 2, 2) if flat else (2, 2, 2)


class ConvNorm(nn.Module):
    """Convolution without bias, instance norm without parameters, dropout of whole channels, ReLU.

    Parameters
    ----------
    ins, outs
        Channels.
    kernel
        Along (z, y, x), odd; or one number for all.
    stride
        The same along all axes.
    padding
        Along (z, y, x); by default what keeps the size.
    dropout
        Share of channels that training sets to 0; None where the block ends with the norm (no dropout, no ReLU).
    """

    def __init__(
        self,
        ins: int,
        outs: int,
        kernel: Kernel | int = 3,
        *,
        stride: int = 1,
        padding: Kernel | None = None,
        dropout: float | None = None,
    ) -> None:
        super().__init__()
        kernel = (kernel,) * 3 if isinstance(kernel, int) else kernel
        pads = padding or (kernel[0] // 2, kernel[1] // 2, kernel[2] // 2)
        self.conv = nn.Conv3d(ins, outs, kernel, stride, pads, bias=False)
        self.drop = None if dropout is None else nn.Dropout3d(dropout)

    def forward(self, x: Tensor) -> Tensor:
        """Return (b, outs, z, y, x)."""
        x = F.instance_norm(self.conv(x))
        return x if self.drop is None else F.relu(self.drop(x), inplace=True)


def sequence(**parts: nn.Module) -> nn.Sequential:
    """Make a sequence of layers that the state dict knows by these names."""
    return nn.Sequential(OrderedDict(parts))


class InstanceNorm(nn.GroupNorm):
    """Instance norm with scale and shift, as a group per channel; it takes a single voxel, too."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        """Return (b, c, z, y, x)."""
        return torch.group_norm(x, self.num_groups, self.weight, self.bias)


class Unit(nn.Sequential):
    """Convolution with bias, a learned slope per channel, then instance norm with scale and shift: in this order.

    Parameters
    ----------
    ins, outs
        Channels.
    kernel, stride
        The same along all axes; the padding keeps the size of a stride of 1.
    """

    def __init__(self, ins: int, outs: int, kernel: int = 3, *, stride: int = 1) -> None:
        super().__init__()
        self.conv = nn.Conv3d(ins, outs, kernel, stride, (kernel - 1) // 2)
        self.pReLU = nn.PReLU(outs)
        self.instancenorm = nn.InstanceNorm3d(outs, affine=True)
