"""The Teach dock in a real window: what is painted is what is learned from, and a training never takes napari along."""

from __future__ import annotations

import dataclasses
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

pytest.importorskip("pytestqt")
pytest.importorskip("napari")
pytest.importorskip("pyqtgraph")
if not os.environ.get("DISPLAY"):
    pytest.skip("needs a display: run under xvfb-run", allow_module_level=True)

from napari.layers import Layer
from qtpy.QtCore import QMimeData, QPoint, Qt, QTimer, QUrl
from qtpy.QtGui import QDropEvent
from qtpy.QtWidgets import QApplication, QDialog, QDialogButtonBox, QInputDialog, QLineEdit
from scipy.ndimage import binary_opening, gaussian_filter

from napari_fmseg._napari.choosers.model_chooser import ModelChooser
from napari_fmseg._napari.common.dialogs import Choice, Question, on_screen
from napari_fmseg._napari.correct.tracking.guard import rules_of
from napari_fmseg._napari.correct.tracking.packed_labels import ANSWER
from napari_fmseg._napari.correct.tracking.tracker import Tracker
from napari_fmseg._napari.layer_transform import fmseg_metadata
from napari_fmseg._napari.layers import image_layers, labels_layer
from napari_fmseg._napari.results.class_table import NAME, ClassTable
from napari_fmseg._napari.segment.dock import SegmentDock
from napari_fmseg._napari.teach.dock import TeachDock
from napari_fmseg._napari.teach.label_history import LabelHistory
from napari_fmseg.core.events import EpochDone, Warned, drain
from napari_fmseg.core.volume import Geometry, LabelMap, Volume
from napari_fmseg.datasets.projects.case_results import labels_file, picture_file
from napari_fmseg.io import read_labels, read_volume, write_labels
from napari_fmseg.models.card import ModelCard, NetSpec
from napari_fmseg.models.nnunet import import_nnunet
from napari_fmseg.models.registry import GENERAL_START, find_card, list_models
from napari_fmseg.models.weights import load_model, save_model
from napari_fmseg.pipelines import SegmentOptions, segment
from napari_fmseg.training import StageRecipe
from napari_fmseg.training.projects import (
    FROM_SCRATCH,
    LabelOptions,
    add_case,
    add_version,
    init_project,
    label_case,
    open_project,
    recipe_file,
    recipe_for,
    record_scores,
    record_uncertainty,
    save_prediction,
    start_run,
    training_plan,
)
from napari_fmseg.training.projects.prepare_run import write_recipe
from napari_fmseg.training.validation import write_plane

SHARED = Path(os.environ.get("FMSEG_SHARED", Path(__file__).parents[3].parent / "shared"))
HIPPOCAMPUS, NNUNET = SHARED / "data" / "hippocampus", SHARED / "golden" / "nnunet"
PATIENCE_MS = 120_000
SHAPE = (16, 28, 32)
TURN = np.linalg.qr(np.eye(3) + 0.05 * np.random.default_rng(3).standard_normal((3, 3)))[0]
TURN = (TURN * np.sign(np.diag(TURN)))[:, [1, 0, 2]] @ np.diag([1, -1, 1])  # filed in an order of its own


def case_of(seed: int, direction: Any = None) -> tuple[Volume, LabelMap]:
    """Make a bright ball in noise, and its labels."""
    rng = np.random.default_rng(seed)
    grid = Geometry.from_spacing(SHAPE, (2.0, 1.5, 1.5), (3, -4, 5), np.eye(3) if direction is None else direction)
    where = np.indices(SHAPE).T * grid.spacing
    middle = np.array(SHAPE) * grid.spacing / 2 + rng.uniform(-2, 2, 3)
    ball = (((where - middle) ** 2).sum(-1) < 10**2).T
    image = (rng.normal(100, 15, SHAPE) + 150 * ball).astype(np.int16)
    return Volume(image, grid), LabelMap(ball.astype(np.uint8), grid, {}, {1: "ball"})


def project_at(folder: Path, n: int) -> Any:
    project = init_project(folder, ("ball",), channels=("MR",))
    for i in range(n):
        project = add_case(project, f"case-{i + 1:03d}", *case_of(i))
    return project


@pytest.fixture
def make_dock(make_napari_viewer: Any, qtbot: Any) -> Iterator[Callable[..., TeachDock]]:
    docks: list[TeachDock] = []

    def made(folder: Path | None = None) -> TeachDock:
        viewer = make_napari_viewer(show=True)
        dock = TeachDock(viewer)
        viewer.window.add_dock_widget(dock, name="fmseg: Teach")
        docks.append(dock)
        if folder is not None:
            wait(qtbot, dock)  # it may be opening the last project
            dock.open_folder(folder)
            wait(qtbot, dock)
        return dock

    yield made
    for dock in docks:
        dock.round.close()
        dock.predicting.close()
    docks.clear()
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline and [t for t in threading.enumerate() if t.name.startswith("fmseg")]:
        time.sleep(0.05)


def wait(qtbot: Any, dock: TeachDock) -> None:
    qtbot.waitUntil(lambda: dock._job is None, timeout=PATIENCE_MS)


def press(qtbot: Any, button: Any) -> None:
    assert button.isEnabled(), button.toolTip()
    qtbot.mouseClick(button, Qt.MouseButton.LeftButton)


def answering(yes: bool) -> list[str]:
    """Answer the next question that opens, and note what it was."""
    asked: list[str] = []

    def look() -> None:
        question = on_screen(Question)
        if question is None:
            QTimer.singleShot(20, look)
            return
        asked.append(question.objectName())
        (question.yes_button if yes else question.no_button).click()

    QTimer.singleShot(20, look)
    return asked


def shown_in(viewer: Any, volume: Volume, name: str = "scan") -> Any:
    for layer in image_layers(volume, name):
        viewer.add_layer(Layer.create(*layer))
    return viewer.layers[-1]


def a_version(folder: Path, place: Path, seed: int = 0) -> None:
    """Write a model into the project that knows nothing."""
    import torch

    from napari_fmseg.nets import build

    project = open_project(folder)
    kwargs = {"in_channels": 1, "n_classes": 2, "width": 4}
    torch.manual_seed(seed)
    nets = {stage: build(net, **({**kwargs} if net != "edgenet" else {"in_channels": 1, "n_classes": 2}))
            for stage, net in (("consensus", "snet"), ("attention", "attnnet"), ("edge", "edgenet"))}  # fmt: skip
    specs = {
        "consensus": NetSpec("snet", kwargs),
        "attention": NetSpec("attnnet", kwargs),
        "edge": NetSpec("edgenet", {"in_channels": 1, "n_classes": 2}),
    }
    card = ModelCard(
        folder.name, "the ball", "phased", specs, {1: "ball"},
        settings={"consensus_grid": [32, 32, 32], "attention_grid": [32, 32, 32]},
    )  # fmt: skip
    saved = save_model(card, nets, place)
    add_version(start_run(project, training_plan(project)), place / f"{folder.name}.toml", force=True)
    assert saved is not None


class Clock:
    """Notes the gaps between the ticks of a 10 ms timer, without the time that other programs had the processors."""

    def __init__(self, doing: Callable[[], str]) -> None:
        self.gaps: list[tuple[float, float, str]] = []
        self._doing, self._last, self._waited = doing, time.perf_counter(), waited_ms()
        self._timer = QTimer(interval=10)
        self._timer.timeout.connect(self._on_tick)
        self._timer.start()

    def _on_tick(self) -> None:
        now, waited = time.perf_counter(), waited_ms()
        ms = 1000 * (now - self._last)
        self.gaps.append((ms - (waited - self._waited), ms, self._doing()))
        self._last, self._waited = now, waited

    def stop(self) -> str:
        self._timer.stop()
        told = [f"{own:.0f} ms own, {ms:.0f} by the clock ({what})" for own, ms, what in sorted(self.gaps)[-3:]]
        return "; ".join(reversed(told))


def waited_ms() -> float:
    """How long this thread was ready to run while others had the processors; 0 where nobody counts."""
    try:
        return int(Path("/proc/thread-self/schedstat").read_text().split()[1]) / 1e6
    except OSError:
        return 0.0


# --- with the real training -----------------------------------------------------------------------------------------


def test_labels_are_painted_added_learned_from_stopped_and_rolled_back(
    make_dock: Any, qtbot: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = project_at(tmp_path / "balls", 4).folder
    a_version(folder, tmp_path / "first")
    dock = make_dock(folder)
    chooser = ModelChooser()
    qtbot.addWidget(chooser)
    chooser.setParent(dock.viewer.window._qt_window, Qt.WindowType.Widget)
    volume, truth = case_of(9)
    shown_in(dock.viewer, volume)
    press(qtbot, dock.add.new_button)
    layer = dock.viewer.layers.selection.active
    assert layer.mode == "paint"
    for at in np.argwhere(truth.data[:, ::4, ::4]) * (1, 4, 4):
        layer.brush_size = 5
        layer.paint(at, 1)
    painted = layer.data.copy()
    assert painted.any()
    press(qtbot, dock.add.add_button)
    wait(qtbot, dock)
    assert dock.error.error is None
    np.testing.assert_array_equal(read_labels(folder / "labelsTr" / "case-005.nii.gz").data, painted)
    assert "5 case(s)" in dock.facts.text() or "4 case(s) for training, 1 held out" in dock.facts.text()
    assert dock.add.add_button.text() == "Save labels of case-005"

    dock.pages.setCurrentIndex(1)
    qtbot.wait(300)  # the plots are drawn for the first time
    dock.train.minutes.setValue(0.2)
    clock = Clock(lambda: dock.round.state)
    press(qtbot, dock.train.start_button)
    assert not dock.train.start_button.isEnabled()
    states: list[str] = []
    dock.round.changed.connect(lambda state, _: states.append(state))
    qtbot.waitUntil(
        lambda: len(dock.train.dice.values("ball")[0]) > 1 or states[-1:] == ["failed"], timeout=PATIENCE_MS
    )
    assert dock.error.error is None
    steps = [len(dock.train.loss.values(name)[0]) for name in dock.train.loss.names]
    gap = clock.stop()
    asked = time.perf_counter()
    press(qtbot, dock.train.stop_button)
    qtbot.waitUntil(lambda: not dock.round.training.running, timeout=60_000)
    stopped = time.perf_counter() - asked
    with capsys.disabled():
        sys.stdout.write(f"\nlongest gaps of a 10 ms timer from Start on: {gap}; stopped in {stopped:.2f} s\n")
    assert sum(steps) > 1
    qtbot.waitUntil(lambda: not dock.round.running, timeout=PATIENCE_MS)
    wait(qtbot, dock)
    assert (dock.round.state, dock.error.error) == ("stopped", None), dock.error.text.text()
    assert {"preparing", "training", "validating"} <= set(states)
    assert [version.number for version in dock._known.versions] == [1, 2]

    dock.pages.setCurrentIndex(2)
    if dock.versions.present == 1:  # not better on the held-out case: the user says so
        dock.versions.choose(2)
        press(qtbot, dock.versions.use_button)
        wait(qtbot, dock)
    assert dock.versions.present == 2
    assert find_card("balls").version == 2
    assert "balls" in [chooser.list.item(i).data(Qt.ItemDataRole.UserRole) for i in range(chooser.list.count())]
    press(qtbot, dock.versions.back_button)
    wait(qtbot, dock)
    assert dock.versions.present == 1
    assert find_card("balls").version == 1


def test_a_killed_training_shows_as_failed_is_resumed_and_ends_with_napari(
    make_dock: Any, qtbot: Any, tmp_path: Path
) -> None:
    project = project_at(tmp_path / "balls", 2)
    run = start_run(project, training_plan(project))
    stage = StageRecipe("consensus", "snet", kwargs={"width": 4}, steps=2000, steps_per_epoch=20, batch=1)
    settings = {"consensus_grid": (32, 32, 32), "attention_grid": (32, 32, 32)}
    write_recipe(recipe_for(run, (stage,), settings=settings), recipe_file(run))
    dock = make_dock(project.folder)
    press(qtbot, dock.train.resume_button)  # begun before napari was started
    qtbot.waitUntil(lambda: dock.round.state in ("training", "failed"), timeout=PATIENCE_MS)
    pid = dock.round.training.pid
    assert pid is not None, dock.error.text.text()
    os.kill(pid, signal.SIGKILL)
    qtbot.waitUntil(lambda: dock.round.state == "failed", timeout=60_000)
    assert "ended" in dock.error.text.text()
    wait(qtbot, dock)
    assert dock.train.start_button.isEnabled()
    n_points = sum(len(dock.train.loss.values(name)[0]) for name in dock.train.loss.names)
    press(qtbot, dock.train.resume_button)
    assert dock.error.error is None
    qtbot.waitUntil(lambda: dock.round.state in ("training", "failed"), timeout=PATIENCE_MS)
    assert sum(len(dock.train.loss.values(name)[0]) for name in dock.train.loss.names) >= n_points
    pid = dock.round.training.pid
    assert pid is not None
    dock.viewer.close()
    qtbot.waitUntil(lambda: not alive(pid), timeout=60_000)


def alive(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def test_opening_the_dock_and_a_project_loads_no_torch(tmp_path: Path) -> None:
    folder = project_at(tmp_path / "balls", 2).folder
    code = f"""
        import sys, time
        from pathlib import Path
        import napari
        from qtpy.QtWidgets import QApplication
        from napari_fmseg._napari.teach.dock import TeachDock
        viewer = napari.Viewer(show=False)
        dock = TeachDock(viewer)
        viewer.window.add_dock_widget(dock)
        dock.open_folder(Path({str(folder)!r}))
        end = time.monotonic() + 60
        while dock._job is not None and time.monotonic() < end:
            QApplication.processEvents()
            time.sleep(0.01)
        assert dock.project is not None
        assert "torch" not in sys.modules
        viewer.close()
        QApplication.processEvents()
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr


# --- without it -----------------------------------------------------------------------------------------------------


def test_labels_of_a_new_layer_of_napari_lie_on_an_oblique_image_voxel_by_voxel(
    make_dock: Any, qtbot: Any, tmp_path: Path
) -> None:
    dock = make_dock(project_at(tmp_path / "balls", 0).folder)
    volume, truth = case_of(1, TURN)
    image = shown_in(dock.viewer, volume)
    shown = labels_layer(truth, "ball", frame=volume.geometry.canonical()[0])[0]
    dock.viewer.add_labels(np.array(shown), scale=image.scale, translate=image.translate, name="mine")
    assert dock.add.labels.currentText() == "mine"
    press(qtbot, dock.add.add_button)
    wait(qtbot, dock)
    assert dock.error.error is None
    found = read_labels(tmp_path / "balls" / "labelsTr" / "case-001.nii.gz")
    assert found.geometry.matches(volume.geometry, atol_mm=0.01)
    np.testing.assert_array_equal(found.data, truth.data)


def test_labels_on_another_grid_are_moved_only_with_consent(make_dock: Any, qtbot: Any, tmp_path: Path) -> None:
    dock = make_dock(project_at(tmp_path / "balls", 0).folder)
    volume, truth = case_of(1)
    shown_in(dock.viewer, volume)
    half = truth.geometry.resize((SHAPE[0] // 2, SHAPE[1] // 2, SHAPE[2] // 2))
    coarse = LabelMap(truth.data[::2, ::2, ::2].copy(), half, {}, truth.names)
    dock.viewer.add_layer(Layer.create(*labels_layer(coarse, "coarse")))
    asked = answering(yes=False)
    press(qtbot, dock.add.add_button)
    assert asked == ["fmseg_question"]
    assert not dock.project.files
    answering(yes=True)
    press(qtbot, dock.add.add_button)
    wait(qtbot, dock)
    assert dock.error.error is None
    found = read_labels(tmp_path / "balls" / "labelsTr" / "case-001.nii.gz").data
    np.testing.assert_array_equal(found == 1, np.kron(coarse.data, np.ones((2, 2, 2))) == 1)


def test_a_class_that_the_project_does_not_have_is_added_only_with_consent(
    make_dock: Any, qtbot: Any, tmp_path: Path
) -> None:
    dock = make_dock(project_at(tmp_path / "balls", 0).folder)
    volume, truth = case_of(1)
    shown_in(dock.viewer, volume)
    other = LabelMap(truth.data * 3, truth.geometry, {}, {3: "cyst"})
    dock.viewer.add_layer(Layer.create(*labels_layer(other, "other")))
    answer(qtbot, None)
    press(qtbot, dock.add.add_button)
    assert list(open_project(dock.project.folder).facts.numbers) == ["ball"]
    asked = answer(qtbot, 0)
    press(qtbot, dock.add.add_button)
    wait(qtbot, dock)
    assert asked == ["Which structure is cyst?"]
    assert list(dock.project.facts.numbers) == ["ball", "cyst"]
    found = read_labels(tmp_path / "balls" / "labelsTr" / "case-001.nii.gz").data
    np.testing.assert_array_equal(found == 2, truth.data == 1)


def test_slices_that_nobody_labelled_are_not_background(make_dock: Any, qtbot: Any, tmp_path: Path) -> None:
    dock = make_dock(project_at(tmp_path / "balls", 0).folder)
    volume, truth = case_of(1, TURN)
    shown_in(dock.viewer, volume)
    data, options, _ = labels_layer(truth, "ball", frame=volume.geometry.canonical()[0])
    few = np.zeros_like(data)
    few[5::4] = data[5::4]
    dock.viewer.add_labels(few, **options)
    dock.add.part.setCurrentText("Only some slices")
    press(qtbot, dock.add.add_button)
    wait(qtbot, dock)
    assert dock.error.error is None
    found = read_labels(tmp_path / "balls" / "labelsTr" / "case-001.nii.gz").data
    assert dock.project.facts.ignore == 2
    dock.viewer.add_labels(np.zeros_like(few), **{**options, "name": "other"})
    assert dock.add.part.currentText() == "The whole volume"
    dock.add.labels.setCurrentText("ball")
    assert dock.add.part.currentText() == "Only some slices"  # for the next stroke on these labels, too
    expected = truth.data.copy()
    axis = int(np.abs(volume.geometry.canonical()[0].direction.T @ volume.geometry.direction)[0].argmax())
    kept = np.moveaxis(few != 0, 0, axis) if axis else few != 0
    told = kept.any(tuple(a for a in range(3) if a != axis))
    order = volume.geometry.canonical()
    if axis in [order[1][i] for i in order[2]]:
        told = told[::-1]
    index = [None, None, None]
    index[axis] = slice(None)
    expected = np.where(told[tuple(index)], expected, 2)
    np.testing.assert_array_equal(found, expected)


def test_the_table_sorts_opens_a_case_and_takes_its_correction(make_dock: Any, qtbot: Any, tmp_path: Path) -> None:
    project = project_at(tmp_path / "balls", 2)
    for i, unsure in ((5, 0.1), (6, 0.9)):
        project = add_case(project, f"case-{i:03d}", case_of(i)[0])
        project = record_uncertainty(project, 0, {f"case-{i:03d}": unsure})
    dock = make_dock(project.folder)
    table = dock.cases.table
    assert "case-006" in dock.cases.next.text()
    assert "most uncertain" in dock.cases.next.text()
    table.sortItems(3, Qt.SortOrder.DescendingOrder)
    assert [table.item(i, 0).text() for i in range(2)] == ["case-006", "case-005"]
    assert [table.item(i, 1).text() for i in range(4)] == ["● unlabelled"] * 2 + ["● corrected"] * 2
    row = next(i for i in range(4) if table.item(i, 0).text() == "case-002")
    table.cellDoubleClicked.emit(row, 0)
    table.selectRow(row)
    press(qtbot, dock.cases.open_button)
    wait(qtbot, dock)
    assert [layer.name for layer in dock.viewer.layers] == ["case-002", "case-002 · labels"]
    layer = dock.viewer.layers.selection.active
    layer.data_setitem((np.array([0]), np.array([0]), np.array([0])), 1)
    assert dock.add.add_button.text() == "Save labels of case-002"
    press(qtbot, dock.add.add_button)
    wait(qtbot, dock)
    assert dock.error.error is None
    assert read_labels(project.folder / "labelsTr" / "case-002.nii.gz").data[0, 0, 0] == 1
    assert len(dock.project.record("case-002").earlier) == 1
    dock.cases.choose("case-005")
    press(qtbot, dock.cases.open_button)
    wait(qtbot, dock)
    assert [layer.visible for layer in dock.viewer.layers] == [False, False, True, True]


def test_corrected_slices_and_the_models_answer_come_back_with_the_case(
    make_dock: Any, qtbot: Any, tmp_path: Path
) -> None:
    folder = project_at(tmp_path / "balls", 1).folder
    volume, truth = case_of(7, TURN)
    project = add_case(open_project(folder), "case-002", volume)
    answer = np.roll(truth.data, 1, axis=1)
    save_prediction(project, "case-002", LabelMap(answer, truth.geometry, {}, truth.names), 1)
    dock = make_dock(folder)
    layer = opened(qtbot, dock, "case-002")
    shown = np.array(layer.data)
    for at in (6, 9):
        places = np.nonzero(np.arange(shown.shape[0])[:, None, None] == np.full(shown.shape, at))
        layer.data_setitem(places, 1)
    tracker = Tracker.of(dock.viewer)
    tracker.finish(layer, (2,))
    qtbot.waitUntil(lambda: ANSWER in fmseg_metadata(layer), timeout=PATIENCE_MS)
    press(qtbot, dock.add.add_button)
    wait(qtbot, dock)
    assert dock.error.error is None
    dock.viewer.layers.clear()
    again = opened(qtbot, dock, "case-002")
    assert again is not layer
    assert tracker.record(again).slices(0) == (6, 9)
    np.testing.assert_array_equal(tracker.answer(again), shown)
    assert rules_of(again).finished == {2}
    label_case(open_project(folder), "case-002", truth, LabelOptions())
    dock.viewer.layers.clear()
    assert not tracker.has_answer(opened(qtbot, dock, "case-002"))  # other labels: what was corrected before is past


def test_a_dropped_project_is_opened_and_remembered(make_dock: Any, qtbot: Any, tmp_path: Path) -> None:
    folder = project_at(tmp_path / "balls", 1).folder
    dock = make_dock()
    assert not dock.pages.isTabEnabled(1)
    assert "Open or make a project" in dock.add.add_button.toolTip()
    mime = QMimeData()
    mime.setUrls([QUrl.fromLocalFile(str(folder))])
    where = QPoint(5, 5).toPointF() if hasattr(QPoint, "toPointF") else QPoint(5, 5)
    drop = QDropEvent(where, Qt.DropAction.CopyAction, mime, Qt.MouseButton.LeftButton, Qt.KeyboardModifier.NoModifier)
    dock.dropEvent(drop)
    wait(qtbot, dock)
    assert dock.project is not None
    assert dock.project.folder == folder
    assert dock.bar.folders.currentText() == "balls"
    again = make_dock()
    qtbot.waitUntil(lambda: again.project is not None, timeout=60_000)
    assert again.project.folder == folder


def test_what_a_model_doubted_comes_hidden_with_its_labels_as_heat_on_the_same_place(
    make_dock: Any, qtbot: Any, tmp_path: Path
) -> None:
    project = project_at(tmp_path / "balls", 2)
    image, truth = case_of(5)
    project = add_case(project, "new", image)
    where = np.zeros(image.geometry.shape, np.float32)
    where[2, 3, 4] = 0.5
    save_prediction(project, "new", truth, 1, uncertainty=0.2, where=Volume(where, image.geometry))
    dock = make_dock(project.folder)
    for _ in range(2):  # opened again, it is as the user left it
        dock.cases.choose("new")
        press(qtbot, dock.cases.open_button)
        wait(qtbot, dock)
        assert [layer.name for layer in dock.viewer.layers] == [
            "new",
            "new · uncertainty",
            "new · predicted, to be corrected",
        ]
        assert [layer.visible for layer in dock.viewer.layers] == [True, False, True]
        assert [case.name for case in dock.add.image.cases] == ["new"]  # the map is no volume to be labelled
    scan, heat, _ = dock.viewer.layers
    assert heat.data.max() == 0.5
    lit = np.argwhere(heat.data == 0.5)[0]
    assert np.allclose(heat.data_to_world(lit), scan.data_to_world(lit))
    assert np.asarray(scan.data)[tuple(lit)] == np.asarray(image.data)[2, 3, 4]


# --- cases: few slices, two windows, earlier labels, other names, leaving ------------------------------------------


def when_open(kind: type[QDialog], do: Callable[[Any], None]) -> list[str]:
    """Do something with the next dialog of a kind; notes its title."""
    seen: list[str] = []

    def look() -> None:
        dialog = on_screen(kind)
        if dialog is None:
            QTimer.singleShot(20, look)
            return
        seen.append(dialog.windowTitle())
        do(dialog)

    QTimer.singleShot(20, look)
    return seen


def click(qtbot: Any, button: Any) -> None:
    qtbot.mouseClick(button, Qt.MouseButton.LeftButton)


def answer(qtbot: Any, number: int | None) -> list[str]:
    """Click an answer of the next choice; None for Cancel."""
    return when_open(Choice, lambda d: click(qtbot, d.cancel_button if number is None else d.answer_buttons[number]))


def pick(qtbot: Any, dock: TeachDock, case: str, name: str) -> None:
    """Click an entry of the menu of a case."""
    dock.cases.choose(case)
    action = dock.cases.actions_by_name[name]
    done: list[str] = []

    def look() -> None:
        menu = QApplication.activePopupWidget()
        if menu is None:
            QTimer.singleShot(20, look)
            return
        assert action.isVisible()
        assert action.isEnabled()
        qtbot.mouseClick(menu, Qt.MouseButton.LeftButton, pos=menu.actionGeometry(action).center())
        done.append(name)

    QTimer.singleShot(20, look)
    press(qtbot, dock.cases.more_button)
    qtbot.waitUntil(lambda: bool(done), timeout=PATIENCE_MS)


def opened(qtbot: Any, dock: TeachDock, case: str) -> Any:
    """Open a case; gives its labels."""
    dock.cases.choose(case)
    press(qtbot, dock.cases.open_button)
    wait(qtbot, dock)
    return dock.viewer.layers.selection.active


def test_the_chosen_case_stands_in_the_form_and_no_title_of_the_table_is_cut(
    make_dock: Any, qtbot: Any, tmp_path: Path
) -> None:
    dock = make_dock(project_at(tmp_path / "balls", 2).folder)
    titles = dock.cases.table.horizontalHeader()
    before = titles.grab().toImage()
    opened(qtbot, dock, "case-001")
    assert dock.add.add_button.text() == "Save labels of case-001"
    assert dock.add.name.placeholderText() == "case-001"
    assert titles.grab().toImage() == before  # bold ones would be wider than their columns
    shown_in(dock.viewer, case_of(5)[0], "new")
    assert dock.add.name.placeholderText() == "case-003"


def stored(folder: Path, case: str) -> np.ndarray:
    return read_labels(open_project(folder).files[case].labels).data


# --- few painted slices ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("choice", [0, 1, None], ids=["only the painted slices", "the whole volume", "cancel"])
def test_one_painted_slice_of_88_is_the_whole_volume_only_if_the_user_says_so(
    make_dock: Any, qtbot: Any, tmp_path: Path, choice: int | None
) -> None:
    dock = make_dock(project_at(tmp_path / "balls", 0).folder)
    grid = Geometry.from_spacing((88, 30, 30), (2.0, 1.0, 1.0))
    shown_in(dock.viewer, Volume(np.random.default_rng(0).normal(size=grid.shape).astype(np.float32), grid))
    press(qtbot, dock.add.new_button)
    layer = dock.viewer.layers.selection.active
    layer.brush_size = 9
    layer.paint((44, 15, 15), 1)
    asked = answer(qtbot, choice)
    press(qtbot, dock.add.add_button)
    wait(qtbot, dock)
    assert asked == ["Was the whole volume labelled?"]
    assert dock.error.error is None
    if choice is None:
        assert not open_project(tmp_path / "balls").files
        return
    found = stored(tmp_path / "balls", "case-001")
    told = (found != 2).any((1, 2))
    assert told.sum() == (1 if choice == 0 else 88)
    layer.paint((44, 12, 12), 1)
    press(qtbot, dock.add.add_button)  # answered once, it is not asked again
    wait(qtbot, dock)
    assert dock.error.error is None
    assert len(dock.project.record("case-001").earlier) == 1


# --- two windows ----------------------------------------------------------------------------------------------------


def test_labels_saved_in_another_window_are_asked_about_seen_and_taken_back(
    make_dock: Any, qtbot: Any, tmp_path: Path
) -> None:
    folder = project_at(tmp_path / "balls", 2).folder
    before = stored(folder, "case-001")
    one, two = make_dock(folder), make_dock(folder)
    layers = [opened(qtbot, dock, "case-001") for dock in (one, two)]
    for i, (dock, layer) in enumerate(zip((one, two), layers, strict=True)):
        layer.data_setitem((np.array([0]), np.array([0]), np.array([i])), 1)
        if dock is one:
            press(qtbot, dock.add.add_button)
            wait(qtbot, dock)
    assert stored(folder, "case-001")[0, 0, 0] == 1

    def press_and_answer(yes: bool) -> list[str]:
        button = "yes_button" if yes else "no_button"
        asked = when_open(Question, lambda d: click(qtbot, getattr(d, button)))
        press(qtbot, two.add.add_button)
        qtbot.waitUntil(lambda: bool(asked), timeout=30_000)
        wait(qtbot, two)
        return asked

    assert press_and_answer(yes=False) == ["Replace the labels that somebody else saved?"]
    assert "changed by somebody else" in two.error.text.text()
    np.testing.assert_array_equal(stored(folder, "case-001")[0, 0, :2], [1, 0])
    press_and_answer(yes=True)
    assert two.error.error is None
    np.testing.assert_array_equal(stored(folder, "case-001")[0, 0, :2], [0, 1])
    press(qtbot, two.add.add_button)  # these are its own now
    wait(qtbot, two)
    assert two.error.error is None

    pick(qtbot, two, "case-001", "history")
    qtbot.waitUntil(lambda: on_screen(LabelHistory) is not None, timeout=30_000)
    dialog = on_screen(LabelHistory)
    assert [dialog.table.item(i, 0).text() for i in range(dialog.table.rowCount())] == ["4 (now)", "3", "2", "1"]
    box = dialog.table.visualItemRect(dialog.table.item(3, 0))
    qtbot.mouseClick(dialog.table.viewport(), Qt.MouseButton.LeftButton, pos=box.center())
    press(qtbot, dialog.show_button)
    wait(qtbot, two)
    assert two.viewer.layers[-1].name == "case-001 · labels 1"
    assert two.add.layer is layers[1]  # what is only looked at is not what is saved
    press(qtbot, dialog.restore_button)
    wait(qtbot, two)
    assert two.error.error is None
    np.testing.assert_array_equal(stored(folder, "case-001"), before)
    assert not layers[1].visible
    assert layers[1] in two.viewer.layers  # nothing that was painted is lost
    fresh = two.viewer.layers.selection.active
    assert fresh.name == "case-001 · labels"
    assert two.add.layer is fresh


# --- leaving, and other names ---------------------------------------------------------------------------------------


def test_a_case_is_left_out_taken_back_renamed_and_removed_from_its_menu(
    make_dock: Any, qtbot: Any, tmp_path: Path
) -> None:
    folder = project_at(tmp_path / "balls", 3).folder
    dock = make_dock(folder)
    pick(qtbot, dock, "case-002", "exclude")
    wait(qtbot, dock)
    assert "1 left out" in dock.facts.text()
    assert [case.name for case in training_plan(open_project(folder)).training] == ["case-001", "case-003"]
    pick(qtbot, dock, "case-002", "include")
    wait(qtbot, dock)
    assert len(training_plan(open_project(folder)).training) == 3

    layer = opened(qtbot, dock, "case-002")

    def rename(dialog: QInputDialog) -> None:
        dialog.findChild(QLineEdit).setText("second")
        click(qtbot, dialog.findChild(QDialogButtonBox).button(QDialogButtonBox.StandardButton.Ok))

    when_open(QInputDialog, rename)
    pick(qtbot, dock, "case-002", "rename")
    wait(qtbot, dock)
    assert sorted(open_project(folder).files) == ["case-001", "case-003", "second"]
    assert dock.add.add_button.text() == "Save labels of second"
    layer.data_setitem((np.array([0]), np.array([0]), np.array([0])), 1)
    press(qtbot, dock.add.add_button)
    wait(qtbot, dock)
    assert dock.error.error is None
    assert stored(folder, "second")[0, 0, 0] == 1

    answer(qtbot, None)
    pick(qtbot, dock, "second", "remove")
    wait(qtbot, dock)
    assert "second" in open_project(folder).files
    answer(qtbot, 1)
    pick(qtbot, dock, "second", "remove")
    wait(qtbot, dock)
    assert sorted(open_project(folder).files) == ["case-001", "case-003"]
    assert not (folder / "imagesTr" / "second_0000.nii.gz").exists()
    assert dock.add.add_button.text() == "&Add to the project"


def test_a_class_that_is_renamed_in_the_table_keeps_its_number(make_dock: Any, qtbot: Any, tmp_path: Path) -> None:
    folder = project_at(tmp_path / "balls", 2).folder
    a_version(folder, tmp_path / "first")
    dock = make_dock(folder)
    layer = opened(qtbot, dock, "case-001")
    table = ClassTable(dock.viewer)
    qtbot.addWidget(table)
    table.set_layer(layer)
    table.table.item(0, NAME).setText("Kugel")
    asked = answer(qtbot, 0)
    press(qtbot, dock.add.add_button)
    wait(qtbot, dock)
    table.close_down()
    assert asked == ["Is Kugel the structure ball?"]
    assert dock.error.error is None
    project = open_project(folder)
    assert project.facts.labels == {1: "Kugel"}
    assert project.record("case-002").classes == ("Kugel",)
    assert dock._known.versions[0].card.labels == {1: "Kugel"}


@pytest.mark.parametrize(("number", "choice"), [(1, 2), (7, 1)], ids=["same number", "another number"])
def test_a_class_of_another_name_can_be_taken_for_one_of_the_project(
    make_dock: Any, qtbot: Any, tmp_path: Path, number: int, choice: int
) -> None:
    folder = project_at(tmp_path / "balls", 1).folder
    dock = make_dock(folder)
    volume, labels = case_of(5)
    shown_in(dock.viewer, volume)
    foreign = LabelMap(labels.data * number, labels.geometry, {}, {number: "Kugel"})
    dock.viewer.add_layer(Layer.create(*labels_layer(foreign, "found", frame=volume.geometry.canonical()[0])))
    asked = answer(qtbot, choice)
    press(qtbot, dock.add.add_button)
    wait(qtbot, dock)
    assert asked == ["Is Kugel the structure ball?" if number == 1 else "Which structure is Kugel?"]
    assert dock.error.error is None
    assert open_project(folder).facts.labels == {1: "ball"}
    np.testing.assert_array_equal(stored(folder, "case-002"), labels.data)


# --- versions -------------------------------------------------------------------------------------------------------


def test_why_a_version_is_not_used_is_said_on_both_pages(make_dock: Any, qtbot: Any, tmp_path: Path) -> None:
    folder = project_at(tmp_path / "balls", 4).folder
    a_version(folder, tmp_path / "first")
    project = open_project(folder)
    run = start_run(project, training_plan(project))
    (held,) = (case.name for case in run.plan.validation)
    record_scores(project, 1, {held: {"ball": 0.9}})
    kept = add_version(run, tmp_path / "first" / "balls.toml", scores={held: {"ball": 0.8}})
    assert not kept.in_use
    dock = make_dock(folder)
    assert "version 1 active, version 2 is not" in dock.facts.text()
    dock.pages.setCurrentIndex(2)
    box = dock.versions.table.visualItemRect(dock.versions.table.item(0, 0))
    qtbot.mouseClick(dock.versions.table.viewport(), Qt.MouseButton.LeftButton, pos=box.center())
    assert dock.versions.chosen == 2
    assert "Dice 0.8000 on 1 case(s)" in dock.versions.facts.text()
    assert "version 1 has 0.9000, so that stays in use" in dock.versions.facts.text()


def test_two_projects_of_one_name_both_get_their_models_listed(make_dock: Any, qtbot: Any, tmp_path: Path) -> None:
    docks = []
    for seed, place in enumerate("ab"):
        folder = project_at(tmp_path / place / "肝臓", 1).folder
        a_version(folder, tmp_path / place / "first", seed)
        a_version(folder, tmp_path / place / "second", seed)
        docks.append(make_dock(folder))
    for dock in docks:
        dock.pages.setCurrentIndex(2)
        press(qtbot, dock.versions.back_button)
        wait(qtbot, dock)
        assert dock.error.error is None
    assert {find_card("肝臓").version, find_card("肝臓-2").version} == {1}


def test_a_case_that_was_changed_elsewhere_since_it_was_added_here_is_asked_about(
    make_dock: Any, qtbot: Any, tmp_path: Path
) -> None:
    dock = make_dock(project_at(tmp_path / "balls", 0).folder)
    volume, truth = case_of(1)
    shown_in(dock.viewer, volume)
    press(qtbot, dock.add.new_button)
    layer = dock.viewer.layers.selection.active
    for plane in range(5, 12):
        layer.brush_size = 9
        layer.paint((plane, 14, 16), 1)
    press(qtbot, dock.add.add_button)
    wait(qtbot, dock)
    label_case(open_project(dock.project.folder), "case-001", truth)  # another person
    add_case(open_project(dock.project.folder), "other", *case_of(2))
    asked = when_open(Question, lambda d: click(qtbot, d.no_button))
    press(qtbot, dock.add.add_button)
    qtbot.waitUntil(lambda: bool(asked), timeout=30_000)
    wait(qtbot, dock)
    np.testing.assert_array_equal(stored(dock.project.folder, "case-001"), truth.data)


# --- held-out cases after a training --------------------------------------------------------------------------------


def click_row(qtbot: Any, table: Any, row: int) -> None:
    table.scrollToItem(table.item(row, 0))
    box = table.visualItemRect(table.item(row, 0))
    qtbot.mouseClick(table.viewport(), Qt.MouseButton.LeftButton, pos=box.center())


def test_a_training_by_time_says_what_it_learns_from_and_shows_the_held_out_case_with_one_click(
    make_dock: Any, qtbot: Any, tmp_path: Path
) -> None:
    project = project_at(tmp_path / "balls", 4)
    for i in range(3):
        project = add_case(project, f"more-{i}", case_of(20 + i)[0])
    run = start_run(project, training_plan(project))
    (held,) = (case.name for case in run.plan.validation)
    net = {"widths": (4, 8), "strides": ((2, 2, 2), (2, 2, 2))}
    timed = {"steps": 20, "steps_per_epoch": 5, "minutes": 0.05}
    stage = StageRecipe("consensus", "fastunet", "soft_dice_ce", kwargs=net, ema=0.9, keep="last", **timed)
    settings = {"consensus_grid": (16, 16, 16), "attention_grid": (16, 16, 16)}
    recipe = recipe_for(
        run, (stage,), settings=settings, unlabelled=run.plan.unlabelled, unlabelled_weight=0.5, device="cpu"
    )
    write_recipe(recipe, recipe_file(run))
    dock = make_dock(project.folder)
    dock.pages.setCurrentIndex(1)
    page = dock.train
    bar, said = [], []
    page.bar.valueChanged.connect(bar.append)
    dock.round.event_received.connect(lambda _: said.append((page.learned.text(), page.said.text())))
    press(qtbot, page.resume_button)
    assert not page.held_out.isVisible()
    qtbot.waitUntil(lambda: not dock.round.running and dock.round.state != "preparing", timeout=PATIENCE_MS)
    wait(qtbot, dock)
    assert (dock.round.state, dock.error.error) == ("done", None), dock.error.text.text()
    learned = "Learning from 3 labelled and 3 unlabelled volumes."
    assert learned in [text for text, _ in said]
    assert page.learned.isVisible()
    assert page.learned.text() == learned
    assert learned not in dock.note.text()
    assert bar == sorted(bar)
    steps = [text for _, text in said if "step" in text]
    assert steps
    assert not [text for text in steps if " of " in text]  # how many it will be is a guess

    table = page.held_out.table
    assert page.held_out.isVisible()
    assert [table.item(i, 1).text() for i in range(table.rowCount())] == [held]
    assert not table.item(0, 0).icon().isNull()
    click_row(qtbot, table, 0)
    wait(qtbot, dock)
    assert [layer.name for layer in dock.viewer.layers] == [held, f"{held} · labels", f"{held} · version 1"]
    _, mine, its = dock.viewer.layers
    assert its.contour
    dice = 2 * ((mine.data == 1) & (its.data == 1)).sum() / ((mine.data == 1).sum() + (its.data == 1).sum())
    assert table.item(0, 2).text() == f"{dice:.2f}"
    assert dock.viewer.layers.selection.active is mine
    assert dock.add.layer is mine  # the model's are only looked at


def test_held_out_cases_stand_worst_first_with_what_would_help_most(make_dock: Any, qtbot: Any, tmp_path: Path) -> None:
    folder = project_at(tmp_path / "balls", 4).folder
    a_version(folder, tmp_path / "first")
    project = open_project(folder)
    run = start_run(project, training_plan(project))
    scores = {f"case-{i:03d}": {"ball": dice} for i, dice in ((1, 0.9), (2, 0.4), (3, 0.8))}
    add_version(run, tmp_path / "first" / "balls.toml", scores=scores)
    (run.folder / "kept.json").write_text('{"version": 2}')
    image, truth = case_of(1)
    shifted = LabelMap(np.roll(truth.data, 2, 1), truth.geometry, {}, truth.names)
    write_plane(image, truth, shifted, picture_file(run.folder, project.record("case-002").image), small=True)
    write_labels(shifted, labels_file(run.folder, project.record("case-002").image))
    dock = make_dock(folder)
    dock.pages.setCurrentIndex(1)
    shown = dock.train.held_out
    assert shown.isVisible()
    assert "version 2 never saw" in shown.title.text()
    assert shown.advice.text().startswith("More cases like case-002 would help most: its Dice is 0.40")
    cells = [[shown.table.item(i, column).text() for column in (1, 2)] for i in range(shown.table.rowCount())]
    assert cells == [["case-002", "0.40"], ["case-003", "0.80"], ["case-001", "0.90"]]
    assert [shown.table.item(i, 0).icon().isNull() for i in range(3)] == [False, True, True]
    picture = shown.table.item(0, 0).icon().pixmap(84, 84).toImage()
    colors = {picture.pixelColor(x, y).name() for x in range(picture.width()) for y in range(picture.height())}
    assert {"#56b4e9", "#e69f00"} <= colors  # the outlines of both
    for _ in range(2):  # clicked again, nothing comes twice
        click_row(qtbot, shown.table, 0)
        wait(qtbot, dock)
        assert [layer.name for layer in dock.viewer.layers] == ["case-002", "case-002 · labels", "case-002 · version 2"]
    np.testing.assert_array_equal(np.sort(np.unique(dock.viewer.layers[-1].data)), [0, 1])
    click_row(qtbot, shown.table, 1)  # what was found was not kept
    wait(qtbot, dock)
    visible = [layer.name for layer in dock.viewer.layers if layer.visible]
    assert visible == ["case-003", "case-003 · labels"]
    shown.show_report(dataclasses.replace(shown.report, left_out=True, advice=""))
    assert "trained without it" in shown.title.text()
    assert not shown.advice.isVisible()


def test_a_model_of_nnunet_learns_a_new_class_from_the_panel(
    make_dock: Any, qtbot: Any, nnunet_plans: Any, nnunet_results: Any, tmp_path: Path
) -> None:
    plans = nnunet_plans((16, 16, 16), (2.0, 1.5, 1.5))
    model = nnunet_results(tmp_path / "results", plans, labels={"background": 0, "other": 1})
    (card,) = import_nnunet(model).cards
    folder = project_at(tmp_path / "balls", 4).folder
    dock = make_dock(folder)
    dock.pages.setCurrentIndex(1)
    dock.train.source.setCurrentIndex(dock.train.source.findData(card.name))
    dock.train.minutes.setValue(0.5)
    press(qtbot, dock.train.start_button)
    qtbot.waitUntil(lambda: dock.round.running, timeout=PATIENCE_MS)
    qtbot.waitUntil(lambda: not dock.round.running, timeout=2 * PATIENCE_MS)
    wait(qtbot, dock)
    assert dock.error.error is None, dock.error.text.text()
    (version,) = dock._known.versions
    assert version.card.pipeline == "nnunet"
    assert version.card.labels == {1: "ball"}
    volume, truth = case_of(9)
    found = drain(segment(volume, load_model(version.card, device="cpu"), SegmentOptions(mirror=False))).data > 0
    assert 2 * (found & (truth.data > 0)).sum() / (found.sum() + (truth.data > 0).sum()) > 0.6


def test_start_from_lists_a_model_that_was_imported_meanwhile(
    make_dock: Any, qtbot: Any, nnunet_results: Any, tmp_path: Path
) -> None:
    dock = make_dock(project_at(tmp_path / "balls", 1).folder)
    dock.pages.setCurrentIndex(1)
    (card,) = import_nnunet(nnunet_results(tmp_path / "results")).cards
    assert dock.train.source.findData(card.name) < 0
    dock.train.source.showPopup()
    assert dock.train.source.findData(card.name) >= 0
    dock.train.source.hidePopup()


def test_the_general_start_can_be_chosen_and_is_not_chosen_for_the_user(make_dock: Any, tmp_path: Path) -> None:
    dock = make_dock(project_at(tmp_path / "balls", 1).folder)
    dock.pages.setCurrentIndex(1)
    assert dock.train.source.currentData() == FROM_SCRATCH
    dock.train.source.setCurrentIndex(dock.train.source.findData(GENERAL_START))
    assert dock.train.source.currentText().startswith("General start")
    assert dock.train.choices()[0] == GENERAL_START


def test_a_class_is_no_longer_said_not_to_be_learned_once_it_is(make_dock: Any, tmp_path: Path) -> None:
    dock = make_dock(project_at(tmp_path / "balls", 1).folder)
    dock._on_event(Warned("net: 'ball' is not being learned: its Dice is 0.01.", "not-learned: ball"))
    dock._on_event(Warned("Something else.", "else"))
    dock._on_event(EpochDone("net", 3, 8, 1.0, 1.0, {"dice": 0.1, "dice/ball": 0.1}))
    assert "not being learned" in dock.note.text()
    dock._on_event(EpochDone("net", 4, 8, 1.0, 1.0, {"dice": 0.8, "dice/ball": 0.8}))
    assert dock.note.text() == "Something else."


def dark_tissue(volume: Volume, hippocampus: np.ndarray) -> np.ndarray:
    """Return the fluid around a hippocampus: what is less than half as bright as it, smoothed."""
    smooth = gaussian_filter(np.asarray(volume.data, np.float32), 0.7)
    middle = np.median(np.asarray(volume.data)[hippocampus])
    return np.asarray(binary_opening((smooth < 0.5 * middle) & ~hippocampus))


def dice(found: np.ndarray, truth: np.ndarray) -> float:
    return float(2 * (found & truth).sum() / (found.sum() + truth.sum()))


@pytest.mark.real
@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.skipif(not HIPPOCAMPUS.is_dir(), reason="the real volumes are not here (FMSEG_SHARED says where)")
def test_a_hippocampus_model_of_nnunet_learns_the_fluid_from_4_cases_and_keeps_what_it_knew(
    make_dock: Any, drop: Any, qtbot: Any, tmp_path: Path
) -> None:
    project = init_project(tmp_path / "hippocampus", ("anterior", "posterior", "fluid"), channels=("MR",))
    for name in ("hip_003", "hip_004", "hip_006", "hip_007"):  # labelled with the new class only
        volume = read_volume(HIPPOCAMPUS / "images" / f"{name}.nii.gz")
        fluid = dark_tissue(volume, read_labels(HIPPOCAMPUS / "labels" / f"{name}.nii.gz").data > 0)
        labels = LabelMap(3 * fluid.astype(np.uint8), volume.geometry, {}, {3: "fluid"})
        project = add_case(project, name, volume, labels, LabelOptions(unlabelled="nothing"))
    dock = make_dock(project.folder)
    segment_dock = SegmentDock(dock.viewer)
    dock.viewer.window.add_dock_widget(segment_dock, name="fmseg: Segment")
    model = NNUNET / "plain_mr" / "nnUNetTrainer__nnUNetPlans__3d_fullres" / "fold_0"
    drop(segment_dock, model)
    qtbot.waitUntil(lambda: "Imported" in segment_dock.remarks.text(), timeout=PATIENCE_MS)
    (imported,) = (card for card in list_models() if card.pipeline == "nnunet")
    dock.pages.setCurrentIndex(1)
    dock.train.source.setCurrentIndex(dock.train.source.findData(imported.name))
    assert imported.title in dock.train.source.currentText()
    dock.train.minutes.setValue(2.0)  # some 150 steps, also where other programs run
    press(qtbot, dock.train.start_button)
    qtbot.waitUntil(lambda: dock.round.running, timeout=PATIENCE_MS)
    qtbot.waitUntil(lambda: not dock.round.running, timeout=5 * PATIENCE_MS)
    wait(qtbot, dock)
    segment_dock.close_down()
    assert dock.error.error is None, dock.error.text.text()
    (version,) = dock._known.versions
    assert version.card.labels == {1: "anterior", 2: "posterior", 3: "fluid"}

    before, after = load_model(imported, device="cpu"), load_model(version.card, device="cpu")
    options, table = SegmentOptions(device="cpu", mirror=False), []
    for name in ("hip_001", "hip_015", "hip_033", "hip_041", "hip_051", "hip_065"):  # never learned from
        volume = read_volume(HIPPOCAMPUS / "images" / f"{name}.nii.gz")
        truth = read_labels(HIPPOCAMPUS / "labels" / f"{name}.nii.gz").data
        old, new = (drain(segment(volume, model, options)).data for model in (before, after))
        fluid = dark_tissue(volume, truth > 0)
        table.append([dice(old == 1, truth == 1), dice(old == 2, truth == 2),
                      dice(new == 1, truth == 1), dice(new == 2, truth == 2), dice(new == 3, fluid)])  # fmt: skip
    anterior, posterior, anterior_after, posterior_after, fluid_after = np.mean(table, 0)
    assert fluid_after > 0.5, table
    assert anterior_after > anterior - 0.05, table
    assert posterior_after > posterior - 0.05, table
