"""Grad-CAM of any model: a map of what in the image led to a class, on the grid of one of its networks.

Which network and which inputs, the model's pipeline knows; see `napari_fmseg.explain.seg_grad_cam` for the method.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Generator, Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from napari_fmseg.core.errors import GeometryMismatch, UnknownModel
from napari_fmseg.core.events import Event, Progress, StageResult, drain
from napari_fmseg.core.volume import Box, Geometry, Volume
from napari_fmseg.evaluation.volumes import measure
from napari_fmseg.explain.seg_grad_cam import seg_grad_cam
from napari_fmseg.io.voxel_values import replace_non_finite
from napari_fmseg.models.settings import PIPELINES
from napari_fmseg.nets.traits import activation_of
from napari_fmseg.pipelines import SegmentOptions, check_channels, pipeline_module, segment
from napari_fmseg.pipelines.network_inputs import NetworkInputs

if TYPE_CHECKING:
    from napari_fmseg.models.weights import Model

__all__ = ["STAGE", "grad_cam"]

STAGE = "grad-cam"
"""The stage of the result."""


def grad_cam(
    volume: Volume,
    model: Model,
    label: int | str,
    *,
    box: Box | None = None,
    point: Sequence[int] | None = None,
    layer: str = "auto",
) -> Iterator[Event]:
    """Compute how strongly each place led to a class (Seg-Grad-CAM; Vinogradova 2020).

    Parameters
    ----------
    volume
        As for `napari_fmseg.pipelines.segment`.
    model
        Of any pipeline; of an ensemble its first member is explained.
    label
        The class, by number or name.
    box, point
        Voxels of the volume, or one voxel (z, y, x), whose class is explained; without either all that the network
        gives to the class within its input. A model that takes windows segments the volume first, to find the place.
    layer
        Name of the network's layer as in `named_modules`; ``"auto"`` takes the deepest.

    Yields
    ------
    Progress, Warned or StageResult
        At last ``"grad-cam"``: float32 from 0 to 1 on the grid of the network's input. It is 0 where the image
        could not have changed the output, as far as the layer can tell; its note says if the class was not found.

    Raises
    ------
    UnknownModel
        If the model has no such class or layer.
    GeometryMismatch
        If the place lies outside the volume, or the volume has not the model's channels.
    InvalidRecipe
        If there is no pipeline of the card's name.
    """
    check_channels(volume, model.card)
    volume = replace_non_finite(volume)
    number = _number_of(label, model)
    asked = _box_of(volume.geometry, box, point)
    yield Progress(STAGE, 0, 1)
    start = time.perf_counter()
    place = asked
    if place is None and PIPELINES[model.card.pipeline].windowed:
        place = yield from _find_class(volume, model, number)
    target = pipeline_module(model.card).explain_inputs(volume, model, place)
    region = None if asked is None else target.region(volume.geometry, asked)
    if asked is not None and region is None:
        raise GeometryMismatch("The model's networks do not receive these voxels. Choose a place within the body.")
    name = model.card.labels[number]
    heat, note = _saliency(target, region, number, name, None if layer == "auto" else layer)
    yield Progress(STAGE, 1, 1)
    result = Volume(heat, target.grid, {"label": number, "name": name})
    yield StageResult(STAGE, result, time.perf_counter() - start, note)


def _number_of(label: int | str, model: Model) -> int:
    labels = model.card.labels
    number = next((n for n, name in labels.items() if name == label), label)
    if number not in labels:
        raise UnknownModel(f"{model.card.name} has no class {label!r}. It has: {', '.join(labels.values())}.")
    return int(number)


def _box_of(geometry: Geometry, box: Box | None, point: Sequence[int] | None) -> Box | None:
    """Return a box, also for a point, within the volume."""
    if box is None and point is None:
        return None
    if box is None:
        assert point is not None
        z, y, x = (slice(int(p), int(p) + 1) for p in point)
        box = (z, y, x)
    if not all(0 <= s.start < s.stop <= n for s, n in zip(box, geometry.shape, strict=True)):
        asked = " x ".join(f"{s.start}..{s.stop - 1}" for s in box)
        raise GeometryMismatch(f"The voxels {asked} are not in a volume of {geometry.shape}. Choose one that is.")
    return box


def _find_class(volume: Volume, model: Model, number: int) -> Generator[Event, None, Box | None]:
    """Segment the volume and return a voxel in the middle of the class, or None."""
    stages = []
    for event in segment(volume, model, SegmentOptions(show_stages=False, device=str(model.device))):
        if isinstance(event, StageResult):
            stages.append(event)
        else:
            yield event
    found = next((one.centre for one in measure(drain(stages)) if one.label == number), None)
    return None if found is None else _box_of(volume.geometry, None, found)


def _saliency(
    target: NetworkInputs, region: Box | None, number: int, name: str, layer: str | None
) -> tuple[np.ndarray, str]:
    """Return the heat map (z, y, x) and a note for the user."""
    net, inputs = target.net, target.inputs
    activation = activation_of(net)
    overlapping = activation == "sigmoid"
    note = ""
    with torch.no_grad():
        out = net(*inputs)
        out = out if isinstance(out, Tensor) else out[0]
        predicted = (out[0, number - 1] > 0) if overlapping else out[0].argmax(0) == number
        asked = predicted if region is None else torch.zeros_like(predicted)
        if region is not None:
            asked[region] = True
    if not (predicted & asked).any():
        note = f"The network does not find {name} here: the map shows what little evidence there is for it."
    if not asked.any():
        asked = torch.ones_like(asked)
    channel = number - 1 if overlapping else number
    gives_probabilities = activation == "none"
    compute = partial(seg_grad_cam, channel=channel, region=asked, layer=layer, probabilities=gives_probabilities)
    heat = compute(net, *inputs)[0]
    if gives_probabilities and not heat.any():  # float32 has no difference from 1 left
        heat = compute(copy.deepcopy(net).double(), *(one.double() for one in inputs))[0]
    z, y, x = target.grid.shape  # the window may have been padded
    return heat[:z, :y, :x].float().cpu().numpy(), note
