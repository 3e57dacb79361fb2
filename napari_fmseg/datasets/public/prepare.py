"""A downloaded public data set into nnU-Net's raw layout: links where the files can stay as they are, and a report."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
from collections import Counter
from collections.abc import Generator, Mapping
from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np
from nibabel.filebasedimages import ImageFileError

from napari_fmseg.core.atomic_write import atomic_write
from napari_fmseg.core.errors import FmsegError, UnreadableVolume
from napari_fmseg.core.events import Progress
from napari_fmseg.core.resampling import resample
from napari_fmseg.core.volume import LabelMap
from napari_fmseg.datasets.public.layout import Found, Key, PublicDataset
from napari_fmseg.io import read_labels, read_volume, suffix_of, write_labels

__all__ = ["Prepared", "prepare_public"]

_APART_MM = 0.1
_SHOWN = 5  # names in a sentence of the report


@dataclass(frozen=True)
class Prepared:
    """What came out.

    Attributes
    ----------
    folder
        Where dataset.json, imagesTr and labelsTr are.
    training, validation
        Names of the cases.
    expected
        How many cases the owners state.
    linked, written
        Files that are links to what was downloaded, and label files that were written anew.
    missing
        What is missing or cannot be used, a sentence each.
    remarks
        What was odd and was mended, a sentence each.
    """

    folder: Path
    training: tuple[str, ...]
    validation: tuple[str, ...]
    expected: int
    linked: int
    written: int
    missing: tuple[str, ...]
    remarks: tuple[str, ...]


def prepare_public(dataset: PublicDataset, source: Path, out: Path) -> Generator[Progress, None, Prepared]:
    """Arrange a downloaded data set as nnU-Net's raw layout; the downloaded files are not changed.

    Parameters
    ----------
    dataset
        The entry of its layout.
    source
        The folder with what was downloaded and unpacked.
    out
        A new folder; `source` must stay where it is as long as this one is used.

    Yields
    ------
    Progress
        In cases.

    Returns
    -------
    Prepared
        What was found, and what was not.

    Raises
    ------
    FmsegError
        If `out` is there already, or no case of the layout is in `source`: then nothing is written.
    """
    source, out = Path(source).absolute(), Path(out).absolute()
    if out.exists() and any(out.iterdir()):
        raise FmsegError(f"{out} is there already and not empty. Choose a new folder, or remove it.")
    found = dataset.search(_files(source))
    keys = [key for key in found.labels if all(key in channel for channel in found.images)]
    if not keys:
        raise FmsegError(_nothing(dataset, source, found))
    work = _Work(dataset, source, out)
    done: dict[Key, str] = {}
    for number, key in enumerate(sorted(keys, key=_natural), 1):
        name = work.arrange(key, found)
        if name:
            done[key] = name
        yield Progress("arranging", number, len(keys))
    if not done:
        shutil.rmtree(out, ignore_errors=True)
        raise FmsegError(f"None of the {len(keys)} cases in {source} can be used: {work.missing[0]}")
    validation = _validation(dataset, done)
    training = tuple(name for key, name in done.items() if key not in validation)
    work.write_table(done, validation)
    missing = (*_incomplete(dataset, found), *work.missing)
    lacking = dataset.cases - len(found.labels)
    if lacking > 0:
        missing = (f"{dataset.title} has {dataset.cases} labelled cases; {len(found.labels)} were found.", *missing)
    held = tuple(done[key] for key in done if key in validation)
    return Prepared(out, training, held, dataset.cases, work.linked, work.written, missing, work.remarks(found))


def _files(source: Path) -> list[str]:
    """List the volumes below a folder, relative to it; `FmsegError` if it is none."""
    if not source.is_dir():
        raise FmsegError(f"{source} is no folder. Give the folder into which the data set was unpacked.")
    found = []
    for folder, _, names in os.walk(source, followlinks=True):
        inner = Path(folder).relative_to(source)
        found += [(inner / name).as_posix() for name in names if suffix_of(name) and not name.startswith(".")]
    return found


def _nothing(dataset: PublicDataset, source: Path, found: Found) -> str:
    """State which part of the layout is missing where not a single case is whole."""
    parts = [*zip(dataset.channels, dataset.images, found.images, strict=True), ("labels", dataset.label, found.labels)]
    there = [f"{len(files)} of {what} ({pattern})" for what, pattern, files in parts]
    return (
        f"{source} does not hold {dataset.title} as its owners pack it. Expected, at any depth, and found: "
        f"{'; '.join(there)}. Unpack everything that was downloaded into this folder; {dataset.source} has it."
    )


def _natural(key: Key) -> tuple[tuple[str, int, str], ...]:
    """Sort case 2 before case 10; what is no number by its letters."""
    return tuple((name, int(text) if text.isdecimal() else -1, text) for name, text in key)


def _incomplete(dataset: PublicDataset, found: Found) -> tuple[str, ...]:
    """Name the cases that lack labels or a channel."""
    parts = [*zip(dataset.channels, found.images, strict=True), ("labels", found.labels)]
    everyone = {key for _, files in parts for key in files}
    sentences = []
    for what, files in parts:
        lacking = sorted((key for key in everyone - files.keys()), key=_natural)
        # Test cases have images and no labels: that is how they are published.
        if lacking and what != "labels":
            sentences.append(f"{len(lacking)} case(s) have no {what}: {_names(dataset, lacking)}. They were left out.")
    return tuple(sentences)


def _names(dataset: PublicDataset, keys: list[Key]) -> str:
    names = [_case_name(dataset, key) for key in keys]
    return ", ".join(names[:_SHOWN]) + (f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else "")


def _case_name(dataset: PublicDataset, key: Key) -> str:
    return dataset.case_name.format(**dict(key))


def _validation(dataset: PublicDataset, done: Mapping[Key, str]) -> set[Key]:
    """Choose the validation cases: those of the protocol, else every fifth patient."""
    chosen = {key for key in done if dataset.validates(key)}
    if chosen and len(chosen) < len(done):
        return chosen
    patients = list(dict.fromkeys(_patient(dataset, key) for key in done))
    held = set(patients[4::5])
    return {key for key in done if _patient(dataset, key) in held}


def _patient(dataset: PublicDataset, key: Key) -> str:
    return dict(key)[dataset.patient] if dataset.patient else str(key)


class _Work:
    """Arranges one case after the other, and counts."""

    def __init__(self, dataset: PublicDataset, source: Path, out: Path) -> None:
        self.linked = self.written = 0
        self.missing: list[str] = []
        self._dataset, self._source, self._out = dataset, source, out
        self._names: Counter[str] = Counter()
        self._moved: list[str] = []
        self._resampled: list[str] = []
        self._copied = 0
        self._ending = ""

    def arrange(self, key: Key, found: Found) -> str:
        """Link or write the files of a case; returns its name, or "" where it cannot be used."""
        images = [self._source / channel[key] for channel in found.images]
        label = self._source / found.labels[key]
        name = self._name(key)
        try:
            placed = self._label(images, label, name)
        except (FmsegError, OSError, ValueError, ImageFileError) as error:
            self.missing.append(f"{name} was left out: {error}")
            return ""
        self._ending = self._ending or suffix_of(images[0])
        for number, image in enumerate(images):
            self._link(image, self._out / "imagesTr" / f"{name}_{number:04d}{suffix_of(image)}")
        self._write_or_link(label, placed, self._out / "labelsTr" / f"{name}{self._ending}")
        return name

    def _name(self, key: Key) -> str:
        """Return a case's name; cases of one patient are counted, since studies may be called by dates and words."""
        name = _case_name(self._dataset, key)
        if not self._dataset.patient:
            return name
        self._names[name] += 1
        return f"{name}_{self._names[name]}"

    def _label(self, images: list[Path], label: Path, name: str) -> LabelMap | None:
        """Return labels that must be written anew; None where the published file is right as it is."""
        grids = [_grid(path) for path in (*images, label)]
        for path, grid in zip(images[1:], grids[1:-1], strict=True):
            if _differ(grids[0], grid):
                raise UnreadableVolume(f"{path.name} and {images[0].name} lie on different grids")
        apart = _differ(grids[0], grids[-1])
        if not apart and not self._dataset.relabel and suffix_of(label) == suffix_of(images[0]):
            return None
        labels = read_labels(label)
        if apart and grids[0][0] == grids[-1][0] and not self._dataset.resample_labels:
            self._moved.append(name)
            labels = dataclasses.replace(labels, geometry=read_volume(images[0]).geometry)
        elif apart and self._dataset.resample_labels:
            self._resampled.append(name)
            place = read_volume(images[0]).geometry
            labels = LabelMap(resample(labels, place, order=0).data, place, labels.meta)
        elif apart:
            raise UnreadableVolume(f"its labels have {grids[-1][0]} voxels, its image {grids[0][0]}")
        return dataclasses.replace(labels, data=_renumber(labels.data, self._dataset.relabel), names={}, colors={})

    def _write_or_link(self, label: Path, labels: LabelMap | None, place: Path) -> None:
        if labels is None:
            self._link(label, place)
            return
        write_labels(labels, place)
        self.written += 1

    def _link(self, file: Path, place: Path) -> None:
        """Link to a file; where the system has no links, share it or copy it."""
        place.parent.mkdir(parents=True, exist_ok=True)
        for link in (os.symlink, os.link):
            try:
                link(file, place)
            except OSError:
                continue
            self.linked += 1
            return
        shutil.copyfile(file, place)
        self._copied += 1

    def write_table(self, done: Mapping[Key, str], validation: set[Key]) -> None:
        """Write dataset.json last: it makes the folder a data set."""
        data, ending = self._dataset, self._ending
        table = {
            "name": data.name,
            "description": data.title,
            "reference": data.source,
            "licence": data.licence,
            "citation": data.citation,
            "channel_names": {str(i): channel for i, channel in enumerate(data.channels)},
            "labels": {"background": 0, **{name: number for number, name in sorted(data.labels.items())}},
            "numTraining": len(done),
            "file_ending": ending,
            "validation": [self._entry(done[key]) for key in done if key in validation],
        }
        with atomic_write(self._out / "dataset.json") as file:
            file.write(json.dumps(table, indent=1, ensure_ascii=False).encode())

    def _entry(self, name: str) -> dict[str, object]:
        images = [f"imagesTr/{name}_{i:04d}{self._ending}" for i in range(len(self._dataset.channels))]
        return {"case": name, "image": images, "label": f"labelsTr/{name}{self._ending}"}

    def remarks(self, found: Found) -> tuple[str, ...]:
        """State what was odd."""
        texts = []
        if self._dataset.relabel:
            changed = ", ".join(f"{old} to {new}" for old, new in self._dataset.relabel.items())
            texts.append(f"Labels were renumbered ({changed}), so the label files were written anew.")
        if self._moved:
            texts.append(
                f"In {len(self._moved)} case(s) the labels state another place than the image, with as many voxels: "
                f"{', '.join(self._moved[:_SHOWN])}. They were written with the image's place."
            )
        if self._resampled:
            texts.append(
                f"The labels of {len(self._resampled)} case(s) lie on another grid: they were written on the image's, "
                "nearest voxel."
            )
        if self._copied:
            texts.append(f"This file system has no links: {self._copied} file(s) were copied.")
        if found.several:
            texts.append(
                f"{len(found.several)} file(s) are there twice, such as {found.several[0]}; the first one was taken."
            )
        if self._dataset.note:
            texts.append(self._dataset.note)
        return tuple(texts)


def _grid(path: Path) -> tuple[tuple[int, ...], np.ndarray]:
    """Return the shape and the affine in a file's header; nothing else of it is read."""
    if path.stat().st_size == 0:
        raise UnreadableVolume(f"{path.name} is empty; its download failed")
    if not suffix_of(path).startswith(".nii"):
        geometry = read_volume(path).geometry
        return geometry.shape[::-1], geometry.affine
    image = nib.load(path)
    return tuple(int(n) for n in image.shape), image.affine


def _differ(one: tuple[tuple[int, ...], np.ndarray], other: tuple[tuple[int, ...], np.ndarray]) -> bool:
    """Return whether two grids differ: in their voxels, or where a corner lies."""
    if one[0] != other[0]:
        return True
    far = np.array([*one[0][:3], 1.0])
    return any(np.abs(one[1] @ at - other[1] @ at).max() > _APART_MM for at in (far, np.array([0, 0, 0, 1.0])))


def _renumber(data: np.ndarray, relabel: Mapping[int, int]) -> np.ndarray:
    """Return labels by their new numbers; those that are not named stay."""
    out = data.copy()
    for old, new in relabel.items():
        out[data == old] = new
    return out
