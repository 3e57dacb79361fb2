"""A case to try everything on, without a download: File > Open Sample > fmseg."""

from __future__ import annotations

from typing import Any, TypeAlias

from napari_fmseg.phantom import phantom_ct

__all__ = ["phantom_sample"]

LayerData: TypeAlias = tuple[Any, dict[str, Any], str]
WINDOW_HU = (-160.0, 240.0)  # the soft tissue window that radiologists use for the abdomen


def phantom_sample() -> list[LayerData]:
    """Make a CT phantom as an image layer, and its truth as a labels layer on it, both in millimetres."""
    volume, truth = phantom_ct(7)
    grid = volume.geometry
    place = {
        "scale": grid.spacing,
        "translate": tuple((grid.direction.T @ grid.origin).tolist()),
        "units": ("mm", "mm", "mm"),
        "axis_labels": ("z", "y", "x"),
    }
    names = ["background", *truth.names.values()]
    seen: dict[int | None, tuple[float, ...]] = {None: (1.0, 1.0, 1.0), 0: (0.0, 0.0, 0.0, 0.0)}
    seen |= {label: color for label, color in truth.colors.items()}  # noqa: C416
    labels = {
        "name": "phantom CT, truth",
        "opacity": 0.5,
        "features": {"index": [0, *truth.names], "name": names},
        "colormap": seen,  # what is painted with a number of no name is white, never invisible
    }
    image = {"name": "phantom CT", "contrast_limits": WINDOW_HU, "colormap": "gray"}
    return [(volume.data, {**image, **place}, "image"), (truth.data, {**labels, **place}, "labels")]
