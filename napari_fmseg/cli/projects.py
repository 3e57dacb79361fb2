"""The commands of a project: ``fmseg project ...``."""

from __future__ import annotations

import dataclasses
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

from tyro.conf import OmitArgPrefixes, Positional, arg

from napari_fmseg.cli.cases import CASE_COMMANDS
from napari_fmseg.cli.console import Events, Json, ProjectFolder, note, number, say, table, write_json
from napari_fmseg.cli.progress import follow
from napari_fmseg.core.errors import FmsegError, LabelsChanged
from napari_fmseg.training import Augment
from napari_fmseg.training.projects import (
    ACTIVE_VERSION,
    CaseRow,
    LabelOptions,
    Project,
    TrainingOptions,
    add_case,
    add_nameless,
    case_table,
    init_project,
    label_case,
    labels_revision,
    list_versions,
    open_project,
    prepare_run,
    rank_cases,
    recipe_file,
    scan_cases,
    training_plan,
)

__all__ = ["PROJECT_COMMANDS"]


def init(
    folder: Positional[Annotated[Path, arg(metavar="PROJECT")]],
    /,
    *,
    labels: tuple[str, ...] = (),
    channels: tuple[str, ...] = ("image",),
    name: str = "",
) -> int:
    """Create a project, or use a folder in nnU-Net's raw layout that another tool made.

    Parameters
    ----------
    folder
        Where it is; created if it is missing.
    labels
        Names of the classes, in order; not for a folder that has a dataset.json.
    channels
        Names of the channels of a volume, such as CT, or T1 T2.
    name
        Name of the data set; by default that of the folder.
    """
    project = _scan(init_project(folder, labels, channels=channels, name=name))
    say(f"{project.folder}: {len(project.files)} case(s), {', '.join(project.facts.numbers)}")
    return 0


def add(
    folder: ProjectFolder,
    /,
    *,
    image: tuple[Path, ...] = (),
    labels: Path | None = None,
    case: str = "",
    link: bool = False,
    again: bool = False,
    revision: str = "",
    replace: bool = False,
    labelling: OmitArgPrefixes[LabelOptions] = LabelOptions(),  # noqa: B008 - frozen
) -> int:
    """Add a volume with or without labels; without --image, replace the labels of a case by corrected ones.

    Parameters
    ----------
    image
        A file or a DICOM folder; one file per channel where there are several, in the order of the channels (files
        that end in _0000, _0001 are sorted by it).
    labels
        A file with labels, on the image's grid.
    case
        Its name in the project, by default case-001 and so on; never a patient's name.
    link
        Link to the image instead of copying it.
    again
        Add an image although the project has it under another name.
    revision
        Revision of the labels that these correct (see `fmseg project history`); refused if they have changed since.
    replace
        Replace the labels that the case has, whoever made them; they stay in its history.
    """
    project = open_project(folder)
    if not image and (labels is None or not case):
        raise FmsegError("There is nothing to add. Give --image, or --case and --labels to label an existing case.")
    name = case
    files = image[0] if len(image) == 1 else image
    if not image:
        assert labels is not None
        now = labels_revision(project, name)
        if now and not (revision or replace):
            raise LabelsChanged(
                f"{name} has labels already (revision {now}). To replace them whoever made them, add --replace; to "
                f"replace just these, add --revision {now}. They stay in the history of the case."
            )
        project = label_case(project, name, labels, labelling, revision=revision or None, replace=replace)
    elif name:
        project = add_case(project, name, files, labels, labelling, link=link, again=again)
    else:
        project, name = add_nameless(project, files, labels, labelling, link=link, again=again)
    row = next(row for row in case_table(project) if row.name == name)
    say(f"{name}: {row.status}{f', {100 * row.labelled:.0f} % of its slices' if row.classes else ''}")
    return 0


def list_cases(folder: ProjectFolder, /, *, as_json: Json = False) -> int:
    """List the cases: the role of each, the Dice of the model in use, and what is labelled."""
    project = _open_unchanged(folder, quiet=as_json)
    rows = case_table(project)
    if as_json:
        write_json({"cases": [dataclasses.asdict(row) for row in rows], "in_use": project.index.used[-1:]})
        return 0
    _show(rows)
    versions = list_versions(project)
    if versions:
        say(f"\nversions of the model: {', '.join(str(v.number) for v in versions)}; in use: {project.index.used[-1]}")
        newest = versions[-1]
        if newest.number != project.index.used[-1] and newest.lineage.verdict:
            say(f"version {newest.number} is not in use. {newest.lineage.verdict}")
    return 0


def split(folder: ProjectFolder, /, *, as_json: Json = False) -> int:
    """List which cases are held out permanently, and which are used for training."""
    project = _scan(open_project(folder), quiet=as_json)
    plan = training_plan(project)
    training, held = [case.name for case in plan.training], [case.name for case in plan.validation]
    if as_json:
        write_json({"training": training, "held_out": held, "roles": project.roles, "note": plan.note,
                    "images": plan.images, "missing_classes": plan.partial})  # fmt: skip
        return 0
    say(f"held out: {', '.join(held) or '-'}\ntraining: {', '.join(training)}\n{plan.note}")
    for name, classes in plan.partial.items():
        say(f"{name} is not labelled with: {', '.join(classes)}")
    return 0


def rank(folder: ProjectFolder, /, *, as_json: Json = False) -> int:
    """List the cases without labels, the one that the model in use is least certain of first."""
    project = _open_unchanged(folder, quiet=as_json)
    rows = rank_cases(project)
    if as_json:
        write_json([dataclasses.asdict(row) for row in rows])
        return 0
    if not rows:
        note("Every case has labels.")
        return 0
    _show(rows)
    if not any(row.uncertainty is not None for row in rows):
        note("The uncertainty of the model was not computed yet (`fmseg project predict`), so they are listed by name.")
    return 0


def prepare(
    folder: ProjectFolder,
    /,
    *,
    start_from: str = ACTIVE_VERSION,
    lesson: OmitArgPrefixes[TrainingOptions] = TrainingOptions(),  # noqa: B008 - frozen
    augment: Augment = Augment(),  # noqa: B008 - frozen
    events: Events = False,
) -> int:
    """Write a recipe for the project's cases, this machine and the given minutes; `fmseg train` then runs it.

    Parameters
    ----------
    start_from
        "project" for its model in use; the name of another model or its card's path; "general-start", which has
        learned other organs and helps where there is a minute only; or "" for nothing.
    lesson
        Duration, device and network.
    augment
        How volumes are augmented.
    """
    run = follow(prepare_run(open_project(folder), start_from, lesson, augment), events=events)
    if not events:
        say(run.plan.note)
        say(shlex.join(["fmseg", "train", str(recipe_file(run))]))
        say(shlex.join(["fmseg", "project", "keep", str(folder), "--run", run.folder.name]))
    return 0


def keep(folder: ProjectFolder, /, *, run: int, force: bool = False, events: Events = False) -> int:
    """Score a trained model on the held-out cases, add it as a version, and use it if it is better.

    Parameters
    ----------
    run
        The number of the run, which is the name of its folder in fmseg/runs.
    force
        Use it whatever its scores are.
    """
    from napari_fmseg.training.projects import finish_run

    kept = follow(finish_run(open_project(folder), run, force=force), events=events, remarks=False)
    if not events:
        say(f"version {kept.version.number} {'is' if kept.in_use else 'is not'} in use. {kept.why}")
    return 0


def predict(
    folder: ProjectFolder, /, *, cases: tuple[str, ...] = (), device: str = "auto", events: Events = False
) -> int:
    """Segment the cases without labels with the model in use, to be corrected, and compute its uncertainty for each.

    Parameters
    ----------
    cases
        Only these cases.
    device
        auto, cpu, cuda or mps.
    """
    from napari_fmseg.training.projects import predict as find

    project = follow(find(open_project(folder), cases, device=device), events=events)
    if not events:
        _show(rank_cases(project))
    return 0


def _open_unchanged(folder: Path, *, quiet: bool = False) -> Project:
    """Open a project without writing to it."""
    return _scan(open_project(folder, tidy=False), quiet=quiet, write=False)


def _scan(project: Project, *, quiet: bool = False, write: bool = True) -> Project:
    """Scan new and changed cases, with a bar, and warn of those that cannot be used."""
    project = follow(scan_cases(project, write=write), quiet=quiet)
    for row in case_table(project):
        if row.problem:
            note(f"{row.name} cannot be used: {row.problem}")
    return project


def _show(rows: tuple[CaseRow, ...]) -> None:
    say(table(
        ("CASE", "STATUS", "DICE", "UNCERTAINTY", "SLICES %", "CHANGED (UTC)", "CLASSES"),
        [(row.name, row.status, number(row.dice), number(row.uncertainty),
          f"{100 * row.labelled:.0f}" if row.classes else "-", row.changed[:16] or "-", ", ".join(row.classes) or "-")
         for row in rows],
    ))  # fmt: skip


PROJECT_COMMANDS: dict[str, Callable[..., int]] = {
    "init": init,
    "add": add,
    "list": list_cases,
    "split": split,
    "rank": rank,
    "prepare": prepare,
    "keep": keep,
    "predict": predict,
    **CASE_COMMANDS,
}
