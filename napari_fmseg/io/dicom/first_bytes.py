"""Whether a file starts as DICOM: by the mark after the preamble, or, without one, by its first data elements."""

from __future__ import annotations

import os
import struct
from pathlib import Path
from typing import BinaryIO

__all__ = ["is_dicom"]

_GROUPS = (0x0000, 0x0002, 0x0008, 0x0010, 0x0018, 0x0020, 0x0028)
"""Groups of an object's first elements: commands, file meta, identification, patient, acquisition."""
_LONG = {b"OB", b"OD", b"OF", b"OL", b"OV", b"OW", b"SQ", b"SV", b"UC", b"UN", b"UR", b"UT", b"UV"}
"""Value representations whose length has four bytes, after two that are empty."""
_SHORT = {b"AE", b"AS", b"AT", b"CS", b"DA", b"DS", b"DT", b"FD", b"FL", b"IS", b"LO", b"LT", b"PN", b"SH", b"SL",
          b"SS", b"ST", b"TM", b"UI", b"UL", b"US"}  # fmt: skip
_UNDEFINED = 0xFFFFFFFF
_ENOUGH = 3  # elements in order, of a length that the file has: nothing else looks so by chance


def is_dicom(path: Path) -> bool:
    """Return whether the first bytes are those of a DICOM file, with or without the usual preamble, whatever its
    name.
    """
    try:
        with path.open("rb") as file:
            start = file.read(132)
            return start[128:] == b"DICM" or any(_starts_with_elements(file, start, order) for order in "<>")
    except OSError:
        return False


def _starts_with_elements(file: BinaryIO, start: bytes, order: str) -> bool:
    if len(start) < 8 or struct.unpack_from(f"{order}H", start)[0] not in _GROUPS:
        return False
    size, at, last = os.fstat(file.fileno()).st_size, 0, -1
    for _ in range(_ENOUGH):
        file.seek(at)
        head = file.read(12)
        if not head and at == size and last >= 0:
            return True
        if len(head) < 8:
            return False
        group, element = struct.unpack_from(f"{order}HH", head)
        tag = group << 16 | element
        value_at, length = _extent(head, order)
        if tag <= last or group not in _GROUPS:
            return False
        if length == _UNDEFINED:
            return True
        at, last = at + value_at + length, tag
        if at > size:
            return False
    return True


def _extent(head: bytes, order: str) -> tuple[int, int]:
    """Return at which byte of an element its value starts, and how long it is; explicit VR where two letters
    name one.
    """
    kind = head[4:6]
    if kind in _LONG and len(head) == 12:
        return 12, int(struct.unpack_from(f"{order}I", head, 8)[0])
    if kind in _SHORT:
        return 8, int(struct.unpack_from(f"{order}H", head, 6)[0])
    return 8, int(struct.unpack_from(f"{order}I", head, 4)[0])
