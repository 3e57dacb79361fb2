"""One training loop for every stage of every pipeline: it yields what happens, and resumes after a kill.

All randomness of an epoch comes from (seed, stage, epoch), so that a run that was killed and started again takes
exactly the same steps as one that was not.
"""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from napari_fmseg.core.errors import InvalidRecipe
from napari_fmseg.core.events import (
    STARTING_WEIGHTS,
    EpochDone,
    Pictures,
    Progress,
    Saved,
    StepDone,
    TrainEvent,
    Warned,
)
from napari_fmseg.core.processes import is_rank_zero
from napari_fmseg.core.volume import LabelMap
from napari_fmseg.datasets.case import Case, read_case
from napari_fmseg.datasets.projects.training_plan import note_learned
from napari_fmseg.models.card import ModelCard, NetSpec
from napari_fmseg.models.settings import PIPELINES
from napari_fmseg.models.weights import Model, load_model, save_model
from napari_fmseg.nets import build, load
from napari_fmseg.nets.traits import init_weights
from napari_fmseg.training.class_growth import extend_classes
from napari_fmseg.training.data.case_cache import prepare
from napari_fmseg.training.data.hard_mining import HardExampleMiner
from napari_fmseg.training.data.samples import Sample, ValidationCase, load_sample
from napari_fmseg.training.data.sampling import CaseSampler, batches_of
from napari_fmseg.training.data.sources import Source, sources_of
from napari_fmseg.training.distributed import make_fabric
from napari_fmseg.training.forgetting import Teacher, l2sp_penalty
from napari_fmseg.training.history import recorded
from napari_fmseg.training.monitor import TrainingMonitor
from napari_fmseg.training.recipe import Recipe, StageRecipe
from napari_fmseg.training.recipe_file import as_table
from napari_fmseg.training.run_folder import (
    claim,
    fingerprint,
    hold,
    load_checkpoint,
    resolved,
    restoring,
    save_checkpoint,
)
from napari_fmseg.training.schedules import rate_of
from napari_fmseg.training.snapshots import write_plane
from napari_fmseg.training.tasks import TASKS
from napari_fmseg.training.tasks.base import Task
from napari_fmseg.training.validation import validated

__all__ = ["train"]


def train(recipe: Recipe) -> Generator[TrainEvent, None, None]:
    """Train a model, stage by stage, from scratch or from `recipe.start_from`.

    Parameters
    ----------
    recipe
        See `Recipe`.

    Yields
    ------
    Progress, Warned, StepDone, EpochDone, Pictures or Saved
        `Saved` for every checkpoint, and at last for the model's card in `recipe.out`. Closing the iterator, or Ctrl-C,
        writes the best so far as a model; the same recipe goes on from the last checkpoint.

    Raises
    ------
    InvalidRecipe
        If the recipe cannot be carried out, or `recipe.out` holds the run of another recipe.
    MissingExtra
        If files for TensorBoard are wanted and it is not installed.
    """
    yield from recorded(_events(recipe), recipe.out, recipe.tensorboard)


def _events(recipe: Recipe) -> Generator[TrainEvent, None, None]:
    with hold(Path(recipe.out)):
        run = _Run(recipe)
        try:
            yield from run.prepare()
            for number, stage in enumerate(recipe.stages):
                yield from run.stage(number, stage)
            yield from run.finish()
        except GeneratorExit:
            run.keep()
            raise
        except KeyboardInterrupt:
            kept = run.keep()
            if kept is not None:
                yield Saved(kept, True)
            raise


@dataclass
class _Unfinished:
    """The stage that is being trained, and its best weights so far."""

    stage: str
    spec: NetSpec
    best: dict[str, Tensor]
    state: _State


@dataclass
class _State:
    """What a stage's checkpoint holds beside weights and optimiser."""

    epoch: int = 0
    best: float = -math.inf
    best_epoch: int = 0
    done: bool = False
    old: float = math.nan  # mean Dice of the classes of before, at the start
    seen: list[float] = field(default_factory=list)  # Dice of each training case when it was last drawn
    history: list[dict[str, float]] = field(default_factory=list)


class _Run:
    def __init__(self, recipe: Recipe) -> None:
        self.recipe = recipe
        self.fabric = make_fabric(recipe.device, recipe.precision, recipe.devices)
        self.fabric.launch()
        self.nets: dict[str, nn.Module] = {}
        self.specs: dict[str, NetSpec] = {}
        self.samples: list[Sample] = []
        self.held: list[ValidationCase] = []
        self.found: LabelMap | None = None  # in the first held-out case, at the last validation
        self.card: ModelCard
        self.parent: Model | None = None
        self.old: tuple[str, ...] = ()  # classes that the model to start from knew
        self.anchors: dict[str, dict[str, Tensor]] = {}
        self.drawing: CaseSampler
        self.held_groups: list[list[ValidationCase]] = []
        self.unfinished: _Unfinished | None = None

    def prepare(self) -> Iterator[TrainEvent]:
        """Read the cases, and the model to start from."""
        recipe = self.recipe
        if recipe.pipeline not in TASKS:
            names = ", ".join(TASKS)
            raise InvalidRecipe(f"Models of the pipeline {recipe.pipeline!r} cannot be trained. Choose of: {names}.")
        self._claim()
        if recipe.start_from:
            self.parent = load_model(recipe.start_from, device=recipe.device)
            self.old = tuple(n for n in recipe.labels if n in self.parent.card.labels.values())
        sources = list(sources_of(recipe))
        known = {name for source in sources for name in source.names.values()} | set(self.old)
        unknown = [label for label in recipe.labels if label not in known]
        if unknown:
            raise InvalidRecipe(f"The dataset has no label {unknown[0]!r}. It has: {', '.join(sorted(known))}.")
        for source in sources:
            if source.folder is not None and is_rank_zero():
                note_learned(source.folder, source.training)
        learned = [(case, source) for source in sources for case in source.training]
        caches = TASKS[recipe.pipeline].caches_cases
        samples = yield from self._prepared(learned) if caches else self._read(learned)
        for sample, (case, source) in zip(samples, learned, strict=True):
            self.samples.append(dataclasses.replace(sample, missing=source.missing(case, recipe.labels)))
        self.drawing = CaseSampler(recipe, self.samples, [source is not sources[0] for _, source in learned])
        total, done = sum(len(s.validation) for s in sources), 0
        for source in sources:
            group = []
            for case in source.validation:
                yield Progress("reading", done, total)
                volume, truth = read_case(case, source.names, recipe.labels, recipe.ignore)
                group.append(ValidationCase(volume, truth, source.missing(case, recipe.labels), source.watched))
                done += 1
            self.held_groups.append(group)
        self.held = [case for group in self.held_groups for case in group]
        for label, name in enumerate(recipe.labels, 1):
            if not any((s.labels == label).any() for s in self.samples):
                fate = "it can only be kept as it is" if name in self.old else "it cannot be learned"
                yield Warned(f"No training case has {name!r}; {fate}.")
        if recipe.start_from:
            yield from self._start()
        spacings = [h.volume.geometry.canonical()[0].spacing for h in self.held] or [s.spacing for s in self.samples]
        spacing = np.median(spacings, 0) if spacings else ()
        self.card = ModelCard(
            name=recipe.name,
            title=recipe.title or recipe.name,
            pipeline=recipe.pipeline,
            nets={},
            labels=dict(enumerate(recipe.labels, 1)),
            spacing_mm=tuple(round(float(s), 3) for s in spacing),
            parent=recipe.start_from,
            **{f: getattr(recipe, f) for f in _SHARED},
        )

    def _read(self, learned: Sequence[tuple[Case, Source]]) -> Generator[TrainEvent, None, list[Sample]]:
        """Read the cases to learn from into memory."""
        recipe, found = self.recipe, []
        crop_above = recipe.settings.get("crop_above") if TASKS[recipe.pipeline].crops_cases else None
        for done, (case, source) in enumerate(learned):
            yield Progress("reading", done, len(learned))
            device = self.fabric.device
            found.append(
                load_sample(case, source.names, recipe.labels, recipe.intensity, crop_above, device, recipe.ignore)
            )
        return found

    def _prepared(self, learned: Sequence[tuple[Case, Source]]) -> Generator[TrainEvent, None, list[Sample]]:
        """Make the cases to learn from ready on disk: the first process does, the others wait for it."""
        folder = self.recipe.prepared or self.folder / "prepared"
        cases = [(case, source.names) for case, source in learned]
        if not self.fabric.is_global_zero:
            self.fabric.barrier()
        found = yield from prepare(cases, self.recipe, folder, self.fabric.device)
        if self.fabric.is_global_zero:
            self.fabric.barrier()
        return list(found)

    def _start(self) -> Iterator[TrainEvent]:
        """Accept the networks of the model to start from, with the recipe's classes."""
        recipe, start = self.recipe, self.parent
        assert start is not None
        if start.card.pipeline != recipe.pipeline or len(start.card.channels) != len(recipe.channels):
            raise InvalidRecipe(
                f"{start.card.name} is a {start.card.pipeline} model of {len(start.card.channels)} channel(s), and the "
                f"recipe is for {recipe.pipeline} and {len(recipe.channels)}. Start from another model, or anew."
            )
        if any(name not in PIPELINES[recipe.pipeline].stages for name in start.nets):
            raise InvalidRecipe(
                f"{start.card.name} is an ensemble and cannot be trained further. Start from one of the models that it "
                "was made of, in the folders of its folds."
            )
        for stage, net in start.nets.items():
            with torch.random.fork_rng(devices=()):
                torch.manual_seed(recipe.seed)  # of what is drawn anew
                grown, spec, how = extend_classes(start.card.nets[stage], net, start.card.labels, recipe.labels)
            self.nets[stage], self.specs[stage] = grown.eval().requires_grad_(False), spec
            state = grown.state_dict()
            self.anchors[stage] = {key: state[key] for key in how.taken}
            if how.grown or how.fresh or how.dropped:
                yield Warned(how.said(stage, start.card.name), STARTING_WEIGHTS)

    def _claim(self) -> None:
        """Make the run's folder ours, or continue what lies there if it is the same recipe."""
        self.folder = Path(self.recipe.out)
        tables = [
            {k: v for k, v in as_table(recipe).items() if k not in _WORDS}
            for recipe in (resolved(self.recipe), self.recipe)
        ]
        claim(self.folder, [fingerprint(table) for table in tables], tables[0])

    def stage(self, number: int, stage: StageRecipe) -> Iterator[TrainEvent]:
        """Train one network, or take it from its finished checkpoint."""
        path = self.folder / f"{number}-{stage.stage}.pt"
        net, spec, unfit = self._network(number, stage)
        self.specs[stage.stage] = spec
        if unfit:
            yield Warned(
                f"{stage.stage}: {len(net.state_dict()) - len(unfit)} tensors were taken from {self._source(stage)}; "
                f"{len(unfit)} do not fit and were drawn anew ({', '.join(unfit[:3])}...).",
                STARTING_WEIGHTS,
            )
        saved = load_checkpoint(path, _PARTS)
        if saved is None or not saved["state"].get("done"):
            yield Progress(stage.stage, 0, stage.steps)
            task: Task = load(TASKS[self.recipe.pipeline].make)(stage, self.recipe, self.samples, self.nets)
            yield from (Warned(remark) for remark in task.remarks)
            init_on_sample: Any = getattr(net, "init_on_sample", None)
            if init_on_sample is not None and not self._source(stage):
                inputs, _ = task.sample(0, np.random.default_rng(self.recipe.seed), torch.Generator())
                init_on_sample(*(x.cpu()[None] for x in inputs))
            yield from self._fit(number, stage, net, task, saved, path)
            saved = load_checkpoint(path, _PARTS)
        with restoring(path):
            net.load_state_dict((saved or {})["best"])
        self.nets[stage.stage] = net.to(self.fabric.device).eval().requires_grad_(False)

    def _network(self, number: int, stage: StageRecipe) -> tuple[nn.Module, NetSpec, tuple[str, ...]]:
        """Make a stage's network with its first weights; name the tensors of its source that do not fit."""
        recipe, source = self.recipe, self._source(stage)
        given = {"in_channels": len(recipe.channels), "n_classes": len(recipe.labels) + 1, **stage.kwargs}
        own_past = recipe.start_from and source == stage.stage and self.specs[source].network == stage.network
        kwargs = {**self.specs[source].kwargs, **given} if own_past else given
        spec = NetSpec(stage.network, kwargs)
        net = build(stage.network, **kwargs)
        generator = torch.Generator().manual_seed(recipe.seed * 1000 + number)
        init_weights(net, generator)
        if not source:
            return net, spec, ()
        own, other = net.state_dict(), self.nets[source].state_dict()
        fitting = {k: v for k, v in other.items() if k in own and own[k].shape == v.shape}
        net.load_state_dict({**own, **fitting})
        return net, spec, tuple(k for k in own if k not in fitting)

    def _starts_well(self, stage: StageRecipe, net: nn.Module) -> bool:
        """Return whether the network gives something sensible before the first step."""
        return self._source(stage) == stage.stage or getattr(net, "useful_untrained", False)

    def _source(self, stage: StageRecipe) -> str:
        """Name the network whose weights a stage starts from, or "" for new ones."""
        source = stage.init_from or (stage.stage if self.recipe.start_from else "")
        return source if source in self.nets else ""

    def _fit(
        self, number: int, stage: StageRecipe, net: nn.Module, task: Task, saved: Mapping[str, Any] | None, path: Path
    ) -> Iterator[TrainEvent]:
        fabric = self.fabric
        kind = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[stage.optimiser]
        optimiser = kind(net.parameters(), stage.lr, weight_decay=stage.weight_decay)
        if fabric.device.type == "cpu" and getattr(net, "trains_channels_last", True):
            net = net.to(memory_format=torch.channels_last_3d)  # type: ignore[call-overload]
        model, optimiser = fabric.setup(net, optimiser)
        scheduler = _scheduler(optimiser, stage)
        state = _State()
        best = {k: v.clone() for k, v in net.state_dict().items()}
        if saved is not None:
            with restoring(path):
                net.load_state_dict(saved["net"])
                optimiser.load_state_dict(saved["optimiser"])
                scheduler.load_state_dict(saved["scheduler"])
                state, best = _State(**saved["state"]), saved["best"]
        epochs = max(1, math.ceil(stage.steps / stage.steps_per_epoch))
        if saved is None and self._starts_well(stage, net):
            metrics = yield from self._validate(stage.stage, net, 0, every=False)
            state.best = metrics.get("dice", -math.inf)  # training must beat the start, or the start is kept
            state.old = metrics.get("old", math.nan)
        self.unfinished = _Unfinished(stage.stage, self.specs[stage.stage], best, state)
        watch = TrainingMonitor(self.recipe, self.samples, epochs, first=state.epoch)
        hardness = HardExampleMiner(self.recipe, [sample.name for sample in self.samples], state.seen)
        while state.epoch < epochs and not state.done:
            start = time.perf_counter()
            losses: list[float] = []
            model.train()
            for event in self._epoch(
                number, stage, model, net, optimiser, scheduler, task, state.epoch, epochs, watch, hardness
            ):
                losses.append(event.loss)
                yield event
            state.epoch += 1
            state.seen = hardness.ended(fabric)
            mean = float(np.mean(losses))
            if stage.schedule == "plateau":
                scheduler.step(mean)
            steps = state.epoch * stage.steps_per_epoch
            metrics = yield from self._validate(stage.stage, net, steps, every=state.epoch == epochs)
            score = metrics.get("dice", -mean)
            better = score > state.best
            if better:
                state.best, state.best_epoch = score, state.epoch
                best = {k: v.detach().cpu().clone() for k, v in net.state_dict().items()}
                self.unfinished.best = best
            state.history.append({"epoch": state.epoch, "loss": mean, **metrics})
            stalled = stage.patience and state.epoch - state.best_epoch >= stage.patience
            state.done = state.epoch == epochs or bool(stalled)
            if fabric.is_global_zero:
                _save_checkpoint(path, net, best, optimiser, scheduler, state)
            fabric.barrier()
            seconds = time.perf_counter() - start
            yield EpochDone(stage.stage, state.epoch, epochs, mean, seconds, metrics)
            yield Saved(path, better)
            yield from watch.warnings(stage.stage, state.epoch, state.old, metrics)
        self.unfinished = None

    def _epoch(
        self,
        number: int,
        stage: StageRecipe,
        model: nn.Module,
        net: nn.Module,
        optimiser: torch.optim.Optimizer,
        scheduler: Any,
        task: Task,
        epoch: int,
        epochs: int,
        watch: TrainingMonitor,
        hardness: HardExampleMiner,
    ) -> Iterator[StepDone]:
        fabric = self.fabric
        seed = [self.recipe.seed, number, epoch, fabric.global_rank]
        rng = np.random.default_rng(seed)
        noise = torch.Generator().manual_seed(int(np.random.SeedSequence(seed).generate_state(1)[0]))
        total = epochs * stage.steps_per_epoch
        order = self.drawing.picks(stage.steps_per_epoch * stage.batch, rng, hardness.hard())
        extra = self._memory(stage)
        for step in range(stage.steps_per_epoch):
            picks = order[step * stage.batch : (step + 1) * stage.batch]
            drawn = [task.sample(i, rng, noise, focus) for i, focus in picks]
            watch.saw(drawn)
            torch.manual_seed(
                int(np.random.SeedSequence([*seed, step]).generate_state(1)[0])
            )  # dropout takes no generator
            batches = batches_of(drawn, [self.samples[i].missing for i, _ in picks])
            parts, first = [], 0
            for x, target, gone in batches:
                heads = task.heads(model, x)[: stage.heads or None]
                part = task.summed(heads, target, gone)
                hardness.saw([i for i, _ in picks[first : first + len(target)]], heads[0], target, gone)
                first += len(target)
                if extra.teacher is not None:
                    part = part + self.recipe.distillation_weight * extra.teacher.loss(heads[0], x)
                parts.append(part * (len(target) / stage.batch))
            loss = torch.stack(parts).sum()
            if extra.anchors:
                loss = loss + self.recipe.l2sp_weight * l2sp_penalty(net, extra.anchors)
            optimiser.zero_grad()
            fabric.backward(loss)
            norm = fabric.clip_gradients(model, optimiser, max_norm=stage.clip, error_if_nonfinite=False)
            # bf16 convolutions on the CPU may give uninitialised gradients (torch 2.13, depth 2): skip such a step.
            if norm is None or bool(torch.isfinite(torch.as_tensor(norm))):
                optimiser.step()
                if stage.schedule != "plateau":
                    scheduler.step()
            rate = float(optimiser.param_groups[0]["lr"])
            yield StepDone(stage.stage, epoch * stage.steps_per_epoch + step + 1, total, float(loss.detach()), rate)

    def _memory(self, stage: StageRecipe) -> _Memory:
        """Return what holds the stage to the model of before."""
        recipe, name = self.recipe, stage.stage
        if self.parent is None or self._source(stage) != name or name not in self.parent.nets or not self.old:
            return _Memory()
        teacher = (
            Teacher(self.parent.nets[name], self.parent.card.labels, recipe.labels)
            if recipe.distillation_weight
            else None
        )
        return _Memory(teacher, self.anchors[name] if recipe.l2sp_weight else {})

    def keep(self) -> Path | None:
        """Write the best so far as a model, when training is stopped; None if there is nothing worth it."""
        if not hasattr(self, "card") or not self.fabric.is_global_zero:
            return None
        nets, specs, scores = dict(self.nets), dict(self.specs), {}
        now = self.unfinished
        if now is not None:
            if now.state.best > -math.inf:
                nets[now.stage] = build(now.spec.network, **now.spec.kwargs)
                nets[now.stage].load_state_dict(now.best)
                told = now.state.history[now.state.best_epoch - 1] if now.state.best_epoch else {}
                scores = {k.removeprefix("dice/"): round(v, 4) for k, v in told.items() if k.startswith("dice/")}
            elif now.stage not in nets:
                specs.pop(now.stage, None)
        stages = PIPELINES[self.recipe.pipeline].stages
        kept = {name: specs[name] for name in stages if name in nets and name in specs}
        if stages[0] not in kept:
            return None
        card = dataclasses.replace(
            self.card,
            nets=kept,
            scores={now.stage: scores} if now is not None and scores else {},
            limits=f"{self.card.limits} Its training was stopped before the end.".strip(),
        )
        save_model(card, nets, self.folder, half=self.recipe.half)
        return self.folder / f"{card.name}.toml"

    def _validate(
        self, stage: str, net: nn.Module, step: int, *, every: bool
    ) -> Generator[TrainEvent, None, dict[str, float]]:
        """Yield Dice on the held-out cases by the pipeline that users run, as far as the stage that is being
        trained.
        """
        if not self.held:
            return {}
        few = self.recipe.validate_cases
        cases = self.held if every or not few else [case for group in self.held_groups for case in group[:few]]
        net.eval()
        metrics = yield from self._score({**self.nets, stage: net}, stage, cases)
        if self.fabric.is_global_zero and self.found is not None:
            case = cases[0]
            yield Pictures(stage, step, write_plane(case.volume, case.truth, self.found, self.folder / "pictures.npz"))
        return metrics

    def _score(
        self, nets: Mapping[str, nn.Module], until: str, cases: Sequence[ValidationCase]
    ) -> Generator[TrainEvent, None, dict[str, float]]:
        specs = {name: self.specs[name] for name in self.specs if name in nets}
        model = Model(dataclasses.replace(self.card, nets=specs), nets, self.fabric.device)
        metrics, self.found = yield from validated(model, until, cases, self.recipe.labels, self.old)
        return metrics

    def finish(self) -> Iterator[TrainEvent]:
        """Measure every stage on all held-out cases and write the model."""
        scores: dict[str, dict[str, float]] = {}
        last = ""
        for stage in self.specs:
            if not self.held:
                break
            metrics = yield from self._score(self.nets, stage, self.held)
            scores[stage] = {k.removeprefix("dice/"): round(v, 4) for k, v in metrics.items() if k.startswith("dice/")}
            last = stage
        if last:
            scores["labels"] = scores[last]
        card = dataclasses.replace(
            self.card,
            nets=self.specs,
            scores=scores,
            scored_on=f"{len(self.held)} held-out cases, which also chose the best epoch" if self.held else "",
        )
        if self.fabric.is_global_zero:
            save_model(card, self.nets, self.folder, half=self.recipe.half)
        yield Saved(self.folder / f"{card.name}.toml", True)


_WORDS = (
    "out",
    "title",
    "licence",
    "restriction",
    "citation",
    "trained_on",
    "limits",
    "half",
    "prepared",
    "processes",
    "tensorboard",
)
"""Fields of a recipe that change nothing in the weights."""

_SHARED = (
    "modality",
    "body_part",
    "channels",
    "intensity",
    "settings",
    "licence",
    "restriction",
    "citation",
    "trained_on",
    "limits",
)


@dataclass(frozen=True)
class _Memory:
    """What a stage is held to: a model of before that is asked, and weights of before."""

    teacher: Teacher | None = None
    anchors: Mapping[str, Tensor] = field(default_factory=dict)


def _scheduler(optimiser: torch.optim.Optimizer, stage: StageRecipe) -> Any:
    if stage.schedule == "plateau":
        return torch.optim.lr_scheduler.ReduceLROnPlateau(optimiser, factor=0.2, patience=4)
    return torch.optim.lr_scheduler.LambdaLR(optimiser, partial(rate_of, stage))


def _save_checkpoint(
    path: Path, net: nn.Module, best: Mapping[str, Tensor], optimiser: Any, scheduler: Any, state: _State
) -> None:
    content = {
        "net": net.state_dict(),
        "best": dict(best),
        "optimiser": optimiser.state_dict(),
        "scheduler": scheduler.state_dict(),
        "state": dataclasses.asdict(state),
    }
    save_checkpoint(path, content)


_PARTS = ("net", "best", "optimiser", "scheduler", "state")
