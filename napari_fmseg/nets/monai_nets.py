"""MONAI's networks by name, with our arguments: imported only when one of them is built.

They are MONAI's own modules with MONAI's own state dicts, so that weights trained with MONAI fit. All give LOGITS, one
channel per class. Further arguments go to MONAI as they are.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import Any

from torch import Tensor, nn

from napari_fmseg.core.errors import GeometryMismatch, MissingExtra, UnknownModel
from napari_fmseg.nets.layers.blocks import check_channels, check_image, tracing

__all__ = ["attention_unet", "dynunet", "from_monai", "segresnet", "swin_unetr", "unet", "unetr"]

FIVE = (16, 32, 64, 128, 256)


def unet(in_channels: int = 1, n_classes: int = 2, channels: Sequence[int] = FIVE, **kwargs: Any) -> nn.Module:
    """Make MONAI's U-Net with strided convolutions and two residual units per level.

    Parameters
    ----------
    in_channels, n_classes
        Channels of the image; classes with background.
    channels
        Of the levels, finest first.
    **kwargs
        What MONAI's UNet takes.

    Raises
    ------
    MissingExtra
        If MONAI is not installed.
    UnknownModel
        If MONAI's network does not take these arguments.
    """
    halved = {"strides": (2,) * (len(channels) - 1), "num_res_units": 2}
    step = 2 ** (len(channels) - 1)
    own = {"spatial_dims": 3, "channels": tuple(channels), **halved}
    return _make("UNet", in_channels, n_classes, step, own | kwargs)


def attention_unet(
    in_channels: int = 1, n_classes: int = 2, channels: Sequence[int] = FIVE, **kwargs: Any
) -> nn.Module:
    """Make MONAI's U-Net with attention gates. Arguments and errors as in `unet`."""
    own = {"spatial_dims": 3, "channels": tuple(channels), "strides": (2,) * (len(channels) - 1)}
    return _make("AttentionUnet", in_channels, n_classes, 2 ** (len(channels) - 1), own | kwargs)


def dynunet(in_channels: int = 1, n_classes: int = 2, channels: Sequence[int] = FIVE, **kwargs: Any) -> nn.Module:
    """Make MONAI's DynUNet, a network in the manner of nnU-Net. Arguments and errors as in `unet`."""
    levels = len(channels)
    own = {"spatial_dims": 3, "kernel_size": (3,) * levels, "filters": tuple(channels)}
    own |= {"strides": (1, *(2,) * (levels - 1)), "upsample_kernel_size": (2,) * (levels - 1)}
    return _make("DynUNet", in_channels, n_classes, 2 ** (levels - 1), own | kwargs)


def segresnet(in_channels: int = 1, n_classes: int = 2, width: int = 16, **kwargs: Any) -> nn.Module:
    """Make MONAI's SegResNet; `width` is the number of channels at full size. Errors as in `unet`."""
    step = 2 ** (len(kwargs.get("blocks_down", (1, 2, 2, 4))) - 1)
    return _make("SegResNet", in_channels, n_classes, step, {"spatial_dims": 3, "init_filters": width} | kwargs)


def unetr(
    in_channels: int = 1, n_classes: int = 2, size: Sequence[int] = (96, 96, 96), width: int = 16, **kwargs: Any
) -> nn.Module:
    """Make MONAI's UNETR for images of one `size` (z, y, x), multiples of 16. Errors as in `unet`."""
    z, y, x = (int(n) for n in size)
    own = {"img_size": (z, y, x), "feature_size": width}
    return _make("UNETR", in_channels, n_classes, 16, own | kwargs, fixed=(z, y, x), needs=("einops",))


def swin_unetr(in_channels: int = 1, n_classes: int = 2, width: int = 24, **kwargs: Any) -> nn.Module:
    """Make MONAI's Swin UNETR; `width` is a multiple of 12. Errors as in `unet`."""
    return _make("SwinUNETR", in_channels, n_classes, 32, {"feature_size": width} | kwargs, needs=("einops",))


def _make(
    name: str,
    in_channels: int,
    n_classes: int,
    step: int,
    kwargs: dict[str, Any],
    fixed: tuple[int, int, int] | None = None,
    needs: Sequence[str] = (),
) -> nn.Module:
    """Make the network `name` of MONAI, which then knows our attributes and refuses illegal images."""
    check_channels(name, in_channels, n_classes)
    nets = from_monai(name, needs=needs)
    try:
        net: nn.Module = getattr(nets, name)(in_channels=in_channels, out_channels=n_classes, **kwargs)
    except (TypeError, ValueError, KeyError, AssertionError) as error:
        given = ", ".join(f"{key}={value!r}" for key, value in kwargs.items())
        raise UnknownModel(f"MONAI's {name} cannot be built with {given}: {error}.") from error
    own: Any = net
    own.in_channels, own.n_classes, own.activation = in_channels, n_classes, "softmax"
    rule = _Needs(name, in_channels, step, fixed)
    own.check = rule.check
    net.register_forward_pre_hook(rule)
    return net


def from_monai(name: str, module: str = "monai.networks.nets", needs: Sequence[str] = ()) -> Any:
    """Import a module of MONAI's for the network `name`, and what it needs; `MissingExtra` if one is not installed."""
    try:
        for package in needs:
            import_module(package)
        return import_module(module)
    except ImportError as error:
        raise MissingExtra(
            f"The network {name} is MONAI's or made of its parts, and {error.name or 'monai'} is missing here: "
            "pip install 'napari-fmseg[classic]'. The other networks work without it."
        ) from error


@dataclass(frozen=True)
class _Needs:
    """What an image must be; a class, so that networks can be copied and sent to other processes."""

    name: str
    in_channels: int
    step: int
    fixed: tuple[int, int, int] | None

    def __call__(self, _: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        self.check(inputs[0])

    def check(self, x: Tensor) -> None:
        """Refuse an image that the network cannot take, with `GeometryMismatch`."""
        size = tuple(x.shape[2:])
        check_image(self.name, x, self.in_channels, self.step)
        if tracing():
            return
        if self.fixed is not None and size != self.fixed:
            raise GeometryMismatch(
                f"{self.name} was built for volumes of {self.fixed} voxels, not {size}. Cut or resample the volume, or "
                "build the network for that size."
            )
        if any(n % self.step for n in size) or max(size) < 2 * self.step:
            raise GeometryMismatch(
                f"{self.name} needs multiples of {self.step} voxels, and {2 * self.step} or more along one axis, "
                f"not {size}. Resample or pad the volume."
            )
