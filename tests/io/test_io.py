# ruff: noqa: E501 (the table of bad input: one case, one line)
"""Bad input says what is wrong and what to do, and DICOM is read by its slices' own places."""

import contextlib
import gzip
import os
import struct
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pydicom
import pytest
import SimpleITK as sitk
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian

from napari_fmseg.core.errors import FmsegError, UnreadableVolume
from napari_fmseg.core.volume import LabelMap
from napari_fmseg.io import find_volumes, list_series, read_labels, read_volume, write_labels

SHAPE = (4, 5, 6)
RNG = np.random.default_rng(0)
HU = RNG.integers(-1000, 1000, SHAPE).astype(np.int16)


def write_series(folder: Path, n: int = 5, change: Callable[[int, Any], Any] | None = None, **tags: Any) -> Path:
    """Write a CT series of `n` slices of 6 x 7, 2 mm apart; `change(i, dataset)` spoils one (False leaves it out)."""
    folder.mkdir(parents=True, exist_ok=True)
    series = tags.pop("SeriesInstanceUID", "1.2.3.4")
    for i in range(n):
        meta = pydicom.dataset.FileMetaDataset()
        meta.MediaStorageSOPClassUID = CTImageStorage
        meta.MediaStorageSOPInstanceUID = f"{series}.{i + 1}"
        meta.TransferSyntaxUID = ExplicitVRLittleEndian
        slice_ = pydicom.Dataset()
        slice_.file_meta = meta
        slice_.SOPClassUID, slice_.SOPInstanceUID = CTImageStorage, f"{series}.{i + 1}"
        slice_.SeriesInstanceUID, slice_.Modality, slice_.SeriesDescription = series, "CT", "body"
        slice_.PatientName, slice_.PatientID = "Doe^Jane", "4711"
        slice_.Rows, slice_.Columns, slice_.PixelSpacing = 6, 7, [0.5, 0.75]
        slice_.ImageOrientationPatient, slice_.ImagePositionPatient = [1, 0, 0, 0, 1, 0], [-10.5, 20, 2.0 * i]
        slice_.SamplesPerPixel, slice_.PhotometricInterpretation = 1, "MONOCHROME2"
        slice_.BitsAllocated, slice_.BitsStored, slice_.HighBit, slice_.PixelRepresentation = 16, 12, 11, 0
        slice_.RescaleSlope, slice_.RescaleIntercept, slice_.InstanceNumber = 1, -1024, n - i
        slice_.PixelData = np.random.default_rng(i).integers(0, 4096, (6, 7)).astype("<u2").tobytes()
        for key, value in tags.items():
            setattr(slice_, key, value)
        if change is None or change(i, slice_) is not False:
            slice_.save_as(folder / f"IM{(7 * i) % n}", enforce_file_format=True)
    return folder


def nifti(path: Path, data: np.ndarray = HU, affine: np.ndarray | None = None, **header: Any) -> Path:
    image = nib.Nifti1Image(data.T, np.diag([1.0, 1, 2, 1]) if affine is None else affine)
    block = bytearray(image.header.binaryblock)
    place = image.header.template_dtype.fields
    for key, value in header.items():  # straight into the bytes: nibabel would not write such nonsense
        kind, offset = place[key][:2]
        block[offset : offset + kind.itemsize] = np.asarray(value, kind.base).tobytes()
    block[108:112] = struct.pack("<f", 352)
    content = bytes(block) + b"\0\0\0\0" + np.ascontiguousarray(data).tobytes()
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)
    return path


def as_is(path: Path, content: bytes | str) -> Path:
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def mha(
    path: Path, size: str = "6 5 4", spacing: str = "1 1 1", kind: str = "MET_SHORT", extra: str = "", body: bytes = b""
) -> Path:
    n = len(size.split())
    head = f"ObjectType = Image\nNDims = {n}\nBinaryData = True\nElementSpacing = {spacing}\nDimSize = {size}\n{extra}"
    return as_is(path, f"{head}ElementType = {kind}\nElementDataFile = LOCAL\n".encode() + (body or HU.tobytes()))


def nrrd(
    path: Path, extra: str = "", directions: str = "(1,0,0) (0,1,0) (0,0,2)", size: str = "6 5 4", kind: str = "short"
) -> Path:
    n = len(size.split())
    head = f"NRRD0004\ntype: {kind}\ndimension: {n}\nspace: left-posterior-superior\nsizes: {size}\n"
    where = f"space directions: {directions}\n" if directions else ""
    return as_is(path, f"{head}{where}{extra}endian: little\nencoding: raw\n\n".encode() + HU.tobytes())


def zipped(path: Path, members: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return path


def drop(number: int) -> Callable[[int, Any], Any]:
    return lambda i, _: i != number


def spoil(**tags: Any) -> Callable[[int, Any], Any]:
    """Change tags of the third slice; None deletes one."""

    def change(i: int, dataset: Any) -> None:
        for key, value in tags.items() if i == 2 else ():
            if value is None:
                delattr(dataset, key)
            else:
                setattr(dataset, key, value)

    return change


def two_series(folder: Path) -> Path:
    write_series(folder / "a", SeriesDescription="arterial")
    write_series(folder / "b", SeriesInstanceUID="1.2.3.5", SeriesDescription="venous")
    return folder


def truncated(path: Path) -> Path:
    whole = nifti(path, RNG.integers(0, 1000, (20, 30, 40)).astype(np.int16)).read_bytes()
    return as_is(path, whole[: len(whole) // 2])


def rtstruct(folder: Path) -> Path:
    return write_series(folder, 1, lambda i, d: [delattr(d, k) for k in ("Rows", "Columns", "PixelData")] and None,
                        Modality="RTSTRUCT")  # fmt: skip


def rgb(path: Path) -> Path:
    nib.save(nib.Nifti1Image(np.zeros((3, 4, 5), [("R", "u1"), ("G", "u1"), ("B", "u1")]), np.eye(4)), path)
    return path


NAN = float("nan")
SINGULAR = {"sform_code": 1, "srow_x": [1, 0, 0, 0], "srow_y": [1, 0, 0, 0], "srow_z": [0, 0, 1, 0]}
NO_FORM = {"sform_code": 0, "qform_code": 0}
PIXDIM = [1, 1, 1, 2, 1, 1, 1, 1]
UNREADABLE: dict[str, tuple[Callable[[Path], Path], str, str]] = {  # how to make it, the cause, the fix
    "missing": (lambda t: t / "no.nii.gz", "does not exist", "Check the name"),
    "empty folder": (lambda t: t, "it is empty", "Choose a folder"),
    "folder without volumes": (lambda t: as_is(t / "a.txt", "x").parent, "none of its 1 files", "Choose a folder"),
    "folder of several volumes": (lambda t: nifti(nifti(t / "a.nii").with_name("b.nii")).parent, "2 volumes", "Choose one"),
    "empty file": (lambda t: as_is(t / "a.nii.gz", ""), "is empty", "fetch it again"),
    "empty nrrd": (lambda t: as_is(t / "a.nrrd", ""), "is empty", "fetch it again"),
    "truncated gzip": (lambda t: truncated(t / "a.nii.gz"), "cut short", "again from its source"),
    "corrupt gzip": (lambda t: as_is(t / "a.nii.gz", b"\x1f\x8b\x08\0" + bytes(400)), "damaged", "again from its source"),
    "short header": (lambda t: as_is(t / "a.nii", bytes(100)), "ends within its header", "again from its source"),
    "truncated nii": (lambda t: as_is(t / "a.nii", nifti(t / "a.nii").read_bytes()[:-9]), "cut short", "copy it again"),
    "truncated mha": (lambda t: mha(t / "a.mha", body=HU.tobytes()[:-50]), "damaged|cut short", "again from its source"),
    "wrong magic nii": (lambda t: as_is(t / "a.nii", b"PNG" * 200), "no NIfTI", "suffix of what it really is"),
    "wrong magic nrrd": (lambda t: as_is(t / "a.nrrd", b"PNG" * 200), "neither NRRD nor", "suffix of what it really is"),
    "wrong magic dcm": (lambda t: as_is(t / "a.dcm", b"PNG" * 200), "no DICOM", "suffix of what it really is"),
    "wrong magic zip": (lambda t: as_is(t / "a.zip", b"PNG" * 200), "no zip", "again from its source"),
    "no known format": (lambda t: as_is(t / "a.xyz", b"PNG" * 200), "no known format", "Expected NIfTI"),
    "analyze": (lambda t: nifti(t / "a.nii", magic=b""), "ANALYZE", "Convert it"),
    "half a pair": (lambda t: as_is(t / "a.hdr", bytes(348)), "a.img is missing", "Copy both"),
    "2-D": (lambda t: nifti(t / "a.nii", HU[0]), "2-D", "Stack the slices"),
    "2-D mha": (lambda t: mha(t / "a.mha", "6 5", "1 1"), "2-D", "Stack the slices"),
    "5-D": (lambda t: nifti(t / "a.nii", np.zeros((2, 3, 4, 5, 6), np.int16)), "5 axes", "one time point"),
    "RGB": (lambda t: rgb(t / "a.nii"), "RGB", "grey-value"),
    "RGB nrrd": (lambda t: nrrd(t / "a.nrrd", "kinds: RGB-color domain domain domain\n", size="3 6 5 4"), "RGB", "grey-value"),
    "RGB dicom": (lambda t: write_series(t, SamplesPerPixel=3), "RGB", "grey values"),
    "complex": (lambda t: nifti(t / "a.nii", HU.astype(np.complex64)), "complex", "magnitude"),
    "odd voxel type": (lambda t: nifti(t / "a.nii", datatype=77), "voxel type 77", "Export it again"),
    "spacing 0": (lambda t: nifti(t / "a.nii", **NO_FORM, pixdim=[1, 0, *PIXDIM[2:]]), "above 0", "Correct the header"),
    "spacing negative": (lambda t: nifti(t / "a.nii", **NO_FORM, pixdim=[1, -1, *PIXDIM[2:]]), "above 0", "Correct"),
    "spacing NaN": (lambda t: nifti(t / "a.nii", **NO_FORM, pixdim=[1, NAN, *PIXDIM[2:]]), "above 0", "Correct"),
    "spacing 0 mha": (lambda t: mha(t / "a.mha", spacing="1 0 1"), "above 0", "Correct the header"),
    "spacing negative mha": (lambda t: mha(t / "a.mha", spacing="1 -1 1"), "above 0", "Correct the header"),
    "spacing NaN nrrd": (lambda t: nrrd(t / "a.nrrd", directions="(nan,0,0) (0,1,0) (0,0,1)"), "above 0", "Correct"),
    "spacing 0 nrrd": (lambda t: nrrd(t / "a.nrrd", directions="(0,0,0) (0,1,0) (0,0,1)"), "above 0", "Correct"),
    "spacing 0 dicom": (lambda t: write_series(t, change=spoil(PixelSpacing=[0, 1])), "above 0", "Export"),
    "singular affine": (lambda t: nifti(t / "a.nii", **SINGULAR), "onto a plane", "Correct the sform"),
    "singular nrrd": (lambda t: nrrd(t / "a.nrrd", directions="(1,0,0) (1,0,0) (0,0,1)"), "in one plane", "Correct its directions"),
    "affine NaN": (lambda t: nifti(t / "a.nii", sform_code=1, srow_x=[NAN] * 4), "to nowhere", "Correct the sform"),
    "impossible qform": (lambda t: nifti(t / "a.nii", sform_code=0, qform_code=1, quatern_b=7), "orientation", "Export"),
    "slope on infinity": (lambda t: nifti(t / "a.nii", scl_slope=1, scl_inter=float("inf")), "scl_inter", "export it again"),
    "all NaN": (lambda t: nifti(t / "a.nii.gz", np.full(SHAPE, np.nan, np.float32)), "no finite number", "Export it again"),
    "gigantic nii": (lambda t: nifti(t / "a.nii", dim=[3, 32767, 32767, 32767, 1, 1, 1, 1]), "promises", "copy it again"),
    "gigantic nii.gz": (lambda t: nifti(t / "a.nii.gz", dim=[3, 32767, 32767, 99, 1, 1, 1, 1]), "compressed", "copy it again"),
    "gigantic mha": (lambda t: mha(t / "a.mha", "60000 60000 60000"), "promises", "copy it again"),
    "gigantic nrrd": (lambda t: nrrd(t / "a.nrrd", size="60000 60000 60000"), "promises", "copy it again"),
    "sizes of 0": (lambda t: nifti(t / "a.nii", dim=[3, 6, 0, 4, 1, 1, 1, 1]), "impossible sizes", "export"),
    "far offset": (lambda t: as_is(t / "a.nii", nifti(t / "a.nii").read_bytes().replace(struct.pack("<f", 352), struct.pack("<f", -8))), "start at byte", "export it again"),
    "detached and gone": (lambda t: as_is(t / "a.mhd", mha(t / "a.mhd").read_bytes()[:-240].replace(b"LOCAL", b"gone.raw")), "gone.raw, which is missing", "Copy both"),
    "singular mha": (lambda t: mha(t / "a.mha", extra="TransformMatrix = 1 0 0 1 0 0 0 0 1\n"), "in one plane", "Correct"),
    "missing slice": (lambda t: write_series(t, 6, drop(3)), "1 of 6 slices are missing", "Copy the whole series"),
    "missing slices": (lambda t: write_series(t, 9, lambda i, _: i not in (3, 4)), "2 of 9 slices", "Copy the whole series"),
    "uneven slices": (lambda t: write_series(t, change=spoil(ImagePositionPatient=[-10.5, 20, 4.7])), "not evenly spaced", "constant spacing"),
    "two images at one place": (lambda t: write_series(t, change=spoil(ImagePositionPatient=[-10.5, 20, 2])), "1 images and others 2", "separate series"),
    "mixed series": (two_series, "2 image series", r"series=.*(\n.*)*1\.2\.3\.5.*venous"),
    "unequal orientation": (lambda t: write_series(t, change=spoil(ImageOrientationPatient=[0, 1, 0, 0, 0, -1])), "tilted against each other", "parallel slices"),
    "senseless orientation": (lambda t: write_series(t, ImageOrientationPatient=[1, 0, 0, 1, 0, 0]), "perpendicular", "Export"),
    "unequal size": (lambda t: write_series(t, change=spoil(Rows=7, PixelData=bytes(98))), "differ in size", "equal slices"),
    "unequal spacing": (lambda t: write_series(t, change=spoil(PixelSpacing=[1, 1])), "differ in pixel spacing", "equal slices"),
    "no position": (lambda t: write_series(t, change=spoil(ImagePositionPatient=None)), "lacks ImagePositionPatient", "Export the series"),
    "no orientation": (lambda t: write_series(t, change=spoil(ImageOrientationPatient=None)), "lacks ImageOrientation", "Export"),
    "no pixel spacing": (lambda t: write_series(t, change=spoil(PixelSpacing=None)), "lacks PixelSpacing", "Export the series"),
    "pixels cut short": (lambda t: write_series(t, change=spoil(PixelData=bytes(40))), "pixels of IM", "export the series again"),
    "mosaic": (lambda t: write_series(t, 1, ImageType=["ORIGINAL", "PRIMARY", "M", "MOSAIC"]), "mosaic", "dcm2niix"),
    "film": (lambda t: write_series(t, 1, NumberOfFrames=3), "3 frames", "slices have positions"),
    "contours": (rtstruct, r"contours \(RTSTRUCT\), but no image", "Choose the folder"),
    "contours, the file": (lambda t: rtstruct(t) / "IM0", r"contours \(RTSTRUCT\), but no image", "Choose the folder"),
    "zip that leads out": (lambda t: zipped(t / "a.zip", {"../evil.nii": b"x"}), "leads out of its folder", "do not trust"),
    "zip with a drive": (lambda t: zipped(t / "a.zip", {"C:/evil.nii": b"x"}), "leads out of its folder", "do not trust"),
    "empty zip": (lambda t: zipped(t / "a.zip", {}), "it is empty", "Choose"),
    "zip of a pointer": (lambda t: zipped(t / "a.zip", {"a.mhd": mha(t / "b.mha").read_bytes()[:-240].replace(b"LOCAL", b"/etc/passwd")}), "outside of the zip", "Unpack it"),
}  # fmt: skip


def listing(folder: Path) -> dict[str, int]:
    return {str(p): p.stat().st_size for p in sorted(folder.rglob("*"))}


@pytest.mark.parametrize("name", UNREADABLE)
def test_bad_input_is_refused_with_cause_and_fix_and_nothing_is_written(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make, cause, fix = UNREADABLE[name]
    (tmp_path / "in").mkdir()
    (tmp_path / "temp").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temp"))
    path = make(tmp_path / "in")
    before = listing(tmp_path)
    for read in (read_volume, read_labels):
        with pytest.raises(UnreadableVolume) as caught:
            read(path)
        assert caught.match(cause)
        assert caught.match(fix)
        assert caught.value.exit_code == 1
    assert listing(tmp_path) == before


@contextmanager
def as_nobody() -> Iterator[None]:
    """Give up the rights of root, which would ignore permissions."""
    if os.geteuid():
        yield
        return
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """A folder that everybody may enter; pytest's own are private."""
    with tempfile.TemporaryDirectory() as name:
        Path(name).chmod(0o755)
        yield Path(name)


@pytest.mark.skipif(os.name == "nt", reason="permissions of POSIX")
@pytest.mark.parametrize("kind", ["file", "folder"])
def test_a_path_without_permission_is_said(open_folder: Path, kind: str) -> None:
    path = nifti(open_folder / "a.nii") if kind == "file" else write_series(open_folder / "series")
    path.chmod(0)
    try:
        with as_nobody(), pytest.raises(UnreadableVolume, match=r"no permission|Check your permission"):
            read_volume(path)
    finally:
        path.chmod(0o700)


def test_all_errors_are_ours() -> None:
    assert issubclass(UnreadableVolume, FmsegError)
    assert not issubclass(FmsegError, RuntimeError)


def by_itk(folder: Path) -> sitk.Image:
    return sitk.ReadImage(sitk.ImageSeriesReader.GetGDCMSeriesFileNames(str(folder)))


TILTED = [0.96, 0.28, 0.0, -0.224, 0.768, 0.6]


@pytest.mark.parametrize("orientation", [[1, 0, 0, 0, 1, 0], [0, 1, 0, 0, 0, -1], [-1, 0, 0, 0, 1, 0], TILTED])
def test_a_series_is_read_as_simpleitk_reads_it_and_labels_on_it_open_there(tmp_path: Path, orientation: list) -> None:
    normal = np.cross(orientation[:3], orientation[3:])

    def turn(i: int, dataset: Any) -> None:
        dataset.ImageOrientationPatient = orientation
        dataset.ImagePositionPatient = [round(float(part), 9) for part in (-10.5, 20, 4) + 2.0 * i * normal]

    volume = read_volume(write_series(tmp_path / "series", change=turn))
    labels = LabelMap((volume.data > 0).astype(np.uint8), volume.geometry)
    path = write_labels(labels, tmp_path / "a.nii.gz", source=volume)

    image, written = by_itk(tmp_path / "series"), sitk.ReadImage(str(path))
    np.testing.assert_array_equal(volume.data, sitk.GetArrayFromImage(image))
    assert volume.data.dtype == np.int16
    for index in [(0, 0, 0), (4, 5, 6), (2, 0, 3)]:
        place = image.TransformIndexToPhysicalPoint(index[::-1])
        np.testing.assert_allclose(volume.geometry.place(index)[::-1], place, atol=1e-6)
        np.testing.assert_allclose(written.TransformIndexToPhysicalPoint(index[::-1]), place, atol=1e-5)
    np.testing.assert_array_equal(sitk.GetArrayFromImage(written), volume.data > 0)


def test_a_tilted_gantry_becomes_an_exact_shear(tmp_path: Path) -> None:
    def shift(i: int, dataset: Any) -> None:
        dataset.ImagePositionPatient = [1, 3.0 * i, 2.0 * i]

    volume = read_volume(write_series(tmp_path, change=shift))
    assert volume.geometry.is_sheared
    np.testing.assert_allclose(volume.geometry.place((4, 0, 0)), [8, 12, 1], atol=1e-9)
    assert any("56.3 degrees" in text for text in volume.meta["warnings"])


def test_slices_that_repeat_each_place_become_channels(tmp_path: Path) -> None:
    def phase(i: int, dataset: Any) -> None:
        dataset.ImagePositionPatient = [0, 0, 2.0 * (i % 3)]
        dataset.TemporalPositionIdentifier = 2 - i // 3
        dataset.PixelData = np.full((6, 7), 1000 + i, "<u2").tobytes()

    volume = read_volume(write_series(tmp_path, 6, phase))
    assert volume.data.shape == (2, 3, 6, 7)
    np.testing.assert_array_equal(volume.data[:, :, 0, 0] + 1024, [[1003, 1004, 1005], [1000, 1001, 1002]])


def test_slices_with_scalings_of_their_own_are_scaled_one_by_one(tmp_path: Path) -> None:
    folder = write_series(tmp_path, change=lambda i, d: setattr(d, "RescaleSlope", 0.5 + i))
    np.testing.assert_allclose(read_volume(folder).data, sitk.GetArrayFromImage(by_itk(folder)), rtol=1e-6)


def test_series_are_listed_without_the_patient_and_chosen_by_uid_or_description(tmp_path: Path) -> None:
    two_series(tmp_path)
    rtstruct(tmp_path / "c")
    infos = list_series(tmp_path)
    assert [(s.uid, s.description, s.modality, s.shape, s.spacing, s.n_files) for s in infos] == [
        ("1.2.3.4", "arterial", "CT", (5, 6, 7), (2.0, 0.5, 0.75), 5),
        ("1.2.3.5", "venous", "CT", (5, 6, 7), (2.0, 0.5, 0.75), 5),
    ]
    for series in ("1.2.3.5", "venous"):
        volume = read_volume(tmp_path, series=series)
        assert volume.meta["series_uid"] == "1.2.3.5"
        assert "Doe" not in str(volume.meta)
        assert "4711" not in str(volume.meta)
    with pytest.raises(UnreadableVolume, match="no single series 'portal'"):
        read_volume(tmp_path, series="portal")


def test_one_file_of_a_series_stands_for_the_series_in_its_folder(tmp_path: Path) -> None:
    for folder in list(two_series(tmp_path).iterdir()):
        for path in list(folder.iterdir()):
            path.rename(tmp_path / f"{folder.name}_{path.name}")
    found = find_volumes(tmp_path)
    assert len(found) == 2
    assert {read_volume(path).meta["series_uid"] for path in found} == {"1.2.3.4", "1.2.3.5"}


def test_files_that_are_there_twice_count_once(tmp_path: Path) -> None:
    write_series(tmp_path / "a")
    write_series(tmp_path / "copy")
    assert read_volume(tmp_path).data.shape == (5, 6, 7)


def test_one_slice_is_read_with_a_warning(tmp_path: Path) -> None:
    volume = read_volume(write_series(tmp_path, 1, SliceThickness=4))
    assert volume.geometry.spacing == (4, 0.5, 0.75)
    assert any("one voxel thick along z" in text for text in volume.meta["warnings"])


def test_a_zip_of_a_series_is_read_like_its_folder(tmp_path: Path) -> None:
    folder = write_series(tmp_path / "series")
    path = zipped(tmp_path / "a.zip", {f"case/1/{p.name}": p.read_bytes() for p in folder.iterdir()})
    assert [s.uid for s in list_series(path)] == ["1.2.3.4"]
    np.testing.assert_array_equal(read_volume(path).data, read_volume(folder).data)


def test_pixels_compressed_without_loss_are_the_same(tmp_path: Path) -> None:
    plain = read_volume(write_series(tmp_path / "plain"))
    for path in write_series(tmp_path / "rle").iterdir():
        dataset = pydicom.dcmread(path)
        dataset.compress(pydicom.uid.RLELossless, generate_instance_uid=False)
        dataset.save_as(path)
    np.testing.assert_array_equal(read_volume(tmp_path / "rle").data, plain.data)


def test_a_screenshot_beside_the_series_is_left_out_and_said(tmp_path: Path) -> None:
    write_series(tmp_path / "ct")
    write_series(tmp_path / "dose", 1, spoil_all, SeriesInstanceUID="1.9", SamplesPerPixel=3)
    volume = read_volume(tmp_path)
    assert volume.data.shape == (5, 6, 7)
    assert any("1 more series" in text for text in volume.meta["warnings"])


def spoil_all(i: int, dataset: Any) -> None:
    del dataset.ImagePositionPatient


@pytest.mark.parametrize("signed", [0, 1])
def test_bits_above_the_stored_ones_are_ignored(tmp_path: Path, signed: int) -> None:
    def fill(i: int, dataset: Any) -> None:
        dataset.PixelRepresentation = signed
        dataset.PixelData = (np.arange(42, dtype="<u2") * 90 | 0x5000).tobytes()

    folder = write_series(tmp_path, change=fill, RescaleIntercept=0)
    truth = np.arange(42) * 90
    truth = np.where(signed & (truth >= 2048), truth - 4096, truth)
    np.testing.assert_array_equal(read_volume(folder).data[0].ravel(), truth)


def test_the_index_of_a_disc_stands_for_its_folder(tmp_path: Path) -> None:
    write_series(tmp_path / "IMAGES")
    as_is(tmp_path / "DICOMDIR", bytes(128) + b"DICM")
    assert read_volume(tmp_path / "DICOMDIR").data.shape == (5, 6, 7)


def test_a_damaged_file_does_not_hide_the_others(tmp_path: Path) -> None:
    write_series(tmp_path / "ct")
    as_is(tmp_path / "bad.dcm", bytes(128) + b"DICM" + b"\x02\0\0\0UL\x04\0\xff\xff")
    nifti(tmp_path / "t1.nii.gz")
    as_is(tmp_path / "notes.txt", "x")
    assert [path.name for path in find_volumes(tmp_path)] == ["ct", "t1.nii.gz"]


@pytest.mark.parametrize("kind", ["nii", "nii.gz", "nrrd", "mha", "dcm", "zip"])
def test_damage_anywhere_is_read_or_refused_and_never_crashes(tmp_path: Path, kind: str) -> None:
    whole = {
        "nii": lambda: nifti(tmp_path / "a.nii"),
        "nii.gz": lambda: nifti(tmp_path / "a.nii.gz"),
        "nrrd": lambda: nrrd(tmp_path / "a.nrrd"),
        "mha": lambda: mha(tmp_path / "a.mha"),
        "dcm": lambda: write_series(tmp_path / "series", 1) / "IM0",
        "zip": lambda: zipped(tmp_path / "a.zip", {"a.nii": nifti(tmp_path / "a.nii").read_bytes()}),
    }[kind]().read_bytes()
    rng = np.random.default_rng(0)
    path = tmp_path / "in" / f"x.{kind}"
    path.parent.mkdir()
    for _ in range(60):
        content = bytearray(whole)
        for at in rng.integers(0, min(len(whole), 500), rng.integers(1, 9)):
            content[at] = rng.integers(0, 256)
        path.write_bytes(content)
        for read in (read_volume, read_labels):
            with contextlib.suppress(UnreadableVolume):
                assert np.isfinite(read(path).data).all()
