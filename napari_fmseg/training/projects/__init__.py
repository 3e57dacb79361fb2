"""A project is a folder: volumes and labels as nnU-Net has them, and beside them ``fmseg/`` with split, runs, models.

Functions take a `Project` and give a new one; every change appears whole or not at all, whatever ends the process.
Nothing here loads torch before a model is measured or labels are resampled.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from napari_fmseg.datasets.projects.add_case import (
    add_case,
    add_nameless,
    free_name,
    label_case,
    restore_labels,
    save_prediction,
)
from napari_fmseg.datasets.projects.image_hash import image_hash
from napari_fmseg.datasets.projects.label_import import LabelOptions
from napari_fmseg.datasets.projects.painted_slices import PaintedSlices
from napari_fmseg.datasets.projects.project import CaseRecord, Project, init_project, open_project
from napari_fmseg.datasets.projects.remove_case import exclude_case, include_case, remove_case
from napari_fmseg.datasets.projects.review import ACCEPTED, CORRECTED, REJECTED, accept_case, review_case
from napari_fmseg.datasets.projects.revisions import LabelVersion, earlier_labels, label_history, labels_revision
from napari_fmseg.datasets.projects.scan import scan_all, scan_cases
from napari_fmseg.datasets.projects.training_plan import LEAVING, Fold, Plan, Run, open_run, start_run, training_plan
from napari_fmseg.training.projects.advice import what_would_help
from napari_fmseg.training.projects.case_table import CaseRow, case_table, rank_cases, record_scores, record_uncertainty
from napari_fmseg.training.projects.planning import recipe_for
from napari_fmseg.training.projects.prepare_run import (
    ACTIVE_VERSION,
    FROM_SCRATCH,
    TrainingOptions,
    prepare_run,
    recipe_file,
    unfinished_run,
)
from napari_fmseg.training.projects.rename import rename_case, rename_class
from napari_fmseg.training.projects.run_report import HeldOutCase, RunReport, run_report
from napari_fmseg.training.projects.versions import (
    Lineage,
    Version,
    VersionResult,
    activate_version,
    active_version,
    add_version,
    leaked_cases,
    list_versions,
    newest_version_without,
    publish,
    roll_back,
)

if TYPE_CHECKING:
    from napari_fmseg.training.projects.predictions import predict as predict
    from napari_fmseg.training.projects.run_results import finish_run as finish_run
    from napari_fmseg.training.projects.score import cases_to_score as cases_to_score
    from napari_fmseg.training.projects.score import measure as measure

__all__ = [
    "ACCEPTED",
    "ACTIVE_VERSION",
    "CORRECTED",
    "FROM_SCRATCH",
    "LEAVING",
    "REJECTED",
    "CaseRecord",
    "CaseRow",
    "Fold",
    "HeldOutCase",
    "LabelOptions",
    "LabelVersion",
    "Lineage",
    "PaintedSlices",
    "Plan",
    "Project",
    "Run",
    "RunReport",
    "TrainingOptions",
    "Version",
    "VersionResult",
    "accept_case",
    "activate_version",
    "active_version",
    "add_case",
    "add_nameless",
    "add_version",
    "case_table",
    "cases_to_score",
    "earlier_labels",
    "exclude_case",
    "finish_run",
    "free_name",
    "image_hash",
    "include_case",
    "init_project",
    "label_case",
    "label_history",
    "labels_revision",
    "leaked_cases",
    "list_versions",
    "measure",
    "newest_version_without",
    "open_project",
    "open_run",
    "predict",
    "prepare_run",
    "publish",
    "rank_cases",
    "recipe_file",
    "recipe_for",
    "record_scores",
    "record_uncertainty",
    "remove_case",
    "rename_case",
    "rename_class",
    "restore_labels",
    "review_case",
    "roll_back",
    "run_report",
    "save_prediction",
    "scan_all",
    "scan_cases",
    "start_run",
    "training_plan",
    "unfinished_run",
    "what_would_help",
]


_WITH_MODELS = {"finish_run": "run_results", "measure": "score", "cases_to_score": "score", "predict": "predictions"}


def __getattr__(name: str) -> Any:
    if name in _WITH_MODELS:  # the pipelines' rooms are loaded with the first model
        return getattr(import_module(f"{__name__}.{_WITH_MODELS[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
