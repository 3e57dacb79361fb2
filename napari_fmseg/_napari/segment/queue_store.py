"""The queue on disk: which scans wait, which are done, in one small file per window that outlives a crash.

The file holds the paths that the user chose, the model, the options and how each scan ended, never anything out of a
scan: not even the text of an error, which may quote one. It is replaced as a whole at every change. A lock that ends
with its process tells whose file it is; a new window takes over the files that nobody holds.
"""

from __future__ import annotations

import dataclasses
import json
import uuid
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from napari_fmseg.core.atomic_write import as_unwritable, atomic_write, check_folder
from napari_fmseg.core.errors import FmsegError
from napari_fmseg.pipelines import SegmentOptions
from napari_fmseg.pipelines.batch import SegmentationJob

__all__ = ["CANCELLED", "DONE", "FAILED", "RUNNING", "WAITING", "QueueFile", "QueuedScan"]

WAITING, RUNNING, DONE, FAILED, CANCELLED = "waiting", "running", "done", "failed", "cancelled"
_STATES = (WAITING, RUNNING, DONE, FAILED, CANCELLED)
FORGOTTEN = "It failed in an earlier session, whose error messages are not kept. Retry shows the reason again."


@dataclass(frozen=True)
class QueuedScan:
    """One scan of the queue.

    Attributes
    ----------
    job
        Its files, and where the labels go.
    model
        Name of the model.
    options
        How to run it.
    state
        One of ``"waiting"``, ``"running"``, ``"done"``, ``"failed"`` and ``"cancelled"``.
    reason
        Why it failed, a sentence; not kept on disk.
    id
        The same as long as it is in the queue.
    """

    job: SegmentationJob
    model: str
    options: SegmentOptions = SegmentOptions()  # noqa: RUF009 - frozen
    state: str = WAITING
    reason: str = ""
    id: str = dataclasses.field(default_factory=lambda: uuid.uuid4().hex)

    @property
    def name(self) -> str:
        """What the user calls it: the name of its file or folder."""
        return self.job.image.name


class QueueFile:
    """The file of one window.

    Parameters
    ----------
    folder
        Where all of them lie; made when something is written first.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._path = folder / f"{uuid.uuid4().hex}.json"
        self._lock: FileLock | None = None

    def write(self, scans: Sequence[QueuedScan], results: Path | None) -> None:
        """Replace what the file says; `results` is the folder that results go to.

        Raises
        ------
        UnwritableVolume
            If it cannot be written; what it said before stays.
        """
        if self._lock is None:
            check_folder(self._path)
            lock = FileLock(self._path.with_suffix(".lock"))
            try:
                self._folder.chmod(0o700)  # the names of folders may be those of patients
                lock.acquire(timeout=0)
            except OSError as error:
                raise as_unwritable(self._path, error) from error
            self._lock = lock
        facts = {"version": 1, "results": str(results or ""), "scans": [_facts_of(scan) for scan in scans]}
        with atomic_write(self._path) as file:
            file.write(json.dumps(facts, indent=1).encode())

    def adopt(self) -> tuple[list[QueuedScan], Path | None]:
        """Return the scans of windows that are no more, and the folder for results; their files are removed.

        What ran when its window ended waits again. To be followed by `write`.
        """
        found: list[QueuedScan] = []
        results: Path | None = None
        for path in sorted(self._folder.glob("*.json"), key=_age) if self._folder.is_dir() else ():
            lock = FileLock(path.with_suffix(".lock"))
            try:
                if path == self._path:
                    continue
                lock.acquire(timeout=0)
            except (Timeout, OSError):  # its window is still open, or the file is somebody else's
                continue
            scans, place = _read(path)
            found += scans
            results = place or results
            with suppress(OSError):
                path.unlink(missing_ok=True)
            lock.release()
            with suppress(OSError):
                path.with_suffix(".lock").unlink(missing_ok=True)
        return found, results

    def release(self, *, empty: bool = False) -> None:
        """Leave the file to another window; an `empty` one is removed."""
        if self._lock is None:
            return
        if empty:
            self._path.unlink(missing_ok=True)
        self._lock.release()
        if empty:
            with suppress(OSError):
                self._path.with_suffix(".lock").unlink(missing_ok=True)
        self._lock = None


def _age(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except OSError:  # another window has just taken it over
        return 0.0


def _facts_of(scan: QueuedScan) -> dict[str, Any]:
    return {
        "image": str(scan.job.image),
        "others": [str(path) for path in scan.job.others],
        "result": str(scan.job.result),
        "model": scan.model,
        "options": dataclasses.asdict(scan.options),
        "state": scan.state,
    }


def _read(path: Path) -> tuple[list[QueuedScan], Path | None]:
    """Read a file; what makes no sense is left out."""
    try:
        facts = json.loads(path.read_text(encoding="utf-8"))
        rows, results = facts["scans"], facts["results"]
    except (OSError, ValueError, KeyError, TypeError):
        return [], None
    scans = [_scan_of(row) for row in rows] if isinstance(rows, list) else []
    return [scan for scan in scans if scan is not None], Path(results) if results and isinstance(results, str) else None


def _scan_of(row: Any) -> QueuedScan | None:
    known = {field.name for field in dataclasses.fields(SegmentOptions)}
    try:
        job = SegmentationJob(Path(row["image"]), Path(row["result"]), _paths(row["others"]))
        options = SegmentOptions(**{key: value for key, value in row["options"].items() if key in known})
        state = row["state"] if row["state"] in _STATES else WAITING
        model = str(row["model"])
    except (KeyError, TypeError, AttributeError, ValueError, FmsegError):
        return None
    state = WAITING if state == RUNNING else state
    return QueuedScan(job, model, options, state, FORGOTTEN if state == FAILED else "")


def _paths(names: Iterable[str]) -> tuple[Path, ...]:
    return tuple(Path(name) for name in names)
