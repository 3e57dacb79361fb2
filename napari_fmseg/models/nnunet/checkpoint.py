"""The networks in nnU-Net's checkpoints: every tensor once, and the arguments that build the network, read off them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from napari_fmseg.core.errors import UnknownModel, WeightsMismatch
from napari_fmseg.models.convert import read_checkpoint
from napari_fmseg.models.nnunet.plans import Configuration

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["Checkpoint", "network_of", "read_nnunet_checkpoint"]


@dataclass(frozen=True)
class Checkpoint:
    """What one fold's checkpoint holds.

    Attributes
    ----------
    trainer, configuration
        Their names.
    mirror
        Axes along which it was trained mirrored.
    state
        The tensors by nnU-Net's names, each once.
    """

    trainer: str
    configuration: str
    mirror: tuple[int, ...]
    state: Mapping[str, Tensor]


def read_nnunet_checkpoint(path: Path) -> Checkpoint:
    """Read a checkpoint; nothing in it is run.

    Raises
    ------
    WeightsMismatch
        If it is damaged, names anything but tensors and plain values, or is none of nnU-Net v2's.
    """
    content = read_checkpoint(path)
    try:
        weights, started = content["network_weights"], content["init_args"]
        state = {_name(key): value.float() if value.is_floating_point() else value for key, value in weights.items()}
        mirror = tuple(int(axis) for axis in content.get("inference_allowed_mirroring_axes") or ())
        trainer, configuration = str(content["trainer_name"]), str(started["configuration"])
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise WeightsMismatch(
            f"{path.parent.name}/{path.name} is no checkpoint of nnU-Net v2: it lacks {error}. Models of nnU-Net v1 "
            "cannot be imported."
        ) from error
    kept = {k: v for k, v in state.items() if not k.startswith("decoder.encoder.") and ".all_modules." not in k}
    broken = [key for key, value in kept.items() if value.is_floating_point() and not value.isfinite().all()]
    if broken:
        raise WeightsMismatch(f"{path.parent.name}/{path.name} holds values that are not numbers, in {broken[:3]}.")
    return Checkpoint(trainer, configuration, mirror, kept)


def _name(key: object) -> str:
    """Return the name of a tensor without what DDP and torch.compile put in front."""
    return re.sub(r"^(?:(?:module|_orig_mod)\.)+", "", str(key))


def network_of(checkpoint: Checkpoint, plan: Configuration) -> tuple[str, dict[str, Any], dict[str, Tensor]]:
    """Return the network's name, the arguments that build it, and its state dict; the tensors outrank the plans.

    Raises
    ------
    UnknownModel
        If the tensors are those of another network.
    """
    import torch

    state = dict(checkpoint.state)
    try:
        name, kwargs = _arguments(state, plan)
    except (KeyError, ValueError, IndexError) as error:
        raise UnknownModel(
            f"The trainer {checkpoint.trainer!r} made a network that is neither a PlainConvUNet nor a "
            f"ResidualEncoderUNet ({error} is missing or differs). Run the model with the program that made it."
        ) from error
    if kwargs["slicewise"]:
        state = {k: v.unsqueeze(2) if v.ndim == 4 else v for k, v in state.items()}
    if kwargs["norm"] == "batch":
        for key in [k for k in state if k.endswith(".running_mean")]:
            state.setdefault(key.replace("running_mean", "num_batches_tracked"), torch.zeros((), dtype=torch.int64))
    return name, kwargs, state


def _arguments(state: Mapping[str, Tensor], plan: Configuration) -> tuple[str, dict[str, Any]]:
    residual = "encoder.stem.convs.0.conv.weight" in state
    stages = _count(state, r"encoder\.stages\.(\d+)\.")
    first = "encoder.stages.{}.blocks.{}.conv1" if residual else "encoder.stages.{}.0.convs.{}"
    unit = r"blocks\.(\d+)\.conv1" if residual else r"0\.convs\.(\d+)"
    convs = [_count(state, rf"encoder\.stages\.{s}\.{unit}\.conv\.weight") for s in range(stages)]
    narrow = "encoder.stages.0.blocks.0.conv3.conv.weight" in state
    wide, main = ("blocks.0.conv3" if narrow else "blocks.0.conv2"), ("blocks.0.conv2" if narrow else "blocks.0.conv1")
    kernels, features = [], []
    for s in range(stages):
        one = state[f"encoder.stages.{s}.{main}.conv.weight" if residual else f"{first.format(s, 0)}.conv.weight"]
        kernels.append(_three(one.shape[2:]))
        last = state[f"encoder.stages.{s}.{wide}.conv.weight"] if residual else one
        features.append(int(last.shape[0]))
    ups = [state[f"decoder.transpconvs.{j}.weight"].shape[2:] for j in range(stages - 1)]
    head = state[f"decoder.seg_layers.{stages - 2}.weight"]
    if len(head) != plan.heads:
        raise UnknownModel(f"The network has {len(head)} outputs, but dataset.json describes {plan.heads} classes.")
    start = "encoder.stem.convs.0" if residual else first.format(0, 0)
    return ("residualencoderunet" if residual else "plainconvunet"), {
        "in_channels": int(state[f"{start}.conv.weight"].shape[1]),
        "n_classes": plan.heads + (plan.activation == "sigmoid"),
        "features": features,
        "kernels": kernels,
        "strides": [[1, 1, 1], *(_three(up) for up in reversed(ups))],
        "convs": convs,
        "decoder_convs": [_count(state, rf"decoder\.stages\.{j}\.convs\.(\d+)\.") for j in range(stages - 1)],
        "stem": int(state[f"{start}.conv.weight"].shape[0]) if residual else 0,
        "bottleneck": [len(state[f"{first.format(s, 0)}.conv.weight"]) for s in range(stages)] if narrow else [],
        "norm": "batch" if f"{start}.norm.running_mean" in state else "instance",
        "bias": f"{start}.conv.bias" in state,
        "slope": plan.slope,
        "nonlin_first": plan.nonlin_first,
        "slicewise": head.ndim == 4,
        "supervised": True,
        "activation": plan.activation,
    }


def _count(state: Mapping[str, Tensor], pattern: str) -> int:
    found = {int(match[1]) for key in state if (match := re.match(pattern, key))}
    if not found or found != set(range(len(found))):
        raise ValueError(pattern.replace("\\", ""))
    return len(found)


def _three(shape: Any) -> list[int]:
    return [1] * (3 - len(shape)) + [int(n) for n in shape]
