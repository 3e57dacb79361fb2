"""What to train, from what, and for how long: a recipe that follows from the cases and the time that there is."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tomli_w

from napari_fmseg.errors import FmsegError
from napari_fmseg.io import read_labels, read_volume
from napari_fmseg.io.writing import written_beside
from napari_fmseg.models import Intensity, ModelCard, find_card
from napari_fmseg.pipelines.settings import STAGES
from napari_fmseg.training.projects.journal import OURS
from napari_fmseg.training.projects.learning import Plan, Run, recipe_for, start_run, training_plan
from napari_fmseg.training.projects.state import Project
from napari_fmseg.training.projects.versions import present_version, seen_held_out
from napari_fmseg.training.recipe import Augment, Recipe, StageRecipe, as_table

__all__ = ["PRESENT", "SCRATCH", "LessonOptions", "prepare_run", "proposed_stages", "recipe_file", "unfinished_run"]

PRESENT, SCRATCH = "project", ""
"""To start from the project's model in use, or from nothing."""

KEPT = "kept.json"
"""In the folder of a run whose model became a version."""

_STEP = 8  # voxels: grids are multiples of it
_LEAST, _MOST = 32, 160  # voxels along an axis of a grid
_VOXELS_PER_MINUTE = 25_000  # of a grid: more detail needs more steps than a short lesson has
_FEWEST_VOXELS, _MOST_VOXELS = 60_000, 2_000_000
_US_PER_VOXEL = {"snet": 8.0, "attnnet": 8.0, "edgenet": 4.0}  # a step, two processor threads (measured)
_OTHER_US = 20.0
_SLAB_VOXELS = 300_000  # that the edge stage looks at in a step
_GPU_GAIN = 25.0
_OVERHEAD_S = 15.0  # starting, reading, and writing the model
_FOR_STEPS = 0.75  # the rest validates
_SHARES = {"consensus": 0.35, "attention": 0.5, "edge": 0.15, "net": 1.0}
_EPOCHS = 8
_SAMPLED = 4  # cases that are looked at


@dataclass(frozen=True)
class LessonOptions:
    """What may be set before a training, beside what it starts from; all of it follows from the data if left alone.

    Parameters
    ----------
    minutes
        About how long it may take. More minutes see more detail and learn it better.
    rate
        Factor on the learning rate: below 1 learns more carefully, above 1 faster and less surely.
    batch
        Volumes per step; more need more memory.
    seed
        Random seed: the same one gives the same model on a processor.
    device
        Where it runs: auto takes a graphics card where there is one.
    precision
        auto takes 16 bit on a graphics card; float32 is the most exact.
    """

    minutes: float = 5.0
    rate: float = 1.0
    batch: int = 2
    seed: int = 0
    device: str = "auto"
    precision: str = "auto"

    def __post_init__(self) -> None:
        if not 0 < self.minutes <= 7 * 24 * 60 or self.rate <= 0 or self.batch < 1:
            raise FmsegError(
                f"A training takes more than 0 minutes and at most a week, its rate is above 0 and a step has at least "
                f"one volume; not {self.minutes:g} minutes, {self.rate:g} and {self.batch}."
            )


@dataclass(frozen=True)
class _Seen:
    """What the cases look like."""

    extent_mm: tuple[float, ...]
    spacing_mm: tuple[float, ...]
    window_mm: tuple[float, ...]
    low: float = 0.0
    high: float = 1.0


def prepare_run(
    project: Project,
    start: str,
    options: LessonOptions = LessonOptions(),
    augment: Augment | None = None,
    *,
    gpu: bool = False,
) -> Run:
    """Open a run and write its recipe, ready for ``fmseg train``.

    Parameters
    ----------
    project
        With labelled cases, all of them examined.
    start
        `PRESENT`, `SCRATCH`, the name of a model, or the path of a card.
    options, augment
        See there.
    gpu
        Whether there is a graphics card, which does more in the same time.

    Returns
    -------
    Run
        Its folder holds ``recipe.toml``; see `recipe_file`.

    Raises
    ------
    FmsegError
        If there is nothing to learn from, or the model to start from does not fit the project.
    """
    plan = training_plan(project)
    card = _card(project, start)
    stages, fields = proposed_stages(project, plan, card, options, gpu=gpu)
    fields |= {
        "start_from": _name(card),
        "augment": augment or Augment(),
        "seed": options.seed,
        "device": options.device,
        "precision": options.precision,
        "validate_cases": 3,
        "title": str(project.facts.table.get("name") or project.folder.name),
        "trained_on": f"{len(plan.training)} case(s) of a project; {len(plan.validation)} held out.",
    }
    run = start_run(project, plan)
    recipe = recipe_for(run, stages, name=_plain(project.folder.name), **fields)
    _write(recipe, recipe_file(run))
    return run


def recipe_file(run: Run) -> Path:
    """Where the recipe of a run lies."""
    return run.folder / "recipe.toml"


def unfinished_run(project: Project) -> int:
    """Give the number of the last run if it did not come to a version, so that it can be resumed; else 0."""
    runs = [p for p in (project.folder / OURS / "runs").glob("[0-9]*") if p.name.isdigit()]
    last = max(runs, key=lambda p: int(p.name), default=None)
    if last is None or (last / KEPT).exists() or not (last / "recipe.toml").exists():
        return 0
    return int(last.name)


def _card(project: Project, start: str) -> ModelCard | None:
    if start == PRESENT:
        present = present_version(project)
        return present.card if present is not None else None
    if start == SCRATCH:
        return None
    card = find_card(start)
    if len(card.channels) != len(project.facts.channels):
        raise FmsegError(
            f"{card.name} takes {len(card.channels)} channel(s) and the project has {len(project.facts.channels)}. "
            "Start from another model, or from scratch."
        )
    leaked = seen_held_out(project, card)
    if leaked:
        raise FmsegError(
            f"{card.name} has learned from {leaked[0]}, which is held out in this project to measure honestly. Start "
            "from another model, or from scratch."
        )
    return card


def _name(card: ModelCard | None) -> str:
    if card is None:
        return ""
    own = card.folder / f"{card.name}.toml"
    return str(own) if own.exists() else card.name


def proposed_stages(
    project: Project, plan: Plan, card: ModelCard | None, options: LessonOptions, *, gpu: bool = False
) -> tuple[tuple[StageRecipe, ...], dict[str, Any]]:
    """Choose networks, grids and steps.

    Returns
    -------
    tuple
        The stages, and the fields of the recipe that belong to them.
    """
    seen = _look(plan, project.facts.channels)
    if card is not None:
        pipeline, settings, intensity = card.pipeline, dict(card.settings), card.intensity
        nets = {name: card.nets[name].network for name in STAGES[pipeline] if name in card.nets}
        rate = 5e-4 * options.rate
    else:
        pipeline, intensity = "phased", _intensity(project.facts.channels, seen)
        gain = _GPU_GAIN if gpu else 1.0
        voxels = int(np.clip(gain * _VOXELS_PER_MINUTE * options.minutes, _FEWEST_VOXELS, _MOST_VOXELS))
        settings = {
            "consensus_grid": _grid(seen.extent_mm, seen.spacing_mm, voxels),
            "attention_grid": _grid(seen.window_mm, seen.spacing_mm, voxels),
            "window": "largest" if len(plan.labels) == 1 else "all",
            "window_margin": (3, 4),
        }
        nets = dict(zip(STAGES["phased"], ("snet", "attnnet", "edgenet"), strict=True))
        rate = 2e-3 * options.rate
    seconds = max(4.0, _FOR_STEPS * (60 * options.minutes - _OVERHEAD_S))
    stages = []
    for stage, network in nets.items():
        cost = _seconds_per_step(stage, network, settings, options.batch) / (_GPU_GAIN if gpu else 1.0)
        steps = max(8, int(seconds * _SHARES[stage] / cost))
        per_epoch = max(2, -(-steps // _EPOCHS))
        stages.append(
            StageRecipe(
                stage,
                network,
                steps=steps,
                steps_per_epoch=per_epoch,
                batch=1 if stage == "edge" else options.batch,
                lr=rate,
                init_from="consensus" if stage == "attention" and card is None else "",
            )
        )
    return tuple(stages), {"pipeline": pipeline, "settings": settings, "intensity": intensity}


def _seconds_per_step(stage: str, network: str, settings: Mapping[str, Any], batch: int) -> float:
    grid = {"consensus": "consensus_grid", "attention": "attention_grid", "net": "window"}.get(stage)
    voxels = float(np.prod(settings.get(grid, (128, 128, 128)))) * batch if grid else float(_SLAB_VOXELS)
    return voxels * _US_PER_VOXEL.get(network, _OTHER_US) * 1e-6


def _look(plan: Plan, channels: Sequence[str]) -> _Seen:
    """Measure some of the training cases along the patient's axes: field of view, spacing, and where the labels are."""
    extents, spacings, windows, inside = [], [], [], []
    for case in plan.training[:_SAMPLED]:
        volume = read_volume(case.images[0])
        grid, order, _ = volume.geometry.canonical()
        spacing = np.array(grid.spacing)
        extents.append(spacing * grid.shape)
        spacings.append(spacing)
        if case.labels is None:
            continue
        data = read_labels(case.labels).data
        found = np.isin(data, list(plan.names))
        if found.any():
            own = np.array(volume.geometry.spacing)
            sides = [np.ptp(np.flatnonzero(found.any(tuple(b for b in range(3) if b != a)))) + 1 for a in range(3)]
            windows.append((np.array(sides) * own)[list(order)])
            if volume.data.shape == data.shape:
                inside.append(np.percentile(np.asarray(volume.data[found], np.float32), (1, 99)))
    extent, spacing = np.median(extents, 0), np.median(spacings, 0)
    window = np.minimum(extent, 1.3 * np.max(windows, 0)) if windows else extent
    low, high = (float(v) for v in np.mean(inside, 0)) if inside else (0.0, 1.0)
    return _Seen(tuple(extent), tuple(spacing), tuple(window), low, high)


def _intensity(channels: Sequence[str], seen: _Seen) -> Intensity:
    """Give CT the window in which the structures lie, anything else percentiles."""
    if tuple(channels) == ("CT",) and seen.high > seen.low:
        return Intensity("window", round(max(-1024.0, seen.low - 150)), round(seen.high + 150))
    return Intensity()


def _grid(extent_mm: Sequence[float], spacing_mm: Sequence[float], voxels: int) -> tuple[int, int, int]:
    """Give a grid over `extent_mm`, as fine as the scan where `voxels` allow it, else coarser on all axes alike."""
    extent, sides = np.array(extent_mm), np.array(extent_mm) / np.array(spacing_mm)
    if sides.prod() > voxels:
        side_mm = (extent.prod() / voxels) ** (1 / 3)
        sides = np.minimum(sides, extent / side_mm)
        sides *= (voxels / sides.prod()) ** (1 / 3)
    z, y, x = (int(np.clip(_STEP * round(float(n) / _STEP), _LEAST, _MOST)) for n in sides)
    return (z, y, x)


def _plain(name: str) -> str:
    """Make a file's name of a folder's."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", name).strip("-.") or "project"


def _write(recipe: Recipe, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    text = tomli_w.dumps(_filled(as_table(recipe)))
    with written_beside(path) as file:
        file.write(text.encode())


def _filled(table: Mapping[str, Any]) -> dict[str, Any]:
    """Leave out what is empty: TOML has no word for None."""
    filled = {}
    for name, value in table.items():
        if isinstance(value, Mapping):
            value = _filled(value)
        elif isinstance(value, list):
            value = [_filled(v) if isinstance(v, Mapping) else v for v in value]
        if value is not None and value != {} and value != []:
            filled[name] = value
    return filled
