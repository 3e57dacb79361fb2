"""The training plan of a project: training cases, validation cases, and unlabelled classes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from napari_fmseg.core.errors import FmsegError, InvalidRecipe
from napari_fmseg.core.structuring import read_table, structure
from napari_fmseg.datasets.case import Case
from napari_fmseg.datasets.projects.locked_split import HELD_OUT, LEAST, TRAINING, is_locked
from napari_fmseg.datasets.projects.project import INDEX, Project, now, open_project, write_state
from napari_fmseg.datasets.projects.scan import changed_cases, scan_all
from napari_fmseg.datasets.projects.transaction import STATE_DIR, inside, transaction

__all__ = [
    "LEAVING",
    "Fold",
    "Plan",
    "Run",
    "find_unlabelled_cases",
    "note_learned",
    "open_run",
    "start_run",
    "todays_labels",
    "training_and_validation_cases",
    "training_plan",
]

LEAVING = "leaving one out"
"""Stage name in the progress of the trainings of `Plan.folds`."""

_MOST_FOLDS = 4


@dataclass(frozen=True)
class Fold:
    """One round of leave-one-out: its model must not start from one that has seen `validation`."""

    training: tuple[Case, ...]
    validation: tuple[Case, ...]


@dataclass(frozen=True)
class Plan:
    """What is learned from and measured on.

    Attributes
    ----------
    labels
        Class names in the order of their numbers.
    names
        Class names by number in the label files.
    ignore
        The number in the label files that means "not labelled", or None.
    training, validation
        The cases, each with the classes that its labels tell of. Without a locked split nothing validates: the model
        learns from all.
    unlabelled
        Cases without labels to learn from as well; never one whose image is held out.
    folds
        With two or three labelled images and no locked split: leave-one-out, to measure what such a model is worth.
    images
        The hash of each case's image.
    note
        In a sentence, how it is validated and why.
    """

    labels: tuple[str, ...]
    names: Mapping[int, str]
    ignore: int | None
    training: tuple[Case, ...]
    validation: tuple[Case, ...] = ()
    unlabelled: tuple[Case, ...] = ()
    folds: tuple[Fold, ...] = ()
    images: Mapping[str, str] = field(default_factory=dict)
    note: str = ""

    @property
    def partial(self) -> dict[str, tuple[str, ...]]:
        """Unlabelled classes of the cases that were not labelled with every class."""
        told = {case.name: case.classes for case in (*self.training, *self.validation)}
        missing = {name: tuple(n for n in self.labels if n not in own) for name, own in told.items()}
        return {name: names for name, names in missing.items() if names}


@dataclass(frozen=True)
class Run:
    """A training run of a project: its folder in ``fmseg/runs`` and what it learns from."""

    project: Project
    folder: Path
    plan: Plan


def training_plan(project: Project) -> Plan:
    """Return the training and the validation cases; nothing is written.

    Raises
    ------
    FmsegError
        If no case can be learned from, or cases were not examined yet.
    """
    part = [name for name in project.labelled if not project.record(name).excluded]
    waiting = [name for name in changed_cases(project) if name in part]
    if waiting:
        raise FmsegError(
            f"{len(waiting)} case(s) are new or were changed by another program, such as {waiting[0]}. Examine the "
            "project first: `fmseg project split` does it."
        )
    names = [name for name in part if not project.record(name).problem]
    cases = {name: _case(project, name) for name in names}
    images = {name: project.record(name).image for name in names}
    held = tuple(case for name, case in cases.items() if project.role(name) == HELD_OUT)
    training = tuple(case for name, case in cases.items() if project.role(name) != HELD_OUT)
    if not training:
        raise FmsegError(
            f"{project.folder} has no labelled case to learn from"
            + (": all are held out, and stay so." if held else ".")
            + " Add a volume with labels first."
        )
    locked = is_locked(project.roles, images.values())
    return Plan(
        labels=tuple(project.facts.labels.values()),
        names=dict(project.facts.labels),
        ignore=project.facts.ignore,
        training=training,
        validation=held,
        unlabelled=_find_unlabelled(project),
        folds=() if locked else _leave_one_out(training, images),
        images=images,
        note=_note(len(set(images.values())), len(training), len(held)),
    )


def _find_unlabelled(project: Project) -> tuple[Case, ...]:
    """Return the cases without labels that may be learned from: none whose image has labels under another name."""
    found, labelled = [], {project.record(name).image for name in project.labelled}
    for name, files in project.files.items():
        record = project.record(name)
        usable = files.labels is None and record.image and not record.problem and not record.excluded
        if usable and project.role(name) != HELD_OUT and record.image not in labelled:
            found.append(Case(name, files.images))
    return tuple(found)


def _leave_one_out(cases: tuple[Case, ...], images: Mapping[str, str]) -> tuple[Fold, ...]:
    """Leave one image out at a time, with all cases that show it; of more than `_MOST_FOLDS`, several at a time."""
    there = list(dict.fromkeys(images[case.name] for case in cases))
    folds = []
    for i in range(min(len(there), _MOST_FOLDS)):
        left = set(there[i::_MOST_FOLDS])
        out = tuple(case for case in cases if images[case.name] in left)
        rest = tuple(case for case in cases if images[case.name] not in left)
        if rest:
            folds.append(Fold(rest, out))
    return tuple(folds)


def _note(n_images: int, n_training: int, n_held: int) -> str:
    if n_held:
        return f"{n_held} case(s) are held out for ever and validate; {n_training} are learned from."
    if n_images == 1:
        return "One labelled image: it is learned from, and nothing can be measured. Label a second one."
    last = (
        f"From {LEAST} labelled images on, one that no model has learned from is held out for ever."
        if n_images < LEAST
        else "Every labelled image has been learned from; the next new one is held out."
    )
    return f"{n_images} labelled images are all learned from, and left out one at a time to measure. {last}"


def start_run(project: Project, plan: Plan) -> Run:
    """Start a run: create its folder and record that the training cases were used for training.

    From then on none of them can validate, even if the run fails: its weights may be in use somewhere.

    Raises
    ------
    FmsegError
        If the split changed since the plan was made, so that it would learn from a held-out case.
    """
    with transaction(project.folder) as change:
        fresh = open_project(project.folder)
        leaking = [c.name for c in plan.training if fresh.roles.get(plan.images[c.name]) == HELD_OUT]
        if leaking:
            raise FmsegError(f"{leaking[0]} was held out since the plan was made. Make a new plan.")
        runs = fresh.folder / STATE_DIR / "runs"
        number = 1 + max((int(p.name) for p in runs.glob("[0-9]*") if p.name.isdecimal()), default=0)
        change.table(
            f"{STATE_DIR}/runs/{number}/plan.json",
            {
                "started": now(),
                "training": {case.name: plan.images[case.name] for case in plan.training},
                "validation": {case.name: plan.images[case.name] for case in plan.validation},
                "labels": {str(value): name for value, name in plan.names.items()},
                "ignore": plan.ignore,
                "missing_classes": plan.partial,
                "note": plan.note,
            },
        )
        write_state(change, fresh, learned=tuple(plan.images[case.name] for case in plan.training))
    return Run(open_project(project.folder), project.folder / STATE_DIR / "runs" / str(number), plan)


@dataclass(frozen=True)
class _Told:
    """What plan.json holds of a run."""

    training: Mapping[str, str]
    validation: Mapping[str, str]
    labels: Mapping[str, str] = field(default_factory=dict)
    note: str = ""


def _read_plan(folder: Path) -> _Told:
    """Read the cases of a run from its `folder`."""
    try:
        return structure(_Told, read_table(folder / "plan.json"), known_only=True)
    except FileNotFoundError as error:
        raise FmsegError(f"There is no run {folder.name} in {folder.parents[2]}.") from error
    except (OSError, ValueError) as error:
        raise FmsegError(f"The plan of run {folder.name} cannot be read: {error}. Start a new run.") from error


def open_run(project: Project, number: int) -> Run:
    """Open an earlier run, to resume it: it has the same cases, even if cases were added or renamed since.

    Raises
    ------
    FmsegError
        If there is no such run, or one of its cases is gone.
    """
    folder = inside(project.folder, f"{STATE_DIR}/runs/{number}/plan.json").parent
    told = _read_plan(folder)
    parts = {"training": told.training, "validation": told.validation}
    now_called = {project.record(name).image: name for name in project.labelled}
    cases: dict[str, tuple[Case, ...]] = {}
    for part, images in parts.items():
        gone = [name for name, image in images.items() if image not in now_called]
        if gone:
            raise FmsegError(f"{gone[0]}, which run {number} learns from or validates on, is gone. Start a new run.")
        cases[part] = tuple(
            _case(project, name if name in project.files and project.record(name).image == image else now_called[image])
            for name, image in images.items()
        )
    everyone = (*cases["training"], *cases["validation"])
    hashes = {case.name: project.record(case.name).image for case in everyone}
    locked = bool(cases["validation"]) or is_locked(project.roles, hashes.values())
    plan = Plan(
        labels=tuple(project.facts.labels.values()),
        names=dict(project.facts.labels),
        ignore=project.facts.ignore,
        training=cases["training"],
        validation=cases["validation"],
        unlabelled=_find_unlabelled(project),
        folds=() if locked else _leave_one_out(cases["training"], hashes),
        images=hashes,
        note=told.note,
    )
    return Run(project, folder, plan)


def todays_labels(run: Run, labels: Mapping[int, str]) -> dict[int, str]:
    """Return the current names of the classes of a run's model; they may have been renamed
    since.

    Parameters
    ----------
    run
        See `open_run`.
    labels
        Of the model, by its own numbers.
    """
    then = _read_plan(run.folder).labels
    now = {name: run.project.facts.labels.get(int(value), name) for value, name in then.items() if value.isdecimal()}
    return {value: now.get(name, name) for value, name in labels.items()}


def _case(project: Project, name: str) -> Case:
    files = project.files[name]
    return Case(name, files.images, files.labels, project.record(name).classes)


def training_and_validation_cases(
    folder: Path, holdout: tuple[str, ...] = ()
) -> tuple[dict[int, str], list[Case], list[Case]]:
    """Return class names, training and validation cases of a project for a recipe that names its folder.

    The locked split is obeyed, and nothing is written; `note_learned` does that when a training starts.

    Parameters
    ----------
    folder
        Of the project.
    holdout
        Names of cases that validate as well.

    Raises
    ------
    InvalidRecipe
        If one of `holdout` is not there or was learned from before.
    """
    project = scan_all(open_project(folder, tidy=False), write=False)
    plan = training_plan(project)
    names = {case.name for case in plan.training}
    unknown = sorted(set(holdout) - names - {case.name for case in plan.validation})
    learned = [name for name in holdout if project.role(name) == TRAINING]
    if unknown or learned:
        raise InvalidRecipe(
            f"{(unknown or learned)[0]} cannot be held out: "
            + (f"it is no labelled case of {folder}." if unknown else "the split of the project has it for training.")
            + " Leave holdout out; the project knows its held-out cases."
        )
    training = [case for case in plan.training if case.name not in holdout]
    held = [*plan.validation, *(case for case in plan.training if case.name in holdout)]
    ignored = {} if plan.ignore is None else {plan.ignore: "ignore"}
    return {**plan.names, **ignored}, training, held


def find_unlabelled_cases(folder: Path) -> list[Case]:
    """Return the cases of a project without labels that may be learned from; nothing is written."""
    project = scan_all(open_project(folder, tidy=False), write=False)
    return list(_find_unlabelled(project))


def note_learned(folder: Path, cases: Iterable[Case]) -> None:
    """Record that cases of a project are used for training; nothing happens for other folders.

    Parameters
    ----------
    folder
        Of a project, or any other one.
    cases
        As `training_and_validation_cases` gave them.

    Raises
    ------
    FmsegError
        If one of them is held out by now, or is gone.
    """
    cases = list(cases)
    if not cases or not (folder / INDEX).exists():
        return
    scan_all(open_project(folder))
    with transaction(folder.absolute()) as change:
        fresh = open_project(folder)
        gone = [case.name for case in cases if case.name not in fresh.files]
        leaking = [case.name for case in cases if fresh.role(case.name) == HELD_OUT]
        if gone or leaking:
            raise FmsegError(
                f"{(gone or leaking)[0]} {'is gone from' if gone else 'was meanwhile held out in'} {folder}. Start the "
                "training again."
            )
        learned = {fresh.record(case.name).image for case in cases}
        if any(fresh.roles.get(image) != TRAINING for image in learned):
            write_state(change, fresh, learned=tuple(sorted(learned)))
