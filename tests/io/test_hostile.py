"""Files that are damaged or made to do harm: refused in a sentence, within bounds; nothing is read or left outside."""

from __future__ import annotations

import gzip
import io
import locale
import os
import signal
import struct
import subprocess
import sys
import tempfile
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import psutil
import pydicom
import pytest
import SimpleITK as sitk
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRLittleEndian,
    HTJ2KLossless,
    JPEGBaseline8Bit,
    RLELossless,
)

from napari_fmseg.cli import main as cli_main
from napari_fmseg.core import temporary_files
from napari_fmseg.core.atomic_write import atomic_write
from napari_fmseg.core.errors import DeviceMemory, UnreadableVolume
from napari_fmseg.core.processes import ending_tidily
from napari_fmseg.core.volume import Geometry, Volume
from napari_fmseg.io import find_volumes, list_series, read_labels, read_volume, voxel_values
from napari_fmseg.io import write_volume as write
from napari_fmseg.io.dicom import file
from napari_fmseg.io.dicom.slices import headers
from napari_fmseg.io.itk import native_reader
from napari_fmseg.io.series_previews import preview_series
from napari_fmseg.io.zip_archive import unzip
from napari_fmseg.pipelines.batch import plan_jobs

SECRET = bytes(range(65, 81))
RNG = np.random.default_rng(0)
GRID = Geometry.from_spacing((4, 5, 6), (2.0, 0.75, 0.5), (10.0, 20.0, 30.0))


def volume(kind: str = "<i2", channels: int = 1) -> Volume:
    shape = GRID.shape if channels == 1 else (channels, *GRID.shape)
    return Volume(RNG.integers(0, 100, shape).astype(kind), GRID)


def mha(where: str = "LOCAL", extra: str = "", size: str = "2 2 4") -> str:
    return (
        f"ObjectType = Image\nNDims = 3\nBinaryData = True\nDimSize = {size}\nElementSpacing = 1 1 1\n"
        f"ElementType = MET_UCHAR\n{extra}ElementDataFile = {where}\n"
    )


def nrrd(where: str = "", key: str = "data file", extra: str = "", size: str = "2 2 4") -> str:
    return (
        "NRRD0004\ntype: uchar\ndimension: 3\nspace: left-posterior-superior\n"
        f"sizes: {size}\nspace directions: (1,0,0) (0,1,0) (0,0,1)\nencoding: raw\n"
        f"{extra}{f'{key}: {where}' if where else ''}\n\n"
    )


def zipped(path: Path, *members: tuple[str, bytes | str], method: int = zipfile.ZIP_DEFLATED) -> Path:
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, content in members:
            archive.writestr(name, content)
    return path


def ct(z: int, pixels: np.ndarray, syntax: str = ExplicitVRLittleEndian) -> pydicom.Dataset:
    """Return a CT slice; of several frames where `pixels` has three axes."""
    one = pydicom.Dataset()
    one.file_meta = pydicom.dataset.FileMetaDataset()
    one.file_meta.TransferSyntaxUID = syntax
    one.file_meta.MediaStorageSOPClassUID = one.SOPClassUID = "1.2.840.10008.5.1.4.1.1.2"
    one.file_meta.MediaStorageSOPInstanceUID = one.SOPInstanceUID = f"1.2.3.{z + 1}"
    one.SeriesInstanceUID, one.Modality = "1.2.3", "CT"
    one.Rows, one.Columns, one.SamplesPerPixel = *pixels.shape[-2:], 1
    one.PhotometricInterpretation, one.PixelSpacing, one.SliceThickness = "MONOCHROME2", [1, 1], 2
    one.ImageOrientationPatient, one.ImagePositionPatient = [1, 0, 0, 0, 1, 0], [0, 0, 2.0 * z]
    bits = 8 * pixels.itemsize
    one.BitsAllocated, one.BitsStored, one.HighBit, one.PixelRepresentation = bits, bits, bits - 1, 0
    one.PixelData = pixels.tobytes()
    one["PixelData"].VR = "OW"
    return one


def in_frames(one: pydicom.Dataset, heights: list[float]) -> pydicom.Dataset:
    """Turn a slice's tags into those of an object of several frames."""

    def nested(**tags: object) -> pydicom.Dataset:
        inner = pydicom.Dataset()
        for name, value in tags.items():
            setattr(inner, name, value)
        return inner

    one.NumberOfFrames = len(heights)
    one.SharedFunctionalGroupsSequence = [
        nested(
            PixelMeasuresSequence=[nested(PixelSpacing=[1, 1], SliceThickness=2, SpacingBetweenSlices=2)],
            PlaneOrientationSequence=[nested(ImageOrientationPatient=[1, 0, 0, 0, 1, 0])],
        )
    ]
    one.PerFrameFunctionalGroupsSequence = [
        nested(PlanePositionSequence=[nested(ImagePositionPatient=[0, 0, z])]) for z in heights
    ]
    return one


def segmentation(heights: list[float]) -> pydicom.Dataset:
    seg = in_frames(ct(0, np.ones((len(heights), 4, 4), np.uint8)), heights)
    seg.file_meta.MediaStorageSOPClassUID = seg.SOPClassUID = "1.2.840.10008.5.1.4.1.1.66.7"
    seg.Modality, seg.SegmentationType = "SEG", "LABELMAP"
    return seg


def save(one: pydicom.Dataset, path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    one.save_as(path, enforce_file_format=True)
    return path


def series(folder: Path, uid: str = "1.2.3") -> Path:
    for z in range(4):
        one = ct(z, RNG.integers(0, 500, (6, 7)).astype("<u2"))
        one.SeriesInstanceUID = uid
        save(one, folder / f"{z}.dcm")
    return folder


def jpeg2000(folder: Path, n: int = 3) -> Path:
    """Write a series that only native code can read."""
    folder.mkdir()
    before = locale.setlocale(locale.LC_ALL)
    for z in range(n):
        one = sitk.GetImageFromArray(RNG.integers(0, 500, (1, 64, 64)).astype(np.int16))
        for tag, value in {"0008|0060": "CT", "0020|000e": "1.2.9", "0020|0037": "1\\0\\0\\0\\1\\0",
                           "0020|0032": f"0\\0\\{2.0 * z}", "0008|0018": f"1.2.9.{z + 1}"}.items():  # fmt: skip
            one.SetMetaData(tag, value)
        writer = sitk.ImageFileWriter()
        writer.KeepOriginalImageUIDOn()
        writer.UseCompressionOn()
        writer.SetCompressor("JPEG2000")
        writer.SetFileName(str(folder / f"{z}.dcm"))
        writer.Execute(one)
    locale.setlocale(locale.LC_ALL, before)  # which the library changes when it writes
    return folder


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the folder for temporary files, which starts empty."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    return folder


@pytest.fixture
def isolated() -> Iterator[None]:
    native_reader.isolate()
    yield
    native_reader.isolate(False)


# --- a zip gives nothing from outside of it ---------------------------------------------------------------------

POINTERS = {
    "x.mhd": mha("{out}"),
    "x.mha": mha("{out}"),
    "no suffix": mha("{out}"),
    "X.MHD": mha("{out}"),
    "relative.mhd": mha("../outside.raw"),
    "colon.mhd": mha("{out}").replace("ElementDataFile = ", "ElementDataFile:"),
    "comment.mhd": mha("{out}", "Comment = ElementDataFile = LOCAL\n"),
    "long.mhd": mha("{out}", ("Comment = " + "c" * 200 + "\n") * 6000),
    "list.mha": mha("LIST 2\n{out}\n{out}\n{out}\n{out}"),
    "pattern.mha": mha("../outsid%01de.raw 0 0 1"),
    "x.nhdr": nrrd("{out}"),
    "x.nrrd": nrrd("{out}"),
    "no suffix nrrd": nrrd("{out}"),
    "case.nhdr": nrrd("{out}", "Data File"),
    "together.nhdr": nrrd("{out}", "datafile"),
    "blanks.nhdr": nrrd("{out}", "data  file"),
    "returns.nhdr": nrrd("{out}").replace("encoding", "# c\rencoding").replace("\n", "\r\n"),
    "comments.nhdr": nrrd("{out}", extra=("# " + "c" * 500 + "\n") * 2200),
    "twice.nhdr": nrrd("{out}", extra="data file: here.raw\n"),
    "list.nrrd": nrrd("LIST 2\n{out}\n{out}\n{out}\n{out}"),
    "metaimage after nrrd": "NRRD0004\n" + mha("{out}"),
}


@pytest.mark.parametrize("name", POINTERS)
def test_a_zip_that_points_outside_is_refused_however_it_is_written(name: str, tmp_path: Path, temporary: Path) -> None:
    for outside in (tmp_path / "outside.raw", temporary / "outside.raw"):
        outside.write_bytes(SECRET)
    file = zipped(tmp_path / "a.zip", (name, POINTERS[name].replace("{out}", str(tmp_path / "outside.raw"))))
    for read in (read_volume, read_labels):
        with pytest.raises(UnreadableVolume, match=r"Unpack it first|[Ee]xport it again|no volume|0-D"):
            read(file)
    assert [path.name for path in temporary.iterdir()] == ["outside.raw"]


@pytest.mark.parametrize("suffix", ["nhdr", "mhd"])
def test_a_header_and_its_voxels_in_one_zip_are_read(suffix: str, tmp_path: Path) -> None:
    image = volume()
    write(image, tmp_path / f"a.{suffix}")
    parts = [(f"in/{path.name}", path.read_bytes()) for path in sorted(tmp_path.iterdir())]
    np.testing.assert_array_equal(read_volume(zipped(tmp_path / "a.zip", *parts)).data, image.data)


@pytest.mark.parametrize("text", [mha("../{out}"), nrrd("../{out}"), mha("LIST 2\n" + "../{out}\n" * 4)])
def test_a_header_of_the_users_own_may_point_beside_itself(text: str, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "voxels.raw").write_bytes(SECRET)
    file = tmp_path / "in" / ("a.nhdr" if text.startswith("NRRD") else "a.mhd")
    file.write_text(text.replace("{out}", "voxels.raw"))
    assert read_volume(file).data.ravel()[0] == SECRET[0]


def damaged_zip(name: str, path: Path) -> Path:
    content = bytes(5000)
    if name == "lzma":
        block = bytearray(zipped(path, ("a.nii", content), method=zipfile.ZIP_LZMA).read_bytes())
        block[44:50] = b"\xff" * 6
        path.write_bytes(block)
    elif name == "empty name":
        zipped(path, ("a", content))
        path.write_bytes(path.read_bytes().replace(b"\x01\x00\x00\x00a", b"\x01\x00\x00\x00"))
        with zipfile.ZipFile(path, "w") as archive:
            info = zipfile.ZipInfo("a")
            info.filename = ""
            archive.writestr(info, content)
    elif name == "no text":
        block = bytearray(zipped(path, ("a.nii", content)).read_bytes())
        at = block.find(b"PK\1\2")
        block[at + 9] |= 8
        block[at + 46] = 0xFF
        path.write_bytes(block)
    elif name == "long name":
        zipped(path, ("n" * 300 + ".nii", content))
    elif name == "file and folder":
        zipped(path, ("a", content), ("a/b.nii", content))
    return path


@pytest.mark.parametrize("name", ["lzma", "empty name", "no text", "long name", "file and folder"])
def test_a_damaged_zip_is_told_in_a_sentence(name: str, tmp_path: Path, temporary: Path) -> None:
    path = damaged_zip(name, tmp_path / "a.zip")
    for read in (read_volume, read_labels, list_series, preview_series):
        with pytest.raises(UnreadableVolume, match=r"a\.zip .*\. (Copy|Unpack) it"):
            read(path)
    assert not list(temporary.iterdir())


# --- nothing unpacked or half written stays ---------------------------------------------------------------------


@pytest.mark.skipif(not hasattr(signal, "SIGHUP"), reason="signals of Unix")
@pytest.mark.parametrize("name", ["SIGTERM", "SIGHUP"])
def test_a_command_that_is_asked_to_end_leaves_neither_scan_nor_half_a_file(
    name: str, tmp_path: Path, temporary: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scan = zipped(tmp_path / "a.zip", ("a.nii", bytes(1000)))

    def run(_: list[str]) -> int:
        with unzip(scan), atomic_write(tmp_path / "out" / "result.nii") as file:
            file.write(b"half")
            assert list(temporary.iterdir())
            os.kill(os.getpid(), getattr(signal, name))
            raise AssertionError("the signal was not heard")

    monkeypatch.setattr(cli_main, "_run", run)
    before = signal.signal(getattr(signal, name), signal.SIG_DFL)  # under nohup it is ignored
    try:
        assert cli_main.main(["segment"]) == 128 + getattr(signal, name)
        after = signal.getsignal(getattr(signal, name))
    finally:
        signal.signal(getattr(signal, name), before)
    assert after == signal.SIG_DFL
    assert not list(temporary.iterdir())
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.zip", "temporary"]


@pytest.mark.skipif(not hasattr(signal, "SIGHUP"), reason="signals of Unix")
def test_a_signal_that_is_ignored_as_under_nohup_stays_ignored() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with ending_tidily():
            os.kill(os.getpid(), signal.SIGHUP)
    finally:
        signal.signal(signal.SIGHUP, before)


def test_what_a_killed_process_left_is_swept_and_nothing_else(tmp_path: Path) -> None:
    code = (
        "import os, sys, pathlib\nfrom napari_fmseg.core.temporary_files import passing_name\n"
        "folder = pathlib.Path(sys.argv[1])\n(folder / passing_name()).mkdir()\n"
        "(folder / f'.{passing_name()}.part').write_bytes(b'half')\nos._exit(0)"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=True)
    assert len(list(tmp_path.iterdir())) == 2
    mine, other = tmp_path / temporary_files.passing_name(), tmp_path / "fmseg-00000000-1-00000000"
    for folder in (mine, other, tmp_path / "fmseg-results"):
        folder.mkdir()
    temporary_files.sweep(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {mine.name, other.name, "fmseg-results"}


def test_a_number_that_another_process_has_now_does_not_keep_a_scan(tmp_path: Path) -> None:
    parent = psutil.Process().ppid()
    left = tmp_path / temporary_files.passing_name().replace(f"-{os.getpid()}-", f"-{parent}-")
    left.mkdir()
    temporary_files.sweep(tmp_path, again=True)
    assert left.exists()
    os.utime(left, (1e9, 1e9))  # long before that process began
    temporary_files.sweep(tmp_path, again=True)
    assert not left.exists()


# --- MetaImage is read here, as ITK reads it --------------------------------------------------------------------


def by_itk(path: Path) -> np.ndarray:
    return sitk.GetArrayFromImage(sitk.ReadImage(str(path)))


KINDS = {"CHAR": "i1", "UCHAR": "u1", "SHORT": "i2", "USHORT": "u2", "INT": "i4", "UINT": "u4", "LONG_LONG": "i8",
         "ULONG_LONG": "u8", "FLOAT": "f4", "DOUBLE": "f8"}  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("way", ["plain", "big", "packed", "gzip", "text", "skip", "from the end", "list", "pattern"])
def test_a_metaimage_is_read_as_itk_reads_it(kind: str, way: str, tmp_path: Path) -> None:
    data = RNG.integers(0, 100, GRID.shape).astype("<" + KINDS[kind])
    if way == "big":
        data = data.astype(data.dtype.newbyteorder(">"))
    raw, where, extra, body = data.tobytes(), "LOCAL", "", b""
    if way in ("packed", "gzip"):
        packer = zlib.compressobj(wbits=15 if way == "packed" else 31)
        raw = packer.compress(raw) + packer.flush()
        extra = f"CompressedData = True\nCompressedDataSize = {len(raw)}\n"
    if way == "text":
        extra, raw = "BinaryData = False\n", "".join(f"{value} " for value in data.ravel()).encode()
    if way in ("skip", "from the end"):
        extra, where, body = f"HeaderSize = {37 if way == 'skip' else -1}\n", "a.raw", bytes(37) + raw
    if way in ("list", "pattern"):
        for z, plane in enumerate(data):
            (tmp_path / f"s{z + 1}.raw").write_bytes(plane.tobytes())
        names = "\n".join(f"s{z + 1}.raw" for z in range(len(data)))
        where = f"LIST 2\n{names}" if way == "list" else f"s%d.raw 1 {len(data)} 1"
    head = (
        f"ObjectType = Image\nNDims = 3\n{'' if way == 'text' else 'BinaryData = True' + chr(10)}"
        f"BinaryDataByteOrderMSB = {way == 'big'}\n{extra}TransformMatrix = 0 1 0 -1 0 0 0 0 1\nOffset = 7 8 9\n"
        f"ElementSpacing = 0.5 0.75 2\nDimSize = 6 5 4\nElementType = MET_{kind}\nElementDataFile = {where}\n"
    )
    path = tmp_path / "a.mha"
    path.write_bytes(head.encode() + (raw if where == "LOCAL" else b""))
    (tmp_path / "a.raw").write_bytes(body)
    image = read_volume(path)
    np.testing.assert_array_equal(image.data, by_itk(path))
    told = sitk.ReadImage(str(path))
    np.testing.assert_allclose(image.geometry.origin[::-1], told.GetOrigin())
    np.testing.assert_allclose(image.geometry.spacing[::-1], told.GetSpacing())
    direction = np.array(told.GetDirection()).reshape(3, 3)
    np.testing.assert_allclose(image.geometry.direction[::-1, ::-1], direction)


@pytest.mark.parametrize("names", [("Position", "ElementSize"), ("Origin", "ElementSpacing")])
def test_other_names_of_a_metaimages_place_are_known(names: tuple[str, str], tmp_path: Path) -> None:
    path = tmp_path / "a.mha"
    text = mha().replace("ElementSpacing = 1 1 1", f"{names[1]} = 1 2 3\n{names[0]} = 4 5 6")
    path.write_bytes(text.encode() + SECRET)
    assert read_volume(path).geometry.origin[::-1] == pytest.approx((4, 5, 6))


def test_components_and_a_fourth_axis_of_a_metaimage_become_channels(tmp_path: Path) -> None:
    data = RNG.integers(0, 100, (2, 3, 4, 5)).astype(np.uint8)
    image = sitk.GetImageFromArray(np.moveaxis(data, 0, -1), isVector=True)
    sitk.WriteImage(image, str(tmp_path / "parts.mha"), useCompression=True)
    sitk.WriteImage(sitk.GetImageFromArray(data, isVector=False), str(tmp_path / "time.mha"))
    for name in ("parts", "time"):
        np.testing.assert_array_equal(read_volume(tmp_path / f"{name}.mha").data, data)


BAD_LINES = ["NDims = 100", "NDims = 999999", "NDims = -1", "NDims = 11", "DimSize = -2 2 4", "DimSize = 2 2",
             "DimSize = 1e300 2 4", "ElementNumberOfChannels = -1", "ElementNumberOfChannels = 2147483647",
             "HeaderSize = 99999999999", "HeaderSize = -5", "ElementType = MET_" + "S" * 5000,
             "TransformMatrix = 1 0 0", "ElementSpacing = 1 1 x", "CompressedData = True",
             "Offset = nan 0 0"]  # fmt: skip


@pytest.mark.parametrize("line", BAD_LINES)
def test_an_impossible_metaimage_header_is_refused(line: str, tmp_path: Path) -> None:
    text = mha().replace("ElementDataFile", f"{line}\nElementDataFile")
    (tmp_path / "a.mha").write_bytes(text.encode() + SECRET)
    with pytest.raises(UnreadableVolume, match=r"again|[Cc]orrect|Stack"):
        read_volume(tmp_path / "a.mha")


def test_long_names_and_comments_in_a_metaimage_do_no_harm(tmp_path: Path) -> None:
    extra = "".join(f"{key} = {'n' * 3000}\n" for key in ("Name", "Comment", "ObjectSubType", "Modality"))
    (tmp_path / "a.mha").write_bytes(mha(extra=extra).encode() + SECRET)
    assert read_volume(tmp_path / "a.mha").data.ravel().tolist() == list(SECRET)


@pytest.mark.parametrize(
    "line",
    ["kinds: " + "x" * 600, "space: " + "x" * 600, "byte skip: -5", "byte skip: x", "line skip: -1", "sizes: 2 2 4",
     "encoding: raw", "type: block"],
)  # fmt: skip
def test_an_impossible_nrrd_header_is_refused_before_the_library_sees_it(line: str, tmp_path: Path) -> None:
    text = nrrd(extra=f"{line}\n")
    if line.startswith("type"):
        text = text.replace("type: uchar\n", "")
    (tmp_path / "a.nrrd").write_bytes(text.encode() + SECRET)
    with pytest.raises(UnreadableVolume, match="again"):
        read_volume(tmp_path / "a.nrrd")


@pytest.mark.parametrize("text", [nrrd, mha])
def test_a_header_of_very_many_lines_is_refused_at_once(text: object, tmp_path: Path) -> None:
    sign = ":=" if text is nrrd else " = "
    many = "".join(f"Segment{i}_LabelValue{sign}{i}\n" for i in range(50_000))
    (tmp_path / "a.nrrd").write_bytes(text(extra=many).encode() + SECRET)
    with pytest.raises(UnreadableVolume, match="at most 20,000"):
        read_volume(tmp_path / "a.nrrd")


def test_a_header_without_an_end_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.nrrd").write_bytes(nrrd().strip().encode() + b"\n# " + b"c" * (17 << 20))
    with pytest.raises(UnreadableVolume, match="does not end within 16 MB"):
        read_volume(tmp_path / "a.nrrd")


# --- DICOM ------------------------------------------------------------------------------------------------------


def cut_frames(path: Path) -> Path:
    one = in_frames(ct(0, np.zeros((9, 4, 4), "<u2")), [2.0 * z for z in range(9)])
    one["PerFrameFunctionalGroupsSequence"].is_undefined_length = True
    whole = save(one, path).read_bytes()
    path.write_bytes(whole[: whole.find(b"\x20\x00\x32\x00", len(whole) // 2) + 2])
    return path


def bad_deflate(path: Path) -> Path:
    block = bytearray(save(ct(0, np.zeros((60, 70), "<u2"), DeflatedExplicitVRLittleEndian), path).read_bytes())
    block[-40:] = b"\xff" * 40
    path.write_bytes(block)
    return path


def bad_runs(path: Path) -> Path:
    one = ct(0, RNG.integers(0, 500, (60, 70)).astype("<u2"))
    one.compress(RLELossless)
    block = bytearray(save(one, path).read_bytes())
    at = block.rfind(b"\xfe\xff\x00\xe0")
    block[at + 8 : at + 72] = b"\xff" * 64
    path.write_bytes(block)
    return path


def unknown_compression(path: Path, syntax: str = HTJ2KLossless) -> Path:
    one = ct(0, np.zeros((6, 7), "<u2"))
    one.file_meta.TransferSyntaxUID = syntax
    one.PixelData = pydicom.encaps.encapsulate([b"\xff\x4f\xff\x51" + bytes(60)])
    one["PixelData"].VR = "OB"
    return save(one, path)


DAMAGED = {
    "cut frames": cut_frames,
    "deflate": bad_deflate,
    "run lengths": bad_runs,
    "compression": unknown_compression,
}


@pytest.mark.parametrize("name", DAMAGED)
def test_damaged_dicom_is_told_in_a_sentence_and_hides_no_other_file(name: str, tmp_path: Path) -> None:
    good = series(tmp_path / "good", uid="1.2.4")
    bad = DAMAGED[name](tmp_path / "bad" / "a.dcm")
    for read in (read_volume, read_labels):
        with pytest.raises(UnreadableVolume, match="again"):
            read(bad)
    assert good in find_volumes(tmp_path)
    assert len(list_series(tmp_path)) >= 1
    jobs = {job.image for job in plan_jobs([tmp_path], tmp_path / "out")}
    assert good in jobs
    assert jobs & {bad, bad.parent}, "what is damaged is listed, and fails when its turn comes"


def test_a_damaged_file_beside_a_series_is_left_out_and_said(tmp_path: Path) -> None:
    series(tmp_path)
    cut_frames(tmp_path / "x.dcm")
    image = read_volume(tmp_path)
    assert image.data.shape == (4, 6, 7)
    assert "1 DICOM files of the folder are damaged" in image.meta["warnings"][0]


def test_a_series_in_a_folder_of_many_is_found_as_its_folder_or_first_file(tmp_path: Path) -> None:
    for name, uid in (("a", "1.1"), ("a/b", "1.2"), ("c", "1.3"), ("c", "1.4")):
        for z in range(2):
            one = ct(z, np.zeros((4, 4), "<u2"))
            one.SeriesInstanceUID = uid
            one.SOPInstanceUID = one.file_meta.MediaStorageSOPInstanceUID = f"{uid}.{z + 1}"
            save(one, tmp_path / name / f"{uid}-{z}.dcm")
    found = [path.relative_to(tmp_path).as_posix() for path in find_volumes(tmp_path)]
    assert found == ["a/1.1-0.dcm", "a/b", "c/1.3-0.dcm", "c/1.4-0.dcm"]


@pytest.mark.parametrize("tags", [{}, {"BitsAllocated": 8, "BitsStored": 8, "HighBit": 7},
                                  {"BitsAllocated": 1, "BitsStored": 1, "HighBit": 0}])  # fmt: skip
@pytest.mark.parametrize("syntax", [ExplicitVRLittleEndian, RLELossless, JPEGBaseline8Bit])
def test_a_slice_that_promises_gigabytes_is_refused_before_memory_is_asked_for(
    tags: dict[str, int], syntax: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for z in range(2):
        one = ct(z, np.zeros((6, 7), "<u2"))
        one.Rows = one.Columns = 65535
        for name, value in tags.items():
            setattr(one, name, value)
        if syntax != ExplicitVRLittleEndian:
            one.file_meta.TransferSyntaxUID = syntax
            one.PixelData = pydicom.encaps.encapsulate([bytes(64)])
            one["PixelData"].VR = "OB"
        save(one, tmp_path / f"{z}.dcm")
    made: list[int] = []
    empty = np.empty
    monkeypatch.setattr(
        np, "empty", lambda shape, *rest, **more: made.append(np.prod(shape)) or empty(shape, *rest, **more)
    )
    with pytest.raises(UnreadableVolume, match="again"):
        read_volume(tmp_path)
    assert max(made, default=0) < 1e6


@pytest.mark.parametrize("heights", [[1e7, 2, 4], [0, 2, 1e6]])
def test_a_segmentation_with_one_far_plane_is_refused_before_memory_is_asked_for(
    heights: list[float], tmp_path: Path
) -> None:
    path = save(segmentation(heights), tmp_path / "a.dcm")
    with pytest.raises(UnreadableVolume, match="again"):
        read_labels(path)


def test_a_deflated_file_is_inflated_to_a_bound_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = save(ct(0, np.zeros((1000, 1000), "<u2"), DeflatedExplicitVRLittleEndian), tmp_path / "a.dcm")
    assert read_volume(path).data.shape == (1, 1000, 1000)
    monkeypatch.setattr(file, "_MOST_INFLATED", 1 << 20)
    for read in (read_volume, read_labels):
        with pytest.raises(UnreadableVolume, match="unpacks to more than 1 MB"):
            read(path)


def test_frames_that_the_pixels_do_not_go_with_are_refused_before_they_are_parsed(tmp_path: Path) -> None:
    one = in_frames(ct(0, np.zeros((3, 4, 4), "<u2")), [0.0, 2.0, 4.0])
    one.PerFrameFunctionalGroupsSequence = list(one.PerFrameFunctionalGroupsSequence) * 9000
    path = save(one, tmp_path / "a.dcm")
    assert path.stat().st_size > 1 << 20
    with pytest.raises(UnreadableVolume, match="says that it has 3 images"):
        headers([path])


def test_many_frames_that_are_there_are_read(tmp_path: Path) -> None:
    pixels = RNG.integers(0, 500, (9, 300, 300)).astype("<u2")
    path = save(in_frames(ct(0, pixels), [2.0 * z for z in range(9)]), tmp_path / "a.dcm")
    assert path.stat().st_size > 1 << 20
    np.testing.assert_array_equal(read_volume(path).data, pixels)


@pytest.mark.parametrize("spoil", ["size", "tiles", "parts", "piece"])
def test_compressed_pixels_that_would_explode_are_refused_before_they_are_decoded(spoil: str, tmp_path: Path) -> None:
    folder = jpeg2000(tmp_path / "in")
    read_volume(folder)
    path = folder / "1.dcm"
    block = bytearray(path.read_bytes())
    at = block.find(b"\xff\x4f\xff\x51")
    if spoil == "size":
        block[at + 8 : at + 16] = struct.pack(">II", 60000, 60000)
    elif spoil == "tiles":
        block[at + 24 : at + 32] = struct.pack(">II", 1, 1)
        block[at + 8 : at + 16] = struct.pack(">II", 64, 64)
        block[at + 24 : at + 28] = struct.pack(">I", 0)
    elif spoil == "parts":
        block[at + 40 : at + 42] = struct.pack(">H", 16384)
    else:
        block[at - 4 : at] = struct.pack("<I", 0x7FFFFFFF)
    path.write_bytes(block)
    with pytest.raises(UnreadableVolume, match=r"1\.dcm"):
        read_volume(folder)


def test_what_does_not_fit_into_the_free_memory_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DeviceMemory, match="memory are free"):
        voxel_values.check_memory(1 << 60, tmp_path / "a.nii")


def test_memory_that_runs_out_while_reading_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(volume(), tmp_path / "a.nii")

    def lack(*_: object, **__: object) -> None:
        raise MemoryError("Unable to allocate")

    monkeypatch.setattr(np, "empty", lack)
    with pytest.raises(DeviceMemory, match=r"a\.nii needs more memory"):
        read_volume(tmp_path / "a.nii")


# --- native parsers may crash alone -----------------------------------------------------------------------------

_DIES = (
    "import os, signal, sys\nfrom napari_fmseg.io.itk import native_reader\n"
    "native_reader._PARSERS = dict.fromkeys(native_reader._PARSERS, lambda *_: {act})\n"
    "native_reader.main(int(sys.argv[1]))"
)


def dying(act: str) -> list[str]:
    return [sys.executable, "-c", _DIES.replace("{act}", act)]


def test_what_native_code_parses_comes_the_same_from_a_process_of_its_own(tmp_path: Path, isolated: None) -> None:
    write(volume("f4", 2), tmp_path / "a.nrrd")
    folder = jpeg2000(tmp_path / "series")
    there = [read_volume(path) for path in (tmp_path / "a.nrrd", folder)]
    pid = native_reader._child.pid
    native_reader.isolate(False)
    here = [read_volume(path) for path in (tmp_path / "a.nrrd", folder)]
    for one, other in zip(there, here, strict=True):
        np.testing.assert_array_equal(one.data, other.data)
        assert one.data.dtype == other.data.dtype
        assert one.geometry == other.geometry
    assert not psutil.pid_exists(pid), "the process goes with the wish for it"


def test_what_is_read_in_python_starts_no_process(tmp_path: Path, isolated: None) -> None:
    for name in ("a.nii.gz", "a.nii", "a.mha"):
        write(volume(), tmp_path / name)
        read_volume(tmp_path / name)
    read_volume(series(tmp_path / "series"))
    assert native_reader._child is None


def test_a_parser_that_crashes_takes_nobody_along(
    tmp_path: Path, isolated: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(volume(), tmp_path / "a.nrrd")
    folder = jpeg2000(tmp_path / "series")
    with monkeypatch.context() as patch:
        patch.setattr(native_reader, "_COMMAND", dying("os.kill(os.getpid(), signal.SIGSEGV)"))
        for path, name in ((tmp_path / "a.nrrd", "a.nrrd"), (folder, "0.dcm")):
            with pytest.raises(UnreadableVolume, match=rf"{name} made the library .* crash \(signal 11"):
                read_volume(path)
    assert read_volume(tmp_path / "a.nrrd").data.shape == GRID.shape
    assert read_volume(folder).data.shape == (3, 64, 64)


def test_a_process_that_had_just_left_is_started_again(
    tmp_path: Path, isolated: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(volume(), tmp_path / "a.nrrd")
    mark = tmp_path / "started"
    code = (
        "import os, pathlib, sys\nfrom napari_fmseg.io.itk import native_reader\n"
        f"mark = pathlib.Path({str(mark)!r})\n"
        "if mark.exists():\n    native_reader.main(int(sys.argv[1]))\nmark.touch()\nsys.stdin.readline()\nos._exit(0)"
    )
    monkeypatch.setattr(native_reader, "_COMMAND", [sys.executable, "-c", code])
    assert read_volume(tmp_path / "a.nrrd").data.shape == GRID.shape


def test_a_file_that_is_refused_keeps_the_process(tmp_path: Path, isolated: None) -> None:
    write(volume(), tmp_path / "a.nrrd")
    text = nrrd(size="20 20 20").replace("encoding: raw", "encoding: gzip")
    (tmp_path / "bad.nrrd").write_bytes(text.encode() + gzip.compress(SECRET))
    read_volume(tmp_path / "a.nrrd")
    pid = native_reader._child.pid
    with pytest.raises(UnreadableVolume, match="damaged or was cut short"):
        read_volume(tmp_path / "bad.nrrd")
    read_volume(tmp_path / "a.nrrd")
    assert native_reader._child.pid == pid


def test_a_missing_tag_is_named_by_a_process_of_its_own_too(tmp_path: Path, isolated: None) -> None:
    for path in jpeg2000(tmp_path / "series").iterdir():
        one = pydicom.dcmread(path)
        one.PhotometricInterpretation = "MONOCHROME1"  # which pydicom decodes
        del one.PixelRepresentation
        one.save_as(path)
    with pytest.raises(UnreadableVolume, match=r"pixels of 0.dcm cannot be read.*Pixel Representation"):
        read_volume(tmp_path / "series")


def test_only_the_plugin_asks_for_a_process_of_its_own() -> None:
    code = (
        "from napari_fmseg.io.itk import native_reader\nassert not native_reader._isolated\n"
        "import napari_fmseg._napari\nassert native_reader._isolated"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_stream_in_memory_is_inflated_in_pieces(tmp_path: Path) -> None:
    from napari_fmseg.io.compression import inflate_zlib

    data = RNG.integers(0, 3, 3 << 20).astype(np.uint8)
    out = np.empty_like(data)
    inflate_zlib(io.BytesIO(zlib.compress(data.tobytes())), out)
    np.testing.assert_array_equal(out, data)
    with pytest.raises(EOFError, match="data end after"):
        inflate_zlib(io.BytesIO(zlib.compress(data.tobytes()[:-9])), out)
