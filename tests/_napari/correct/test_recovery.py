"""After kill -9 during a correction, the labels, the corrected slices and the model's answer come back."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import numpy as np
import pytest

pytest.importorskip("napari")
pytest.importorskip("pytestqt")
if not os.environ.get("DISPLAY"):
    pytest.skip("needs a display: run under xvfb-run", allow_module_level=True)

from napari.components import ViewerModel

from napari_fmseg._napari.correct.tools import Place, Spread
from napari_fmseg._napari.correct.tracking.guard import rules_of
from napari_fmseg._napari.correct.tracking.packed_labels import ANSWER
from napari_fmseg._napari.layer_transform import fmseg_metadata, geometry_of
from napari_fmseg._napari.recovery.autosave import Recovery
from napari_fmseg._napari.recovery.autosave_store import list_abandoned

CHILD = """
import numpy as np
from napari.components import ViewerModel
from qtpy.QtCore import QTimer
from qtpy.QtWidgets import QApplication
from napari_fmseg._napari.common.preferences import Preferences
from napari_fmseg._napari.layers import labels_layer
from napari_fmseg._napari.recovery import autosave
from napari_fmseg._napari.recovery.autosave import Recovery
from napari_fmseg.core.volume import Geometry, LabelMap

app = QApplication([])
autosave.load = lambda: Preferences(autosave_seconds=1)
order = np.array([[0, 0, -1], [1, 0, 0], [0, -1, 0]], float)
grid = Geometry.from_spacing((20, 24, 28), (3.0, 1.5, 1.25), (-20.0, 31.0, 7.5), order)
answer = np.zeros(grid.shape, np.uint8)
answer[5:15, 6:18, 6:20] = 1
data, options, _ = labels_layer(LabelMap(answer, grid, {}, {1: "liver", 2: "spleen"}), "mine")
viewer = ViewerModel()
recovery = Recovery(viewer)
layer = viewer.add_labels(np.array(data), **options)
layer.brush_size = 9
tracker = recovery.tracker
tracker.finish(layer, (2,))
axis = list(data.shape).index(20)

def paint():
    for index in (8, 11):
        spot = [12, 12, 12]
        spot[axis] = index
        rest = [k for k in range(3) if k != axis]
        viewer.dims.order = (axis, *rest)
        viewer.dims.set_point(axis, layer.data_to_world(spot)[axis])
        spot[rest[0]] = 2
        layer.paint(spot, 1)

def look():
    quiet = not recovery._dirty and not recovery._busy
    if quiet and list(recovery.session.folder.glob("*.answer")):
        print("saved", flush=True)
        timer.stop()

QTimer.singleShot(0, paint)
timer = QTimer(interval=50)
timer.timeout.connect(look)
QTimer.singleShot(300, timer.start)
app.exec()
"""


def test_after_kill_9_the_corrected_slices_and_the_models_answer_come_back_with_the_labels(qtbot, tmp_path):
    env = os.environ | {"FMSEG_HOME": str(tmp_path), "XDG_CONFIG_HOME": str(tmp_path)}
    with (tmp_path / "errors.txt").open("w") as errors:
        child = subprocess.Popen([sys.executable, "-c", CHILD], env=env, stdout=subprocess.PIPE, stderr=errors)
        try:
            assert child.stdout.readline() == b"saved\n", (tmp_path / "errors.txt").read_text()
        finally:
            child.send_signal(signal.SIGKILL)
            child.wait()
            child.stdout.close()

    [save] = list_abandoned([tmp_path / "recovery"])
    viewer = ViewerModel()
    recovery = Recovery(viewer)
    layer = recovery.restore(save)
    tracker = recovery.tracker
    [axis] = tracker.record(layer).axes()
    assert layer.data.shape[axis] == 20
    assert tracker.record(layer).slices(axis, 1) == (8, 11)
    answer = tracker.answer(layer)
    changed = np.flatnonzero((answer != layer.data).any(axis=tuple(k for k in range(3) if k != axis)))
    assert changed.tolist() == [8, 11]
    assert answer.sum() == 10 * 12 * 14
    assert rules_of(layer).finished == {2}
    place = Place(1, axis, 9, tuple(geometry_of(layer).spacing))
    spread = Spread(place, (8, 11), lambda: answer).edit(layer.data, 2.0, visible=True)
    assert spread.n_changed(layer.data) > 0
    recovery.save_now()
    qtbot.waitUntil(lambda: not recovery._busy, timeout=30_000)
    recovery.close()


def test_the_models_answer_lies_beside_the_copy_and_goes_with_it(qtbot, tmp_path, monkeypatch):
    monkeypatch.setenv("FMSEG_HOME", str(tmp_path))
    viewer = ViewerModel()
    recovery = Recovery(viewer)
    layer = viewer.add_labels(np.zeros((5, 9, 9), np.uint8))
    layer.paint((2, 4, 4), 1)
    qtbot.waitUntil(lambda: fmseg_metadata(layer).get(ANSWER) is not None, timeout=30_000)
    with qtbot.waitSignal(recovery.saved, timeout=30_000):
        recovery.save_now()
    [sheet] = [path for path in recovery.session.folder.glob("*.json") if path.name != "session.json"]
    assert sheet.with_suffix(".answer").exists()
    before = sheet.read_text()
    recovery.tracker.drop(layer, 0, 2)  # no voxel changes, but what is known of them
    with qtbot.waitSignal(recovery.saved, timeout=30_000):
        recovery.save_now()
    assert sheet.read_text() != before
    recovery.mark_saved(layer)
    assert not list(recovery.session.folder.glob("*.answer"))
    recovery.close()
