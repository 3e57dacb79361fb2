"""File names and first bytes: which format a path holds, and the files below a folder."""

from __future__ import annotations

import os
import re
from pathlib import Path

from napari_fmseg.core.errors import UnreadableVolume
from napari_fmseg.io.compression import DEFLATE_ERRORS, open_inflated
from napari_fmseg.io.dicom.first_bytes import is_dicom

__all__ = ["files_below", "format_of", "is_metaimage", "suffix_of"]

_SUFFIXES = (".nii.gz", ".nii", ".hdr.gz", ".img.gz", ".hdr", ".img", ".nrrd", ".nhdr", ".mha", ".mhd", ".dcm", ".zip")

_HEADER_BYTES = 4096

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
    """Return which reader is for a file: "nifti", "itk", "dicom", "zip", or "" if none does.

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
    suffix = suffix_of(path)
    if suffix == ".img" and is_dicom(path):  # so some archives name their DICOM files
        return "dicom"
    return _FORMATS.get(suffix) or _by_first_bytes(path)


def _by_first_bytes(path: Path) -> str:
    with path.open("rb") as file:
        start = file.read(_HEADER_BYTES)
    if start.startswith(b"NRRD") or is_metaimage(start):
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


def is_metaimage(start: bytes) -> bool:
    """Return whether the first bytes of a file are a MetaImage's header: fields in any order, with the number of
    axes.
    """
    return bool(re.match(rb"\s*[A-Za-z]\w*\s*=", start) and re.search(rb"(?:^|\n)\s*NDims\s*=", start))


def files_below(folder: Path) -> list[Path]:
    """Return all files in a tree, each folder's sorted, without hidden ones.

    Linked folders are followed, after the others and each place once, so that links in a circle end. A link that leads
    nowhere counts as a file; see `broken_files`.

    Raises
    ------
    UnreadableVolume
        If a folder cannot be listed.
    """

    def refuse(error: OSError) -> None:
        raise UnreadableVolume(
            f"{error.filename} cannot be listed: {error.strerror}. Check your permission."
        ) from error

    root = Path(os.path.realpath(folder))
    found, visited, links = [], set(), [Path(folder)]
    while links:
        start = links.pop(0)
        for place, folders, names in os.walk(start, onerror=refuse):
            here = Path(os.path.realpath(place))
            if here in visited or (here != root and root.is_relative_to(here)):
                folders.clear()
                continue
            visited.add(here)
            folders[:] = sorted(name for name in folders if not name.startswith((".", "__MACOSX")))
            links += [Path(place, name) for name in folders if os.path.islink(os.path.join(place, name))]
            found += [Path(place, name) for name in sorted(names) if not name.startswith(".")]
    return found
