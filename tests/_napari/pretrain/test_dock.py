"""The Pretrain dock: a folder of scans, Start, curves and a sample as layers, Stop, Resume after a kill, a model."""

from __future__ import annotations

import os
import signal
import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

pytest.importorskip("napari")
from napari.components import ViewerModel
from qtpy.QtCore import QMimeData, QPointF, Qt, QUrl
from qtpy.QtGui import QDropEvent
from qtpy.QtWidgets import QAbstractButton, QAbstractSpinBox, QApplication, QComboBox, QLabel, QLineEdit

from napari_fmseg._napari.pretrain import plan as pretrain_plan
from napari_fmseg._napari.pretrain.dock import PretrainDock
from napari_fmseg._napari.pretrain.form import PATCHES
from napari_fmseg.datasets.phantom import phantom_ct
from napari_fmseg.io import write_volume
from napari_fmseg.models.registry import find_card
from napari_fmseg.training import load_pretrain_recipe

Make = Callable[..., PretrainDock]
PATIENCE_MS = 60_000
SMALL = {
    "kwargs": {"widths": [4, 4, 4, 4, 4]},
    "fusion": {"patch": [16, 20, 20], "classes": 2, "block": [[4, 4, 4], [8, 8, 8]]},
    "validate_samples": 2,
    "seed": 3,
}
HEAD = """
import json, os, pathlib, signal, sys, time
import numpy as np
out = pathlib.Path(sys.argv[2]).parent
def tell(event, **facts): print(json.dumps({"event": event, **facts}), flush=True)
def step(n): tell("StepDone", stage="pretrain", step=n, total=40, loss=1 / n, lr=0.1)
def epoch(n, dice): tell("EpochDone", stage="pretrain", epoch=n, total=4, loss=1 / n, seconds=1,
    metrics={"loss": 1.1 / n, "dice": dice, "waiting": 0.031, "samples_per_s": 1.25})
def pictures(n):
    arrays = {name: np.full((6, 8, 10), n, np.uint8) for name in ("fused volume", "target", "prediction")}
    np.savez(out / "pictures.npz", spacing=np.ones(3), **arrays)
    tell("Pictures", stage="pretrain", step=n, path=str(out / "pictures.npz"))
assert sys.argv[1] == "pretrain" and sys.argv[3:] == ["--events"], sys.argv
(out / "run.json").write_text("{}")
"""


@pytest.fixture(scope="module")
def scans(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three small phantoms in folders of their own, and a file that was cut short."""
    top = tmp_path_factory.mktemp("scans")
    for i in range(3):
        write_volume(phantom_ct(40 + i, spacing=(14.0, 12.0, 12.0))[0], top / f"patient-{i}" / "ct.nii.gz")
    (top / "patient-1" / "half-copied.nii.gz").write_bytes(b"\x1f\x8bnot a volume")
    return top


@pytest.fixture
def make_dock(make_napari_viewer: Any, qtbot: Any, tmp_path: Path) -> Iterator[Make]:
    docks: list[PretrainDock] = []

    def made(code: str = "", *, window: bool = False, **options: Any) -> PretrainDock:
        if code:
            (tmp_path / "standin.py").write_text(HEAD + textwrap.dedent(code))
            options["program"] = (sys.executable, str(tmp_path / "standin.py"))
        viewer = make_napari_viewer(show=True) if window else ViewerModel()
        dock = PretrainDock(viewer, **options)
        if window:
            viewer.window.add_dock_widget(dock, name="fmseg: Pretrain")
        docks.append(dock)
        return dock

    yield made
    for dock in docks:
        dock.close_down()
        if not hasattr(dock.viewer, "window"):
            dock.deleteLater()
    docks.clear()


def press(qtbot: Any, button: Any) -> None:
    assert button.isEnabled(), button.toolTip()
    qtbot.mouseClick(button, Qt.MouseButton.LeftButton)


def wait(qtbot: Any, dock: PretrainDock, *states: str) -> None:
    qtbot.waitUntil(lambda: dock.training.state in states, timeout=PATIENCE_MS)


def choose(dock: PretrainDock, scans: Path, steps: int = 6) -> None:
    dock.form.volumes.set_path(scans)
    dock.form.unit.setCurrentText("steps")
    dock.form.budget.setValue(steps)
    dock.form.device.setCurrentText("cpu")


def test_a_folder_and_start_give_curves_a_sample_the_odd_files_and_a_model(
    make_dock: Make, qtbot: Any, scans: Path
) -> None:
    dock = make_dock(more=SMALL, window=True)
    choose(dock, scans)
    out = dock.form.out.path
    assert out is not None
    press(qtbot, dock.start_button)
    assert dock.training.state == "preparing"
    wait(qtbot, dock, "done", "failed")
    assert dock.error.error is None
    qtbot.waitUntil(lambda: len(dock.viewer.layers) == 3, timeout=60_000)
    names = [layer.name for layer in dock.viewer.layers]
    assert names == ["sample · fused volume", "sample · target", "sample · prediction"]
    assert {layer.data.shape for layer in dock.viewer.layers} == {(16, 20, 20)}
    steps, losses = dock.plots.loss.values("training")
    assert steps[-1] == 6
    assert np.isfinite(losses).all()
    assert dock.plots.loss.values("held out")[0] == dock.plots.dice.values("held-out Dice")[0]
    assert "3 scans" in dock.plots.facts.text()
    assert "waiting for data" in dock.plots.facts.text()
    assert dock.left_out.more.button.text().endswith("1 file could not be read")
    assert "half-copied.nii.gz" in dock.left_out.details.text()
    assert dock.text.text() == "Done: step 6 of 6."
    card = find_card(out / "fmunet-pretrained.toml")
    assert card.weights_path.exists()
    assert "6 of 6 steps" in card.trained_on
    assert dock.outcome.path == out / "fmunet-pretrained.toml"
    assert dock.form.out.path != out  # the next run gets a place of its own
    with qtbot.waitSignal(dock.ready) as signal_:
        press(qtbot, dock.outcome.use_button)
    assert signal_.args == [out / "fmunet-pretrained.toml"]
    assert QApplication.clipboard().text() == str(out / "fmunet-pretrained.toml")


SLOW = """
    def stop(*_):
        sys.exit(130)
    signal.signal(signal.SIGTERM, stop)
    tell("Warned", text="b.nii.gz is left out: it is damaged.", code="file-left-out")
    step(7 if (out / "mark").exists() else 1)
    epoch(1, 0.25)
    pictures(1)
    (out / "mark").touch()
    time.sleep(60)
"""


def test_stop_and_resume(make_dock: Make, qtbot: Any, scans: Path) -> None:
    dock = make_dock(SLOW)
    choose(dock, scans)
    assert not dock.stop_button.isEnabled()
    assert not dock.resume_button.isEnabled()
    press(qtbot, dock.start_button)
    wait(qtbot, dock, "training")
    assert not dock.form.isEnabled()
    assert "going on" in dock.start_button.toolTip()
    qtbot.waitUntil(lambda: len(dock.viewer.layers) == 3, timeout=60_000)
    press(qtbot, dock.stop_button)
    assert dock.text.text().startswith("Stopping")
    wait(qtbot, dock, "stopped")
    assert dock.text.text() == "Stopped: step 1 of 40."
    assert "resume it" in dock.start_button.toolTip()
    press(qtbot, dock.resume_button)
    qtbot.waitUntil(lambda: dock.plots.loss.values("training")[0] == [1, 7], timeout=60_000)
    assert len(dock.left_out.texts) == 1  # told twice, shown once
    press(qtbot, dock.stop_button)
    wait(qtbot, dock, "stopped")
    dock.form.budget.setValue(9)  # another plan is another run
    assert dock.start_button.isEnabled()
    assert not dock.resume_button.isEnabled()


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="there is no kill -9 here")
def test_a_killed_process_is_failed_with_resume(make_dock: Make, qtbot: Any, scans: Path) -> None:
    dock = make_dock(SLOW)
    choose(dock, scans)
    press(qtbot, dock.start_button)
    wait(qtbot, dock, "training")
    qtbot.waitUntil(lambda: len(dock.viewer.layers) == 3, timeout=60_000)  # so far there is something to resume
    pid = dock.training.pid
    assert pid is not None
    os.kill(pid, signal.SIGKILL)
    wait(qtbot, dock, "failed")
    assert "resume it" in dock.error.text.text()
    assert "press Resume" in dock.text.text()
    press(qtbot, dock.resume_button)
    assert dock.error.isHidden()
    qtbot.waitUntil(lambda: dock.plots.loss.values("training")[0] == [1, 7], timeout=60_000)


def test_a_run_of_an_earlier_day_can_be_resumed(make_dock: Make, qtbot: Any, scans: Path, tmp_path: Path) -> None:
    plan = pretrain_plan.Plan(scans, tmp_path / "run", "fmunet", steps=40)
    pretrain_plan.write(plan)
    (tmp_path / "run" / "run.json").write_text("{}")
    dock = make_dock(SLOW)
    choose(dock, scans)
    dock.form.out.set_path(tmp_path / "run")
    assert not dock.start_button.isEnabled()
    press(qtbot, dock.resume_button)
    wait(qtbot, dock, "training")


def test_closing_the_dock_ends_the_process(make_dock: Make, qtbot: Any, scans: Path) -> None:
    dock = make_dock(SLOW, window=True)
    choose(dock, scans)
    press(qtbot, dock.start_button)
    wait(qtbot, dock, "training")
    pid = dock.training.pid
    assert pid is not None
    dock.viewer.window.remove_dock_widget(dock)
    qtbot.waitUntil(lambda: not psutil.pid_exists(pid), timeout=60_000)


def test_what_the_command_tells_is_shown(make_dock: Make, qtbot: Any, scans: Path) -> None:
    dock = make_dock('print("fmseg: There is no volume. Choose another folder.", file=sys.stderr)\nsys.exit(1)')
    choose(dock, scans)
    press(qtbot, dock.start_button)
    wait(qtbot, dock, "failed")
    assert dock.error.text.text() == "There is no volume. Choose another folder."


def test_the_sample_is_refreshed_in_place_and_takes_nobodys_layer_away(
    make_dock: Make, qtbot: Any, scans: Path
) -> None:
    dock = make_dock("step(1)\npictures(1)\nwhile not (out / 'go').exists(): time.sleep(0.02)\nstep(2)\npictures(2)")
    mine = dock.viewer.add_labels(np.zeros((4, 5, 6), np.uint8), name="painted")
    choose(dock, scans)
    out = dock.form.out.path
    assert out is not None
    press(qtbot, dock.start_button)
    qtbot.waitUntil(lambda: len(dock.viewer.layers) == 4, timeout=60_000)
    assert dock.viewer.layers.selection.active is mine
    fused, target, prediction = dock.viewer.layers[1:]
    ends = [(layer.translate[2], layer.translate[2] + 10) for layer in (fused, target, prediction)]
    assert ends[0][1] < ends[1][0]  # side by side
    assert ends[1][1] < ends[2][0]
    assert {str(unit) for layer in dock.viewer.layers[1:] for unit in layer.units} == {"millimeter"}
    dock.viewer.layers.remove(target)
    (out / "go").touch()
    qtbot.waitUntil(lambda: prediction.data.max() == 2, timeout=60_000)
    assert fused.data.max() == 2
    assert list(dock.viewer.layers) == [mine, fused, prediction]  # what was removed stays away


def test_without_the_tick_there_is_no_sample(make_dock: Make, qtbot: Any, scans: Path) -> None:
    dock = make_dock("step(1)\npictures(1)\nstep(2)")
    choose(dock, scans)
    dock.samples.click()
    press(qtbot, dock.start_button)
    wait(qtbot, dock, "done")
    qtbot.wait(100)
    assert len(dock.viewer.layers) == 0


def test_what_is_missing_stands_in_the_tooltip_of_start(make_dock: Make, scans: Path, tmp_path: Path) -> None:
    dock = make_dock()
    assert "Choose a folder" in dock.start_button.toolTip()
    dock.form.volumes.set_path(tmp_path / "nothing")
    assert "There is no folder" in dock.start_button.toolTip()
    dock.form.volumes.set_path(scans)
    assert dock.start_button.isEnabled()
    dock.form.out.set_path("")
    assert "where to save" in dock.start_button.toolTip()


def test_a_place_that_cannot_be_written_is_told(make_dock: Make, qtbot: Any, scans: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    dock = make_dock()
    choose(dock, scans)
    dock.form.out.set_path(tmp_path / "file" / "run")
    press(qtbot, dock.start_button)
    assert "recipe.toml was not written" in dock.error.text.text()
    assert dock.training.state == "idle"


def test_a_folder_that_is_dropped_is_chosen(make_dock: Make, scans: Path) -> None:
    dock = make_dock()
    for dropped in (scans, scans / "patient-0" / "ct.nii.gz"):
        mime = QMimeData()
        mime.setUrls([QUrl.fromLocalFile(str(dropped))])
        actions, buttons = Qt.DropAction.CopyAction, Qt.MouseButton.LeftButton
        dock.dropEvent(QDropEvent(QPointF(5, 5), actions, mime, buttons, Qt.KeyboardModifier.NoModifier))
        assert dock.form.volumes.path == (scans if dropped.is_dir() else dropped.parent)


def test_the_recipe_is_what_was_chosen(make_dock: Make, scans: Path) -> None:
    dock = make_dock()
    dock.form.volumes.set_path(scans)
    dock.form.network.setCurrentIndex(dock.form.network.findData("pctnet"))
    dock.form.budget.setValue(45)
    dock.form.patch.setCurrentIndex(3)
    recipe = load_pretrain_recipe(pretrain_plan.write(dock.form.plan()))
    assert (recipe.network, recipe.minutes, recipe.volumes) == ("pctnet", 45.0, scans)
    assert recipe.fusion.patch == (64, 128, 128)
    assert recipe.fusion.block == ((8, 8, 8), (32, 32, 32))  # as published
    assert recipe.out.name == "pctnet-1"


def test_every_offered_size_has_something_mixed(tmp_path: Path) -> None:
    import torch

    from napari_fmseg.training.pretraining.volume_fusion import draw_block_map

    generator = torch.Generator().manual_seed(1)
    for _, patch in PATCHES:
        fusion = load_pretrain_recipe(
            pretrain_plan.write(pretrain_plan.Plan(tmp_path, tmp_path / "run", "fmunet", steps=4, patch=patch))
        ).fusion
        assert all(bool(draw_block_map(fusion.patch, fusion, generator).any()) for _ in range(20))


def test_every_offered_network_is_one_that_pretraining_takes() -> None:
    from napari_fmseg.nets import build

    small = {"fmunet": SMALL["kwargs"], "pctnet": {"widths": [4, 4, 4, 8, 16]}}
    nets = [build(name, in_channels=1, n_classes=5, **small.get(name, {})) for name in pretrain_plan.NETWORKS]
    assert {net.activation for net in nets} == {"softmax"}


def test_nothing_in_the_dock_is_cut_at_its_smallest_width(make_dock: Make, qtbot: Any, scans: Path) -> None:
    dock = make_dock(
        'print("fmseg: " + "There is no volume. " * 20, file=sys.stderr)\nstep(1)\nsys.exit(1)', window=True
    )
    choose(dock, scans)
    press(qtbot, dock.start_button)
    wait(qtbot, dock, "failed")
    dock.form.more.button.click()
    dock.setFixedWidth(dock.minimumWidth())
    qtbot.wait(300)
    inside = dock._column.widget()
    assert inside.width() <= dock._column.viewport().width()
    for label in dock.findChildren(QLabel):
        if label.isVisible() and label.wordWrap():
            assert label.height() >= label.heightForWidth(label.width()), label.text()
    for curves in (dock.plots.loss, dock.plots.dice):
        assert curves.legend.isHidden() or curves.plot.geometry().bottom() < curves.legend.geometry().top()


def test_everything_can_be_reached_by_keyboard_and_says_what_it_does(make_dock: Make) -> None:
    dock = make_dock()
    kinds = (QAbstractButton, QAbstractSpinBox, QComboBox)
    mute = [w for kind in kinds for w in dock.findChildren(kind) if not w.toolTip() and w.objectName() != "qt_spinbox"]
    assert [w for w in mute if not isinstance(w.parent(), (QAbstractSpinBox, QLineEdit))] == []
    keys = [w.text() for kind in (QAbstractButton, QLabel) for w in dock.findChildren(kind)]
    keys = [t[t.index("&") + 1].lower() for t in keys if "&" in t and "<" not in t]
    assert len(keys) == len(set(keys)), f"two parts answer to one key: {sorted(keys)}"
    assert not {"f", "v", "l", "p", "w", "h"} & set(keys), "a key of napari's own menus"
