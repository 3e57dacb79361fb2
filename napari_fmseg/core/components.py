"""Connected parts of label maps."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["components"]


def components(data: npt.NDArray[Any], neighbours: int = 26) -> npt.NDArray[Any]:
    """Number the connected parts of all labels.

    Parameters
    ----------
    data
        Labels (z, y, x); 0 is background. Parts of different labels never join.
    neighbours
        26: voxels are connected through faces, edges and corners. 6: through faces only.

    Returns
    -------
    numpy.ndarray
        (z, y, x) integers: 1 and up without gaps, 0 in the background.
    """
    data = np.ascontiguousarray(data)
    try:
        import cc3d
    except ImportError:
        from skimage import measure

        return np.asarray(measure.label(data, background=0, connectivity=3 if neighbours == 26 else 1))
    return np.asarray(cc3d.connected_components(data, connectivity=neighbours))
