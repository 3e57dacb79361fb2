"""Trainings for a server's clients, each in processes of its own: recipe, training, measuring, predictions.

They are the commands that the Teach panel runs as well, so the locked split holds, and a version comes into use only
if it is better.
"""

from __future__ import annotations

import threading
import time
import uuid
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from napari_fmseg.cli.exit_codes import _defect_in_words
from napari_fmseg.core.errors import FmsegError
from napari_fmseg.core.events import EpochDone, Progress, Saved, StepDone, TrainEvent, Warned
from napari_fmseg.core.processes import without_paths
from napari_fmseg.training import load_recipe
from napari_fmseg.training.projects import TrainingOptions
from napari_fmseg.workers.training import PROGRAM, RemoteTraining

__all__ = ["Round", "Rounds"]

_MOST_LINES = 20
_STEPS_BETWEEN_LINES = 50


@dataclass
class Round:
    """One training as the protocol tells of it.

    Attributes
    ----------
    model
        Its name.
    options
        How long it takes and where it runs.
    status
        "RUNNING", "DONE", "ERROR" or "STOPPED".
    lines
        What happened last.
    """

    model: str
    options: TrainingOptions
    id: str = field(default_factory=lambda: str(uuid.uuid4()))
    status: str = "RUNNING"
    start: float = field(default_factory=time.time)
    end: float = 0.0
    epoch: int = 0
    epochs: int = 0
    dice: float = 0.0
    lines: deque[str] = field(default_factory=lambda: deque(maxlen=_MOST_LINES))

    def as_json(self) -> dict[str, Any]:
        """Return the task of the protocol; it always has a line of details, or a client that stops it fails."""
        told = {
            "id": self.id,
            "status": self.status,
            "request": {"model": self.model, "minutes": self.options.minutes},
            "start_ts": _time(self.start),
            "details": list(self.lines) or ["Started"],
        }
        return {**told, "end_ts": _time(self.end)} if self.end else told

    def stats(self) -> dict[str, Any]:
        """Return how far it is; with the whole time only when it has ended."""
        told = {"epoch": self.epoch, "total_epochs": self.epochs, "best_metric": round(self.dice, 4)}
        seconds = timedelta(seconds=round(self.end - self.start))
        return {**told, "total_time": str(seconds)} if self.end else told


class Rounds:
    """The trainings of one project, one at a time.

    Parameters
    ----------
    folder
        Of the project.
    log
        Takes a line about what happens.
    program
        The words before the command; see `napari_fmseg.workers.training.PROGRAM`.
    """

    def __init__(self, folder: Path, log: Callable[[str], None], *, program: Sequence[str] = PROGRAM) -> None:
        self._folder, self._log, self._program = folder, log, tuple(program)
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._process: RemoteTraining | None = None
        self._is_keeping = self._closed = False
        self.last: Round | None = None

    @property
    def is_running(self) -> bool:
        """Whether a training is under way that nobody has stopped."""
        return self.last is not None and self.last.status == "RUNNING"

    def start(self, model: str, options: TrainingOptions) -> Round | None:
        """Start a training; None while one is under way. One that was stopped is measured first."""
        with self._lock:
            if self.is_running or self._closed:
                return None
            self.last = now = Round(model, options)
            before = self._thread
            self._thread = threading.Thread(target=self._work, args=(now, before), daemon=True, name="fmseg training")
            self._thread.start()
        return now

    def stop(self) -> Round | None:
        """Request the end; what was learned until then is measured and kept. Return the training, None if none runs."""
        with self._lock:
            now = self.last
            if now is None or not self.is_running:
                return None
            now.status = "STOPPED"
            now.lines.append("Stopped. What was learned until now is measured and kept.")
            if self._process is not None and not self._is_keeping:
                self._process.stop()
        return now

    def close(self) -> None:
        """End everything; what was saved stays."""
        with self._lock:
            self._closed = True
            if self.is_running and self.last is not None:
                self.last.status = "STOPPED"
            if self._process is not None:
                self._process.stop()
            thread = self._thread
        if thread is not None:
            thread.join(10)

    def wait(self, seconds: float) -> bool:
        """Wait for the end of the training and of what follows it; return whether it came."""
        thread = self._thread
        if thread is not None:
            thread.join(seconds)
        return thread is None or not thread.is_alive()

    @property
    def pid(self) -> int | None:
        """Number of the process that trains or measures, or None."""
        return self._process.pid if self._process is not None else None

    # --- in the thread

    def _work(self, now: Round, before: threading.Thread | None) -> None:
        if before is not None:
            before.join()
        try:
            self._train(now)
            self._end(now, "DONE")
        except FmsegError as error:
            self._end(now, "ERROR", without_paths(str(error)))
        except Exception as error:  # noqa: BLE001 - the boundary of the thread: what is not told here is lost
            self._end(now, "ERROR", f"A defect of the program: {type(error).__name__}. Look at the server's terminal.")
            self._log(f"training: defect: {_defect_in_words(error)}")

    def _train(self, now: Round) -> None:
        recipe_file: Path | None = None
        for event in self._events(now, _prepare_words(self._folder, now.options)):
            if isinstance(event, Saved):
                recipe_file = event.path
        if recipe_file is None or now.status == "STOPPED":
            return
        for _ in self._events(now, ("train", str(recipe_file))):
            pass
        run = recipe_file.parent
        if not (run / f"{load_recipe(recipe_file).name}.toml").exists():
            now.lines.append("Stopped before anything was learned.")
            return
        words = ("project", "keep", str(self._folder), "--run", run.name)
        for event in self._events(now, words, is_keeping=True):
            if isinstance(event, Saved):
                now.lines.append(f"The new version {'is' if event.best else 'is not'} in use.")
        for _ in self._events(now, ("project", "predict", str(self._folder), "--device", now.options.device)):
            pass

    def _events(self, now: Round, words: Sequence[str], *, is_keeping: bool = False) -> Iterator[TrainEvent]:
        """Run a command of ours and yield its events, which are noted; after `stop` only what keeps the model."""
        with self._lock:
            if self._closed or (now.status == "STOPPED" and not is_keeping):
                return
            self._is_keeping = is_keeping
            self._process = process = RemoteTraining(words, program=self._program)
        try:
            for event in process.events():
                _note(now, event)
                yield event
        finally:
            with self._lock:
                self._process = None

    def _end(self, now: Round, status: str, text: str = "") -> None:
        with self._lock:
            if text:
                now.lines.append(text)
            if now.status == "RUNNING" or status == "ERROR":
                now.status = status
            now.end = time.time()
        self._log(f"training: {now.status}")


def _prepare_words(folder: Path, options: TrainingOptions) -> tuple[str, ...]:
    return ("project", "prepare", str(folder), "--minutes", str(options.minutes), "--device", options.device,
            "--precision", options.precision)  # fmt: skip


def _note(now: Round, event: TrainEvent) -> None:
    """Note an event for those who look at the training."""
    match event:
        case EpochDone(stage, epoch, total, loss, _, metrics):
            dice = [value for name, value in metrics.items() if name.startswith("dice/") and value == value]
            mean = sum(dice) / len(dice) if dice else 0.0
            now.epoch, now.epochs, now.dice = epoch, total, max(now.dice, mean)
            told = f", Dice {mean:.3f}" if dice else ""
            now.lines.append(f"{stage}: epoch {epoch} of {total}, loss {loss:.4f}{told}")
        case StepDone(stage, step, total, loss, _) if step % _STEPS_BETWEEN_LINES == 1:
            now.lines.append(f"{stage}: step {step} of {total or '?'}, loss {loss:.4f}")
        case Warned(text):
            now.lines.append(without_paths(text))
        case Progress(stage, done, total) if done == 0:
            now.lines.append(f"{stage}: {total} to do")
        case _:
            pass


def _time(seconds: float) -> str:
    return datetime.fromtimestamp(seconds).strftime("%Y-%m-%d %H:%M:%S")
