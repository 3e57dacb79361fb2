"""Deflate streams, by ISA-L, which is several times faster than the standard library."""

from __future__ import annotations

import gzip
import os
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt
from isal import igzip, igzip_threaded, isal_zlib

__all__ = [
    "DEFLATE_ERRORS",
    "MAX_RATIO",
    "fill",
    "inflate_zlib",
    "open_inflated",
    "write_gzip",
    "write_zlib",
]

MAX_RATIO = 1032
"""Deflate cannot shrink anything further than this, so a file's size bounds what it can hold."""

_BIG = 1 << 20  # bytes; below, starting a thread costs more than it gains
_CHUNK = 1 << 18  # 256 KiB stay in the processor's cache between inflating and copying
_PLACES, _PLACE, _FAST_RATIO = 16, 1 << 16, 20

DEFLATE_ERRORS: tuple[type[Exception], ...] = (EOFError, gzip.BadGzipFile, zlib.error, isal_zlib.error)  # type: ignore[assignment]
"""What a damaged stream raises, whichever library inflates it."""


def open_inflated(path: Path) -> IO[bytes]:
    """Open a file for reading, and inflate it if its first bytes say that it is gzip, whatever it is called."""
    with path.open("rb") as raw:
        is_gzip = raw.read(2) == b"\x1f\x8b"
        size = os.fstat(raw.fileno()).st_size
    if not is_gzip:
        return path.open("rb", buffering=0)
    if size < _BIG:
        return igzip.open(path, "rb")  # type: ignore[no-any-return]
    return igzip_threaded.open(path, "rb", threads=1, block_size=_CHUNK)  # type: ignore[no-any-return]


def fill(stream: IO[bytes], array: npt.NDArray[Any]) -> None:
    """Read exactly the bytes of a C-contiguous `array` from `stream`, without a copy; `EOFError` if it ends before."""
    target = array.reshape(-1).view(np.uint8).data
    done = 0
    while done < len(target):
        count = stream.readinto(target[done:])  # type: ignore[attr-defined]
        if not count:
            raise EOFError(f"the data end after {done:,} of {len(target):,} bytes")
        done += count
    stream.read(1)  # one step further, so that gzip compares its checksum


def inflate_zlib(file: IO[bytes], array: npt.NDArray[Any]) -> None:
    """Inflate a zlib or gzip stream into a C-contiguous `array`, piece by piece; `EOFError` if it ends before."""
    target = array.reshape(-1).view(np.uint8)
    pending = file.read(_CHUNK)
    inflater = isal_zlib.decompressobj(31 if pending.startswith(b"\x1f\x8b") else 15)
    done = 0
    while pending and done < target.size and not inflater.eof:
        piece = inflater.decompress(pending, target.size - done)
        target[done : done + len(piece)] = np.frombuffer(piece, np.uint8)
        done += len(piece)
        pending = inflater.unconsumed_tail or file.read(_CHUNK)
    if done < target.size:
        raise EOFError(f"the data end after {done:,} of {target.size:,} bytes")


def write_gzip(file: IO[bytes], parts: list[bytes | memoryview]) -> None:
    """Write `parts` one after the other as one gzip stream, at a level that favours speed.

    Images are deflated by several threads. Label maps shrink so fast that handing pieces to threads takes longer.
    """
    if sum(len(part) for part in parts) < _BIG:
        file.write(igzip.compress(b"".join(parts), compresslevel=2, mtime=0))
    elif all(_shrinks_fast(part) for part in parts):
        _deflate(file, parts, 31)
    else:
        threads = min(4, os.cpu_count() or 1)
        with igzip_threaded.open(file, "wb", compresslevel=1, threads=threads, block_size=4 * _CHUNK) as out:
            for part in parts:
                for start in range(0, len(part), 4 * _CHUNK):
                    out.write(part[start : start + 4 * _CHUNK])


def write_zlib(file: IO[bytes], data: memoryview) -> int:
    """Write `data` as one zlib stream and return how many bytes that took."""
    start = file.tell()
    _deflate(file, [data], 15)
    return file.tell() - start


def _shrinks_fast(part: bytes | memoryview) -> bool:
    """Return whether places of large data, evenly over them, deflate to less than a twentieth."""
    if len(part) < _BIG:
        return True
    places = (part[i * (len(part) // _PLACES) :][:_PLACE] for i in range(_PLACES))
    return sum(len(isal_zlib.compress(place, 1)) for place in places) * _FAST_RATIO < _PLACES * _PLACE


def _deflate(file: IO[bytes], parts: Sequence[bytes | memoryview], wbits: int) -> None:
    """Write `parts` as one stream, zlib's with 15 for `wbits`, gzip's with 31, in this thread."""
    deflater = isal_zlib.compressobj(1, wbits=wbits)
    for part in parts:
        for start in range(0, len(part), 16 * _CHUNK):
            file.write(deflater.compress(part[start : start + 16 * _CHUNK]))
    file.write(deflater.flush())
