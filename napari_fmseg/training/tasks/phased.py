"""What each stage of the phased pipeline learns from: consensus, then attention on its crops, then edge.

A task makes training samples and says how wrong the network was. Everything that a later stage needs from an earlier,
now frozen one is computed once per case.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from napari_fmseg.core.errors import InvalidRecipe
from napari_fmseg.core.resampling_torch import resize, resize_slab, zoom
from napari_fmseg.core.volume import Box
from napari_fmseg.datasets.case import IGNORE
from napari_fmseg.models.card import Intensity
from napari_fmseg.models.settings import PhasedSettings
from napari_fmseg.nets.fmsf import HALO
from napari_fmseg.nets.traits import class_probabilities
from napari_fmseg.pipelines.phased import attention_map_in, attention_roi
from napari_fmseg.pipelines.preprocessing import crop_array, minmax_normalise
from napari_fmseg.training.data.augmentation import augment_intensity
from napari_fmseg.training.data.samples import Sample, target_in
from napari_fmseg.training.data.views import draw_view, make_region
from napari_fmseg.training.recipe import Recipe, StageRecipe
from napari_fmseg.training.stage_recipe import member_of
from napari_fmseg.training.tasks.base import Labelled, Task

__all__ = ["phased_task"]

_EDGE_VOXELS = 400_000


def phased_task(stage: StageRecipe, recipe: Recipe, samples: Sequence[Sample], frozen: Mapping[str, nn.Module]) -> Task:
    """Make the task of a stage.

    Raises
    ------
    InvalidRecipe
        If the pipeline has no such stage, or an earlier stage is missing.
    """
    kinds: dict[str, tuple[type[Any], tuple[str, ...]]] = {
        "consensus": (_Consensus, ()),
        "attention": (_Attention, ("consensus",)),
        "edge": (_Edge, ("consensus", "attention")),
    }
    name = member_of(stage.stage)
    if name not in kinds:
        raise InvalidRecipe(f"The phased pipeline has no stage {stage.stage!r}. Choose of: {', '.join(kinds)}.")
    kind, needed = kinds[name]
    missing = [name for name in needed if name not in frozen]
    if missing:
        raise InvalidRecipe(
            f"Stage {stage.stage!r} learns on the output of {', '.join(missing)}. Train that first: list it before "
            "in the recipe, or start from a model that has it."
        )
    task: Task = kind(stage, recipe, samples, frozen)
    return task


class _Phase(Labelled):
    """What the three tasks share."""

    def __init__(
        self, stage: StageRecipe, recipe: Recipe, samples: Sequence[Sample], frozen: Mapping[str, nn.Module]
    ) -> None:
        super().__init__(stage, recipe, samples)
        self.settings = PhasedSettings.of(recipe.settings)


class _Consensus(_Phase):
    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        grid, n = self.settings.consensus_grid, self.n_classes
        self.regions = [make_region(case, [(0, m) for m in case.labels.shape], grid, n) for case in self.samples]

    def sample(
        self, index: int, rng: np.random.Generator, noise: torch.Generator, focus: int = 0
    ) -> tuple[list[Tensor], Tensor]:
        augment = self.augment_of(self.samples[index])
        x, target = draw_view(self.regions[index], self.settings.consensus_grid, augment, self.swap, rng)
        return [augment_intensity(minmax_normalise(x, self.intensity), augment, rng, noise)], target


class _Attention(_Phase):
    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        frozen = args[3]
        looks = [_look(case, frozen["consensus"], self.settings, self.intensity) for case in self.samples]
        self.remarks = _cut_off(self.samples, [box for _, box in looks], args[1].labels)
        grid, n = self.settings.attention_grid, self.n_classes
        self.regions = [
            make_region(case, [(s.start, s.stop) for s in box], grid, n, maps=attention, margin=_MARGIN)
            for case, (attention, box) in zip(self.samples, looks, strict=True)
        ]

    def sample(
        self, index: int, rng: np.random.Generator, noise: torch.Generator, focus: int = 0
    ) -> tuple[list[Tensor], Tensor]:
        augment, n = self.augment_of(self.samples[index]), self.samples[index].image.shape[0]
        both, target = draw_view(self.regions[index], self.settings.attention_grid, augment, self.swap, rng)
        x = minmax_normalise(both[:n], self.intensity)
        return [augment_intensity(x, augment, rng, noise), both[n:]], target


class _Edge(_Phase):
    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        frozen = args[3]
        self.boxes: list[Box] = []
        self.segmentations: list[Tensor] = []
        for case in self.samples:
            attention, box = _look(case, frozen["consensus"], self.settings, self.intensity)
            spans = [(s.start, s.stop) for s in box]
            x = minmax_normalise(zoom(case.image, spans, self.settings.attention_grid), self.intensity)
            a = attention_map_in(attention, box, case.labels.shape, self.settings)
            with torch.inference_mode():
                s = class_probabilities(frozen["attention"], frozen["attention"](x[None], a[None]))[0]
            self.boxes.append(box)
            self.segmentations.append(s.half())

    def sample(
        self, index: int, rng: np.random.Generator, noise: torch.Generator, focus: int = 0
    ) -> tuple[list[Tensor], Tensor]:
        case, box = self.samples[index], self.boxes[index]
        crop, labels = crop_array(case.image, box), case.labels[box]
        s = self.segmentations[index].float()
        if self.settings.edge_grid == "attention":
            grid = self.settings.attention_grid
            x = resize(crop, grid)
            target = target_in(labels, [(0.0, float(n)) for n in labels.shape], grid, self.n_classes)
        else:
            depth = max(2 * HALO + 1, _EDGE_VOXELS // (labels.shape[1] * labels.shape[2]))
            first = _first_plane(labels, depth, rng, focus)
            planes = slice(first, min(labels.shape[0], first + depth))
            x, s = crop[:, planes], resize_slab(s, labels.shape, planes)
            whole = [(0.0, float(n)) for n in labels[planes].shape]
            target = target_in(labels[planes], whole, labels[planes].shape, self.n_classes)
        return [augment_intensity(x, self.augment, rng, noise), s], target


def _cut_off(samples: Sequence[Sample], boxes: Sequence[Box], labels: Sequence[str]) -> list[str]:
    """Return the remark on structures that mostly lie outside of the window in most cases: they are neither learned
    nor found.
    """
    remarks = []
    for value, name in enumerate(labels, 1):
        shares = [
            float((case.labels[box] == value).sum() / there)
            for case, box in zip(samples, boxes, strict=True)
            if (there := int((case.labels == value).sum()))
        ]
        missed = sum(share < _CUT for share in shares)
        if 2 * missed > len(shares):
            remarks.append(
                f"attention: most of {name!r} lies outside of the window that it looks at in {missed} of {len(shares)} "
                'cases, so it cannot be found. Set window = "all", or train the consensus stage longer.'
            )
    return remarks


_CUT = 0.5
_MARGIN = 0.15
"""How far the surroundings of the window reach that its views may show, as a share of its size."""


def _first_plane(labels: Tensor, depth: int, rng: np.random.Generator, focus: int = 0) -> int:
    """Draw where a slab of planes starts: around a labelled plane, or around one with the class `focus`."""
    last = max(0, labels.shape[0] - depth)
    wanted = labels == focus if focus else labels != IGNORE
    if focus and not wanted.any():
        wanted = labels != IGNORE
    told = wanted.any(2).any(1).nonzero()[:, 0]
    if not len(told) or (not focus and len(told) == labels.shape[0]):
        return int(rng.integers(0, last + 1))
    middle = int(told[int(rng.integers(len(told)))])
    return min(last, max(0, middle - int(rng.integers(0, depth))))


@torch.inference_mode()
def _look(case: Sample, consensus: nn.Module, settings: PhasedSettings, intensity: Intensity) -> tuple[Tensor, Box]:
    """Return the attention map and native window that the frozen consensus network gives for a case."""
    x = minmax_normalise(resize(case.image, settings.consensus_grid), intensity)
    p = class_probabilities(consensus, consensus(x[None]))[0]
    shape = (case.labels.shape[0], case.labels.shape[1], case.labels.shape[2])
    _, attention, box = attention_roi(p, shape, settings)
    return attention.clone(), box
