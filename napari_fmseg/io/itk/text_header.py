"""The text header of a NRRD or MetaImage: its fields, where it ends, and the files that hold the voxels."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from napari_fmseg.core.errors import UnreadableVolume

__all__ = ["TextHeader", "check_inside", "data_files", "is_header", "read_header"]

_MOST_BYTES = 16 << 20
_MOST_FIELDS = 20_000  # a label map of thousands of segments has six each; the library behind needs their square
_MOST_FILES = 65_536
_CHUNK = 1 << 16
_BLANK_LINE = re.compile(rb"(?:\r\n|\n|\r(?!\n)){2}")
_DATA_LINE = re.compile(rb"(?:^|[\n\r])[ \t]*ElementDataFile[ \t]*[=:]([^\n]*)(?:\n|$)")
_PATTERN = re.compile(r"%0?\d{0,2}d")
_NRRD = b"NRRD"
_SPACED = {name.replace(" ", ""): name for name in (
    "axis maxs", "axis mins", "block size", "byte skip", "data file", "line skip", "measurement frame", "old max",
    "old min", "sample units", "space dimension", "space directions", "space origin", "space units",
)}  # fmt: skip


@dataclass(frozen=True)
class TextHeader:
    """What stands before the voxels.

    Attributes
    ----------
    path
        The file.
    is_nrrd
        NRRD, else MetaImage.
    fields
        Names of NRRD's own fields in lower case, as the format does not care; everything else as written.
    listed
        The lines behind a list of data files.
    ends_at
        The byte at which voxels start that stand in the same file.
    own
        Which fields are NRRD's own, not somebody's keys and values.
    """

    path: Path
    is_nrrd: bool
    fields: dict[str, str]
    listed: tuple[str, ...]
    ends_at: int
    own: frozenset[str] = frozenset()

    @property
    def data_name(self) -> str:
        """What the header says of where the voxels are; ``"LOCAL"`` for the same file."""
        if self.is_nrrd:
            return self.fields.get("data file", "LOCAL")
        return self.fields["ElementDataFile"]


def is_header(path: Path) -> bool:
    """Return whether a file starts as a NRRD or MetaImage, whatever it is called."""
    from napari_fmseg.io.paths import format_of

    try:
        return format_of(path) == "itk"
    except UnreadableVolume:  # empty
        return False


def read_header(path: Path) -> TextHeader:
    """Read the header, whole, as the libraries behind do: no field is overlooked.

    Raises
    ------
    UnreadableVolume
        If the file is neither, or its header has no end, too many fields, or states a field twice.
    """
    with path.open("rb") as file:
        block = file.read(_CHUNK)
        is_nrrd = block.startswith(_NRRD)
        if not is_nrrd and not re.match(rb"\s*\w[\w ]*[=:]", block):
            raise UnreadableVolume(
                f"{path.name} is neither NRRD nor MetaImage: it starts with {block[:8]!r}. Was it renamed? "
                "Give it the suffix of what it really is."
            )
        end = _BLANK_LINE if is_nrrd else _DATA_LINE
        found, searched = end.search(block), 0
        while found is None or (not is_nrrd and found.end() == len(block)):
            more = file.read(_CHUNK)
            if not more:
                break
            searched = max(0, len(block) - 1024)
            block += more
            if len(block) > _MOST_BYTES:
                raise UnreadableVolume(
                    f"{path.name} has a header that does not end within {_MOST_BYTES >> 20} MB. "
                    "It is damaged; export it again."
                )
            found = end.search(block, searched)
        if is_nrrd:
            return _nrrd(path, block, found)
        if found is None:
            raise UnreadableVolume(
                f"{path.name} is no MetaImage, or its header was cut short: it does not say where its voxels are "
                "(ElementDataFile). Copy it again from its source."
            )
        return _metaimage(path, block, found)


def _nrrd(path: Path, block: bytes, found: re.Match[bytes] | None) -> TextHeader:
    text = block[: found.start() if found else len(block)].decode("utf-8", "replace")
    fields: dict[str, str] = {}
    listed: list[str] = []
    own: set[str] = set()
    lines = _limit(re.split(r"\r\n|\n|\r", text)[1:], path)
    for line in lines:
        if line.startswith("#"):
            continue
        key, sign, value = _split_line(line)
        if sign == ":":
            key = "".join(key.lower().split())
            key = _SPACED.get(key, key)
            own.add(key)
            if key in fields:
                raise UnreadableVolume(f"{path.name} states its {key!r} twice. The header is damaged; export it again.")
        if sign:
            fields[key] = value
        if sign == ":" and key == "data file" and value.startswith("LIST"):
            listed = [line.strip() for line in lines if line.strip()]
    return TextHeader(path, True, fields, tuple(listed), found.end() if found else len(block), frozenset(own))


def _split_line(line: str) -> tuple[str, str, str]:
    """Return a line's name, ":" or ":=", and value."""
    found = re.match(r"([^:]*?)\s*(:=|:)\s*(.*)", line, re.DOTALL)
    return (found[1].strip(), found[2], found[3].strip()) if found else ("", "", "")


def _metaimage(path: Path, block: bytes, found: re.Match[bytes]) -> TextHeader:
    fields: dict[str, str] = {}
    for line in _limit(block[: found.start()].decode("utf-8", "replace").split("\n"), path):
        parts = re.split(r"[=:]", line, maxsplit=1)
        if len(parts) == 2:
            fields[parts[0].strip()] = parts[1].strip()
    fields["ElementDataFile"] = name = found[1].decode("utf-8", "replace").strip()
    listed: tuple[str, ...] = ()
    if name.startswith("LIST"):
        rest = block[found.end() :].decode("utf-8", "replace").splitlines()
        listed = tuple(line.strip() for line in rest[:_MOST_FILES] if line.strip())
    return TextHeader(path, False, fields, listed, found.end())


def _limit(lines: list[str], path: Path) -> Iterator[str]:
    if len(lines) > _MOST_FIELDS:
        raise UnreadableVolume(
            f"{path.name} has a header of {len(lines):,} lines; expected at most {_MOST_FIELDS:,}. Export it again, "
            "without what does not belong to the image."
        )
    return iter(lines)


def data_files(header: TextHeader) -> list[Path]:
    """List the files that hold the voxels, in their order: the header's own, another one, or several.

    Raises
    ------
    UnreadableVolume
        If a pattern for their names makes no sense.
    """
    name, folder = header.data_name, header.path.parent
    if name.upper() == "LOCAL":
        return [header.path]
    if name.startswith("LIST"):
        return [folder / line for line in header.listed]
    if "%" not in name:
        return [folder / name]
    words = name.split()
    numbers = [int(word) if re.fullmatch(r"-?\d{1,9}", word) else None for word in words[1:4]]
    first, last, step = (*numbers, 1, 1, 1)[:3] if len(numbers) >= 2 else (None, None, None)
    if first is None or last is None or not step or not _PATTERN.search(words[0]):
        return [folder / name]  # a name that happens to have this sign
    n_files, rest = (last - first) // step + 1, _PATTERN.sub("", words[0], count=1)
    if not 0 < n_files <= _MOST_FILES or "%" in rest:
        raise UnreadableVolume(
            f"{header.path.name} names its files by {name[:80]!r}, which makes no sense. Export it again."
        )
    return [folder / (words[0] % number) for number in range(first, last + (1 if step > 0 else -1), step)]


def check_inside(path: Path, folder: Path, source: Path) -> None:
    """Refuse a header that names voxels outside of a folder.

    Parameters
    ----------
    path
        The file with the header.
    folder
        What `source` was unpacked to.
    source
        Warnings for the user.

    Raises
    ------
    UnreadableVolume
        If it does, or if its header makes no sense.
    """
    header = read_header(path)
    inside = folder.resolve()
    names = header.data_name, *header.listed
    odd = [name for name in names if "%" in name and not _PATTERN.search(name)]
    if odd or not all(file.resolve().is_relative_to(inside) for file in data_files(header)):
        raise UnreadableVolume(
            f"{source.name}: {path.name} points to voxels outside of the zip. Unpack it first, if you trust it."
        )
