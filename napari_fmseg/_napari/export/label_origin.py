"""Where the labels of a layer come from: the image they lie on, its file, the model; export needs all of it.

Imports no napari.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from napari_fmseg._napari.choosers.image_volumes import cases_of
from napari_fmseg._napari.choosers.label_pairing import image_of, is_of, label_map, lies_on
from napari_fmseg._napari.common.tooltips import EXPORT
from napari_fmseg._napari.layer_transform import fmseg_metadata
from napari_fmseg._napari.layers import as_filed
from napari_fmseg.core.volume import Geometry, LabelMap, Volume
from napari_fmseg.io.export import is_dicom_source

__all__ = ["Origin", "in_file_order", "label_map_to_write", "origin_of", "snapshot"]


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
    ambiguous
        Names of the images on whose voxels the labels lie, if nobody knows to which of them they belong.
    """

    filed: Geometry | None = None
    meta: Mapping[str, Any] | None = None
    source: Path | None = None
    model: str = ""
    ambiguous: tuple[str, ...] = ()

    @property
    def series(self) -> str | None:
        """Which DICOM series it was."""
        return str((self.meta or {}).get("series_uid") or "") or None

    def why_no_dicom(self) -> str:
        """Return why no DICOM SEG can be written, or "" if one can; looks at the disk."""
        if self.ambiguous:
            names = ", ".join(self.ambiguous)
            return (f"The labels lie on the voxels of {names}, and it is unknown on which they were made. Close "
                    "the others; a DICOM SEG must not refer to another patient's series.")  # fmt: skip
        if self.source is None:
            return EXPORT.dicom_disabled
        if self.source.suffix.lower() == ".zip":
            return f"A DICOM SEG refers to files, but {self.source.name} is a zip. Unpack it and open the folder."
        if not self.source.exists():
            return f"{self.source} is no longer there. Connect its drive, or open the series again."
        return "" if is_dicom_source(self.source) else f"{EXPORT.dicom_disabled} {self.source.name} is not."

    def like(self, labels: LabelMap) -> Volume | None:
        """Return the image as far as a label file needs it (its voxels are not there), if the labels lie on it."""
        if self.filed is None or not labels.geometry.matches(self.filed):
            return None
        return Volume(np.broadcast_to(np.uint8(0), self.filed.shape), self.filed, dict(self.meta or {}))


def origin_of(layer: Any, layers: Iterable[Any]) -> Origin:
    """Return where the labels of a layer come from.

    Parameters
    ----------
    layer
        A labels layer.
    layers
        All layers of the viewer, of which one may be its image.
    """
    layers = list(layers)
    recorded = fmseg_metadata(layer)
    made, home = recorded.get("made") or {}, image_of(layer, layers)
    is_its = home is not None and (is_of(layer, home) or lies_on(layer, home))
    image = fmseg_metadata(home.layers[0]) if home is not None and is_its else {}
    source = image.get("source") or recorded.get("source") or ""
    filed = image.get("filed") or recorded.get("filed")
    below = [case.name for case in cases_of(layers) if is_of(layer, case) is None and lies_on(layer, case)]
    return Origin(
        filed if isinstance(filed, Geometry) else None,
        dict(image.get("meta") or recorded.get("meta") or {}),
        Path(source) if source else None,
        str(made.get("model") or ""),
        tuple(below) if home is None and len(below) > 1 else (),
    )


def snapshot(layer: Any, layers: Iterable[Any]) -> LabelMap:
    """Copy the labels of a layer as they are now, so that painting on does not change what is written.

    Raises
    ------
    GeometryMismatch
        If it cannot be recorded where they lie.
    """
    labels = label_map(layer, layers)
    return replace(labels, data=np.array(labels.data))


def label_map_to_write(layer: Any, layers: tuple[Any, ...] = ()) -> LabelMap:
    """Return the label map to write for a labels layer: in the order and at the place of the file of its image.

    Parameters
    ----------
    layer
        A napari Labels layer with three axes.
    layers
        The viewer's layers. Where `layer` was made by hand, the image under it tells the place:
        napari's scale and translate alone cannot hold an oblique one.

    Raises
    ------
    GeometryMismatch
        If the layer has not three axes, or nobody can tell where it lies.
    """
    return in_file_order(label_map(layer, layers), origin_of(layer, layers))


def in_file_order(labels: LabelMap, origin: Origin) -> LabelMap:
    """List labels as the file of their image is listed."""
    return as_filed(labels, origin.filed)
