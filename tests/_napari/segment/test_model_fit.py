"""A dropped scan brings the model that fits it; what does not fit stands above Run; what the user chooses stays."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("napari")
from qtpy.QtCore import QEvent, QObject, QPoint, Qt
from qtpy.QtWidgets import QApplication, QWidget

from napari_fmseg._napari.layers import image_layers
from napari_fmseg._napari.segment.dock import SegmentDock
from napari_fmseg.core.volume import Geometry, Volume
from napari_fmseg.io import write_volume
from napari_fmseg.models.card import ModelCard
from napari_fmseg.models.fit import find_misfits
from napari_fmseg.models.folders import user_models_folder
from napari_fmseg.models.licences import remember_terms
from napari_fmseg.models.measures import measure_volume, summarise
from napari_fmseg.models.weights import save_model

PATIENCE_MS = 90_000


class Clicks(QObject):
    """Counts what the user presses, wherever it is."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0
        QApplication.instance().installEventFilter(self)

    def eventFilter(self, watched: QObject | None, event: QEvent | None) -> bool:
        pressed = event is not None and event.type() in (QEvent.Type.MouseButtonPress, QEvent.Type.KeyPress)
        self.count += pressed and isinstance(watched, QWidget)
        return False

    def end(self) -> int:
        QApplication.instance().removeEventFilter(self)
        return self.count


@pytest.fixture
def install(body_card: Any) -> Callable[..., ModelCard]:
    """Return a function that installs an untrained model for a kind of scan in the user's folder."""

    def make(kind: str, **changes: Any) -> ModelCard:
        from torch.random import fork_rng

        from napari_fmseg.nets import build

        card = body_card(kind, **changes)
        with fork_rng():
            nets = {part: build(spec.network, **spec.kwargs) for part, spec in card.nets.items()}
        return save_model(card, nets, user_models_folder())

    return make


def add(dock: SegmentDock, volume: Volume, name: str) -> None:
    for data, options, _ in image_layers(volume, name):
        dock.viewer.add_image(data, **options)


def click_model(qtbot: Any, dock: SegmentDock, name: str) -> None:
    """Click a model in the list, as the user does."""
    models = dock.model.list
    qtbot.waitUntil(models.isVisible)
    (item,) = [models.item(i) for i in range(models.count()) if models.item(i).data(Qt.ItemDataRole.UserRole) == name]
    models.scrollToItem(item)
    qtbot.mouseClick(models.viewport(), Qt.MouseButton.LeftButton, pos=models.visualItemRect(item).center())


def chosen(dock: SegmentDock) -> str:
    return dock.model.card.name if dock.model.card is not None else ""


@pytest.mark.parametrize("accepted", [True, False], ids=["terms accepted before", "terms to be accepted"])
def test_a_dropped_scan_and_one_press_on_run_are_enough(
    drop: Any, make_docks: Any, qtbot: Any, tmp_path: Path, install: Any, body_scan: Any, accepted: bool
) -> None:
    card = install("mr-heart", name="hearts", restriction="For research only.")
    install("ct-abdomen")
    if accepted:
        remember_terms(card)
    path = write_volume(body_scan("mr-heart"), tmp_path / "scan.nii.gz")
    dock, _ = make_docks()
    dock.device.setCurrentText("cpu")
    clicks = Clicks()
    drop(dock, path)
    qtbot.waitUntil(lambda: dock.image.case is not None and not dock.drop.busy, timeout=PATIENCE_MS)
    assert chosen(dock) == "hearts"
    assert dock.choices.misfits.isHidden()
    if not accepted:
        dock._scroll.ensureWidgetVisible(dock.model.accept)
        box = dock.model.accept
        qtbot.mouseClick(box, Qt.MouseButton.LeftButton, pos=QPoint(8, box.height() // 2))
    assert dock.bar.run_button.isEnabled(), dock.bar.run_button.toolTip()
    qtbot.mouseClick(dock.bar.run_button, Qt.MouseButton.LeftButton)
    assert clicks.end() == (1 if accepted else 2)
    qtbot.waitUntil(lambda: not dock.session.running, timeout=PATIENCE_MS)
    assert dock.error.error is None
    assert dock.session.final is not None
    assert dock.session.final.name == "scan · hearts · labels"


def test_each_scan_brings_the_model_that_fits_it_and_none_where_none_fits(
    make_docks: Any, install: Any, body_scan: Any
) -> None:
    for kind in ("ct-head", "ct-abdomen", "pet-body"):
        install(kind)
    dock, _ = make_docks()
    for kind in ("ct-abdomen", "pet-body", "ct-head"):
        add(dock, body_scan(kind), kind)
        assert chosen(dock) == kind
        assert dock.model.reason == ""
    add(dock, body_scan("mr-head"), "brain")
    assert chosen(dock) == ""
    assert dock.model.list.currentRow() == -1
    assert "No model here fits “brain”" in dock.warnings.text()
    assert not dock.bar.run_button.isEnabled()
    assert "No model here fits" in dock.bar.run_button.toolTip()
    dock.image.setCurrentIndex(0)
    assert chosen(dock) == "ct-abdomen"


def test_a_dock_opened_after_the_scan_brings_the_model_that_fits_it(
    make_napari_viewer: Any, qtbot: Any, install: Any, body_scan: Any
) -> None:
    for kind in ("ct-head", "ct-abdomen"):
        install(kind)
    for kind in ("ct-abdomen", "ct-head", "mr-head"):
        viewer = make_napari_viewer(show=True)
        for data, options, _ in image_layers(body_scan(kind), kind):
            viewer.add_image(data, **options)
        _, dock = viewer.window.add_plugin_dock_widget("napari-fmseg", "Segment")
        qtbot.waitUntil(dock.bar.run_button.isVisible)
        assert chosen(dock) == ("" if kind == "mr-head" else kind)
        assert dock.until.count() > 0
        assert dock.bar.run_button.isEnabled() is (kind != "mr-head"), dock.bar.run_button.toolTip()
        dock.session.close()


def test_a_model_that_the_user_clicked_stays_for_that_scan_only(
    make_docks: Any, qtbot: Any, install: Any, body_scan: Any
) -> None:
    for kind in ("ct-head", "ct-abdomen", "mr-head"):
        install(kind)
    install("ct-head", name="another", scores={"labels": {"organ": 0.5}})
    dock, _ = make_docks()
    add(dock, body_scan("ct-head"), "first")
    assert chosen(dock) == "ct-head"
    click_model(qtbot, dock, "mr-head")
    assert chosen(dock) == "mr-head"
    dock.viewer.layers[0].name = "renamed"
    assert chosen(dock) == "mr-head"
    add(dock, body_scan("ct-abdomen"), "second")
    assert chosen(dock) == "ct-abdomen"
    dock.image.setCurrentIndex(0)
    assert chosen(dock) == "mr-head"
    click_model(qtbot, dock, "another")
    add(dock, body_scan("ct-head", 3), "third")  # fits both; the user prefers this one
    assert chosen(dock) == "another"


def test_a_model_chosen_before_there_is_a_scan_stays_for_the_first_one(
    make_docks: Any, qtbot: Any, install: Any, body_scan: Any
) -> None:
    for kind in ("ct-head", "mr-head"):
        install(kind)
    dock, _ = make_docks()
    click_model(qtbot, dock, "mr-head")
    add(dock, body_scan("ct-head"), "scan")
    assert chosen(dock) == "mr-head"
    assert "as a CT in HU has" in dock.choices.misfits.text()


def test_what_does_not_fit_stands_above_run_in_the_words_of_the_command_line_and_blocks_nothing(
    make_docks: Any, qtbot: Any, install: Any, body_scan: Any
) -> None:
    card = install("mr-head")
    volume = body_scan("ct-head")
    dock, _ = make_docks()
    add(dock, volume, "scan")
    click_model(qtbot, dock, "mr-head")
    note, run = dock.choices.misfits, dock.bar.run_button
    (told,) = find_misfits(measure_volume(volume), volume.meta, card)
    assert note.text() == told.text
    qtbot.waitUntil(note.isVisible)
    qtbot.wait(50)
    assert note.mapTo(dock, QPoint(0, note.height())).y() <= run.mapTo(dock, QPoint(0, 0)).y() + 1
    assert dock.rect().contains(note.mapTo(dock, note.rect().center()))
    assert not dock._scroll.isAncestorOf(note)  # so that it cannot be scrolled out of sight
    dock.device.setCurrentText("cpu")
    qtbot.mouseClick(run, Qt.MouseButton.LeftButton)
    qtbot.waitUntil(lambda: not dock.session.running, timeout=PATIENCE_MS)
    assert dock.session.final is not None
    assert told.text not in dock.remarks.text()  # it stands there already


def test_the_strict_option_refuses_to_run(make_docks: Any, qtbot: Any, install: Any, body_scan: Any) -> None:
    install("mr-head")
    dock, _ = make_docks()
    add(dock, body_scan("ct-head"), "scan")
    click_model(qtbot, dock, "mr-head")
    dock.device.setCurrentText("cpu")
    dock.choices.options.set_values({"strict": True})
    qtbot.mouseClick(dock.bar.run_button, Qt.MouseButton.LeftButton)
    qtbot.waitUntil(lambda: not dock.session.running, timeout=PATIENCE_MS)
    assert type(dock.error.error).__name__ == "ModelMismatch"
    assert [layer.name for layer in dock.viewer.layers] == ["scan"]


def test_a_model_of_two_channels_is_chosen_when_both_are_there(make_docks: Any, install: Any, body_scan: Any) -> None:
    def two(seed: int) -> Volume:
        one = body_scan("mr-head", seed)
        return Volume(np.stack([one.data, one.data // 2]), one.geometry)

    spec = {"network": "snet", "kwargs": {"in_channels": 2, "n_classes": 2, "width": 4}}
    card = install("ct-head", name="one")
    nets = {"consensus": dataclasses.replace(card.nets["consensus"], **spec)}
    data = summarise(measure_volume(two(100 + i)) for i in range(4))
    install("mr-head", name="pair", nets=nets, channels=("T1", "T2"), training_data=data)
    dock, _ = make_docks()
    add(dock, two(0), "both")
    assert chosen(dock) == "pair"
    assert dock.choices.channels.isHidden()
    dock.viewer.layers.clear()
    for number, channel in enumerate(two(1).data):
        add(dock, Volume(channel, two(1).geometry), f"scan_{number:04d}")
    assert chosen(dock) == "pair"
    assert dock.image.case.name == "scan_0000"
    assert [case.name for case in dock.choices.channels.cases] == ["scan_0001"]
    assert dock.bar.run_button.isEnabled(), dock.bar.run_button.toolTip()
    assert dock.choices.misfits.isHidden()


def test_a_layer_that_is_moved_or_lies_nowhere_is_measured_anew(make_docks: Any, install: Any, body_scan: Any) -> None:
    install("mr-head")
    dock, _ = make_docks()
    add(dock, body_scan("mr-head"), "scan")
    assert chosen(dock) == "mr-head"
    dock.viewer.layers[0].scale = (40, 40, 40)
    assert chosen(dock) == ""
    dock.viewer.layers[0].scale = (4, 4, 4)
    assert chosen(dock) == "mr-head"
    grid = Geometry.from_spacing((8, 9, 10))
    add(dock, Volume(np.zeros(grid.shape, np.int16), grid), "empty")
    assert chosen(dock) == ""
