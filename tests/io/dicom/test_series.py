"""DICOM as it is stored, not as it is declared; and what makes no volume is refused for its real cause."""

from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pydicom
import pytest
from PIL import Image
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.filebase import DicomBytesIO
from pydicom.filewriter import write_dataset, write_file_meta_info
from pydicom.uid import (
    CTImageStorage,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    generate_uid,
)

from napari_fmseg.core.errors import UnreadableVolume
from napari_fmseg.io import find_volumes, list_series, read_labels, read_volume
from napari_fmseg.io.series_previews import preview_series

VOXELS = np.random.default_rng(0).integers(0, 2000, (4, 8, 9)).astype(np.int16)
Change = Callable[[Any, int], Any]


def slices(voxels: np.ndarray = VOXELS, change: Change | None = None, step: float = 2.0) -> list[Dataset]:
    """Make a CT of one slice per plane, `step` mm apart; `change(dataset, number)` may spoil each."""
    shared = [generate_uid() for _ in range(3)]
    made = []
    for k, plane in enumerate(voxels):
        d = Dataset()
        d.file_meta = FileMetaDataset()
        d.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        d.SOPClassUID, d.SOPInstanceUID = CTImageStorage, generate_uid()
        d.file_meta.MediaStorageSOPClassUID = d.SOPClassUID
        d.SeriesInstanceUID, d.StudyInstanceUID, d.FrameOfReferenceUID = shared
        d.Modality, d.PatientName, d.PatientID, d.PatientBirthDate, d.PatientSex = "CT", "Doe^Jane", "4711", "", ""
        d.StudyDate, d.StudyTime, d.StudyID, d.AccessionNumber, d.ReferringPhysicianName = (
            "20200101",
            "120000",
            "",
            "",
            "",
        )
        d.SeriesNumber, d.InstanceNumber, d.ImageType = 1, k + 1, ["ORIGINAL", "PRIMARY", "AXIAL"]
        d.Rows, d.Columns = plane.shape
        d.SamplesPerPixel, d.PhotometricInterpretation = 1, "MONOCHROME2"
        d.BitsAllocated = d.BitsStored = 8 * plane.dtype.itemsize
        d.HighBit, d.PixelRepresentation = d.BitsStored - 1, int(plane.dtype.kind == "i")
        d.PixelSpacing, d.SliceThickness = [1, 1], step
        d.ImageOrientationPatient, d.ImagePositionPatient = [1, 0, 0, 0, 1, 0], [0, 0, step * k]
        d.RescaleSlope, d.RescaleIntercept = 1, 0
        d.PixelData = plane.astype(plane.dtype.newbyteorder("<")).tobytes()
        d["PixelData"].VR = "OW" if d.BitsAllocated > 8 else "OB"
        if change:
            change(d, k)
        made.append(d)
    return made


def write(folder: Path, made: list[Dataset], name: str = "{:03d}.dcm") -> Path:
    """Write slices as files by the standard."""
    folder.mkdir(parents=True, exist_ok=True)
    for k, d in enumerate(made):
        d.file_meta.MediaStorageSOPInstanceUID = d.SOPInstanceUID
        d.save_as(folder / name.format(k), enforce_file_format=True)
    return folder


def body(d: Dataset, implicit: bool, little: bool = True) -> bytes:
    """Return the bytes of a slice without preamble and file meta."""
    stream = DicomBytesIO()
    stream.is_implicit_VR, stream.is_little_endian = implicit, little
    bare = Dataset(d)
    if not little:
        bare.PixelData = np.frombuffer(d.PixelData, "<i2").astype(">i2").tobytes()
    write_dataset(stream, bare)
    return stream.getvalue()


def test_the_part_of_the_body_is_read_where_it_is_stated(tmp_path: Path) -> None:
    def state(d: Any, k: int) -> None:
        d.BodyPartExamined = "HEADNECK"

    assert read_volume(write(tmp_path / "a", slices(change=state))).meta["body_part"] == "HEADNECK"
    assert "body_part" not in read_volume(write(tmp_path / "b", slices())).meta


@pytest.mark.parametrize("implicit", [True, False])
@pytest.mark.parametrize("name", ["{}.dcm", "IM_{:04d}.MR", "MR.1.3.12.2.1107.{}", "I.{:03d}", "{}", "{}.img"])
def test_dicom_without_a_preamble_is_found_under_any_name(tmp_path: Path, name: str, implicit: bool) -> None:
    for k, d in enumerate(slices()):
        (tmp_path / name.format(k)).write_bytes(body(d, implicit))
    (tmp_path / "notes.txt").write_text("nothing\n" * 40)
    for path in (tmp_path, tmp_path / name.format(2)):
        np.testing.assert_array_equal(read_volume(path).data, VOXELS)
    assert len(list_series(tmp_path)) == 1
    assert find_volumes(tmp_path) == (tmp_path,)


@pytest.mark.parametrize("first", ["InstanceCreationDate", "SOPClassUID", "StudyDate", "Modality", "SliceThickness"])
def test_dicom_without_a_preamble_is_found_whatever_its_first_element(tmp_path: Path, first: str) -> None:
    def begin(d: Any, k: int) -> None:
        d.InstanceCreationDate = "20200101"
        for element in list(d):
            if element.tag < pydicom.datadict.tag_for_keyword(first):
                del d[element.tag]

    for k, d in enumerate(slices(change=begin)):
        (tmp_path / f"{k}.x").write_bytes(body(d, implicit=True))
    np.testing.assert_array_equal(read_volume(tmp_path).data, VOXELS)


@pytest.mark.parametrize(
    "content", [b"", b"\x08\0", b"\x08\0\x05\0", bytes(400), b"\x08\0\x05\0" * 99, b"\x5c\x01\0\0" * 99]
)
def test_what_only_begins_like_a_tag_is_no_dicom(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a").write_bytes(content)
    with pytest.raises(UnreadableVolume, match="holds no volume: none of its 1 files is an image"):
        read_volume(tmp_path)


@pytest.mark.parametrize("implicit", [True, False])
@pytest.mark.parametrize("head", [b"", bytes(128) + b"DICM"])
def test_the_encoding_is_that_of_the_tags_where_none_is_declared(tmp_path: Path, head: bytes, implicit: bool) -> None:
    for k, d in enumerate(slices()):
        (tmp_path / f"{k}.dcm").write_bytes(head + body(d, implicit))
    np.testing.assert_array_equal(read_volume(tmp_path).data, VOXELS)


def test_big_endian_pixels_are_read_with_and_without_a_declaration(tmp_path: Path) -> None:
    for k, d in enumerate(slices()):
        content = body(d, implicit=False, little=False)
        (tmp_path / f"{k}.dcm").write_bytes(content)
    np.testing.assert_array_equal(read_volume(tmp_path).data, VOXELS)


@pytest.mark.parametrize("implicit", [True, False])
@pytest.mark.parametrize("declared", [ImplicitVRLittleEndian, ExplicitVRLittleEndian, JPEG2000Lossless])
def test_the_encoding_is_that_of_the_tags_where_another_is_declared(
    tmp_path: Path, declared: str, implicit: bool
) -> None:
    for k, d in enumerate(slices()):
        d.file_meta.TransferSyntaxUID, d.file_meta.MediaStorageSOPInstanceUID = declared, d.SOPInstanceUID
        stream = DicomBytesIO(bytes(128) + b"DICM")
        stream.seek(0, 2)
        write_file_meta_info(stream, d.file_meta)
        (tmp_path / f"{k}.dcm").write_bytes(stream.getvalue() + body(d, implicit))
    np.testing.assert_array_equal(read_volume(tmp_path).data, VOXELS)


@pytest.mark.parametrize("declared", [ExplicitVRLittleEndian, None])
def test_compressed_pixels_that_are_declared_plain_are_refused(tmp_path: Path, declared: str | None) -> None:
    for k, d in enumerate(slices()):
        d.compress(pydicom.uid.RLELossless)
        content = body(d, implicit=False)
        if declared:
            d.file_meta.TransferSyntaxUID, d.file_meta.MediaStorageSOPInstanceUID = declared, d.SOPInstanceUID
            stream = DicomBytesIO(bytes(128) + b"DICM")
            stream.seek(0, 2)
            write_file_meta_info(stream, d.file_meta)
            content = stream.getvalue() + content
        (tmp_path / f"{k}.dcm").write_bytes(content)
    with pytest.raises(UnreadableVolume, match="compressed, but the file does not say how"):
        read_volume(tmp_path)


@pytest.mark.parametrize("outer", [np.uint8, np.int16, np.uint16, np.int32])
@pytest.mark.parametrize("inner", [np.uint8, np.int16, np.uint16, np.int32])
@pytest.mark.parametrize("compressed", [False, True])
def test_a_series_takes_a_type_that_holds_all_slices(tmp_path: Path, outer: Any, inner: Any, compressed: bool) -> None:
    planes = [np.full((8, 9), np.iinfo(kind).max // 2 + k, kind) for k, kind in enumerate((outer, inner, inner, outer))]
    for plane in planes:
        plane[0, 0] = np.iinfo(plane.dtype).min
    made = [d for plane in planes for d in slices(plane[None])]
    for k, d in enumerate(made):
        d.SeriesInstanceUID, d.FrameOfReferenceUID = "1.2.3", "1.2.3.4"
        d.ImagePositionPatient, d.InstanceNumber = [0, 0, 2 * k], k + 1
        if compressed and d.BitsAllocated < 32:
            d.compress(pydicom.uid.RLELossless)
    data = read_volume(write(tmp_path, made)).data
    np.testing.assert_array_equal(data, np.stack([plane.astype(np.int64) for plane in planes]))
    assert data.dtype == np.result_type(outer, inner)


@pytest.mark.parametrize("signed", [0, 1])
@pytest.mark.parametrize("compressed", [False, True])
@pytest.mark.parametrize("high", [11, 13, 15])
def test_the_stored_bits_are_taken_wherever_they_stand(
    tmp_path: Path, high: int, signed: int, compressed: bool
) -> None:
    truth = np.random.default_rng(1).integers(-2048 * signed, 4096 - 2048 * signed, (3, 8, 9))

    def place(d: Any, k: int) -> None:
        if compressed:
            d.compress(pydicom.uid.RLELossless)
        d.BitsStored, d.HighBit, d.PixelRepresentation = 12, high, signed

    stored = ((truth.astype(np.int64) & 0xFFF) << (high - 11) | (0xA << (high + 1))) & 0xFFFF
    folder = write(tmp_path / "ct", slices(stored.astype(np.uint16), place))
    np.testing.assert_array_equal(read_volume(folder).data, truth)


def spoil(**tags: Any) -> Change:
    """Set tags of all slices."""
    return lambda d, k: [setattr(d, key, value) for key, value in tags.items()]


@pytest.mark.parametrize("display", ["MONOCHROME1", "MONOCHROME2"])
def test_compressed_values_are_the_stored_ones_however_they_are_to_be_shown(tmp_path: Path, display: str) -> None:
    def compress(d: Any, k: int) -> None:
        stream = BytesIO()
        Image.fromarray(VOXELS[k].astype("<u2")).save(stream, "JPEG2000", no_jp2=True, irreversible=False)
        d.PhotometricInterpretation, d.PixelRepresentation, d.RescaleIntercept = display, 0, -1024
        d.file_meta.TransferSyntaxUID = JPEG2000Lossless
        d.PixelData = encapsulate([stream.getvalue()])
        d["PixelData"].VR, d["PixelData"].is_undefined_length = "OB", True

    np.testing.assert_array_equal(read_volume(write(tmp_path, slices(change=compress))).data, VOXELS - 1024)


def test_indices_of_a_colour_table_are_no_intensities(tmp_path: Path) -> None:
    def colour(d: Any, k: int) -> None:
        d.PhotometricInterpretation = "PALETTE COLOR"
        for name in ("Red", "Green", "Blue"):
            setattr(d, name + "PaletteColorLookupTableDescriptor", [16, 0, 16])
            setattr(d, name + "PaletteColorLookupTableData", bytes(32))

    folder = write(tmp_path / "map", slices((VOXELS % 16).astype(np.uint8), colour))
    with pytest.raises(UnreadableVolume, match=r"colours \(PALETTE COLOR\), not intensities.*grey values"):
        read_volume(folder)
    write(tmp_path / "ct", slices())
    volume = read_volume(tmp_path)
    np.testing.assert_array_equal(volume.data, VOXELS)
    assert any("1 more series that make no volume of intensities" in text for text in volume.meta["warnings"])


def test_values_that_need_a_table_are_refused_and_not_given_as_stored(tmp_path: Path) -> None:
    item = Dataset()
    item.add_new((0x0028, 0x3002), "US", [16, 0, 16])
    item.ModalityLUTType = "US"
    item.add_new((0x0028, 0x3006), "US", [500 + 100 * i for i in range(16)])
    folder = write(tmp_path, slices(VOXELS % 16, spoil(ModalityLUTSequence=[item])))
    with pytest.raises(UnreadableVolume, match=r"Modality LUT Sequence, 0028,3000.*slope and intercept"):
        read_volume(folder)


@pytest.mark.parametrize("name", ["RescaleSlope", "RescaleIntercept"])
def test_a_scaling_that_is_no_number_is_refused_and_not_taken_for_none(tmp_path: Path, name: str) -> None:
    def comma(d: Any, k: int) -> None:
        d._dict[pydicom.tag.Tag(name)] = pydicom.dataelem.RawDataElement(
            pydicom.tag.Tag(name), "DS", 4, b"1,5 ", 0, False, True
        )

    with pytest.raises(UnreadableVolume, match="is no number, so its values are unknown"):
        read_volume(write(tmp_path, slices(change=comma)))


def test_a_real_world_mapping_beside_the_rescaling_is_said_if_it_differs(tmp_path: Path) -> None:
    for number, slope in enumerate((1.0, 0.25)):
        mapping, unit = Dataset(), Dataset()
        unit.CodeValue, unit.CodingSchemeDesignator, unit.CodeMeaning = "um2/s", "UCUM", "um2/s"
        mapping.RealWorldValueSlope, mapping.RealWorldValueIntercept = slope, 0.0
        mapping.MeasurementUnitsCodeSequence = [unit]
        made = slices(change=spoil(RealWorldValueMappingSequence=[mapping]))
        warnings = read_volume(write(tmp_path / str(number), made)).meta["warnings"]
        assert bool(warnings) == (slope != 1)
    assert "x 0.25 + 0, in um2/s" in warnings[0]


def at_times(change: Change | None = None, **same: Any) -> list[Dataset]:
    """Make two time points of three slices, of which the outermost are air, with `same` in all of them."""
    voxels = np.concatenate([VOXELS[:3], VOXELS[:3] + 5])
    voxels[[0, 3]] = 0

    def place(d: Any, k: int) -> None:
        d.ImagePositionPatient, d.AcquisitionNumber = [0, 0, 2.0 * (k % 3)], k // 3 + 1
        spoil(**same)(d, k)
        if change:
            change(d, k)

    return slices(voxels, place)


@pytest.mark.parametrize("same", [{}, {"SOPInstanceUID": "1.2.3"}, {"SOPInstanceUID": "1.2.3", "InstanceNumber": 1}])
def test_images_of_one_uid_are_told_apart_by_their_time(tmp_path: Path, same: dict) -> None:
    volume = read_volume(write(tmp_path, at_times(**same)))
    assert volume.data.shape == (2, 3, 8, 9)
    np.testing.assert_array_equal(volume.data[1, 1:] - volume.data[0, 1:], 5)


def test_images_of_one_uid_and_no_time_are_told_apart_by_their_pixels(tmp_path: Path) -> None:
    made = at_times(SOPInstanceUID="1.2.3", AcquisitionNumber=1, InstanceNumber=1)
    with pytest.raises(UnreadableVolume, match="some places have 1 images and others 2"):  # the air is the same
        read_volume(write(tmp_path / "air", made))
    made[3].PixelData = b"\1\0" + made[3].PixelData[2:]
    assert read_volume(write(tmp_path / "all", made)).data.shape == (2, 3, 8, 9)


@pytest.mark.parametrize("new_uid", [False, True])
@pytest.mark.parametrize("compressed", [False, True])
def test_copies_count_once_under_their_own_or_a_new_uid(tmp_path: Path, new_uid: bool, compressed: bool) -> None:
    made = slices(change=lambda d, k: d.compress(pydicom.uid.RLELossless) if compressed else None)
    write(tmp_path / "a", made)
    for d in made:
        d.SOPInstanceUID = generate_uid() if new_uid else d.SOPInstanceUID
        d.StudyDescription = "again"
    write(tmp_path / "b", made)
    np.testing.assert_array_equal(read_volume(tmp_path).data, VOXELS)


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ({"PatientID": "1", "PatientName": "A"}, {"PatientID": "2", "PatientName": "A"}),
        ({"PatientID": "", "PatientName": "Doe^Jane"}, {"PatientID": "", "PatientName": "Roe^John"}),
        ({"PatientID": "1", "PatientName": "Doe^Jane"}, {"PatientID": "", "PatientName": "Roe^John"}),
    ],
)
@pytest.mark.parametrize("interleaved", [False, True])
def test_two_patients_under_one_series_are_not_mixed(
    tmp_path: Path, first: dict, second: dict, interleaved: bool
) -> None:
    made = slices(change=lambda d, k: spoil(**(first if (k % 2 if interleaved else k < 2) else second))(d, k))
    folder = write(tmp_path, made)
    with pytest.raises(UnreadableVolume, match=r"different patients.*a folder of its own") as caught:
        read_volume(folder)
    assert not any(name in str(caught.value) for name in ("Doe", "Roe", "Jane"))
    assert list_series(folder)[0].spacing == (0, 0, 0)


def test_one_patient_whose_name_is_written_in_two_ways_stays_one(tmp_path: Path) -> None:
    made = slices(change=lambda d, k: setattr(d, "PatientName", ("DOE^JANE^^", "Doe^Jane", "Doe Jane", "")[k]))
    np.testing.assert_array_equal(read_volume(write(tmp_path, made)).data, VOXELS)
    for d in made:
        d.PatientID, d.PatientName = "", ("DOE^JANE^^", "Doe^Jane", "Doe^Jane", "")[d.InstanceNumber - 1]
    np.testing.assert_array_equal(read_volume(write(tmp_path, made)).data, VOXELS)


def test_two_frames_of_reference_under_one_series_are_not_mixed(tmp_path: Path) -> None:
    made = slices(change=lambda d, k: setattr(d, "FrameOfReferenceUID", f"1.2.{k // 2}"))
    with pytest.raises(UnreadableVolume, match=r"2 frames of reference \(0020,0052\).*positions cannot be compared"):
        read_volume(write(tmp_path, made))
    for k, d in enumerate(made):
        d.FrameOfReferenceUID = f"1.3.{k}"
    volume = read_volume(write(tmp_path, made))
    np.testing.assert_array_equal(volume.data, VOXELS)
    assert any("frame of reference of its own" in text for text in volume.meta["warnings"])


@pytest.mark.parametrize("numbers", [[1, 2, 3, 4, 5, 6, 7, 8], [6, 1, 8, 3, 2, 5, 4, 7], [0] * 8])
def test_echoes_are_told_apart_by_their_time_whatever_number_an_image_has(tmp_path: Path, numbers: list[int]) -> None:
    def echo(d: Any, k: int) -> None:
        d.EchoNumbers, d.EchoTime, d.InstanceNumber = "", [4.76, 2.3][k // 4], numbers[k]
        d.ImagePositionPatient = [0, 0, 2 * (k % 4)]

    both = slices(np.concatenate([VOXELS, VOXELS + 1]), echo)
    volume = read_volume(write(tmp_path, both[::3] + both[1::3] + both[2::3]))
    np.testing.assert_array_equal(volume.data, [VOXELS + 1, VOXELS])  # the earlier one first


def test_times_before_and_after_midnight_come_in_their_order(tmp_path: Path) -> None:
    clock = ["235930", "235940", "235950", "000000", "000010", "000020", "000030", "000040"]

    def acquire(d: Any, k: int) -> None:
        d.AcquisitionDate, d.AcquisitionTime = ("20200101" if k < 3 else "20200102"), clock[k]
        d.ImagePositionPatient = [0, 0, 2 * (k % 4)]

    volume = read_volume(write(tmp_path, slices(np.concatenate([VOXELS, VOXELS + 1]), acquire)))
    np.testing.assert_array_equal(volume.data, [VOXELS, VOXELS + 1])


@pytest.mark.parametrize("beside_mm", [0.0, 40.0])
def test_images_at_one_height_but_beside_each_other_are_no_channels(tmp_path: Path, beside_mm: float) -> None:
    def place(d: Any, k: int) -> None:
        d.ImageOrientationPatient = [1, 0, 0, 0, 0, -1]  # coronal; the second station lies below the first
        d.ImagePositionPatient = [0, 2 * (k % 4), -beside_mm * (k // 4)]

    folder = write(tmp_path, slices(np.concatenate([VOXELS, VOXELS + 1]), place))
    if beside_mm:
        with pytest.raises(UnreadableVolume, match=r"up to 40 mm beside each other.*separate series"):
            read_volume(folder)
    else:
        np.testing.assert_array_equal(read_volume(folder).data, [VOXELS, VOXELS + 1])


@pytest.mark.parametrize("angle", [0.0, 0.3])
@pytest.mark.parametrize("step", [0.4, 0.5, 0.625, 1.25])
def test_positions_rounded_to_a_tenth_are_even_enough(tmp_path: Path, step: float, angle: float) -> None:
    normal = np.array([0, -np.sin(angle), np.cos(angle)])

    def place(d: Any, k: int) -> None:
        d.ImageOrientationPatient = [1, 0, 0, 0, round(np.cos(angle), 8), round(np.sin(angle), 8)]
        d.ImagePositionPatient = [f"{part:.1f}" for part in step * k * normal]

    volume = read_volume(write(tmp_path, slices(np.repeat(VOXELS, 10, axis=0), place, step)))
    assert volume.geometry.spacing[0] == pytest.approx(step, abs=0.005)
    assert not volume.geometry.is_sheared


def test_uneven_positions_with_more_digits_are_still_refused(tmp_path: Path) -> None:
    def place(d: Any, k: int) -> None:
        d.ImagePositionPatient = [0, 0, 0.4 * k + (0.09003 if k == 2 else 0)]

    with pytest.raises(UnreadableVolume, match="not evenly spaced"):
        read_volume(write(tmp_path, slices(np.repeat(VOXELS, 2, axis=0), place)))


@pytest.mark.parametrize("numbered", [True, False])
def test_two_spacings_are_told_from_missing_slices_by_the_numbers_of_the_images(tmp_path: Path, numbered: bool) -> None:
    heights = [0, 5, 10, 15, 20, 30, 40, 50]
    numbers = [1, 2, 3, 4, 5, 6, 7, 8] if numbered else [1, 2, 3, 4, 5, 7, 9, 11]

    def place(d: Any, k: int) -> None:
        d.ImagePositionPatient, d.InstanceNumber = [0, 0, heights[k]], numbers[k]

    folder = write(tmp_path, slices(np.repeat(VOXELS, 2, axis=0), place))
    with pytest.raises(UnreadableVolume) as caught:
        read_volume(folder)
    assert ("missing" in str(caught.value)) != numbered
    assert caught.match("5 mm apart, and from the one at .*20.* on 10 mm" if numbered else "3 of 11 slices are missing")


def report(folder: Path, modality: str) -> Path:
    """Write an object without pixels that lies beside images."""

    def strip(d: Any, k: int) -> None:
        d.Modality, d.SOPClassUID = modality, "1.2.840.10008.5.1.4.1.1.88.11"
        del d.Rows, d.Columns, d.PixelData

    return write(folder, slices(VOXELS[:1], strip), "report.dcm")


@pytest.mark.parametrize("modality", ["SR", "RTSTRUCT", "PR", "REG"])
def test_one_nifti_beside_a_report_is_read(tmp_path: Path, modality: str) -> None:
    report(tmp_path, modality)
    with pytest.raises(UnreadableVolume, match=r"holds .*, but no image"):
        read_volume(tmp_path)
    nib.save(nib.Nifti1Image(VOXELS.T, np.eye(4)), tmp_path / "scan.nii.gz")
    np.testing.assert_array_equal(read_volume(tmp_path).data, VOXELS)
    np.testing.assert_array_equal(read_labels(tmp_path).data, VOXELS)
    assert [offer.path.name for offer in preview_series(tmp_path)] == ["scan.nii.gz"]
    nib.save(nib.Nifti1Image(VOXELS.T, np.eye(4)), tmp_path / "other.nii.gz")
    with pytest.raises(UnreadableVolume, match="holds 2 volumes"):
        read_volume(tmp_path)


def test_a_series_of_images_is_no_label_map_unnoticed(tmp_path: Path) -> None:
    with pytest.raises(UnreadableVolume, match=r"series of images \(CT\) with values from -495"):
        read_labels(write(tmp_path / "ct", slices(VOXELS - 500)))
    labels = read_labels(write(tmp_path / "mask", slices(VOXELS % 3)))
    np.testing.assert_array_equal(labels.data, VOXELS % 3)
    assert any("not a DICOM SEG" in text for text in labels.meta["warnings"])


@pytest.mark.parametrize(("kind", "units"), [(None, "HU"), ("HU", "HU"), ("US", "HU"), ("Z_EFF", "Z_EFF")])
def test_a_map_derived_from_a_ct_is_not_called_hounsfield_units(tmp_path: Path, kind: str | None, units: str) -> None:
    made = slices(change=spoil(RescaleType=kind) if kind else None)
    assert read_volume(write(tmp_path, made)).meta["units"] == units


def test_slices_without_the_scaling_of_the_others_are_said(tmp_path: Path) -> None:
    made = slices(change=spoil(RescaleIntercept=-1024))
    del made[1].RescaleSlope, made[1].RescaleIntercept
    volume = read_volume(write(tmp_path, made))
    np.testing.assert_array_equal(volume.data + 1024 * np.array([1, 0, 1, 1])[:, None, None], VOXELS)
    assert any("Some slices state no rescale slope" in text for text in volume.meta["warnings"])


def test_a_series_cut_into_folders_beside_others_is_never_found_as_a_part_of_it(tmp_path: Path) -> None:
    cut = slices()
    write(tmp_path / "disc" / "0", cut[:3])
    write(tmp_path / "disc" / "1", cut[3:])
    write(tmp_path / "disc" / "1", slices(VOXELS + 1), "other-{}.dcm")
    found = find_volumes(tmp_path)
    assert found == (tmp_path / "disc", tmp_path / "disc" / "1" / "other-0.dcm")
    np.testing.assert_array_equal(read_volume(found[1]).data, VOXELS + 1)
    with pytest.raises(UnreadableVolume, match="2 image series"):
        read_volume(found[0])
    np.testing.assert_array_equal(read_volume(found[0], series=cut[0].SeriesInstanceUID).data, VOXELS)


def enhanced(change: Callable[[Any], Any] | None = None) -> Dataset:
    """Make one multi-frame object of the slices."""
    d = slices()[0]
    d.SOPClassUID, d.NumberOfFrames = "1.2.840.10008.5.1.4.1.1.2.1", len(VOXELS)
    frames = []
    for k in range(len(VOXELS)):
        frame, place, plane, measures = Dataset(), Dataset(), Dataset(), Dataset()
        place.ImagePositionPatient, plane.ImageOrientationPatient = [0, 0, 2.0 * k], [1, 0, 0, 0, 1, 0]
        measures.PixelSpacing, measures.SliceThickness = [1, 1], 2
        frame.PlanePositionSequence, frame.PlaneOrientationSequence = [place], [plane]
        frame.PixelMeasuresSequence = [measures]
        frames.append(frame)
    del d.ImagePositionPatient, d.ImageOrientationPatient, d.PixelSpacing
    d.PerFrameFunctionalGroupsSequence, d.PixelData = frames, VOXELS.astype("<i2").tobytes()
    if change:
        change(d)
    return d


def test_a_multi_frame_object_that_describes_fewer_frames_than_it_has_is_refused(tmp_path: Path) -> None:
    np.testing.assert_array_equal(read_volume(write(tmp_path / "whole", [enhanced()])).data, VOXELS)
    short = enhanced(lambda d: d.PerFrameFunctionalGroupsSequence.pop())
    with pytest.raises(UnreadableVolume, match="has 4 frames, but describes 3"):
        read_volume(write(tmp_path / "short", [short]))


@pytest.mark.parametrize("indices", [1, 2])
def test_a_multi_frame_object_may_number_its_frames_by_one_index_or_more(tmp_path: Path, indices: int) -> None:
    def number(d: Any) -> None:
        for k, frame in enumerate(d.PerFrameFunctionalGroupsSequence):
            content = Dataset()
            content.DimensionIndexValues = [1, k + 1][-indices:]
            frame.FrameContentSequence = [content]

    np.testing.assert_array_equal(read_volume(write(tmp_path, [enhanced(number)])).data, VOXELS)


def test_objects_of_one_time_each_come_in_the_order_of_their_numbers(tmp_path: Path) -> None:
    def number(d: Any) -> None:
        for k, frame in enumerate(d.PerFrameFunctionalGroupsSequence):
            content = Dataset()
            content.DimensionIndexValues = [1, k + 1]
            frame.FrameContentSequence = [content]

    times = [enhanced(number) for _ in range(3)]
    for k, d in enumerate(times):
        d.SeriesInstanceUID, d.FrameOfReferenceUID, d.InstanceNumber = "1.2", "1.3", k + 1
        d.PixelData = (VOXELS + k).astype("<i2").tobytes()
    volume = read_volume(write(tmp_path, [times[2], times[0], times[1]]))
    np.testing.assert_array_equal(volume.data, [VOXELS, VOXELS + 1, VOXELS + 2])


def test_objects_of_one_time_each_beside_another_series_are_never_found_as_the_first_of_them(tmp_path: Path) -> None:
    times = [enhanced() for _ in range(2)]
    for k, d in enumerate(times):
        d.SeriesInstanceUID, d.FrameOfReferenceUID, d.InstanceNumber = "1.2", "1.3", k + 1
        d.PixelData = (VOXELS + k).astype("<i2").tobytes()
    write(tmp_path, times)
    assert find_volumes(tmp_path) == (tmp_path,)
    write(tmp_path, slices(), "other-{}.dcm")
    assert find_volumes(tmp_path) == (tmp_path, tmp_path / "other-0.dcm")
    np.testing.assert_array_equal(read_volume(tmp_path, series="1.2").data, [VOXELS, VOXELS + 1])
    (tmp_path / "001.dcm").unlink()
    assert find_volumes(tmp_path) == (tmp_path / "000.dcm", tmp_path / "other-0.dcm")


def test_one_nifti_beside_a_cut_dicom_file_is_read_and_the_cut_file_alone_says_what_is_wrong(tmp_path: Path) -> None:
    cut = tmp_path / "cut.dcm"
    cut.write_bytes(bytes(128) + b"DICM" + b"\x02\0\0\0UL\x04\0\xff\xff")
    with pytest.raises(UnreadableVolume):
        read_volume(tmp_path)
    nib.save(nib.Nifti1Image(VOXELS.T, np.eye(4)), tmp_path / "scan.nii.gz")
    np.testing.assert_array_equal(read_volume(tmp_path).data, VOXELS)
