"""The cases of a project at a glance, and which of them to label next."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from napari_fmseg.core.errors import FmsegError
from napari_fmseg.datasets.projects.locked_split import HELD_OUT
from napari_fmseg.datasets.projects.project import Project, open_project, with_record, write_state
from napari_fmseg.datasets.projects.transaction import transaction
from napari_fmseg.training.projects.versions import active_version

__all__ = ["CaseRow", "case_table", "rank_cases", "record_scores", "record_uncertainty"]


@dataclass(frozen=True)
class CaseRow:
    """A case in the table.

    Attributes
    ----------
    name
        Of the case.
    status
        ``"unlabelled"``; ``"predicted"``: labels of a model wait to be corrected; ``"corrected"``: labels that a person
        made or checked, to learn from; ``"held out"``: labelled, and never learned from; ``"excluded"``: it takes no
        part.
    dice
        Mean over the classes of the present model on this case, or None. Where it is neither held out nor `left_out`,
        the model has learned from it, and the figure says little.
    dice_by_class
        The same by class.
    uncertainty
        Of the present model, 0..1, or None.
    changed
        When its labels changed last (UTC), or "".
    classes
        What its labels tell of.
    labelled
        Share of its slices with labels, 0..1.
    earlier
        How many versions of its labels there were before.
    linked
        Whether its image lies elsewhere.
    left_out
        Whether its Dice is that of a model which was trained like the present one, but without it.
    problem
        Why it cannot be used, or "".
    verdict, note
        What somebody who looked at its labels said, and noted.
    """

    name: str
    status: str
    dice: float | None = None
    dice_by_class: Mapping[str, float] = field(default_factory=dict)
    uncertainty: float | None = None
    changed: str = ""
    classes: tuple[str, ...] = ()
    labelled: float = 0.0
    earlier: int = 0
    linked: bool = False
    left_out: bool = False
    problem: str = ""
    verdict: str = ""
    note: str = ""


def case_table(project: Project) -> tuple[CaseRow, ...]:
    """List the cases by name."""
    left_out = _cases_of_leave_one_out(project)
    return tuple(_row(project, name, name in left_out) for name in project.files)


def _cases_of_leave_one_out(project: Project) -> set[str]:
    """Name the cases that the present version's scores are about if nothing was held out: see `leaving`."""
    try:
        present = active_version(project)
    except FmsegError:  # damaged: the cases can be listed all the same
        return set()
    return set(present.lineage.scores) if present is not None and not present.lineage.held_out else set()


def _row(project: Project, name: str, left_out: bool) -> CaseRow:
    files, record = project.files[name], project.record(name)
    present = project.index.used[-1] if project.index.used else 0
    scores = record.dice.get(present, {})
    told = [value for value in scores.values() if not math.isnan(value)]
    missing = [path.name for path in files.images if not path.exists()]
    status = "predicted" if record.predicted else "unlabelled"
    if files.labels is not None:
        status = HELD_OUT if project.role(name) == HELD_OUT else "corrected"
    status = "excluded" if record.excluded else status
    return CaseRow(
        name,
        status,
        dice=sum(told) / len(told) if told else None,
        dice_by_class=scores,
        uncertainty=record.uncertainty.get(present),
        changed=record.changed,
        classes=record.classes if files.labels is not None else (),
        labelled=record.labelled if files.labels is not None else 0.0,
        earlier=len(record.earlier),
        linked=any(path.is_symlink() for path in files.images),
        left_out=left_out and status == "corrected",
        problem=f"{missing[0]} is not there. Is its drive connected?" if missing else record.problem,
        verdict=record.verdict,
        note=record.note,
    )


def rank_cases(project: Project) -> tuple[CaseRow, ...]:
    """List the cases without labels, the one that the present model is least sure of first.

    Cases that no uncertainty is known of come last.
    """
    rows = [row for row in case_table(project) if row.status in ("unlabelled", "predicted") and not row.problem]
    return tuple(sorted(rows, key=lambda row: (row.uncertainty is None, -(row.uncertainty or 0), row.name)))


def record_scores(project: Project, version: int, dice: Mapping[str, Mapping[str, float]]) -> Project:
    """Note how a version did, by case and class (nan for a class that is in neither is left out)."""
    with transaction(project.folder) as change:
        fresh = open_project(project.folder)
        for name, scores in dice.items():
            record = fresh.record(name)
            kept = {label: round(float(v), 4) for label, v in scores.items() if not math.isnan(v)}
            fresh = with_record(fresh, name, dataclasses.replace(record, dice={**record.dice, version: kept}))
        write_state(change, fresh)
    return open_project(project.folder)


def record_uncertainty(project: Project, version: int, uncertainty: Mapping[str, float]) -> Project:
    """Note how unsure a version is of cases, 0..1."""
    with transaction(project.folder) as change:
        fresh = open_project(project.folder)
        for name, value in uncertainty.items():
            record = fresh.record(name)
            told = {**record.uncertainty, version: round(float(value), 4)}
            fresh = with_record(fresh, name, dataclasses.replace(record, uncertainty=told))
        write_state(change, fresh)
    return open_project(project.folder)
