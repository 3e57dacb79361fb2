"""NRRD and MetaImage: read by SimpleITK after a look at the header, written here.

Writing needs little more than a few header lines, keeps a sheared affine, holds names and colours, and
compresses with the faster library.
"""

from __future__ import annotations

import io
import math
import re
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt
import SimpleITK as sitk

from napari_fmseg.errors import UnreadableVolume, UnwritableVolume
from napari_fmseg.io import bzip2, segments
from napari_fmseg.io.checks import REVERSED, wanted_channels
from napari_fmseg.io.finding import is_metaimage
from napari_fmseg.io.gzipped import MAX_RATIO, write_gzip, write_zlib
from napari_fmseg.io.units import mm_per_unit
from napari_fmseg.io.writing import written_beside
from napari_fmseg.volume import Geometry, LabelMap, Volume

__all__ = ["data_file", "header_fields", "read", "stated_units", "write"]

_HEADER_BYTES = 1 << 20
_NRRD_FIELDS = {name.replace(" ", ""): name for name in (
    "data file", "line skip", "byte skip", "space origin", "space directions", "space units",
)}  # fmt: skip
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
    fields = header_fields(path)
    _check_fields(fields, path)
    reader = sitk.ImageFileReader()
    reader.SetFileName(str(path))
    reader.SetImageIO("NrrdImageIO" if "sizes" in fields else "MetaImageIO")
    try:
        reader.ReadImageInformation()
        _check_promise(reader, fields, path)
        data = _bzip2_voxels(reader, fields, path) if _is_bzip2(fields) else _voxels(reader.Execute())
    except RuntimeError as error:  # all that SimpleITK raises
        if "determinant" in str(error):
            raise _flat(path, fields.get("space directions") or fields.get("TransformMatrix", "")) from error
        raise UnreadableVolume(
            f"{path.name} is damaged or was cut short; ITK says: {_reason(error)} Copy it again from its source."
        ) from error
    data = data.reshape(wanted_channels(data.shape, path))
    names, colors = segments.from_fields(fields)
    meta = {"format": "NRRD" if "sizes" in fields else "MetaImage", "names": names, "colors": colors}
    modality = fields.get("Modality", "").removeprefix("MET_MOD_")
    if modality not in ("", "UNKNOWN", "OTHER"):
        meta["modality"] = modality
    factors, warnings = mm_per_unit(stated_units(fields))
    return data, _geometry(reader, factors, path), {**meta, "warnings": _silences(fields) + warnings}


def _voxels(image: Any) -> npt.NDArray[Any]:
    """Return (z, y, x) or (c, z, y, x)."""
    data = sitk.GetArrayFromImage(image)
    return np.ascontiguousarray(np.moveaxis(data, -1, 0)) if image.GetNumberOfComponentsPerPixel() > 1 else data


def header_fields(path: Path) -> dict[str, str]:
    """Return the text fields of a NRRD or MetaImage header.

    Raises
    ------
    UnreadableVolume
        If the file is neither.
    """
    with path.open("rb") as file:
        block = file.read(_HEADER_BYTES)
    if block.startswith(b"NRRD"):
        head = re.split(rb"\r?\n\r?\n", block, maxsplit=1)[0].decode("utf-8", "replace")
        pairs = [_nrrd_pair(line) for line in head.splitlines()[1:] if not line.startswith("#")]
    elif is_metaimage(block) or re.match(rb"\s*ObjectType\s*=", block):
        head = re.split(rb"ElementDataFile\s*=", block, maxsplit=1)[0].decode("utf-8", "replace")
        pairs = [re.split(r"\s*=\s*", line, maxsplit=1) for line in head.splitlines()]
        if last := re.search(rb"ElementDataFile\s*=\s*([^\r\n]*)", block):
            pairs.append(["ElementDataFile", last[1].decode("utf-8", "replace")])
    else:
        raise UnreadableVolume(
            f"{path.name} is neither NRRD nor MetaImage: it starts with {block[:8]!r}. Was it renamed? "
            "Give it the suffix of what it really is."
        )
    return {pair[0].strip(): pair[1].strip() for pair in pairs if len(pair) == 2}


def _nrrd_pair(line: str) -> list[str]:
    """Split a line; a field's name is as the format defines it, whatever its letters and blanks are in the file."""
    if ":=" in line and ": " not in line.partition(":=")[0]:
        return line.split(":=", 1)
    name, colon, text = line.partition(":")
    if not colon:  # one of a list of files
        return [line]
    plain = name.strip().lower()
    return [_NRRD_FIELDS.get(plain.replace(" ", ""), plain), text]


def _check_fields(fields: dict[str, str], path: Path) -> None:
    """Refuse what ITK would take, or would refuse in words of its own."""
    if "RGB" in fields.get("kinds", "").upper():
        raise UnreadableVolume(
            f"{path.name} holds colours (RGB), not intensities: it is a screenshot or a map for display. "
            "Give the original grey-value volume."
        )
    n_axes = len((fields.get("sizes") or fields.get("DimSize", "")).split())
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


def stated_units(fields: dict[str, str]) -> list[str]:
    """Return the units of length along the patient's x, y and z, as the header has them."""
    if "sizes" not in fields:
        return [fields.get("DistanceUnits", "")] * 3
    if "space units" in fields:
        return _quoted(fields["space units"])
    return _of_space(_quoted(fields.get("units", "")), fields)


def _quoted(text: str) -> list[str]:
    return re.findall(r'"([^"]*)"', text)


def _number(word: str) -> float:
    try:
        return float(word)
    except ValueError:
        return math.nan


def data_file(fields: dict[str, str], path: Path) -> Path | None:
    """Where the voxels are: `path` itself, another file, or None if the header lists several."""
    name = fields.get("data file") or fields.get("datafile") or fields.get("ElementDataFile") or "LOCAL"
    if name in ("LOCAL", "Local", "local"):
        return path
    return None if name.startswith("LIST") or "%" in name else path.parent / name


def _check_promise(reader: Any, fields: dict[str, str], path: Path) -> None:
    """Refuse a header that promises more than its files can hold, before memory is asked for."""
    data = data_file(fields, path)
    if data is None:
        size = sum(p.stat().st_size for p in path.parent.iterdir() if p.is_file())
    elif data.is_file():
        size = data.stat().st_size
    else:
        raise UnreadableVolume(
            f"{path.name} keeps its voxels in {data.name}, which is missing. Copy both into one folder."
        )
    if "complex" in sitk.GetPixelIDValueAsString(reader.GetPixelID()):
        raise UnreadableVolume(
            f"{path.name} holds complex numbers. Save their magnitude (or the part you need) as real numbers first."
        )
    encoding = fields.get("encoding", "").lower()
    if encoding in ("gzip", "gz") or fields.get("CompressedData", "")[:1] in ("T", "t", "1"):
        ratio = MAX_RATIO
    elif _is_bzip2(fields):
        ratio = bzip2.MAX_RATIO
    else:  # a digit and a blank may be a whole voxel of text
        ratio = 4 if encoding in ("text", "txt", "ascii") or fields.get("BinaryData", "T")[:1] in ("F", "f", "0") else 1
    needed = math.prod(reader.GetSize()) * reader.GetNumberOfComponents() * _component_type(reader).itemsize
    if needed > size * ratio:
        raise UnreadableVolume(
            f"{path.name} promises {'×'.join(map(str, reader.GetSize()))} voxels, {needed:,} bytes, but has "
            f"only {size:,}. It was cut short or its header is damaged; copy it again from its source."
        )


def _is_bzip2(fields: dict[str, str]) -> bool:
    return fields.get("encoding", "").lower() in ("bzip2", "bz2")


def _bzip2_voxels(reader: Any, fields: dict[str, str], path: Path) -> npt.NDArray[Any]:
    """Read the voxels of a NRRD packed with bzip2, which ITK cannot: (z, y, x) or (c, z, y, x)."""
    file = data_file(fields, path)
    if file is None or any(fields.get(skip, "0") != "0" for skip in ("line skip", "byte skip")):
        raise UnreadableVolume(
            f"{path.name} is packed with bzip2 in several files or after a part to skip, which is not read. "
            "Save it with gzip, or unpacked, in the program that wrote it."
        )
    sizes = [int(word) for word in fields["sizes"].split()]
    kind = _component_type(reader).newbyteorder(">" if fields.get("endian", "").lower() == "big" else "<")
    data = bzip2.read(file, math.prod(sizes), kind, after_header=file == path).reshape(sizes[::-1])
    if len(sizes) == reader.GetDimension():
        return data
    kinds = fields.get("kinds", "").lower().split()
    components = next((i for i, kind in enumerate(kinds) if kind not in _SPACE_KINDS), 0)
    return np.ascontiguousarray(np.moveaxis(data, len(sizes) - 1 - components, 0))


def _component_type(reader: Any) -> np.dtype[Any]:
    """Return the number type of one component of a voxel."""
    sample: npt.NDArray[Any] = sitk.GetArrayFromImage(sitk.Image([1, 1, 1], _scalar(reader.GetPixelID())))
    return sample.dtype


def _scalar(pixel: int) -> int:
    """Return the pixel type of one component."""
    name = sitk.GetPixelIDValueAsString(pixel).removeprefix("vector of ")
    for number in (sitk.sitkUInt8, sitk.sitkInt8, sitk.sitkUInt16, sitk.sitkInt16, sitk.sitkUInt32, sitk.sitkInt32,
                   sitk.sitkUInt64, sitk.sitkInt64, sitk.sitkFloat32):  # fmt: skip
        if sitk.GetPixelIDValueAsString(number) == name:
            return int(number)
    return int(sitk.sitkFloat64)


def _reason(error: RuntimeError) -> str:
    """Take the sentence out of an ITK error, without its source files and addresses."""
    text = re.split(r"(?:ERROR|Error):\s*", str(error))[-1]
    text = re.sub(r"^\w+\(\S+\):\s*|\S*/\S*", "", text)
    return " ".join(text.split())[:200].rstrip(".") + "."


def _flat(path: Path, directions: object) -> UnreadableVolume:
    return UnreadableVolume(
        f"{path.name} has axes that lie in one plane or are not finite: {directions}. "
        "Correct its directions in the program that wrote it."
    )


def _geometry(image: Any, mm: tuple[float, ...], path: Path) -> Geometry:
    """Take the place from an image or its reader, whose lengths along x, y and z are in units of so many mm."""
    n = image.GetDimension()
    direction = np.array(image.GetDirection()).reshape(n, n)
    affine = np.eye(4)
    affine[:3, :3] = direction[:3, :3] * image.GetSpacing()[:3]
    affine[:3, 3] = image.GetOrigin()[:3]
    affine[:3] *= np.array(mm)[:, None]
    norms = np.linalg.norm(affine[:3, :3], axis=0)
    if not np.isfinite(affine).all() or norms.min() <= 0 or abs(np.linalg.det(affine[:3, :3] / norms)) < 1e-6:
        raise _flat(path, affine[:3].tolist())
    x, y, z = image.GetSize()[:3]
    return Geometry((z, y, x), affine[REVERSED])


def _silences(fields: dict[str, str]) -> list[str]:
    """What the header does not say, as sentences for the user."""
    silences = []
    if not _stated_spacings(fields):
        silences.append("The header does not state the size of a voxel; 1 mm was assumed.")
    if "sizes" in fields and "space" not in fields:
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
    if detached:
        with written_beside(detached) as file:
            file.write(packed.getbuffer())
    try:
        with written_beside(path) as file:
            file.write(header)
            _finish(file, None if detached else packed)
    except UnwritableVolume:
        if detached:
            detached.unlink(missing_ok=True)
        raise


def _finish(file: IO[bytes], packed: io.BytesIO | None) -> None:
    if packed is not None:
        file.write(packed.getbuffer())


def _columns(volume: Volume) -> tuple[list[list[float]], list[float]]:
    """Step vectors of the axes x, y, z and the origin, in LPS mm listed x, y, z."""
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
    if isinstance(volume, LabelMap):
        lines += [f"{key}:={text}" for key, text in segments.to_fields(volume).items()]
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
        fields |= segments.to_fields(volume)
    fields["DimSize"] = words([*volume.geometry.shape[::-1]])
    if volume.data.ndim == 4:
        fields["ElementNumberOfChannels"] = str(volume.n_channels)
    fields |= {"ElementType": _TYPES[kind][1], "ElementDataFile": detached.name if detached else "LOCAL"}
    return "".join(f"{key} = {value}\n" for key, value in fields.items()).encode()
