"""A table with a row per case: Dice and surface Dice of every label, seconds and memory of every part."""

from __future__ import annotations

import csv
import json
import math
from pathlib import Path

import numpy as np
import pytest

from napari_fmseg.cli.main import main
from napari_fmseg.core.errors import FmsegError, UnwritableVolume
from napari_fmseg.core.volume import Geometry, LabelMap, Volume
from napari_fmseg.evaluation.case_table import CaseScores, pairs_in, score_pair, write_cases
from napari_fmseg.io import write_labels, write_volume
from napari_fmseg.models.card import Intensity, ModelCard, NetSpec
from napari_fmseg.models.weights import save_model
from napari_fmseg.nets import build

GEOMETRY = Geometry.from_spacing((12, 20, 20), (2.5, 1, 1))
NAMES = {1: "cube", 2: "slab"}


def cubes(shift: int = 0) -> LabelMap:
    labels = np.zeros(GEOMETRY.shape, np.uint8)
    labels[2:8, 4:12, 4 + shift : 12 + shift] = 1
    return LabelMap(labels, GEOMETRY, {}, NAMES)


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_a_folder_of_results_becomes_a_row_per_case(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for folder in ("results", "truth"):
        (tmp_path / folder).mkdir()
    for name, shift in (("anna", 0), ("berta", 2)):
        write_labels(cubes(shift), tmp_path / "results" / f"{name}_seg.nii.gz")
        write_labels(cubes(), tmp_path / "truth" / f"{name}.nii.gz")
    manifest = {"seconds": {"reading": 0.5, "coarse": 1.25}}
    (tmp_path / "results" / "berta_seg.nii.gz.json").write_text(json.dumps(manifest))
    words = ["score", str(tmp_path / "results"), str(tmp_path / "truth"), "--csv", str(tmp_path / "cases.csv")]
    assert main([*words, "--tolerance-mm", "1"]) == 0
    assert "2 cases" in capsys.readouterr().out
    anna, berta = rows_of(tmp_path / "cases.csv")
    assert (anna["case"], berta["case"]) == ("anna", "berta")
    assert float(anna["cube_dice"]) == float(anna["cube_nsd_1mm"]) == float(anna["mean_nsd_1mm"]) == 1
    assert float(berta["cube_dice"]) == pytest.approx(2 * 6 / (8 + 8), abs=1e-4)
    assert 0 < float(berta["cube_nsd_1mm"]) < 1
    assert float(berta["mean_dice"]) == float(berta["cube_dice"])
    assert float(anna["slice_mm"]) == 2.5
    assert (anna["reading_s"], anna["total_s"]) == ("", "")
    assert [float(berta[name]) for name in ("reading_s", "coarse_s", "total_s")] == [0.5, 1.25, 1.75]


def test_a_label_in_neither_map_is_blank_and_not_in_the_mean() -> None:
    nothing = {"dice": math.nan, "nsd": math.nan}
    row = CaseScores("a", {"cube": {"dice": 0.5, "nsd": 0.25}, "slab": nothing}).row(2.0)
    assert (row["mean_dice"], row["mean_nsd_2mm"]) == (0.5, 0.25)
    assert "peak_mb" not in row


def test_memory_is_told_for_every_part_and_as_a_peak(tmp_path: Path) -> None:
    parts = {
        "coarse": {"seconds": 1.0, "peak_mb": 300.0, "gpu_mb": 20.0},
        "fine": {"seconds": 3.0, "peak_mb": 500.0, "gpu_mb": 90.0},
    }
    cases = [CaseScores("a", parts=parts), CaseScores("b", problem="empty")]
    (row,) = rows_of(write_cases(cases, tmp_path / "deep" / "t.csv", 1.0))
    expected = {"coarse_peak_mb": 300, "fine_peak_mb": 500, "peak_mb": 500, "coarse_gpu_mb": 20, "gpu_mb": 90}
    assert {name: float(row[name]) for name in expected} == expected
    assert float(row["total_s"]) == 4
    assert row["mean_dice"] == ""


def test_what_cannot_be_paired_or_written_is_told(tmp_path: Path) -> None:
    path = write_labels(cubes(), tmp_path / "a.nii.gz")
    with pytest.raises(FmsegError, match="both be files"):
        pairs_in(path, tmp_path)
    for folder, name in (("results", "b"), ("truth", "c")):
        (tmp_path / folder).mkdir()
        write_labels(cubes(), tmp_path / folder / f"{name}.nii.gz")
    with pytest.raises(FmsegError, match="_seg"):
        pairs_in(tmp_path / "results", tmp_path / "truth")
    assert score_pair("a", cubes(), cubes(), path).parts == {}  # nobody measured it
    with pytest.raises(UnwritableVolume, match=r"t\.csv"):
        write_cases([], path / "t.csv", 1.0)


def test_files_of_one_name_in_several_folders_are_paired_by_their_folders(tmp_path: Path) -> None:
    for person, shift in (("anna", 0), ("berta", 2)):
        write_labels(cubes(shift), tmp_path / "results" / person / "ct_seg.nii.gz")
        write_labels(cubes(), tmp_path / "truth" / person / "ct.nrrd")
    results, truth = tmp_path / "results", tmp_path / "truth"
    assert pairs_in(results, truth) == [
        (f"{person}/ct", results / person / "ct_seg.nii.gz", truth / person / "ct.nrrd") for person in ("anna", "berta")
    ]


def test_a_name_that_stands_for_several_results_is_refused(tmp_path: Path) -> None:
    for folder in ("results", "results/older"):
        write_labels(cubes(), tmp_path / folder / "anna.nii.gz")
        write_labels(cubes(), tmp_path / folder / "anna.nrrd")
    write_labels(cubes(), tmp_path / "truth" / "anna.nii.gz")
    with pytest.raises(FmsegError, match=r"anna\.nii\.gz and .*anna\.nrrd have one name"):
        pairs_in(tmp_path / "results", tmp_path / "truth")


def test_results_beside_their_images_are_taken_and_equal_names_need_no_ending(tmp_path: Path) -> None:
    for name in ("anna.nii.gz", "anna_seg.nii.gz", "berta_seg.nii.gz"):
        write_labels(cubes(), tmp_path / "results" / name)
    for name in ("anna.nii.gz", "berta_seg.nii.gz"):
        write_labels(cubes(), tmp_path / "truth" / name)
    found = [(name, mine.name) for name, mine, _ in pairs_in(tmp_path / "results", tmp_path / "truth")]
    assert found == [("anna", "anna_seg.nii.gz"), ("berta_seg", "berta_seg.nii.gz")]


def test_a_result_that_cannot_be_compared_does_not_hold_up_the_others(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("anna", "berta", "carla"):
        write_labels(cubes(), tmp_path / "results" / f"{name}.nii.gz")
        write_labels(cubes(), tmp_path / "truth" / f"{name}.nii.gz")
    (tmp_path / "truth" / "berta.nii.gz").write_bytes(b"nothing")
    words = ["score", str(tmp_path / "results"), str(tmp_path / "truth"), "--csv", str(tmp_path / "cases.csv")]
    assert main(words) == 1
    told = capsys.readouterr()
    assert "berta: berta.nii.gz" in told.err
    assert "2 cases" in told.out
    assert [row["case"] for row in rows_of(tmp_path / "cases.csv")] == ["anna", "carla"]
    assert main([*words, "--json"]) == 1
    table = json.loads(capsys.readouterr().out)
    assert [row["case"] for row in table["cases"]] == ["anna", "carla"]
    assert list(table["failed"]) == ["berta"]


def test_lesions_are_not_compared_in_folders(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["score", str(tmp_path), str(tmp_path)]
    assert main([*words, "--csv", str(tmp_path / "cases.csv"), "--lesions"]) == 2
    assert "--lesions" in capsys.readouterr().err
    assert main([*words, "--min-ml", "1"]) == 2
    assert "--min-ml" in capsys.readouterr().err


@pytest.fixture
def model(tmp_path: Path) -> Path:
    kwargs = {"in_channels": 1, "n_classes": 3, "channels": [2, 2, 2, 2, 2]}
    card = ModelCard(
        name="tiny",
        title="Tiny",
        pipeline="single",
        nets={"net": NetSpec("baseunet", kwargs)},
        labels=NAMES,
        settings={"window": [16, 24, 24]},
        intensity=Intensity("window", 0, 1),
    )
    save_model(card, {"net": build("baseunet", **kwargs)}, tmp_path / "model")
    return tmp_path / "model" / "tiny.toml"


def test_a_model_is_measured_on_the_validation_cases_of_a_dataset(tmp_path: Path, model: Path) -> None:
    data = tmp_path / "data"
    for part in ("imagesTr", "labelsTr"):
        (data / part).mkdir(parents=True)
    rng = np.random.default_rng(0)
    for i in range(5):
        volume = Volume(rng.random(GEOMETRY.shape, np.float32), GEOMETRY)
        write_volume(volume, data / "imagesTr" / f"c{i}_0000.nii.gz")
        write_labels(cubes(), data / "labelsTr" / f"c{i}.nii.gz")
    (data / "dataset.json").write_text(json.dumps({"labels": {"background": 0, "cube": 1, "slab": 2}}))
    words = ["evaluate", str(data), "--model", str(model), "--output", str(tmp_path / "out"), "--device", "cpu"]
    assert main([*words, "--keep-labels", "--tolerance-mm", "1"]) == 0
    (row,) = rows_of(tmp_path / "out" / "cases.csv")
    assert row["case"] == "c4"
    for part in ("reading", "net", "labels", "writing"):
        assert float(row[f"{part}_s"]) >= 0
        assert float(row[f"{part}_peak_mb"]) > 10
    assert 0 <= float(row["cube_dice"]) <= 1
    assert float(row["slice_mm"]) == 2.5
    named = [float(row[name]) for name in row if name.endswith("_s") and name != "total_s"]
    assert float(row["total_s"]) == pytest.approx(sum(named), abs=1e-3)
    before = (tmp_path / "out" / "cases.csv").read_bytes()
    assert main([*words, "--keep-labels", "--tolerance-mm", "1"]) == 0  # nothing is run again
    assert (tmp_path / "out" / "cases.csv").read_bytes() == before
