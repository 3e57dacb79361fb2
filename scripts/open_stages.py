"""Open a volume and the stages of its segmentation in napari, beside the Segment panel.

python scripts/open_stages.py IMAGE NAME=STAGE.nii.gz ...
"""

from __future__ import annotations

import sys
from pathlib import Path

import napari
from stages_picture import read_stage

from napari_fmseg import LabelMap, read_volume
from napari_fmseg._napari.layers import image_layers, labels_layer, map_layer


def main(words: list[str]) -> None:
    """Read the command line and show the window until it is closed."""
    image, *named = words
    viewer = napari.Viewer(title="napari-fmseg: demo")
    volume = read_volume(image)
    for data, options, _ in image_layers(volume, "CT phantom", source=image):
        viewer.add_image(data, **options)
    for word in named:
        name, path = word.split("=", 1)
        stage = read_stage(Path(path))
        shown = {"visible": name == "labels"}
        if isinstance(stage, LabelMap):
            data, options, _ = labels_layer(stage, name, source=path)
            viewer.add_labels(data, **{**options, **shown})
        else:
            data, options, _ = map_layer(stage, name)
            viewer.add_image(data, **{**options, **shown})
    viewer.layers.selection.active = viewer.layers["labels"] if "labels" in viewer.layers else viewer.layers[-1]
    _, dock = viewer.window.add_plugin_dock_widget("napari-fmseg", "Segment")
    dock.model.choose("fmsf-phantom-ct")
    napari.run()


if __name__ == "__main__":
    main(sys.argv[1:])
