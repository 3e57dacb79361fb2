"""Whatever the rotation, shear, affine, scale and units of a layer, its voxels are where napari shows them, in mm."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("napari")
pytest.importorskip("nibabel")
pytest.importorskip("SimpleITK")
import nibabel as nib
import SimpleITK as sitk
from napari.components import ViewerModel
from napari.layers import Image, Labels, Layer

from napari_fmseg._napari.choosers.roi import box_of_shapes
from napari_fmseg._napari.export.label_origin import label_map_to_write
from napari_fmseg._napari.layer_transform import Frame, geometry_of, has_spacing, move_like
from napari_fmseg._napari.layers import image_layers, labels_layer, labels_of, map_layer, volume_of
from napari_fmseg._napari.recovery.autosave_store import work_of
from napari_fmseg._napari.results.navigation import centre_on_voxel, point_in
from napari_fmseg._napari.writer import write_labels_layer
from napari_fmseg.core.errors import GeometryMismatch
from napari_fmseg.core.volume import NO_SPACING, Geometry, LabelMap, Volume
from napari_fmseg.evaluation.lesions import columns, lesions, write_lesions
from napari_fmseg.evaluation.volumes import measure, write_measures

pytestmark = pytest.mark.filterwarnings("ignore:Non-orthogonal slicing")  # napari's own, of what it draws
SHAPE = (4, 5, 6)
IN_MM = {"mm": 1.0, "um": 1e-3, "cm": 10.0, "m": 1000.0}
TURN = np.linalg.qr(np.random.default_rng(4).standard_normal((3, 3)))[0]
AFFINE = np.eye(4)
AFFINE[:3, :3] = np.linalg.qr(np.random.default_rng(5).standard_normal((3, 3)))[0] @ np.diag([1.1, -0.9, 1.3])
AFFINE[:3, 3] = (4, -5, 6)
ROTATIONS = {"straight": None, "angles": (10.0, 20.0, 30.0), "matrix": TURN * np.linalg.det(TURN)}
SHEARS = {"orthogonal": None, "sheared": (0.1, -0.2, 0.3)}
SCALES = {"positive": (3.0, 0.5, 0.7), "negative": (-3.0, 0.5, -0.7)}
AFFINES = {"no affine": None, "affine": AFFINE}
UNITS = {**{unit: (unit,) * 3 for unit in IN_MM}, "mixed": ("mm", "um", "cm")}
ALL = [
    pytest.param(*(group[name] for group, name in zip((ROTATIONS, SHEARS, SCALES, AFFINES, UNITS), names, strict=True)),
                 id=", ".join(names))
    for names in itertools.product(ROTATIONS, SHEARS, SCALES, AFFINES, UNITS)
]  # fmt: skip
EVERY = pytest.mark.parametrize(("rotate", "shear", "scale", "affine", "units"), ALL)
SOME = pytest.mark.parametrize(("rotate", "shear", "scale", "affine", "units"), ALL[::7])


def options_of(rotate: Any, shear: Any, scale: Any, affine: Any, units: Any) -> dict[str, Any]:
    given = {"rotate": rotate, "shear": shear, "affine": affine}
    return {
        "scale": scale,
        "translate": (11.0, -7.0, 5.0),
        "units": units,
        **{k: v for k, v in given.items() if v is not None},
    }


def truth(layer: Any, index: Any) -> np.ndarray:
    """Where napari shows voxels (n, 3), in mm, by napari's own transform and a table of units."""
    names = {"millimeter": 1.0, "micrometer": 1e-3, "centimeter": 10.0, "meter": 1000.0}
    sizes = [names[str(unit)] for unit in layer.units]
    return np.array([layer.data_to_world(tuple(one)) for one in np.atleast_2d(index)]) * sizes


def corners(shape: tuple[int, ...] = SHAPE) -> np.ndarray:
    return np.array(list(itertools.product(*[(0, n - 1) for n in shape])))


def painted(options: dict[str, Any], **more: Any) -> Labels:
    data = np.random.default_rng(1).integers(0, 3, SHAPE).astype(np.uint8)
    return Labels(data, **options, **more)


@EVERY
def test_a_layer_of_any_transform_and_unit_is_where_napari_shows_it(*, rotate, shear, scale, affine, units) -> None:
    layer = painted(options_of(rotate, shear, scale, affine, units))
    grid = geometry_of(layer)
    extent = np.abs(truth(layer, corners())).max()
    np.testing.assert_allclose(grid.place(corners()), truth(layer, corners()), atol=1e-9 * extent)
    steps = truth(layer, np.eye(3)) - truth(layer, (0, 0, 0))
    assert labels_of(layer).volumes_ml()[1] == pytest.approx(
        (layer.data == 1).sum() * abs(np.linalg.det(steps)) / 1000, rel=1e-9
    )


@EVERY
def test_results_of_any_grid_lie_on_their_image(*, rotate, shear, scale, affine, units) -> None:
    image = Image(np.random.default_rng(1).random(SHAPE), **options_of(rotate, shear, scale, affine, units))
    frame, volume = Frame.of(image), volume_of([image])
    extent = np.abs(truth(image, corners())).max()
    turned = Volume(volume.data[::-1].transpose(2, 0, 1), turned_grid(volume.geometry))  # the engine's own order
    for made in (
        labels_layer(LabelMap((turned.data > 0.5).astype(np.uint8), turned.geometry), "labels", frame=frame),
        map_layer(turned, "map", frame=frame),
    ):
        layer = Layer.create(*made)
        assert [str(unit) for unit in layer.units] == [str(unit) for unit in image.units]
        np.testing.assert_allclose(truth(layer, corners()), truth(image, corners()), atol=1e-9 * extent)
        assert geometry_of(layer).matches(volume.geometry, atol_mm=1e-9 * extent)
        np.testing.assert_array_equal(layer.data > 0.5, image.data > 0.5)
    small = volume.geometry.resize((2, 5, 3))
    coarse = Layer.create(*labels_layer(LabelMap(np.zeros((2, 5, 3), np.uint8), small), "coarse", frame=frame))
    ends = [truth(coarse, [(-0.5,) * 3, (1.5, 4.5, 2.5)]), truth(image, [(-0.5,) * 3, (3.5, 4.5, 5.5)])]
    np.testing.assert_allclose(*ends, atol=1e-9 * extent)
    coarse.data = layer.data.astype(np.uint8)
    move_like(coarse, layer)  # as a new run does with the layer of the run before
    np.testing.assert_allclose(truth(coarse, corners()), truth(image, corners()), atol=1e-9 * extent)


def turned_grid(grid: Geometry) -> Geometry:
    """Return the grid of ``data[::-1].transpose(2, 0, 1)``."""
    z, y, x = grid.shape
    to_source = np.array([[0, -1, 0, z - 1], [0, 0, 1, 0], [1, 0, 0, 0], [0, 0, 0, 1]], float)
    return Geometry((x, z, y), grid.affine @ to_source)


@SOME
def test_files_of_such_labels_lie_there_for_nibabel_and_simpleitk(
    *, rotate, shear, scale, affine, units, tmp_path: Path
) -> None:
    options = options_of(rotate, shear, scale, affine, units)
    layer = painted(options)
    expected = truth(layer, np.argwhere(layer.data == 1))
    size = np.abs(truth(layer, corners())).max()
    [nifti] = write_labels_layer(str(tmp_path / "a.nii.gz"), layer.data, options)
    file = nib.load(nifti)
    index = np.argwhere(np.asarray(file.dataobj) == 1)
    places = nib.affines.apply_affine(file.affine, index) * (-1, -1, 1)
    np.testing.assert_allclose(in_order(places[:, ::-1]), in_order(expected), atol=1e-5 * size)
    if geometry_of(layer).is_sheared:
        return  # SimpleITK has no sheared images
    for suffix in (".nrrd", ".mha"):
        [path] = write_labels_layer(str(tmp_path / f"a{suffix}"), layer.data, options)
        image = sitk.ReadImage(path)
        index = np.argwhere(sitk.GetArrayFromImage(image) == 1)
        places = np.array([image.TransformIndexToPhysicalPoint([int(i) for i in one[::-1]])[::-1] for one in index])
        np.testing.assert_allclose(in_order(places), in_order(expected), atol=1e-5 * size)


def in_order(places: np.ndarray) -> np.ndarray:
    return places[np.lexsort(np.round(places / np.abs(places).max(), 6).T)]


@SOME
def test_a_box_drawn_over_a_voxel_holds_it_whatever_the_transform(*, rotate, shear, scale, affine, units) -> None:
    viewer = ViewerModel()
    image = viewer.add_image(np.zeros(SHAPE), **options_of(rotate, shear, scale, affine, units))
    world = np.array([image.data_to_world(at) for at in corners((2, 2, 2)) * 0.2 + (2, 3, 2.9)])
    low, high = world.min(0), world.max(0)
    for at in (low, high):
        box = [(at[0], low[1], low[2]), (at[0], low[1], high[2]), (at[0], high[1], high[2]), (at[0], high[1], low[2])]
        layer = viewer.add_shapes([box], shape_type="rectangle", units=units)
    layer.add(viewer.layers[1].data[0], shape_type="rectangle")
    layer.selected_data = set()
    found = box_of_shapes(layer, image)
    assert all(part.start <= at < part.stop for part, at in zip(found, (2, 3, 3), strict=True))


def test_going_to_a_voxel_works_between_layers_of_several_units() -> None:
    viewer = ViewerModel()
    viewer.add_image(np.zeros(SHAPE), scale=(3, 2, 1), units=("mm",) * 3)
    labels = viewer.add_labels(np.zeros(SHAPE, np.uint8), scale=(3000, 2000, 1000), units=("um",) * 3)
    for layer in viewer.layers:
        centre_on_voxel(viewer, layer, (1, 2, 3))
        for other in viewer.layers:
            np.testing.assert_allclose(other.world_to_data(point_in(viewer, other)), (1, 2, 3))
    assert geometry_of(labels).matches(geometry_of(viewer.layers[0]))


def test_an_oblique_image_that_somebody_turned_is_where_it_was_turned_to() -> None:
    grid = Geometry.from_spacing(SHAPE, (3.0, 1.5, 1.2), (-20, 31, 7), TURN)
    [(data, options, _)] = image_layers(Volume(np.zeros(SHAPE), grid), "scan")
    layer = Image(data, **options)
    before = geometry_of(layer)
    assert before.matches(grid.canonical()[0])
    layer.affine = AFFINE
    world = np.c_[before.place(corners()) @ before.direction, np.ones(8)]  # where it was shown
    expected = (world @ AFFINE.T)[:, :3] @ before.direction.T
    np.testing.assert_allclose(geometry_of(layer).place(corners()), expected, atol=1e-9)


@pytest.mark.parametrize("unit", ["second", "degree", "kg"])
def test_units_that_are_no_length_are_refused_with_the_reason(unit: str) -> None:
    layer = Image(np.zeros(SHAPE), name="odd", units=("mm", "mm", unit))
    with pytest.raises(GeometryMismatch, match=r"odd.*no length.*layer\.units"):
        geometry_of(layer)
    labels = Labels(np.ones(SHAPE, np.uint8), units=(unit,) * 3)
    assert work_of(labels).geometry is None  # kept all the same, if napari should end


def test_a_transform_that_mixes_channels_with_space_is_refused() -> None:
    affine = np.eye(5)
    affine[0, 3] = 0.5
    with pytest.raises(GeometryMismatch, match="mixes"):
        geometry_of(Image(np.zeros((2, *SHAPE)), affine=affine))
    layer = Image(np.zeros((2, *SHAPE)), scale=(1, 3, 2, 1), units=("pixel", "mm", "mm", "mm"))
    assert geometry_of(layer).spacing == (3, 2, 1)
    assert has_spacing(layer)


def test_without_a_spacing_there_are_voxels_but_no_ml_in_tables(tmp_path: Path) -> None:
    layer = painted({"scale": (2.0, 1.0, 1.0)})
    labels = labels_of(layer)
    assert labels.meta[NO_SPACING]
    found = measure(labels)
    assert [m.voxels for m in found] == [(layer.data == m.label).sum() for m in found]
    assert all(np.isnan(m.ml) and m.centre_mm is None and m.centre is not None for m in found)
    rows = write_measures(found, tmp_path / "m.csv").read_text().splitlines()
    assert rows[1] == f"1,,,{found[0].voxels},,,"
    table = lesions(labels, Volume(np.ones(SHAPE), labels.geometry))
    assert not table.has_spacing
    assert [lesion.number for lesion in table.lesions] == list(range(1, len(table.lesions) + 1))
    assert table.mean == 1.0
    rows = write_lesions(table, tmp_path / "l.csv").read_text().splitlines()
    assert rows[1].split(",")[3] == ""
    assert len(columns(table)) == 4
    assert "nan" not in "".join(rows)


def test_labels_made_over_an_image_with_a_spacing_have_it_too() -> None:
    [(data, options, _)] = image_layers(Volume(np.zeros(SHAPE), Geometry.from_spacing(SHAPE, (3, 2, 1))), "scan")
    image = Image(data, **options)
    labels = Labels(np.ones(SHAPE, np.uint8), scale=image.scale)  # another tool forgot the units
    assert not labels_of(labels).has_spacing
    assert label_map_to_write(labels, (image, labels)).has_spacing
