"""From the consensus network's probabilities to the inputs of the next stage: attention map and window.

Tensors in, tensors and boxes out. With more than two classes the foreground is 1 - background. Rules after the
public code of FMSF-PT (github.com/Human9000/FMST-PT), which knows a grid of 128³ only and works on a quarter of it;
here a quarter of any grid.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch.nn.functional as F
from torch import Tensor

from napari_fmseg.core.components import components
from napari_fmseg.core.errors import GeometryMismatch
from napari_fmseg.core.resampling_torch import bounding_box
from napari_fmseg.core.volume import Box

__all__ = ["attention_map", "window_v1", "window_v2"]

_FLOOR = 0.1
_COARSER = 4


def attention_map(p_fg: Tensor) -> Tensor:
    """Return the weight of every voxel: 1 near the foreground, little far from it.

    Parameters
    ----------
    p_fg
        Probability of foreground (b, 1, z, y, x).

    Returns
    -------
    Tensor
        (b, 1, z, y, x) float32 from 1/11 to 1, smooth.
    """
    if p_fg.ndim != 5 or p_fg.shape[1] != 1:
        raise GeometryMismatch(f"The foreground must be (batch, 1, z, y, x), not {tuple(p_fg.shape)}.")
    a = F.interpolate(p_fg.float(), size=_quarter(p_fg), mode="nearest")  # (b, 1, z/4, y/4, x/4)
    a = (a + F.max_pool3d(a, 3, stride=1, padding=1)) / 2
    a = F.avg_pool3d(F.pad(a, (3,) * 6), 7, stride=1)  # zeros outside count, as published
    a = F.interpolate(a, size=p_fg.shape[2:], mode="trilinear", align_corners=True)
    # The floor keeps a foreground that the consensus missed within reach of the attention network.
    return (_FLOOR + a) / (1 + _FLOOR)


def window_v1(p_bg: Tensor) -> Box:
    """Box around everything that is not background with absolute certainty: the rule of 2022, for comparison.

    It counts a voxel as background only where its probability is exactly 1 in float32, which an unsure network never
    reaches; the box is then the whole volume. Prefer `window_v2`.

    Parameters
    ----------
    p_bg
        Probability of background (z, y, x).

    Returns
    -------
    tuple of slice
        z, y, x; the whole volume where nothing is foreground.
    """
    _check_volume(p_bg)
    b = F.interpolate(p_bg[None, None].float(), size=_quarter(p_bg[None, None]), mode="nearest")
    b = F.max_pool3d(b, 3, stride=1, padding=1)
    f = F.max_pool3d(1 - b, 5, stride=1, padding=2)
    f = F.interpolate(f, size=p_bg.shape, mode="trilinear", align_corners=True)
    return _bounds((f[0, 0] > 0).cpu().numpy(), (0, 0))


def window_v2(
    p_fg: Tensor, threshold: float = 0.1, margin: tuple[int, int] = (2, 3), keep_share: float | None = None
) -> Box:
    """Return the box around the largest connected component of likely foreground: the rule of 2023.

    Parameters
    ----------
    p_fg
        Probability of foreground (z, y, x).
    threshold
        Voxels above it count.
    margin
        Voxels to add before the first and after the last voxel of the component, within the volume.
    keep_share
        Keep every component with at least this share of the largest one's voxels, for organs that lie apart; None: only
        the largest.

    Returns
    -------
    tuple of slice
        z, y, x; the whole volume where nothing is above the threshold.
    """
    _check_volume(p_fg)
    mask = (p_fg > threshold).cpu().numpy()
    parts = components(mask)
    sizes = np.bincount(parts.ravel())[1:]
    if sizes.size == 0:
        return _bounds(mask, margin)
    if keep_share is None:
        return _bounds(parts == sizes.argmax() + 1, margin)
    kept = np.concatenate([[False], sizes >= keep_share * sizes.max()])
    return _bounds(kept[parts], margin)


def _quarter(x: Tensor) -> list[int]:
    return [max(1, n // _COARSER) for n in x.shape[2:]]


def _check_volume(p: Tensor) -> None:
    if p.ndim != 3:
        raise GeometryMismatch(f"The window is found in one volume (z, y, x), not in {tuple(p.shape)}.")


def _bounds(mask: npt.NDArray[np.bool_], margin: tuple[int, int]) -> Box:
    box = bounding_box(mask)
    if box is None:
        z, y, x = (slice(0, n) for n in mask.shape)
    else:
        z, y, x = (
            slice(max(s.start - margin[0], 0), min(s.stop + margin[1], n)) for s, n in zip(box, mask.shape, strict=True)
        )
    return z, y, x
