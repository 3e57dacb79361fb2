"""Model cards: classes, networks, training data and measured accuracy of a model.

A card is a TOML file; the weights of all its networks lie in one safetensors file, each entry prefixed by the
name of its network (``consensus.encoders.0.weight``). Listing cards needs no torch.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from napari_fmseg.core.atomic_write import atomic_write
from napari_fmseg.core.errors import UnknownModel, WeightsMismatch
from napari_fmseg.core.structuring import Range, is_file_name, read_table, structure, wrong_number
from napari_fmseg.core.terminology import class_color
from napari_fmseg.models.folders import _weights_folders
from napari_fmseg.models.half_precision import HalfPrecision
from napari_fmseg.models.measures import TrainingData
from napari_fmseg.models.settings import PIPELINES
from napari_fmseg.models.validation import Validation

__all__ = ["Intensity", "ModelCard", "NetSpec"]

_LARGEST_LABEL = 65535

_ANY = Range(-math.inf)

_INTENSITIES = ("window", "window_zscore", "percentile", "zscore", "fixed_zscore", "none")


@dataclass(frozen=True)
class NetSpec:
    """One network of a model: its name in the registry and the arguments that build it."""

    network: str
    kwargs: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Intensity:
    """How intensities become the networks' input.

    Parameters
    ----------
    kind
        ``"window"``: `low` and `high` are intensities (HU for CT). ``"percentile"``: they are percentiles of the
        volume, for modalities without a unit. Values are clamped to the window and mapped to 0..1. ``"zscore"``: each
        channel gets mean 0 and standard deviation 1, as MIS-FM is fine-tuned; `low` and `high` have no effect.
        ``"window_zscore"``: clamped to the window, then mean 0 and standard deviation 1, as EfficientSegmentation does.
        ``"fixed_zscore"``: clamped to the window, minus `mean`, over `std`, as nnU-Net does for CT. ``"none"``: as it
        is stored.
        A coarse-to-fine model maps what each network sees, after it was resized; the others map the whole volume.
    low
        Lower end of the window: what becomes 0.
    high
        Upper end of the window: what becomes 1.
    minmax
        Stretch the resampled volume to 0..1 once more, as the published FMSF-PT code does.
    unit
        What `low` and `high` of a window are counted in: ``"SUV"``, ``"HU"``... An image that says that it is in
        another unit is told of. "" where nothing is known.
    mean, std
        Of the training volumes, for ``"fixed_zscore"``.
    channels
        One intensity for each channel, where they differ, as in CT and PET; empty where this one holds for all.
    """

    kind: str = "percentile"
    low: float = 0.5
    high: float = 99.5
    minmax: bool = False
    unit: str = ""
    mean: float = 0.0
    std: float = 1.0
    channels: tuple[Intensity, ...] = ()

    def of_channel(self, number: int) -> Intensity:
        """Return the intensity of a channel, counted from 0."""
        return self.channels[number] if self.channels else self

    def __post_init__(self) -> None:
        if any(one.channels or one.minmax for one in self.channels):
            raise UnknownModel("The intensity of one channel is kind, low, high and unit; nothing more.")
        if wrong := wrong_number(self, {"low": _ANY, "high": _ANY, "mean": _ANY, "std": Range()}, "intensity."):
            raise UnknownModel(f"{wrong}.")
        if self.kind not in _INTENSITIES or not self.low < self.high:
            raise UnknownModel(
                "An intensity is a window, window_zscore, fixed_zscore or percentile with low < high, zscore or none, "
                f"not {self.kind!r} {self.low}..{self.high}."
            )


@dataclass(frozen=True)
class ModelCard:
    """All that is known of a model without loading it.

    Parameters
    ----------
    name, title
        The name to type, and the name to read.
    pipeline
        How the networks are combined; a key of `PIPELINES`.
    nets
        The networks by their name in the pipeline.
    labels
        Class names by label; 0 is background and not listed.
    modality, body_part
        ``"CT"``, ``"MR"`` or ``"PET"``; where in the body.
    channels
        Names of the input channels.
    spacing_mm
        Typical spacing (z, y, x) of the training volumes, to warn of others where `training_data` says nothing.
    intensity, settings
        Preprocessing, and what the pipeline needs beside it (grids, margins).
    weights, sha256
        The file, found beside the card or in the weights folder, and its hash.
    licence, restriction
        Licence of the weights; what the data's licence forbids, or "".
    citation, trained_on, limits
        The paper; the data, with case counts; what the model cannot do.
    scores
        ``{"labels": {"liver": 0.93}}``: Dice by stage and class on cases that were not trained on.
    surface, surface_mm
        Normalised surface distance of the final labels by class on the same cases: the part of both surfaces that lies
        within so many mm of the other.
    scored_on
        How many cases that was, and which.
    validation
        Confidence intervals, worst cases and groups of the same; None where nobody has measured them.
    half_precision
        How near the masks in 16 bit come to those in float32; None where nobody has measured it.
    version, parent
        Counted up by retraining; the model it was trained from.
    cases
        Hashes of the images that it, or a model before it, learned from, where that is known: on none of them it can
        be measured honestly.
    recipe_sha256
        Hash of the recipe.
    training_data
        Ranges of what was measured of the training volumes, to warn of others; None where nobody has measured them.
    replaces
        Names of earlier models for the same task that it does better than: whoever asks for one of them is told.
    """

    name: str
    title: str
    pipeline: str
    nets: Mapping[str, NetSpec]
    labels: Mapping[int, str]
    modality: str = ""
    body_part: str = ""
    channels: tuple[str, ...] = ("image",)
    spacing_mm: tuple[float, ...] = ()
    intensity: Intensity = field(default_factory=Intensity)
    settings: Mapping[str, Any] = field(default_factory=dict)
    weights: str = ""
    sha256: str = ""
    licence: str = ""
    restriction: str = ""
    citation: str = ""
    trained_on: str = ""
    limits: str = ""
    scores: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    surface: Mapping[str, float] = field(default_factory=dict)
    surface_mm: float = 0.0
    scored_on: str = ""
    validation: Validation | None = None
    half_precision: HalfPrecision | None = None
    version: int = 1
    parent: str = ""
    cases: tuple[str, ...] = ()
    recipe_sha256: str = ""
    training_data: TrainingData | None = None
    replaces: tuple[str, ...] = ()
    folder: Path = field(default=Path(), compare=False)

    @property
    def n_classes(self) -> int:
        """Classes with the background."""
        return 1 + max(self.labels, default=0)

    @property
    def colors(self) -> dict[int, tuple[float, float, float]]:
        """A fixed colour per label, far apart for neighbours."""
        return {i: class_color(i) for i in self.labels}

    @property
    def mean_dice(self) -> float | None:
        """Mean Dice of the final labels over the classes, or None if it was never measured."""
        final = self.scores.get("labels", {})
        return sum(final.values()) / len(final) if final else None

    @property
    def n_scored(self) -> int:
        """How many patients the Dice is of, as `validation` or `scored_on` states (or cases); 0 if unknown."""
        if self.validation is not None:
            return self.validation.overall.n_patients
        found = re.search(r"(\d+) patients?\b", self.scored_on) or re.match(r"(\d+) ", self.scored_on)
        return int(found[1]) if found else 0

    @property
    def half_precision_ok(self) -> bool | None:
        """Whether half precision gives the same masks: proven by figures or refuted; None where nobody has measured it.

        Models that were never measured are taken as their pipeline is; older cards may say `half_is_right = false`.
        """
        if self.half_precision is not None and self.half_precision.sha256 == self.sha256:
            return self.half_precision.is_right
        if self.settings.get("half_is_right") is False:
            return False
        return PIPELINES[self.pipeline].half_precision_ok if self.pipeline in PIPELINES else None

    @property
    def weights_path(self) -> Path:
        """Where the weights lie; `WeightsMismatch` if the file is not there."""
        places = [self.folder, *_weights_folders()]
        for place in places:
            if self.weights and (place / self.weights).is_file():
                return place / self.weights
        raise WeightsMismatch(
            f"The weights of {self.name!r} ({self.weights or 'no file named'}) are not on this machine. Expected them "
            "beside the model's card or in the weights folder. Install the model again, or copy the file there."
        )


def read_card(path: Path) -> ModelCard:
    """Read a card from TOML; `UnknownModel` if it is not TOML, or a field is missing, unknown or of the wrong type."""
    try:
        table = {**read_table(path, toml=True), "folder": path.parent}
        card = structure(ModelCard, table, finite=False)  # nan is the Dice of a class that no case had
        if wrong := wrong_number(card, {"spacing_mm": Range(open="low"), "surface_mm": Range()}):
            raise ValueError(wrong)
        if not is_file_name(card.name):
            raise ValueError(f"{card.name[:80]!r} cannot be the name of a model: its files are called so")
        if card.labels and not 1 <= min(card.labels) <= max(card.labels) <= _LARGEST_LABEL:
            raise ValueError(f"labels are numbered from 1 to {_LARGEST_LABEL}; 0 is background and not listed")
        if card.weights != Path(card.weights).name:
            raise ValueError(f"weights is the name of a file beside the card, not {card.weights!r}")
        if card.training_data is not None and (wrong := card.training_data.problem(len(card.channels))):
            raise ValueError(wrong)
        half = card.half_precision
        if half is not None and set(half.dice_vs_float32) != set(card.labels.values()):
            raise ValueError(
                f"half_precision tells of {', '.join(half.dice_vs_float32)}; expected {', '.join(card.labels.values())}"
            )
        if card.validation is not None and not set(card.validation.classes) <= set(card.labels.values()):
            raise ValueError(f"validation tells of {', '.join(card.validation.classes)}, which are not all its classes")
    except (OSError, ValueError, UnknownModel) as error:
        raise UnknownModel(
            f"{path.name} is not a model card: {error}. Restore it, or remove it from its folder."
        ) from error
    return card


def write_card(card: ModelCard, path: Path) -> None:
    """Write a card as TOML, leaving out what is empty."""
    import tomli_w

    table = {
        name: _without_none(value)
        for name, value in dataclasses.asdict(card).items()
        if name != "folder" and value not in ("", (), {}, None, 0.0)
    }
    table["labels"] = {str(label): name for label, name in card.labels.items()}
    # TOML wants plain values before tables, for the reader's sake too.
    ordered = {k: v for k, v in table.items() if not isinstance(v, dict)} | {
        k: v for k, v in table.items() if isinstance(v, dict)
    }
    with atomic_write(path) as file:
        tomli_w.dump(ordered, file, multiline_strings=True)


def _without_none(value: Any) -> Any:
    """Return a value of a table without what TOML has no word for."""
    if not isinstance(value, dict):
        return value
    return {name: _without_none(one) for name, one in value.items() if one is not None}
