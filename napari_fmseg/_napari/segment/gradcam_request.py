"""Explain (Grad-CAM): the request for a heat map of the regions that a model relied on for a class of its labels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from napari_fmseg._napari.choosers.image_volumes import ImageVolume
from napari_fmseg._napari.layer_transform import Frame
from napari_fmseg._napari.layers import KEY, geometry_of, names_of, voxels_of
from napari_fmseg._napari.segment.run_request import GradCamTarget, Request, Run
from napari_fmseg._napari.segment.stage_layers import run_of
from napari_fmseg.core.errors import FmsegError, GeometryMismatch
from napari_fmseg.evaluation.volumes import Measure
from napari_fmseg.pipelines import SegmentOptions

__all__ = ["disabled_reason", "grad_cam_request"]


def disabled_reason(layer: Any, cases: Sequence[ImageVolume]) -> str:
    """Return why a labels layer cannot be explained, or ""."""
    run = None if layer is None else run_of(layer)
    if run is None:
        return "Only labels that a model made can be explained. Segment an image first."
    if all(case.id != run.image for case in cases):
        return "The image that these labels were made from is not open any more."
    return ""


def grad_cam_request(
    layer: Any,
    cases: Sequence[ImageVolume],
    measures: Sequence[Measure],
    at: Sequence[float],
    device: str,
) -> Request:
    """Return the request: for the voxel where the view is, if it has the chosen class, else for the class's centre.

    Parameters
    ----------
    layer
        Labels, with the class to explain selected for painting.
    cases
        The volumes of the viewer.
    measures
        Of the layer.
    at
        Where the view is, in the layer's world coordinates (z, y, x).
    device
        Where to run.

    Raises
    ------
    FmsegError
        If the layer cannot be explained, or the class is empty.
    """
    refusal, label = disabled_reason(layer, cases), int(layer.selected_label)
    if refusal:
        raise FmsegError(refusal)
    made = run_of(layer)
    assert made is not None
    name = names_of(layer).get(label, f"label {label}")
    point = _point(layer, label, measures, at)
    if point is None:
        raise FmsegError(f"There is no voxel of {name}. Click the row of a class that was found.")
    case = next(case for case in cases if case.id == made.image)
    if not geometry_of(layer).matches(case.geometry, atol_mm=0.1):
        raise GeometryMismatch(f"{layer.name} is not on the grid of {case.name}. Choose the finished labels.")
    note = (layer.metadata[KEY].get("image") or {}) if KEY in layer.metadata else {}
    others = _others(note, case, cases)
    return Request(
        Run(made.image, made.model, f"why {name}"),
        case.name,
        tuple(voxels_of(part) for part in case.layers),
        case.geometry,
        dict(case.meta),
        options=SegmentOptions(device=device),
        question=GradCamTarget(label, point),
        channels=tuple(note.get("channels", ())),
        others=tuple((voxels_of(other.layers[0]), other.geometry, dict(other.meta)) for other in others),
        frame=Frame.of(case.layers[0]),
        note=dict(note),
    )


def _others(note: Mapping[str, Any], first: ImageVolume, cases: Sequence[ImageVolume]) -> list[ImageVolume]:
    """Return the images that the labels were made on as further channels of the first, whatever is chosen now."""
    if not note.get("channels"):
        return []
    mine = {str(layer.unique_id) for layer in first.layers}
    found = [next((case for case in cases if case.id == one), None) for one in note["ids"] if one not in mine]
    there = [case for case in found if case is not None]
    if len(there) < len(found):
        raise FmsegError(
            f"These labels were made on {len(found) + 1} images ({', '.join(note['channels'])}), and not all of them "
            "are open any more. Open them, and segment once more."
        )
    return there


def _point(layer: Any, label: int, measures: Sequence[Measure], at: Sequence[float]) -> tuple[int, int, int] | None:
    if label == 0:
        return None
    z, y, x = (round(float(v)) for v in np.asarray(layer.world_to_data(at))[-3:])
    inside = all(0 <= i < n for i, n in zip((z, y, x), layer.data.shape, strict=True))
    if inside and layer.data[z, y, x] == label:
        return (z, y, x)
    return next((measure.centre for measure in measures if measure.label == label), None)
