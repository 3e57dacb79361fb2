"""From a file on the disk to a mask on the disk, in a real window, against the command line's mask."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk

pytest.importorskip("napari")
from qtpy.QtCore import Qt

from napari_fmseg._napari.segment.dock import SegmentDock
from napari_fmseg.cli.main import main
from napari_fmseg.datasets.phantom import phantom_ct
from napari_fmseg.io import write_volume

SHARED = Path(os.environ.get("FMSEG_SHARED", Path(__file__).parents[2].parent / "shared"))
PATIENCE_MS = 90_000
STAGES = {
    "fmsf-phantom-ct": ["consensus", "attention map", "attention", "edge", "labels"],
    "hippocampus-mr": ["consensus", "labels"],
}


def scan_of(kind: str, folder: Path) -> tuple[Path, str]:
    if kind == "phantom":
        path = folder / "scan.nii.gz"
        write_volume(phantom_ct(7, spacing=(9.0, 7.0, 7.0))[0], path)
        return path, "fmsf-phantom-ct"
    images = sorted((SHARED / "data" / "hippocampus" / "images").glob("*.nii.gz"))
    if not images:
        pytest.skip("the real volumes are not here (FMSEG_SHARED says where)")
    return images[0], "hippocampus-mr"


def open_by(way: str, dock: SegmentDock, path: Path, drop: Any) -> None:
    if way == "viewer.open":
        dock.viewer.open(str(path), plugin="napari-fmseg")
        return
    drop(dock, path)


def corners(layer: Any) -> tuple[np.ndarray, np.ndarray]:
    """Where a layer begins and ends, in mm: the outer corners of its first and last voxel."""
    low = np.subtract(layer.translate, np.divide(layer.scale, 2))
    return low, low + np.multiply(layer.data.shape, layer.scale)


@pytest.mark.parametrize(
    ("way", "kind"),
    [("viewer.open", "phantom"), ("a drop", "phantom"), pytest.param("a drop", "real MR", marks=pytest.mark.real)],
)
def test_a_file_becomes_the_mask_that_the_command_line_writes(
    make_docks: Any, drop: Any, qtbot: Any, tmp_path: Path, way: str, kind: str
) -> None:
    path, model = scan_of(kind, tmp_path)
    segment, export = make_docks()
    viewer = segment.viewer
    open_by(way, segment, path, drop)
    qtbot.waitUntil(lambda: segment.image.case is not None and not segment.drop.busy, timeout=PATIENCE_MS)
    [image] = viewer.layers
    segment.model.choose(model)
    segment.device.setCurrentText("cpu")
    qtbot.mouseClick(segment.bar.run_button, Qt.MouseButton.LeftButton)
    qtbot.waitUntil(lambda: segment.session.running, timeout=PATIENCE_MS)
    qtbot.waitUntil(lambda: not segment.session.running, timeout=PATIENCE_MS)
    assert segment.error.error is None

    names = [image.name, *(f"{image.name} · {model} · {stage}" for stage in STAGES[model])]
    assert [layer.name for layer in viewer.layers] == names
    assert [layer.visible for layer in viewer.layers] == [True, *[False] * (len(names) - 2), True]
    final = viewer.layers[-1]
    for layer in viewer.layers:
        assert [str(unit) for unit in layer.units] == ["millimeter"] * 3
        low, high = corners(layer)
        first, last = corners(image)
        if layer is final:
            np.testing.assert_allclose((low, high), (first, last), atol=1e-4)
        assert (low >= first - 1e-4).all()
        assert (high <= last + 1e-4).all()

    ours, theirs = tmp_path / "window.nii.gz", tmp_path / "command_line.nii.gz"
    export.labels.setCurrentText(final.name)
    export.place.line.setText(str(ours))
    qtbot.mouseClick(export.export_button, Qt.MouseButton.LeftButton)
    qtbot.waitUntil(ours.is_file, timeout=PATIENCE_MS)
    qtbot.waitUntil(lambda: export.job is None or not export.job.running, timeout=PATIENCE_MS)
    assert main(["segment", str(path), "--model", model, "--output", str(theirs), "--device", "cpu"]) == 0
    found, truth, scan = (sitk.ReadImage(str(file)) for file in (ours, theirs, path))
    np.testing.assert_array_equal(sitk.GetArrayFromImage(found), sitk.GetArrayFromImage(truth))
    assert sitk.GetArrayFromImage(found).any()
    for image in (found, truth):
        np.testing.assert_allclose(image.GetOrigin(), scan.GetOrigin(), atol=1e-4)
        np.testing.assert_allclose(image.GetDirection(), scan.GetDirection(), atol=1e-6)
        np.testing.assert_allclose(image.GetSpacing(), scan.GetSpacing(), rtol=1e-6)
