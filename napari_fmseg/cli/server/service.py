"""What a server consists of: models, an engine, a project's cases and trainings, uploads, and those who use it."""

from __future__ import annotations

import asyncio
import shutil
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request

from napari_fmseg.cli.server.access import Guard
from napari_fmseg.cli.server.cases import Cases, Client
from napari_fmseg.cli.server.rounds import Rounds
from napari_fmseg.cli.server.served_models import ServedModel, renumber
from napari_fmseg.cli.server.sessions import Sessions
from napari_fmseg.core.errors import FmsegError
from napari_fmseg.core.events import FROM_THE_FILE, StageResult, Warned
from napari_fmseg.core.volume import LabelMap
from napari_fmseg.io import read_volume, suffix_of, write_labels
from napari_fmseg.io.channels import read_channels
from napari_fmseg.pipelines import SegmentOptions
from napari_fmseg.training.projects import TrainingOptions, active_version
from napari_fmseg.training.projects.names import model_name
from napari_fmseg.workers.engine import RemoteEngine

__all__ = ["ClientCount", "InferResult", "Service"]

_RESULTS = (".nrrd", ".nii.gz", ".nii", ".mha")
_MOST_WAITING = 64
_MOST_CLIENTS = 1000


@dataclass(frozen=True)
class InferResult:
    """Labels as a file, and what the protocol tells of them."""

    content: bytes
    suffix: str
    params: dict[str, Any]


@dataclass
class ClientCount:
    """How often an address has asked, and when last (seconds that only increase)."""

    requests: int = 0
    last: float = 0.0


@dataclass
class Service:
    """All that the requests of a server share.

    Parameters
    ----------
    folder
        For uploads; removed by `close`.
    shared
        Models beside that of the project.
    guard, sessions
        See there.
    engine
        Runs the models.
    cases, rounds
        Of the project, or None.
    options, training
        How models are run and trained.
    dicom
        A folder with series that can be asked for by their SeriesInstanceUID.
    most_bytes
        Of an upload.
    key
        Who knows it may ask for the status.
    """

    folder: Path
    shared: tuple[ServedModel, ...]
    guard: Guard
    sessions: Sessions
    engine: RemoteEngine
    cases: Cases | None = None
    rounds: Rounds | None = None
    options: SegmentOptions = SegmentOptions()  # noqa: RUF009 - frozen
    training: TrainingOptions = TrainingOptions()  # noqa: RUF009 - frozen
    dicom: Path | None = None
    most_bytes: int = 4 << 30
    key: str = ""
    started: float = field(default_factory=time.time)
    clients: dict[str, ClientCount] = field(default_factory=dict)
    waiting: int = 0
    _turn: asyncio.Lock = field(default_factory=asyncio.Lock)
    _uploads: dict[tuple[Client, str], str] = field(default_factory=dict)
    _counting: threading.Lock = field(default_factory=threading.Lock)

    def close(self) -> None:
        """End what runs and remove all uploads."""
        if self.rounds is not None:
            self.rounds.close()
        self.engine.close()
        shutil.rmtree(self.folder, ignore_errors=True)

    @contextmanager
    def folder_for_request(self) -> Iterator[Path]:
        """Yield a folder for uploads and results; what is still in it at the end is removed."""
        folder = self.sessions.new_folder()
        try:
            yield folder
        finally:
            if not self.sessions.owns(folder):
                shutil.rmtree(folder, ignore_errors=True)

    # --- models

    def models(self) -> tuple[ServedModel, ...]:
        """Return the models as they are now: first that of the project, whose version changes."""
        own: tuple[ServedModel, ...] = ()
        if self.cases is not None:
            project = self.cases.open()
            version = active_version(project)
            if version is not None:
                own = (ServedModel(model_name(project), version.card),)
        return (*own, *self.shared)

    def model(self, name: str) -> ServedModel:
        """Return a model by its name; `HTTPException` 404 if there is none."""
        models = {model.name: model for model in self.models()}
        if name not in models:
            raise HTTPException(404, f"There is no such model here. There are: {', '.join(models) or 'none yet'}.")
        return models[name]

    def trainer(self) -> str:
        """Return the name of the model that is trained; `HTTPException` 404 without a project."""
        return model_name(self.need_cases().open())

    def need_cases(self) -> Cases:
        """Return the cases; `HTTPException` 404 without a project."""
        if self.cases is None:
            raise HTTPException(
                404, "This server has models, but no project to keep images and labels in, and to train. Start it with "
                "one: fmseg serve PROJECT"
            )  # fmt: skip
        return self.cases

    def need_rounds(self) -> Rounds:
        """Return the trainings; `HTTPException` 404 without a project."""
        self.need_cases()
        assert self.rounds is not None
        return self.rounds

    # --- images

    def upload(self, image: Path, folder: Path, given: str, client: Client) -> str:
        """Keep an uploaded image: in the project, or without one for a while. Return its name there."""
        if self.cases is not None:
            return self.cases.upload(image, given, client)
        session = self.sessions.open(folder)
        self._uploads[client, given] = session.name
        return given

    def images(self, given: str, client: Client) -> tuple[tuple[Path, ...], str | None]:
        """Return the files of an image that a client names, and which DICOM series of them (None: there is but one)."""
        if self.cases is not None:
            try:
                name = self.cases.resolve(given, client)
            except HTTPException:
                if self.dicom is None:
                    raise
            else:
                self.cases.note_seen(name, client)
                return self.cases.images(name), None
        session = self.sessions.find(self._uploads.get((client, given), ""))
        if session is not None:
            return (session.image,), None
        if self.dicom is not None and given:
            return (self.dicom,), given
        raise HTTPException(404, "The server does not have this image, or not any more. Upload it first.")

    # --- inference

    async def infer(
        self, model: ServedModel, images: Sequence[Path], series: str | None, suffix: str, request: Request
    ) -> InferResult:
        """Segment an image when it is its turn; requests wait in the order in which they came.

        Parameters
        ----------
        model
            Which one.
        images
            A file for each channel.
        series
            Which DICOM series of a folder.
        suffix
            Of the result; "" takes that of the image.
        request
            Is given up if its client has gone meanwhile.
        """
        suffix = suffix.lower().replace(".seg.nrrd", ".nrrd")
        if suffix and suffix not in _RESULTS:
            raise HTTPException(422, f"Labels are written as {', '.join(_RESULTS)}, not as {suffix[:20]!r}.")
        if self.waiting >= _MOST_WAITING:
            raise HTTPException(503, f"{self.waiting} images are waiting to be segmented. Try again later.")
        self.waiting += 1
        try:
            async with self._turn:
                if await request.is_disconnected():
                    raise ClientDisconnect
                return await run_in_threadpool(self._infer, model, images, series, suffix)
        finally:
            self.waiting -= 1

    def _infer(self, model: ServedModel, images: Sequence[Path], series: str | None, suffix: str) -> InferResult:
        start = time.perf_counter()
        if len(images) == 1:
            volume = read_volume(images[0], series=series)
        else:
            volume = read_channels(images, model.card.channels, resample=True)
        seconds = {"reading": round(time.perf_counter() - start, 3)}
        labels: LabelMap | None = None
        warnings: list[str] = []
        for event in self.engine.segment(volume, model.card, replace(self.options, show_stages=False)):
            if isinstance(event, StageResult):
                seconds[event.stage] = round(event.seconds, 3)
                labels = event.output if isinstance(event.output, LabelMap) else labels
            elif isinstance(event, Warned) and event.code != FROM_THE_FILE:
                warnings.append(event.text)
        if labels is None:
            raise FmsegError(f"{model.name} ended without labels. Start the server with another --until.")
        suffix = suffix or (suffix_of(images[0]) if suffix_of(images[0]) in _RESULTS else ".nii.gz")
        with self.folder_for_request() as folder:
            path = folder / f"labels{suffix}"
            write_labels(renumber(labels, model.card.labels), path, source=volume)
            content = path.read_bytes()
        params = {"label_names": model.labels, "model": model.name, "latencies": seconds, "warnings": warnings}
        return InferResult(content, suffix, params)

    # --- who uses it

    def count(self, address: str) -> None:
        """Count a request."""
        with self._counting:
            if address not in self.clients and len(self.clients) >= _MOST_CLIENTS:
                self.clients.pop(min(self.clients, key=lambda one: self.clients[one].last))
            entry = self.clients.setdefault(address, ClientCount())
            entry.requests += 1
            entry.last = time.monotonic()

    def status(self) -> dict[str, Any]:
        """Return what `fmseg serve --status` and the Doctor panel show."""
        now = time.monotonic()
        with self._counting:
            clients = [
                {"address": address, "requests": entry.requests, "seconds_ago": round(now - entry.last, 1)}
                for address, entry in self.clients.items()
            ]
        last = self.rounds.last if self.rounds is not None else None
        return {
            "project": "" if self.cases is None else str(self.cases.folder),
            "models": [model.name for model in self.models()],
            "started": int(self.started),
            "clients": clients,
            "waiting": self.waiting,
            "sessions": len(self.sessions),
            "training": None if last is None else last.as_json(),
        }
