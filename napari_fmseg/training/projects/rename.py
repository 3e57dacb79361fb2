"""Renaming of a case with all its files, and of a class, which keeps its number."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from napari_fmseg.core.errors import FmsegError
from napari_fmseg.core.structuring import read_table
from napari_fmseg.datasets import nnunet_json
from napari_fmseg.datasets.nnunet_json import CaseFiles
from napari_fmseg.datasets.projects.add_case import check_name
from napari_fmseg.datasets.projects.project import CaseRecord, Project, open_project, write_state
from napari_fmseg.datasets.projects.remove_case import drop_empty_history
from napari_fmseg.datasets.projects.staged_case import companions_of, relative
from napari_fmseg.datasets.projects.transaction import STATE_DIR, Transaction, transaction
from napari_fmseg.io import suffix_of
from napari_fmseg.models.card import ModelCard, write_card
from napari_fmseg.training.projects.names import MODELS
from napari_fmseg.training.projects.versions import list_versions

__all__ = ["rename_case", "rename_class"]

_OURS = (nnunet_json.IMAGES, nnunet_json.UNLABELLED, nnunet_json.LABELS)
_CHANNEL = re.compile(r"(_\d{4})?$")


def rename_case(project: Project, old: str, new: str) -> Project:
    """Rename a case in its files, its history and the records of the versions; its role stays.

    A run that was interrupted looks for its files under their old names: start it anew.

    Parameters
    ----------
    project
        It is read afresh.
    old, new
        Names; see `add_case` for what a name may be.

    Raises
    ------
    FmsegError
        If there is no such case, or the new name is taken or cannot be one.
    """
    check_name(new)
    with transaction(project.folder) as change:
        fresh = open_project(project.folder)
        files, record = fresh.files_of(old), fresh.record(old)
        if new in fresh.files:
            raise FmsegError(f"There is a case {new!r} already. Choose another name.")
        moved = {
            place: target
            for path in _paths(files)
            if (target := _target(place := relative(path, fresh.folder), old, new))
        }
        places = zip(companions_of(old), companions_of(new), strict=True)
        moved |= {place: target for place, target in places if (fresh.folder / place).exists()}
        earlier = tuple(
            dataclasses.replace(past, file=f"{STATE_DIR}/history/{new}/{i:03d}{suffix_of(Path(past.file))}")
            for i, past in enumerate(record.earlier, 1)
        )
        moved |= {past.file: there.file for past, there in zip(record.earlier, earlier, strict=True)}
        for source, target in moved.items():
            change.move(source, target)
        change.table("dataset.json", nnunet_json.with_case_name(fresh.facts.table, old, new, moved))
        _rewrite_records(change, fresh, old, new)
        write_state(change, _with_name(fresh, old, new, dataclasses.replace(record, earlier=earlier)))
    drop_empty_history(project, old)
    return open_project(project.folder)


def _paths(files: CaseFiles) -> tuple[Path, ...]:
    return files.images if files.labels is None else (*files.images, files.labels)


def _target(place: str, old: str, new: str) -> str:
    """Return the new path of a file of a case, or "" where its name is not that of the case."""
    part, _, file = place.rpartition("/")
    ending = suffix_of(Path(file))
    stem = file.removesuffix(ending)
    channel = _CHANNEL.search(stem)
    number = channel[0] if channel and part != nnunet_json.LABELS else ""
    own = part in _OURS and stem == f"{old.rpartition('/')[2]}{number}"
    return f"{part}/{new}{number}{ending}" if own else ""


def _with_name(project: Project, old: str, new: str, record: CaseRecord) -> Project:
    files = {new if name == old else name: own for name, own in project.files.items()}
    cases = {name: known for name, known in project.index.cases.items() if name != old}
    index = dataclasses.replace(project.index, cases={**cases, new: record})
    return dataclasses.replace(project, files=files, index=index)


def _rewrite_records(change: Transaction, project: Project, old: str, new: str) -> None:
    """Rename the case in the records of runs and versions: its old name may identify the patient."""
    parts = ("learned", "held_out", "scores", "training", "validation", "missing_classes")

    def rename_scores(table: dict[str, Any]) -> dict[str, Any]:
        return {key: _rename_key(value, old, new) if key in parts else value for key, value in table.items()}

    for pattern in (f"{MODELS}/*/lineage.json", f"{STATE_DIR}/runs/*/plan.json"):
        _rewrite(change, project, pattern, rename_scores)


def _rename_key(table: Any, old: str, new: str) -> Any:
    return {new if key == old else key: value for key, value in table.items()} if isinstance(table, Mapping) else table


def _rewrite(change: Transaction, project: Project, pattern: str, rename: Callable[[dict[str, Any]], Any]) -> None:
    for path in sorted(project.folder.glob(pattern)):
        try:
            before = read_table(path)
        except (OSError, ValueError):  # damaged: it is told where it is needed
            continue
        after = rename(before)
        if after != before:
            change.table(relative(path, project.folder), after)


def rename_class(project: Project, old: str, new: str) -> Project:
    """Rename a class; it keeps its number and its labels, and the versions follow.

    Parameters
    ----------
    project
        It is read afresh.
    old, new
        Names.

    Raises
    ------
    FmsegError
        If there is no such class, or the new name is taken or cannot be one.
    """
    new = new.strip()
    with transaction(project.folder) as change:
        fresh = open_project(project.folder)
        if old not in fresh.facts.numbers:
            raise FmsegError(f"The project has no class {old!r}, but {', '.join(fresh.facts.numbers)}.")
        taken = {name.casefold() for name in fresh.facts.numbers if name != old} | {"background", "ignore", ""}
        if new.casefold() in taken:
            raise FmsegError(f"{new!r} cannot be the name of a class: it is one already, or stands for something else.")
        facts = nnunet_json.with_class_name(fresh.facts, old, new, fresh.folder)
        change.table("dataset.json", facts.table)
        cases = {name: _with_class(record, old, new) for name, record in fresh.index.cases.items()}
        for version in list_versions(fresh):
            _rewrite_version(change, fresh, version.card, old, new)
        index = dataclasses.replace(fresh.index, cases=cases)
        write_state(change, dataclasses.replace(fresh, facts=facts, index=index))
    return open_project(project.folder)


def _with_class(record: CaseRecord, old: str, new: str) -> CaseRecord:
    def rename_in(classes: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(new if name == old else name for name in classes)

    return dataclasses.replace(
        record,
        classes=rename_in(record.classes),
        earlier=tuple(dataclasses.replace(past, classes=rename_in(past.classes)) for past in record.earlier),
        dice={version: _rename_key(scores, old, new) for version, scores in record.dice.items()},
    )


def _rewrite_version(change: Transaction, project: Project, card: ModelCard, old: str, new: str) -> None:
    """Rename the class in the card of a version and in its scores; the weights hold numbers only."""
    place = relative(card.folder, project.folder)
    own = dataclasses.replace(
        card,
        labels={value: new if name == old else name for value, name in card.labels.items()},
        scores={stage: _rename_key(scores, old, new) for stage, scores in card.scores.items()},
        surface=_rename_key(card.surface, old, new),
    )
    write_card(own, change.place(f"{place}/{card.name}.toml"))

    def rename_scores(table: dict[str, Any]) -> dict[str, Any]:
        scores = table.get("scores")
        if not isinstance(scores, Mapping):
            return table
        return {**table, "scores": {case: _rename_key(own, old, new) for case, own in scores.items()}}

    _rewrite(change, project, f"{place}/lineage.json", rename_scores)
