"""One training loop for every stage of every pipeline: it yields what happens, and resumes after a kill.

All randomness of an epoch comes from (seed, stage, epoch), so that a run that was killed and started again takes
exactly the same steps as one that was not.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from napari_fmseg.core.errors import InvalidRecipe
from napari_fmseg.core.events import LEARNED_FROM, STARTING_WEIGHTS, Pictures, Progress, Saved, TrainEvent, Warned
from napari_fmseg.core.processes import is_rank_zero
from napari_fmseg.core.volume import LabelMap
from napari_fmseg.datasets.case import Case, read_case
from napari_fmseg.datasets.projects.image_hash import image_hash
from napari_fmseg.datasets.projects.training_plan import note_learned
from napari_fmseg.datasets.run_folder import claim_run_folder, fingerprint
from napari_fmseg.io.channels import read_channels
from napari_fmseg.models.card import ModelCard, NetSpec
from napari_fmseg.models.measures import TrainingData, measure_volume, summarise
from napari_fmseg.models.settings import PIPELINES
from napari_fmseg.models.weights import Model, load_model, save_model
from napari_fmseg.nets import build, load
from napari_fmseg.nets.traits import init_weights
from napari_fmseg.training.checkpoint import restoring
from napari_fmseg.training.class_growth import extend_classes
from napari_fmseg.training.data.case_cache import prepare
from napari_fmseg.training.data.samples import Sample, ValidationCase, check_channels, load_sample
from napari_fmseg.training.data.sampling import CaseSampler
from napari_fmseg.training.data.sources import Source, sources_of
from napari_fmseg.training.data.unlabelled import choose_unlabelled, read_unlabelled
from napari_fmseg.training.distributed import make_fabric
from napari_fmseg.training.forgetting import Teacher
from napari_fmseg.training.recipe import Recipe, StageRecipe
from napari_fmseg.training.recipe_file import recipe_tables
from napari_fmseg.training.runner import run_events
from napari_fmseg.training.stage_recipe import member_of
from napari_fmseg.training.stage_trainer import Forgetting, StageTrainer, load_stage
from napari_fmseg.training.tasks import TASKS
from napari_fmseg.training.tasks.base import Task
from napari_fmseg.training.validation import validate_model, write_plane

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
    yield from run_events(_Run(recipe), recipe.tensorboard)


class _Run:
    def __init__(self, recipe: Recipe) -> None:
        self.recipe = recipe
        self.fabric = make_fabric(recipe.device, recipe.precision, recipe.devices)
        self.folder = Path(recipe.out)
        self.nets: dict[str, nn.Module] = {}
        self.specs: dict[str, NetSpec] = {}
        self.samples: list[Sample] = []
        self.unlabelled: list[Sample] = []
        self.held: list[ValidationCase] = []
        self.found: LabelMap | None = None  # in the first held-out case, at the last validation
        self.card: ModelCard
        self.parent: Model | None = None
        self.old: tuple[str, ...] = ()  # classes that the model to start from knew
        self.anchors: dict[str, dict[str, Tensor]] = {}
        self.drawing: CaseSampler
        self.held_groups: list[list[ValidationCase]] = []
        self.unfinished: StageTrainer | None = None

    def prepare(self) -> Iterator[TrainEvent]:
        """Read the cases, and the model to start from."""
        recipe = self.recipe
        if recipe.pipeline not in TASKS:
            names = ", ".join(TASKS)
            raise InvalidRecipe(f"Models of the pipeline {recipe.pipeline!r} cannot be trained. Choose of: {names}.")
        self.fabric.launch()
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
        caches = TASKS[recipe.pipeline].caches_cases
        unlabelled = choose_unlabelled(recipe, sources)
        learned = [(case, source) for source in sources for case in source.training]
        samples = yield from self._prepare_cases(learned) if caches else self._read(learned)
        for sample, (case, source) in zip(samples, learned, strict=True):
            check_channels(case, len(sample.image), recipe.channels)
            self.samples.append(dataclasses.replace(sample, missing=source.missing(case, recipe.labels)))
            yield from _warnings(case, sample.warnings)
        own = [
            set(each.missing) for each, (_, source) in zip(self.samples, learned, strict=True) if source is sources[0]
        ]
        self.drawing = CaseSampler(recipe, self.samples, [source is not sources[0] for _, source in learned])
        total, done = sum(len(s.validation) for s in sources), 0
        held: list[tuple[str, str]] = []  # names, which two sources may share, and what is in the images
        for source in sources:
            group = []
            for case in source.validation:
                yield Progress("reading", done, total)
                volume, truth = read_case(case, source.names, recipe.labels, recipe.ignore)
                check_channels(case, volume.n_channels, recipe.channels)
                held.append((case.name, image_hash(volume)))
                yield from _warnings(case, (*volume.warnings, *truth.warnings))
                group.append(ValidationCase(volume, truth, source.missing(case, recipe.labels), source.watched))
                done += 1
            self.held_groups.append(group)
        self.held = [case for group in self.held_groups for case in group]
        trained_on = {sample.image_hash for sample in self.samples}
        both = [name for name, image in held if image in trained_on]
        if both:
            yield Warned(
                f"{len(both)} validation case(s) are trained on, too, such as {both[0]}: the Dice measured on them is "
                "too high."
            )
        labelled = trained_on | {image for _, image in held}
        alike = yield from read_unlabelled(unlabelled, recipe, labelled, self.fabric.device)
        missing = tuple(sorted(set.intersection(*own))) if own else ()  # of all labelled cases that they are like
        self.unlabelled = [dataclasses.replace(sample, missing=missing) for sample in alike]
        if alike:
            yield Warned(
                f"Learning from {len(self.samples)} labelled and {len(alike)} unlabelled volumes.", LEARNED_FROM
            )
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
            training_data=_training_data(self.samples, [case for case, _ in learned]),
            **{f: getattr(recipe, f) for f in _SHARED},
        )

    def _read(self, learned: Sequence[tuple[Case, Source]]) -> Generator[TrainEvent, None, list[Sample]]:
        """Read the training cases into memory."""
        recipe, found = self.recipe, []
        crop_above = recipe.settings.get("crop_above") if TASKS[recipe.pipeline].crops_cases else None
        for done, (case, source) in enumerate(learned):
            yield Progress("reading", done, len(learned))
            device = self.fabric.device
            found.append(
                load_sample(case, source.names, recipe.labels, recipe.intensity, crop_above, device, recipe.ignore)
            )
        return found

    def _prepare_cases(self, learned: Sequence[tuple[Case, Source]]) -> Generator[TrainEvent, None, list[Sample]]:
        """Downsample and cache the training cases: the process of rank 0 does, the others wait for it."""
        folder = self.recipe.prepared or self.folder / "prepared"
        cases = [(case, source.names) for case, source in learned]
        if not self.fabric.is_global_zero:
            self.fabric.barrier()
        found = yield from prepare(cases, self.recipe, folder, self.fabric.device)
        if self.fabric.is_global_zero:
            self.fabric.barrier()
        return list(found)

    def _start(self) -> Iterator[TrainEvent]:
        """Copy the networks of the model to start from, extended to the recipe's classes."""
        recipe, start = self.recipe, self.parent
        assert start is not None
        if start.card.pipeline != recipe.pipeline or len(start.card.channels) != len(recipe.channels):
            raise InvalidRecipe(
                f"{start.card.name} is a {start.card.pipeline} model of {len(start.card.channels)} channel(s), and the "
                f"recipe is for {recipe.pipeline} and {len(recipe.channels)}. Start from another model, or anew."
            )
        own = {stage: net for stage, net in start.nets.items() if member_of(stage) == stage}
        if len(own) < len(start.nets):
            yield Warned(
                f"{start.card.name} is an ensemble. The first network of each stage is trained further; the "
                f"{len(start.nets) - len(own)} others are left out.",
                STARTING_WEIGHTS,
            )
        for stage, net in own.items():
            with torch.random.fork_rng(devices=()):
                torch.manual_seed(recipe.seed)  # of what is drawn anew
                grown, spec, how = extend_classes(start.card.nets[stage], net, start.card.labels, recipe.labels)
            self.nets[stage], self.specs[stage] = grown.eval().requires_grad_(False), spec
            state = grown.state_dict()
            self.anchors[stage] = {key: state[key] for key in how.taken}
            if not self.old:  # nothing is forgotten of a model that gives first weights only
                how = dataclasses.replace(how, dropped=())
            if how.grown or how.fresh or how.dropped:
                yield Warned(how.summary(stage, start.card.name), STARTING_WEIGHTS)

    def claim(self) -> AbstractContextManager[None]:
        """Hold the run's folder."""
        tables = recipe_tables(self.recipe, without=_WORDS)
        return claim_run_folder(self.folder, [fingerprint(table) for table in tables], {"recipe": tables[0]})

    def fit(self) -> Iterator[TrainEvent]:
        """Train one stage after the other."""
        for number, stage in enumerate(self.recipe.stages):
            yield from self._stage(number, stage)

    def _stage(self, number: int, stage: StageRecipe) -> Iterator[TrainEvent]:
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
        saved = load_stage(path)
        if saved is None or not saved["state"].get("done"):
            yield Progress(stage.stage, 0, stage.steps)
            unlabelled = self.unlabelled if stage.ema else []
            everyone = [*self.samples, *unlabelled]
            task: Task = load(TASKS[self.recipe.pipeline].make)(stage, self.recipe, everyone, self.nets)
            yield from (Warned(remark) for remark in task.remarks)
            init_on_sample: Any = getattr(net, "init_on_sample", None)
            if init_on_sample is not None and not self._source(stage):
                inputs, _ = task.sample(0, np.random.default_rng(self.recipe.seed), torch.Generator())
                init_on_sample(*(x.cpu()[None] for x in inputs))
            self.unfinished = trainer = StageTrainer(
                self.recipe,
                self.fabric,
                number,
                stage,
                net,
                spec,
                task,
                self.samples,
                self.drawing,
                unlabelled,
                self._forgetting(stage),
                self._validate,
            )
            yield from trainer.fit(saved, path, measure_start=self._starts_well(stage, net))
            self.unfinished = None
            saved = load_stage(path)
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
        fit_levels = getattr(net, "fit_levels", None)
        other = other if fit_levels is None else fit_levels(other)
        fitting = {k: v for k, v in other.items() if k in own and own[k].shape == v.shape}
        net.load_state_dict({**own, **fitting})
        return net, spec, tuple(k for k in own if k not in fitting)

    def _starts_well(self, stage: StageRecipe, net: nn.Module) -> bool:
        """Return whether the network gives useful predictions before the first step."""
        return self._source(stage) == stage.stage or getattr(net, "useful_untrained", False)

    def _source(self, stage: StageRecipe) -> str:
        """Name the network whose weights a stage starts from, or "" for new ones."""
        source = stage.init_from or (stage.stage if self.recipe.start_from else "")
        return source if source in self.nets else ""

    def _forgetting(self, stage: StageRecipe) -> Forgetting:
        """Return what holds the stage to the model that the run starts from."""
        recipe, name = self.recipe, stage.stage
        if self.parent is None or self._source(stage) != name or name not in self.parent.nets or not self.old:
            return Forgetting()
        teacher = (
            Teacher(self.parent.nets[name], self.parent.card.labels, recipe.labels)
            if recipe.distillation_weight
            else None
        )
        return Forgetting(teacher, self.anchors[name] if recipe.l2sp_weight else {})

    def keep(self, *, between_steps: bool) -> Path | None:
        """Write the best weights so far as a model; return its card, or None if there is nothing worth keeping."""
        if not hasattr(self, "card") or not self.fabric.is_global_zero:
            return None
        nets, specs = dict(self.nets), dict(self.specs)
        scores: dict[str, dict[str, float]] = {}
        now = self.unfinished
        if now is not None:
            name = now.stage.stage
            if now.state.best > -math.inf:
                nets[name] = build(now.spec.network, **now.spec.kwargs)
                nets[name].load_state_dict(now.best)
                best = now.state.history[now.state.best_epoch - 1] if now.state.best_epoch else {}
                scores = {member_of(name): _dice_scores(best)}
            elif name not in nets:
                specs.pop(name, None)
        stages = PIPELINES[self.recipe.pipeline].stages
        kept = {name: spec for name, spec in specs.items() if name in nets}
        if next((name for name in stages if name in self.specs), "") not in kept:
            return None
        card = dataclasses.replace(
            self.card,
            nets=kept,
            scores={stage: dice for stage, dice in scores.items() if dice},
            limits=f"{self.card.limits} Its training was stopped before the end.".strip(),
        )
        save_model(card, nets, self.folder, half=self.recipe.half)
        return self.folder / f"{card.name}.toml"

    def _validate(
        self, stage: str, net: nn.Module, step: int, every: bool
    ) -> Generator[TrainEvent, None, dict[str, float]]:
        """Yield Dice on the held-out cases by the pipeline that users run, as far as the stage that is being
        trained, without mirrored windows: they would take most of the time.
        """
        if not self.held:
            return {}
        few = self.recipe.validate_cases
        cases = self.held if every or not few else [case for group in self.held_groups for case in group[:few]]
        net.eval()
        metrics = yield from self._score({**self.nets, stage: net}, stage, cases, mirror=False)
        if self.fabric.is_global_zero and self.found is not None:
            case = cases[0]
            yield Pictures(stage, step, write_plane(case.volume, case.truth, self.found, self.folder / "pictures.npz"))
        return metrics

    def _score(
        self, nets: Mapping[str, nn.Module], until: str, cases: Sequence[ValidationCase], *, mirror: bool = True
    ) -> Generator[TrainEvent, None, dict[str, float]]:
        specs = {name: self.specs[name] for name in self.specs if name in nets}
        model = Model(dataclasses.replace(self.card, nets=specs), nets, self.fabric.device)
        metrics, self.found = yield from validate_model(
            model, member_of(until), cases, self.recipe.labels, self.old, mirror=mirror
        )
        return metrics

    def finish(self) -> Iterator[TrainEvent]:
        """Measure every stage on all held-out cases and write the model."""
        scores: dict[str, dict[str, float]] = {}
        last = ""
        for stage in dict.fromkeys(map(member_of, self.specs)):
            if not self.held:
                break
            metrics = yield from self._score(self.nets, stage, self.held)
            scores[stage] = _dice_scores(metrics)
            last = stage
        if last:
            scores["labels"] = scores[last]
        card = dataclasses.replace(
            self.card,
            nets=self.specs,
            scores=scores,
            scored_on=f"{len(self.held)} held-out cases, {self._chosen()}" if self.held else "",
        )
        if self.fabric.is_global_zero:
            save_model(card, self.nets, self.folder, half=self.recipe.half)
        yield Saved(self.folder / f"{card.name}.toml", True)

    def _chosen(self) -> str:
        """Return what the held-out cases chose, in words."""
        last = all(stage.keep == "last" for stage in self.recipe.stages)
        return "which chose nothing" if last else "which also chose the best epoch"


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


def _training_data(samples: Sequence[Sample], cases: Sequence[Case]) -> TrainingData | None:
    """Return the ranges over the training volumes; those in caches of earlier versions are measured now."""
    return summarise(
        sample.source or measure_volume(read_channels(case.images)) for sample, case in zip(samples, cases, strict=True)
    )


def _warnings(case: Case, texts: Iterable[str]) -> Iterator[Warned]:
    return (Warned(f"{case.name}: {text}") for text in texts)


def _dice_scores(metrics: Mapping[str, float]) -> dict[str, float]:
    """Return the Dice of each class, rounded for a card."""
    return {k.removeprefix("dice/"): round(v, 4) for k, v in metrics.items() if k.startswith("dice/")}
