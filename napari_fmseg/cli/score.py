"""`fmseg score`."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

from tyro.conf import Positional, arg

from napari_fmseg.cli.console import Json, note, note_warnings, number, say, table, write_json
from napari_fmseg.cli.exit_codes import _Usage
from napari_fmseg.cli.lesions import show_lesion_scores
from napari_fmseg.core.errors import FmsegError


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
        Write one row per case to this file: Dice and NSD of every label, and the seconds recorded in the manifests.
    lesions
        Compare lesion by lesion, too: how many are found, and the volume of those that are false or missed.
    min_ml
        Lesions below so many millilitres count neither as true nor as false.
    """
    from napari_fmseg.evaluation import metrics
    from napari_fmseg.evaluation.case_table import score_pair, write_cases
    from napari_fmseg.evaluation.lesion_metrics import score_lesions
    from napari_fmseg.pipelines.folders.steps import stem_of

    if min_ml and not lesions:
        raise _Usage("--min-ml is for --lesions.")
    if lesions and prediction.is_dir():
        raise _Usage("--lesions compares two files, not folders.")
    if csv is not None and (prediction.is_dir() or truth.is_dir()):
        return _score_folders(prediction, truth, csv, tolerance_mm, by_number=by_number, as_json=as_json)
    found, true = _read_pair(prediction, truth, by_number=by_number)
    if csv is not None:
        write_cases([score_pair(stem_of(truth), found, true, prediction, tolerance_mm=tolerance_mm)], csv, tolerance_mm)
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
        show_lesion_scores(by_lesion)
    return 0


def _read_pair(prediction: Path, truth: Path, *, by_number: bool) -> tuple[Any, Any]:
    """Read two files with labels; write to stderr what was repaired."""
    from napari_fmseg.io import read_labels

    pair = []
    for path in (prediction, truth):
        pair.append(read_labels(path))
        note_warnings(pair[-1], path)
    return (dataclasses.replace(pair[0], names={}) if by_number else pair[0]), pair[1]


def _score_folders(
    prediction: Path, truth: Path, csv: Path, tolerance_mm: float, *, by_number: bool, as_json: bool
) -> int:
    """Write the table of two folders; a pair that cannot be compared is named and does not hold up the others."""
    from napari_fmseg.evaluation.case_table import pairs_in, score_pair, without_partner, write_cases

    cases, failed = [], {}
    for name, mine, its in pairs_in(prediction, truth):
        try:
            found, true = _read_pair(mine, its, by_number=by_number)
            cases.append(score_pair(name, found, true, mine, tolerance_mm=tolerance_mm))
        except FmsegError as error:
            failed[name] = str(error)
            note(f"{name}: {error}")
    left_out = without_partner(prediction, truth)
    if left_out:
        note(f"{len(left_out)} files have no counterpart in the other folder and were not compared:\n"
             + "\n".join(f"  {path}" for path in left_out))  # fmt: skip
    if cases:
        write_cases(cases, csv, tolerance_mm)
    rows = [case.row(tolerance_mm) for case in cases]
    if as_json:
        write_json({"csv": str(csv), "cases": rows, "failed": failed, "left_out": left_out})
    elif rows:
        _show_cases(rows, csv)
    return 1 if failed else 0


def _show_cases(rows: Sequence[Mapping[str, Any]], csv: Path) -> None:
    """Show the means of each case and the path of the table."""
    columns = [name for name in rows[0] if name.startswith("mean_") or name in ("total_s", "peak_mb", "gpu_mb")]
    say(table(
        ("CASE", *columns),
        [(str(row["case"]), *(number(float(row.get(name, "nan"))) for name in columns)) for row in rows],
    ))  # fmt: skip
    say(f"{len(rows)} cases: {csv}")


def _mean_dice(scores: dict[str, dict[str, float]]) -> float:
    """Return the mean over the labels that are in either file."""
    known = [row["dice"] for row in scores.values() if row["dice"] == row["dice"]]
    return sum(known) / len(known) if known else float("nan")
