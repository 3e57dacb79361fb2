"""One network over the whole volume in overlapping windows: how FMUNet, PCT-Net and most other networks are used.

The network is called ``"net"`` in the card; with ``"net-2"``, ``"net-3"`` and so on beside it, it is an ensemble whose
probabilities are averaged. It may give logits or probabilities; what it gives is blended and averaged
over the mirrored volume before the class is chosen. Where structures may overlap (a sigmoid), a voxel gets the most
probable one, and none if none is more likely than not. A volume smaller than the window is taken as it is; if the
network refuses its size, it is filled up to the window first.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from napari_fmseg.core.errors import GeometryMismatch
from napari_fmseg.core.events import Event, Progress, StageResult
from napari_fmseg.core.resampling_torch import from_canonical, to_canonical
from napari_fmseg.core.volume import Box, Geometry, Volume
from napari_fmseg.models.settings import SingleSettings
from napari_fmseg.models.weights import Model
from napari_fmseg.nets.traits import activation_of
from napari_fmseg.pipelines.executor import ensemble_members
from napari_fmseg.pipelines.label_upsampling import ARGMAX, labels_on
from napari_fmseg.pipelines.network_inputs import NetworkInputs, box_on
from napari_fmseg.pipelines.postprocess import clean
from napari_fmseg.pipelines.preprocessing import crop_array, whole_box
from napari_fmseg.pipelines.slab_reader import SlabReader
from napari_fmseg.pipelines.sliding_window import mirror_axes, predict_windows
from napari_fmseg.pipelines.stages import StageRun

if TYPE_CHECKING:
    from napari_fmseg.pipelines import SegmentOptions

__all__ = ["explain_inputs", "pad_to_window", "run", "working_grid"]


@torch.inference_mode()
def run(volume: Volume, model: Model, options: SegmentOptions) -> Iterator[Event]:
    """Run the network; see `napari_fmseg.pipelines.segment`."""
    settings = SingleSettings.of(model.card.settings)
    start = time.perf_counter()
    state = StageRun(volume, model, options, model.card.intensity)
    whole, box = state.whole, state.source.body(settings.crop_above)
    native = whole.crop(box)
    grid = working_grid(native, settings)
    image = state.source.read(box, grid.shape)
    state.source.release_tensor()
    yield Progress("net", 0, 1)
    nets = ensemble_members(model.nets, "net")
    scores = yield from predict_windows(
        lambda x: state.predict("net", x), pad_to_window(image, nets[0], settings.window), settings.window,
        overlap=settings.overlap if options.overlap is None else options.overlap,
        batch=settings.batch if options.window_batch is None else options.window_batch,
        flips=mirror_axes(settings.flips if options.mirror else ""), blend=options.blend, stage="net",
    )  # fmt: skip
    scores = scores[:, : grid.shape[0], : grid.shape[1], : grid.shape[2]]
    if activation_of(nets[0]) == "sigmoid":
        even = 0.0 if len(nets) == 1 else 0.5  # logit or probability of what is as likely as not
        scores = torch.cat([torch.full_like(scores[:1], even), scores])
    seen = state.label_map(ARGMAX(scores), grid)
    yield StageResult("net", seen, time.perf_counter() - start, "" if seen.data.any() else "Nothing was found.")
    yield from state.engine.warnings()

    start = time.perf_counter()
    found = state.label_map(labels_on(scores, native.shape), native)
    if settings.keep_largest:
        found = clean(found, keep_largest=True, together=settings.keep_largest == "together", neighbours=6)
    everywhere = np.zeros(whole.shape, found.data.dtype)
    everywhere[box] = found.data
    labels = state.label_map(from_canonical(everywhere, volume.geometry), volume.geometry)
    yield StageResult("labels", labels, time.perf_counter() - start)


@torch.no_grad()
def explain_inputs(volume: Volume, model: Model, place: Box | None) -> NetworkInputs:
    """Return the network's input in a window around a place; see `napari_fmseg.pipelines.PipelineModule`."""
    settings = SingleSettings.of(model.card.settings)
    data, whole = to_canonical(volume)
    source = SlabReader(data, model.device, model.card.intensity)
    body = source.body(settings.crop_above)
    native = whole.crop(body)
    grid = working_grid(native, settings)
    image = source.read(body, grid.shape)
    around = whole_box(grid.shape) if place is None else box_on(grid, volume.geometry, place)
    window = []
    for n, w, at in zip(grid.shape, settings.window, around, strict=True):
        size = min(n, w)
        first = min(max(0, (at.start + at.stop - size) // 2), n - size)
        window.append(slice(first, first + size))
    box: Box = (window[0], window[1], window[2])
    net = model.nets["net"]
    return NetworkInputs(net, (pad_to_window(crop_array(image, box), net, settings.window)[None],), grid.crop(box))


def working_grid(geometry: Geometry, settings: SingleSettings) -> Geometry:
    """Return the grid of the network's input: the volume's own, or the same field of view at the card's spacing."""
    if not settings.spacing_mm:
        return geometry
    sizes = zip(geometry.shape, geometry.spacing, settings.spacing_mm, strict=True)
    z, y, x = (max(1, round(n * have / want)) for n, have, want in sizes)
    return geometry.resize((z, y, x))


def pad_to_window(image: Tensor, net: nn.Module, window: Sequence[int]) -> Tensor:
    """Repeat the last voxels of an image (c, z, y, x) up to the window's size, if the network takes no less."""
    missing = [max(0, w - n) for w, n in zip(window, image.shape[1:], strict=True)]
    check = getattr(net, "check", None)
    if check is None or not any(missing):
        return image
    try:
        seen = [min(w, n) for w, n in zip(window, image.shape[1:], strict=True)]
        check(image.new_empty((1, len(image), *seen), device="meta"))
    except GeometryMismatch:
        return F.pad(image[None], (0, missing[2], 0, missing[1], 0, missing[0]), mode="replicate")[0]
    return image
