"""NRRD and MetaImage: a NRRD is read by SimpleITK after a look at the header, a MetaImage here; both are written here.

Writing needs little more than a few header lines, keeps a sheared affine, holds names and colours, and
compresses with the faster library.
"""

from __future__ import annotations

import io
import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from napari_fmseg.core.atomic_write import atomic_write
from napari_fmseg.core.errors import UnreadableVolume, UnwritableVolume
from napari_fmseg.core.volume import Geometry, LabelMap, Volume
from napari_fmseg.io import segment_metadata
from napari_fmseg.io.compression import MAX_RATIO, write_gzip, write_zlib
from napari_fmseg.io.itk import bzip2, metaimage, native_reader
from napari_fmseg.io.itk.length_units import mm_per_unit
from napari_fmseg.io.itk.text_header import TextHeader, data_files, read_header
from napari_fmseg.io.voxel_values import REVERSED, split_channel_axis

__all__ = ["grid", "header_fields", "read", "write"]

_MOST_AXES = 5
_LONGEST_WORD, _LONGEST_FIELD = 100, 1000  # the library behind copies them into places of such a size
_PHANTOM = "Phantom"  # a field that says that the volume is one
_FREE_FIELDS = ("data file", "content")  # which may be longer
_OF_PATIENT = ("right", "left", "ras", "las", "lps")  # how spaces begin that say which side is which
_SPACE_KINDS = ("domain", "space", "???")
_TYPES = {  # what NRRD and MetaImage call numpy's types
    "u1": ("unsigned char", "MET_UCHAR"),
    "i1": ("signed char", "MET_CHAR"),
    "u2": ("unsigned short", "MET_USHORT"),
    "i2": ("short", "MET_SHORT"),
    "u4": ("unsigned int", "MET_UINT"),
    "i4": ("int", "MET_INT"),
    "u8": ("unsigned long long int", "MET_ULONG_LONG"),
    "i8": ("long long int", "MET_LONG_LONG"),
    "f4": ("float", "MET_FLOAT"),
    "f8": ("double", "MET_DOUBLE"),
}

_NRRD_TYPES = {
    **dict.fromkeys(("signed char", "int8", "int8_t"), "i1"),
    **dict.fromkeys(("uchar", "unsigned char", "uint8", "uint8_t"), "u1"),
    **dict.fromkeys(("short", "short int", "signed short", "signed short int", "int16", "int16_t"), "i2"),
    **dict.fromkeys(("ushort", "unsigned short", "unsigned short int", "uint16", "uint16_t"), "u2"),
    **dict.fromkeys(("int", "signed int", "int32", "int32_t"), "i4"),
    **dict.fromkeys(("uint", "unsigned int", "uint32", "uint32_t"), "u4"),
    **dict.fromkeys(("longlong", "long long", "long long int", "signed long long", "signed long long int", "int64",
                     "int64_t"), "i8"),
    **dict.fromkeys(("ulonglong", "unsigned long long", "unsigned long long int", "uint64", "uint64_t"), "u8"),
    "float": "f4",
    "double": "f8",
}  # fmt: skip


def read(path: Path) -> tuple[npt.NDArray[Any], Geometry, dict[str, Any]]:
    """Read a NRRD (.nrrd, .nhdr) or MetaImage (.mha, .mhd).

    Returns
    -------
    tuple
        Data (z, y, x) or (c, z, y, x), the geometry, and ``meta`` with ``"names"`` and ``"colors"`` of segments.

    Raises
    ------
    UnreadableVolume
        If it is damaged, not what its suffix says, not 3-D, not of real numbers, or its place makes no sense.
    """
    header = read_header(path)
    fields = header.fields
    _check_fields(header)
    data, place = _by_itk(header) if header.is_nrrd else metaimage.read_image(header)
    data = data.reshape(split_channel_axis(data.shape, path))
    names, colors = segment_metadata.from_fields(fields)
    meta = {"format": "NRRD" if header.is_nrrd else "MetaImage", "names": names, "colors": colors}
    modality = fields.get("Modality", "").removeprefix("MET_MOD_")
    if modality not in ("", "UNKNOWN", "OTHER"):
        meta["modality"] = modality
    if fields.get(_PHANTOM):
        meta["phantom"] = fields[_PHANTOM]
    factors, warnings = mm_per_unit(_stated_units(header))
    return data, _geometry(place, data.shape, factors, path), {**meta, "warnings": _silences(header) + warnings}


def header_fields(path: Path) -> dict[str, str]:
    """Return the text fields of a NRRD or MetaImage header; `UnreadableVolume` if the file is neither."""
    return read_header(path).fields


def grid(path: Path) -> tuple[tuple[int, ...], list[float]]:
    """Return the sizes (z, y, x) and spacings (x, y, z) that a header states; `UnreadableVolume` if it states none."""
    header = read_header(path)
    _check_fields(header)
    sizes = _sizes(header)
    sizes = _of_space(sizes, header.fields) if header.is_nrrd else sizes[:3]
    factors, _ = mm_per_unit(_stated_units(header))
    spacings = _stated_spacings(header.fields) or [1.0] * 3
    return tuple(int(word) for word in reversed(sizes)), [mm * f for mm, f in zip(spacings, factors, strict=True)]


def _by_itk(header: TextHeader) -> tuple[npt.NDArray[Any], metaimage.Place]:
    """Read a NRRD: data (..., z, y, x), channels first, and its place."""
    path, fields = header.path, header.fields
    _check_promise(header)
    is_bzip2 = fields.get("encoding", "").lower() in ("bzip2", "bz2")
    try:
        image = native_reader.call("itk_place" if is_bzip2 else "itk_image", path, "NrrdImageIO")
    except RuntimeError as error:  # all that SimpleITK raises
        if "determinant" in str(error):
            raise _flat(path, fields.get("space directions", "")) from error
        raise UnreadableVolume(
            f"{path.name} is damaged or was cut short; ITK says: {_reason(error)} Copy it again from its source."
        ) from error
    data = image.voxels
    if is_bzip2:
        data = _bzip2_voxels(header, len(image.spacing))
    elif image.n_channels > 1:
        data = np.ascontiguousarray(np.moveaxis(data, -1, 0))
    return data, (image.spacing, image.direction, image.origin)


def _bzip2_voxels(header: TextHeader, n_axes: int) -> npt.NDArray[Any]:
    """Read the voxels of a NRRD packed with bzip2, which ITK cannot: (z, y, x) or (c, z, y, x)."""
    path, fields, files = header.path, header.fields, data_files(header)
    if len(files) > 1 or any(fields.get(skip, "0") != "0" for skip in ("line skip", "byte skip")):
        raise UnreadableVolume(
            f"{path.name} is packed with bzip2 in several files or after a part to skip, which is not read. "
            "Save it with gzip, or unpacked, in the program that wrote it."
        )
    sizes = [int(word) for word in _sizes(header)]
    kind = _kind(header).newbyteorder(">" if fields.get("endian", "").lower() == "big" else "<")
    start = header.ends_at if files[0] == path else 0
    data = bzip2.read(files[0], math.prod(sizes), kind, start=start).reshape(sizes[::-1])
    if len(sizes) == n_axes:
        return data
    kinds = fields.get("kinds", "").lower().split()
    components = next((i for i, kind in enumerate(kinds) if kind not in _SPACE_KINDS), 0)
    return np.ascontiguousarray(np.moveaxis(data, len(sizes) - 1 - components, 0))


def _kind(header: TextHeader) -> np.dtype[Any]:
    """Return the number type of one component of a NRRD's voxel."""
    name = " ".join(header.fields.get("type", "").lower().split())
    if name not in _NRRD_TYPES:
        raise UnreadableVolume(
            f"{header.path.name} has the voxel type {name[:40]!r}, which is no number type of NRRD. "
            "Export it again, with whole or real numbers."
        )
    return np.dtype(_NRRD_TYPES[name])


def _sizes(header: TextHeader) -> list[str]:
    return header.fields.get("sizes" if header.is_nrrd else "DimSize", "").split()


def _check_fields(header: TextHeader) -> None:
    """Refuse fields that ITK would accept wrongly, or would refuse without a clear message."""
    path, fields = header.path, header.fields
    if "RGB" in fields.get("kinds", "").upper():
        raise UnreadableVolume(
            f"{path.name} holds colours (RGB), not intensities: it is a screenshot or a map for display. "
            "Give the original grey-value volume."
        )
    n_axes = len(_sizes(header))
    if n_axes < 3:
        raise UnreadableVolume(
            f"{path.name} is {n_axes}-D, but a volume has three axes of space. "
            "Stack the slices into one volume, or choose the folder of the whole series."
        )
    for spacing in _stated_spacings(fields):
        if not (math.isfinite(spacing) and spacing > 0):
            raise UnreadableVolume(
                f"{path.name} states a voxel size of {spacing:g} mm; it must be above 0. "
                "Correct the header in the program that wrote it."
            )


def _stated_spacings(fields: dict[str, str]) -> list[float]:
    text = fields.get("ElementSpacing") or fields.get("ElementSize") or ""
    if not text and "space directions" in fields:
        vectors = re.findall(r"\(([^)]*)\)", fields["space directions"])
        return [math.hypot(*map(_number, re.split(r"[,\s]+", vector.strip()))) for vector in vectors]
    if not text and "spacings" in fields:
        return [_number(word) for word in _of_space(fields["spacings"].split(), fields)]
    return [_number(word) for word in text.split()[:3]]


def _of_space(words: list[str], fields: dict[str, str]) -> list[str]:
    """Return those words, one per axis of a NRRD, whose axis is one of space."""
    kinds = fields.get("kinds", "").lower().split() or ["domain"] * len(words)
    return [word for word, kind in zip(words, kinds + ["domain"] * len(words), strict=False) if kind in _SPACE_KINDS]


def _stated_units(header: TextHeader) -> list[str]:
    """Return the units of length along the patient's x, y and z, as the header has them."""
    fields = header.fields
    if not header.is_nrrd:
        return [fields.get("DistanceUnits", "")] * 3
    if "space units" in fields:
        return _quotations(fields["space units"])
    return _of_space(_quotations(fields.get("units", "")), fields)


def _quotations(text: str) -> list[str]:
    return re.findall(r'"([^"]*)"', text)


def _number(word: str) -> float:
    try:
        return float(word)
    except ValueError:
        return math.nan


def _check_promise(header: TextHeader) -> None:
    """Refuse numbers that no NRRD has, and a header that promises more than its files can hold, before it is read."""
    path, fields = header.path, header.fields
    for name, text in fields.items():
        longest = max(map(len, text.split()), default=0)
        is_long = name in header.own and name not in _FREE_FIELDS
        if is_long and (longest > _LONGEST_WORD or len(text) > _LONGEST_FIELD):
            raise UnreadableVolume(
                f"{path.name} states {text[:40]!r}… as {name}, which is too long. The header is damaged; "
                "export it again."
            )
    sizes = [_whole_number(word, path, "sizes", 1) for word in _sizes(header)]
    if _whole_number(fields.get("dimension", "0"), path, "dimension", 1) != len(sizes) or len(sizes) > _MOST_AXES:
        raise UnreadableVolume(
            f"{path.name} states {fields.get('dimension', 'no')} axes (dimension) and {len(sizes)} sizes; expected the "
            f"same number, at most {_MOST_AXES}. The header is damaged; export it again."
        )
    files = data_files(header)
    for file in files:
        if not file.is_file():
            raise UnreadableVolume(
                f"{path.name} keeps its voxels in {file.name}, which is missing. Copy both into one folder."
            )
    size = sum(file.stat().st_size for file in files)
    for name, least in (("line skip", 0), ("byte skip", -1)):
        _whole_number(fields.get(name, "0"), path, name, least)
    encoding = fields.get("encoding", "").lower()
    # A digit and a blank may be a whole voxel of text.
    ratio = {"gzip": MAX_RATIO, "gz": MAX_RATIO, "bzip2": bzip2.MAX_RATIO, "bz2": bzip2.MAX_RATIO,
             "raw": 1}.get(encoding, 4)  # fmt: skip
    needed = math.prod(sizes) * _kind(header).itemsize
    if needed > size * ratio:
        raise UnreadableVolume(
            f"{path.name} promises {'×'.join(map(str, sizes))} voxels, {needed:,} bytes, but has "
            f"only {size:,}. It was cut short or its header is damaged; copy it again from its source."
        )


def _whole_number(word: str, path: Path, name: str, least: int) -> int:
    """Return a whole number of the header, which the library behind takes as it is."""
    if not re.fullmatch(r"[+-]?\d{1,12}", word) or int(word) < least:
        raise UnreadableVolume(
            f"{path.name} states {word[:40]!r} as {name}; expected a whole number from {least}. "
            "The header is damaged; export it again."
        )
    return int(word)


def _reason(error: RuntimeError) -> str:
    """Return the message of an ITK error, without its source files and addresses."""
    text = re.split(r"(?:ERROR|Error):\s*", str(error))[-1]
    text = re.sub(r"^\w+\(\S+\):\s*|\S*/\S*", "", text)
    return " ".join(text.split())[:200].rstrip(".") + "."


def _flat(path: Path, directions: object) -> UnreadableVolume:
    return UnreadableVolume(
        f"{path.name} has axes that lie in one plane or are not finite: {directions}. "
        "Correct its directions in the program that wrote it."
    )


def _geometry(place: metaimage.Place, shape: tuple[int, ...], mm: tuple[float, ...], path: Path) -> Geometry:
    """Make the geometry, whose lengths along x, y and z are in units of so many mm."""
    spacing, direction, origin = place
    affine = np.eye(4)
    affine[:3, :3] = direction[:3, :3] * spacing[:3]
    affine[:3, 3] = origin[:3]
    affine[:3] *= np.array(mm)[:, None]
    norms = np.linalg.norm(affine[:3, :3], axis=0)
    if not np.isfinite(affine).all() or norms.min() <= 0 or abs(np.linalg.det(affine[:3, :3] / norms)) < 1e-6:
        raise _flat(path, affine[:3].tolist())
    z, y, x = shape[-3:]
    return Geometry((z, y, x), affine[REVERSED])


def _silences(header: TextHeader) -> list[str]:
    """Return warnings about what the header does not state."""
    silences, fields = [], header.fields
    if not _stated_spacings(fields):
        silences.append("The header does not state the size of a voxel; 1 mm was assumed.")
    if header.is_nrrd and not fields.get("space", "").lower().startswith(_OF_PATIENT):
        silences.append("The header does not say how the volume lies in the patient; left and right may be swapped.")
    return silences


def write(volume: Volume, path: Path) -> None:
    """Write a compressed NRRD or MetaImage; .nhdr and .mhd get their voxels in a second file beside.

    Parameters
    ----------
    volume
        Data (z, y, x) or (c, z, y, x); a sheared affine is kept exactly.
    path
        Ends in .nrrd, .nhdr, .mha or .mhd.

    Raises
    ------
    UnwritableVolume
        If the disk is full, the place is not writable, or the format has no such number type.
    """
    is_nrrd = path.suffix.lower() in (".nrrd", ".nhdr")
    kind = volume.data.dtype.str[1:]
    if kind not in _TYPES:
        raise UnwritableVolume(
            f"{path.name}: the format has no voxel type {volume.data.dtype}. Convert the data to float32."
        )
    # Components of one voxel stand together, as ITK expects of a multi-channel image.
    voxels = volume.data if volume.data.ndim == 3 else np.moveaxis(volume.data, 0, -1)
    voxels = np.ascontiguousarray(voxels, dtype=np.dtype("<" + kind))
    packed = io.BytesIO()
    raw = voxels.reshape(-1).view(np.uint8).data
    if is_nrrd:
        write_gzip(packed, [raw])
    else:
        write_zlib(packed, raw)
    detached = path.with_suffix(".raw.gz" if is_nrrd else ".zraw") if path.suffix.lower() in (".nhdr", ".mhd") else None
    header = (_nrrd_header if is_nrrd else _meta_header)(volume, kind, packed.tell(), detached)
    with atomic_write(path) as file:
        file.write(header)
        if detached is None:
            file.write(packed.getbuffer())
        else:  # the header follows when the voxels are in their place
            with atomic_write(detached) as beside:
                beside.write(packed.getbuffer())


def _phantom(volume: Volume) -> dict[str, str]:
    """Return the field that says that a volume is a phantom, where it is one."""
    name = " ".join(str(volume.meta.get("phantom") or "").split())
    return {_PHANTOM: name} if name else {}


def _columns(volume: Volume) -> tuple[list[list[float]], list[float]]:
    """Return the step vectors of the axes x, y, z and the origin, in LPS mm listed x, y, z."""
    affine = volume.geometry.affine[REVERSED]
    return affine[:3, :3].T.tolist(), affine[:3, 3].tolist()


def _nrrd_header(volume: Volume, kind: str, n_bytes: int, detached: Path | None) -> bytes:
    steps, origin = _columns(volume)
    vectors = [f"({','.join(map(repr, step))})" for step in steps]
    sizes = [*volume.geometry.shape[::-1]]
    kinds = ["domain"] * 3
    if volume.data.ndim == 4:
        vectors, sizes, kinds = ["none", *vectors], [volume.n_channels, *sizes], ["vector", *kinds]
    lines = ["NRRD0004", f"type: {_TYPES[kind][0]}", f"dimension: {len(sizes)}", "space: left-posterior-superior",
             f"sizes: {' '.join(map(str, sizes))}",
             f"space directions: {' '.join(vectors)}", f"kinds: {' '.join(kinds)}",
             *(["endian: little"] if kind[1] != "1" else []), "encoding: gzip",
             f"space origin: ({','.join(map(repr, origin))})"]  # fmt: skip
    lines += [f"data file: {detached.name}"] if detached else []
    lines += [f"{key}:={text}" for key, text in _phantom(volume).items()]
    if isinstance(volume, LabelMap):
        lines += [f"{key}:={text}" for key, text in segment_metadata.to_fields(volume).items()]
    return ("\n".join(lines) + "\n\n"[: 1 if detached else 2]).encode()


def _meta_header(volume: Volume, kind: str, n_bytes: int, detached: Path | None) -> bytes:
    steps, origin = _columns(volume)
    spacings = [math.hypot(*step) for step in steps]
    matrix = [part / spacing for step, spacing in zip(steps, spacings, strict=True) for part in step]

    def words(numbers: list[Any]) -> str:
        return " ".join(map(repr, numbers))

    fields = {"ObjectType": "Image", "NDims": "3", "BinaryData": "True", "BinaryDataByteOrderMSB": "False",
              "CompressedData": "True", "CompressedDataSize": str(n_bytes), "TransformMatrix": words(matrix),
              "Offset": words(origin), "CenterOfRotation": "0 0 0", "AnatomicalOrientation": "RAI",
              "ElementSpacing": words(spacings)}  # fmt: skip
    if isinstance(volume, LabelMap):
        fields |= segment_metadata.to_fields(volume)
    fields |= _phantom(volume)
    fields["DimSize"] = words([*volume.geometry.shape[::-1]])
    if volume.data.ndim == 4:
        fields["ElementNumberOfChannels"] = str(volume.n_channels)
    fields |= {"ElementType": _TYPES[kind][1], "ElementDataFile": detached.name if detached else "LOCAL"}
    return "".join(f"{key} = {value}\n" for key, value in fields.items()).encode()
