"""A MeshNet as brainchop publishes it, a Keras model in TensorFlow.js's files, to weights and a card of ours.

model.json names layers and tensors, model.bin holds the tensors as little-endian float32, one after the other. Nothing
in them is executed. Kernels are turned here, once, so that the network takes volumes as every other one here does.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from napari_fmseg.core.errors import UnknownModel, WeightsMismatch
from napari_fmseg.core.structuring import read_table
from napari_fmseg.models.card import ModelCard, NetSpec
from napari_fmseg.models.weights import save_model

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["convert_meshnet", "read_tfjs"]

_TO = {"S": (0, False), "I": (0, True), "P": (1, False), "A": (1, True), "L": (2, False), "R": (2, True)}
"""Axis of ours (z to superior, y to posterior, x to left) that runs along a direction, and whether the other way."""


def convert_meshnet(folder: Path, card: ModelCard, axes: str) -> ModelCard:
    """Convert model.json and model.bin of a folder to a model of ours in the folder ``converted`` below it.

    Parameters
    ----------
    folder
        With both files.
    card
        What else is known of the model; its network is filled in here.
    axes
        To where the axes of the kernels run, in their order, such as ``"LIA"``.

    Raises
    ------
    WeightsMismatch
        If the files are no MeshNet, or do not belong together.
    """
    import torch

    from napari_fmseg.nets import build

    try:
        layers, tensors = read_tfjs(folder)
        convolutions = _convolutions(layers)
    except (OSError, ValueError, KeyError, TypeError, IndexError, AttributeError) as error:
        raise WeightsMismatch(
            f"model.json and model.bin are no MeshNet that can be read: {error!r}. Expected 3-D convolutions with ELU "
            "between them and a last one of 1 x 1 x 1, as TensorFlow.js stores them."
        ) from error
    *inner, last = convolutions
    first, head = tensors[f"{inner[0]['name']}/kernel"], tensors[f"{last['name']}/kernel"]
    kwargs = {
        "in_channels": int(first.shape[3]), "n_classes": int(head.shape[4]), "width": int(first.shape[4]),
        "dilations": [int(one["dilation_rate"][0]) for one in inner],
    }  # fmt: skip
    if kwargs["n_classes"] != card.n_classes or kwargs["in_channels"] != len(card.channels):
        raise WeightsMismatch(
            f"The network of {card.name} gives {kwargs['n_classes']} classes for {kwargs['in_channels']} channel(s); "
            f"its entry has {card.n_classes} and {len(card.channels)}."
        )
    net = build("meshnet", **kwargs)
    state: dict[str, Tensor] = {}
    for number, one in enumerate(convolutions):
        name = f"layers.{number}" if one is not last else "head"
        state[f"{name}.weight"] = torch.from_numpy(turn_kernel(tensors[f"{one['name']}/kernel"], axes))
        state[f"{name}.bias"] = torch.from_numpy(tensors[f"{one['name']}/bias"].copy())
    expected, found = ({key: tuple(v.shape) for key, v in d.items()} for d in (net.state_dict(), state))
    if expected != found:
        raise WeightsMismatch(f"The layers of {card.name} are no MeshNet's: {found} instead of {expected}.")
    net.load_state_dict(state)
    return save_model(
        dataclasses.replace(card, nets={"net": NetSpec("meshnet", kwargs)}), {"net": net}, folder / "converted"
    )


def turn_kernel(kernel: np.ndarray, axes: str) -> np.ndarray:
    """Turn a kernel (a, b, c, in, out) whose axes run as `axes` says into (out, in, z, y, x)."""
    if sorted(_TO[letter][0] for letter in axes if letter in _TO) != [0, 1, 2] or len(axes) != 3:
        raise UnknownModel(f"axes are three directions such as LIA, one of each axis of the body, not {axes!r}.")
    order = [next(i for i, letter in enumerate(axes) if _TO[letter][0] == axis) for axis in range(3)]
    flips = tuple(axis for axis in range(3) if _TO[axes[order[axis]]][1])
    return np.ascontiguousarray(np.flip(kernel.transpose(*order, 3, 4), flips).transpose(4, 3, 0, 1, 2))


def read_tfjs(folder: Path) -> tuple[Sequence[Mapping[str, Any]], dict[str, np.ndarray]]:
    """Read the layers, in their order, and the tensors by name of a Keras model that TensorFlow.js stored."""
    table = read_table(folder / "model.json")
    layers = table["modelTopology"]["model_config"]["config"]["layers"]
    (group,) = table["weightsManifest"]
    content = b"".join((folder / Path(name).name).read_bytes() for name in group["paths"])
    tensors, at = {}, 0
    for entry in group["weights"]:
        if entry["dtype"] != "float32" or "quantization" in entry:
            raise ValueError(f"{entry['name']} is stored as {entry['dtype']}, not as plain float32")
        n = math.prod(entry["shape"])
        tensors[entry["name"]] = np.frombuffer(content, "<f4", n, at).reshape(entry["shape"]).astype(np.float32)
        at += 4 * n
    if at != len(content):
        raise ValueError(f"model.bin has {len(content):,} bytes, and its tensors {at:,}")
    return layers, tensors


def _convolutions(layers: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Return the settings of the convolutions; `ValueError` where a layer is none that a MeshNet has."""
    kinds = [layer["class_name"] for layer in layers]
    found = [layer["config"] for layer in layers if layer["class_name"] == "Conv3D"]
    if kinds != ["InputLayer", *["Conv3D", "Activation"] * (len(found) - 1), "Conv3D"] or len(found) < 2:
        raise ValueError(f"layers are {kinds}")
    for layer in layers:
        settings = layer["config"]
        if layer["class_name"] == "Activation" and settings["activation"] != "elu":
            raise ValueError(f"{settings['name']} is {settings['activation']}, not elu")
    for number, settings in enumerate(found, 1):
        size = [1, 1, 1] if number == len(found) else [3, 3, 3]
        right = {"kernel_size": size, "strides": [1, 1, 1], "padding": "same", "activation": "linear",
                 "use_bias": True, "dilation_rate": [settings["dilation_rate"][0]] * 3}  # fmt: skip
        wrong = [name for name, value in right.items() if settings[name] != value]
        if wrong:
            raise ValueError(f"{settings['name']} has {wrong[0]} {settings[wrong[0]]}, not {right[wrong[0]]}")
    return found
