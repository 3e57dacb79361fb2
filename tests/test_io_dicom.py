"""DICOM as it is stored, not as it is declared; and what makes no volume is refused for its real cause."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.filebase import DicomBytesIO
from pydicom.filewriter import write_dataset, write_file_meta_info
from pydicom.uid import (
    CTImageStorage,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    generate_uid,
)

from napari_fmseg.errors import UnreadableVolume
from napari_fmseg.io import find_volumes, list_series, read_volume

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


@pytest.mark.parametrize("implicit", [True, False])
@pytest.mark.parametrize("name", ["{}.dcm", "IM_{:04d}.MR", "MR.1.3.12.2.1107.{}", "I.{:03d}", "{}"])
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
