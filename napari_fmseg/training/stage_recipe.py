"""How one network is trained and how its samples are augmented: the parts of a recipe that belong to a stage."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from napari_fmseg.core.errors import InvalidRecipe
from napari_fmseg.core.structuring import Range, wrong_number

__all__ = ["LOSSES", "Augment", "StageRecipe", "member_of"]

LOSSES = (
    "attn",
    "attn_v2",
    "tversky",
    "dice",
    "jaccard",
    "dice_ce",
    "dice_ce_balanced",
    "dice_ce_by_class",
    "soft_dice_ce",
    "soft_dice_ce_by_class",
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
    "stretch": _SHARE,
    "elastic": _SHARE,
    "bias": Range(0, 10),
    "blur": _SHARE,
    "mix": _SHARE,
}


@dataclass(frozen=True)
class Augment:
    """How training volumes are augmented.

    `stretch` and `elastic` act where a view is drawn in one resampling: consensus, attention and patches, not in
    coarse-to-fine models and the edge stage.

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
    stretch
        Further largest change of the window's size along z, as a share of it; the window also shifts more along z.
    elastic
        Standard deviation of an elastic deformation that half of the samples get, as a share of the distance of its
        knots, about 14 voxels.
    bias
        Standard deviation of a smooth field that three in ten samples are multiplied by, as coils make it in MR.
    blur
        How often a sample is blurred.
    mix
        How often the two samples of a step exchange a box (copy-paste between labelled cases).
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
    stretch: float = 0.0
    elastic: float = 0.0
    bias: float = 0.0
    blur: float = 0.0
    mix: float = 0.0

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
    "minutes": Range(0, 7 * 24 * 60),
    "ema": Range(0, 1, open="high"),
}


def member_of(name: str) -> str:
    """Return the stage of which a network is a member: ``"attention"`` of ``"attention-2"``, and of itself."""
    stage, _, number = name.rpartition("-")
    return stage if stage and number.isdecimal() and int(number) > 1 else name


@dataclass(frozen=True)
class StageRecipe:
    """How one network of the pipeline is trained.

    Parameters
    ----------
    stage
        Its name in the pipeline: ``"consensus"``, ``"attention"`` or ``"edge"``; ``"coarse"`` or ``"fine"``; ``"net"``
        where there is one only. With ``"-2"``, ``"-3"`` and so on behind it, it is trained as a further member of an
        ensemble, whose probabilities are averaged.
    network
        Its name in the registry: ``"snet"``, ``"attnnet"`` or ``"edgenet"``; any other for ``"net"``.
    kwargs
        Its arguments beside channels and classes, such as ``width``.
    loss
        ``"attn"`` (published for consensus and edge), ``"attn_v2"``, ``"tversky"`` (published for attention),
        ``"dice"``, ``"jaccard"``, ``"dice_ce"``, ``"dice_ce_balanced"`` for many small structures,
        ``"dice_ce_by_class"`` for a small one inside a large one; ``"soft_dice_ce"`` and ``"soft_dice_ce_by_class"``,
        with a Dice that is linear in the probabilities, are the fastest. Those of EfficientSegmentation, over the
        structures without the background: ``"dice+bce"``, ``"dice+focal"``, ``"dice+topk"`` (the hardest 30 % of the
        voxels) and ``"dice+boundary"`` (not where voxels are unlabelled); ``"dice"`` is its own for a network with a
        sigmoid.
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
    minutes
        Train so long, instead of a number of steps: validations included, with as many epochs as `steps` and
        `steps_per_epoch` give, each of as many steps as there is time for. 0 goes by steps.
    ema
        Decay of the moving average of the weights, which is what is validated and kept: 0.99 averages about the last
        hundred steps. 0 keeps the weights of the last step.
    keep
        ``"best"``: the weights of the best validation; ``"last"``: those at the end, so that no validation case chose
        anything.
    init_from
        A stage trained before whose weights are the start, where shapes fit; "" draws new ones. A FastUNet with one
        level more, for single voxels, takes the other levels.
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
    minutes: float = 0.0
    ema: float = 0.0
    keep: str = "best"
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
        if self.keep not in ("best", "last"):
            raise InvalidRecipe(f"Stage {self.stage!r}: keep is best or last, not {self.keep!r}.")
        if wrong := wrong_number(self, _STAGE_RANGES):
            raise InvalidRecipe(f"Stage {self.stage!r}: {wrong}.")
