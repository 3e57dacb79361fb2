"""Connected components and bounding boxes of label maps."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from napari_fmseg.core.volume import Box

__all__ = ["bounding_box", "components", "fill_cavities", "label_boxes"]


def components(data: npt.NDArray[Any], neighbours: int = 26) -> npt.NDArray[Any]:
    """Compute the connected components of all labels.

    Parameters
    ----------
    data
        Labels (z, y, x); 0 is background. Components of different labels never join.
    neighbours
        26: voxels are connected through faces, edges and corners. 6: through faces only.

    Returns
    -------
    numpy.ndarray
        (z, y, x) integers: 1 and up without gaps, 0 in the background.
    """
    import cc3d

    codes = np.ascontiguousarray(data)
    if codes.dtype == bool:  # for 26 neighbours cc3d 4.1 sets too little aside for single voxels in small masks
        codes = codes.view(np.uint8)
    return np.asarray(cc3d.connected_components(codes, connectivity=neighbours))


def bounding_box(data: npt.NDArray[Any]) -> Box | None:
    """Return the smallest box around what is not 0 in (z, y, x), or None if there is nothing."""
    hits = [np.flatnonzero(data.any(axis=others)) for others in ((1, 2), (0, 2), (0, 1))]
    if not len(hits[0]):
        return None
    z, y, x = (slice(int(hit[0]), int(hit[-1]) + 1) for hit in hits)
    return z, y, x


def fill_cavities(mask: npt.NDArray[np.bool_]) -> npt.NDArray[np.bool_]:
    """Return `mask` with the background that cannot leave the array through faces; two or three dimensions."""
    import fill_voids

    return np.asarray(fill_voids.fill(np.ascontiguousarray(mask)), bool)


def label_boxes(data: npt.NDArray[Any]) -> list[tuple[int, Box]]:
    """Return every label but 0 with its bounding box."""
    from scipy import ndimage

    if data.min() >= 0 and data.max() < 1 << 16:
        codes = data.astype(np.uint8) if data.dtype.kind == "b" else data
        return [(code, box) for code, box in enumerate(ndimage.find_objects(codes), 1) if box is not None]
    values, inverse = np.unique(data, return_inverse=True)
    boxes = ndimage.find_objects(inverse.reshape(data.shape) + 1)
    return [(int(value), box) for value, box in zip(values, boxes, strict=True) if value != 0]
