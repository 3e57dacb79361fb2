"""The pipeline of EfficientSegmentation: the whole volume on a coarse grid, then what was found on a fine one.

The coarse network takes the whole volume as input, the fine network the box around what the coarse one found, with a
margin in millimetres. Both take any registered network, with classes that exclude each other or that overlap. The
volume is resized as it is stored, slab by slab; only the scores on the two small grids ever exist for all classes, and
the labels go plane by plane into one array on the volume's own grid.

What the published code gets wrong is mended here: any orientation, an empty coarse mask (take everything), the last
voxel of the box, parts measured on the grid on which they lie, and the file's position kept.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from napari_fmseg.core.allocator import trim_heap
from napari_fmseg.core.events import Event, Progress, StageResult
from napari_fmseg.core.resampling_torch import bounding_box, canonical_view, to_canonical
from napari_fmseg.core.volume import Box, Geometry, LabelMap, Volume
from napari_fmseg.models.card import Intensity
from napari_fmseg.models.settings import CoarseFineSettings
from napari_fmseg.models.weights import Model
from napari_fmseg.nets.traits import activation_of
from napari_fmseg.pipelines.executor import ensemble_mean, ensemble_members
from napari_fmseg.pipelines.label_upsampling import LabelRule, label_rule_for, label_slabs
from napari_fmseg.pipelines.network_inputs import NetworkInputs
from napari_fmseg.pipelines.postprocess import keep_largest_components
from napari_fmseg.pipelines.preprocessing import normalise, whole_box
from napari_fmseg.pipelines.slab_reader import SlabReader
from napari_fmseg.pipelines.stages import StageRun

if TYPE_CHECKING:
    from napari_fmseg.pipelines import SegmentOptions

__all__ = ["box_around", "explain_inputs", "network_input", "run"]


def run(volume: Volume, model: Model, options: SegmentOptions) -> Iterator[Event]:
    """Run the stages; see `napari_fmseg.pipelines.segment`."""
    stages = _Stages(volume, model, options)
    yield from stages.run("coarse_fine", options.until)
    yield from stages.labels()
    yield from stages.engine.warnings()


class _Stages(StageRun):
    """The state between the stages of one run."""

    def __init__(self, volume: Volume, model: Model, options: SegmentOptions) -> None:
        super().__init__(volume, model, options)
        self.settings = CoarseFineSettings.of(model.card.settings)
        self.box = self.source.body(self.settings.crop_above)  # what the last stage's scores cover, in canonical voxels
        self.scores = torch.zeros(())  # (classes, z, y, x) of the last stage
        self.choose: LabelRule

    @torch.inference_mode()
    def coarse(self) -> Iterator[Event]:
        """Segment the whole volume coarsely."""
        start = time.perf_counter()
        seen = self._run_stage("coarse", self.settings.coarse_size)
        kept = keep_largest_components(seen, self.settings.coarse_max_components, self.settings.coarse_min_ml)
        note = "" if kept.data.any() else "Nothing was found: looking at everything."
        self._suppress_removed(seen, kept)
        self.found = kept
        yield StageResult("coarse", kept, time.perf_counter() - start, note)

    @torch.inference_mode()
    def fine(self) -> Iterator[Event]:
        """Segment the box around what was found."""
        start = time.perf_counter()
        self.box = box_around(self.found.data, self.whole, self.settings.margin_mm, self.box)
        seen = self._run_stage("fine", self.settings.fine_size)
        kept = keep_largest_components(seen, self.settings.fine_max_components, self.settings.fine_min_ml)
        self._suppress_removed(seen, kept)
        yield StageResult("fine", kept, time.perf_counter() - start, "" if kept.data.any() else "Nothing was found.")

    def labels(self) -> Iterator[Event]:
        """Put the last stage's labels on the volume's own grid, some planes at a time."""
        start, spent = time.perf_counter(), 0.0
        array = np.zeros(self.volume.geometry.shape, np.uint8 if self.dtype == torch.uint8 else np.int16)
        inside = canonical_view(array, self.volume.geometry)[self.box]
        for planes, labels in self._label_slabs(inside.shape):
            inside[planes] = labels
            spent += time.perf_counter() - start
            yield Progress("labels", planes.stop, inside.shape[0])
            start = time.perf_counter()  # the consumer's time is not ours
        yield StageResult("labels", self.label_map(array, self.volume.geometry), spent)

    def _run_stage(self, stage: str, size: tuple[int, int, int]) -> LabelMap:
        """Run a network on the box of the volume; its scores stay on the device."""
        nets = ensemble_members(self.nets, stage)
        self.scores = torch.zeros(())  # those of the stage before are not needed any more
        x = network_input(self.source.read(self.box, size), self.card.intensity)
        if self.source.device.type == "cpu":
            trim_heap()
        out = ensemble_mean(self.call, nets, x[None])
        assert out is not None  # only an attempt gives none
        self.activation = activation_of(nets[0])
        # Of several networks there are probabilities, where logits are needed below.
        several = len(nets) > 1 and self.activation == "sigmoid"
        self.scores = torch.logit(out[0], 1e-6) if several else out[0].float()
        self.choose = label_rule_for(self.activation, self.settings)
        grid = self.whole.crop(self.box).resize(size)
        return self.label_map(self.choose(self.scores), grid)

    def _suppress_removed(self, seen: LabelMap, kept: LabelMap) -> None:
        """Set the scores to background where a component was removed, so that it does not return on a finer grid."""
        if kept is seen:
            return
        gone = torch.from_numpy((seen.data != 0) & (kept.data == 0)).to(self.scores.device)
        if self.activation == "sigmoid":
            least = self.choose.least
            for score in self.scores:
                score.copy_(torch.where(gone, torch.minimum(score, 2 * least - 1e-3 - score), score))
        else:
            top = self.scores.amax(0) + 1
            self.scores[0].copy_(torch.where(gone, top, self.scores[0]))

    @torch.inference_mode()
    def _label_slabs(self, shape: tuple[int, ...]) -> Iterator[tuple[slice, np.ndarray]]:
        done = 0
        try:
            for planes, labels in label_slabs(self.scores, shape, self.choose):
                yield planes, labels.cpu().numpy()
                done = planes.stop
            return
        except torch.OutOfMemoryError:
            if self.scores.device.type == "cpu":
                raise
        self.engine.free()
        self.engine.notes.append(f"The memory of {self.scores.device} did not suffice: labels were made on the CPU.")
        for planes, labels in label_slabs(self.scores.cpu(), shape, self.choose):
            if planes.stop > done:
                yield planes, labels.numpy()


@torch.no_grad()
def explain_inputs(volume: Volume, model: Model, place: Box | None) -> NetworkInputs:
    """Return the fine network's input, or the coarse network's where there is no other or it does not reach.

    See `napari_fmseg.pipelines.PipelineModule`.
    """
    settings, intensity, nets = CoarseFineSettings.of(model.card.settings), model.card.intensity, model.nets
    data, native = to_canonical(volume)
    source = SlabReader(data, model.device)
    box = source.body(settings.crop_above)
    x = network_input(source.read(box, settings.coarse_size), intensity)[None]
    grid = native.crop(box).resize(settings.coarse_size)
    coarse = NetworkInputs(nets["coarse"], (x,), grid)
    if "fine" not in nets:
        return coarse
    choose = label_rule_for(activation_of(nets["coarse"]), settings)
    found = LabelMap(choose(nets["coarse"](x)[0]).cpu().numpy(), grid)
    found = keep_largest_components(found, settings.coarse_max_components, settings.coarse_min_ml)
    box = box_around(found.data, native, settings.margin_mm, box)
    x = network_input(source.read(box, settings.fine_size), intensity)[None]
    fine = NetworkInputs(nets["fine"], (x,), native.crop(box).resize(settings.fine_size))
    return fine if fine.covers(volume.geometry, place) else coarse


def network_input(resized: Tensor, intensity: Intensity) -> Tensor:
    """Map what was resized to a network's grid, (c, z, y, x), to the network's input; training does the same.

    Every input is mapped by itself: a percentile or a z-score is that of the box, not that of the whole volume.
    """
    return normalise(resized, intensity)


def box_around(labels: np.ndarray | Tensor, geometry: Geometry, margin_mm: float, within: Box | None = None) -> Box:
    """Return the box (native voxels) around coarse labels with a margin, rounded outwards, at most to the border.

    Parameters
    ----------
    labels
        (z, y, x) on a coarse grid over `within`; everything that is not 0 counts.
    geometry
        Of the native grid.
    margin_mm
        Added on all sides.
    within
        What the coarse grid covers, in native voxels; the whole volume if None.

    Returns
    -------
    tuple of slice
        `within` if the labels are empty.
    """
    within = within or whole_box(geometry.shape)
    found = bounding_box(labels)
    if found is None:
        return within
    bounds = []
    for at, n, there, size, spacing in zip(found, labels.shape, within, geometry.shape, geometry.spacing, strict=True):
        scale, margin = (there.stop - there.start) / n, margin_mm / spacing
        first, last = there.start + at.start * scale - margin, there.start + at.stop * scale + margin
        # A box that ends on a voxel's edge must not take in the next one because of rounding.
        bounds.append(slice(max(0, math.floor(first + 1e-6)), min(size, math.ceil(last - 1e-6))))
    return bounds[0], bounds[1], bounds[2]
