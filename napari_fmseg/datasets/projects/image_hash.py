"""The identity of an image, whatever its file is called: a hash of its voxels."""

from __future__ import annotations

import hashlib

import numpy as np
import numpy.typing as npt

from napari_fmseg.core.volume import Volume

__all__ = ["image_hash"]


def image_hash(volume: Volume) -> str:
    """Hash the voxels of an image.

    It does not depend on name, format, compression, header, the order of the channels, or the order in which axes are
    stored: the voxels are taken with z to superior, y to posterior, x to left, as float32. Another crop, another
    resampling or other intensities are another image.

    Parameters
    ----------
    volume
        (z, y, x) or (c, z, y, x).

    Returns
    -------
    str
        64 hexadecimal digits.
    """
    _, order, flips = volume.geometry.canonical()
    parts = sorted(_channel_hash(np.flip(channel.transpose(order), flips)) for channel in volume.channels)
    return parts[0] if len(parts) == 1 else hashlib.sha256("".join(parts).encode()).hexdigest()


def _channel_hash(channel: npt.NDArray[np.generic]) -> str:
    found = hashlib.sha256(repr(channel.shape).encode())
    for plane in channel:  # plane by plane, so that no second copy of the volume is held
        found.update((plane.astype("<f4") + np.float32(0)).tobytes())  # + 0: there is but one zero
    return found.hexdigest()
