"""What networks of several families share: flat and solid convolutions, a first look at the input, fresh weights."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from napari_fmseg.errors import GeometryMismatch

__all__ = ["check_image", "conv", "draw_weights", "resize_to", "stride", "tracing"]


def conv(ins: int, outs: int, flat: bool, *, halve: bool = False) -> nn.Conv3d:
    """Make a 3 x 3 x 3 convolution, or a 1 x 3 x 3 one where the level is `flat`; with `halve` its stride is 2."""
    kernel, padding = ((1, 3, 3), (0, 1, 1)) if flat else ((3, 3, 3), (1, 1, 1))
    return nn.Conv3d(ins, outs, kernel, stride(flat) if halve else 1, padding)


def stride(flat: bool) -> tuple[int, int, int]:
    """By how much a level shrinks (z, y, x); a flat one keeps its slices."""
    return (1, 2, 2) if flat else (2, 2, 2)


def resize_to(x: Tensor, like: Tensor) -> Tensor:
    """Resample (b, c, z, y, x) to the size of `like`, corner voxels on corner voxels."""
    if x.shape[2:] == like.shape[2:]:
        return x
    return F.interpolate(x, size=like.shape[2:], mode="trilinear", align_corners=True)


def tracing() -> bool:
    """Whether torch records the network: comparing sizes would warn then, and they were compared before."""
    return bool(torch.jit.is_tracing())  # type: ignore[attr-defined, no-untyped-call]


def check_image(net: nn.Module, x: Tensor, in_channels: int) -> None:
    """Refuse what is not a batch of images with the right channels.

    Raises
    ------
    GeometryMismatch
        Names what came and what was expected.
    """
    if not tracing() and (x.ndim != 5 or x.shape[1] != in_channels):
        raise GeometryMismatch(f"{type(net).__name__} takes (batch, {in_channels}, z, y, x), not {tuple(x.shape)}.")


def draw_weights(net: nn.Module, generator: torch.Generator | None = None, *, slope: float = 0.01) -> nn.Module:
    """Draw the weights anew: convolutions Kaiming normal for a leaky ReLU of `slope`, linear layers normal with 0.02.

    Biases become 0; norms and slopes stay as they are. Gives `net` back.
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
    return net
