"""Values, names and colours through the formats; what is odd is said; what fails leaves nothing."""

import gzip
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from napari_fmseg.core import atomic_write
from napari_fmseg.core.errors import UnreadableVolume, UnwritableVolume
from napari_fmseg.core.volume import Geometry, LabelMap, Volume
from napari_fmseg.io import (
    check_destination,
    find_volumes,
    read_labels,
    read_volume,
    suffix_of,
    write_labels,
    write_volume,
)

SHAPE = (3, 4, 5)
GRID = Geometry.from_spacing(SHAPE, (2, 0.5, 0.75), (1, 2, 3))
RAMP = np.arange(60).reshape(SHAPE)
SUFFIXES = (".nii.gz", ".nii", ".nrrd", ".mha", ".nhdr", ".mhd")
TYPES = ("u1", "i1", "u2", "i2", "u4", "i4", "u8", "i8", "f4", "f8")


@pytest.mark.parametrize("channels", [0, 2])
@pytest.mark.parametrize("kind", TYPES)
@pytest.mark.parametrize("suffix", SUFFIXES)
def test_every_number_type_returns_as_it_was(tmp_path: Path, suffix: str, kind: str, channels: int) -> None:
    data = (np.stack([RAMP, RAMP[::-1]]) if channels else RAMP).astype(kind)
    path = write_volume(Volume(data, GRID), tmp_path / f"a{suffix}")

    again = read_volume(path)

    assert again.data.dtype == data.dtype
    np.testing.assert_array_equal(again.data, data)
    by_itk = sitk.GetArrayFromImage(sitk.ReadImage(str(path)))
    if channels and suffix not in (".nii", ".nii.gz"):
        by_itk = np.moveaxis(by_itk, -1, 0)
    np.testing.assert_array_equal(by_itk, data)


@pytest.mark.parametrize("kind", TYPES)
@pytest.mark.parametrize("suffix", [".nii.gz", ".nii", ".mha"])
def test_torch_takes_the_array_without_a_copy(tmp_path: Path, suffix: str, kind: str) -> None:
    torch = pytest.importorskip("torch")
    data = read_volume(write_volume(Volume(RAMP.astype(kind), GRID), tmp_path / f"a{suffix}")).data
    assert data.flags.c_contiguous
    assert data.flags.writeable
    assert data.dtype.isnative
    tensor = torch.from_numpy(data)
    assert tensor.data_ptr() == data.ctypes.data
    np.testing.assert_array_equal(tensor.to(torch.float32).numpy(), RAMP)  # unsigned types are there to be converted


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("kind", [">i2", ">u4", ">f4", ">f8"])
def test_big_endian_arrays_are_written_with_their_values(tmp_path: Path, suffix: str, kind: str) -> None:
    path = write_volume(Volume(RAMP.astype(kind), GRID), tmp_path / f"a{suffix}")
    np.testing.assert_array_equal(sitk.GetArrayFromImage(sitk.ReadImage(str(path))), RAMP)


@pytest.mark.parametrize("kind", ["i2", "u2", "i4", "f4", "f8"])
def test_big_endian_files_become_native(tmp_path: Path, kind: str) -> None:
    header = nib.Nifti1Header(endianness=">")
    header.set_data_dtype(np.dtype(">" + kind))
    nib.save(nib.Nifti1Image(RAMP.T.astype(">" + kind), np.eye(4), header), tmp_path / "a.nii.gz")
    (tmp_path / "a.nrrd").write_bytes(
        b"NRRD0004\ntype: %s\ndimension: 3\nspace: left-posterior-superior\nsizes: 5 4 3\nendian: big\nencoding: raw\n"
        b"space directions: (1,0,0) (0,1,0) (0,0,1)\n\n"
        % {"i2": b"short", "u2": b"ushort", "i4": b"int", "f4": b"float", "f8": b"double"}[kind]
        + RAMP.astype(">" + kind).tobytes()
    )
    for name in ("a.nii.gz", "a.nrrd"):
        data = read_volume(tmp_path / name).data
        assert data.dtype == np.dtype(kind)
        np.testing.assert_array_equal(data, RAMP)


@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    data=st.sampled_from(["u1", "i1", "u2", "i2", "f4"]).flatmap(
        lambda kind: hnp.arrays(kind, SHAPE, elements=st.integers(0, 100) if kind == "f4" else None)
    ),
    slope=st.sampled_from([1.0, 2.0, -1.0, 0.5, 0.1, 3.7e-3]),
    intercept=st.sampled_from([0.0, -1024.0, 5.0, 0.25]),
)
def test_slope_and_intercept_are_applied_faithfully(
    tmp_path: Path, data: np.ndarray, slope: float, intercept: float
) -> None:
    image = nib.Nifti1Image(data.T, np.eye(4))
    image.header.set_slope_inter(slope, intercept)
    nib.save(image, tmp_path / "a.nii")
    content = bytearray((tmp_path / "a.nii").read_bytes())
    content[352:] = data.tobytes()  # nibabel divides by the slope when it saves
    content[112:120] = np.array([slope, intercept], "<f4").tobytes()
    (tmp_path / "a.nii").write_bytes(content)

    again = read_volume(tmp_path / "a.nii").data

    truth = np.asanyarray(nib.load(tmp_path / "a.nii").dataobj).T
    np.testing.assert_allclose(again, truth, rtol=1e-6, atol=1e-6)
    if float(slope).is_integer() and float(intercept).is_integer() and data.dtype.kind in "ui":
        assert again.dtype.kind in "ui"
        np.testing.assert_array_equal(again, truth)


@pytest.mark.parametrize(
    ("stored", "intercept", "kind"), [("i2", 0, "i2"), ("i2", -24, "i2"), ("u2", -1024, "i2"), ("u1", -9, "i2")]
)
def test_a_ct_stays_in_sixteen_bits(tmp_path: Path, stored: str, intercept: int, kind: str) -> None:
    image = nib.Nifti1Image(RAMP.T.astype(stored), np.eye(4))
    nib.save(image, tmp_path / "a.nii")
    content = bytearray((tmp_path / "a.nii").read_bytes())
    content[112:120] = np.array([1, intercept], "<f4").tobytes()
    (tmp_path / "a.nii").write_bytes(content)
    data = read_volume(tmp_path / "a.nii").data
    np.testing.assert_array_equal(data, RAMP + intercept)
    assert data.dtype.itemsize <= 2
    if stored != "u1":
        assert data.dtype == np.dtype(kind)


@pytest.mark.parametrize(
    ("low", "high", "kind"),
    [(0, 1, "u1"), (0, 255, "u1"), (0, 256, "i2"), (-1, 1, "i1"), (0, 40000, "u2"), (0, 70000, "i4"), (-129, 0, "i2")],
)
@pytest.mark.parametrize("suffix", [".nii.gz", ".nrrd", ".mha"])
def test_labels_take_the_smallest_type_that_fits(tmp_path: Path, suffix: str, low: int, high: int, kind: str) -> None:
    data = np.zeros(SHAPE, np.int64)
    data[0, 0, 0], data[2, 3, 4] = low, high
    path = write_labels(LabelMap(data, GRID), tmp_path / f"a{suffix}")
    again = read_labels(path)
    assert again.data.dtype == np.dtype(kind)
    np.testing.assert_array_equal(again.data, data)


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_names_and_colors_come_back(tmp_path: Path, suffix: str) -> None:
    names = {1: "liver", 7: "Nebenniere, linke (ä) <&>", 300: "a = b: c"}
    colors = {1: (1.0, 0.5, 0.0), 7: (0.25, 0.125, 1.0)}
    labels = LabelMap(RAMP.astype(np.int16), GRID, {}, names, colors)
    path = write_labels(labels, tmp_path / f"a{suffix}")

    again = read_labels(path)

    assert again.names == names
    assert again.colors == colors
    np.testing.assert_array_equal(sitk.GetArrayFromImage(sitk.ReadImage(str(path))), RAMP)
    if suffix == ".nrrd":  # as 3D Slicer looks for them
        image = sitk.ReadImage(str(path))
        assert image.GetMetaData("Segment0_Name") == "liver"
        assert image.GetMetaData("Segment0_LabelValue") == "1"
    if suffix == ".nii.gz":
        (extension,) = nib.load(path).header.extensions
        assert b'Key="7"' in extension.get_content()


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_name_with_unwritable_characters_costs_no_other_name(tmp_path: Path, suffix: str) -> None:
    names = {1: "liver", 2: "left\x01kidney\x1b", 3: "spleen\ud800", 4: "a\nb"}
    path = write_labels(LabelMap(RAMP.astype(np.int16), GRID, {}, names), tmp_path / f"a{suffix}")
    assert read_labels(path).names == {1: "liver", 2: "left kidney", 3: "spleen", 4: "a b"}


def test_a_damaged_label_table_does_not_stop_the_reading(tmp_path: Path) -> None:
    image = nib.Nifti1Image(RAMP.T.astype(np.uint8), np.eye(4))
    image.header.extensions.append(nib.nifti1.Nifti1Extension(30, b"<CaretExtension><LabelTable><Label Key='1'>"))
    nib.save(image, tmp_path / "a.nii.gz")
    assert read_labels(tmp_path / "a.nii.gz").names == {}


@pytest.mark.parametrize("off", [2.3e-10, -4e-3])
def test_labels_are_rounded_never_truncated(tmp_path: Path, off: float) -> None:
    nib.save(nib.Nifti1Image((RAMP.T - off).astype(np.float64), np.eye(4)), tmp_path / "a.nii.gz")
    labels = read_labels(tmp_path / "a.nii.gz")
    assert labels.data.dtype == np.uint8
    np.testing.assert_array_equal(labels.data, RAMP)


def test_probabilities_are_no_labels(tmp_path: Path) -> None:
    write_volume(Volume((RAMP / 60).astype(np.float32), GRID), tmp_path / "a.nii.gz")
    with pytest.raises(UnreadableVolume, match=r"no label map: 59 voxels are not whole.*threshold"):
        read_labels(tmp_path / "a.nii.gz")


def test_several_channels_are_no_labels(tmp_path: Path) -> None:
    write_volume(Volume(np.stack([RAMP, RAMP]), GRID), tmp_path / "a.nii.gz")
    with pytest.raises(UnreadableVolume, match=r"2 channels.*3-D file"):
        read_labels(tmp_path / "a.nii.gz")


@pytest.mark.parametrize("suffix", [".nii.gz", ".nrrd", ".mha"])
def test_what_is_not_finite_is_replaced_and_said(tmp_path: Path, suffix: str) -> None:
    data = RAMP.astype(np.float32)
    data[0, 0, :3] = np.nan, np.inf, -np.inf
    volume = read_volume(write_volume(Volume(data, GRID), tmp_path / f"a{suffix}"))
    np.testing.assert_array_equal(volume.data[0, 0], [3, 59, 3, 3, 4])
    (sentence,) = volume.meta["repaired"]
    assert "3 voxels" in sentence


@pytest.mark.parametrize("suffix", [".nii.gz", ".nrrd", ".mha"])
def test_a_constant_volume_is_read_and_said(tmp_path: Path, suffix: str) -> None:
    volume = read_volume(write_volume(Volume(np.full(SHAPE, -7, np.int16), GRID), tmp_path / f"a{suffix}"))
    assert any("-7 everywhere" in text for text in volume.meta["warnings"])
    assert volume.meta["repaired"] == []


@pytest.mark.parametrize("suffix", [".nii.gz", ".nrrd", ".mha"])
def test_one_slice_is_read_and_said(tmp_path: Path, suffix: str) -> None:
    volume = read_volume(write_volume(Volume(RAMP[:1], Geometry.from_spacing((1, 4, 5))), tmp_path / f"a{suffix}"))
    assert volume.data.shape == (1, 4, 5)
    assert any("one voxel thick along z" in text for text in volume.meta["warnings"])


def test_an_empty_label_map_is_nothing_to_warn_of(tmp_path: Path) -> None:
    labels = read_labels(write_labels(LabelMap(np.zeros(SHAPE, bool), GRID), tmp_path / "a.nii.gz"))
    assert labels.meta["warnings"] == []
    assert labels.data.dtype == np.uint8


def test_time_and_vector_components_become_channels(tmp_path: Path) -> None:
    data = np.arange(120, dtype=np.float32).reshape(2, *SHAPE)
    nib.save(nib.Nifti1Image(data.T, np.eye(4)), tmp_path / "time.nii.gz")
    nib.save(nib.Nifti1Image(data[:, None].T, np.eye(4)), tmp_path / "vector.nii.gz")
    nib.save(nib.Nifti1Image(data[:1].T, np.eye(4)), tmp_path / "single.nii.gz")
    sitk.WriteImage(sitk.JoinSeries([sitk.GetImageFromArray(part) for part in data]), str(tmp_path / "time.nrrd"))
    for name in ("time.nii.gz", "vector.nii.gz", "time.nrrd"):
        np.testing.assert_array_equal(read_volume(tmp_path / name).data, data)
    assert read_volume(tmp_path / "single.nii.gz").data.shape == SHAPE


def test_nifti_2_and_pairs_are_read(tmp_path: Path) -> None:
    nib.save(nib.Nifti2Image(RAMP.T.astype(np.int16), np.diag([-1, -1, 2, 1])), tmp_path / "two.nii.gz")
    nib.save(nib.Nifti1Pair(RAMP.T.astype(np.int16), np.diag([-1, -1, 2, 1])), tmp_path / "pair.img")
    for name in ("two.nii.gz", "pair.img", "pair.hdr"):
        volume = read_volume(tmp_path / name)
        np.testing.assert_array_equal(volume.data, RAMP)
        assert volume.geometry.spacing == (2, 1, 1)
    assert [path.name for path in find_volumes(tmp_path)] == ["pair.hdr", "two.nii.gz"]


@pytest.mark.parametrize("suffix", [".nii.gz", ".nii", ".nrrd", ".mha"])
def test_without_a_suffix_the_first_bytes_decide(tmp_path: Path, suffix: str) -> None:
    path = write_volume(Volume(RAMP, GRID), tmp_path / f"a{suffix}").rename(tmp_path / "scan")
    np.testing.assert_array_equal(read_volume(path).data, RAMP)
    np.testing.assert_array_equal(read_volume(tmp_path).data, RAMP)


def test_gzip_is_seen_from_the_content(tmp_path: Path) -> None:
    write_volume(Volume(RAMP, GRID), tmp_path / "a.nii")
    (tmp_path / "a.nii").rename(tmp_path / "plain.nii.gz")
    np.testing.assert_array_equal(read_volume(tmp_path / "plain.nii.gz").data, RAMP)


def test_suffixes_know_double_ones() -> None:
    assert suffix_of("a/b.c.NII.GZ") == ".nii.gz"
    assert suffix_of(Path("x.seg.nrrd")) == ".nrrd"
    assert suffix_of("a.tar.gz") == ""


def test_the_standard_library_inflates_what_is_written(tmp_path: Path) -> None:
    big = Volume(
        np.random.default_rng(0).integers(-999, 999, (90, 120, 110)).astype(np.int16),
        Geometry.from_spacing((90, 120, 110)),
    )
    for suffix in (".nii.gz", ".mha"):
        write_volume(big, tmp_path / f"fast{suffix}")
        np.testing.assert_array_equal(sitk.GetArrayFromImage(sitk.ReadImage(tmp_path / f"fast{suffix}")), big.data)
    with gzip.open(tmp_path / "fast.nii.gz") as stream:
        assert len(stream.read()) == 352 + big.data.nbytes


def test_an_existing_file_is_replaced_and_missing_folders_are_made(tmp_path: Path) -> None:
    labels = LabelMap(RAMP.astype(np.uint8), GRID)
    path = write_labels(labels, tmp_path / "new" / "er" / "a.nii.gz")
    write_labels(LabelMap(labels.data + np.uint8(1), GRID), path)
    np.testing.assert_array_equal(read_labels(path).data, RAMP + 1)
    assert [p.name for p in path.parent.iterdir()] == ["a.nii.gz"]


def test_a_place_can_be_tried_before_the_work(tmp_path: Path) -> None:
    assert check_destination(tmp_path / "new" / "a.nii.gz") == tmp_path / "new" / "a.nii.gz"
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "file").touch()
    for bad in ("a.png", "file/a.nii.gz", "."):
        with pytest.raises(UnwritableVolume):
            check_destination(tmp_path / bad)


@contextmanager
def full_disk(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The kernel's own full device takes what is written to the temporary file."""

    class Full(atomic_write._Raw):
        def __init__(self, path: Path, mode: str) -> None:
            path.touch()
            super().__init__("/dev/full", "wb")

    with monkeypatch.context() as patch:
        patch.setattr(atomic_write, "_Raw", Full)
        yield


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


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs the device /dev/full of Linux")
@pytest.mark.parametrize("suffix", [".nii", ".nii.gz", ".nrrd", ".mha", ".mhd"])
@pytest.mark.parametrize("side", [8, 128])
def test_a_full_disk_is_said_and_leaves_nothing(
    suffix: str, side: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = np.random.default_rng(0).integers(0, 255, (side,) * 3).astype(np.uint8)
    labels = LabelMap(data, Geometry.from_spacing((side,) * 3))
    with full_disk(monkeypatch), pytest.raises(UnwritableVolume, match=r"full\. Free some space") as caught:
        write_labels(labels, tmp_path / "new" / f"a{suffix}")
    assert caught.value.exit_code == 3
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("suffix", "voxels"), [(".nhdr", ".raw.gz"), (".mhd", ".zraw")])
def test_a_header_that_cannot_be_written_costs_no_voxels_that_were_there(
    tmp_path: Path, suffix: str, voxels: str
) -> None:
    (tmp_path / f"a{suffix}").mkdir()
    (tmp_path / f"a{voxels}").write_bytes(b"of somebody else")
    with pytest.raises(UnwritableVolume, match="is a folder"):
        write_labels(LabelMap(RAMP.astype(np.uint8), GRID), tmp_path / f"a{suffix}")
    assert (tmp_path / f"a{voxels}").read_bytes() == b"of somebody else"


@pytest.mark.skipif(os.name == "nt", reason="permissions of POSIX")
def test_a_folder_without_permission_is_said(open_folder: Path) -> None:
    labels = LabelMap(np.ones(SHAPE, np.uint8), Geometry.from_spacing(SHAPE))
    (open_folder / "locked").mkdir(mode=0o555)
    with as_nobody(), pytest.raises(UnwritableVolume, match=r"no permission.*Choose a folder") as caught:
        write_labels(labels, open_folder / "locked" / "a.nii.gz")
    assert caught.value.exit_code == 1
    assert list((open_folder / "locked").iterdir()) == []


@pytest.mark.parametrize("name", ["dose 50%.mhd", "dose %d.nhdr", "LISTE.nhdr", "LIST.mhd", "a:b.nhdr", r"a\b.mhd"])
def test_a_name_that_means_something_else_in_a_header_is_not_written(tmp_path: Path, name: str) -> None:
    for write in (check_destination, lambda path: write_labels(LabelMap(RAMP.astype(np.uint8), GRID), path)):
        with pytest.raises(UnwritableVolume, match=r"second file.*\.mha"):
            write(tmp_path / name)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["a.png", "a", "a.gz", "a.hdr"])
def test_an_unknown_suffix_is_not_written(tmp_path: Path, name: str) -> None:
    labels = LabelMap(np.ones(SHAPE, np.uint8), Geometry.from_spacing(SHAPE))
    with pytest.raises(UnwritableVolume, match=r"Use one of \.nii\.gz"):
        write_labels(labels, tmp_path / name)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_phantom_is_still_known_for_one_when_it_comes_back(tmp_path: Path, suffix: str) -> None:
    written = write_volume(Volume(RAMP.astype(np.int16), GRID, {"phantom": "easy, seed 4"}), tmp_path / f"a{suffix}")
    again = read_volume(written)
    assert again.meta["phantom"] == "easy, seed 4"
    np.testing.assert_array_equal(again.data, RAMP)
    if suffix not in (".nhdr", ".mhd"):
        np.testing.assert_array_equal(sitk.GetArrayFromImage(sitk.ReadImage(str(written))), RAMP)
    assert "phantom" not in read_volume(write_volume(Volume(RAMP.astype(np.int16), GRID), written)).meta


@pytest.mark.parametrize("description", [b"Doe^Jane", b"Doe, phantom: no", b""])
def test_no_other_description_of_a_nifti_is_kept(tmp_path: Path, description: bytes) -> None:
    image = nib.Nifti1Image(RAMP.astype(np.int16), np.eye(4))
    image.header["descrip"] = description
    nib.save(image, tmp_path / "a.nii.gz")
    meta = read_volume(tmp_path / "a.nii.gz").meta
    assert "phantom" not in meta
    assert "Doe" not in str(meta)
