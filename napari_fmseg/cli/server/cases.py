"""The cases of a project as a server's clients see them: images, labels, and which one to label next."""

from __future__ import annotations

import hashlib
import random
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from starlette.exceptions import HTTPException

from napari_fmseg.cli.server.served_models import renumber
from napari_fmseg.core.errors import LabelsChanged
from napari_fmseg.core.volume import LabelMap
from napari_fmseg.datasets.projects.staged_case import prediction_of
from napari_fmseg.explain.uncertainty import rank_by_uncertainty
from napari_fmseg.io import read_labels, suffix_of, write_labels
from napari_fmseg.io.channels import read_channels
from napari_fmseg.training.projects import (
    CaseRow,
    LabelOptions,
    Project,
    add_nameless,
    image_hash,
    label_case,
    labels_revision,
    open_project,
    rank_cases,
)

__all__ = ["FINAL", "ORIGINAL", "Cases", "Client"]

FINAL, ORIGINAL = "final", "original"
"""What the protocol calls labels of a person, and labels of a model that wait to be corrected."""

_LEASE_SECONDS = 1800.0
_LONGEST_NAME = 512


@dataclass(frozen=True)
class Client:
    """Who asks: the address, a mark of the token, and what the client calls itself."""

    address: str
    login: str = ""
    name: str = ""


class Cases:
    """The cases of one project.

    Parameters
    ----------
    folder
        Of the project.
    options
        How submitted labels are understood.
    clock
        Seconds that only increase.
    """

    def __init__(self, folder: Path, options: LabelOptions, *, clock: Callable[[], float] = time.monotonic) -> None:
        self.folder, self._options, self._clock = folder, options, clock
        self._lock = threading.Lock()
        # Names that clients gave, which may be those of patients: only their hashes are kept, and only in memory.
        self._aliases: dict[tuple[Client, str], str] = {}
        self._revisions: dict[tuple[Client, str], str] = {}
        self._leases: dict[str, float] = {}

    def open(self) -> Project:
        """Return the project as it is now."""
        return open_project(self.folder)

    # --- images

    def resolve(self, given: str, client: Client) -> str:
        """Return the case that a client means: by the name it uploaded the image under, or the project's.

        Raises
        ------
        HTTPException
            404 if there is none.
        """
        name = self._alias(given, client) or (given if given in self.open().files else "")
        if not name:
            raise HTTPException(
                404, "The server has no such image. Upload it first, or ask for the next sample; the names of images "
                "that were uploaded are forgotten when the server restarts."
            )  # fmt: skip
        return name

    def images(self, name: str) -> tuple[Path, ...]:
        """Return the files of a case, one for each channel."""
        return self.open().files_of(name).images

    def upload(self, image: Path, given: str, client: Client) -> str:
        """Add an uploaded image to the project, and return its name there; one that is there already stays as it is.

        Parameters
        ----------
        image
            The file or the folder of a DICOM series.
        given
            What the client calls it from now on.
        client
            Who that is.

        Raises
        ------
        HTTPException
            409 if the client calls another image so.
        """
        project = self.open()
        found = image_hash(read_channels((image,)))
        name = next((other for other in project.files if project.record(other).image == found), "")
        taken = self._alias(given, client) or (given if given in project.files else "")
        if taken and taken != name:
            raise HTTPException(
                409, "The server has another image under this name. Rename the volume in your program, then upload it. "
                "If two people work from one address, each needs a client id of their own."
            )  # fmt: skip
        if not name:
            project, name = add_nameless(project, image)
        with self._lock:
            self._aliases[client, _digest(given)] = name
        self.note_seen(name, client, project)
        return name

    def _alias(self, given: str, client: Client) -> str:
        """Return the case that a client uploaded under a name; some requests do not say which client it is."""
        with self._lock:
            own = self._aliases.get((client, _digest(given)))
            if own is not None or client.name:
                return own or ""
            others = {
                name
                for (other, digest), name in self._aliases.items()
                if digest == _digest(given) and (other.address, other.login) == (client.address, client.login)
            }
        return others.pop() if len(others) == 1 else ""

    # --- labels

    def note_seen(self, name: str, client: Client, project: Project | None = None) -> None:
        """Remember which labels of a case a client has seen: it may replace those, and no others."""
        revision = labels_revision(project or self.open(), name)
        with self._lock:
            self._revisions[client, name] = revision

    def submit(self, name: str, file: Path, info: Sequence[Mapping[str, Any]], client: Client) -> None:
        """Save labels of a case; the previous ones stay in its history.

        Parameters
        ----------
        name
            The case.
        file
            The labels: the v-th entry of `info` is the value v, unless the file itself names its values.
        info
            Entries with the field "name".
        client
            Who submits.

        Raises
        ------
        HTTPException
            422 if a value has no name.
        FmsegError
            As `label_case`.
        """
        labels = read_labels(file)
        names = dict(labels.names) or {value: str(entry.get("name", "")) for value, entry in enumerate(info, 1)}
        highest = int(labels.data.max(initial=0))
        if not labels.names and info and highest > len(info):
            raise HTTPException(
                422, f"The labels have the value {highest}, but only {len(info)} segments are listed "
                f"({', '.join(names.values())}). Export the segments that are listed, and no others."
            )  # fmt: skip
        with self._lock:
            nameless = Client(client.address, client.login)  # downloads do not say which client it is
            seen = self._revisions.get((client, name)) or self._revisions.get((nameless, name), "")
        given = LabelMap(labels.data, labels.geometry, {}, names)
        try:
            project = label_case(self.open(), name, given, self._options, revision=seen)
        except LabelsChanged as error:
            raise HTTPException(
                409, f"The case {name} has labels that this client has not seen: somebody saved them meanwhile. Load "
                "the case from the server again and look at them, or correct it in napari's Teach panel. Nothing was "
                "saved."
            ) from error  # fmt: skip
        self.note_seen(name, client, project)
        with self._lock:
            self._leases.pop(name, None)

    def labels_file(self, name: str, tag: str, folder: Path) -> Path:
        """Write the labels of a case for a client, in the folder, with values 1, 2, 3...; return the file.

        Raises
        ------
        HTTPException
            404 if the case has none.
        """
        project = self.open()
        file, classes = _labels(project, name, tag)
        if file is None:
            raise HTTPException(404, f"The case has no labels under the tag {tag!r}.")
        found = read_labels(file)
        labels = LabelMap(found.data, found.geometry, found.meta, classes, found.colors)
        path = folder / "labels.nii.gz"
        write_labels(renumber(labels, classes), path)
        return path

    def listing(self) -> dict[str, Any]:
        """Return all cases with their labels, as the protocol has them."""
        project = self.open()
        return {
            "name": project.folder.name,
            "description": "A project of napari-fmseg",
            "images_dir": "",
            "labels_dir": "",
            "objects": {name: _object(project, name) for name in project.files},
        }

    def pairs(self) -> list[dict[str, str]]:
        """Return image and labels of every labelled case, by name: where they lie is nobody's business."""
        project = self.open()
        return [{"image": name, "label": name} for name in project.labelled]

    def counts(self) -> dict[str, Any]:
        """Return how many cases there are, and how many have labels."""
        project = self.open()
        predicted = sum(bool(project.record(name).predicted) for name in project.files)
        tags = {FINAL: len(project.labelled), ORIGINAL: predicted}
        return {
            "total": len(project.files),
            "completed": len(project.labelled),
            "label_tags": {tag: n for tag, n in tags.items() if n},
        }

    # --- what to label next

    def next(self, strategy: str, client: Client) -> str:
        """Return the case to label next, "" where all have labels; one that somebody just got is left to them.

        Parameters
        ----------
        strategy
            "uncertainty": the one that the model in use is least sure of; "random": any.
        client
            Who asks.
        """
        project = self.open()
        waiting = rank_cases(project)
        if not waiting:
            return ""
        now = self._clock()
        with self._lock:
            self._leases = {name: at for name, at in self._leases.items() if now - at < _LEASE_SECONDS}
            names = _order(waiting) if strategy == "uncertainty" else _shuffle(waiting)
            free = [name for name in names if name not in self._leases]
            name = free[0] if free else min(names, key=lambda one: self._leases[one])
            self._leases[name] = now
        self.note_seen(name, client, project)
        return name


def _order(rows: Sequence[CaseRow]) -> list[str]:
    """List the cases that the model is unsure of, the most doubtful first, then those that it has not looked at."""
    known = {row.name: row.uncertainty for row in rows if row.uncertainty is not None}
    return [*rank_by_uncertainty(known), *(row.name for row in rows if row.name not in known)]


def _shuffle(rows: Sequence[CaseRow]) -> list[str]:
    names = [row.name for row in rows]
    random.shuffle(names)
    return names


def _labels(project: Project, name: str, tag: str) -> tuple[Path | None, dict[int, str]]:
    """Return the file with the labels of a case and what its values mean."""
    classes, files = dict(project.facts.labels), project.files_of(name)
    if tag == FINAL and files.labels is not None:
        if project.facts.ignore is not None and project.record(name).sparse:
            classes[project.facts.ignore] = "ignore"
        return files.labels, classes
    if tag == ORIGINAL and project.record(name).predicted:
        return project.folder / prediction_of(name), classes
    return None, classes


def _object(project: Project, name: str) -> dict[str, Any]:
    image = project.files[name].images[0]
    labels = {}
    for tag in (FINAL, ORIGINAL):
        file, classes = _labels(project, name, tag)
        if file is not None:
            numbered = {classes[value]: number for number, value in enumerate(sorted(classes), 1)}
            info = {"ts": _modification_time(file), "name": f"{name}.nii.gz", "params": {"label_names": numbered}}
            labels[tag] = {"ext": ".nii.gz", "info": info}
    suffix = suffix_of(image)
    return {
        "image": {"ext": suffix, "info": {"ts": _modification_time(image), "name": f"{name}{suffix}"}},
        "labels": labels,
    }


def _modification_time(path: Path) -> int:
    """Return when a file was written, in seconds; 0 where its disk is not connected."""
    try:
        return int(path.stat().st_mtime)
    except OSError:
        return 0


def _digest(given: str) -> str:
    return hashlib.sha256(given[:_LONGEST_NAME].encode()).hexdigest()
