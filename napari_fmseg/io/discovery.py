"""Find volumes by suffix, by first bytes or, for a folder, by its content."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from napari_fmseg.core.errors import FmsegError
from napari_fmseg.io.paths import files_below, format_of, suffix_of

__all__ = ["broken_files", "file_of_series", "find_volumes", "packer_of"]

_PACKERS = {
    b"BZh": "bzip2",
    b"\xfd7zXZ": "xz",
    b"\x28\xb5\x2f\xfd": "zstd",
    b"7z\xbc\xaf\x27\x1c": "7-Zip",
    b"Rar!": "RAR",
    b"\x1f\x8b": "gzip",
}


def packer_of(path: Path) -> str:
    """Name the program that a file was packed with, by its first bytes; "" where none is known."""
    with path.open("rb") as file:
        start = file.read(300)
    return (
        "tar" if start[257:262] == b"ustar" else next((n for mark, n in _PACKERS.items() if start.startswith(mark)), "")
    )


def broken_files(files: Iterable[Path]) -> list[Path]:
    """Return those of `files` that should hold a volume and cannot: empty ones, and links that lead nowhere."""
    return [path for path in files if _leads_nowhere(path) or (suffix_of(path) and path.stat().st_size == 0)]


def _leads_nowhere(path: Path) -> bool:
    """Return whether it is a broken link, and is called like a volume or like a folder or file of
    DICOM.
    """
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
        series in the same folder). A series in several folders, or of several multi-frame objects, beside others is
        found as the folder of them all, which asks for one of its series. Objects that are no images (RTSTRUCT, SEG
        and the like) are left out.

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
    return tuple(sorted({*found, *_series_paths(dicom, damaged)}))


def _is_second_half(path: Path) -> bool:
    """Return whether it is the .img of a .hdr, which is listed already."""
    name = path.name.lower()
    return name.endswith((".img", ".img.gz")) and any(
        path.with_name(path.name[: name.rindex(".img")] + end).exists() for end in (".hdr", ".hdr.gz", ".HDR")
    )


def _series_paths(files: list[Path], damaged: bool) -> list[Path]:
    from napari_fmseg.io.dicom import series as dicom_series

    if not files:
        return []
    series, broken = dicom_series.files_by_series(files)
    n_below = Counter(folder for members in series.values() for path in members for folder in path.parents)
    paths = broken if damaged else []
    for members in series.values():
        common = Path(os.path.commonpath([path.parent for path in members]))
        is_alone = n_below[common] == len(members)
        paths.append(common if is_alone else file_of_series(members) or common)
    return paths


def file_of_series(members: list[Path]) -> Path | None:
    """Return the file that stands for a whole series, as a slice does for those in its folder; None if none does."""
    from napari_fmseg.io.dicom.series import is_multi_frame

    if len(members) == 1:
        return members[0]
    is_cut = len({path.parent for path in members}) > 1
    return None if is_cut or is_multi_frame(members[0]) else members[0]
