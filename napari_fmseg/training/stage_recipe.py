"""How one network is trained and how its samples are augmented: the parts of a recipe that belong to a stage."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from napari_fmseg.core.errors import InvalidRecipe
from napari_fmseg.core.structuring import Range, wrong_number

__all__ = ["LOSSES", "Augment", "StageRecipe"]

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
    """How training volumes are augmented.

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
