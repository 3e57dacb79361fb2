"""Labels layers as files: NIfTI, NRRD and MetaImage, in the order and place of the image that they lie on."""

from __future__ import annotations

import sys
from typing import Any

from napari_fmseg._napari.choosers.label_pairing import label_map
from napari_fmseg._napari.export.label_origin import in_file_order, origin_of
from napari_fmseg.core.volume import LabelMap
from napari_fmseg.io import write_labels

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

    viewer = None
    if "napari" in sys.modules:
        import napari

        viewer = napari.current_viewer()
    layers = () if viewer is None else tuple(viewer.layers)
    written = str(write_labels(filed_labels(Labels(data, **options), layers), path))
    for layer in layers:
        if layer.data is data:
            from napari_fmseg._napari.recovery.autosave import Recovery

            Recovery.of(viewer).settled(layer)
    return [written]


def filed_labels(layer: Any, layers: tuple[Any, ...] = ()) -> LabelMap:
    """Make the label map to write for a labels layer: in the order and at the place of the file of its image.

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
