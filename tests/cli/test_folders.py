"""`fmseg segment` on folders: what is done is left alone, what failed is listed and tried again, parts, stopping."""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest

from napari_fmseg.cli import main as cli_main
from napari_fmseg.core.volume import Geometry, Volume
from napari_fmseg.io import read_labels, read_volume, write_labels, write_volume

ROOT = Path(__file__).parents[2]


def run(*words: object) -> int:
    return cli_main.main([str(word) for word in words])


def write_case(path: Path, seed: int) -> Path:
    data = np.random.default_rng(seed).normal(100, 30, (20, 24, 22)).astype(np.int16)
    return write_volume(Volume(data, Geometry.from_spacing(data.shape, (2.5, 1.0, 1.2), (5, -7, 9))), path)


@pytest.fixture
def scans(tmp_path, monkeypatch, save_tiny_model):
    """A folder of three volumes, with a small model in the user's folder."""
    monkeypatch.setenv("FMSEG_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("FMSEG_DEBUG", "")
    save_tiny_model(tmp_path / "home" / "models")
    for n in range(3):
        write_case(tmp_path / "scans" / f"case{n}.nii.gz", n)
    return tmp_path / "scans"


def segment(scans: Path, *words: object) -> int:
    return run("segment", scans, "--model", "tiny", "--output", scans.parent / "out", "--device", "cpu", *words)


def times(scans: Path) -> dict[str, int]:
    """Return when each result was written."""
    return {path.name: path.stat().st_mtime_ns for path in (scans.parent / "out").glob("*_seg.nii.gz")}


def computed_anew(scans: Path, before: dict[str, int]) -> set[str]:
    return {name.removesuffix("_seg.nii.gz") for name, time in times(scans).items() if before.get(name) != time}


def test_what_is_done_is_not_computed_again_and_no_model_is_loaded(scans, capsys):
    assert segment(scans) == 0
    before = times(scans)
    (scans.parent / "home" / "models" / "tiny.safetensors").unlink()
    capsys.readouterr()
    assert segment(scans, "--resume") == 0
    assert computed_anew(scans, before) == set()
    assert "3 of 3 volumes are done already" in capsys.readouterr().err


def test_a_changed_image_is_computed_again_and_a_copied_one_is_not(scans):
    assert segment(scans) == 0
    before = times(scans)
    write_case(scans / "case1.nii.gz", 7)
    os.utime(scans / "case2.nii.gz", ns=(1, 1))  # as a copy has another time and the same content
    assert segment(scans, "--resume") == 0
    assert computed_anew(scans, before) == {"case1"}


def test_another_option_or_another_model_computes_all_anew(scans, save_tiny_model):
    assert segment(scans) == 0
    before = times(scans)
    assert segment(scans, "--resume", "--keep-largest") == 0
    assert computed_anew(scans, before) == {"case0", "case1", "case2"}
    before = times(scans)
    save_tiny_model(scans.parent / "home" / "models", settings={"consensus_grid": (32, 32, 64)})
    assert segment(scans, "--resume", "--keep-largest") == 0
    assert computed_anew(scans, before) == {"case0", "case1", "case2"}


def test_a_volume_whose_result_or_manifest_is_gone_is_computed_again(scans):
    assert segment(scans) == 0
    before = times(scans)
    (scans.parent / "out" / "case0_seg.nii.gz").unlink()
    (scans.parent / "out" / "case1_seg.nii.gz.json").unlink()
    assert segment(scans, "--resume") == 0
    assert computed_anew(scans, before) == {"case0", "case1"}


def test_a_mask_that_was_corrected_by_hand_is_not_replaced(scans):
    assert segment(scans) == 0
    mask = scans.parent / "out" / "case0_seg.nii.gz"
    labels = read_labels(mask)
    labels.data[:3] = 2
    write_labels(labels, mask)
    assert segment(scans, "--resume") == 0
    assert (read_labels(mask).data[:3] == 2).all()


def test_results_within_the_folder_are_no_volumes(scans, capsys):
    words = ("segment", scans, "--model", "tiny", "--output", scans / "masks", "--stages-dir", scans / "stages",
             "--device", "cpu")  # fmt: skip
    assert run(*words) == 0
    capsys.readouterr()
    assert run(*words, "--resume") == 0
    assert "3 of 3 volumes are done already" in capsys.readouterr().err
    assert len(list((scans / "masks").glob("*.nii.gz"))) == 3


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_what_failed_is_listed_with_cause_and_remedy_and_is_tried_again(scans, capsys):
    whole = (scans / "case1.nii.gz").read_bytes()
    (scans / "case1.nii.gz").write_bytes(whole[:200])
    assert segment(scans) == 1
    table = scans.parent / "out" / "failed.csv"
    (row,) = rows_of(table)
    assert list(row) == ["case", "error", "cause", "fix"]
    assert (row["case"], row["error"]) == ("case1.nii.gz", "UnreadableVolume")
    assert "cut short" in row["cause"]
    assert "export it again" in row["fix"]
    before = times(scans)
    assert segment(scans, "--retry") == 1
    assert computed_anew(scans, before) == set()
    (scans / "case1.nii.gz").write_bytes(whole)
    capsys.readouterr()
    assert segment(scans, "--retry") == 0
    assert computed_anew(scans, before) == {"case1"}
    assert "1 volumes that failed are tried again" in capsys.readouterr().err
    assert not table.exists()
    assert segment(scans, "--retry") == 0
    assert "No volume has failed before" in capsys.readouterr().err


def test_a_table_of_failures_that_is_none_is_refused(scans, capsys):
    (scans.parent / "out").mkdir()
    (scans.parent / "out" / "failed.csv").write_text("something else\n1\n")
    assert segment(scans, "--retry") == 1
    assert "no table of failed volumes" in capsys.readouterr().err


def test_all_parts_together_are_the_folder(scans, capsys):
    (scans / "case2.nii.gz").write_bytes(b"\x1f\x8b rubbish")
    assert segment(scans, "--part", "1/2") == 1
    assert "part 1 of 2: 2 of 3" in capsys.readouterr().err
    assert set(times(scans)) == {"case0_seg.nii.gz"}
    assert segment(scans, "--part", "2/2") == 0
    assert "part 2 of 2: 1 of 3" in capsys.readouterr().err
    assert set(times(scans)) == {"case0_seg.nii.gz", "case1_seg.nii.gz"}
    assert [row["case"] for row in rows_of(scans.parent / "out" / "failed-1-of-2.csv")] == ["case2.nii.gz"]
    write_case(scans / "case2.nii.gz", 2)
    assert segment(scans, "--retry") == 0  # the tables of all parts
    assert len(times(scans)) == 3
    assert list((scans.parent / "out").glob("*.csv")) == []


@pytest.mark.parametrize("part", ["0/2", "3/2", "2", "a/b", "1/2/3", "-1/2"])
def test_a_part_that_makes_no_sense_is_refused(scans, part, capsys):
    assert segment(scans, f"--part={part}") == 2
    assert "such as 2/8" in capsys.readouterr().err


def test_events_for_a_program_are_json_lines_with_the_progress_of_the_whole(scans, capsys):
    (scans / "case1.nii.gz").write_bytes(b"\x1f\x8b rubbish")
    assert segment(scans, "--events") == 1
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    done = [line for line in lines if line["event"] == "Done"]
    assert [Path(line["output"]).name for line in done] == ["case0_seg.nii.gz", "case2_seg.nii.gz"]
    assert set(done[0]["volumes_ml"]) == {"liver", "tumour"}
    (failed,) = [line for line in lines if line["event"] == "Failed"]
    assert failed["error"] == "UnreadableVolume"
    assert failed["fix"]
    last = [line for line in lines if line["event"] == "FolderProgress"][-1]
    assert (last["done"], last["total"], last["failed"], last["seconds_left"]) == (3, 3, 1, 0)


def test_json_names_what_was_done_before(scans, capsys):
    assert segment(scans, "--part", "1/3") == 0
    capsys.readouterr()
    assert segment(scans, "--resume", "--json") == 0
    rows = json.loads(capsys.readouterr().out)["results"]
    assert [row.get("done_before", False) for row in rows] == [True, False, False]


def test_masks_of_a_folder_are_those_of_single_volumes(scans):
    assert segment(scans) == 0
    for n in range(3):
        single = scans.parent / f"single{n}.nii.gz"
        assert run("segment", scans / f"case{n}.nii.gz", "--model", "tiny", "--output", single, "--device", "cpu") == 0
        of_folder = read_labels(scans.parent / "out" / f"case{n}_seg.nii.gz")
        np.testing.assert_array_equal(of_folder.data, read_labels(single).data)
        assert of_folder.geometry.matches(read_volume(scans / f"case{n}.nii.gz").geometry)


STOPPED = """
import signal
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
import sys, threading
from pathlib import Path
from napari_fmseg.cli.main import main
from napari_fmseg.core.atomic_write import atomic_write
from napari_fmseg.pipelines.folders import steps

def segment(*_):
    with atomic_write(Path("out/half.nii.gz")) as file:
        file.write(b"half")
        print("at work", flush=True)
        lock = threading.Lock()
        lock.acquire()
        lock.acquire()  # for ever, as in native code
        yield

steps.segment = segment
sys.exit(main())
"""


@pytest.mark.skipif(os.name == "nt", reason="Windows has no SIGINT for another process")
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_run_that_is_deep_in_native_code_ends_at_once_and_leaves_no_half_file(scans, number, code):
    words = ["segment", "scans", "--model", "tiny", "--output", "out", "--device", "cpu"]
    with subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(STOPPED), *words], cwd=scans.parent, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, env={**os.environ, "PYTHONPATH": str(ROOT)},
    ) as process:  # fmt: skip
        assert process.stdout is not None
        assert process.stdout.readline() == "at work\n"
        assert any((scans.parent / "out").iterdir())
        process.send_signal(number)
        _, told = process.communicate(timeout=60)
    assert process.returncode == code, told
    assert list((scans.parent / "out").iterdir()) == []
    if number == signal.SIGINT:
        assert "--resume" in told
