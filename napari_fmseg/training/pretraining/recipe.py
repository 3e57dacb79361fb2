"""What pretraining depends on, written once; without torch, so that forms and commands can read it at once."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from napari_fmseg.core.errors import InvalidRecipe
from napari_fmseg.core.structuring import Range, is_file_name, read_table, structure, wrong_number

__all__ = ["Fusion", "PretrainRecipe", "load_pretrain_recipe"]

Size = tuple[int, int, int]


_SIZE = Range(1, 4096)
_FUSION_RANGES = {
    "patch": _SIZE,
    "classes": Range(1, 255),
    "share": Range(0, 1, open="low"),
    "block": _SIZE,
    "boxes": Range(1, 10_000),
    "box": _SIZE,
    "scale": Range(0, 100, open="low"),
}
_RANGES = {
    "spacing_mm": Range(0, 1000, open="low"),
    "steps": Range(1, 10**9),
    "minutes": Range(0, 10**6),
    "steps_per_epoch": Range(1, 10**9),
    "batch": Range(1, 4096),
    "lr": Range(0, 1000, open="low"),
    "weight_decay": Range(0, 1000),
    "clip": Range(0, open="low"),
    "holdout": Range(0, 1, open="high"),
    "validate_samples": Range(1, 10**6),
    "cache_gb": Range(0, 10**9),
    "seed": Range(0, 2**32 - 1),
    "devices": Range(1, 1024),
}


@dataclass(frozen=True)
class Fusion:
    """What Volume Fusion draws.

    Parameters
    ----------
    patch
        Size (z, y, x) of a sample.
    classes
        K: classes beside the background, which is class 0. The network has K + 1.
    mode
        ``"blocks"``: a grid of equal blocks (2025). ``"boxes"``: random boxes, one over the other (2023).
    share
        Share of the grid's blocks that are foreground. The share of voxels is smaller, 0.41 for a patch of
        32 x 64 x 64 and 0.56 for 64 x 128 x 128 with thinner blocks: what is left beside the whole blocks is
        background, and their number is rounded down.
    block
        Smallest and largest size of a block along (z, y, x); never longer than the patch.
    boxes
        Fewest and most boxes.
    box
        Smallest and largest size of a box along (z, y, x).
    scale
        Smallest and largest size of a crop, as a multiple of the patch; it is resampled to the patch.
    spatial
        Whether crops vary in size and are mirrored.
    intensity
        Whether contrast and gamma vary and pairs are inverted. Samples then lie in 0..1.
    """

    patch: Size = (64, 128, 128)
    classes: int = 4
    mode: str = "blocks"
    share: float = 0.7
    block: tuple[Size, Size] = ((8, 8, 8), (32, 32, 32))
    boxes: tuple[int, int] = (10, 40)
    box: tuple[Size, Size] = ((8, 8, 8), (40, 80, 80))
    scale: tuple[float, float] = (0.7, 1.5)
    spatial: bool = True
    intensity: bool = True

    def __post_init__(self) -> None:
        if wrong := wrong_number(self, _FUSION_RANGES, "fusion."):
            raise InvalidRecipe(f"{wrong}.")
        ranges = [self.boxes, self.scale, *zip(*self.block, strict=True), *zip(*self.box, strict=True)]
        if any(low > high for low, high in ranges):
            raise InvalidRecipe(f"Of fusion's block, boxes, box and scale the smaller comes first; not {self}.")
        if self.mode not in ("blocks", "boxes"):
            raise InvalidRecipe(f"fusion.mode is 'blocks' or 'boxes', not {self.mode!r}.")


@dataclass(frozen=True)
class PretrainRecipe:
    """Everything that pretraining by Volume Fusion depends on.

    Parameters
    ----------
    name
        To type; the files of the model that comes out are called so.
    volumes
        A folder with volumes of any readable kind, below it too.
    out
        Folder of the run: checkpoint, then card and weights.
    network
        Its name in the registry: ``"fmunet"`` and ``"pctnet"``, for which the method was published, or any other but
        the phased ones (``"snet"``, ``"attnnet"``, ``"edgenet"``). One that is made for structures that overlap is
        built for classes that exclude each other.
    kwargs
        Its arguments beside channels and classes.
    fusion
        What is drawn; see `Fusion`.
    spacing_mm
        Spacing (z, y, x) to which finer volumes are brought, where the training that follows has a coarse one; empty
        for their own, as published.
    steps
        Optimiser steps in all. Published: 80,000 and more.
    minutes
        About how long to learn, instead of `steps`: their number, and that of an epoch, is set by how fast the first
        ones are, and kept. 0 takes `steps`.
    steps_per_epoch
        Steps between two validations and checkpoints.
    batch
        Samples per step, of all processes together.
    lr
        Learning rate of Adam, halved every quarter of the steps.
    weight_decay
        Of Adam.
    clip
        Largest norm of the gradient.
    holdout
        Share of the volumes that validate only; at least one, where there are two.
    validate_samples
        Samples of the held-out volumes at each validation; always the same.
    other_volume
        Take the foreground from another volume, as published in 2023; otherwise both crops are of one.
    cache
        Folder for decoded volumes; by default inside `out`.
    cache_gb
        How much they may take.
    seed
        Random seed: the same one gives the same weights on the same CPU with as many threads.
    device
        ``"auto"`` (CUDA, then MPS, then CPU), ``"cpu"``, ``"cuda"`` or ``"mps"``.
    precision
        ``"auto"``, ``"float32"``, ``"bfloat16"`` or ``"float16"``.
    devices
        Processes that learn together, one per graphics card; each takes its part of every batch. Their number may
        change when a run is resumed.
    tensorboard
        Write files for TensorBoard into the run's folder, beside ``history.jsonl``, which is always written.
    """

    name: str
    volumes: Path
    out: Path
    network: str = "fmunet"
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    fusion: Fusion = field(default_factory=Fusion)
    spacing_mm: tuple[float, ...] = ()
    steps: int = 80_000
    minutes: float = 0.0
    steps_per_epoch: int = 1000
    batch: int = 2
    lr: float = 1e-3
    weight_decay: float = 1e-5
    clip: float = 12.0
    holdout: float = 0.1
    validate_samples: int = 16
    other_volume: bool = False
    cache: Path | None = None
    cache_gb: float = 20.0
    seed: int = 0
    device: str = "auto"
    precision: str = "auto"
    devices: int = 1
    tensorboard: bool = False

    def __post_init__(self) -> None:
        if wrong := wrong_number(self, _RANGES):
            raise InvalidRecipe(f"{wrong}.")
        if not is_file_name(self.name):
            raise InvalidRecipe(
                f"name is the name of a file: no folder, and no dot at its beginning; not {self.name!r}."
            )
        if self.batch % self.devices:
            raise InvalidRecipe(
                f"The samples of a step are dealt out evenly to the processes: batch is a multiple of devices, not "
                f"{self.batch} for {self.devices}."
            )
        if len(self.spacing_mm) not in (0, 3):
            raise InvalidRecipe(f"spacing_mm is empty or three numbers above 0 (z, y, x), not {self.spacing_mm}.")


def load_pretrain_recipe(path: Path | str, **changes: Any) -> PretrainRecipe:
    """Read a recipe from TOML; paths in it are relative to the file's folder.

    Raises
    ------
    InvalidRecipe
        If the file cannot be read, or a field is unknown, missing or of the wrong kind.
    """
    path = Path(path)
    changed = {k: Path(v).absolute() if k in ("volumes", "out", "cache") else v for k, v in changes.items()}
    try:
        table = read_table(path, toml=True) | changed
        for name in ("volumes", "out", "cache"):
            if isinstance(table.get(name), str | Path):
                table[name] = path.resolve().parent / os.path.expanduser(table[name])
        return structure(PretrainRecipe, table)
    except InvalidRecipe as error:
        raise InvalidRecipe(f"{path.name}: {error}") from error
    except FileNotFoundError as error:
        raise InvalidRecipe(f"There is no {path}. Check the name of the recipe.") from error
    except (OSError, ValueError) as error:
        raise InvalidRecipe(f"{path.name} is no recipe for pretraining: {error}. Correct that field.") from error
