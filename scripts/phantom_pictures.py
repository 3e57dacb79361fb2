"""Draw the pictures of the CT phantom in docs/images."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image
from stages_picture import draw, painted, planes, read_at

from napari_fmseg import phantom_ct
from napari_fmseg.datasets.phantom import Difficulty

OUT = Path(__file__).parents[1] / "docs" / "images"
PATIENTS: tuple[tuple[int, Difficulty], ...] = ((3, "easy"), (8, "normal"), (5, "hard"), (1, "normal"))


def patients() -> Image.Image:
    """Draw axial and coronal planes of several patients, each without and with labels."""
    columns = []
    for seed, difficulty in PATIENTS:
        volume, truth = phantom_ct(seed, spacing=(2.5, 1.7, 1.7), difficulty=difficulty)
        grid = volume.geometry
        centre = grid.place(np.array(grid.shape) * (0.55, 0.5, 0.5))
        axial, coronal, _ = planes(grid, centre)
        column = []
        for places in (axial[24:-64], coronal):
            values, _ = read_at(volume, places)
            grey = np.repeat(np.clip((values + 160) / 400, 0, 1)[..., None], 3, -1)
            column += [grey, painted(grey, truth, places)]
        columns.append(np.vstack(column))
    return Image.fromarray((np.hstack(columns) * 255).astype(np.uint8))


if __name__ == "__main__":
    OUT.mkdir(parents=True, exist_ok=True)
    shown, truth = phantom_ct(20261, spacing=(3.0, 1.7, 1.7))
    draw(shown, {"truth": truth}).save(OUT / "phantom.jpg", quality=90)
    patients().save(OUT / "patients.jpg", quality=90)
