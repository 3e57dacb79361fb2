"""A coarse-to-fine model needs nothing of its own in the window: its stages and the memory limit are simply there."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("napari")

from napari_fmseg._napari.segment.options import Choices
from napari_fmseg.models.card import ModelCard, NetSpec, write_card


@pytest.fixture
def make_choices(make_napari_viewer: Any, qtbot: Any) -> Callable[[], Choices]:
    def made() -> Choices:
        choices = Choices(make_napari_viewer())
        qtbot.addWidget(choices)
        return choices

    return made


def test_the_stages_of_a_coarse_to_fine_model_and_the_limit_are_offered(
    make_choices: Callable[[], Choices], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FMSEG_HOME", str(tmp_path))
    (tmp_path / "models").mkdir()
    card = ModelCard("two-steps", "Two steps", "coarse_fine", {"coarse": NetSpec("baseunet"),
                     "fine": NetSpec("efficientsegnet")}, {1: "liver"}, weights="none")  # fmt: skip
    write_card(card, tmp_path / "models" / "two-steps.toml")
    choices = make_choices()
    choices.model.choose("two-steps")
    assert choices.stages == ("coarse", "fine")
    choices.until.setCurrentIndex(choices.until.findData("coarse"))
    assert choices.stages == ("coarse",)
    choices.options.set_values({"max_memory_gb": 4.0})
    assert choices.options.values()["max_memory_gb"] == 4.0
