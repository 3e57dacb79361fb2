"""What is measured in a label map agrees with numpy's own counts, and the centre lies inside the class."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest

from napari_fmseg.core.errors import UnwritableVolume
from napari_fmseg.core.volume import Geometry, LabelMap
from napari_fmseg.evaluation.volumes import measure, write_measures

GRID = Geometry.from_spacing((6, 20, 30), (5.0, 2.0, 1.0), (10, -20, 30))


def two_kidneys(dtype: str = "uint8") -> LabelMap:
    data = np.zeros(GRID.shape, dtype)
    data[1:5, 8:12, 2:6] = 2
    data[1:5, 8:12, 22:28] = 2
    data[5, 0, 0] = 7
    return LabelMap(data, GRID, {}, {1: "liver", 2: "kidneys"})


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "int32"])
def test_every_class_is_counted_also_the_empty_and_the_nameless(dtype: str) -> None:
    labels = two_kidneys(dtype)
    found = {m.label: m for m in measure(labels)}
    assert {label: m.voxels for label, m in found.items()} == {1: 0, 2: int((labels.data == 2).sum()), 7: 1}
    assert {label: m.ml for label, m in found.items()} == pytest.approx(labels.volumes_ml() | {7: 0.01})
    assert [m.name for m in found.values()] == ["liver", "kidneys", ""]
    assert found[1].centre is None


def test_the_centre_of_a_paired_organ_lies_in_one_of_the_pair() -> None:
    labels = two_kidneys()
    kidneys = next(m for m in measure(labels) if m.label == 2)
    assert kidneys.centre is not None
    z, y, x = kidneys.centre
    assert labels.data[z, y, x] == 2
    assert x in (24, 25)  # the middle of the larger one
    assert kidneys.centre_mm == pytest.approx(tuple(GRID.place((z, y, x))))


def test_statistics_are_written_whole_or_not_at_all(tmp_path: Path) -> None:
    path = write_measures(measure(two_kidneys()), tmp_path / "stats.csv")
    rows = list(csv.DictReader(path.read_text().splitlines()))
    assert [row["name"] for row in rows] == ["liver", "kidneys", ""]
    assert float(rows[1]["volume_ml"]) == pytest.approx(1.6)
    assert float(rows[1]["centre_z_mm"]) == pytest.approx(10 + 5 * 2)
    assert rows[0]["centre_x_mm"] == ""
    assert [p.name for p in tmp_path.iterdir()] == ["stats.csv"]
    with pytest.raises(UnwritableVolume, match="folder"):
        write_measures([], tmp_path)
