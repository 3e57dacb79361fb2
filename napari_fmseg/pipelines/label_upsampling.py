"""Labels on a fine grid from scores of classes on a coarse one, which never exist for all classes at the full size.

On the processor nothing is computed where the answer is plain. Zooming is a mean with weights that add up to one; so
where all voxels of a mean have one label, every mean has it, too, and a class that nowhere comes near the
winner cannot win. What is left lies along the borders of the structures.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from napari_fmseg.core.resampling_torch import axis_weights, resize_slab, slabs
from napari_fmseg.models.settings import CoarseFineSettings

__all__ = ["ARGMAX", "AxisTiles", "LabelRule", "label_rule_for", "label_slabs", "labels_on"]

_CELLS = 4  # coarse voxels along each side of a tile
_TILE = 8  # fine voxels along each side of a tile, at least
_MOSTLY = 0.5  # share of tiles to compute from which whole planes are faster


@dataclass(frozen=True)
class LabelRule:
    """How scores (c, z, y, x) become labels (z, y, x), uint8, or int16 where there are more than 255.

    Parameters
    ----------
    how
        ``"argmax"``: the highest score; channel 0 is the background. Without a channel for the background, of the
        classes that reach `least`, ``"probable"``: the highest; ``"last"``: the last one; 0 where none does.
    least
        The score that a class must reach.
    """

    how: str = "argmax"
    least: float = 0.0

    def __call__(self, scores: Tensor) -> Tensor:
        """Return the labels."""
        if self.how == "argmax":
            return _highest(scores, len(scores) - 1)[1]
        if self.how == "probable":
            best, which = _highest(scores, len(scores))
            return (which + 1) * (best >= self.least)
        labels = _small(torch.zeros(scores.shape[1:], device=scores.device), len(scores))
        for label, score in enumerate(scores, 1):
            labels[score >= self.least] = label
        return labels

    def candidate_classes(self, scores: Tensor) -> Tensor:
        """Return the channels that can win anywhere in a mean of these scores."""
        flat = scores.flatten(1)
        bar = flat.amax(0).amin() if self.how == "argmax" else self.least
        return (flat.amax(1) >= bar).nonzero()[:, 0]

    def decide_among(self, scores: Tensor, channels: Tensor) -> Tensor:
        """Return the labels where only some channels of the scores are there."""
        if not len(channels):
            return torch.zeros(scores.shape[1:], dtype=torch.uint8)
        labels = channels if self.how == "argmax" else F.pad(channels + 1, (1, 0))
        return labels[self(scores).long()]


ARGMAX = LabelRule()


def label_rule_for(activation: str, settings: CoarseFineSettings) -> LabelRule:
    """Return the choice for a network's logits.

    With ``"softmax"`` the most probable class. With ``"sigmoid"`` (no channel for the background) the most probable
    or the last class of those that reach the threshold; 0 where none does.
    """
    if activation != "sigmoid":
        return ARGMAX
    return LabelRule(settings.overlap, math.log(settings.threshold / (1 - settings.threshold)))


def labels_on(scores: Tensor, shape: Sequence[int], choose: LabelRule = ARGMAX) -> Tensor:
    """Zoom scores of classes (c, z, y, x) to `shape` and choose a label for every voxel.

    Returns
    -------
    Tensor
        `shape`, uint8 (int16 with more than 256 classes), on the same device.
    """
    out = torch.zeros(0)
    for planes, labels in label_slabs(scores, shape, choose):
        if not len(out):
            out = labels.new_empty(tuple(shape))
        out[planes] = labels
    return out


def label_slabs(
    scores: Tensor, shape: Sequence[int], choose: LabelRule, axes: Sequence[AxisTiles] | None = None
) -> Iterator[tuple[slice, Tensor]]:
    """Zoom scores of classes (c, z, y, x) to `shape` and choose a label for every voxel, some planes at a time.

    Parameters
    ----------
    scores
        Probabilities or logits.
    shape
        Voxels (z, y, x) of the result, over the same field of view.
    choose
        How.
    axes
        The weights along z, y, x, of at most two neighbours each; linear and anti-aliased if None.

    Yields
    ------
    tuple
        Planes along z, and their labels.
    """
    if axes is None and tuple(shape) == tuple(scores.shape[1:]):
        yield slice(0, shape[0]), choose(scores)
    elif scores.device.type == "cpu":
        yield from _label_tiles(scores, shape, choose, axes)
    else:
        for planes in slabs(shape, len(scores)):
            yield planes, choose(_slab_scores(scores, shape, planes, axes))


def _label_tiles(
    scores: Tensor, shape: Sequence[int], choose: LabelRule, given: Sequence[AxisTiles] | None
) -> Iterator[tuple[slice, Tensor]]:
    """Fill tiles of one label; compute the others from the classes that can win there."""
    axes = given or [AxisTiles.of(_linear(n, m)) for n, m in zip(scores.shape[1:], shape, strict=True)]
    least = most = choose(scores).numpy()
    for i, axis in enumerate(axes):
        least = np.stack([least.take(range(s.start, s.stop), i).min(i) for s in axis.seen], i)
        most = np.stack([most.take(range(s.start, s.stop), i).max(i) for s in axis.seen], i)
    z_axis, y_axis, x_axis = axes
    for z, (planes, seen) in enumerate(zip(z_axis.tiles, z_axis.seen, strict=True)):
        mixed = least[z] != most[z]
        if mixed.mean() > _MOSTLY:
            for slab in slabs((planes.stop - planes.start, *shape[1:]), len(scores)):
                few = slice(planes.start + slab.start, planes.start + slab.stop)
                yield few, choose(_slab_scores(scores, shape, few, given))
            continue
        rows = np.repeat(least[z], [s.stop - s.start for s in y_axis.tiles], 0)
        plane = np.repeat(rows, [s.stop - s.start for s in x_axis.tiles], 1)
        out = torch.from_numpy(np.repeat(plane[None], planes.stop - planes.start, 0))
        for y, x in product(range(len(y_axis.tiles)), range(len(x_axis.tiles))):
            if mixed[y, x]:
                part = scores[:, seen, y_axis.seen[y], x_axis.seen[x]].float()
                channels = choose.candidate_classes(part)
                part = part[channels] @ x_axis.weights[x].T
                part = y_axis.weights[y] @ part
                part = torch.matmul(z_axis.weights[z], part.flatten(2)).reshape(len(channels), -1, *part.shape[2:])
                out[:, y_axis.tiles[y], x_axis.tiles[x]] = choose.decide_among(part, channels)
        yield planes, out


@dataclass(frozen=True)
class AxisTiles:
    """One axis cut into tiles.

    Attributes
    ----------
    whole
        Weights (fine voxels, coarse voxels) of the axis; every row adds up to 1, and none is negative.
    tiles, seen, weights
        Fine voxels of each tile, the coarse voxels that they are means of, and the weights.
    """

    whole: Tensor
    tiles: list[slice]
    seen: list[slice]
    weights: list[Tensor]

    @classmethod
    def of(cls, weights: Tensor) -> AxisTiles:
        """Cut an axis into tiles of a few coarse voxels."""
        n_out, n_in = weights.shape
        size = max(_TILE, round(_CELLS * n_out / n_in))
        tiles = [slice(a, min(a + size, n_out)) for a in range(0, n_out, size)]
        seen = []
        for tile in tiles:
            used = weights[tile].any(0).nonzero()
            seen.append(slice(int(used[0]), int(used[-1]) + 1))
        return cls(weights, tiles, seen, [weights[t, s].contiguous() for t, s in zip(tiles, seen, strict=True)])


def _linear(n_in: int, n_out: int) -> Tensor:
    step = n_in / n_out
    return axis_weights(n_in, n_out, (step - 1) / 2, step)


def _slab_scores(
    scores: Tensor, shape: Sequence[int], planes: slice, axes: Sequence[AxisTiles] | None = None
) -> Tensor:
    """Zoom, or apply the weights that are given."""
    if axes is None:
        return resize_slab(scores, shape, planes)
    z, y, x = (axis.whole for axis in axes)
    part = _two_taps(_two_taps(scores.float(), z[planes], 1), y, 2)
    return part @ x.T.to(part.device)  # along the last axis faster than to gather


def _two_taps(data: Tensor, weights: Tensor, axis: int) -> Tensor:
    """Apply weights that hold one or two numbers in a row, other than 0, to an axis."""
    n_out, n_in = weights.shape
    used = weights > 0
    low, high = used.int().argmax(1), n_in - 1 - used.flip(1).int().argmax(1)
    share = weights[torch.arange(n_out), high] * (high > low)
    share = share.reshape([-1 if i == axis else 1 for i in range(data.ndim)]).to(data)
    low, high = low.to(data.device), high.to(data.device)
    return torch.lerp(data.index_select(axis, low), data.index_select(axis, high), share)


def _highest(scores: Tensor, most: int) -> tuple[Tensor, Tensor]:
    """Return the highest score of every voxel and its channel, the first of equals, in a type with room for `most`."""
    if scores.device.type != "cpu":
        best, which = scores.max(0)
        return best, _small(which, most)
    # Several times faster there than torch's maximum over the first axis.
    best, which = scores[0].clone(), _small(torch.zeros(scores.shape[1:]), most)
    for channel, score in enumerate(scores[1:], 1):
        # On large maps six times faster than to fill.
        torch.maximum(which, (score > best).to(which.dtype).mul_(channel), out=which)
        torch.maximum(best, score, out=best)
    return best, which


def _small(labels: Tensor, highest: int) -> Tensor:
    return labels.to(torch.uint8 if highest <= 255 else torch.int16)
