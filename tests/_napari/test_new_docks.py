"""The docks of correction at 1280 x 800, in both themes, where numbers and letters are those of other countries."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

pytest.importorskip("napari._qt")
if not os.environ.get("DISPLAY"):
    pytest.skip("needs a display: run under xvfb-run", allow_module_level=True)
from qtpy.QtCore import QLocale
from qtpy.QtWidgets import QAbstractButton

from napari_fmseg._napari.layers import image_layers
from napari_fmseg.core.volume import Geometry, Volume


@pytest.fixture(params=["de_DE", "zh_CN"])
def locale(request: pytest.FixtureRequest) -> Iterator[str]:
    before = QLocale()
    QLocale.setDefault(QLocale(request.param))
    yield request.param
    QLocale.setDefault(before)


def test_every_button_is_whole_and_the_window_keeps_its_size(make_napari_viewer: Any, qtbot: Any, locale: str) -> None:
    viewer = make_napari_viewer(show=True)
    window = viewer.window._qt_window
    window.resize(1280, 800)
    grid = Geometry.from_spacing((6, 8, 10), (5.0, 2.5, 1.5), (-310, 120, -75))
    data = np.random.default_rng(0).integers(-1000, 1000, grid.shape).astype(np.int16)
    for array, options, _ in image_layers(Volume(data, grid, {"modality": "CT"}), "CT"):
        viewer.add_image(array, **options)
    for name, page in (("View", None), ("nnInteractive", None), ("Segment", "queue"), ("Teach", "review")):
        dock, widget = viewer.window.add_plugin_dock_widget("napari-fmseg", name)
        if page == "queue":
            widget.queue_section.button.setChecked(True)
        elif page == "review":
            widget.pages.setCurrentIndex(3)
        for theme in ("dark", "light"):
            viewer.theme = theme
            qtbot.wait(100)
            assert (window.width(), window.height()) == (1280, 800), name
            shown = [b for b in widget.findChildren(QAbstractButton) if b.isVisible() and b.text()]
            assert shown
            for button in shown:
                assert button.width() >= button.minimumSizeHint().width(), (name, theme, button.text())
            if name == "View":
                assert "-1350 to 150" in widget.window_box.itemText(1)  # as everywhere in the window
        dock.close()
        qtbot.wait(50)
