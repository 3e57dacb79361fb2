"""Tools to correct a label map: arrays in, an `Edit` out, which is one undo step. Nothing here knows a viewer.

Every tool takes `protected`: the classes that are finished. No voxel of a finished class is overwritten or removed.
"""

from __future__ import annotations

from napari_fmseg.pipelines.correction.edit import Edit
from napari_fmseg.pipelines.correction.interpolation import fill_between_slices
from napari_fmseg.pipelines.correction.islands import keep_component, remove_component, split_component
from napari_fmseg.pipelines.correction.morphology import fill_holes, grow, smooth
from napari_fmseg.pipelines.correction.painting import (
    brush,
    copy_class,
    merge_classes,
    paint_within_range,
    swap_classes,
)
from napari_fmseg.pipelines.correction.spread import CorrectionSpread, changed_slices, spread_correction

__all__ = [
    "CorrectionSpread",
    "Edit",
    "brush",
    "changed_slices",
    "copy_class",
    "fill_between_slices",
    "fill_holes",
    "grow",
    "keep_component",
    "merge_classes",
    "paint_within_range",
    "remove_component",
    "smooth",
    "split_component",
    "spread_correction",
    "swap_classes",
]
