"""A published model in the panel: offered, its terms shown, downloaded after a click, then chosen and ready to run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("napari")
from qtpy.QtCore import Qt

from napari_fmseg._napari.choosers.download_dialog import DownloadDialog
from napari_fmseg._napari.common.dialogs import on_screen
from napari_fmseg._napari.segment.dock import SegmentDock


def rows(dock: SegmentDock) -> list[str]:
    return [dock.model.list.item(i).data(Qt.ItemDataRole.UserRole) for i in range(dock.model.list.count())]


def click_row(dock: SegmentDock, qtbot: Any, name: str) -> None:
    item = dock.model.list.item(rows(dock).index(name))
    dock.model.list.scrollToItem(item)
    middle = dock.model.list.visualItemRect(item).center()
    qtbot.mouseClick(dock.model.list.viewport(), Qt.MouseButton.LeftButton, pos=middle)


@pytest.fixture
def dock(
    host: Any, tiny_tfjs: Any, own_models: Path, make_napari_viewer: Any, qtbot: Any, monkeypatch: pytest.MonkeyPatch
) -> Any:
    """Show the Segment dock in a window, with one model to download."""
    entries = [host.model("model.json", "model.bin")]
    monkeypatch.setattr("napari_fmseg.models.published.registry.list_published", lambda: tuple(entries))
    viewer = make_napari_viewer(show=True)
    made = SegmentDock(viewer)
    viewer.window.add_dock_widget(made)
    made.entries = entries
    yield made
    made.session.close()


def test_a_model_is_downloaded_after_its_terms_were_accepted_and_is_then_chosen(
    dock: Any, host: Any, qtbot: Any, addresses: list[str]
) -> None:
    assert dock.model.download.isHidden()
    click_row(dock, qtbot, "tiny-mr")
    assert dock.model.download.isVisible()
    assert "Not on this machine" in dock.model.facts.text()
    assert dock.model.card is None
    qtbot.mouseClick(dock.model.download, Qt.MouseButton.LeftButton)
    qtbot.waitUntil(lambda: on_screen(DownloadDialog) is not None, timeout=20_000)
    dialog = on_screen(DownloadDialog)
    texts = " ".join(label.text() for label in dialog.scroll.widget().findChildren(type(dialog.error)))
    for word in ("MIT", "Nobody, Nowhere 1", f"{host.address}/model.bin", "Good for nothing", "MB", "Nothing is sent"):
        assert word in texts
    assert host.asked == [], "nothing is fetched before the click"
    qtbot.mouseClick(dialog.accept_button, Qt.MouseButton.LeftButton)
    qtbot.waitUntil(lambda: dock.model.card is not None and dock.model.card.name == "tiny-mr", timeout=60_000)
    assert on_screen(DownloadDialog) is None
    assert dock.model.download.isHidden()
    assert rows(dock).count("tiny-mr") == 1
    assert "MIT" in dock.model.facts.text()
    assert host.asked == ["model.json", "model.bin"]
    assert set(addresses) == {"127.0.0.1"}


def test_what_went_wrong_is_shown_and_cancel_fetches_nothing_more(dock: Any, host: Any, qtbot: Any) -> None:
    host.files["model.bin"] = host.files["model.bin"][:-1] + b"x"
    click_row(dock, qtbot, "tiny-mr")
    qtbot.mouseClick(dock.model.download, Qt.MouseButton.LeftButton)
    qtbot.waitUntil(lambda: on_screen(DownloadDialog) is not None, timeout=20_000)
    dialog = on_screen(DownloadDialog)
    qtbot.mouseClick(dialog.accept_button, Qt.MouseButton.LeftButton)
    qtbot.waitUntil(lambda: "not the file that was registered" in dialog.error.text(), timeout=60_000)
    qtbot.waitUntil(dialog.accept_button.isEnabled, timeout=20_000)
    asked = list(host.asked)
    qtbot.mouseClick(dialog.cancel_button, Qt.MouseButton.LeftButton)
    qtbot.waitUntil(lambda: on_screen(DownloadDialog) is None, timeout=20_000)
    assert host.asked == asked
    assert dock.model.card is None
    assert "tiny-mr" in rows(dock)


def test_a_search_finds_a_model_that_is_not_here_and_run_says_why_it_waits(dock: Any, qtbot: Any) -> None:
    qtbot.keyClicks(dock.model.search, "made-up structures")
    assert dock.model.offer is not None
    assert dock.model.offer.name == "tiny-mr"
    from napari_fmseg._napari.sample_data import phantom_easy_sample

    for data, options, kind in phantom_easy_sample()[:1]:
        dock.viewer._add_layer_from_data(data, options, kind)
    qtbot.waitUntil(lambda: dock.image.case is not None, timeout=20_000)
    click_row(dock, qtbot, "tiny-mr")
    assert dock.choices.disabled_reason() == "This model is not on this machine yet: download it first."
    assert not dock.bar.run_button.isEnabled()
