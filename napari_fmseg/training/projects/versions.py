"""The models of a project: every version is kept with its training cases, and a better one comes into use."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from napari_fmseg.core.errors import FmsegError
from napari_fmseg.core.structuring import read_table, structure
from napari_fmseg.datasets.projects.locked_split import HELD_OUT
from napari_fmseg.datasets.projects.project import Project, now, open_project, with_record, write_state
from napari_fmseg.datasets.projects.training_plan import Run
from napari_fmseg.datasets.projects.transaction import Transaction, transaction
from napari_fmseg.models.archive import install_model
from napari_fmseg.models.card import ModelCard, read_card, write_card
from napari_fmseg.models.registry import find_card
from napari_fmseg.training.projects.names import MODELS, free_model_name
from napari_fmseg.training.projects.promotion import is_better
from napari_fmseg.training.recipe import Recipe
from napari_fmseg.training.recipe_file import as_table

__all__ = [
    "Lineage",
    "Version",
    "VersionResult",
    "activate_version",
    "active_version",
    "add_version",
    "leaked_cases",
    "list_versions",
    "newest_version_without",
    "publish",
    "roll_back",
]


@dataclass(frozen=True)
class Lineage:
    """Where a version comes from.

    Attributes
    ----------
    version
        Counted from 1.
    parent
        The version it was trained from; 0 if it was another model or none.
    started_from
        The name of that model, or "".
    made
        When (UTC).
    learned
        Image hashes by case: what this version was trained on.
    seen
        Hashes of all images that it or a model before it learned from.
    held_out
        Image hashes by case: what validated.
    scores
        Dice by case and class, on cases that it had not seen, as measured when it was made.
    recipe
        All of it.
    recipe_sha256, weights_sha256
        Hashes.
    note
        How it was validated.
    verdict
        Why it came into use then, or why not.
    """

    version: int
    parent: int = 0
    started_from: str = ""
    made: str = ""
    learned: Mapping[str, str] = field(default_factory=dict)
    seen: tuple[str, ...] = ()
    held_out: Mapping[str, str] = field(default_factory=dict)
    scores: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    recipe: Mapping[str, Any] = field(default_factory=dict)
    recipe_sha256: str = ""
    weights_sha256: str = ""
    note: str = ""
    verdict: str = ""


@dataclass(frozen=True)
class Version:
    """A version of the project's model, without its weights loaded."""

    number: int
    card: ModelCard
    lineage: Lineage


@dataclass(frozen=True)
class VersionResult:
    """A new version, whether it is in use now, and why."""

    project: Project
    version: Version
    in_use: bool
    why: str


def list_versions(project: Project) -> tuple[Version, ...]:
    """List all versions, the oldest first."""
    folders = [p for p in (project.folder / MODELS).glob("*") if p.name.isdecimal()]
    return tuple(_version(folder) for folder in sorted(folders, key=lambda p: int(p.name)))


def active_version(project: Project) -> Version | None:
    """Return the version in use, or None."""
    return _version(project.folder / MODELS / str(project.index.used[-1])) if project.index.used else None


def _version(folder: Path) -> Version:
    try:
        lineage = structure(Lineage, read_table(folder / "lineage.json"), finite=False)
        (card,) = folder.glob("*.toml")
    except (OSError, ValueError) as error:
        raise FmsegError(
            f"{folder} is no version of a model: {error}. Restore it from a copy of the project."
        ) from error
    return Version(int(folder.name), read_card(card), lineage)


def add_version(
    run: Run,
    model: ModelCard | Path | str,
    *,
    recipe: Recipe | None = None,
    scores: Mapping[str, Mapping[str, float]] | None = None,
    force: bool = False,
) -> VersionResult:
    """Keep a trained model as a new version, and use it if it is better than the present one.

    Better means better on those cases and classes that both were measured on without having learned from them: see
    `is_better` in `promotion`. The first version is used in any case.

    Parameters
    ----------
    run
        The run that it came from.
    model
        Its card, or the path of it.
    recipe
        What it was trained with.
    scores
        Dice by case and class, on the held-out cases (or, with few cases, on those left out in turn).
    force
        Use it whatever its scores: the user says so.

    Raises
    ------
    FmsegError, WeightsMismatch, UnwritableVolume
        If the weights are missing or altered, or cannot be copied.
    """
    card = model if isinstance(model, ModelCard) else find_card(model)
    with transaction(run.project.folder) as change:
        fresh = open_project(run.project.folder)
        number = 1 + max((version.number for version in list_versions(fresh)), default=0)
        lineage = _lineage(fresh, run, number, recipe, scores or {})
        for name, by_class in lineage.scores.items():
            record = fresh.record(name)
            fresh = with_record(fresh, name, dataclasses.replace(record, dice={**record.dice, number: by_class}))
        in_use, why = (True, "Put in use on request.") if force else _compare(fresh, lineage, card)
        _stage(change, card, dataclasses.replace(lineage, verdict=why))
        if in_use:
            fresh = _set_active_versions(fresh, (*fresh.index.used, number))
        write_state(change, fresh, learned=lineage.seen)
    project = open_project(run.project.folder)
    return VersionResult(project, _version(project.folder / MODELS / str(number)), in_use, why)


def _lineage(
    project: Project, run: Run, number: int, recipe: Recipe | None, scores: Mapping[str, Mapping[str, float]]
) -> Lineage:
    table = {} if recipe is None else as_table(recipe)
    started = recipe.start_from if recipe is not None else ""
    start = find_card(started) if started else None
    known = {version.card.sha256: version for version in list_versions(project)}
    parent = known.get(start.sha256) if start is not None else None
    learned = {case.name: run.plan.images[case.name] for case in run.plan.training}
    before = (*(start.cases if start is not None else ()), *(parent.lineage.seen if parent else ()))
    return Lineage(
        version=number,
        parent=parent.number if parent else 0,
        started_from=start.name if start is not None else "",
        made=now(),
        learned=learned,
        seen=tuple(sorted({*learned.values(), *before})),
        held_out={case.name: run.plan.images[case.name] for case in run.plan.validation},
        scores={
            name: {label: round(float(v), 4) for label, v in by_class.items() if v == v}
            for name, by_class in scores.items()
        },
        recipe=table,
        recipe_sha256=hashlib.sha256(json.dumps(table, sort_keys=True).encode()).hexdigest() if table else "",
        note=run.plan.note,
    )


def _stage(change: Transaction, card: ModelCard, lineage: Lineage) -> None:
    """Put weights, card and lineage into the folder of the version."""
    folder = change.place(f"{MODELS}/{lineage.version}")
    folder.mkdir()
    weights = f"{card.name}.safetensors"
    shutil.copyfile(card.weights_path, folder / weights)
    found = hashlib.sha256((folder / weights).read_bytes()).hexdigest()
    if card.sha256 and found != card.sha256:
        raise FmsegError(f"The weights of {card.name!r} are not those that its card describes. Train it again.")
    own = dataclasses.replace(
        card,
        version=lineage.version,
        parent=f"{card.name}, version {lineage.parent}" if lineage.parent else lineage.started_from,
        cases=lineage.seen,
        recipe_sha256=lineage.recipe_sha256,
        weights=weights,
        sha256=found,
    )
    write_card(own, folder / f"{card.name}.toml")
    lineage = dataclasses.replace(lineage, weights_sha256=found)
    text = json.dumps(dataclasses.asdict(lineage), indent=1, default=str)
    (folder / "lineage.json").write_text(text + "\n", encoding="utf-8")


def _compare(project: Project, new: Lineage, card: ModelCard) -> tuple[bool, str]:
    """Compare with the version in use."""
    leaked = _held_out_in(project, new.seen)
    if leaked:
        return False, (
            f"The model it started from had learned from {leaked[0]}, which is held out: its Dice there means nothing."
        )
    if not project.index.used:
        return True, "The first version."
    old = active_version(project)
    assert old is not None
    measured = {
        name: scores
        for name, scores in new.scores.items()
        if not (new.held_out and project.record(name).image in old.lineage.seen)
    }
    before = {name: project.record(name).dice.get(old.number, {}) for name in measured}
    return is_better(
        measured, tuple(card.labels.values()), before, tuple(old.card.labels.values()), old.number
    )  # fmt: skip


def _held_out_in(project: Project, seen: Iterable[str]) -> tuple[str, ...]:
    images = set(seen)
    return tuple(
        name for name in project.labelled if project.role(name) == HELD_OUT and project.record(name).image in images
    )


def leaked_cases(project: Project, card: ModelCard) -> tuple[str, ...]:
    """Name the held-out cases that a model has learned from, as far as its card tells: do not start from such a one."""
    return _held_out_in(project, card.cases)


def newest_version_without(project: Project, images: Iterable[str]) -> Version | None:
    """Return the newest version that was trained on none of these images, or None.

    From it a model may start that is to be measured on them, such as in a `Fold`.
    """
    images = set(images)
    clean = [version for version in list_versions(project) if not images & {*version.lineage.seen}]
    return clean[-1] if clean else None


def activate_version(project: Project, number: int) -> Project:
    """Use a version that the user has chosen.

    Raises
    ------
    FmsegError
        If there is no such version.
    """
    with transaction(project.folder) as change:
        fresh = open_project(project.folder)
        numbers = [version.number for version in list_versions(fresh)]
        if number not in numbers:
            raise FmsegError(f"There is no version {number}. There are: {', '.join(map(str, numbers)) or 'none yet'}.")
        write_state(change, _set_active_versions(fresh, (*(n for n in fresh.index.used if n != number), number)))
    return open_project(project.folder)


def roll_back(project: Project) -> Project:
    """Return to the previously used version; the present one stays in the list.

    Raises
    ------
    FmsegError
        If there was none before.
    """
    with transaction(project.folder) as change:
        fresh = open_project(project.folder)
        if len(fresh.index.used) < 2:
            raise FmsegError("No version was in use before the present one, so there is nothing to go back to.")
        write_state(change, _set_active_versions(fresh, fresh.index.used[:-1]))
    return open_project(project.folder)


def _set_active_versions(project: Project, used: tuple[int, ...]) -> Project:
    return dataclasses.replace(project, index=dataclasses.replace(project.index, used=used))


def publish(project: Project, *, replace: bool = False) -> ModelCard:
    """Put the version in use into the user's models, so that it is listed wherever models are.

    Where a model of others is called so, it is listed with a number after its name.

    Parameters
    ----------
    project
        See `Project`.
    replace
        Take the place of a model of this name that is not of this project; its own versions are always replaced.

    Raises
    ------
    FmsegError
        If no version is in use.
    """
    version = active_version(project)
    if version is None:
        raise FmsegError(f"{project.folder} has no model in use yet. Train one first.")
    own = {other.card.sha256 for other in list_versions(project)}
    name = version.card.name if replace else free_model_name(version.card.name, own)
    return install_model(dataclasses.replace(version.card, name=name), replace=True)
