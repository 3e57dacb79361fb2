"""``fmseg lesions``, and the part of ``fmseg score`` that counts lesions."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import numpy as np
from tyro.conf import Positional, arg

from napari_fmseg.cli.console import Json, note, note_warnings, number, say, table, write_json
from napari_fmseg.core.errors import GeometryMismatch

if TYPE_CHECKING:
    from napari_fmseg.core.volume import Geometry, LabelMap

__all__ = ["lesions", "show_lesion_scores"]


def lesions(
    image: Positional[Annotated[Path, arg(metavar="IMAGE")]],
    labels: Positional[Annotated[Path, arg(metavar="LABELS")]],
    /,
    *,
    csv: Path | None = None,
    min_ml: float = 0.0,
    label: int | None = None,
    channel: int = 0,
    series: str | None = None,
    suv: Literal["auto", "never", "required"] = "auto",
    as_json: Json = False,
) -> int:
    """Measure every lesion: volume, maximum and mean uptake, total (TLG), position. Research use only.

    In SUV where the image is a DICOM PET with the tags for it; else in the unit of the image.

    Parameters
    ----------
    image
        The image, as a file or a DICOM folder; of a PET/CT the PET.
    labels
        A file with labels. On another grid they are resampled to that of the image (nearest voxel).
    csv
        Write the table to this file too, with a last row for all lesions.
    min_ml
        Leave out connected components below so many millilitres.
    label
        Measure the lesions of this label only.
    channel
        Which channel of the image to measure, counted from 0.
    series
        Which series of a DICOM folder that holds several.
    suv
        Standardised uptake values: where the tags allow them (auto), never, or refuse the file where they do not
        (required).
    """
    from napari_fmseg.evaluation import lesions as measures
    from napari_fmseg.io import read_labels, read_volume

    volume, found = read_volume(image, series=series, suv=suv), read_labels(labels)
    note_warnings(volume, image)
    note_warnings(found, labels)
    if not found.geometry.matches(volume.geometry, atol_mm=0.01):
        found = _on_grid(found, volume.geometry)
    measured = measures.lesions(found, volume, label=label, min_ml=min_ml, channel=channel)
    written = None if csv is None else measures.write_lesions(measured, csv)
    if as_json:
        totals = {"ml": measured.ml, "total": measured.total, "max": measured.max, "mean": measured.mean}
        rows = [dataclasses.asdict(lesion) for lesion in measured.lesions]
        write_json({"unit": measured.unit, "lesions": rows, "all": totals, "left_out": measured.left_out})
        return 0
    _show(measured, measures.columns(measured))
    if measured.left_out:
        say(f"{measured.left_out} components below {min_ml:g} ml were left out.")
    if written is not None:
        say(str(written))
    return 0


def _on_grid(labels: LabelMap, grid: Geometry) -> LabelMap:
    """Resample labels to the grid of an image, and tell the user what lies outside of it."""
    from napari_fmseg.core.resampling import resample
    from napari_fmseg.core.volume import LabelMap, Volume

    image = resample(Volume(np.ones(grid.shape, np.uint8), grid), labels.geometry, order=0).data
    marked = labels.data != 0
    total, outside = (int(np.count_nonzero(mask)) for mask in (marked, marked & (image == 0)))
    if total and outside == total:
        raise GeometryMismatch("None of the labels lies in the image. Are they of one patient and one visit?")
    note("The labels lie on another grid; they were resampled to the grid of the image (nearest voxel).")
    if outside:
        ml = labels.geometry.voxel_ml
        note(f"Warning: {outside * ml:.3g} of {total * ml:.3g} ml of the labels lie outside of the image and are not "
             "measured.")  # fmt: skip
    found = resample(labels, grid, order=0)
    assert isinstance(found, LabelMap)
    return found


def _show(found: object, columns: tuple[str, ...]) -> None:
    from napari_fmseg.evaluation.lesions import LesionTable

    assert isinstance(found, LesionTable)
    if not found.lesions:
        say("There is no lesion.")
        return
    rows = [
        (f"{each.number}", each.name or f"label {each.label}", number(each.ml, 2),
         *_uptake(each.max, each.mean, each.peak),
         number(each.total, 1), ", ".join(f"{v:.0f}" for v in reversed(each.centroid_mm)))
        for each in found.lesions
    ]  # fmt: skip
    last = ("all", found.count_text, number(found.ml, 2), *_uptake(found.max, found.mean, found.peak),
            number(found.total, 1), "")  # fmt: skip
    say(table(("", "LESION", "ml", *columns, "AT x, y, z mm"), [*rows, last]))


def _uptake(*values: float) -> tuple[str, ...]:
    return tuple(f"{value:.3g}" if abs(value) < 1000 else f"{value:.0f}" for value in values)


def show_lesion_scores(scores: Mapping[str, Mapping[str, float]]) -> None:
    """Show the result of `napari_fmseg.evaluation.lesion_metrics.score_lesions`."""
    columns = ("true_lesions", "found", "missed", "false_lesions")
    say(table(
        ("LABEL", "LESIONS", "FOUND", "MISSED", "FALSE", "SENSITIVITY", "FALSE ml", "MISSED ml"),
        [(name, *(f"{row[c]:.0f}" for c in columns), number(row["sensitivity"]),
          number(row["false_positive_ml"], 2), number(row["false_negative_ml"], 2))
         for name, row in scores.items()],
    ))  # fmt: skip
