"""Pretraining by Volume Fusion on a folder of unlabelled volumes: it yields what happens, and resumes after a kill.

Every sample is drawn from a generator of its own, seeded by (seed, step, place in the batch), and what a network drops
by (seed, step); so a run that was killed and started again takes exactly the steps of one that was not.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import time
from collections.abc import Generator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from lightning_fabric import Fabric
from torch import Tensor, nn

from napari_fmseg.errors import InvalidRecipe
from napari_fmseg.events import EpochDone, Progress, Saved, StepDone, TrainEvent, Warned
from napari_fmseg.io import find_volumes
from napari_fmseg.models import Intensity, ModelCard, NetSpec, save_model
from napari_fmseg.nets import build
from napari_fmseg.nets.engine import keep_pages, pick_device, training_precision
from napari_fmseg.training.logit_losses import deeply_supervised, dice_ce_of_logits
from napari_fmseg.training.pretrain_recipe import PretrainRecipe
from napari_fmseg.training.store import VolumeStore
from napari_fmseg.training.volf import fusion_sample

__all__ = ["pretrain"]

Batch = tuple[Tensor, Tensor]
_STAGE = "pretrain"
_INTENSITY = Intensity("percentile", 0.5, 99.5)


def pretrain(recipe: PretrainRecipe) -> Generator[TrainEvent, None, None]:
    """Pretrain a network on unlabelled volumes.

    Parameters
    ----------
    recipe
        See `PretrainRecipe`.

    Yields
    ------
    Progress, Warned, StepDone, EpochDone or Saved
        A file that cannot be read is told as `Warned` and left out. `EpochDone` has the loss and the Dice of the
        pretext task on held-out volumes, and which share of the time was spent waiting for samples.

    Raises
    ------
    InvalidRecipe
        If there is no volume to learn from, the network gives no logits, or `recipe.out` holds another run.
    """
    run = _Run(recipe)
    yield from run.read()
    yield from run.fit()
    yield run.save()


class _Run:
    def __init__(self, recipe: PretrainRecipe) -> None:
        self.recipe = recipe
        self.folder = Path(recipe.out)
        _claim(recipe, self.folder)
        device = pick_device(recipe.device)
        if device.type == "cpu":
            keep_pages()
        wanted = {"float32": "32-true", "bfloat16": "bf16-mixed", "float16": "16-mixed"}
        precision = wanted[training_precision(device, recipe.precision)]
        self.fabric = Fabric(accelerator=device.type, devices=1, precision=precision)  # type: ignore[arg-type]
        self.spec = NetSpec(recipe.network, {"in_channels": 1, "n_classes": recipe.fusion.classes + 1, **recipe.kwargs})
        with torch.random.fork_rng(devices=()):
            torch.manual_seed(recipe.seed)
            self.net = build(self.spec.network, **self.spec.kwargs)
        if getattr(self.net, "activation", "") != "softmax":
            raise InvalidRecipe(
                f"{recipe.network!r} as it is built here gives no logits of classes that exclude each other. Choose "
                'fmunet, pctnet or another network with activation="softmax" for pretraining.'
            )
        self.training: list[int] = []
        self.held: list[int] = []

    def read(self) -> Iterator[TrainEvent]:
        """Decode every volume once, leave out what cannot be read, and hold some out."""
        recipe = self.recipe
        paths = find_volumes(recipe.volumes)
        self.store = VolumeStore(paths, recipe.cache or self.folder / "volumes", recipe.cache_gb, _INTENSITY)
        fine = []
        for i, path in enumerate(paths):
            yield Progress("reading", i, len(paths))
            wrong = self.store.readable(i)
            if wrong is None:
                fine.append(i)
            else:
                yield Warned(f"{path.name} is left out: {wrong}")
        if not fine:
            raise InvalidRecipe(f"There is no volume in {recipe.volumes} that can be read. Choose another folder.")
        n_held = min(len(fine) - 1, max(1, round(recipe.holdout * len(fine)))) if recipe.holdout else 0
        mixed = np.random.default_rng(recipe.seed).permutation(fine).tolist()
        self.held, self.training = sorted(mixed[:n_held]), sorted(mixed[n_held:])

    def fit(self) -> Iterator[TrainEvent]:
        recipe, fabric = self.recipe, self.fabric
        optimiser = torch.optim.Adam(
            [p for p in self.net.parameters() if p.requires_grad], recipe.lr, weight_decay=recipe.weight_decay
        )
        path = self.folder / "checkpoint.pt"
        state: dict[str, Any] = {"step": 0, "best": float("inf")}
        if path.exists():
            saved = torch.load(path, weights_only=True, map_location="cpu")
            self.net.load_state_dict(saved["net"])
            optimiser.load_state_dict(saved["optimiser"])
            state = saved["state"]
        model, optimiser = fabric.setup(self.net, optimiser)
        epochs = -(-recipe.steps // recipe.steps_per_epoch)
        while state["step"] < recipe.steps:
            start, waited, losses = time.perf_counter(), 0.0, []
            last = min(recipe.steps, state["step"] + recipe.steps_per_epoch)
            for step, batch, seconds in self._drawn_ahead(state["step"], last):
                waited += seconds
                loss = self._step(model, optimiser, step, batch)
                losses.append(loss)
                yield StepDone(_STAGE, step + 1, recipe.steps, loss, self._rate(step))
            state["step"] = last
            metrics = self._validate(model) | {"waiting": waited / (time.perf_counter() - start)}
            told = metrics.get("loss", float(np.mean(losses)))
            better = told < state["best"]
            state["best"] = min(told, state["best"])
            _save({"net": self.net.state_dict(), "optimiser": optimiser.state_dict(), "state": state}, path)
            epoch = -(-last // recipe.steps_per_epoch)
            seconds = time.perf_counter() - start
            yield EpochDone(_STAGE, epoch, epochs, float(np.mean(losses)), seconds, metrics)
            yield Saved(path, better)

    def _step(self, model: Any, optimiser: Any, step: int, batch: Batch) -> float:
        for group in optimiser.param_groups:
            group["lr"] = self._rate(step)
        torch.manual_seed(_seed_of(self.recipe.seed, 1, step))  # dropout takes no generator
        x, labels = (part.to(self.fabric.device) for part in batch)
        heads = model.train()(x)
        heads = heads if isinstance(heads, tuple) else (heads,)
        loss = deeply_supervised(dice_ce_of_logits, heads, _one_hot(labels, self.recipe.fusion.classes + 1))
        optimiser.zero_grad()
        self.fabric.backward(loss)
        norm = self.fabric.clip_gradients(model, optimiser, max_norm=self.recipe.clip, error_if_nonfinite=False)
        if norm is None or bool(torch.isfinite(torch.as_tensor(norm))):
            optimiser.step()
        return float(loss.detach())

    def _rate(self, step: int) -> float:
        return float(self.recipe.lr * 0.5 ** (4 * step // self.recipe.steps))

    def _drawn_ahead(self, first: int, last: int) -> Iterator[tuple[int, Batch, float]]:
        """Give each step's batch, drawn while the steps before were computed, and how long it was waited for."""
        with ThreadPoolExecutor(2, "samples") as pool:
            ahead: list[Future[Batch]] = []
            try:
                for step in range(first, last):
                    while len(ahead) < 3 and step + len(ahead) < last:
                        ahead.append(pool.submit(self._batch, step + len(ahead)))
                    start = time.perf_counter()
                    batch = ahead.pop(0).result()
                    yield step, batch, time.perf_counter() - start
            finally:
                for future in ahead:
                    future.cancel()

    def _batch(self, step: int) -> Batch:
        drawn = [self._sample(self.training, 2, step, place) for place in range(self.recipe.batch)]
        return torch.stack([x for x, _ in drawn]), torch.stack([labels for _, labels in drawn])

    def _sample(self, among: list[int], *numbers: int) -> Batch:
        """Draw a sample, (1, z, y, x) and (z, y, x), from volumes; the numbers tell it from all others."""
        generator = torch.Generator().manual_seed(_seed_of(self.recipe.seed, *numbers))
        picks = [among[int(torch.randint(len(among), (), generator=generator))] for _ in range(2)]
        other = self.store.volume(picks[1]) if self.recipe.other_volume else None
        x, labels = fusion_sample(self.store.volume(picks[0]), self.recipe.fusion, generator, other)
        return x[None], labels

    @torch.no_grad()
    def _validate(self, model: nn.Module) -> dict[str, float]:
        """Loss and Dice of the pretext task on held-out volumes; the same samples every time."""
        if not self.held:
            return {}
        model.eval()
        n_classes, losses, counts = self.recipe.fusion.classes + 1, [], torch.zeros(3, self.recipe.fusion.classes + 1)
        for i in range(self.recipe.validate_samples):
            x, labels = (part[None].to(self.fabric.device) for part in self._sample(self.held, 3, i))
            logits, target = model(x), _one_hot(labels, n_classes)
            losses.append(float(dice_ce_of_logits(logits, target)))
            found = _one_hot(logits.argmax(1), n_classes)
            counts += torch.stack([t.sum((0, 2, 3, 4)) for t in (found * target, found, target)]).cpu()
        both, found, true = counts[:, 1:]
        return {"loss": float(np.mean(losses)), "dice": float((2 * both / (found + true).clamp_min(1)).mean())}

    def save(self) -> Saved:
        """Write the network as a model to start from."""
        recipe, classes = self.recipe, self.recipe.fusion.classes
        card = ModelCard(
            name=recipe.name,
            title=f"{recipe.name}: {recipe.network} pretrained by Volume Fusion",
            pipeline="single",
            nets={"net": self.spec},
            labels={k: f"mixed {k} of {classes}" for k in range(1, classes + 1)},
            intensity=_INTENSITY,
            settings={"window": list(recipe.fusion.patch)},
            trained_on=f"{len(self.training)} unlabelled volumes, {recipe.steps} steps",
            limits="It tells mixtures apart and segments nothing: train it on labels before use.",
        )
        save_model(card, {"net": self.net}, self.folder)
        return Saved(self.folder / f"{recipe.name}.toml", True)


def _claim(recipe: PretrainRecipe, folder: Path) -> None:
    """Make the folder ours, or continue what lies there if it is the same recipe."""
    table = dataclasses.asdict(recipe)
    for name in ("out", "cache", "cache_gb"):
        del table[name]
    mine = hashlib.sha256(json.dumps(table, sort_keys=True, default=str).encode()).hexdigest()
    folder.mkdir(parents=True, exist_ok=True)
    mark = folder / "run.json"
    if not mark.exists():
        mark.write_text(json.dumps({"recipe_sha256": mine}))
    elif json.loads(mark.read_text()).get("recipe_sha256") != mine:
        raise InvalidRecipe(f"{folder} holds the run of another recipe. Choose another `out`, or remove the folder.")


def _one_hot(labels: Tensor, n_classes: int) -> Tensor:
    return F.one_hot(labels.long(), n_classes).movedim(-1, 1).float()


def _seed_of(*numbers: int) -> int:
    return int(np.random.SeedSequence(numbers).generate_state(1)[0])


def _save(content: dict[str, Any], path: Path) -> None:
    """Write beside and rename, so that a kill leaves the checkpoint before."""
    beside = path.with_suffix(f".{os.getpid()}.part")
    try:
        torch.save(content, beside)
        os.replace(beside, path)
    finally:
        beside.unlink(missing_ok=True)
