"""The exceptions of the package, by cause.

::

    FmsegError
    ├── UnreadableVolume    a file or folder that is not a volume we can read
    ├── NoSuv               a PET that lacks what SUV needs
    ├── UnwritableVolume    a place or format that cannot take the result
    ├── GeometryMismatch    two grids that should agree and do not
    ├── ModelMismatch       a volume unlike those that the model was trained on, where that was not to be
    ├── UnknownModel        no model of that name, or a card that makes no sense
    ├── WeightsMismatch     weights that do not fit the network, or a wrong hash
    ├── InvalidRecipe       a recipe or option that cannot be carried out
    ├── LabelsChanged       labels of a case that somebody else changed meanwhile
    ├── DeviceUnavailable   a device that this machine does not have
    ├── DeviceMemory        not enough memory, after everything was tried
    ├── MissingExtra        an optional package that is not installed
    └── Cancelled           the user stopped the work

No class derives from RuntimeError: napari's and superqt's generator workers swallow RuntimeError
silently, and the user would wait for ever.
"""

from __future__ import annotations

import errno
import sys
import traceback
from pathlib import Path

__all__ = [
    "Cancelled",
    "DeviceMemory",
    "DeviceUnavailable",
    "FmsegError",
    "GeometryMismatch",
    "InvalidRecipe",
    "LabelsChanged",
    "MissingExtra",
    "ModelMismatch",
    "NoSuv",
    "UnknownModel",
    "UnreadableVolume",
    "UnwritableVolume",
    "WeightsMismatch",
]

DEFECT = 70
"""Exit code of a defect of the program (EX_SOFTWARE): not to be mistaken for a fault of the input."""


class FmsegError(Exception):
    """Any error that is reported to the user: what happened, what was expected, what to do.

    Attributes
    ----------
    exit_code
        What the command line returns: 1 the user's input, 3 the machine.
    fix
        What usually helps with errors of this kind, for a table of many.
    """

    exit_code = 1
    fix = "Do what the message says, and try again."


class UnreadableVolume(FmsegError):
    """A file or folder that is not a volume we can read."""

    fix = "Open the file in another viewer; copy or export it again, as NIfTI or as an uncompressed DICOM series."


class NoSuv(FmsegError):
    """An image that cannot be given in SUV; names every tag that is missing, and nothing of the patient."""

    fix = "Get the series before anonymisation, or with the tags that the message names; or read it with --suv never."


class UnwritableVolume(FmsegError):
    """A place or a format that cannot take the result (a full disk: `exit_code` 3)."""

    fix = "Choose another folder or suffix, or make room on the disk."


class GeometryMismatch(FmsegError):
    """Two grids that should lie on each other and do not."""

    fix = "Check that the images belong to one scan and that there are as many channels as the model takes."


class ModelMismatch(FmsegError):
    """A volume that is not like those that the model was trained on, and a run that asked to be strict."""

    fix = "Choose a model that fits (`fmseg models --for FILE`), or run it without --strict."


class UnknownModel(FmsegError):
    """No model of that name, or a model card that makes no sense."""

    fix = "Choose one of the models that `fmseg models` lists, or import it again."


class WeightsMismatch(FmsegError):
    """Weights that do not fit the network; names the missing and the surplus entries."""

    fix = "Install the model again; all machines of a run need the same one."


class InvalidRecipe(FmsegError):
    """A recipe or an option that cannot be carried out."""

    fix = "Correct the field or option that the message names."


class LabelsChanged(FmsegError):
    """Labels that were saved by somebody else after they were read, and would be replaced unseen."""

    fix = "Load the labels again, and repeat the change on them."


class DeviceUnavailable(FmsegError):
    """A requested device that this machine does not have."""

    exit_code = 3
    fix = "Choose another --device; `fmseg doctor` lists what there is."


class DeviceMemory(FmsegError):
    """Not enough memory; states how much was needed and what was tried."""

    exit_code = 3
    fix = "Close other programs, use --device cpu or a machine with more memory, then --retry."


class MissingExtra(FmsegError):
    """An optional package that is not installed; states which one and how to get it."""

    exit_code = 3
    fix = "Install what the message names."


class Cancelled(FmsegError):
    """The user stopped the work; nothing went wrong, and nothing need be shown."""


def explain(error: Exception) -> tuple[int, str]:
    """Return the exit code and the message for an exception: also for those that are not ours."""
    if isinstance(error, FmsegError):
        return error.exit_code, str(error)
    if is_out_of_memory(error):
        return 3, ("There is not enough memory. Close other programs, use --device cpu instead of a small graphics "
                   f"card, or a smaller volume. ({_first_line(error)})")  # fmt: skip
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return 3, f"The disk is full{f': {error.filename}' if error.filename else ''}. Make room, or choose another."
    if isinstance(error, OSError) and error.filename:
        return 1, f"{error.filename}: {error.strerror}. Check the path and its permissions."
    where = traceback.extract_tb(error.__traceback__)[-1]
    return DEFECT, (
        f"A defect of the program, not of your input: {type(error).__name__}: {_first_line(error)} "
        f"({Path(where.filename).name}:{where.lineno}). Run it again with FMSEG_DEBUG=1 and report what it prints."
    )


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an exception means that memory ran out: Python's, or torch's of any device."""
    torch = sys.modules.get("torch")
    if isinstance(error, MemoryError) or (torch is not None and isinstance(error, torch.OutOfMemoryError)):
        return True
    return isinstance(error, RuntimeError) and "can't allocate memory" in str(error)  # torch's processor allocator


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
