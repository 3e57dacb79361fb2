"""From files to files: which volumes are meant, where each result goes, and what is written beside it."""

from __future__ import annotations

import contextlib
import dataclasses
import re
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from napari_fmseg.core.atomic_write import as_unwritable, check_name
from napari_fmseg.core.errors import FmsegError, UnreadableVolume
from napari_fmseg.core.events import DOES_NOT_FIT, FROM_THE_FILE, Event, Progress, StageResult, Warned
from napari_fmseg.core.hardware import device_name
from napari_fmseg.core.volume import LabelMap, Volume
from napari_fmseg.io import check_destination, find_volumes, read_volume, suffix_of, write_labels, write_volume
from napari_fmseg.io.channels import read_channels
from napari_fmseg.io.discovery import broken_files
from napari_fmseg.io.paths import files_below
from napari_fmseg.io.preview import write_preview
from napari_fmseg.models.card import ModelCard
from napari_fmseg.models.provenance import Manifest, manifest_path, precision_of, write_manifest
from napari_fmseg.models.weights import Model
from napari_fmseg.pipelines import SegmentOptions, segment, stages_of
from napari_fmseg.pipelines.folders.finished import (
    hash_image,
    hash_model,
    hash_options,
    is_finished,
    is_result,
    stamp_image,
)

__all__ = [
    "Done",
    "JobOptions",
    "JobVolume",
    "SegmentationJob",
    "SegmentedVolume",
    "check_stages",
    "is_done",
    "plan_jobs",
    "read_job",
    "run_hashes",
    "segment_file",
    "segment_volume",
    "write_job",
]

_WRITTEN_AS = {".nrrd": ".nrrd", ".nhdr": ".nrrd", ".mha": ".mha", ".mhd": ".mha"}  # everything else as .nii.gz


@dataclass(frozen=True)
class SegmentationJob:
    """One volume to segment and where its labels go.

    Attributes
    ----------
    image, others
        The volume; where its channels are files of their own, the first and the others.
    result
        The file of the labels.
    preview
        The file of a picture of the result; None for none.
    """

    image: Path
    result: Path
    others: tuple[Path, ...] = ()
    preview: Path | None = None

    @property
    def images(self) -> tuple[Path, ...]:
        """All of its channels."""
        return self.image, *self.others


@dataclass(frozen=True)
class JobOptions:
    """What holds for all volumes of a run.

    Attributes
    ----------
    run
        How the model is run.
    series
        Which series of a DICOM folder.
    suv
        Whether a PET is read in SUV; see `napari_fmseg.io.read_volume`.
    stages_dir
        Where every stage is written on its own grid; None: nowhere.
    """

    run: SegmentOptions = field(default_factory=SegmentOptions)
    series: str | None = None
    suv: str = "auto"
    stages_dir: Path | None = None


@dataclass(frozen=True)
class JobVolume:
    """The volume of a `SegmentationJob`, the seconds that reading it took, and hashes of its files."""

    volume: Volume
    seconds: float
    hashes: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class SegmentedVolume:
    """The labels of a volume, and all that is to be written beside them.

    Attributes
    ----------
    volume, labels
        The image, and what was found in it.
    stages
        The results of the stages, each on its own grid, where they are wanted.
    seconds
        Time for reading and every stage.
    notes
        What the pipeline remarked.
    misfits
        How the volume differs from those that the model was trained on, a sentence by its kind.
    hashes
        Of the files of the image.
    """

    volume: Volume
    labels: LabelMap
    stages: tuple[StageResult, ...]
    seconds: Mapping[str, float]
    notes: tuple[str, ...]
    misfits: Mapping[str, str]
    hashes: Mapping[str, str]


@dataclass(frozen=True)
class Done:
    """A finished `SegmentationJob`.

    Attributes
    ----------
    job
        What was asked for.
    labels
        The result as written.
    manifest
        The file that records how it was made.
    seconds
        Time for reading, every stage, and writing.
    notes
        What the pipeline remarked.
    misfits
        How the volume differs from those that the model was trained on, a sentence by its kind.
    """

    job: SegmentationJob
    labels: LabelMap
    manifest: Path
    seconds: dict[str, float] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    misfits: dict[str, str] = field(default_factory=dict)

    def table(self) -> dict[str, Any]:
        """Return what is known of the result, without the labels themselves."""
        names = self.labels.names
        return {
            "image": self.job.image,
            "output": self.job.result,
            "manifest": self.manifest,
            "seconds": self.seconds,
            "volumes_ml": {names.get(value, str(value)): ml for value, ml in self.labels.volumes_ml().items()},
            "notes": self.notes,
            "misfits": self.misfits,
        }


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
    groups = _group_channels(found, channels, together=len(images) == len(found))
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
            stem = _stem(image).removesuffix("_0000") if others else _stem(image)
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


def check_stages(job: SegmentationJob, card: ModelCard, options: JobOptions) -> None:
    """Raise `UnwritableVolume` if the result of a stage is wanted and could not be written."""
    if options.stages_dir is not None:
        for n, stage in enumerate(stages_of(card), 1):
            check_destination(_stage_path(options.stages_dir, _stem(job.result), n, stage))


def read_job(job: SegmentationJob, card: ModelCard, options: JobOptions) -> JobVolume:
    """Read the volume of a job; where its channels are files of their own, on the grid of the first."""
    before = _stamp(job)
    start = time.perf_counter()
    volume = _read(job, card, options)
    seconds = time.perf_counter() - start
    hashes: dict[str, str] = {}
    with contextlib.suppress(OSError):
        hashes = {"image": hash_image(job.images), "image_stamp": before}
    return JobVolume(volume, seconds, hashes if before and before == _stamp(job) else {})


def _stamp(job: SegmentationJob) -> str:
    try:
        return stamp_image(job.images)
    except (OSError, FmsegError):  # the reader says what is wrong
        return ""


def _read(job: SegmentationJob, card: ModelCard, options: JobOptions) -> Volume:
    suv = options.suv
    if not job.others:
        return read_volume(job.image, series=options.series, suv=suv)
    names = card.channels
    wish = ["auto" if suv == "required" and name.upper().startswith(("CT", "MR")) else suv for name in names]
    return read_channels(job.images, names, resample=True, suv=wish)


def segment_volume(read: JobVolume, model: Model, options: JobOptions) -> Generator[Event, None, SegmentedVolume]:
    """Segment a volume that was read; see `segment_file`.

    Yields
    ------
    Progress, Warned, StageResult

    Returns
    -------
    SegmentedVolume
        For `write_job`.
    """
    seconds = {"reading": read.seconds}
    labels: LabelMap | None = None
    stages: list[StageResult] = []
    notes: list[str] = []
    misfits: dict[str, str] = {}
    for event in segment(read.volume, model, dataclasses.replace(options.run, show_stages=True)):
        if isinstance(event, Warned) and event.code.startswith(DOES_NOT_FIT):
            misfits[event.code.removeprefix(DOES_NOT_FIT)] = event.text
        elif isinstance(event, Warned) and event.code != FROM_THE_FILE:  # such a one may name the patient: not kept
            notes.append(event.text)
        if isinstance(event, StageResult):
            stages += [event] if options.stages_dir is not None else []
            labels = event.output if isinstance(event.output, LabelMap) else labels
            seconds[event.stage] = event.seconds
            notes += [f"{event.stage}: {event.note}"] if event.note else []
        yield event
    if labels is None:
        raise FmsegError(f"{model.card.name} ended without labels. Try another `until`.")
    return SegmentedVolume(read.volume, labels, tuple(stages), seconds, tuple(notes), misfits, read.hashes)


def write_job(job: SegmentationJob, segmented: SegmentedVolume, model: Model, options: JobOptions) -> Done:
    """Write the labels of a job, what was asked for beside them, and at last the manifest; see `segment_file`."""
    volume, labels = segmented.volume, segmented.labels
    seconds = dict(segmented.seconds)
    watch = _Watch(seconds)
    _remove_manifest(job.result)
    write_labels(labels, job.result, source=volume)
    watch.lap("writing")
    if options.stages_dir is not None:
        _write_stages(segmented.stages, options.stages_dir, _stem(job.result))
        watch.lap("writing stages")
    if job.preview is not None:
        write_preview(volume, labels, job.preview)
        watch.lap("preview")
    manifest = Manifest(
        model=model.card,
        device=device_name(model.device),
        precision=precision_of(model, options.run.precision),
        options=dataclasses.asdict(options.run),
        seconds={k: round(v, 4) for k, v in seconds.items()},
        shape=volume.geometry.shape,
        spacing_mm=volume.geometry.spacing,
        notes=segmented.notes,
        misfits=segmented.misfits,
        hashes=segmented.hashes and {**segmented.hashes, **run_hashes(model.card, options)},
    )
    path = write_manifest(manifest, job.result)
    return Done(job, labels, path, seconds, segmented.notes, dict(segmented.misfits))


def run_hashes(card: ModelCard, options: JobOptions) -> dict[str, str]:
    """Hash what all results of a run follow from."""
    return {
        "model": hash_model(card),
        "options": hash_options(options.run, series=options.series, suv=options.suv),
    }


def is_done(job: SegmentationJob, hashes: Mapping[str, str]) -> bool:
    """Return whether a job was done by an earlier run with the same `run_hashes`."""
    there = job.preview is None or job.preview.is_file()
    return there and is_finished(job.images, job.result, hashes["model"], hashes["options"])


def _remove_manifest(result: Path) -> None:
    """Remove the manifest of an earlier result, which must not seem to be that of the new one."""
    path = manifest_path(result)
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        raise as_unwritable(path, error) from error


class _Watch:
    """Writes the seconds since the last lap into a table."""

    def __init__(self, seconds: dict[str, float]) -> None:
        self._seconds, self._start = seconds, time.perf_counter()

    def lap(self, name: str) -> None:
        now = time.perf_counter()
        self._seconds[name], self._start = now - self._start, now


def _group_channels(found: list[Path], channels: int, *, together: bool) -> list[tuple[Path, ...]]:
    """Put the files that are channels of one volume together."""
    if channels == 1:
        return [(path,) for path in found]
    numbers = [f"_{number:04d}" for number in range(channels)]
    groups: dict[Path, list[Path]] = {}
    for path in found:
        groups.setdefault(path.parent / re.sub(r"_\d{4}$", "", _stem(path)), []).append(path)
    whole = [sorted(group) for group in groups.values() if sorted(_stem(p)[-5:] for p in group) == numbers]
    if whole:
        taken = {path for group in whole for path in group}
        return [tuple(group) for group in whole] + [(path,) for path in found if path not in taken]
    if together and len(found) == channels and _is_one_channel(found[0]):
        return [tuple(found)]
    return [(path,) for path in found]


def _is_one_channel(path: Path) -> bool:
    try:
        return read_volume(path, suv="never").n_channels == 1
    except FmsegError:  # reported when its turn comes
        return False


def _volumes(image: Path, series: str | None, stages_dir: Path | None, *, alone: bool) -> list[Path]:
    if not image.exists() and (not alone or image.is_symlink()):
        return [image]  # it fails when its turn comes, and is listed; the others are not held up
    if not image.exists():
        raise UnreadableVolume(f"There is no {image}. Is the path right, and the drive there?")
    if not image.is_dir() or series is not None:
        return [image]
    # What a broken copy leaves must fail and be listed, not be passed over.
    listed = sorted({*find_volumes(image, damaged=True), *broken_files(files_below(image))})
    of_stages = None if stages_dir is None else stages_dir.resolve()
    found = [path for path in listed if not is_result(path) and of_stages not in path.resolve().parents]
    if not found:
        raise UnreadableVolume(f"There is no volume in {image}. Expected NIfTI, NRRD, MHA or DICOM files.")
    return found


def _some(paths: list[Path]) -> str:
    return ", ".join(path.name for path in paths[:3]) + (", …" if len(paths) > 3 else "")


def _stem(path: Path) -> str:
    name = path.resolve().name if path.name in ("", ".", "..") else path.name
    return name[: len(name) - len(suffix_of(path))] or name


def _free(place: Path, suffix: str, names: set[Path], taken: Callable[[Path], bool] | None) -> Path:
    """Return ``place_seg.nii.gz``, or ``place-2_seg.nii.gz`` where another volume of this run has that name already."""
    path, n = place.with_name(f"{place.name}_seg{suffix}"), 2
    while path in names or (taken is not None and taken(path)):
        path, n = place.with_name(f"{place.name}-{n}_seg{suffix}"), n + 1
    return path


def _stage_path(folder: Path, stem: str, number: int, stage: str) -> Path:
    return folder / f"{stem}_{number}-{stage.replace(' ', '-')}.nii.gz"


def _write_stages(stages: Sequence[StageResult], folder: Path, stem: str) -> None:
    for n, stage in enumerate(stages[:-1], 1):
        path = _stage_path(folder, stem, n, stage.stage)
        if isinstance(stage.output, LabelMap):
            write_labels(stage.output, path)
        else:
            write_volume(stage.output, path)
