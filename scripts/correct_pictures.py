"""Makes the pictures of docs/tutorials/correct.md on a CT phantom whose labels were made wrong on purpose."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

Labels = npt.NDArray[Any]
ORGAN = "liver"


def correct(folder: Path) -> None:
    """Write all pictures."""
    import napari
    from screenshots import SEED, SIZE, Photographer, rest, wait

    from napari_fmseg import phantom_ct
    from napari_fmseg._napari.common.widgets import Collapsible
    from napari_fmseg._napari.correct.shown_slice import go_to_slice
    from napari_fmseg._napari.layers import image_layers, labels_layer
    from napari_fmseg.core.volume import LabelMap

    folder.mkdir(parents=True, exist_ok=True)
    viewer = napari.Viewer(show=True)
    viewer.window.resize(*SIZE)
    napari.settings.get_settings().appearance.theme = "dark"
    camera = Photographer(viewer, folder)
    scan, truth = phantom_ct(SEED, spacing=(3.0, 1.7, 1.7))
    value = next(label for label, name in truth.names.items() if name == ORGAN)
    answer = LabelMap(shifted(truth.data, value), truth.geometry, truth.meta, truth.names, truth.colors)
    [(data, options, _)] = image_layers(scan, "abdomen")
    viewer.add_image(data, **options)
    data, options, _ = labels_layer(answer, "labels")
    layer = viewer.add_labels(np.array(data), **options)
    right = np.asarray(labels_layer(truth, "truth")[0])
    _, dock = viewer.window.add_plugin_dock_widget("napari-fmseg", "Correct")
    layer.selected_label = value
    there = np.flatnonzero((right == value).any(axis=(1, 2)))
    slices = [int(z) for z in np.linspace(there[0], there[-1], 5)[1:4]]
    middle = np.argwhere(right[slices[1]] == value).mean(0)

    def show(z: int) -> None:
        go_to_slice(viewer, layer, 0, z)
        rest(0.5)

    def ready() -> bool:
        return dock.session.draft is not None and dock.session.draft.is_whole and not dock.session.running

    viewer.reset_view()
    show(slices[1])
    camera.take("1-answer")
    for z in slices:
        show(z)
        wrong = np.nonzero(right[z] != layer.data[z])
        layer.data_setitem((np.full(wrong[0].shape, z), *wrong), right[z][wrong])
    show(slices[1])
    camera.take("2-corrected")
    show((slices[0] + slices[1]) // 2)
    dock.spread.click()
    wait(ready)
    camera.take("3-spread")
    dock.preview.accept.click()
    camera.take("4-accepted")
    layer.selected_label = value
    brush = next(part for part in dock.findChildren(Collapsible) if "Brush" in part.button.text())
    brush.button.click()
    dock.brush.set_range_around((slices[1], *(round(float(v)) for v in middle)), 0)
    show(slices[1])
    camera.take("5-range")
    dock.brush.limit.click()
    brush.button.click()
    empty = viewer.add_labels(np.zeros_like(layer.data), name="painted", scale=layer.scale, translate=layer.translate,
                              units=layer.units, features=layer.features, colormap=layer.colormap)  # fmt: skip
    layer.visible = False
    empty.selected_label = value
    for z in np.linspace(there[0], there[-1], 7)[1:6].round().astype(int):
        show(int(z))
        where = np.nonzero(right[z] == value)
        empty.data_setitem((np.full(where[0].shape, z), *where), value)
    show((slices[0] + slices[1]) // 2)
    dock.fill.click()
    wait(ready)
    camera.take("6-fill")
    dock.preview.accept.click()
    viewer.layers.clear()
    dock.close_down()
    viewer.close()


def shifted(labels: Labels, value: int) -> Labels:
    """Return labels in which an organ lies a little to the side and is too small on the other, as models err."""
    from scipy import ndimage

    organ = labels == value
    moved = np.roll(ndimage.binary_erosion(organ, iterations=2), (3, -4), (1, 2))
    wrong = np.where(organ, 0, labels)
    wrong[moved & (wrong == 0)] = value
    return np.asarray(wrong.astype(labels.dtype))
