"""A model of nnU-Net in a real window: dropped, run, exported and opened again."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("napari")
from qtpy.QtCore import Qt

from napari_fmseg.core.events import drain
from napari_fmseg.datasets.phantom import phantom_ct
from napari_fmseg.io import read_volume, write_volume
from napari_fmseg.models.weights import load_model
from napari_fmseg.pipelines import segment

PATIENCE_MS = 90_000


def test_a_dropped_nnunet_model_is_imported_run_exported_and_opened_again(
    drop: Any,
    make_docks: Any,
    qtbot: Any,
    nnunet_plans: Any,
    nnunet_results: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("FMSEG_HOME", str(tmp_path / "home"))
    scan, mask = tmp_path / "scan.nii.gz", tmp_path / "mask.nii.gz"
    write_volume(phantom_ct(7, spacing=(9.0, 9.0, 9.0), shape=(20, 26, 24))[0], scan)
    model = nnunet_results(tmp_path / "results", nnunet_plans((16, 16, 16), (9.0, 8.0, 9.0)))
    dock, export = make_docks()
    drop(dock, model)
    qtbot.waitUntil(lambda: dock.model.card is not None and dock.model.card.pipeline == "nnunet", timeout=PATIENCE_MS)
    assert dock.model.card.labels == {1: "liver", 2: "kidneys"}
    assert "Imported “Toy (3d_fullres, nnU-Net)”: liver, kidneys." in dock.remarks.text()
    drop(dock, scan)
    qtbot.waitUntil(lambda: dock.image.case is not None and not dock.drop.busy, timeout=PATIENCE_MS)
    dock.model.choose("toy-3d-fullres")
    dock.device.setCurrentText("cpu")
    assert dock.bar.run_button.isEnabled(), dock.bar.run_button.toolTip()
    qtbot.mouseClick(dock.bar.run_button, Qt.MouseButton.LeftButton)
    qtbot.waitUntil(lambda: not dock.session.running, timeout=PATIENCE_MS)
    assert dock.error.isHidden()
    final = dock.session.final
    assert any("windows" in layer.name for layer in dock.viewer.layers)
    export.labels.setCurrentText(final.name)
    export.place.line.setText(str(mask))
    qtbot.mouseClick(export.export_button, Qt.MouseButton.LeftButton)
    qtbot.waitUntil(mask.exists, timeout=PATIENCE_MS)
    qtbot.waitUntil(lambda: export.job is None or not export.job.running, timeout=PATIENCE_MS)
    expected = drain(segment(read_volume(scan), load_model("toy-3d-fullres", device="cpu")))
    np.testing.assert_array_equal(read_volume(mask).data, expected.data)
    before = len(dock.viewer.layers)
    drop(dock, mask)
    qtbot.waitUntil(lambda: len(dock.viewer.layers) > before, timeout=PATIENCE_MS)
    np.testing.assert_array_equal(dock.viewer.layers[-1].data, final.data)


def test_a_model_that_cannot_be_run_here_is_refused_in_the_dock(
    drop: Any,
    make_docks: Any,
    qtbot: Any,
    nnunet_plans: Any,
    nnunet_results: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("FMSEG_HOME", str(tmp_path / "home"))
    plans = nnunet_plans((16, 16, 16), (2.0, 1.5, 1.5)) | {"label_manager": "Mine"}
    dock, _ = make_docks()
    drop(dock, nnunet_results(tmp_path / "results", plans))
    qtbot.waitUntil(lambda: not dock.error.isHidden(), timeout=PATIENCE_MS)
    assert "label manager of this nnU-Net model is 'Mine'" in dock.error.text.text()
