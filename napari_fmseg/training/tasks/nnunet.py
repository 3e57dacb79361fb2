"""The task of a model that nnU-Net trained: its windows at its spacing, in its order of the axes."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

from torch import nn

from napari_fmseg.core.errors import InvalidRecipe
from napari_fmseg.models.settings import NNUNetSettings, SingleSettings
from napari_fmseg.training.data.samples import Sample
from napari_fmseg.training.recipe import Recipe, StageRecipe
from napari_fmseg.training.stage_recipe import member_of
from napari_fmseg.training.tasks.base import Labelled
from napari_fmseg.training.tasks.single import PatchTask

__all__ = ["NNUNetTask"]


class NNUNetTask(PatchTask):
    """Samples windows of a case as the pipeline shows them to the network, y to anterior and x to right.

    Raises
    ------
    InvalidRecipe
        For models of two stages or with overlapping regions, which only run here.
    """

    def __init__(
        self, stage: StageRecipe, recipe: Recipe, samples: Sequence[Sample], frozen: Mapping[str, nn.Module]
    ) -> None:
        own = NNUNetSettings.of(recipe.settings)
        if own.lowres or own.regions or member_of(stage.stage) != "windows":
            raise InvalidRecipe(
                "A model of nnU-Net that has two stages or overlapping regions can be run, but not trained further. "
                "Start from its 3d_fullres configuration, or from another model."
            )
        Labelled.__init__(self, stage, recipe, [_turn(case, own) for case in samples])
        self.settings, self._spacing = SingleSettings(own.window), own.spacing_mm
        self.use_cases(self.samples)

    def spacing_of(self, case: Sample) -> Sequence[float]:
        """Return the spacing of the patches of a case: across slices that are seen alone, the case's own."""
        return [want or have for want, have in zip(self._spacing, case.spacing, strict=True)]


def _turn(case: Sample, settings: NNUNetSettings) -> Sample:
    """Return a canonical case (y to posterior, x to left) in the order of the network."""
    a, b, c = settings.axes
    image = case.image.flip((2, 3)).permute(0, a + 1, b + 1, c + 1).contiguous()
    labels = case.labels.flip((1, 2)).permute(a, b, c).contiguous()
    spacing = (case.spacing[a], case.spacing[b], case.spacing[c])
    return dataclasses.replace(case, image=image, labels=labels, spacing=spacing)
