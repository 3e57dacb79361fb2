"""nnU-Net's sliding window, plane by plane: what no later window touches is given away, so that little is held.

Windows in which all voxels are equal, air for example, are computed once.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache, partial
from typing import TypeAlias

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from napari_fmseg.core.events import Progress
from napari_fmseg.pipelines.sliding_window import KEPT_BYTES, constant_value

__all__ = ["importance", "predict_planes", "window_starts"]

_CHUNK_BYTES = 16 << 20


Take: TypeAlias = Callable[[slice, Tensor], None]


def predict_planes(
    calls: Sequence[Callable[[Tensor, Take], None]],
    image: Tensor,
    window: Sequence[int],
    heads: int,
    *,
    overlap: float = 0.5,
    mirror: Sequence[int] = (),
    constant: bool = False,
    stage: str = "windows",
) -> Iterator[Progress | tuple[int, Tensor]]:
    """Run networks over windows of an image and yield its blended logits, some planes at a time.

    Parameters
    ----------
    calls
        Of each network, whose logits are averaged: takes (1, c, a0, a1, a2), and a function that it calls with planes
        along a0 and their logits (heads, planes, a1, a2), which are not kept.
    image
        (c, a0, a1, a2); padded with zeros to the window where it is smaller.
    window
        Its size; with a first of 1 every plane is seen.
    heads
        Channels of the logits.
    overlap
        Share of a window that overlaps the next one, at least.
    mirror
        Axes (0 to 2) along which windows are mirrored too; the logits are averaged.
    constant
        All voxels of a window count the same, not those in its middle most.
    stage
        The name in `Progress`.

    Yields
    ------
    Progress or tuple
        After every window; and the number of a plane with logits (heads, planes, a1, a2) from there on, in order, of
        the image without the padding.
    """
    size = image.shape[1:]
    before = [max(0, w - n) // 2 for w, n in zip(window, size, strict=True)]
    after = [max(0, w - n) - low for w, n, low in zip(window, size, before, strict=True)]
    if any(before) or any(after):
        image = F.pad(image, [pad for low, high in zip(before[::-1], after[::-1], strict=True) for pad in (low, high)])
    starts = [window_starts(n, w, overlap) for n, w in zip(image.shape[1:], window, strict=True)]
    weights = torch.ones(tuple(window), dtype=torch.float16) if constant else importance(tuple(window))
    weights = weights.to(image.device)
    here = tuple(slice(low, low + n) for low, n in zip(before[1:], size[1:], strict=True))
    flips = [axes for n in range(len(mirror) + 1) for axes in itertools.combinations(mirror, n)]
    turns = list(itertools.product(calls, flips))
    total, done = math.prod(len(along) for along in starts), 0
    # What lives long is allocated before what does not, or the heap is left in pieces.
    sums = torch.zeros((heads, window[0], *image.shape[2:]), dtype=torch.float16, device=image.device)
    covered = torch.zeros_like(sums[0])
    mean = torch.empty((heads, *window), device=image.device) if len(turns) > 1 else None
    may_keep = 4 * heads * math.prod(window) <= KEPT_BYTES
    known: tuple[tuple[float, ...] | None, Tensor] = (None, weights)  # the last such window and its logits
    for row, first in enumerate(starts[0]):
        for second, third in itertools.product(*starts[1:]):
            place = (slice(second, second + window[1]), slice(third, third + window[2]))
            seen = image[(slice(None), slice(first, first + window[0]), *place)][None]
            add = partial(_add_planes, sums, weights, first, place)
            value = constant_value(seen[0]) if may_keep else None
            if value is not None:
                if value != known[0]:
                    known = value, _mean_of_turns(turns, seen, torch.empty((heads, *window), device=image.device))
                add(slice(0, window[0]), known[1])
            elif mean is None:
                calls[0](seen, add)
            else:
                add(slice(0, window[0]), _mean_of_turns(turns, seen, mean))
            for ring, part in _ring(first, window[0]):
                covered[(ring, *place)] += weights[part]
            done += 1
            yield Progress(stage, done, total)
        last = starts[0][row + 1] if row + 1 < len(starts[0]) else image.shape[1]
        for ring, part in _ring(first, last - first, window[0]):
            for few in _chunks(ring, sums):
                number = first + part.start + few.start - ring.start - before[0]
                planes = (sums[(slice(None), few, *here)] / covered[(few, *here)])[:, max(0, -number) :]
                if planes.shape[1] and number < size[0]:
                    yield max(0, number), planes[:, : size[0] - max(0, number)]
            sums[:, ring] = 0
            covered[ring] = 0


def _add_planes(
    sums: Tensor, weights: Tensor, first: int, place: tuple[slice, slice], planes: slice, logits: Tensor
) -> None:
    """Add weighted logits of some planes of the window that starts at `first`, to a ring of planes."""
    for ring, part in _ring(first + planes.start, planes.stop - planes.start, sums.shape[1]):
        weight = weights[planes][part]
        for head, values in zip(sums, logits, strict=True):  # one by one: mixed types make copies
            head[(ring, *place)] += values[part] * weight


def _mean_of_turns(
    turns: Sequence[tuple[Callable[[Tensor, Take], None], Sequence[int]]], x: Tensor, mean: Tensor
) -> Tensor:
    """Write the mean logits (heads, a0, a1, a2) of networks and mirrored windows to `mean` and return it."""
    mean.zero_()
    for call, axes in turns:
        call(x.flip([axis + 2 for axis in axes]), partial(_add_turned, mean, axes))
    return mean.div_(len(turns))


def _add_turned(total: Tensor, axes: Sequence[int], planes: slice, logits: Tensor) -> None:
    """Add logits of some planes of a mirrored window where they lie without the mirror."""
    n = total.shape[1]
    where = slice(n - planes.stop, n - planes.start) if 0 in axes else planes
    total[:, where] += logits.flip([axis + 1 for axis in axes])


def _ring(first: int, n: int, size: int = 0) -> list[tuple[slice, slice]]:
    """Return where planes `first` to `first + n` lie in a ring of `size` planes, and which of them each part holds."""
    size = size or n
    start = first % size
    until = min(n, size - start)
    parts = [(slice(start, start + until), slice(0, until)), (slice(0, n - until), slice(until, n))]
    return [(ring, part) for ring, part in parts if part.stop > part.start]


def _chunks(planes: slice, sums: Tensor) -> Iterator[slice]:
    one = sums[:, 0].numel() * sums.element_size()
    step = max(1, _CHUNK_BYTES // max(1, one))
    for start in range(planes.start, planes.stop, step):
        yield slice(start, min(planes.stop, start + step))


def window_starts(size: int, window: int, overlap: float) -> list[int]:
    """Return where windows start along an axis: evenly spread, the last one flush with the end."""
    if window == 1 or size <= window:
        return list(range(size - window + 1))
    n = math.ceil((size - window) / (window * (1 - overlap))) + 1
    return [round(i * (size - window) / (n - 1)) for i in range(n)]


@lru_cache(maxsize=4)
def importance(window: tuple[int, int, int]) -> Tensor:
    """Return how much each voxel of a window counts: a Gaussian, 10 in the middle, nowhere 0, in float16."""
    from scipy.ndimage import gaussian_filter

    impulse = np.zeros([n for n in window if n > 1])
    impulse[tuple(n // 2 for n in impulse.shape)] = 1
    bell = gaussian_filter(impulse, [n / 8 for n in impulse.shape], mode="constant", cval=0)
    weights = torch.from_numpy((bell / (bell.max() / 10)).reshape(window)).to(torch.float16)
    weights[weights == 0] = weights[weights > 0].min()
    return weights
