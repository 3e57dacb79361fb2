"""Lesions and two channels on the command line: what is printed and written is what the library says."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch")
from napari_fmseg.cli.main import main
from napari_fmseg.core.volume import Geometry, LabelMap, Volume
from napari_fmseg.io import read_labels, read_volume, write_labels, write_volume
from napari_fmseg.models.card import Intensity, ModelCard, NetSpec
from napari_fmseg.models.weights import save_model
from napari_fmseg.nets import build


def run(*words: object) -> int:
    return main([str(word) for word in words])


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FMSEG_HOME", str(tmp_path / "home"))


@pytest.fixture
def scan(pet: Any, tmp_path: Path) -> tuple[Path, Path]:
    """A DICOM PET and a mask of two lesions on its grid."""
    folder = pet(tmp_path / "pet")
    grid = read_volume(folder).geometry
    data = np.zeros(grid.shape, np.uint8)
    data[0, 0, :2] = 1
    data[2, 4, 5] = 1
    write_labels(LabelMap(data, grid, {}, {1: "tumour"}), tmp_path / "mask.nii.gz")
    return folder, tmp_path / "mask.nii.gz"


def test_lesions_are_listed_in_suv_and_written(scan, tmp_path, capsys) -> None:
    folder, mask = scan
    assert run("lesions", folder, mask, "--csv", tmp_path / "l.csv") == 0
    text = capsys.readouterr().out
    suv = read_volume(folder).data
    assert "SUVmax" in text
    assert f"{suv[0, 0, :2].max():.3g}" in text
    rows = list(csv.DictReader((tmp_path / "l.csv").read_text().splitlines()))
    assert [row["voxels"] for row in rows] == ["2", "1", "3"]
    assert float(rows[1]["SUVmax"]) == pytest.approx(suv[2, 4, 5], rel=1e-4)
    assert run("lesions", folder, mask, "--json", "--min-ml", "0.1") == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["unit"], len(told["lesions"]), told["left_out"]) == ("SUV", 1, 1)


def test_what_has_no_suv_says_so_and_a_demand_for_it_ends_with_every_missing_tag(pet, tmp_path, capsys) -> None:
    folder = pet(tmp_path / "pet", lambda i, s, p: [delattr(s, "PatientWeight"), delattr(p, "RadionuclideTotalDose")])
    volume = read_volume(folder)
    mask = write_labels(LabelMap((volume.data > 9000).astype(np.uint8), volume.geometry), tmp_path / "m.nii.gz")
    assert run("lesions", folder, mask) == 0
    told = capsys.readouterr()
    assert "SUV" not in told.out
    assert "max (Bq/ml)" in told.out
    assert "PatientWeight (0010,1030), RadionuclideTotalDose (0018,1074)" in told.err
    assert run("lesions", folder, mask, "--suv", "required") == 1
    assert "PatientWeight (0010,1030), RadionuclideTotalDose (0018,1074)" in capsys.readouterr().err


def test_a_mask_on_the_grid_of_the_ct_is_read_on_that_of_the_pet(scan, tmp_path, capsys) -> None:
    folder, mask = scan
    labels = read_labels(mask)
    fine = labels.geometry.resize(tuple(2 * n for n in labels.geometry.shape))
    data = labels.data.repeat(2, 0).repeat(2, 1).repeat(2, 2)
    write_labels(LabelMap(data, fine, {}, {1: "tumour"}), tmp_path / "fine.nii.gz")
    tables = []
    for path in (mask, tmp_path / "fine.nii.gz"):
        assert run("lesions", folder, path) == 0
        tables.append(capsys.readouterr())
    assert tables[0].out == tables[1].out
    assert "another grid" in tables[1].err


def test_labels_that_lie_outside_of_the_image_are_reported_and_refused_where_all_do(scan, tmp_path, capsys) -> None:
    mask = scan[1]
    labels = read_labels(mask)
    for end in (2, 3):  # two of the three voxels lie in the first plane, the other in the last
        part = labels.geometry.crop((slice(1, end), slice(None), slice(None)))
        write_volume(Volume(np.ones(part.shape, np.float32), part), tmp_path / f"to-{end}.nii.gz")
    assert run("lesions", tmp_path / "to-3.nii.gz", mask) == 0
    told = capsys.readouterr()
    ml = labels.geometry.voxel_ml
    assert f"Warning: {2 * ml:.3g} of {3 * ml:.3g} ml of the labels lie outside of the image" in told.err
    assert "1 lesion " in told.out
    assert run("lesions", tmp_path / "to-2.nii.gz", mask) == 1
    assert "none of the labels lies in the image" in capsys.readouterr().err.lower()


def test_score_counts_lesions_on_wish(scan, tmp_path, capsys) -> None:
    _, mask = scan
    labels = read_labels(mask)
    some = labels.data.copy()
    some[2] = 0
    some[1, 2, 2] = 1
    write_labels(LabelMap(some, labels.geometry, {}, labels.names), tmp_path / "found.nii.gz")
    assert run("score", tmp_path / "found.nii.gz", mask, "--lesions", "--json") == 0
    row = json.loads(capsys.readouterr().out)["lesions"]["tumour"]
    assert (row["true_lesions"], row["found"], row["false_lesions"], row["sensitivity"]) == (2, 1, 1, 0.5)
    assert run("score", tmp_path / "found.nii.gz", mask, "--lesions") == 0
    assert "SENSITIVITY" in capsys.readouterr().out
    assert run("score", tmp_path / "found.nii.gz", mask) == 0
    assert "SENSITIVITY" not in capsys.readouterr().out


class Two:
    """A model of two channels, and images for it."""

    def __init__(self, folder: Path) -> None:
        spec = NetSpec("unet3d", {"in_channels": 2, "n_classes": 2})
        card = ModelCard(
            name="two", title="Two", pipeline="single", nets={"net": spec}, labels={1: "lesion"},
            channels=("CT", "PET"),
            intensity=Intensity("window", 0, 1), settings={"window": (16, 16, 16), "overlap": 0.0},
        )  # fmt: skip
        save_model(card, {"net": build("unet3d", in_channels=2, n_classes=2)}, folder)
        self.card = folder / "two.toml"
        rng = np.random.default_rng(0)
        self.ct = Volume(rng.random((16, 16, 16), np.float32), Geometry.from_spacing((16,) * 3, (2, 2, 2)))
        self.pet = Volume(rng.random((8, 8, 8), np.float32), self.ct.geometry.resize((8, 8, 8)))


def test_two_images_are_the_channels_of_one_volume_for_a_model_of_two(tmp_path, capsys) -> None:
    two = Two(tmp_path)
    write_volume(two.ct, tmp_path / "in" / "ct.nii.gz")
    write_volume(two.pet, tmp_path / "in" / "pet.nii.gz")
    images = [tmp_path / "in" / f"{name}.nii.gz" for name in ("ct", "pet")]
    assert run("segment", *images, "--model", two.card, "--output", tmp_path / "out.nii.gz") == 0
    assert "PET was resampled from voxels of 4 x 4 x 4 mm to 2 x 2 x 2 mm" in capsys.readouterr().err
    assert read_labels(tmp_path / "out.nii.gz").geometry.matches(two.ct.geometry)
    assert run("segment", images[0], "--model", two.card, "--output", tmp_path / "one.nii.gz") == 1
    assert "2 channel(s)" in capsys.readouterr().err


def test_numbered_files_in_a_folder_are_channels_and_two_volumes_of_two_channels_stay_two(tmp_path, capsys) -> None:
    two = Two(tmp_path)
    for case in "ab":
        for number in range(2):
            write_volume(two.ct, tmp_path / "in" / f"{case}_{number:04d}.nii.gz")
    assert run("segment", tmp_path / "in", "--model", two.card, "--output", tmp_path / "out") == 0
    assert sorted(p.name for p in (tmp_path / "out").glob("*.gz")) == ["a_seg.nii.gz", "b_seg.nii.gz"]
    both = Volume(np.stack([two.ct.data, two.ct.data]), two.ct.geometry)
    images = [write_volume(both, tmp_path / f"{name}.nii.gz") for name in ("c_0006", "c_0007")]
    assert run("segment", *images, "--model", two.card, "--output", tmp_path / "out2") == 0
    assert sorted(p.name for p in (tmp_path / "out2").glob("*.gz")) == ["c_0006_seg.nii.gz", "c_0007_seg.nii.gz"]
