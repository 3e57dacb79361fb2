"""What the Pretrain dock writes and reads: a plan as a recipe in the run's folder, and the sample that is shown."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import tomli_w

from napari_fmseg._napari.common.preferences import load
from napari_fmseg._napari.layers import KEY, LayerData, image_layers, labels_layer
from napari_fmseg._napari.segment.scan_view import DERIVED
from napari_fmseg.core.atomic_write import atomic_write
from napari_fmseg.core.errors import FmsegError
from napari_fmseg.core.volume import Geometry, LabelMap, Volume
from napari_fmseg.models.registry import find_card

__all__ = ["NETWORKS", "Plan", "Shown", "Size", "model_in", "next_folder", "recipe_in", "sample_layers", "write"]

Size = tuple[int, int, int]
NETWORKS = {
    "fmunet": "FMUNet: convolutions",
    "pctnet": "PCT-Net: convolutions and attention",
    "unet3d": "3-D U-Net: small and fast",
    "vnet": "V-Net",
    "monai-segresnet": "SegResNet",
    "monai-dynunet": "DynUNet",
}
"""Those that are offered, by their names in the registry: the method is meant for the first two, and suits others."""

_ROUNDS = 20  # validations of a run
_MOST_STEPS = 1000  # between two of them
SAMPLE = "sample"  # the role of its layers
_GAP = 4  # voxels between the parts of a sample
_PARTS = ("fused volume", "target", "prediction")
_RAMP = ((0.16, 0.44, 0.86), (0.10, 0.72, 0.60), (0.95, 0.77, 0.06), (0.90, 0.30, 0.20))


@dataclass(frozen=True)
class Plan:
    """What the user has chosen.

    Parameters
    ----------
    volumes, out
        Folder with scans, folder of the run.
    network
        Its name in the registry.
    minutes
        How long; 0 takes `steps`.
    steps
        How many, if `minutes` is 0.
    patch, batch, device, cache_gb
        As `PretrainRecipe` has them.
    more
        Other fields of the recipe.
    """

    volumes: Path
    out: Path
    network: str
    minutes: float = 0.0
    steps: int = 0
    patch: Size = (32, 64, 64)
    batch: int = 2
    device: str = "auto"
    cache_gb: float = 20.0
    more: Mapping[str, Any] = field(default_factory=dict)


def write(plan: Plan) -> Path:
    """Write the recipe of a plan into the run's folder, and give it.

    Raises
    ------
    UnwritableVolume
        If the folder cannot be made or written.
    """
    length = {"minutes": plan.minutes} if plan.minutes else {"steps": plan.steps}
    table = {
        "name": f"{plan.network}-pretrained",
        "volumes": str(plan.volumes),
        "out": str(plan.out),
        "network": plan.network,
        **length,
        "steps_per_epoch": max(1, min(_MOST_STEPS, -(-plan.steps // _ROUNDS))),
        "batch": plan.batch,
        "validate_samples": 8,
        "device": plan.device,
        "cache_gb": plan.cache_gb,
        **{name: value for name, value in plan.more.items() if name != "fusion"},
        "fusion": {"patch": list(plan.patch), "block": _blocks(plan.patch), **plan.more.get("fusion", {})},
    }
    path = plan.out / "recipe.toml"
    with atomic_write(path) as file:
        tomli_w.dump(table, file)
    return path


def _blocks(patch: Size) -> list[list[int]]:
    """Return the smallest and the largest block: as published, where at least two by two by two fit into the patch.

    With fewer, the share of blocks that are mixed, rounded down, is none at all, and there is nothing to learn.
    """
    return [[min(most, max(2, n // part)) for n in patch] for most, part in ((8, 4), (32, 2))]


def recipe_in(out: Path) -> Path | None:
    """Return the recipe of the run that lies in a folder, or None."""
    path = out / "recipe.toml"
    return path if path.is_file() and (out / "run.json").is_file() else None


def model_in(out: Path) -> Path | None:
    """Return the card of the model that a run has left, or None."""
    for path in sorted(out.glob("*-pretrained.toml")):
        try:
            _ = find_card(path).weights_path
        except FmsegError:
            continue
        return path
    return None


def next_folder(network: str) -> Path:
    """Propose a folder that is not there yet, where this plugin keeps its data."""
    above = load().folder / "pretraining"
    number = 1
    while (above / f"{network}-{number}").exists():
        number += 1
    return above / f"{network}-{number}"


@dataclass(frozen=True)
class Shown:
    """One part of a sample.

    Parameters
    ----------
    name
        Of its layer.
    data
        (z, y, x).
    layer
        A napari layer of it that waits to be added, or None where there is one already.
    """

    name: str
    data: Any
    layer: Any = None


def sample_layers(path: Path, known: Collection[str] = ()) -> Iterator[Shown]:
    """Read a sample of a run and give its parts, to lie side by side; nothing where another has just taken its place.

    Parameters
    ----------
    path
        The file of a `Pictures` event.
    known
        Names of layers that are there already.
    """
    from napari.layers import Layer

    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in (*_PARTS, "spacing")}
    except (OSError, ValueError, KeyError):
        return
    for data, options, kind in _side_by_side(arrays):
        name = options["name"]
        yield Shown(name, data, None if name in known else Layer.create(data, options, kind))


def _side_by_side(arrays: Mapping[str, Any]) -> list[LayerData]:
    """Return the parts of a sample as layers, from left to right."""
    fused = arrays["fused volume"]
    z, y, x = (float(s) for s in arrays["spacing"])
    width = (fused.shape[2] + _GAP) * x
    grids = [Geometry.from_spacing(fused.shape, (z, y, x), (0.0, 0.0, i * width)) for i in range(len(_PARTS))]
    n_classes = max(1, int(arrays["target"].max()))
    names = {k: f"mixed {k} of {n_classes}" for k in range(1, n_classes + 1)}
    colors = {k: _RAMP[min(len(_RAMP) - 1, (k - 1) * len(_RAMP) // n_classes)] for k in names}
    layers = image_layers(Volume(fused, grids[0]), "sample · fused volume")
    for part, grid in zip(_PARTS[1:], grids[1:], strict=True):
        layers.append(labels_layer(LabelMap(arrays[part], grid, {}, names, colors), f"sample · {part}"))
    for _, options, _ in layers:
        options["opacity"] = 1.0
        options["metadata"][KEY] |= {"role": SAMPLE, DERIVED: True}  # to look at: no image or labels to choose
    return layers
