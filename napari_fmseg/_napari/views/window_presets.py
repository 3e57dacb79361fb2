"""Windows of intensities as radiologists set them: by name for CT, by uptake for PET, else by the image itself."""

from __future__ import annotations

import math
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import numpy as np
import numpy.typing as npt

from napari_fmseg._napari.layers import CT_WINDOW_HU, SUV_WINDOW, is_pet, meta_of, voxels_of, window_of

__all__ = ["CT_WINDOWS", "presets_of", "range_text"]

Limits = tuple[float, float]

CT_WINDOWS: Mapping[str, Limits] = MappingProxyType(
    {
        "Soft tissue": CT_WINDOW_HU,  # level 40, width 400
        "Lung": (-1350.0, 150.0),  # level -600, width 1500
        "Bone": (-500.0, 1300.0),  # level 400, width 1800
        "Brain": (0.0, 80.0),  # level 40, width 80
        "Liver": (-45.0, 105.0),  # level 30, width 150
    }
)
"""Lower and upper end in HU."""
SUV_WINDOWS: Mapping[str, Limits] = MappingProxyType(
    {"SUV 0 to 5": (0.0, 5.0), "SUV 0 to 7": SUV_WINDOW, "SUV 0 to 10": (0.0, 10.0), "SUV 0 to 20": (0.0, 20.0)}
)
_PERCENTILES = {"Auto": (0.5, 99.5), "Auto, more contrast": (5.0, 95.0), "Whole range": (0.0, 100.0)}
_MOST = 64  # voxels along an axis that are looked at


def presets_of(layer: Any) -> dict[str, Limits]:
    """Return the windows that suit an image layer, by their names; the first is as it was opened."""
    meta = meta_of(layer)
    some = _some_voxels(voxels_of(layer))
    first = window_of(np.asarray(voxels_of(layer)[-1] if layer.ndim > 3 else voxels_of(layer)), meta)
    if meta.get("modality") == "CT" or first == CT_WINDOW_HU:
        return dict(CT_WINDOWS)
    if meta.get("units") == "SUV":
        return dict(SUV_WINDOWS)
    if is_pet(meta):  # uptake in units of the scanner: nothing is below 0
        top = float(np.percentile(some, 99.9)) if some.size else 1.0
        return {"Auto": (0.0, max(top, 1e-6)), "Whole range": (0.0, max(float(some.max(initial=0.0)), 1e-6))}
    return {name: _limits(some, percents) for name, percents in _PERCENTILES.items()}


def range_text(low: float, high: float) -> str:
    """Return two ends as text, as exactly as the range between them needs."""
    digits = 2 - math.floor(math.log10(high - low))
    return " to ".join(np.format_float_positional(round(v, digits) + 0.0, trim="-") for v in (low, high))


def _some_voxels(data: Any) -> npt.NDArray[np.float32]:
    """Return some of the voxels, evenly spread: to find percentiles, which need not be exact, without a pause."""
    steps = tuple(slice(None, None, max(1, n // _MOST)) for n in data.shape)
    some = np.asarray(data[steps], np.float32)
    return some[np.isfinite(some)]


def _limits(some: npt.NDArray[np.float32], percents: tuple[float, float]) -> Limits:
    if not some.size:
        return (0.0, 1.0)
    low, high = (float(v) for v in np.percentile(some, percents))
    return (low, high if high > low else low + max(1.0, abs(low) / 1000))
