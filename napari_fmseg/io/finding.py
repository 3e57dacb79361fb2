"""What a path holds: by its suffix, by its first bytes, or, for a folder, by what lies in it."""

from __future__ import annotations

import os
from pathlib import Path

from napari_fmseg.errors import FmsegError, UnreadableVolume
from napari_fmseg.io.gzipped import DEFLATE_ERRORS, open_inflated

__all__ = ["files_below", "find_volumes", "format_of", "suffix_of"]

_SUFFIXES = (".nii.gz", ".nii", ".hdr.gz", ".img.gz", ".hdr", ".img", ".nrrd", ".nhdr", ".mha", ".mhd", ".dcm", ".zip")
_FORMATS = dict.fromkeys(_SUFFIXES[:6], "nifti") | {
    ".nrrd": "itk",
    ".nhdr": "itk",
    ".mha": "itk",
    ".mhd": "itk",
    ".dcm": "dicom",
    ".zip": "zip",
}


def suffix_of(path: Path | str) -> str:
    """Return the suffix that names a volume's format, in lower case: ``".nii.gz"``, not ``".gz"``; "" if none does."""
    name = Path(path).name.lower()
    return next((suffix for suffix in _SUFFIXES if name.endswith(suffix)), "")


def format_of(path: Path) -> str:
    """Return which room reads a file: "nifti", "itk", "dicom", "zip", or "" if none does.

    A known suffix decides; without one, the first bytes.

    Raises
    ------
    UnreadableVolume
        If the file is empty.
    OSError
        If it cannot be opened.
    """
    if path.stat().st_size == 0:
        raise UnreadableVolume(
            f"{path.name} is empty (0 bytes). Its copy or download failed; fetch it again from its source."
        )
    return _FORMATS.get(suffix_of(path)) or _by_first_bytes(path)


def _by_first_bytes(path: Path) -> str:
    from napari_fmseg.io.dicomslices import is_dicom

    with path.open("rb") as file:
        start = file.read(64)
    if start.startswith(b"NRRD000") or start.lstrip().startswith((b"ObjectType", b"NDims")):
        return "itk"
    if start.startswith(b"PK\x03\x04"):
        return "zip"
    if is_dicom(path):
        return "dicom"
    try:
        with open_inflated(path) as stream:
            header = stream.read(348)
    except DEFLATE_ERRORS:
        return ""
    return "nifti" if header[344:347] in (b"n+1", b"ni1") or header[4:7] in (b"n+2", b"ni2") else ""


def files_below(folder: Path) -> list[Path]:
    """Return all files in a tree, sorted, without hidden ones.

    Raises
    ------
    UnreadableVolume
        If a folder cannot be listed.
    """

    def refuse(error: OSError) -> None:
        raise UnreadableVolume(
            f"{error.filename} cannot be listed: {error.strerror}. Check your permission."
        ) from error

    found = []
    for place, folders, names in os.walk(folder, onerror=refuse):
        folders[:] = sorted(name for name in folders if not name.startswith((".", "__MACOSX")))
        found += [Path(place, name) for name in sorted(names) if not name.startswith(".")]
    return found


def find_volumes(folder: Path | str) -> tuple[Path, ...]:
    """Find everything in a tree that `read_volume` can be given, in the order of the names.

    Parameters
    ----------
    folder
        Where to look. Zips are not looked into.

    Returns
    -------
    tuple of Path
        Files; for a DICOM series the folder that holds it and no other one, else its first file (which stands for its
        series in the same folder). Objects that are no images (RTSTRUCT, SEG and the like) are left out.

    Raises
    ------
    UnreadableVolume
        If the folder cannot be listed.
    """
    files = files_below(Path(folder))
    found = []
    dicom = []
    for path in files:
        try:
            kind = format_of(path)
        except (OSError, FmsegError):
            continue
        if kind == "dicom":
            dicom.append(path)
        elif kind in ("nifti", "itk") and not _is_second_half(path):
            found.append(path)
    return tuple(sorted([*found, *_series_paths(dicom)]))


def _is_second_half(path: Path) -> bool:
    """Whether it is the .img of a .hdr, which is listed already."""
    name = path.name.lower()
    return name.endswith((".img", ".img.gz")) and any(
        path.with_name(path.name[: name.rindex(".img")] + end).exists() for end in (".hdr", ".hdr.gz", ".HDR")
    )


def _series_paths(files: list[Path]) -> list[Path]:
    from napari_fmseg.io import dicom

    if not files:
        return []
    series = dicom.files_by_series(files)
    paths = []
    for uid, members in series.items():
        common = Path(os.path.commonpath([path.parent for path in members]))
        others = [path for other, rest in series.items() if other != uid for path in rest]
        alone = not any(path.is_relative_to(common) for path in others)
        paths.append(common if alone else members[0])
    return paths
