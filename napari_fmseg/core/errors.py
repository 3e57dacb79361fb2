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


class FmsegError(Exception):
    """Any error that is reported to the user: what happened, what was expected, what to do.

    Attributes
    ----------
    exit_code
        What the command line returns: 1 the user's input, 3 the machine.
    """

    exit_code = 1


class UnreadableVolume(FmsegError):
    """A file or folder that is not a volume we can read."""


class NoSuv(FmsegError):
    """An image that cannot be given in SUV; names every tag that is missing, and nothing of the patient."""


class UnwritableVolume(FmsegError):
    """A place or a format that cannot take the result (a full disk: `exit_code` 3)."""


class GeometryMismatch(FmsegError):
    """Two grids that should lie on each other and do not."""


class ModelMismatch(FmsegError):
    """A volume that is not like those that the model was trained on, and a run that asked to be strict."""


class UnknownModel(FmsegError):
    """No model of that name, or a model card that makes no sense."""


class WeightsMismatch(FmsegError):
    """Weights that do not fit the network; names the missing and the surplus entries."""


class InvalidRecipe(FmsegError):
    """A recipe or an option that cannot be carried out."""


class LabelsChanged(FmsegError):
    """Labels that were saved by somebody else after they were read, and would be replaced unseen."""


class DeviceUnavailable(FmsegError):
    """A requested device that this machine does not have."""

    exit_code = 3


class DeviceMemory(FmsegError):
    """Not enough memory; states how much was needed and what was tried."""

    exit_code = 3


class MissingExtra(FmsegError):
    """An optional package that is not installed; states which one and how to get it."""

    exit_code = 3


class Cancelled(FmsegError):
    """The user stopped the work; nothing went wrong, and nothing need be shown."""
