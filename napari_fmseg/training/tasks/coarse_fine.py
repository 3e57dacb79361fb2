"""What the two stages of the coarse-to-fine pipeline learn from: the whole volume, and a box around the labels.

After the public code of EfficientSegmentation (github.com/Shanghai-Aitrox-Technology/EfficientSegmentation, paper
arXiv 2109.10601). The fine network never sees the coarse one in training: its boxes lie around the labels, and their
faces are moved as a coarse network would err.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from napari_fmseg.core.errors import InvalidRecipe
from napari_fmseg.core.resampling_torch import zoom
from napari_fmseg.models.card import Intensity
from napari_fmseg.models.settings import CoarseFineSettings
from napari_fmseg.pipelines.preprocessing import normalise
from napari_fmseg.training.data.augmentation import augment_intensity, augment_spatial, jitter_window
from napari_fmseg.training.data.case_cache import Prepared
from napari_fmseg.training.data.samples import Sample, Spans, target_in
from napari_fmseg.training.recipe import Recipe, StageRecipe
from napari_fmseg.training.stage_recipe import member_of
from napari_fmseg.training.tasks.base import Labelled

__all__ = ["CoarseFineTask", "brighten_structures", "fine_window"]


class CoarseFineTask(Labelled):
    """Samples the whole volume on the coarse grid, or the box around the labels on the fine one."""

    def __init__(
        self, stage: StageRecipe, recipe: Recipe, samples: Sequence[Sample], frozen: Mapping[str, nn.Module]
    ) -> None:
        super().__init__(stage, recipe, samples)
        if member_of(stage.stage) not in ("coarse", "fine"):
            raise InvalidRecipe(f"The coarse-to-fine pipeline has the stages coarse and fine, not {stage.stage!r}.")
        self.settings = CoarseFineSettings.of(recipe.settings)
        self.fine = member_of(stage.stage) == "fine"

    def sample(
        self, index: int, rng: np.random.Generator, noise: torch.Generator, focus: int = 0
    ) -> tuple[list[Tensor], Tensor]:
        """Return one case and its target; see `Task`. Every class of the case is in it, so `focus` changes nothing."""
        case = self.samples[index]
        assert isinstance(case, Prepared)
        augment = self.augment_of(case)
        if self.fine:
            size, image, labels = self.settings.fine_size, case.image, case.labels
            spans = fine_window(case, self.settings.margin_mm, augment.jitter_mm, rng)
        else:
            size, image, labels = self.settings.coarse_size, case.whole, case.whole_labels
            spans = jitter_window([(0.0, float(n)) for n in labels.shape], augment, rng)
        x = zoom(image.to(case.place).float(), spans, size)
        target = target_in(labels.to(case.place), spans, size, self.n_classes)
        if self.fine and augment.label_brightness:
            x = brighten_structures(x, target, augment.label_brightness, rng)
        x = normalise(x, _unit(self.intensity))
        (x,), target = augment_spatial([x], target, augment, self.swap, rng)
        x = augment_intensity(x, augment, rng, noise)
        return [x if _unit(self.intensity) is self.intensity else normalise(x, Intensity("zscore"))], target


def fine_window(case: Prepared, margin_mm: float, jitter_mm: float, rng: np.random.Generator) -> Spans:
    """Sample the box that the fine network receives, as edges along z, y, x in the voxels of ``case.image``.

    Every other one is the labels' box with the pipeline's margin. Of the others each face moves on its own from the
    labels' box, uniformly from a third of `jitter_mm` inwards to `jitter_mm` outwards. No box leaves the volume, and
    none is thinner than half the labels' box.
    """
    jittered = rng.random() < 0.5
    spans = []
    for (first, last), n, step in zip(case.edges, case.image.shape[1:], case.spacing, strict=True):
        moves = rng.uniform(-jitter_mm / 3, jitter_mm, 2) if jittered else np.array([margin_mm, margin_mm])
        inwards = (last - first) / 4
        moves = np.maximum(moves / step, -inwards)
        spans.append((max(0.0, first - float(moves[0])), min(float(n), last + float(moves[1]))))
    return spans


def brighten_structures(image: Tensor, target: Tensor, most: float, rng: np.random.Generator) -> Tensor:
    """Add one number to the voxels of each structure, of every structure in half of the cases.

    Parameters
    ----------
    image
        (c, z, y, x).
    target
        (classes, z, y, x) with the background; a voxel that belongs to a structure in part gets that part.
    most
        The numbers are uniform between -`most` and `most`.
    rng
        Draws.
    """
    n = target.shape[0] - 1
    added = np.where(rng.random(n) < 0.5, rng.uniform(-most, most, n), 0.0)
    weights = torch.tensor(added, dtype=image.dtype, device=image.device)
    return image + torch.einsum("k,kzyx->zyx", weights, target[1:])


def _unit(intensity: Intensity) -> Intensity:
    """Return how intensities become 0..1 before they are augmented: z-scores are taken last."""
    if intensity.kind == "window_zscore":
        return Intensity("window", intensity.low, intensity.high)
    return Intensity("percentile", 0, 100) if intensity.kind == "zscore" else intensity
