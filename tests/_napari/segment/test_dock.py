"""The dock in a real window: one press on Run brings the stages, and nothing that is closed leaves anything behind."""

from __future__ import annotations

import subprocess
import sys
import textwrap
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("napari")
from qtpy.QtCore import Qt

from napari_fmseg._napari.layers import KEY, as_filed, geometry_of, image_layers, labels_layer, labels_of, volume_of
from napari_fmseg._napari.segment.dock import SegmentDock
from napari_fmseg.core.events import Event, StageResult, drain
from napari_fmseg.core.volume import Geometry, LabelMap, Volume
from napari_fmseg.datasets.phantom import phantom_ct
from napari_fmseg.models.registry import find_card
from napari_fmseg.models.weights import load_model
from napari_fmseg.pipelines import SegmentOptions, segment
from napari_fmseg.workers.engine import RemoteEngine

NAME = "fmsf-phantom-ct"
SPACING = (9.0, 7.0, 7.0)
PATIENCE_MS = 90_000
STAGES = ["consensus", "attention map", "attention", "edge", "labels"]
TURN = np.linalg.qr(np.eye(3) + 0.04 * np.random.default_rng(3).standard_normal((3, 3)))[0]
TURN = TURN * np.sign(np.diag(TURN))


@pytest.fixture(scope="module")
def phantom() -> Volume:
    return phantom_ct(7, spacing=SPACING)[0]


def otherwise_filed(volume: Volume) -> Volume:
    """Return the phantom as a scanner might file it: x first, two axes flipped, and oblique."""
    turned = volume.data.transpose(2, 0, 1)[::-1, :, ::-1]
    z, y, x = volume.geometry.direction.T @ np.eye(3)
    direction = TURN @ np.stack([-x, z, -y], axis=1)
    spacing = [volume.geometry.spacing[i] for i in (2, 0, 1)]
    return Volume(turned, Geometry.from_spacing(turned.shape, tuple(spacing), (9, -8, 7), direction), volume.meta)


@pytest.fixture
def make_dock(make_napari_viewer: Any, qtbot: Any) -> Iterator[Callable[..., SegmentDock]]:
    docks: list[SegmentDock] = []

    def made(engine: Any = None, **options: Any) -> SegmentDock:
        viewer = make_napari_viewer(**options)
        dock = SegmentDock(viewer, engine)
        viewer.window.add_dock_widget(dock, name="fmseg: Segment")
        docks.append(dock)
        return dock

    yield made
    for dock in docks:
        dock.session.close()
    docks.clear()


def dropped(dock: SegmentDock, volume: Volume, name: str = "scan") -> Any:
    for data, options, _ in image_layers(volume, name):
        dock.viewer.add_image(data, **options)
    dock.model.choose(NAME)
    return dock.viewer.layers[-1]


def press(qtbot: Any, button: Any) -> None:
    assert button.isEnabled(), button.toolTip()
    qtbot.mouseClick(button, Qt.MouseButton.LeftButton)


def wait(qtbot: Any, dock: SegmentDock) -> None:
    qtbot.waitUntil(lambda: not dock.session.running, timeout=PATIENCE_MS)


def quiet() -> bool:
    """Whether no thread of ours is left."""
    return not [t for t in threading.enumerate() if t.name.startswith("fmseg")]


class InProcess:
    """An engine in this process, that stops at every stage until it is let go on."""

    def __init__(self, *, held: bool = False) -> None:
        self.go = threading.Event()
        self.seen = threading.Event()
        self.cancelled = False
        self.closed = False
        self.volumes: list[Volume] = []
        if not held:
            self.go.set()

    def segment(self, volume: Volume, model_name: str, options: SegmentOptions) -> Iterator[Event]:
        self.volumes.append(volume)
        self.cancelled = False
        card = find_card(model_name)
        for stage in ("consensus", "labels"):
            grid = volume.geometry if stage == "labels" else volume.geometry.resize((8, 9, 10))
            data = np.zeros(grid.shape, np.uint8)
            data[grid.shape[0] // 2] = 1
            yield StageResult(stage, LabelMap(data, grid, {}, card.labels, card.colors), 0.01)
            self.seen.set()
            while not self.go.wait(0.01):
                if self.cancelled:
                    return

    def cancel(self) -> None:
        self.cancelled = True

    def close(self) -> None:
        self.closed = self.cancelled = True


# --- the real engine ----------------------------------------------------------------------------------------------


def test_models_with_alike_titles_can_be_told_apart_in_the_list(make_dock: Any) -> None:
    models = make_dock().model.list
    width = min(230, models.viewport().width())  # pixels, in a dock as narrow as it may be
    shown = [models.fontMetrics().elidedText(models.item(i).text(), models.textElideMode(), width)
             for i in range(models.count())]  # fmt: skip
    assert len(shown) > 3
    assert len(set(shown)) == len(shown)


def test_one_press_on_run_gives_the_labels_of_segment_voxel_for_voxel_also_of_a_flipped_and_oblique_volume(
    make_dock: Any, qtbot: Any, phantom: Volume
) -> None:
    volume = otherwise_filed(phantom)
    truth = drain(segment(volume, load_model(NAME, device="cpu"), SegmentOptions(device="cpu")))
    dock = make_dock(RemoteEngine())
    image = dropped(dock, volume)
    assert dock.image.currentText() == "scan"
    dock.device.setCurrentText("cpu")
    press(qtbot, dock.bar.run_button)
    wait(qtbot, dock)
    assert dock.error.error is None
    layers = list(dock.viewer.layers)
    assert [layer.name for layer in layers] == ["scan", *(f"scan · {NAME} · {stage}" for stage in STAGES)]
    assert [layer.visible for layer in layers] == [True, False, False, False, False, True]
    for layer in layers:
        assert [str(unit) for unit in layer.units] == ["millimeter"] * 3
    final = layers[-1]
    np.testing.assert_allclose(final.scale, image.scale)
    np.testing.assert_allclose(final.translate, image.translate)
    found = as_filed(labels_of(final), image.metadata[KEY]["filed"])
    assert found.geometry.matches(volume.geometry)
    np.testing.assert_array_equal(found.data, truth.data)
    assert found.names == truth.names
    for label, color in truth.colors.items():
        np.testing.assert_allclose(final.colormap.map(np.array([label])).reshape(-1)[:3], color, atol=0.01)
    assert dock.viewer.layers.selection.active is final
    assert dock.bar.text.text().startswith("Done in")
    assert "attention map" in dock.bar.text.text()

    before = list(dock.viewer.layers)  # once more, with the engine warm: nothing doubles
    press(qtbot, dock.bar.run_button)
    wait(qtbot, dock)
    assert list(dock.viewer.layers) == before


def test_a_region_gives_what_the_cut_volume_gives(make_dock: Any, qtbot: Any, phantom: Volume) -> None:
    volume = otherwise_filed(phantom)
    dock = make_dock(RemoteEngine())
    image = dropped(dock, volume)
    dock.device.setCurrentText("cpu")
    (z0, y0, x0), (z1, y1, x1) = (image.data_to_world(at) for at in ((5, 12, 8), (25, 44, 40)))
    flat = np.array([[y0, x0], [y0, x1], [y1, x1], [y1, x0]])
    press(qtbot, dock.region.draw)
    shapes = dock.viewer.layers[-1]
    assert [str(unit) for unit in shapes.units] == ["millimeter"] * 3
    for z in (z0, z1):
        shapes.add(np.column_stack([np.full(4, z), flat]), shape_type="rectangle")
    shapes.selected_data = set()
    assert dock.region.region == "box"
    press(qtbot, dock.bar.run_button)
    wait(qtbot, dock)
    assert dock.error.error is None
    box = (slice(5, 26), slice(12, 45), slice(8, 41))
    whole = volume_of([image])
    part = Volume(whole.data[box], whole.geometry.crop(box), whole.meta)
    truth = drain(segment(part, load_model(NAME, device="cpu"), SegmentOptions(device="cpu")))
    final = dock.viewer.layers[f"scan · {NAME} (box) · labels"]
    assert geometry_of(final).matches(geometry_of(image))
    expected = np.zeros(whole.data.shape, np.uint8)
    expected[box] = truth.data
    assert expected.any()
    np.testing.assert_array_equal(final.data, expected)


def test_a_run_loads_no_torch_into_the_window() -> None:
    code = """
        import sys, time
        import napari
        from qtpy.QtWidgets import QApplication
        from napari_fmseg._napari.layers import image_layers
        from napari_fmseg._napari.segment.dock import SegmentDock
        from napari_fmseg.datasets.phantom import phantom_ct
        viewer = napari.Viewer(show=False)
        dock = SegmentDock(viewer)
        viewer.window.add_dock_widget(dock)
        assert "torch" not in sys.modules, "opening the dock"
        for data, options, _ in image_layers(phantom_ct(7, spacing=(12, 10, 10))[0], "scan"):
            viewer.add_image(data, **options)
        dock.model.choose("fmsf-phantom-ct")
        dock.bar.run_button.click()
        end = time.monotonic() + 90
        while dock.session.running and time.monotonic() < end:
            QApplication.processEvents()
            time.sleep(0.005)
        assert len(viewer.layers) == 6, (dock.error.text.text(), viewer.layers)
        assert "torch" not in sys.modules, "running"
        viewer.close()
        QApplication.processEvents()
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, timeout=150)
    assert done.returncode == 0, done.stderr


def test_why_here_brings_a_map_of_what_spoke_for_the_chosen_class(make_dock: Any, qtbot: Any, phantom: Volume) -> None:
    dock = make_dock(RemoteEngine())
    image = dropped(dock, otherwise_filed(phantom))
    assert "Segment an image first" in dock.why.toolTip()
    dock.device.setCurrentText("cpu")
    press(qtbot, dock.bar.run_button)
    wait(qtbot, dock)
    qtbot.waitUntil(lambda: bool(dock.classes.measures), timeout=PATIENCE_MS)
    before = [layer.name for layer in dock.viewer.layers]
    found = next(m for m in dock.classes.measures if m.voxels > 100)
    dock.classes.go_to(found.label)
    for _ in range(2):  # once more, and nothing doubles
        press(qtbot, dock.why)
        wait(qtbot, dock)
        assert dock.error.error is None
        assert [layer.name for layer in dock.viewer.layers] == [*before, f"scan · {NAME} (why {found.name})"]
    heat, labels = dock.viewer.layers[-1], dock.viewer.layers[-2]
    assert labels.visible
    assert labels is dock.classes.layer
    assert (float(heat.data.min()), float(heat.data.max())) == (0.0, 1.0)
    assert [str(unit) for unit in heat.units] == ["millimeter"] * 3
    brightest = heat.data_to_world(np.unravel_index(np.argmax(heat.data), heat.data.shape))
    inside = image.world_to_data(brightest)
    assert (np.array(inside) > -1).all()
    assert (np.array(inside) < image.data.shape).all()
    assert dock.image.case.id == labels.metadata[KEY]["made"]["image"]
    dock.classes.layer.selected_label = 0
    press(qtbot, dock.why)
    assert "Click the row of a class" in str(dock.error.error)
    dock.viewer.layers.remove(image)
    assert "not open any more" in dock.why.toolTip()


def test_windows_can_be_asked_for_under_more_options(make_dock: Any, qtbot: Any, phantom: Volume) -> None:
    dock = make_dock(InProcess())
    dropped(dock, phantom)
    options = dock.choices.request().options
    assert (options.overlap, options.window_batch, options.blend) == (None, None, "gaussian")
    assert dock.choices.options._widgets["overlap"].native.currentText() == "model's own"
    dock.choices.options.set_values({"overlap": 0.25, "window_batch": 4, "blend": "constant"})
    options = dock.choices.request().options
    assert (options.overlap, options.window_batch, options.blend) == (0.25, 4, "constant")


def test_after_a_cancel_the_next_run_works(make_dock: Any, qtbot: Any, phantom: Volume) -> None:
    dock = make_dock(RemoteEngine())
    dropped(dock, phantom)
    press(qtbot, dock.bar.run_button)
    qtbot.waitUntil(lambda: len(dock.viewer.layers) > 1, timeout=PATIENCE_MS)
    press(qtbot, dock.bar.cancel_button)
    wait(qtbot, dock)
    assert dock.error.error is None
    assert dock.bar.text.text().startswith("Cancelled")
    assert f"scan · {NAME} · labels" not in dock.viewer.layers
    press(qtbot, dock.bar.run_button)
    wait(qtbot, dock)
    assert [layer.name.split(" · ")[-1] for layer in dock.viewer.layers] == ["scan", *STAGES]


def test_the_three_d_view_shows_the_patient_upright_from_the_front_and_the_slices_come_back(
    make_dock: Any, qtbot: Any
) -> None:
    dock = make_dock(InProcess())
    assert not dock.three_d.isEnabled()  # there are no labels
    image = dropped(dock, phantom_ct(7, spacing=SPACING)[0])
    press(qtbot, dock.bar.run_button)
    wait(qtbot, dock)
    press(qtbot, dock.three_d)
    assert dock.viewer.dims.ndisplay == 3
    assert not image.visible
    camera = dock.viewer.scene.camera if hasattr(dock.viewer, "scene") else dock.viewer.camera
    np.testing.assert_allclose(camera.view_direction, (0, 1, 0), atol=1e-6)  # towards the back of the patient
    np.testing.assert_allclose(camera.up_direction, (1, 0, 0), atol=1e-6)  # the head is up
    press(qtbot, dock.three_d)
    assert dock.viewer.dims.ndisplay == 2
    assert image.visible


def test_images_hidden_in_three_dimensions_come_back_however_the_user_returns_to_the_slices(
    make_dock: Any, qtbot: Any
) -> None:
    dock = make_dock(InProcess(), show=True)
    viewer, image = dock.viewer, dropped(dock, phantom_ct(7, spacing=SPACING)[0])
    hidden = viewer.add_image(np.zeros((4, 4, 4)), name="hidden by the user", visible=False)
    viewer.add_labels(np.ones((4, 4, 4), int))
    naparis = viewer.window._qt_viewer.viewerButtons.ndisplayButton
    for _ in range(2):
        press(qtbot, dock.three_d)
        assert viewer.dims.ndisplay == 3
        assert not image.visible
        qtbot.mouseClick(naparis, Qt.MouseButton.LeftButton)
        assert viewer.dims.ndisplay == 2
        assert image.visible
        assert not hidden.visible
    press(qtbot, dock.three_d)
    viewer.window.remove_dock_widget(dock)
    qtbot.mouseClick(naparis, Qt.MouseButton.LeftButton)
    assert image.visible


def test_in_three_dimensions_the_patients_right_is_at_the_left_of_the_screen(make_dock: Any, qtbot: Any) -> None:
    dock = make_dock(InProcess(), show=True)
    data = np.zeros((24, 24, 24), np.uint8)
    data[14:22, 8:16, 2:8] = 1  # towards the head, on the right: x runs to the left of the patient
    labels = LabelMap(data, Geometry.from_spacing(data.shape), {}, {1: "liver"}, {1: (1.0, 0.0, 0.0)})
    data, options, _ = labels_layer(labels, "labels")
    dock.viewer.add_labels(data, **options)
    press(qtbot, dock.three_d)
    qtbot.wait(200)
    picture = dock.viewer.screenshot(canvas_only=True, flash=False)[..., :3].astype(int)
    rows, columns = np.nonzero(picture[..., 0] > picture[..., 1:].max(-1) + 40)
    assert len(rows) > 50
    assert columns.max() < picture.shape[1] / 2
    assert rows.max() < picture.shape[0] / 2


def test_nothing_in_the_dock_is_cut_at_its_smallest_width(make_dock: Any, qtbot: Any) -> None:
    dock = make_dock(InProcess(), show=True)
    dropped(dock, phantom_ct(7, spacing=SPACING)[0])
    press(qtbot, dock.bar.run_button)
    wait(qtbot, dock)
    dock._scroll.setVerticalScrollBarPolicy(Qt.ScrollBarPolicy.ScrollBarAlwaysOn)
    dock.setFixedWidth(dock.minimumWidth())
    qtbot.wait(50)
    assert dock._scroll.widget().width() <= dock._scroll.viewport().width()


# --- with an engine that waits ------------------------------------------------------------------------------------


def test_what_is_missing_stands_in_the_tooltip_of_run(make_dock: Any, phantom: Volume) -> None:
    dock = make_dock(InProcess())
    assert not dock.bar.run_button.isEnabled()
    assert "Open an image" in dock.bar.run_button.toolTip()
    dropped(dock, phantom)
    assert dock.bar.run_button.isEnabled()
    dock.model.search.setText("no such model")
    assert "Choose a model" in dock.bar.run_button.toolTip()
    dock.model.search.setText("hippocampus")
    assert dock.model.card.name == "hippocampus-mr"
    assert "trained on MR" in dock.choices.misfits.text()
    assert not dock.choices.misfits.isHidden()


def test_terms_are_accepted_once_before_the_first_run(make_dock: Any, phantom: Volume) -> None:
    dock = make_dock(InProcess())
    dropped(dock, phantom)
    dock.model.choose("left-atrium-mr")
    if dock.model.card is None or dock.model.card.name != "left-atrium-mr":
        pytest.skip("the research weights are not beside this checkout")
    assert "Accept the terms" in dock.bar.run_button.toolTip()
    assert not dock.model.accept.isHidden()
    dock.model.accept.click()
    assert dock.bar.run_button.isEnabled()
    dock.model.choose(NAME)
    assert dock.model.accept.isHidden()
    dock.model.choose("left-atrium-mr")
    assert dock.bar.run_button.isEnabled()


def test_the_volume_that_is_dropped_is_chosen_and_pictures_are_not_offered(make_dock: Any, phantom: Volume) -> None:
    dock = make_dock(InProcess())
    first = dropped(dock, phantom, "first")
    dock.viewer.add_image(np.zeros((30, 40, 3), np.uint8), rgb=True, name="photo")
    dock.viewer.add_image(np.zeros((30, 40)), name="plane")
    two = Volume(np.stack([phantom.data, phantom.data]), phantom.geometry, phantom.meta)
    dropped(dock, two, "two")
    assert [dock.image.itemText(i) for i in range(dock.image.count())] == ["first", "two"]
    assert dock.image.currentText() == "two"
    assert dock.image.case.n_channels == 2
    assert "takes 1 channel" in dock.bar.run_button.toolTip()
    first.name = "renamed"
    assert dock.image.itemText(0) == "renamed"
    assert dock.image.currentText() == "two"
    dock.viewer.layers.remove("two [1]")
    dock.viewer.layers.remove("two [0]")
    assert dock.image.currentText() == "renamed"


def test_the_class_under_the_pointer_stands_in_the_status_bar(make_dock: Any, qtbot: Any, phantom: Volume) -> None:
    dock = make_dock(InProcess())
    dropped(dock, phantom)
    press(qtbot, dock.bar.run_button)
    wait(qtbot, dock)
    final = dock.viewer.layers[-1]
    where = final.data_to_world(np.array(final.data.shape) // 2)
    status = final.get_status(where, view_direction=None, dims_displayed=[1, 2], world=True)
    assert "liver" in status["value"] + status["coordinates"]


def test_a_cancelled_run_leaves_the_best_labels_in_sight(make_dock: Any, qtbot: Any, phantom: Volume) -> None:
    engine = InProcess()
    dock = make_dock(engine)
    dropped(dock, phantom)
    press(qtbot, dock.bar.run_button)
    wait(qtbot, dock)
    engine.go.clear()
    engine.seen.clear()
    press(qtbot, dock.bar.run_button)
    qtbot.waitUntil(lambda: dock.viewer.layers[1].visible, timeout=60_000)
    assert "under way" in dock.bar.run_button.toolTip() or "going on" in dock.bar.run_button.toolTip()
    press(qtbot, dock.bar.cancel_button)
    wait(qtbot, dock)
    assert [layer.visible for layer in dock.viewer.layers] == [True, False, True]


def test_an_edited_layer_is_kept_and_the_user_is_told(make_dock: Any, qtbot: Any, phantom: Volume) -> None:
    dock = make_dock(InProcess())
    dropped(dock, phantom)
    press(qtbot, dock.bar.run_button)
    wait(qtbot, dock)
    mine = dock.viewer.layers[-1]
    mine.data_setitem((np.array([1]), np.array([1]), np.array([1])), 3)
    press(qtbot, dock.bar.run_button)
    wait(qtbot, dock)
    assert mine.data[1, 1, 1] == 3
    assert dock.viewer.layers[-1].name == f"{mine.name} (2)"
    assert "edited and is kept" in dock.remarks.text()


def test_an_error_is_shown_in_the_panel_and_the_next_run_works(make_dock: Any, qtbot: Any, phantom: Volume) -> None:
    class Broken(InProcess):
        broken = True

        def segment(self, *what: Any) -> Iterator[Event]:
            if self.broken:
                raise RuntimeError("CUDA error: device-side assert")
            yield from super().segment(*what)

    engine = Broken()
    dock = make_dock(engine)
    dropped(dock, phantom)
    press(qtbot, dock.bar.run_button)
    wait(qtbot, dock)
    assert "CUDA error" in dock.error.text.text()
    engine.broken = False
    press(qtbot, dock.bar.run_button)
    wait(qtbot, dock)
    assert dock.error.isHidden()
    assert dock.bar.text.text().startswith("Done")


@pytest.mark.parametrize("what", ["dock", "image", "viewer", "widget"])
def test_closing_in_the_middle_of_a_run_leaves_nothing(make_dock: Any, qtbot: Any, phantom: Volume, what: str) -> None:
    engine = InProcess(held=True)
    dock = make_dock(engine)
    viewer = dock.viewer
    image = dropped(dock, phantom)
    press(qtbot, dock.bar.run_button)
    qtbot.waitUntil(engine.seen.is_set, timeout=60_000)
    qtbot.waitUntil(lambda: len(viewer.layers) == 2, timeout=60_000)
    if what == "dock":
        viewer.window.remove_dock_widget(dock)
    elif what == "image":
        viewer.layers.remove(image)
    elif what == "viewer":
        viewer.close()
    else:
        dock.deleteLater()
    qtbot.waitUntil(quiet, timeout=60_000)
    qtbot.wait(50)
    assert engine.cancelled
    if what in ("dock", "widget"):
        assert engine.closed
        viewer.add_image(np.zeros((4, 5, 6)), name="later")  # nobody listens who is no more
        viewer.layers.clear()


def test_closing_the_dock_ends_the_engines_process(make_dock: Any, qtbot: Any, phantom: Volume) -> None:
    engine = RemoteEngine()
    dock = make_dock(engine)
    dropped(dock, phantom)
    press(qtbot, dock.bar.run_button)
    qtbot.waitUntil(lambda: engine.pid is not None, timeout=60_000)
    dock.viewer.window.remove_dock_widget(dock)
    qtbot.waitUntil(lambda: engine.pid is None and quiet(), timeout=60_000)


def test_the_current_view_is_what_is_looked_at(make_dock: Any, qtbot: Any, phantom: Volume) -> None:
    engine = InProcess()
    dock = make_dock(engine, show=True)
    image = dropped(dock, phantom)
    dock.viewer.scene.camera.zoom *= 4
    dock.viewer.screenshot(canvas_only=True, flash=False)  # draws, so that the layer knows what is seen
    dock.region.combo.setCurrentIndex(1)
    low, high = image.corner_pixels.copy()
    press(qtbot, dock.bar.run_button)
    wait(qtbot, dock)
    seen = engine.volumes[0].geometry.shape
    assert seen == (image.data.shape[0], *(int(b - a) + 1 for a, b in zip(low[1:], high[1:], strict=True)))
    assert seen[2] < image.data.shape[2]
    assert dock.viewer.layers[-1].name == f"scan · {NAME} (view) · labels"
    assert dock.viewer.layers[-1].data.shape == image.data.shape


def test_everything_can_be_reached_by_keyboard_and_says_what_it_does(make_dock: Any, phantom: Volume) -> None:
    from qtpy.QtWidgets import (
        QAbstractButton,
        QAbstractSpinBox,
        QComboBox,
        QLabel,
        QLineEdit,
        QListWidget,
        QTableWidget,
    )

    dock = make_dock(InProcess())
    dropped(dock, phantom)
    kinds = (QAbstractButton, QAbstractSpinBox, QComboBox, QListWidget)
    mute = [w for kind in kinds for w in dock.findChildren(kind) if not w.toolTip() and w.objectName() != "qt_spinbox"]
    mute = [w for w in mute if not isinstance(w.parent(), (QAbstractSpinBox, QLineEdit, QTableWidget))]
    assert mute == []
    keys = [w.text() for kind in (QAbstractButton, QLabel) for w in dock.findChildren(kind)]
    keys = [t[t.index("&") + 1].lower() for t in keys if "&" in t and "<" not in t]
    assert len(keys) == len(set(keys)), f"two parts answer to one key: {sorted(keys)}"
    assert not {"f", "v", "l", "p", "w", "h"} & set(keys), "a key of napari's own menus"
    assert dock.findChildren(QLineEdit)


def test_napari_finds_the_dock_in_the_manifest() -> None:
    import inspect

    from npe2 import PluginManifest

    manifest = PluginManifest.from_file(Path(__file__).parents[3] / "napari.yaml")
    commands = {command.id: command for command in manifest.contributions.commands or ()}
    assert "napari-fmseg.segment" in {widget.command for widget in manifest.contributions.widgets or ()}
    menu = (manifest.contributions.menus or {})["napari/layers/segment"]
    assert "napari-fmseg.segment" in {getattr(item, "command", "") for item in menu}
    module, _, name = str(commands["napari-fmseg.segment"].python_name).partition(":")
    assert (module, name) == (SegmentDock.__module__, SegmentDock.__name__)
    assert "napari_viewer" in inspect.signature(SegmentDock).parameters


def test_a_file_dropped_on_the_dock_is_opened_and_chosen(
    make_dock: Any, qtbot: Any, phantom: Volume, tmp_path: Path
) -> None:
    from qtpy.QtCore import QMimeData, QPointF, QUrl
    from qtpy.QtGui import QDropEvent

    from napari_fmseg.io import write_volume

    dock = make_dock(InProcess())
    assert not dock.drop.isHidden()
    path = tmp_path / "abdomen.nii.gz"
    write_volume(phantom, path)

    def drop(what: Path) -> None:
        mime = QMimeData()
        mime.setUrls([QUrl.fromLocalFile(str(what))])
        actions, buttons = Qt.DropAction.CopyAction, Qt.MouseButton.LeftButton
        dock.dropEvent(QDropEvent(QPointF(5, 5), actions, mime, buttons, Qt.KeyboardModifier.NoModifier))

    drop(path)
    qtbot.waitUntil(lambda: dock.image.case is not None and not dock.drop.busy, timeout=60_000)
    assert dock.image.currentText().startswith("abdomen")
    assert dock.drop.isHidden()
    path.write_bytes(path.read_bytes()[:3000])
    drop(path)
    qtbot.waitUntil(lambda: not dock.error.isHidden(), timeout=60_000)
    assert "abdomen.nii.gz" in dock.error.text.text()
