"""Numbers are what was typed, with a comma or a point, on a computer of any language."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("pytestqt")
from qtpy.QtCore import QLocale, Qt
from qtpy.QtWidgets import QAbstractSpinBox, QApplication, QDoubleSpinBox, QSpinBox, QWidget

from napari_fmseg._napari.common.number_boxes import CountBox, NumberBox
from napari_fmseg._napari.common.options_form import OptionsForm


@pytest.fixture(params=["de_DE", "en_US", "fr_FR", "de_CH", "ar_EG"])
def language(request: pytest.FixtureRequest) -> Iterator[str]:
    """A computer of another language."""
    before = QLocale()
    QLocale.setDefault(QLocale(request.param))
    yield request.param
    QLocale.setDefault(before)


def type_into(qtbot: Any, box: QAbstractSpinBox, text: str) -> None:
    box.setFocus()
    box.selectAll()
    qtbot.keyClicks(box.lineEdit(), text)
    qtbot.keyClick(box.lineEdit(), Qt.Key.Key_Return)


@pytest.mark.parametrize("text", ["2.5", "2,5"])
def test_two_and_a_half_is_that_everywhere(qtbot: Any, language: str, text: str) -> None:
    box = NumberBox()
    box.setRange(0.1, 10_000)
    box.setDecimals(1)
    box.setPrefix("about ")
    box.setSuffix(" minutes")
    qtbot.addWidget(box)
    box.show()
    type_into(qtbot, box, text)
    assert box.value() == 2.5
    assert box.text() == "about 2.5 minutes"
    QApplication.clipboard().setText(text.replace("2", "7"))
    box.lineEdit().selectAll()
    box.lineEdit().paste()
    box.interpretText()
    assert box.value() == 7.5
    type_into(qtbot, box, "1,234.5")  # one of the two signs too many: the second is not taken
    assert box.value() < 2


@pytest.mark.parametrize(("text", "number"), [("2.5", 3), ("2,4", 2), ("40", 40), ("1.", 1), ("9999,9", 100)])
def test_a_whole_number_is_rounded_and_not_read_without_its_point(
    qtbot: Any, language: str, text: str, number: int
) -> None:
    box = CountBox()
    box.setRange(1, 100)
    box.setSuffix(" minutes")
    qtbot.addWidget(box)
    box.show()
    type_into(qtbot, box, text)
    assert box.value() == number
    assert box.text() == f"{number} minutes"


@dataclass(frozen=True)
class Options:
    """Some.

    Parameters
    ----------
    share
        A number.
    seed
        A whole one.
    on
        Neither.
    """

    share: float = 0.0625
    seed: int = 3
    on: bool = True


def test_the_forms_have_such_fields_and_keep_their_defaults(qtbot: Any, language: str) -> None:
    form = OptionsForm(Options)
    qtbot.addWidget(form)
    form.show()
    assert form.values() == {"share": 0.0625, "seed": 3, "on": True}
    box = form.findChild(NumberBox)
    with qtbot.waitSignal(form.changed):
        type_into(qtbot, box, "0,25")
    form.set_values({"seed": 12345})
    assert form.values() == {"share": 0.25, "seed": 12345, "on": True}


def test_no_dock_has_a_field_of_qts_own(qtbot: Any, make_napari_viewer: Any, tmp_path: Path) -> None:
    pytest.importorskip("napari._qt")
    from napari_fmseg._napari.export.dock import ExportDock
    from napari_fmseg._napari.pretrain.dock import PretrainDock
    from napari_fmseg._napari.segment.dock import SegmentDock
    from napari_fmseg._napari.teach.dock import TeachDock

    viewer = make_napari_viewer()
    docks: list[QWidget] = []
    for kind in (SegmentDock, TeachDock, ExportDock, PretrainDock):
        docks.append(kind(viewer))
        viewer.window.add_dock_widget(docks[-1])
    boxes = [box for dock in docks for box in (*dock.findChildren(QDoubleSpinBox), *dock.findChildren(QSpinBox))]
    assert len(boxes) > 10
    assert [box for box in boxes if not isinstance(box, NumberBox | CountBox)] == []


def test_the_minutes_of_a_training_are_what_was_typed(qtbot: Any, language: str) -> None:
    from napari_fmseg._napari.teach.train_panel import TrainPanel

    panel = TrainPanel()
    qtbot.addWidget(panel)
    panel.show()
    for text in ("2.5", "3,5"):
        type_into(qtbot, panel.minutes, text)
        assert panel.choices()[1].minutes == float(text.replace(",", "."))
