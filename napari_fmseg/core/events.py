"""What long work reports while it runs: small frozen dataclasses, in process or as JSON lines."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import queue
import threading
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias, TypeVar

import numpy as np

from napari_fmseg.core.errors import FmsegError
from napari_fmseg.core.volume import LabelMap, Volume

__all__ = [
    "DOES_NOT_FIT",
    "FILE_LEFT_OUT",
    "FROM_THE_FILE",
    "LEARNED_FROM",
    "STARTING_WEIGHTS",
    "EpochDone",
    "Event",
    "Pictures",
    "Progress",
    "Saved",
    "StageResult",
    "StepDone",
    "TrainEvent",
    "Warned",
    "drain",
    "from_json",
    "in_background",
    "to_json",
]

T = TypeVar("T")

DOES_NOT_FIT = "does-not-fit: "
"""How the code of a warning begins if a volume is not like those that the model was trained on; then its kind."""

FILE_LEFT_OUT = "file-left-out"
"""Code of a warning: a file could not be read, and the work continues without it."""

FROM_THE_FILE = "from-the-file"
"""Code of a warning of the reader, which may name the file and so the patient."""

LEARNED_FROM = "learned-from"
"""Code of a warning on how many labelled and unlabelled volumes are learned from."""

STARTING_WEIGHTS = "starting-weights"
"""Code of a warning on what was taken from the weights that training starts from."""


@dataclass(frozen=True)
class Progress:
    """`done` of `total` parts of `stage` are finished."""

    stage: str
    done: int
    total: int


@dataclass(frozen=True)
class Warned:
    """Something that the user should know and that does not stop the work.

    Attributes
    ----------
    text
        For people; nothing parses it.
    code
        For programs: what it is about, such as `FILE_LEFT_OUT`, or ""; a newer warning of the same code replaces it.
    """

    text: str
    code: str = ""


@dataclass(frozen=True)
class StageResult:
    """The output of one stage, on a grid of its own.

    Attributes
    ----------
    stage
        Its name; the last one of a pipeline is called ``"labels"``.
    output
        A `LabelMap`, or a `Volume` for a map of real numbers.
    seconds
        What the stage took, without the time that the consumer spent in between.
    note
        What the user should know about it, or "".
    """

    stage: str
    output: Volume | LabelMap
    seconds: float
    note: str = ""


@dataclass(frozen=True)
class StepDone:
    """One optimiser step: `step` of `total` in `stage`; `total` is 0 while nobody knows it."""

    stage: str
    step: int
    total: int
    loss: float
    lr: float


@dataclass(frozen=True)
class EpochDone:
    """One epoch of training and its validation; `metrics` such as ``{"dice/liver": 0.93}``."""

    stage: str
    epoch: int
    total: int
    loss: float
    seconds: float
    metrics: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Saved:
    """A file that was written; `best` says whether it beats what was saved before."""

    path: Path
    best: bool


@dataclass(frozen=True)
class Pictures:
    """The input and output of a network for one example, to be shown.

    Attributes
    ----------
    stage, step
        When it was made.
    path
        An npz file without pickle: arrays (z, y, x) by their names, such as "fused volume", and "spacing", (3,) in mm.
        The next one replaces it.
    """

    stage: str
    step: int
    path: Path


Event: TypeAlias = Progress | Warned | StageResult
TrainEvent: TypeAlias = Progress | Warned | StepDone | EpochDone | Saved | Pictures

_LINES = {c.__name__: c for c in (Progress, Warned, StepDone, EpochDone, Saved, Pictures)}


def drain(events: Iterable[Any]) -> LabelMap:
    """Return the last label map of `events`, which are run to the end.

    Raises
    ------
    FmsegError
        If no stage gave labels.
    """
    last: LabelMap | None = None
    for event in events:
        if isinstance(event, StageResult) and isinstance(event.output, LabelMap):
            last = event.output
    if last is None:
        raise FmsegError("The pipeline ended without labels. Was `until` set to a stage that gives a map only?")
    return last


def in_background(work: Callable[[], Iterable[T]], name: str) -> Generator[T, None, None]:
    """Yield the events of work that runs in a thread, so that Ctrl-C and `close` take effect at once.

    Python reacts to a signal only between its own instructions, and a network can compute for seconds in native code.
    The thread is left alone then: it ends with its next event, or with the process.

    Parameters
    ----------
    work
        Gives the events; what it raises is raised here.
    name
        Of the thread.
    """
    events: queue.Queue[T | _End] = queue.Queue(maxsize=_AHEAD)
    stopped = threading.Event()

    def hand_over(event: T | _End) -> bool:
        while not stopped.is_set():
            with contextlib.suppress(queue.Full):
                events.put(event, timeout=_LOOK_S)
                return True
        return False

    def run() -> None:
        end = _End()
        try:
            found = iter(work())
            with contextlib.closing(found) if isinstance(found, Generator) else contextlib.nullcontext():
                if not all(hand_over(event) for event in found):
                    return
        except BaseException as error:  # noqa: BLE001 - the boundary of the thread: it is raised where events are taken
            end.error = error
        hand_over(end)

    threading.Thread(target=run, name=name, daemon=True).start()
    try:
        yield from _until_end(events)
    finally:
        stopped.set()


_AHEAD = 8  # events that wait to be taken; some hold volumes
_LOOK_S = 0.1  # Windows wakes no thread for Ctrl-C


class _End:
    """The last that comes through the queue, with what was raised."""

    error: BaseException | None = None


def _until_end(events: queue.Queue[T | _End]) -> Iterator[T]:
    while True:
        try:
            event = events.get(timeout=_LOOK_S)
        except queue.Empty:
            continue
        if not isinstance(event, _End):
            yield event
        elif event.error is not None:
            raise event.error
        else:
            return


def to_json(event: Any) -> str:
    """Write an event as one JSON line; of a `StageResult` only name, shape, seconds and note."""
    if isinstance(event, StageResult):
        facts = {"stage": event.stage, "seconds": event.seconds, "note": event.note,
                 "shape": list(event.output.geometry.shape), "kind": type(event.output).__name__}  # fmt: skip
        return json.dumps({"event": "StageResult", **facts})
    return json.dumps({"event": type(event).__name__, **dataclasses.asdict(event)}, default=_plain)


def _plain(value: Any) -> Any:
    """Return numpy's numbers as Python's, anything else as text."""
    return value.item() if isinstance(value, np.generic) else str(value)


def from_json(line: str) -> TrainEvent:
    """Read a line of `to_json` (no `StageResult`, whose array stays in its process); `FmsegError` if it is no event."""
    try:
        facts = json.loads(line)
        event = _LINES[facts.pop("event")](**facts)
        return dataclasses.replace(event, path=Path(event.path)) if isinstance(event, Saved | Pictures) else event
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise FmsegError(f"This line is no event: {line[:80]!r}. Expected JSON with an 'event' field.") from error
