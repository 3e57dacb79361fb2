"""The task of a model that nnU-Net trained: its windows at its spacing, in its order of the axes."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from napari_fmseg.core.errors import InvalidRecipe
from napari_fmseg.models.settings import NNUNetSettings, SingleSettings
from napari_fmseg.training.data.augmentation import augment_intensity
from napari_fmseg.training.data.samples import Sample
from napari_fmseg.training.recipe import Augment, Recipe, StageRecipe
from napari_fmseg.training.tasks.base import Labelled
from napari_fmseg.training.tasks.single import PatchTask, find_places

__all__ = ["NNUNetTask"]


class NNUNetTask(PatchTask):
    """Samples windows of a case as the pipeline shows them to the network, y to anterior and x to right.

    Raises
    ------
    InvalidRecipe
        For models of two dimensions, of two stages or with overlapping regions, which only run here.
    """

    def __init__(
        self, stage: StageRecipe, recipe: Recipe, samples: Sequence[Sample], frozen: Mapping[str, nn.Module]
    ) -> None:
        own = NNUNetSettings.of(recipe.settings)
        if own.sees_slices or own.lowres or own.regions or stage.stage != "windows":
            raise InvalidRecipe(
                "A model of nnU-Net that sees slices, has two stages or overlapping regions can be run, but not "
                "trained further. Start from its 3d_fullres configuration, or from another model."
            )
        Labelled.__init__(self, stage, recipe, [_turn(case, own) for case in samples])
        self.settings = SingleSettings(own.window, spacing_mm=own.spacing_mm)
        self.places = [find_places(case.labels) for case in self.samples]

    def change_intensity(self, x: Tensor, augment: Augment, rng: np.random.Generator, noise: torch.Generator) -> Tensor:
        """Return the patch with its intensities, z-scores, changed as if its range were 0..1."""
        low, high = x.amin((1, 2, 3), keepdim=True), x.amax((1, 2, 3), keepdim=True)
        span = (high - low).clamp_min(1e-6)
        return augment_intensity((x - low) / span, augment, rng, noise) * span + low


def _turn(case: Sample, settings: NNUNetSettings) -> Sample:
    """Return a canonical case (y to posterior, x to left) in the order of the network."""
    a, b, c = settings.axes
    image = case.image.flip((2, 3)).permute(0, a + 1, b + 1, c + 1).contiguous()
    labels = case.labels.flip((1, 2)).permute(a, b, c).contiguous()
    spacing = (case.spacing[a], case.spacing[b], case.spacing[c])
    return dataclasses.replace(case, image=image, labels=labels, spacing=spacing)
