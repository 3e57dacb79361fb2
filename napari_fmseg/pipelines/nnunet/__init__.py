"""Models that nnU-Net v2 trained: its preprocessing, its sliding window and its way back, without nnU-Net.

The networks are ``"windows"`` in the card, and ``"lowres"`` for the earlier stage of a cascade; further folds are
``"windows-2"`` and so on, and their logits are averaged. In the mode ``"exact"`` the arithmetic is nnU-Net's; in
``"fast"`` a processor that computes in bfloat16 does. In both, logits exist for a few planes at a time only.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from napari_fmseg.core.events import Event, Progress, StageResult
from napari_fmseg.core.volume import Box, LabelMap, Volume
from napari_fmseg.models.settings import NNUNetSettings
from napari_fmseg.models.weights import Model
from napari_fmseg.nets.runtime.prepare import forget
from napari_fmseg.pipelines.executor import InferenceRunner, ensemble_members
from napari_fmseg.pipelines.network_inputs import NetworkInputs, box_on
from napari_fmseg.pipelines.nnunet.frame import Frame
from napari_fmseg.pipelines.nnunet.labels import LabelWriter, label_table, rule_of
from napari_fmseg.pipelines.nnunet.preprocess import network_input, previous_channels
from napari_fmseg.pipelines.nnunet.windows import Take, predict_planes

if TYPE_CHECKING:
    from napari_fmseg.pipelines import SegmentOptions

__all__ = ["explain_inputs", "run"]

Labels = npt.NDArray[Any]


@torch.inference_mode()
def run(volume: Volume, model: Model, options: SegmentOptions) -> Iterator[Event]:
    """Run the networks; see `napari_fmseg.pipelines.segment`."""
    settings = NNUNetSettings.of(model.card.settings)
    fast = (options.mode or settings.mode) == "fast"
    ok = True if fast else model.card.half_precision_ok
    engine = InferenceRunner(model.device, options.precision, half_precision_ok=ok)
    labels: Labels | None = None
    stages = [("lowres", NNUNetSettings.of(settings.lowres))] if settings.lowres else []
    for stage, own in [*stages, ("windows", settings)]:
        try:
            labels = yield from _run_stage(stage, volume, model, own, options, engine, labels)
        finally:
            for net in ensemble_members(model.nets, stage):
                forget(net)  # it keeps its largest map from window to window
        yield from engine.warnings()
        if options.until == stage:
            break
    assert labels is not None
    found = LabelMap(labels, volume.geometry, {}, model.card.labels, model.card.colors)
    yield StageResult("labels", found, 0.0)


def _run_stage(
    stage: str, volume: Volume, model: Model, settings: NNUNetSettings, options: SegmentOptions,
    engine: InferenceRunner, previous: Labels | None,
) -> Any:  # fmt: skip
    """Run one stage, yield its result on the network's grid, and return its labels on the volume's."""
    start = time.perf_counter()
    frame = Frame.of(volume, settings)
    image = _image(volume, model, settings, frame, previous)
    nets = ensemble_members(model.nets, stage)
    spacing = frame.grid_spacing(settings)
    table = label_table(settings, model.card.n_classes)
    found = np.zeros(volume.geometry.shape, table.dtype)
    target = np.flip(found.transpose(frame.order), frame.flips)[frame.box]  # what is written to it is in `found`
    writer = LabelWriter(target, image.shape[1:], settings, spacing, frame.spacing, table)
    seen = np.zeros(image.shape[1:], table.dtype) if options.show_stages else None
    for event in predict_planes(
        [partial(_stream, engine, net, len(nets) == 1) for net in nets], image.to(engine.device), settings.window,
        len(settings.regions) or model.card.n_classes,
        overlap=0.5 if options.overlap is None else options.overlap,
        mirror=settings.mirror if options.mirror else (), constant=options.blend == "constant", stage=stage,
    ):  # fmt: skip
        if isinstance(event, Progress):
            yield event
            continue
        number, planes = event
        writer.write(number, planes)
        if seen is not None:
            seen[number : number + planes.shape[1]] = table[rule_of(settings)(planes.float()).cpu().numpy()]
    seconds, note = time.perf_counter() - start, "" if found.any() else "Nothing was found."
    if seen is not None:
        shown = np.ascontiguousarray(frame.turn_back(seen))
        grid = frame.file_grid(seen.shape)
        yield StageResult(stage, LabelMap(shown, grid, {}, model.card.labels, model.card.colors), seconds, note)
    return found


def _image(volume: Volume, model: Model, settings: NNUNetSettings, frame: Frame, previous: Labels | None) -> Tensor:
    """Return the channels that the network takes, on its grid."""
    image = network_input(volume, frame, settings, model.card.intensity)
    if previous is None:
        return image
    return torch.cat([image, previous_channels(previous, volume, frame, settings)])


def _stream(engine: InferenceRunner, net: nn.Module, is_alone: bool, x: Tensor, take: Take) -> None:
    """Run one network, see `InferenceRunner.stream`; one of several frees its memory before the next one runs."""
    engine.stream(net, x, take)
    if not is_alone:
        forget(net)


@torch.no_grad()
def explain_inputs(volume: Volume, model: Model, place: Box | None) -> NetworkInputs:
    """Return the input of the last network in a window around a place; see `napari_fmseg.pipelines.PipelineModule`."""
    from napari_fmseg.pipelines import SegmentOptions

    settings = NNUNetSettings.of(model.card.settings)
    previous = None
    if settings.lowres:
        events = run(volume, model, SegmentOptions(until="lowres", mirror=False, show_stages=False))
        *_, last = events
        assert isinstance(last, StageResult)
        previous = last.output.data
    frame = Frame.of(volume, settings)
    image = _image(volume, model, settings, frame, previous)
    grid = frame.network_geometry.resize((image.shape[1], image.shape[2], image.shape[3]))
    around = None if place is None else box_on(grid, volume.geometry, place)
    window, missing = [], []
    for axis, (n, size) in enumerate(zip(grid.shape, settings.window, strict=True)):
        middle = n if around is None else around[axis].start + around[axis].stop
        first = min(max(0, (middle - size) // 2), max(0, n - size))
        window.append(slice(first, min(n, first + size)))
        missing.append(max(0, size - n))
    box: Box = (window[0], window[1], window[2])
    part = F.pad(image[(slice(None), *box)], (0, missing[2], 0, missing[1], 0, missing[0]))
    return NetworkInputs(model.nets["windows"], (part[None].to(model.device),), grid.crop(box))
