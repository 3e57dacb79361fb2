"""How far a command is: bars on a terminal, a line now and then elsewhere, events for another program."""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Generator, Mapping
from typing import Any, TypeVar

from napari_fmseg.cli.console import note, say
from napari_fmseg.core.events import Progress, StageResult, StepDone, Warned, to_json
from napari_fmseg.core.json_values import plain

__all__ = ["Bars", "follow", "show_event", "show_progress", "write_event"]

T = TypeVar("T")


def write_event(event: Any) -> None:
    """Write an event, or a mapping with the field "event", as one JSON line to stdout."""
    say(json.dumps(plain(event), allow_nan=False) if isinstance(event, Mapping) else to_json(event))


class Bars:
    """One bar per stage on a terminal, silence elsewhere.

    Parameters
    ----------
    quiet
        Show nothing even on a terminal.

    Attributes
    ----------
    live
        Whether they are shown.
    """

    def __init__(self, *, quiet: bool = False) -> None:
        self._progress: Any = None
        self._tasks: dict[str, Any] = {}
        self.live = sys.stderr.isatty() and not quiet

    def __enter__(self) -> Bars:
        if self.live:
            from rich.console import Console
            from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

            columns = (TextColumn("{task.description:<14}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(),
                       TextColumn("{task.fields[text]}"))  # fmt: skip
            self._progress = Progress(*columns, console=Console(stderr=True), transient=True)
            self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._progress is not None:
            self._progress.stop()

    def move(self, name: str, done: float, total: float | None, text: str = "") -> None:
        """Set the bar `name` to `done` of `total`; None where nobody knows how many there are."""
        if self._progress is None:
            return
        if name not in self._tasks:
            self._tasks[name] = self._progress.add_task(name, total=total, text=text)
        self._progress.update(self._tasks[name], completed=done, total=total, text=text)

    def clear(self, keep: str = "") -> None:
        """Remove the bars, for the next volume; `keep` names one that stays."""
        for name in [name for name in self._tasks if name != keep]:
            self._progress.remove_task(self._tasks.pop(name))

    def note(self, text: str) -> None:
        """Write a remark to stderr, above the bars."""
        if self._progress is None:
            note(text)
        else:
            self._progress.console.print(text, markup=False, highlight=False)


def show_event(event: object, bars: Bars, whose: str = "") -> None:
    """Show an event of any long work; warnings begin with `whose`."""
    match event:
        case Progress(stage, done, total):
            bars.move(stage, done, total)
        case StageResult(stage, _, seconds, text):
            bars.move(stage, 1, 1, f"{seconds:.2f} s {text}")
            if text:
                bars.note(f"{whose}{stage}: {text}")
        case Warned(text):
            bars.note(f"{whose}Warning: {text}")
        case StepDone(stage, step, total, loss, _):
            bars.move(stage, step, total or None, f"loss {loss:.4f}")
        case _:
            pass


def follow(work: Generator[Any, None, T], *, events: bool = False, quiet: bool = False, remarks: bool = True) -> T:
    """Run work to its end, with bars and warnings or with events for another program; return its result."""
    with Bars(quiet=events or quiet) as bars, contextlib.closing(work):
        while True:
            try:
                event = next(work)
            except StopIteration as done:
                found: T = done.value
                return found
            if events:
                say(to_json(event))
            elif remarks or not isinstance(event, Warned):
                show_event(event, bars)


def show_progress(progress: Any, bars: Bars) -> None:
    """Show how many volumes are done and how long the rest will take: as a bar, else a line for every tenth."""
    done, total = progress.done, progress.total
    left = "" if done == total else f", about {duration(progress.seconds_left)} left"
    failed = f", {progress.failed} failed" if progress.failed else ""
    if bars.live:
        bars.move("volumes", done, total, (failed + left).removeprefix(", "))
    elif done == total or 10 * done // total > 10 * (done - 1) // total:
        bars.note(f"{done} of {total} volumes{failed}{left}")


def duration(seconds: float) -> str:
    """Return a time as people say it, no finer than is of use for an estimate: ``20 s``, ``3 min``, ``2 h 10 min``."""
    if seconds < 60:
        return f"{max(1, round(seconds))} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"
