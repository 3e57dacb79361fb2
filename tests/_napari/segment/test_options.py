"""Which image, which model and which layers the docks choose by themselves, and what they say where nothing fits."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("napari")
pytest.importorskip("napari._qt")
from napari.components import ViewerModel
from qtpy.QtCore import Qt
from qtpy.QtWidgets import QListWidget

from napari_fmseg._napari.choosers.image_volumes import cases_of
from napari_fmseg._napari.choosers.roi import box_of_view
from napari_fmseg._napari.common.tooltips import SEGMENT, TEACH
from napari_fmseg._napari.export.dock import ExportDock
from napari_fmseg._napari.layers import KEY, image_layers, volume_of
from napari_fmseg._napari.pretrain.panels import SampleLayers
from napari_fmseg._napari.pretrain.plan import sample_layers
from napari_fmseg._napari.segment.dock import SegmentDock
from napari_fmseg._napari.segment.run_request import Request, run_to_layers
from napari_fmseg._napari.teach.dock import TeachDock
from napari_fmseg.core.events import Event, StageResult
from napari_fmseg.core.volume import Geometry, LabelMap, Volume
from napari_fmseg.pipelines import SegmentOptions


@pytest.fixture
def make_dock(make_napari_viewer: Any) -> Iterator[Callable[..., SegmentDock]]:
    docks: list[SegmentDock] = []

    def make() -> SegmentDock:
        viewer = make_napari_viewer(show=True)
        docks.append(SegmentDock(viewer))
        viewer.window.add_dock_widget(docks[-1], name="fmseg: Segment")
        return docks[-1]

    yield make
    for dock in docks:
        dock.session.close()
    docks.clear()


def add_scan(viewer: Any, name: str, spacing: float = 1.0, **meta: Any) -> Any:
    grid = Geometry.from_spacing((8, 9, 10), (spacing,) * 3)
    for data, options, _ in image_layers(Volume(np.zeros(grid.shape, np.int16), grid, meta), name):
        viewer.add_image(data, **options)
    return viewer.layers[-1]


# --- images that are no volumes


@pytest.mark.parametrize(
    ("shape", "options", "reason"),
    [
        ((20, 30), {}, "has 2 axes"),
        ((20, 30, 3), {"rgb": True}, "colours"),
        ((1, 20, 30), {"rgb": False}, "single slice"),
        ((2, 2, 4, 5, 6), {"rgb": False}, "has 5 axes"),
    ],
)
def test_an_image_that_is_no_volume_is_refused_with_the_reason(
    make_dock: Any, shape: tuple[int, ...], options: dict[str, Any], reason: str
) -> None:
    dock = make_dock()
    assert dock.image.currentText() == "No volume is open"
    dock.viewer.add_image(np.zeros(shape, np.uint8), name="photo", **options)
    assert dock.image.currentText() == "No open image is a volume"
    assert reason in dock.bar.run_button.toolTip()
    assert reason in dock.warnings.text()
    assert "photo" in dock.image.toolTip()
    teach = TeachDock(dock.viewer)
    dock.viewer.window.add_dock_widget(teach)
    assert teach.add.image.refusal == dock.image.refusal
    assert reason in teach.add.image.toolTip()
    add_scan(dock.viewer, "scan", modality="CT")
    assert dock.image.currentText() == "scan"
    assert dock.image.refusal == ""
    assert dock.image.toolTip() == SEGMENT.image
    assert teach.add.image.toolTip() == TEACH.image


class Asked:
    """An engine that keeps what it is given."""

    def segment(self, volume: Volume, model_name: str, options: SegmentOptions) -> Iterator[Event]:
        self.volume = volume
        labels = LabelMap(np.ones(volume.geometry.shape, np.uint8), volume.geometry, {}, {1: "all"})
        yield StageResult("labels", labels, 0.0)

    def cancel(self) -> None: ...

    close = cancel


def test_of_a_pyramid_the_finest_level_is_segmented(make_dock: Any) -> None:
    dock = make_dock()
    fine = np.random.default_rng(0).integers(0, 1000, (8, 24, 28)).astype(np.int16)
    layer = dock.viewer.add_image([fine, fine[::2, ::2, ::2]], name="pyramid", scale=(3, 2, 2), multiscale=True)
    assert dock.image.currentText() == "pyramid"
    dock.model.choose("fmsf-phantom-ct")
    assert dock.bar.run_button.isEnabled(), dock.bar.run_button.toolTip()
    request = dock.choices.request()
    assert isinstance(request, Request)
    engine = Asked()
    results = list(run_to_layers(request, engine))
    np.testing.assert_array_equal(engine.volume.data, fine)
    np.testing.assert_allclose(engine.volume.geometry.spacing, (3, 2, 2))
    assert results[-1].layer.data.shape == fine.shape
    np.testing.assert_array_equal(volume_of([layer]).data, fine)


def test_the_view_of_a_pyramid_is_counted_in_its_finest_voxels() -> None:
    viewer = ViewerModel()
    fine = np.zeros((8, 64, 64), np.int16)
    layer = viewer.add_image([fine, fine[:, ::4, ::4]], multiscale=True)
    layer._data_level = 1
    layer.corner_pixels = np.array([[0, 2, 4], [0, 7, 15]])
    assert box_of_view(layer, (1, 2)) == (slice(0, 8), slice(8, 32), slice(16, 64))


# --- the model


def test_where_no_model_fits_none_is_chosen_and_the_reason_is_shown_until_the_user_chooses(
    make_dock: Any, qtbot: Any
) -> None:
    dock = make_dock()
    add_scan(dock.viewer, "foetus", modality="US")
    assert dock.model.list.currentRow() == -1
    assert "No model here was trained on US" in dock.warnings.text()
    assert "No model is chosen" in dock.model.facts.text()
    models: QListWidget = dock.model.list
    qtbot.waitUntil(models.isVisible)
    models.scrollToItem(models.item(2))
    spot = models.visualItemRect(models.item(2)).center()
    qtbot.mouseClick(models.viewport(), Qt.MouseButton.LeftButton, pos=spot)
    assert models.currentRow() == 2
    assert "No model here" not in dock.warnings.text()


# --- the sample of a pretraining


def test_the_sample_of_a_pretraining_is_never_chosen_and_the_scans_slices_stay(make_dock: Any, tmp_path: Path) -> None:
    dock = make_dock()
    viewer = dock.viewer
    export, teach = ExportDock(viewer), TeachDock(viewer)
    for other in (export, teach):
        viewer.window.add_dock_widget(other)
    scan = add_scan(viewer, "scan", modality="CT")
    steps = viewer.dims.range
    arrays = {name: np.ones((16, 12, 14), np.uint8) for name in ("target", "prediction")}
    np.savez(tmp_path / "sample.npz", spacing=np.full(3, 0.5), **{"fused volume": np.zeros((16, 12, 14))}, **arrays)
    samples = SampleLayers(viewer)
    for part in sample_layers(tmp_path / "sample.npz"):
        samples.show(part)
    assert len(viewer.layers) == 4
    assert dock.image.case is not None
    assert dock.image.case.layers == (scan,)
    assert [case.name for case in cases_of(viewer.layers)] == ["scan"]
    assert teach.add.image.case.layers == (scan,)
    assert teach.add.layer is None
    assert export.layer is None
    assert all(layer.metadata[KEY]["role"] == "sample" for layer in viewer.layers[1:])
    assert viewer.dims.range == steps
