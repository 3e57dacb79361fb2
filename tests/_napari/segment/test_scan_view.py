"""A run in 3-D ends as one in slices does, labels open in 3-D, and the scan keeps its own slice numbers."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("napari")
pytest.importorskip("napari._qt")
from napari.components import ViewerModel
from qtpy.QtCore import Qt

from napari_fmseg._napari.layers import KEY, image_layers
from napari_fmseg._napari.segment.dock import SegmentDock
from napari_fmseg._napari.segment.scan_view import DERIVED, attend
from napari_fmseg.core.events import Event, StageResult
from napari_fmseg.core.volume import Geometry, LabelMap, Volume
from napari_fmseg.io import write_labels, write_volume
from napari_fmseg.models.registry import find_card
from napari_fmseg.pipelines import SegmentOptions

NAME = "fmsf-phantom-ct"
GRID = Geometry.from_spacing((12, 24, 28), (5.0, 2.0, 2.0), (-40.0, 10.0, -7.0))
FINER = Geometry.from_spacing((37, 41, 43), (1.7, 1.3, 1.4), (-42.0, 8.5, -9.0))  # and a little beyond the scan
STAGES = ("consensus", "attention map", "attention", "labels")


class Stages:
    """An engine whose stages lie on finer grids, each let go on by the test where it wants to."""

    def __init__(self) -> None:
        self.go, self.seen, self.ended = threading.Event(), threading.Event(), False
        self.go.set()

    def segment(self, volume: Volume, model_name: str, options: SegmentOptions) -> Iterator[Event]:
        card = find_card(model_name)
        for stage in STAGES:
            grid = GRID if stage == "labels" else FINER
            if stage == "attention map":
                yield StageResult(stage, Volume(np.full(grid.shape, 0.5, np.float32), grid), 0.01)
                continue
            data = np.zeros(grid.shape, np.uint8)
            data[grid.shape[0] // 2 :, 4:12, 4:12] = 1
            yield StageResult(stage, LabelMap(data, grid, {}, card.labels, card.colors), 0.01)
            self.seen.set()
            while not self.go.wait(0.01):
                if self.ended:
                    return

    def cancel(self) -> None:
        self.ended = True

    close = cancel


def scan() -> Volume:
    data = np.random.default_rng(0).integers(-1000, 1000, GRID.shape).astype(np.int16)
    return Volume(data, GRID, {"modality": "CT"})


@pytest.fixture
def make_dock(make_napari_viewer: Any, qtbot: Any) -> Iterator[Callable[..., SegmentDock]]:
    docks: list[SegmentDock] = []

    def make(engine: Any) -> SegmentDock:
        viewer = make_napari_viewer(show=True)
        dock = SegmentDock(viewer, engine)
        viewer.window.add_dock_widget(dock, name="fmseg: Segment")
        for data, options, _ in image_layers(scan(), "scan"):
            viewer.add_image(data, **options)
        dock.model.choose(NAME)
        docks.append(dock)
        return dock

    yield make
    for dock in docks:
        dock.session.close()
    docks.clear()


def press_run(qtbot: Any, dock: SegmentDock) -> None:
    button = dock.bar.run_button
    qtbot.waitUntil(button.isVisible)
    assert button.isEnabled(), button.toolTip()
    qtbot.mouseClick(button, Qt.MouseButton.LeftButton)


def wait(qtbot: Any, dock: SegmentDock) -> None:
    qtbot.waitUntil(lambda: not dock.session.running, timeout=60_000)


def stages_in(viewer: Any) -> list[str]:
    return [layer.metadata[KEY]["made"]["stage"] for layer in viewer.layers if "made" in layer.metadata[KEY]]


def to_3d(qtbot: Any, viewer: Any) -> None:
    """Press napari's own button, the pointer resting on the canvas as after its shortcut."""
    button = viewer.window._qt_viewer.viewerButtons.ndisplayButton
    qtbot.mouseClick(button, Qt.MouseButton.LeftButton)
    viewer.mouse_over_canvas = True
    viewer.cursor._view_direction = viewer.cursor._view_direction if viewer.dims.ndisplay == 3 else None


def test_a_run_in_3d_ends_with_all_stages_as_layers(make_dock: Any, qtbot: Any) -> None:
    dock = make_dock(Stages())
    to_3d(qtbot, dock.viewer)
    assert dock.viewer.dims.ndisplay == 3
    press_run(qtbot, dock)
    wait(qtbot, dock)
    assert dock.error.isHidden(), dock.error.text.text()
    assert stages_in(dock.viewer) == list(STAGES)
    assert dock.viewer.layers.selection.active is dock.viewer.layers[-1]


@pytest.mark.parametrize("first", [2, 3])
def test_switching_between_slices_and_3d_during_a_run_loses_nothing(make_dock: Any, qtbot: Any, first: int) -> None:
    engine = Stages()
    dock = make_dock(engine)
    if first == 3:
        to_3d(qtbot, dock.viewer)
    for _ in range(2):  # the second run replaces what the first has made
        engine.go.clear()
        engine.seen.clear()
        press_run(qtbot, dock)
        qtbot.waitUntil(engine.seen.is_set, timeout=60_000)
        to_3d(qtbot, dock.viewer)
        engine.go.set()
        wait(qtbot, dock)
        assert dock.error.isHidden(), dock.error.text.text()
        assert stages_in(dock.viewer) == list(STAGES)
    for layer in dock.viewer.layers:  # as a click in the layer list does
        dock.viewer.layers.selection.active = layer


@pytest.mark.parametrize("way", ["drop zone", "File > Open"])
def test_labels_with_class_names_open_in_3d(
    make_napari_viewer: Any, qtbot: Any, tmp_path: Path, way: str, open_paths: Any
) -> None:
    viewer = make_napari_viewer(show=True)
    image, labels = tmp_path / "scan.nii.gz", tmp_path / "scan_seg.nii.gz"
    write_volume(scan(), image)
    data = np.zeros(GRID.shape, np.uint8)
    data[3:8, 5:15, 5:15] = 1
    write_labels(LabelMap(data, GRID, {}, {1: "liver"}), labels)
    viewer.open(str(image), plugin="napari-fmseg")
    to_3d(qtbot, viewer)
    if way == "drop zone":
        open_paths(viewer, [str(labels)])
    else:
        viewer.open(str(labels), plugin="napari-fmseg")
    assert [type(layer).__name__ for layer in viewer.layers] == ["Image", "Labels"]
    viewer.layers.selection.active = viewer.layers[-1]


def test_the_scans_slices_keep_their_numbers_after_a_run(make_dock: Any, qtbot: Any) -> None:
    dock = make_dock(Stages())
    dims = dock.viewer.dims
    dims.set_current_step(0, 9)
    before = (dims.range, dims.nsteps, dims.current_step, dims.point)
    assert dims.nsteps == GRID.shape
    slider = dock.viewer.window._qt_viewer.dims.slider_widgets[0].slider
    press_run(qtbot, dock)
    wait(qtbot, dock)
    assert stages_in(dock.viewer) == list(STAGES)
    assert (dims.range, dims.nsteps, dims.current_step, dims.point) == before
    assert (slider.minimum(), slider.maximum(), slider.value()) == (0, GRID.shape[0] - 1, 9)

    coarse = next(layer for layer in dock.viewer.layers if isinstance(layer.metadata[KEY].get("made"), dict))
    coarse.data_setitem((np.array([1]), np.array([1]), np.array([1])), 3)
    coarse.scale = np.asarray(coarse.scale) * 1.01  # whatever else happens to it
    press_run(qtbot, dock)
    wait(qtbot, dock)
    assert "made" not in coarse.metadata[KEY]  # the user's own now, and still computed from the scan
    assert (dims.range, dims.nsteps, dims.current_step, dims.point) == before

    dock.viewer.layers.remove("scan")
    assert dims.nsteps[0] > GRID.shape[0]  # nothing else tells what a slice is


def test_a_viewer_is_attended_once_and_a_second_scan_counts() -> None:
    viewer = ViewerModel()
    n = len(viewer.dims.events.range.callbacks)
    attend(viewer)
    attend(viewer)
    assert len(viewer.dims.events.range.callbacks) == n + 1
    viewer.add_image(np.zeros((4, 5, 6)), scale=(2, 1, 1))
    viewer.add_image(np.zeros((8, 5, 6)), metadata={KEY: {DERIVED: True}})
    assert viewer.dims.nsteps == (4, 5, 6)
    viewer.add_image(np.zeros((7, 5, 6)))
    assert viewer.dims.nsteps == (7, 5, 6)
    viewer.add_image(np.zeros((3, 4, 5, 6)), metadata={KEY: {DERIVED: True}})
    assert viewer.dims.ndim == 4
