"""The raw layout of nnU-Net: the content of dataset.json, and the files of each case.

Version 2 is written; the older ways of Version 1 and of the Medical Segmentation Decathlon are read and kept as they
are: unknown fields stay in the file.
"""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from napari_fmseg.core.errors import FmsegError
from napari_fmseg.datasets.dataset_json import labels_in, read_dataset_table
from napari_fmseg.io import suffix_of

__all__ = [
    "CaseFiles",
    "DatasetInfo",
    "add_classes",
    "find_cases",
    "in_channel_order",
    "new_table",
    "read_facts",
    "validation_names",
    "with_case",
    "with_case_name",
    "with_class_name",
    "without_case",
]

IMAGES, LABELS, UNLABELLED = "imagesTr", "labelsTr", "imagesTs"

_LABELLED = "training", "validation", "training_partial", "validation_partial"
"""Lists of dataset.json, of which nnU-Net itself knows the first; in the last two each case has its `classes`."""

_CHANNEL = re.compile(r"_(\d{4})$")


@dataclass(frozen=True)
class DatasetInfo:
    """Content of dataset.json.

    Attributes
    ----------
    table
        All of it.
    labels
        Class names by number, without background and ignore.
    ignore
        The number of voxels that nobody labelled, or None.
    channels
        Names of the input channels.
    ending
        Of all files, such as ``".nii.gz"``.
    """

    table: Mapping[str, Any]
    labels: Mapping[int, str]
    ignore: int | None
    channels: tuple[str, ...]
    ending: str

    @property
    def numbers(self) -> dict[str, int]:
        """Class numbers by name."""
        return {name: value for value, name in self.labels.items()}

    def classes_of(self, name: str) -> tuple[str, ...]:
        """Return the classes that a case was labelled with, as dataset.json or the case's entry states; () for all."""
        said = self.table.get("classes", {})
        classes = said.get(name, ()) if isinstance(said, Mapping) else ()
        for part in () if classes else _LABELLED:
            for entry in self.table.get(part, ()):
                if _is_case(entry) and _name_of(entry) == name:
                    classes = entry.get("classes", ())
        classes = (classes,) if isinstance(classes, str) else classes
        return tuple(label for label in self.labels.values() if label in classes)


@dataclass(frozen=True)
class CaseFiles:
    """The files of a case: one image per channel (or one with all channels), and its labels if it has any."""

    images: tuple[Path, ...]
    labels: Path | None = None


def new_table(labels: tuple[str, ...], channels: tuple[str, ...], name: str, ending: str = ".nii.gz") -> dict[str, Any]:
    """Make a dataset.json for a project without cases."""
    return {
        "name": name,
        "channel_names": {str(i): channel for i, channel in enumerate(channels)},
        "labels": {"background": 0, **{label: i for i, label in enumerate(labels, 1)}},
        "numTraining": 0,
        "file_ending": ending,
    }


def read_facts(folder: Path) -> DatasetInfo:
    """Read dataset.json; `FmsegError` if there is none, or it is not one of nnU-Net's."""
    try:
        return facts_of(read_dataset_table(folder), folder)
    except FileNotFoundError as error:
        raise FmsegError(
            f"{folder} is no project: it has no dataset.json. Make one with `fmseg project init`, or choose the folder "
            "that holds imagesTr and labelsTr."
        ) from error
    except (OSError, ValueError) as error:
        raise FmsegError(
            f"{folder / 'dataset.json'} cannot be understood: {error}. Expected 'labels' as name and number, as "
            "nnU-Net has it. Correct it, or restore it from a copy."
        ) from error


def facts_of(table: Mapping[str, Any], folder: Path) -> DatasetInfo:
    """Parse a dataset.json that was read from `folder`; `ValueError` if a field cannot be what it is."""
    labels, ignore = labels_in(table["labels"])
    named = table.get("channel_names") or table.get("modality") or {"0": "image"}
    named = {"0": named} if isinstance(named, str) else named
    channels = tuple(str(named[key]) for key in sorted(named, key=int))
    return DatasetInfo(table, labels, ignore, channels, str(table.get("file_ending") or _usual_ending(folder)))


def _usual_ending(folder: Path) -> str:
    endings = Counter(suffix_of(path) for part in (IMAGES, LABELS) for path in _files(folder / part))
    endings.pop("", None)
    return endings.most_common(1)[0][0] if endings else ".nii.gz"


def add_classes(facts: DatasetInfo, names: tuple[str, ...], *, sparse: bool, folder: Path) -> DatasetInfo:
    """Add classes, and the ignore label if `sparse`; it always has the highest number, so that classes push it up.

    Classes keep their numbers for ever.
    """
    labels = dict(facts.table["labels"])
    by_number = any(str(key).isdecimal() for key in labels)
    highest = max([0, *facts.labels])
    added = {name: highest + i for i, name in enumerate(names, 1)}
    labels.pop("ignore", None)
    labels.update({str(value): name for name, value in added.items()} if by_number else added)
    if sparse or facts.ignore is not None:
        labels["ignore"] = highest + len(names) + 1
    return facts_of({**facts.table, "labels": labels}, folder)


def validation_names(table: Mapping[str, Any]) -> set[str]:
    """Return the names of the validation cases that the data set itself states."""
    parts = ("validation", "validation_partial")
    return {_name_of(entry) for part in parts for entry in table.get(part, ()) if _is_case(entry)}


def find_cases(folder: Path, facts: DatasetInfo) -> dict[str, CaseFiles]:
    """Find all cases, labelled and unlabelled, by name.

    First those that dataset.json lists (``dataset`` of version 2; ``training`` and ``validation``, also those of both
    that were labelled in part; ``unlabelled``), then what lies in imagesTr, then in imagesTs (under ``imagesTs/NAME``
    where the name is taken).
    """
    found = {
        name: files
        for name, files in _cases_in_table(folder, facts.table)
        if files.images and all(map(os.path.exists, files.images))  # one of a forbidden length or kind is not there
    }
    seen = {os.path.abspath(path) for files in found.values() for path in files.images}
    for part in (IMAGES, UNLABELLED):
        for name, images in _images_in(folder / part, facts.ending).items():
            if os.path.abspath(images[0]) in seen:  # listed under another name
                continue
            labels = folder / LABELS / f"{name}{facts.ending}"
            own = CaseFiles(images, labels if part == IMAGES and labels.exists() else None)
            if part == IMAGES and name in found:
                continue
            found.setdefault(name if name not in found else f"{part}/{name}", own)
    return dict(sorted(found.items()))


def _cases_in_table(folder: Path, table: Mapping[str, Any]) -> Iterator[tuple[str, CaseFiles]]:
    for name, entry in _entries_by_name(table).items():
        yield name, _files_of(folder, _images_of(entry), entry.get("label"))
    for part in (*_LABELLED, "unlabelled"):
        for entry in table.get(part, ()):
            if not _is_case(entry):
                continue
            yield _name_of(entry), _files_of(folder, _images_of(entry), entry.get("label", entry.get("labels")))


def _files_of(folder: Path, images: Sequence[str], labels: str | None) -> CaseFiles:
    there = labels is not None and os.path.exists(folder / labels)
    return CaseFiles(tuple(_at(folder, i) for i in images), _at(folder, str(labels)) if there else None)


def _at(folder: Path, path: str) -> Path:
    """Return a place without ``..``, so that one sees whether it is in the project; links stay links."""
    return Path(os.path.abspath(folder / path))


def _entries_by_name(table: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the table of cases that version 2 may have; elsewhere ``dataset`` may be the data set's name."""
    entries = table.get("dataset")
    return entries if isinstance(entries, Mapping) else {}


def _is_case(entry: object) -> bool:
    """Return whether it is an entry of a list with cases, and no bare path."""
    return isinstance(entry, Mapping) and bool(entry.get("images") or entry.get("image"))


def _images_of(entry: Mapping[str, Any]) -> Sequence[str]:
    images = entry.get("images") or entry.get("image") or ()
    return [images] if isinstance(images, str) else images


def _name_of(entry: Mapping[str, Any]) -> str:
    first = Path(_images_of(entry)[0]).name
    return str(entry.get("case") or entry.get("name") or _CHANNEL.sub("", first.removesuffix(suffix_of(first))))


def _images_in(folder: Path, ending: str) -> dict[str, tuple[Path, ...]]:
    found: dict[str, list[Path]] = {}
    for path in _files(folder):
        if path.name.endswith(ending):
            found.setdefault(_CHANNEL.sub("", path.name.removesuffix(ending)), []).append(path)
    return {name: tuple(paths) for name, paths in found.items()}


def _files(folder: Path) -> list[Path]:
    return sorted(p for p in folder.iterdir() if not p.name.startswith(".")) if folder.is_dir() else []


def in_channel_order(paths: Sequence[Path]) -> tuple[Path, ...]:
    """Sort files by the channel that their names end in (``_0000``, ``_0001``...); others stay in their order."""
    numbers = [_CHANNEL.search(path.name.removesuffix(suffix_of(path))) for path in paths]
    found = [int(number[1]) for number in numbers if number is not None]
    if sorted(found) != list(range(len(paths))):
        return tuple(paths)
    return tuple(path for _, path in sorted(zip(found, paths, strict=True)))


def with_case(
    table: Mapping[str, Any], name: str, images: tuple[str, ...], labels: str | None, n_labelled: int
) -> dict[str, Any]:
    """Write a case into dataset.json where that lists its cases, and the number of labelled ones.

    Parameters
    ----------
    table
        As it is.
    name, images, labels
        The case; paths relative to the project.
    n_labelled
        How many cases have labels afterwards.
    """
    new = {**table, "numTraining": n_labelled}
    if _entries_by_name(table):
        if labels is not None:
            known = table["dataset"].get(name, {"images": list(images)})
            new["dataset"] = {**table["dataset"], name: _with_labels(known, labels)}
        return new
    parts = {part: list(table.get(part, ())) for part in (*_LABELLED, "unlabelled")}
    if not any(_is_case(entry) for part in _LABELLED for entry in parts[part]):
        return new
    image = images[0] if len(images) == 1 else list(images)
    for part in _LABELLED:
        for i, entry in enumerate(parts[part]):
            if _is_case(entry) and _name_of(entry) == name:
                return {**new, part: [*parts[part][:i], _with_labels(entry, labels), *parts[part][i + 1 :]]}
    if labels is not None:
        new["training"] = [*parts["training"], {"case": name, "image": image, "label": labels}]
        if parts["unlabelled"]:
            new["unlabelled"] = [e for e in parts["unlabelled"] if not (_is_case(e) and _name_of(e) == name)]
    return new


def _with_labels(entry: Mapping[str, Any], labels: str | None) -> Mapping[str, Any]:
    """Return an entry with these labels; one that names them already, however it writes the path, stays as it is."""
    key = "labels" if "labels" in entry else "label"
    if labels is None or (key in entry and PurePosixPath(str(entry[key])) == PurePosixPath(labels)):
        return entry
    return {**entry, key: labels}


def without_case(table: Mapping[str, Any], name: str, n_labelled: int) -> dict[str, Any]:
    """Remove a case from the lists of dataset.json.

    Parameters
    ----------
    table
        As it is.
    name
        Of the case.
    n_labelled
        How many cases have labels afterwards.
    """
    kept = _map_entries(table, lambda case, entry: None if case == name else (case, entry))
    return {**kept, "numTraining": n_labelled}


def with_case_name(table: Mapping[str, Any], old: str, new: str, moved: Mapping[str, str]) -> dict[str, Any]:
    """Rename a case in the lists of dataset.json.

    Parameters
    ----------
    table
        As it is.
    old, new
        Names.
    moved
        The new places of files by the old ones, relative to the project.
    """

    def rename(case: str, entry: Any) -> tuple[str, Any]:
        return (new, _with_places(entry, moved)) if case == old else (case, entry)

    return _map_entries(table, rename, new)


def _map_entries(
    table: Mapping[str, Any], change: Callable[[str, Any], tuple[str, Any] | None], case: str = ""
) -> dict[str, Any]:
    """Pass every entry of a case to `change`, which returns its new name and content, or None to drop it."""
    out = dict(table)
    for part in ("dataset", "classes"):
        if isinstance(table.get(part), Mapping):
            out[part] = dict(kept for item in table[part].items() if (kept := change(*item)) is not None)
    for part in (*_LABELLED, "unlabelled"):
        if part not in table:
            continue
        entries = []
        for entry in table[part]:
            kept = change(_name_of(entry), entry) if _is_case(entry) else ("", entry)
            if kept is not None:
                named = kept[0] == case != "" and kept[1] is not entry
                entries.append({**kept[1], "case": case} if named else kept[1])
        out[part] = entries
    return out


def _with_places(entry: Any, moved: Mapping[str, str]) -> Any:
    """Write the new places of files into an entry, however it writes the old ones."""
    if isinstance(entry, Mapping):
        return {key: _with_places(value, moved) for key, value in entry.items()}
    if isinstance(entry, list):
        return [_with_places(value, moved) for value in entry]
    return moved.get(PurePosixPath(entry).as_posix(), entry) if isinstance(entry, str) else entry


def with_class_name(facts: DatasetInfo, old: str, new: str, folder: Path) -> DatasetInfo:
    """Rename a class; its number stays."""
    number = facts.numbers[old]
    labels: dict[str, Any] = {}
    for key, value in facts.table["labels"].items():
        if str(key).isdecimal() and int(key) == number:
            labels[key] = new
        else:
            labels[new if key == old else key] = value
    said = facts.table.get("classes")
    table = {**facts.table, "labels": labels}
    if isinstance(said, Mapping):
        table["classes"] = {name: [new if one == old else one for one in own] for name, own in said.items()}
    return facts_of(table, folder)
