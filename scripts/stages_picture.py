"""Draw a volume and the stages of its segmentation as one PNG: a row per stage, each on its own grid.

    python scripts/stages_picture.py IMAGE OUT.png NAME=STAGE.nii.gz ...

A stage is a label map, or a map of real numbers (drawn as heat). Planes go through the middle of the last stage.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw

from napari_fmseg import Geometry, LabelMap, Volume, read_labels, read_volume
from napari_fmseg.datasets.phantom import COLORS

PIXEL_MM = 1.25
Places = npt.NDArray[np.float64]
Picture = npt.NDArray[np.float64]


def planes(grid: Geometry, centre: npt.NDArray[np.float64]) -> list[Places]:
    """Places (h, w, 3) in LPS mm of the axial, coronal and sagittal plane through `centre`, as radiologists look."""
    corners = grid.place(np.array(np.meshgrid(*[(-0.5, n - 0.5) for n in grid.shape])).reshape(3, -1).T)
    (z0, y0, x0), (z1, y1, x1) = corners.min(0), corners.max(0)
    half = PIXEL_MM / 2
    z, y, x = (np.arange(a + half, b, PIXEL_MM) for a, b in ((z0, z1), (y0, y1), (x0, x1)))
    z = z[::-1]  # the head is up

    def places(*axes: npt.ArrayLike) -> Places:
        return np.stack(np.broadcast_arrays(*axes), -1).squeeze().astype(float)

    return [
        places(centre[0], y[:, None], x[None]),
        places(z[:, None], centre[1], x[None]),
        places(z[:, None], y[None], centre[2]),
    ]


def read_at(volume: Volume, places: Places) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.bool_]]:
    """Return the nearest voxels at `places` (h, w, 3), and which places lie on the grid."""
    inverse = np.linalg.inv(volume.geometry.affine)
    index = np.rint(places @ inverse[:3, :3].T + inverse[:3, 3]).astype(int)
    inside = ((index >= 0) & (index < volume.geometry.shape)).all(-1)
    index = np.clip(index, 0, np.array(volume.geometry.shape) - 1)
    return volume.channels[0][tuple(np.moveaxis(index, -1, 0))].astype(float), inside


def painted(
    grey: Picture, stage: Volume, places: Places, colors: Mapping[int, tuple[float, float, float]] = COLORS
) -> Picture:
    """Lay `stage` over `grey` (h, w, 3), its labels in `colors`."""
    values, inside = read_at(stage, places)
    if not isinstance(stage, LabelMap):
        heat = np.clip(values / max(float(stage.data.max()), 1e-6), 0, 1)[..., None]
        return np.where(inside[..., None], (1 - 0.6 * heat) * grey + 0.6 * heat * (1.0, 0.55, 0.1), 0.35 * grey)
    picture = np.where(inside[..., None], grey, 0.35 * grey)
    for value in np.unique(values[inside & (values > 0)]).astype(int):
        color = colors.get(value) or (0.9, 0.3, 0.7)
        here = inside & (values == value)
        picture[here] = 0.5 * picture[here] + 0.5 * np.array(color)
    return picture


def draw(image: Volume, stages: Mapping[str, Volume], *, titles: bool = True) -> Image.Image:
    """Make the whole picture; `titles` writes the names of the stages into it."""
    last = next((s for s in reversed(stages.values()) if isinstance(s, LabelMap) and s.data.any()), image)
    middle = (np.array(last.geometry.shape) - 1) / 2
    if isinstance(last, LabelMap):
        middle = np.median(np.argwhere(last.data > 0), axis=0)
    views = planes(image.geometry, last.geometry.place(middle))
    low, high = (-160.0, 240.0) if image.channels.min() < -500 else np.percentile(image.channels[0], (1, 99))
    colors = (last.colors if isinstance(last, LabelMap) else {}) or COLORS  # one colour per label through all rows
    rows = []
    for stage in (None, *stages.values()):
        row = []
        for places in views:
            values, inside = read_at(image, places)
            grey = np.clip((values - low) / max(high - low, 1e-6), 0, 1) * inside
            grey = np.repeat(grey[..., None], 3, -1)
            row.append(grey if stage is None else painted(grey, stage, places, colors))
        height = max(len(view) for view in row)
        rows.append(np.hstack([np.pad(view, ((0, height - len(view)), (0, 4), (0, 0))) for view in row]))
    canvas = Image.fromarray((np.vstack(rows) * 255).astype(np.uint8))
    pen, top = ImageDraw.Draw(canvas), 0
    for name, row in zip(("image", *stages) if titles else (), rows, strict=titles):
        pen.text((6, top + 4), name, fill=(255, 255, 255))
        top += len(row)
    return canvas


def read_stage(path: Path) -> Volume:
    """Read a stage: labels if all of its values are whole numbers."""
    volume = read_volume(path)
    return read_labels(path) if volume.data.dtype.kind in "ui" else volume


def main(words: list[str]) -> None:
    """Read the command line."""
    image, out, *named = words
    stages = dict(word.split("=", 1) for word in named)
    draw(read_volume(image), {name: read_stage(Path(path)) for name, path in stages.items()}).save(out, optimize=True)


if __name__ == "__main__":
    main(sys.argv[1:])
