"""The plot of a training: its points, its legend, and that it can be read on every ground."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

pytest.importorskip("napari")
pytest.importorskip("pyqtgraph")

from napari_fmseg._napari.common import curves as rooms
from napari_fmseg._napari.common.curves import Curves

Make = Callable[..., Curves]


@pytest.fixture
def make_curves(qtbot: Any) -> Make:
    def made(**options: Any) -> Curves:
        curves = Curves(**options)
        qtbot.addWidget(curves)
        curves.resize(320, 200)
        curves.show()
        return curves

    return made


def picture(curves: Curves) -> np.ndarray:
    image = curves.grab().toImage().convertToFormat(curves.grab().toImage().Format.Format_RGB888)
    data = np.frombuffer(image.constBits().asstring(image.sizeInBytes()), np.uint8)
    return data.reshape(image.height(), image.bytesPerLine())[:, : 3 * image.width()].reshape(
        image.height(), image.width(), 3
    )


def near(image: np.ndarray, color: str) -> int:
    """Count the pixels of about this colour."""
    wanted = np.array([int(color[i : i + 2], 16) for i in (1, 3, 5)])
    return int((np.abs(image.astype(int) - wanted).max(-1) < 30).sum())


def test_points_are_kept_and_drawn_in_the_colour_of_their_class(make_curves: Make, qtbot: Any) -> None:
    curves = make_curves(colors={"liver": (1.0, 0.0, 0.0)})
    for x in range(5):
        curves.add(x, {"liver": x / 5, "spleen": 0.5, "nothing": float("nan")})
    assert curves.values("liver") == ([0, 1, 2, 3, 4], [0, 0.2, 0.4, 0.6, 0.8])
    assert curves.values("nothing") == ([], [])
    assert curves.color("liver") == "#ff0000"
    assert curves.color("spleen") in rooms.COLORS
    qtbot.wait(250)
    assert "liver&nbsp;0.800" in curves.legend.text()
    drawn = picture(curves)
    assert near(drawn, "#ff0000") > 50
    assert near(drawn, curves.color("spleen")) > 50


def test_the_first_point_alone_is_seen(make_curves: Make, qtbot: Any) -> None:
    curves = make_curves(colors={"loss": "#ff0000"})
    curves.add(1, {"loss": 0.7})
    qtbot.wait(250)
    plot = curves.plot.grab().toImage()
    reds = [
        plot.pixelColor(x, y).red() - plot.pixelColor(x, y).green()
        for x in range(plot.width())
        for y in range(plot.height())
    ]
    assert max(reds) > 150


def test_clear_takes_everything_away(make_curves: Make, qtbot: Any) -> None:
    curves = make_curves(colors={"loss": "#ff0000"})
    curves.add(1, {"loss": 0.7})
    qtbot.wait(250)
    curves.clear()
    qtbot.wait(250)
    assert curves.names == ()
    assert curves.legend.isHidden()
    assert near(picture(curves), "#ff0000") == 0


def test_a_long_training_keeps_its_shape_in_few_points(make_curves: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rooms, "MOST_POINTS", 64)
    curves = make_curves()
    for x in range(10_000):
        curves.add(x, {"loss": 2.0 * x})
    xs, ys = curves.values("loss")
    assert 32 <= len(xs) <= 65
    np.testing.assert_allclose(ys, 2 * np.array(xs))
    assert xs[0] < 200
    assert xs[-1] > 9_800


def test_the_axes_can_be_read_in_both_themes_also_when_the_theme_changes(make_curves: Make, qtbot: Any) -> None:
    curves = make_curves()
    curves.add(1, {"loss": 0.7})
    for back, front in (("#262930", "#f0f1f2"), ("#efebe9", "#3b3a39"), ("#262930", "#f0f1f2")):
        curves.setStyleSheet(f"QWidget {{ background: {back}; color: {front}; }}")
        qtbot.wait(300)
        assert curves.plot.getAxis("left").textPen().color().name() == front
        assert near(picture(curves), back) > 0.5 * 320 * 200


def test_an_axis_says_the_values_themselves(make_curves: Make, qtbot: Any) -> None:
    curves = make_curves(y_name="loss")
    for x in range(3):
        curves.add(x, {"loss": 0.001 * x})
    qtbot.wait(300)
    assert curves.plot.getAxis("left").labelString().count("0.001") == 0
