"""A DICOM file as pydicom reads it: inflation is bounded, and damage becomes an UnreadableVolume."""

from __future__ import annotations

import io
import os
import warnings
import zlib
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy.typing as npt

from napari_fmseg.core.errors import UnreadableVolume
from napari_fmseg.io import damage

if TYPE_CHECKING:
    from pydicom import Dataset

__all__ = [
    "PIXELS",
    "dataset_of",
    "frames_by_pydicom",
    "header_errors_as_unreadable",
    "pixel_errors_as_unreadable",
    "read_whole",
    "silence_pydicom",
    "syntax_of",
    "unused_bits",
]

_IMPLICIT, _EXPLICIT, _BIG_ENDIAN = "1.2.840.10008.1.2", "1.2.840.10008.1.2.1", "1.2.840.10008.1.2.2"
_PER_FRAME = 0x52009230
_LARGE = 1 << 20
_DESCRIPTION = 32 << 10
"""Bytes that describe one frame at most; usual are one or two thousand."""
_MOST_INFLATED = 256 << 20
PIXELS = (
    "The pixels of {name} cannot be read: {reason}. "
    "The file was cut short or uses an unusual compression; export the series again, uncompressed."
)
"""Message about pixels that cannot be read."""


@contextmanager
def silence_pydicom() -> Iterator[Any]:
    """Yield pydicom, without its many warnings about values that are slightly against the standard."""
    import pydicom

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield pydicom


def header_errors_as_unreadable(path: Path) -> AbstractContextManager[None]:
    """Turn what pydicom raises on a damaged header into an UnreadableVolume; values are parsed on demand."""
    return damage.header_errors_as_unreadable(
        path, "{name} starts as DICOM, but its header is damaged: {reason}. Copy it again from its source."
    )


class _Guarded(io.BufferedReader):
    """A file of which a deflated rest is given only if it inflates to a size that is no attack.

    Reading to the end is what pydicom does to inflate, and then only.
    """

    def read(self, size: int | None = -1, /) -> bytes:
        if size is not None and size >= 0:
            return super().read(size)
        rest = super().read()
        inflater, done, pending = zlib.decompressobj(-zlib.MAX_WBITS), 0, rest
        while pending and not inflater.eof:
            piece = inflater.decompress(pending, _MOST_INFLATED - done + 1)
            done += len(piece)
            if done > _MOST_INFLATED:
                raise UnreadableVolume(
                    f"{Path(str(self.name)).name} unpacks to more than {_MOST_INFLATED >> 20} MB. Do not trust it; or "
                    "export it again with uncompressed pixels."
                )
            pending = inflater.unconsumed_tail
        return rest


@contextmanager
def dataset_of(path: Path, **how: Any) -> Iterator[tuple[Dataset, BinaryIO]]:
    """Return a file's tags as pydicom reads them, and the file behind what was read.

    Parameters
    ----------
    path
        The file.
    how
        As for `pydicom.dcmread`.
    """
    import pydicom

    with _Guarded(io.FileIO(path)) as file:
        if os.fstat(file.fileno()).st_size > _LARGE:
            _check_frames(file, path)
        yield pydicom.dcmread(file, force=True, **how), file


def _check_frames(file: io.BufferedReader, path: Path) -> None:
    """Refuse a large file whose description of its frames is longer than so many can have; it is slow to read."""
    from pydicom.filereader import read_partial

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        before = read_partial(file, stop_when=lambda tag, *_: tag >= _PER_FRAME, force=True)
    if file.read(4) in (b"\x00\x52\x30\x92", b"\x52\x00\x92\x30") and _is_plain(before):
        n_frames = int(before.get("NumberOfFrames") or 1)
        n_bits = int(before.Rows) * int(before.Columns) * int(before.BitsAllocated) * n_frames
        size = os.fstat(file.fileno()).st_size
        described = size - file.tell() - n_bits // 8
        if not 0 <= described <= _LARGE + n_frames * _DESCRIPTION:
            raise UnreadableVolume(
                f"{path.name} says that it has {n_frames:,} images of {before.Rows} × {before.Columns} pixels, which "
                f"does not go with its {size:,} bytes. It is damaged; copy it again from its source."
            )
    file.seek(0)


def _is_plain(tags: Dataset) -> bool:
    """Return whether the size of the pixels follows from the header."""
    syntax = getattr(tags, "file_meta", {}).get("TransferSyntaxUID")
    return syntax is not None and not syntax.is_compressed and "Rows" in tags and "BitsAllocated" in tags


def pixel_errors_as_unreadable(path: Path) -> AbstractContextManager[None]:
    """Turn what a library raises on damaged pixels into an UnreadableVolume."""
    return damage.header_errors_as_unreadable(path, PIXELS)


def syntax_of(header: Dataset) -> str:
    """Return the transfer syntax that the file declares, or, where it declares none, that of its tags."""
    declared = str(getattr(header, "file_meta", {}).get("TransferSyntaxUID") or "")
    implicit, little = header.original_encoding
    return declared or (_IMPLICIT if implicit else _EXPLICIT if little else _BIG_ENDIAN)


def unused_bits(tags: Dataset) -> tuple[int, int]:
    """Return how many bits of a voxel are unused above the stored ones, and above and below them together."""
    allocated, stored, high = (tags.get(name) for name in ("BitsAllocated", "BitsStored", "HighBit"))
    if None in (allocated, stored, high):
        return 0, 0
    if not 0 < stored <= allocated:
        raise ValueError(f"{stored} bits are stored of {allocated} allocated ones")
    if not stored <= high + 1 <= allocated:
        high = stored - 1
    return allocated - 1 - high, allocated - stored


def read_whole(path: Path) -> Dataset:
    """Read a file with its pixels, which can be decoded even where it does not declare its transfer syntax.

    Raises
    ------
    UnreadableVolume
        If the pixels are compressed in a way that the file does not name.
    """
    import pydicom

    with dataset_of(path) as (dataset, _):
        pass
    dataset.file_meta.TransferSyntaxUID = syntax = pydicom.uid.UID(syntax_of(dataset))
    in_fragments = "PixelData" in dataset and dataset["PixelData"].is_undefined_length
    if in_fragments and not syntax.is_private and not syntax.is_compressed:
        raise UnreadableVolume(
            f"The pixels of {path.name} are compressed, but the file does not say how: its transfer syntax is "
            f"{syntax.name}. Export the series again, uncompressed."
        )
    return dataset


def frames_by_pydicom(path: Path) -> npt.NDArray[Any]:
    """Return the voxels (frames, y, x) as stored."""
    dataset = read_whole(path)
    above, unused = unused_bits(dataset)
    if unused > above:  # some are below, which pydicom does not know of
        dataset.BitsStored += unused - above
    pixels: npt.NDArray[Any] = dataset.pixel_array
    pixels = pixels >> (unused - above) if unused > above else pixels
    return pixels if pixels.ndim == 3 else pixels[None]
