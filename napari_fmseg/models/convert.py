"""Published checkpoints (.pt, .pth) into safetensors with a model card, without running anything in them."""

from __future__ import annotations

import hashlib
import json
import pickle
import re
import struct
import warnings
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from napari_fmseg.core.atomic_write import atomic_write
from napari_fmseg.core.errors import WeightsMismatch
from napari_fmseg.models.settings import PIPELINES

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["Converted", "convert_checkpoint", "read_checkpoint"]

_PARTS = {
    **{"snet": "consensus", "attnnet": "attention", "edgenet": "edge"},
    **{"baseunet": "coarse", "efficientsegnet": "fine"},
}
_PUBLISHED_INTENSITY = ["[intensity]", 'kind = "window_zscore"', "low = -325.0", "high = 325.0", ""]
_LADDERS = ("baseunet", "contextunet", "efficientsegnet")

# What torch.load raises for files that are not what they seem, beside its own refusal of code (an UnpicklingError).
_UNREADABLE = (
    *(pickle.UnpicklingError, zipfile.BadZipFile, struct.error),
    *(RuntimeError, EOFError, OSError, ValueError, TypeError, AttributeError, LookupError, ImportError),
)


@dataclass(frozen=True)
class Converted:
    """What came out of a checkpoint.

    Attributes
    ----------
    weights, card
        The files that were written.
    part
        The network's name in a model: each entry of `weights` begins with it and a dot.
    n_parameters
        Numbers in all entries together.
    epoch
        Rounds or steps of training that the checkpoint names, or None.
    taken
        Names of the entries that come from the checkpoint.
    fresh
        Names of the entries that were drawn anew, because the classes differ; they must be trained before use.
    """

    weights: Path
    card: Path
    part: str
    n_parameters: int
    epoch: int | None
    taken: tuple[str, ...] = ()
    fresh: tuple[str, ...] = ()


def convert_checkpoint(
    path: Path | str, network: str, out: Path | str, *, part: str = "", new_heads: bool = False, **kwargs: Any
) -> Converted:
    """Turn a published checkpoint into safetensors and a card to fill in.

    The file may be ``{net, optimizer, epoch}``, as FMSF-PT saves it, ``{model_state_dict, iteration, ...}``, as MIS-FM
    does, ``{state_dict, epoch, ...}``, as EfficientSegmentation does, or the state dict itself. It is read without
    running code from it; a file that would need that is refused.

    Parameters
    ----------
    path
        A .pt or .pth file.
    network
        Its name in `napari_fmseg.nets.NETWORKS`.
    out
        Where to write: NAME.safetensors; NAME.toml comes beside it.
    part
        The network's name in the model; by default the stage it serves.
    new_heads
        Where only the last layers differ, because they give other classes, draw those anew and take the rest.
    **kwargs
        Arguments of the network, such as ``n_classes=14`` or ``variant="v2"``.

    Raises
    ------
    WeightsMismatch
        If the file cannot be read that way, or does not fit the network; names missing and surplus entries.
    UnknownModel
        If there is no such network, or it does not take an argument.
    UnwritableVolume
        If the place cannot be written.
    """
    from safetensors.torch import save

    from napari_fmseg.nets import build

    path = Path(path)
    weights = Path(out).with_suffix(".safetensors")
    state, epoch = _state_of(path, read_checkpoint(path))
    kwargs = _settings_from_weights(network, state) | kwargs
    net = build(network, **kwargs)
    fresh = _heads_of_other_classes(net, state) if new_heads else ()
    state |= {key: net.state_dict()[key] for key in fresh}
    _check_fit(path, network, {k: tuple(v.shape) for k, v in net.state_dict().items()}, state)
    net.load_state_dict(state)  # the network may look closer
    part = part or _PARTS.get(network, "net")
    # Clones, since a checkpoint may hold two views of one storage, which safetensors does not store.
    content = save({f"{part}.{key}": value.clone().contiguous() for key, value in state.items()})
    card = weights.with_suffix(".toml")
    facts = _card(weights, path, content, part, network, kwargs, net, fresh)
    for place, written in ((weights, content), (card, facts.encode())):
        with atomic_write(place) as file:
            file.write(written)
    taken = tuple(key for key in state if key not in fresh)
    return Converted(weights, card, part, sum(v.numel() for v in state.values()), epoch, taken, fresh)


def read_checkpoint(path: Path) -> Any:
    """Read a file of tensors and plain values without running anything in it; `WeightsMismatch` if it is none."""
    import torch

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about the pickle protocol; whether it can be read is all that matters
            with torch.serialization.safe_globals(_plain_numbers()):
                return torch.load(path, map_location="cpu", weights_only=True)
    except _UNREADABLE as error:
        raise WeightsMismatch(
            f"{path.name} was refused: {_reason(error)}. Expected a torch checkpoint that holds tensors and plain "
            "values only; anything else could run code when it is opened. Ask its authors for a plain state dict."
        ) from error


def _reason(error: Exception) -> str:
    """Return why a file cannot be read; torch's own words advise to read it unsafely, and are not passed on."""
    if isinstance(error, OSError):
        return error.strerror or "it cannot be opened"
    named = re.search(r"[Gg][Ll][Oo][Bb][Aa][Ll]:? (?:GLOBAL )?([\w.]+)", str(error))
    if isinstance(error, pickle.UnpicklingError) and named is not None:
        return f"it names {named[1]}, which is no plain value"
    if "TorchScript" in str(error):
        return "it is a program (TorchScript), not weights"
    return "it is damaged, cut short, or of another kind"


def _plain_numbers() -> list[Any]:
    """Name what makes a numpy scalar: MIS-FM stores its best score as one. None of it can run code of the file's."""
    import numpy as np

    core = getattr(np, "_core", None) or np.core
    scalar = core.multiarray.scalar
    names = ("numpy.core.multiarray.scalar", "numpy._core.multiarray.scalar")  # of numpy 1 and numpy 2
    return [*((scalar, name) for name in names), np.dtype, np.dtypes.Float32DType, np.dtypes.Float64DType,
            np.dtypes.Int64DType]  # fmt: skip


def _settings_from_weights(network: str, state: Mapping[str, Tensor]) -> dict[str, Any]:
    """Read the network's arguments off the weights: how EfficientSegmentation's networks are built, how PCT-Net
    counts.
    """
    if network in _LADDERS:
        return _settings_from_ladder(network, state)
    import torch

    from napari_fmseg.nets.layers.swin import relative_position_index

    index = next((value for key, value in state.items() if key.endswith("relative_position_index")), None)
    if network != "pctnet" or index is None or index.ndim != 2:
        return {}
    legacy = relative_position_index(round(len(index) ** (1 / 3)), legacy=True)
    return {"legacy": True} if torch.equal(legacy, index.long()) else {}


def _settings_from_ladder(network: str, state: Mapping[str, Tensor]) -> dict[str, Any]:
    """Read classes, channels and blocks off the weights of an EfficientSegmentation network; {} if it is none."""
    firsts: dict[int, Tensor] = {}
    for key, value in state.items():
        level = re.match(r"conv(\d)_0\.", key)
        if level is not None:
            firsts.setdefault(int(level[1]), value)
    if "final.weight" not in state or sorted(firsts) != list(range(len(firsts))) or len(firsts) < 5:
        return {}
    found: dict[str, Any] = {
        "in_channels": firsts[0].shape[1],
        "n_classes": len(state["final.weight"]) + 1,  # a sigmoid: the background has no channel
        "channels": [len(firsts[level]) for level in sorted(firsts)],
    }
    if "final1.1.weight" in state:
        found["auxiliary"] = len(state["final1.1.weight"])
    if network == "baseunet":
        double = {key.partition(".")[0] for key in state if ".residual_unit_2." in key}
        return found | {"encoder": 4 if "conv0_0" in double else 2, "decoder": 4 if "conv0_4" in double else 2}
    context = state.get("context_block.conv2_3.conv.weight")
    return found | {
        "encoder": _block_of(state, "conv0_0"),
        "decoder": _block_of(state, "conv0_4"),
        "encoder_blocks": [_n_blocks(state, f"conv{level}_0") for level in sorted(firsts)],
        "decoder_blocks": _n_blocks(state, "conv0_4"),
        "context": "none" if context is None else "average" if context.shape[2] == 3 else "maximum",
    }


def _block_of(state: Mapping[str, Tensor], stage: str) -> str:
    first = state.get(f"{stage}.0.residual_unit.0.conv.weight")
    return "anisotropic" if first is not None and first.shape[-1] == 1 else "residual"


def _n_blocks(state: Mapping[str, Tensor], stage: str) -> int:
    return len({key.split(".")[1] for key in state if key.startswith(f"{stage}.")})


def _heads_of_other_classes(net: Any, state: Mapping[str, Tensor]) -> tuple[str, ...]:
    """Return the entries that differ only in the number of classes that they give."""
    n_classes = net.n_classes
    return tuple(
        key
        for key, own in net.state_dict().items()
        if key in state
        and own.shape != state[key].shape
        and own.ndim == state[key].ndim > 0
        and len(own) == n_classes
        and own.shape[1:] == state[key].shape[1:]
    )


def _state_of(path: Path, content: Any) -> tuple[dict[str, Tensor], int | None]:
    """Find the state dict and the epoch; floats become float32."""
    import torch

    state, epoch = content, None
    if isinstance(content, Mapping) and isinstance(content.get("net"), Mapping):
        state, epoch = content["net"], content.get("epoch")
    elif isinstance(content, Mapping) and isinstance(content.get("model_state_dict"), Mapping):
        state, epoch = content["model_state_dict"], content.get("iteration")
    elif isinstance(content, Mapping) and isinstance(content.get("state_dict"), Mapping):
        state, epoch = content["state_dict"], content.get("epoch")
    if not isinstance(state, Mapping) or not state or not all(isinstance(v, torch.Tensor) for v in state.values()):
        raise WeightsMismatch(
            f"{path.name} holds no weights: expected a table of tensors, or one under 'net', 'state_dict' or "
            f"'model_state_dict', not {_kind(state)}. Is it another kind of checkpoint?"
        )
    state = {str(key): value.float() if value.is_floating_point() else value for key, value in state.items()}
    if all(key.startswith("module.") for key in state):  # saved from several GPUs
        state = {key.removeprefix("module."): value for key, value in state.items()}
    broken = [key for key, value in state.items() if value.is_floating_point() and not value.isfinite().all()]
    if broken:
        raise WeightsMismatch(
            f"{path.name} holds values that are not numbers, in {broken[:3]}. Use another epoch's file."
        )
    return state, epoch if isinstance(epoch, int) else None


def _kind(content: Any) -> str:
    if isinstance(content, Mapping):
        return f"a table with {sorted(map(str, content))[:5]}"
    return type(content).__name__


def _check_fit(path: Path, network: str, expected: Mapping[str, tuple[int, ...]], state: Mapping[str, Tensor]) -> None:
    found = {key: tuple(value.shape) for key, value in state.items()}
    if found == dict(expected):
        return
    missing, surplus = sorted(expected.keys() - found.keys()), sorted(found.keys() - expected.keys())
    differ = [
        f"{k} {found[k]} not {expected[k]}" for k in sorted(expected.keys() & found.keys()) if found[k] != expected[k]
    ]
    raise WeightsMismatch(
        f"{path.name} does not fit {network}: {len(missing)} missing {missing[:3]}, {len(surplus)} surplus "
        f"{surplus[:3]}, {len(differ)} of another shape {differ[:3]}. Give the number of classes, the channels and the "
        "variant that it was trained with, or another network. Where only the classes differ, ask for new heads."
    )


def _card(
    weights: Path,
    source: Path,
    content: bytes,
    part: str,
    network: str,
    kwargs: Mapping[str, Any],
    net: Any,
    fresh: tuple[str, ...],
) -> str:
    """Write what is known; the rest is for the person who converts."""
    text = json.dumps  # a JSON string, number or truth value is a TOML one too
    labels = [f"{label} = {text(f'class {label}')}" for label in range(1, getattr(net, "n_classes", 2))]
    arguments = [f"{name} = {text(value)}" for name, value in kwargs.items()]
    name = weights.stem
    return "\n".join([
        f"# Converted from {text(source.name)}. Fill in what the checkpoint does not say: title, labels, modality,",
        "# intensity, licence, citation, trained_on. A phased model needs consensus, attention and edge in one file,",
        "# a coarse-to-fine one coarse and fine.",
        f"name = {text(name)}",
        f"title = {text(name)}",
        f"pipeline = {text(next((p.name for p in PIPELINES.values() if part in p.stages), 'single'))}",
        f"weights = {text(weights.name)}",
        f"sha256 = {text(hashlib.sha256(content).hexdigest())}",
        'licence = "unknown: ask the authors before you pass it on"',
        'trained_on = "unknown"',
        *(['limits = "The last layers are new: train the model before you use it."'] if fresh else []),
        "",
        f"[nets.{part}]",
        f"network = {text(network)}",
        "",
        f"[nets.{part}.kwargs]",
        *arguments,
        "",
        *(_PUBLISHED_INTENSITY if network in _LADDERS else []),
        "[labels]",
        *labels,
        "",
    ])  # fmt: skip
