"""From the planes of logits, as they come, to labels on the volume's own grid; never all logits at that size."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from napari_fmseg.models.settings import NNUNetSettings
from napari_fmseg.pipelines.label_upsampling import ARGMAX, AxisTiles, LabelRule, label_slabs
from napari_fmseg.pipelines.nnunet.resample import axis_matrices, separate_axis

__all__ = ["LabelWriter", "label_table", "rule_of"]

_JUST_ABOVE = 1.2e-7
"""The least logit whose probability in float32 is above one half."""


def rule_of(settings: NNUNetSettings) -> LabelRule:
    """Return how logits become labels: the highest, or the last of the regions that are more likely than not."""
    return LabelRule("last", _JUST_ABOVE) if settings.regions else ARGMAX


def label_table(settings: NNUNetSettings, n_classes: int) -> npt.NDArray[Any]:
    """Return the label of each channel, background first."""
    values = (0, *settings.regions) if settings.regions else range(n_classes)
    return np.array(values, np.uint8 if max(values) < 256 else np.uint16)


class LabelWriter:
    """Takes planes of logits in order and writes the labels of a finer or coarser grid.

    Parameters
    ----------
    target
        Where labels are written, (a0, a1, a2); may be a view.
    shape
        Voxels of the grid of the logits.
    settings
        Of the model.
    current, new
        Spacings of the logits and of the target.
    """

    def __init__(
        self, target: npt.NDArray[Any], shape: Sequence[int], settings: NNUNetSettings, current: Sequence[float],
        new: Sequence[float], table: npt.NDArray[Any],
    ) -> None:  # fmt: skip
        self._target, self._table, self._rule = target, table, rule_of(settings)
        rule = settings.logits
        matrices = axis_matrices(rule, shape, target.shape, separate_axis(rule, current, new))
        self._same = all(matrix is None for matrix in matrices)
        whole = [
            torch.eye(n) if matrix is None else torch.from_numpy(matrix).float()
            for n, matrix in zip(shape, matrices, strict=True)
        ]
        self._along, self._plane = whole[0], [AxisTiles.of(one) for one in whole[1:]]
        used = self._along > 0
        self._first = used.int().argmax(1).tolist()
        self._last = (used.shape[1] - 1 - used.flip(1).int().argmax(1)).tolist()
        self._written = 0
        self._held, self._from = torch.zeros(()), 0

    def write(self, number: int, planes: Tensor) -> None:
        """Write the labels that planes of logits decide: (channels, n, a1, a2) from `number` on."""
        if self._same:
            self._put(slice(number, number + planes.shape[1]), self._rule(planes.float()))
            return
        held = planes if self._held.ndim == 0 else torch.cat([self._held, planes], 1)
        start = number if self._held.ndim == 0 else self._from
        until = self._written
        while until < len(self._last) and self._last[until] < start + held.shape[1]:
            until += 1
        if until > self._written:
            seen = slice(self._first[self._written], self._last[until - 1] + 1)
            part = held[:, seen.start - start : seen.stop - start].float()
            weights = self._along[self._written : until, seen].contiguous()
            axes = [AxisTiles.of(weights), *self._plane]
            shape = (until - self._written, *self._target.shape[1:])
            for slab, labels in label_slabs(part, shape, self._rule, axes):
                self._put(slice(self._written + slab.start, self._written + slab.stop), labels)
            self._written = until
        keep = min(self._first[until] if until < len(self._first) else start + held.shape[1], start + held.shape[1])
        self._held, self._from = held[:, keep - start :].clone(), keep

    def _put(self, planes: slice, channels: Tensor) -> None:
        self._target[planes] = self._table[channels.cpu().numpy()]
