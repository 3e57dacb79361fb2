"""Whether a path is ours, at a glance: a suffix, the first bytes, or a few names in a folder; never a whole walk."""

from __future__ import annotations

import os
import zipfile
from collections import deque
from pathlib import Path

from napari_fmseg.io import suffix_of

__all__ = ["is_ours"]

_LOOKED_AT = 400  # names in a folder before it is taken for none of ours
_OPENED = 24  # files among them whose first bytes are read


def is_ours(path: Path) -> bool:
    """Return whether a file or folder looks like a volume of ours; a damaged one does, so that reading says so."""
    suffix = suffix_of(path)
    try:
        if path.is_dir():
            return path.suffix.lower() != ".zarr" and _has_ours(path)
        if suffix == ".zip":
            return _zip_has_ours(path)
        if suffix in (".hdr", ".img"):  # also what Radiance and ENVI call theirs
            return _is_nifti_pair(path)
        return bool(suffix) or path.name.upper() == "DICOMDIR" or _starts_as_ours(path)
    except OSError:
        return bool(suffix)  # reading it says what is wrong


def _has_ours(folder: Path) -> bool:
    """Return whether one of the first names in a folder, level by level, is one of ours."""
    looked_at = opened = 0
    folders = deque([folder])
    while folders:
        with os.scandir(folders.popleft()) as entries:
            for entry in entries:
                looked_at += 1
                if looked_at > _LOOKED_AT:
                    return False
                if entry.name.startswith("."):
                    continue
                if entry.is_dir():
                    if not entry.name.lower().endswith(".zarr"):
                        folders.append(Path(entry.path))
                    continue
                suffix = suffix_of(entry.name)
                if suffix and suffix not in (".zip", ".hdr", ".img"):
                    return True
                if "." in entry.name and not suffix and Path(entry.name).suffix[1:].isalpha():
                    continue  # a suffix of somebody else's
                opened += 1
                if opened <= _OPENED and _starts_as_ours(Path(entry.path)):
                    return True
    return False


def _starts_as_ours(path: Path) -> bool:
    with path.open("rb") as file:
        start = file.read(352)
    nifti = start[344:347] in (b"n+1", b"ni1") or start[4:7] in (b"n+2", b"ni2")
    return nifti or start[128:132] == b"DICM" or start.startswith(b"NRRD000")


def _is_nifti_pair(path: Path) -> bool:
    header = path.with_suffix(".hdr")
    if not header.is_file():
        header = path.with_suffix(".HDR")
    return header.is_file() and _starts_as_ours(header)


def _zip_has_ours(path: Path) -> bool:
    try:
        with zipfile.ZipFile(path) as archive:
            members = [member for member in archive.infolist() if not member.is_dir()][:_LOOKED_AT]
            if any(suffix_of(member.filename) not in ("", ".zip") for member in members):
                return True
            for member in members[:_OPENED]:
                with archive.open(member) as file:
                    if file.read(132)[128:] == b"DICM":
                        return True
    except (zipfile.BadZipFile, RuntimeError, NotImplementedError):  # damaged or encrypted: reading it says so
        return True
    return False
