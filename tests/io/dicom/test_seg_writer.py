"""DICOM SEG: in the right place for SimpleITK and highdicom, with names, codes and references, and nothing private."""

import itertools
import os
import shutil
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
import SimpleITK as sitk
from pydicom.sr import _concepts_dict
from pydicom.uid import EnhancedCTImageStorage, ExplicitVRLittleEndian, RLELossless, generate_uid

from napari_fmseg._napari.opening.layer_data import layers_of
from napari_fmseg.core.errors import GeometryMismatch, MissingExtra, UnreadableVolume, UnwritableVolume
from napari_fmseg.core.terminology import label_info
from napari_fmseg.core.volume import Geometry, LabelMap
from napari_fmseg.io import read_labels, read_volume, write_labels
from napari_fmseg.io.dicom.seg_writer import write_dicom_seg
from napari_fmseg.io.label_classes import only

hd = pytest.importorskip("highdicom")

SHARED = Path(os.environ.get("FMSEG_SHARED", Path(__file__).parents[3].parent / "shared"))
DATA = SHARED / "data"
real = pytest.mark.skipif(not DATA.is_dir(), reason="the real volumes are not here (FMSEG_SHARED says where)")
SHAPE = (6, 10, 12)  # GDCM loses voxels of the last byte where it is not full
SPACING = (2.5, 0.8, 0.7)
TURN = np.linalg.qr(np.eye(3) + 0.3 * np.random.default_rng(5).standard_normal((3, 3)))[0]
TURN = TURN * np.sign(np.diag(TURN))


def make_series(
    folder: Path,
    *,
    turn: np.ndarray = TURN,
    reverse: bool = False,
    n_slices: int = SHAPE[0],
    digits: int = 10,
    **tags: Any,
) -> Geometry:
    """Write a CT series whose rows, columns and slices run along the columns of `turn` (x, y, z)."""
    folder.mkdir(parents=True)
    frame, series, study = generate_uid(), generate_uid(), generate_uid()
    origin = np.array([12.5, -31.0, 40.0])
    for z in range(n_slices):
        meta = pydicom.dataset.FileMetaDataset()
        meta.TransferSyntaxUID = ExplicitVRLittleEndian
        meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.2"
        meta.MediaStorageSOPInstanceUID = generate_uid()
        image = pydicom.Dataset()
        image.file_meta = meta
        image.SOPClassUID, image.SOPInstanceUID = meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID
        image.StudyInstanceUID, image.SeriesInstanceUID, image.FrameOfReferenceUID = study, series, frame
        image.Modality, image.SeriesNumber, image.InstanceNumber = "CT", 4, n_slices - z if reverse else z + 1
        image.SpecificCharacterSet, image.PatientName, image.PatientID = "ISO_IR 100", "Müller^Eva", "4711"
        image.Rows, image.Columns = SHAPE[1:]
        image.PixelSpacing, image.SliceThickness = [SPACING[1], SPACING[2]], 4.0  # overlapping slices
        noise = 1e-7 * (z % 2)  # as scanners round each slice anew
        image.ImageOrientationPatient = [f"{v + noise:.12f}" for v in (*turn[:, 0], *turn[:, 1])]
        image.ImagePositionPatient = [f"{v:.{digits}f}" for v in origin + turn[:, 2] * SPACING[0] * z]
        image.BitsAllocated = image.BitsStored = 16
        image.HighBit, image.PixelRepresentation, image.SamplesPerPixel = 15, 1, 1
        image.PhotometricInterpretation, image.RescaleSlope, image.RescaleIntercept = "MONOCHROME2", 1, -1024
        image.PixelData = np.full(SHAPE[1:], z, "<i2").tobytes()
        for name, value in tags.items():
            if value is None:
                delattr(image, name)
            else:
                setattr(image, name, value)
        number = n_slices - z if reverse else z
        image.save_as(folder / f"{number:02}.dcm", enforce_file_format=True)
    return read_volume(folder).geometry


def labels_on(geometry: Geometry) -> LabelMap:
    """Make classes 2 and 7 of which no slice looks like another, and 5 that is named and absent."""
    data = np.zeros(geometry.shape, np.int16)
    for z in range(geometry.shape[0]):
        data[z, 1 : 3 + z // 2, 2 : 5 + z] = 2
        data[z, 5 : 7 + z % 3, 1 : 4 + z // 3] = 7
    data[0] = 0  # a slice without labels
    names = {2: "Left parotid", 5: "absent", 7: "größeres Ding"}
    return LabelMap(data, geometry, {}, names, {2: (0.2, 0.9, 0.1)})


def assert_in_place(image: sitk.Image, labels: LabelMap, value: int) -> None:
    """Every voxel of a class lies where SimpleITK finds it, and no other."""
    found = np.argwhere(sitk.GetArrayFromImage(image) > 0)
    assert len(found) == np.count_nonzero(labels.data == value)
    for index in found[:: max(1, len(found) // 200)]:
        place = np.array(image.TransformContinuousIndexToPhysicalPoint([float(i) for i in index[::-1]]))[::-1]
        ours = np.linalg.solve(labels.geometry.affine, [*place, 1])[:3]
        np.testing.assert_allclose(ours, np.rint(ours), atol=1e-2)
        assert labels.data[tuple(np.rint(ours).astype(int))] == value


@pytest.fixture
def series(tmp_path: Path) -> Path:
    make_series(tmp_path / "ct")
    return tmp_path / "ct"


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("turn", [np.eye(3), TURN, TURN @ np.diag([1, -1, -1]), TURN[:, [1, 2, 0]]])
def test_labels_of_an_oblique_series_lie_in_place_for_simpleitk_and_highdicom(
    tmp_path: Path, turn: np.ndarray, reverse: bool
) -> None:
    geometry = make_series(tmp_path / "ct", turn=turn, reverse=reverse)
    labels = labels_on(geometry)
    for value in (2, 7):
        path = write_dicom_seg(only(labels, [value]), tmp_path / f"{value}.dcm", tmp_path / "ct")
        assert_in_place(sitk.ReadImage(str(path)), labels, value)
    path = write_labels(labels, tmp_path / "all.dcm", source=tmp_path / "ct")
    seg = hd.seg.segread(path)
    assert seg.number_of_segments == 2
    assert seg.NumberOfFrames == 2 * (SHAPE[0] - 1)  # the slice without labels is left out
    for number, value in ((1, 2), (2, 7)):
        volume = seg.get_volume(segment_numbers=[number], combine_segments=True)
        for index in np.argwhere(volume.array > 0):
            place = (volume.affine @ [*index, 1])[2::-1]
            assert labels.data[tuple(np.rint(np.linalg.solve(geometry.affine, [*place, 1])[:3]).astype(int))] == value
        assert np.count_nonzero(volume.array) == np.count_nonzero(labels.data == value)


def test_a_seg_opens_in_the_window_as_labels_with_names_and_one_that_overlaps_says_so(
    series: Path, tmp_path: Path
) -> None:
    labels = labels_on(read_volume(series).geometry)
    path = write_dicom_seg(labels, tmp_path / "seg.dcm", series)
    [(data, options, kind)] = layers_of(path)
    assert kind == "labels"
    assert sorted(np.unique(data)) == [0, 1, 2]  # numbered anew, as DICOM asks
    assert "Left parotid" in options["features"]["name"]
    seg = pydicom.dcmread(path)
    item = seg.PerFrameFunctionalGroupsSequence
    item[len(item) // 2 :] = item[: len(item) - len(item) // 2]  # the second class lies where the first does
    for n, frame in enumerate(item):
        frame.SegmentIdentificationSequence[0].ReferencedSegmentNumber = 1 + n % 2
    seg.PixelData = b"\xff" * len(seg.PixelData)
    seg.save_as(tmp_path / "odd.dcm")
    with pytest.raises(UnreadableVolume, match="overlap"):
        layers_of(tmp_path / "odd.dcm")


def test_every_frame_refers_to_the_slice_it_was_drawn_on(series: Path, tmp_path: Path) -> None:
    labels = labels_on(read_volume(series).geometry)
    seg = pydicom.dcmread(write_dicom_seg(labels, tmp_path / "a.dcm", series))
    by_uid = {tags.SOPInstanceUID: tags for tags in map(pydicom.dcmread, series.iterdir())}
    first = next(iter(by_uid.values()))
    assert seg.FrameOfReferenceUID == first.FrameOfReferenceUID
    assert seg.StudyInstanceUID == first.StudyInstanceUID
    assert seg.ReferencedSeriesSequence[0].SeriesInstanceUID == first.SeriesInstanceUID
    assert seg.SeriesInstanceUID != first.SeriesInstanceUID
    assert {item.ReferencedSOPInstanceUID for item in seg.ReferencedSeriesSequence[0].ReferencedInstanceSequence} == {
        *by_uid
    }
    numbers = []
    for frame, pixels in zip(seg.PerFrameFunctionalGroupsSequence, seg.pixel_array, strict=True):
        source = by_uid[frame.DerivationImageSequence[0].SourceImageSequence[0].ReferencedSOPInstanceUID]
        assert frame.PlanePositionSequence[0].ImagePositionPatient == pytest.approx(
            [float(v) for v in source.ImagePositionPatient], abs=1e-6
        )
        numbers.append(frame.SegmentIdentificationSequence[0].ReferencedSegmentNumber)
        z = int(source.pixel_array[0, 0])
        np.testing.assert_array_equal(pixels > 0, labels.data[z] == {1: 2, 2: 7}[numbers[-1]])
    assert set(numbers) == {1, 2}


def one_object(series: Path, n_times: int) -> pydicom.Dataset:
    """Put the slices of a series into one multi-frame object, the last slice first, all times of a slice together."""
    images = [pydicom.dcmread(path) for path in sorted(series.iterdir(), reverse=True)]
    whole = pydicom.Dataset(images[0])
    whole.file_meta = images[0].file_meta
    whole.SOPClassUID = whole.file_meta.MediaStorageSOPClassUID = EnhancedCTImageStorage
    frames, pixels = [], b""
    for image, time in itertools.product(images, range(n_times)):
        frame, content, place, plane, measures = (pydicom.Dataset() for _ in range(5))
        content.TemporalPositionIndex = time + 1
        content.DimensionIndexValues = [time + 1, int(image.InstanceNumber)]
        place.ImagePositionPatient = image.ImagePositionPatient
        plane.ImageOrientationPatient = images[0].ImageOrientationPatient
        measures.PixelSpacing, measures.SliceThickness = image.PixelSpacing, image.SliceThickness
        frame.FrameContentSequence, frame.PlanePositionSequence = [content], [place]
        frame.PlaneOrientationSequence, frame.PixelMeasuresSequence = [plane], [measures]
        frames.append(frame)
        pixels += image.PixelData
    del whole.ImagePositionPatient, whole.ImageOrientationPatient, whole.PixelSpacing, whole.SliceThickness
    whole.PerFrameFunctionalGroupsSequence, whole.NumberOfFrames, whole.PixelData = frames, len(frames), pixels
    return whole


@pytest.mark.parametrize("n_times", [1, 2])
def test_a_seg_on_one_object_of_many_frames_refers_to_those_of_the_first_time(
    series: Path, tmp_path: Path, n_times: int
) -> None:
    source = one_object(series, n_times)
    source.save_as(tmp_path / "source.dcm", enforce_file_format=True)
    labels = labels_on(read_volume(tmp_path / "source.dcm").geometry)
    path = write_dicom_seg(labels, tmp_path / "a.dcm", tmp_path / "source.dcm")
    for frame in pydicom.dcmread(path).PerFrameFunctionalGroupsSequence:
        number = frame.DerivationImageSequence[0].SourceImageSequence[0].ReferencedFrameNumber
        meant = source.PerFrameFunctionalGroupsSequence[number - 1]
        assert meant.FrameContentSequence[0].TemporalPositionIndex == 1
        np.testing.assert_allclose(
            *(one.PlanePositionSequence[0].ImagePositionPatient for one in (frame, meant)), atol=1e-6
        )
    again = read_labels(path)
    assert again.geometry.matches(labels.geometry.crop((slice(1, None), slice(None), slice(None))))
    np.testing.assert_array_equal(again.data, np.select([labels.data == 2, labels.data == 7], [1, 2])[1:])


def test_segments_carry_names_codes_colours_and_what_made_them(series: Path, tmp_path: Path) -> None:
    labels = labels_on(read_volume(series).geometry)
    seg = pydicom.dcmread(write_dicom_seg(labels, tmp_path / "a.dcm", series, model="headneck-ct"))
    parotid, thing = seg.SegmentSequence
    assert (parotid.SegmentLabel, thing.SegmentLabel) == ("Left parotid", "größeres Ding")
    kind = parotid.SegmentedPropertyTypeCodeSequence[0]
    assert (kind.CodeValue, kind.CodingSchemeDesignator, kind.CodeMeaning) == ("45289007", "SCT", "Parotid gland")
    assert kind.SegmentedPropertyTypeModifierCodeSequence[0].CodeMeaning == "Left"
    assert parotid.SegmentedPropertyCategoryCodeSequence[0].CodeMeaning == "Anatomical Structure"
    assert thing.SegmentedPropertyTypeCodeSequence[0].CodeMeaning == "Tissue"
    color = hd.color.CIELabColor.from_dicom_value([int(v) for v in parotid.RecommendedDisplayCIELabValue])
    assert np.array(color.to_rgb()) / 255 == pytest.approx((0.2, 0.9, 0.1), abs=0.005)
    assert "RecommendedDisplayCIELabValue" not in thing
    for segment in seg.SegmentSequence:
        assert segment.SegmentAlgorithmName == "napari-fmseg headneck-ct"
        assert segment.SegmentAlgorithmType == "SEMIAUTOMATIC"
        assert segment.SegmentationAlgorithmIdentificationSequence[0].AlgorithmVersion
        assert "Research use only" in segment.SegmentDescription
    assert seg.ContentQualification == "RESEARCH"
    assert "Research use only" in seg.ContentDescription


def test_nothing_of_the_patient_goes_over_but_what_ties_the_study_together(tmp_path: Path) -> None:
    private = {"PatientAge": "061Y", "PatientComments": "SECRET1", "InstitutionName": "SECRET2",
               "StationName": "SECRET3", "OperatorsName": "SECRET4", "StudyDescription": "SECRET5",
               "AdditionalPatientHistory": "SECRET6", "PatientAddress": "SECRET7", "DeviceSerialNumber": "SECRET8",
               "OtherPatientIDs": "SECRET9"}  # fmt: skip
    geometry = make_series(tmp_path / "ct", **private)
    path = write_dicom_seg(labels_on(geometry), tmp_path / "a.dcm", tmp_path / "ct")
    content = path.read_bytes()
    assert b"SECRET" not in content
    assert b"061Y" not in content
    seg = pydicom.dcmread(path)
    assert (str(seg.PatientName), seg.PatientID) == ("Müller^Eva", "4711")
    assert seg.AccessionNumber == ""


@pytest.mark.parametrize("flips", list(itertools.product((False, True), repeat=3)))
def test_labels_listed_in_another_order_are_put_in_order(series: Path, tmp_path: Path, flips: tuple[bool, ...]) -> None:
    labels = labels_on(read_volume(series).geometry)
    axes = tuple(axis for axis, flip in enumerate(flips) if flip)
    to_source = np.eye(4)
    for axis in axes:
        to_source[axis, axis], to_source[axis, 3] = -1, SHAPE[axis] - 1
    order = [2, 0, 1]
    turned = np.flip(labels.data, axes).transpose(order)
    affine = (labels.geometry.affine @ to_source)[:, [*order, 3]]
    other = LabelMap(turned, Geometry(turned.shape, affine), {}, labels.names)
    again = read_labels(write_dicom_seg(other, tmp_path / "a.dcm", series))
    np.testing.assert_array_equal(again.data, np.select([labels.data == 2, labels.data == 7], [1, 2])[1:])


def test_a_seg_is_read_back_with_place_names_and_colours(series: Path, tmp_path: Path) -> None:
    labels = labels_on(read_volume(series).geometry)
    again = read_labels(write_dicom_seg(labels, tmp_path / "a.dcm", series))
    box = (slice(1, None), slice(None), slice(None))  # of the slice without labels nothing is in the file
    assert again.geometry.matches(labels.geometry.crop(box))
    np.testing.assert_array_equal(again.data, np.select([labels.data == 2, labels.data == 7], [1, 2])[box])
    assert again.names == {1: "Left parotid", 2: "größeres Ding"}
    assert again.colors[1] == pytest.approx((0.2, 0.9, 0.1), abs=0.001)


@pytest.mark.parametrize("syntax", [ExplicitVRLittleEndian, RLELossless])
def test_a_label_map_segmentation_is_read(tmp_path: Path, syntax: str) -> None:
    empty = ("PatientBirthDate", "PatientSex", "StudyDate", "StudyTime", "StudyID", "AccessionNumber",
             "ReferringPhysicianName")  # fmt: skip
    geometry = make_series(tmp_path / "ct", **dict.fromkeys(empty, ""))
    voxels = np.zeros(SHAPE, np.uint8)
    voxels[1:3, 2:5, 3:9], voxels[2:, 6:9, 1:4] = 1, 2
    kind = hd.sr.CodedConcept("10200004", "SCT", "Liver")
    segments = [
        hd.seg.SegmentDescription(n, f"part {n}", hd.sr.CodedConcept("123037004", "SCT", "Structure"), kind, "MANUAL")
        for n in (1, 2)
    ]
    images = [pydicom.dcmread(path) for path in sorted((tmp_path / "ct").iterdir())]
    for image in images:
        image.ImageOrientationPatient = images[0].ImageOrientationPatient
    seg = hd.seg.Segmentation(
        images, voxels, "LABELMAP", segments, hd.UID(), 9, hd.UID(), 1, "maker", "model", "1", "0",
        transfer_syntax_uid=syntax,
    )  # fmt: skip
    seg.save_as(tmp_path / "a.dcm")
    again = read_labels(tmp_path / "a.dcm")
    box = (slice(1, None), slice(None), slice(None))  # of the slice without labels nothing is in the file
    np.testing.assert_array_equal(again.data, voxels[box])
    assert again.geometry.matches(geometry.crop(box))
    assert again.names == {1: "part 1", 2: "part 2"}


def test_a_gap_between_the_slices_of_a_seg_is_kept(series: Path, tmp_path: Path) -> None:
    labels = labels_on(read_volume(series).geometry)
    labels.data[2:4] = 0
    again = read_labels(write_dicom_seg(labels, tmp_path / "a.dcm", series))
    np.testing.assert_array_equal(again.data > 0, labels.data[1:] > 0)
    assert again.geometry.spacing == pytest.approx(SPACING)


def restated(path: Path, **measures: Any) -> Path:
    """Change what a SEG says of its spacing; None takes it out."""
    seg = pydicom.dcmread(path)
    for name, value in measures.items():
        item = seg.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0]
        if value is None:
            delattr(item, name)
        else:
            setattr(item, name, value)
    seg.save_as(path)
    return path


@pytest.mark.parametrize("turn", [np.eye(3), TURN])
@pytest.mark.parametrize("painted", [(0, 2, 4), (0, 3), (1, 3, 5), (0, 2, 5), (4,), (1, 2, 5), (0, 5)])
def test_a_seg_without_its_empty_slices_keeps_its_spacing_and_volume(
    tmp_path: Path, painted: tuple, turn: np.ndarray
) -> None:
    geometry = make_series(tmp_path / "ct", turn=turn)
    data = np.zeros(SHAPE, np.uint8)
    data[list(painted), 2:7, 3:9] = 1
    path = write_dicom_seg(LabelMap(data, geometry, {}, {1: "lesion"}), tmp_path / "a.dcm", tmp_path / "ct")
    again = read_labels(path)
    assert again.geometry.matches(geometry.crop((slice(painted[0], painted[-1] + 1), slice(None), slice(None))))
    np.testing.assert_array_equal(again.data, data[painted[0] : painted[-1] + 1])
    assert again.volumes_ml()[1] == pytest.approx(data.sum() * geometry.voxel_ml)
    assert not again.meta["warnings"]


@pytest.mark.parametrize(
    ("painted", "measures", "spacing", "said"),
    [
        ((0, 2, 4), {"SpacingBetweenSlices": None, "SliceThickness": 2.5}, 2.5, "thickness of 2.5 mm was taken"),
        ((0, 2, 5), {"SpacingBetweenSlices": None}, 2.5, "not state"),  # 5 and 7.5 mm; a thickness of 4 mm overlaps
        ((0, 2, 4), {"SpacingBetweenSlices": None}, 5.0, "does not state how far apart its slices are; 5 mm was taken"),
        ((0, 1, 2), {"SpacingBetweenSlices": 7.0}, 2.5, "7 mm between its slices, which does not fit"),
        ((3,), {"SpacingBetweenSlices": None}, 4.0, ""),
        ((3,), {"SpacingBetweenSlices": None, "SliceThickness": None}, 1.0, "1 mm was assumed"),
    ],
)
def test_a_seg_that_states_no_or_a_wrong_spacing_takes_one_that_fits_and_says_so(
    series: Path, tmp_path: Path, painted: tuple, measures: dict, spacing: float, said: str
) -> None:
    data = np.zeros(SHAPE, np.uint8)
    data[list(painted), 2:7, 3:9] = 1
    labels = LabelMap(data, read_volume(series).geometry, {}, {1: "lesion"})
    again = read_labels(restated(write_dicom_seg(labels, tmp_path / "a.dcm", series), **measures))
    assert again.geometry.spacing[0] == pytest.approx(spacing)
    assert said in " ".join(again.meta["warnings"])
    assert bool(said) == bool(again.meta["warnings"])


TILTED = np.array([[1, 0, 0], [0, 1, np.sin(0.27)], [0, 0, np.cos(0.27)]])
"""As a gantry stacks slices: the step from one to the next leans by 15 degrees."""


@pytest.mark.parametrize("turn", [pytest.param(TILTED, id="tilted"), pytest.param(TURN, id="oblique")])
@pytest.mark.parametrize("digits", [10, 1])
def test_a_seg_on_many_slices_is_read_back_in_its_place(tmp_path: Path, turn: np.ndarray, digits: int) -> None:
    geometry = make_series(tmp_path / "ct", turn=turn, n_slices=30, digits=digits)
    labels = labels_on(geometry)
    path = write_dicom_seg(labels, tmp_path / "a.dcm", tmp_path / "ct")
    measures = pydicom.dcmread(path).SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0]
    normal = np.cross(turn[:, 0], turn[:, 1])
    assert measures.SpacingBetweenSlices == pytest.approx(SPACING[0] * (normal @ turn[:, 2]), abs=0.003)
    again = read_labels(path)
    assert again.geometry.matches(geometry.crop((slice(1, None), slice(None), slice(None))), atol_mm=0.1)
    np.testing.assert_array_equal(again.data, np.select([labels.data == 2, labels.data == 7], [1, 2])[1:])
    assert not again.meta["warnings"]


@pytest.mark.parametrize("stated", [2.4, 2.5, 2.6])
def test_a_seg_that_states_its_spacing_roughly_keeps_its_slices_apart(tmp_path: Path, stated: float) -> None:
    labels = labels_on(make_series(tmp_path / "ct", n_slices=30))
    path = write_dicom_seg(labels, tmp_path / "a.dcm", tmp_path / "ct")
    again = read_labels(restated(path, SpacingBetweenSlices=stated))
    assert again.geometry.matches(labels.geometry.crop((slice(1, None), slice(None), slice(None))))


def test_a_seg_whose_positions_are_rounded_to_a_tenth_keeps_its_stated_spacing(series: Path, tmp_path: Path) -> None:
    labels = labels_on(read_volume(series).geometry)
    seg = pydicom.dcmread(write_dicom_seg(labels, tmp_path / "a.dcm", series))
    for frame in seg.PerFrameFunctionalGroupsSequence:
        place = frame.PlanePositionSequence[0]
        place.ImagePositionPatient = [f"{float(part) / 4:.1f}" for part in place.ImagePositionPatient]
    seg.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0].SpacingBetweenSlices = 0.625
    seg.save_as(tmp_path / "a.dcm")
    again = read_labels(tmp_path / "a.dcm")
    assert again.geometry.shape[0] == SHAPE[0] - 1
    assert again.geometry.spacing[0] == pytest.approx(0.625)


def test_the_files_of_the_series_or_one_of_them_will_do_as_source(series: Path, tmp_path: Path) -> None:
    labels = labels_on(read_volume(series).geometry)
    files = sorted(series.iterdir())
    for source in (files, [str(file) for file in files], files[3], str(series)):
        assert hd.seg.segread(write_dicom_seg(labels, tmp_path / "a.dcm", source)).NumberOfFrames == 10


def test_the_folder_or_zip_of_a_seg_alone_or_beside_its_series_gives_its_labels(tmp_path: Path) -> None:
    labels = labels_on(make_series(tmp_path / "study" / "ct"))
    seg = write_dicom_seg(labels, tmp_path / "study" / "seg" / "1-1.dcm", tmp_path / "study" / "ct")
    twin = read_labels(seg)
    shutil.make_archive(str(tmp_path / "seg"), "zip", seg.parent)
    for path in (seg.parent, tmp_path / "study", tmp_path / "seg.zip"):
        again = read_labels(path)
        np.testing.assert_array_equal(again.data, twin.data)
        assert again.names == twin.names
    ((data, _, kind),) = layers_of(seg.parent)
    assert kind == "labels"
    np.testing.assert_array_equal(data, twin.data)
    assert [kind for _, _, kind in layers_of(tmp_path / "study")] == ["image"]
    write_dicom_seg(labels, seg.with_name("2.dcm"), tmp_path / "study" / "ct")
    with pytest.raises(UnreadableVolume, match=r"seg holds 2 DICOM SEG. Choose one of them:\n  1-1.dcm\n  2.dcm"):
        read_labels(seg.parent)


def test_a_seg_beside_its_series_does_not_disturb_it(series: Path) -> None:
    volume = read_volume(series)
    write_dicom_seg(labels_on(volume.geometry), series / "seg.dcm", series)
    write_dicom_seg(labels_on(volume.geometry), series / "seg.dcm", series)
    np.testing.assert_array_equal(read_volume(series).data, volume.data)


def test_blanked_identifiers_are_replaced_by_the_same_ones_each_time(tmp_path: Path) -> None:
    geometry = make_series(
        tmp_path / "ct", StudyInstanceUID="", SeriesInstanceUID="", SOPInstanceUID="", SOPClassUID=""
    )
    one, two = (pydicom.dcmread(write_dicom_seg(labels_on(geometry), tmp_path / n, tmp_path / "ct")) for n in "ab")
    assert one.StudyInstanceUID == two.StudyInstanceUID != ""
    referred = one.ReferencedSeriesSequence[0]
    assert referred.SeriesInstanceUID == two.ReferencedSeriesSequence[0].SeriesInstanceUID != ""
    files = {pydicom.dcmread(path).file_meta.MediaStorageSOPInstanceUID for path in (tmp_path / "ct").iterdir()}
    assert {item.ReferencedSOPInstanceUID for item in referred.ReferencedInstanceSequence} == files


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("PatientBirthDate", "00000000"),
        ("PatientBirthDate", "1985.03.02"),
        ("PatientSex", "W"),
        ("StudyDate", "2020-01-01"),
        ("StudyTime", "12:00:00"),
        ("PatientName", "Doe^Jane\\Doe^J"),
        ("AccessionNumber", "x" * 40),
        ("SeriesNumber", "4a"),
        ("SeriesNumber", "-1"),
    ],
)
def test_odd_identities_go_over_as_they_stand(tmp_path: Path, name: str, value: str) -> None:
    def spoilt(path: Path) -> None:
        image = pydicom.dcmread(path)
        tag = pydicom.tag.Tag(name)
        kind = pydicom.datadict.dictionary_VR(tag)
        image._dict[tag] = pydicom.dataelem.RawDataElement(tag, kind, len(value), value.encode(), 0, False, True)
        image.save_as(path)

    geometry = make_series(tmp_path / "ct")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for path in (tmp_path / "ct").iterdir():
            spoilt(path)
        seg = pydicom.dcmread(write_dicom_seg(labels_on(geometry), tmp_path / "a.dcm", tmp_path / "ct"))
        written = seg.get_item(name).value
    assert seg.SeriesNumber == 1000 if name == "SeriesNumber" else written.strip() == value.encode()


def test_what_a_seg_cannot_refer_to_is_refused_by_its_tag(tmp_path: Path) -> None:
    for number, (name, value) in enumerate(
        [("SOPInstanceUID", "1.2.3"), ("StudyInstanceUID", ["1.2", "1.3"]), ("SOPClassUID", "1.2.3.4")]
    ):
        geometry = make_series(tmp_path / f"ct{number}", **{name: value})
        tag = pydicom.tag.Tag(name).json_key
        with pytest.raises(UnwritableVolume, match=rf"{name} \({tag[:4]},{tag[4:]}\).*NRRD"):
            write_dicom_seg(labels_on(geometry), tmp_path / "a.dcm", tmp_path / f"ct{number}")
    assert not list(tmp_path.glob("*.dcm"))


def test_labels_of_another_grid_are_refused(series: Path, tmp_path: Path) -> None:
    grid = read_volume(series).geometry
    moved = grid.affine.copy()
    moved[0, 3] += 0.5
    for other in (Geometry(grid.shape, moved), grid.crop((slice(0, 5), slice(None), slice(None)))):
        with pytest.raises(GeometryMismatch, match=r"do not lie on the grid of the DICOM series .*6 × 10 × 12 voxels"):
            write_dicom_seg(labels_on(other), tmp_path / "a.dcm", series)
    assert not (tmp_path / "a.dcm").exists()


def test_what_cannot_be_written_is_refused_with_cause_and_fix(series: Path, tmp_path: Path) -> None:
    labels = labels_on(read_volume(series).geometry)
    empty = LabelMap(np.zeros(SHAPE, np.uint8), labels.geometry)
    with pytest.raises(UnwritableVolume, match=r"labels are empty.*Segment first"):
        write_dicom_seg(empty, tmp_path / "a.dcm", series)
    with pytest.raises(UnwritableVolume, match=r"refers to the files of a DICOM series.*source="):
        write_labels(labels, tmp_path / "a.dcm", source=read_volume(series))
    with pytest.raises(UnreadableVolume, match=r"no longer at .*gone"):
        write_dicom_seg(labels, tmp_path / "a.dcm", tmp_path / "gone")
    geometry = make_series(tmp_path / "no_frame", FrameOfReferenceUID=None)
    with pytest.raises(UnwritableVolume, match=r"no Frame of Reference.*NRRD"):
        write_dicom_seg(labels_on(geometry), tmp_path / "a.dcm", tmp_path / "no_frame")
    geometry = make_series(tmp_path / "odd", SOPClassUID="1.2.3.4")
    with pytest.raises(UnwritableVolume, match=r"cannot be referred to.*NRRD"):
        write_dicom_seg(labels_on(geometry), tmp_path / "a.dcm", tmp_path / "odd")
    assert not list(tmp_path.glob("*.dcm"))
    assert not list(tmp_path.glob(".*"))


def test_more_segments_than_a_byte_counts_are_written(series: Path, tmp_path: Path) -> None:
    data = np.arange(np.prod(SHAPE), dtype=np.uint16).reshape(SHAPE) % 301
    labels = LabelMap(data, read_volume(series).geometry)
    again = read_labels(write_dicom_seg(labels, tmp_path / "a.dcm", series))
    np.testing.assert_array_equal(again.data, data)


def test_a_backslash_in_a_name_does_not_cut_it_in_two(series: Path, tmp_path: Path) -> None:
    labels = labels_on(read_volume(series).geometry)
    labels = LabelMap(labels.data, labels.geometry, {}, {2: r"left\right", 7: "thing"})
    seg = pydicom.dcmread(write_dicom_seg(labels, tmp_path / "a.dcm", series))
    assert [segment.SegmentLabel for segment in seg.SegmentSequence] == ["left/right", "thing"]
    assert read_labels(tmp_path / "a.dcm").names == {1: "left/right", 2: "thing"}


def test_without_highdicom_the_fix_is_named(series: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    labels = labels_on(read_volume(series).geometry)
    monkeypatch.setitem(sys.modules, "highdicom", None)
    with pytest.raises(MissingExtra, match=r"pip install 'napari-fmseg\[dicom\]'"):
        write_dicom_seg(labels, tmp_path / "a.dcm", series)


def test_overlapping_segments_and_probabilities_are_not_read_as_labels(series: Path, tmp_path: Path) -> None:
    labels = labels_on(read_volume(series).geometry)
    seg = pydicom.dcmread(write_dicom_seg(labels, tmp_path / "a.dcm", series))
    for frame in seg.PerFrameFunctionalGroupsSequence:
        frame.SegmentIdentificationSequence[0].ReferencedSegmentNumber = 1
    seg.PixelData = b"\xff" * len(seg.PixelData)
    seg.save_as(tmp_path / "b.dcm")
    with pytest.raises(UnreadableVolume, match="overlap"):
        read_labels(tmp_path / "b.dcm")
    seg.SegmentationType = "FRACTIONAL"
    seg.save_as(tmp_path / "b.dcm")
    with pytest.raises(UnreadableVolume, match=r"fractional.*binary"):
        read_labels(tmp_path / "b.dcm")


def shipped_labels() -> list[tuple[str, str]]:
    from napari_fmseg.models.registry import list_models

    cards = [(name, card.name) for card in list_models() for name in card.labels.values()]
    return [*cards, ("left_atrium", "left-atrium-mr"), ("Kidney right", ""), ("kidney_left", "")]


@pytest.mark.parametrize(("name", "model"), shipped_labels())
def test_every_class_of_the_shipped_models_has_a_colour_and_codes_that_dicom_lists(name: str, model: str) -> None:
    info = label_info(name, model=model)
    assert info.is_known
    assert info.color is not None
    for code, groups in ((info.category, {7150}), (info.kind, {7151}), *((m, {2}) for m in info.modifiers)):
        found = [
            (meaning, set(cids))
            for group in _concepts_dict.concepts["SCT"].values()
            for value, (meaning, cids) in group.items()
            if value == code.value
        ]
        assert any(meaning == code.meaning and groups <= cids for meaning, cids in found), code


def test_a_name_is_known_whatever_its_order_of_words_and_unknown_ones_keep_their_own() -> None:
    assert label_info("Left Parotid Gland") == label_info("parotid_left")
    assert label_info("anterior").kind.meaning == "Tissue"  # of what? nothing is guessed
    assert label_info("anterior", model="hippocampus-mr").title == "Anterior hippocampus"
    strange = label_info("my structure")
    assert (strange.title, strange.is_known, strange.color) == ("my structure", False, None)


REAL = ["ct_dicom/images/ct_003", "prostate_dicom/images/px_0000/t2_tra", "prostate_dicom/images/px_0000/adc",
        "brain_dicom/images/pgbm002_hippocrop", "quirks/dicom_seg/ct", "quirks/enhanced_multiframe.dcm"]  # fmt: skip


@real
@pytest.mark.real
@pytest.mark.parametrize("name", REAL)
def test_labels_on_real_series_lie_in_place(name: str, tmp_path: Path) -> None:
    volume = read_volume(DATA / name)
    data = (volume.channels[0] > np.percentile(volume.channels[0], 90)).astype(np.uint8)
    labels = LabelMap(data, volume.geometry, names={1: "bright"})
    path = write_dicom_seg(labels, tmp_path / "a.dcm", DATA / name)
    assert_in_place(sitk.ReadImage(str(path)), labels, 1)
    again = read_labels(path)
    assert again.geometry.matches(volume.geometry, atol_mm=0.01)
    np.testing.assert_array_equal(again.data, data)


@real
@pytest.mark.real
@pytest.mark.parametrize(
    ("folder", "file"),
    [("ct_dicom/images/ct_003", "ct_dicom/labels/ct_003.nii.gz"),
     ("prostate_dicom/images/px_0000/t2_tra", "prostate_dicom/labels/px_0000.nii.gz")],
)  # fmt: skip
def test_real_labels_of_a_real_series_become_a_seg_with_the_right_frames(
    folder: str, file: str, tmp_path: Path
) -> None:
    labels = read_labels(DATA / file)
    values = [int(v) for v in np.unique(labels.data) if v]
    path = write_dicom_seg(labels, tmp_path / "a.dcm", DATA / folder)
    seg = hd.seg.segread(path)
    assert seg.number_of_segments == len(values)
    expected = sum(int((labels.data == v).any(axis=(1, 2)).sum()) for v in values)
    assert seg.NumberOfFrames == expected
    grid = read_volume(DATA / folder).geometry
    for number, value in list(enumerate(values, 1))[::7]:
        volume = seg.get_volume(segment_numbers=[number], combine_segments=True)
        index = np.argwhere(volume.array > 0)
        place = (volume.affine @ np.c_[index, np.ones(len(index))].T)[2::-1]
        inverse = np.linalg.inv(labels.geometry.affine)
        ours = np.rint(inverse @ np.vstack([place, np.ones(len(index))]))[:3].astype(int)
        assert (labels.data[tuple(ours)] == value).all()
        assert len(index) == np.count_nonzero(labels.data == value)
        one = write_dicom_seg(only(labels, [value]), tmp_path / f"{value}.dcm", DATA / folder)
        assert_in_place(sitk.ReadImage(str(one)), labels, value)
    assert grid.matches(labels.geometry, atol_mm=0.01) or labels.geometry.canonical()[0].matches(grid.canonical()[0])
