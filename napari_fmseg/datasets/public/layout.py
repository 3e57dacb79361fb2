"""How public data sets are laid out: file names with placeholders, channels, classes, and how many cases there are.

An entry is a TOML file in resources/datasets. A placeholder such as ``{case}`` stands for a part of a file's name or a
folder; where it occurs again, it stands for the same text. Files of one case agree in all placeholders but those that
begin with an underscore.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from napari_fmseg.core.errors import UnknownModel
from napari_fmseg.core.package import data_folder
from napari_fmseg.core.structuring import is_file_name, read_table, structure

__all__ = ["Found", "PublicDataset", "find_public", "list_public", "read_public"]

Key = tuple[tuple[str, str], ...]
"""The placeholders of a case with their texts."""


@dataclass(frozen=True)
class PublicDataset:
    """A public data set, as its owners pack it.

    Parameters
    ----------
    name, title
        The name to type, and what it shows.
    source, licence, citation
        Where to register and download it; its terms; the paper.
    channels
        Names of the channels in their order.
    images
        For each channel where its file is, relative to the folder that was downloaded, at any depth.
    label
        Where the labels are.
    labels
        Class names by the number in the arranged label files.
    placeholders
        Regular expressions of the placeholders; else any text without a slash.
    relabel
        Number in the published label files: number in the arranged ones. Such label files are written anew.
    cases
        How many labelled cases there are.
    case_name
        What a case is called, made of its placeholders.
    patient
        The placeholder that names the patient, where one has several cases: they stay together in one half of a split.
    validation
        Texts of the placeholder ``case`` that validate, as numbers or ranges such as ``"101-130"``; none: every fifth
        patient.
    resample_labels
        Whether labels lie on another grid than the image and are brought to it.
    verified
        Where this layout was seen.
    note
        What a user should know of it.
    """

    name: str
    title: str
    source: str
    licence: str
    citation: str
    channels: tuple[str, ...]
    images: tuple[str, ...]
    label: str
    labels: Mapping[int, str]
    cases: int
    case_name: str
    verified: str
    placeholders: Mapping[str, str] = field(default_factory=dict)
    relabel: Mapping[int, int] = field(default_factory=dict)
    patient: str = ""
    validation: str = ""
    resample_labels: bool = False
    note: str = ""

    def __post_init__(self) -> None:
        if not is_file_name(self.name) or len(self.images) != len(self.channels) or not self.labels:
            raise ValueError(f"{self.name!r} needs a plain name, classes, and a file for each channel")
        if sorted(self.labels) != list(range(1, len(self.labels) + 1)):
            raise ValueError(f"{self.name}: labels are numbered 1, 2, 3..., as nnU-Net wants them")

    def search(self, files: Iterable[str]) -> Found:
        """Find the cases among files, named relative to the folder that was downloaded, with forward slashes."""
        patterns = [self._pattern(text) for text in (*self.images, self.label)]
        hits: list[dict[Key, str]] = [{} for _ in patterns]
        several: list[str] = []
        for file in sorted(files):
            for pattern, found in zip(patterns, hits, strict=True):
                if match := pattern.search(file):
                    key = tuple(sorted((k, v) for k, v in match.groupdict().items() if not k.startswith("_")))
                    if key in found:
                        several.append(file)
                    else:
                        found[key] = file
        *images, labels = hits
        return Found(tuple(images), labels, tuple(several))

    def _pattern(self, text: str) -> re.Pattern[str]:
        """Return the regular expression of a file name with placeholders."""
        parts, seen = [], set()
        for literal, name in re.findall(r"([^{]*)(?:\{(\w+)\})?", text):
            parts.append(re.escape(literal))
            if name and name in seen:
                parts.append(f"(?P={name})")
            elif name:
                seen.add(name)
                parts.append(f"(?P<{name}>{self.placeholders.get(name, '[^/]+?')})")
        return re.compile(rf"(?:^|/){''.join(parts)}$")

    def validates(self, key: Key) -> bool:
        """Return whether a case is one of those that its protocol validates on."""
        case = dict(key).get("case", "")
        for part in self.validation.split():
            first, _, last = part.partition("-")
            if case.isdecimal() and int(first) <= int(case) <= int(last or first):
                return True
        return False


@dataclass(frozen=True)
class Found:
    """The files of a data set by the placeholders of their case: one mapping per channel, and that of the labels."""

    images: tuple[dict[Key, str], ...]
    labels: dict[Key, str]
    several: tuple[str, ...]


def list_public() -> tuple[PublicDataset, ...]:
    """List the data sets whose layout is known, by name."""
    return tuple(read_public(path) for path in sorted((data_folder("resources") / "datasets").glob("*.toml")))


def find_public(name: str) -> PublicDataset:
    """Find an entry by its name; `UnknownModel` if there is none, with those that there are."""
    entries = {entry.name: entry for entry in list_public()}
    if name not in entries:
        raise UnknownModel(
            f"The layout of a data set {name!r} is not known here. Choose one of: {', '.join(entries)}; or arrange it "
            "as imagesTr, labelsTr and dataset.json yourself (docs/reference/recipes.md)."
        )
    return entries[name]


def read_public(path: Path) -> PublicDataset:
    """Read an entry; `UnknownModel` if something in it is missing, unknown or of the wrong type."""
    try:
        return structure(PublicDataset, read_table(path, toml=True))
    except (OSError, ValueError) as error:
        raise UnknownModel(f"{path.name} is no entry of a public data set: {error}. Correct it.") from error
