"""Cases to try everything on, without a download: File > Open Sample > fmseg."""

from __future__ import annotations

from napari_fmseg._napari.layers import LayerData, image_layers, labels_layer
from napari_fmseg._napari.reader import watch_current_viewer
from napari_fmseg.datasets.phantom import Difficulty, phantom_ct

__all__ = ["phantom_easy_sample", "phantom_hard_sample", "phantom_sample"]

_SEEDS: dict[Difficulty, int] = {"easy": 11, "normal": 7, "hard": 4}


def phantom_sample() -> list[LayerData]:
    """Make a CT phantom as an image layer, and its truth as a labels layer on it, both in millimetres."""
    return _phantom("normal", "phantom CT")


def phantom_easy_sample() -> list[LayerData]:
    """Make a phantom with contrast medium, clear tumours and little noise, and its truth."""
    return _phantom("easy", "phantom CT, easy")


def phantom_hard_sample() -> list[LayerData]:
    """Make a phantom with faint tumours, strong noise and streaks from metal, and its truth."""
    return _phantom("hard", "phantom CT, hard")


def _phantom(difficulty: Difficulty, name: str) -> list[LayerData]:
    watch_current_viewer()
    volume, truth = phantom_ct(_SEEDS[difficulty], difficulty=difficulty)
    return [*image_layers(volume, name), labels_layer(truth, f"{name}, truth")]
