"""Files and folders that are dropped open as layers while the window stays alive; questions are put and answered."""

from __future__ import annotations

import gc
import sys
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk

napari = pytest.importorskip("napari")
npe2 = pytest.importorskip("npe2")
from napari.settings import get_settings  # noqa: E402
from napari.utils.notifications import notification_manager  # noqa: E402
from qtpy.QtCore import QMimeData, QPoint, QPointF, Qt, QTimer, QUrl  # noqa: E402
from qtpy.QtGui import QDragEnterEvent, QDropEvent  # noqa: E402
from qtpy.QtWidgets import QApplication, QDialogButtonBox, QLabel, QMessageBox, QWidget  # noqa: E402

from napari_fmseg._napari.common.dialogs import ErrorDialog  # noqa: E402
from napari_fmseg._napari.common.viewer_window import window_of  # noqa: E402
from napari_fmseg._napari.opening import default_reader  # noqa: E402
from napari_fmseg._napari.opening.dropzone import DropZone  # noqa: E402
from napari_fmseg._napari.opening.layer_data import layers_of  # noqa: E402
from napari_fmseg._napari.opening.open_files import Opening  # noqa: E402
from napari_fmseg._napari.opening.series_dialog import SeriesChooser, choose  # noqa: E402
from napari_fmseg.core.errors import FmsegError, UnreadableVolume  # noqa: E402
from napari_fmseg.io.itk import native_reader  # noqa: E402
from napari_fmseg.io.series_previews import SeriesPreview, preview_series  # noqa: E402

SHAPE = (4, 30, 40)


@pytest.fixture
def viewer(make_napari_viewer: Callable[..., Any]) -> Iterator[Any]:
    made = make_napari_viewer()
    yield made
    notification_manager.records.clear()


@pytest.fixture
def zone(viewer: Any, qtbot: Any) -> DropZone:
    zone = DropZone(viewer=viewer)
    viewer.window.add_dock_widget(zone, name="drop")
    return zone


def scan(path: Path, value: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    data = np.random.default_rng(1).integers(-500, 500, SHAPE).astype(np.int16) + value
    image = sitk.GetImageFromArray(data)
    image.SetSpacing((0.8, 0.8, 3.0))
    sitk.WriteImage(image, path)
    return path


def series(folder: Path, uid: int, description: str, n_slices: int = 3) -> Path:
    import pydicom
    from pydicom.dataset import FileMetaDataset

    folder.mkdir(parents=True, exist_ok=True)
    for k in range(n_slices):
        tags = pydicom.Dataset()
        tags.file_meta = FileMetaDataset()
        tags.file_meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
        tags.SOPClassUID = tags.file_meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.2"
        tags.SOPInstanceUID = tags.file_meta.MediaStorageSOPInstanceUID = f"1.2.3.{uid}.{k + 1}"
        tags.SeriesInstanceUID, tags.SeriesDescription, tags.Modality = f"1.2.3.{uid}", description, "CT"
        tags.Rows, tags.Columns, tags.PixelSpacing, tags.SliceThickness = 20, 30, [2, 1], 4
        tags.ImageOrientationPatient, tags.ImagePositionPatient = [1, 0, 0, 0, 1, 0], [0, 0, 4 * k]
        tags.BitsAllocated = tags.BitsStored = 16
        tags.HighBit, tags.PixelRepresentation, tags.SamplesPerPixel = 15, 1, 1
        tags.PhotometricInterpretation, tags.RescaleSlope, tags.RescaleIntercept = "MONOCHROME2", 1, 0
        plane = np.full((20, 30), 10 * k, "<i2")
        plane[:, 15:] += 500
        tags.PixelData = plane.tobytes()
        tags.save_as(folder / f"{uid}_{k}.dcm", enforce_file_format=True)
    return folder


def drop(target: QWidget, *paths: Path) -> bool:
    """Send Qt's own events of a drag that enters and is let go; return whether the target took it."""
    mime = QMimeData()
    mime.setUrls([QUrl.fromLocalFile(str(path)) for path in paths])
    actions, button, none = Qt.DropAction.CopyAction, Qt.MouseButton.LeftButton, Qt.KeyboardModifier.NoModifier
    entered = QDragEnterEvent(QPoint(5, 5), actions, mime, button, none)
    entered.ignore()
    QApplication.sendEvent(target, entered)
    if entered.isAccepted():
        QApplication.sendEvent(target, QDropEvent(QPointF(5, 5), actions, mime, button, none))
    return entered.isAccepted()


def messages() -> str:
    return "\n".join(record.message for record in notification_manager.records)


def test_a_drop_on_the_zone_opens_the_file_in_its_place(
    zone: DropZone, viewer: Any, qtbot: Any, tmp_path: Path
) -> None:
    path = scan(tmp_path / "ct.nii.gz")
    with qtbot.waitSignal(zone.opened, timeout=60_000) as signal:
        assert drop(zone, path)
        assert zone.busy
    [layer] = signal.args[0]
    assert viewer.layers[0] is layer
    assert layer.name == "ct"
    np.testing.assert_allclose(layer.scale, (3.0, 0.8, 0.8))
    qtbot.waitUntil(lambda: not zone.busy)


def test_several_files_and_a_folder_are_dropped_at_once(
    zone: DropZone, viewer: Any, qtbot: Any, tmp_path: Path
) -> None:
    paths = [scan(tmp_path / "a.mha"), scan(tmp_path / "b.nrrd"), series(tmp_path / "c", 1, "chest")]
    with qtbot.waitSignal(zone.dropped) as signal:
        assert drop(zone, *paths)
    assert signal.args[0] == [str(path) for path in paths]
    qtbot.waitUntil(lambda: not zone.busy, timeout=60_000)
    assert [layer.name for layer in viewer.layers] == ["a", "b", "chest"]


def test_all_slices_of_a_series_dropped_one_by_one_make_one_layer(
    zone: DropZone, viewer: Any, qtbot: Any, tmp_path: Path
) -> None:
    assert drop(zone, *sorted(series(tmp_path / "c", 1, "chest").iterdir()))
    qtbot.waitUntil(lambda: not zone.busy, timeout=60_000)
    assert [layer.name for layer in viewer.layers] == ["chest"]


def test_the_zone_takes_no_text_and_nothing_while_it_is_busy(zone: DropZone, qtbot: Any, tmp_path: Path) -> None:
    mime = QMimeData()
    mime.setText("hello")
    event = QDragEnterEvent(QPoint(5, 5), Qt.DropAction.CopyAction, mime, Qt.MouseButton.LeftButton,
                            Qt.KeyboardModifier.NoModifier)  # fmt: skip
    QApplication.sendEvent(zone, event)
    assert not event.isAccepted()
    zone.show_busy("ct.nii.gz")
    assert not drop(zone, scan(tmp_path / "ct.nii.gz"))


def test_a_broken_file_is_told_and_the_others_still_open(
    zone: DropZone, viewer: Any, qtbot: Any, tmp_path: Path
) -> None:
    (tmp_path / "bad.nii.gz").write_bytes(b"no")
    errors: list[FmsegError] = []
    zone.failed.connect(errors.append)
    assert drop(zone, tmp_path / "bad.nii.gz", scan(tmp_path / "good.nii.gz"))
    qtbot.waitUntil(lambda: not zone.busy, timeout=60_000)
    assert [layer.name for layer in viewer.layers] == ["good"]
    assert isinstance(errors[0], UnreadableVolume)
    assert "bad.nii.gz" in str(errors[0])


def test_an_error_that_nobody_foresaw_names_the_file_and_the_others_still_open(
    viewer: Any, qtbot: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, open_paths: Callable[..., Any]
) -> None:
    def read_or_raise(path: str, **options: Any) -> Any:
        return 1 / 0 if "odd" in path else layers_of(path, **options)

    monkeypatch.setattr("napari_fmseg._napari.opening.open_files.layers_of", read_or_raise)
    errors: list[FmsegError] = []
    paths = [str(scan(tmp_path / "odd.nrrd")), str(scan(tmp_path / "good.nrrd"))]
    assert [layer.name for layer in open_paths(viewer, paths, on_error=errors.append)] == ["good"]
    assert "odd.nrrd could not be read" in str(errors[0])
    assert "ZeroDivisionError" in str(errors[0])


def test_an_error_in_a_window_on_the_screen_stands_in_a_dialog(
    make_napari_viewer: Callable[..., Any], qtbot: Any, tmp_path: Path, open_paths: Callable[..., Any]
) -> None:
    viewer = make_napari_viewer(show=True)
    (tmp_path / "bad.mha").write_bytes(b"no")
    assert open_paths(viewer, [str(tmp_path / "bad.mha")]) == []
    dialog = window_of(viewer).findChild(ErrorDialog)
    assert "bad.mha is neither NRRD nor MetaImage" in "".join(label.text() for label in dialog.findChildren(QLabel))
    dialog.close_button.click()
    qtbot.wait(20)


def test_without_a_window_on_the_screen_napari_notes_the_error(zone: DropZone, qtbot: Any, tmp_path: Path) -> None:
    (tmp_path / "bad.mha").write_bytes(b"no")
    assert drop(zone, tmp_path / "bad.mha")
    qtbot.waitUntil(lambda: not zone.busy, timeout=60_000)
    assert "neither NRRD nor MetaImage" in messages()


def test_the_buttons_open_files_and_folders_by_keyboard(
    zone: DropZone, viewer: Any, qtbot: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from napari_fmseg._napari.opening import dropzone

    path, folder = scan(tmp_path / "ct.nii.gz"), series(tmp_path / "c", 1, "chest")
    monkeypatch.setattr(dropzone.QFileDialog, "getOpenFileNames", lambda *_: ([str(path)], ""))
    monkeypatch.setattr(dropzone.QFileDialog, "getExistingDirectory", lambda *_: str(folder))
    for button in (zone.file_button, zone.folder_button):
        assert button.focusPolicy() & Qt.FocusPolicy.TabFocus
        qtbot.keyClick(button, Qt.Key.Key_Space)
        qtbot.waitUntil(lambda: not zone.busy, timeout=60_000)
    assert [layer.name for layer in viewer.layers] == ["ct", "chest"]


def test_a_drop_on_the_canvas_opens_with_our_reader_once_it_has_precedence(
    viewer: Any, qtbot: Any, tmp_path: Path
) -> None:
    default_reader.take_precedence()
    widgets = window_of(viewer).findChildren(QWidget)
    canvas = next(widget for widget in widgets if type(widget).__name__ == "QtViewer")  # it takes the canvas's drops
    for path in (scan(tmp_path / "ct.nii.gz"), series(tmp_path / "c", 1, "chest")):
        assert drop(canvas, path)
    assert [layer.name for layer in viewer.layers] == ["ct", "chest"]
    assert {layer.source.reader_plugin for layer in viewer.layers} == {"napari-fmseg"}
    slices = sorted(series(tmp_path / "d", 2, "neck").iterdir())
    assert drop(canvas, *slices)  # napari hands the slices over one by one; after the first the series is open
    assert [layer.name for layer in viewer.layers] == ["ct", "chest", "neck"]


def test_opening_waits_for_the_layers_while_the_window_lives(
    viewer: Any, qtbot: Any, tmp_path: Path, open_paths: Callable[..., Any]
) -> None:
    beats: list[int] = []
    timer = QTimer()
    timer.timeout.connect(lambda: beats.append(1))
    timer.start(1)
    layers = open_paths(viewer, [str(scan(tmp_path / "ct.nii.gz"))])
    timer.stop()
    assert [layer.name for layer in layers] == ["ct"]
    assert beats
    errors: list[FmsegError] = []
    assert open_paths(viewer, [str(tmp_path / "missing.nii")], on_error=errors.append) == []
    assert "does not exist" in str(errors[0])


def test_a_second_patient_who_lies_elsewhere_is_looked_at(
    viewer: Any, qtbot: Any, tmp_path: Path, open_paths: Callable[..., Any]
) -> None:
    there = sitk.ReadImage(scan(tmp_path / "a.nrrd"))
    there.SetOrigin((0, 0, 900))
    sitk.WriteImage(there, tmp_path / "b.nrrd")
    open_paths(viewer, [str(tmp_path / "a.nrrd")])
    open_paths(viewer, [str(tmp_path / "b.nrrd")])
    assert 900 <= viewer.dims.point[0] <= 909


def test_a_layer_that_is_removed_frees_its_memory(
    viewer: Any, qtbot: Any, tmp_path: Path, open_paths: Callable[..., Any]
) -> None:
    [layer] = open_paths(viewer, [str(scan(tmp_path / "a.nrrd"))])
    seen = weakref.ref(layer)
    viewer.layers.clear()
    del layer
    qtbot.waitUntil(lambda: gc.collect() >= 0 and seen() is None, timeout=5000)


def test_closing_the_viewer_while_it_reads_ends_the_opening(
    make_napari_viewer: Callable[..., Any], qtbot: Any, tmp_path: Path
) -> None:
    viewer = make_napari_viewer()
    opening = Opening(viewer, [str(scan(tmp_path / "ct.nii.gz"))])
    opening.start()
    viewer.close()
    qtbot.wait(300)
    assert len(viewer.layers) == 0


def two_series(folder: Path) -> Path:
    series(folder, 1, "scout", 2)
    series(folder, 2, "abdomen venous", 5)
    return folder


def answer(qtbot: Any, act: Callable[[SeriesChooser], None]) -> None:
    """Act on the chooser as soon as it stands there."""

    def look() -> None:
        dialog = QApplication.activeModalWidget()
        if isinstance(dialog, SeriesChooser):
            act(dialog)
        else:
            QTimer.singleShot(20, look)

    QTimer.singleShot(20, look)


def press(dialog: SeriesChooser, name: str) -> None:
    box = dialog.findChild(QDialogButtonBox)
    box.button(getattr(QDialogButtonBox.StandardButton, name)).click()


def test_of_several_series_the_user_chooses(zone: DropZone, viewer: Any, qtbot: Any, tmp_path: Path) -> None:
    answer(qtbot, lambda dialog: press(dialog, "Open"))
    assert drop(zone, two_series(tmp_path / "study"))
    qtbot.waitUntil(lambda: not zone.busy, timeout=60_000)
    [layer] = viewer.layers
    assert layer.name == "abdomen venous"  # the one of most slices stands there first
    assert layer.data.shape == (5, 20, 30)


def test_all_series_can_be_taken_and_none(zone: DropZone, viewer: Any, qtbot: Any, tmp_path: Path) -> None:
    def take_all(dialog: SeriesChooser) -> None:
        dialog._list.selectAll()
        assert len(dialog.chosen) == 2
        press(dialog, "Open")

    study = two_series(tmp_path / "study")
    answer(qtbot, take_all)
    assert drop(zone, study)
    qtbot.waitUntil(lambda: not zone.busy, timeout=60_000)
    assert [layer.name for layer in viewer.layers] == ["scout", "abdomen venous"]
    answer(qtbot, lambda dialog: press(dialog, "Cancel"))
    assert drop(zone, study)
    qtbot.waitUntil(lambda: not zone.busy, timeout=60_000)
    assert len(viewer.layers) == 2


def test_naparis_own_open_asks_for_the_series_too(viewer: Any, qtbot: Any, tmp_path: Path) -> None:
    answer(qtbot, lambda dialog: press(dialog, "Open"))
    [layer] = viewer.open(str(two_series(tmp_path / "study")), plugin="napari-fmseg")
    assert layer.name == "abdomen venous"
    answer(qtbot, lambda dialog: press(dialog, "Cancel"))
    assert viewer.open(str(tmp_path / "study"), plugin="napari-fmseg") == []


def test_the_chooser_tells_what_there_is(qtbot: Any, tmp_path: Path) -> None:
    offers = preview_series(two_series(tmp_path / "study"))
    dialog = SeriesChooser(offers)
    qtbot.addWidget(dialog)
    item = dialog._list.topLevelItem(1)
    assert [item.text(i) for i in range(6)] == ["abdomen venous", "CT", "5", "30 × 20 × 5", "1 × 2 × 4", "5"]
    assert not item.icon(0).isNull()
    dialog._list.clearSelection()
    button = dialog.findChild(QDialogButtonBox).button(QDialogButtonBox.StandardButton.Open)
    assert not button.isEnabled()
    assert button.toolTip()


def test_a_thumbnail_is_the_middle_slice_in_true_proportions(tmp_path: Path) -> None:
    offer = preview_series(two_series(tmp_path / "study"))[1]
    assert isinstance(offer, SeriesPreview)
    picture = offer.picture
    assert picture is not None
    assert picture.shape == (96, round(96 * 30 / 40))  # 20 x 30 pixels of 2 x 1 mm
    assert picture[:, : picture.shape[1] // 2 - 1].max() < picture[:, picture.shape[1] // 2 + 1 :].min()


def test_a_folder_of_volumes_is_offered_file_by_file(qtbot: Any, tmp_path: Path) -> None:
    scan(tmp_path / "d" / "a.nii.gz")
    scan(tmp_path / "d" / "b.mha")
    offers = preview_series(tmp_path / "d")
    assert [(offer.description, offer.shape, offer.series) for offer in offers] == [
        ("a.nii.gz", SHAPE, None),
        ("b.mha", SHAPE, None),
    ]
    answer(qtbot, lambda dialog: dialog.accept())
    assert [offer.path.name for offer in choose(offers)] == ["a.nii.gz"]


def settings() -> dict[str, str]:
    return get_settings().plugins.extension2reader


@pytest.fixture
def no_choices() -> Iterator[None]:
    plugins = get_settings().plugins
    before, plugins.extension2reader = dict(plugins.extension2reader), {}
    yield
    plugins.extension2reader = before


@pytest.mark.usefixtures("no_choices")
def test_precedence_is_taken_only_with_consent_and_asked_for_once() -> None:
    asked: list[str] = []

    def say(yes: bool) -> Callable[[str, Callable[[bool], None]], None]:
        def ask(question: str, answer: Callable[[bool], None]) -> None:
            asked.append(question)
            answer(yes)

        return ask

    assert default_reader.offer_as_default_reader(None, ask=say(False))
    assert settings() == {}
    assert default_reader.earlier_answer() is False
    assert not default_reader.offer_as_default_reader(None, ask=say(True))
    default_reader._file().unlink()
    assert default_reader.offer_as_default_reader(None, ask=say(True))
    assert settings()["*.nii.gz"] == "napari-fmseg"
    assert not default_reader.offer_as_default_reader(None, ask=say(True))
    assert len(asked) == 2


@pytest.mark.usefixtures("no_choices")
def test_another_readers_choice_stays_and_is_named() -> None:
    get_settings().plugins.extension2reader = {"*.gz": "napari-nifti", "*.dcm": "other", "*.zarr/": "z"}
    asked: list[str] = []
    default_reader.offer_as_default_reader(None, ask=lambda question, answer: (asked.append(question), answer(True)))
    assert "*.dcm stays with other" in asked[0]
    assert "*.nii.gz stays with napari-nifti" in asked[0]
    chosen = settings()
    assert (chosen["*.dcm"], chosen["*.gz"], chosen["*.nrrd"]) == ("other", "napari-nifti", "napari-fmseg")
    assert "*.nii.gz" not in chosen


@pytest.mark.usefixtures("no_choices")
def test_a_choice_for_special_folders_comes_before_ours(tmp_path: Path) -> None:
    from napari.plugins.utils import get_preferred_reader

    default_reader.take_precedence()
    plugins = get_settings().plugins
    plugins.extension2reader = {**plugins.extension2reader, "*.zarr/": "z"}
    (tmp_path / "a.zarr").mkdir()
    assert get_preferred_reader(tmp_path / "a.zarr") == "z"
    assert get_preferred_reader(tmp_path) == "napari-fmseg"


@pytest.mark.usefixtures("no_choices")
def test_the_question_is_a_dialog_that_does_not_block(make_napari_viewer: Callable[..., Any], qtbot: Any) -> None:
    viewer = make_napari_viewer(show=True)
    assert default_reader.offer_as_default_reader(viewer)
    assert not default_reader.offer_as_default_reader(viewer)  # it stands there already
    box = window_of(viewer).findChild(QMessageBox)
    assert "stays" not in box.informativeText()
    with qtbot.waitSignal(box.finished):
        next(button for button in box.buttons() if button.text().startswith("Yes")).click()
    assert settings()["*.mha"] == "napari-fmseg"
    assert default_reader.earlier_answer() is True
    qtbot.wait(20)


@pytest.mark.usefixtures("no_choices")
def test_after_later_the_same_window_is_not_asked_again(make_napari_viewer: Callable[..., Any], qtbot: Any) -> None:
    viewer = make_napari_viewer(show=True)
    assert default_reader.offer_as_default_reader(viewer)
    box = window_of(viewer).findChild(QMessageBox)
    with qtbot.waitSignal(box.finished):
        next(button for button in box.buttons() if "later" in button.text()).click()
    qtbot.wait(20)
    assert not default_reader.offer_as_default_reader(viewer)
    assert default_reader.earlier_answer() is None  # so the next napari asks


def test_an_unseen_window_is_not_asked(viewer: Any) -> None:
    assert not default_reader.offer_as_default_reader(viewer)


def test_a_file_that_makes_a_parser_crash_leaves_the_window_and_its_layers(
    make_napari_viewer: Callable[..., Any],
    qtbot: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    open_paths: Callable[..., Any],
) -> None:
    viewer = make_napari_viewer(show=True)
    open_paths(viewer, [str(scan(tmp_path / "first.nrrd"))])
    native_reader.isolate(False)
    native_reader.isolate()
    code = (
        "import os, signal, sys\nfrom napari_fmseg.io.itk import native_reader\n"
        "crash = lambda *_: os.kill(os.getpid(), signal.SIGSEGV)\n"
        "native_reader._PARSERS = dict.fromkeys(native_reader._PARSERS, crash)\nnative_reader.main(int(sys.argv[1]))"
    )
    with monkeypatch.context() as patch:
        patch.setattr(native_reader, "_COMMAND", [sys.executable, "-c", code])
        assert open_paths(viewer, [str(scan(tmp_path / "bad.nrrd"))]) == []
    dialog = window_of(viewer).findChild(ErrorDialog)
    assert "bad.nrrd made the library" in "".join(label.text() for label in dialog.findChildren(QLabel))
    dialog.close_button.click()
    open_paths(viewer, [str(scan(tmp_path / "second.nrrd"))])
    assert [layer.name for layer in viewer.layers] == ["first", "second"]
    qtbot.wait(20)
