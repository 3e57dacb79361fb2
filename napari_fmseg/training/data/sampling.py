"""Which cases a step samples, in which order, and how their samples become batches."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from napari_fmseg.datasets.case import IGNORE
from napari_fmseg.training.data.samples import Sample
from napari_fmseg.training.recipe import Recipe

__all__ = ["CaseSampler", "batches_of", "in_turn"]


class CaseSampler:
    """Samples cases as the recipe asks: in turn, hard ones more often, replayed ones, or every class equally often.

    Parameters
    ----------
    recipe
        See `Recipe`.
    samples
        The cases.
    replayed
        For each of them whether it is one of before.
    """

    def __init__(self, recipe: Recipe, samples: Sequence[Sample], replayed: Sequence[bool]) -> None:
        self._recipe, self._samples, self.replayed = recipe, samples, replayed
        self._having: list[set[int]] = []

    def picks(self, n: int, rng: np.random.Generator, hard: Sequence[int] = ()) -> list[tuple[int, int]]:
        """Sample cases, the hard ones more often, and for each the class that it should show (0 for none)."""
        times = self._recipe.hard_case_weight
        groups = [
            [i for i, r in enumerate(self.replayed) if r == replayed for _ in range(1 + times * (i in hard))]
            for replayed in (False, True)
        ]
        if not groups[1]:
            order = groups[0]
            drawn = [order[i] for i in in_turn(len(order), n, rng)]
        else:
            share = self._recipe.replay_share if groups[0] else 1.0
            turns = rng.random(n) < share
            orders = [iter([g[i] for i in in_turn(len(g), n, rng)] if g else []) for g in groups]
            drawn = [next(orders[int(turn)]) for turn in turns]
        if not self._recipe.balance:
            return [(i, 0) for i in drawn]
        return [self._draw_balanced(groups[self.replayed[i]], i, rng) for i in drawn]

    def _draw_balanced(self, group: Sequence[int], index: int, rng: np.random.Generator) -> tuple[int, int]:
        """Sample a class of a group of cases, then a case that has it."""
        if not self._having:
            maps = (sample.labels.cpu().numpy() for sample in self._samples)
            self._having = [{int(v) for v in np.unique(labels) if 0 < v < IGNORE} for labels in maps]
        classes = sorted(set().union(*(self._having[i] for i in group)))
        if not classes:
            return index, 0
        focus = int(rng.choice(classes))
        return int(rng.choice([i for i in group if focus in self._having[i]])), focus


def batches_of(
    drawn: Sequence[tuple[list[Tensor], Tensor]], missing: Sequence[Sequence[int]]
) -> list[tuple[list[Tensor], Tensor, Sequence[Sequence[int]]]]:
    """Stack samples of one size; native crops, whose sizes differ, stay single."""
    if len({target.shape for _, target in drawn}) > 1:
        pairs = zip(drawn, missing, strict=True)
        return [([x[None] for x in inputs], target[None], [gone]) for (inputs, target), gone in pairs]
    inputs = [torch.stack(parts) for parts in zip(*(d[0] for d in drawn), strict=True)]
    return [(inputs, torch.stack([d[1] for d in drawn]), missing)]


def in_turn(n_cases: int, n_draws: int, rng: np.random.Generator) -> list[int]:
    """Return indices of cases at random, every one once before any comes twice."""
    rounds = -(-n_draws // n_cases)
    return list(np.concatenate([rng.permutation(n_cases) for _ in range(rounds)])[:n_draws])
