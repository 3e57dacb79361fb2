"""A plane of a held-out case: the user's labels and beside them what the network finds, as it learns."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
from qtpy.QtCore import Qt
from qtpy.QtGui import QImage, QPixmap
from qtpy.QtWidgets import QLabel, QWidget

from napari_fmseg._napari.common.tooltips import TEACH
from napari_fmseg._napari.common.widgets import NO_MARGINS, hbox, vbox

__all__ = ["PlaneView"]

SIDE = 118  # pixels
_TITLES = {"labels": "Your labels", "prediction": "The model's, so far"}
_TINT = 0.45


class PlaneView(QWidget):
    """Two pictures; hidden while there are none."""

    def __init__(self, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self.setToolTip(TEACH.picture)
        self.pictures = {name: QLabel() for name in _TITLES}
        pairs = [(self.pictures[name], QLabel(title)) for name, title in _TITLES.items()]
        for label in (label for pair in pairs for label in pair):
            label.setAlignment(Qt.AlignmentFlag.AlignCenter)
        hbox(*(vbox(*pair) for pair in pairs), of=self, margins=NO_MARGINS)
        self.hide()

    def show_plane(self, path: Path, colors: Mapping[int, Sequence[float]]) -> bool:
        """Show what the training wrote; says whether it could be read, as the next picture may be replacing it."""
        try:
            with np.load(path) as arrays:
                image, spacing = arrays["image"][0], arrays["spacing"]
                marks = {name: arrays[name][0] for name in _TITLES}
        except (OSError, KeyError, ValueError):
            return False
        for name, label in self.pictures.items():
            label.setPixmap(_pixmap(_tint(image, marks[name], colors), spacing[1:]))
        self.show()
        return True


def _tint(
    image: npt.NDArray[np.floating], marks: npt.NDArray[np.integer], colors: Mapping[int, Sequence[float]]
) -> npt.NDArray[np.uint8]:
    """Return the plane in grey with its structures in their colours, (y, x, 3)."""
    low, high = np.percentile(image, (1, 99))
    grey = np.clip((image - low) / max(float(high - low), 1e-6), 0, 1)
    out = np.repeat(grey[..., None], 3, 2)
    for value, color in colors.items():
        there = marks == value
        out[there] = (1 - _TINT) * out[there] + _TINT * np.array(color[:3])
    return np.ascontiguousarray(255 * out, np.uint8)


def _pixmap(rgb: npt.NDArray[np.uint8], spacing: npt.NDArray[np.floating]) -> QPixmap:
    """Make the picture as large as there is room, with pixels as wide and high as the voxels are."""
    height, width, _ = rgb.shape
    picture = QImage(rgb.tobytes(), width, height, 3 * width, QImage.Format.Format_RGB888)
    scale = SIDE / max(height * spacing[0], width * spacing[1])
    size = max(1, round(width * spacing[1] * scale)), max(1, round(height * spacing[0] * scale))
    return QPixmap.fromImage(picture).scaled(
        *size, Qt.AspectRatioMode.IgnoreAspectRatio, Qt.TransformationMode.SmoothTransformation
    )
