"""Real volumes read as nibabel and SimpleITK read them; odd files too, or they are refused for the right reason."""

import itertools
import os
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk

from napari_fmseg.core.errors import UnreadableVolume
from napari_fmseg.core.volume import LabelMap, Volume
from napari_fmseg.io import find_volumes, list_series, read_labels, read_volume, write_labels

SHARED = Path(os.environ.get("FMSEG_SHARED", Path(__file__).parents[2].parent / "shared"))
DATA = SHARED / "data"
QUIRKS = DATA / "quirks"
pytestmark = [
    pytest.mark.real,
    pytest.mark.skipif(not DATA.is_dir(), reason="the real volumes are not here (FMSEG_SHARED says where)"),
]

SERIES = ["ct_dicom/images/ct_003", "prostate_dicom/images/px_0000/adc", "prostate_dicom/images/px_0000/bval",
          "prostate_dicom/images/px_0000/t2_tra", "brain_dicom/images/pgbm002_hippocrop",
          "brain_dicom/images/pgbm006_hippocrop", "quirks/oblique_dicom", "quirks/dicom_seg/ct"]  # fmt: skip

READ = {  # file or folder: shape, type, what is said about it
    "ct_gantry_tilt_shear.nii.gz": ((54, 422, 306), "f4", ""),
    "dicom_seg": ((3, 512, 512), "i2", ""),
    "dicom_seg/ct": ((3, 512, 512), "i2", ""),
    "dicom_seg/ct/01.dcm": ((3, 512, 512), "i2", ""),
    "dicom_seg/ct/02.dcm": ((3, 512, 512), "i2", ""),
    "dicom_seg/ct/03.dcm": ((3, 512, 512), "i2", ""),
    "dicom_seg/liver_seg.nrrd": ((3, 512, 512), "i2", ""),
    "enhanced_multiframe.dcm": ((6, 64, 64), "u2", ""),
    "hip_118_image_without_label.nii.gz": ((33, 52, 37), "u1", ""),
    "image.mha": ((37, 64, 64), "i2", ""),
    "mtr_minus_inf.nii.gz": ((5, 40, 40), "f4", "633 voxels that were NaN or infinite"),
    "nan_image.mha": ((64, 110, 78), "f4", "1,592 voxels that were NaN or infinite"),
    "nan_label.mha": ((64, 110, 78), "u2", ""),
    "oblique_dicom": ((3, 50, 100), "f4", ""),
    "oblique_dicom/0.dcm": ((3, 50, 100), "f4", ""),
    "oblique_dicom/1.dcm": ((3, 50, 100), "f4", ""),
    "oblique_dicom/2.dcm": ((3, 50, 100), "f4", ""),
    "pair.hdr": ((34, 41, 62), "u1", ""),
    "pair.img": ((34, 41, 62), "u1", ""),
    "pet_label_slope_0.9999.nii.gz": ((276, 144, 144), "f4", ""),
    "rtstruct": ((2, 512, 512), "i2", ""),
    "rtstruct/ct_1.dcm": ((2, 512, 512), "i2", ""),
    "rtstruct/ct_2.dcm": ((2, 512, 512), "i2", ""),
    "tiny_10mm_float64.nii.gz": ((32, 26, 19), "f8", ""),
    "two_slices.nii.gz": ((2, 45, 45), "i2", ""),
    "us4d_image.nii.gz": ((3, 56, 52, 56), "f4", ""),
    "us4d_label.nii.gz": ((3, 56, 52, 56), "f4", ""),
}
REFUSED = {
    "complex64.nii.gz": "complex numbers.*magnitude",
    "rgb.nii.gz": "RGB.*grey-value",
    "dicom_seg/liver_seg.dcm": r"segmentation \(DICOM SEG\).*Choose the folder",
    "rtstruct/rt.dcm": r"contours \(RTSTRUCT\).*Choose the folder",
}


def by_itk(path: Path) -> sitk.Image:
    if path.is_dir():
        return sitk.ReadImage(sitk.ImageSeriesReader.GetGDCMSeriesFileNames(str(path)))
    return sitk.ReadImage(str(path))


def assert_like_itk(volume: Volume, image: sitk.Image, atol: float) -> None:
    np.testing.assert_allclose(volume.data, sitk.GetArrayFromImage(image), rtol=1e-6, atol=1e-6)
    for corner in itertools.product(*[(0, n - 1) for n in volume.geometry.shape]):
        place = image.TransformIndexToPhysicalPoint(tuple(map(int, corner[::-1])))
        np.testing.assert_allclose(volume.geometry.place(corner)[::-1], place, rtol=0, atol=atol)


def few_of_each_folder(pattern: str) -> list[str]:
    """Return up to three files of each folder; of the folders with hundreds that is enough."""
    found: dict[Path, list[str]] = {}
    for path in sorted(DATA.rglob(pattern)) if DATA.is_dir() else []:
        if QUIRKS not in path.parents:
            found.setdefault(path.parent, []).append(str(path.relative_to(DATA)))
    return [name for names in found.values() for name in names[:3]]


@pytest.mark.parametrize("name", few_of_each_folder("*.nii.gz"))
def test_real_nifti_is_read_as_nibabel_reads_it(name: str, tmp_path: Path) -> None:
    path = DATA / name
    volume, image = read_volume(path), nib.load(path)
    lps = np.diag([-1.0, -1, 1, 1]) @ image.affine
    np.testing.assert_array_equal(volume.geometry.affine, lps[np.ix_([2, 1, 0, 3], [2, 1, 0, 3])])
    np.testing.assert_allclose(volume.data, np.asanyarray(image.dataobj).T, rtol=1e-6, atol=1e-6)
    if volume.data.ndim == 3:
        assert_like_itk(volume, sitk.ReadImage(str(path)), atol=2e-3)  # ITK makes the axes orthonormal again
    if "labels" in name:
        labels = read_labels(path)
        again = nib.load(write_labels(labels, tmp_path / "a.nii.gz", source=volume))
        np.testing.assert_array_equal(np.asanyarray(again.dataobj), np.rint(np.asanyarray(image.dataobj)))
        np.testing.assert_array_equal(again.affine, image.affine)
        for key in ("sform_code", "qform_code", "quatern_b", "quatern_c", "quatern_d", "xyzt_units"):
            assert again.header[key] == image.header[key]


@pytest.mark.parametrize("name", few_of_each_folder("*.nrrd"))
def test_real_nrrd_is_read_as_simpleitk_reads_it(name: str) -> None:
    assert_like_itk(read_volume(DATA / name), by_itk(DATA / name), atol=1e-6)


@pytest.mark.parametrize("name", SERIES)
@pytest.mark.parametrize("suffix", [".nii.gz", ".nrrd", ".mha"])
def test_real_series_are_read_as_simpleitk_reads_them_and_labels_open_on_them(
    name: str, suffix: str, tmp_path: Path
) -> None:
    volume, image = read_volume(DATA / name), by_itk(DATA / name)
    assert_like_itk(volume, image, atol=1e-5)
    labels = LabelMap((volume.data > volume.data.mean()).astype(np.uint8), volume.geometry, names={1: "bright"})

    written = by_itk(write_labels(labels, tmp_path / f"a{suffix}", source=volume))

    np.testing.assert_array_equal(sitk.GetArrayFromImage(written), labels.data)
    for corner in itertools.product(*[(0, n - 1) for n in image.GetSize()]):
        np.testing.assert_allclose(
            written.TransformIndexToPhysicalPoint(corner), image.TransformIndexToPhysicalPoint(corner), atol=1e-3
        )


def test_every_odd_file_has_its_line_here() -> None:
    files = {str(path.relative_to(QUIRKS)) for path in QUIRKS.rglob("*") if path.is_file()}
    assert files == {name for name in (*READ, *REFUSED) if (QUIRKS / name).is_file()}


@pytest.mark.parametrize("name", READ)
def test_odd_files_are_read(name: str) -> None:
    shape, kind, said = READ[name]
    volume = read_volume(QUIRKS / name)
    assert volume.data.shape == shape
    assert volume.data.dtype == np.dtype(kind)
    assert np.isfinite(volume.data).all()
    assert said in " ".join(volume.meta["repaired"])
    assert bool(said) == bool(volume.meta["repaired"])


@pytest.mark.parametrize("name", REFUSED)
def test_odd_files_are_refused_with_cause_and_fix(name: str) -> None:
    for read in (read_volume, read_labels)[: 1 if name.startswith("dicom_seg") else 2]:
        with pytest.raises(UnreadableVolume, match=REFUSED[name]):
            read(QUIRKS / name)


def test_a_tilted_ct_keeps_its_shear_where_simpleitk_drops_it() -> None:
    volume = read_volume(QUIRKS / "ct_gantry_tilt_shear.nii.gz")
    image = nib.load(QUIRKS / "ct_gantry_tilt_shear.nii.gz")
    assert volume.geometry.is_sheared
    last = np.array(volume.geometry.shape) - 1
    place = (np.diag([-1.0, -1, 1, 1]) @ image.affine @ [*last[::-1], 1])[2::-1]
    np.testing.assert_allclose(volume.geometry.place(last), place, atol=1e-9)


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("pet_label_slope_0.9999.nii.gz", {0, 1}),
        ("nan_label.mha", {0, 1, 2, 3, 4}),
        ("dicom_seg/liver_seg.nrrd", {0, 1}),
    ],
)
def test_odd_labels_are_rounded(name: str, values: set[int]) -> None:
    assert set(np.unique(read_labels(QUIRKS / name).data).tolist()) == values


def test_a_seg_of_another_program_is_read_as_its_twin_in_nrrd() -> None:
    labels, twin = read_labels(QUIRKS / "dicom_seg" / "liver_seg.dcm"), read_labels(QUIRKS / "dicom_seg/liver_seg.nrrd")
    assert labels.geometry.matches(twin.geometry)
    np.testing.assert_array_equal(labels.data, twin.data)
    assert labels.names == {1: "Liver"}


def test_labels_in_time_are_refused() -> None:
    with pytest.raises(UnreadableVolume, match=r"3 channels or time points.*3-D file"):
        read_labels(QUIRKS / "us4d_label.nii.gz")


def test_a_dicom_tree_lists_its_series_and_its_volumes() -> None:
    infos = list_series(DATA / "prostate_dicom")
    assert sorted((s.shape, s.n_files) for s in infos) == [((19, 128, 84), 19)] * 2 + [((19, 384, 384), 19)]
    with pytest.raises(UnreadableVolume, match="3 image series"):
        read_volume(DATA / "prostate_dicom")
    wanted = next(s for s in infos if s.description.startswith("t2"))
    assert read_volume(DATA / "prostate_dicom", series=wanted.uid).geometry.shape == wanted.shape
    found = [str(path.relative_to(DATA)) for path in find_volumes(DATA / "prostate_dicom" / "images")]
    assert found == [f"prostate_dicom/images/px_0000/{name}" for name in ("adc", "bval", "t2_tra")]
