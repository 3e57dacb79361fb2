"""The ways of a volume and of a recipe, as docs/architecture.md lists them, are those that the program takes."""

from __future__ import annotations

import inspect
import re
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

from napari_fmseg import phantom_ct, write_labels, write_volume
from napari_fmseg.cli.main import main

PAGE = Path(__file__).parents[1] / "docs" / "architecture.md"
RECIPE = """
name = "small-ct"
title = "Liver of the phantom"
modality = "CT"
out = "run"
labels = ["liver"]
device = "cpu"
seed = 1

[[training]]
case = "a"
image = "a.nii.gz"
label = "a_labels.nii.gz"

[[validation]]
case = "b"
image = "b.nii.gz"
label = "b_labels.nii.gz"

[settings]
consensus_grid = [32, 32, 32]

[[stages]]
stage = "consensus"
network = "snet"
kwargs = { width = 4 }
steps = 2
steps_per_epoch = 2
"""


def listed(name: str) -> list[str]:
    """Return the modules of one of the two lists of the page, in order."""
    block = re.search(rf"<!-- path: {name} -->\n(.*?)<!-- end -->", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    assert block is not None
    return re.findall(r"^\d+\. `([\w.]+)`", block[1], re.MULTILINE)


def modules_entered(run: Callable[[], Any]) -> list[str]:
    """Return the package's modules in the order in which one of their functions was first called.

    Methods that Python calls by itself (hashing, comparing) do not count, nor does what happens at import.
    """
    entered: dict[str, None] = {}

    def note(frame: FrameType, event: str, arg: object) -> None:
        module, code = frame.f_globals.get("__name__", ""), frame.f_code
        if code.co_flags & inspect.CO_OPTIMIZED and not code.co_name.startswith(("__", "<")):
            entered.setdefault(module)

    before = sys.gettrace()
    threading.settrace(note)
    sys.settrace(note)
    try:
        run()
    finally:
        sys.settrace(before)
        threading.settrace(before)
    return [module for module in entered if module.startswith("napari_fmseg.")]


def write_phantom(path: Path, seed: int) -> None:
    volume, truth = phantom_ct(seed, spacing=(8.0, 6.0, 6.0))
    write_volume(volume, path)
    write_labels(truth, path.with_name(path.name.replace(".nii", "_labels.nii")), source=volume)


@pytest.fixture
def entered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, list[str]]:
    monkeypatch.chdir(tmp_path)
    write_phantom(tmp_path / "a.nii.gz", 1)
    write_phantom(tmp_path / "b.nii.gz", 2)
    (tmp_path / "recipe.toml").write_text(RECIPE, encoding="utf-8")
    words = ["segment", "a.nii.gz", "--model", "fmsf-phantom-ct", "--output", "mask.nii.gz", "--device", "cpu"]
    found = {"volume": modules_entered(lambda: main(words))}
    assert (tmp_path / "mask.nii.gz").exists()
    found["recipe"] = modules_entered(lambda: main(["train", "recipe.toml"]))
    assert (tmp_path / "run" / "small-ct.toml").exists()
    return found


def test_a_volume_and_a_recipe_go_the_ways_that_the_page_shows(entered: dict[str, list[str]]) -> None:
    for name, modules in entered.items():
        steps = listed(name)
        assert 5 <= len(steps) <= 12
        assert len(set(steps)) == len(steps)
        assert [module for module in modules if module in steps] == steps
