"""What a pretraining run learns with: its network, and samples that are drawn ahead of the steps."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from napari_fmseg.core.errors import InvalidRecipe
from napari_fmseg.models.card import NetSpec
from napari_fmseg.nets import build
from napari_fmseg.nets.traits import activation_of
from napari_fmseg.training.pretraining.recipe import PretrainRecipe
from napari_fmseg.training.pretraining.volume_fusion import fusion_sample
from napari_fmseg.training.pretraining.volume_store import VolumeStore

__all__ = ["Batch", "Pretext", "pretext_network", "seed_of"]

Batch = tuple[Tensor, Tensor]
_AHEAD = 3


class Pretext:
    """Draws fused volumes and their targets.

    Parameters
    ----------
    recipe
        What is drawn, and the seed.
    store
        The volumes.
    training, held
        Which of them are learned from, and which validate.
    """

    def __init__(
        self, recipe: PretrainRecipe, store: VolumeStore, training: Sequence[int], held: Sequence[int]
    ) -> None:
        self.recipe, self.store, self.training, self.held = recipe, store, training, held

    def ahead(
        self, first: int, places: Sequence[int], last: Callable[[], int]
    ) -> Generator[tuple[int, Batch, float], None, None]:
        """Yield each step's batch, drawn while the steps before were computed, and how long it was waited for.

        Parameters
        ----------
        first
            The step to begin with.
        places
            Those of the batch that are drawn here; the others belong to other processes.
        last
            Tells how many steps there are; 0 while nobody knows.
        """
        with ThreadPoolExecutor(2, "samples") as pool:
            ahead: list[Future[Batch]] = []
            try:
                for step in itertools.count(first):
                    while len(ahead) < _AHEAD and (not last() or step + len(ahead) < last()):
                        ahead.append(pool.submit(self._batch, step + len(ahead), places))
                    start = time.perf_counter()
                    batch = ahead.pop(0).result()
                    yield step, batch, time.perf_counter() - start
            finally:
                for future in ahead:
                    future.cancel()

    def held_out_sample(self, number: int) -> Batch:
        """Return a held-out sample, (1, 1, z, y, x) and (1, z, y, x); the same number gives the same one."""
        x, labels = self._sample(self.held, 3, number)
        return x[None], labels[None]

    def _batch(self, step: int, places: Sequence[int]) -> Batch:
        drawn = [self._sample(self.training, 2, step, place) for place in places]
        return torch.stack([x for x, _ in drawn]), torch.stack([labels for _, labels in drawn])

    def _sample(self, among: Sequence[int], *numbers: int) -> Batch:
        """Draw a sample, (1, z, y, x) and (z, y, x), from volumes; the numbers tell it from all others."""
        generator = torch.Generator().manual_seed(seed_of(self.recipe.seed, *numbers))
        picks = [among[int(torch.randint(len(among), (), generator=generator))] for _ in range(2)]
        other = self.store.volume(picks[1]) if self.recipe.other_volume else None
        x, labels = fusion_sample(self.store.volume(picks[0]), self.recipe.fusion, generator, other)
        return x[None], labels


def pretext_network(recipe: PretrainRecipe) -> tuple[nn.Module, NetSpec]:
    """Build the network with its first weights.

    Raises
    ------
    InvalidRecipe
        If it is not one that can tell mixtures apart.
    GeometryMismatch
        If it does not take samples of this size.
    """
    kwargs = {"in_channels": 1, "n_classes": recipe.fusion.classes + 1, **recipe.kwargs}
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(recipe.seed)
        net = build(recipe.network, **kwargs)
        activation = activation_of(net)
        if activation == "sigmoid" and "activation" not in recipe.kwargs:
            kwargs["activation"] = activation = "softmax"
            torch.manual_seed(recipe.seed)
            net = build(recipe.network, **kwargs)
    if activation == "sigmoid":
        raise InvalidRecipe(
            f"{recipe.network!r} was asked for with a sigmoid, for structures that overlap, but every voxel of a "
            'sample has one class. Leave "activation" out of kwargs; it is built with a softmax then.'
        )
    if activation != "softmax":
        raise InvalidRecipe(
            f"{recipe.network!r} is one of the phased networks, which give probabilities, no logits, and build on what "
            "the one before them has found; in pretraining there is none before. Choose another network, such as "
            "fmunet or pctnet."
        )
    check: Any = getattr(net, "check", None)
    if check is not None:
        check(torch.empty(recipe.batch, kwargs["in_channels"], *recipe.fusion.patch, device="meta"))
    return net, NetSpec(recipe.network, kwargs)


def seed_of(*numbers: int) -> int:
    """Make a seed of several numbers."""
    return int(np.random.SeedSequence(numbers).generate_state(1)[0])
