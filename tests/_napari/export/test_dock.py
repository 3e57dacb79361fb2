"""The export dock in a real window: what is clicked is what is written, nothing is lost and nothing half-written."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("napari")
pytest.importorskip("pytestqt")
if not os.environ.get("DISPLAY"):
    pytest.skip("needs a display: run under xvfb-run", allow_module_level=True)

from napari.layers import Layer
from qtpy.QtCore import Qt, QTimer
from qtpy.QtGui import QDesktopServices
from qtpy.QtWidgets import QApplication, QFileDialog

from napari_fmseg._napari.common.dialogs import ErrorDialog, Question, on_screen
from napari_fmseg._napari.export.dock import ExportDock
from napari_fmseg._napari.export.label_origin import origin_of
from napari_fmseg._napari.layers import image_layers, labels_layer
from napari_fmseg._napari.results.class_colors import rename, set_colors
from napari_fmseg.core.volume import Geometry, LabelMap, Volume
from napari_fmseg.io import read_labels, read_volume, write_volume

PATIENCE_MS = 30_000
TURN = np.linalg.qr(np.eye(3) + 0.05 * np.random.default_rng(3).standard_normal((3, 3)))[0]
TURN = (TURN * np.sign(np.diag(TURN)))[:, [2, 1, 0]] @ np.diag([-1, 1, -1])  # filed in an order of its own
SHARED = Path(os.environ.get("FMSEG_SHARED", Path(__file__).parents[3].parent / "shared"))
SEG = 4


@pytest.fixture
def scan(tmp_path: Path) -> Volume:
    geometry = Geometry.from_spacing((9, 11, 13), (1.5, 1.0, 2.0), (5, -6, 7), TURN)
    data = np.random.default_rng(1).integers(0, 99, geometry.shape).astype(np.int16)
    return read_volume(write_volume(Volume(data, geometry), tmp_path / "scan.nii.gz"))


def labels_of_scan(scan: Volume) -> LabelMap:
    data = np.zeros(scan.geometry.shape, np.uint8)
    data[1:5, 2:8, 3:9] = 1
    data[6:8, 1:4, 2:12] = 3
    return LabelMap(data, scan.geometry, {}, {1: "liver", 2: "absent", 3: "left kidney"}, {1: (1.0, 0.0, 0.0)})


@pytest.fixture
def make_dock(make_napari_viewer: Any, qtbot: Any) -> Iterator[Callable[..., ExportDock]]:
    def made(image: Volume | None = None, labels: LabelMap | None = None, source: Path | str = "") -> ExportDock:
        viewer = make_napari_viewer(show=True)
        if image is not None:
            for layer in image_layers(image, "scan", source=str(source)):
                viewer.add_layer(Layer.create(*layer))
        if labels is not None:
            viewer.add_layer(Layer.create(*labels_layer(labels, "organs of the scan")))
        dock = ExportDock(viewer)
        viewer.window.add_dock_widget(dock, name="fmseg: Export")
        qtbot.waitUntil(dock.export_button.isVisible)
        return dock

    yield made
    assert not [thread for thread in threading.enumerate() if thread.name == "fmseg job"]


def click(qtbot: Any, button: Any) -> None:
    assert button.isVisible()
    qtbot.mouseClick(button, Qt.MouseButton.LeftButton)


def type_place(qtbot: Any, dock: ExportDock, place: Path) -> None:
    dock.place.line.selectAll()
    qtbot.keyClicks(dock.place.line, str(place))


def choose(qtbot: Any, combo: Any, index: int) -> None:
    """Choose with the keyboard; what is disabled is skipped."""
    combo.setFocus()
    for _ in range(combo.count()):
        qtbot.keyClick(combo, Qt.Key.Key_Up)
    for _ in range(index):
        qtbot.keyClick(combo, Qt.Key.Key_Down)


def press_export(qtbot: Any, dock: ExportDock) -> None:
    click(qtbot, dock.export_button)
    qtbot.waitUntil(lambda: dock.job is None, timeout=PATIENCE_MS)


def tick(qtbot: Any, dock: ExportDock, row: int) -> None:
    box = dock.classes.list.visualItemRect(dock.classes.list.item(row))
    qtbot.mouseClick(
        dock.classes.list.viewport(), Qt.MouseButton.LeftButton, pos=box.topLeft() + type(box.topLeft())(9, 8)
    )


def answer(button_of: Callable[[Question], Any], asked: list[str]) -> QTimer:
    """Press a button of the question that is about to come."""
    timer = QTimer()

    def look() -> None:
        question = on_screen(Question)
        if question is not None:
            timer.stop()
            asked.append(question.windowTitle())
            button_of(question).click()

    timer.timeout.connect(look)
    timer.start(20)
    return timer


def test_one_click_writes_the_labels_in_the_order_and_place_of_the_images_file(
    qtbot: Any, make_dock: Any, scan: Volume, tmp_path: Path
) -> None:
    labels = labels_of_scan(scan)
    dock = make_dock(scan, labels, tmp_path / "scan.nii.gz")
    for i, suffix in enumerate((".nii.gz", ".nii", ".nrrd", ".mha")):
        choose(qtbot, dock.way.format, i)
        type_place(qtbot, dock, tmp_path / "new" / "out")  # the suffix comes by itself
        press_export(qtbot, dock)
        path = tmp_path / "new" / f"out{suffix}"
        assert dock.outcome.paths == [path]
        assert dock.outcome.text.text().replace("\u200b", "") == f"Written: {path}"
        again = read_labels(path)
        np.testing.assert_array_equal(again.data, labels.data)
        assert again.geometry.matches(scan.geometry)
        assert again.names == labels.names
        assert again.colors[1] == pytest.approx((1.0, 0.0, 0.0), abs=0.01)
    nib = pytest.importorskip("nibabel")
    ours, theirs = nib.load(tmp_path / "new" / "out.nii.gz"), nib.load(tmp_path / "scan.nii.gz")
    np.testing.assert_array_equal(ours.affine, theirs.affine)


def test_meshes_of_the_ticked_classes_are_written_and_the_files_found(
    qtbot: Any, make_dock: Any, scan: Volume, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dock = make_dock(scan, labels_of_scan(scan))
    assert not dock.way.smooth.isVisible()
    choose(qtbot, dock.way.what, 2)
    assert dock.way.smooth.isVisible()
    choose(qtbot, dock.way.format, 1)
    type_place(qtbot, dock, tmp_path / "meshes")
    tick(qtbot, dock, 0)
    assert dock.classes.values == (2, 3)
    press_export(qtbot, dock)
    assert [path.name for path in (tmp_path / "meshes").iterdir()] == ["left_kidney.ply"]
    assert dock.remarks.text() == "absent has no voxel, so it has no mesh."
    assert dock.bar.value() == dock.bar.maximum()
    click(qtbot, dock.outcome.copy)
    assert QApplication.clipboard().text() == str(tmp_path / "meshes" / "left_kidney.ply")
    opened: list[str] = []
    monkeypatch.setattr(QDesktopServices, "openUrl", lambda url: opened.append(url.toLocalFile()))
    click(qtbot, dock.outcome.folder)
    assert opened == [str(tmp_path / "meshes")]


def test_a_file_per_class_and_one_mesh_of_all(qtbot: Any, make_dock: Any, scan: Volume, tmp_path: Path) -> None:
    labels = labels_of_scan(scan)
    dock = make_dock(scan, labels)
    choose(qtbot, dock.way.what, 1)
    type_place(qtbot, dock, tmp_path / "masks")
    press_export(qtbot, dock)
    assert sorted(path.name for path in (tmp_path / "masks").iterdir()) == ["left_kidney.nii.gz", "liver.nii.gz"]
    np.testing.assert_array_equal(read_labels(tmp_path / "masks" / "liver.nii.gz").data, labels.data == 1)
    choose(qtbot, dock.way.what, 3)
    choose(qtbot, dock.way.format, 2)
    type_place(qtbot, dock, tmp_path / "all")
    press_export(qtbot, dock)
    assert (tmp_path / "all.obj").read_text().count("\ng ") == 2


def test_what_is_there_is_replaced_only_after_a_yes(qtbot: Any, make_dock: Any, scan: Volume, tmp_path: Path) -> None:
    dock = make_dock(scan, labels_of_scan(scan))
    path = tmp_path / "old.nii.gz"
    path.write_bytes(b"mine")
    type_place(qtbot, dock, path)
    asked: list[str] = []
    timer = answer(lambda question: question.no_button, asked)
    press_export(qtbot, dock)
    timer.stop()
    assert asked == ["Replace 1 file?"]
    assert path.read_bytes() == b"mine"
    assert not dock.outcome.isVisible()
    timer = answer(lambda question: question.yes_button, asked)
    press_export(qtbot, dock)
    timer.stop()
    assert len(asked) == 2
    assert read_labels(path).names[1] == "liver"
    assert dock.outcome.isVisible()


def test_dicom_seg_is_offered_for_dicom_only_and_the_tooltip_says_why(
    qtbot: Any, make_dock: Any, scan: Volume, tmp_path: Path
) -> None:
    dock = make_dock(scan, labels_of_scan(scan), tmp_path / "scan.nii.gz")
    item = dock.way.what.model().item(SEG)
    assert not item.isEnabled()
    assert "opened from DICOM" in item.toolTip()
    choose(qtbot, dock.way.what, SEG)
    assert dock.way.kind != "dicom-seg"


def test_a_dicom_seg_is_written_from_labels_on_a_dicom_series(qtbot: Any, make_dock: Any, tmp_path: Path) -> None:
    hd = pytest.importorskip("highdicom")
    write_series(tmp_path / "ct")
    scan = read_volume(tmp_path / "ct")
    labels = labels_of_scan(scan)
    dock = make_dock(scan, labels, tmp_path / "ct")
    assert dock.way.what.model().item(SEG).isEnabled()
    choose(qtbot, dock.way.what, SEG)
    type_place(qtbot, dock, tmp_path / "seg")
    press_export(qtbot, dock)
    seg = hd.seg.segread(tmp_path / "seg.dcm")
    assert [seg.get_segment_description(n).segment_label for n in seg.segment_numbers] == ["liver", "left kidney"]
    again = read_labels(tmp_path / "seg.dcm")
    inside = np.argwhere(labels.data == 3)
    np.testing.assert_allclose(
        again.geometry.place(np.argwhere(again.data == 2)), scan.geometry.place(inside), atol=1e-4
    )
    for part in sorted((tmp_path / "ct").iterdir()):
        part.unlink()
    type_place(qtbot, dock, tmp_path / "seg2")
    press_export(qtbot, dock)  # the series has gone since
    assert dock.error.isVisible()
    assert not (tmp_path / "seg2.dcm").exists()


def write_series(folder: Path) -> None:
    import pydicom
    from pydicom.uid import ExplicitVRLittleEndian, generate_uid

    folder.mkdir()
    common = [generate_uid() for _ in range(3)]
    for z in range(9):
        image = pydicom.Dataset()
        image.file_meta = pydicom.dataset.FileMetaDataset()
        image.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        image.SOPClassUID, image.SOPInstanceUID = "1.2.840.10008.5.1.4.1.1.2", generate_uid()
        image.file_meta.MediaStorageSOPClassUID = image.SOPClassUID
        image.file_meta.MediaStorageSOPInstanceUID = image.SOPInstanceUID
        image.StudyInstanceUID, image.SeriesInstanceUID, image.FrameOfReferenceUID = common
        image.Modality, image.InstanceNumber, image.Rows, image.Columns = "CT", z, 12, 14
        image.PixelSpacing, image.SliceThickness = [1.0, 1.5], 2.0
        image.ImageOrientationPatient = [-1, 0, 0, 0, 1, 0]
        image.ImagePositionPatient = [10, -20, 30 - 2.0 * z]
        image.BitsAllocated, image.BitsStored, image.HighBit, image.PixelRepresentation = 16, 16, 15, 1
        image.SamplesPerPixel, image.PhotometricInterpretation = 1, "MONOCHROME2"
        image.PixelData = np.full((12, 14), z, "<i2").tobytes()
        image.save_as(folder / f"{z}.dcm", enforce_file_format=True)


def slow_labels() -> LabelMap:
    data = np.kron(np.random.default_rng(0).integers(1, 9, (12, 12, 12)), np.ones((8, 8, 8))).astype(np.uint8)
    return LabelMap(data, Geometry.from_spacing(data.shape), {}, {n: f"class {n}" for n in range(1, 9)})


def test_cancel_leaves_no_file_and_the_next_export_works(qtbot: Any, make_dock: Any, tmp_path: Path) -> None:
    dock = make_dock(None, slow_labels())
    choose(qtbot, dock.way.what, 2)
    type_place(qtbot, dock, tmp_path / "meshes")
    click(qtbot, dock.export_button)
    assert not dock.export_button.isEnabled()
    assert "going on" in dock.export_button.toolTip()
    click(qtbot, dock.cancel_button)
    qtbot.waitUntil(lambda: dock.job is None, timeout=PATIENCE_MS)
    assert dock.remarks.text() == "Stopped. Nothing was written."
    assert list(tmp_path.iterdir()) == []
    choose(qtbot, dock.way.what, 0)
    type_place(qtbot, dock, tmp_path / "labels")
    press_export(qtbot, dock)
    assert [path.name for path in tmp_path.iterdir()] == ["labels.nii.gz"]


def test_closing_the_viewer_in_the_middle_leaves_no_thread_and_no_file(
    qtbot: Any, make_dock: Any, tmp_path: Path
) -> None:
    dock = make_dock(None, slow_labels())
    choose(qtbot, dock.way.what, 2)
    type_place(qtbot, dock, tmp_path / "meshes")
    click(qtbot, dock.export_button)
    job = dock.job
    assert job is not None
    dock.viewer.close()
    assert job.wait(10)
    assert list(tmp_path.iterdir()) == []


def test_painting_while_it_is_written_changes_nothing_in_the_file(
    qtbot: Any, make_dock: Any, scan: Volume, tmp_path: Path
) -> None:
    labels = labels_of_scan(scan)
    dock = make_dock(scan, labels)
    type_place(qtbot, dock, tmp_path / "out")
    click(qtbot, dock.export_button)
    dock.layer.data[:] = 7
    qtbot.waitUntil(lambda: dock.job is None, timeout=PATIENCE_MS)
    again = read_labels(tmp_path / "out.nii.gz")
    assert set(np.unique(again.data)) == {0, 1, 3}


def test_an_error_says_what_happened_and_leaves_nothing(
    qtbot: Any, make_dock: Any, scan: Volume, tmp_path: Path
) -> None:
    dock = make_dock(scan, labels_of_scan(scan))
    (tmp_path / "file").write_text("in the way")
    type_place(qtbot, dock, tmp_path / "file" / "out")
    press_export(qtbot, dock)
    assert dock.error.isVisible()
    assert "was not written" in dock.error.text.text()
    assert "Choose another" in dock.error.text.text()
    click(qtbot, dock.error.more)
    dialog = on_screen(ErrorDialog)
    assert dialog is not None
    dialog.close()
    assert [path.name for path in tmp_path.glob("*") if path.name != "scan.nii.gz"] == ["file"]
    type_place(qtbot, dock, tmp_path / "out")
    press_export(qtbot, dock)
    assert not dock.error.isVisible()


def test_a_disabled_button_says_why_and_follows_the_layers(
    qtbot: Any, make_dock: Any, scan: Volume, tmp_path: Path
) -> None:
    dock = make_dock()
    assert not dock.export_button.isEnabled()
    assert "no labels yet" in dock.export_button.toolTip()
    layer = Layer.create(*labels_layer(labels_of_scan(scan), "one"))
    dock.viewer.add_layer(layer)
    assert dock.layer is layer
    assert dock.export_button.isEnabled()
    assert dock.place.line.text().endswith("one.nii.gz")
    click(qtbot, dock.classes.none)
    assert "at least one class" in dock.export_button.toolTip()
    click(qtbot, dock.classes.all)
    assert dock.export_button.isEnabled()
    dock.place.line.clear()
    assert "where to write" in dock.export_button.toolTip()
    layer.name = "renamed"
    assert dock.labels.currentText() == "renamed"
    other = dock.viewer.add_labels(np.ones((4, 4, 4), np.uint8), name="painted")
    dock.viewer.layers.selection.active = layer
    assert dock.layer is layer
    dock.viewer.layers.selection.active = other
    assert dock.layer is other
    assert dock.classes.list.item(0).text() == "all painted numbers"
    dock.viewer.layers.clear()
    assert not dock.export_button.isEnabled()


def test_painted_labels_without_names_are_exported_whole(qtbot: Any, make_dock: Any, tmp_path: Path) -> None:
    dock = make_dock()
    data = np.zeros((5, 6, 7), np.uint8)
    data[1:3, 1:4, 1:5], data[3:, 4:, 5:] = 4, 9
    dock.viewer.add_labels(data, scale=(2, 1, 1), name="painted")
    choose(qtbot, dock.way.what, 1)
    type_place(qtbot, dock, tmp_path / "masks")
    press_export(qtbot, dock)
    assert sorted(path.name for path in (tmp_path / "masks").iterdir()) == ["label_4.nii.gz", "label_9.nii.gz"]
    assert read_labels(tmp_path / "masks" / "label_4.nii.gz").geometry.spacing == pytest.approx((2, 1, 1))


def test_browse_fills_the_line_in(
    qtbot: Any, make_dock: Any, scan: Volume, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dock = make_dock(scan, labels_of_scan(scan))
    monkeypatch.setattr(QFileDialog, "getSaveFileName", lambda *_, **__: (str(tmp_path / "picked"), ""))
    monkeypatch.setattr(QFileDialog, "getExistingDirectory", lambda *_, **__: str(tmp_path))
    click(qtbot, dock.place.browse)
    assert dock.place.path == tmp_path / "picked.nii.gz"
    choose(qtbot, dock.way.what, 2)
    assert dock.place.path == tmp_path / "picked"
    click(qtbot, dock.place.browse)
    assert dock.place.path == tmp_path


def test_labels_know_their_image_by_what_made_them_or_by_their_grid(
    make_dock: Any, scan: Volume, tmp_path: Path
) -> None:
    dock = make_dock(scan, labels_of_scan(scan), tmp_path / "scan.nii.gz")
    origin = origin_of(dock.layer, dock.viewer.layers)
    assert origin.source == tmp_path / "scan.nii.gz"
    assert origin.filed == scan.geometry
    elsewhere = Volume(np.zeros((3, 3, 3)), Geometry.from_spacing((3, 3, 3)), {"format": "DICOM"})
    [layer] = [Layer.create(*data) for data in image_layers(elsewhere, "other", source="elsewhere")]
    dock.viewer.add_layer(layer)
    made = {"image": str(layer.unique_id), "model": "fmsf-phantom-ct"}
    dock.layer.metadata["fmseg"]["made"] = made
    origin = origin_of(dock.layer, dock.viewer.layers)
    assert (origin.source, origin.model) == (Path("elsewhere"), "fmsf-phantom-ct")


@pytest.mark.real
@pytest.mark.skipif(not SHARED.is_dir(), reason="the real volumes are not here (FMSEG_SHARED says where)")
def test_a_real_series_gives_a_dicom_seg_by_clicks(qtbot: Any, make_dock: Any, tmp_path: Path) -> None:
    import SimpleITK as sitk

    pytest.importorskip("highdicom")
    folder = SHARED / "data" / "prostate_dicom" / "images" / "px_0000" / "adc"
    scan = read_volume(folder)
    data = (scan.data > np.percentile(scan.data, 95)).astype(np.uint8)
    dock = make_dock(scan, LabelMap(data, scan.geometry, {}, {1: "prostate"}), folder)
    choose(qtbot, dock.way.what, SEG)
    type_place(qtbot, dock, tmp_path / "seg")
    press_export(qtbot, dock)
    image = sitk.ReadImage(str(tmp_path / "seg.dcm"))
    index = np.argwhere(sitk.GetArrayFromImage(image) > 0)
    assert len(index) == data.sum()
    for i in index[:: len(index) // 50]:
        place = image.TransformIndexToPhysicalPoint([int(n) for n in i[::-1]])[::-1]
        ours = np.rint(np.linalg.solve(scan.geometry.affine, [*place, 1])[:3]).astype(int)
        assert data[tuple(ours)] == 1


def test_the_classes_follow_names_and_colours_that_the_user_changes_and_what_was_cleared_stays(
    make_dock: Callable[..., ExportDock], scan: Volume
) -> None:
    dock = make_dock(scan, labels_of_scan(scan))
    dock.classes.list.item(2).setCheckState(Qt.CheckState.Unchecked)
    rename(dock.layer, 1, "left lobe")
    set_colors(dock.layer, {1: (0.0, 0.0, 1.0, 1.0)})
    assert [dock.classes.list.item(i).text() for i in range(3)] == ["left lobe", "absent", "left kidney"]
    shown = dock.classes.list.item(0).icon().pixmap(4, 4).toImage().pixelColor(1, 1)
    assert (shown.red(), shown.blue()) == (0, 255)
    assert dock.classes.values == (1, 2)


def test_an_error_with_some_labels_goes_when_others_are_chosen(
    make_dock: Callable[..., ExportDock], scan: Volume
) -> None:
    dock = make_dock(scan, labels_of_scan(scan))
    dock.viewer.add_labels(np.ones((4, 4, 4), np.uint8), name="in seconds", units=("s", "s", "s"))
    assert "in seconds" in dock.error.text.text()
    dock.viewer.layers.selection.active = dock.viewer.layers["organs of the scan"]
    assert dock.layer.name == "organs of the scan"
    assert dock.error.isHidden()


def test_the_bar_is_there_only_while_something_is_written(
    make_dock: Callable[..., ExportDock], scan: Volume, qtbot: Any, tmp_path: Path
) -> None:
    dock = make_dock(scan, labels_of_scan(scan))
    assert dock.bar.isHidden()
    dock.place.line.setText(str(tmp_path / "written.nii.gz"))
    qtbot.mouseClick(dock.export_button, Qt.MouseButton.LeftButton)
    assert dock.bar.isVisible()
    qtbot.waitUntil(lambda: dock.job is None, timeout=PATIENCE_MS)
    assert (tmp_path / "written.nii.gz").exists()
    assert dock.bar.isHidden()
