"""Painted labels are neither closed nor deleted away: the window asks, and what is removed can be put back."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest

pytest.importorskip("napari")
pytest.importorskip("pytestqt")
if not os.environ.get("DISPLAY"):
    pytest.skip("needs a display: run under xvfb-run", allow_module_level=True)

from napari.layers import Labels
from qtpy.QtCore import QEvent, Qt, QTimer
from qtpy.QtWidgets import QApplication, QFileDialog, QPushButton

from napari_fmseg._napari.common.dialogs import on_screen
from napari_fmseg._napari.common.preferences import Preferences
from napari_fmseg._napari.export.dock import ExportDock
from napari_fmseg._napari.layers import labels_layer
from napari_fmseg._napari.recovery import autosave as recovery_module
from napari_fmseg._napari.recovery.autosave import Recovery, show_removed_labels
from napari_fmseg._napari.recovery.autosave_store import (
    KEPT_DAYS,
    Session,
    list_abandoned,
    list_removed,
    prune,
    read,
    work_of,
)
from napari_fmseg._napari.recovery.dialog import RecoveryDialog
from napari_fmseg._napari.recovery.unsaved import UnsavedDialog
from napari_fmseg.core.volume import Geometry, LabelMap

SHAPE = (6, 7, 8)


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home of this test's own, autosaving when it is told to only."""
    monkeypatch.setenv("FMSEG_HOME", str(tmp_path))
    monkeypatch.setattr(recovery_module, "load", lambda: Preferences(autosave_seconds=60))
    return tmp_path


@pytest.fixture
def viewer(make_napari_viewer: Any) -> Any:
    viewer = make_napari_viewer(show=True)
    Recovery.start(viewer)
    return viewer


def new_layer(name: str = "liver") -> Labels:
    grid = Geometry.from_spacing(SHAPE, (3.0, 1.5, 1.25), (-20.0, 31.0, 7.5))
    data, options, _ = labels_layer(LabelMap(np.zeros(SHAPE, np.uint8), grid, {}, {1: "liver"}), name)
    return Labels(np.array(data), **options)


def painted(viewer: Any, name: str = "liver") -> Labels:
    layer = viewer.add_layer(new_layer(name))
    layer.paint((3, 3, 3), 1)
    return layer


def click(qtbot: Any, button: QPushButton) -> None:
    assert button.isVisible()
    assert button.isEnabled()
    qtbot.mouseClick(button, Qt.MouseButton.LeftButton)


def close(qtbot: Any, viewer: Any, *buttons: str) -> list[str]:
    """Close the window as its cross does, click what stands on the question, and give what it said."""
    said: list[str] = []
    wanted = list(buttons)

    def answer() -> None:
        dialog = on_screen(UnsavedDialog)
        if dialog is not None and wanted and (not said or dialog.error.isVisible()):
            said.append(dialog.error.text.text() or dialog.windowTitle())
            click(qtbot, getattr(dialog, wanted.pop(0)))

    timer = QTimer(interval=20)
    timer.timeout.connect(answer)
    timer.start()
    closed = viewer.window._qt_window.close()
    timer.stop()
    assert closed == (buttons[-1:] != ("cancel_button",))
    if closed:  # what `viewer.close` would do, which the fixture will ask for
        viewer.window._teardown()
        del viewer.window._qt_window
        QApplication.sendPostedEvents(None, QEvent.Type.DeferredDelete)
    return said


def no_thread() -> bool:
    import threading

    return not any(thread.name == "fmseg-autosave" for thread in threading.enumerate())


def test_closing_asks_about_painted_labels_and_cancel_leaves_all_as_it_was(viewer: Any, qtbot: Any, home: Path) -> None:
    for name in ("one", "two", "three"):
        painted(viewer, name)
    viewer.add_layer(new_layer("only looked at"))
    assert close(qtbot, viewer, "cancel_button") == ["3 layers were painted and not saved"]
    assert viewer.window._qt_window.isVisible()
    assert len(viewer.layers) == 4
    assert list_removed([home / "removed"]) == []


def test_discarded_labels_are_not_offered_as_a_crash_and_can_be_put_back(
    viewer: Any, qtbot: Any, home: Path, make_napari_viewer: Any
) -> None:
    layer = painted(viewer)
    data = np.array(layer.data)
    assert close(qtbot, viewer, "discard_button") == ["1 layer was painted and not saved"]
    qtbot.waitUntil(lambda: len(list_removed([home / "removed"])) == 1 and no_thread())
    assert list_abandoned([home / "recovery"]) == []
    [folder] = (home / "removed").iterdir()
    assert oct(folder.stat().st_mode)[-3:] == "700"

    again = make_napari_viewer(show=True)
    show_removed_labels()
    dialog = on_screen(RecoveryDialog)
    assert dialog is not None
    with qtbot.waitSignal(Recovery.of(again).saved):
        click(qtbot, dialog.restore_button)
    np.testing.assert_array_equal(again.layers["liver"].data, data)
    assert list_removed([home / "removed"]) == []


@pytest.mark.parametrize("names", [("liver",), ("liver", "liver and spleen", "spleen")])
def test_save_writes_each_layer_to_a_file_and_closes(
    viewer: Any, qtbot: Any, home: Path, monkeypatch: pytest.MonkeyPatch, names: tuple[str, ...]
) -> None:
    layers = [painted(viewer, name) for name in names]
    folder = home / "out"
    folder.mkdir()
    monkeypatch.setattr(QFileDialog, "getExistingDirectory", lambda *_: str(folder))
    monkeypatch.setattr(QFileDialog, "getSaveFileName", lambda *_: (str(folder / "liver.nii.gz"), ""))
    shown = [np.array(layer.data) for layer in layers]
    assert close(qtbot, viewer, "save_button") != []
    written = {path.name: np.asarray(nibabel.load(path).dataobj) for path in folder.iterdir()}
    assert set(written) == {f"{name.replace(' ', '_')}.nii.gz" for name in names}
    assert written["liver.nii.gz"].shape == SHAPE[::-1]
    assert int((written["liver.nii.gz"] == 1).sum()) == int((shown[0] == 1).sum()) > 0
    qtbot.waitUntil(no_thread)
    assert list_removed([home / "removed"]) == []


def test_what_cannot_be_written_is_told_and_the_window_stays(
    viewer: Any, qtbot: Any, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    painted(viewer)
    (home / "a file").write_text("")
    monkeypatch.setattr(QFileDialog, "getSaveFileName", lambda *_: (str(home / "a file" / "liver.nii.gz"), ""))
    assert len(close(qtbot, viewer, "save_button", "cancel_button")) == 2
    assert viewer.window._qt_window.isVisible()
    assert Recovery.of(viewer).unsaved == [viewer.layers["liver"]]


def test_deleting_a_painted_layer_moves_its_autosave_and_the_note_puts_it_back(
    viewer: Any, qtbot: Any, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from napari.utils.notifications import notification_manager

    recovery = Recovery.of(viewer)
    layer = painted(viewer)
    with qtbot.waitSignal(recovery.saved):
        recovery.save_now()
    layer.paint((4, 4, 4), 1)  # after the last copy
    data = np.array(layer.data)
    viewer.layers.selection.active = layer
    with qtbot.waitSignal(recovery.retired):
        click(qtbot, viewer.window._qt_viewer.layerButtons.deleteButton)
    assert list(viewer.layers) == []
    assert list((home / "recovery").glob("*/liver*")) == []
    [save] = list_removed([home / "removed"])
    np.testing.assert_array_equal(read(save)[0], data)
    note = notification_manager.records[-1]
    assert "liver" in note.message
    assert "Recently removed labels" in note.message
    [(title, put_back)] = note.actions
    assert title == "Put back"
    with qtbot.waitSignal(recovery.saved):
        put_back()
    np.testing.assert_array_equal(viewer.layers["liver"].data, data)
    assert list_removed([home / "removed"]) == []
    assert recovery.unsaved == [viewer.layers["liver"]]
    put_back()  # once more: it is there already
    assert len(viewer.layers) == 1


def test_a_copy_that_is_as_new_as_the_layer_is_moved_and_not_written_again(home: Path) -> None:
    session, layer = Session(home / "recovery"), new_layer()
    layer.paint((3, 3, 3), 1)
    session.write("liver-1", work_of(layer))
    [file] = session.folder.glob("*.nii.gz")
    inode = file.stat().st_ino
    assert session.retire("liver-1", work_of(layer), home / "removed")
    [moved] = (home / "removed").glob("*/*.nii.gz")
    assert moved.stat().st_ino == inode
    assert not file.exists()


def test_an_untouched_an_emptied_and_an_exported_layer_are_removed_without_a_word(
    viewer: Any, qtbot: Any, home: Path
) -> None:
    dock = ExportDock(viewer)
    viewer.window.add_dock_widget(dock)
    qtbot.waitUntil(dock.export_button.isVisible)
    layer = painted(viewer)
    dock.place.line.setText(str(home / "liver"))
    dock.place.line.editingFinished.emit()
    click(qtbot, dock.export_button)
    qtbot.waitUntil(lambda: dock.job is None)
    assert Recovery.of(viewer).unsaved == []
    layer.undo()
    assert Recovery.of(viewer).unsaved == [layer]  # the file is not what is seen any more
    layer.redo()
    emptied = painted(viewer, "emptied")
    emptied.data_setitem(tuple(np.argwhere(emptied.data).T), 0)
    viewer.add_layer(new_layer("untouched"))
    Recovery.of(viewer).mark_saved(layer)
    viewer.layers.clear()
    qtbot.waitUntil(no_thread)
    assert list_removed([home / "removed"]) == []


def test_labels_that_are_painted_while_they_are_exported_are_not_safe(viewer: Any) -> None:
    recovery, layer = Recovery.of(viewer), painted(viewer)
    edits = recovery.edits_of(layer)
    layer.paint((1, 1, 1), 1)
    recovery.mark_saved(layer, edits)
    assert recovery.unsaved == [layer]
    recovery.mark_saved(layer, recovery.edits_of(layer))
    assert recovery.unsaved == []


def test_saving_by_naparis_own_menu_counts(viewer: Any, home: Path) -> None:
    layer = painted(viewer)
    assert layer.save(str(home / "out.nii.gz"), plugin="napari-fmseg")
    assert Recovery.of(viewer).unsaved == []


def test_without_autosaving_nothing_is_kept_and_the_question_says_so(
    viewer: Any, qtbot: Any, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in ("autosave", "unsaved"):
        monkeypatch.setattr(f"napari_fmseg._napari.recovery.{module}.load", lambda: Preferences(autosave=False))
    painted(viewer)
    dialog = UnsavedDialog(list(viewer.layers), tuple(viewer.layers))
    assert "cannot be put back" in dialog.discard_button.toolTip()
    assert close(qtbot, viewer, "discard_button") != []
    qtbot.waitUntil(no_thread)
    assert list_removed([home / "removed"]) == []


def test_removed_labels_are_gone_after_thirty_days_and_nothing_else_is(home: Path, tmp_path: Path) -> None:
    bin_root, session = home / "removed", Session(home / "recovery")
    for name in ("old", "new"):
        layer = new_layer(name)
        layer.paint((3, 3, 3), 1)
        session.retire(session.new_key(name), work_of(layer), bin_root)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "scan.nii.gz").write_text("not ours")
    os.utime(elsewhere / "scan.nii.gz", (0, 0))
    (bin_root / "link").symlink_to(elsewhere)
    for file in bin_root.glob("*/old*"):
        os.utime(file, (time.time() - (KEPT_DAYS + 1) * 86_400,) * 2)
    prune([bin_root])
    assert [save.name for save in list_removed([bin_root])] == ["new"]
    assert (elsewhere / "scan.nii.gz").exists()
    prune([bin_root], time.time() + (KEPT_DAYS + 1) * 86_400)
    assert list_removed([bin_root]) == []
    assert [path.name for path in bin_root.iterdir()] == ["link"]


def test_the_list_of_removed_labels_stands_in_the_menu(viewer: Any, qtbot: Any) -> None:
    from npe2 import PluginManager

    commands = [c.id for c in PluginManager.instance().get_manifest("napari-fmseg").contributions.commands]
    assert "napari-fmseg.removed_labels" in commands
    PluginManager.instance().commands.execute("napari-fmseg.removed_labels")
    dialog = on_screen(RecoveryDialog)
    assert dialog is not None
    assert not dialog.restore_button.isEnabled()
    dialog.reject()
