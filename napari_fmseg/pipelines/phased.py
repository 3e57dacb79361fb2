"""The phased pipeline of FMSF-PT: the whole volume coarsely, then a window around what was found, then its edge.

Consensus (SNet) takes the whole volume on a small grid. Its foreground gives an attention map and a window; the
attention network (AttnNet) takes the window on a grid of its own, taken from the native voxels. The edge network
(EdgeNet) sharpens on the native voxels, block by block with a halo, so that the mask is as sharp as the image.

What the published code gets wrong is mended here: the window comes from likely foreground rather than from a
background of exactly 1; after an empty consensus the window is the whole volume; orientation is put right and back;
with several classes the foreground is 1 - background; nothing is resampled to be shown.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from napari_fmseg.core.events import Event, Progress, StageResult
from napari_fmseg.core.resampling_torch import (
    box_in,
    from_canonical,
    resize_slab,
    to_canonical,
    zoom,
)
from napari_fmseg.core.volume import Box, Volume
from napari_fmseg.models.settings import PhasedSettings
from napari_fmseg.models.weights import Model
from napari_fmseg.nets.fmsf import HALO
from napari_fmseg.nets.traits import class_probabilities
from napari_fmseg.pipelines.attention_map import attention_map, window_v1, window_v2
from napari_fmseg.pipelines.executor import ensemble_mean, ensemble_members
from napari_fmseg.pipelines.label_upsampling import ARGMAX, labels_on
from napari_fmseg.pipelines.network_inputs import NetworkInputs
from napari_fmseg.pipelines.postprocess import clean
from napari_fmseg.pipelines.preprocessing import minmax_normalise, whole_box
from napari_fmseg.pipelines.slab_reader import SlabReader
from napari_fmseg.pipelines.stages import StageRun

if TYPE_CHECKING:
    from napari_fmseg.pipelines import SegmentOptions

__all__ = ["attention_map_in", "attention_roi", "careful_views", "explain_inputs", "run"]

_VIEWS = 6
"""Of the whole volume in a careful run."""

_EDGE_VALUES = 2_000_000
"""Of all classes in the part of an edge that is computed at once."""

_LEAST_PLANES = 4  # with fewer at once most of the work would go into the halo


def run(volume: Volume, model: Model, options: SegmentOptions) -> Iterator[Event]:
    """Run the stages; see `napari_fmseg.pipelines.segment`."""
    stages = _Stages(volume, model, options)
    yield from stages.run("phased", options.until)
    yield stages.labels()


@torch.no_grad()
def explain_inputs(volume: Volume, model: Model, place: Box | None) -> NetworkInputs:
    """Return the attention network's inputs, or the consensus network's where there is no other or none reaches.

    See `napari_fmseg.pipelines.PipelineModule`.
    """
    settings, intensity, nets = PhasedSettings.of(model.card.settings), model.card.intensity, model.nets
    data, whole = to_canonical(volume)
    source = SlabReader(data, model.device, intensity)
    body = source.body(settings.crop_above)
    geometry = whole.crop(body)
    x = minmax_normalise(source.read(body, settings.consensus_grid), intensity)[None]
    coarse = NetworkInputs(nets["consensus"], (x,), geometry.resize(settings.consensus_grid))
    if "attention" not in nets:
        return coarse
    p = class_probabilities(nets["consensus"], nets["consensus"](x))[0]
    _, attention, box = attention_roi(p, geometry.shape, settings)
    x = minmax_normalise(source.read(_inside(body, box), settings.attention_grid, body), intensity)
    a = attention_map_in(attention, box, geometry.shape, settings)
    grid = geometry.crop(box).resize(settings.attention_grid)
    close = NetworkInputs(nets["attention"], (x[None], a[None]), grid)
    return close if close.covers(volume.geometry, place) else coarse


def window_of(p_background: Tensor, settings: PhasedSettings) -> Box:
    """Return the window of the attention network in consensus voxels; the whole grid where nothing is likely."""
    if settings.window == "certain":
        return window_v1(p_background)
    share = settings.window_share if settings.window == "all" else None
    return window_v2(1 - p_background, settings.window_threshold, settings.window_margin, share)


class _Stages(StageRun):
    """The state between the stages of one run; all but the labels of native voxels stays on the device."""

    def __init__(self, volume: Volume, model: Model, options: SegmentOptions) -> None:
        super().__init__(volume, model, options, model.card.intensity)
        self.settings = PhasedSettings.of(model.card.settings)
        self.careful = self.settings.careful if options.careful is None else options.careful
        self.body = self.source.body(self.settings.crop_above)
        self.geometry = self.whole.crop(self.body)
        self.box: Box = whole_box(self.geometry.shape)  # native, canonical voxels of the body
        self.probabilities: Tensor | None = None  # (classes, z, y, x) of the last stage, over self.box
        self.crop_labels: Tensor | None = None  # of the edge stage, over self.box
        self.attention_map: Tensor | None = None

    def _probabilities(self, stage: str, *inputs: Tensor) -> Tensor:
        """Return the probabilities (classes, z, y, x) that a stage's networks give for one sample."""
        nets = ensemble_members(self.nets, stage)
        out = self.predict(stage, *inputs)
        return (class_probabilities(nets[0], out) if len(nets) == 1 else out)[0]

    def _read(self, box: Box, grid: Sequence[int]) -> Tensor:
        """Return what a network receives of a box in the body, on a grid."""
        return minmax_normalise(self.source.read(_inside(self.body, box), grid, self.body), self.card.intensity)

    @torch.inference_mode()
    def consensus(self) -> Iterator[Event]:
        start = time.perf_counter()
        x = self._read(self.box, self.settings.consensus_grid)
        self.probabilities = self._probabilities("consensus", x[None])
        for done, spans in enumerate(careful_views(x.shape[1:]) if self.careful else (), 1):
            yield Progress("consensus", done, _VIEWS)
            seen = self._probabilities("consensus", zoom(x, spans, x.shape[1:])[None])
            back = zoom(seen, _back(spans, x.shape[1:]), x.shape[1:])
            self.probabilities = torch.lerp(self.probabilities, back, 1 / (done + 1))
        grid = self.geometry.resize(self.settings.consensus_grid)
        labels = self.label_map(ARGMAX(self.probabilities), grid)
        seconds = time.perf_counter() - start
        yield StageResult("consensus", labels, seconds, "" if labels.data.any() else "Nothing was found.")

    @torch.inference_mode()
    def attention(self) -> Iterator[Event]:
        start = time.perf_counter()
        assert self.probabilities is not None
        seen, self.attention_map, self.box = attention_roi(self.probabilities, self.geometry.shape, self.settings)
        seconds = time.perf_counter() - start
        heat = Volume(self.attention_map[0].float().cpu().numpy(), self.geometry.resize(self.settings.consensus_grid))
        yield StageResult("attention map", heat, seconds, "" if seen else "Nothing was found: looking at everything.")

        start = time.perf_counter()
        x = self._read(self.box, self.settings.attention_grid)
        a = attention_map_in(self.attention_map, self.box, self.geometry.shape, self.settings)
        self.probabilities = self._probabilities("attention", x[None], a[None])
        grid = self.geometry.crop(self.box).resize(self.settings.attention_grid)
        labels = self.label_map(ARGMAX(self.probabilities), grid)
        yield StageResult("attention", labels, time.perf_counter() - start)

    @torch.inference_mode()
    def edge(self) -> Iterator[Event]:
        start = time.perf_counter()
        assert self.probabilities is not None
        shape = self.geometry.crop(self.box).shape
        if self.settings.edge_grid == "attention":
            x = self.source.read(_inside(self.body, self.box), self.settings.attention_grid)
            self.probabilities = self._probabilities("edge", x[None], self.probabilities[None])
            self.crop_labels = labels_on(self.probabilities, shape)
        else:
            self.crop_labels = torch.empty(shape, dtype=self.dtype)
            for planes, rows, part in self._edge_parts(shape):
                self.crop_labels[planes, rows] = part
                spent = time.perf_counter() - start
                done = shape[0] * rows.start + (rows.stop - rows.start) * planes.stop
                yield Progress("edge", done, shape[0] * shape[1])
                start = time.perf_counter() - spent  # the consumer's time is not ours
        labels = self.label_map(self.crop_labels, self.geometry.crop(self.box))
        yield StageResult("edge", labels, time.perf_counter() - start)

    def _edge_parts(self, shape: tuple[int, int, int]) -> Iterator[tuple[slice, slice, Tensor]]:
        """Yield the labels of planes and rows of the window; of fewer planes at once where memory runs out.

        Parts are as many planes as rows, of which the halo makes the least work.
        """
        lines = max(1, _EDGE_VALUES // (self.card.n_classes * shape[2]))
        height = min(shape[1], max(math.isqrt(lines), lines // shape[0]))
        depth = all_at_once = min(shape[0], max(1, lines // height))
        for top in range(0, shape[1], height):
            rows, first = slice(top, min(shape[1], top + height)), 0
            while first < shape[0]:
                planes = slice(first, min(shape[0], first + depth))
                labels = self._edge_part(shape, planes, rows, or_fewer=depth > _LEAST_PLANES)
                if labels is not None:
                    yield planes, rows, labels
                    first = planes.stop
                    continue
                if depth == all_at_once:
                    self.engine.notes.append(
                        f"Out of memory on {self.engine.device}: the edge was computed in smaller parts."
                    )
                depth = max(_LEAST_PLANES, depth // 2)

    def _edge_part(self, shape: tuple[int, int, int], planes: slice, rows: slice, *, or_fewer: bool) -> Tensor | None:
        """Return labels of planes and rows of the window; the halo makes them equal to those of the whole window.

        None if memory runs out and fewer planes may be tried; else the runner takes its own fallbacks.
        """
        assert self.probabilities is not None
        z, y = (
            slice(max(0, part.start - HALO), min(n, part.stop + HALO))
            for part, n in zip((planes, rows), shape, strict=False)
        )
        try:
            s = resize_slab(self.probabilities, shape, z, y)
            image = self.source.voxels(_inside(self.body, _inside(self.box, (z, y, slice(0, shape[2])))))
        except torch.OutOfMemoryError:
            if not or_fewer:
                raise
            s = None
        if s is None:
            self.engine.free()
            return None
        run = self.engine.attempt if or_fewer else self.call
        out = ensemble_mean(run, ensemble_members(self.nets, "edge"), image[None], s[None])
        if out is None:
            return None
        out = out[0, :, planes.start - z.start : planes.stop - z.start, rows.start - y.start : rows.stop - y.start]
        return ARGMAX(out)

    def labels(self) -> StageResult:
        """Put the last stage's labels on the volume's own grid."""
        start = time.perf_counter()
        assert self.probabilities is not None
        shape = tuple(s.stop - s.start for s in self.box)
        crop = self.crop_labels if self.crop_labels is not None else labels_on(self.probabilities, shape)
        full = torch.zeros(self.whole.shape, dtype=self.dtype)
        full[self.body][self.box] = crop
        found = self.label_map(full, self.whole)
        if largest := self.settings.keep_largest:
            found = clean(found, keep_largest=True, together=largest == "together", neighbours=6)
        array = from_canonical(found.data, self.volume.geometry)
        return StageResult("labels", self.label_map(array, self.volume.geometry), time.perf_counter() - start)


def careful_views(shape: Sequence[int]) -> Iterator[list[tuple[float, float]]]:
    """Yield the five windows (edges along z, y, x) on which a careful run looks beside the whole grid."""
    zooms = ((1.12, 1, 1), (1, 1.1, 1.1), (1.1, 1.1, 1.1), (1, 1, 1), (1, 1, 1))
    for scale, shift in zip(zooms, (0, 0, 0, 0.04, -0.04), strict=True):
        spans = [(n / 2 - n * s / 2, n / 2 + n * s / 2) for n, s in zip(shape, scale, strict=True)]
        yield [(first + n * shift * (axis == 0), last + n * shift * (axis == 0))
               for axis, ((first, last), n) in enumerate(zip(spans, shape, strict=True))]  # fmt: skip


def _back(spans: Sequence[tuple[float, float]], shape: Sequence[int]) -> list[tuple[float, float]]:
    """Return the edges of the whole grid in voxels of a window's own grid of that shape."""
    return [
        (-first * n / (last - first), (n - first) * n / (last - first))
        for (first, last), n in zip(spans, shape, strict=True)
    ]


def attention_roi(
    probabilities: Tensor, shape: tuple[int, int, int], settings: PhasedSettings
) -> tuple[bool, Tensor, Box]:
    """Turn consensus probabilities (classes, z, y, x) into the attention map and its window.

    Returns
    -------
    tuple
        Whether anything is likely; the attention map (1, z, y, x) on the consensus grid; the window in voxels of a
        volume of `shape`.
    """
    p_background = probabilities[0].float()
    box = window_of(p_background, settings)
    seen = bool(((1 - p_background) > settings.window_threshold).any())
    return seen, attention_map((1 - p_background)[None, None])[0], box_in(box, settings.consensus_grid, shape)


def attention_map_in(attention: Tensor, box: Box, shape: Sequence[int], settings: PhasedSettings) -> Tensor:
    """Return the attention map (1, z, y, x) over a volume of `shape` on the attention grid, inside a window of it."""
    scale = [m / n for n, m in zip(shape, attention.shape[1:], strict=True)]
    return zoom(
        attention, [(s.start * k, s.stop * k) for s, k in zip(box, scale, strict=True)], settings.attention_grid
    )


def _inside(body: Box, box: Box) -> Box:
    """Return a box in the voxels of a body as one in the voxels of the volume in which the body lies."""
    z, y, x = (slice(a.start + b.start, a.start + b.stop) for a, b in zip(body, box, strict=True))
    return z, y, x
