"""What a network finds in a held-out case while it learns: one plane, for a window to show."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from napari_fmseg.core.atomic_write import atomic_write
from napari_fmseg.core.volume import LabelMap, Volume
from napari_fmseg.datasets.case import IGNORE

__all__ = ["write_plane"]


def write_plane(volume: Volume, truth: LabelMap, found: LabelMap, path: Path) -> Path:
    """Write the axial plane that shows most of the structures: "image", "labels" and "prediction", (1, y, x) each.

    Parameters
    ----------
    volume, truth, found
        On one grid; voxels of `truth` that nobody labelled carry `IGNORE`.
    path
        An npz file without pickle, with "spacing", (3,) in mm; it is replaced whole.
    """
    grid, order, flips = volume.geometry.canonical()
    image, mine, its = (
        np.flip(np.asarray(data).transpose(order), flips) for data in (volume.channels[0], truth.data, found.data)
    )
    structure = (mine > 0) & (mine != IGNORE)
    plane = int((structure if structure.any() else its > 0).sum((1, 2)).argmax())
    shown: dict[str, Any] = {
        "image": image[plane, None].astype(np.float32),
        "labels": np.where(mine == IGNORE, 0, mine)[plane, None].astype(np.uint8),
        "prediction": its[plane, None].astype(np.uint8),
    }
    with atomic_write(path) as file:
        np.savez_compressed(file, spacing=np.array(grid.spacing), **shown)
    return path
