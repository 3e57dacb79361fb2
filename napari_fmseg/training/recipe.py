"""Recipes: everything that a training run depends on, written once, as dataclasses and as TOML."""

from __future__ import annotations

import dataclasses
import json
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from napari_fmseg.errors import InvalidRecipe
from napari_fmseg.models import Intensity

__all__ = ["Augment", "Case", "Recipe", "StageRecipe", "cases_of", "load_recipe"]

LOSSES = ("attn", "attn_v2", "tversky", "dice", "jaccard", "dice_ce", "dice_ce_balanced")


@dataclass(frozen=True)
class Case:
    """One patient's volume and its labels.

    Parameters
    ----------
    name
        What it is called in tables; never a patient's name.
    images
        One file per channel, or one file with all channels.
    labels
        The label file, or None.
    """

    name: str
    images: tuple[Path, ...]
    labels: Path | None = None


@dataclass(frozen=True)
class Augment:
    """How training volumes are varied.

    Parameters
    ----------
    flip
        Axes out of ``"zyx"`` that may be mirrored; x is left-right.
    swap
        Pairs of class names that change places when x is mirrored (left and right organs).
    shift, zoom
        Largest shift of the window and change of its size, as a share of its size.
    rotate_deg, rotate_p
        Largest turn about any axis in degrees, and how often one happens.
    contrast, brightness, gamma, noise
        Largest change of contrast (factor), brightness, gamma (exponent) and standard deviation of the noise, for
        intensities of 0..1.
    """

    flip: str = ""
    swap: tuple[tuple[str, str], ...] = ()
    shift: float = 0.06
    zoom: float = 0.12
    rotate_deg: float = 10.0
    rotate_p: float = 0.3
    contrast: float = 0.2
    brightness: float = 0.1
    gamma: float = 0.3
    noise: float = 0.03


@dataclass(frozen=True)
class StageRecipe:
    """How one network of the pipeline is trained.

    Parameters
    ----------
    stage
        Its name in the pipeline: ``"consensus"``, ``"attention"`` or ``"edge"``.
    network, kwargs
        Its name in the registry, and arguments beside channels and classes.
    loss
        ``"attn"`` (published for consensus and edge), ``"tversky"`` (published for attention), ``"dice_ce"``...
    steps
        Optimiser steps in all.
    steps_per_epoch
        Steps between two validations, each of which ends an epoch.
    batch, lr, weight_decay, clip
        Samples per step, highest learning rate, weight decay, largest norm of the gradient.
    schedule
        ``"cosine"`` (a short rise, then down to 0), ``"plateau"`` (as published: a fifth when the loss stalls), or
        ``"constant"``.
    patience
        Stop after so many epochs without a better validation; 0 never.
    init_from
        A stage trained before whose weights are the start, where shapes fit; "" draws new ones.
    """

    stage: str
    network: str
    loss: str = "dice_ce"
    steps: int = 1000
    steps_per_epoch: int = 100
    batch: int = 2
    lr: float = 1e-3
    weight_decay: float = 1e-5
    clip: float = 12.0
    schedule: str = "cosine"
    patience: int = 0
    init_from: str = ""
    kwargs: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.loss not in LOSSES or self.schedule not in ("cosine", "plateau", "constant"):
            raise InvalidRecipe(
                f"Stage {self.stage!r}: loss {self.loss!r} is one of {', '.join(LOSSES)}; "
                f"schedule {self.schedule!r} is cosine, plateau or constant."
            )
        if min(self.steps, self.steps_per_epoch, self.batch) < 1 or self.lr <= 0:
            raise InvalidRecipe(f"Stage {self.stage!r}: steps, steps_per_epoch, batch and lr must be positive.")


@dataclass(frozen=True)
class Recipe:
    """Everything that a training run depends on.

    Parameters
    ----------
    name, title
        Of the model that comes out.
    stages
        What to train, in order. Stages that the pipeline has and that are not listed come from `start_from`.
    dataset
        A folder in the nnU-Net raw layout (imagesTr, labelsTr, dataset.json), or with case lists in its
        dataset.json.
    phantom
        Instead of a folder: how many phantom CTs to make for training and for validation.
    training, validation
        Cases, when there is no `dataset`; or names of the dataset's cases for validation in `holdout`.
    holdout
        Names of the dataset's cases that validate; else its own list, else every fifth case by name.
    labels
        Class names in the order of the model's labels 1, 2...; they are looked up in dataset.json.
    start_from
        A model to fine-tune, by name or card; "" starts anew.
    out
        Folder of the run: checkpoints, then the model's card and weights.
    pipeline, settings, intensity, channels, modality, body_part
        As in `ModelCard`.
    augment
        See `Augment`.
    validate_cases
        Validate on so many cases after each epoch (all of them at the end); 0 takes all.
    seed, devices, device, precision
        Random seed; number of processes; ``"auto"``, ``"cpu"``, ``"cuda"``; ``"auto"``, ``"float32"``, ``"bfloat16"``.
    licence, restriction, citation, trained_on, limits
        For the card.
    half
        Write the finished weights in float16.
    """

    name: str
    stages: tuple[StageRecipe, ...]
    labels: tuple[str, ...]
    out: Path
    title: str = ""
    dataset: Path | None = None
    phantom: tuple[int, ...] = ()
    training: tuple[Case, ...] = ()
    validation: tuple[Case, ...] = ()
    holdout: tuple[str, ...] = ()
    start_from: str = ""
    pipeline: str = "phased"
    settings: Mapping[str, Any] = field(default_factory=dict)
    intensity: Intensity = field(default_factory=Intensity)
    channels: tuple[str, ...] = ("image",)
    modality: str = ""
    body_part: str = ""
    augment: Augment = field(default_factory=Augment)
    validate_cases: int = 0
    seed: int = 0
    devices: int = 1
    device: str = "auto"
    precision: str = "auto"
    licence: str = ""
    restriction: str = ""
    citation: str = ""
    trained_on: str = ""
    limits: str = ""
    half: bool = False

    def __post_init__(self) -> None:
        if not self.name or not self.stages or not self.labels:
            raise InvalidRecipe("A recipe needs a name, at least one label and at least one stage.")
        if sum((self.dataset is not None, bool(self.training), bool(self.phantom))) != 1:
            raise InvalidRecipe(
                "A recipe needs one of: a dataset folder, a list of training cases, a number of phantoms."
            )
        if self.phantom and len(self.phantom) != 2:
            raise InvalidRecipe("phantom is two numbers: how many to train on, how many to validate on.")


def load_recipe(path: Path | str, **changes: Any) -> Recipe:
    """Read a recipe from TOML; paths in it are relative to the file's folder.

    Parameters
    ----------
    path
        The TOML file.
    **changes
        Fields to replace, such as ``out=...``.

    Raises
    ------
    InvalidRecipe
        If the file cannot be read, or a field is unknown, missing or of the wrong kind.
    """
    path = Path(path)
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
        table.update(changes)
        return _from_table(table, path.resolve().parent)
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise InvalidRecipe(f"{path.name} is no recipe: {error}. See docs/recipes.md for its fields.") from error


def _from_table(table: dict[str, Any], folder: Path) -> Recipe:
    table["stages"] = tuple(StageRecipe(**stage) for stage in table["stages"])
    table["intensity"] = Intensity(**table.get("intensity", {}))
    augment = dict(table.get("augment", {}))
    augment["swap"] = tuple((a, b) for a, b in augment.get("swap", ()))
    table["augment"] = Augment(**augment)
    for name in ("dataset", "out"):
        if table.get(name) is not None:
            table[name] = folder / table[name]
    for name in ("training", "validation"):
        table[name] = tuple(_case(entry, folder) for entry in table.get(name, ()))
    for name in ("labels", "channels", "holdout", "phantom"):
        if name in table:
            table[name] = tuple(table[name])
    return Recipe(**table)


def _case(entry: Mapping[str, Any], folder: Path) -> Case:
    images = entry["images"] if "images" in entry else entry["image"]
    images = [images] if isinstance(images, str) else images
    labels = entry.get("labels", entry.get("label"))
    name = str(entry.get("name", entry.get("case", Path(images[0]).name.split(".")[0])))
    return Case(name, tuple(folder / i for i in images), folder / labels if labels else None)


def cases_of(folder: Path | str, holdout: tuple[str, ...] = ()) -> tuple[dict[int, str], list[Case], list[Case]]:
    """Find the cases of a dataset folder.

    Understands the nnU-Net raw layout (imagesTr/NAME_0000.nii.gz per channel, labelsTr/NAME.nii.gz) and case lists
    `training` and `validation` in dataset.json.

    Parameters
    ----------
    folder
        With a dataset.json.
    holdout
        Names of the cases for validation; else the list in dataset.json, else every fifth case by name.

    Returns
    -------
    tuple
        Class names by the label in the files, training cases, validation cases.

    Raises
    ------
    InvalidRecipe
        If there is no dataset.json, no labelled case, or an unknown name in `holdout`.
    """
    folder = Path(folder)
    try:
        facts = json.loads((folder / "dataset.json").read_text(encoding="utf-8"))
        labels = _labels_in(facts["labels"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise InvalidRecipe(
            f"{folder} is not a dataset: {error}. Expected a dataset.json with 'labels' as in the nnU-Net raw layout."
        ) from error
    entries = [e for e in facts.get("training", ()) if isinstance(e, dict)]
    listed = [_case(e, folder) for e in entries]
    held = [_case(e, folder) for e in facts.get("validation", ()) if isinstance(e, dict)]
    cases = listed if listed and all(c.images[0].exists() for c in listed) else _nnunet_cases(folder)
    cases = [c for c in cases if c.labels is not None]
    if not cases:
        raise InvalidRecipe(
            f"No labelled case in {folder}. Expected imagesTr/NAME_0000.nii.gz and labelsTr/NAME.nii.gz."
        )
    if holdout:
        everyone = {c.name: c for c in [*cases, *held]}
        unknown = sorted(set(holdout) - everyone.keys())
        if unknown:
            raise InvalidRecipe(f"These cases are held out and not in {folder}: {', '.join(unknown[:5])}.")
        return labels, [c for n, c in everyone.items() if n not in holdout], [everyone[n] for n in holdout]
    if not held:
        cases = sorted(cases, key=lambda c: c.name)
        held = cases[4::5]
        cases = [c for c in cases if c not in held]
    return labels, cases, held


def _labels_in(labels: Mapping[str, Any]) -> dict[int, str]:
    """Read both ways of writing: name to number (nnU-Net 2) and number to name (Decathlon)."""
    pairs = [(int(k), str(v)) if str(k).isdigit() else (int(v), str(k)) for k, v in labels.items()]
    return {value: name for value, name in sorted(pairs) if value != 0}


def _nnunet_cases(folder: Path) -> list[Case]:
    cases = []
    for label in sorted((folder / "labelsTr").glob("*")):
        name = label.name.split(".")[0]
        images = tuple(sorted((folder / "imagesTr").glob(f"{name}_[0-9][0-9][0-9][0-9].*")))
        images = images or tuple(sorted((folder / "imagesTr").glob(f"{name}.*")))
        if images:
            cases.append(Case(name, images, label))
    return cases


def as_table(recipe: Recipe) -> dict[str, Any]:
    """Give the recipe as plain values, for hashing, cards and JSON."""
    table: dict[str, Any] = json.loads(json.dumps(dataclasses.asdict(recipe), default=str))
    return table
