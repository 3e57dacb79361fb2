"""Networks by name: tensors in, tensors out; they know nothing of volumes, files or stages.

Every network takes ``in_channels`` and ``n_classes``, which counts the background. Its attribute ``activation`` states
how the output is read: ``"softmax"``, logits, one channel per class; ``"sigmoid"``, logits, one channel per structure
(``n_classes - 1``), which may overlap; ``"none"``, probabilities. See `napari_fmseg.nets.traits` for more.
"""

from __future__ import annotations

import inspect
import reprlib
from importlib import import_module
from typing import TYPE_CHECKING, Any

from napari_fmseg.core.errors import UnknownModel

if TYPE_CHECKING:
    from torch import nn

__all__ = ["NETWORKS", "build", "load"]

NETWORKS: dict[str, str] = {
    "fastunet": "napari_fmseg.nets.fastunet:FastUNet",
    "snet": "napari_fmseg.nets.fmsf:SNet",
    "attnnet": "napari_fmseg.nets.fmsf:AttnNet",
    "edgenet": "napari_fmseg.nets.fmsf:EdgeNet",
    "fmunet": "napari_fmseg.nets.fmunet:FMUNet",
    "pctnet": "napari_fmseg.nets.pctnet:PCTNet",
    "baseunet": "napari_fmseg.nets.efficientseg:BaseUNet",
    "contextunet": "napari_fmseg.nets.efficientseg:ContextUNet",
    "efficientsegnet": "napari_fmseg.nets.efficientseg:EfficientSegNet",
    "uxnet3d": "napari_fmseg.nets.ma3dseg:UXNet",
    "ma3dseg": "napari_fmseg.nets.ma3dseg:MA3DSeg",
    "unet3d": "napari_fmseg.nets.unet3d:UNet3D",
    "vnet": "napari_fmseg.nets.vnet:VNet",
    "deepmedic": "napari_fmseg.nets.comparison.deepmedic:DeepMedic",
    "voxresnet": "napari_fmseg.nets.comparison.voxresnet:VoxResNet",
    "anatomynet": "napari_fmseg.nets.comparison.anatomynet:AnatomyNet",
    "hdenseunet": "napari_fmseg.nets.comparison.hdenseunet:HDenseUNet",
    "plainconvunet": "napari_fmseg.nets.nnunet:PlainConvUNet",
    "residualencoderunet": "napari_fmseg.nets.nnunet:ResidualEncoderUNet",
    "meshnet": "napari_fmseg.nets.meshnet:MeshNet",
    "unet2d": "napari_fmseg.nets.slicewise:UNet2D",
    "fcn": "napari_fmseg.nets.slicewise:FCN",
    "deeplabv3plus": "napari_fmseg.nets.slicewise:DeepLab",
    "monai-unet": "napari_fmseg.nets.monai_nets:unet",
    "monai-attentionunet": "napari_fmseg.nets.monai_nets:attention_unet",
    "monai-dynunet": "napari_fmseg.nets.monai_nets:dynunet",
    "monai-segresnet": "napari_fmseg.nets.monai_nets:segresnet",
    "monai-unetr": "napari_fmseg.nets.monai_nets:unetr",
    "monai-swinunetr": "napari_fmseg.nets.monai_nets:swin_unetr",
}


def build(name: str, **kwargs: Any) -> nn.Module:
    """Make the network called `name`, with torch's default random weights.

    Parameters
    ----------
    name
        A key of `NETWORKS`.
    **kwargs
        What its constructor takes, for example ``in_channels=1, n_classes=3``.

    Raises
    ------
    UnknownModel
        If no network has that name, or if it does not take one of the arguments or a value of one.
    """
    if name not in NETWORKS:
        raise UnknownModel(f"There is no network {name!r}. Known: {', '.join(sorted(NETWORKS))}.")
    network = load(NETWORKS[name])
    try:
        inspect.signature(network).bind(**kwargs)
    except TypeError as error:
        known = ", ".join(str(p) for p in inspect.signature(network).parameters.values())
        raise UnknownModel(f"The network {name!r} cannot be built: {error}. It takes ({known}).") from error
    try:
        net: nn.Module = network(**kwargs)
    except _SENSELESS as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        if "alloc" in reason:  # not enough memory
            raise
        given = ", ".join(f"{key}={reprlib.repr(value)}" for key, value in kwargs.items())
        raise UnknownModel(f"The network {name!r} cannot be built with {given}: {reason[:200]}") from error
    return net


def load(path: str) -> Any:
    """Import what ``"module:name"`` stands for."""
    module, _, name = path.partition(":")
    return getattr(import_module(module), name)


_SENSELESS = (
    *(TypeError, ValueError, RuntimeError, AttributeError, AssertionError),
    *(ArithmeticError, LookupError, RecursionError),
)
"""What constructors, some of them of other packages, raise for arguments that make no sense."""
