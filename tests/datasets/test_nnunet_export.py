"""A project written for nnU-Net: its own names, its own fields, nothing else."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from napari_fmseg.cli.main import main
from napari_fmseg.core.errors import FmsegError
from napari_fmseg.core.volume import Geometry, LabelMap, Volume
from napari_fmseg.datasets.nnunet_export import export_for_nnunet
from napari_fmseg.io import write_labels, write_volume


@pytest.fixture
def project(tmp_path: Path) -> Path:
    folder = tmp_path / "project"
    grid = Geometry.from_spacing((4, 5, 6))
    for part in ("imagesTr", "labelsTr", "imagesTs"):
        (folder / part).mkdir(parents=True)
    for name in ("a b", "c"):
        for channel in range(2):
            write_volume(
                Volume(np.zeros((4, 5, 6), np.int16), grid), folder / "imagesTr" / f"{name}_000{channel}.nii.gz"
            )
        write_labels(LabelMap(np.zeros((4, 5, 6), np.uint8), grid), folder / "labelsTr" / f"{name}.nii.gz")
    for channel in range(2):
        write_volume(Volume(np.zeros((4, 5, 6), np.int16), grid), folder / "imagesTs" / f"d_000{channel}.nii.gz")
    table = {"channel_names": {"0": "CT", "1": "PET"}, "labels": {"background": 0, "liver": 1, "ignore": 2},
             "numTraining": 2, "file_ending": ".nii.gz", "name": "mine", "classes": {"c": ["liver"]}}  # fmt: skip
    (folder / "dataset.json").write_text(json.dumps(table))
    return folder


def test_a_project_becomes_a_dataset_of_nnunets_raw_layout(project: Path, tmp_path: Path) -> None:
    out = tmp_path / "Dataset123_Mine"
    assert main(["convert", str(project), "--to", "nnunet", "--output", str(out)]) == 0
    assert json.loads((out / "dataset.json").read_text()) == {
        "name": "Dataset123_Mine",
        "channel_names": {"0": "CT", "1": "PET"},
        "labels": {"background": 0, "liver": 1, "ignore": 2},
        "numTraining": 2,
        "file_ending": ".nii.gz",
    }
    files = sorted(p.relative_to(out).as_posix() for p in out.rglob("*") if p.is_file())
    assert files == [
        "dataset.json",
        *(f"imagesTr/{name}_000{channel}.nii.gz" for name in ("a_b", "c") for channel in range(2)),
        "labelsTr/a_b.nii.gz",
        "labelsTr/c.nii.gz",
    ]


def test_a_name_that_nnunet_does_not_read_is_refused(project: Path, tmp_path: Path) -> None:
    with pytest.raises(FmsegError, match="DatasetNNN_NAME"):
        export_for_nnunet(project, tmp_path / "mine")
    (tmp_path / "Dataset001_X").mkdir()
    with pytest.raises(FmsegError, match="there already"):
        export_for_nnunet(project, tmp_path / "Dataset001_X")


@pytest.mark.parametrize("labels", [{"background": 0, "liver": 2}, {"background": 0, "liver": 1, "ignore": 5}])
def test_numbers_with_a_gap_are_refused(labels: dict[str, int], project: Path, tmp_path: Path) -> None:
    table = json.loads((project / "dataset.json").read_text())
    (project / "dataset.json").write_text(json.dumps({**table, "labels": labels}))
    with pytest.raises(FmsegError, match="nnU-Net wants"):
        export_for_nnunet(project, tmp_path / "Dataset002_X")


def test_a_checkpoint_without_a_network_asks_which_it_is(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["convert", str(tmp_path / "a.pth"), "--output", str(tmp_path / "b")]) != 0
    assert "--network" in capsys.readouterr().err
