"""What is opened through napari lies in its place, is what it is, and says what is wrong if it cannot be read."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk

from napari_fmseg._napari.opening.label_detection import Hint, are_labels, hint_of
from napari_fmseg._napari.opening.layer_data import distinct, layers_of
from napari_fmseg._napari.reader import get_reader
from napari_fmseg.core.errors import UnreadableVolume
from napari_fmseg.core.volume import Geometry, LabelMap
from napari_fmseg.io import read_volume, write_labels
from napari_fmseg.io.series_previews import preview_series

napari = pytest.importorskip("napari")
npe2 = pytest.importorskip("npe2")
from napari.components import ViewerModel  # noqa: E402
from napari.layers import Image, Labels  # noqa: E402

SHARED = Path(os.environ.get("FMSEG_SHARED", Path(__file__).parents[2].parent / "shared"))
DATA = SHARED / "data"
SHAPE = (4, 6, 5)  # z, y, x
SPACING = (2.5, 1.5, 1.25)
TILT = np.deg2rad(12)
OBLIQUE = np.array([[np.cos(TILT), np.sin(TILT), 0], [-np.sin(TILT), np.cos(TILT), 0], [0, 0, 1.0]])  # z, y, x
FLIPPED = np.diag([1.0, -1.0, -1.0])
NAMES = {1: "liver", 3: "left kidney"}
COLORS = {1: (0.8, 0.4, 0.2), 3: (0.1, 0.9, 0.3)}


def opened(*paths: Path | str, stack: bool = False) -> list[Any]:
    return ViewerModel().open([str(path) for path in paths], plugin="napari-fmseg", stack=stack)


def grid(direction: np.ndarray) -> Geometry:
    return Geometry.from_spacing(SHAPE, SPACING, (-40.0, 12.5, 33.0), direction)


def grey(dtype: str = "int16", channels: int = 0) -> np.ndarray:
    shape = (channels, *SHAPE) if channels else SHAPE
    return np.random.default_rng(5).integers(-900, 900, shape).astype(dtype)


def itk_image(data: np.ndarray, geometry: Geometry) -> sitk.Image:
    """Make SimpleITK's image of data (z, y, x) or (c, z, y, x)."""
    image = sitk.GetImageFromArray(data if data.ndim == 3 else np.moveaxis(data, 0, -1), isVector=data.ndim == 4)
    image.SetSpacing(geometry.spacing[::-1])
    image.SetOrigin(geometry.origin[::-1])
    image.SetDirection(geometry.direction[::-1, ::-1].reshape(-1).tolist())
    return image


def write_dicom(folder: Path, data: np.ndarray, geometry: Geometry, description: str = "", uid: int = 1) -> Path:
    """Write a CT series, slice by slice, with a window of 300 around 50."""
    import pydicom
    from pydicom.dataset import FileMetaDataset

    folder.mkdir(parents=True, exist_ok=True)
    for k, plane in enumerate(data):
        tags = pydicom.Dataset()
        tags.file_meta = FileMetaDataset()
        tags.file_meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
        tags.SOPClassUID = tags.file_meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.2"
        tags.SOPInstanceUID = tags.file_meta.MediaStorageSOPInstanceUID = f"1.2.3.{uid}.{k + 1}"
        tags.SeriesInstanceUID, tags.StudyInstanceUID = f"1.2.3.{uid}", "1.2.4"
        tags.SeriesDescription, tags.Modality, tags.InstanceNumber = description, "CT", k + 1
        tags.Rows, tags.Columns = plane.shape
        tags.PixelSpacing = [round(s, 6) for s in geometry.spacing[1:]]
        tags.SliceThickness = geometry.spacing[0]
        column, row = geometry.direction[::-1, 1], geometry.direction[::-1, 2]  # as x, y, z
        tags.ImageOrientationPatient = [round(float(v), 9) for v in (*row, *column)]
        tags.ImagePositionPatient = [round(float(v), 6) for v in geometry.place((k, 0, 0))[::-1]]
        tags.BitsAllocated = tags.BitsStored = 16
        tags.HighBit, tags.PixelRepresentation, tags.SamplesPerPixel = 15, 1, 1
        tags.PhotometricInterpretation, tags.RescaleSlope, tags.RescaleIntercept = "MONOCHROME2", 1, 0
        tags.WindowCenter, tags.WindowWidth = 50, 300
        tags.PixelData = plane.astype("<i2").tobytes()
        tags.save_as(folder / f"{k:03d}.dcm", enforce_file_format=True)
    return folder


def write(kind: str, folder: Path, data: np.ndarray, geometry: Geometry) -> Path:
    """Write with other people's libraries."""
    if kind == "dicom":
        return write_dicom(folder / "series", data, geometry)
    path = folder / f"scan{kind}"
    sitk.WriteImage(itk_image(data, geometry), path)
    return path


def assert_in_place(layer: Any, data: np.ndarray, geometry: Geometry) -> None:
    """Check that every voxel of the layer has the value that the file has at that place in the patient."""
    shown = layer.metadata["fmseg"]["geometry"]
    np.testing.assert_allclose(layer.scale, shown.spacing, rtol=1e-6)
    np.testing.assert_allclose(layer.translate, shown.direction.T @ shown.origin, atol=1e-3)
    assert [str(unit) for unit in layer.units] == ["millimeter"] * 3
    assert tuple(layer.axis_labels) == ("z", "y", "x")
    assert shown.orientation == "SPL"
    for index in np.ndindex(*layer.data.shape):
        there = np.linalg.solve(geometry.affine, [*shown.place(index), 1])[:3]
        np.testing.assert_allclose(there, np.rint(there), atol=1e-3)
        assert layer.data[index] == data[tuple(np.rint(there).astype(int))]


@pytest.mark.parametrize("direction", [np.eye(3), OBLIQUE, FLIPPED], ids=["straight", "oblique", "flipped"])
@pytest.mark.parametrize("kind", [".nii.gz", ".nii", ".hdr", ".nrrd", ".nhdr", ".mha", ".mhd", "dicom"])
def test_every_format_opens_in_its_place(kind: str, direction: np.ndarray, tmp_path: Path) -> None:
    if kind == "dicom" and np.linalg.det(direction) < 0:
        pytest.skip("a DICOM series is right-handed")
    geometry, data = grid(direction), grey()
    if kind == ".hdr":  # ITK has no qform-free pair: nibabel writes it
        lps = geometry.affine[np.ix_([2, 1, 0, 3], [2, 1, 0, 3])]
        path = tmp_path / "scan.hdr"
        nib.save(nib.Nifti1Pair(data.T, np.diag([-1.0, -1, 1, 1]) @ lps), tmp_path / "scan.img")
    else:
        path = write(kind, tmp_path, data, geometry)
    [layer] = opened(path)
    assert isinstance(layer, Image)
    assert layer.name == ("series" if kind == "dicom" else "scan")
    assert layer.source.reader_plugin == "napari-fmseg"
    assert not layer.rgb
    assert_in_place(layer, data, geometry)


def test_the_window_of_a_dicom_series_is_the_scanners(tmp_path: Path) -> None:
    [layer] = opened(write_dicom(tmp_path / "a", grey(), grid(np.eye(3)), description="Abdomen  native"))
    assert layer.name == "Abdomen native"
    assert tuple(layer.contrast_limits) == (-100, 200)
    assert layer.metadata["fmseg"]["source"] == str(tmp_path / "a")
    assert layer.metadata["fmseg"]["meta"]["series_uid"] == "1.2.3.1"


def test_the_window_of_another_volume_leaves_out_its_extremes(tmp_path: Path) -> None:
    data = np.random.default_rng(0).normal(100, 10, (20, 30, 30)).astype(np.float32)
    data[0, 0, 0] = 1e6
    sitk.WriteImage(sitk.GetImageFromArray(data), tmp_path / "mr.mha")
    [layer] = opened(tmp_path / "mr.mha")
    assert 60 < layer.contrast_limits[0] < layer.contrast_limits[1] < 140


@pytest.mark.parametrize("kind", [".nii.gz", ".nrrd", ".mha"])
def test_channels_become_layers_of_their_own_colour(kind: str, tmp_path: Path) -> None:
    geometry, data = grid(np.eye(3)), grey("float32", channels=3)
    path = tmp_path / f"brain{kind}"
    if kind == ".nii.gz":
        lps = geometry.affine[np.ix_([2, 1, 0, 3], [2, 1, 0, 3])]
        nib.save(nib.Nifti1Image(data.T, np.diag([-1.0, -1, 1, 1]) @ lps), path)
    else:
        sitk.WriteImage(itk_image(data, geometry), path)
    layers = opened(path)
    assert [layer.name for layer in layers] == ["brain [0]", "brain [1]", "brain [2]"]
    assert [layer.colormap.name for layer in layers] == ["gray", "green", "magenta"]
    assert [layer.blending for layer in layers] == ["translucent_no_depth", "additive", "additive"]
    for layer, channel in zip(layers, data, strict=True):
        assert_in_place(layer, channel, geometry)


def test_of_many_time_points_the_first_is_shown(tmp_path: Path) -> None:
    nib.save(nib.Nifti1Image(np.zeros((5, 6, 4, 30), np.int16) + np.arange(30, dtype=np.int16), np.eye(4)),
             tmp_path / "film.nii.gz")  # fmt: skip
    layers = opened(tmp_path / "film.nii.gz")
    assert len(layers) == 24
    assert [layer.visible for layer in layers] == [True] + [False] * 23
    assert "30 channels or time points" in layers[0].metadata["fmseg"]["meta"]["warnings"][-1]


def test_a_volume_three_voxels_wide_is_no_picture_in_colour(tmp_path: Path) -> None:
    sitk.WriteImage(sitk.GetImageFromArray(np.random.default_rng(0).normal(0, 1, (40, 40, 3))), tmp_path / "thin.mha")
    [layer] = opened(tmp_path / "thin.mha")
    assert not layer.rgb
    assert layer.ndim == 3


def blocks() -> np.ndarray:
    data = np.zeros(SHAPE, np.uint8)
    data[1:3, 1:4, 1:3] = 1
    data[2:, 4:, 3:] = 3
    return data


@pytest.mark.parametrize("direction", [np.eye(3), OBLIQUE, FLIPPED], ids=["straight", "oblique", "flipped"])
@pytest.mark.parametrize("kind", [".nii.gz", ".nrrd", ".mha"])
def test_a_label_file_opens_as_labels_with_names_and_colours(kind: str, direction: np.ndarray, tmp_path: Path) -> None:
    geometry = grid(direction)
    path = write_labels(LabelMap(blocks(), geometry, {}, NAMES, COLORS), tmp_path / f"result{kind}")
    [layer] = opened(path)
    assert isinstance(layer, Labels)
    assert layer.name == "result"
    assert_in_place(layer, blocks(), geometry)
    assert dict(zip(layer.features["index"], layer.features["name"], strict=True)) == {0: "background", **NAMES}
    for value, color in COLORS.items():
        np.testing.assert_allclose(layer.colormap.map(value)[:3], color, atol=0.01)
    assert layer.colormap.map(7)[3] == 1  # what is painted anew can be seen


@pytest.mark.parametrize(
    "name",
    ["ct_label.nii.gz", "mask.nrrd", "patient-seg.mha", "ctMask01.nii.gz", "labelsTr/a.nrrd", "labels/x.mha",
     "segmentations/liver.nii.gz", "aseg.mha"],
)  # fmt: skip
def test_a_telling_name_and_flat_values_make_labels(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    sitk.WriteImage(sitk.GetImageFromArray(blocks().astype(np.float32) * 20), path)
    [layer] = opened(path)
    assert isinstance(layer, Labels)
    assert list(layer.features["name"]) == ["background", "label 20", "label 60"]
    assert not np.allclose(layer.colormap.map(20), layer.colormap.map(60))


@pytest.mark.parametrize(
    "table", ['{"background": 0, "liver": 1, "spleen": 3}', '{"0": "background", "1": "liver", "3": "spleen"}']
)
def test_the_names_of_a_data_sets_labels_are_found_beside_it(table: str, tmp_path: Path) -> None:
    (tmp_path / "labelsTr").mkdir()
    (tmp_path / "dataset.json").write_text(f'{{"labels": {table}}}')
    sitk.WriteImage(sitk.GetImageFromArray(blocks()), tmp_path / "labelsTr" / "a.nii.gz")
    [layer] = opened(tmp_path / "labelsTr" / "a.nii.gz")
    assert list(layer.features["name"]) == ["background", "liver", "spleen"]


def test_values_from_0_to_7_in_flat_areas_make_labels_under_any_name(tmp_path: Path) -> None:
    data = np.zeros((10, 30, 30), np.uint8)
    data[2:8, 5:25, 5:25] = 2
    sitk.WriteImage(sitk.GetImageFromArray(data), tmp_path / "case_7.nrrd")
    [layer] = opened(tmp_path / "case_7.nrrd")
    assert isinstance(layer, Labels)


@pytest.mark.parametrize("name", ["image_without_label.nii.gz", "masked_ct.nii.gz", "images/segment.mha", "ct.nrrd"])
def test_an_image_stays_an_image_whatever_its_name(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    data = np.random.default_rng(0).integers(0, 255, (8, 20, 20)).astype(np.uint8)
    sitk.WriteImage(sitk.GetImageFromArray(data), path)
    assert isinstance(opened(path)[0], Image)


def test_an_image_of_few_values_is_no_label_map_unless_it_is_flat() -> None:
    noisy = np.random.default_rng(0).integers(0, 6, (8, 20, 20)).astype(np.uint8)
    assert not are_labels(noisy, Hint.NONE)
    assert not are_labels(np.zeros((4, 4, 4), np.uint8), Hint.NONE)
    assert not are_labels(blocks().astype(np.int16) - 1, Hint.NAME)
    assert are_labels(blocks(), Hint.NAME)


def test_a_nifti_with_the_intent_of_labels_says_so(tmp_path: Path) -> None:
    image = nib.Nifti1Image(blocks().T.astype(np.int16) * 500, np.eye(4))
    image.header["intent_code"] = 1002
    nib.save(image, tmp_path / "atlas.nii.gz")
    assert hint_of(tmp_path / "atlas.nii.gz") is Hint.HEADER
    assert isinstance(opened(tmp_path / "atlas.nii.gz")[0], Labels)


def test_several_paths_open_each_as_its_own_layer(tmp_path: Path) -> None:
    paths = [write(".nii.gz", tmp_path / str(i), grey(), grid(np.eye(3))) for i in range(2) if not
             (tmp_path / str(i)).mkdir()]  # fmt: skip
    assert len(opened(*paths)) == 2
    assert len(opened(*paths, stack=True)) == 2


def test_the_slices_of_one_series_stand_for_it_once(tmp_path: Path) -> None:
    folder = write_dicom(tmp_path / "a", grey(), grid(np.eye(3)))
    other = write_dicom(tmp_path / "b", grey(), grid(np.eye(3)), uid=2)
    files = sorted(folder.iterdir())
    assert distinct([*files, other / "001.dcm"]) == [str(files[0]), str(other / "001.dcm")]
    [layer] = opened(*files, stack=True)
    assert layer.data.shape == SHAPE
    assert layer.name == "a"


def test_a_folder_with_one_volume_or_a_zip_opens(tmp_path: Path) -> None:
    path = write(".nrrd", tmp_path, grey(), grid(np.eye(3)))
    (tmp_path / "readme.txt").write_text("x")
    assert opened(tmp_path)[0].name == "scan"
    with zipfile.ZipFile(tmp_path / "case.zip", "w") as archive:
        archive.write(path, "in/scan.nrrd")
    assert_in_place(opened(tmp_path / "case.zip")[0], grey(), grid(np.eye(3)))


def test_several_series_without_a_window_are_listed_in_the_error(tmp_path: Path) -> None:
    write_dicom(tmp_path / "s" / "a", grey(), grid(np.eye(3)), "arterial", uid=1)
    write_dicom(tmp_path / "s" / "b", grey(), grid(np.eye(3)), "venous", uid=2)
    with pytest.raises(UnreadableVolume, match=r"(?s)holds 2 image series.*arterial.*venous"):
        opened(tmp_path / "s")


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("cut.nii.gz", None, "damaged or was cut short"),
        ("empty.nrrd", b"", "is empty"),
        ("text.mha", b"hello", "neither NRRD nor MetaImage"),
        ("broken.dcm", b"\0" * 400, "no DICOM file"),
        ("locked.zip", b"PK\x03\x04 no", "no zip or is damaged"),
    ],
)
def test_a_broken_file_is_refused_with_cause_and_fix(
    name: str, content: bytes | None, said: str, tmp_path: Path
) -> None:
    if content is None:
        content = write(".nii.gz", tmp_path, grey(), grid(np.eye(3))).read_bytes()[:150]
    (tmp_path / name).write_bytes(content)
    assert get_reader(str(tmp_path / name)) is not None
    with pytest.raises(UnreadableVolume, match=said):
        opened(tmp_path / name)


def test_what_is_not_ours_is_left_to_others(tmp_path: Path) -> None:
    (tmp_path / "photo.png").write_bytes(b"\x89PNG")
    (tmp_path / "scene.hdr").write_bytes(b"#?RADIANCE\n")
    (tmp_path / "a.zarr").mkdir()
    photos = tmp_path / "photos"
    photos.mkdir()
    for i in range(600):
        (photos / f"{i:04d}.tif").write_bytes(b"II*\0")
    with zipfile.ZipFile(tmp_path / "text.zip", "w") as archive:
        archive.writestr("a.txt", "x")
    for name in ("photo.png", "scene.hdr", "a.zarr", "photos", "text.zip", "missing"):
        assert get_reader(str(tmp_path / name)) is None, name
    assert get_reader([]) is None
    assert get_reader([str(tmp_path / "photo.png"), str(tmp_path / "a.nii")]) is None


def test_a_folder_is_known_at_a_glance(tmp_path: Path) -> None:
    deep = write_dicom(tmp_path / "patient" / "study" / "series", grey(), grid(np.eye(3)))
    for path in list(deep.iterdir()):
        path.rename(path.with_suffix(""))
    assert get_reader(str(tmp_path)) is not None
    assert get_reader(str(deep / "000")) is not None
    assert opened(tmp_path)[0].data.shape == SHAPE


def test_asking_whether_a_path_is_ours_loads_no_torch_and_no_qt() -> None:
    code = (
        "import sys; from napari_fmseg._napari.reader import get_reader; get_reader('a.nii.gz'); get_reader('.');"
        "print(sorted({'torch', 'qtpy', 'napari', 'monai', 'SimpleITK'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


REAL = {
    "ct_dicom/images/ct_003": ("CT", (20, 512, 512)),
    "brain_dicom/images/pgbm002_hippocrop": ("MR", None),
    "prostate_dicom/images/px_0000/adc": ("MR", (19, None, None)),
    "prostate_dicom/images/px_0000/t2_tra": ("MR", (19, None, None)),
    "brain_nrrd/images/brain1.nrrd": (None, (25, 256, 256)),
    "brain_nrrd/images/prostate_phantom.nrrd": (None, None),
    "quirks/oblique_dicom": (None, (3, 50, 100)),
    "quirks/rtstruct": ("CT", (2, 512, 512)),
    "quirks/image.mha": (None, (37, 64, 64)),
    "quirks/pair.img": (None, (34, 41, 62)),
    "quirks/hip_118_image_without_label.nii.gz": (None, (33, 52, 37)),
    "quirks/ct_gantry_tilt_shear.nii.gz": (None, None),
}


@pytest.mark.parametrize("name", REAL)
@pytest.mark.real
@pytest.mark.skipif(not DATA.is_dir(), reason="the real volumes are not here (FMSEG_SHARED says where)")
def test_real_images_open_as_images(name: str) -> None:
    modality, shape = REAL[name]
    [layer] = opened(DATA / name)
    assert isinstance(layer, Image)
    assert [str(unit) for unit in layer.units] == ["millimeter"] * 3
    told = layer.metadata["fmseg"]
    assert modality is None or told["meta"]["modality"] == modality
    if shape is not None:
        assert all(n is None or n == m for n, m in zip(shape, told["filed"].shape, strict=True))
    assert told["filed"] == read_volume(DATA / name).geometry
    low, high = layer.contrast_limits
    share = np.mean((layer.data > low) & (layer.data < high))
    assert share > 0.01, "the window shows something"


LABELS = ["brain_nrrd/labels/brain1.nrrd", "brain_nrrd/labels/prostate_phantom.nrrd", "ct_dicom/labels/ct_003.nii.gz",
          "prostate_dicom/labels/px_0000.nii.gz", "prostate_dicom/labels_zones/px_0000.nii.gz", "quirks/nan_label.mha",
          "quirks/dicom_seg/liver_seg.nrrd", "quirks/pet_label_slope_0.9999.nii.gz"]  # fmt: skip


@pytest.mark.parametrize("name", LABELS)
@pytest.mark.real
@pytest.mark.skipif(not DATA.is_dir(), reason="the real volumes are not here (FMSEG_SHARED says where)")
def test_real_label_files_open_as_labels(name: str) -> None:
    [layer] = opened(DATA / name)
    assert isinstance(layer, Labels)
    present = set(np.unique(layer.data).tolist()) - {0}
    assert present <= set(layer.features["index"])


@pytest.mark.real
@pytest.mark.skipif(not DATA.is_dir(), reason="the real volumes are not here (FMSEG_SHARED says where)")
def test_no_real_image_is_taken_for_labels_nor_labels_for_an_image() -> None:
    taken = {}
    for folder in sorted(DATA.iterdir()):
        for kind in ("images", "labels"):
            for path in [p for p in sorted((folder / kind).glob("*")) if p.is_file() and ".json" not in p.name][:2]:
                taken[str(path.relative_to(DATA))] = layers_of(path)[0][2]
    wrong = [name for name, kind in taken.items() if ("/labels/" in name) != (kind == "labels")]
    assert len(taken) > 20
    assert wrong == []


@pytest.mark.real
@pytest.mark.skipif(not DATA.is_dir(), reason="the real volumes are not here (FMSEG_SHARED says where)")
def test_a_real_study_of_three_series_is_listed_with_pictures() -> None:
    study = DATA / "prostate_dicom/images/px_0000"
    with pytest.raises(UnreadableVolume, match="holds 3 image series"):
        opened(study)
    offers = preview_series(study)
    assert [offer.modality for offer in offers] == ["MR"] * 3
    for offer in offers:
        assert offer.picture is not None
        assert max(offer.picture.shape) == 96
        assert offer.shape[0] == 19
        assert read_volume(offer.path, series=offer.series).geometry.shape == offer.shape
