"""Small sound files of every kind that is read, and ways to spoil them: the same number gives the same input."""

from __future__ import annotations

import contextlib
import gzip
import io
import json
import locale
import random
import re
import shutil
import stat
import struct
import warnings
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np

SECRET = b"OUTSIDE!" * 64
"""What lies in a file beside every input; a zip must never give it."""

_ODD_BYTES = [bytes(4), b"\xff" * 4, b"\x7f\xff\xff\xff", b"\xff\xff\xff\x7f", b"\x80\0\0\0", b"\0\0\0\x80",
              b"\0\0\xc0\x7f", b"\0\0\x80\x7f", b"\1\0\0\0", b"\xff\xff", b"\0\x80", b"\xff" * 8]  # fmt: skip
_ODD_WORDS = ["", "-1", "0", "1e400", "nan", "inf", "99999999999999999999", "4294967296", "2147483648", "-2147483648",
              "65536", "1e308", "1e-320", "abc", "(nan,0,0) (0,1,0) (0,0,1)", "(0,0,0) (0,0,0) (0,0,0)",
              "none none none",
              "../../outside.raw", "/dev/zero", "LIST", "%03d.raw 1 99999999 1", "x" * 600, "x" * 5000, "\0", "é☃",
              "1 1 1 1 1 1 1 1 1 1 1 1", "100000 100000 100000", "-5 -5 -5", "0 0 0", "16", "block", "double",
              "MET_DOUBLE", "MET_STRING", "hex", "ascii", "bzip2", "raw", "gzip", "True", "False",
              "LOCAL", "."]  # fmt: skip
_ODD_LINES = {
    "mha": ["HeaderSize = -1", "HeaderSize = 999999999999", "BinaryData = False", "ElementNumberOfChannels = 99999999",
            "CompressedData = True", "BinaryDataByteOrderMSB = True", "NDims = 12", "NDims = 999999",
            "Name = " + "n" * 400,
            "Comment = " + "c" * 3000, "ElementSpacing = 1 nan 1", "ElementDataFile = LIST 2\n../../outside.raw"],
    "nrrd": ["line skip: 999999999", "byte skip: -1", "byte skip: 999999999999", "endian: big", "data file: LIST\n../x",
             "Data File: ../../outside.raw", "datafile: a%03d 1 999999999 1", "spacings: nan 1 1",
             "kinds: RGB-color domain",
             "space dimension: 9", "measurement frame: (1,0,0)", "Segment0_LabelValue:=99999999999999999999999",
             "Segment0_Color:=nan nan nan", "".join(f"k{i}:=v\n" for i in range(30000))],
}  # fmt: skip
_ODD_JSON = ["null", "-1", "1e999", '""', "[]", "{}", "true", '"../../outside.raw"', '"/dev/zero"', "[[[[]]]]", "NaN",
             '"\\u0000"', "99999999999999999999999", '{"a": {"b": []}}', '"x" "y"']  # fmt: skip
_DICOM_FIELDS = {
    "Rows": (0x28, 0x10), "Columns": (0x28, 0x11), "BitsAllocated": (0x28, 0x100), "BitsStored": (0x28, 0x101),
    "HighBit": (0x28, 0x102), "PixelRepresentation": (0x28, 0x103), "Samples": (0x28, 2), "Frames": (0x28, 8),
    "PixelSpacing": (0x28, 0x30), "Slope": (0x28, 0x1053), "Intercept": (0x28, 0x1052), "Position": (0x20, 0x32),
    "Orientation": (0x20, 0x37), "Thickness": (0x18, 0x50), "Syntax": (2, 0x10), "Series": (0x20, 0xE),
    "Photometric": (0x28, 4), "Pixels": (0x7FE0, 0x10), "Shared": (0x5200, 0x9229), "PerFrame": (0x5200, 0x9230),
    "Charset": (8, 5), "Modality": (8, 0x60), "Weight": (0x10, 0x1030), "Time": (8, 0x31), "Segments": (0x62, 2),
}  # fmt: skip
_SYNTAXES = [b"1.2.840.10008.1.2", b"1.2.840.10008.1.2.2", b"1.2.840.10008.1.2.1.99", b"1.2.840.10008.1.2.5",
             b"1.2.840.10008.1.2.4.50", b"1.2.840.10008.1.2.4.70", b"1.2.840.10008.1.2.4.80",
             b"1.2.840.10008.1.2.4.90", b"1.2.840.10008.1.2.4.201", b"1.2.3"]  # fmt: skip


# --- sound files ------------------------------------------------------------------------------------------------


def make_seeds(folder: Path) -> None:
    """Write a folder for every kind."""
    from napari_fmseg.core.volume import Geometry, LabelMap, Volume
    from napari_fmseg.io import write_labels, write_volume

    rng = np.random.default_rng(0)
    grid = Geometry.from_spacing((6, 9, 8), (2.5, 0.8, 0.9), (5.0, -30.0, 10.0))
    image = Volume(rng.integers(-1000, 1000, grid.shape).astype(np.int16), grid)
    labels = LabelMap(rng.integers(0, 3, grid.shape).astype(np.uint8), grid, {}, {1: "liver", 2: "spleen"})
    channels = Volume(rng.random((2, *grid.shape)).astype(np.float32), grid)
    for kind in ("nii", "nii.gz", "nrrd", "mha", "nhdr", "mhd"):
        name = kind.replace(".", "")
        write_volume(image, folder / name / f"a.{kind}")
        write_labels(labels, folder / f"{name}-labels" / f"a.{kind}", source=image)
    write_volume(channels, folder / "nrrd-channels" / "a.nrrd")
    write_volume(channels, folder / "mha-channels" / "a.mha")
    _write_text(folder / "mha-raw" / "a.mha", _mha(image.data, "LOCAL"), image.data.tobytes())
    _write_text(folder / "nrrd-raw" / "a.nrrd", _nrrd(image.data, ""), image.data.tobytes())
    _write_pair(folder / "pair", image)
    _write_dicom(folder, image)
    _write_zips(folder)
    _write_tables(folder)


def _write_text(path: Path, head: str, voxels: bytes = b"") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(head.encode() + voxels)


def _mha(data: np.ndarray, where: str) -> str:
    size = " ".join(map(str, data.shape[::-1]))
    return (f"ObjectType = Image\nNDims = 3\nBinaryData = True\nBinaryDataByteOrderMSB = False\n"
            f"TransformMatrix = 1 0 0 0 1 0 0 0 1\nOffset = 1 2 3\nElementSpacing = 0.9 0.8 2.5\nDimSize = {size}\n"
            f"ElementType = MET_SHORT\nElementDataFile = {where}\n")  # fmt: skip


def _nrrd(data: np.ndarray, where: str) -> str:
    size = " ".join(map(str, data.shape[::-1]))
    return (f"NRRD0004\ntype: short\ndimension: 3\nspace: left-posterior-superior\nsizes: {size}\n"
            f"space directions: (0.9,0,0) (0,0.8,0) (0,0,2.5)\nkinds: domain domain domain\nendian: little\n"
            f"encoding: raw\nspace origin: (1,2,3)\n{f'data file: {where}' if where else ''}\n\n")  # fmt: skip


def _write_pair(folder: Path, image: object) -> None:
    import nibabel

    folder.mkdir(parents=True, exist_ok=True)
    nibabel.save(nibabel.Nifti1Pair(image.data.T, np.diag([0.9, 0.8, 2.5, 1])), folder / "a.hdr")


def _write_dicom(folder: Path, image: object) -> None:
    import pydicom
    from pydicom.uid import DeflatedExplicitVRLittleEndian, ExplicitVRLittleEndian, ImplicitVRLittleEndian, RLELossless

    plain = (image.data + 1024).astype("<u2")
    for name, syntax in (("dicom", ExplicitVRLittleEndian), ("dicom-implicit", ImplicitVRLittleEndian)):
        for z, plane in enumerate(plain[:4]):
            _save(_slice(z, plane, syntax), folder / name / f"{z}.dcm")
    for z, plane in enumerate(plain[:3]):
        one = _slice(z, plane, ExplicitVRLittleEndian)
        one.compress(RLELossless)
        _save(one, folder / "dicom-rle" / f"{z}.dcm")
        _save(_slice(z, plane, DeflatedExplicitVRLittleEndian), folder / "dicom-deflated" / f"{z}.dcm")
        pet = _slice(z, plane, ExplicitVRLittleEndian)
        pet.Modality, pet.Units, pet.DecayCorrection, pet.CorrectedImage = "PT", "BQML", "START", ["DECY", "ATTN"]
        pet.SeriesDate, pet.SeriesTime, pet.AcquisitionDate, pet.AcquisitionTime = (
            "20240229",
            "110000",
            "20240229",
            "1100",
        )
        pet.PatientWeight = "70"
        pharma = pydicom.Dataset()
        pharma.RadiopharmaceuticalStartTime, pharma.RadionuclideTotalDose = "100000", "350000000"
        pharma.RadionuclideHalfLife = "6586"
        pet.RadiopharmaceuticalInformationSequence = [pharma]
        _save(pet, folder / "dicom-pet" / f"{z}.dcm")
    _write_by_gdcm(folder / "dicom-jpeg2000", image)
    frames = _slice(0, plain, ExplicitVRLittleEndian)
    _save(_in_frames(frames, len(plain)), folder / "dicom-frames" / "a.dcm")
    seg = _in_frames(_slice(0, (plain % 2).astype(np.uint8), ExplicitVRLittleEndian), len(plain))
    seg.file_meta.MediaStorageSOPClassUID = seg.SOPClassUID = "1.2.840.10008.5.1.4.1.1.66.7"
    seg.Modality, seg.SegmentationType = "SEG", "LABELMAP"
    segment = pydicom.Dataset()
    segment.SegmentNumber, segment.SegmentLabel = 1, "liver"
    seg.SegmentSequence = [segment]
    _save(seg, folder / "dicom-seg" / "a.dcm")


def _slice(z: int, pixels: np.ndarray, syntax: str) -> object:
    import pydicom

    meta = pydicom.dataset.FileMetaDataset()
    meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = "1.2.840.10008.5.1.4.1.1.2", f"1.2.3.{z + 1}"
    meta.TransferSyntaxUID = syntax
    one = pydicom.Dataset()
    one.file_meta = meta
    one.SOPClassUID, one.SOPInstanceUID = meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID
    one.SeriesInstanceUID, one.StudyInstanceUID, one.Modality, one.SeriesDescription = "1.2.3", "1.2", "CT", "body"
    one.Rows, one.Columns = pixels.shape[-2:]
    one.PixelSpacing, one.SliceThickness = [0.8, 0.9], 2.5
    one.ImageOrientationPatient, one.ImagePositionPatient = [1, 0, 0, 0, 1, 0], [0, 0, 2.5 * z]
    one.SamplesPerPixel, one.PhotometricInterpretation, one.InstanceNumber = 1, "MONOCHROME2", z + 1
    bits = 8 * pixels.itemsize
    one.BitsAllocated, one.BitsStored, one.HighBit, one.PixelRepresentation = bits, bits, bits - 1, 0
    one.RescaleSlope, one.RescaleIntercept = 1, -1024
    one.PixelData = pixels.tobytes()
    one["PixelData"].VR = "OW"
    return one


def _in_frames(one: object, n: int) -> object:
    """Turn the tags of a slice into those of an object of `n` frames."""
    import pydicom

    def nested(**tags: object) -> object:
        inner = pydicom.Dataset()
        for name, value in tags.items():
            setattr(inner, name, value)
        return inner

    measures = nested(PixelSpacing=[0.8, 0.9], SliceThickness=2.5, SpacingBetweenSlices=2.5)
    shared = nested(
        PixelMeasuresSequence=[measures],
        PlaneOrientationSequence=[nested(ImageOrientationPatient=[1, 0, 0, 0, 1, 0])],
    )
    one.NumberOfFrames, one.SharedFunctionalGroupsSequence = n, [shared]
    one.PerFrameFunctionalGroupsSequence = [
        nested(PlanePositionSequence=[nested(ImagePositionPatient=[0, 0, 2.5 * z])]) for z in range(n)
    ]
    del one.ImagePositionPatient, one.ImageOrientationPatient, one.PixelSpacing
    return one


def _save(one: object, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        one.save_as(path, enforce_file_format=True)


def _write_by_gdcm(folder: Path, image: object) -> None:
    """Write slices that are compressed as JPEG 2000."""
    import SimpleITK as sitk

    folder.mkdir(parents=True, exist_ok=True)
    before = locale.setlocale(locale.LC_ALL)
    tags = {
        "0008|0060": "CT",
        "0020|000e": "1.2.9",
        "0020|0037": "1\\0\\0\\0\\1\\0",
        "0028|1053": "1",
        "0028|1052": "0",
    }
    for z, plane in enumerate(image.data[:3]):
        one = sitk.GetImageFromArray(np.tile(plane, (8, 8))[None])
        for name, value in {**tags, "0020|0032": f"0\\0\\{2.5 * z}", "0008|0018": f"1.2.9.{z + 1}"}.items():
            one.SetMetaData(name, value)
        writer = sitk.ImageFileWriter()
        writer.KeepOriginalImageUIDOn()
        writer.UseCompressionOn()
        writer.SetCompressor("JPEG2000")
        writer.SetFileName(str(folder / f"{z}.dcm"))
        writer.Execute(one)
    locale.setlocale(locale.LC_ALL, before)  # which the library changes when it writes


def _write_zips(folder: Path) -> None:
    for kind in ("nii", "nhdr", "mhd", "dicom", "mha-raw"):
        place = folder / f"zip-{kind}"
        place.mkdir()
        for number, method in enumerate(
            (zipfile.ZIP_DEFLATED, zipfile.ZIP_LZMA, zipfile.ZIP_BZIP2, zipfile.ZIP_STORED)
        ):
            with zipfile.ZipFile(place / f"{number}.zip", "w", method) as archive:
                for path in sorted((folder / kind).iterdir()):
                    archive.write(path, path.name)


def _write_tables(folder: Path) -> None:
    from napari_fmseg.training.projects import init_project

    project = folder / "project"
    init_project(project, labels=("liver", "spleen"), channels=("CT",))
    for place, source in (("imagesTr", "niigz"), ("labelsTr", "niigz-labels")):
        (project / place).mkdir(exist_ok=True)
        for name in ("anna", "bert"):
            end = "_0000.nii.gz" if place == "imagesTr" else ".nii.gz"
            shutil.copy(folder / source / "a.nii.gz", project / place / f"{name}{end}")
    root = Path(__file__).parents[1] / "resources"
    (folder / "card").mkdir()
    shutil.copy(root / "models" / "efficient-phantom-ct.toml", folder / "card" / "card.toml")
    for path in sorted((root / "recipes").glob("*.toml"))[:1]:
        (folder / "recipe").mkdir()
        shutil.copy(path, folder / "recipe" / "recipe.toml")


# --- spoiling ---------------------------------------------------------------------------------------------------


def make_input(number: int, seeds: Path, folder: Path) -> tuple[str, Path]:
    """Write input `number` into an empty folder; return what it is and the path that is to be read."""
    rng = random.Random(number)
    kinds = sorted(path.name for path in seeds.iterdir())
    kind = kinds[number % len(kinds)]
    shutil.copytree(seeds / kind, folder, dirs_exist_ok=True)
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    tables = [path for path in files if path.suffix in (".json", ".toml")]
    headers = [path for path in files if path.suffix in (".hdr", ".nhdr", ".mhd")]
    path = rng.choice(tables or files)
    if headers and rng.random() < 0.8:
        path = headers[0]
    if kind.startswith("zip"):
        path = rng.choice(files)
        for other in files:
            if other != path:
                other.unlink()
    how = _spoil(rng, kind, path)
    if kind in ("project", "zip-dicom"):
        return f"{kind}: {how}", folder if kind == "project" else path
    whole = kind.startswith("dicom") and rng.random() < 0.6
    return f"{kind}: {how}", folder if whole else (headers[0] if headers else path)


def _spoil(rng: random.Random, kind: str, path: Path) -> str:
    block = path.read_bytes()
    special = _special(kind, path)
    if special is None or rng.random() < 0.3:
        how, block = _bytes(rng, block, 400 if kind.startswith(("nii", "pair")) else 2500)
    else:
        how, block = special(rng, block)
    path.write_bytes(block)
    return how


_Spoiler = Callable[[random.Random, bytes], tuple[str, bytes]]


def _special(kind: str, path: Path) -> _Spoiler | None:
    """Return the way to spoil a kind that knows its fields."""
    if kind.startswith("zip"):
        return _zip
    if path.suffix in (".json", ".toml"):
        return _table
    if kind.startswith("dicom"):
        return _dicom
    if kind.startswith(("mha", "mhd")) and path.suffix in (".mha", ".mhd"):
        return lambda rng, block: _lines(rng, block, "mha")
    if kind.startswith(("nrrd", "nhdr")) and path.suffix in (".nrrd", ".nhdr"):
        return lambda rng, block: _lines(rng, block, "nrrd")
    if kind.startswith(("nii", "pair")) and path.suffix != ".img":
        return _nifti
    return None


def _bytes(rng: random.Random, block: bytes, head: int) -> tuple[str, bytes]:
    """Flip bits, cut, overwrite a number, leave out, put in, or repeat."""
    head = max(1, min(head, len(block)))
    at, odd = rng.randrange(head), rng.choice(_ODD_BYTES)
    match rng.randrange(7):
        case 0:
            flipped = bytearray(block)
            for _ in range(rng.choice([1, 2, 4, 16, 64])):
                flipped[rng.randrange(head)] ^= 1 << rng.randrange(8)
            return "flip", bytes(flipped)
        case 1:
            return "cut", block[: rng.randrange(len(block) + 1)]
        case 2:
            return "cut in the header", block[:at]
        case 3:
            return "number", block[:at] + odd + block[at + len(odd) :]
        case 4:
            return "leave out", block[:at] + block[at + rng.choice([1, 2, 4, 8, 64]) :]
        case 5:
            return "put in", block[:at] + rng.randbytes(rng.choice([1, 2, 4, 8, 64])) + block[at:]
    start = rng.randrange(len(block))
    return "repeat", block[:at] + block[start : start + rng.randrange(64)] + block[at:]


def _nifti(rng: random.Random, block: bytes) -> tuple[str, bytes]:
    """Put odd numbers into the fields of NIfTI-1."""
    zipped = block[:2] == b"\x1f\x8b"
    with contextlib.suppress(OSError, EOFError, zlib.error):
        head = bytearray(gzip.decompress(block) if zipped else block)
        names = []
        fields = {"dim": ("<h", 40, 8), "datatype": ("<h", 70, 1), "bitpix": ("<h", 72, 1), "pixdim": ("<f", 76, 8),
                  "vox_offset": ("<f", 108, 1), "slope": ("<f", 112, 2), "units": ("<B", 123, 1),
                  "codes": ("<h", 252, 2),
                  "quatern": ("<f", 256, 6), "srow": ("<f", 280, 12), "size": ("<i", 0, 1),
                  "extension": ("<i", 352, 2)}  # fmt: skip
        whole = [0, 1, 2, 3, 7, 8, -1, 16, 64, 128, 255, 512, 1536, 2304, 32767, -32768]
        real = [float("nan"), float("inf"), 0.0, -1.0, 1e38, 1e-38, 2.5, 2.0**31, 352.0, 5e8]
        for _ in range(rng.choice([1, 1, 2, 3])):
            name = rng.choice(sorted(fields))
            form, at, n = fields[name]
            value = rng.choice(real if form == "<f" else whole)
            at += struct.calcsize(form) * rng.randrange(n)
            head += bytes(max(0, at + 4 - len(head)))
            struct.pack_into(form, head, at, value & 255 if form == "<B" else value)
            if name == "extension":
                head[348] = 1
            names.append(name)
        return "+".join(names), gzip.compress(bytes(head), 1) if zipped else bytes(head)
    return _bytes(rng, block, 400)


def _lines(rng: random.Random, block: bytes, kind: str) -> tuple[str, bytes]:
    """Edit the lines of a text header: leave out, repeat, odd values, odd lines."""
    mark = re.search(rb"ElementDataFile[^\n]*\n" if kind == "mha" else rb"\n\n", block)
    end = mark.end() if mark else len(block)
    lines, names = block[:end].decode("latin-1").split("\n"), []
    for _ in range(rng.choice([1, 1, 2, 3])):
        at = rng.randrange(len(lines))
        found = re.match(r"([^:=]+)(\s*:=|:|\s*=)(.*)", lines[at])
        match rng.randrange(5):
            case 0 if len(lines) > 1:
                del lines[at]
            case 1:
                lines.insert(rng.randrange(len(lines)), lines[at])
            case 2 if found:
                lines[at] = f"{found[1]}{found[2]} {rng.choice(_ODD_WORDS)}"
            case 3 if found and found[3].split():
                words = found[3].split()
                words[rng.randrange(len(words))] = rng.choice(_ODD_WORDS)
                lines[at] = f"{found[1]}{found[2]} {' '.join(words)}"
            case _:
                lines.insert(rng.randrange(1, len(lines) + 1), rng.choice(_ODD_LINES[kind]))
        names.append(found[1].strip() if found else "line")
    return "+".join(names), "\n".join(lines).encode("utf-8", "surrogateescape") + block[end:]


def _dicom(rng: random.Random, block: bytes) -> tuple[str, bytes]:
    """Change the value or the length of elements, or cut the pixels."""
    names = []
    for _ in range(rng.choice([1, 1, 2, 3])):
        name = rng.choice(sorted(_DICOM_FIELDS))
        at = block.find(struct.pack("<HH", *_DICOM_FIELDS[name]))
        if at < 0:
            continue
        names.append(name)
        value_at = at + 8
        n = int.from_bytes(block[at + 6 : at + 8], "little")
        if rng.random() < 0.25:
            odd = rng.choice(_ODD_BYTES)
            block = block[: at + 4 + 2 * rng.randrange(3)] + odd + block[at + 8 + len(odd) :]
        elif name == "Syntax":
            block = block[:value_at] + rng.choice(_SYNTAXES)[:n].ljust(n, b"\0") + block[value_at + n :]
        elif name == "Pixels":
            block = block[: at + rng.randrange(1 + len(block) - at)]
        elif n > 4:
            word = rng.choice(_ODD_WORDS).encode()[:n].ljust(n, b" ")
            block = block[:value_at] + word + block[value_at + n :]
        else:
            block = block[:value_at] + rng.choice(_ODD_BYTES)[:n].ljust(n, b"\0") + block[value_at + n :]
    return "+".join(names) or "nothing", block


def _zip(rng: random.Random, block: bytes) -> tuple[str, bytes]:
    """Spoil the central directory or a member, or pack headers, names and sizes that no honest zip has."""
    start = block.find(b"PK\1\2")
    match rng.randrange(5):
        case 0:
            how, spoilt = _bytes(rng, block[start:], len(block) - start)
            return f"directory, {how}", block[:start] + spoilt
        case 1:
            how, spoilt = _bytes(rng, block[:start], 80)
            return f"member, {how}", spoilt + block[start:]
        case 2:
            return _packed(rng, rng.choice(["../x.nii", "/x.nii", "", "a" * 300 + ".nii", "a/../../x.nii", "C:\\x.nii",
                                            "a\0b",
                                            "..\\x.nii", "a/" * 400 + "x.nii", "a.nii/b.nii"]), bytes(400))  # fmt: skip
        case 3:
            data = np.zeros((4, 8, 8), "<i2")
            where = rng.choice(["../outside.raw", "../../outside.raw", "LIST 2\n" + "../../outside.raw\n" * 4,
                                "../../outsid%01de.raw 1 4 1", "{absolute}"])  # fmt: skip
            head = rng.choice([_mha, _nrrd])(data, where)
            for one, other in (
                ("data file", "Data  File"),
                ("data file", "datafile"),
                ("ElementDataFile = ", "ElementDataFile:"),
            ):
                head = head.replace(one, other) if rng.random() < 0.3 else head
            return _packed(rng, rng.choice(["x.mhd", "x.mha", "x", "x.nrrd", "x.NHDR", "d/x.nhdr"]), head.encode())
    return _packed(rng, "a.nii", b"\x5c\1\0\0" + bytes(1 << 24))


def _packed(rng: random.Random, name: str, content: bytes) -> tuple[str, bytes]:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", rng.choice([zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])) as archive:
        info = zipfile.ZipInfo("a.nii")
        info.filename = name
        info.compress_type = archive.compression
        if rng.random() < 0.15:
            info.external_attr = (stat.S_IFLNK | 0o777) << 16
        archive.writestr(info, content)
    return f"member {name[:20]!r} of {len(content):,} bytes", out.getvalue()


def _table(rng: random.Random, block: bytes) -> tuple[str, bytes]:
    """Put odd values into JSON or TOML, or spoil the text."""
    text = block.decode("utf-8", "replace")
    values = list(re.finditer(r'(?<=[:=\[,])\s*("[^"\n]*"|-?[\d.]+|true|false|\[[^\[\]]*\]|\{[^{}]*\})', text))
    if not values or rng.random() < 0.2:
        return _bytes(rng, block, len(block))
    for _ in range(rng.choice([1, 1, 2])):
        found = rng.choice(values)
        odd = rng.choice([*_ODD_JSON, json.dumps(rng.choice(_ODD_WORDS))])
        text = text[: found.start()] + " " + odd + text[found.end() :]
        values = [value for value in values if value.end() <= found.start()] or values[:1]
        if values[0].end() > len(text):
            break
    return "value", text.encode("utf-8", "surrogateescape")
