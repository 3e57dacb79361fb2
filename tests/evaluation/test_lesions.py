"""Lesions are what scipy's labelling finds, measured as numpy does; what is not in SUV is not called so."""

from __future__ import annotations

import csv
import math
from pathlib import Path

import numpy as np
import pytest
from scipy import ndimage

from napari_fmseg.core.errors import FmsegError, GeometryMismatch
from napari_fmseg.core.volume import Geometry, LabelMap, Volume
from napari_fmseg.evaluation.lesions import columns, lesions, write_lesions

SPACING = (4.0, 3.0, 2.5)


def scattered(seed: int = 0, shape: tuple[int, int, int] = (14, 18, 20)) -> tuple[LabelMap, Volume]:
    """Two classes in blobs of all sizes on an oblique grid, and an uptake of random numbers."""
    rng = np.random.default_rng(seed)
    noise = ndimage.gaussian_filter(rng.normal(size=shape), 1.2)
    data = (noise > 0.35 * noise.max()).astype(np.uint8)
    data[(data > 0) & (np.arange(shape[2]) > 11)] = 2
    angle = math.radians(20)
    turn = np.array([[1, 0, 0], [0, math.cos(angle), -math.sin(angle)], [0, math.sin(angle), math.cos(angle)]])
    geometry = Geometry.from_spacing(shape, SPACING, (10.0, -20.0, 30.0), turn)
    uptake = rng.gamma(2.0, 2.0, shape).astype(np.float32)
    return LabelMap(data, geometry, {}, {1: "tumour", 2: "node"}), Volume(uptake, geometry, {"units": "SUV"})


def brute_peak(image: np.ndarray, mask: np.ndarray, geometry: Geometry) -> float:
    """Mean over every sphere of 1 ml around a voxel of the mask, one after the other."""
    radius = (3000 / 4 / math.pi) ** (1 / 3)
    every = geometry.place(np.argwhere(np.ones(image.shape, bool)))
    flat = image.astype(float).ravel()
    return max(flat[np.linalg.norm(every - geometry.place(v), axis=1) <= radius].mean() for v in np.argwhere(mask))


@pytest.mark.parametrize("seed", [0, 1])
def test_every_lesion_is_one_of_scipys_and_measured_as_numpy_does(seed: int) -> None:
    labels, volume = scattered(seed)
    expected = []
    for value in (1, 2):
        parts, n = ndimage.label(labels.data == value, np.ones((3, 3, 3)))
        for number in range(1, n + 1):
            mask = parts == number
            ml = mask.sum() * np.prod(SPACING) / 1000
            values = volume.data[mask].astype(float)
            middle = labels.geometry.place(np.argwhere(mask)).mean(0)
            peak = brute_peak(volume.data, mask, labels.geometry)
            expected.append((value, ml, values.max(), values.mean(), peak, values.mean() * ml, *middle))
    table = lesions(labels, volume)
    assert len(table.lesions) == len(expected) > 6
    found = [(e.label, e.ml, e.max, e.mean, e.peak, e.total, *e.centroid_mm) for e in table.lesions]
    assert np.allclose(sorted(found), sorted(expected), rtol=1e-6, atol=1e-9)
    assert [e.ml for e in table.lesions] == sorted((e.ml for e in table.lesions), reverse=True)
    assert [e.number for e in table.lesions] == list(range(1, len(expected) + 1))
    assert all(volume.data[e.hottest] == np.float32(e.max) for e in table.lesions)
    mask = labels.data > 0
    assert table.ml == pytest.approx(mask.sum() * 0.03)
    assert table.mean == pytest.approx(volume.data[mask].astype(float).mean())
    assert table.max == volume.data[mask].max()


def test_parts_below_the_smallest_size_are_left_out_and_counted() -> None:
    labels, volume = scattered()
    every = lesions(labels, volume)
    some = lesions(labels, volume, min_ml=0.12)
    assert 0 < len(some.lesions) < len(every.lesions)
    assert some.left_out == len(every.lesions) - len(some.lesions)
    assert min(e.ml for e in some.lesions) >= 0.12 - 1e-9
    assert {e.label for e in lesions(labels, volume, label=2).lesions} == {2}


def test_what_is_not_in_suv_is_never_called_suv(tmp_path: Path) -> None:
    labels, volume = scattered()
    assert columns(lesions(labels, volume)) == ("SUVmax", "SUVmean", "SUVpeak", "TLG")
    for units in ("Bq/ml", "", "HU"):
        table = lesions(labels, Volume(volume.data, volume.geometry, {"units": units}))
        text = write_lesions(table, tmp_path / "lesions.csv").read_text()
        assert "SUV" not in text
        assert "TLG" not in text
        assert f"max ({units or 'no unit'})" in text


def test_the_file_has_a_row_per_lesion_and_one_for_all(tmp_path: Path) -> None:
    labels, volume = scattered()
    table = lesions(labels, volume)
    rows = list(csv.DictReader(write_lesions(table, tmp_path / "l.csv").read_text().splitlines()))
    assert len(rows) == len(table.lesions) + 1
    assert float(rows[0]["SUVmax"]) == pytest.approx(table.lesions[0].max, rel=1e-4)
    assert float(rows[0]["centroid_x_mm"]) == pytest.approx(table.lesions[0].centroid_mm[2], abs=0.01)
    assert rows[-1]["lesion"] == "all"
    assert float(rows[-1]["volume_ml"]) == pytest.approx(sum(float(r["volume_ml"]) for r in rows[:-1]), abs=1e-3)
    assert float(rows[-1]["TLG"]) == pytest.approx(table.total, rel=1e-4)


def test_no_lesion_is_a_result(tmp_path: Path) -> None:
    labels, volume = scattered()
    table = lesions(LabelMap(np.zeros_like(labels.data), labels.geometry), volume)
    assert (table.lesions, table.ml, table.total) == ((), 0, 0)
    assert math.isnan(table.max)
    assert write_lesions(table, tmp_path / "l.csv").read_text().splitlines()[1].startswith("all,,0 lesions,0.0000,0,,")


def test_a_mask_on_another_grid_and_senseless_wishes_are_refused() -> None:
    labels, volume = scattered()
    moved = Volume(volume.data, Geometry.from_spacing(volume.data.shape, SPACING))
    with pytest.raises(GeometryMismatch, match="on its grid"):
        lesions(labels, moved)
    with pytest.raises(FmsegError, match="0 ml"):
        lesions(labels, volume, min_ml=-1)
    with pytest.raises(FmsegError, match="no channel 1"):
        lesions(labels, volume, channel=1)
