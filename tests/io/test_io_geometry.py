"""Every voxel keeps its place: through every format, in every orientation, and as SimpleITK and nibabel see it."""

from itertools import permutations, product
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from napari_fmseg.core.errors import GeometryMismatch
from napari_fmseg.core.volume import Geometry, LabelMap, Volume
from napari_fmseg.io import read_labels, read_volume, write_labels, write_volume

SHAPE = (3, 4, 5)
SPACING = (2.5, 0.75, 1.25)
ORIGIN = (-31.5, 12.25, 7.75)
VOXELS = np.arange(60, dtype=np.int16).reshape(SHAPE)
INDICES = np.indices(SHAPE).reshape(3, -1).T
ORIENTATIONS = [
    np.eye(3)[list(order)] * signs for order in permutations(range(3)) for signs in product((1, -1), repeat=3)
]
FORMATS = (".nii.gz", ".nrrd", ".mha")
LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])


def rotation(a: float, b: float, c: float) -> np.ndarray:
    (ca, sa), (cb, sb), (cc, sc) = ((np.cos(t), np.sin(t)) for t in (a, b, c))
    return (
        np.array([[1, 0, 0], [0, ca, -sa], [0, sa, ca]])
        @ np.array([[cb, 0, sb], [0, 1, 0], [-sb, 0, cb]])
        @ np.array([[cc, -sc, 0], [sc, cc, 0], [0, 0, 1]])
    )


TILTS = {"straight": np.eye(3), "oblique": rotation(0.3, -0.2, 0.15)}
SHEAR = np.array([[1, 0, 0], [0.25, 1, 0], [0.1, 0, 1]])


def places_by_itk(path: Path) -> dict[int, np.ndarray]:
    """Where SimpleITK sees each value, in LPS mm listed z, y, x."""
    image = sitk.ReadImage(str(path))
    return {
        image[x, y, z]: np.array(image.TransformIndexToPhysicalPoint((x, y, z)))[::-1]
        for z, y, x in np.ndindex(image.GetSize()[::-1])
    }


def places_by_nibabel(path: Path) -> dict[int, np.ndarray]:
    image = nib.load(path)
    values = np.asanyarray(image.dataobj)
    return {int(values[index]): (LPS_TO_RAS @ image.affine @ [*index, 1])[2::-1] for index in np.ndindex(values.shape)}


def assert_same_places(volume: Volume, places: dict[int, np.ndarray], atol: float) -> None:
    for index in INDICES:
        value = int(volume.data[tuple(index)])
        np.testing.assert_allclose(volume.geometry.place(index), places[value], atol=atol)


@pytest.mark.parametrize("suffix", FORMATS)
@pytest.mark.parametrize("tilt", TILTS)
@pytest.mark.parametrize("number", range(48))
def test_every_voxel_keeps_its_place(tmp_path: Path, number: int, tilt: str, suffix: str) -> None:
    geometry = Geometry.from_spacing(SHAPE, SPACING, ORIGIN, TILTS[tilt] @ ORIENTATIONS[number])
    path = write_labels(LabelMap(VOXELS, geometry), tmp_path / f"labels{suffix}")

    again = read_volume(path)

    np.testing.assert_allclose(again.geometry.affine, geometry.affine, rtol=0, atol=1e-6)
    np.testing.assert_array_equal(again.data, VOXELS)
    # SimpleITK keeps a NIfTI's place in single precision and makes its axes orthonormal again.
    assert_same_places(again, places_by_itk(path), atol=1e-5 if suffix == ".nii.gz" else 1e-6)
    if suffix == ".nii.gz":
        assert_same_places(again, places_by_nibabel(path), atol=1e-6)


@pytest.mark.parametrize("suffix", FORMATS)
@pytest.mark.parametrize("number", range(0, 48, 5))
def test_what_simpleitk_writes_is_read_in_its_place(tmp_path: Path, number: int, suffix: str) -> None:
    direction = TILTS["oblique"] @ ORIENTATIONS[number]
    image = sitk.GetImageFromArray(VOXELS)
    image.SetSpacing((0.5, 1.5, 4.0))
    image.SetOrigin((3.5, -20.25, 100.5))
    image.SetDirection(direction.ravel().tolist())
    path = tmp_path / f"image{suffix}"
    sitk.WriteImage(image, str(path))

    assert_same_places(read_volume(path), places_by_itk(path), atol=1e-5 if suffix == ".nii.gz" else 1e-9)


@pytest.mark.parametrize("codes", [(1, 0), (0, 1), (2, 1), (0, 0), (4, 3)])
@pytest.mark.parametrize("flipped", [False, True])
def test_sform_goes_before_qform_before_voxel_sizes_as_in_nibabel(tmp_path: Path, codes: tuple, flipped: bool) -> None:
    affine = np.diag([-1.5 if flipped else 1.5, 2.0, 3.0, 1.0])
    image = nib.Nifti1Image(VOXELS.T, affine)
    image.header["pixdim"][1:4] = (1.5, 2, 3)
    other = affine.copy()
    other[:3, 3] = (7, 8, 9)
    image.set_sform(affine, codes[0])
    image.set_qform(other, codes[1])
    nib.save(image, tmp_path / "a.nii")

    volume = read_volume(tmp_path / "a.nii")

    assert_same_places(volume, places_by_nibabel(tmp_path / "a.nii"), atol=1e-9)
    assert any("left and right may be swapped" in text for text in volume.meta["warnings"]) == (codes == (0, 0))


@pytest.mark.parametrize("suffix", [".nii.gz", ".nrrd", ".mha"])
def test_a_sheared_volume_keeps_its_shear(tmp_path: Path, suffix: str) -> None:
    geometry = Geometry.from_spacing(SHAPE, SPACING, ORIGIN, TILTS["oblique"] @ SHEAR)
    path = write_labels(LabelMap(VOXELS, geometry), tmp_path / f"a{suffix}")

    again = read_volume(path)

    assert again.geometry.is_sheared
    np.testing.assert_allclose(again.geometry.affine, geometry.affine, rtol=0, atol=1e-6)
    if suffix == ".nii.gz":
        assert_same_places(again, places_by_nibabel(path), atol=1e-6)
        with pytest.raises(RuntimeError, match="orthonormal"):  # better no place than a wrong one
            sitk.ReadImage(str(path))
    else:
        assert_same_places(again, places_by_itk(path), atol=1e-6)


@pytest.mark.parametrize("codes", [(1, 1), (2, 0), (0, 1), (4, 2)])
def test_labels_repeat_the_header_of_their_source_to_the_last_bit(tmp_path: Path, codes: tuple[int, int]) -> None:
    rng = np.random.default_rng(1)
    affine = np.eye(4)
    affine[:3, :3] = rotation(*rng.uniform(-1, 1, 3)) * (0.7, 0.8, 3.3)
    affine[:3, 3] = rng.uniform(-200, 200, 3)
    image = nib.Nifti1Image(VOXELS.T, affine)
    image.set_sform(affine, codes[0])
    image.set_qform(affine, codes[1])
    image.header.set_xyzt_units("mm", "sec")
    nib.save(image, tmp_path / "image.nii.gz")
    source = read_volume(tmp_path / "image.nii.gz")
    labels = LabelMap((VOXELS > 30).astype(np.uint8), source.geometry)

    path = write_labels(labels, tmp_path / "labels.nii.gz", source=source)

    before, after = nib.load(tmp_path / "image.nii.gz").header, nib.load(path).header
    for key in ("sform_code", "qform_code", "srow_x", "srow_y", "srow_z", "quatern_b", "quatern_c", "quatern_d",
                "qoffset_x", "qoffset_y", "qoffset_z", "xyzt_units"):  # fmt: skip
        np.testing.assert_array_equal(before[key], after[key], err_msg=key)
    np.testing.assert_array_equal(before["pixdim"][:4], after["pixdim"][:4])
    assert read_labels(path).geometry == source.geometry


def test_a_crop_is_not_written_with_the_header_of_the_whole(tmp_path: Path) -> None:
    write_volume(Volume(VOXELS, Geometry.from_spacing(SHAPE, SPACING, ORIGIN)), tmp_path / "a.nii")
    whole = read_volume(tmp_path / "a.nii")
    box = (slice(1, 3), slice(1, 3), slice(2, 5))
    crop = Volume(whole.data[box], whole.geometry.crop(box), whole.meta)

    again = read_volume(write_volume(crop, tmp_path / "crop.nii"))

    assert again.geometry == crop.geometry
    np.testing.assert_array_equal(again.data, crop.data)


def test_labels_off_the_grid_of_their_source_are_refused(tmp_path: Path) -> None:
    source = Volume(VOXELS, Geometry.from_spacing(SHAPE))
    labels = LabelMap(VOXELS, Geometry.from_spacing(SHAPE, origin=(0, 0, 1)))
    with pytest.raises(GeometryMismatch, match="Resample them"):
        write_labels(labels, tmp_path / "a.nii.gz", source=source)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("unit", ["meter", "micron"])
def test_lengths_in_other_units_become_millimetres(tmp_path: Path, unit: str) -> None:
    image = nib.Nifti1Image(VOXELS.T, np.diag([2.0, 2.0, 4.0, 1.0]))
    image.header.set_xyzt_units(unit)
    nib.save(image, tmp_path / "a.nii")

    volume = read_volume(tmp_path / "a.nii")

    np.testing.assert_allclose(volume.geometry.spacing[::-1], sitk.ReadImage(str(tmp_path / "a.nii")).GetSpacing())
    assert any("millimetres" in text for text in volume.meta["warnings"])
    again = write_labels(LabelMap(VOXELS, volume.geometry), tmp_path / "b.nii", source=volume)
    assert read_labels(again).geometry == volume.geometry


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    angles=st.tuples(*[st.floats(-3.1, 3.1)] * 3),
    spacing=st.tuples(*[st.floats(0.05, 12)] * 3),
    origin=st.tuples(*[st.floats(-500, 500)] * 3),
    suffix=st.sampled_from(FORMATS),
)
def test_any_place_survives(tmp_path: Path, angles: tuple, spacing: tuple, origin: tuple, suffix: str) -> None:
    geometry = Geometry.from_spacing(SHAPE, spacing, origin, rotation(*angles))
    again = read_volume(write_volume(Volume(VOXELS, geometry), tmp_path / f"a{suffix}"))
    # NIfTI holds single precision: 3e-5 mm at 500 mm.
    np.testing.assert_allclose(
        again.geometry.affine, geometry.affine, rtol=0, atol=5e-5 if suffix == ".nii.gz" else 1e-9
    )
