"""Open a volume and the stages of its segmentation in napari, each stage on its own grid and in its place.

python scripts/open_stages.py IMAGE NAME=STAGE.nii.gz ...
"""

from __future__ import annotations

import sys
from pathlib import Path

import napari
from stages_picture import read_stage

from napari_fmseg import LabelMap, Volume, read_volume


def add(viewer: napari.Viewer, name: str, volume: Volume, visible: bool) -> None:
    """Add one layer."""
    grid = volume.geometry
    place = {
        "scale": grid.spacing,
        "translate": grid.direction.T @ grid.origin,
        "units": ("mm", "mm", "mm"),
        "axis_labels": ("z", "y", "x"),
    }
    if isinstance(volume, LabelMap):
        viewer.add_labels(volume.data, name=name, visible=visible, opacity=0.5, **place)
    elif name == "image":
        viewer.add_image(volume.data, name=name, colormap="gray", **place)
    else:
        viewer.add_image(volume.data, name=name, visible=visible, colormap="inferno", blending="additive", **place)


def main(words: list[str]) -> None:
    """Read the command line and show the window until it is closed."""
    image, *named = words
    viewer = napari.Viewer(title="napari-fmseg: demo")
    add(viewer, "image", read_volume(image), True)
    for word in named:
        name, path = word.split("=", 1)
        add(viewer, name, read_stage(Path(path)), word == named[-1])
    napari.run()


if __name__ == "__main__":
    main(sys.argv[1:])
