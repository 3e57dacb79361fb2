"""NIfTI-1 and NIfTI-2: .nii, .nii.gz and .hdr/.img, read straight into an array.

NIfTI lists x first and points to RAS; here lies the turn to (z, y, x) and LPS. The array needs none: x first in Fortran
order is z first in C order.
"""

from __future__ import annotations

import io
import math
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt
from nibabel.nifti1 import Nifti1Extension, Nifti1Header, Nifti1PairHeader, data_type_codes
from nibabel.nifti2 import Nifti2Header, Nifti2PairHeader
from nibabel.spatialimages import HeaderDataError

from napari_fmseg.core.atomic_write import atomic_write
from napari_fmseg.core.errors import UnreadableVolume, UnwritableVolume
from napari_fmseg.core.volume import Geometry, LabelMap, Volume
from napari_fmseg.io import segment_metadata
from napari_fmseg.io.compression import MAX_RATIO, fill, open_inflated, write_gzip
from napari_fmseg.io.damage import header_errors_as_unreadable
from napari_fmseg.io.voxel_values import REVERSED, rescale, split_channel_axis

__all__ = ["grid", "read", "write"]

_RAS_TO_LPS = np.diag([-1.0, -1.0, 1.0, 1.0])
_MM_PER_UNIT = {1: 1000.0, 3: 0.001}  # metre and micrometre
_UNIT_NAMES = {1: "metres", 3: "micrometres"}
_MILLIMETRES = (0, 2)  # 0 states no unit
_FAR_MM = 1.0
_TABLE_BYTES = 1 << 20
_PHANTOM = "phantom: "  # how the description of one begins, which no patient's file may be taken for
_LONGEST_DESCRIPTION = 79
_KEPT = ("sform_code", "qform_code", "srow_x", "srow_y", "srow_z", "quatern_b", "quatern_c", "quatern_d",
         "qoffset_x", "qoffset_y", "qoffset_z", "xyzt_units")  # fmt: skip


def read(path: Path) -> tuple[npt.NDArray[Any], Geometry, dict[str, Any]]:
    """Read a NIfTI image.

    Parameters
    ----------
    path
        A .nii, .nii.gz, or either half of a .hdr/.img pair; what is compressed is seen from the content.

    Returns
    -------
    tuple
        Data (z, y, x) or (c, z, y, x) in native byte order, scaled; the geometry; and ``meta``. Its ``"nifti"`` holds
        the header's own words about the place, for writing them again; ``"names"`` and ``"colors"`` are those of a
        label table.

    Raises
    ------
    UnreadableVolume
        If it is damaged, no NIfTI, not 3-D, not of real numbers, or its place makes no sense.
    """
    header_path, data_path = _both_files(path)
    with header_errors_as_unreadable(path):
        with open_inflated(header_path) as stream:
            header = _header(stream, header_path)
            shape, kind = _shape(header, path), _kind(header, path)
            offset = _data_offset(header, path)
            read_so_far = int(header["sizeof_hdr"])
            if not header.is_single:
                table = stream.read(_TABLE_BYTES)
            else:
                _check_size(shape, kind, offset, path)
                table = _table_block(stream, offset - read_so_far)
                data = np.empty(shape, kind)
                fill(stream, data)
        if not header.is_single:
            _check_size(shape, kind, offset, data_path)
            with open_inflated(data_path) as stream:
                _table_block(stream, offset)
                data = np.empty(shape, kind)
                fill(stream, data)
    geometry, warnings = _geometry(header, shape, path)
    meta = {"format": "NIfTI", "nifti": _position_fields(header), "warnings": warnings, **_window(header)}
    meta |= _phantom(header)
    meta["names"], meta["colors"] = segment_metadata.from_xml(_table(table))
    if not data.dtype.isnative:
        data = data.byteswap(inplace=True).view(data.dtype.newbyteorder())
    if data.dtype.itemsize > 8:
        data = data.astype(np.float64)
    return _scale(data, header, path).reshape(split_channel_axis(shape, path)), geometry, meta


def grid(path: Path) -> tuple[tuple[int, ...], list[float]]:
    """Return the sizes along (z, y, x) and the spacings in mm along (x, y, z), as `read` does, without the voxels.

    Raises
    ------
    UnreadableVolume
        If it is no NIfTI, or states none.
    """
    header_path, _ = _both_files(path)
    with header_errors_as_unreadable(path), open_inflated(header_path) as stream:
        header = _header(stream, header_path)
    geometry, _ = _geometry(header, _shape(header, path), path)
    return geometry.shape, [*reversed(geometry.spacing)]


def _both_files(path: Path) -> tuple[Path, Path]:
    """Return where the header and where the voxels are: the same file unless it is a pair."""
    name = path.name.lower()
    for here, there in ((".hdr", ".img"), (".img", ".hdr")):
        for zipped in ("", ".gz"):
            if name.endswith(here + zipped):
                stem = path.name[: -len(here + zipped)]
                partners = [
                    p
                    for p in path.parent.iterdir()
                    if p.name.lower() in {(stem + there + z).lower() for z in ("", ".gz")}
                ]
                if not partners:
                    raise UnreadableVolume(
                        f"{path.name} is one half of a pair, and {stem + there} is missing beside it. "
                        "Copy both into one folder."
                    )
                return (path, partners[0]) if here == ".hdr" else (partners[0], path)
    return path, path


def _table_block(stream: IO[bytes], n_bytes: int) -> bytes:
    """Return what stands between header and voxels, as far as a label table may be in it, and pass over the rest."""
    kept = stream.read(max(0, min(n_bytes, _TABLE_BYTES)))
    rest = n_bytes - len(kept)
    while rest > 0 and (piece := stream.read(min(rest, _TABLE_BYTES))):
        rest -= len(piece)
    return kept


def _header(stream: IO[bytes], path: Path) -> Any:
    """Read the header that the first bytes announce, in either byte order."""
    block = stream.read(348)
    if len(block) < 348:
        raise UnreadableVolume(
            f"{path.name} ends within its header, after {len(block)} bytes. Copy it again from its source."
        )
    sizes = {int.from_bytes(block[:4], "little"), int.from_bytes(block[:4], "big")}
    if 540 in sizes:
        block += stream.read(192)
        if block[4:7] in (b"n+2", b"ni2") and len(block) == 540:
            return (Nifti2Header if block[4:7] == b"n+2" else Nifti2PairHeader)(block, check=False)
    if 348 in sizes and block[344:347] in (b"n+1", b"ni1"):
        return (Nifti1Header if block[344:347] == b"n+1" else Nifti1PairHeader)(block, check=False)
    if 348 in sizes:
        raise UnreadableVolume(
            f"{path.name} is an ANALYZE 7.5 image or a damaged NIfTI: its header lacks the NIfTI mark. "
            "ANALYZE does not say which side is left, so it is not read. "
            "Convert it to .nii.gz with a program that knows where it came from."
        )
    raise UnreadableVolume(
        f"{path.name} is no NIfTI image: it starts with {block[:8]!r}. Was it renamed? "
        "Give it the suffix of what it really is."
    )


def _shape(header: Any, path: Path) -> tuple[int, ...]:
    """Return the sizes with the fastest axis last, (..., z, y, x)."""
    dim = [int(n) for n in header["dim"]]
    if not 1 <= dim[0] <= 7 or min(dim[1 : dim[0] + 1]) < 1:
        raise UnreadableVolume(
            f"{path.name} states impossible sizes: {dim}. The header is damaged; export the file again."
        )
    shape = tuple(reversed(dim[1 : dim[0] + 1]))
    split_channel_axis(shape, path)
    return shape


def _kind(header: Any, path: Path) -> np.dtype[Any]:
    code = int(header["datatype"])
    if code in (128, 2304):
        raise UnreadableVolume(
            f"{path.name} holds colours (RGB), not intensities: it is a screenshot or a map for display. "
            "Give the original grey-value volume."
        )
    if code in (32, 1792, 2048):
        raise UnreadableVolume(
            f"{path.name} holds complex numbers. Save their magnitude (or the part you need) as real numbers first."
        )
    kind: np.dtype[Any] | None = data_type_codes.dtype.get(code)
    if kind is None or kind.kind not in "uif" or kind.itemsize == 0:
        raise UnreadableVolume(
            f"{path.name} has the voxel type {code}, which is none of NIfTI's number types. Export it again."
        )
    return kind.newbyteorder(header.endianness)


def _data_offset(header: Any, path: Path) -> int:
    offset = float(header["vox_offset"])
    least = int(header.single_vox_offset) if header.is_single else 0
    if header.is_single and offset == 0:
        return least
    if not (math.isfinite(offset) and least <= offset < 2**31):
        raise UnreadableVolume(
            f"{path.name} states that its voxels start at byte {offset:g}. The header is damaged; export it again."
        )
    return int(offset)


def _check_size(shape: tuple[int, ...], kind: np.dtype[Any], offset: int, path: Path) -> None:
    """Refuse a header that promises more than the file can hold, before memory is allocated."""
    needed = math.prod(shape) * kind.itemsize + offset
    with path.open("rb") as file:
        is_gzip = file.read(2) == b"\x1f\x8b"
    size = path.stat().st_size
    if needed > size * (MAX_RATIO if is_gzip else 1):
        raise UnreadableVolume(
            f"{path.name} promises {'×'.join(map(str, shape[::-1]))} voxels of {kind.name}, {needed:,} bytes, but has "
            f"only {size:,}{' compressed' if is_gzip else ''}. It was cut short or its header is damaged; "
            "copy it again from its source."
        )


def _geometry(header: Any, shape: tuple[int, ...], path: Path) -> tuple[Geometry, list[str]]:
    """Read the geometry from the sform, else the qform, else the voxel sizes, as nibabel does."""
    warnings = []
    zooms = header["pixdim"][1:4].astype(np.float64)
    zooms_are_good = bool(np.isfinite(zooms).all() and (zooms > 0).all())
    if int(header["sform_code"]) <= 0 and not zooms_are_good:
        raise UnreadableVolume(
            f"{path.name} states voxel sizes of {zooms.tolist()} mm; all three must be above 0. "
            "Correct the header (pixdim) in the program that wrote it."
        )
    if header["pixdim"][0] not in (-1, 1):
        header["pixdim"][0] = 1  # as the standard has it: 0 counts as 1
    try:
        affine = np.asarray(header.get_best_affine(), np.float64)
    except (HeaderDataError, ValueError) as error:
        raise UnreadableVolume(
            f"{path.name} has no usable orientation: {error}. Export it again with a valid qform."
        ) from error
    if not np.isfinite(affine).all() or _is_singular(affine):
        raise UnreadableVolume(
            f"{path.name} has an affine that maps the volume onto a plane or to nowhere: {affine[:3].tolist()}. "
            "Correct the sform in the program that wrote it."
        )
    if int(header["sform_code"]) <= 0 and int(header["qform_code"]) <= 0:
        warnings.append("The header does not say how the volume lies in the patient; left and right may be swapped.")
    elif not (zooms_are_good and np.allclose(zooms, np.linalg.norm(affine[:3, :3], axis=0), rtol=0.01)):
        warnings.append(
            f"The header's voxel sizes {np.round(zooms, 4).tolist()} differ from those of its affine, which were used."
        )
    unit = int(header["xyzt_units"]) & 7
    if unit in _MM_PER_UNIT:
        affine[:3] *= _MM_PER_UNIT[unit]
        warnings.append(f"The header gives lengths in {_UNIT_NAMES[unit]}; they were turned into millimetres.")
    elif unit not in _MILLIMETRES:
        warnings.append(
            f"The header gives lengths in a unit that NIfTI does not have (code {unit}); millimetres were assumed."
        )
    warnings += _two_places(header, shape, _MM_PER_UNIT.get(unit, 1.0))
    z, y, x = shape[-3:]
    return Geometry((z, y, x), (_RAS_TO_LPS @ affine)[REVERSED]), warnings


def _two_places(header: Any, shape: tuple[int, ...], mm: float) -> list[str]:
    """Return a warning if sform and qform are both stated and place a corner of the volume far apart."""
    if int(header["sform_code"]) <= 0 or int(header["qform_code"]) <= 0:
        return []
    try:
        sform, qform = header.get_sform() * mm, header.get_qform() * mm
    except (HeaderDataError, ValueError):
        return ["The header's qform cannot be used; its sform was."]
    z, y, x = shape[-3:]
    corners = np.array(np.meshgrid((0, x - 1), (0, y - 1), (0, z - 1), (1,))).reshape(4, -1)
    apart = np.linalg.norm(((sform - qform) @ corners)[:3], axis=0).max()
    if not apart > max(_FAR_MM, np.linalg.norm(sform[:3, :3], axis=0).min()):
        return []
    return [
        f"The header states two positions up to {apart:.4g} mm apart: its sform (code {int(header['sform_code'])}, "
        f"origin {_origin_text(sform)}) and its qform (code {int(header['qform_code'])}, origin {_origin_text(qform)}, "
        "in RAS mm). The sform was used. Other programs may take the qform; correct the header if a result does not "
        "lie on the image."
    ]


def _origin_text(affine: npt.NDArray[Any]) -> str:
    return ", ".join(f"{number:.1f}" for number in affine[:3, 3])


def _is_singular(affine: npt.NDArray[np.float64]) -> bool:
    norms = np.linalg.norm(affine[:3, :3], axis=0)
    return bool(norms.min() <= 0 or abs(np.linalg.det(affine[:3, :3] / norms)) < 1e-6)


def _scale(data: npt.NDArray[Any], header: Any, path: Path) -> npt.NDArray[Any]:
    slope, intercept = float(header["scl_slope"]), float(header["scl_inter"])
    if slope == 0 or not math.isfinite(slope):  # the standard's way to say "not scaled"
        return data
    if not math.isfinite(intercept):
        raise UnreadableVolume(
            f"{path.name} adds {intercept} to every voxel (scl_inter). The header is damaged; export it again."
        )
    return rescale(data, slope, intercept)


def _position_fields(header: Any) -> dict[str, Any]:
    """Return the header's position fields as plain numbers; nothing that could name a patient."""
    kept = {key: header[key].tolist() for key in _KEPT}
    return {**kept, "pixdim": header["pixdim"][:4].tolist()}


def _window(header: Any) -> dict[str, float]:
    low, high = float(header["cal_min"]), float(header["cal_max"])
    if math.isfinite(low) and math.isfinite(high) and high > low:
        return {"window_center": (low + high) / 2, "window_width": high - low}
    return {}


def _phantom(header: Any) -> dict[str, str]:
    """Return what a phantom is called; of any other description nothing, since it may name the patient."""
    description = bytes(header["descrip"].tobytes()).rstrip(b"\0").decode("utf-8", "replace")
    return {"phantom": description.removeprefix(_PHANTOM)} if description.startswith(_PHANTOM) else {}


def _table(block: bytes) -> bytes:
    """Return the label table among the extensions that follow the header: 4 flags, then (size, code, content)."""
    position = 4
    if block[:1] in (b"", b"\0"):
        return b""
    while position + 8 <= len(block):
        size = min(int.from_bytes(block[position : position + 4], order) for order in ("little", "big"))
        if size < 8:
            break
        content = block[position + 8 : position + size]
        if b"<LabelTable" in content:
            return content
        position += size
    return b""


def write(volume: Volume, path: Path, *, source: Volume | None) -> None:
    """Write a NIfTI-1 file (NIfTI-2 where a side is longer than 32767), compressed if `path` ends in .gz.

    Parameters
    ----------
    volume
        Data in a type that NIfTI has; names and colours of a `LabelMap` go into a header extension.
    path
        A .nii or .nii.gz.
    source
        The image it lies on: sform, qform, their codes and the units are repeated from its header to the last bit.

    Raises
    ------
    UnwritableVolume
        If the disk is full, the place is not writable, or NIfTI has no such number type.
    """
    header = _new_header(volume)
    _place(header, volume, source)
    block = io.BytesIO()
    if isinstance(volume, LabelMap) and (table := segment_metadata.to_xml(volume)):
        # Code 0, as TotalSegmentator has it: nibabel cannot give the content of code 30, Workbench's own.
        header.extensions.append(Nifti1Extension(0, table))
        header["intent_code"] = 1002  # NIFTI_INTENT_LABEL
    header.write_to(block)
    voxels = np.ascontiguousarray(volume.data, volume.data.dtype.newbyteorder("="))  # as the header
    with atomic_write(path) as file:
        parts: list[bytes | memoryview] = [block.getvalue(), voxels.reshape(-1).view(np.uint8).data]
        if path.name.lower().endswith(".gz"):
            write_gzip(file, parts)
        else:
            file.writelines(parts)


def _new_header(volume: Volume) -> Any:
    shape = volume.data.shape[::-1]
    header = Nifti2Header() if max(shape) > 32767 else Nifti1Header()
    try:
        header.set_data_dtype(volume.data.dtype)
    except HeaderDataError as error:
        raise UnwritableVolume(
            f"NIfTI has no voxel type {volume.data.dtype}. Convert the data to float32 or an integer type."
        ) from error
    header.set_data_shape(shape)
    header.set_slope_inter(1, 0)
    if volume.meta.get("phantom"):
        header["descrip"] = f"{_PHANTOM}{volume.meta['phantom']}".encode()[:_LONGEST_DESCRIPTION]
    return header


def _place(header: Any, volume: Volume, source: Volume | None) -> None:
    """Write the position: with the source's own fields where they mean exactly this geometry, else new ones."""
    kept = (source or volume).meta.get("nifti")
    if kept and _means(header, kept, volume.geometry):
        return
    ras = _RAS_TO_LPS @ volume.geometry.affine[REVERSED]
    header.set_sform(ras, code=1)
    # A quaternion cannot shear: code 0 keeps readers that look there first from a wrong place.
    header.set_qform(ras, code=0 if volume.geometry.is_sheared else 1, strip_shears=True)
    header.set_xyzt_units("mm")


def _means(header: Any, kept: dict[str, Any], geometry: Geometry) -> bool:
    before = {key: header[key].copy() for key in (*_KEPT, "pixdim")}
    for key in _KEPT:
        header[key] = kept[key]
    header["pixdim"][:4] = kept["pixdim"]
    found, _ = _geometry(header, geometry.shape, Path("header"))
    if found == geometry:
        return True
    for key, value in before.items():
        header[key] = value
    return False
