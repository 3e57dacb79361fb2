"""Every benchmark still runs: the general ones at a tiny size, the others as far as their options."""

from __future__ import annotations

import json
import os
import runpy
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from napari_fmseg.core.hardware import CAPABILITY_VARIABLE
from napari_fmseg.datasets.phantom import phantom_ct
from napari_fmseg.io import write_volume

ROOT = Path(__file__).parents[1]
ENTRY = runpy.run_path(str(ROOT / "benchmarks" / "__main__.py"))

TINY = {
    "networks": ["--only", "edgenet", "--size", "16", "--small", "--rounds", "1"],
    "stages": ["--models", "fmsf-phantom-ct", "--rounds", "1"],
    "file_to_mask": ["--models", "fmsf-phantom-ct", "--shape", "40", "48", "48", "--rounds", "1"],
    "windows": ["--networks", "unet3d", "--window", "32", "--spacing-mm", "12", "--rounds", "1"],
    "training_step": ["--steps", "3", "--rounds", "1", "--cases", "1", "--spacing", "20"],
    "growth": ["--parts", "labels", "--shape", "24", "32", "32", "--classes", "3", "--grid", "16", "--rounds", "1"],
    "startup": ["--without-docks", "--rounds", "1"],
}


@pytest.fixture(autouse=True)
def _own_arguments(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", list(sys.argv))
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_volume(phantom_ct(1, spacing=(20.0, 20.0, 20.0))[0], tmp_path_factory.mktemp("image") / "ct.nii.gz")


def run(name: str, out: Path, *more: str) -> dict[str, Any]:
    assert ENTRY["main"]([name, *TINY[name], *more, "--out", str(out)]) == 0
    found: dict[str, Any] = json.loads(out.read_text(encoding="utf-8"))
    assert found["benchmark"] == name
    assert found["machine"]["processor"]
    assert found["machine"]["versions"]["torch"]
    return found


@pytest.mark.slow
def test_networks_are_compared_with_their_plain_form(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(CAPABILITY_VARIABLE, "avx2")  # the same forms on every processor
    forms = run("networks", tmp_path / "out.json")["networks"]["edgenet"]["forms"]
    assert set(forms) == {"plain float32", "engine float32"}
    assert forms["plain float32"]["times_less_processor_time"] == 1
    assert forms["engine float32"]["difference"] < 1e-4
    assert all(row["processor_seconds"]["least"] > 0 and row["peak_mb"] > 0 for row in forms.values())


@pytest.mark.slow
def test_stages_are_told_cold_and_warm(tmp_path: Path, image: Path) -> None:
    stages = run("stages", tmp_path / "out.json", "--image", str(image))["models"]["fmsf-phantom-ct"]
    assert {"reading", "consensus", "attention", "edge", "labels", "writing"} <= set(stages)
    assert all(set(states) == {"cold", "warm"} for states in stages.values())


@pytest.mark.slow
def test_the_parts_from_file_to_mask_add_up(tmp_path: Path) -> None:
    found = run("file_to_mask", tmp_path / "out.json")["models"]["fmsf-phantom-ct"]
    assert set(found["processor_seconds"]) == {"reading", "inputs", "networks", "labels", "writing"}
    spent = {part: seconds["median"] for part, seconds in found["processor_seconds"].items()}
    assert found["share_beside_networks"]["median"] == pytest.approx(
        1 - spent["networks"] / sum(spent.values()), abs=0.01
    )


@pytest.mark.slow
def test_a_step_of_training_has_its_parts(tmp_path: Path) -> None:
    found = run("training_step", tmp_path / "out.json")["training"]
    parts = {part: seconds["median"] for part, seconds in found["processor_seconds_per_step"].items()}
    assert all(parts[part] > 0 for part in ("sampling", "forward", "backward", "optimiser"))
    assert 0 < found["sampling_share"]["median"] < 1
    assert 0 < found["waiting_share"]["median"] < 1


@pytest.mark.slow
def test_what_a_graphics_card_is_wanted_for_runs_at_a_tiny_size_without_one(tmp_path: Path) -> None:
    variables = {**os.environ, "TINY": "1", "PYTHON": sys.executable}
    words = ["bash", str(ROOT / "benchmarks" / "gpu.sh"), "cpu", str(tmp_path)]
    done = subprocess.run(words, env=variables, stdout=subprocess.PIPE, text=True, check=False)
    assert done.returncode == 0, done.stdout
    assert {path.name for path in tmp_path.glob("*.json")} == {
        "networks.json", "file_to_mask.json", "training_step.json", "learning.json",
    }  # fmt: skip
    (dice,) = (run["dice"] for runs in json.loads((tmp_path / "learning.json").read_text())["runs"].values()
               for run in runs.values())  # fmt: skip
    assert set(dice) >= {"liver", "tumour"}


@pytest.mark.slow
def test_a_cell_of_growth_tells_time_and_memory(tmp_path: Path) -> None:
    (cell,) = run("growth", tmp_path / "out.json")["cells"]
    assert (cell["part"], cell["shape"], cell["classes"]) == ("labels", [24, 32, 32], 3)
    assert cell["peak_mb"] >= cell["base_mb"] > 0


@pytest.mark.slow
def test_starts_are_told_to_the_first_stage(tmp_path: Path, image: Path) -> None:
    starts = run("startup", tmp_path / "out.json", "--image", str(image))["starts"]
    assert set(starts) == {"fmseg --help", "fmseg segment --help", "fmseg segment, first stage"}
    assert all(row["processor_seconds"]["median"] > 0 for row in starts.values())


@pytest.mark.parametrize("name", ENTRY["BENCHMARKS"])
def test_a_benchmark_explains_itself(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    if name == "correct_times":
        pytest.importorskip("napari._qt")
    with pytest.raises(SystemExit) as stop:
        ENTRY["main"]([name, "--help"])
    assert stop.value.code == 0
    assert "usage:" in capsys.readouterr().out


def test_the_entry_lists_every_script_that_measures_and_refuses_another_name(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert ENTRY["main"]([]) == 0
    told = capsys.readouterr().out
    shared = {"__main__", "measuring", "budgeted"}
    scripts = {path.stem for path in (ROOT / "benchmarks").glob("*.py")} - shared
    assert scripts == set(ENTRY["BENCHMARKS"])
    assert all(name in told for name in scripts)
    assert ENTRY["main"](["no-such-benchmark"]) == 2


def test_the_page_and_its_picture_are_those_of_the_results() -> None:
    script = runpy.run_path(str(ROOT / "scripts" / "benchmarks_page.py"))
    assert script["PAGE"].read_text(encoding="utf-8") == script["page"]()
    assert script["PICTURE"].read_text(encoding="utf-8") == script["picture"]()
