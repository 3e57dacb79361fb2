"""The user's choices: kept by napari, shown on its preferences page, and never the reason of a crash."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

import napari_fmseg
from napari_fmseg._napari.common.preferences import Preferences, load
from napari_fmseg.pipelines import SegmentOptions

settings = pytest.importorskip("napari.settings")
if not hasattr(settings, "get_plugin_settings"):
    pytest.skip("this napari has no preferences for plugins", allow_module_level=True)


MANIFEST = Path(napari_fmseg.__file__).parent / "napari.yaml"


@pytest.fixture
def page(plugin_settings, npe2pm):
    """The plugin's settings, kept in a folder of this test."""
    npe2pm.register(str(MANIFEST))
    return settings.get_plugin_settings("napari-fmseg")


def test_the_page_starts_with_the_defaults_of_the_dataclass_and_of_the_engine(page):
    assert load() == Preferences()
    assert (Preferences().device, Preferences().precision) == (SegmentOptions().device, SegmentOptions().precision)


def test_what_is_changed_on_the_page_is_loaded(page):
    page.computing.device = "cpu"
    page.your_work.autosave = False
    assert load() == Preferences(device="cpu", autosave=False)


def test_a_value_that_makes_no_sense_falls_back_with_a_warning(page, tmp_path):
    page.computing.cache_folder = "somewhere/relative"
    with pytest.warns(UserWarning, match="cache_folder of fmseg cannot be 'somewhere/relative'"):
        assert load() == Preferences()
    page.computing.cache_folder = str(tmp_path)
    assert load().folder == tmp_path


@pytest.mark.parametrize("content", ["computing: {device: abacus}\n", "your_work: {autosave_seconds: soon}\n", "]["])
def test_a_file_that_makes_no_sense_is_warned_of_and_never_crashes(plugin_settings, npe2pm, tmp_path, caplog, content):
    (tmp_path / "napari-fmseg.yaml").write_text(content)
    npe2pm.register(str(MANIFEST))
    assert load() == Preferences()
    assert any(r.name.startswith("napari.settings") and r.levelname == "WARNING" for r in caplog.records)


def test_without_a_manifest_the_defaults_are_used(plugin_settings, npe2pm):
    assert load() == Preferences()


def test_the_folder_is_the_chosen_one_then_the_environments(monkeypatch, tmp_path):
    monkeypatch.setenv("FMSEG_HOME", str(tmp_path / "home"))
    assert Preferences().folder == tmp_path / "home"
    assert Preferences(cache_folder=str(tmp_path / "own")).folder == tmp_path / "own"
    monkeypatch.delenv("FMSEG_HOME")
    assert "napari-fmseg" in str(Preferences().folder)


@pytest.mark.skipif(not os.environ.get("DISPLAY"), reason="needs a display: run under xvfb-run")
def test_naparis_preferences_dialog_shows_and_changes_them(make_napari_viewer, page, qtbot):
    make_napari_viewer(show=True)
    from napari._qt.dialogs.preferences_dialog import PreferencesDialog
    from qtpy.QtWidgets import QCheckBox, QLabel, QListWidget

    dialog = PreferencesDialog()
    qtbot.addWidget(dialog)
    dialog.show()
    [names] = [w for w in dialog.findChildren(QListWidget) if w.count() > 3]
    [row] = [i for i in range(names.count()) if names.item(i).text() == "fmseg"]
    names.setCurrentRow(row)
    shown = [w.text() for w in dialog.findChildren(QLabel) if w.isVisible()]
    for title in ("Device", "Precision", "Folder for downloads and autosaves", "Seconds until a change is autosaved"):
        assert any(title in text for text in shown), (title, shown)
    boxes = [w for w in dialog.findChildren(QCheckBox) if w.isVisible()]
    box, notify = sorted((b for b in boxes if b.isChecked()), key=lambda b: b.mapToGlobal(b.rect().topLeft()).y())
    box.click()
    assert load().autosave is False
    notify.click()
    assert load().notify is False
    if os.environ.get("FMSEG_SHOTS"):
        dialog.resize(1000, 600)
        dialog.grab().save(f"{os.environ['FMSEG_SHOTS']}/preferences.png")
