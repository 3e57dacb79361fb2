"""All channels of a case as one volume: read, and checked to have the same grid."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from napari_fmseg.core.errors import GeometryMismatch
from napari_fmseg.core.resampling import stack_channels
from napari_fmseg.core.volume import Geometry, Volume
from napari_fmseg.io import read_volume

__all__ = ["differ", "read_channels"]

APART_MM = 0.1
"""Grids whose corners lie closer than this are one."""


def read_channels(
    paths: Sequence[Path], names: Sequence[str] = (), *, resample: bool = False, suv: Sequence[str] = ()
) -> Volume:
    """Read the channels of a case.

    Parameters
    ----------
    paths
        One file, or DICOM folder, per channel; or one with all channels.
    names
        Names of the channels, for warnings.
    resample
        Read the others on the grid of the first, and say so in the volume's ``meta``, rather than refuse them.
    suv
        For each of them, how a PET is read; see `napari_fmseg.io.read_volume`.

    Returns
    -------
    Volume
        (c, z, y, x), or (z, y, x) if there is one channel.

    Raises
    ------
    GeometryMismatch
        If they lie on different grids or at different places (and, with `resample`, if they cannot be brought together:
        see `napari_fmseg.core.resampling.stack_channels`).
    UnreadableVolume
        If one of them cannot be read.
    """
    volumes = [read_volume(path, suv=own) for path, own in zip(paths, suv or ["auto"] * len(paths), strict=True)]
    if len(volumes) == 1:
        return volumes[0]
    if resample:
        return stack_channels(volumes, names)
    first = volumes[0]
    for path, other in zip(paths[1:], volumes[1:], strict=True):
        if wrong := differ(first.geometry, other.geometry):
            raise GeometryMismatch(
                f"{path.name} does not lie on {paths[0].name}, though both are channels of one case: "
                f"it is {wrong}. Are they of one patient and one visit? Export them on one grid."
            )
    return Volume(np.concatenate([volume.channels for volume in volumes]), first.geometry, first.meta)


def differ(one: Geometry, other: Geometry, within_mm: float = APART_MM) -> str:
    """Describe how two grids differ; "" if they are one."""
    if one.shape != other.shape:
        return f"{_sizes(other.shape)} voxels instead of {_sizes(one.shape)}"
    if one.matches(other, atol_mm=within_mm):
        return ""
    if not np.allclose(one.spacing, other.spacing, rtol=1e-3, atol=1e-4):
        return f"voxels of {_sizes(other.spacing)} mm instead of {_sizes(one.spacing)} mm"
    corners = np.array(np.meshgrid(*[(0, n - 1) for n in one.shape])).reshape(3, -1).T
    apart = float(np.linalg.norm(one.place(corners) - other.place(corners), axis=1).max())
    return f"up to {apart:.3g} mm beside it"


def _sizes(values: Sequence[float]) -> str:
    return " x ".join(f"{value:.4g}" for value in values)
