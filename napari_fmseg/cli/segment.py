"""`fmseg segment`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from tyro.conf import OmitArgPrefixes, Positional, arg

from napari_fmseg.cli.console import (
    USE,
    AcceptLicence,
    Bars,
    Events,
    Json,
    note,
    say,
    show_event,
    show_terms,
    write_event,
    write_json,
)
from napari_fmseg.cli.exit_codes import _explain, _is_out_of_memory, _Usage
from napari_fmseg.core.errors import FmsegError
from napari_fmseg.core.events import DOES_NOT_FIT, Warned
from napari_fmseg.pipelines import SegmentOptions

if TYPE_CHECKING:
    from napari_fmseg.models.card import ModelCard
    from napari_fmseg.pipelines.batch import JobVolume, SegmentationJob


def segment(
    images: Positional[Annotated[tuple[Path, ...], arg(metavar="IMAGE...")]],
    /,
    *,
    model: str,
    output: Path,
    run: OmitArgPrefixes[SegmentOptions] = SegmentOptions(),  # noqa: B008 - frozen
    series: str | None = None,
    suv: Literal["auto", "never", "required"] = "auto",
    stages_dir: Path | None = None,
    preview: Path | None = None,
    accept_licence: AcceptLicence = False,
    as_json: Json = False,
    events: Events = False,
) -> int:
    """Segment volumes. Research use only. Not a medical device.

    A volume that does not fit the model is warned of first; `--strict` refuses it. Beside each result a manifest is
    written, RESULT.json: model, hash, device, options and seconds; no patient data.

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
    """
    from napari_fmseg.io.itk import native_reader
    from napari_fmseg.models.registry import find_card
    from napari_fmseg.models.weights import load_model
    from napari_fmseg.pipelines.batch import Done, plan_jobs, segment_file

    if not images:
        raise _Usage("There is nothing to segment: give at least one file or folder.")
    card = find_card(model)
    jobs = plan_jobs(images, output, series=series, channels=len(card.channels))
    native_reader.isolate(len(jobs) > 1)  # a file that makes a parser crash must not end the run for the others
    first = None if run.strict else _first_volume(jobs, card, series, suv)
    show_terms(card, accept_licence)
    loaded = load_model(card, device=run.device)
    rows: list[dict[str, Any]] = []
    worst = 0
    with Bars(quiet=as_json or events) as bars:
        for job in jobs:
            picture = None if preview is None else _picture(preview, job.result, len(jobs))
            try:
                read, first = first, None
                for event in segment_file(
                    job, loaded, run, read=read, series=series, suv=suv, stages_dir=stages_dir, preview=picture
                ):
                    if events:
                        write_event({"event": "Done", **_result_table(event)} if isinstance(event, Done) else event)
                    elif read is None or not _is_misfit(event):
                        show_event(event, bars, _whose(job, jobs))
                    if isinstance(event, Done):
                        rows.append(_result_table(event))
                        if not (as_json or events):
                            say(_result_line(event))
            except (FmsegError, MemoryError, OSError, RuntimeError) as error:
                if isinstance(error, RuntimeError) and not _is_out_of_memory(error):
                    raise
                code, text = _explain(error)
                worst = max(worst, code)
                rows.append({"image": job.image, "error": {"kind": type(error).__name__, "text": text}})
                bars.note(f"fmseg: {job.image}: {text}" if str(job.image) not in text else f"fmseg: {text}")
            bars.clear()
    failed = [row["image"] for row in rows if "error" in row]
    if as_json:
        write_json({"use": USE, "model": card.name, "results": rows, "failed": len(failed)})
    if failed and len(jobs) > 1:
        note(f"{len(failed)} of {len(jobs)} volumes failed:\n" + "\n".join(f"  {path}" for path in failed))
    if len(failed) < len(jobs):
        note(USE)
    return worst


def _first_volume(jobs: Sequence[SegmentationJob], card: ModelCard, series: str | None, suv: str) -> JobVolume | None:
    """Read the first volume and warn of what does not fit, before anything else is written; None if it is unreadable.

    That is reported when its turn comes.
    """
    from napari_fmseg.models.fit import find_misfits
    from napari_fmseg.models.measures import measure_volume
    from napari_fmseg.pipelines.batch import read_job

    try:
        first = read_job(jobs[0], card, series=series, suv=suv)
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


def _picture(preview: Path, result: Path, n_jobs: int) -> Path:
    """Return the path of the picture of `result`."""
    from napari_fmseg.io import suffix_of

    if preview.suffix.lower() != ".png":
        return preview / f"{result.name.removesuffix(suffix_of(result))}.png"
    if n_jobs > 1:
        raise _Usage(f"{preview.name} is one file, but there are {n_jobs} volumes. Give a folder for the previews.")
    return preview


def _result_table(done: Any) -> dict[str, Any]:
    names = done.labels.names
    volumes = {names.get(value, str(value)): ml for value, ml in done.labels.volumes_ml().items()}
    return {"image": done.job.image, "output": done.job.result, "manifest": done.manifest,
            "seconds": done.seconds, "volumes_ml": volumes, "notes": done.notes, "misfits": done.misfits}  # fmt: skip


def _result_line(done: Any) -> str:
    names = done.labels.names
    volumes = [f"{names.get(value, value)} {ml:.1f} ml" for value, ml in done.labels.volumes_ml().items()]
    return f"{done.job.result}  {sum(done.seconds.values()):.1f} s  {', '.join(volumes) or 'nothing was found'}"
