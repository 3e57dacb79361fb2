"""The plane of a held-out case that a training shows."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from napari_fmseg.core.volume import Geometry, LabelMap, Volume
from napari_fmseg.datasets.case import IGNORE
from napari_fmseg.training.validation import write_plane


def test_the_axial_plane_with_most_of_the_structure_is_shown_whatever_the_order_in_the_file(tmp_path: Path) -> None:
    shape = (6, 7, 8)
    rng = np.random.default_rng(0)
    image = rng.normal(size=shape).astype(np.float32)
    labels = np.zeros(shape, np.uint8)
    labels[4, 1:5, 2:6] = 1
    labels[4, 0, 0] = IGNORE
    labels[2] = IGNORE
    found = (rng.random(shape) > 0.5).astype(np.uint8)
    grid = Geometry.from_spacing(shape, (3.0, 1.0, 2.0))
    turn = np.zeros((4, 4))
    turn[[0, 1, 2, 3], [2, 0, 1, 3]] = (1, 1, 1, 1)  # filed with x first, and z from the top
    flip = np.diag([-1.0, 1, 1, 1])
    flip[0, 3] = shape[0] - 1
    filed = Geometry((shape[1], shape[2], shape[0]), grid.affine @ flip @ turn)

    def as_filed(data: np.ndarray) -> np.ndarray:
        return data[::-1].transpose(1, 2, 0)

    for place, give in ((grid, np.asarray), (filed, as_filed)):
        path = write_plane(
            Volume(give(image), place), LabelMap(give(labels), place), LabelMap(give(found), place), tmp_path / "p.npz"
        )
        with np.load(path) as arrays:
            np.testing.assert_array_equal(arrays["image"][0], image[4])
            np.testing.assert_array_equal(arrays["labels"][0], np.where(labels[4] == IGNORE, 0, labels[4]))
            np.testing.assert_array_equal(arrays["prediction"][0], found[4])
            np.testing.assert_allclose(arrays["spacing"], (3, 1, 2))
    assert [p.name for p in tmp_path.iterdir()] == ["p.npz"]
