"""The channels of a case: one function reads them for everything, and files that lie apart are never stacked."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

from napari_fmseg.core.errors import FmsegError, GeometryMismatch
from napari_fmseg.core.volume import Geometry, LabelMap, Volume
from napari_fmseg.datasets.case import read_case
from napari_fmseg.io import write_labels, write_volume
from napari_fmseg.io.channels import differ, read_channels
from napari_fmseg.training import Case
from napari_fmseg.training.projects import Project, add_case, init_project, open_project, scan_all

SHAPE, SPACING = (5, 6, 7), (2.0, 1.0, 1.5)


def written(path: Path, grid: Geometry, seed: int = 0) -> Path:
    data = np.random.default_rng(seed).normal(100, 20, grid.shape).astype(np.float32)
    return write_volume(Volume(data, grid), path)


GRID = Geometry.from_spacing(SHAPE, SPACING)
ODD = {
    "40 mm apart": Geometry.from_spacing(SHAPE, SPACING, origin=(0, 40, 0)),
    "other spacing": Geometry.from_spacing(SHAPE, (2.0, 1.0, 1.4)),
    "other shape": Geometry.from_spacing((5, 6, 8), SPACING),
    "turned": Geometry.from_spacing(SHAPE, SPACING, direction=[[1, 0, 0], [0, 0.8, -0.6], [0, 0.6, 0.8]]),
}
TOLD = {
    "40 mm apart": "up to 40 mm beside",
    "other spacing": r"voxels of 2 x 1 x 1\.4 mm instead of 2 x 1 x 1\.5 mm",
    "other shape": "5 x 6 x 8 voxels instead of 5 x 6 x 7",
    "turned": "mm beside",
}


def adding(files: list[Path], labels: Path, tmp_path: Path) -> Project:
    return add_case(init_project(tmp_path / "p", ("a",), channels=("T1", "T2")), "c", files, labels)


def training(files: list[Path], labels: Path, tmp_path: Path) -> object:
    return read_case(Case("c", tuple(files), labels), {1: "a"}, ("a",))


@pytest.mark.parametrize("use", [adding, training, lambda files, labels, tmp_path: read_channels(files)])
@pytest.mark.parametrize("kind", list(ODD))
def test_channels_that_do_not_lie_on_each_other_are_refused_alike_everywhere(
    kind: str, use: Callable[..., object], tmp_path: Path
) -> None:
    files = [written(tmp_path / "t1.nii.gz", GRID), written(tmp_path / "t2.nii.gz", ODD[kind], 1)]
    labels = write_labels(LabelMap(np.ones(SHAPE, np.uint8), GRID), tmp_path / "l.nii.gz")
    with pytest.raises(GeometryMismatch, match=rf"t2\.nii\.gz does not lie on t1\.nii\.gz.*{TOLD[kind]}"):
        use(files, labels, tmp_path)


def test_channels_on_one_grid_come_in_their_order(tmp_path: Path) -> None:
    """A header that was rounded to a hundredth of a millimetre is the same grid."""
    near = Geometry.from_spacing(SHAPE, SPACING, origin=(0.01, 0, 0))
    files = [written(tmp_path / "a.nrrd", GRID, 1), written(tmp_path / "b.nrrd", near, 2)]
    volume = read_channels(files)
    for channel, file in zip(volume.data, files, strict=True):
        assert np.array_equal(channel, sitk.GetArrayFromImage(sitk.ReadImage(str(file))))
    assert volume.geometry == GRID
    assert read_channels(files[:1]).data.ndim == 3


def test_channels_are_brought_together_where_that_is_asked_for(tmp_path: Path) -> None:
    files = [written(tmp_path / "ct.nrrd", GRID), written(tmp_path / "pet.nrrd", ODD["other spacing"])]
    volume = read_channels(files, ("CT", "PET"), resample=True)
    assert volume.data.shape == (2, *SHAPE)
    assert any("PET was resampled" in text for text in volume.meta["warnings"])


def test_how_two_grids_differ_is_said_in_millimetres() -> None:
    assert differ(GRID, GRID) == ""
    shifted = Geometry.from_spacing(SHAPE, SPACING, origin=(3, 4, 0))
    assert differ(GRID, shifted) == "up to 5 mm beside it"


def test_a_case_of_a_project_whose_channels_lie_apart_has_a_problem_and_takes_no_part(tmp_path: Path) -> None:
    """As another tool put them there."""
    project = init_project(tmp_path / "p", ("a",), channels=("T1", "T2"))
    written(project.folder / "imagesTr" / "c_0000.nii.gz", GRID)
    written(project.folder / "imagesTr" / "c_0001.nii.gz", ODD["40 mm apart"], 1)
    project = scan_all(open_project(project.folder))
    assert "40 mm beside" in project.record("c").problem
    with pytest.raises(FmsegError):
        read_channels(project.files["c"].images)
