"""Pretraining by Volume Fusion on a folder of unlabelled volumes: it yields what happens, and resumes after a kill.

What a run has learned stays when it is stopped: closing the iterator writes checkpoint and model. Every sample is drawn
from a generator of its own, seeded by (seed, step, place in the batch), and what a network drops by (seed, step); so a
run that was killed and started again takes exactly the steps of one that was not.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import itertools
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
from napari_fmseg.events import EpochDone, Pictures, Progress, Saved, StepDone, TrainEvent, Warned
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
_MEASURED = 5  # steps that tell how many there will be
_EPOCHS = 20  # of a run whose time is given
_FOR_STEPS = 0.9  # share of the time for them; the rest is for validation


def pretrain(recipe: PretrainRecipe) -> Generator[TrainEvent, None, None]:
    """Pretrain a network on unlabelled volumes.

    Parameters
    ----------
    recipe
        See `PretrainRecipe`.

    Yields
    ------
    Progress, Warned, StepDone, EpochDone, Pictures or Saved
        A file that cannot be read is told as `Warned` and left out. `EpochDone` has the loss and the Dice of the
        pretext task on held-out volumes, which share of the time of the steps was spent waiting for samples, and the
        samples per second. `Pictures` shows one of the held-out samples: "fused volume", "target" and "prediction".
        While `recipe.minutes` is being turned into steps, the total of `StepDone` is 0.

    Raises
    ------
    InvalidRecipe
        If there is no volume to learn from, the network gives no logits, or `recipe.out` holds another run.
    """
    run = _Run(recipe)
    yield from run.read()
    try:
        yield from run.fit()
    except GeneratorExit:
        run.keep()
        raise
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
        self.path = self.folder / "checkpoint.pt"
        self.optimiser: Any = None
        self.state: dict[str, Any] = {
            "step": 0,
            "best": float("inf"),
            "steps": 0 if recipe.minutes else recipe.steps,  # 0 while nobody knows
            "per_epoch": recipe.steps_per_epoch,
        }

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
        if self.path.exists():
            saved = torch.load(self.path, weights_only=True, map_location="cpu")
            self.net.load_state_dict(saved["net"])
            optimiser.load_state_dict(saved["optimiser"])
            self.state |= saved["state"]
        model, optimiser = fabric.setup(self.net, optimiser)
        self.optimiser = optimiser
        with contextlib.closing(self._drawn_ahead(self.state["step"])) as batches:
            while not self.state["steps"] or self.state["step"] < self.state["steps"]:
                yield from self._epoch(model, optimiser, batches)

    def _epoch(self, model: Any, optimiser: Any, batches: Iterator[tuple[int, Batch, float]]) -> Iterator[TrainEvent]:
        """Take the steps to the next validation, validate, and save."""
        state, recipe = self.state, self.recipe
        start, waited, losses, first = time.perf_counter(), 0.0, [], state["step"]
        for step, batch, seconds in batches:
            waited += seconds
            loss = self._step(model, optimiser, step, batch)
            losses.append(loss)
            state["step"] = step + 1
            self._plan(len(losses), time.perf_counter() - start)
            yield StepDone(_STAGE, step + 1, state["steps"], loss, self._rate(step))
            if state["steps"] and step + 1 >= self._last(first):
                break
        spent = time.perf_counter() - start
        speed = {"waiting": waited / spent, "samples_per_s": len(losses) * recipe.batch / spent}
        metrics = (yield from self._validate(model)) | speed
        told = metrics.get("loss", float(np.mean(losses)))
        better = told < state["best"]
        state["best"] = min(told, state["best"])
        self._checkpoint()
        epoch, epochs = (-(-n // state["per_epoch"]) for n in (state["step"], state["steps"]))
        seconds = time.perf_counter() - start
        yield EpochDone(_STAGE, epoch, epochs, float(np.mean(losses)), seconds, metrics)
        yield Saved(self.path, better)

    def _plan(self, n: int, seconds: float) -> None:
        """Set how many steps there are where their time is given: after some of them, or when a tenth of it is over."""
        budget = 60 * self.recipe.minutes
        if self.state["steps"] or (n < _MEASURED and seconds < budget / 10):
            return
        left = max(0, int(_FOR_STEPS * (budget - seconds) / (seconds / n)))
        steps = self.state["steps"] = self.state["step"] + left
        self.state["per_epoch"] = max(1, -(-steps // _EPOCHS))

    def _last(self, first: int) -> int:
        """Give the step with which the epoch ends in which `first` lies."""
        per_epoch = self.state["per_epoch"]
        return int(min(self.state["steps"], (first // per_epoch + 1) * per_epoch))

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
        return float(self.recipe.lr * 0.5 ** (4 * step // (self.state["steps"] or 4 * step + 1)))

    def _drawn_ahead(self, first: int) -> Generator[tuple[int, Batch, float], None, None]:
        """Give each step's batch, drawn while the steps before were computed, and how long it was waited for."""
        with ThreadPoolExecutor(2, "samples") as pool:
            ahead: list[Future[Batch]] = []
            try:
                for step in itertools.count(first):
                    while len(ahead) < 3 and (not self.state["steps"] or step + len(ahead) < self.state["steps"]):
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

    def _validate(self, model: nn.Module) -> Generator[TrainEvent, None, dict[str, float]]:
        """Loss and Dice of the pretext task on held-out volumes; the same samples every time, the first one shown."""
        if not self.held:
            return {}
        model.eval()
        n_classes, losses, counts = self.recipe.fusion.classes + 1, [], torch.zeros(3, self.recipe.fusion.classes + 1)
        n = self.recipe.validate_samples
        for i in range(n):
            yield Progress("validating", i, n)
            x, labels = (part[None].to(self.fabric.device) for part in self._sample(self.held, 3, i))
            with torch.no_grad():
                logits, target = model(x), _one_hot(labels, n_classes)
                losses.append(float(dice_ce_of_logits(logits, target)))
                found = logits.argmax(1)
                overlap = _one_hot(found, n_classes)
                counts += torch.stack([t.sum((0, 2, 3, 4)) for t in (overlap * target, overlap, target)]).cpu()
            if i == 0:
                yield self._shown(x[0, 0], labels[0], found[0])
        both, found_voxels, true_voxels = counts[:, 1:]
        dice = (2 * both / (found_voxels + true_voxels).clamp_min(1)).mean()
        return {"loss": float(np.mean(losses)), "dice": float(dice)}

    def _shown(self, fused: Tensor, target: Tensor, prediction: Tensor) -> Pictures:
        """Write a sample, (z, y, x) each, for a window to show; it was resampled, so its voxels have no size."""
        tensors = {"fused volume": fused.float(), "target": target.byte(), "prediction": prediction.byte()}
        arrays: dict[str, Any] = {name: tensor.cpu().numpy() for name, tensor in tensors.items()}
        path = self.folder / "pictures.npz"
        beside = path.with_suffix(f".{os.getpid()}.part")
        try:
            with beside.open("wb") as file:
                np.savez_compressed(file, spacing=np.ones(3), **arrays)
            os.replace(beside, path)
        finally:
            beside.unlink(missing_ok=True)
        return Pictures(_STAGE, self.state["step"], path)

    def keep(self) -> None:
        """Write what was learned when the run is stopped, so that it can go on, and be started from as it is."""
        if self.optimiser is not None and self.state["step"]:
            self._checkpoint()

    def _checkpoint(self) -> None:
        """Write what a later run goes on from, and the model, which so is there even after a kill."""
        content = {"net": self.net.state_dict(), "optimiser": self.optimiser.state_dict(), "state": self.state}
        _save(content, self.path)
        self.save()

    def save(self) -> Saved:
        """Write the network as a model to start from."""
        recipe, classes = self.recipe, self.recipe.fusion.classes
        steps = f"{self.state['step']} of {self.state['steps'] or 'not yet known'} steps"
        card = ModelCard(
            name=recipe.name,
            title=f"{recipe.name}: {recipe.network} pretrained by Volume Fusion",
            pipeline="single",
            nets={"net": self.spec},
            labels={k: f"mixed {k} of {classes}" for k in range(1, classes + 1)},
            intensity=_INTENSITY,
            settings={"window": list(recipe.fusion.patch)},
            trained_on=f"{len(self.training)} unlabelled volumes, {steps}",
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
