"""One run of a model on a volume of the viewer, as a generator for a thread: every stage comes out as a layer.

Nothing here touches the viewer, a layer in it, or a widget. Stacking, cropping, turning, check sums and the making of
layers are done where they cannot make the window wait.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeAlias

import numpy as np
import numpy.typing as npt

from napari_fmseg._napari.choosers.roi import crop_to, paste_into
from napari_fmseg._napari.layer_transform import Frame
from napari_fmseg._napari.layers import KEY, labels_layer, map_layer
from napari_fmseg._napari.segment.scan_view import DERIVED
from napari_fmseg.core.errors import FmsegError
from napari_fmseg.core.events import Event, Progress, Saved, StageResult, Warned
from napari_fmseg.core.resampling import stack_channels
from napari_fmseg.core.volume import Box, Geometry, LabelMap, Volume
from napari_fmseg.pipelines import SegmentOptions
from napari_fmseg.pipelines.batch import SegmentationJob

__all__ = [
    "EditedLayers",
    "Engine",
    "GradCamTarget",
    "Request",
    "Run",
    "StageLayer",
    "StagedEvent",
    "check_sum",
    "run_to_layers",
]


class Engine(Protocol):
    """What runs a model: `napari_fmseg.workers.engine.RemoteEngine`, or a stand-in."""

    def segment(self, volume: Volume, model_name: str, options: SegmentOptions) -> Iterator[Event]:
        """Yield the events of `napari_fmseg.segment`."""
        ...

    def grad_cam(
        self, volume: Volume, model_name: str, label: int, *, point: Sequence[int], device: str
    ) -> Iterator[Event]:
        """Yield the events of `napari_fmseg.explain.gradcam.grad_cam`."""
        ...

    def segment_file(self, job: SegmentationJob, model_name: str, options: SegmentOptions) -> Iterator[Event | Saved]:
        """Yield the events of a run from file to file, at last `Saved`."""
        ...

    def cancel(self) -> None:
        """End the run soon; from any thread."""
        ...

    def close(self) -> None:
        """Return all layers to the window."""
        ...


@dataclass(frozen=True)
class Run:
    """Which results belong together, so that a new run replaces them.

    Parameters
    ----------
    image, model
        Id of the image layer, name of the model.
    region
        "" for the whole volume, else what it was limited to.
    """

    image: str
    model: str
    region: str = ""


@dataclass(frozen=True)
class GradCamTarget:
    """Why is this voxel (z, y, x) of that class?"""

    label: int
    point: tuple[int, int, int]


@dataclass(frozen=True)
class Request:
    """What to run, on what.

    Parameters
    ----------
    run
        Whose results these are.
    name
        Of the image, with which the names of the layers begin.
    arrays
        Channels (z, y, x), or one array (z, y, x) or (c, z, y, x).
    geometry, meta
        Of the volume.
    filed
        The geometry in the file that the volume came from, for export.
    source
        That file.
    options
        How to run.
    box
        The part to look at, or None.
    before
        Layers of an earlier run: id, data and the check sum they were made with.
    question
        Do not segment, but say why.
    channels
        Names of the model's channels, where each is an image of its own; else empty.
    others
        Data, geometry and meta of the images after the first one.
    frame
        How the image lies in the window; without it as its geometry says.
    note
        What the labels carry of their image: see `belonging.record_of`.
    """

    run: Run
    name: str
    arrays: tuple[Any, ...]
    geometry: Geometry
    meta: dict[str, Any] = field(default_factory=dict)
    filed: Geometry | None = None
    source: str = ""
    options: SegmentOptions = field(default_factory=SegmentOptions)
    box: Box | None = None
    before: tuple[tuple[str, Any, int], ...] = ()
    question: GradCamTarget | None = None
    channels: tuple[str, ...] = ()
    others: tuple[tuple[Any, Geometry, dict[str, Any]], ...] = ()
    frame: Frame | None = None
    note: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class EditedLayers:
    """The layers of an earlier run that somebody has changed since, by their ids."""

    layers: frozenset[str]


@dataclass(frozen=True)
class StageLayer:
    """One stage as a napari layer that waits to be added."""

    stage: str
    layer: Any
    seconds: float
    note: str = ""
    is_labels: bool = True


StagedEvent: TypeAlias = Progress | Warned | EditedLayers | StageLayer


def run_to_layers(request: Request, engine: Engine) -> Iterator[StagedEvent]:
    """Run a model and give each stage as the data of a layer, in its place on the image.

    Raises
    ------
    FmsegError
        Whatever the engine raises; or if the channels do not fit together.
    """
    changed = frozenset(key for key, data, made in request.before if check_sum(data) != made)
    yield EditedLayers(changed)
    whole = _volume(request)
    volume = whole if request.box is None else crop_to(whole, request.box)
    for event in _events_of(request, engine, volume):
        yield _stage_layer(event, request, whole) if isinstance(event, StageResult) else event


def _events_of(request: Request, engine: Engine, volume: Volume) -> Iterator[Event]:
    model, question = request.run.model, request.question
    if question is None:
        return engine.segment(volume, model, request.options)
    return engine.grad_cam(volume, model, question.label, point=question.point, device=request.options.device)


def _volume(request: Request) -> Volume:
    arrays = [np.asarray(array) for array in request.arrays]
    shapes = {array.shape for array in arrays}
    if len(shapes) > 1:
        raise FmsegError(f"The channels of {request.name!r} have different sizes: {sorted(shapes)}. Open them again.")
    volume = Volume(arrays[0] if len(arrays) == 1 else np.stack(arrays), request.geometry, request.meta)
    if not request.others:
        return volume
    others = [Volume(np.asarray(data), geometry, meta) for data, geometry, meta in request.others]
    return stack_channels([volume, *others], request.channels)


def _stage_layer(result: StageResult, request: Request, whole: Volume) -> StageLayer:
    output, name = result.output, f"{request.name} · {request.run.model}"
    if request.run.region:
        name = f"{name} ({request.run.region})"
    if request.question is None:
        name = f"{name} · {result.stage}"
    if isinstance(output, LabelMap):
        if request.box is not None and result.stage == "labels":
            output = paste_into(output, request.box, whole)
        data, options, kind = labels_layer(output, name, frame=request.frame or whole.geometry, source=request.source)
    else:
        data, options, kind = map_layer(output, name, frame=request.frame or whole.geometry)
    data = np.require(data, requirements=["C", "W"])  # painted on, so neither a turned view nor somebody's constant
    recorded = options["metadata"][KEY]
    if request.filed is not None and result.stage == "labels":
        recorded["filed"] = request.filed
    if request.note:
        recorded["image"] = request.note
    run = request.run
    recorded[DERIVED] = True
    recorded["made"] = {
        "image": run.image,
        "model": run.model,
        "region": run.region,
        "stage": result.stage,
        "check_sum": check_sum(data),
    }
    return StageLayer(result.stage, _create_layer(data, options, kind), result.seconds, result.note, kind == "labels")


def _create_layer(data: Any, options: dict[str, Any], kind: str) -> Any:
    from napari.layers import Layer

    return Layer.create(data, options, kind)


def check_sum(data: npt.ArrayLike) -> int:
    """Return a number that changes when a voxel does; zlib releases Python's lock, so the window stays quick."""
    found = 0
    for plane in np.asanyarray(data):
        found = zlib.crc32(np.ascontiguousarray(plane).reshape(-1).view(np.uint8).data, found)
    return found
