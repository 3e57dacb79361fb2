"""A project as it is on disk: nnU-Net's files, and beside them the record and role of each case, and the models."""

from __future__ import annotations

import dataclasses
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar

from napari_fmseg.core.errors import FmsegError
from napari_fmseg.core.structuring import read_table, structure
from napari_fmseg.datasets import nnunet_json
from napari_fmseg.datasets.nnunet_json import CaseFiles, DatasetInfo
from napari_fmseg.datasets.projects.locked_split import HELD_OUT, TRAINING, assign_roles
from napari_fmseg.datasets.projects.transaction import STATE_DIR, Transaction, recover, transaction

__all__ = [
    "INDEX",
    "CaseRecord",
    "Earlier",
    "Index",
    "Project",
    "init_project",
    "now",
    "open_project",
    "read_project",
    "with_fingerprint",
    "with_record",
    "with_roles",
    "write_state",
]

INDEX, LEDGER = f"{STATE_DIR}/project.json", f"{STATE_DIR}/split.json"

_FORMAT = "napari-fmseg project 1"

Stamp = tuple[int, ...]

T = TypeVar("T")


@dataclass(frozen=True)
class Earlier:
    """Labels that were replaced: the file in ``fmseg/history``, when, and what its numbers meant."""

    file: str
    changed: str
    classes: tuple[str, ...]
    ignore: int = 0


@dataclass(frozen=True)
class CaseRecord:
    """What is known of a case beside its files.

    Attributes
    ----------
    image
        Hash of its voxels; "" until it was examined.
    stamps
        Size and time of each image file then, so that a changed file is examined again.
    label_stamp
        The same of its labels; () if it had none.
    classes
        The classes that its labels tell of: what is not labelled as one of them is none of them. Of other classes
        they say nothing.
    sparse
        Whether some voxels carry the ignore label.
    labelled
        Share of its slices with labels, 0..1.
    changed
        When its labels changed last (UTC).
    earlier
        Its labels before, oldest first.
    dice
        By version of the model and class, on this case.
    uncertainty
        By version, 0..1.
    predicted
        The version whose labels lie in ``fmseg/predictions``; 0 if none does.
    problem
        Why it could not be read, or "".
    excluded
        Whether it takes no part: it is neither learned from nor measured on.
    unconfirmed
        Whether its labels count as those of the whole volume although most slices are empty, and nobody was asked.
    verdict
        What somebody who looked at its labels said: ``"accepted"``, ``"corrected"``, ``"rejected"``, or "" for nothing.
    reviewed
        When that was (UTC), or "".
    note
        What else was noted.
    """

    image: str = ""
    stamps: tuple[Stamp, ...] = ()
    label_stamp: Stamp = ()
    classes: tuple[str, ...] = ()
    sparse: bool = False
    labelled: float = 0.0
    changed: str = ""
    earlier: tuple[Earlier, ...] = ()
    dice: Mapping[int, Mapping[str, float]] = field(default_factory=dict)
    uncertainty: Mapping[int, float] = field(default_factory=dict)
    predicted: int = 0
    problem: str = ""
    excluded: bool = False
    unconfirmed: bool = False
    verdict: str = ""
    reviewed: str = ""
    note: str = ""


@dataclass(frozen=True)
class Index:
    """What ``fmseg/project.json`` holds.

    Attributes
    ----------
    format
        Of the project's own files.
    id
        The same wherever the folder lies and whatever it is called: part of the names of its models.
    cases
        What is known of each case.
    used
        The versions that were put in use, the present one last.
    """

    format: str = _FORMAT
    id: str = ""
    cases: Mapping[str, CaseRecord] = field(default_factory=dict)
    used: tuple[int, ...] = ()


@dataclass(frozen=True)
class Project:
    """A project as it was when it was opened; functions that change it give a new one.

    Attributes
    ----------
    folder
        Where it lies.
    facts
        What dataset.json says.
    files
        The files of every case by name.
    index
        What is known beside the files.
    roles
        ``"training"`` or ``"held out"`` by the hash of an image: the locked split.
    """

    folder: Path
    facts: DatasetInfo
    files: Mapping[str, CaseFiles]
    index: Index = field(default_factory=Index)
    roles: Mapping[str, str] = field(default_factory=dict)

    @property
    def labelled(self) -> tuple[str, ...]:
        """Names of the cases with labels."""
        return tuple(name for name, files in self.files.items() if files.labels is not None)

    def record(self, name: str) -> CaseRecord:
        """Return what is known of a case."""
        return self.index.cases.get(name, CaseRecord())

    def role(self, name: str) -> str:
        """Return ``"training"``, ``"held out"``, or "" while its image has none."""
        return self.roles.get(self.record(name).image, "")

    def files_of(self, name: str) -> CaseFiles:
        """Return the files of a case; `FmsegError` if there is no case of that name."""
        if name not in self.files:
            known = ", ".join(list(self.files)[:8]) or "none yet"
            raise FmsegError(f"There is no case {name!r} in {self.folder}. Its cases: {known}.")
        return self.files[name]


def now() -> str:
    """Return the time as text, UTC, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def init_project(
    folder: Path | str, labels: tuple[str, ...] = (), *, channels: tuple[str, ...] = ("image",), name: str = ""
) -> Project:
    """Create a project, or open a folder that another tool created.

    Parameters
    ----------
    folder
        Made if it is not there. A folder with a dataset.json is taken as it is: nothing of it changes.
    labels
        Class names in order; not for a folder that has a dataset.json.
    channels
        Names of the input channels; nnU-Net treats one that is called ``"CT"`` as CT.
    name
        Of the data set; by default the folder's.

    Raises
    ------
    FmsegError
        If there are no labels, one comes twice, or `labels` contradicts the dataset.json that is there.
    """
    folder = Path(folder).absolute()
    if (folder / "dataset.json").exists():
        facts = nnunet_json.read_facts(folder)
        if labels and tuple(labels) != tuple(facts.labels.values()):
            raise FmsegError(
                f"{folder} has a dataset.json with the classes {', '.join(facts.labels.values())}. Leave the "
                "labels out to take it as it is, or choose another folder."
            )
    elif not labels or len({n.casefold() for n in labels} | {"background", "ignore", ""}) != len(labels) + 3:
        raise FmsegError(
            f"A new project needs its classes, each once, and none is called background or ignore: {list(labels)}. "
            "Those two are there already."
        )
    with transaction(folder) as change:
        if not (folder / "dataset.json").exists():
            change.table("dataset.json", nnunet_json.new_table(tuple(labels), tuple(channels), name or folder.name))
        if not (folder / INDEX).exists():
            change.table(INDEX, dataclasses.asdict(Index(id=_new_id())))
    return open_project(folder)


def open_project(folder: Path | str, *, tidy: bool = True) -> Project:
    """Open a project, or any folder in nnU-Net's raw layout; quick, since no volume is read.

    What a killed process left behind is finished or thrown away. Cases that were put there by other tools, or changed
    by them, are listed at once; `examine` (in `examining`) reads them.

    Parameters
    ----------
    folder
        Where it lies.
    tidy
        Throw away what was never committed; without it nothing is written unless a commit has to be finished.

    Raises
    ------
    FmsegError
        If it is no such folder, or a file of the project was damaged.
    """
    folder = Path(folder).absolute()
    for _ in range(20):
        recover(folder, tidy=tidy)
        before = _stamps([folder / INDEX, folder / "dataset.json"])
        project = read_project(folder)
        if before == _stamps([folder / INDEX, folder / "dataset.json"]):
            break  # nobody changed it while it was read
    return project


def read_project(folder: Path) -> Project:
    """Read the files of a project as they are, without recovering what a killed process left."""
    facts = nnunet_json.read_facts(folder)
    files = nnunet_json.find_cases(folder, facts)
    told = _table(folder / INDEX)
    form = told.get("format", _FORMAT)
    if isinstance(form, str) and form != _FORMAT:
        raise FmsegError(
            f"{folder} was written by another version of fmseg ({form[:80]}, not {_FORMAT}). Update fmseg to open it."
        )
    index = _read(Index, folder / INDEX, told)
    roles = _read(_Ledger, folder / LEDGER, _table(folder / LEDGER)).roles or _roles_of_models(folder)
    if surplus := sorted(set(roles.values()) - {TRAINING, HELD_OUT}):
        raise FmsegError(
            f"{folder / LEDGER} is damaged: a role is {TRAINING!r} or {HELD_OUT!r}, not {surplus[0]!r}. Restore it "
            "from a copy of the project."
        )
    return Project(folder, facts, files, index, roles)


@dataclass(frozen=True)
class _Ledger:
    """What the file of the split holds."""

    format: str = ""
    note: str = ""
    roles: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class _Lesson:
    """What the lineage of a version tells of the split."""

    held_out: Mapping[str, str] = field(default_factory=dict)
    seen: tuple[str, ...] = ()


def _roles_of_models(folder: Path) -> dict[str, str]:
    """Reconstruct the roles where the split was lost, from the training and validation cases of the models."""
    roles: dict[str, str] = {}
    for path in sorted((folder / STATE_DIR / "models").glob("*/lineage.json")):
        told = _read(_Lesson, path, _table(path), known_only=True)
        roles.update(dict.fromkeys(told.held_out.values(), HELD_OUT))
        roles.update(dict.fromkeys(told.seen, TRAINING))
    return roles


def _table(path: Path) -> dict[str, Any]:
    try:
        return read_table(path)
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise FmsegError(f"{path} cannot be read: {error}. Restore it from a copy of the project.") from error


def _read(kind: type[T], path: Path, table: Mapping[str, Any], *, known_only: bool = False) -> T:
    try:
        return structure(kind, table, finite=False, known_only=known_only)
    except ValueError as error:
        raise FmsegError(f"{path} is damaged: {error}. Restore it from a copy of the project.") from error


def _stamps(paths: list[Path] | tuple[Path, ...]) -> tuple[Stamp, ...]:
    found = []
    for path in paths:
        try:
            facts = path.stat()
        except OSError:  # not there, or a link whose disk is not connected
            found.append((0, 0))
            continue
        found.append((facts.st_size, facts.st_mtime_ns))
    return tuple(found)


def with_fingerprint(record: CaseRecord, files: CaseFiles) -> CaseRecord:
    """Record size and time of the files, so that a later change is detected."""
    labels = _stamps([files.labels])[0] if files.labels is not None else ()
    return dataclasses.replace(record, stamps=_stamps(files.images), label_stamp=labels)


def with_record(project: Project, name: str, record: CaseRecord) -> Project:
    """Return the project with another record of a case; nothing is written."""
    return dataclasses.replace(
        project, index=dataclasses.replace(project.index, cases={**project.index.cases, name: record})
    )


def with_roles(project: Project, *, learned: tuple[str, ...] = ()) -> Project:
    """Return the project with a role for every labelled image that had none; nothing is written.

    Parameters
    ----------
    project
        As it is.
    learned
        Hashes of images that a model learned from: they can never validate.
    """
    images = {name: project.record(name).image for name in project.labelled if not project.record(name).excluded}
    said = nnunet_json.validation_names(project.facts.table)
    roles = assign_roles(
        project.roles,
        {image for image in images.values() if image},
        learned=learned,
        announced={image for name, image in images.items() if image and name in said},
        unfit={image for name, image in images.items() if not _may_validate(project.record(name))},
    )
    return dataclasses.replace(project, roles=roles)


def write_state(change: Transaction, project: Project, *, learned: tuple[str, ...] = ()) -> Project:
    """Collect the index and the split of `project` in a change; labelled images without a role get theirs.

    Parameters
    ----------
    change
        What is to be committed.
    project
        As it will be.
    learned
        As for `with_roles`.
    """
    if not project.index.id:  # made before projects had one
        project = dataclasses.replace(project, index=dataclasses.replace(project.index, id=_new_id()))
    new = with_roles(project, learned=learned)
    if new.roles != project.roles:
        change.table(LEDGER, {"format": "napari-fmseg split 1", "note": _NOTE, "roles": new.roles})
    change.table(INDEX, dataclasses.asdict(new.index))
    return new


def _may_validate(record: CaseRecord) -> bool:
    """Return whether a case may be held out unasked: one with most slices unlabelled would measure next to nothing."""
    return not record.unconfirmed and record.labelled >= _LEAST_SHARE


_LEAST_SHARE = 0.5


def _new_id() -> str:
    return uuid.uuid4().hex[:12]


_NOTE = (
    "The role of every image by the sha256 of its voxels. Entries are added and never changed: a held-out image must "
    "not be learned from, under whatever name it comes."
)
