"""Which labels belong to which image; every dock that brings the two together asks here, and nowhere else.

Labels note in their metadata on which image they were made: the layers' ids and, for the next time they are opened, its
file and grid. Labels that nobody made here, such as those of a label file, have no such note. They belong to the only
open image on whose voxels they lie; if there are several, nobody knows, and the user is asked.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from napari_fmseg._napari.choosers.image_volumes import ImageVolume, case_with, cases_of
from napari_fmseg._napari.layer_transform import (
    TOOL,
    add_metadata,
    fmseg_metadata,
    geometry_of,
    has_spacing,
    same_place,
)
from napari_fmseg._napari.layers import labels_of
from napari_fmseg.core.errors import GeometryMismatch
from napari_fmseg.core.volume import NO_SPACING, Geometry, LabelMap

__all__ = [
    "image_of",
    "is_of",
    "label_map",
    "labels_for",
    "lies_on",
    "note_image",
    "note_new_labels",
    "record_of",
    "why_ask",
]

NOTE = "image"  # the entry of the metadata


def record_of(case: ImageVolume, others: Sequence[ImageVolume] = (), channels: Sequence[str] = ()) -> dict[str, Any]:
    """Return the note that labels carry which were made on an image, and on `others` as further channels of it."""
    layers = [layer for one in (case, *others) for layer in one.layers]
    return {
        "ids": tuple(str(layer.unique_id) for layer in layers),
        "name": case.name,
        "source": _source(case.layers[0]),
        "geometry": case.geometry,
        "channels": tuple(channels),
    }


def note_image(layer: Any, case: ImageVolume) -> None:
    """Note on labels that they belong to an image."""
    add_metadata(layer, **{NOTE: record_of(case)})


def note_new_labels(event: Any) -> None:
    """Note the image of labels that are new and empty, as napari's own button makes them: the one that was chosen.

    For the event `inserted` of a viewer's layers, which comes before the new layer is chosen.
    """
    from napari.layers import Labels

    layer, layers = event.value, event.source
    if not isinstance(layer, Labels) or _record(layer) or not isinstance(layer.data, np.ndarray) or layer.data.any():
        return
    active = layers.selection.active
    home = None if active is None or active is layer else _home(active, cases_of(layers))
    if home is not None and same_place(layer, home.layers[0]):
        note_image(layer, home)


def is_of(layer: Any, case: ImageVolume) -> bool | None:
    """Return whether labels belong to an image, by what is noted on them; None if nothing is."""
    recorded, image = fmseg_metadata(layer), fmseg_metadata(case.layers[0])
    record = _record(layer)
    if set(record.get("ids", ())) & {str(part.unique_id) for part in case.layers}:
        return True
    mine, theirs = ((one.get("project"), one.get("case")) for one in (recorded, image))
    if all(mine) and mine == theirs:
        return True
    if record.get("source") and record["source"] == _source(case.layers[0]):
        grid, there = record.get("geometry"), _geometry(case)
        return isinstance(grid, Geometry) and there is not None and grid.matches(there, atol_mm=0.01)  # opened again
    if record.get("name") == case.name and not record.get("source") and lies_on(layer, case):
        return None  # perhaps that of before napari was started anew; it has no file by which to tell
    return False if record or (all(mine) and all(theirs)) else None


def image_of(layer: Any, layers: Iterable[Any]) -> ImageVolume | None:
    """Return the open image that labels belong to; None if it is not open, or if nobody knows."""
    cases = cases_of(layers)
    for one in _record(layer).get("ids", ()):  # the first channel before the others
        for case in cases:
            if any(str(part.unique_id) == one for part in case.layers):
                return case
    known = [is_of(layer, case) for case in cases]
    if True in known:
        return cases[known.index(True)]
    unknown = [case for case, known_to_be in zip(cases, known, strict=True) if known_to_be is None]
    below = [case for case in unknown if lies_on(layer, case)]
    found = below or unknown
    return found[0] if len(found) == 1 else None


def labels_for(case: ImageVolume, layers: Iterable[Any]) -> list[Any]:
    """List the labels layers that belong to an image, in their order."""
    from napari.layers import Labels

    layers = list(layers)
    mine = [layer for layer in layers if isinstance(layer, Labels) and layer.data.ndim == 3]
    own = [layer for layer in mine if fmseg_metadata(layer).get("role") != TOOL]
    return [layer for layer in own if _is_for(layer, case, layers)]


def _is_for(layer: Any, case: ImageVolume, layers: Sequence[Any]) -> bool:
    known = is_of(layer, case)
    if known is None:
        home = image_of(layer, layers)
        return home is not None and home.id == case.id
    return known


def why_ask(layer: Any, case: ImageVolume, layers: Iterable[Any]) -> str:
    """Return in a sentence why labels may not belong to an image, or ""."""
    known = is_of(layer, case)
    if known:
        return ""
    if known is False:
        recorded, record = fmseg_metadata(layer), _record(layer)
        name = record.get("name") or recorded.get("case") or "another image"
        return f"“{layer.name}” was made on “{name}”, not on “{case.name}”."
    below = [other for other in cases_of(layers) if other.id != case.id and lies_on(layer, other)]
    names = ", ".join(f"“{other.name}”" for other in below)
    if below and lies_on(layer, case):
        return f"“{layer.name}” lies on the voxels of “{case.name}”, but on those of {names}, too."
    return f"“{layer.name}” lies on the voxels of {names}, not on those of “{case.name}”." if below else ""


def label_map(layer: Any, layers: Iterable[Any]) -> LabelMap:
    """Make the label map that a labels layer shows; labels made by hand lie where the image lies under them.

    Parameters
    ----------
    layer
        A napari Labels layer with three axes.
    layers
        All layers of the viewer: a layer that another tool made over an image knows nothing of its oblique direction.

    Raises
    ------
    GeometryMismatch
        If it cannot be recorded where the voxels lie.
    """
    layers = list(layers)
    if isinstance(fmseg_metadata(layer).get("geometry"), Geometry):
        return labels_of(layer)
    home = image_of(layer, layers)
    below = [home] if home is not None else [case for case in cases_of(layers) if is_of(layer, case) is None]
    below = [case for case in below if same_place(layer, case.layers[0])]
    if not below:
        return labels_of(layer)
    grid = below[0].geometry
    if not all(case.geometry.matches(grid, atol_mm=0.01) for case in below):
        names = ", ".join(f"“{case.name}”" for case in below)
        raise GeometryMismatch(
            f"“{layer.name}” lies on {names} in this window, which lie in different places of the patient, and nothing "
            "states to which of them the labels belong. Close the images that they were not made on."
        )
    labels = labels_of(layer, grid)
    spaced = any(has_spacing(case.layers[0]) for case in below)
    meta = {key: value for key, value in labels.meta.items() if key != NO_SPACING or not spaced}
    return replace(labels, meta=meta)


def lies_on(layer: Any, case: ImageVolume) -> bool:
    """Return whether labels have the voxels of an image: in the patient if they know their place there, else in the
    window.
    """
    if tuple(layer.data.shape[-3:]) != tuple(case.layers[0].data.shape[-3:]):
        return False
    if not isinstance(fmseg_metadata(layer).get("geometry"), Geometry):
        return same_place(layer, case.layers[0])
    there = _geometry(case)
    try:
        return there is not None and geometry_of(layer).matches(there, atol_mm=0.1)
    except GeometryMismatch:
        return False


def _home(layer: Any, cases: Sequence[ImageVolume]) -> ImageVolume | None:
    """Return the image that a layer is, or was made on."""
    own = case_with(cases, layer)
    return own or next((case for case in cases if is_of(layer, case)), None)


def _geometry(case: ImageVolume) -> Geometry | None:
    try:
        return case.geometry
    except GeometryMismatch:
        return None


def _record(layer: Any) -> Mapping[str, Any]:
    recorded = fmseg_metadata(layer)
    record, made = recorded.get(NOTE), recorded.get("made")
    if isinstance(record, Mapping):
        return record
    return {"ids": (str(made["image"]),)} if isinstance(made, Mapping) and "image" in made else {}


def _source(layer: Any) -> str:
    """Return the file of an image layer, and the series where a folder has several; "" if it has none."""
    recorded = fmseg_metadata(layer)
    path = recorded.get("source") or getattr(getattr(layer, "source", None), "path", None) or ""
    series = (recorded.get("meta") or {}).get("series_uid") or ""
    return f"{path} {series}".strip() if path else ""
