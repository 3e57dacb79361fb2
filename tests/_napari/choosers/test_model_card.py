"""What the panel tells of a model's card."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("napari")
from napari_fmseg._napari.choosers.model_chooser import ModelChooser, facts_of
from napari_fmseg._napari.segment.dock import SegmentDock
from napari_fmseg.models.card import write_card
from napari_fmseg.models.half_precision import HalfPrecision
from napari_fmseg.models.registry import find_card


def test_the_card_tells_what_half_precision_changes_where_it_was_measured(
    make_napari_viewer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FMSEG_HOME", str(tmp_path))
    (tmp_path / "models").mkdir()
    card = find_card("fmsf-phantom-ct")
    measured = HalfPrecision(dict.fromkeys(card.labels.values(), 0.98), 4, card.sha256)
    write_card(dataclasses.replace(card, name="measured", half_precision=measured), tmp_path / "models" / "m.toml")
    viewer = make_napari_viewer(show=True)
    dock = SegmentDock(viewer)
    viewer.window.add_dock_widget(dock)
    told = {}
    for name in ("measured", "fmsf-phantom-ct"):
        dock.model.choose(name)
        told[name] = dock.model.rest.text()
    dock.session.close()
    assert "lowest Dice 0.9800" in told["measured"]
    assert "taken only when asked for" in told["measured"]
    assert "Half precision" not in told["fmsf-phantom-ct"]


def test_a_list_of_models_that_did_not_change_is_not_filled_anew_though_a_dice_is_nan(
    qtbot: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FMSEG_HOME", str(tmp_path))
    (tmp_path / "models").mkdir()
    card = find_card("fmsf-phantom-ct")
    scores = {"labels": {**card.scores["labels"], "tumour": math.nan}}
    write_card(dataclasses.replace(card, name="mine", scores=scores), tmp_path / "models" / "m.toml")
    chooser = ModelChooser()
    qtbot.addWidget(chooser)
    chooser.choose("mine")
    with qtbot.assertNotEmitted(chooser.chosen):
        chooser.refresh()
    assert chooser.card is not None
    assert chooser.card.name == "mine"


def test_a_dice_never_stands_without_the_number_of_patients_behind_it() -> None:
    card = find_card("hippocampus-mr")
    assert "0.8" in facts_of(card)
    assert "on 28 held-out cases" in facts_of(card)
    unstated = facts_of(dataclasses.replace(card, scored_on="", validation=None))
    assert "0.8" not in unstated
    assert "never measured" in unstated
