"""Labels layers as files: NIfTI, NRRD and MetaImage, in the order and place of the image that they lie on."""

from __future__ import annotations

import sys
from typing import Any

from napari_fmseg._napari.export.label_origin import label_map_to_write
from napari_fmseg.io import write_labels

__all__ = ["write_labels_layer"]


def write_labels_layer(path: str, data: Any, options: dict[str, Any]) -> list[str]:
    """Write one labels layer, atomically; npe2 calls this.

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
    written = str(write_labels(label_map_to_write(Labels(data, **options), layers), path))
    for layer in layers:
        if layer.data is data:
            from napari_fmseg._napari.recovery.autosave import Recovery  # without a window there may be no Qt

            Recovery.of(viewer).mark_saved(layer)
    return [written]
