"""Weights of models: read, load strictly, save."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from napari_fmseg.core.atomic_write import atomic_write
from napari_fmseg.core.errors import WeightsMismatch
from napari_fmseg.models.card import ModelCard, write_card
from napari_fmseg.models.registry import find_card

if TYPE_CHECKING:
    import torch
    from torch import nn

__all__ = ["Model", "load_model", "save_model"]


@dataclass(frozen=True)
class Model:
    """A card with its networks, loaded, in evaluation mode and on a device."""

    card: ModelCard
    nets: Mapping[str, nn.Module]
    device: torch.device


def load_model(name: str | Path | ModelCard, *, device: str = "auto") -> Model:
    """Load a model, check its weights against the card's hash, and put it on a device.

    Parameters
    ----------
    name
        A model's name, the path of a card, or a card.
    device
        ``"auto"`` takes CUDA, then MPS, then the CPU; or ``"cpu"``, ``"cuda"``, ``"cuda:1"``, ``"mps"``.

    Raises
    ------
    UnknownModel
        If there is no such model.
    WeightsMismatch
        If the file is missing, was altered, or does not fit the networks.
    DeviceUnavailable
        If the machine does not have the device.
    """
    from napari_fmseg.nets import build
    from napari_fmseg.nets.runtime.device import pick_device

    card = name if isinstance(name, ModelCard) else find_card(name)
    place = pick_device(device)
    state = _read_weights(card)
    nets = {}
    for part, spec in card.nets.items():
        net = build(spec.network, **spec.kwargs)
        own = {key.removeprefix(f"{part}."): value for key, value in state.items() if key.startswith(f"{part}.")}
        _load_strictly(net, own, f"{card.name} ({part})")
        nets[part] = net.to(place).eval().requires_grad_(False)
    return Model(card, nets, place)


def _read_weights(card: ModelCard) -> dict[str, torch.Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load

    path = card.weights_path
    content = path.read_bytes()
    found = hashlib.sha256(content).hexdigest()
    if card.sha256 and found != card.sha256:
        raise WeightsMismatch(
            f"{path.name} is not the file that the card of {card.name!r} describes: its sha256 starts with "
            f"{found[:12]}, expected {card.sha256[:12]}. It was altered or only partly copied; install the model again."
        )
    try:
        return {key: value.float() if value.is_floating_point() else value for key, value in load(content).items()}
    except SafetensorError as error:
        raise WeightsMismatch(f"{path.name} is not a safetensors file: {error}. Install the model again.") from error


def _load_strictly(net: nn.Module, state: Mapping[str, torch.Tensor], what: str) -> None:
    expected = {key: tuple(value.shape) for key, value in net.state_dict().items()}
    found = {key: tuple(value.shape) for key, value in state.items()}
    if expected != found:
        missing, surplus = sorted(expected.keys() - found.keys()), sorted(found.keys() - expected.keys())
        differ = [k for k in sorted(expected.keys() & found.keys()) if expected[k] != found[k]]
        raise WeightsMismatch(
            f"The weights do not fit {what}: missing {missing[:3]}, surplus {surplus[:3]}, other shapes {differ[:3]}. "
            "Were they saved for another network? Check the card's networks and arguments."
        )
    net.load_state_dict(dict(state))


def save_model(card: ModelCard, nets: Mapping[str, nn.Module], folder: Path | str, *, half: bool = False) -> ModelCard:
    """Write weights and card into `folder` as NAME.safetensors and NAME.toml.

    Parameters
    ----------
    card
        Its weights, hash and folder are filled in here.
    nets
        The networks that the card names.
    folder
        Made if it is not there.
    half
        Store the weights in float16: half the size; results differ by less than bfloat16 inference does.
    """
    import torch
    from safetensors.torch import save

    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    dtype = torch.float16 if half else torch.float32
    state = {
        # A clone, since some networks (MONAI's DynUNet) list a layer twice, and safetensors wants each entry alone.
        f"{part}.{key}": (value.to(dtype) if value.is_floating_point() else value).detach().cpu().clone().contiguous()
        for part in card.nets
        for key, value in nets[part].state_dict().items()
    }
    content = save(state)
    written = dataclasses.replace(
        card, weights=f"{card.name}.safetensors", sha256=hashlib.sha256(content).hexdigest(), folder=folder
    )
    if written.half_precision is not None and written.half_precision.sha256 != written.sha256:
        written = dataclasses.replace(written, half_precision=None)  # it was measured with other weights
    # The card goes last: a card without its weights would be listed and could not be loaded.
    with atomic_write(folder / written.weights) as file:
        file.write(content)
    write_card(written, folder / f"{card.name}.toml")
    return written
