"""Image and labels of two scans in one window: labels stay with the image that they were made on, in every dock."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("napari")
pytest.importorskip("pytestqt")
pytest.importorskip("pyqtgraph")
if not os.environ.get("DISPLAY"):
    pytest.skip("needs a display: run under xvfb-run", allow_module_level=True)

from napari.layers import Labels, Layer
from qtpy.QtCore import Qt, QTimer
from qtpy.QtWidgets import QFileDialog, QLabel

from napari_fmseg._napari.choosers.image_volumes import cases_of
from napari_fmseg._napari.choosers.label_pairing import image_of, is_of, labels_for, note_image
from napari_fmseg._napari.common.dialogs import Question, on_screen
from napari_fmseg._napari.export.dock import ExportDock
from napari_fmseg._napari.export.label_origin import label_map_to_write, origin_of
from napari_fmseg._napari.layer_transform import geometry_of
from napari_fmseg._napari.layers import KEY, image_layers, labels_layer
from napari_fmseg._napari.recovery.autosave_store import Session, list_abandoned, read, work_of
from napari_fmseg._napari.results.class_table import ML, NAME, VOXELS
from napari_fmseg._napari.results.lesion_table import LesionDialog
from napari_fmseg._napari.segment.dock import SegmentDock
from napari_fmseg._napari.teach.dock import TeachDock
from napari_fmseg.core.errors import GeometryMismatch
from napari_fmseg.core.events import StageResult
from napari_fmseg.core.volume import Geometry, LabelMap, Volume
from napari_fmseg.io import read_labels, read_volume
from napari_fmseg.models.card import Intensity, ModelCard, NetSpec, write_card
from napari_fmseg.training.projects import add_case, init_project

PATIENCE_MS = 120_000
SHAPE = (12, 14, 16)
TURN = np.linalg.qr(np.eye(3) + 0.05 * np.random.default_rng(3).standard_normal((3, 3)))[0]
TURN = TURN * np.sign(np.diag(TURN))


def scan(seed: int, meta: dict[str, Any] | None = None, direction: Any = None) -> Volume:
    grid = Geometry.from_spacing(SHAPE, (2.0, 1.5, 1.5), (3, -4, 5), direction)
    data = np.random.default_rng(seed).normal(100, 15, SHAPE).astype(np.float32)
    return Volume(data, grid, meta or {})


def ball(seed: int) -> LabelMap:
    data = np.zeros(SHAPE, np.uint8)
    data[3 : 5 + seed, 4:8, 4:9] = 1
    return LabelMap(data, scan(0).geometry, {}, {1: "ball"})


def show(viewer: Any, volume: Volume, name: str, source: str = "") -> Any:
    for data in image_layers(volume, name, source=source):
        viewer.add_layer(Layer.create(*data))
    return viewer.layers[-1]


def show_labels(viewer: Any, labels: LabelMap, name: str) -> Any:
    data, options, _ = labels_layer(labels, name)
    return viewer.add_labels(np.array(data), **options)


class Finder:
    """An engine that keeps what it is given and finds the brighter half."""

    def __init__(self) -> None:
        self.volumes: list[Volume] = []

    def segment(self, volume: Volume, model_name: str, options: Any) -> Iterator[Any]:
        self.volumes.append(volume)
        self.options = options
        data = (volume.channels[0] > np.median(volume.channels[0])).astype(np.uint8)
        yield StageResult("labels", LabelMap(data, volume.geometry, {}, {1: "bright"}), 0.1)

    def grad_cam(self, volume: Volume, model_name: str, label: int, *, point: Any, device: str) -> Iterator[Any]:
        self.volumes.append(volume)
        yield StageResult("why", Volume(np.zeros(volume.geometry.shape, np.float32), volume.geometry), 0.1)

    def cancel(self) -> None: ...

    def close(self) -> None: ...


@pytest.fixture
def models(tmp_path: Path) -> None:
    folder = tmp_path / "home" / "models"
    folder.mkdir(parents=True)
    for name, channels in (("one", ("MR",)), ("two", ("CT", "PET"))):
        (folder / f"{name}.safetensors").write_bytes(b"")
        card = ModelCard(
            name, name.title(), "single", {"net": NetSpec("unet3d")}, {1: "bright"}, channels=channels,
            weights=f"{name}.safetensors", intensity=Intensity("window", 0, 200), settings={"window": [16, 16, 16]},
        )  # fmt: skip
        write_card(card, folder / f"{name}.toml")


@pytest.fixture
def docks(make_napari_viewer: Any, models: None) -> Iterator[Callable[..., Any]]:
    made: list[Any] = []
    shown: list[Any] = []

    def make(kind: Any, *more: Any) -> Any:
        if not shown:
            shown.append(make_napari_viewer(show=True))
        dock = kind(shown[0], *more)
        shown[0].window.add_dock_widget(dock, name=kind.__name__)
        made.append(dock)
        return dock

    yield make
    for dock in made:
        for part in ("session", "round", "predicting"):
            if hasattr(dock, part):
                getattr(dock, part).close()
    made.clear()
    shown.clear()
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline and [t for t in threading.enumerate() if t.name.startswith("fmseg")]:
        time.sleep(0.05)


def press(qtbot: Any, button: Any) -> None:
    assert button.isEnabled(), button.toolTip()
    qtbot.mouseClick(button, Qt.MouseButton.LeftButton)


def answering(yes: bool, texts: list[str] | None = None) -> list[str]:
    """Answer the next question that opens, and note what it asked; its texts go to `texts`."""
    asked: list[str] = []

    def look() -> None:
        question = on_screen(Question)
        if question is None:
            QTimer.singleShot(20, look)
            return
        asked.append(question.windowTitle())
        if texts is not None:
            texts.extend(label.text() for label in question.findChildren(QLabel))
        (question.yes_button if yes else question.no_button).click()

    QTimer.singleShot(20, look)
    return asked


def wait(qtbot: Any, dock: TeachDock) -> None:
    qtbot.waitUntil(lambda: dock._job is None, timeout=PATIENCE_MS)


def run(qtbot: Any, dock: SegmentDock) -> None:
    press(qtbot, dock.bar.run_button)
    qtbot.waitUntil(lambda: not dock.session.running, timeout=PATIENCE_MS)
    assert dock.error.error is None


def choose(qtbot: Any, combo: Any, text: str) -> None:
    """Choose with the keyboard."""
    combo.setFocus()
    for _ in range(combo.count()):
        qtbot.keyClick(combo, Qt.Key.Key_Up)
    for _ in range(combo.findText(text)):
        qtbot.keyClick(combo, Qt.Key.Key_Down)
    assert combo.currentText() == text


@pytest.fixture
def project(tmp_path: Path) -> Any:
    return init_project(tmp_path / "balls", ("ball",), channels=("MR",))


# --- Teach -----------------------------------------------------------------------------------------------------------


def test_a_second_scan_is_not_added_with_the_labels_of_the_first(docks: Any, qtbot: Any, project: Any) -> None:
    dock = docks(TeachDock)
    dock.open_folder(project.folder)
    wait(qtbot, dock)
    first = show(dock.viewer, scan(1), "A")
    press(qtbot, dock.add.new_button)
    mine = dock.viewer.layers.selection.active
    mine.data_setitem((np.array([3]), np.array([4]), np.array([5])), 1)
    show(dock.viewer, scan(2), "B")  # on the same grid
    assert (dock.add.image.currentText(), dock.add.layer) == ("B", None)
    dock.viewer.layers.selection.active = mine
    assert (dock.add.image.currentText(), dock.add.layer) == ("A", mine)
    dock.viewer.layers.selection.active = first
    assert (dock.add.image.currentText(), dock.add.layer) == ("A", mine)
    choose(qtbot, dock.add.image, "B")
    choose(qtbot, dock.add.labels, mine.name)  # by mistake
    asked = answering(yes=False)
    press(qtbot, dock.add.add_button)
    assert asked == ["Are these the labels of B?"]
    assert not dock.project.files
    asked = answering(yes=True)
    press(qtbot, dock.add.add_button)
    wait(qtbot, dock)
    assert len(asked) == 1
    assert list(dock.project.files) == ["case-001"]
    np.testing.assert_array_equal(read_volume(project.folder / "imagesTr" / "case-001_0000.nii.gz").data, scan(2).data)
    assert image_of(mine, dock.viewer.layers).name == "B"  # as the user said


def test_the_labels_of_one_case_are_not_saved_as_those_of_another(docks: Any, qtbot: Any, project: Any) -> None:
    for i, name in enumerate(("case-A", "case-B")):
        add_case(project, name, scan(i), ball(i))
    before = (project.folder / "labelsTr" / "case-B.nii.gz").read_bytes()
    dock = docks(TeachDock)
    dock.open_folder(project.folder)
    wait(qtbot, dock)
    for name in ("case-A", "case-B"):
        dock.cases.choose(name)
        press(qtbot, dock.cases.open_button)
        wait(qtbot, dock)
    layers = dock.viewer.layers
    assert dock.add.add_button.text() == "Save labels of case-B"
    assert dock.add.layer is layers["case-B · labels"]
    layers.selection.active = layers["case-A · labels"]
    assert dock.add.add_button.text() == "Save labels of case-A"
    layers.selection.active = layers["case-B"]
    assert dock.add.layer is layers["case-B · labels"]
    choose(qtbot, dock.add.labels, "case-A · labels")
    asked = answering(yes=False)
    press(qtbot, dock.add.add_button)
    assert asked == ["Are these the labels of case-B?"]
    assert (project.folder / "labelsTr" / "case-B.nii.gz").read_bytes() == before


def test_what_is_added_is_marked_although_the_user_goes_on_meanwhile(docks: Any, qtbot: Any, project: Any) -> None:
    dock = docks(TeachDock)
    dock.open_folder(project.folder)
    wait(qtbot, dock)
    first = show(dock.viewer, scan(1), "A")
    mine = show_labels(dock.viewer, ball(1), "ball of A")
    second = show(dock.viewer, scan(2), "B")
    note_image(mine, cases_of(dock.viewer.layers)[0])
    dock.viewer.layers.selection.active = mine
    press(qtbot, dock.add.add_button)
    dock.viewer.layers.selection.active = second  # while it is being written
    wait(qtbot, dock)
    assert first.metadata[KEY]["case"] == mine.metadata[KEY]["case"] == "case-001"
    assert "case" not in second.metadata[KEY]


def test_labels_of_a_file_on_two_scans_are_asked_about_once(docks: Any, qtbot: Any, project: Any) -> None:
    dock = docks(TeachDock)
    dock.open_folder(project.folder)
    wait(qtbot, dock)
    show(dock.viewer, scan(1), "A")
    show(dock.viewer, scan(2), "B")
    mine = show_labels(dock.viewer, ball(1), "from a file")
    assert (dock.add.image.currentText(), dock.add.layer) == ("B", mine)
    asked = answering(yes=True)
    press(qtbot, dock.add.add_button)
    wait(qtbot, dock)
    assert asked == ["Are these the labels of B?"]
    mine.data_setitem((np.array([0]), np.array([0]), np.array([0])), 1)
    press(qtbot, dock.add.add_button)  # nobody asks again
    wait(qtbot, dock)
    assert dock.error.error is None
    assert read_labels(project.folder / "labelsTr" / "case-001.nii.gz").data[0, 0, 0] == 1


def test_labels_beside_the_image_are_refused(docks: Any, qtbot: Any, project: Any) -> None:
    dock = docks(TeachDock)
    dock.open_folder(project.folder)
    wait(qtbot, dock)
    show(dock.viewer, scan(1), "A")
    far = Geometry.from_spacing(SHAPE, (2.0, 1.5, 1.5), (903, -4, 5))
    mine = show_labels(dock.viewer, LabelMap(ball(1).data, far, {}, {1: "ball"}), "elsewhere")
    dock.viewer.layers.selection.active = mine
    assert dock.add.layer is mine
    press(qtbot, dock.add.add_button)
    assert "no voxel in common" in dock.error.text.text()
    assert not dock.project.files


def test_a_scan_without_a_spacing_is_added_only_with_consent(docks: Any, qtbot: Any, project: Any) -> None:
    dock = docks(TeachDock)
    dock.open_folder(project.folder)
    wait(qtbot, dock)
    dock.viewer.add_image(scan(1).data, name="A")
    asked = answering(yes=False)
    press(qtbot, dock.add.add_button)
    assert asked == ["Take a pixel for 1 mm?"]
    assert not dock.project.files
    dock.viewer.layers["A"].units = ("mm",) * 3
    press(qtbot, dock.add.add_button)
    wait(qtbot, dock)
    assert list(dock.project.files) == ["case-001"]


def test_a_question_about_large_images_tells_whole_numbers_of_voxels(docks: Any, qtbot: Any, project: Any) -> None:
    dock = docks(TeachDock)
    dock.open_folder(project.folder)
    wait(qtbot, dock)
    dock.viewer.add_image(np.zeros((2, 1024, 1200), np.uint8), name="A")
    texts: list[str] = []
    answering(yes=False, texts=texts)
    press(qtbot, dock.add.add_button)
    assert any("2 x 1024 x 1200 voxels of 1 x 1 x 1 mm" in text for text in texts), texts


# --- Segment ---------------------------------------------------------------------------------------------------------


def test_segment_takes_the_scan_whose_layer_is_chosen_and_its_labels_know_it(docks: Any, qtbot: Any) -> None:
    engine = Finder()
    dock = docks(SegmentDock, engine)
    first, second = show(dock.viewer, scan(1), "A"), show(dock.viewer, scan(2), "B")
    dock.model.choose("one")
    for layer in (first, second):
        dock.viewer.layers.selection.active = layer
        assert dock.image.currentText() == layer.name
        run(qtbot, dock)
        np.testing.assert_array_equal(engine.volumes[-1].data, layer.data)
    found = [labels_for(case, dock.viewer.layers) for case in dock.image.cases]
    assert [[layer.name for layer in group] for group in found] == [["A · one · labels"], ["B · one · labels"]]
    dock.viewer.layers.selection.active = first
    assert dock.classes.layer is found[0][0]  # the table follows, too
    dock.viewer.layers.selection.active = found[1][0]
    assert (dock.image.currentText(), dock.classes.layer) == ("B", found[1][0])
    found[1][0].data_setitem((np.array([0]), np.array([0]), np.array([0])), 9)
    run(qtbot, dock)  # an edited result becomes the user's own, and still belongs to its image
    assert dock.session.kept == ["B · one · labels"]
    assert is_of(found[1][0], dock.image.cases[1])


def test_why_here_asks_about_the_images_that_the_labels_were_made_on(docks: Any, qtbot: Any) -> None:
    engine = Finder()
    dock = docks(SegmentDock, engine)
    for name, kind in (("ct of A", "CT"), ("pet of A", "PT"), ("pet of B", "PT")):
        show(dock.viewer, scan(len(name), {"modality": kind}), name)
    dock.model.choose("two")
    dock.image.setCurrentText("ct of A")
    chooser = dock.choices.channels.choosers[0]
    chooser.setCurrentText("pet of A")
    dock.viewer.layers.selection.active = dock.viewer.layers["pet of B"]
    assert "the model will run on “ct of A” and “pet of A”" in dock.warnings.text()
    dock.viewer.layers.selection.active = dock.viewer.layers["pet of A"]
    assert "will run on" not in dock.warnings.text()
    run(qtbot, dock)
    qtbot.waitUntil(lambda: bool(dock.classes.measures), timeout=PATIENCE_MS)
    chooser.setCurrentText("pet of B")  # chosen for the next run
    dock.classes.go_to(1)
    press(qtbot, dock.why)
    qtbot.waitUntil(lambda: not dock.session.running, timeout=PATIENCE_MS)
    made_on, asked_about = engine.volumes
    np.testing.assert_array_equal(asked_about.data, made_on.data)
    dock.viewer.layers.remove("pet of A")
    press(qtbot, dock.why)
    assert "not all of them are open" in dock.error.text.text()


def test_lesions_are_measured_in_the_labels_own_images_unless_the_user_agrees(
    docks: Any, qtbot: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dock = docks(SegmentDock, Finder())
    pet = {"modality": "PT", "units": "SUV"}
    for name in ("pet of B", "pet of A"):
        show(dock.viewer, scan(len(name), pet), name)
    dock.model.choose("one")
    dock.image.setCurrentText("pet of A")
    run(qtbot, dock)
    press(qtbot, dock.lesions)
    (dialog,) = dock.findChildren(LesionDialog)
    qtbot.waitUntil(lambda: dialog.found is not None, timeout=PATIENCE_MS)
    assert dialog.image.currentText() == "pet of A"
    assert dialog.pairing_note.isHidden()
    saved = tmp_path / "l.csv"
    monkeypatch.setattr(QFileDialog, "getSaveFileName", lambda *_: (str(saved), ""))
    choose(qtbot, dialog.image, "pet of B")
    qtbot.waitUntil(dialog.pairing_note.isVisible, timeout=PATIENCE_MS)
    assert "was made on “pet of A”" in dialog.pairing_note.text()
    asked = answering(yes=False)
    press(qtbot, dialog.save)
    assert asked == ["Is “pet of B” of the same patient?"]
    assert not saved.exists()
    answering(yes=True)
    press(qtbot, dialog.save)
    qtbot.waitUntil(saved.exists, timeout=PATIENCE_MS)
    dialog.close()


# --- Export ----------------------------------------------------------------------------------------------------------


def test_export_refers_to_the_scan_that_the_labels_were_made_on_or_says_that_nobody_knows(
    docks: Any, qtbot: Any, tmp_path: Path
) -> None:
    dock = docks(ExportDock)
    viewer = dock.viewer
    for name in ("A", "B"):
        show(viewer, scan(ord(name)), name, source=str(tmp_path / f"{name}.nii.gz"))
    viewer.layers.selection.active = viewer.layers["B"]
    viewer._new_labels()  # napari's own button
    assert origin_of(viewer.layers["B - Labels"], viewer.layers).source == tmp_path / "B.nii.gz"
    assert origin_of(viewer.layers["B - Labels"], viewer.layers).ambiguous == ()
    unknown = show_labels(viewer, ball(1), "from a file")
    assert dock.layer is unknown
    assert dock.origin.ambiguous == ("A", "B")
    assert dock.origin.source is None
    assert "it is unknown on which" in dock.way.what.model().item(4).toolTip()
    viewer.layers.remove("A")
    assert origin_of(unknown, viewer.layers).source == tmp_path / "B.nii.gz"


def test_labels_on_two_scans_of_several_directions_are_not_written_by_guess(docks: Any, tmp_path: Path) -> None:
    viewer = docks(ExportDock).viewer
    oblique = scan(2, direction=TURN)
    straight = Volume(scan(1).data, Geometry.from_spacing(SHAPE, (2, 1.5, 1.5), tuple(TURN.T @ (3, -4, 5))))
    show(viewer, straight, "A")
    image = show(viewer, oblique, "B")  # in the window the two lie on each other
    painted = viewer.add_labels(np.ones(SHAPE, np.uint8), scale=image.scale, translate=image.translate, units="mm")
    with pytest.raises(GeometryMismatch, match="nothing states"):
        label_map_to_write(painted, tuple(viewer.layers))
    note_image(painted, cases_of(viewer.layers)[1])
    assert label_map_to_write(painted, tuple(viewer.layers)).geometry.matches(oblique.geometry, atol_mm=0.01)


def test_labels_that_were_offered_back_after_a_crash_find_their_image_again(
    make_napari_viewer: Any, tmp_path: Path
) -> None:
    viewer = make_napari_viewer()
    for name in ("A", "B"):
        show(viewer, scan(ord(name)), name, source=str(tmp_path / f"{name}.nii.gz"))
    layer = show_labels(viewer, ball(1), "painted")
    note_image(layer, cases_of(viewer.layers)[0])
    session = Session(tmp_path / "recovery")
    session.write(session.new_key("painted"), work_of(layer))
    (session.folder / "session.json").write_text('{"pid": 1, "started": 0, "host": "elsewhere"}')
    os.utime(session.folder / "session.json", (0, 0))
    [save] = list_abandoned([tmp_path / "recovery"])
    again = make_napari_viewer()
    for name in ("B", "A"):
        show(again, scan(ord(name)), name, source=str(tmp_path / f"{name}.nii.gz"))
    data, options, _ = read(save)
    back = again.add_layer(Labels(data, **options))
    assert image_of(back, again.layers).name == "A"
    assert [is_of(back, case) for case in cases_of(again.layers)] == [False, True]


def test_two_series_of_one_folder_are_two_images(make_napari_viewer: Any) -> None:
    viewer = make_napari_viewer()
    for name in ("A", "B"):
        show(viewer, scan(ord(name), {"series_uid": f"1.2.{ord(name)}"}), name, source="folder")
    layer = show_labels(viewer, ball(1), "painted")
    note_image(layer, cases_of(viewer.layers)[0])
    assert [is_of(layer, case) for case in cases_of(viewer.layers)] == [True, False]
    viewer.layers.remove("A")
    assert image_of(layer, viewer.layers) is None


# --- layers that other tools made ------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:Non-orthogonal slicing")  # napari's own, of what it draws
def test_a_turned_scan_in_micrometres_is_segmented_measured_and_exported_in_its_place(
    docks: Any, qtbot: Any, tmp_path: Path
) -> None:
    sitk = pytest.importorskip("SimpleITK")
    engine = Finder()
    dock, export = docks(SegmentDock, engine), docks(ExportDock)
    data = scan(1).data
    image = dock.viewer.add_image(
        data, name="A", scale=(2000, -1500, 1500), translate=(9e4, 0, 0), rotate=(30, 20, 10), units=("um",) * 3
    )
    dock.model.choose("one")
    run(qtbot, dock)
    labels = dock.viewer.layers[-1]
    assert engine.volumes[0].geometry.spacing == pytest.approx((2, 1.5, 1.5))
    for index in ((0, 0, 0), (11, 13, 15), (3, 4, 5)):
        np.testing.assert_allclose(labels.data_to_world(index), image.data_to_world(index))
    np.testing.assert_array_equal(labels.data, data > np.median(data))
    qtbot.waitUntil(lambda: bool(dock.classes.measures), timeout=PATIENCE_MS)
    assert dock.classes.measures[0].ml == pytest.approx(labels.data.sum() * 2 * 1.5 * 1.5 / 1000)
    export.place.line.selectAll()
    qtbot.keyClicks(export.place.line, str(tmp_path / "out.nrrd"))
    choose(qtbot, export.way.format, export.way.format.itemText(2))
    export.place.line.selectAll()
    qtbot.keyClicks(export.place.line, str(tmp_path / "out.nrrd"))
    press(qtbot, export.export_button)
    qtbot.waitUntil(lambda: export.job is None, timeout=PATIENCE_MS)
    assert export.error.error is None
    file = sitk.ReadImage(str(tmp_path / "out.nrrd"))
    assert file.GetSpacing() == pytest.approx((1.5, 1.5, 2))
    places = {tuple(np.round(file.TransformIndexToPhysicalPoint([int(n) for n in i[::-1]])[::-1], 3) + 0.0)
              for i in np.argwhere(sitk.GetArrayFromImage(file) == 1)}  # fmt: skip
    shown = {tuple(np.round(np.array(image.data_to_world(i)) / 1000, 3) + 0.0) for i in np.argwhere(labels.data == 1)}
    assert places == shown
    run(qtbot, dock)  # the layer is used again, and stays where it is
    assert len(dock.viewer.layers) == 2
    np.testing.assert_allclose(labels.data_to_world((3, 4, 5)), image.data_to_world((3, 4, 5)))


def test_without_a_spacing_no_ml_is_told_anywhere(
    docks: Any, qtbot: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = Finder()
    dock, export = docks(SegmentDock, engine), docks(ExportDock)
    dock.viewer.add_image(scan(1).data, name="A")
    dock.model.choose("one")
    assert "not known" in dock.warnings.text()
    part = dock.choices.options._widgets["min_component_ml"]
    assert not part.native.isEnabled()
    part.value = 3.0  # as it may stand from another image
    run(qtbot, dock)
    assert engine.options.min_component_ml == 0
    table = dock.classes.table
    qtbot.waitUntil(lambda: bool(dock.classes.measures), timeout=PATIENCE_MS)
    assert table.isColumnHidden(ML)
    assert table.item(0, NAME).text() == "bright"
    count = int((dock.viewer.layers[-1].data == 1).sum())
    assert table.item(0, VOXELS).text() == f"{count:,}".replace(",", " ")
    path = tmp_path / "m.csv"
    monkeypatch.setattr(QFileDialog, "getSaveFileName", lambda *_: (str(path), ""))
    press(qtbot, dock.classes.save)
    qtbot.waitUntil(path.exists, timeout=PATIENCE_MS)
    assert path.read_text().splitlines()[1] == f"1,bright,,{count},,,"
    press(qtbot, dock.lesions)
    (dialog,) = dock.findChildren(LesionDialog)
    qtbot.waitUntil(lambda: dialog.found is not None, timeout=PATIENCE_MS)
    titles = [dialog.table.horizontalHeaderItem(i).text() for i in range(dialog.table.columnCount())]
    assert titles == ["", "Lesion", "Voxels", "max (no unit)", "mean (no unit)"]
    assert not dialog.min_ml.isVisible()
    assert dialog.table.item(0, 2).text() == str(dialog.found.lesions[0].voxels)
    assert " ml;" not in dialog.totals.text()
    assert "voxels" in dialog.totals.text()
    dialog.close()
    export.place.line.selectAll()
    qtbot.keyClicks(export.place.line, str(tmp_path / "out"))
    press(qtbot, export.export_button)
    qtbot.waitUntil(lambda: export.job is None, timeout=PATIENCE_MS)
    assert "states 1 mm for a pixel" in export.remarks.text()
    grid = scan(1).geometry
    for layer in dock.viewer.layers:
        layer.scale, layer.units = grid.spacing, ("mm",) * 3  # the user knows it
    qtbot.waitUntil(lambda: not table.isColumnHidden(ML), timeout=PATIENCE_MS)
    assert part.native.isEnabled()
    assert dock.classes.measures[0].ml == pytest.approx(count * grid.voxel_ml)


def test_units_that_are_no_length_are_told_instead_of_a_run(docks: Any, qtbot: Any) -> None:
    dock = docks(SegmentDock, Finder())
    image = dock.viewer.add_image(scan(1).data, name="film", units=("second", "mm", "mm"))
    dock.model.choose("one")
    assert not dock.bar.run_button.isEnabled()
    assert "no length" in dock.bar.run_button.toolTip()
    labels = dock.viewer.add_labels(ball(1).data, units=("second", "mm", "mm"), name="mine")
    qtbot.waitUntil(lambda: bool(dock.classes.measures), timeout=PATIENCE_MS)  # voxels can be counted
    assert dock.classes.table.isColumnHidden(ML)
    for layer in (image, labels):
        layer.units = ("mm",) * 3
    assert geometry_of(labels).spacing == (1, 1, 1)
    assert dock.bar.run_button.isEnabled()
