"""The task of a single network on patches: windows of the volume around labels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from napari_fmseg.core.errors import InvalidRecipe
from napari_fmseg.core.resampling_torch import zoom
from napari_fmseg.datasets.case import IGNORE
from napari_fmseg.models.settings import SingleSettings
from napari_fmseg.training.data.augmentation import augment_intensity, augment_spatial, jitter_window
from napari_fmseg.training.data.samples import Sample, target_in
from napari_fmseg.training.recipe import Augment, Recipe, StageRecipe
from napari_fmseg.training.tasks.base import Labelled

__all__ = ["PatchTask", "find_places"]


class PatchTask(Labelled):
    """Samples patches of the pipeline's window at the pipeline's spacing.

    A patch lies around a labelled voxel: a share of them, `Augment.focus`, around a voxel of a structure, the others
    anywhere. With a class to look at, around one of that class.
    """

    def __init__(
        self, stage: StageRecipe, recipe: Recipe, samples: Sequence[Sample], frozen: Mapping[str, nn.Module]
    ) -> None:
        super().__init__(stage, recipe, samples)
        if stage.stage != "net":
            raise InvalidRecipe(f"The single pipeline has one stage, 'net', not {stage.stage!r}.")
        self.settings = SingleSettings.of(recipe.settings)
        self.places = [find_places(case.labels) for case in samples]

    def sample(
        self, index: int, rng: np.random.Generator, noise: torch.Generator, focus: int = 0
    ) -> tuple[list[Tensor], Tensor]:
        """Return a patch and its target; see `Task`."""
        case, augment = self.samples[index], self.augment_of(self.samples[index])
        spans = jitter_window(self._window(index, rng, focus), augment, rng)
        x = _read(case.image, spans, self.settings.window)
        target = target_in(case.labels, spans, self.settings.window, self.n_classes)
        (x,), target = augment_spatial([x], target, augment, self.swap, rng)
        return [self.change_intensity(x, augment, rng, noise)], target

    def change_intensity(self, x: Tensor, augment: Augment, rng: np.random.Generator, noise: torch.Generator) -> Tensor:
        """Return the patch with its intensities changed at random; they are 0..1."""
        return augment_intensity(x, augment, rng, noise)

    def _window(self, index: int, rng: np.random.Generator, focus: int) -> list[tuple[float, float]]:
        """Return the edges of a window in the case's own voxels, within the volume where it fits."""
        case, spans = self.samples[index], []
        spacing = self.settings.spacing_mm or case.spacing
        places = self.places[index]
        seen = [label for label in places if label > 0]
        label = focus if focus in seen else 0
        if not label and seen and rng.random() < self.augment.focus:
            label = int(rng.choice(seen))
        among = places.get(label, places.get(0, np.zeros((1, 3), np.int32)))
        middle = among[int(rng.integers(len(among)))]
        for n, have, want, length, at in zip(
            case.labels.shape, case.spacing, spacing, self.settings.window, middle, strict=True
        ):
            size = length * want / have
            first = float(at) + 0.5 - size / 2 + size * rng.uniform(-0.25, 0.25)
            first = (n - size) / 2 if size >= n else min(max(first, 0.0), n - size)
            spans.append((first, first + size))
        return spans


def find_places(labels: Tensor, most: int = 4096) -> dict[int, np.ndarray]:
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


def _read(image: Tensor, spans: Sequence[tuple[float, float]], shape: Sequence[int]) -> Tensor:
    """Read the image between edges; only that region is read."""
    inner = []
    for (a, b), n, m in zip(spans, image.shape[1:], shape, strict=True):
        reach = int((b - a) / m) + 3  # of the kernel
        inner.append(slice(max(0, min(n - 1, int(a) - reach)), min(n, max(1, int(b) + reach))))
    local = [(a - s.start, b - s.start) for (a, b), s in zip(spans, inner, strict=True)]
    return zoom(image[(slice(None), *inner)], local, shape)
