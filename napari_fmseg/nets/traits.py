"""What a network states about itself beside `forward`, and what holds where it states nothing.

Every attribute is optional:

- ``activation``: ``"softmax"`` (the default) or ``"sigmoid"`` for logits, ``"none"`` for probabilities.
- ``init_weights(generator)``: draw the weights anew; else `default_init`.
- ``init_on_sample(*inputs)``: scale new weights on the inputs of one sample, before training.
- ``useful_untrained``: whether the output makes sense before the first step of training, so that training must beat it.
- ``trains_channels_last``: False where training on a CPU is slower in that memory format.
- ``trains_in_bfloat16``: True where training in bfloat16 on a CPU that computes in it was shown to give the same Dice.
- ``map_channels``: channels of each input after the image.
- ``cpu_form``: ``"module:Class"`` of a faster way to compute the same on a CPU, made of (network, dtype); "" for none.
- ``low_memory_form``: ``"module:Class"`` of a way to compute the same in a fraction of the memory, made of (network,
  dtype, device).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from napari_fmseg.nets.layers.blocks import default_init

__all__ = ["activation_of", "class_probabilities", "init_weights", "probabilities"]


def activation_of(net: nn.Module) -> str:
    """Return ``"softmax"``, ``"sigmoid"``, or ``"none"`` where the output is probabilities already."""
    own: Any = getattr(net, "module", net)  # wrapped for training
    return str(getattr(own, "activation", "softmax"))


def probabilities(net: nn.Module, out: Tensor) -> Tensor:
    """Return the probabilities (b, classes, z, y, x) that an output of a network stands for, float32 of logits.

    Without the background where structures may overlap (a sigmoid).
    """
    activation = activation_of(net)
    if activation == "sigmoid":
        return out.float().sigmoid()
    return out if activation == "none" else out.float().softmax(1)


def class_probabilities(net: nn.Module, out: Tensor) -> Tensor:
    """Return the probabilities (b, classes, z, y, x) with the background, also where structures may overlap."""
    found = probabilities(net, out)
    if activation_of(net) != "sigmoid":
        return found
    return torch.cat([1 - found.amax(1, keepdim=True), found], 1)


def init_weights(net: nn.Module, generator: torch.Generator) -> None:
    """Draw the weights anew, as the network wants them."""
    own: Any = getattr(net, "init_weights", None)
    if own is None:
        default_init(net, generator)
    else:
        own(generator)
