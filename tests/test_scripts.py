"""The picture of the stages, which the demo and the README show."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from napari_fmseg.core.volume import Geometry, LabelMap, Volume
from napari_fmseg.io import write_labels, write_volume

ROOT = Path(__file__).parents[1]


@pytest.fixture
def picture(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))
    import stages_picture

    return stages_picture


def rgb(image) -> np.ndarray:
    return np.asarray(image).astype(int)


def test_a_coarse_stage_is_drawn_in_its_place(picture):
    fine = Geometry.from_spacing((20, 40, 40), (2.0, 2.0, 2.0), (5.0, -30.0, 10.0))
    coarse = fine.resize((5, 10, 10))
    labels = np.zeros(coarse.shape, np.uint8)
    labels[2, 2, 7] = 1  # in front, on the left of the patient: above and right in an axial picture
    stage = LabelMap(labels, coarse, names={1: "spot"}, colors={1: (1.0, 0.0, 0.0)})
    drawn = rgb(picture.draw(Volume(np.zeros(fine.shape, np.int16), fine), {"spot": stage}))
    (height, width, _) = drawn.shape
    red = np.argwhere(drawn[..., 0] - drawn[..., 2] > 60)
    axial = red[red[:, 1] < width / 3]
    assert len(axial)
    row, column = axial.mean(0)
    side = 80 / picture.PIXEL_MM  # the field of view is 80 mm wide
    assert column / side == pytest.approx(0.75, abs=0.02)
    assert (row - height / 2) / side == pytest.approx(0.25, abs=0.02)


def test_a_flipped_volume_gives_the_same_picture(picture):
    rng = np.random.default_rng(0)
    data = rng.integers(0, 1000, (9, 17, 17)).astype(np.int16)
    grid = Geometry.from_spacing(data.shape, (5.0, 5.0, 5.0))
    affine = grid.affine @ np.array([[-1, 0, 0, 8], [0, 1, 0, 0], [0, 0, -1, 16], [0, 0, 0, 1.0]])
    flipped = Volume(data[::-1, :, ::-1], Geometry(grid.shape, affine))
    np.testing.assert_array_equal(rgb(picture.draw(Volume(data, grid), {})), rgb(picture.draw(flipped, {})))


def test_command_writes_a_png_of_a_map_and_labels(tmp_path):
    grid = Geometry.from_spacing((6, 12, 12), (5.0, 5.0, 5.0))
    data = np.arange(6 * 144, dtype=np.int16).reshape(grid.shape)
    write_volume(Volume(data, grid), tmp_path / "image.nii.gz")
    write_volume(Volume((data / 900).astype(np.float32), grid), tmp_path / "map.nii.gz")
    write_labels(LabelMap((data > 400).astype(np.uint8), grid), tmp_path / "labels.nii.gz")
    words = ["image.nii.gz", "out.png", "map=map.nii.gz", "labels=labels.nii.gz"]
    script = ROOT / "scripts" / "stages_picture.py"
    done = subprocess.run([sys.executable, script, *words], cwd=tmp_path, env={"PYTHONPATH": str(ROOT)},
                          capture_output=True, text=True)  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "out.png").read_bytes().startswith(b"\x89PNG")
