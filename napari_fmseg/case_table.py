"""One row per case: how right, and how fast and with how much memory every part was, for a spreadsheet.

`napari_fmseg.evaluation` has a row per case and class, and goes on after a stop; this one measures from file to file.

What the evaluation of FLARE 21 tells of each case (Ma et al., Fast and low-GPU-memory abdomen CT organ segmentation,
Med. Image Anal. 82, 2022), in columns that say their units.
"""

from __future__ import annotations

import csv
import io
import math
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from napari_fmseg.benchmark import Part, measured_run
from napari_fmseg.errors import FmsegError
from napari_fmseg.events import Progress
from napari_fmseg.io import find_volumes, read_labels, suffix_of
from napari_fmseg.io.writing import written_beside
from napari_fmseg.manifest import manifest_path, read_seconds
from napari_fmseg.metrics import score
from napari_fmseg.pipelines import SegmentOptions
from napari_fmseg.volume import LabelMap

if TYPE_CHECKING:
    from napari_fmseg.models import Model

__all__ = ["CaseScore", "measured_cases", "pairs_in", "score_pair", "write_csv"]


@dataclass(frozen=True)
class CaseScore:
    """One case.

    Attributes
    ----------
    case
        Its name.
    slice_mm
        Distance of its slices.
    tolerance_mm
        Of the surface Dice.
    labels
        By name what `napari_fmseg.metrics.score` tells; of it dice and nsd are written.
    parts
        Time and memory of reading, every stage and writing; memory 0 where nobody measured it.
    seconds
        From file to file; nan where nobody measured it.
    """

    case: str
    slice_mm: float
    tolerance_mm: float
    labels: Mapping[str, Mapping[str, float]]
    parts: Mapping[str, Part] = field(default_factory=dict)
    seconds: float = math.nan

    def row(self) -> dict[str, str | float]:
        """Give the row of the table: names of columns with their units, and values."""
        found: dict[str, str | float] = {"case": self.case, "slice_mm": self.slice_mm}
        nsd = f"nsd_{self.tolerance_mm:g}mm"
        for name, values in self.labels.items():
            found |= {f"{name}_dice": values["dice"], f"{name}_{nsd}": values["nsd"]}
        found |= {"mean_dice": self._mean("dice"), f"mean_{nsd}": self._mean("nsd")}
        found |= {f"{name}_s": part.seconds for name, part in self.parts.items()}
        if not math.isnan(self.seconds):
            found["total_s"] = self.seconds
        measured = {name: part for name, part in self.parts.items() if part.peak_mb}
        for name, part in measured.items():
            found[f"{name}_peak_mb"] = part.peak_mb
            if part.gpu_mb:
                found[f"{name}_gpu_mb"] = part.gpu_mb
        if measured:
            found["peak_mb"] = max(part.peak_mb for part in measured.values())
            gpu = max(part.gpu_mb for part in measured.values())
            found |= {"gpu_mb": gpu} if gpu else {}
        return found

    def _mean(self, what: str) -> float:
        told = [values[what] for values in self.labels.values() if not math.isnan(values[what])]
        return sum(told) / len(told) if told else math.nan


def measured_cases(
    cases: Sequence[tuple[str, Path, LabelMap]],
    model: Model,
    options: SegmentOptions | None = None,
    *,
    tolerance_mm: float = 1.0,
) -> Iterator[Progress | CaseScore]:
    """Segment cases from file to file, measure every part, and compare with the truth.

    Parameters
    ----------
    cases
        Name, image file, and true labels on its grid with the model's names.
    model, options
        See `napari_fmseg.pipelines.segment`.
    tolerance_mm
        Of the surface Dice; FLARE 21 has 1 mm.

    Yields
    ------
    Progress
        After every case.
    CaseScore
        One per case. The first one includes what happens once only, as in the published evaluation.
    """
    options = options or SegmentOptions()
    with tempfile.TemporaryDirectory(prefix="fmseg-evaluate-") as folder:
        for done, (name, image, truth) in enumerate(cases, 1):
            result = Path(folder) / "labels.nii.gz"
            start = time.perf_counter()
            parts, volume = measured_run(image, model, options, result)
            seconds = time.perf_counter() - start
            found = read_labels(result)
            labels = score(
                LabelMap(found.data, found.geometry, {}, model.card.labels), truth, tolerance_mm=tolerance_mm
            )
            yield CaseScore(name, volume.geometry.canonical()[0].spacing[0], tolerance_mm, labels, parts, seconds)
            yield Progress("evaluating", done, len(cases))


def pairs_in(prediction: Path, truth: Path) -> list[tuple[str, Path, Path]]:
    """Find what belongs together: two files, or the files of two folders by their names.

    ``case_seg.nii.gz`` belongs to ``case.nii.gz``, as ``fmseg segment`` calls its results.

    Returns
    -------
    list
        Name, prediction and truth, sorted by name.

    Raises
    ------
    FmsegError
        If a folder stands against a file, or nothing belongs together.
    """
    if prediction.is_dir() != truth.is_dir():
        raise FmsegError(f"{prediction} and {truth} must both be files or both be folders.")
    if not truth.is_dir():
        return [(_stem(truth), prediction, truth)]
    mine = {_stem(path).removesuffix("_seg"): path for path in find_volumes(prediction)}
    true = {_stem(path): path for path in find_volumes(truth)}
    both = sorted(mine.keys() & true.keys())
    if not both:
        raise FmsegError(
            f"No file of {prediction} is called like one of {truth}. Expected case.nii.gz, or case_seg.nii.gz as "
            "`fmseg segment` names it, for case.nii.gz."
        )
    return [(name, mine[name], true[name]) for name in both]


def score_pair(
    case: str, prediction: Path, truth: Path, *, tolerance_mm: float = 2.0, by_number: bool = False
) -> CaseScore:
    """Compare two files; the seconds come from the manifest beside the prediction, if there is one.

    Parameters
    ----------
    case
        Its name in the table.
    prediction, truth
        Files with labels on one grid.
    tolerance_mm
        Of the surface Dice.
    by_number
        Compare labels by their number even where the files name them differently.
    """
    found, true = read_labels(prediction), read_labels(truth)
    if by_number:
        found = LabelMap(found.data, found.geometry, found.meta)
    labels = score(found, true, tolerance_mm=tolerance_mm)
    seconds = read_seconds(manifest_path(prediction))
    parts = {name: Part(value, value, 0.0) for name, value in seconds.items()}
    total = sum(seconds.values()) if seconds else math.nan
    return CaseScore(case, true.geometry.canonical()[0].spacing[0], tolerance_mm, labels, parts, total)


def write_csv(cases: Sequence[CaseScore], path: Path) -> Path:
    """Write one row per case, whole or not at all; what nobody measured, and nan, stays blank.

    Raises
    ------
    UnwritableVolume
        If the file cannot be written.
    """
    rows = [case.row() for case in cases]
    columns = list(dict.fromkeys(name for row in rows for name in row))
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, columns, restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows({name: _written(value) for name, value in row.items()} for row in rows)
    with written_beside(path) as file:
        file.write(text.getvalue().encode())
    return path


def _written(value: str | float) -> str:
    if isinstance(value, str):
        return value
    return "" if math.isnan(value) else f"{value:.4f}"


def _stem(path: Path) -> str:
    return path.name[: len(path.name) - len(suffix_of(path))] or path.name
