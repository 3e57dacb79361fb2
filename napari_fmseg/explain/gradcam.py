"""Why here? A map of the places that spoke for a class where it was found, for any model, on a grid of its own.

Single models are asked in one window around the place; models of several stages in the one that looked closely. See
`napari_fmseg.explain.seg_grad_cam` for how the map is made.
"""

from __future__ import annotations

import copy
import itertools
import time
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn

from napari_fmseg.core.errors import GeometryMismatch, InvalidRecipe, UnknownModel
from napari_fmseg.core.events import Event, Progress, StageResult, drain
from napari_fmseg.core.resampling_torch import resize, to_canonical, to_tensor
from napari_fmseg.core.volume import Box, Geometry, LabelMap, Volume
from napari_fmseg.evaluation.volumes import measure
from napari_fmseg.explain.seg_grad_cam import seg_grad_cam
from napari_fmseg.models.settings import CoarseFineSettings, PhasedSettings, SingleSettings
from napari_fmseg.pipelines import SegmentOptions, check_channels, segment
from napari_fmseg.pipelines.coarse_fine import box_around, network_input
from napari_fmseg.pipelines.label_upsampling import label_rule_for
from napari_fmseg.pipelines.phased import attention_input, attention_roi, consensus_input
from napari_fmseg.pipelines.postprocess import keep_largest_components
from napari_fmseg.pipelines.preprocessing import body_box, crop_array, normalise
from napari_fmseg.pipelines.single import pad_to_window, working_grid
from napari_fmseg.pipelines.slab_reader import SlabReader

if TYPE_CHECKING:
    from napari_fmseg.models.weights import Model

__all__ = ["WHY", "grad_cam"]

WHY = "why here"
"""The stage of the result."""


@dataclass(frozen=True)
class _Question:
    """What a network is asked: its inputs, the grid on which they lie, and about which voxels of the volume, if any."""

    net: nn.Module
    inputs: tuple[Tensor, ...]
    grid: Geometry
    asked: Box | None
    source: Geometry

    @property
    def region(self) -> Box | None:
        """The voxels of the grid that are asked about, None if none is on it."""
        if self.asked is None:
            return None
        there = _on(self.grid, self.source, self.asked)
        z, y, x = (slice(max(0, s.start), min(n, s.stop)) for s, n in zip(there, self.grid.shape, strict=True))
        return (z, y, x) if all(s.start < s.stop for s in (z, y, x)) else None


def grad_cam(
    volume: Volume,
    model: Model,
    label: int | str,
    *,
    box: Box | None = None,
    point: Sequence[int] | None = None,
    layer: str = "auto",
) -> Iterator[Event]:
    """Map how strongly each place spoke for a class (Seg-Grad-CAM; Vinogradova 2020).

    Parameters
    ----------
    volume
        As for `napari_fmseg.pipelines.segment`.
    model
        Of any pipeline; of an ensemble its first member is asked.
    label
        The class, by number or name.
    box, point
        Voxels of the volume, or one voxel (z, y, x), that the question is about; without either all that the network
        gives to the class where it looks. A single model then segments the volume first, to find the place.
    layer
        Name of the network's layer as in `named_modules`; ``"auto"`` takes the deepest.

    Yields
    ------
    Progress, Warned or StageResult
        At last ``"why here"``: float32 from 0 to 1 on the grid that the network looked at. It is 0 where the image
        could not have changed the answer, as far as the layer can tell; its note says if the class was not found.

    Raises
    ------
    UnknownModel
        If the model has no such class or layer.
    GeometryMismatch
        If the place lies outside the volume, or the volume has not the model's channels.
    InvalidRecipe
        If the model's pipeline is not known here.
    """
    check_channels(volume, model.card)
    number = _number_of(label, model)
    asked = _box_of(volume.geometry, box, point)
    yield Progress(WHY, 0, 1)
    start = time.perf_counter()
    if model.card.pipeline == "single":
        middle = asked or (yield from _found(volume, model, number))
        question = _in_window(volume, model, asked, middle)
    elif model.card.pipeline == "phased":
        question = _looking_closely(volume, model, asked)
    elif model.card.pipeline == "coarse_fine":
        question = _in_the_box(volume, model, asked)
    else:
        raise InvalidRecipe(f"Models of the pipeline {model.card.pipeline!r} cannot be asked why. Ask another model.")
    name = model.card.labels[number]
    heat, note = _answer(question, number, name, None if layer == "auto" else layer)
    told = {"label": number, "name": name}
    yield Progress(WHY, 1, 1)
    yield StageResult(WHY, Volume(heat, question.grid, told), time.perf_counter() - start, note)


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
        raise GeometryMismatch(f"The voxels {asked} are not in a volume of {geometry.shape}. Ask about one that is.")
    return box


def _found(volume: Volume, model: Model, number: int) -> Generator[Event, None, Box | None]:
    """Segment the volume; give a voxel in the middle of the class, or None."""
    stages = []
    for event in segment(volume, model, SegmentOptions(show_stages=False, device=str(model.device))):
        if isinstance(event, StageResult):
            stages.append(event)
        else:
            yield event
    found = next((one.centre for one in measure(drain(stages)) if one.label == number), None)
    return None if found is None else _box_of(volume.geometry, None, found)


@torch.no_grad()
def _in_window(volume: Volume, model: Model, asked: Box | None, middle: Box | None) -> _Question:
    """Request the network about a window around the place."""
    settings = SingleSettings.of(model.card.settings)
    data, native = to_canonical(volume)
    image = normalise(to_tensor(data, model.device), model.card.intensity)
    body = body_box(image, settings)
    image, native = crop_array(image, body), native.crop(body)
    grid = working_grid(native, settings)
    image = resize(image, grid.shape) if grid.shape != native.shape else image
    z, y, x = (slice(0, n) for n in grid.shape)
    around = (z, y, x) if middle is None else _on(grid, volume.geometry, middle)
    seen = []
    for n, w, at in zip(grid.shape, settings.window, around, strict=True):
        size = min(n, w)
        first = min(max(0, (at.start + at.stop - size) // 2), n - size)
        seen.append(slice(first, first + size))
    window: Box = (seen[0], seen[1], seen[2])
    net = model.nets["net"]
    inputs = (pad_to_window(crop_array(image, window), net, settings.window)[None],)
    return _Question(net, inputs, grid.crop(window), asked, volume.geometry)


@torch.no_grad()
def _looking_closely(volume: Volume, model: Model, asked: Box | None) -> _Question:
    """Request the attention network; the consensus network where there is no other, or it looked elsewhere."""
    settings, intensity, nets = PhasedSettings.of(model.card.settings), model.card.intensity, model.nets
    data, native = to_canonical(volume)
    image = normalise(to_tensor(data, model.device), intensity)
    body = body_box(image, settings)
    image, geometry = crop_array(image, body), native.crop(body)
    x = consensus_input(image, settings, intensity)[None]
    coarse = _Question(nets["consensus"], (x,), geometry.resize(settings.consensus_grid), asked, volume.geometry)
    if "attention" not in nets:
        return coarse
    _, attention, box = attention_roi(nets["consensus"](x)[0], geometry.shape, settings)
    spans = [(s.start, s.stop) for s in box]
    x, a = attention_input(image, attention, spans, settings, intensity)
    grid = geometry.crop(box).resize(settings.attention_grid)
    close = _Question(nets["attention"], (x[None], a[None]), grid, asked, volume.geometry)
    return close if asked is None or close.region is not None else coarse


@torch.no_grad()
def _in_the_box(volume: Volume, model: Model, asked: Box | None) -> _Question:
    """Request the fine network about the box around what was found; the coarse one where it does not look."""
    settings, intensity, nets = CoarseFineSettings.of(model.card.settings), model.card.intensity, model.nets
    data, native = to_canonical(volume)
    source = SlabReader(data, model.device)
    z, y, x = (slice(0, n) for n in native.shape)
    box: Box = (z, y, x)
    if settings.crop_above is not None:
        box = source.above(settings.crop_above) or box
    seen = network_input(source.read(box, settings.coarse_size), intensity)[None]
    grid = native.crop(box).resize(settings.coarse_size)
    coarse = _Question(nets["coarse"], (seen,), grid, asked, volume.geometry)
    if "fine" not in nets:
        return coarse
    choose = label_rule_for(getattr(nets["coarse"], "activation", "softmax"), settings)
    found = LabelMap(choose(nets["coarse"](seen)[0]).cpu().numpy(), grid)
    found = keep_largest_components(found, settings.coarse_max_components, settings.coarse_min_ml)
    box = box_around(found.data, native, settings.margin_mm, box)
    seen = network_input(source.read(box, settings.fine_size), intensity)[None]
    fine = _Question(nets["fine"], (seen,), native.crop(box).resize(settings.fine_size), asked, volume.geometry)
    return fine if asked is None or fine.region is not None else coarse


def _answer(question: _Question, number: int, name: str, layer: str | None) -> tuple[np.ndarray, str]:
    """Return the map (z, y, x) and what is to be said of it."""
    net, inputs = question.net, question.inputs
    overlapping = getattr(net, "activation", "") == "sigmoid"
    note = ""
    with torch.no_grad():
        out = net(*inputs)
        out = out if isinstance(out, Tensor) else out[0]
        theirs = (out[0, number - 1] > 0) if overlapping else out[0].argmax(0) == number
        region = torch.zeros_like(theirs)
        if question.asked is None:
            region = theirs
        elif question.region is None:
            raise GeometryMismatch("The model did not look at these voxels. Ask about a place within the body.")
        else:
            region[question.region] = True
    if not (theirs & region).any():
        note = f"The network does not find {name} here: the map shows what little spoke for it."
    if not region.any():
        region = torch.ones_like(theirs)
    channel = number - 1 if overlapping else number
    sure = not getattr(net, "activation", "")  # the phased networks give probabilities
    asking = partial(seg_grad_cam, channel=channel, region=region, layer=layer, probabilities=sure)
    heat = asking(net, *inputs)[0]
    if sure and not heat.any():  # so sure that float32 has no difference from 1 left
        heat = asking(copy.deepcopy(net).double(), *(one.double() for one in inputs))[0]
    z, y, x = question.grid.shape  # the window may have been filled up
    return heat[:z, :y, :x].float().cpu().numpy(), note


def _on(grid: Geometry, source: Geometry, box: Box) -> Box:
    """Return the voxels of a grid that a box of another grid touches, one at least along each axis."""
    edges = [(s.start - 0.5, s.stop - 0.5) for s in box]
    corners = source.place(list(itertools.product(*edges)))
    inside = (corners - grid.affine[:3, 3]) @ np.linalg.inv(grid.affine[:3, :3]).T + 0.5
    low, high = np.floor(inside.min(0) + 1e-6).astype(int), np.ceil(inside.max(0) - 1e-6).astype(int)
    z, y, x = (slice(int(a), int(max(a + 1, b))) for a, b in zip(low, high, strict=True))
    return (z, y, x)
