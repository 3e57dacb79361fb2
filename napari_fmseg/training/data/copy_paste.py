"""Copy-paste between samples: boxes of labelled and unlabelled volumes are exchanged.

After bidirectional copy-paste (Bai et al., Bidirectional copy-paste for semi-supervised medical image segmentation,
CVPR 2023, arXiv:2305.00673); the teacher is the moving average of the weights, and its answers stay probabilities.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias

import numpy as np
from torch import Tensor

from napari_fmseg.core.volume import Box

__all__ = ["Drawn", "exchange_boxes", "paste_unlabelled", "random_box"]

Drawn: TypeAlias = tuple[list[Tensor], Tensor]
"""Inputs, each (c, z, y, x), and target (classes, z, y, x) of one sample."""

_SIDE = 2 / 3
"""Of a sample's size along each axis: a box of a bit less than a third of its voxels."""


def random_box(shape: Sequence[int], rng: np.random.Generator) -> Box:
    """Draw a box of two thirds of each axis (z, y, x)."""
    sizes = [max(1, int(n * _SIDE)) for n in shape]
    z, y, x = (
        slice(first, first + size)
        for size, first in ((s, int(rng.integers(0, n - s + 1))) for n, s in zip(shape, sizes, strict=True))
    )
    return z, y, x


def paste_unlabelled(
    labelled: Sequence[Drawn],
    unlabelled: Sequence[list[Tensor]],
    guesses: Tensor,
    weight: float,
    step: int,
    rng: np.random.Generator,
) -> list[Drawn]:
    """Put a box of each sample into the other one of its pair: every other pair labelled into unlabelled.

    Parameters
    ----------
    labelled, unlabelled
        Samples of one size, pairwise.
    guesses
        (b, classes, z, y, x): the teacher's probabilities of the unlabelled ones.
    weight
        What a guessed voxel counts: targets add up to the share that a voxel counts, see
        `napari_fmseg.training.losses.partial_labels`.
    step, rng
        Which way the first pair goes, and where the box lies.
    """
    mixed = []
    box = random_box(guesses.shape[2:], rng)
    for i, ((inputs, target), others, guess) in enumerate(zip(labelled, unlabelled, guesses, strict=True)):
        inner, outer = ((others, guess * weight), (inputs, target))
        if (i + step) % 2:
            inner, outer = outer, inner
        parts = [_put(a, b, box) for a, b in zip(inner[0], outer[0], strict=True)]
        mixed.append((parts, _put(inner[1], outer[1], box)))
    return mixed


def exchange_boxes(drawn: Sequence[Drawn], rng: np.random.Generator) -> list[Drawn]:
    """Exchange a box between each sample and the one before it."""
    box = random_box(drawn[0][1].shape[1:], rng)
    return [
        ([_put(a, b, box) for a, b in zip(drawn[i - 1][0], inputs, strict=True)], _put(drawn[i - 1][1], target, box))
        for i, (inputs, target) in enumerate(drawn)
    ]


def _put(inner: Tensor, outer: Tensor, box: Box) -> Tensor:
    """Return `outer` (c, z, y, x) with the voxels of `inner` in a box."""
    found = outer.clone()
    found[(slice(None), *box)] = inner[(slice(None), *box)].to(found.dtype)
    return found
