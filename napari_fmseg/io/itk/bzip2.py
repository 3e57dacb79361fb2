"""Voxels compressed with bzip2, inflated in chunks, so that a false header takes no memory."""

from __future__ import annotations

import bz2
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from napari_fmseg.core.errors import UnreadableVolume

__all__ = ["MAX_RATIO", "read"]

MAX_RATIO = 1_300_000
"""Bzip2 cannot shrink anything further than this: 45.9 MB of one value take a block of at least 37 bytes."""

_CHUNK = 1 << 20


def read(path: Path, count: int, kind: np.dtype[Any], *, start: int = 0) -> npt.NDArray[Any]:
    """Read `count` numbers.

    Parameters
    ----------
    path
        The file.
    count, kind
        How many numbers, and their type in the file.
    start
        The byte at which what is packed starts.

    Returns
    -------
    numpy.ndarray
        (count,), in native byte order.

    Raises
    ------
    UnreadableVolume
        If it is damaged, or holds fewer.
    """
    unpacked = bytearray()
    needed = count * kind.itemsize
    try:
        with path.open("rb") as raw:
            raw.seek(start)
            with bz2.BZ2File(raw) as stream:
                while len(unpacked) < needed and (piece := stream.read(min(_CHUNK, needed - len(unpacked)))):
                    unpacked += piece
    except (OSError, EOFError) as error:
        raise UnreadableVolume(
            f"{path.name} is damaged or was cut short: its voxels, packed with bzip2, cannot be unpacked ({error}). "
            "Copy it again from its source."
        ) from error
    if len(unpacked) < needed:
        raise UnreadableVolume(
            f"{path.name} promises {needed:,} bytes of voxels, but only {len(unpacked):,} are packed in it with bzip2. "
            "It was cut short or its header is damaged; copy it again from its source."
        )
    return np.frombuffer(unpacked, kind).astype(kind.newbyteorder("="), copy=False)
