"""The steps of one volume on its way from files to files: reading, segmenting, writing labels and their manifest."""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from napari_fmseg.core.atomic_write import as_unwritable
from napari_fmseg.core.errors import FmsegError
from napari_fmseg.core.events import DOES_NOT_FIT, FROM_THE_FILE, Event, StageResult, Warned
from napari_fmseg.core.hardware import device_name
from napari_fmseg.core.volume import LabelMap, Volume
from napari_fmseg.io import check_destination, read_volume, suffix_of, write_labels, write_volume
from napari_fmseg.io.channels import read_channels
from napari_fmseg.io.preview import write_preview
from napari_fmseg.models.card import ModelCard
from napari_fmseg.models.provenance import Manifest, manifest_path, precision_of, write_manifest
from napari_fmseg.models.weights import Model
from napari_fmseg.pipelines import SegmentOptions, segment, stages_of
from napari_fmseg.pipelines.folders.finished import hash_image, hash_model, hash_options, is_finished, stamp_image

__all__ = [
    "Done",
    "JobOptions",
    "JobVolume",
    "SegmentationJob",
    "SegmentedVolume",
    "check_stages",
    "is_done",
    "read_job",
    "run_hashes",
    "segment_volume",
    "stem_of",
    "write_job",
]


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


def check_stages(job: SegmentationJob, card: ModelCard, options: JobOptions) -> None:
    """Raise `UnwritableVolume` if the result of a stage is wanted and could not be written."""
    if options.stages_dir is not None:
        for n, stage in enumerate(stages_of(card), 1):
            check_destination(_stage_path(options.stages_dir, stem_of(job.result), n, stage))


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
    """Write what was asked for beside the labels of a job, then the labels and the manifest; see `segment_file`."""
    import torch

    volume, labels = segmented.volume, segmented.labels
    seconds = dict(segmented.seconds)
    watch = _Watch(seconds)
    if options.stages_dir is not None:
        _write_stages(segmented.stages, options.stages_dir, stem_of(job.result))
        watch.lap("writing stages")
    if job.preview is not None:
        write_preview(volume, labels, job.preview)
        watch.lap("preview")
    _remove_manifest(job.result)
    write_labels(labels, job.result, source=volume)
    watch.lap("writing")
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
        threads=torch.get_num_threads(),
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


def stem_of(path: Path) -> str:
    """Return the name of a file without the suffix of its format; of a folder the whole."""
    name = path.resolve().name if path.name in ("", ".", "..") else path.name
    return name[: len(name) - len(suffix_of(path))] or name


def _stage_path(folder: Path, stem: str, number: int, stage: str) -> Path:
    return folder / f"{stem}_{number}-{stage.replace(' ', '-')}.nii.gz"


def _write_stages(stages: Sequence[StageResult], folder: Path, stem: str) -> None:
    for n, stage in enumerate(stages[:-1], 1):
        path = _stage_path(folder, stem, n, stage.stage)
        if isinstance(stage.output, LabelMap):
            write_labels(stage.output, path)
        else:
            write_volume(stage.output, path)
