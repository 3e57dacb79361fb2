"""What a version does on each case that it never saw, the worst first, and what would help it most."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from napari_fmseg.core.structuring import read_table
from napari_fmseg.datasets.projects.case_results import labels_file, picture_file
from napari_fmseg.datasets.projects.project import Project
from napari_fmseg.datasets.projects.transaction import STATE_DIR
from napari_fmseg.training.history import read_dice_curve
from napari_fmseg.training.projects.advice import what_would_help
from napari_fmseg.training.projects.prepare_run import KEPT
from napari_fmseg.training.projects.versions import Version

__all__ = ["HeldOutCase", "RunReport", "run_report"]


@dataclass(frozen=True)
class HeldOutCase:
    """A case that a version never saw.

    Attributes
    ----------
    name
        Of the case.
    dice
        Mean over its classes.
    dice_by_class
        The same by class.
    picture
        Of `write_plane`, in 8 bits; None where there is none.
    found
        The label map that the model found, with the project's numbers; None where it was not kept.
    """

    name: str
    dice: float
    dice_by_class: Mapping[str, float] = field(default_factory=dict)
    picture: Path | None = None
    found: Path | None = None


@dataclass(frozen=True)
class RunReport:
    """The validation of a version.

    Attributes
    ----------
    version
        Its number.
    cases
        The worst first.
    advice
        A sentence on what would help most, or "".
    left_out
        Whether no case was held out, and each one was measured with a model that was trained without it.
    """

    version: int
    cases: tuple[HeldOutCase, ...]
    advice: str = ""
    left_out: bool = False


def run_report(project: Project, version: Version) -> RunReport:
    """Return what a version did on the cases that it never saw; of cases that were removed since nothing is told.

    Parameters
    ----------
    project
        See `Project`.
    version
        Of this project; see `list_versions`.
    """
    run = _run_of(project, version.number)
    lineage = version.lineage
    images = {**lineage.learned, **lineage.held_out}
    cases = []
    for name, scores in lineage.scores.items():
        told = [value for value in scores.values() if math.isfinite(value)]
        if name not in project.files or not told:
            continue
        files = [make(run, images[name]) if run and name in images else None for make in (picture_file, labels_file)]
        picture, found = (file if file is not None and file.exists() else None for file in files)
        cases.append(HeldOutCase(name, sum(told) / len(told), scores, picture, found))
    curve = read_dice_curve(run) if run is not None else ()
    known = {case.name: case.dice_by_class for case in cases}
    worst_first = tuple(sorted(cases, key=lambda case: case.dice))
    return RunReport(version.number, worst_first, what_would_help(known, curve), left_out=not lineage.held_out)


def _run_of(project: Project, version: int) -> Path | None:
    """Return the folder of the run whose model became a version; None if it is gone."""
    for kept in (project.folder / STATE_DIR / "runs").glob(f"*/{KEPT}"):
        try:
            told: Any = read_table(kept).get("version")
        except (OSError, ValueError):  # damaged: the version can do without
            continue
        if told == version:
            return kept.parent
    return None
