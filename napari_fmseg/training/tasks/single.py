"""The task of a single network on patches: windows of the volume around labels."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from napari_fmseg.core.errors import InvalidRecipe
from napari_fmseg.core.resampling_torch import resize
from napari_fmseg.datasets.case import IGNORE
from napari_fmseg.models.settings import SingleSettings
from napari_fmseg.training.data.augmentation import augment_intensity
from napari_fmseg.training.data.samples import Sample
from napari_fmseg.training.data.views import draw_view, make_region
from napari_fmseg.training.recipe import Augment, Recipe, StageRecipe
from napari_fmseg.training.stage_recipe import member_of
from napari_fmseg.training.tasks.base import Labelled

__all__ = ["PatchTask"]


class PatchTask(Labelled):
    """Samples patches of the pipeline's window at the pipeline's spacing.

    A patch lies around a labelled voxel: a share of them, `Augment.focus`, around a voxel of a structure, the others
    anywhere. With a class to look at, around one of that class.
    """

    def __init__(
        self, stage: StageRecipe, recipe: Recipe, samples: Sequence[Sample], frozen: Mapping[str, nn.Module]
    ) -> None:
        super().__init__(stage, recipe, samples)
        if member_of(stage.stage) != "net":
            raise InvalidRecipe(f"The single pipeline has one stage, 'net', not {stage.stage!r}.")
        self.settings = SingleSettings.of(recipe.settings)
        self.use_cases(samples)

    def use_cases(self, samples: Sequence[Sample]) -> None:
        """Resample the cases from which patches are drawn to the pipeline's voxels."""
        self.cases = [_at_spacing(case, self.spacing_of(case)) for case in samples]
        self.places = [_places(case.labels) for case in self.cases]

    def spacing_of(self, case: Sample) -> Sequence[float]:
        """Return the spacing of the patches of a case; () for its own."""
        return self.settings.spacing_mm

    def sample(
        self, index: int, rng: np.random.Generator, noise: torch.Generator, focus: int = 0
    ) -> tuple[list[Tensor], Tensor]:
        """Return a patch and its target; see `Task`."""
        case, augment, size = self.cases[index], self.augment_of(self.samples[index]), self.settings.window
        region = make_region(case, self._window(index, rng, focus), size, self.n_classes, margin=_MARGIN)
        x, target = draw_view(region, size, augment, self.swap, rng)
        return [self._change_intensity(x, augment, rng, noise)], target

    def _change_intensity(
        self, x: Tensor, augment: Augment, rng: np.random.Generator, noise: torch.Generator
    ) -> Tensor:
        """Return a patch with its intensities changed at random; z-scores as if their range were 0..1."""
        if not self.intensity.kind.endswith("zscore"):
            return augment_intensity(x, augment, rng, noise)
        low, high = x.amin((1, 2, 3), keepdim=True), x.amax((1, 2, 3), keepdim=True)
        span = (high - low).clamp_min(1e-6)
        return augment_intensity((x - low) / span, augment, rng, noise) * span + low

    def _window(self, index: int, rng: np.random.Generator, focus: int) -> list[tuple[float, float]]:
        """Return the edges of a window in whole voxels, within the volume where it fits."""
        case, places, spans = self.cases[index], self.places[index], []
        seen = [label for label in places if label > 0]
        label = focus if focus in seen else 0
        if not label and seen and rng.random() < self.augment.focus:
            label = int(rng.choice(seen))
        among = places.get(label, places.get(0, np.zeros((1, 3), np.int32)))
        middle = among[int(rng.integers(len(among)))]
        for n, size, at in zip(case.labels.shape, self.settings.window, middle, strict=True):
            first = round(float(at) + 0.5 - size / 2 + size * rng.uniform(-0.25, 0.25))
            first = (n - size) // 2 if size >= n else min(max(first, 0), n - size)
            spans.append((float(first), float(first + size)))
        return spans


def _at_spacing(case: Sample, spacing_mm: Sequence[float]) -> Sample:
    """Return a case on the pipeline's voxels, as `napari_fmseg.pipelines.single` resamples it; nearest labels."""
    if not spacing_mm:
        return case
    sizes = [
        max(1, round(n * have / want))
        for n, have, want in zip(case.labels.shape, case.spacing, spacing_mm, strict=True)
    ]
    if sizes == list(case.labels.shape):
        return case
    nearest = [((np.arange(m) + 0.5) * n / m).astype(np.int64) for n, m in zip(case.labels.shape, sizes, strict=True)]
    labels = case.labels
    for axis, index in enumerate(nearest):
        labels = labels.index_select(axis, torch.from_numpy(index).to(labels.device))
    z, y, x = (n * s / m for n, s, m in zip(case.labels.shape, case.spacing, sizes, strict=True))
    return dataclasses.replace(case, image=resize(case.image, sizes), labels=labels, spacing=(z, y, x))


_MARGIN = 0.2
"""How far the surroundings of a patch reach that its view may show, as a share of its size."""


def _places(labels: Tensor, most: int = 4096) -> dict[int, np.ndarray]:
    """Return voxels (n, 3) of every class that is there, and under 0 of everything that was labelled; at most so
    many.
    """
    found: dict[int, np.ndarray] = {}
    flat = labels.cpu().numpy().ravel()
    told = flat != IGNORE
    for label in [0, *(int(v) for v in np.unique(flat[told]) if v)]:
        at = np.flatnonzero(told if label == 0 else flat == label)
        if len(at):
            at = at[:: max(1, len(at) // most)]
            found[label] = np.stack(np.unravel_index(at, tuple(labels.shape)), 1).astype(np.int32)
    return found
