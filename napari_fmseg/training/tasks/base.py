"""What all tasks share: a loss by name, and its value for a target that may be partly unlabelled.

A network with a softmax gives every class a probability, background included; the classes exclude each other. One with
a sigmoid gives every structure a probability of its own: structures may overlap, and the background has none.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from functools import partial
from typing import Protocol, TypeAlias

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from napari_fmseg.core.errors import InvalidRecipe
from napari_fmseg.models.card import Intensity
from napari_fmseg.nets.traits import probabilities
from napari_fmseg.training.data.samples import Sample
from napari_fmseg.training.losses import fmsf
from napari_fmseg.training.losses.partial_labels import partial_loss, partial_structures
from napari_fmseg.training.losses.soft_dice_ce import SoftDiceCELoss
from napari_fmseg.training.losses.structures import STRUCTURE_LOSSES, StructureLoss
from napari_fmseg.training.recipe import Augment, Recipe, StageRecipe

__all__ = ["Labelled", "Task", "make_loss", "make_structure_loss"]


FADE = 0.25
"""Share of the training over which the class weights of `SoftDiceCELoss` fade."""

Missing: TypeAlias = Sequence[Sequence[int]]


class Task(Protocol):
    """What the training loop needs of a stage.

    Attributes
    ----------
    remarks
        What the user should know before it starts, a sentence each.
    """

    remarks: Sequence[str]

    def sample(
        self, index: int, rng: np.random.Generator, noise: torch.Generator, focus: int = 0
    ) -> tuple[list[Tensor], Tensor]:
        """Return the inputs, each (c, z, y, x), and the target (classes, z, y, x) of one case, augmented.

        `focus` is a class that the sample should show, 0 for none.
        """

    def heads(self, net: nn.Module, inputs: Sequence[Tensor]) -> Sequence[Tensor]:
        """Return the probabilities of every head of the network, finest first."""

    def set_progress(self, progress: float) -> None:
        """Set the share of the training that is done, 0..1, before every step."""

    def loss_of_heads(self, heads: Sequence[Tensor], target: Tensor, missing: Missing) -> Tensor:
        """Return the loss of a batch; `missing` holds for each sample the classes that it was never labelled with."""


def make_loss(name: str) -> nn.Module:
    """Make the loss that a recipe names, for classes that exclude each other: (b, classes, z, y, x) with background."""
    kinds: dict[str, Callable[[], nn.Module]] = {
        "attn": fmsf.AttnLoss,
        "attn_v2": fmsf.AttnLossV2,
        "tversky": fmsf.TverskyLoss,
        "dice": fmsf.DiceLoss,
        "jaccard": fmsf.JaccardLoss,
        "dice_ce": fmsf.DiceCELoss,
        "dice_ce_balanced": partial(fmsf.DiceCELoss, balanced=True),
        "dice_ce_by_class": partial(fmsf.DiceCELoss, by_class=True),
        "soft_dice_ce": SoftDiceCELoss,
        "soft_dice_ce_by_class": partial(SoftDiceCELoss, by_class=True),
    }
    return kinds[name]() if name in kinds else _Foreground(name)


def make_structure_loss(name: str) -> Callable[..., Tensor]:
    """Make the loss that a recipe names, for structures that may overlap: (b, structures, z, y, x).

    Those of EfficientSegmentation are made for them (``"dice"`` is theirs here). Of the others each structure is asked
    about alone, as inside or outside, and the mean is taken.
    """
    return StructureLoss(name).of if name in STRUCTURE_LOSSES else _ByStructure(name)


class _Foreground(nn.Module):
    """A loss of structures for classes that exclude each other: the background has no term of its own."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.of = StructureLoss(name).of

    def forward(self, prediction: Tensor, target: Tensor, weight: Tensor | None = None) -> Tensor:
        return self.of(prediction[:, 1:], target[:, 1:], weight)


class _ByStructure(nn.Module):
    """A loss of classes for structures that may overlap: the mean over each against everything else."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.criterion = make_loss(name)

    def forward(self, prediction: Tensor, target: Tensor, weight: Tensor | None = None) -> Tensor:
        parts = []
        for i in range(prediction.shape[1]):
            p, t = prediction[:, i : i + 1], target[:, i : i + 1]
            parts.append(self.criterion(torch.cat([1 - p, p], 1), torch.cat([1 - t, t], 1), weight))
        return torch.stack(parts).mean()


class Labelled:
    """What the tasks share: the labelled cases, their augmentation, and the loss of a prediction."""

    def __init__(self, stage: StageRecipe, recipe: Recipe, samples: Sequence[Sample]) -> None:
        self.intensity: Intensity = recipe.intensity
        self.augment: Augment = recipe.augment
        self.samples = samples
        self.remarks: Sequence[str] = ()
        self.n_classes = len(recipe.labels) + 1
        self.swap = [(recipe.labels.index(a) + 1, recipe.labels.index(b) + 1) for a, b in recipe.augment.swap]
        self.criterion, self.structure_criterion = make_loss(stage.loss), make_structure_loss(stage.loss)
        self.sparse = any(case.is_sparse for case in samples)
        if self.sparse and stage.loss == "dice+boundary":
            raise InvalidRecipe(
                f"Stage {stage.stage!r}: the loss 'dice+boundary' measures how deep voxels lie in a structure, which "
                "nobody knows where voxels are not labelled. Take 'dice+bce' or 'dice+topk', or label the cases fully."
            )
        if stage.kwargs.get("auxiliary"):
            raise InvalidRecipe(
                f"Stage {stage.stage!r}: a second head for heat maps has nothing here to learn from. Leave out "
                "'auxiliary'."
            )

    def augment_of(self, case: Sample) -> Augment:
        """Return the augmentation of a case: without mirroring where only one of two paired organs is labelled."""
        torn = any((a in case.missing) != (b in case.missing) for a, b in self.swap)
        return dataclasses.replace(self.augment, flip=self.augment.flip.replace("x", "")) if torn else self.augment

    def set_progress(self, progress: float) -> None:
        """Set the share of the training that is done, 0..1: class weights of `SoftDiceCELoss` fade."""
        for criterion in (self.criterion, getattr(self.structure_criterion, "criterion", None)):
            if isinstance(criterion, SoftDiceCELoss):
                criterion.emphasis = max(0.0, 1 - progress / FADE)

    def heads(self, net: nn.Module, inputs: Sequence[Tensor]) -> Sequence[Tensor]:
        """Return the probabilities of every head, finest first."""
        heads = net(*inputs)
        return [probabilities(net, head) for head in (heads if isinstance(heads, tuple | list) else (heads,))]

    def loss(self, net: nn.Module, inputs: Sequence[Tensor], target: Tensor, missing: Missing = ()) -> Tensor:
        """Return the loss of a batch."""
        return self.loss_of_heads(self.heads(net, inputs), target, missing)

    def loss_of_heads(self, heads: Sequence[Tensor], target: Tensor, missing: Missing) -> Tensor:
        """Sum the loss of probabilities over the heads: the finest on the target's grid, the others on their own.

        The published code zooms all heads to the full size first; comparing where they live costs a fraction of it.
        """
        weights = fmsf.deep_supervision_weights(len(heads))
        total = torch.zeros((), device=target.device)
        for weight, head in zip(weights, heads, strict=True):
            there = _on(target, head.shape[2:])
            if head.shape[1] == target.shape[1] - 1:
                part = partial_structures(self.structure_criterion, head, there, sparse=self.sparse, missing=missing)
            else:
                part = partial_loss(self.criterion, head, there, sparse=self.sparse, missing=missing)
            total = total + weight * part
        return total


def _on(target: Tensor, size: Sequence[int]) -> Tensor:
    z, y, x = size
    return target if tuple(target.shape[2:]) == (z, y, x) else F.adaptive_avg_pool3d(target, (z, y, x))
