"""Training of one network: epochs, validation, the best weights so far, and a checkpoint after every epoch.

All randomness of an epoch comes from (seed, stage, epoch), so that a run that was killed and started again takes
exactly the same steps as one that was not. A stage that is trained for minutes plans the steps of each epoch at the end
of the one before, from what these took, and the checkpoint holds the plan.

Samples are drawn in a thread, one step ahead.
"""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning_fabric import Fabric
from torch import Tensor, nn

from napari_fmseg.core.events import EpochDone, Saved, StepDone, TrainEvent, Warned
from napari_fmseg.models.card import NetSpec
from napari_fmseg.nets.traits import class_probabilities
from napari_fmseg.training.checkpoint import load_checkpoint, restoring, save_checkpoint
from napari_fmseg.training.data.copy_paste import Drawn, exchange_boxes, paste_unlabelled
from napari_fmseg.training.data.hard_mining import HardExampleMiner, soft_dice
from napari_fmseg.training.data.samples import Sample
from napari_fmseg.training.data.sampling import CaseSampler, batches_of, in_turn
from napari_fmseg.training.distributed import broadcast_ints
from napari_fmseg.training.forgetting import Teacher, l2sp_penalty
from napari_fmseg.training.monitor import TrainingMonitor
from napari_fmseg.training.optimisation import (
    UnsafePrecision,
    WeightAverage,
    make_optimiser,
    make_scheduler,
    optimiser_step,
    rate_of,
    refuse_unsafe_convolutions,
)
from napari_fmseg.training.recipe import Recipe, StageRecipe
from napari_fmseg.training.tasks.base import Task

__all__ = ["Forgetting", "StageState", "StageTrainer", "load_stage"]

_USES = 2
"""Steps that learn from the same samples, in other pairs, where unlabelled ones are among them."""

_KNOWN = 0.5
"""Dice on labelled samples from which a class is known well enough for the network to label it elsewhere."""

_FOUND, _LATEST = 0.1, 0.5
"""Dice on labelled samples from which a class is found, so that class weights may fade; and the share of the training
after which they fade in any case."""

_PARTS = ("net", "best", "optimiser", "scheduler", "state")

Validate = Callable[[str, nn.Module, int, bool], Generator[TrainEvent, None, dict[str, float]]]
"""Takes the stage, its network, the step, and whether all validation cases are meant; returns the metrics."""


@dataclass
class StageState:
    """What a stage's checkpoint holds beside weights and optimiser.

    `old` is the mean Dice of the previously learned classes at the start, `seen` the Dice of each training case when
    it was last sampled; `steps` were taken in `seconds` (of the recipe's clock, with validations), `skipped` of them
    without a finite gradient; `planned` is how many the next epoch has, 0 for what the recipe says. `teaches` says
    whether the moving average knows every class well enough to label volumes that nobody labelled, `fade_from` at what
    share of the training every class was found, negative before.
    """

    epoch: int = 0
    best: float = -math.inf
    best_epoch: int = 0
    done: bool = False
    old: float = math.nan
    steps: int = 0
    seconds: float = 0.0
    planned: int = 0
    skipped: int = 0
    teaches: bool = False
    fade_from: float = -1.0
    seen: list[float] = field(default_factory=list)
    history: list[dict[str, float]] = field(default_factory=list)


@dataclass
class _Draws:
    """The samples of a step: cases, their samples, inputs of as many unlabelled cases, the teacher's guess at these."""

    cases: list[int]
    labelled: list[Drawn]
    unlabelled: list[list[Tensor]]
    guesses: Tensor | None = None

    def pair_anew(self) -> None:
        """Put each unlabelled sample beside the next labelled one."""
        self.unlabelled = [*self.unlabelled[1:], *self.unlabelled[:1]]
        self.guesses = None if self.guesses is None else self.guesses.roll(-1, 0)


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
    unlabelled
        The cases that nobody labelled; the task has them after the training cases.
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
        unlabelled: Sequence[Sample],
        forgetting: Forgetting,
        validate: Validate,
    ) -> None:
        self.recipe, self.fabric, self.number, self.stage, self.spec = recipe, fabric, number, stage, spec
        self.task, self.samples, self.sampler, self.unlabelled = task, samples, sampler, unlabelled
        self.forgetting, self.validate = forgetting, validate
        optimiser = make_optimiser(stage, net)
        if fabric.device.type == "cpu" and getattr(net, "trains_channels_last", True):
            net = net.to(memory_format=torch.channels_last_3d)  # type: ignore[call-overload]
        self.net = net
        self.model, self.optimiser = fabric.setup(net, optimiser)
        self.called: Any = self.model
        self.plateau = make_scheduler(self.optimiser) if stage.schedule == "plateau" else None
        self.average = WeightAverage(self.net, stage.ema) if stage.ema else None
        self.state = StageState()
        self.overlaps: list[Tensor] = []  # Dice per class of the samples of an epoch, until every class is known
        self._is_watched = bool(unlabelled) or stage.loss == "soft_dice_ce_by_class"
        self.best: Mapping[str, Tensor] = {k: v.clone() for k, v in net.state_dict().items()}
        self.epochs = max(1, math.ceil(stage.steps / stage.steps_per_epoch))
        self._clock = time.process_time if recipe.clock == "processor" else time.perf_counter

    @property
    def final_net(self) -> nn.Module:
        """The network that is validated and kept: the moving average, where there is one."""
        return self.net if self.average is None else self.average.net

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
            start, clock = time.perf_counter(), self._clock()
            losses: list[float] = []
            self.model.train()
            for event in self._epoch(state.epoch, monitor, miner):
                losses.append(event.loss)
                yield event
            if state.epoch == 0 and self.called is not self.model:
                yield Warned(f"{stage.stage}: trained in float32, since bfloat16 is not safe here.", "float32-training")
            state.epoch += 1
            state.steps += len(losses)
            state.seen = miner.end_epoch(self.fabric)
            mean = float(np.mean(losses))
            if self.plateau is not None:
                self.plateau.step(mean)
            metrics = yield from self.validate(stage.stage, self.final_net, state.steps, state.epoch == self.epochs)
            better = self._note(mean, metrics)
            (milliseconds,) = broadcast_ints(self.fabric, round(1000 * (self._clock() - clock)))
            took = milliseconds / 1000
            state.seconds += took
            self._note_what_is_known()
            (state.planned,) = broadcast_ints(self.fabric, self._next_steps(took / len(losses)))
            if self.fabric.is_global_zero:
                self._save(path)
            self.fabric.barrier()
            yield EpochDone(stage.stage, state.epoch, self.epochs, mean, time.perf_counter() - start, metrics)
            yield Saved(path, better)
            yield from monitor.warnings(stage.stage, state.epoch, state.old, metrics)
        if state.skipped:
            yield Warned(
                f"{stage.stage}: {state.skipped} of {state.steps} steps had no finite gradient and were skipped.",
                "skipped-steps",
            )

    def _note_what_is_known(self) -> None:
        """Note whether the network knows every class well enough to teach, and when it has found every class.

        A teacher that does not know a class labels it as background everywhere, and it is never learned; and class
        weights that fade before a small structure was found leave nothing but background.
        """
        state, done = self.state, self._share_done(self.state.epoch)
        last = self.overlaps[-(1 + len(self.overlaps) // 3) :]
        self.overlaps = []
        means = torch.stack(last).nanmean(0) if last else torch.zeros(1)
        least = float(means[means.isfinite()].min()) if means.isfinite().any() else 1.0
        knows, found = broadcast_ints(self.fabric, int(least >= _KNOWN), int(least >= _FOUND))
        state.teaches = state.teaches or bool(knows and last)
        if state.fade_from < 0 and (found or done >= _LATEST):
            state.fade_from = 0.0 if state.epoch == 1 else done

    def _fade_share(self, epoch: int, progress: float) -> float:
        """Return for how much of the training class weights have faded: not before every class was found."""
        start = self.state.fade_from
        return progress - start if start >= 0 else progress if epoch == 0 else 0.0

    def _next_steps(self, seconds_per_step: float) -> int:
        """Return how many steps the next epoch has, so that the stage takes its minutes; 0 where it goes by steps."""
        left = self.stage.minutes * 60 - self.state.seconds
        epochs = max(1, self.epochs - self.state.epoch)
        return max(1, int(left / epochs / max(seconds_per_step, 1e-6))) if self.stage.minutes else 0

    def _share_done(self, epoch: int) -> float:
        """Return the share of the stage that is done, 0..1, when an epoch begins.

        Where a stage has minutes, it is that of the time: the first epoch may be far shorter than the others.
        """
        if self.stage.minutes:
            return min(1.0, self.state.seconds / (60 * self.stage.minutes))
        return epoch / self.epochs

    def _progress(self, epoch: int, step: int, steps: int) -> float:
        """Return the share of the stage that is done, 0..1, at a step of an epoch of `steps`."""
        done = self._share_done(epoch)
        return done + (1 - done) * step / steps / (self.epochs - epoch)

    def _note(self, loss: float, metrics: Mapping[str, float]) -> bool:
        """Keep the weights if they are the best so far; return whether they are."""
        state = self.state
        score = metrics.get("dice", -loss)
        better = score > state.best
        if better or self.stage.keep == "last":
            state.best, state.best_epoch = score, state.epoch
            self.best = {k: v.detach().cpu().clone() for k, v in self.final_net.state_dict().items()}
        state.history.append({"epoch": state.epoch, "loss": loss, **metrics})
        stalled = self.stage.patience and state.epoch - state.best_epoch >= self.stage.patience
        state.done = state.epoch == self.epochs or bool(stalled)
        return better

    def _restore(self, saved: Mapping[str, Any], path: Path) -> StageState:
        with restoring(path):
            self.net.load_state_dict(saved["net"])
            self.optimiser.load_state_dict(saved["optimiser"])
            if self.plateau is not None:
                self.plateau.load_state_dict(saved["scheduler"])
            if self.average is not None:
                self.average.net.load_state_dict(saved["ema"])
            self.state, self.best = StageState(**saved["state"]), saved["best"]
        return self.state

    def _save(self, path: Path) -> None:
        parts = {"net": self.net.state_dict(), "best": dict(self.best), "optimiser": self.optimiser.state_dict()}
        plateau = {} if self.plateau is None else self.plateau.state_dict()
        average = {} if self.average is None else self.average.net.state_dict()
        more = {"scheduler": plateau, "ema": average, "state": dataclasses.asdict(self.state)}
        save_checkpoint(path, {**parts, **more})

    def _epoch(self, epoch: int, monitor: TrainingMonitor, miner: HardExampleMiner) -> Iterator[StepDone]:
        stage, state, first = self.stage, self.state, self.state.steps
        steps = state.planned or stage.steps_per_epoch
        most = self._clock() + 90 * stage.minutes / self.epochs if stage.minutes and not epoch else math.inf
        seed = [self.recipe.seed, self.number, epoch, self.fabric.global_rank]
        total = first + steps * (self.epochs - epoch)
        for step, draws in enumerate(self._draw_ahead(epoch, steps, seed, miner.hard())):
            monitor.saw(draws.labelled)
            mixing = np.random.default_rng([*seed, step])
            # Dropout takes no generator.
            torch.manual_seed(int(np.random.SeedSequence([*seed, step]).generate_state(1)[0]))
            progress = self._progress(epoch, step, steps)
            self.task.set_progress(self._fade_share(epoch, progress))
            samples = self._mix(draws, first + step, mixing)
            if self.plateau is None:
                rate = stage.lr * rate_of(stage, progress, self._progress(epoch, step + 1, steps) - progress)
                for group in self.optimiser.param_groups:
                    group["lr"] = rate
            loss = (self._loss if step else self._first_loss)(samples, draws.cases, miner)
            if not optimiser_step(self.fabric, self.model, self.optimiser, loss, stage.clip):
                state.skipped += 1
            elif self.average is not None:
                self.average.update(self.net, first + step)
            rate = float(self.optimiser.param_groups[0]["lr"])
            yield StepDone(stage.stage, first + step + 1, total, float(loss.detach()), rate)
            if self._clock() > most:  # the guess for the first epoch was far too high
                break

    def _draw_ahead(self, epoch: int, steps: int, seed: Sequence[int], hard: Sequence[int]) -> Iterator[_Draws]:
        """Yield the samples of each step of an epoch, drawn while the step before is computed.

        Where unlabelled cases are among them, every other step pairs the samples of the one before anew: to draw and
        to label them costs as much as to learn from them.
        """
        stage, recipe = self.stage, self.recipe
        rng = np.random.default_rng(seed)
        noise = torch.Generator().manual_seed(int(np.random.SeedSequence(seed).generate_state(1)[0]))
        order = self.sampler.picks(steps * stage.batch, rng, hard)
        own = np.random.default_rng(
            [*seed, len(order)]
        )  # labelled samples are the same with and without unlabelled ones
        others = in_turn(len(self.unlabelled), len(order), own) if self.unlabelled else []
        n = len(self.samples)

        def draw(step: int) -> _Draws:
            part = slice(step * stage.batch, (step + 1) * stage.batch)
            drawn = [self.task.sample(i, rng, noise, focus) for i, focus in order[part]]
            late = self.state.teaches and self._progress(epoch, step, steps) >= recipe.unlabelled_from
            fits = late and self.unlabelled and any(self._takes_unlabelled(i) for i, _ in order[part])
            more = [self.task.sample(n + i, rng, noise)[0] for i in others[part] if fits]
            return _Draws([i for i, _ in order[part]], drawn, more)

        with ThreadPoolExecutor(1) as worker:
            coming, step = worker.submit(draw, 0), 0
            while step < steps:
                now = coming.result()
                uses = min(_USES, steps - step) if now.unlabelled else 1
                step += uses
                if step < steps:
                    coming = worker.submit(draw, step)
                yield now
                for _ in range(uses - 1):
                    now.pair_anew()
                    yield now

    def _takes_unlabelled(self, case: int) -> bool:
        """Return whether what is guessed of unlabelled cases may lie in the sample of a case.

        Not where that was labelled with classes that none of the cases has that the unlabelled ones are like, such as
        a replayed case: a network takes something of a new kind of image for such a class, and would be taught it.
        """
        return all(set(sample.missing) <= set(self.samples[case].missing) for sample in self.unlabelled)

    def _mix(self, draws: _Draws, step: int, rng: np.random.Generator) -> list[Drawn]:
        """Exchange boxes with unlabelled samples, or between the labelled ones, as the recipe asks."""
        drawn = draws.labelled
        if draws.unlabelled and self.average is not None:
            if draws.guesses is None:
                inputs = [torch.stack(parts) for parts in zip(*draws.unlabelled, strict=True)]
                with torch.no_grad(), self.fabric.autocast():
                    draws.guesses = class_probabilities(self.average.net, self.average.net(*inputs))
            weight = self.recipe.unlabelled_weight
            mixed = paste_unlabelled(drawn, draws.unlabelled, draws.guesses, weight, step, rng)
            takes = [self._takes_unlabelled(i) for i in draws.cases]
            return [new if fits else old for new, old, fits in zip(mixed, drawn, takes, strict=True)]
        alike = len({self.samples[i].missing for i in draws.cases}) == 1 and len({t.shape for _, t in drawn}) == 1
        if len(drawn) > 1 and alike and rng.random() < self.recipe.augment.mix:
            return exchange_boxes(drawn, rng)
        return drawn

    def _first_loss(self, samples: Sequence[Any], cases: Sequence[int], miner: HardExampleMiner) -> Tensor:
        """Return the loss of an epoch's first step; go over to float32 where half precision would corrupt memory."""
        try:
            with refuse_unsafe_convolutions(self.net):
                return self._loss(samples, cases, miner)
        except UnsafePrecision:
            if self.fabric.world_size > 1:
                raise
            self.called = self.net  # the one that Fabric made computes in half precision
            return self._loss(samples, cases, miner)

    def _loss(self, samples: Sequence[Any], cases: Sequence[int], miner: HardExampleMiner) -> Tensor:
        """Return the loss of one step's samples, whose cases are `cases`."""
        stage, recipe, teacher = self.stage, self.recipe, self.forgetting.teacher
        parts, first = [], 0
        for x, target, missing in batches_of(samples, [self.samples[i].missing for i in cases]):
            heads = self.task.heads(self.called, x)[: stage.heads or None]
            part = self.task.loss_of_heads(heads, target, missing)
            miner.saw(cases[first : first + len(target)], heads[0], target, missing)
            if self._is_watched and (self.state.fade_from < 0 or not self.state.teaches):
                self.overlaps.append(soft_dice(heads[0], target))
            first += len(target)
            if teacher is not None:
                part = part + recipe.distillation_weight * teacher.loss(heads[0], x)
            parts.append(part * (len(target) / stage.batch))
        loss = torch.stack(parts).sum()
        if self.forgetting.anchors:
            loss = loss + recipe.l2sp_weight * l2sp_penalty(self.net, self.forgetting.anchors)
        return loss
