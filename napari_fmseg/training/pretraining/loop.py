"""Pretraining by Volume Fusion on a folder of unlabelled volumes: it yields what happens, and resumes after a kill.

What a run has learned stays when it is stopped: closing the iterator writes checkpoint and model. Every sample is drawn
from a generator of its own, seeded by (seed, step, place in the batch), and what a network drops by (seed, step); so a
run that was killed and started again takes exactly the steps of one that was not.
"""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections.abc import Callable, Generator, Iterator
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from napari_fmseg.core.atomic_write import atomic_write
from napari_fmseg.core.errors import InvalidRecipe, UnreadableVolume
from napari_fmseg.core.events import FILE_LEFT_OUT, EpochDone, Pictures, Progress, Saved, StepDone, TrainEvent, Warned
from napari_fmseg.core.processes import is_rank_zero
from napari_fmseg.datasets.run_folder import claim_run_folder, fingerprint
from napari_fmseg.models.card import Intensity, ModelCard
from napari_fmseg.models.weights import save_model
from napari_fmseg.pipelines.batch import volumes_in
from napari_fmseg.training.checkpoint import load_checkpoint, restoring, save_checkpoint
from napari_fmseg.training.distributed import all_reduce_sum, broadcast_ints, make_fabric
from napari_fmseg.training.losses.logits import deeply_supervised, dice_ce_of_logits
from napari_fmseg.training.optimisation import optimiser_step, refuse_unsafe_convolutions
from napari_fmseg.training.pretraining.pretext import Batch, Pretext, pretext_network, seed_of
from napari_fmseg.training.pretraining.recipe import PretrainRecipe
from napari_fmseg.training.pretraining.volume_store import VolumeStore
from napari_fmseg.training.runner import run_events

__all__ = ["pretrain"]

_STAGE = "pretrain"
_INTENSITY = Intensity("percentile", 0.5, 99.5)
_MEASURED = 5  # steps that tell how many there will be
_EPOCHS = 20  # of a run whose time is given
_FOR_STEPS = 0.9  # share of the time for them; the rest is for validation


Decode: TypeAlias = Callable[[VolumeStore], Iterator[TrainEvent]]
"""Decodes volumes into a store before the run reads them, such as on other machines."""


def pretrain(recipe: PretrainRecipe, decode: Decode | None = None) -> Generator[TrainEvent, None, None]:
    """Pretrain a network on unlabelled volumes.

    Parameters
    ----------
    recipe
        See `PretrainRecipe`.
    decode
        See `Decode`; without it the volumes are decoded here. Of several processes that learn together only the first
        one calls it.

    Yields
    ------
    Progress, Warned, StepDone, EpochDone, Pictures or Saved
        A file that cannot be read is told as `Warned` and left out. `EpochDone` has the loss and the Dice of the
        pretext task on held-out volumes, which share of the time of the steps was spent waiting for samples, and the
        samples per second. `Pictures` shows one of the held-out samples: "fused volume", "target" and "prediction".
        While `recipe.minutes` is being turned into steps, the total of `StepDone` is 0. Of several processes that
        learn together the first one yields all this, the others nothing.

    Raises
    ------
    InvalidRecipe
        If there is no volume to learn from, the network is not one that can be pretrained so, or `recipe.out` holds
        another run.
    GeometryMismatch
        If the network does not take samples of this size.
    MissingExtra
        If files for TensorBoard are wanted and it is not installed.
    """
    yield from run_events(_Run(recipe, decode), recipe.tensorboard)  # what cannot be pretrained is refused first


@dataclasses.dataclass
class _Epoch:
    """What is measured from one validation to the next."""

    first: int
    start: float = dataclasses.field(default_factory=time.perf_counter)
    waited: float = 0.0
    losses: list[float] = dataclasses.field(default_factory=list)

    @property
    def seconds(self) -> float:
        return time.perf_counter() - self.start


class _Run:
    def __init__(self, recipe: PretrainRecipe, decode: Decode | None = None) -> None:
        self.recipe, self.decode = recipe, decode
        self.folder = Path(recipe.out)
        self.net, self.spec = pretext_network(recipe)
        self.fabric = make_fabric(recipe.device, recipe.precision, recipe.devices)
        self.training: list[int] = []
        self.held: list[int] = []
        self.path = self.folder / "checkpoint.pt"
        self.optimiser: Any = None
        self.ended = False  # told to the other processes
        self.state: dict[str, Any] = {
            "step": 0,
            "best": float("inf"),
            "steps": 0 if recipe.minutes else recipe.steps,  # 0 while nobody knows
            "per_epoch": recipe.steps_per_epoch,
        }

    def claim(self) -> contextlib.AbstractContextManager[None]:
        """Hold the run's folder."""
        table = dataclasses.asdict(self.recipe)
        for name in ("out", "cache", "cache_gb", "devices", "tensorboard"):
            del table[name]
        volumes = Path(self.recipe.volumes)
        tables = [{**table, "volumes": path} for path in (volumes.resolve(), self.recipe.volumes)]
        return claim_run_folder(self.folder, [fingerprint(one) for one in tables])

    def prepare(self) -> Iterator[TrainEvent]:
        """Decode every volume once, leave out what cannot be read, and hold some out."""
        recipe = self.recipe
        try:
            paths = volumes_in(recipe.volumes)
        except UnreadableVolume as error:
            raise InvalidRecipe(f"volumes: {error}") from error
        cache = recipe.cache or self.folder / "volumes"
        self.store = VolumeStore(paths, cache, recipe.cache_gb, _INTENSITY, recipe.spacing_mm)
        if self.decode is not None and is_rank_zero():
            yield from self.decode(self.store)
        fine = []
        for i, path in enumerate(paths):
            yield Progress("reading", i, len(paths))
            wrong = self.store.readable(i)
            if wrong is None:
                fine.append(i)
            else:
                yield Warned(f"{path.name} is left out: {wrong}", FILE_LEFT_OUT)
        if not fine:
            raise InvalidRecipe(f"There is no volume in {recipe.volumes} that can be read. Choose another folder.")
        n_held = min(len(fine) - 1, max(1, round(recipe.holdout * len(fine)))) if recipe.holdout else 0
        mixed = np.random.default_rng(recipe.seed).permutation(fine).tolist()
        self.held, self.training = sorted(mixed[:n_held]), sorted(mixed[n_held:])
        self.pretext = Pretext(recipe, self.store, self.training, self.held)

    def fit(self) -> Iterator[TrainEvent]:
        recipe, fabric, state = self.recipe, self.fabric, self.state
        fabric.launch()
        self._check_others()
        optimiser = torch.optim.Adam(
            [p for p in self.net.parameters() if p.requires_grad], recipe.lr, weight_decay=recipe.weight_decay
        )
        saved = load_checkpoint(self.path, ("net", "optimiser", "state"))
        if saved is not None:
            with restoring(self.path):
                self.net.load_state_dict(saved["net"])
                optimiser.load_state_dict(saved["optimiser"])
                self.state |= {key: type(value)(saved["state"][key]) for key, value in self.state.items()}
        model, self.optimiser = fabric.setup(self.net, optimiser)
        epoch, places = _Epoch(state["step"]), range(fabric.global_rank, recipe.batch, fabric.world_size)
        with contextlib.closing(self.pretext.ahead(state["step"], places, lambda: int(state["steps"]))) as batches:
            while self._goes_on():
                step, batch, waited = next(batches)
                epoch.waited += waited
                epoch.losses.append(self._step(model, step, batch))
                state["step"] = step + 1
                if not fabric.is_global_zero:
                    continue
                self._plan(len(epoch.losses), epoch.seconds)
                yield StepDone(_STAGE, step + 1, state["steps"], epoch.losses[-1], self._rate(step))
                if state["steps"] and step + 1 >= self._last(epoch.first):
                    yield from self._finish(epoch)
                    epoch = _Epoch(state["step"])

    def _check_others(self) -> None:
        """Raise InvalidRecipe unless all processes found the same volumes."""
        mine = seed_of(len(self.training), *self.training, *self.held)
        if broadcast_ints(self.fabric, mine) != [mine]:
            raise InvalidRecipe(
                f"The processes that learn together found different volumes in {self.recipe.volumes}. Give all "
                "machines the same folder."
            )
        if self.recipe.batch % self.fabric.world_size:
            raise InvalidRecipe(
                f"The {self.recipe.batch} samples of a step cannot be dealt out evenly to {self.fabric.world_size} "
                "processes. Make batch a multiple of their number."
            )

    def _goes_on(self, stopped: bool = False) -> bool:
        """Return whether there is another step; the process of rank 0 broadcasts that and the number of steps."""
        state = self.state
        more = not stopped and (not state["steps"] or state["step"] < state["steps"])
        going, state["steps"], state["per_epoch"] = broadcast_ints(
            self.fabric, int(more), state["steps"], state["per_epoch"]
        )
        self.ended = not going
        return bool(going)

    def _finish(self, epoch: _Epoch) -> Iterator[TrainEvent]:
        """Validate, and save."""
        state, spent, loss = self.state, epoch.seconds, float(np.mean(epoch.losses))
        speed = {"waiting": epoch.waited / spent, "samples_per_s": len(epoch.losses) * self.recipe.batch / spent}
        metrics = (yield from self._validate()) | speed
        told = metrics.get("loss", loss)
        better = told < state["best"]
        state["best"] = min(told, state["best"])
        self._checkpoint()
        number, of = (-(-n // state["per_epoch"]) for n in (state["step"], state["steps"]))
        yield EpochDone(_STAGE, number, of, loss, epoch.seconds, metrics)
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
        """Return the step with which the epoch ends in which `first` lies."""
        per_epoch = self.state["per_epoch"]
        return int(min(self.state["steps"], (first // per_epoch + 1) * per_epoch))

    def _step(self, model: Any, step: int, batch: Batch) -> float:
        fabric, optimiser = self.fabric, self.optimiser
        for group in optimiser.param_groups:
            group["lr"] = self._rate(step)
        # Dropout takes no generator; what one process drops is not what another one does.
        torch.manual_seed(seed_of(self.recipe.seed, 1, step, *([fabric.global_rank] if fabric.global_rank else [])))
        x, labels = (part.to(fabric.device) for part in batch)
        with refuse_unsafe_convolutions(self.net):
            heads = model.train()(x)
        heads = heads if isinstance(heads, tuple) else (heads,)
        criterion = partial(dice_ce_of_logits, summed=partial(all_reduce_sum, fabric))
        loss = deeply_supervised(criterion, heads, _one_hot(labels, self.recipe.fusion.classes + 1))
        optimiser_step(fabric, model, optimiser, loss, self.recipe.clip)
        mean: Any = fabric.all_reduce(loss.detach(), reduce_op="mean")
        return float(mean)

    def _rate(self, step: int) -> float:
        return float(self.recipe.lr * 0.5 ** (4 * step // (self.state["steps"] or 4 * step + 1)))

    def _validate(self) -> Generator[TrainEvent, None, dict[str, float]]:
        """Yield the loss and Dice of the pretext task on held-out volumes; the same samples every time, the first
        one shown.
        """
        if not self.held:
            return {}
        net = self.net.eval()  # not as it was set up: that would wait for the other processes
        n_classes, losses, counts = self.recipe.fusion.classes + 1, [], torch.zeros(3, self.recipe.fusion.classes + 1)
        n = self.recipe.validate_samples
        for i in range(n):
            yield Progress("validating", i, n)
            x, labels = (part.to(self.fabric.device) for part in self.pretext.held_out_sample(i))
            with torch.no_grad(), self.fabric.autocast():
                logits, target = net(x).float(), _one_hot(labels, n_classes)
                losses.append(float(dice_ce_of_logits(logits, target)))
                found = logits.argmax(1)
                overlap = _one_hot(found, n_classes)
                counts += torch.stack([t.sum((0, 2, 3, 4)) for t in (overlap * target, overlap, target)]).cpu()
            if i == 0:
                yield self._write_picture(x[0, 0], labels[0], found[0])
        both, found_voxels, true_voxels = counts[:, 1:]
        dice = (2 * both / (found_voxels + true_voxels).clamp_min(1)).mean()
        return {"loss": float(np.mean(losses)), "dice": float(dice)}

    def _write_picture(self, fused: Tensor, target: Tensor, prediction: Tensor) -> Pictures:
        """Write a sample, (z, y, x) each, for a window to show; it was resampled, so its voxels have no size."""
        tensors = {"fused volume": fused.float(), "target": target.byte(), "prediction": prediction.byte()}
        arrays: dict[str, Any] = {name: tensor.cpu().numpy() for name, tensor in tensors.items()}
        path = self.folder / "pictures.npz"
        with atomic_write(path) as file:
            np.savez_compressed(file, spacing=np.ones(3), **arrays)
        return Pictures(_STAGE, self.state["step"], path)

    def finish(self) -> Iterator[TrainEvent]:
        """Write the model."""
        self.optimiser = None  # nothing is left to keep
        if is_rank_zero():
            yield self.save()

    def keep(self, *, between_steps: bool) -> Path | None:
        """Write checkpoint and model when the run is stopped, so that it can be resumed, or started from as it is."""
        if self.optimiser is None or not is_rank_zero() or not between_steps:
            return None
        if not self.ended:
            self._goes_on(stopped=True)
        return self._checkpoint() if self.state["step"] else None

    def _checkpoint(self) -> Path:
        """Write what a later run resumes from, and the model, which so is there even after a kill; return its card."""
        content = {"net": self.net.state_dict(), "optimiser": self.optimiser.state_dict(), "state": self.state}
        save_checkpoint(self.path, content)
        return self.save().path

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
            settings={"window": list(recipe.fusion.patch), "spacing_mm": list(recipe.spacing_mm)},
            trained_on=f"{len(self.training)} unlabelled volumes, {steps}",
            limits="It tells mixtures apart and segments nothing: train it on labels before use.",
        )
        save_model(card, {"net": self.net}, self.folder)
        return Saved(self.folder / f"{recipe.name}.toml", True)


def _one_hot(labels: Tensor, n_classes: int) -> Tensor:
    return F.one_hot(labels.long(), n_classes).movedim(-1, 1).float()
