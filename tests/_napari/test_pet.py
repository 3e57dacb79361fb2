"""A PET looks like a PET, alone and over a CT; two images make a two-channel run; lesions are listed and gone to."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("napari")
from napari.components import ViewerModel
from qtpy.QtCore import Qt
from qtpy.QtWidgets import QFileDialog

from napari_fmseg._napari.layers import image_layers, labels_layer
from napari_fmseg._napari.opening.layer_data import layers_of, overlay_on
from napari_fmseg._napari.results.lesion_table import LesionDialog
from napari_fmseg._napari.segment.dock import SegmentDock
from napari_fmseg.core.events import StageResult, Warned
from napari_fmseg.core.resampling import stack_channels
from napari_fmseg.core.volume import Geometry, LabelMap, Volume
from napari_fmseg.evaluation.lesions import lesions, write_lesions
from napari_fmseg.models.card import Intensity, ModelCard, NetSpec, write_card

CT = {"modality": "CT", "units": "HU", "format": "DICOM"}
PATIENCE_MS = 60_000
SUV = {"modality": "PT", "units": "SUV", "format": "DICOM"}


def image(meta: dict[str, Any], shape: tuple[int, int, int] = (16, 16, 16), spacing: float = 4.0) -> Volume:
    rng = np.random.default_rng(1)
    data = rng.gamma(1.0, 2.0, shape) if meta is SUV else rng.normal(0, 200, shape)
    return Volume(data.astype(np.float32), Geometry.from_spacing(shape, (spacing,) * 3), meta)


def add(viewer: Any, volume: Volume, name: str) -> Any:
    for data, options, _ in image_layers(volume, name):
        options |= overlay_on(viewer, options["metadata"])
        viewer.add_image(data, **options)
    return viewer.layers[-1]


def test_a_pet_in_suv_opens_dark_on_white_from_0_to_7(pet: Callable[..., Path], tmp_path: Path) -> None:
    (layer,) = layers_of(pet(tmp_path))
    assert layer[1]["colormap"] == "gray_r"
    assert tuple(layer[1]["contrast_limits"]) == (0.0, 7.0)


def test_a_pet_without_suv_is_shown_by_its_own_window_or_percentiles() -> None:
    volume = image({**SUV, "units": "Bq/ml"})
    ((_, options, _),) = image_layers(volume, "pet")
    assert options["colormap"] == "gray_r"
    assert options["contrast_limits"] == pytest.approx(np.percentile(volume.data, (0.5, 99.5)), rel=1e-4)


def test_over_a_ct_a_pet_glows_and_alone_it_does_not() -> None:
    viewer = ViewerModel()
    assert add(viewer, image(SUV), "pet").colormap.name == "gray_r"
    viewer.layers.clear()
    assert add(viewer, image(CT), "ct").colormap.name == "gray"
    over = add(viewer, image(SUV), "pet")
    assert (over.colormap.name, over.blending) == ("hot", "additive")
    assert tuple(over.contrast_limits) == (0, 7)


def test_ct_and_pet_as_channels_have_each_their_own_window() -> None:
    both = stack_channels([image(CT), image(SUV)], ["CT", "PET"])
    ct, pet_layer = (options for _, options, _ in image_layers(both, "both"))
    assert (ct["colormap"], ct["contrast_limits"]) == ("gray", (-160.0, 240.0))
    assert (pet_layer["colormap"], pet_layer["contrast_limits"]) == ("hot", (0.0, 7.0))


def test_channels_and_time_points_that_are_no_pet_look_as_before() -> None:
    volume = Volume(np.stack([image(CT).data] * 3), image(CT).geometry, {})
    assert [options["colormap"] for _, options, _ in image_layers(volume, "t")] == ["gray", "green", "magenta"]


class TwoChannels:
    """An engine that keeps what it is asked to segment and finds what is hot in the second channel."""

    def __init__(self) -> None:
        self.volumes: list[Volume] = []

    def segment(self, volume: Volume, model_name: str, options: Any) -> Iterator[Any]:
        self.volumes.append(volume)
        yield from (Warned(text) for text in volume.meta["warnings"])
        found = (volume.data[1] > 8).astype(np.uint8)
        yield StageResult("labels", LabelMap(found, volume.geometry, {}, {1: "lesion"}), 0.1)

    def cancel(self) -> None:
        pass

    def close(self) -> None:
        pass


@pytest.fixture
def two_channel_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("FMSEG_HOME", str(tmp_path / "home"))
    folder = tmp_path / "home" / "models"
    folder.mkdir(parents=True)
    (folder / "hot.safetensors").write_bytes(b"")
    windows = (Intensity("window", -100, 200, unit="HU"), Intensity("window", 0, 10, unit="SUV"))
    card = ModelCard(
        "hot", "Hot", "single", {"net": NetSpec("unet3d")}, {1: "lesion"}, channels=("CT", "PET"),
        weights="hot.safetensors", intensity=Intensity(channels=windows), settings={"window": [16, 16, 16]},
    )  # fmt: skip
    write_card(card, folder / "hot.toml")
    return "hot"


@pytest.fixture
def make_dock(make_napari_viewer: Any, two_channel_model: str) -> Iterator[Callable[..., SegmentDock]]:
    docks: list[SegmentDock] = []

    def made(engine: Any) -> SegmentDock:
        viewer = make_napari_viewer()
        dock = SegmentDock(viewer, engine)
        viewer.window.add_dock_widget(dock, name="fmseg: Segment")
        docks.append(dock)
        return dock

    yield made
    for dock in docks:
        dock.session.close()
    docks.clear()


def test_a_model_of_two_channels_asks_for_a_second_image_and_gets_both_on_one_grid(make_dock: Any, qtbot: Any) -> None:
    engine = TwoChannels()
    dock = make_dock(engine)
    add(dock.viewer, image(CT), "ct")
    dock.model.choose("hot")
    assert dock.choices.channels.names == ("PET",)
    assert "PET" in dock.choices.disabled_reason()  # there is one image only
    coarse = image(SUV, (8, 8, 8), 8.0)
    add(dock.viewer, coarse, "pet")
    chooser = dock.choices.channels.choosers[0]
    assert (dock.image.currentText(), chooser.currentText()) == ("ct", "pet")  # by themselves
    assert dock.choices.disabled_reason() == ""
    assert dock.choices.warnings.text() == ""
    qtbot.mouseClick(dock.bar.run_button, Qt.MouseButton.LeftButton)
    qtbot.waitUntil(lambda: not dock.session.running, timeout=PATIENCE_MS)
    (volume,) = engine.volumes
    expected = stack_channels([image(CT), coarse], ["CT", "PET"])
    np.testing.assert_allclose(volume.data, expected.data, rtol=1e-5)
    assert volume.geometry.matches(image(CT).geometry)
    assert "PET was resampled" in dock.remarks.text()
    labels = dock.viewer.layers[-1]
    np.testing.assert_array_equal(labels.data, expected.data[1] > 8)
    chooser.setCurrentIndex(chooser.findText("ct"))
    assert chooser.currentText() == "pet"  # the other way round makes no sense
    dock.viewer.layers.remove("pet")
    assert "another image for PET" in dock.choices.disabled_reason()


def test_a_model_of_one_channel_asks_for_no_second_image(make_dock: Any) -> None:
    dock = make_dock(TwoChannels())
    add(dock.viewer, image(CT), "ct")
    dock.model.choose("fmsf-phantom-ct")
    assert dock.choices.channels.isHidden()
    both = stack_channels([image(CT), image(SUV)], ["CT", "PET"])
    add(dock.viewer, both, "both")
    dock.model.choose("hot")
    assert dock.choices.channels.isHidden()  # the volume has both
    assert dock.choices.disabled_reason() == ""


def lesion_labels() -> LabelMap:
    data = np.zeros((16, 16, 16), np.uint8)
    data[2:6, 2:6, 2:6] = 1
    data[10:12, 10:12, 9:12] = 1
    data[14, 14, 14] = 1
    return LabelMap(data, image(SUV).geometry, {}, {1: "tumour"})


def test_lesions_are_listed_gone_to_and_exported_by_clicks(
    make_dock: Any, qtbot: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dock = make_dock(TwoChannels())
    viewer = dock.viewer
    add(viewer, image(CT), "ct")
    add(viewer, image(SUV), "pet")
    assert not dock.lesions.isEnabled()
    data, options, _ = labels_layer(lesion_labels(), "mask")
    viewer.add_labels(data, **options)
    qtbot.mouseClick(dock.lesions, Qt.MouseButton.LeftButton)
    (dialog,) = dock.findChildren(LesionDialog)
    qtbot.waitUntil(lambda: dialog.found is not None, timeout=PATIENCE_MS)
    assert dialog.image.currentText() == "pet"
    expected = lesions(lesion_labels(), image(SUV))
    assert dialog.found == expected
    titles = [dialog.table.horizontalHeaderItem(i).text() for i in range(dialog.table.columnCount())]
    assert titles == ["", "Lesion", "ml", "SUVmax", "SUVmean", "SUVpeak", "TLG"]
    assert dialog.table.rowCount() == 3
    assert dialog.totals.text().startswith(f"3 lesions, {expected.ml:.2f} ml; SUVmax")
    cell = dialog.table.visualItemRect(dialog.table.item(1, 1)).center()
    qtbot.mouseClick(dialog.table.viewport(), Qt.MouseButton.LeftButton, pos=cell)
    assert viewer.dims.point == pytest.approx(4.0 * np.array(expected.lesions[1].hottest))
    dialog.min_ml.setValue(0.1)
    qtbot.waitUntil(lambda: dialog.table.rowCount() == 2, timeout=PATIENCE_MS)
    assert "1 smaller components" in dialog.totals.text()
    dialog.image.setCurrentIndex(dialog.image.findText("ct"))
    qtbot.waitUntil(lambda: dialog.found.unit == "HU", timeout=PATIENCE_MS)
    assert "SUV" not in dialog.totals.text()
    monkeypatch.setattr(QFileDialog, "getSaveFileName", lambda *_: (str(tmp_path / "l.csv"), ""))
    qtbot.mouseClick(dialog.save, Qt.MouseButton.LeftButton)
    qtbot.waitUntil((tmp_path / "l.csv").exists, timeout=PATIENCE_MS)
    assert (tmp_path / "l.csv").read_text() == write_lesions(dialog.found, tmp_path / "same.csv").read_text()
    viewer.layers["mask"].data[8, 3, 3] = 1
    viewer.layers["mask"].events.data()
    qtbot.waitUntil(lambda: dialog.found.left_out == 2, timeout=PATIENCE_MS)
    qtbot.mouseClick(dialog.close_button, Qt.MouseButton.LeftButton)
    qtbot.waitUntil(lambda: not dock.findChildren(LesionDialog), timeout=PATIENCE_MS)


def test_the_names_of_lesions_are_whole_also_beside_the_long_titles_of_an_image_without_a_unit(
    make_dock: Any, qtbot: Any
) -> None:
    dock = make_dock(TwoChannels())
    add(dock.viewer, image({}), "mr")
    labels = lesion_labels()
    data, options, _ = labels_layer(LabelMap(labels.data, labels.geometry, {}, {1: "anterior part"}), "mask")
    dock.viewer.add_labels(data, **options)
    qtbot.mouseClick(dock.lesions, Qt.MouseButton.LeftButton)
    (dialog,) = dock.findChildren(LesionDialog)
    qtbot.waitUntil(lambda: dialog.found is not None, timeout=PATIENCE_MS)
    table = dialog.table
    assert "no unit" in table.horizontalHeaderItem(3).text()
    needed = table.fontMetrics().horizontalAdvance("anterior part")
    qtbot.waitUntil(lambda: table.visualItemRect(table.item(0, 1)).width() >= needed)
    dialog.accept()


def test_labels_without_an_image_on_their_grid_say_so(make_dock: Any, qtbot: Any) -> None:
    dock = make_dock(TwoChannels())
    add(dock.viewer, image(SUV, (8, 8, 8), 8.0), "pet")
    data, options, _ = labels_layer(lesion_labels(), "mask")
    dock.viewer.add_labels(data, **options)
    qtbot.mouseClick(dock.lesions, Qt.MouseButton.LeftButton)
    (dialog,) = dock.findChildren(LesionDialog)
    assert "on the grid" in dialog.error.text.text()
    assert dialog.totals.text() == ""
    assert not dialog.save.isEnabled()
    dock.viewer.layers.remove("mask")
    qtbot.waitUntil(lambda: not dock.findChildren(LesionDialog), timeout=PATIENCE_MS)


@pytest.mark.parametrize("order", [(0, 1), (1, 0)], ids=["in order", "the other way round"])
def test_images_that_are_numbered_as_channels_are_taken_by_their_numbers(
    make_dock: Any, qtbot: Any, order: tuple[int, int]
) -> None:
    engine = TwoChannels()
    dock = make_dock(engine)
    images = (image(CT), dataclasses.replace(image(CT), data=image(CT).data + 1000))  # nothing else tells them apart
    for i in order:
        add(dock.viewer, images[i], f"scan_{i:04d}")
    dock.model.choose("hot")
    chooser = dock.choices.channels.choosers[0]
    assert (dock.image.currentText(), chooser.currentText()) == ("scan_0000", "scan_0001")
    qtbot.mouseClick(dock.bar.run_button, Qt.MouseButton.LeftButton)
    qtbot.waitUntil(lambda: not dock.session.running, timeout=PATIENCE_MS)
    (volume,) = engine.volumes
    np.testing.assert_allclose(volume.data, stack_channels(list(images), ["CT", "PET"]).data, rtol=1e-5)


def test_a_second_channel_that_is_opened_first_makes_way_when_the_first_one_comes(make_dock: Any) -> None:
    dock = make_dock(TwoChannels())
    add(dock.viewer, image(CT), "scan_0001")
    dock.model.choose("hot")
    add(dock.viewer, image(CT), "scan_0000")
    chooser = dock.choices.channels.choosers[0]
    assert (dock.image.currentText(), chooser.currentText()) == ("scan_0000", "scan_0001")
    add(dock.viewer, image(CT), "other")
    assert (dock.image.currentText(), chooser.currentText()) == ("scan_0000", "scan_0001")
