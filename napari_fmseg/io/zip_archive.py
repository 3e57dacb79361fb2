"""Volumes in a zip: unpacked into a folder that vanishes, after its names and sizes were checked."""

from __future__ import annotations

import errno
import shutil
import stat
import tempfile
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath

from napari_fmseg.core.errors import FmsegError, UnreadableVolume
from napari_fmseg.core.temporary_files import passing_name, sweep
from napari_fmseg.io.compression import MAX_RATIO
from napari_fmseg.io.damage import header_errors_as_unreadable

__all__ = ["in_zip", "unzip"]

_MAX_FILES = 200_000
_CHUNK = 1 << 20
_NO_NAMES = (errno.ENAMETOOLONG, errno.EISDIR, errno.ENOTDIR, errno.EEXIST, errno.EILSEQ)
"""Error numbers of the system for a name that is too long, or is a folder's and a file's at once."""


@contextmanager
def unzip(path: Path) -> Iterator[Path]:
    """Yield a temporary folder with the content of the zip.

    Raises
    ------
    UnreadableVolume
        If it is no zip, damaged, encrypted, has names that lead out of the folder, or declares less than it unpacks to.
        What is raised while it is unpacked names the zip, not the temporary folder.
    """
    place = Path(tempfile.gettempdir())
    sweep(place)
    passing = place / passing_name()
    passing.mkdir(mode=0o700)
    folder = passing / path.name  # so that errors about it name the zip
    folder.mkdir()
    try:
        with (
            header_errors_as_unreadable(
                path, "{name} is no zip or is damaged: {reason}. Copy it again from its source."
            ),
            zipfile.ZipFile(path) as archive,
        ):
            for member, name in _check_members(archive, path, folder):
                with _folder_errors_as_unreadable(path, member):
                    _extract(archive, member, folder / name, path)
        try:
            yield folder
        except FmsegError as error:
            error.args = tuple(in_zip(str(text), folder, path) for text in error.args)
            raise
    finally:  # also when the process is asked to end: nobody's scan stays behind
        shutil.rmtree(passing, ignore_errors=True)


def in_zip(text: str, folder: Path, path: Path) -> str:
    """Replace the name of the temporary `folder` in a sentence for the user by that of the zip."""
    return text.replace(str(folder), path.name).replace(folder.name, path.name)


@contextmanager
def _folder_errors_as_unreadable(path: Path, member: zipfile.ZipInfo) -> Iterator[None]:
    """Turn an error of the folder to unpack to into an UnreadableVolume."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            trouble = UnreadableVolume(
                f"{path.name} could not be unpacked: the disk for temporary files is full. Free some space, or unpack "
                "it elsewhere and choose the folder."
            )
            trouble.exit_code = 3
            raise trouble from error
        if error.errno in _NO_NAMES:
            raise UnreadableVolume(
                f"{path.name} holds the name {member.filename[:80]!r}, which this system cannot give to a file "
                f"({error.strerror}). Unpack it elsewhere, with shorter and different names, and choose the folder."
            ) from error
        raise


def _check_members(archive: zipfile.ZipFile, path: Path, folder: Path) -> list[tuple[zipfile.ZipInfo, PurePosixPath]]:
    members = []
    for member in archive.infolist():
        if not member.filename:
            raise UnreadableVolume(f"{path.name} is damaged: a file in it has no name. Copy it again from its source.")
        name = PurePosixPath(member.filename.replace("\\", "/"))
        if name.is_absolute() or ".." in name.parts or (name.parts and ":" in name.parts[0]):
            raise UnreadableVolume(
                f"{path.name} holds the name {member.filename!r}, which leads out of its folder. Nothing was unpacked; "
                "do not trust this file."
            )
        if member.flag_bits & 1:
            raise UnreadableVolume(f"{path.name} is encrypted. Unpack it with its password and choose the folder.")
        is_link = stat.S_ISLNK(member.external_attr >> 16)
        if not member.is_dir() and not is_link and not any(part.startswith((".", "__MACOSX")) for part in name.parts):
            members.append((member, name))
    declared = sum(member.file_size for member, _ in members)
    packed = path.stat().st_size
    if len(members) > _MAX_FILES or declared > packed * MAX_RATIO:
        raise UnreadableVolume(
            f"{path.name} ({packed:,} bytes) declares {len(members):,} files of {declared:,} bytes, more than a "
            "zip can hold. "
            "Nothing was unpacked; do not trust this file."
        )
    free = shutil.disk_usage(folder).free
    if declared > free:
        trouble = UnreadableVolume(
            f"{path.name} unpacks to {declared:,} bytes, but only {free:,} are free for temporary files. Free "
            "some space, "
            "or unpack it elsewhere and choose the folder."
        )
        trouble.exit_code = 3
        raise trouble
    return members


def _extract(archive: zipfile.ZipFile, member: zipfile.ZipInfo, target: Path, path: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    done = 0
    with archive.open(member) as packed, target.open("wb") as file:
        while piece := packed.read(_CHUNK):
            done += len(piece)
            if done > member.file_size:
                raise UnreadableVolume(
                    f"{path.name}: {member.filename} unpacks to more than the {member.file_size:,} bytes it declares. "
                    "Do not trust this file."
                )
            file.write(piece)
