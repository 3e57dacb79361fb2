"""A recipe from the data: grids, networks and steps are measured, and the choice is explained in plain words."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from napari_fmseg.core.allocator import keep_freed_memory
from napari_fmseg.core.errors import InvalidRecipe
from napari_fmseg.datasets.case import Case
from napari_fmseg.datasets.nnunet_raw import cases_of, find_unlabelled
from napari_fmseg.models.card import Intensity, ModelCard
from napari_fmseg.models.registry import GENERAL_START, find_card
from napari_fmseg.models.settings import PIPELINES
from napari_fmseg.nets import NETWORKS, build, load
from napari_fmseg.nets.fastunet import fastunet_strides
from napari_fmseg.nets.runtime.device import pick_device, pick_precision, training_precision
from napari_fmseg.nets.traits import probabilities
from napari_fmseg.training.data.statistics import DatasetStatistics, facts_of
from napari_fmseg.training.optimisation import SAFE_VOXELS
from napari_fmseg.training.recipe import Augment, Recipe, StageRecipe
from napari_fmseg.training.tasks.further import RATES, batch_size, distillation_weight, mirror_axes

__all__ = ["Suggestion", "suggest_recipe"]

_SHARES = {"consensus": 0.25, "attention": 0.6, "edge": 0.05, "net": 0.9, "coarse": 0.25, "fine": 0.65}
"""Shares of the time budget; the rest is for validation."""

_FEWEST_STEPS = 150
_GRID = {"cpu": 41_000, "other": 250_000}
"""Positions of a network's first level, which a step's time depends on: blocks of 8 voxels, or 4 in thick slices."""

_SMALL = 2
"""Times as many voxels as these positions a small volume has at most: it is learned voxel by voxel."""

_WIDTHS = {"cpu": (16, 32, 64, 128), "other": (32, 64, 128, 256)}
_EPOCHS = 8
_LARGE = 0.01
"""Share of the volume that the structures fill, from which one look at the whole of it is enough."""

_FEWEST_UNLABELLED = 3
"""Unlabelled volumes from which they are learned from, too."""


@dataclass(frozen=True)
class Suggestion:
    """A recipe, and why it is as it is, a sentence each."""

    recipe: Recipe
    words: tuple[str, ...]

    def __str__(self) -> str:
        return "\n".join(self.words)


def suggest_recipe(
    cases: Path | str | Sequence[Case],
    minutes: float = 5.0,
    start_from: str | None = None,
    device: str | None = None,
    *,
    labels: Sequence[str] = (),
    out: Path | str = "run",
    name: str = "my-model",
    validation: Sequence[Case] = (),
    unlabelled: Sequence[Case] = (),
    seconds_per_step: Mapping[str, float] | None = None,
) -> Suggestion:
    """Read some of the data, measure this machine, and suggest a recipe for a time budget.

    Parameters
    ----------
    cases
        A dataset folder, or labelled cases; their label files then number the `labels` from 1.
    minutes
        How long training may take, about.
    start_from
        A model to go on from, by name or card; its networks, grids and intensities are kept. `GENERAL_START` gives
        first weights to networks that were planned for the data, where they are like its own. None starts anew.
    device
        Where to train; None for the best there is.
    labels
        Classes to learn; empty for all that the folder has (after those of `start_from`).
    out, name
        Folder of the run, and name of the model.
    validation, unlabelled
        Cases to validate on, and cases without labels, where `cases` is a list.
    seconds_per_step
        How long a step takes, by stage, where that is known; None measures it on this machine.

    Raises
    ------
    InvalidRecipe
        If there is no labelled case, or no class is named.
    """
    dataset = Path(cases) if isinstance(cases, str | Path) else None
    listed = () if isinstance(cases, str | Path) else tuple(cases)
    if dataset is not None:
        names, training, held = cases_of(dataset)
        unlabelled = find_unlabelled(dataset)
    else:
        names, training, held = dict(enumerate(labels, 1)), [c for c in listed if c.labels], list(validation)
    parent = find_card(start_from) if start_from and start_from != GENERAL_START else None
    known = tuple(parent.labels.values()) if parent else ()
    named = tuple(labels) or tuple(dict.fromkeys([*known, *(n for n in names.values() if n != "ignore")]))
    if not training or not named or not 0 < minutes < math.inf:
        raise InvalidRecipe("A suggestion needs a labelled case, the names of its classes and some minutes.")
    facts = facts_of(training, names, [n for n in named if n in names.values()])
    place = pick_device(device or "auto")
    if place.type == "cpu":
        keep_freed_memory()
    words = [_data_in_words(len(training), len(held), facts)]
    recipe = _plan(named, facts, place, parent, Path(out), name)
    recipe = replace(recipe, precision=_training_precision(recipe, place))
    if len(unlabelled) < _FEWEST_UNLABELLED or sum(facts.share.values()) < _LARGE:
        recipe = replace(recipe, unlabelled_weight=0.0)
    where: Recipe = (
        replace(recipe, dataset=dataset, phantom=())
        if dataset is not None
        else replace(
            recipe,
            training=tuple(training),
            validation=tuple(held),
            unlabelled=tuple(unlabelled) if recipe.unlabelled_weight else (),
            phantom=(),
        )
    )
    n_unlabelled = len(unlabelled) if where.unlabelled_weight else 0
    reading = facts.seconds_per_case * (len(training) + 2 * len(held) + n_unlabelled)
    stages, told = _set_duration(where, facts, place, max(30 * minutes, 60 * minutes - reading), seconds_per_step)
    if n_unlabelled:
        words.append(f"{n_unlabelled} volumes without labels are learned from, too.")
    words += _plan_in_words(where, parent, known, facts)
    if start_from == GENERAL_START:
        fits = _fits_general_start(where)
        where = replace(where, start_from=GENERAL_START if fits else "")
        words.append(
            "Its first weights are those of a network that has learned other organs (general-start)."
            if fits
            else "The general start does not fit the network that the data need: it starts from scratch."
        )
    return Suggestion(replace(where, stages=stages, device=place.type), (*words, *told))


def _plan(
    labels: tuple[str, ...],
    facts: DatasetStatistics,
    device: torch.device,
    parent: ModelCard | None,
    out: Path,
    name: str,
) -> Recipe:
    """Return the grids, intensities, networks; steps come later."""
    ct = facts.is_hounsfield
    low, high = facts.window
    margin = max(50.0, 0.3 * (high - low))
    intensity = Intensity("window", round(low - margin), round(high + margin)) if ct else Intensity()
    kind = "cpu" if device.type == "cpu" else "other"
    large = sum(facts.share.values()) >= _LARGE
    loss = "soft_dice_ce_by_class"
    grid, strides = _grid_and_strides(facts, device)
    whole, coarser = (grid, strides) if large else _grid_and_strides(facts, device, 0.25)  # a place is found sooner
    net: dict[str, Any] = {"widths": _WIDTHS[kind], "strides": coarser}
    stages: tuple[StageRecipe, ...] = (StageRecipe("consensus", "fastunet", loss=loss, kwargs=net, **_FAST),)
    settings: Mapping[str, Any] = {"consensus_grid": list(whole), "attention_grid": list(grid)}
    if facts.in_one_piece:
        settings = {**settings, "keep_largest": "each"}
    if not large:
        net = {**net, "strides": strides, "maps": 1}
        stages += (StageRecipe("attention", "fastunet", loss=loss, kwargs=net, **_FAST),)
        settings = {**settings, "window": "all"}
    recipe = Recipe(
        name, stages, labels, out, phantom=(1, 1), settings=settings, intensity=intensity,
        channels=tuple(f"channel {i}" for i in range(facts.channels)) if facts.channels > 1 else ("image",),
        modality=facts.modality or ("CT" if ct else ""), balance=len(labels) > 2, validate_cases=5,
        augment=Augment(**_AUGMENT, bias=0.0 if ct else 0.2, noise=0.03 if ct else 0.05), unlabelled_weight=0.5,
    )  # fmt: skip
    if parent is None:
        return recipe
    networks = {s: parent.nets[s].network for s in PIPELINES[parent.pipeline].stages if s in parent.nets}
    kept = tuple(
        StageRecipe(s, network, loss=loss, batch=batch_size(parent, s), **{**_FAST, "lr": RATES[network]})
        if network in RATES
        else StageRecipe(s, network, loss=_choose_loss(facts), clip=3.0, lr=1e-3, batch=1 if s == "edge" else 2)
        for s, network in networks.items()
    )
    settings, new = parent.settings, set(labels) - {*parent.labels.values()}
    unlearned = any(n not in facts.share for n in parent.labels.values())
    if new:
        own = PIPELINES[parent.pipeline].settings.of(settings)
        changed = {k: v for k, v in vars(own.with_new_classes()).items() if v != getattr(own, k)}
        settings = {**settings, **changed}
    return replace(
        recipe, stages=kept, pipeline=parent.pipeline,
        settings=settings, intensity=parent.intensity,
        balance=recipe.balance or bool(new),  # few cases tell of a new structure: they must come as often as the others
        channels=parent.channels, modality=parent.modality, start_from=str(parent.folder / f"{parent.name}.toml"),
        distillation_weight=distillation_weight(parent) if unlearned else 0.0,
        augment=replace(recipe.augment, flip=mirror_axes(parent)),
    )  # fmt: skip


def _fits_general_start(recipe: Recipe) -> bool:
    """Return whether the first network is like that of the general start: its channels and widths, on blocks of voxels.

    Voxel by voxel nobody has measured whether it helps.
    """
    card, stage = find_card(GENERAL_START), recipe.stages[0]
    theirs = card.nets[stage.stage].kwargs if stage.stage in card.nets else {}
    same = len(recipe.channels) == len(card.channels) and list(stage.kwargs["widths"]) == list(theirs.get("widths", ()))
    return same and math.prod(stage.kwargs["strides"][0]) > 1


_FAST: dict[str, Any] = {
    **{"clip": 3.0, "lr": 2e-3, "weight_decay": 1e-2, "ema": 0.99, "keep": "last"},
}
"""How FastUNet is trained; measured in docs/tutorials/teach.md."""

_AUGMENT: dict[str, Any] = {
    **{"zoom": 0.15, "stretch": 0.15, "rotate_deg": 12.0, "rotate_p": 0.7, "elastic": 0.14},
    **{"gamma": 0.45, "contrast": 0.25, "brightness": 0.06, "blur": 0.3},
}


def _training_precision(recipe: Recipe, device: torch.device) -> str:
    """Return bfloat16 where the processor computes in it, every network learns as well in it, and it is safe.

    The gradient of a bfloat16 convolution of torch 2.13 on a CPU corrupts the memory of the process for some sizes:
    seen with planes of 96 x 96 and few slices, never with planes of up to 64 x 64.
    """
    settings = PIPELINES[recipe.pipeline].settings.of(recipe.settings)
    parent = find_card(recipe.start_from) if recipe.start_from else None
    for stage in recipe.stages:
        if not getattr(load(NETWORKS[stage.network]), "trains_in_bfloat16", False):
            return "auto"
        kwargs = {**(parent.nets[stage.stage].kwargs if parent else {}), **stage.kwargs}
        strides = kwargs.get("strides", ((2, 2, 2),))
        planes = zip(settings.input_size(stage.stage)[1:], strides[0][1:], strict=True)
        if any(math.ceil(n / step) > SAFE_VOXELS for n, step in planes):
            return "auto"
    half = device.type == "cpu" and pick_precision(device, half_precision_ok=True) == "bfloat16"
    return "bfloat16" if half else "auto"


def _choose_loss(facts: DatasetStatistics) -> str:
    """Return the loss for networks without normalisation."""
    shares = sorted(facts.share.values())
    if len(shares) > 1 and shares[-1] > 20 * shares[0]:
        return "dice_ce_by_class"
    return "dice_ce_balanced" if sum(shares) < _LARGE else "dice_ce"


def _grid_and_strides(
    facts: DatasetStatistics, device: torch.device, share: float = 1.0
) -> tuple[tuple[int, int, int], tuple[tuple[int, int, int], ...]]:
    """Return a grid over the field of view on which a step takes its time (or a share of it), and strides on it."""
    first = share * _GRID["cpu" if device.type == "cpu" else "other"]
    most = 2 * SAFE_VOXELS if device.type == "cpu" else max(facts.shape)
    if math.prod(facts.shape) <= _SMALL * first and max(facts.shape[1:]) <= SAFE_VOXELS:
        strides = ((1, 1, 1), *_strides_on(facts.shape, facts)[:-1])
        return _divisible(facts.shape, strides), strides
    target = _ideal_grid(facts, 8 * first)
    if (block := math.prod(_strides_on(target, facts)[0])) < 8:
        target = _ideal_grid(facts, block * first)
    strides = _strides_on(target, facts)
    z, y, x = _divisible(target, strides)
    return (z, min(y, most), min(x, most)), strides


def _divisible(grid: Sequence[float], strides: Sequence[Sequence[int]]) -> tuple[int, int, int]:
    """Return the nearest grid that strides divide: a network fills up what they do not, and computes there, too."""
    multiples = [math.prod(steps) for steps in zip(*strides, strict=True)]
    z, y, x = (m * max(1, round(n / m)) for n, m in zip(grid, multiples, strict=True))
    return z, y, x


def _strides_on(grid: Sequence[float], facts: DatasetStatistics) -> tuple[tuple[int, int, int], ...]:
    return fastunet_strides(grid, [n * s / m for n, s, m in zip(facts.shape, facts.spacing, grid, strict=True)])


def _ideal_grid(facts: DatasetStatistics, voxels: float) -> list[float]:
    """Return the sizes of a grid of so many voxels, as near to cubes as the data allow: no finer, and no slice lost."""
    extent = [n * s for n, s in zip(facts.shape, facts.spacing, strict=True)]
    pitch = (math.prod(extent) / voxels) ** (1 / 3)
    thick = [i for i, s in enumerate(facts.spacing) if s > pitch]
    if thick and len(thick) < 3:  # these axes keep their voxels; the others share what is left
        rest = [i for i in range(3) if i not in thick]
        left = voxels / math.prod(facts.shape[i] for i in thick)
        pitch = (math.prod(extent[i] for i in rest) / left) ** (1 / len(rest))
    return [min(float(n), e / pitch) for e, n in zip(extent, facts.shape, strict=True)]


def _set_duration(
    recipe: Recipe,
    facts: DatasetStatistics,
    device: torch.device,
    seconds: float,
    seconds_per_step: Mapping[str, float] | None,
) -> tuple[tuple[StageRecipe, ...], list[str]]:
    """Share the time between the stages; how many steps that is, is a guess that training corrects."""
    stages, told = [], []
    shares = [_SHARES.get(stage.stage, 0.3) for stage in recipe.stages]
    for stage, share in zip(recipe.stages, shares, strict=True):
        cost = (seconds_per_step or {}).get(stage.stage) or _seconds_per_step(recipe, stage, device)
        part = seconds * share / sum(shares)
        steps = max(10, int(part / cost))
        epochs = min(_EPOCHS, max(1, steps // 20))
        per_epoch = max(1, steps // epochs)
        stages.append(replace(stage, steps=epochs * per_epoch, steps_per_epoch=per_epoch, minutes=part / 60))
        told.append(
            f"{stage.stage}: about {steps} steps of {cost:.2f} s on {device.type}, {part / 60:.1f} min."
            + (" That is few: a longer time would help." if steps < _FEWEST_STEPS and stage.stage != "edge" else "")
        )
    return tuple(stages), told


def _seconds_per_step(recipe: Recipe, stage: StageRecipe, device: torch.device) -> float:
    """Time steps of a stage on noise, in the precision and memory format in which it will be trained."""
    n_classes = len(recipe.labels) + 1
    parent = find_card(recipe.start_from) if recipe.start_from else None
    kwargs = dict(parent.nets[stage.stage].kwargs) if parent else {}
    given = {"in_channels": len(recipe.channels), "n_classes": n_classes, **stage.kwargs}
    net = build(stage.network, **{**kwargs, **given}).to(device).train()
    if device.type == "cpu" and getattr(net, "trains_channels_last", True):
        net = net.to(memory_format=torch.channels_last_3d)  # type: ignore[call-overload]
    optimiser = torch.optim.AdamW([p for p in net.parameters() if p.requires_grad], 1e-6)
    size = PIPELINES[recipe.pipeline].settings.of(recipe.settings).input_size(stage.stage)
    channels = (len(recipe.channels), *getattr(net, "map_channels", ()))
    inputs = [torch.rand(stage.batch, n, *size, device=device) for n in channels]
    half = training_precision(device, recipe.precision)
    kind = {"bfloat16": torch.bfloat16, "float16": torch.float16}.get(half)
    taken = []
    for _ in range(4):
        start = time.perf_counter()
        with torch.autocast(device.type, kind or torch.bfloat16, enabled=kind is not None):
            heads = net(*inputs)
        heads = heads if isinstance(heads, tuple | list) else (heads,)
        torch.stack([probabilities(net, head).square().mean() for head in heads]).sum().backward()  # type: ignore[no-untyped-call]
        optimiser.step()
        optimiser.zero_grad()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        taken.append(time.perf_counter() - start)
    # Samples are drawn beside it, and the loss comes on top; with unlabelled cases also the teacher.
    return (1.6 if recipe.unlabelled_weight else 1.2) * max(1e-4, min(taken[1:]))


def _data_in_words(n: int, n_held: int, facts: DatasetStatistics) -> str:
    shape = " x ".join(str(v) for v in facts.shape)
    spacing = " x ".join(f"{v:.2g}" for v in facts.spacing)
    few = " Fewer than 4 cases: expect little beyond volumes that look just like them." if n < 4 else ""
    some = " Some voxels are not labelled; they are neither learned from nor counted." if facts.sparse else ""
    return (
        f"{n} cases to learn from and {n_held} to check with, typically {shape} voxels of {spacing} mm "
        f"({facts.modality or ('CT' if facts.is_hounsfield else 'no Hounsfield units')}).{few}{some}"
    )


def _plan_in_words(
    recipe: Recipe, parent: ModelCard | None, known: tuple[str, ...], facts: DatasetStatistics
) -> list[str]:
    told = []
    if parent is not None:
        new = [n for n in recipe.labels if n not in known]
        apart = recipe.pipeline == "phased" and recipe.settings != parent.settings
        told.append(
            f"It starts from {parent.name} and keeps its grids and intensities"
            + (f"; new: {', '.join(new)}" + (", with a window around every piece." if apart else ".") if new else ".")
            + (" Its answers about its own classes are kept." if recipe.distillation_weight else "")
        )
    else:
        settings, augment = PIPELINES[recipe.pipeline].settings.of(recipe.settings), recipe.augment
        summary = settings.summary([stage.stage for stage in recipe.stages])
        told += [summary] if summary else []
        told.append(
            f"Augmentation: turns of up to {augment.rotate_deg:.0f} degrees, sizes up to {100 * augment.zoom:.0f} % "
            "larger or smaller, elastic deformation, and other brightness and contrast; see the recipe."
        )
    low, high = recipe.intensity.low, recipe.intensity.high
    kind = {
        "window": f"the window {low:.0f} to {high:.0f}",
        "percentile": f"percentiles {low} to {high} of each volume",
    }
    told.append(f"Intensities: {kind.get(recipe.intensity.kind, recipe.intensity.kind)}.")
    if min(facts.share.values(), default=1.0) < _LARGE:
        small = min(facts.share, key=lambda n: facts.share[n])
        told.append(
            f"{small!r} fills {100 * facts.share[small]:.2g} % of the volume, so small structures weigh more at first."
        )
    return told
