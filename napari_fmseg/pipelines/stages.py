"""What the pipelines share: one stage after the other, the mean of several networks, labels with their names."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn

from napari_fmseg.core.events import Event, Progress
from napari_fmseg.core.resampling_torch import to_canonical
from napari_fmseg.core.volume import Geometry, LabelMap, Volume
from napari_fmseg.models.card import Intensity
from napari_fmseg.models.settings import PIPELINES
from napari_fmseg.models.weights import Model
from napari_fmseg.pipelines.executor import InferenceRunner, ensemble_mean, ensemble_members
from napari_fmseg.pipelines.slab_reader import SlabReader

if TYPE_CHECKING:
    from napari_fmseg.pipelines import SegmentOptions

__all__ = ["StageRun"]


class StageRun:
    """The state between the stages of one run: the volume, the networks, and the runner that calls them.

    Parameters
    ----------
    volume, model, options
        As for `napari_fmseg.pipelines.segment`.
    intensity
        By which the whole volume is mapped before it is resized; None if each network's input is mapped by itself.
    """

    def __init__(
        self, volume: Volume, model: Model, options: SegmentOptions, intensity: Intensity | None = None
    ) -> None:
        self.volume, self.card, self.nets = volume, model.card, model.nets
        self.engine = InferenceRunner(model.device, options.precision, half_precision_ok=model.card.half_precision_ok)
        self.dtype = torch.uint8 if model.card.n_classes <= 256 else torch.int16  # of labels
        data, self.whole = to_canonical(volume)
        self.source = SlabReader(data, model.device, intensity)
        if not self.source.to_device():
            self.engine.notes.append(f"The volume does not fit into the memory of {model.device}: read in slabs.")

    def run(self, pipeline: str, until: str) -> Iterator[Event]:
        """Run the stages of a pipeline, each a method of its name, as far as there are networks, or `until` one."""
        for stage in PIPELINES[pipeline].stages:
            if stage not in self.nets:
                break
            yield Progress(stage, 0, 1)
            yield from getattr(self, stage)()
            yield from self.engine.warnings()
            if stage == until:
                break

    def predict(self, stage: str, *inputs: Tensor) -> Tensor:
        """Return the output of a stage's network; of an ensemble the mean of its members."""
        out = ensemble_mean(self.call, ensemble_members(self.nets, stage), *inputs)
        assert out is not None  # only an attempt gives none
        return out

    def call(self, net: nn.Module, *inputs: Tensor) -> Tensor:
        """Call a network; where it runs out of memory, the volume leaves the device before anything else."""
        if self.source.on_device:
            out = self.engine.attempt(net, *inputs)
            if out is not None:
                return out
            self.source.release_tensor()
            self.engine.free()
            self.engine.notes.append(
                f"The memory of {self.engine.device} did not suffice: the volume is read in slabs."
            )
        return self.engine(net, *inputs)

    def label_map(self, labels: Tensor | np.ndarray, geometry: Geometry) -> LabelMap:
        """Return labels with the names and colours of the model's classes."""
        array = labels.to(self.dtype).cpu().numpy() if isinstance(labels, Tensor) else labels
        return LabelMap(array, geometry, {}, self.card.labels, self.card.colors)
