"""What the command line shows: bars while it works, tables of results, one JSON document for machines.

Results go to stdout, everything else to stderr; bars only move where a person looks at them.
"""

from __future__ import annotations

import contextlib
import json
import math
import sys
import warnings
from collections.abc import Generator, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, TypeVar

from tyro.conf import Positional, arg

from napari_fmseg.core.errors import FmsegError
from napari_fmseg.core.events import Progress, StageResult, StepDone, Warned, to_json
from napari_fmseg.core.json_values import plain
from napari_fmseg.core.structuring import OldSpelling
from napari_fmseg.core.volume import Volume
from napari_fmseg.models.licences import remember_terms, unread_terms

__all__ = [
    "USE",
    "AcceptLicence",
    "Bars",
    "CaseName",
    "Events",
    "Json",
    "ProjectFolder",
    "Scheduler",
    "confirm",
    "follow",
    "metrics_table",
    "note",
    "note_warnings",
    "notices",
    "number",
    "say",
    "show_event",
    "show_progress",
    "show_terms",
    "table",
    "write_event",
    "write_json",
]

T = TypeVar("T")

USE = "Research use only. Not a medical device."

Json = Annotated[bool, arg(name="json", help="Print one JSON document for machines, and nothing else, to stdout.")]
Events = Annotated[bool, arg(help="Print every event as one JSON line to stdout, for another program to follow.")]
AcceptLicence = Annotated[
    bool, arg(help="Accept the terms of a model whose data restrict its use, without being asked.")
]
Scheduler = Annotated[
    str | None,
    arg(metavar="local:N|HOST|FILE", help="Share the work out with dask.distributed (extra 'cluster'): "
        "local:N starts N workers here, tcp://host:port or the scheduler's FILE.json uses those that run elsewhere."),
]  # fmt: skip
ProjectFolder = Positional[Annotated[Path, arg(metavar="PROJECT", help="The project.")]]
CaseName = Positional[Annotated[str, arg(metavar="CASE", help="Its name.")]]


def say(text: str) -> None:
    """Write a line of the result to stdout."""
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def note(text: str) -> None:
    """Write a remark to stderr."""
    sys.stderr.write(text + "\n")
    sys.stderr.flush()


def note_warnings(volume: Volume, path: Path) -> None:
    """Write to stderr what was repaired while reading a file, and what is unusual in it."""
    for text in volume.warnings:
        note(f"Warning: {path.name}: {text}")


@contextlib.contextmanager
def notices() -> Iterator[None]:
    """Write each notice of a replaced name to stderr once, without the line of code that Python would add."""
    with warnings.catch_warnings():
        warnings.simplefilter("default", OldSpelling)
        show, shown = warnings.showwarning, set[str]()

        def write(message: Warning | str, category: type[Warning], *where: Any, **more: Any) -> None:
            if not issubclass(category, OldSpelling):
                show(message, category, *where, **more)
            elif str(message) not in shown:
                shown.add(str(message))
                note(f"Notice: {message}")

        warnings.showwarning = write
        yield


def write_json(document: Any) -> None:
    """Write one JSON document to stdout; nan and infinity, which JSON does not have, become null."""
    say(json.dumps(plain(document), indent=1, allow_nan=False))


def write_event(event: Any) -> None:
    """Write an event, or a mapping with the field "event", as one JSON line to stdout."""
    say(json.dumps(plain(event), allow_nan=False) if isinstance(event, Mapping) else to_json(event))


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Align columns: numbers to the right, words to the left; the last column is as long as it likes."""
    widths = [max(len(row[i]) for row in (head, *rows)) for i in range(len(head))]
    right = [bool(rows) and all(_is_number(row[i]) for row in rows) for i in range(len(head))]
    lines = [
        "  ".join(c.rjust(w) if r else c.ljust(w) for c, w, r in zip(row, widths, right, strict=True)).rstrip()
        for row in (head, *rows)
    ]
    return "\n".join(lines)


def _is_number(text: str) -> bool:
    try:
        float(text or "nan")
    except ValueError:
        return text == "-"
    return True


def number(value: float | None, digits: int = 3) -> str:
    """Return a number for a table; "-" where there is none."""
    return "-" if value is None or math.isnan(value) else f"{value:.{digits}f}"


def metrics_table(rows: Sequence[Any], first: str) -> str:
    """Align the rows of an evaluation; see `napari_fmseg.evaluation.evaluate.Row`."""
    columns = {
        "dice": 3,
        "nsd": 3,
        "hd95_mm": 2,
        "false_positive_ml": 2,
        "false_negative_ml": 2,
        "seconds": 2,
        "peak_mb": 0,
    }
    head = (first, "LABEL", "DICE", "NSD", "HD95 mm", "EXTRA ml", "MISSED ml", "SECONDS", "PEAK MB")
    return table(head, [
        (row.case, row.label, *(number(row.values.get(name), digits) for name, digits in columns.items()))
        for row in rows
    ])  # fmt: skip


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


def show_terms(card: Any, accepted: bool) -> None:
    """Show what restricts a model's use before its first run; ask where somebody can answer."""
    terms = unread_terms(card)
    if not terms:
        return
    note(terms)
    if not accepted and _somebody_is_there():
        if not confirm("Do you accept these terms?"):
            raise FmsegError(f"{card.name} was not run, because its terms were not accepted. Choose another model.")
    elif not accepted:
        note("By going on you accept them. They are shown once.")
    remember_terms(card)


def _somebody_is_there() -> bool:
    """Return whether a person can read a question and answer it."""
    return sys.stdin.isatty() and sys.stderr.isatty()


def confirm(question: str) -> bool:
    """Read the answer to a question from the terminal; return whether it was yes, False where nobody is there."""
    if not _somebody_is_there():
        return False
    sys.stderr.write(f"{question} [y/N] ")
    sys.stderr.flush()
    return sys.stdin.readline().strip().lower() in ("y", "yes")
