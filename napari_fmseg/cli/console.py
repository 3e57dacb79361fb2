"""What the command line shows: tables of results, one JSON document for machines, remarks and questions.

Results go to stdout, everything else to stderr. Nothing here loads what reads or computes: ``fmseg --help`` uses it.
"""

from __future__ import annotations

import contextlib
import json
import math
import sys
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from tyro.conf import Positional, arg

from napari_fmseg.core.errors import FmsegError
from napari_fmseg.core.json_values import plain
from napari_fmseg.core.structuring import OldSpelling

if TYPE_CHECKING:
    from napari_fmseg.core.volume import Volume

__all__ = [
    "USE",
    "AcceptLicence",
    "CaseName",
    "Events",
    "Json",
    "OptionalOutput",
    "Output",
    "ProjectFolder",
    "Scheduler",
    "confirm",
    "metrics_table",
    "note",
    "note_warnings",
    "notices",
    "number",
    "say",
    "show_terms",
    "table",
    "write_json",
]

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
Output = Annotated[Path, arg(aliases=("-o",))]
OptionalOutput = Annotated[Path | None, arg(aliases=("-o",))]
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


def show_terms(card: Any, accepted: bool) -> None:
    """Show what restricts a model's use before its first run; ask where somebody can answer."""
    from napari_fmseg.models.licences import remember_terms, unread_terms

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
