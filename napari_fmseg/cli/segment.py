"""`fmseg segment`."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Generator, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from tyro.conf import OmitArgPrefixes, Positional, arg

from napari_fmseg.cli.console import (
    USE,
    AcceptLicence,
    Events,
    Json,
    Output,
    Scheduler,
    note,
    say,
    show_terms,
    write_json,
)
from napari_fmseg.cli.exit_codes import _Usage
from napari_fmseg.cli.folders.selection import FailedTable, Part, choose_jobs
from napari_fmseg.cli.progress import Bars, show_event, show_progress, write_event
from napari_fmseg.core.errors import FmsegError
from napari_fmseg.core.events import DOES_NOT_FIT, Warned, in_background
from napari_fmseg.core.hardware import use_free_cores
from napari_fmseg.pipelines import SegmentOptions

if TYPE_CHECKING:
    from napari_fmseg.models.card import ModelCard
    from napari_fmseg.pipelines.folders.outcome import Failed, FolderEvent
    from napari_fmseg.pipelines.folders.steps import JobOptions, JobVolume, SegmentationJob


def segment(
    images: Positional[Annotated[tuple[Path, ...], arg(metavar="IMAGE...")]],
    /,
    *,
    model: str,
    output: Output,
    run: OmitArgPrefixes[SegmentOptions] = SegmentOptions(),  # noqa: B008 - frozen
    series: str | None = None,
    suv: Literal["auto", "never", "required"] = "auto",
    stages_dir: Path | None = None,
    preview: Path | None = None,
    resume: bool = False,
    retry: bool = False,
    part: Part = None,
    scheduler: Scheduler = None,
    accept_licence: AcceptLicence = False,
    as_json: Json = False,
    events: Events = False,
) -> int:
    """Segment volumes. Research use only. Not a medical device.

    A volume that does not fit the model is warned of first; `--strict` refuses it. Beside each result a manifest is
    written, RESULT.json: model, hashes, device, options and seconds; no patient data. Of several volumes those that
    failed are listed in failed.csv in the output folder, with cause and remedy.

    Parameters
    ----------
    images
        Files, DICOM folders, or folders of volumes. For a model of several channels give one image for each, in the
        order of the model: ct.nii pet.nii. They are resampled to the grid of the first.
    model
        A model's name (`fmseg models` lists them) or the path of a model card.
    output
        A file for one volume (liver.nii.gz, .nrrd, .mha), or a folder for any number.
    series
        Which series of a DICOM folder that holds several.
    suv
        Convert a DICOM PET to standardised uptake values: where its tags allow it (auto), never, or refuse the file
        where they do not (required).
    stages_dir
        Write the result of every stage to this folder too, each on its own grid.
    preview
        Write a picture of the result (PNG; a folder for several volumes).
    resume
        Leave alone what is done already: made of the same image, with the same model and options.
    retry
        Segment only the volumes that failed.csv lists.
    """
    from napari_fmseg.io.itk import native_reader
    from napari_fmseg.models.registry import find_card
    from napari_fmseg.pipelines.batch import JobOptions, plan_jobs

    if not images:
        raise _Usage("There is nothing to segment: give at least one file or folder.")
    card = find_card(model)
    options = JobOptions(run, series, suv, stages_dir)
    planned = plan_jobs(images, output, series=series, channels=len(card.channels), stages_dir=stages_dir)
    planned = [_with_picture(job, preview, len(planned)) for job in planned]
    table = FailedTable(planned, images, output, part)
    jobs, before = choose_jobs(planned, table, card, options, resume=resume, retry=retry, part=part)
    native_reader.isolate(len(planned) > 1)  # a file that makes a parser crash must not end the run for the others
    here = scheduler is None
    first = _first_volume(jobs, card, options) if jobs and here and not run.strict else None
    shown = _Shown(jobs, table, json=as_json, lines=events, told=first is not None)
    shown.rows += [{**_names(job), "done_before": True} for job in before]
    if jobs:
        show_terms(card, accept_licence)
        work = (
            _here(jobs, card, options, [first])
            if scheduler is None
            else _elsewhere(jobs, card, model, options, scheduler)
        )
        del first
        with Bars(quiet=as_json or events) as bars, contextlib.closing(work):
            if len(jobs) > 1:
                bars.move("volumes", 0, len(jobs))
            for event in work:
                shown.show(event, bars)
    failed = [row["image"] for row in shown.rows if "error" in row]
    if as_json:
        write_json({"use": USE, "model": card.name, "results": shown.rows, "failed": len(failed)})
    if failed and len(jobs) > 1:
        note(f"{len(failed)} of {len(jobs)} volumes failed:\n" + "\n".join(f"  {path}" for path in failed))
        if table.path is not None:
            note(f"{table.path} lists causes and remedies; --retry tries them again.")
    if len(failed) < len(jobs):
        note(USE)
    return shown.worst


def _here(
    jobs: Sequence[SegmentationJob], card: ModelCard, options: JobOptions, first: list[JobVolume | None]
) -> Generator[FolderEvent, None, None]:
    """Segment in this process; `first` is emptied, so that the volume is not kept."""
    from napari_fmseg.models.weights import load_model
    from napari_fmseg.pipelines.folders.overlap import segment_jobs

    def work() -> Iterator[FolderEvent]:
        model = load_model(card, device=options.run.device)
        use_free_cores()
        return segment_jobs(jobs, model, options, first=first.pop())

    return in_background(work, "fmseg segment")


def _elsewhere(
    jobs: Sequence[SegmentationJob], card: ModelCard, model: str, options: JobOptions, scheduler: str
) -> Generator[FolderEvent, None, None]:
    """Segment on the workers of a scheduler."""
    from napari_fmseg.workers.cluster import connect
    from napari_fmseg.workers.cluster_tasks import segment_on

    def work() -> Iterator[FolderEvent]:
        with connect(scheduler) as workers:
            note(workers.describe())
            yield from segment_on(workers, jobs, card, model, options)

    return in_background(work, "fmseg segment")


class _Shown:
    """What the events of a run are shown as: lines for a person, JSON for a program."""

    def __init__(
        self, jobs: Sequence[SegmentationJob], table: FailedTable, *, json: bool, lines: bool, told: bool
    ) -> None:
        self._jobs, self._table, self._json, self._lines = jobs, table, json, lines
        self._told = told  # what does not fit in the first volume was told before the run
        self._current: SegmentationJob | None = None
        self.rows: list[dict[str, Any]] = []
        self.worst = 0

    def show(self, event: FolderEvent, bars: Bars) -> None:
        """Show an event."""
        from napari_fmseg.pipelines.folders import outcome

        if isinstance(event, outcome.VolumeEvent):
            self._show_event(event.job, event.event, bars)
        elif isinstance(event, outcome.VolumeDone):
            self._table.remove(event.job)
            self.rows.append(dict(event.table))
            if self._lines:
                write_event({"event": "Done", **event.table})
            elif not self._json:
                say(_result_line(event.table))
        elif isinstance(event, outcome.Failed):
            self._table.add(event)
            self._show_failure(event, bars)
        elif isinstance(event, outcome.FolderProgress) and event.total > 1:
            if self._lines:
                write_event(event)
            elif not self._json:
                show_progress(event, bars)

    def _show_event(self, job: SegmentationJob, event: object, bars: Bars) -> None:
        if job != self._current:
            self._current = job
            bars.clear(keep="volumes")
        if self._lines:
            write_event(event)
        elif not (self._told and job == self._jobs[0] and _is_misfit(event)):
            show_event(event, bars, _whose(job, self._jobs))

    def _show_failure(self, failed: Failed, bars: Bars) -> None:
        image, text = failed.job.image, failed.cause
        self.worst = max(self.worst, failed.exit_code)
        self.rows.append({"image": image, "error": {"kind": failed.error, "text": text}})
        if self._lines:
            write_event({"event": "Failed", "image": image, "error": failed.error, "text": text, "fix": failed.fix})
        bars.note(f"fmseg: {image}: {text}" if str(image) not in text else f"fmseg: {text}")


def _first_volume(jobs: Sequence[SegmentationJob], card: ModelCard, options: JobOptions) -> JobVolume | None:
    """Read the first volume and warn of what does not fit, before anything else is written; None if it is unreadable.

    That is reported when its turn comes.
    """
    from napari_fmseg.models.fit import find_misfits
    from napari_fmseg.models.measures import measure_volume
    from napari_fmseg.pipelines.folders.steps import read_job

    try:
        first = read_job(jobs[0], card, options)
    except (FmsegError, MemoryError, OSError):
        return None
    for misfit in find_misfits(measure_volume(first.volume), first.volume.meta, card):
        note(f"{_whose(jobs[0], jobs)}Warning: {misfit.text}")
    return first


def _is_misfit(event: object) -> bool:
    return isinstance(event, Warned) and event.code.startswith(DOES_NOT_FIT)


def _whose(job: SegmentationJob, jobs: Sequence[SegmentationJob]) -> str:
    """Return what a remark on one of several volumes begins with."""
    return f"{job.image.name}: " if len(jobs) > 1 else ""


def _with_picture(job: SegmentationJob, preview: Path | None, n_jobs: int) -> SegmentationJob:
    """Add the path of the picture of a result, where one is wanted."""
    from napari_fmseg.io import suffix_of

    if preview is not None and preview.suffix.lower() != ".png":
        preview = preview / f"{job.result.name.removesuffix(suffix_of(job.result))}.png"
    elif preview is not None and n_jobs > 1:
        raise _Usage(f"{preview.name} is one file, but there are {n_jobs} volumes. Give a folder for the previews.")
    return dataclasses.replace(job, preview=preview)


def _names(job: SegmentationJob) -> dict[str, Any]:
    from napari_fmseg.models.provenance import manifest_path

    return {"image": job.image, "output": job.result, "manifest": manifest_path(job.result)}


def _result_line(table: Mapping[str, Any]) -> str:
    volumes = [f"{name} {ml:.{1 if ml < 100 else 0}f} ml" for name, ml in table["volumes_ml"].items()]
    return f"{table['output']}  {sum(table['seconds'].values()):.1f} s  {', '.join(volumes) or 'nothing was found'}"
