"""Labels layers as files: NIfTI, NRRD and MetaImage, in the order and place of the image that they lie on."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np

from napari_fmseg._napari.layers import KEY, as_filed, geometry_of, labels_of
from napari_fmseg.io import write_labels
from napari_fmseg.volume import Geometry, LabelMap

__all__ = ["filed_labels", "write_labels_layer"]


def write_labels_layer(path: str, data: Any, options: dict[str, Any]) -> list[str]:
    """Write one labels layer, whole or not at all; npe2 calls this.

    Parameters
    ----------
    path
        Ends in .nii.gz, .nii, .nrrd or .mha.
    data
        Integers (z, y, x).
    options
        As `napari.layers.Layer.as_layer_data_tuple` gives them.

    Returns
    -------
    list of str
        The path.

    Raises
    ------
    UnwritableVolume
        If the place or the suffix cannot take it.
    GeometryMismatch
        If the layer has not three axes.
    """
    from napari.layers import Labels

    layers = ()
    if "napari" in sys.modules:
        import napari

        viewer = napari.current_viewer()
        layers = () if viewer is None else tuple(viewer.layers)
    labels = filed_labels(Labels(data, **options), layers)
    return [str(write_labels(labels, path))]


def filed_labels(layer: Any, layers: tuple[Any, ...] = ()) -> LabelMap:
    """Make the label map to write for a labels layer: in the order and at the place of the file of its image.

    Parameters
    ----------
    layer
        A napari Labels layer with three axes.
    layers
        The viewer's layers. Where `layer` was made by hand, the image of the same grid among them tells the place:
        napari's scale and translate alone cannot hold an oblique one.

    Raises
    ------
    GeometryMismatch
        If the layer has not three axes.
    """
    labels = labels_of(layer)
    told = layer.metadata.get(KEY) or _told_by_neighbour(layer, layers)
    place = told.get("geometry")
    if KEY not in layer.metadata and isinstance(place, Geometry):
        labels = LabelMap(labels.data, place, told.get("meta") or {}, labels.names, labels.colors)
    return as_filed(labels, told.get("filed"))


def _told_by_neighbour(layer: Any, layers: tuple[Any, ...]) -> dict[str, Any]:
    """Return what is known of the first layer with a known place that lies on the same voxels as `layer`."""
    for other in layers:
        told = other.metadata.get(KEY) or {}
        known = told.get("geometry")
        if not isinstance(known, Geometry) or known.shape != tuple(layer.data.shape):
            continue
        is_in_place = geometry_of(other) == known
        is_same = np.allclose(layer.scale, other.scale[-3:], rtol=1e-5)
        if is_in_place and is_same and np.allclose(layer.translate, other.translate[-3:], atol=1e-3):
            return dict(told)
    return {}
