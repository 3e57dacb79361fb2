"""One training loop for every stage of every pipeline: it yields what happens, and resumes after a kill.

All randomness of an epoch comes from (seed, stage, epoch), so that a run that was killed and started again takes
exactly the same steps as one that was not.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import os
import time
from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning_fabric import Fabric
from torch import Tensor, nn

from napari_fmseg.errors import InvalidRecipe
from napari_fmseg.events import EpochDone, Progress, Saved, StageResult, StepDone, TrainEvent, Warned
from napari_fmseg.metrics import dice_per_label
from napari_fmseg.models import Model, ModelCard, NetSpec, load_model, save_model
from napari_fmseg.nets import build
from napari_fmseg.nets.engine import keep_pages, pick_device, training_precision
from napari_fmseg.nets.phased import EdgeNet, calm_weights, init_weights
from napari_fmseg.phantom.dataset import write_phantom_dataset
from napari_fmseg.pipelines import SegmentOptions, segment
from napari_fmseg.pipelines.phased import PhasedSettings
from napari_fmseg.training.data import Sample, load_sample, read_case
from napari_fmseg.training.phased import Task, make_task
from napari_fmseg.training.recipe import Case, Recipe, StageRecipe, as_table, cases_of
from napari_fmseg.training.schedules import rate_of
from napari_fmseg.volume import LabelMap, Volume

__all__ = ["train"]


def train(recipe: Recipe) -> Iterator[TrainEvent]:
    """Train a model, stage by stage, from scratch or from `recipe.start_from`.

    Parameters
    ----------
    recipe
        See `Recipe`.

    Yields
    ------
    Progress, Warned, StepDone, EpochDone or Saved
        `Saved` for every checkpoint, and at last for the model's card in `recipe.out`.

    Raises
    ------
    InvalidRecipe
        If the recipe cannot be carried out, or `recipe.out` holds the run of another recipe.
    """
    run = _Run(recipe)
    yield from run.prepare()
    for number, stage in enumerate(recipe.stages):
        yield from run.stage(number, stage)
    yield from run.finish()


@dataclass
class _State:
    """What a stage's checkpoint holds beside weights and optimiser."""

    epoch: int = 0
    best: float = -math.inf
    best_epoch: int = 0
    done: bool = False
    history: list[dict[str, float]] = field(default_factory=list)


class _Run:
    def __init__(self, recipe: Recipe) -> None:
        self.recipe = recipe
        device = pick_device(recipe.device)
        if device.type == "cpu":
            keep_pages()
        self.precision = training_precision(device, recipe.precision)
        accelerator = {"cpu": "cpu", "cuda": "cuda", "mps": "mps"}[device.type]
        fabric_precision = {"float32": "32-true", "bfloat16": "bf16-mixed", "float16": "16-mixed"}[self.precision]
        self.fabric = Fabric(accelerator=accelerator, devices=recipe.devices, precision=fabric_precision)  # type: ignore[arg-type]
        self.fabric.launch()
        self.nets: dict[str, nn.Module] = {}
        self.specs: dict[str, NetSpec] = {}
        self.samples: list[Sample] = []
        self.held: list[tuple[Volume, LabelMap]] = []
        self.card: ModelCard

    def prepare(self) -> Iterator[TrainEvent]:
        """Read the cases, and the model to start from."""
        recipe = self.recipe
        self._claim()
        names, training, validation = _cases(recipe)
        unknown = [label for label in recipe.labels if label not in names.values()]
        if unknown:
            raise InvalidRecipe(f"The dataset has no label {unknown[0]!r}. It has: {', '.join(names.values())}.")
        settings = PhasedSettings.of(recipe.settings)
        total = len(training) + len(validation)
        for i, case in enumerate(training):
            yield Progress("reading", i, total)
            self.samples.append(load_sample(case, names, recipe.labels, recipe.intensity, settings, self.fabric.device))
        for i, case in enumerate(validation):
            yield Progress("reading", len(training) + i, total)
            self.held.append(read_case(case, names, recipe.labels))
        for label, name in enumerate(recipe.labels, 1):
            if not any((s.labels == label).any() for s in self.samples):
                yield Warned(f"No training case has {name!r}; it cannot be learned.")
        if recipe.start_from:
            start = load_model(recipe.start_from, device=recipe.device)
            self.nets.update(start.nets)
            self.specs.update(start.card.nets)
        spacing = np.median([v.geometry.canonical()[0].spacing for v, _ in self.held], 0) if self.held else ()
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

    def _claim(self) -> None:
        """Make the run's folder ours, or continue what lies there if it is the same recipe."""
        table = {k: v for k, v in as_table(self.recipe).items() if k not in _WORDS}
        mine = hashlib.sha256(json.dumps(table, sort_keys=True).encode()).hexdigest()
        self.folder = Path(self.recipe.out)
        self.folder.mkdir(parents=True, exist_ok=True)
        mark = self.folder / "run.json"
        if mark.exists():
            if json.loads(mark.read_text()).get("recipe_sha256") != mine:
                raise InvalidRecipe(
                    f"{self.folder} holds the run of another recipe. Choose another `out`, or remove the folder."
                )
        elif self.fabric.is_global_zero:
            _replace(mark, json.dumps({"recipe_sha256": mine, "recipe": table}, indent=1).encode())

    def stage(self, number: int, stage: StageRecipe) -> Iterator[TrainEvent]:
        """Train one network, or take it from its finished checkpoint."""
        path = self.folder / f"{number}-{stage.stage}.pt"
        net, spec = self._network(number, stage)
        self.specs[stage.stage] = spec
        saved = torch.load(path, weights_only=True, map_location="cpu") if path.exists() else None
        if saved is None or not saved["state"]["done"]:
            yield Progress(stage.stage, 0, stage.steps)
            task = make_task(stage, self.recipe, self.samples, self.nets)
            if not self._source(stage) and not isinstance(net, EdgeNet):
                inputs, _ = task.sample(0, np.random.default_rng(self.recipe.seed), torch.Generator())
                calm_weights(net, *(x.cpu()[None] for x in inputs))
            yield from self._fit(number, stage, net, task, saved, path)
            saved = torch.load(path, weights_only=True, map_location="cpu")
        net.load_state_dict(saved["best"])
        self.nets[stage.stage] = net.to(self.fabric.device).eval().requires_grad_(False)

    def _network(self, number: int, stage: StageRecipe) -> tuple[nn.Module, NetSpec]:
        recipe = self.recipe
        kwargs = {"in_channels": len(recipe.channels), "n_classes": len(recipe.labels) + 1, **stage.kwargs}
        spec = NetSpec(stage.network, kwargs)
        net = build(stage.network, **kwargs)
        init_weights(net, torch.Generator().manual_seed(recipe.seed * 1000 + number))
        if isinstance(net, EdgeNet):
            net.pass_through()
        source = self._source(stage)
        if source:
            own, other = net.state_dict(), self.nets[source].state_dict()
            fitting = {k: v for k, v in other.items() if k in own and own[k].shape == v.shape}
            net.load_state_dict({**own, **fitting})
        return net, spec

    def _starts_well(self, stage: StageRecipe, net: nn.Module) -> bool:
        """Whether the network gives something sensible before the first step."""
        same = self._source(stage) == stage.stage
        return same or (isinstance(net, EdgeNet) and net.variant == "v1")

    def _source(self, stage: StageRecipe) -> str:
        """Name the network whose weights a stage starts from, or "" for new ones."""
        source = stage.init_from or (stage.stage if self.recipe.start_from else "")
        return source if source in self.nets else ""

    def _fit(
        self, number: int, stage: StageRecipe, net: nn.Module, task: Task, saved: Mapping[str, Any] | None, path: Path
    ) -> Iterator[TrainEvent]:
        fabric = self.fabric
        optimiser = torch.optim.AdamW(net.parameters(), stage.lr, weight_decay=stage.weight_decay)
        if fabric.device.type == "cpu" and stage.network != "edgenet":
            net = net.to(memory_format=torch.channels_last_3d)  # type: ignore[call-overload]
        model, optimiser = fabric.setup(net, optimiser)
        scheduler = _scheduler(optimiser, stage)
        state = _State()
        best = {k: v.clone() for k, v in net.state_dict().items()}
        if saved is not None:
            net.load_state_dict(saved["net"])
            optimiser.load_state_dict(saved["optimiser"])
            scheduler.load_state_dict(saved["scheduler"])
            state, best = _State(**saved["state"]), saved["best"]
        epochs = max(1, math.ceil(stage.steps / stage.steps_per_epoch))
        if saved is None and self._starts_well(stage, net):
            metrics = yield from self._validate(stage.stage, net, every=False)
            state.best = metrics.get("dice", -math.inf)  # training must beat the start, or the start is kept
        while state.epoch < epochs and not state.done:
            start = time.perf_counter()
            losses: list[float] = []
            model.train()
            for event in self._epoch(number, stage, model, optimiser, scheduler, task, state.epoch, epochs):
                losses.append(event.loss)
                yield event
            state.epoch += 1
            mean = float(np.mean(losses))
            if stage.schedule == "plateau":
                scheduler.step(mean)
            metrics = yield from self._validate(stage.stage, net, every=state.epoch == epochs)
            score = metrics.get("dice", -mean)
            better = score > state.best
            if better:
                state.best, state.best_epoch = score, state.epoch
                best = {k: v.detach().cpu().clone() for k, v in net.state_dict().items()}
            state.history.append({"epoch": state.epoch, "loss": mean, **metrics})
            stalled = stage.patience and state.epoch - state.best_epoch >= stage.patience
            state.done = state.epoch == epochs or bool(stalled)
            if fabric.is_global_zero:
                _save_checkpoint(path, net, best, optimiser, scheduler, state)
            fabric.barrier()
            seconds = time.perf_counter() - start
            yield EpochDone(stage.stage, state.epoch, epochs, mean, seconds, metrics)
            yield Saved(path, better)

    def _epoch(
        self,
        number: int,
        stage: StageRecipe,
        model: nn.Module,
        optimiser: torch.optim.Optimizer,
        scheduler: Any,
        task: Task,
        epoch: int,
        epochs: int,
    ) -> Iterator[StepDone]:
        fabric = self.fabric
        seed = [self.recipe.seed, number, epoch, fabric.global_rank]
        rng = np.random.default_rng(seed)
        noise = torch.Generator().manual_seed(int(np.random.SeedSequence(seed).generate_state(1)[0]))
        total = epochs * stage.steps_per_epoch
        order = _order(len(self.samples), stage.steps_per_epoch * stage.batch, rng)
        for step in range(stage.steps_per_epoch):
            picks = order[step * stage.batch : (step + 1) * stage.batch]
            drawn = [task.sample(i, rng, noise) for i in picks]
            batches = _batches(drawn)
            parts = [task.loss(model, inputs, target) * (len(target) / stage.batch) for inputs, target in batches]
            loss = torch.stack(parts).sum()
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

    def _validate(self, stage: str, net: nn.Module, *, every: bool) -> Generator[TrainEvent, None, dict[str, float]]:
        """Dice on the held-out cases by the pipeline that users run, as far as the stage that is being trained."""
        if not self.held:
            return {}
        few = self.recipe.validate_cases
        cases = self.held if every or not few else self.held[:few]
        net.eval()
        metrics = yield from self._score({**self.nets, stage: net}, stage, cases)
        return metrics

    def _score(
        self, nets: Mapping[str, nn.Module], until: str, cases: Sequence[tuple[Volume, LabelMap]]
    ) -> Generator[TrainEvent, None, dict[str, float]]:
        specs = {name: self.specs[name] for name in self.specs if name in nets}
        model = Model(dataclasses.replace(self.card, nets=specs), nets, self.fabric.device)
        options = SegmentOptions(until=until, show_stages=False, precision="float32")
        table = []
        for i, (volume, truth) in enumerate(cases):
            yield Progress("validating", i, len(cases))
            found = _labels_of(volume, model, options)
            table.append(dice_per_label(found.data, truth.data, len(self.recipe.labels) + 1))
        means = np.nanmean(np.array(table), 0)
        named = {f"dice/{name}": float(m) for name, m in zip(self.recipe.labels, means, strict=True)}
        return {"dice": float(np.nanmean(means)), **named}

    def finish(self) -> Iterator[TrainEvent]:
        """Measure every stage on all held-out cases and write the model."""
        scores: dict[str, dict[str, float]] = {}
        last = ""
        for stage in self.specs:
            if not self.held:
                break
            metrics = yield from self._score(self.nets, stage, self.held)
            scores[stage] = {k.removeprefix("dice/"): round(v, 4) for k, v in metrics.items() if k != "dice"}
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


_WORDS = ("out", "title", "licence", "restriction", "citation", "trained_on", "limits", "half")
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


def _cases(recipe: Recipe) -> tuple[dict[int, str], list[Case], list[Case]]:
    if recipe.phantom:
        folder = recipe.out / "phantom"
        if not (folder / "dataset.json").exists():  # written last, so it stands for a whole dataset
            write_phantom_dataset(folder, recipe.phantom[0], recipe.phantom[1], seed=recipe.seed)
        return cases_of(folder)
    if recipe.dataset is not None:
        return cases_of(recipe.dataset, recipe.holdout)
    return dict(enumerate(recipe.labels, 1)), list(recipe.training), list(recipe.validation)


def _labels_of(volume: Volume, model: Model, options: SegmentOptions) -> LabelMap:
    *_, last = segment(volume, model, options)
    assert isinstance(last, StageResult)
    assert isinstance(last.output, LabelMap)
    return last.output


def _batches(drawn: Sequence[tuple[list[Tensor], Tensor]]) -> list[tuple[list[Tensor], Tensor]]:
    """Stack samples of one size; native crops, whose sizes differ, stay single."""
    if len({target.shape for _, target in drawn}) > 1:
        return [([x[None] for x in inputs], target[None]) for inputs, target in drawn]
    inputs = [torch.stack(parts) for parts in zip(*(d[0] for d in drawn), strict=True)]
    return [(inputs, torch.stack([d[1] for d in drawn]))]


def _order(n_cases: int, n_draws: int, rng: np.random.Generator) -> list[int]:
    """Every case once before any comes twice."""
    rounds = -(-n_draws // n_cases)
    return list(np.concatenate([rng.permutation(n_cases) for _ in range(rounds)])[:n_draws])


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
    beside = path.with_suffix(f".{os.getpid()}.part")
    try:
        torch.save(content, beside)
        os.replace(beside, path)
    finally:
        beside.unlink(missing_ok=True)


def _replace(path: Path, content: bytes) -> None:
    beside = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        beside.write_bytes(content)
        os.replace(beside, path)
    finally:
        beside.unlink(missing_ok=True)
