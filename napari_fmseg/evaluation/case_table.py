"""One row per case: how right, and how fast and with how much memory every part was, for a spreadsheet.

What the evaluation of FLARE 21 reports of each case (Ma et al., Fast and low-GPU-memory abdomen CT organ segmentation,
Med. Image Anal. 82, 2022), in columns that name their units.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from napari_fmseg.core.atomic_write import atomic_write_csv
from napari_fmseg.core.errors import FmsegError
from napari_fmseg.core.volume import LabelMap
from napari_fmseg.evaluation.metrics import score
from napari_fmseg.io import find_volumes, suffix_of
from napari_fmseg.io.discovery import broken_files
from napari_fmseg.io.paths import files_below
from napari_fmseg.models.provenance import manifest_path, read_seconds

__all__ = ["CaseScores", "pairs_in", "score_pair", "without_partner", "write_cases"]


@dataclass(frozen=True)
class CaseScores:
    """How one case went.

    Attributes
    ----------
    case
        Its name.
    scores
        Metrics by class and name; a class that it was never labelled with is left out.
    seconds
        For segmenting, without reading and comparing.
    peak_mb, gpu_mb
        Most memory of the process and of the GPU meanwhile.
    problem
        Why it could not be evaluated, or "".
    stamp
        Size and time of its files, so that a changed case is evaluated again.
    source
        Hash of the place of its image, so that cases of two data sets are not taken for one another; "" if unknown.
    slice_mm
        Distance of its slices.
    parts
        Of reading, every stage and writing: ``seconds``, and where they were measured ``peak_mb`` and ``gpu_mb``.
    """

    case: str
    scores: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    seconds: float = math.nan
    peak_mb: float = math.nan
    gpu_mb: float = math.nan
    problem: str = ""
    stamp: tuple[int, ...] = ()
    source: str = ""
    slice_mm: float = math.nan
    parts: Mapping[str, Mapping[str, float]] = field(default_factory=dict)

    def row(self, tolerance_mm: float) -> dict[str, str | float]:
        """Return the row of the table: names of columns with their units, and values."""
        found: dict[str, str | float] = {"case": self.case, "slice_mm": self.slice_mm}
        nsd = f"nsd_{tolerance_mm:g}mm"
        for name, values in self.scores.items():
            found |= {f"{name}_dice": values["dice"], f"{name}_{nsd}": values["nsd"]}
        found |= {"mean_dice": self.mean("dice"), f"mean_{nsd}": self.mean("nsd")}
        found |= {f"{name}_s": part["seconds"] for name, part in self.parts.items()}
        if self.parts:
            found["total_s"] = sum(part["seconds"] for part in self.parts.values())
        for what in ("peak_mb", "gpu_mb"):
            told = {name: part[what] for name, part in self.parts.items() if part.get(what)}
            found |= {f"{name}_{what}": value for name, value in told.items()}
            if told:
                found[what] = max(told.values())
        return found

    def mean(self, metric: str) -> float:
        """Return the mean over its classes of what is a finite number; nan if nothing is."""
        told = [values[metric] for values in self.scores.values() if math.isfinite(values[metric])]
        return sum(told) / len(told) if told else math.nan


def pairs_in(prediction: Path, truth: Path) -> list[tuple[str, Path, Path]]:
    """Find which files of two folders belong together, by their names.

    ``case_seg.nii.gz`` belongs to ``case.nii.gz``, as ``fmseg segment`` calls its results. Where a folder holds files
    of one name in several folders, the name is that of the folder, too: ``anna/ct``.

    Returns
    -------
    list
        Name, prediction and truth, sorted by name.

    Raises
    ------
    FmsegError
        If one of them is no folder, nothing belongs together, or two files of one folder have one name.
    """
    if not (prediction.is_dir() and truth.is_dir()):
        raise FmsegError(f"{prediction} and {truth} must both be files or both be folders.")
    mine, true = _by_name(prediction, truth)
    pairs = [(name, mine.get(f"{name}_seg", mine.get(name)), path) for name, path in sorted(true.items())]
    found = [(name, own, path) for name, own, path in pairs if own is not None]
    if not found:
        raise FmsegError(
            f"No file of {prediction} is called like one of {truth}. Expected case.nii.gz, or case_seg.nii.gz as "
            "`fmseg segment` names it, for case.nii.gz."
        )
    return found


def without_partner(prediction: Path, truth: Path) -> tuple[Path, ...]:
    """List the files of two folders that `pairs_in` leaves out, because the other folder has none of their name."""
    paired = {path for _, *pair in pairs_in(prediction, truth) for path in pair}
    return tuple(sorted({path for files in _by_name(prediction, truth) for path in files.values()} - paired))


def _by_name(*folders: Path) -> list[dict[str, Path]]:
    """Return the files of each folder by their names, with those of the folders below it if need be."""
    listed = [[*find_volumes(folder), *broken_files(files_below(folder))] for folder in folders]
    unique = all(len(set(map(_stem, paths))) == len(paths) for paths in listed)
    found: list[dict[str, Path]] = []
    for folder, paths in zip(folders, listed, strict=True):
        found.append({})
        for path in paths:
            name = _stem(path) if unique else Path(os.path.relpath(path.with_name(_stem(path)), folder)).as_posix()
            if name in found[-1]:
                raise FmsegError(f"{found[-1][name]} and {path} have one name. Move one of them to another folder.")
            found[-1][name] = path
    return found


def score_pair(
    case: str, found: LabelMap, truth: LabelMap, prediction: Path | None = None, *, tolerance_mm: float = 2.0
) -> CaseScores:
    """Compare two label maps; the seconds come from the manifest beside the prediction's file, if there is one.

    Parameters
    ----------
    case
        Its name in the table.
    found, truth
        Labels on one grid.
    prediction
        The file of `found`.
    tolerance_mm
        Of the surface Dice.
    """
    seconds = {} if prediction is None else read_seconds(manifest_path(prediction))
    parts = {name: {"seconds": value} for name, value in seconds.items()}
    scores = score(found, truth, tolerance_mm=tolerance_mm)
    return CaseScores(case, scores, slice_mm=truth.geometry.canonical()[0].spacing[0], parts=parts)


def write_cases(cases: Sequence[CaseScores], path: Path, tolerance_mm: float) -> Path:
    """Write one row per case, whole or not at all; what nobody measured, and nan, stays blank.

    Parameters
    ----------
    cases
        Those with a problem are left out.
    path
        Replaced only when the new file is complete.
    tolerance_mm
        Of the surface Dice, for the name of its column.

    Raises
    ------
    UnwritableVolume
        If the file cannot be written.
    """
    rows = [case.row(tolerance_mm) for case in cases if not case.problem]
    columns = list(dict.fromkeys(name for row in rows for name in row))
    return atomic_write_csv(path, columns, ([_format(row.get(name, "")) for name in columns] for row in rows))


def _format(value: str | float) -> str:
    if isinstance(value, str):
        return value
    return "" if math.isnan(value) else f"{value:.4f}"


def _stem(path: Path) -> str:
    return path.name[: len(path.name) - len(suffix_of(path))] or path.name
