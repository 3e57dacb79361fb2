"""What a path holds: by its suffix, by its first bytes, or, for a folder, by what lies in it."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from napari_fmseg.errors import FmsegError, UnreadableVolume
from napari_fmseg.io.dicomstart import is_dicom
from napari_fmseg.io.gzipped import DEFLATE_ERRORS, open_inflated

__all__ = ["broken_files", "files_below", "find_volumes", "format_of", "is_metaimage", "packer_of", "suffix_of"]

_SUFFIXES = (".nii.gz", ".nii", ".hdr.gz", ".img.gz", ".hdr", ".img", ".nrrd", ".nhdr", ".mha", ".mhd", ".dcm", ".zip")
_HEADER_BYTES = 4096
_PACKERS = {
    b"BZh": "bzip2",
    b"\xfd7zXZ": "xz",
    b"\x28\xb5\x2f\xfd": "zstd",
    b"7z\xbc\xaf\x27\x1c": "7-Zip",
    b"Rar!": "RAR",
    b"\x1f\x8b": "gzip",
}
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
    """Whether the first bytes of a file are a MetaImage's header: fields in any order, with the number of axes."""
    return bool(re.match(rb"\s*[A-Za-z]\w*\s*=", start) and re.search(rb"(?:^|\n)\s*NDims\s*=", start))


def packer_of(path: Path) -> str:
    """Name the program that a file was packed with, by its first bytes; "" where none is known."""
    with path.open("rb") as file:
        start = file.read(300)
    return (
        "tar" if start[257:262] == b"ustar" else next((n for mark, n in _PACKERS.items() if start.startswith(mark)), "")
    )


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


def broken_files(files: Iterable[Path]) -> list[Path]:
    """Return those of `files` that should hold a volume and cannot: empty ones, and links that lead nowhere."""
    return [path for path in files if _leads_nowhere(path) or (suffix_of(path) and path.stat().st_size == 0)]


def _leads_nowhere(path: Path) -> bool:
    """Whether it is a link to what is not there, and is called like a volume or like a folder or file of DICOM."""
    if not path.is_symlink() or path.exists():
        return False
    return bool(suffix_of(path)) or path.suffix[1:].isdigit() or not path.suffix


def find_volumes(folder: Path | str, *, damaged: bool = False) -> tuple[Path, ...]:
    """Find everything in a tree that `read_volume` can be given, in the order of the names.

    Parameters
    ----------
    folder
        Where to look; linked folders are followed. Zips are not looked into.
    damaged
        Whether DICOM files whose header is damaged are listed, too, so that their turn comes and says so.

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
    return tuple(sorted([*found, *_series_paths(dicom, damaged)]))


def _is_second_half(path: Path) -> bool:
    """Whether it is the .img of a .hdr, which is listed already."""
    name = path.name.lower()
    return name.endswith((".img", ".img.gz")) and any(
        path.with_name(path.name[: name.rindex(".img")] + end).exists() for end in (".hdr", ".hdr.gz", ".HDR")
    )


def _series_paths(files: list[Path], damaged: bool) -> list[Path]:
    from napari_fmseg.io import dicom

    if not files:
        return []
    series, broken = dicom.files_by_series(files)
    n_below = Counter(folder for members in series.values() for path in members for folder in path.parents)
    paths = broken if damaged else []
    for members in series.values():
        common = Path(os.path.commonpath([path.parent for path in members]))
        paths.append(common if n_below[common] == len(members) else members[0])
    return paths
