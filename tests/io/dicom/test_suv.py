"""SUV of a synthetic DICOM PET equals the hand calculation; every missing tag is named, nothing of the patient told."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from pydicom.uid import ImplicitVRLittleEndian

from napari_fmseg.core.errors import FmsegError, NoSuv
from napari_fmseg.io import read_volume

DOSE, HALF_LIFE, WEIGHT = 350e6, 6586.2, 72.5  # as the fixture `pet` writes them
N = 3
STORED = np.random.default_rng(3).integers(0, 20000, (N, 5, 6)).astype(np.int16)
BQML = STORED * np.array([0.5, 1.25, 2.0])[:, None, None]


def suv(folder: Path) -> np.ndarray:
    volume = read_volume(folder, suv="required")
    assert volume.meta["units"] == "SUV"
    return volume.data


def of_pharma(**tags: Any) -> Callable[[int, Any, Any], None]:
    def change(i: int, slice_: Any, pharma: Any) -> None:
        for key, value in tags.items():
            setattr(pharma, key, value)

    return change


HOUR = 350e6 * 2 ** (-3600 / 6586.2)  # Bq that are left of the dose after an hour


def test_suv_is_activity_times_weight_by_the_dose_that_is_left(pet: Any, tmp_path: Path) -> None:
    data = suv(pet(tmp_path))
    assert pytest.approx(239.62e6, rel=1e-4) == HOUR  # 350 MBq of F-18 after 60 min
    np.testing.assert_allclose(data, BQML * 72500 / HOUR, rtol=1e-5)
    volume = read_volume(tmp_path)
    np.testing.assert_array_equal(volume.data, data)  # without being asked
    assert volume.data.dtype == np.float32
    assert "window_center" not in volume.meta  # it was in Bq/ml
    assert not volume.meta["warnings"]


def test_on_wish_a_pet_stays_in_its_own_unit(pet: Any, tmp_path: Path) -> None:
    volume = read_volume(pet(tmp_path), suv="never")
    assert (volume.meta["units"], volume.meta["window_center"]) == ("Bq/ml", 1000)
    np.testing.assert_allclose(volume.data, BQML, rtol=1e-6)


GE = [(0x00090010, "LO", "GEMS_PETD_01"), (0x0009100D, "DT", "20240229105930.00")]


@pytest.mark.parametrize(
    ("tags", "pharma", "dose"),
    [
        ({"DecayCorrection": "ADMIN"}, {}, DOSE),
        ({"DecayCorrection": "ADMIN", "SeriesTime": "", "AcquisitionTime": ""}, {"RadionuclideHalfLife": ""}, DOSE),
        ({}, {"RadiopharmaceuticalStartTime": "103000.5"}, DOSE * 2 ** (-1799.5 / HALF_LIFE)),
        ({}, {"RadiopharmaceuticalStartDateTime": "20240229100000.000000"}, HOUR),
        ({}, {"RadiopharmaceuticalStartDateTime": "20240228230000"}, DOSE * 2 ** (-43200 / HALF_LIFE)),
        # dates that were shifted or taken out: the time of the day is what is left
        ({}, {"RadiopharmaceuticalStartDateTime": "19990101100000"}, HOUR),
        ({"SeriesDate": "", "AcquisitionDate": ""}, {}, HOUR),
        # over midnight
        ({"SeriesTime": "003000", "AcquisitionTime": "003000"}, {"RadiopharmaceuticalStartTime": "233000"}, HOUR),
        ({"SeriesTime": "235900", "AcquisitionTime": "000100", "AcquisitionDate": ""},
         {"RadiopharmaceuticalStartTime": "225900"}, HOUR),
        ({"SeriesTime": "003000", "SeriesDate": "20240301", "AcquisitionTime": "003000", "AcquisitionDate": "20240301"},
         {"RadiopharmaceuticalStartDateTime": "20240229233000"}, HOUR),
        # a series that was computed later: the first acquisition counts
        ({"SeriesTime": "180000"}, {}, HOUR),
        ({"Units": "CNTS"}, {}, None),
    ],
)  # fmt: skip
def test_times_and_ways_of_correction(pet: Any, tmp_path: Path, tags: dict, pharma: dict, dose: float | None) -> None:
    folder = pet(tmp_path, of_pharma(**pharma), **tags)
    if dose is None:
        with pytest.raises(NoSuv, match="7053,1000"):
            suv(folder)
        return
    np.testing.assert_allclose(suv(folder), BQML * WEIGHT * 1000 / dose, rtol=1e-5)


def test_a_series_made_later_by_ge_says_when_the_scan_was(pet: Any, tmp_path: Path) -> None:
    def change(i: int, slice_: Any, pharma: Any) -> None:
        for tag, kind, value in GE:
            slice_.add_new(tag, kind, value)

    expected = BQML * WEIGHT * 1000 / (DOSE * 2 ** (-3570 / HALF_LIFE))
    np.testing.assert_allclose(suv(pet(tmp_path / "late", change, SeriesTime="180000")), expected, rtol=1e-5)
    np.testing.assert_allclose(suv(pet(tmp_path / "own", change)), BQML * WEIGHT * 1000 / HOUR, rtol=1e-5)


def test_without_correction_every_slice_has_its_own_time_and_duration(pet: Any, tmp_path: Path) -> None:
    data = suv(pet(tmp_path, DecayCorrection="NONE"))
    rate = np.log(2) / HALF_LIFE
    for i in range(N):
        moments = 3600 + 120 * i + np.linspace(0, 120, 100_001)  # seconds since the injection, during the frame
        left = DOSE * np.exp(-rate * moments).mean()
        np.testing.assert_allclose(data[i], BQML[i] * WEIGHT * 1000 / left, rtol=1e-5)


@pytest.mark.parametrize(("tag", "factor"), [(0x70531000, 0.0003), (0x70531009, None)])
def test_counts_are_scaled_by_the_factors_of_their_maker(
    pet: Any, tmp_path: Path, tag: int, factor: float | None
) -> None:
    def change(i: int, slice_: Any, pharma: Any) -> None:
        slice_.add_new(0x70530010, "LO", "Philips PET Private Group")
        slice_.add_new(tag, "DS", "0.0003" if factor else "1.7")

    expected = BQML * factor if factor else BQML * 1.7 * WEIGHT * 1000 / HOUR
    np.testing.assert_allclose(suv(pet(tmp_path, change, Units="CNTS")), expected, rtol=1e-5)


def private(group: int, creator: str, values: dict[int, tuple[str, str]], way: str) -> Callable[[Any], None]:
    """Write private tags as scanners and archives do: in several encodings, and not always in the first block."""

    def add(slice_: Any) -> None:
        block = 0x12 if way == "second block" else 0x10
        if way == "second block":
            slice_.add_new((group, 0x10), "LO", "ANOTHER MAKER")
            for element in values:
                slice_.add_new((group, 0x1000 | element), "DS", "42")
        if way != "without creator":
            slice_.add_new((group, block), "UN" if way == "UN" else "LO", creator.encode() if way == "UN" else creator)
        for element, (kind, text) in values.items():
            value = (text + " " * (len(text) % 2)).encode() if way == "UN" else text
            slice_.add_new((group, block << 8 | element), "UN" if way == "UN" else kind, value)
        if way == "implicit":
            slice_.file_meta.TransferSyntaxUID = ImplicitVRLittleEndian

    return add


WAYS = ["explicit", "implicit", "UN", "second block"]


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("element", [0x00, 0x09])
def test_factors_of_philips_are_found_through_their_creator_in_every_encoding(
    pet: Any, tmp_path: Path, way: str, element: int
) -> None:
    add = private(0x7053, "Philips PET Private Group", {element: ("DS", "0.000456")}, way)
    expected = BQML * (0.000456 if element == 0 else 0.000456 * WEIGHT * 1000 / HOUR)
    np.testing.assert_allclose(suv(pet(tmp_path, lambda i, s, p: add(s), Units="CNTS")), expected, rtol=1e-5)


def test_factors_without_their_creator_are_not_believed(pet: Any, tmp_path: Path) -> None:
    add = private(0x7053, "", {0: ("DS", "0.000456")}, "without creator")
    volume = read_volume(pet(tmp_path, lambda i, s, p: add(s), Units="CNTS"))
    np.testing.assert_allclose(volume.data, BQML, rtol=1e-6)
    assert volume.meta["units"] == "counts"
    assert "their creator (7053,0010)" in volume.meta["warnings"][0]


def test_factors_may_differ_from_slice_to_slice_but_not_be_missing_in_one(pet: Any, tmp_path: Path) -> None:
    def change(i: int, slice_: Any, pharma: Any) -> None:
        private(0x7053, "Philips PET Private Group", {0: ("DS", f"{0.1 * (i + 1):.1f}")}, "explicit")(slice_)

    expected = BQML * np.array([0.1, 0.2, 0.3])[:, None, None]
    np.testing.assert_allclose(suv(pet(tmp_path / "all", change, Units="CNTS")), expected, rtol=1e-5)
    one = pet(tmp_path / "one", lambda i, s, p: change(i, s, p) if i != 1 else None, Units="CNTS")
    with pytest.raises(NoSuv, match="missing"):
        suv(one)


def test_slices_in_different_units_give_no_suv(pet: Any, tmp_path: Path) -> None:
    folder = pet(tmp_path, lambda i, s, p: setattr(s, "Units", "GML" if i == 1 else "BQML"))
    with pytest.raises(NoSuv, match="different units"):
        suv(folder)


@pytest.mark.parametrize("way", WAYS)
def test_the_time_that_ge_adds_is_found_through_its_creator_in_every_encoding(
    pet: Any, tmp_path: Path, way: str
) -> None:
    add = private(0x0009, "GEMS_PETD_01", {0x0D: ("DT", "20240229105930.00")}, way)
    expected = BQML * WEIGHT * 1000 / (DOSE * 2 ** (-3570 / HALF_LIFE))
    folder = pet(tmp_path, lambda i, s, p: add(s), SeriesTime="180000")
    np.testing.assert_allclose(suv(folder), expected, rtol=1e-5)


def test_what_is_suv_already_stays_as_it_is(pet: Any, tmp_path: Path) -> None:
    np.testing.assert_allclose(suv(pet(tmp_path, Units="GML", PatientWeight="")), BQML, rtol=1e-6)
    lean = pet(tmp_path / "lean", Units="GML", SUVType="LBM")
    with pytest.raises(NoSuv, match="LBM"):
        suv(lean)


EVERY = {
    "Units": "0054,1001", "PatientWeight": "0010,1030", "CorrectedImage": "0028,0051", "DecayCorrection": "0054,1102",
    "RadionuclideTotalDose": "0018,1074", "RadionuclideHalfLife": "0018,1075",
    "RadiopharmaceuticalStartTime": "0018,1072", "SeriesTime": "0008,0031", "AcquisitionTime": "0008,0032",
}  # fmt: skip


def without(*names: str) -> Callable[[int, Any, Any], None]:
    def change(i: int, slice_: Any, pharma: Any) -> None:
        for name in names:
            holder = pharma if name in pharma else slice_
            delattr(holder, name)

    return change


@pytest.mark.parametrize("names", [*[(name,) for name in EVERY], tuple(EVERY)])
def test_every_missing_tag_is_named_at_once_and_the_volume_is_read_without_suv(
    pet: Any, tmp_path: Path, names: tuple
) -> None:
    folder = pet(tmp_path, without(*names))
    with pytest.raises(NoSuv) as caught:
        read_volume(folder, suv="required")
    for name, tag in EVERY.items():
        assert (f"{name} ({tag})" in str(caught.value)) == (name in names)
    volume = read_volume(folder)
    np.testing.assert_allclose(volume.data, BQML, rtol=1e-6)
    assert volume.meta.get("units") == (None if "Units" in names else "Bq/ml")
    (warning,) = volume.meta["warnings"]
    assert all(name in warning for name in names)


def test_no_dose_record_at_all_names_its_three_tags(pet: Any, tmp_path: Path) -> None:
    folder = pet(tmp_path, lambda i, s, p: delattr(s, "RadiopharmaceuticalInformationSequence"))
    with pytest.raises(NoSuv, match=r"TotalDose.*HalfLife.*StartTime"):
        suv(folder)


@pytest.mark.parametrize(
    ("tags", "pharma", "match"),
    [
        ({"PatientWeight": "0"}, {}, "PatientWeight"),
        ({}, {"RadionuclideTotalDose": "370"}, "MBq"),
        ({"CorrectedImage": ["DECY"]}, {}, "attenuation"),
        ({"DecayCorrection": "LATER"}, {}, "START, ADMIN or NONE"),
        ({"Units": "PROPCPS"}, {}, "PROPCPS"),
        ({"Modality": "CT"}, {}, "no PET"),
        ({"SeriesTime": "11h"}, {}, "SeriesTime"),
        ({}, {"RadionuclideHalfLife": "long"}, "HalfLife"),
    ],
)
def test_what_makes_no_sense_is_said_and_tells_nothing_of_the_patient(
    pet: Any, tmp_path: Path, tags: dict, pharma: dict, match: str
) -> None:
    with pydicom.config.disable_value_validation():
        folder = pet(
            tmp_path, lambda i, s, p: [p.add_new(pydicom.tag.Tag(k), "LO", v) for k, v in pharma.items()], **tags
        )
    with pytest.raises(NoSuv, match=match) as caught:
        suv(folder)
    warnings = read_volume(folder).meta["warnings"]
    for text in (str(caught.value), *warnings):
        assert not any(secret in text for secret in ("Doe", "4711", "72.5", "350", "370", "2024", "1000"))


def test_other_formats_have_no_suv_and_a_wrong_wish_is_refused(tmp_path: Path) -> None:
    import SimpleITK as sitk

    sitk.WriteImage(sitk.GetImageFromArray(STORED), tmp_path / "pet.nii.gz")
    with pytest.raises(NoSuv, match="unit"):
        read_volume(tmp_path / "pet.nii.gz", suv="required")
    assert read_volume(tmp_path / "pet.nii.gz").meta.get("units") != "SUV"
    with pytest.raises(FmsegError, match="'auto'"):
        read_volume(tmp_path / "pet.nii.gz", suv="yes")
