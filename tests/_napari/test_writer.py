"""Labels layers are written through napari at the right place in the patient, and come back as they were."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk

from napari_fmseg.core.errors import UnwritableVolume
from napari_fmseg.io import read_labels

napari = pytest.importorskip("napari")
npe2 = pytest.importorskip("npe2")
from napari.components import ViewerModel  # noqa: E402
from napari.layers import Labels  # noqa: E402

from napari_fmseg._napari.export.label_origin import label_map_to_write  # noqa: E402

SHAPE = (4, 6, 5)
TILT = np.deg2rad(12)
OBLIQUE = np.array([[np.cos(TILT), -np.sin(TILT), 0], [np.sin(TILT), np.cos(TILT), 0], [0, 0, 1.0]])  # x, y, z
ORDERS = {
    "straight": np.eye(3),
    "oblique": OBLIQUE,
    "flipped": np.diag([-1.0, -1.0, 1.0]),
    "sagittal": OBLIQUE[:, [1, 2, 0]],
}


def scan(path: Path, direction: np.ndarray) -> sitk.Image:
    image = sitk.GetImageFromArray(np.random.default_rng(2).integers(-500, 900, SHAPE).astype(np.int16))
    image.SetSpacing((1.25, 1.5, 2.5))
    image.SetOrigin((33.0, 12.5, -40.0))
    image.SetDirection(direction.reshape(-1).tolist())
    sitk.WriteImage(image, path)
    return image


def painted(image_layer: Any) -> np.ndarray:
    """Label the bright voxels, in the order that napari shows."""
    return (image_layer.data > 300).astype(np.uint8) * 2


def assert_same_place(path: Path, image: sitk.Image) -> None:
    """Check in SimpleITK that the mask is 2 where the scan is bright, in the scan's own order, at its place."""
    mask = sitk.ReadImage(path)
    np.testing.assert_array_equal(sitk.GetArrayFromImage(mask) == 2, sitk.GetArrayFromImage(image) > 300)
    for corner in ((0, 0, 0), (4, 5, 3), (4, 0, 0), (0, 5, 0)):
        np.testing.assert_allclose(
            mask.TransformIndexToPhysicalPoint(corner), image.TransformIndexToPhysicalPoint(corner), atol=1e-3
        )


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("suffix", [".nii.gz", ".nii", ".nrrd", ".mha"])
def test_a_mask_is_written_where_its_scan_lies(suffix: str, order: str, tmp_path: Path) -> None:
    image = scan(tmp_path / "scan.nrrd", ORDERS[order])
    [layer] = ViewerModel().open(str(tmp_path / "scan.nrrd"), plugin="napari-fmseg")
    mask = Labels(painted(layer), name="mask", scale=layer.scale, translate=layer.translate, metadata=layer.metadata)
    assert mask.save(str(tmp_path / f"mask{suffix}"), plugin="napari-fmseg") == [str(tmp_path / f"mask{suffix}")]
    assert_same_place(tmp_path / f"mask{suffix}", image)


@pytest.mark.parametrize("order", ORDERS)
def test_what_was_painted_on_a_new_layer_lies_where_the_scan_below_it_lies(order: str, tmp_path: Path) -> None:
    image = scan(tmp_path / "scan.nii.gz", ORDERS[order])
    viewer = ViewerModel()
    [layer] = viewer.open(str(tmp_path / "scan.nii.gz"), plugin="napari-fmseg")
    new = Labels(painted(layer), scale=layer.scale, translate=layer.translate)
    assert new.metadata == {}
    from napari_fmseg.io import write_labels

    assert_same_place(write_labels(label_map_to_write(new, tuple(viewer.layers)), tmp_path / "new.nii.gz"), image)


def test_the_window_tells_the_writer_which_scan_lies_below(make_napari_viewer: Any, tmp_path: Path) -> None:
    image = scan(tmp_path / "scan.nii.gz", ORDERS["sagittal"])
    viewer = make_napari_viewer()
    [layer] = viewer.open(str(tmp_path / "scan.nii.gz"), plugin="napari-fmseg")
    new = viewer.add_labels(painted(layer), scale=layer.scale, translate=layer.translate)
    new.save(str(tmp_path / "new.mha"), plugin="napari-fmseg")
    assert_same_place(tmp_path / "new.mha", image)


def test_names_and_colours_go_along_and_come_back(tmp_path: Path) -> None:
    layer = Labels(
        np.arange(24, dtype=np.uint8).reshape(2, 3, 4) % 4,
        features={"index": [0, 1, 3], "name": ["background", "liver", "tumour"]},
        colormap={None: "white", 0: "transparent", 1: "brown", 3: "red"},
    )
    layer.save(str(tmp_path / "a.nii.gz"), plugin="napari-fmseg")
    assert read_labels(tmp_path / "a.nii.gz").names == {1: "liver", 3: "tumour"}
    [back] = ViewerModel().open(str(tmp_path / "a.nii.gz"), plugin="napari-fmseg")
    assert list(back.features["name"]) == ["background", "liver", "label 2", "tumour"]
    np.testing.assert_allclose(back.colormap.map(3), [1, 0, 0, 1], atol=0.01)


def test_a_suffix_is_added_and_an_unwritable_place_is_told(tmp_path: Path) -> None:
    layer = Labels(np.ones((2, 3, 4), np.uint8))
    assert layer.save(str(tmp_path / "a"), plugin="napari-fmseg") == [str(tmp_path / "a.nii.gz")]
    (tmp_path / "b.nrrd").mkdir()
    with pytest.raises(UnwritableVolume, match="is a folder"):
        layer.save(str(tmp_path / "b.nrrd"), plugin="napari-fmseg")
