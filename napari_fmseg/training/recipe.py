"""Recipes: everything that a training run depends on, written once, as dataclasses and as TOML."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from napari_fmseg.core.errors import InvalidRecipe
from napari_fmseg.core.structuring import Range, is_file_name, wrong_number
from napari_fmseg.datasets.case import IGNORE_NAME, Case
from napari_fmseg.models.card import Intensity
from napari_fmseg.models.settings import SETTINGS
from napari_fmseg.pipelines import PIPELINES

__all__ = ["Augment", "Recipe", "Replay", "StageRecipe"]


"""What nnU-Net calls the voxels that nobody labelled."""


MOST_LABELS = 254


LOSSES = (
    "attn",
    "attn_v2",
    "tversky",
    "dice",
    "jaccard",
    "dice_ce",
    "dice_ce_balanced",
    "dice_ce_by_class",
    "dice+bce",
    "dice+focal",
    "dice+topk",
    "dice+boundary",
)


_SHARE = Range(0, 1)


_AUGMENT_RANGES = {
    "focus": _SHARE,
    "shift": _SHARE,
    "zoom": Range(0, 1, open="high"),
    "rotate_deg": Range(0, 180),
    "rotate_p": _SHARE,
    "contrast": Range(0, 100),
    "brightness": Range(0, 100),
    "gamma": Range(0, 10),
    "noise": Range(0, 100),
    "jitter_mm": Range(0, 10_000),
    "label_brightness": Range(),
}


@dataclass(frozen=True)
class Augment:
    """How training volumes are varied.

    Parameters
    ----------
    flip
        Axes out of ``"zyx"`` that may be mirrored; x is left-right.
    swap
        Pairs of class names that change places when x is mirrored (left and right organs).
    focus
        Share of the patches of a single network that lie around a structure, 0..1; the others lie anywhere.
    shift
        Largest shift of the window, as a share of its size.
    zoom
        Largest change of the window's size, as a share of it.
    rotate_deg
        Largest turn about any axis, in degrees.
    rotate_p
        How often a turn happens, 0..1.
    contrast
        Intensities (0..1) are multiplied by 1 - contrast to 1 + contrast.
    brightness
        Largest value that is added to intensities.
    gamma
        Intensities are raised to a power of exp(-gamma) to exp(gamma).
    noise
        Largest standard deviation of the noise that half of the samples get.
    jitter_mm
        For a fine stage: in half of the samples each face of the box around the labels moves on its own, by up to so
        many millimetres outwards or a third of it inwards. Published: 40. The other half has the pipeline's margin.
    label_brightness
        For a fine stage: up to so much is added to, or taken from, all voxels of a structure, in the unit of the
        images, of each structure in half of the samples. Published: 200 HU; 0 not at all.
    """

    flip: str = ""
    swap: tuple[tuple[str, str], ...] = ()
    focus: float = 0.5
    shift: float = 0.06
    zoom: float = 0.12
    rotate_deg: float = 10.0
    rotate_p: float = 0.3
    contrast: float = 0.2
    brightness: float = 0.1
    gamma: float = 0.3
    noise: float = 0.03
    jitter_mm: float = 40.0
    label_brightness: float = 0.0

    def __post_init__(self) -> None:
        if wrong := wrong_number(self, _AUGMENT_RANGES, "augment."):
            raise InvalidRecipe(f"{wrong}.")
        if set(self.flip) - set("zyx"):
            raise InvalidRecipe(f"augment.flip is made of the axes z, y and x, not {self.flip!r}.")


_STAGE_RANGES = {
    "heads": Range(0, 100),
    "steps": Range(1, 10**9),
    "steps_per_epoch": Range(1, 10**8),
    "batch": Range(1, 4096),
    "lr": Range(0, 1000, open="low"),
    "weight_decay": Range(0, 1000),
    "clip": Range(0, open="low"),
    "patience": Range(),
}


@dataclass(frozen=True)
class StageRecipe:
    """How one network of the pipeline is trained.

    Parameters
    ----------
    stage
        Its name in the pipeline: ``"consensus"``, ``"attention"`` or ``"edge"``; ``"coarse"`` or ``"fine"``; ``"net"``
        where there is one only.
    network
        Its name in the registry: ``"snet"``, ``"attnnet"`` or ``"edgenet"``; any other for ``"net"``.
    kwargs
        Its arguments beside channels and classes, such as ``width``.
    loss
        ``"attn"`` (published for consensus and edge), ``"attn_v2"``, ``"tversky"`` (published for attention),
        ``"dice"``, ``"jaccard"``, ``"dice_ce"``, ``"dice_ce_balanced"`` for many small structures,
        ``"dice_ce_by_class"`` for a small one inside a large one. Those of EfficientSegmentation, over the structures
        without the background: ``"dice+bce"``, ``"dice+focal"``, ``"dice+topk"`` (the hardest 30 % of the voxels) and
        ``"dice+boundary"`` (not where voxels are unlabelled); ``"dice"`` is its own for a network with a sigmoid.
    heads
        How many of the maps that the network gives while it learns are compared, finest first; 0 for all.
    steps
        Optimiser steps in all.
    steps_per_epoch
        Steps between two validations, each of which ends an epoch.
    batch
        Samples per step.
    lr
        Highest learning rate.
    optimiser
        ``"adamw"``, or ``"adam"``, as MIS-FM.
    weight_decay
        Of the optimiser.
    clip
        Largest norm of the gradient.
    schedule
        ``"cosine"`` (a short rise, then down to 0), ``"plateau"`` (as published: a fifth when the loss stalls),
        ``"polynomial"`` (down to 0 epoch by epoch, as MIS-FM) or ``"constant"``.
    patience
        Stop after so many epochs without a better validation; 0 never.
    init_from
        A stage trained before whose weights are the start, where shapes fit; "" draws new ones.
    """

    stage: str
    network: str
    loss: str = "dice_ce"
    heads: int = 0
    steps: int = 1000
    steps_per_epoch: int = 100
    batch: int = 2
    lr: float = 1e-3
    optimiser: str = "adamw"
    weight_decay: float = 1e-5
    clip: float = 12.0
    schedule: str = "cosine"
    patience: int = 0
    init_from: str = ""
    kwargs: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.loss not in LOSSES or self.schedule not in ("cosine", "plateau", "polynomial", "constant"):
            raise InvalidRecipe(
                f"Stage {self.stage!r}: loss {self.loss!r} is one of {', '.join(LOSSES)}; "
                f"schedule {self.schedule!r} is cosine, plateau, polynomial or constant."
            )
        if self.optimiser not in ("adam", "adamw"):
            raise InvalidRecipe(f"Stage {self.stage!r}: optimiser is adam or adamw, not {self.optimiser!r}.")
        if wrong := wrong_number(self, _STAGE_RANGES):
            raise InvalidRecipe(f"Stage {self.stage!r}: {wrong}.")


@dataclass(frozen=True)
class Replay:
    """Cases of before, with labels of their own, that keep what a model knew.

    Parameters
    ----------
    dataset
        Their folder; its own list of validation cases, or every fifth case, validates.
    training, validation
        The cases, when there is no `dataset`.
    holdout
        Names of the dataset's cases that validate.
    names
        What their classes are called in this recipe, where it is something else: ``{"LA" = "left_atrium"}``.
    classes
        The recipe's classes that are known not to hide in their background; empty for those that they were labelled
        with.
    most
        Learn from at most so many of them, evenly chosen; 0 takes all.
    watch
        Do not learn from them, only show what becomes of their classes; they do not choose the best epoch either.
    """

    dataset: Path | None = None
    training: tuple[Case, ...] = ()
    validation: tuple[Case, ...] = ()
    holdout: tuple[str, ...] = ()
    names: Mapping[str, str] = field(default_factory=dict)
    classes: tuple[str, ...] = ()
    most: int = 0
    watch: bool = False

    def __post_init__(self) -> None:
        if (self.dataset is None) == (not self.training and not self.validation):
            raise InvalidRecipe("A replay needs either a dataset folder or lists of cases.")
        if wrong := wrong_number(self, {"most": Range()}, "replay."):
            raise InvalidRecipe(f"{wrong}.")


_RECIPE_RANGES = {
    "phantom": Range(0, 100_000),
    "ignore": Range(0, 65_535),
    "folds": Range(0, 1000),
    "fold": Range(0, 1000),
    "hard_case_weight": Range(0, 1000),
    "replay_share": _SHARE,
    "l2sp_weight": Range(),
    "distillation_weight": Range(),
    "validate_cases": Range(),
    "seed": Range(0, 2**32 - 1),
    "devices": Range(1, 1024),
    "processes": Range(0, 1024),
}


@dataclass(frozen=True)
class Recipe:
    """Everything that a training run depends on.

    Parameters
    ----------
    name
        To type; the files of the model that comes out are called so.
    title
        To read.
    stages
        What to train, in order. Stages that the pipeline has and that are not listed come from `start_from`.
    dataset
        A folder in the nnU-Net raw layout (imagesTr, labelsTr, dataset.json), or with case lists in its
        dataset.json.
    phantom
        Instead of a folder: how many phantom CTs to make for training and for validation.
    training
        Cases to learn from, when there is no `dataset`.
    validation
        Cases to validate on, when there is no `dataset`.
    holdout
        Names of the dataset's cases that validate; else its own list, else every fifth case by name.
    labels
        Class names in the order of the model's labels 1, 2...; they are looked up in dataset.json.
    ignore
        The number in the label files that means "not labelled"; such voxels are never learned from nor counted. 0: what
        dataset.json calls "ignore", as nnU-Net does.
    start_from
        A model to fine-tune, by name or card; "" starts anew.
    out
        Folder of the run: checkpoints, then the model's card and weights.
    pipeline
        How the networks are combined.
    settings
        Of the pipeline: grids, window, margins.
    intensity
        How intensities become 0..1.
    channels
        Names of the input channels.
    modality
        ``"CT"``, ``"MR"`` or ``"PET"``; of another one the user is warned.
    body_part
        Where in the body.
    augment
        See `Augment`.
    folds, fold
        Cross-validation: split all cases into so many folds by what their images show, and validate on this one,
        counted from 1; `holdout` and the dataset's own list have no effect then. 0 does not. See
        `napari_fmseg.datasets.folds`.
    hard_case_weight
        Draw the hardest fifth of the cases so many times more often than the others: those on whose samples the Dice
        of the last epoch was lowest. 0 not at all. Published: 3, for cases chosen by hand.
    hard_cases
        Names of the hard cases, when they are known; nothing is measured then.
    balance
        Draw every class as often as any other, however few cases have it, rather than every case.
    replay
        Cases of before: see `Replay`.
    replay_share
        Share of the samples that are theirs, 0..1.
    l2sp_weight
        How strongly weights are held near those of `start_from` (L2-SP); 0 not at all. Try 0.01.
    distillation_weight
        How strongly the answers of `start_from` about its classes are kept; 0 not at all. Try 1. For where the cases of
        before are not there.
    validate_cases
        Validate on so many cases after each epoch (all of them at the end); 0 takes all.
    seed
        Random seed: the same one gives the same weights on a CPU.
    devices
        Number of processes, one per GPU.
    device
        ``"auto"`` (CUDA, then MPS, then CPU), ``"cpu"``, ``"cuda"`` or ``"mps"``.
    precision
        ``"auto"`` (16 bit on CUDA), ``"float32"``, ``"bfloat16"`` or ``"float16"``.
    licence
        Of the weights, for the card.
    restriction
        What the data's licence forbids, for the card; it is shown before first use.
    citation
        The paper, for the card.
    trained_on
        The data, with case counts, for the card.
    limits
        What the model cannot do, for the card.
    half
        Write the finished weights in float16.
    prepared
        Folder for volumes that were made smaller once (coarse-to-fine only); recipes for the same grids may share it.
        Else `out`/prepared. It may be removed when training is over.
    processes
        How many processes make them smaller; 0: as many as are worth it.
    tensorboard
        Write files for TensorBoard into the run's folder, beside `history.jsonl`, which is always written.
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
    ignore: int = 0
    start_from: str = ""
    pipeline: str = "phased"
    settings: Mapping[str, Any] = field(default_factory=dict)
    intensity: Intensity = field(default_factory=Intensity)
    channels: tuple[str, ...] = ("image",)
    modality: str = ""
    body_part: str = ""
    augment: Augment = field(default_factory=Augment)
    folds: int = 0
    fold: int = 0
    hard_case_weight: int = 0
    hard_cases: tuple[str, ...] = ()
    balance: bool = False
    replay: tuple[Replay, ...] = ()
    replay_share: float = 0.5
    l2sp_weight: float = 0.0
    distillation_weight: float = 0.0
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
    prepared: Path | None = None
    processes: int = 0
    tensorboard: bool = False

    def __post_init__(self) -> None:
        if not self.name or not self.stages or not self.labels:
            raise InvalidRecipe("A recipe needs a name, at least one label and at least one stage.")
        if sum((self.dataset is not None, bool(self.training), bool(self.phantom))) != 1:
            raise InvalidRecipe(
                "A recipe needs one of: a dataset folder, a list of training cases, a number of phantoms."
            )
        if self.phantom and len(self.phantom) != 2:
            raise InvalidRecipe("phantom is two numbers: how many to train on, how many to validate on.")
        if wrong := wrong_number(self, _RECIPE_RANGES):
            raise InvalidRecipe(f"{wrong}.")
        if self.phantom and self.phantom[0] < 1:
            raise InvalidRecipe(f"phantom needs at least one case to train on, not {self.phantom[0]}.")
        if not is_file_name(self.name):
            raise InvalidRecipe(
                f"name is the name of a file: no folder, and no dot at its beginning; not {self.name!r}."
            )
        if len(self.labels) > MOST_LABELS or IGNORE_NAME in self.labels:
            raise InvalidRecipe(
                f"labels are at most {MOST_LABELS} classes, and {IGNORE_NAME!r} is none: it is what dataset.json calls "
                "voxels that nobody labelled. Leave it out."
            )
        if len(set(self.labels)) != len(self.labels):
            raise InvalidRecipe(f"labels has a name twice: {', '.join(self.labels)}.")
        unknown = [name for pair in self.augment.swap for name in pair if name not in self.labels]
        if unknown:
            raise InvalidRecipe(
                f"augment.swap names {unknown[0]!r}, which is none of the labels {', '.join(self.labels)}."
            )
        if self.pipeline not in PIPELINES:
            raise InvalidRecipe(f"There is no pipeline {self.pipeline!r}. Known: {', '.join(PIPELINES)}.")
        if self.precision not in ("auto", "float32", "bfloat16", "float16"):
            raise InvalidRecipe(f"precision is auto, float32, bfloat16 or float16, not {self.precision!r}.")
        if (self.folds or self.fold) and not (self.folds >= 2 and 1 <= self.fold <= self.folds):
            raise InvalidRecipe(
                f"folds is at least 2 and fold counts from 1 to it, not {self.folds} and {self.fold}. For 5-fold "
                "cross-validation train with folds = 5 five times, with fold = 1 to 5 and another `out` each."
            )
        if self.hard_cases and not self.hard_case_weight:
            raise InvalidRecipe("hard_cases needs hard_case_weight of at least 1.")
        self._check_memory()
        self._check_order()
        SETTINGS[self.pipeline].of(self.settings)

    def _check_memory(self) -> None:
        """Check the options that keep previously learned classes."""
        if (self.l2sp_weight or self.distillation_weight) and not self.start_from:
            raise InvalidRecipe("l2sp_weight and distillation_weight hold on to a model: name it in start_from.")

    def _check_order(self) -> None:
        """Check that a stage starts from the weights of an earlier one only."""
        before: list[str] = []
        for stage in self.stages:
            if stage.init_from and stage.init_from not in before and not self.start_from:
                raise InvalidRecipe(
                    f"Stage {stage.stage!r}: init_from is a stage that was trained before it, not {stage.init_from!r}."
                )
            before.append(stage.stage)
