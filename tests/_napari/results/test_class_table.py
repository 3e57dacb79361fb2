"""The table tells what is in a labels layer, follows what the user paints, and a click goes to the structure."""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("napari")
from qtpy.QtCore import QPoint, Qt
from qtpy.QtGui import QColor
from qtpy.QtWidgets import QColorDialog, QFileDialog

from napari_fmseg._napari.layers import labels_layer, labels_of
from napari_fmseg._napari.results.class_table import COLOR, ML, NAME, SHOWN, VOXELS, ClassTable
from napari_fmseg.core.volume import Geometry, LabelMap

GRID = Geometry.from_spacing((8, 20, 30), (5.0, 2.0, 1.0), (10, -20, 30))


def organs() -> LabelMap:
    data = np.zeros(GRID.shape, np.uint8)
    data[2:6, 4:10, 3:9] = 1
    data[6, 12:18, 20:26] = 2
    names = {1: "liver", 2: "spleen", 3: "tumour"}
    return LabelMap(data, GRID, {}, names, {1: (1.0, 0.0, 0.0), 2: (0.0, 1.0, 0.0), 3: (0.0, 0.0, 1.0)})


@pytest.fixture
def make_table(make_napari_viewer: Any, qtbot: Any) -> Iterator[Callable[[], tuple[ClassTable, Any]]]:
    tables: list[ClassTable] = []

    def made() -> tuple[ClassTable, Any]:
        viewer = make_napari_viewer()
        data, options, _ = labels_layer(organs(), "organs")
        layer = viewer.add_labels(data, **options)
        table = ClassTable(viewer)
        viewer.window.add_dock_widget(table)
        tables.append(table)
        with qtbot.waitSignal(table.measured, timeout=60_000):
            table.set_layer(layer)
        return table, layer

    yield made
    for table in tables:
        table.close_down()
    tables.clear()


def texts(table: ClassTable, column: int) -> list[str]:
    return [table.table.item(row, column).text() for row in range(table.table.rowCount())]


def click(qtbot: Any, table: ClassTable, row: int, column: int) -> None:
    box = table.table.visualItemRect(table.table.item(row, column))
    at = box.center() if column != SHOWN else QPoint(box.left() + 10, box.center().y())
    qtbot.mouseClick(table.table.viewport(), Qt.MouseButton.LeftButton, pos=at)


def test_every_class_stands_with_its_name_and_volume_also_the_empty(make_table: Any) -> None:
    table, _ = make_table()
    assert texts(table, NAME) == ["liver", "spleen", "tumour"]
    assert texts(table, VOXELS) == ["144", "36", "0"]
    assert texts(table, ML) == ["1.4", "0.36", "0"]  # 10 mm3 a voxel


def test_a_click_goes_to_the_structure(make_table: Any, qtbot: Any) -> None:
    table, layer = make_table()
    click(qtbot, table, 1, NAME)
    dims, camera = table._viewer.dims, table._viewer.scene.camera
    index = layer.world_to_data(dims.point)
    assert round(index[0]) == 6
    y, x = (round(v) for v in layer.world_to_data((dims.point[0], *camera.center[-2:]))[1:])
    assert layer.data[6, y, x] == 2
    assert 14 <= y <= 15
    assert layer.selected_label == 2
    click(qtbot, table, 2, NAME)  # an empty one has nowhere to go to
    assert layer.selected_label == 3
    assert round(layer.world_to_data(dims.point)[0]) == 6


def test_a_class_is_hidden_and_shown_without_losing_its_colour(make_table: Any, qtbot: Any) -> None:
    table, layer = make_table()
    click(qtbot, table, 0, SHOWN)
    assert layer.get_color(1)[3] == 0
    assert layer.get_color(2)[3] == 1
    assert labels_of(layer).colors[1] == pytest.approx((1.0, 0.0, 0.0))
    click(qtbot, table, 0, SHOWN)
    np.testing.assert_allclose(layer.get_color(1), (1, 0, 0, 1))
    assert layer.get_color(99)[3] == 1  # what has no name is never painted invisibly


def test_a_class_gets_another_colour(make_table: Any, qtbot: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    table, layer = make_table()
    monkeypatch.setattr(QColorDialog, "getColor", lambda *_: QColor(0, 255, 255))
    click(qtbot, table, 1, COLOR)
    np.testing.assert_allclose(layer.get_color(2), (0, 1, 1, 1), atol=0.01)
    np.testing.assert_allclose(layer.get_color(1), (1, 0, 0, 1), atol=0.01)


def test_a_new_name_stands_in_the_status_bar_and_goes_along_on_export(make_table: Any) -> None:
    table, layer = make_table()
    table.table.item(0, NAME).setText("left lobe")
    assert labels_of(layer).names == {1: "left lobe", 2: "spleen", 3: "tumour"}
    told = layer.get_status(layer.data_to_world((3, 5, 5)), view_direction=None, dims_displayed=[1, 2], world=True)
    assert "left lobe" in str(told)
    table.table.item(0, NAME).setText("  ")  # a name cannot be taken away by mistake
    assert texts(table, NAME)[0] == "left lobe"


def test_what_is_painted_is_counted(make_table: Any, qtbot: Any) -> None:
    table, layer = make_table()
    with qtbot.waitSignal(table.measured, timeout=60_000):
        layer.data_setitem((np.array([0, 0, 1]), np.array([0, 1, 0]), np.array([0, 0, 0])), 3)
    assert texts(table, VOXELS) == ["144", "36", "3"]
    with qtbot.waitSignal(table.measured, timeout=60_000):
        layer.undo()
    assert texts(table, VOXELS) == ["144", "36", "0"]
    with qtbot.waitSignal(table.measured, timeout=60_000):
        layer.data_setitem((np.array([0]), np.array([0]), np.array([0])), 9)  # a class that nobody named
    assert texts(table, NAME)[-1] == "label 9"


def test_looking_at_another_plane_counts_nothing(make_table: Any, qtbot: Any) -> None:
    table, _ = make_table()
    with qtbot.assertNotEmitted(table.measured, wait=700):
        table._viewer.dims.set_point(0, 25.0)


def test_statistics_are_saved_as_a_table(
    make_table: Any, qtbot: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    table, _ = make_table()
    path = tmp_path / "organs.csv"
    monkeypatch.setattr(QFileDialog, "getSaveFileName", lambda *_: (str(path), ""))
    qtbot.mouseClick(table.save, Qt.MouseButton.LeftButton)
    qtbot.waitUntil(path.exists, timeout=60_000)
    rows = list(csv.DictReader(path.read_text().splitlines()))
    assert [(row["name"], row["voxels"]) for row in rows] == [("liver", "144"), ("spleen", "36"), ("tumour", "0")]


def test_without_labels_the_button_says_why_it_cannot_be_pressed(make_table: Any) -> None:
    table, _ = make_table()
    table.set_layer(None)
    assert not table.save.isEnabled()
    assert "no labels" in table.save.toolTip()
    assert table.table.isHidden()


@pytest.mark.parametrize("colors", ["napari's own cycle", "another plugin's"])
def test_hiding_a_class_of_another_plugins_labels_leaves_the_other_colours(
    make_table: Any, qtbot: Any, colors: str
) -> None:
    table, _ = make_table()
    data = np.zeros((8, 20, 30), np.int32)
    for row, value in enumerate((*range(1, 7), 1000)):
        data[row, row : row + 3, row:] = value
    options = {}
    if colors == "another plugin's":
        orange, gone = (1.0, 0.5, 0.0, 1.0), (0.0, 0.0, 0.0, 0.0)
        options["colormap"] = {None: (0.2, 0.2, 0.2, 1.0), 0: gone, 1: orange, 2: (0.0, 0.5, 1.0, 1.0)}
    layer = table._viewer.add_labels(data, name="cells", **options)
    with qtbot.waitSignal(table.measured, timeout=60_000):
        table.set_layer(layer)
    every = np.array([1, 2, 3, 4, 5, 6, 40, 1000])
    before = layer.colormap.map(every)
    row = texts(table, NAME).index("label 2")
    click(qtbot, table, row, SHOWN)
    after = layer.colormap.map(every)
    np.testing.assert_allclose(np.delete(after, 1, 0), np.delete(before, 1, 0), atol=1 / 255)
    assert after[1, 3] == 0
    click(qtbot, table, row, SHOWN)
    np.testing.assert_allclose(layer.colormap.map(every), before, atol=1 / 255)
