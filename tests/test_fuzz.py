"""The project's own fuzzing: 300 of its inputs, and that it sees what it is there to see."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture
def inputs(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))
    import fuzz_inputs

    return fuzz_inputs


def test_hundreds_of_hostile_inputs_are_read_or_refused_within_bounds_and_leave_nothing():
    words = [sys.executable, str(ROOT / "scripts" / "fuzz.py"), "--count", "300", "--workers", "2"]
    done = subprocess.run(words, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stdout + done.stderr[-2000:]
    assert "300 inputs" in done.stdout
    assert ", 0 wrong" in done.stdout


def test_a_number_gives_the_same_input_each_time_and_another_number_another_one(inputs, tmp_path):
    inputs.make_seeds(tmp_path / "seeds")
    made = []
    for place, number in (("a", 7), ("b", 7), ("c", 7 + len(list((tmp_path / "seeds").iterdir())))):
        (tmp_path / place).mkdir()
        what, path = inputs.make_input(number, tmp_path / "seeds", tmp_path / place)
        files = sorted(file for file in (tmp_path / place).rglob("*") if file.is_file())
        made.append((what, path.relative_to(tmp_path / place), [file.read_bytes() for file in files]))
    assert made[0] == made[1]
    assert made[0] != made[2]


def test_every_seed_is_sound(inputs, tmp_path):
    from napari_fmseg.io import read_labels, read_volume

    inputs.make_seeds(tmp_path)
    for seed in sorted(tmp_path.iterdir()):
        if seed.name in ("project", "card", "recipe"):
            continue
        paths = sorted(seed.iterdir())
        if seed.name.startswith("dicom") and len(paths) > 1:
            paths = [seed]
        for path in paths if seed.name.startswith("zip") else paths[:1]:
            assert (read_labels if "seg" in seed.name else read_volume)(path).data.size > 1, path
