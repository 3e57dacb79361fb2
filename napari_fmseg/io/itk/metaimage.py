"""MetaImage (.mha, .mhd), read here: the usual library overruns its own memory on a header with odd numbers."""

from __future__ import annotations

import math
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt

from napari_fmseg.core.errors import UnreadableVolume
from napari_fmseg.io.compression import MAX_RATIO, fill, inflate_zlib
from napari_fmseg.io.damage import header_errors_as_unreadable
from napari_fmseg.io.itk.text_header import TextHeader, data_files

__all__ = ["Place", "read_image"]

Place = tuple[npt.NDArray[np.float64], npt.NDArray[np.float64], npt.NDArray[np.float64]]
"""Spacing (n,), direction with an axis in each column (n, n), and origin (n,), all in the order x, y, z."""

_TYPES = {"CHAR": "i1", "UCHAR": "u1", "SHORT": "i2", "USHORT": "u2", "INT": "i4", "UINT": "u4", "LONG": "i4",
          "ULONG": "u4", "LONG_LONG": "i8", "ULONG_LONG": "u8", "FLOAT": "f4", "DOUBLE": "f8"}  # fmt: skip
_MOST_AXES = 5
_MOST_CHANNELS = 65_536


def read_image(header: TextHeader) -> tuple[npt.NDArray[Any], Place]:
    """Read the voxels and their place.

    Returns
    -------
    tuple
        Data (..., z, y, x), or (c, ..., z, y, x) with several components per voxel; and the place.

    Raises
    ------
    UnreadableVolume
        If the header makes no sense, or the files are missing, cut short or damaged.
    """
    path, fields = header.path, header.fields
    sizes, kind, n_channels = _sizes(fields, path), _kind(fields, path), _n_channels(fields, path)
    place = _place(fields, len(sizes), path)
    if _flag(fields, "BinaryDataByteOrderMSB") or _flag(fields, "ElementByteOrderMSB"):
        kind = kind.newbyteorder(">")
    files = _files(header)
    n_values = math.prod(sizes) * n_channels
    _check_promise(header, files, sizes, n_values * kind.itemsize)
    if n_values % len(files):
        raise UnreadableVolume(
            f"{path.name} lists {len(files)} files for {sizes[-1]} slices; they cannot be shared out evenly. "
            "Copy all of them into one folder."
        )
    data: npt.NDArray[Any] = np.empty((len(files), n_values // len(files)), kind)
    for file, part in zip(files, data, strict=True):
        with header_errors_as_unreadable(file):
            _fill(part, file, header)
    data = data.reshape(*sizes[::-1], n_channels) if n_channels > 1 else data.reshape(sizes[::-1])
    data = data.astype(data.dtype.newbyteorder("="), copy=False)
    return (np.ascontiguousarray(np.moveaxis(data, -1, 0)) if n_channels > 1 else data), place


def _sizes(fields: dict[str, str], path: Path) -> list[int]:
    sizes = [_whole(word, path, "DimSize") for word in fields.get("DimSize", "").split()]
    n_axes = _whole(fields.get("NDims", str(len(sizes))), path, "NDims")
    if n_axes != len(sizes) or not 3 <= n_axes <= _MOST_AXES or min(sizes) < 1:
        raise UnreadableVolume(
            f"{path.name} states {n_axes} axes (NDims) and the sizes {sizes} (DimSize); expected 3 to {_MOST_AXES} "
            "axes, each at least 1 long. The header is damaged; export it again."
        )
    return sizes


def _whole(word: str, path: Path, name: str) -> int:
    """Return a number without a fraction that no header exceeds."""
    try:
        number = float(word)
    except ValueError:
        number = math.nan
    if not number.is_integer() or abs(number) > 2**53:
        raise UnreadableVolume(
            f"{path.name} states {word[:40]!r} as {name}, which is no whole number. Export it again."
        )
    return int(number)


def _kind(fields: dict[str, str], path: Path) -> np.dtype[Any]:
    name = fields.get("ElementType", "").removeprefix("MET_").removesuffix("_ARRAY")
    if name not in _TYPES:
        raise UnreadableVolume(
            f"{path.name} has the voxel type {fields.get('ElementType', '')[:40]!r}, which is no number type of "
            "MetaImage. Export it again, with whole or real numbers."
        )
    return np.dtype("<" + _TYPES[name])


def _n_channels(fields: dict[str, str], path: Path) -> int:
    number = _whole(fields.get("ElementNumberOfChannels", "1"), path, "ElementNumberOfChannels")
    if not 1 <= number <= _MOST_CHANNELS:
        raise UnreadableVolume(
            f"{path.name} states {number} channels; expected 1 to {_MOST_CHANNELS}. Export it again."
        )
    return number


def _place(fields: dict[str, str], n: int, path: Path) -> Place:
    """Find the place; each name of a field may be missing, and has others."""
    spacing = _numbers(fields, ("ElementSpacing", "ElementSize"), n, np.ones(n), path)
    origin = _numbers(fields, ("Offset", "Position", "Origin"), n, np.zeros(n), path)
    matrix = _numbers(fields, ("TransformMatrix", "Rotation", "Orientation"), n * n, np.eye(n).ravel(), path)
    return spacing, matrix.reshape(n, n).T, origin


def _numbers(
    fields: dict[str, str], names: tuple[str, ...], count: int, otherwise: npt.NDArray[np.float64], path: Path
) -> npt.NDArray[np.float64]:
    name = next((name for name in names if fields.get(name)), None)
    if name is None:
        return otherwise
    words = fields[name].split()[:count]
    try:
        numbers = np.array([float(word) for word in words])
    except ValueError:
        numbers = np.array([math.nan])
    if len(numbers) != count or not np.isfinite(numbers).all():
        raise UnreadableVolume(
            f"{path.name} states {name} = {fields[name][:80]}; expected {count} numbers. "
            "Correct the header in the program that wrote it."
        )
    return numbers


def _flag(fields: dict[str, str], name: str) -> bool:
    return fields.get(name, "")[:1] in ("T", "t", "1")


def _files(header: TextHeader) -> list[Path]:
    files = data_files(header)
    if not files:
        raise UnreadableVolume(f"{header.path.name} lists no file with its voxels. Export it again.")
    for file in files:
        if not file.is_file():
            raise UnreadableVolume(
                f"{header.path.name} keeps its voxels in {file.name}, which is missing. Copy both into one folder."
            )
    return files


def _check_promise(header: TextHeader, files: list[Path], sizes: list[int], needed: int) -> None:
    """Refuse a header that promises more than its files can hold, before memory is allocated."""
    size = sum(file.stat().st_size for file in files)
    ratio = MAX_RATIO if _flag(header.fields, "CompressedData") else 1 if _is_binary(header) else 4
    if needed > size * ratio:  # a digit and a blank may be a whole voxel of text
        raise UnreadableVolume(
            f"{header.path.name} promises {'×'.join(map(str, sizes))} voxels, {needed:,} bytes, but has "
            f"only {size:,}. It was cut short or its header is damaged; copy it again from its source."
        )


def _is_binary(header: TextHeader) -> bool:
    return _flag(header.fields, "BinaryData") or "BinaryData" not in header.fields


def _fill(part: npt.NDArray[Any], path: Path, header: TextHeader) -> None:
    """Read the voxels of one file into `part`."""
    with path.open("rb", buffering=0) as file:
        file.seek(_start(path, part.nbytes, header))
        if _flag(header.fields, "CompressedData"):
            inflate_zlib(file, part)
        elif _is_binary(header):
            fill(file, part)
        else:
            part[:] = _read_text_numbers(file, part, path)


def _start(path: Path, n_bytes: int, header: TextHeader) -> int:
    """Return the byte at which voxels start: behind the header, or where it states."""
    skipped = _whole(header.fields.get("HeaderSize", "0"), header.path, "HeaderSize")
    size = path.stat().st_size
    start = max(0, size - n_bytes) if skipped == -1 else skipped
    if not -1 <= skipped <= size:
        raise UnreadableVolume(
            f"{header.path.name} states that its voxels start at byte {skipped:,} (HeaderSize). "
            "The header is damaged; export it again."
        )
    return header.ends_at if path == header.path and skipped == 0 else start


def _read_text_numbers(file: IO[bytes], part: npt.NDArray[Any], path: Path) -> npt.NDArray[Any]:
    """Return numbers that are written out as text."""
    words = file.read().split()[: part.size]
    try:
        numbers = np.array(words, dtype=np.float64)
    except ValueError as error:
        raise UnreadableVolume(f"{path.name} holds text that is no number: {error}. Export it again.") from error
    if len(numbers) < part.size:
        raise UnreadableVolume(
            f"{path.name} ends after {len(numbers):,} of {part.size:,} numbers. Copy it again from its source."
        )
    with np.errstate(all="ignore"):
        return numbers.astype(part.dtype)
