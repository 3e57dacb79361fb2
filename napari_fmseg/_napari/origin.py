"""Where the labels of a layer come from: the image they lie on, its file, the model; export needs all of it.

Imports no napari.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from napari_fmseg._napari.layers import KEY, as_filed, geometry_of, labels_of
from napari_fmseg._napari.tooltips import EXPORT
from napari_fmseg.errors import GeometryMismatch
from napari_fmseg.io.exporting import is_dicom_source
from napari_fmseg.volume import Geometry, LabelMap, Volume

__all__ = ["Origin", "in_file_order", "origin_of", "snapshot"]


@dataclass(frozen=True, eq=False)
class Origin:
    """Where labels come from.

    Attributes
    ----------
    filed
        The grid of the image's file, in its order.
    meta
        What that file said.
    source
        Its path, or None.
    model
        What made the labels, or "".
    """

    filed: Geometry | None = None
    meta: Mapping[str, Any] | None = None
    source: Path | None = None
    model: str = ""

    @property
    def series(self) -> str | None:
        """Which DICOM series it was."""
        return str((self.meta or {}).get("series_uid") or "") or None

    def why_no_dicom(self) -> str:
        """Say why no DICOM SEG can be written, or "" if one can; looks at the disk."""
        if self.source is None:
            return EXPORT.dicom_disabled
        if self.source.suffix.lower() == ".zip":
            return f"A DICOM SEG refers to files, but {self.source.name} is a zip. Unpack it and open the folder."
        if not self.source.exists():
            return f"{self.source} is no longer there. Connect its drive, or open the series again."
        return "" if is_dicom_source(self.source) else f"{EXPORT.dicom_disabled} {self.source.name} is not."

    def like(self, labels: LabelMap) -> Volume | None:
        """Give the image as far as a label file needs it (its voxels are not there), if the labels lie on it."""
        if self.filed is None or not labels.geometry.matches(self.filed):
            return None
        return Volume(np.broadcast_to(np.uint8(0), self.filed.shape), self.filed, dict(self.meta or {}))


def origin_of(layer: Any, layers: Iterable[Any]) -> Origin:
    """Tell where the labels of a layer come from.

    Parameters
    ----------
    layer
        A labels layer.
    layers
        All layers of the viewer: the image is the one that it was made on, else the first on the same grid.
    """
    told = _told(layer)
    made = told.get("made") or {}
    image = _told(_image_of(layer, made.get("image"), layers))
    source = image.get("source") or told.get("source") or ""
    filed = image.get("filed") or told.get("filed")
    return Origin(
        filed if isinstance(filed, Geometry) else None,
        dict(image.get("meta") or told.get("meta") or {}),
        Path(source) if source else None,
        str(made.get("model") or ""),
    )


def snapshot(layer: Any) -> LabelMap:
    """Copy the labels of a layer as they are now, so that painting on does not change what is written."""
    labels = labels_of(layer)
    return replace(labels, data=np.array(labels.data))


def in_file_order(labels: LabelMap, origin: Origin) -> LabelMap:
    """List labels as the file of their image is listed."""
    return as_filed(labels, origin.filed)


def _told(layer: Any) -> Mapping[str, Any]:
    told = None if layer is None else layer.metadata.get(KEY)
    return told if isinstance(told, Mapping) else {}


def _image_of(layer: Any, made_on: Any, layers: Iterable[Any]) -> Any:
    try:
        grid = geometry_of(layer)
    except GeometryMismatch:
        return None
    images = [other for other in layers if "channel" in _told(other)]
    for other in images:
        if made_on is not None and str(other.unique_id) == made_on:
            return other
    return next((other for other in images if geometry_of(other).matches(grid)), None)
