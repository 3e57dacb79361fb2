"""From a volume and a model to labels, stage by stage: `segment` yields every stage on a grid of its own."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Protocol, cast

from napari_fmseg.core.errors import GeometryMismatch, InvalidRecipe, ModelMismatch
from napari_fmseg.core.events import DOES_NOT_FIT, FROM_THE_FILE, Event, StageResult, Warned
from napari_fmseg.core.structuring import Range, wrong_number
from napari_fmseg.io.voxel_values import replace_non_finite
from napari_fmseg.models.fit import find_misfits
from napari_fmseg.models.measures import measure_volume
from napari_fmseg.models.settings import PIPELINES, Pipeline

if TYPE_CHECKING:
    from napari_fmseg.core.volume import Box, Volume
    from napari_fmseg.models.card import ModelCard
    from napari_fmseg.models.weights import Model
    from napari_fmseg.pipelines.network_inputs import NetworkInputs

__all__ = ["PipelineModule", "SegmentOptions", "check_channels", "pipeline_module", "segment",
           "stages_of"]  # fmt: skip

_RANGES = {
    "min_component_ml": Range(),
    "overlap": Range(0, 1, open="high"),
    "window_batch": Range(1, 4096),
    "max_memory_gb": Range(),
}


@dataclass(frozen=True)
class SegmentOptions:
    """How to run a model.

    Parameters
    ----------
    until
        The last stage to run, for example ``"consensus"``; "" runs them all. The labels are made from it.
    device
        ``"auto"`` (CUDA, then MPS, then CPU), ``"cpu"``, ``"cuda"``, ``"cuda:1"`` or ``"mps"``.
    precision
        ``"float32"``, ``"bfloat16"``, ``"float16"`` or ``"auto"``: 16 bit where the device is faster with it and the
        model's card proves that the masks are the same; else float32 on the CPU, so that every processor gives the
        same mask, and on a GPU 16 bit unless the card refutes it.
    keep_largest
        Keep only the largest connected component of every class.
    min_component_ml
        Remove connected components smaller than this, in ml.
    show_stages
        Whether the stages before the last one are shown, too; the run is a little faster if not.
    overlap
        For models that take windows: the share of a window that overlaps the next, 0 to below 1. None: as in the
        model's card.
    window_batch
        Windows at once (others call it sw_batch_size): more are faster on a GPU and need more memory. None: as in the
        model's card.
    blend
        How overlapping windows are averaged: ``"gaussian"``, their middle counts most, or ``"constant"``.
    careful
        Whether a network that sees the whole volume also looks at it zoomed and shifted, and averages: a little better,
        about five times slower. None: as in the model's card.
    mirror
        Whether windows are mirrored, too, where the model's card says so: up to 8 times the work.
    mode
        For models of nnU-Net: ``"exact"``, its own arithmetic; ``"fast"``, in 16 bit where the device computes in it;
        "" as in the model's card.
    max_memory_gb
        Most memory in GB that the run may take, of a GPU or else of the whole program; 0 for no limit. A GPU's limit
        is kept, by smaller parts or on the CPU; on the CPU the run warns if it needed more.
    strict
        Refuse a volume that is not like those that the model was trained on; else there is a warning.
    """

    until: str = ""
    device: str = "auto"
    precision: str = "auto"
    keep_largest: bool = False
    min_component_ml: float = 0.0
    show_stages: bool = True
    overlap: float | None = None
    window_batch: int | None = None
    blend: str = "gaussian"
    careful: bool | None = None
    mirror: bool = True
    mode: str = ""
    max_memory_gb: float = 0.0
    strict: bool = False

    def __post_init__(self) -> None:
        if wrong := wrong_number(self, _RANGES):
            raise InvalidRecipe(f"{wrong}.")
        if self.mode not in ("", "exact", "fast"):
            raise InvalidRecipe(f"The mode is exact, fast or nothing, not {self.mode!r}.")


def stages_of(card: ModelCard) -> tuple[str, ...]:
    """Name the stages that a model can stop after, in their order; loads no torch."""
    return tuple(stage for stage in _pipeline_of(card).stages if stage in card.nets)


def segment(volume: Volume, model: Model, options: SegmentOptions | None = None) -> Iterator[Event]:
    """Segment one volume, stage by stage.

    Parameters
    ----------
    volume
        Any orientation and spacing; as many channels as the model was trained with. NaN and infinity are replaced, as
        when a file is read.
    model
        From `load_model`.
    options
        See `SegmentOptions`.

    Yields
    ------
    Progress, Warned or StageResult
        Every stage has a grid of its own; the last result is called ``"labels"`` and lies on the volume's grid.

    Raises
    ------
    GeometryMismatch
        If the number of channels is not the model's.
    UnreadableVolume
        If no voxel has a finite value.
    ModelMismatch
        If the volume is not like those that the model was trained on, and `options.strict`.
    InvalidRecipe
        If `options.until` is no stage of the model, or a limit is negative.
    DeviceMemory
        If memory runs out, after all fallbacks.
    """
    options = options or SegmentOptions()
    card = model.card
    stages = stages_of(card)
    if options.until and options.until not in stages:
        raise InvalidRecipe(f"{card.name} has no stage {options.until!r}. Choose one of: {', '.join(stages)}.")
    check_channels(volume, card)
    volume = replace_non_finite(volume)
    misfits = find_misfits(measure_volume(volume), volume.meta, card)
    if misfits and options.strict:
        raise ModelMismatch(" ".join(misfit.text for misfit in misfits))
    yield from (Warned(misfit.text, DOES_NOT_FIT + misfit.kind) for misfit in misfits)
    yield from (Warned(text, FROM_THE_FILE) for text in volume.warnings)
    from napari_fmseg.pipelines.executor import MemoryLimit, out_of_memory_as_error

    size = " x ".join(str(n) for n in volume.geometry.shape)
    with MemoryLimit(model.device, options.max_memory_gb) as limit, out_of_memory_as_error(size, model.device):
        yield from _clean_labels(pipeline_module(card).run(volume, model, options), options)
        yield from (Warned(text) for text in limit.warnings())


def check_channels(volume: Volume, card: ModelCard) -> None:
    """Refuse a volume that has not the channels of a model, with `GeometryMismatch`, which names them."""
    if volume.n_channels != len(card.channels):
        raise GeometryMismatch(
            f"{card.name} takes {len(card.channels)} channel(s) ({', '.join(card.channels)}), "
            f"but the volume has {volume.n_channels}. Choose the channels that it was trained with."
        )


class PipelineModule(Protocol):
    """What the module of a pipeline has; see `napari_fmseg.models.settings.PIPELINES`."""

    def run(self, volume: Volume, model: Model, options: SegmentOptions) -> Iterator[Event]:
        """Yield the result of every stage, and at last ``"labels"`` on the volume's grid."""

    def explain_inputs(self, volume: Volume, model: Model, place: Box | None) -> NetworkInputs:
        """Return the last network that receives a place of the volume (the whole, if None), and its inputs."""


def pipeline_module(card: ModelCard) -> PipelineModule:
    """Import the module that runs a model; `InvalidRecipe` if there is no pipeline of that name."""
    return cast(PipelineModule, import_module(_pipeline_of(card).module))


def _pipeline_of(card: ModelCard) -> Pipeline:
    if card.pipeline not in PIPELINES:
        raise InvalidRecipe(f"{card.name} needs the pipeline {card.pipeline!r}. Known: {', '.join(PIPELINES)}.")
    return PIPELINES[card.pipeline]


def _clean_labels(events: Iterator[Event], options: SegmentOptions) -> Iterator[Event]:
    """Clean the last stage's labels as the options ask."""
    from napari_fmseg.core.volume import LabelMap
    from napari_fmseg.pipelines.postprocess import clean

    for event in events:
        if not isinstance(event, StageResult):
            yield event
        elif event.stage != "labels":
            if options.show_stages:
                yield event
        elif isinstance(event.output, LabelMap) and (options.keep_largest or options.min_component_ml > 0):
            start = time.perf_counter()
            kept = clean(event.output, keep_largest=options.keep_largest, min_component_ml=options.min_component_ml)
            yield StageResult(event.stage, kept, event.seconds + time.perf_counter() - start, event.note)
        else:
            yield event
