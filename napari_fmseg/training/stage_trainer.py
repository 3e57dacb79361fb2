"""Training of one network: epochs, validation, the best weights so far, and a checkpoint after every epoch.

All randomness of an epoch comes from (seed, stage, epoch), so that a run that was killed and started again takes
exactly the same steps as one that was not.
"""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning_fabric import Fabric
from torch import Tensor, nn

from napari_fmseg.core.events import EpochDone, Saved, StepDone, TrainEvent
from napari_fmseg.models.card import NetSpec
from napari_fmseg.training.checkpoint import load_checkpoint, restoring, save_checkpoint
from napari_fmseg.training.data.hard_mining import HardExampleMiner
from napari_fmseg.training.data.samples import Sample
from napari_fmseg.training.data.sampling import CaseSampler, batches_of
from napari_fmseg.training.forgetting import Teacher, l2sp_penalty
from napari_fmseg.training.monitor import TrainingMonitor
from napari_fmseg.training.optimisation import make_optimiser, make_scheduler, optimiser_step
from napari_fmseg.training.recipe import Recipe, StageRecipe
from napari_fmseg.training.tasks.base import Task

__all__ = ["Forgetting", "StageState", "StageTrainer", "load_stage"]

_PARTS = ("net", "best", "optimiser", "scheduler", "state")

Validate = Callable[[str, nn.Module, int, bool], Generator[TrainEvent, None, dict[str, float]]]
"""Takes the stage, its network, the step, and whether all validation cases are meant; returns the metrics."""


@dataclass
class StageState:
    """What a stage's checkpoint holds beside weights and optimiser.

    `old` is the mean Dice of the previously learned classes at the start, `seen` the Dice of each training case when
    it was last sampled.
    """

    epoch: int = 0
    best: float = -math.inf
    best_epoch: int = 0
    done: bool = False
    old: float = math.nan
    seen: list[float] = field(default_factory=list)
    history: list[dict[str, float]] = field(default_factory=list)


@dataclass(frozen=True)
class Forgetting:
    """What holds a stage to the model it starts from: distillation from a teacher, and weights to stay near (L2-SP)."""

    teacher: Teacher | None = None
    anchors: Mapping[str, Tensor] = field(default_factory=dict)


def load_stage(path: Path) -> dict[str, Any] | None:
    """Read the checkpoint of a stage; None if there is none."""
    return load_checkpoint(path, _PARTS)


class StageTrainer:
    """Trains one network of a pipeline, from its first weights or from its checkpoint.

    Parameters
    ----------
    recipe, fabric
        Of the run.
    number, stage
        Which stage of the recipe.
    net, spec
        The network with its first weights, and how it was built.
    task
        What the stage learns.
    samples, sampler
        The training cases, and which of them are drawn.
    forgetting
        See `Forgetting`.
    validate
        Runs the pipeline on the validation cases.

    Attributes
    ----------
    best
        The weights of the best validation so far, on the CPU.
    state
        See `StageState`.
    """

    def __init__(
        self,
        recipe: Recipe,
        fabric: Fabric,
        number: int,
        stage: StageRecipe,
        net: nn.Module,
        spec: NetSpec,
        task: Task,
        samples: Sequence[Sample],
        sampler: CaseSampler,
        forgetting: Forgetting,
        validate: Validate,
    ) -> None:
        self.recipe, self.fabric, self.number, self.stage, self.spec = recipe, fabric, number, stage, spec
        self.task, self.samples, self.sampler = task, samples, sampler
        self.forgetting, self.validate = forgetting, validate
        optimiser = make_optimiser(stage, net)
        if fabric.device.type == "cpu" and getattr(net, "trains_channels_last", True):
            net = net.to(memory_format=torch.channels_last_3d)  # type: ignore[call-overload]
        self.net = net
        self.model, self.optimiser = fabric.setup(net, optimiser)
        self.scheduler = make_scheduler(self.optimiser, stage)
        self.state = StageState()
        self.best: Mapping[str, Tensor] = {k: v.clone() for k, v in net.state_dict().items()}
        self.epochs = max(1, math.ceil(stage.steps / stage.steps_per_epoch))

    def fit(self, saved: Mapping[str, Any] | None, path: Path, *, measure_start: bool) -> Iterator[TrainEvent]:
        """Train to the end.

        Parameters
        ----------
        saved
            The checkpoint to resume from.
        path
            Where checkpoints are written.
        measure_start
            Whether the first weights are worth a validation: training must beat them, or they are kept.
        """
        stage, state = self.stage, self.state
        if saved is not None:
            state = self._restore(saved, path)
        elif measure_start:
            metrics = yield from self.validate(stage.stage, self.net, 0, False)
            state.best = metrics.get("dice", -math.inf)
            state.old = metrics.get("old", math.nan)
        monitor = TrainingMonitor(self.recipe, self.samples, self.epochs, first=state.epoch)
        miner = HardExampleMiner(self.recipe, [sample.name for sample in self.samples], state.seen)
        while state.epoch < self.epochs and not state.done:
            start = time.perf_counter()
            losses: list[float] = []
            self.model.train()
            for event in self._epoch(state.epoch, monitor, miner):
                losses.append(event.loss)
                yield event
            state.epoch += 1
            state.seen = miner.end_epoch(self.fabric)
            mean = float(np.mean(losses))
            if stage.schedule == "plateau":
                self.scheduler.step(mean)
            steps = state.epoch * stage.steps_per_epoch
            metrics = yield from self.validate(stage.stage, self.net, steps, state.epoch == self.epochs)
            better = self._note(mean, metrics)
            if self.fabric.is_global_zero:
                self._save(path)
            self.fabric.barrier()
            yield EpochDone(stage.stage, state.epoch, self.epochs, mean, time.perf_counter() - start, metrics)
            yield Saved(path, better)
            yield from monitor.warnings(stage.stage, state.epoch, state.old, metrics)

    def _note(self, loss: float, metrics: Mapping[str, float]) -> bool:
        """Keep the weights if they are the best so far; return whether they are."""
        state = self.state
        score = metrics.get("dice", -loss)
        better = score > state.best
        if better:
            state.best, state.best_epoch = score, state.epoch
            self.best = {k: v.detach().cpu().clone() for k, v in self.net.state_dict().items()}
        state.history.append({"epoch": state.epoch, "loss": loss, **metrics})
        stalled = self.stage.patience and state.epoch - state.best_epoch >= self.stage.patience
        state.done = state.epoch == self.epochs or bool(stalled)
        return better

    def _restore(self, saved: Mapping[str, Any], path: Path) -> StageState:
        with restoring(path):
            self.net.load_state_dict(saved["net"])
            self.optimiser.load_state_dict(saved["optimiser"])
            self.scheduler.load_state_dict(saved["scheduler"])
            self.state, self.best = StageState(**saved["state"]), saved["best"]
        return self.state

    def _save(self, path: Path) -> None:
        parts = {"net": self.net.state_dict(), "best": dict(self.best), "optimiser": self.optimiser.state_dict()}
        more = {"scheduler": self.scheduler.state_dict(), "state": dataclasses.asdict(self.state)}
        save_checkpoint(path, {**parts, **more})

    def _epoch(self, epoch: int, monitor: TrainingMonitor, miner: HardExampleMiner) -> Iterator[StepDone]:
        stage, fabric = self.stage, self.fabric
        seed = [self.recipe.seed, self.number, epoch, fabric.global_rank]
        rng = np.random.default_rng(seed)
        noise = torch.Generator().manual_seed(int(np.random.SeedSequence(seed).generate_state(1)[0]))
        total = self.epochs * stage.steps_per_epoch
        order = self.sampler.picks(stage.steps_per_epoch * stage.batch, rng, miner.hard())
        for step in range(stage.steps_per_epoch):
            picks = order[step * stage.batch : (step + 1) * stage.batch]
            samples = [self.task.sample(i, rng, noise, focus) for i, focus in picks]
            monitor.saw(samples)
            # Dropout takes no generator.
            torch.manual_seed(int(np.random.SeedSequence([*seed, step]).generate_state(1)[0]))
            loss = self._loss(samples, [i for i, _ in picks], miner)
            if optimiser_step(fabric, self.model, self.optimiser, loss, stage.clip) and stage.schedule != "plateau":
                self.scheduler.step()
            rate = float(self.optimiser.param_groups[0]["lr"])
            yield StepDone(stage.stage, epoch * stage.steps_per_epoch + step + 1, total, float(loss.detach()), rate)

    def _loss(self, samples: Sequence[Any], cases: Sequence[int], miner: HardExampleMiner) -> Tensor:
        """Return the loss of one step's samples, whose cases are `cases`."""
        stage, recipe, teacher = self.stage, self.recipe, self.forgetting.teacher
        parts, first = [], 0
        for x, target, missing in batches_of(samples, [self.samples[i].missing for i in cases]):
            heads = self.task.heads(self.model, x)[: stage.heads or None]
            part = self.task.loss_of_heads(heads, target, missing)
            miner.saw(cases[first : first + len(target)], heads[0], target, missing)
            first += len(target)
            if teacher is not None:
                part = part + recipe.distillation_weight * teacher.loss(heads[0], x)
            parts.append(part * (len(target) / stage.batch))
        loss = torch.stack(parts).sum()
        if self.forgetting.anchors:
            loss = loss + recipe.l2sp_weight * l2sp_penalty(self.net, self.forgetting.anchors)
        return loss
