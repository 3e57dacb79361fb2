"""Public data sets in their owners' folders become nnU-Net's raw layout: linked, named, split, and with a report."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk

from napari_fmseg.cli.main import main
from napari_fmseg.core.errors import FmsegError, UnknownModel
from napari_fmseg.datasets.case import read_case
from napari_fmseg.datasets.nnunet_raw import cases_of
from napari_fmseg.datasets.public import Prepared, find_public, list_public, prepare_public
from napari_fmseg.datasets.public.layout import read_public

Miniature = Callable[..., list[Path]]
NAMES = [entry.name for entry in list_public()]


def prepared(name: str, source: Path, out: Path) -> Prepared:
    work = prepare_public(find_public(name), source, out)
    while True:
        try:
            next(work)
        except StopIteration as end:
            return end.value


@pytest.mark.parametrize("name", NAMES)
def test_every_layout_becomes_a_data_set_whose_cases_can_be_read(
    name: str, public_miniature: Miniature, tmp_path: Path
) -> None:
    files = public_miniature(name, tmp_path / "downloaded")
    before = {path: path.read_bytes() for path in (tmp_path / "downloaded").rglob("*.nii*")}
    done = prepared(name, tmp_path / "downloaded", tmp_path / "raw")
    assert len(done.training) + len(done.validation) == len(files)
    assert done.training
    assert done.validation
    names, training, held = cases_of(tmp_path / "raw")
    assert sorted(case.name for case in training) == sorted(done.training)
    assert sorted(case.name for case in held) == sorted(done.validation)
    entry = find_public(name)
    assert names == dict(entry.labels)
    volume, truth = read_case(training[0], names, list(names.values()))
    assert len(volume.channels) == len(entry.channels)
    assert set(np.unique(truth.data)) == {0, *entry.labels}
    assert {path: path.read_bytes() for path in before} == before, "what was downloaded is not changed"
    assert all(path.is_symlink() for path in (tmp_path / "raw" / "imagesTr").iterdir())
    assert done.linked + done.written == len(files) * (len(entry.channels) + 1)
    assert f"{len(files)} were found" in done.missing[0], "the whole set has more"


def test_dataset_json_is_as_nnunet_wants_it(public_miniature: Miniature, tmp_path: Path) -> None:
    public_miniature("brats18", tmp_path / "downloaded")
    prepared("brats18", tmp_path / "downloaded", tmp_path / "raw")
    table = json.loads((tmp_path / "raw" / "dataset.json").read_text(encoding="utf-8"))
    assert table["channel_names"] == {"0": "T1", "1": "T2", "2": "T1ce", "3": "FLAIR"}
    assert table["labels"] == {"background": 0, "necrotic_core": 1, "edema": 2, "enhancing_tumour": 3}
    assert (table["numTraining"], table["file_ending"]) == (5, ".nii.gz")
    images = sorted(path.name for path in (tmp_path / "raw" / "imagesTr").iterdir())
    assert images[:4] == [f"HGG_Brats18_2013_10_1_000{i}.nii.gz" for i in range(4)]
    found = np.asanyarray(nib.load(tmp_path / "raw" / "labelsTr" / "HGG_Brats18_2013_10_1.nii.gz").dataobj)
    given = next((tmp_path / "downloaded").rglob("Brats18_2013_10_1_seg.nii.gz"))
    expected = np.asanyarray(nib.load(given).dataobj)
    np.testing.assert_array_equal(found, np.where(expected == 4, 3, expected))


def test_lits_is_split_as_published_and_its_tumours_join_the_liver(public_miniature: Miniature, tmp_path: Path) -> None:
    files = public_miniature("lits", tmp_path / "downloaded")
    done = prepared("lits-liver", tmp_path / "downloaded", tmp_path / "raw")
    assert done.training == ("lits_0", "lits_2", "lits_10")
    assert done.validation == ("lits_101",)
    assert done.written == 4
    assert any("2 to 1" in text for text in done.remarks)
    found = np.asanyarray(nib.load(tmp_path / "raw" / "labelsTr" / "lits_0.nii").dataobj)
    np.testing.assert_array_equal(found, np.asanyarray(nib.load(files[0]).dataobj) > 0)


def test_studies_of_one_patient_stay_together_and_are_named_without_dates(
    public_miniature: Miniature, tmp_path: Path
) -> None:
    public_miniature("autopet", tmp_path / "downloaded")
    done = prepared("autopet", tmp_path / "downloaded", tmp_path / "raw")
    assert done.validation == ("PETCT_027f7fb6c3_1", "PETCT_027f7fb6c3_2"), "the fifth patient"
    assert "PETCT_0011f3deaf_2" in done.training
    assert not any("200" in name for name in (*done.training, *done.validation))


def test_labels_on_another_grid_are_brought_to_the_image(public_miniature: Miniature, tmp_path: Path) -> None:
    files = public_miniature("hecktor22", tmp_path / "downloaded")
    coarse = sitk.ReadImage(str(files[0]))
    fine = sitk.Image([2 * n for n in coarse.GetSize()], sitk.sitkUInt8)
    fine.SetSpacing([s / 2 for s in coarse.GetSpacing()])
    fine.SetOrigin([-s / 4 for s in coarse.GetSpacing()])  # the same edges, half the voxels
    sitk.WriteImage(sitk.Resample(coarse, fine, sitk.Transform(), sitk.sitkNearestNeighbor), str(files[0]))
    done = prepared("hecktor22", tmp_path / "downloaded", tmp_path / "raw")
    assert done.written == 1
    assert any("labels of 1 case(s) lie on another grid" in text for text in done.remarks)
    found = sitk.ReadImage(str(tmp_path / "raw" / "labelsTr" / "CHUM-001.nii.gz"))
    np.testing.assert_array_equal(sitk.GetArrayFromImage(found), sitk.GetArrayFromImage(coarse))


def test_labels_that_state_another_place_get_that_of_the_image(public_miniature: Miniature, tmp_path: Path) -> None:
    files = public_miniature("lits", tmp_path / "downloaded")
    moved = sitk.ReadImage(str(files[1]))
    moved.SetOrigin((50.0, 0.0, 0.0))
    sitk.WriteImage(moved, str(files[1]))
    done = prepared("lits", tmp_path / "downloaded", tmp_path / "raw")
    assert any("1 case(s) the labels state another place than the image" in text for text in done.remarks)
    assert "lits_2" in next(text for text in done.remarks if "another place" in text)
    names, training, _ = cases_of(tmp_path / "raw")
    case = next(case for case in training if case.name == "lits_2")
    _, truth = read_case(case, names, list(names.values()))
    np.testing.assert_array_equal(truth.data, sitk.GetArrayFromImage(moved))


def test_what_is_missing_is_said_and_the_rest_is_used(public_miniature: Miniature, tmp_path: Path) -> None:
    files = public_miniature("brats18", tmp_path / "downloaded")
    next((tmp_path / "downloaded").rglob("Brats18_2013_10_1_flair.nii.gz")).unlink()
    files[1].write_bytes(b"")
    smaller = sitk.ReadImage(str(files[2]))[:-1, :, :]
    sitk.WriteImage(smaller, str(files[2]))
    done = prepared("brats18", tmp_path / "downloaded", tmp_path / "raw")
    said = "\n".join(done.missing)
    assert "has 285 labelled cases; 5 were found" in said
    assert "1 case(s) have no FLAIR: HGG_Brats18_2013_10_1. They were left out." in said
    assert "HGG_Brats18_CBICA_AAB_1 was left out: Brats18_CBICA_AAB_1_seg.nii.gz is empty; its download failed" in said
    assert "LGG_Brats18_2013_0_1 was left out: its labels have" in said
    assert len(done.training) + len(done.validation) == 2


def test_a_folder_that_holds_something_else_is_refused_with_what_was_expected(tmp_path: Path) -> None:
    (tmp_path / "downloaded").mkdir()
    (tmp_path / "downloaded" / "img0001.nii.gz").write_bytes(b"x")
    with pytest.raises(FmsegError, match=r"1 of CT \(img\{case\}\.nii\.gz\); 0 of labels.*Unpack everything"):
        prepared("btcv", tmp_path / "downloaded", tmp_path / "raw")
    assert not (tmp_path / "raw").exists()
    with pytest.raises(FmsegError, match="is no folder"):
        prepared("btcv", tmp_path / "nowhere", tmp_path / "raw")


def test_an_existing_folder_is_not_written_into(public_miniature: Miniature, tmp_path: Path) -> None:
    public_miniature("btcv", tmp_path / "downloaded")
    (tmp_path / "raw").mkdir()
    (tmp_path / "raw" / "mine.txt").write_text("mine")
    with pytest.raises(FmsegError, match="there already and not empty"):
        prepared("btcv", tmp_path / "downloaded", tmp_path / "raw")


def test_without_links_files_are_copied_and_it_is_said(
    public_miniature: Miniature, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any) -> None:
        raise OSError("no links here")

    public_miniature("btcv", tmp_path / "downloaded")
    monkeypatch.setattr(os, "symlink", refuse)
    monkeypatch.setattr(os, "link", refuse)
    done = prepared("btcv", tmp_path / "downloaded", tmp_path / "raw")
    assert done.linked == 0
    assert "This file system has no links: 10 file(s) were copied." in done.remarks
    assert cases_of(tmp_path / "raw")[1]


def test_the_command_lists_prepares_and_reports(public_miniature: Miniature, tmp_path: Path, capsys: Any) -> None:
    assert main(["datasets", "list"]) == 0
    out = capsys.readouterr().out
    assert all(name in out for name in NAMES)
    public_miniature("flare21", tmp_path / "downloaded")
    assert main(["datasets", "prepare", "flare21", str(tmp_path / "downloaded"), str(tmp_path / "raw")]) == 0
    said = capsys.readouterr()
    assert "4 training and 1 validation cases of 361; 10 files linked, 0 label files written." in said.out
    assert "Missing: FLARE 2021" in said.err
    assert main(["datasets", "prepare", "flare21", str(tmp_path / "downloaded"), str(tmp_path / "raw")]) == 1
    assert main(["datasets", "prepare", "nothing", str(tmp_path), str(tmp_path / "other")]) == 1
    assert "Choose one of: autopet" in capsys.readouterr().err


def test_an_entry_with_gaps_in_its_labels_is_refused(tmp_path: Path) -> None:
    shipped = Path(__file__).parents[3] / "resources" / "datasets" / "hvsmr.toml"
    path = tmp_path / "entry.toml"
    path.write_text(
        shipped.read_text(encoding="utf-8").replace('2 = "blood_pool"', '4 = "blood_pool"'), encoding="utf-8"
    )
    with pytest.raises(UnknownModel, match="labels are numbered 1, 2, 3"):
        read_public(path)
