"""Exceptions of libraries on damaged files, turned into the package's own at each call."""

from __future__ import annotations

import errno
import lzma
import struct
import sys
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from napari_fmseg.core.errors import DeviceMemory, FmsegError, UnreadableVolume
from napari_fmseg.io.compression import DEFLATE_ERRORS

__all__ = ["access_errors_as_unreadable", "header_errors_as_unreadable", "library_errors"]

_ERRORS: tuple[type[Exception], ...] = (
    ArithmeticError, AssertionError, AttributeError, BufferError, EOFError, LookupError, RuntimeError, TypeError,
    ValueError, lzma.LZMAError, struct.error, zipfile.BadZipFile, *DEFLATE_ERRORS,
)  # fmt: skip

_DAMAGED = "{name} is damaged or was cut short: {reason}. Copy it again from its source."


def library_errors() -> tuple[type[Exception], ...]:
    """Return what a library may raise on damaged content; an `OSError` is for `header_errors_as_unreadable` to
    judge.
    """
    lib = sys.modules.get("pydicom.errors")
    return _ERRORS if lib is None else (*_ERRORS, lib.BytesLengthException, lib.InvalidDicomError)


@contextmanager
def header_errors_as_unreadable(path: Path, message: str = _DAMAGED) -> Iterator[None]:
    """Turn what a library raises on damaged content into an UnreadableVolume.

    Parameters
    ----------
    path
        What is read.
    message
        What happened and what to do, with ``{name}`` of the file and ``{reason}``, the library's own words.

    Raises
    ------
    UnreadableVolume
        If the content is damaged.
    OSError
        If the file system has trouble: a drive that is gone, a missing permission.
    """
    try:
        yield
    except FmsegError:
        raise
    except OSError as error:  # libraries raise it for damaged content, too, then without a number of the system
        if error.errno not in (None, errno.EINVAL):
            raise
        raise _as_unreadable(path, message, error) from error
    except library_errors() as error:
        raise _as_unreadable(path, message, error) from error


@contextmanager
def access_errors_as_unreadable(path: Path) -> Iterator[None]:
    """Turn an error of the file system, or a lack of memory, into an UnreadableVolume.

    Raises
    ------
    UnreadableVolume
        If the file or folder is missing, may not be read, or its drive fails.
    DeviceMemory
        If memory ran out.
    """
    try:
        yield
    except FileNotFoundError as error:
        if path.is_symlink():
            raise UnreadableVolume(
                f"{path} is a link to {path.readlink()}, which is not there. Fetch what it points to (git annex get, "
                "datalad get), or connect its drive."
            ) from error
        raise UnreadableVolume(f"{path} does not exist. Check the name, and whether its drive is connected.") from error
    except PermissionError as error:
        raise UnreadableVolume(
            f"{path} may not be read: no permission. Ask its owner, or copy it to a place of yours."
        ) from error
    except OSError as error:
        raise UnreadableVolume(
            f"{path} cannot be read: {error.strerror or error}. Copy it to a local disk and try again."
        ) from error
    except MemoryError as error:
        raise DeviceMemory(
            f"{path.name} needs more memory than is free{f': {error}' if str(error) else ''}. Close other programs, or "
            "read it on a machine with more memory."
        ) from error


def _as_unreadable(path: Path, message: str, error: Exception) -> UnreadableVolume:
    words = (str(error).strip().splitlines() or [""])[-1][:200].rstrip(".") or type(error).__name__
    return UnreadableVolume(message.format(name=path.name, reason=words))
