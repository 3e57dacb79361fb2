"""The ways of a volume and of a recipe, as docs/architecture.md lists them, are those that the program takes."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from napari_fmseg import phantom_ct, write_labels, write_volume
from napari_fmseg.pipelines import correction

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


def write_phantom(path: Path, seed: int) -> None:
    volume, truth = phantom_ct(seed, spacing=(8.0, 6.0, 6.0))
    write_volume(volume, path)
    write_labels(truth, path.with_name(path.name.replace(".nii", "_labels.nii")), source=volume)


TRACE = """
import inspect, json, sys, threading
from napari_fmseg.cli.main import main
entered = {}
def note(frame, event, arg):
    code = frame.f_code
    # Methods that Python calls by itself (hashing, comparing) do not count, nor does what happens at import.
    if code.co_flags & inspect.CO_OPTIMIZED and not code.co_name.startswith(("__", "<")):
        entered.setdefault(frame.f_globals.get("__name__", ""))
threading.settrace(note)
sys.settrace(note)
code = main(sys.argv[1:])
sys.settrace(None)
print(json.dumps([code, [name for name in entered if name.startswith("napari_fmseg.")]]))
"""


def modules_entered(folder: Path, *arguments: str) -> list[str]:
    """Return the package's modules in the order in which one of their functions was first called by a command."""
    done = subprocess.run([sys.executable, "-c", TRACE, *arguments], cwd=folder, capture_output=True, text=True)
    code, modules = json.loads(done.stdout.splitlines()[-1])
    assert code == 0, done.stderr
    return list(modules)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_phantom(tmp_path / "a.nii.gz", 1)
    write_phantom(tmp_path / "b.nii.gz", 2)
    (tmp_path / "recipe.toml").write_text(RECIPE, encoding="utf-8")
    return tmp_path


@pytest.mark.parametrize(
    ("name", "arguments", "result"),
    [
        (
            "volume",
            ["segment", "a.nii.gz", "--model", "fmsf-phantom-ct", "--output", "mask.nii.gz", "--device", "cpu"],
            "mask.nii.gz",
        ),
        ("recipe", ["train", "recipe.toml"], "run/small-ct.toml"),
    ],
)
def test_a_volume_and_a_recipe_go_the_way_that_the_page_shows(
    name: str, arguments: list[str], result: str, folder: Path
) -> None:
    steps = listed(name)
    assert 5 <= len(steps) <= 12
    assert len(set(steps)) == len(steps)
    assert [module for module in modules_entered(folder, *arguments) if module in steps] == steps
    assert (folder / result).exists()


def test_the_tools_of_correction_are_those_of_the_page_and_where_it_says() -> None:
    block = re.search(r"<!-- tools -->\n(.*?)<!-- end -->", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    assert block is not None
    rows = re.findall(r"^\| `(\w+)` \| `(\w+)` \|", block[1], re.MULTILINE)
    assert sorted(name for name, _ in rows) == sorted({*correction.__all__} - {"Edit"})
    for name, module in rows:
        assert getattr(correction, name).__module__ == f"napari_fmseg.pipelines.correction.{module}"
