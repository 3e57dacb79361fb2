"""Compressed pixels of DICOM, looked over before a native decoder gets them: lengths, sizes, and nothing that explodes.

Decoders ask for the memory that a code stream's own header names, not for what the DICOM header says.
"""

from __future__ import annotations

import os
import struct
from pathlib import Path
from typing import IO

__all__ = ["check_codestreams"]

_ITEM, _END = 0xE000FFFE, 0xE0DDFFFE
_MOST_TILES = 4096
_HEAD = 1 << 16  # bytes of a code stream in which its sizes stand


def check_codestreams(path: Path, at: int, shape: tuple[int, int]) -> None:
    """Refuse encapsulated pixels whose pieces do not fit into the file, or whose images have another size.

    Parameters
    ----------
    path
        A DICOM file.
    at
        The byte at which the value of its pixels starts.
    shape
        (rows, columns) as the DICOM header states.

    Raises
    ------
    ValueError
        If they are damaged.
    """
    with path.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        file.seek(max(0, at - 4))
        if at < 4 or file.read(4) != b"\xff\xff\xff\xff":
            raise ValueError("they are not where the header ends, in the form of compressed ones")
        while True:
            head = file.read(8)
            tag, length = struct.unpack("<II", head) if len(head) == 8 else (0, 0)
            if tag == _END or (tag == 0 and not head):
                return
            if tag != _ITEM or length > size - file.tell():
                raise ValueError("a piece of them is cut short")
            after = file.tell() + length
            _check_stream(file, min(length, _HEAD), shape)
            file.seek(after)


def _check_stream(file: IO[bytes], n_bytes: int, shape: tuple[int, int]) -> None:
    """Check what starts here, if it is the start of an image; it may be a later piece of one."""
    start = file.read(4)
    if start == b"\xff\x4f\xff\x51":
        _check_jpeg2000(file.read(38), shape)
    elif start[:3] == b"\xff\xd8\xff":
        found = _jpeg_size(start[2:] + file.read(n_bytes))
        if found is not None and found != shape:
            raise ValueError(f"an image has {found[0]} × {found[1]} pixels instead of {shape[0]} × {shape[1]}")


def _check_jpeg2000(head: bytes, shape: tuple[int, int]) -> None:
    if len(head) < 38:
        raise ValueError("an image is cut short")
    x1, y1, x0, y0, tile_x, tile_y, tile_x0, tile_y0, n_parts = struct.unpack(">IIIIIIIIH", head[4:38])
    if (y1 - y0, x1 - x0) != shape or n_parts != 1 or tile_x0 > x0 or tile_y0 > y0:
        raise ValueError(
            f"an image has {y1 - y0} × {x1 - x0} pixels of {n_parts} parts, instead of {shape[0]} × {shape[1]}"
        )
    n_tiles = -(-(x1 - tile_x0) // max(1, tile_x)) * -(-(y1 - tile_y0) // max(1, tile_y))
    if not (tile_x and tile_y) or n_tiles > _MOST_TILES:
        raise ValueError(f"an image has {n_tiles:,} tiles")


def _jpeg_size(block: bytes) -> tuple[int, int] | None:
    """Return the rows and columns of a JPEG or JPEG-LS from its first markers; None where they state none."""
    at = 0
    while at + 9 <= len(block) and block[at] == 0xFF:
        marker, length = block[at + 1], int.from_bytes(block[at + 2 : at + 4], "big")
        if (0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC)) or marker == 0xF7:
            rows, columns = struct.unpack(">HH", block[at + 5 : at + 9])
            return rows, columns
        at += 2 + length
    return None
