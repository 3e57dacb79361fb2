"""The command line: ``fmseg segment``, ``fmseg models`` and so on, each a few lines over the library.

It ends with 0 when all went well, 1 for what the user can mend in the input, 2 for a wrong command, 3 for the
machine (device, memory, disk), 70 for a defect of the program, 130 when stopped by Ctrl-C.
"""

from __future__ import annotations

import dataclasses
import errno
import os
import sys
import tempfile
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro
from tyro.conf import FlagCreatePairsOff, OmitArgPrefixes, Positional, arg

from napari_fmseg.errors import FmsegError
from napari_fmseg.evaluation_commands import evaluate, why
from napari_fmseg.io.leftovers import sweep
from napari_fmseg.lesion_commands import lesions, tell_found
from napari_fmseg.model_commands import MODEL_COMMANDS, convert, models
from napari_fmseg.pipelines import SegmentOptions
from napari_fmseg.processes import ending_tidily
from napari_fmseg.processor import wait_asleep
from napari_fmseg.project_commands import PROJECT_COMMANDS
from napari_fmseg.terminal import (
    USE,
    Bars,
    Json,
    follow,
    note,
    note_warnings,
    number,
    say,
    show_terms,
    table,
    write_json,
)
from napari_fmseg.training_commands import crossval, pretrain, train

__all__ = ["main"]

_DEFECT = 70  # EX_SOFTWARE: not to be mistaken for a fault of the input
_STOPPED = 130  # 128 + SIGINT, as shells have it


class _Usage(FmsegError):
    """A command that contradicts itself."""

    exit_code = 2


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command.

    Parameters
    ----------
    argv
        Its words without the program's name; None takes those of this process.

    Returns
    -------
    int
        The exit code.
    """
    if argv is None:  # this process is the command's own; the environment of a program that calls us is not ours
        wait_asleep()
    words = [_at_home(word) for word in (sys.argv[1:] if argv is None else argv)]
    sweep(Path(tempfile.gettempdir()))
    try:
        with ending_tidily():
            return _run(words)
    except SystemExit as stop:
        return stop.code if isinstance(stop.code, int) else 2
    except KeyboardInterrupt:
        note(
            "Stopped. What was saved stays; the same command goes on from there."
            if words[0] in ("train", "pretrain", "crossval", "evaluate")
            else "Stopped."
        )
        return _STOPPED
    except BrokenPipeError:  # the reader of our output, such as `head`, has gone
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except Exception as error:
        if os.environ.get("FMSEG_DEBUG"):
            raise
        code, text = _explain(error)
        note(f"fmseg: {text}")
        if "--json" in words:
            write_json({"error": {"kind": type(error).__name__, "text": text}})
        return code


def _run(words: list[str]) -> int:
    if words[:1] == ["--version"]:
        return _version()
    commands, prog, rest = _group(words)
    return int(
        tyro.extras.subcommand_cli_from_dict(
            commands, prog=prog, args=rest or ["--help"], config=(FlagCreatePairsOff,),
            description=f"Segment 3-D medical images, and learn to. {USE}",
        )
    )  # fmt: skip


def _group(words: list[str]) -> tuple[dict[str, Callable[..., int]], str, list[str]]:
    """Choose the commands that the words are of: ``fmseg project add`` is one of a group."""
    first, second = words[:1], words[1:2]
    if first == ["project"]:
        return PROJECT_COMMANDS, "fmseg project", words[1:]
    if first == ["models"] and second and second[0] in MODEL_COMMANDS:
        return MODEL_COMMANDS, "fmseg models", words[1:]
    return COMMANDS, "fmseg", words


def _at_home(word: str) -> str:
    """Replace a leading ~ by the home folder, also in ``--output=~/x``, which no shell does; ``./~`` stays a name."""
    option, equals, value = word.partition("=") if word.startswith("--") else ("", "", word)
    return option + equals + (os.path.expanduser(value) if value.startswith("~") else value)


def _explain(error: Exception) -> tuple[int, str]:
    """Exit code and text for an exception."""
    if isinstance(error, FmsegError):
        return error.exit_code, str(error)
    if _is_out_of_memory(error):
        return 3, ("There is not enough memory. Close other programs, use --device cpu instead of a small graphics "
                   f"card, or a smaller volume. ({_first_line(error)})")  # fmt: skip
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return 3, f"The disk is full{f': {error.filename}' if error.filename else ''}. Make room, or choose another."
    if isinstance(error, OSError) and error.filename:
        return 1, f"{error.filename}: {error.strerror}. Check the path and its permissions."
    where = traceback.extract_tb(error.__traceback__)[-1]
    return _DEFECT, (
        f"A defect of the program, not of your input: {type(error).__name__}: {_first_line(error)} "
        f"({Path(where.filename).name}:{where.lineno}). Run it again with FMSEG_DEBUG=1 and report what it prints."
    )


def _is_out_of_memory(error: Exception) -> bool:
    torch = sys.modules.get("torch")
    if isinstance(error, MemoryError) or (torch is not None and isinstance(error, torch.OutOfMemoryError)):
        return True
    return isinstance(error, RuntimeError) and "can't allocate memory" in str(error)  # torch's processor allocator


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def _version() -> int:
    from napari_fmseg.manifest import versions

    say(" ".join(f"{name} {version}" for name, version in versions().items()))
    return 0


# --- segment ----------------------------------------------------------------------------------------------------


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
    accept_licence: bool = False,
    as_json: Json = False,
) -> int:
    """Segment volumes. Research use only. Not a medical device.

    Beside each result lies a manifest, RESULT.json: model, hash, device, options and seconds; nothing of the patient.

    Parameters
    ----------
    images
        Files, DICOM folders, or folders of volumes. For a model of several channels name one image for each, in the
        order of the model: ct.nii pet.nii. They are put on the grid of the first.
    model
        A model's name (`fmseg models` lists them) or the path of a model card.
    output
        A file for one volume (liver.nii.gz, .nrrd, .mha), or a folder for any number.
    series
        Which series of a DICOM folder that holds several.
    suv
        Read a DICOM PET in standardised uptake values: where its tags allow (auto), never, or not at all if they do
        not (required).
    stages_dir
        Write every stage here too, each on its own grid.
    preview
        Write a picture of the result here (PNG; a folder for several volumes).
    accept_licence
        Accept the terms of a model whose data restrict its use, without being asked.
    """
    from napari_fmseg.batch import Done, plan_jobs, segment_file
    from napari_fmseg.io import native
    from napari_fmseg.models import find_card, load_model

    if not images:
        raise _Usage("There is nothing to segment: name at least one file or folder.")
    card = find_card(model)
    jobs = plan_jobs(images, output, series=series, channels=len(card.channels))
    native.isolate(len(jobs) > 1)  # a file that makes a parser crash must not end the run for the others
    show_terms(card, accept_licence)
    loaded = load_model(card, device=run.device)
    rows: list[dict[str, Any]] = []
    worst = 0
    with Bars(quiet=as_json) as bars:
        for job in jobs:
            picture = None if preview is None else _picture(preview, job.result, len(jobs))
            try:
                for event in segment_file(
                    job, loaded, run, series=series, suv=suv, stages_dir=stages_dir, preview=picture
                ):
                    follow(event, bars, f"{job.image.name}: " if len(jobs) > 1 else "")
                    if isinstance(event, Done):
                        rows.append(_done(event))
                        if not as_json:
                            say(_told(event))
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


def _picture(preview: Path, result: Path, n_jobs: int) -> Path:
    """Where the picture of `result` goes."""
    from napari_fmseg.io import suffix_of

    if preview.suffix.lower() != ".png":
        return preview / f"{result.name.removesuffix(suffix_of(result))}.png"
    if n_jobs > 1:
        raise _Usage(f"{preview.name} is one file, but there are {n_jobs} volumes. Give a folder for the previews.")
    return preview


def _done(done: Any) -> dict[str, Any]:
    names = done.labels.names
    volumes = {names.get(value, str(value)): ml for value, ml in done.labels.volumes_ml().items()}
    return {"image": done.job.image, "output": done.job.result, "manifest": done.manifest,
            "seconds": done.seconds, "volumes_ml": volumes, "notes": done.notes}  # fmt: skip


def _told(done: Any) -> str:
    names = done.labels.names
    volumes = [f"{names.get(value, value)} {ml:.1f} ml" for value, ml in done.labels.volumes_ml().items()]
    return f"{done.job.result}  {sum(done.seconds.values()):.1f} s  {', '.join(volumes) or 'nothing was found'}"


# --- models, score ----------------------------------------------------------------------------------------------


def score(
    prediction: Positional[Annotated[Path, arg(metavar="PREDICTION")]],
    truth: Positional[Annotated[Path, arg(metavar="TRUTH")]],
    /,
    *,
    tolerance_mm: float = 2.0,
    by_number: bool = False,
    csv: Path | None = None,
    lesions: bool = False,
    min_ml: float = 0.0,
    as_json: Json = False,
) -> int:
    """Compare a segmentation with the truth: Dice, distances in mm, volumes in ml, for every label.

    Parameters
    ----------
    prediction
        A file with labels; with --csv also a folder of them.
    truth
        A file with labels on the same grid; with --csv also a folder.
    tolerance_mm
        How far apart surfaces may lie and still agree, for NSD.
    by_number
        Compare labels by their number even where the files name them differently.
    csv
        Write one row per case to this file: Dice and NSD of every label, and the seconds that the manifests tell.
    lesions
        Compare lesion by lesion, too: how many are found, and the volume of those that are false or missed.
    min_ml
        Lesions below so many millilitres count neither as true nor as false.
    """
    from napari_fmseg import metrics
    from napari_fmseg.lesion_metrics import score_lesions

    if csv is not None:
        from napari_fmseg.case_table import pairs_in, score_pair, without_partner, write_cases

        pairs = pairs_in(prediction, truth)
        cases = []
        for name, mine, its in pairs:
            found, true = _read_pair(mine, its, by_number=by_number)
            cases.append(score_pair(name, found, true, mine, tolerance_mm=tolerance_mm))
        write_cases(cases, csv, tolerance_mm)
        if prediction.is_dir():
            left_out = without_partner(prediction, truth)
            if left_out:
                note(f"{len(left_out)} files have no partner in the other folder and were not compared:\n"
                     + "\n".join(f"  {path}" for path in left_out))  # fmt: skip
            _tell_cases(cases, csv, tolerance_mm, left_out, as_json=as_json)
            return 0
    else:
        found, true = _read_pair(prediction, truth, by_number=by_number)
    scores = metrics.score(found, true, tolerance_mm=tolerance_mm)
    by_lesion = score_lesions(found, true, min_ml=min_ml) if lesions else {}
    if as_json:
        more = {"lesions": by_lesion} if lesions else {}
        write_json({"tolerance_mm": tolerance_mm, "labels": scores, "mean_dice": _mean_dice(scores), **more})
        return 0
    if not scores:
        say("Both files are empty.")
        return 0
    columns = ("dice", "hd95_mm", "assd_mm", "nsd", "volume_ml", "truth_ml", "false_positive_ml", "false_negative_ml")
    say(table(
        ("LABEL", "DICE", "HD95 mm", "ASSD mm", f"NSD {tolerance_mm:g} mm", "ml", "TRUE ml", "EXTRA ml", "MISSED ml"),
        [(name, *(number(row[column], 3 if column in ("dice", "nsd") else 2) for column in columns))
         for name, row in scores.items()],
    ))  # fmt: skip
    say(f"mean Dice {number(_mean_dice(scores))}")
    if lesions:
        say("")
        tell_found(by_lesion)
    return 0


def _read_pair(prediction: Path, truth: Path, *, by_number: bool) -> tuple[Any, Any]:
    """Read two files with labels; what was repaired goes to stderr."""
    from napari_fmseg.io import read_labels

    pair = []
    for path in (prediction, truth):
        pair.append(read_labels(path))
        note_warnings(pair[-1], path)
    return (dataclasses.replace(pair[0], names={}) if by_number else pair[0]), pair[1]


def _tell_cases(
    cases: Sequence[Any], csv: Path, tolerance_mm: float, left_out: Sequence[Path], *, as_json: bool
) -> None:
    """Tell the means of each case, and where the table lies."""
    rows = [case.row(tolerance_mm) for case in cases]
    if as_json:
        write_json({"csv": str(csv), "cases": rows, "left_out": left_out})
        return
    columns = [name for name in rows[0] if name.startswith("mean_") or name in ("total_s", "peak_mb", "gpu_mb")]
    say(table(
        ("CASE", *columns),
        [(str(row["case"]), *(number(float(row.get(name, "nan"))) for name in columns)) for row in rows],
    ))  # fmt: skip
    say(f"{len(rows)} cases: {csv}")


def _mean_dice(scores: dict[str, dict[str, float]]) -> float:
    """Mean over the labels that are in either file."""
    told = [row["dice"] for row in scores.values() if row["dice"] == row["dice"]]
    return sum(told) / len(told) if told else float("nan")


# --- bench, phantom, doctor, convert ----------------------------------------------------------------------------


def bench(
    *,
    image: Path | None = None,
    model: str = "fmsf-phantom-ct",
    run: OmitArgPrefixes[SegmentOptions] = SegmentOptions(),  # noqa: B008 - frozen
    repeats: int = 5,
    compare: bool = True,
    as_json: Json = False,
) -> int:
    """Measure time and peak memory of reading, every stage and writing, and the engine against the plain network.

    `fmseg evaluate` tells them for each case of a folder, beside Dice.

    Parameters
    ----------
    image
        The volume to segment; without one a CT phantom.
    model
        A model's name or the path of a model card.
    repeats
        Runs after one that warms up; medians are told.
    compare
        Whether the published SNet at 128 x 128 x 128 is run, too, by the engine and plain, in turns.
    """
    from napari_fmseg import benchmark
    from napari_fmseg.models import find_card, load_model

    card = find_card(model)
    show_terms(card, accepted=False)
    loaded = load_model(card, device=run.device)
    results: dict[str, Any] = {}
    with Bars(quiet=as_json) as bars:
        for event in benchmark.bench(image or _phantom_volume(), loaded, run, repeats=repeats):
            follow(event, bars)
            if isinstance(event, benchmark.Benchmark):
                results["benchmark"] = event
        if compare:
            snet = benchmark.published_snet()
            pairs = benchmark.pair(*snet, device=str(loaded.device), precision=run.precision, repeats=repeats)
            for turn in pairs:
                follow(turn, bars)
                if isinstance(turn, benchmark.Pairing):
                    results["pairing"] = turn
    if as_json:
        write_json({name: dataclasses.asdict(result) for name, result in results.items()})
        return 0
    _tell_benchmark(results["benchmark"])
    if "pairing" in results:
        _tell_pairing(results["pairing"])
    return 0


def _phantom_volume() -> Any:
    from napari_fmseg.phantom import phantom_ct

    return phantom_ct(1)[0]


def _tell_benchmark(found: Any) -> None:
    machine = found.environment
    say(f"{found.model} on {machine['device']}, {machine['processor']}, {machine['threads']} threads, "
        f"{found.precision}; {' x '.join(map(str, found.shape))} voxels, median of {found.repeats}")  # fmt: skip
    rows = [
        (name, number(part.seconds), number(part.fastest), f"{part.peak_mb:.0f}", f"{part.gpu_mb:.0f}")
        for name, part in found.parts.items()
    ]
    say(table(("PART", "SECONDS", "FASTEST", "PEAK MB", "GPU MB"), rows))
    say(f"file to file: {found.total_seconds:.3f} s")
    inflate = found.inflate_seconds
    if inflate:
        say(f"inflating the file: {inflate['ours']:.3f} s, by the standard library {inflate['standard library']:.3f} s")


def _tell_pairing(found: Any) -> None:
    say(f"{found.network} at {' x '.join(map(str, found.shape))}, {found.repeats} pairs: "
        f"engine {found.engine_seconds:.3f} s, plain float32 {found.plain_seconds:.3f} s, "
        f"{found.times_faster:.1f} times faster ({found.times_less_work:.1f} times less processor time), "
        f"{100 * found.equal:.3f} % of the labels equal")  # fmt: skip


def phantom(
    out: Positional[Annotated[Path, arg(metavar="OUT")]],
    /,
    *,
    seed: int = 1,
    spacing: tuple[float, float, float] = (3.0, 3.0, 3.0),
) -> int:
    """Write an abdominal CT that no patient ever had, and what is what in it.

    Parameters
    ----------
    out
        The image (ct.nii.gz; the labels become ct_labels.nii.gz), or a folder.
    seed
        Draws the patient; the same seed gives the same voxels.
    spacing
        Distance of the voxels along z, y, x in mm.
    """
    from napari_fmseg.io import suffix_of, write_labels, write_volume
    from napari_fmseg.phantom import phantom_ct

    image, labels = phantom_ct(seed, spacing=spacing)
    suffix = suffix_of(out)
    path = out if suffix else out / "phantom.nii.gz"
    suffix = suffix or ".nii.gz"
    beside = path.with_name(f"{path.name[: -len(suffix)]}_labels{suffix}")
    for written in (write_volume(image, path), write_labels(labels, beside, source=image)):
        say(str(written))
    return 0


def doctor(*, as_json: Json = False) -> int:
    """Say what this machine has and lacks, and the exact fix for each."""
    from napari_fmseg.doctor import examine

    findings = examine()
    worst = 3 if any(f.state == "bad" for f in findings) else 0
    if as_json:
        write_json([dataclasses.asdict(f) for f in findings])
        return worst
    signs = {"ok": "ok", "warn": "!", "bad": "BAD"}
    say(table(("", "WHAT", "FOUND"), [(signs[f.state], f.name, f.text) for f in findings]))
    mends = [f for f in findings if f.fix]
    if mends:
        say("\nWhat to do:")
    for finding in mends:
        say(f"  {finding.name}: {finding.fix}")
    return worst


def export(
    labels: Positional[Annotated[Path, arg(metavar="LABELS")]],
    /,
    *,
    output: Path,
    format: str = "",
    source: Path | None = None,
    series: str | None = None,
    smooth: bool = True,
    as_json: Json = False,
) -> int:
    """Turn a file with labels into masks per class, meshes for print and 3-D, or a DICOM SEG for an archive.

    Parameters
    ----------
    labels
        A file with labels.
    output
        NAME.dcm for a DICOM SEG; NAME.stl, .ply or .obj for one mesh of all classes; NAME.nii.gz, .nrrd or .mha for
        one map; a folder for one file per class.
    format
        Of the files in a folder: stl, ply, obj, nii.gz, nrrd or mha.
    source
        The DICOM series that the labels lie on, for a DICOM SEG.
    series
        Which series of that folder, if it holds several.
    smooth
        Take the steps between slices off a mesh.
    """
    from napari_fmseg.events import Saved
    from napari_fmseg.io import exporting, read_labels

    if exporting.kind_of(output, format) == "dicom-seg" and source is None:
        raise _Usage("A DICOM SEG refers to the series that the labels lie on: name its folder with --source.")
    wanted = exporting.Export(
        exporting.kind_of(output, format), output, format, smooth=smooth, source=source, series=series
    )
    written = []
    with Bars(quiet=as_json) as bars:
        lying = read_labels(labels)
        note_warnings(lying, labels)
        for event in exporting.export(lying, wanted):
            follow(event, bars)
            if isinstance(event, Saved):
                written.append(event.path)
    if as_json:
        write_json({"use": USE, "written": written})
        return 0
    for path in written:
        say(str(path))
    note(USE)
    return 0


def project() -> int:
    """Volumes and labels to learn from, in a folder: init, add, list, split, rank, prepare, keep, predict."""
    return main(["project", "--help"])


COMMANDS: dict[str, Callable[..., int]] = {
    "segment": segment,
    "models": models,
    "score": score,
    "evaluate": evaluate,
    "why": why,
    "lesions": lesions,
    "project": project,
    "train": train,
    "crossval": crossval,
    "pretrain": pretrain,
    "bench": bench,
    "phantom": phantom,
    "doctor": doctor,
    "convert": convert,
    "export": export,
}
