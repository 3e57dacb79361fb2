"""Labels on their way out: one map, a file per class, surfaces or a DICOM SEG, as one iterator of events."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from napari_fmseg.core.atomic_write import atomic_write_files
from napari_fmseg.core.errors import UnwritableVolume
from napari_fmseg.core.events import Progress, Saved, Warned
from napari_fmseg.core.volume import LabelMap, Volume
from napari_fmseg.io import suffix_of, write_labels
from napari_fmseg.io.dicom.first_bytes import is_dicom
from napari_fmseg.io.dicom.seg_writer import Made, write_dicom_seg
from napari_fmseg.io.label_classes import file_stems, only, present
from napari_fmseg.io.meshes import MESH_FORMATS, meshes

__all__ = ["Export", "Kind", "export", "files_of", "is_dicom_source", "kind_of"]

Kind = Literal["map", "classes", "meshes", "dicom-seg"]
MAP_SUFFIXES = (".nii.gz", ".nii", ".nrrd", ".mha")
_MANY = 50  # files that are looked at before a folder is said to hold no DICOM


@dataclass(frozen=True)
class Export:
    """What to write, and where.

    Attributes
    ----------
    what
        ``"map"``: all classes in one file. ``"classes"``: a file per class. ``"meshes"``: surfaces.
        ``"dicom-seg"``: one DICOM SEG.
    to
        A file; for ``"classes"`` a folder; for ``"meshes"`` either (see `napari_fmseg.io.meshes.write_meshes`).
    suffix
        Of the files in a folder: ``".nii.gz"``, ``".stl"``.
    classes
        Which to write; None for all that occur.
    smooth
        Whether to take the steps of the voxels off a surface.
    like
        The volume that was segmented, whose words for its place a NIfTI should keep; its data do not count.
    source
        Folder or file of the DICOM series.
    series
        Which series of that folder.
    model, made
        What made the labels; see `napari_fmseg.io.dicom.seg_writer.write_dicom_seg`.
    """

    what: Kind
    to: Path
    suffix: str = ".nii.gz"
    classes: tuple[int, ...] | None = None
    smooth: bool = True
    like: Volume | None = None
    source: Path | None = None
    series: str | None = None
    model: str = ""
    made: Made = "SEMIAUTOMATIC"


def export(labels: LabelMap, wanted: Export) -> Iterator[Progress | Warned | Saved]:
    """Write labels and yield progress; each file is written atomically, and closing the iterator leaves none behind.

    Yields
    ------
    Progress, Warned, Saved
        `Saved` once for every file, when all of them are in their place.

    Raises
    ------
    UnwritableVolume
        If there is nothing to write or the place does not take it.
    GeometryMismatch, UnreadableVolume, MissingExtra
        See `napari_fmseg.io.dicom.seg_writer.write_dicom_seg`.
    """
    yield Progress(wanted.what, 0, 1)
    if wanted.classes is not None:
        labels = only(labels, wanted.classes)
    if wanted.what == "meshes":
        yield from meshes(labels, wanted.to, "" if _is_mesh(wanted.to) else wanted.suffix, smooth=wanted.smooth)
    elif wanted.what == "classes":
        yield from _per_class(labels, wanted.to, wanted.suffix, wanted.like)
    else:
        if not labels.data.any():
            yield Warned("The labels are empty: the file holds background only.")
        with atomic_write_files(wanted.to.parent) as part:
            if wanted.what == "dicom-seg":
                _write_seg(labels, part / wanted.to.name, wanted)
            else:
                write_labels(labels, part / wanted.to.name, source=wanted.like)
            yield Progress(wanted.what, 1, 1)  # who closes the iterator here wants no file
        yield Saved(wanted.to, best=True)


def files_of(labels: LabelMap, wanted: Export) -> tuple[Path, ...]:
    """List the files that `export` may write, so that one can ask before they are replaced.

    For a folder these are the files of all classes with a name or, of labels without names, of those that occur.
    """
    if wanted.what in ("map", "dicom-seg") or (wanted.what == "meshes" and _is_mesh(wanted.to)):
        return (wanted.to,)
    values = sorted(wanted.classes if wanted.classes is not None else (labels.names or present(labels)))
    suffix = "." + wanted.suffix.lstrip(".")
    return tuple(wanted.to / f"{stem}{suffix}" for stem in file_stems(labels, values).values())


def _per_class(labels: LabelMap, folder: Path, suffix: str, like: Volume | None) -> Iterator[Progress | Warned | Saved]:
    suffix = "." + suffix.lstrip(".")
    if suffix not in MAP_SUFFIXES:
        raise UnwritableVolume(f"{suffix} holds no single mask. Use one of {', '.join(MAP_SUFFIXES)}.")
    values = present(labels)
    if not values:
        raise UnwritableVolume("The labels are empty: there is no class to write. Segment first.")
    for value, name in labels.names.items():
        if value not in values:
            yield Warned(f"{name} has no voxel, so it has no file.")
    stems = file_stems(labels, values)
    with atomic_write_files(folder) as part:
        for number, value in enumerate(values, 1):
            write_labels(_mask(labels, value), part / f"{stems[value]}{suffix}", source=like)
            yield Progress("classes", number, len(values))
    for value in values:
        yield Saved(folder / f"{stems[value]}{suffix}", best=True)


def _mask(labels: LabelMap, value: int) -> LabelMap:
    names = {1: labels.names[value]} if value in labels.names else {}
    colors = {1: labels.colors[value]} if value in labels.colors else {}
    return LabelMap(labels.data == value, labels.geometry, labels.meta, names, colors)


def kind_of(to: Path, fmt: str = "") -> Kind:
    """Return the type of export for a file's name, or a folder and a format; `UnwritableVolume` if there is none."""
    ending = suffix_of(to) or (to.suffix.lower() if _is_mesh(to) else "")
    if fmt and ending and not to.is_dir() and ending != "." + fmt.lower().lstrip("."):
        raise UnwritableVolume(f"{to.name} is no {fmt}. Leave the format out, or name a folder for files of it.")
    if suffix_of(to) == ".dcm":
        return "dicom-seg"
    if _is_mesh(to) or fmt.lower().lstrip(".") in MESH_FORMATS:
        return "meshes"
    if suffix_of(to) and not to.is_dir():
        return "map"
    if "." + fmt.lower().lstrip(".") in MAP_SUFFIXES:
        return "classes"
    formats = ", ".join((*MESH_FORMATS, *(suffix[1:] for suffix in MAP_SUFFIXES)))
    raise UnwritableVolume(f"{to.name} is a folder: say with the format what to write into it, one of {formats}.")


def _write_seg(labels: LabelMap, path: Path, wanted: Export) -> None:
    if wanted.source is None:
        raise UnwritableVolume("A DICOM SEG refers to a DICOM series. Say where it is, or write NIfTI, NRRD or MHA.")
    write_dicom_seg(labels, path, wanted.source, series=wanted.series, model=wanted.model, made=wanted.made)


def _is_mesh(path: Path) -> bool:
    return path.suffix.lower().lstrip(".") in MESH_FORMATS and not path.is_dir()


def is_dicom_source(path: Path | str) -> bool:
    """Return whether something was read from DICOM files that are still there; looks at a few files only."""
    if not str(path):
        return False
    path = Path(path)
    if path.is_file():
        return suffix_of(path) != ".zip" and is_dicom(path)
    seen = 0
    for place, folders, names in os.walk(path):
        folders.sort()
        for name in sorted(names):
            seen += 1
            if is_dicom(Path(place, name)):
                return True
            if seen >= _MANY:
                return False
    return False
