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
from napari_fmseg.models.settings import PIPELINES
from napari_fmseg.training.stage_recipe import LOSSES, Augment, StageRecipe
from napari_fmseg.training.tasks import TASKS

__all__ = ["LOSSES", "Augment", "Recipe", "Replay", "StageRecipe"]


MOST_LABELS = 254
_SHARE = Range(0, 1)


@dataclass(frozen=True)
class Replay:
    """Previously learned cases, with labels of their own, so that a model does not forget.

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
    "unlabelled_weight": _SHARE,
    "unlabelled_from": _SHARE,
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
    unlabelled
        Cases without labels to learn from as well, by bidirectional copy-paste (Bai et al., CVPR 2023,
        arXiv:2305.00673): boxes of labelled and unlabelled volumes are exchanged, and the moving average of the network
        labels the others. A list of cases, or a folder: every volume in it and below it, where ``NAME_0000``,
        ``NAME_0001``... are the channels of one. Volumes that show a labelled or held-out case are left out, wherever
        they lie. If empty, with a `dataset`, its own cases without labels.
    unlabelled_weight
        How much a voxel that the network labelled itself counts beside one that somebody labelled; 0 does not learn
        from unlabelled cases. Only for stages with an `ema`.
    unlabelled_from
        Share of the training after which they are learned from.
    clock
        What `StageRecipe.minutes` are: ``"wall"``, as a clock shows, or ``"processor"``, of computing time.
    validate_cases
        Validate on so many cases after each epoch (all of them at the end); 0 takes all.
    seed
        Random seed: the same one gives the same weights on the same CPU with as many threads.
    devices
        Number of processes, one per GPU.
    device
        ``"auto"`` (CUDA, then MPS, then CPU), ``"cpu"``, ``"cuda"`` or ``"mps"``.
    precision
        ``"auto"`` (16 bit on CUDA), ``"float32"``, ``"bfloat16"`` or ``"float16"``. Where bfloat16
        would corrupt memory (on a CPU, planes above 64 x 64, torch 2.13) a stage is trained in float32 all the same.
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
    unlabelled: tuple[Case, ...] | Path = ()
    unlabelled_weight: float = 0.0
    unlabelled_from: float = 0.25
    clock: str = "wall"
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
        if self.clock not in ("wall", "processor"):
            raise InvalidRecipe(f"clock is wall or processor, not {self.clock!r}.")
        if self.precision not in ("auto", "float32", "bfloat16", "float16"):
            raise InvalidRecipe(f"precision is auto, float32, bfloat16 or float16, not {self.precision!r}.")
        if (self.folds or self.fold) and not (self.folds >= 2 and 1 <= self.fold <= self.folds):
            raise InvalidRecipe(
                f"folds is at least 2 and fold counts from 1 to it, not {self.folds} and {self.fold}. For 5-fold "
                "cross-validation train with folds = 5 five times, with fold = 1 to 5 and another `out` each."
            )
        if self.hard_cases and not self.hard_case_weight:
            raise InvalidRecipe("hard_cases needs hard_case_weight of at least 1.")
        if self.unlabelled and not (self.unlabelled_weight and any(stage.ema for stage in self.stages)):
            raise InvalidRecipe(
                "unlabelled needs an unlabelled_weight above 0, such as 0.5, and a stage with an ema, such as 0.99."
            )
        if self.unlabelled and self.pipeline in TASKS and TASKS[self.pipeline].caches_cases:
            raise InvalidRecipe(f"Models of the pipeline {self.pipeline!r} cannot learn from unlabelled cases.")
        self._check_memory()
        self._check_order()
        PIPELINES[self.pipeline].settings.of(self.settings)

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
