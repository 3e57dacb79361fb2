"""The volumes of a folder that failed: a table with the cause and the remedy of each, to try them again from."""

from __future__ import annotations

import csv
from collections.abc import Iterable
from dataclasses import astuple, dataclass, fields
from pathlib import Path

from napari_fmseg.core.atomic_write import atomic_write_csv
from napari_fmseg.core.errors import DEFECT, FmsegError, explain

__all__ = ["Failure", "read_failures", "write_failures"]

_REMEDIES = {
    1: "Check that the file is there and may be read.",
    3: "Make room in memory or on the disk, or use another machine; then try again with --retry.",
    DEFECT: "Report the message, if possible with the volume.",
}


@dataclass(frozen=True)
class Failure:
    """A volume that could not be segmented.

    Attributes
    ----------
    case
        The image, as it is named from the folder that was segmented.
    error
        What kind of error it was, such as ``"UnreadableVolume"``.
    cause
        What happened, in a sentence.
    fix
        What usually helps.
    """

    case: str
    error: str
    cause: str
    fix: str

    @classmethod
    def of(cls, case: str, error: Exception) -> Failure:
        """Describe an exception."""
        code, cause = explain(error)
        fix = error.fix if isinstance(error, FmsegError) else _REMEDIES[code]
        return cls(case, type(error).__name__, cause, fix)


def read_failures(path: Path) -> tuple[Failure, ...]:
    """Read a table of failures; none if there is no such file.

    Raises
    ------
    FmsegError
        If the file is not such a table.
    """
    names = [field.name for field in fields(Failure)]
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            return tuple(Failure(*(row[name] for name in names)) for row in csv.DictReader(file))
    except FileNotFoundError:
        return ()
    except (OSError, UnicodeDecodeError, csv.Error, KeyError) as error:
        raise FmsegError(
            f"{path} is no table of failed volumes: {error}. Expected the columns {', '.join(names)}; remove the file "
            "and run without --retry."
        ) from error


def write_failures(failures: Iterable[Failure], path: Path) -> None:
    """Write the table, whole or not at all; where nothing failed, there is no file."""
    rows = [astuple(failure) for failure in failures]
    if rows:
        atomic_write_csv(path, [field.name for field in fields(Failure)], rows)
    else:
        path.unlink(missing_ok=True)
