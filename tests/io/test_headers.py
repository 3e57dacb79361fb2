"""Headers that other programs write: units, spellings, packed voxels, two places; what ITK reads is read."""

from __future__ import annotations

import bz2
import zlib
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk

from napari_fmseg.core.errors import UnreadableVolume
from napari_fmseg.io import read_labels, read_volume
from napari_fmseg.io.series_previews import preview_series

SHAPE = (6, 5, 4)
RAMP = np.arange(120, dtype="<i2").reshape(SHAPE)
DIRECTIONS = "(1.5,0,0) (0,1.6,0) (0,0,2)"


def nrrd(path: Path, content: bytes | None = None, **changes: str) -> Path:
    """Write a NRRD; fields are named with _ for a blank, and left out where they are empty."""
    fields = {"type": "short", "dimension": "3", "space": "left-posterior-superior", "sizes": "4 5 6",
              "space_directions": DIRECTIONS, "kinds": "domain domain domain", "endian": "little", "encoding": "raw",
              "space_origin": "(10,20,30)", **changes}  # fmt: skip
    lines = [f"{name.replace('_', ' ')}: {text}" for name, text in fields.items() if text]
    path.write_bytes(
        "\n".join(["NRRD0004", *lines, "", ""]).encode() + (RAMP.tobytes() if content is None else content)
    )
    return path


def mha(
    path: Path, first: str = "ObjectType = Image\nNDims = 3\n", content: bytes | None = None, **fields: str
) -> Path:
    stated = {"BinaryData": "True", "BinaryDataByteOrderMSB": "False", "DimSize": "4 5 6", "ElementType": "MET_SHORT",
              "ElementSpacing": "1 2 3", **fields}  # fmt: skip
    stated["ElementDataFile"] = stated.pop("ElementDataFile", "LOCAL")  # the last one
    text = first + "".join(f"{key} = {value}\n" for key, value in stated.items())
    path.write_bytes(text.encode() + (RAMP.tobytes() if content is None else content))
    return path


@pytest.mark.parametrize(("unit", "mm"), [
    ("mm", 1), ("millimeters", 1), ("um", 0.001), ("µm", 0.001), ("microns", 0.001), ("micrometre", 0.001),
    ("m", 1000), ("meter", 1000), ("cm", 10), ("centimeters", 10), ("nm", 1e-6), ("", 1), ("???", 1),
])  # fmt: skip
def test_lengths_of_a_nrrd_become_millimetres(tmp_path: Path, unit: str, mm: float) -> None:
    volume = read_volume(nrrd(tmp_path / "a.nrrd", space_units=" ".join([f'"{unit}"'] * 3)))
    np.testing.assert_allclose(volume.geometry.spacing, np.array([2, 1.6, 1.5]) * mm)
    np.testing.assert_allclose(volume.geometry.origin, np.array([30, 20, 10]) * mm)
    assert any("turned into millimetres" in text for text in volume.warnings) == (mm != 1)
    np.testing.assert_array_equal(volume.data, RAMP)


def test_lengths_by_axis_become_millimetres_and_an_unknown_unit_is_said(tmp_path: Path) -> None:
    by_axis = nrrd(tmp_path / "a.nrrd", space="", space_directions="", space_origin="", spacings="1 2 3",
                   units='"um" "um" "mm"')  # fmt: skip
    np.testing.assert_allclose(read_volume(by_axis).geometry.spacing, (3, 0.002, 0.001))
    unknown = read_volume(nrrd(tmp_path / "b.nrrd", space_units='"furlong" "furlong" "furlong"'))
    assert unknown.geometry.spacing == pytest.approx((2, 1.6, 1.5))
    assert [text for text in unknown.warnings if "'furlong'" in text and "millimetres were assumed" in text]


@pytest.mark.parametrize(("unit", "mm"), [("um", 0.001), ("mm", 1), ("cm", 10), ("?", 1)])
def test_lengths_of_a_metaimage_become_millimetres(tmp_path: Path, unit: str, mm: float) -> None:
    volume = read_volume(mha(tmp_path / "a.mha", DistanceUnits=unit))
    np.testing.assert_allclose(volume.geometry.spacing, np.array([3, 2, 1]) * mm)
    assert any(unit in text for text in volume.warnings) == (mm != 1)


def test_a_list_of_volumes_shows_millimetres(tmp_path: Path) -> None:
    nrrd(tmp_path / "a.nrrd", space_units='"cm" "cm" "cm"')
    nrrd(tmp_path / "b.nrrd")
    assert [offer.spacing for offer in preview_series(tmp_path)] == [(20, 16, 15), (2, 1.6, 1.5)]


def test_a_list_of_volumes_shows_the_voxels_of_a_nifti_as_they_are_read(tmp_path: Path) -> None:
    micrometres = nib.Nifti1Image(RAMP.T, np.diag([400.0, 500.0, 600.0, 1.0]))
    micrometres.header.set_xyzt_units("micron")
    micrometres.to_filename(tmp_path / "a.nii")
    unlike_its_sform = nib.Nifti1Image(RAMP.T, np.diag([0.4, 0.5, 0.6, 1.0]))
    unlike_its_sform.header.set_zooms((1, 1, 1))
    unlike_its_sform.to_filename(tmp_path / "b.nii.gz")
    offers = preview_series(tmp_path)
    np.testing.assert_allclose([offer.spacing for offer in offers], [(0.6, 0.5, 0.4)] * 2)
    assert [read_volume(offer.path).geometry.spacing for offer in offers] == [offer.spacing for offer in offers]


def test_a_unit_that_nifti_does_not_have_is_said(tmp_path: Path) -> None:
    image = nib.Nifti1Image(RAMP.T, np.eye(4))
    image.header["xyzt_units"] = 5
    image.to_filename(tmp_path / "a.nii")
    assert [text for text in read_volume(tmp_path / "a.nii").warnings if "code 5" in text]


@pytest.mark.parametrize(("space", "is_of_patient"), [
    ("right-anterior-superior", True), ("LAS", True), ("left-posterior-superior", True),
    ("scanner-xyz", False), ("3D-right-handed", False), ("3D-left-handed", False),
])  # fmt: skip
def test_a_space_that_is_not_the_patients_is_said(tmp_path: Path, space: str, is_of_patient: bool) -> None:
    volume = read_volume(nrrd(tmp_path / "a.nrrd", space=space))
    assert any("left and right may be swapped" in text for text in volume.warnings) != is_of_patient


@pytest.mark.parametrize("endian", ["little", "big"])
@pytest.mark.parametrize("layout", ["3-D", "components first", "components last"])
def test_a_nrrd_with_bzip2_is_read(tmp_path: Path, layout: str, endian: str) -> None:
    data = RAMP if layout == "3-D" else np.stack([RAMP, RAMP[::-1]])
    stored, changes = data, {}
    if layout == "components first":
        stored = np.moveaxis(data, 0, -1)
        changes = {"sizes": "2 4 5 6", "kinds": "vector domain domain domain", "space_directions": f"none {DIRECTIONS}"}
    elif layout == "components last":
        changes = {"sizes": "4 5 6 2", "kinds": "domain domain domain list", "space_directions": f"{DIRECTIONS} none"}
    if layout != "3-D":
        changes["dimension"] = "4"
    content = np.ascontiguousarray(stored, dtype="<i2" if endian == "little" else ">i2").tobytes()
    raw = read_volume(nrrd(tmp_path / "raw.nrrd", content, endian=endian, **changes))  # by ITK
    half = len(content) // 2
    packed = bz2.compress(content[:half]) + bz2.compress(content[half:])  # as pbzip2 does, one stream after another
    volume = read_volume(nrrd(tmp_path / "a.nrrd", packed, endian=endian, encoding="bzip2", **changes))
    np.testing.assert_array_equal(volume.data, data)
    np.testing.assert_array_equal(volume.data, raw.data)
    assert volume.geometry == raw.geometry
    assert volume.data.dtype.isnative
    assert volume.data.flags.writeable


def test_a_nrrd_with_bzip2_beside_it_is_read_and_an_empty_scan_is_not_called_cut_short(tmp_path: Path) -> None:
    (tmp_path / "a.raw.bz2").write_bytes(bz2.compress(RAMP.tobytes()))
    header = nrrd(tmp_path / "a.nhdr", b"", encoding="bz2", data_file="a.raw.bz2")
    np.testing.assert_array_equal(read_volume(header).data, RAMP)
    zeros = np.zeros((60, 60, 60), "<i2")
    path = nrrd(tmp_path / "b.nrrd", bz2.compress(zeros.tobytes()), encoding="bzip2", sizes="60 60 60")
    np.testing.assert_array_equal(read_labels(path).data, zeros)


@pytest.mark.parametrize(
    "spoil", [lambda b: b[:-20], lambda b: b"BZh9" + b"x" * 60, lambda b: bz2.compress(b"too few")]
)
def test_damaged_bzip2_is_refused_for_what_it_is(tmp_path: Path, spoil: Any) -> None:
    content = np.random.default_rng(0).integers(0, 30000, SHAPE).astype("<i2").tobytes()
    path = nrrd(tmp_path / "a.nrrd", spoil(bz2.compress(content)), encoding="bzip2")
    with pytest.raises(UnreadableVolume, match="bzip2"):
        read_volume(path)


def test_spellings_that_itk_takes_are_taken(tmp_path: Path) -> None:
    """Field names of a NRRD in any letters and without blanks; the first fields of a MetaImage in any order."""
    odd = tmp_path / "odd.nrrd"
    nrrd(odd)
    head, data = odd.read_bytes().split(b"\n\n", 1)
    for old, new in ((b"space directions", b"SpaceDirections"), (b"sizes", b"Sizes"), (b"kinds", b"Kinds"),
                     (b"space origin", b"spaceorigin")):  # fmt: skip
        head = head.replace(old, new)
    odd.write_bytes(head + b"\n\n" + data)
    (tmp_path / "old.nrrd").write_bytes(odd.read_bytes().replace(b"NRRD0004", b"NRRD00.01", 1))
    paths = [odd, tmp_path / "old.nrrd"]
    firsts = ("NDims = 3\n", "BinaryData = True\nNDims = 3\n", "Comment = of 2019\nObjectType = Image\nNDims = 3\n")
    paths += [mha(tmp_path / f"{n}.mha", first) for n, first in enumerate(firsts)]
    for path in paths:
        image = sitk.ReadImage(str(path))
        bare = path.with_name(f"{path.name}.odd")  # and without a suffix that says so
        bare.write_bytes(path.read_bytes())
        for volume in (read_volume(path), read_volume(bare)):
            np.testing.assert_array_equal(volume.data, sitk.GetArrayFromImage(image))
            np.testing.assert_allclose(volume.geometry.spacing, image.GetSpacing()[::-1])


@pytest.mark.parametrize("word", ["LOCAL", "Local", "local"])
def test_every_word_of_metaio_for_this_file_is_known(tmp_path: Path, word: str) -> None:
    path = mha(tmp_path / "a.mha", ElementDataFile=word)
    assert np.array_equal(sitk.GetArrayFromImage(sitk.ReadImage(str(path))), RAMP)
    np.testing.assert_array_equal(read_volume(path).data, RAMP)


@pytest.mark.parametrize("word", ["True", "true", "T", "1"])
def test_a_packed_metaimage_is_not_called_cut_short(tmp_path: Path, word: str) -> None:
    zeros = np.zeros((60, 50, 40), "<i2")
    packed = zlib.compress(zeros.tobytes())
    path = mha(tmp_path / "a.mha", content=packed, BinaryData=word, CompressedData=word, DimSize="40 50 60",
               CompressedDataSize=str(len(packed)))  # fmt: skip
    np.testing.assert_array_equal(read_volume(path).data, sitk.GetArrayFromImage(sitk.ReadImage(str(path))))


def two_forms(path: Path, qform: np.ndarray, codes: tuple[int, int] = (1, 1)) -> Path:
    image = nib.Nifti1Image(RAMP.T, np.diag([2.0, 2, 2, 1]))
    image.set_sform(np.diag([2.0, 2, 2, 1]), codes[0])
    image.set_qform(qform, codes[1])
    image.to_filename(path)
    return path


def test_sform_and_qform_far_apart_are_said_with_both_places(tmp_path: Path) -> None:
    moved = np.diag([2.0, 2, 2, 1])
    moved[:3, 3] = 40, 0, -25
    volume = read_volume(two_forms(tmp_path / "a.nii", moved))
    (text,) = volume.warnings
    assert f"{np.hypot(40, 25):.4g} mm apart" in text
    assert "sform (code 1, origin 0.0, 0.0, 0.0)" in text
    assert "qform (code 1, origin 40.0, 0.0, -25.0" in text
    np.testing.assert_allclose(volume.geometry.origin, 0)  # the sform's, as nibabel takes it
    flipped = np.diag([-2.0, 2, 2, 1])
    assert any("two positions" in text for text in read_volume(two_forms(tmp_path / "b.nii", flipped)).warnings)


@pytest.mark.parametrize("codes", [(1, 1), (1, 0), (0, 1)])
def test_sform_and_qform_that_agree_or_stand_alone_need_no_word(tmp_path: Path, codes: tuple[int, int]) -> None:
    near = np.diag([2.0, 2, 2, 1])
    near[:3, 3] = 0.4 if codes == (1, 1) else 100
    assert read_volume(two_forms(tmp_path / "a.nii", near, codes)).warnings == ()


@pytest.mark.parametrize("suffix", [".nii.gz", ".nrrd", ".mha"])
def test_nan_in_a_label_map_is_background_and_said(tmp_path: Path, suffix: str) -> None:
    truth = np.zeros(SHAPE, np.uint8)
    truth[1:3, 1:3, 1:3], truth[4, 4, 3] = 1, 7
    data = np.where(truth > 0, truth, np.nan).astype(np.float32)
    image = sitk.GetImageFromArray(data)
    sitk.WriteImage(image, str(tmp_path / f"a{suffix}"))
    labels = read_labels(tmp_path / f"a{suffix}")
    np.testing.assert_array_equal(labels.data, truth)
    assert labels.data.dtype.kind in "ui"
    assert [text for text in labels.meta["repaired"] if f"{int((truth == 0).sum())} voxels" in text and "NaN" in text]


@pytest.mark.parametrize("odd", [np.inf, -np.inf])
def test_infinity_in_a_label_map_is_refused(tmp_path: Path, odd: float) -> None:
    data = np.zeros(SHAPE, np.float32)
    data[0, 0, 0] = odd
    sitk.WriteImage(sitk.GetImageFromArray(data), str(tmp_path / "a.nii.gz"))
    with pytest.raises(UnreadableVolume, match=r"no label map.*infinite"):
        read_labels(tmp_path / "a.nii.gz")
