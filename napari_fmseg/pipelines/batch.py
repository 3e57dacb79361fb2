"""From files to files: which volumes are meant, where each result goes, and what is written beside it."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

from napari_fmseg.core.atomic_write import check_name
from napari_fmseg.core.errors import FmsegError, UnreadableVolume
from napari_fmseg.core.events import Event, Progress
from napari_fmseg.io import check_destination, find_volumes, read_volume, suffix_of
from napari_fmseg.io.discovery import broken_files
from napari_fmseg.io.paths import files_below
from napari_fmseg.models.provenance import manifest_path
from napari_fmseg.models.weights import Model
from napari_fmseg.pipelines import SegmentOptions
from napari_fmseg.pipelines.folders.finished import is_result
from napari_fmseg.pipelines.folders.steps import (
    Done,
    JobOptions,
    JobVolume,
    SegmentationJob,
    check_stages,
    read_job,
    segment_volume,
    stem_of,
    write_job,
)

__all__ = [
    "Done",
    "JobOptions",
    "JobVolume",
    "SegmentationJob",
    "group_channels",
    "plan_jobs",
    "segment_file",
    "volumes_in",
]

_WRITTEN_AS = {".nrrd": ".nrrd", ".nhdr": ".nrrd", ".mha": ".mha", ".mhd": ".mha"}  # everything else as .nii.gz


def plan_jobs(
    images: Iterable[Path],
    output: Path,
    *,
    series: str | None = None,
    channels: int = 1,
    taken: Callable[[Path], bool] | None = None,
    stages_dir: Path | None = None,
) -> list[SegmentationJob]:
    """Find the volumes that are meant and name a result for each.

    Parameters
    ----------
    images
        Files, DICOM folders, or folders of volumes.
    output
        A file (``liver.nii.gz``) for one volume; else a folder, where ``case.nii.gz`` becomes ``case_seg.nii.gz``
        (NRRD and MHA stay what they are).
    series
        Take this series of every folder, instead of all that lies in it.
    channels
        How many the model takes. With more than one, as many images of one channel each that are named are the channels
        of one volume, in this order; and so are files called ``case_0000``, ``case_0001``... in one folder.
    taken
        Whether a name in the output folder is somebody else's, so that the result gets another. Without it what lies
        there is replaced.
    stages_dir
        A folder that is not looked into, because results of stages go there. Results of an earlier run, which have a
        manifest beside them, are no volumes either.

    Raises
    ------
    UnreadableVolume
        If the only path does not exist, or a folder holds no volume.
    UnwritableVolume
        If the output has no suffix that can be written, or its folder cannot be.
    FmsegError
        If nothing is named, one output file is for several volumes, or the result would overwrite its image.
    """
    images = list(images)
    found = [volume for image in images for volume in _volumes(image, series, stages_dir, alone=len(images) == 1)]
    if not found:
        raise FmsegError("There is nothing to segment. Name at least one file or folder.")
    groups = group_channels(found, channels)
    if len(images) == len(found) == len(groups) == channels > 1 and _is_one_channel(found[0]):
        groups = [tuple(found)]
    found = [group[0] for group in groups]
    if suffix_of(output) or (output.suffix and len(found) == 1 and not output.is_dir()):
        if len(found) != 1:
            raise FmsegError(
                f"{output.name} is one file, but there are {len(found)} volumes ({_some(found)}). "
                "Give a folder as output, or choose one volume (of a DICOM folder by its series)."
            )
        jobs = [SegmentationJob(found[0], output, groups[0][1:])]
    else:
        jobs, names = [], set[Path]()
        for image, *others in groups:
            stem = stem_of(image).removesuffix("_0000") if others else stem_of(image)
            result = _free(output / stem, _WRITTEN_AS.get(suffix_of(image), ".nii.gz"), names, taken)
            names.add(result)
            jobs.append(SegmentationJob(image, result, tuple(others)))
    for job in jobs:
        if job.result.resolve() in [image.resolve() for image in job.images]:
            raise FmsegError(f"The result would overwrite its image {job.image}. Choose another --output.")
    for job in jobs:
        check_destination(job.result)
        check_name(manifest_path(job.result))
    return jobs


def segment_file(
    job: SegmentationJob,
    model: Model,
    options: SegmentOptions,
    *,
    read: JobVolume | None = None,
    series: str | None = None,
    suv: str = "auto",
    stages_dir: Path | None = None,
    preview: Path | None = None,
) -> Iterator[Event | Done]:
    """Read, segment, write the labels and their manifest.

    Parameters
    ----------
    job
        From `plan_jobs`.
    model, options
        See `napari_fmseg.pipelines.segment`.
    read
        From `read_job`, where it was read already.
    series
        Which series of a DICOM folder.
    suv
        Whether a PET is read in SUV; see `napari_fmseg.io.read_volume`.
    stages_dir
        Where every stage is written on its own grid; None: nowhere.
    preview
        Where a picture of the result is written; None: nowhere.

    Yields
    ------
    Progress, Warned, StageResult and at last Done

    Raises
    ------
    FmsegError
        If the volume cannot be read, segmented or written; then nothing is left in the result's place.
    """
    whole = JobOptions(options, series, suv, stages_dir)
    job = dataclasses.replace(job, preview=preview or job.preview)
    check_stages(job, model.card, whole)
    read = read or read_job(job, model.card, whole)
    yield Progress("reading", 1, 1)
    segmented = yield from segment_volume(read, model, whole)
    yield write_job(job, segmented, model, whole)


def group_channels(found: Sequence[Path], channels: int) -> list[tuple[Path, ...]]:
    """Put the files ``case_0000``, ``case_0001``... of one folder together, where there is one for each channel."""
    if channels == 1:
        return [(path,) for path in found]
    numbers = [f"_{number:04d}" for number in range(channels)]
    groups: dict[Path, list[Path]] = {}
    for path in found:
        groups.setdefault(path.parent / re.sub(r"_\d{4}$", "", stem_of(path)), []).append(path)
    whole = [sorted(group) for group in groups.values() if sorted(stem_of(p)[-5:] for p in group) == numbers]
    taken = {path for group in whole for path in group}
    return [tuple(group) for group in whole] + [(path,) for path in found if path not in taken]


def _is_one_channel(path: Path) -> bool:
    try:
        return read_volume(path, suv="never").n_channels == 1
    except FmsegError:  # reported when its turn comes
        return False


def _volumes(image: Path, series: str | None, stages_dir: Path | None, *, alone: bool) -> list[Path]:
    if not image.exists() and (not alone or image.is_symlink()):
        return [image]  # it fails when its turn comes, and is listed; the others are not held up
    if image.exists() and (not image.is_dir() or series is not None):
        return [image]
    return volumes_in(image, stages_dir)


def volumes_in(folder: Path, stages_dir: Path | None = None) -> list[Path]:
    """Find the volumes in a folder and below it; results of earlier runs, with a manifest beside them, are none.

    Parameters
    ----------
    folder
        Where to look.
    stages_dir
        A folder that is not looked into.

    Raises
    ------
    UnreadableVolume
        If there is no such folder, or no volume in it.
    """
    if not folder.exists():
        raise UnreadableVolume(f"There is no {folder}. Is the path right, and the drive there?")
    if not folder.is_dir():
        raise UnreadableVolume(f"There is no folder {folder}, but a file. Name the folder that holds the volumes.")
    # What a broken copy leaves must fail and be listed, not be passed over.
    listed = sorted({*find_volumes(folder, damaged=True), *broken_files(files_below(folder))})
    of_stages = None if stages_dir is None else stages_dir.resolve()
    found = [path for path in listed if not is_result(path) and of_stages not in path.resolve().parents]
    if not found:
        raise UnreadableVolume(f"There is no volume in {folder}. Expected NIfTI, NRRD, MHA or DICOM files.")
    return found


def _some(paths: list[Path]) -> str:
    return ", ".join(path.name for path in paths[:3]) + (", …" if len(paths) > 3 else "")


def _free(place: Path, suffix: str, names: set[Path], taken: Callable[[Path], bool] | None) -> Path:
    """Return ``place_seg.nii.gz``, or ``place-2_seg.nii.gz`` where another volume of this run has that name already."""
    path, n = place.with_name(f"{place.name}_seg{suffix}"), 2
    while path in names or (taken is not None and taken(path)):
        path, n = place.with_name(f"{place.name}-{n}_seg{suffix}"), n + 1
    return path
