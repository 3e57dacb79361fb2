"""A picture of a result: three planes through it, labels in colour over the grey image."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from napari_fmseg.core.errors import GeometryMismatch, UnwritableVolume
from napari_fmseg.core.terminology import class_color
from napari_fmseg.core.volume import LabelMap, Volume

__all__ = ["preview", "write_preview"]

Picture = npt.NDArray[np.uint8]


def preview(volume: Volume, labels: LabelMap, *, height: int = 384) -> Picture:
    """Draw the axial, coronal and sagittal plane through the middle of the labels, side by side.

    Parameters
    ----------
    volume
        The image; of several channels the first is shown.
    labels
        On the same grid.
    height
        Rows and columns that the longest side of the patient's volume takes; all planes have one scale.

    Returns
    -------
    numpy.ndarray
        (rows, columns, 3) uint8, rows at most `height` and columns three times that, in the radiologists' view: the
        patient's right on the left, head or front up.

    Raises
    ------
    GeometryMismatch
        If the grids differ.
    """
    if not volume.geometry.matches(labels.geometry, atol_mm=0.01):
        raise GeometryMismatch("A preview needs the labels on the image's own grid; those of a coarse stage are not.")
    grid, order, flips = volume.geometry.canonical()
    image = np.flip(volume.channels[0].transpose(order), flips)
    mask = np.flip(labels.data.transpose(order), flips)
    centre = _centre(mask)
    low, high = _window(image)
    sides = np.array(grid.shape) * grid.spacing  # mm
    pixels = [max(1, round(height * side / sides.max())) for side in sides]
    planes = []
    for axis in range(3):
        grey = np.clip((image.take(centre[axis], axis).astype(np.float32) - low) / (high - low), 0, 1)
        plane = _paint(grey, mask.take(centre[axis], axis), labels)
        rows, columns = (n for i, n in enumerate(pixels) if i != axis)
        upright = plane if axis == 0 else plane[::-1]  # z runs to the head, rows run down
        planes.append(_stretch(upright, rows, columns))
    tallest = max(len(plane) for plane in planes)
    return np.concatenate([_centre_rows(plane, tallest) for plane in planes], axis=1)


def write_preview(volume: Volume, labels: LabelMap, path: Path) -> None:
    """Write `preview` as a PNG file; `UnwritableVolume` if the file cannot be written."""
    from PIL import Image

    picture = Image.fromarray(preview(volume, labels))
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        picture.save(path, "PNG")
    except OSError as error:
        raise UnwritableVolume(f"{path} cannot be written: {error.strerror}. Choose another place.") from error


def _centre(mask: npt.NDArray[Any]) -> list[int]:
    """Return the median index of the labelled voxels along each axis; the volume's centre if there are none."""
    occupied = mask != 0
    if not occupied.any():
        return [n // 2 for n in mask.shape]
    centre = []
    for axis in range(3):
        counts = occupied.sum(axis=tuple(i for i in range(3) if i != axis)).cumsum()
        centre.append(int(np.searchsorted(counts, counts[-1] / 2)))
    return centre


def _window(image: npt.NDArray[Any]) -> tuple[float, float]:
    steps = tuple(slice(None, None, max(1, n // 64)) for n in image.shape)
    low, high = np.percentile(image[steps], (1, 99)).tolist()
    return low, max(high, low + 1e-6)


def _paint(grey: npt.NDArray[np.float32], mask: npt.NDArray[Any], labels: LabelMap) -> npt.NDArray[np.float32]:
    """Return (h, w, 3) in 0..1: labels as a tint, their outline in full colour."""
    picture = np.repeat(grey[..., None], 3, axis=2)
    for value in np.unique(mask[mask != 0]):
        here = mask == value
        padded = np.pad(here, 1)
        inner = padded[2:, 1:-1] & padded[:-2, 1:-1] & padded[1:-1, 2:] & padded[1:-1, :-2]
        color = np.array(labels.colors.get(int(value)) or class_color(int(value)))
        picture[here] = 0.7 * picture[here] + 0.3 * color
        picture[here & ~inner] = color
    return picture


def _stretch(plane: npt.NDArray[np.float32], rows: int, columns: int) -> Picture:
    """Stretch (h, w, 3) in 0..1 to `rows` and `columns`, by nearest neighbours."""
    y = np.arange(rows) * plane.shape[0] // rows
    x = np.arange(columns) * plane.shape[1] // columns
    return np.rint(plane[np.ix_(y, x)] * 255).astype(np.uint8)


def _centre_rows(plane: Picture, rows: int) -> Picture:
    """Fill up with black to `rows`, half above and half below."""
    above = (rows - len(plane)) // 2
    return np.pad(plane, ((above, rows - len(plane) - above), (0, 0), (0, 0)))
