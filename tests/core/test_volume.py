from __future__ import annotations

import itertools

import numpy as np
import pytest
import SimpleITK as sitk

from napari_fmseg.core.errors import FmsegError, GeometryMismatch
from napari_fmseg.core.resampling_torch import from_canonical, to_canonical
from napari_fmseg.core.volume import Geometry, LabelMap, Volume

OBLIQUE = np.array([[0.9, -0.3, 0.1], [0.3, 0.95, 0.05], [-0.1, -0.05, 0.99]])


def rotation(matrix: np.ndarray) -> np.ndarray:
    return np.linalg.qr(matrix)[0]


def test_derived_numbers_equal_those_of_simpleitk() -> None:
    image = sitk.Image([5, 4, 3], sitk.sitkUInt8)
    image.SetSpacing((0.5, 0.7, 2.0))
    image.SetOrigin((10.0, -20.0, 30.0))
    direction = rotation(OBLIQUE)
    image.SetDirection(direction.ravel())
    geometry = Geometry.from_spacing((3, 4, 5), (2.0, 0.7, 0.5), (30.0, -20.0, 10.0), direction[::-1, ::-1])
    assert geometry.spacing == pytest.approx((2.0, 0.7, 0.5))
    assert geometry.voxel_ml == pytest.approx(0.0007)
    for z, y, x in itertools.product((0, 2), (0, 3), (0, 4)):
        place = image.TransformIndexToPhysicalPoint((x, y, z))
        np.testing.assert_allclose(geometry.place((z, y, x))[::-1], place, atol=1e-9)


def test_crop_keeps_every_voxel_in_its_place() -> None:
    geometry = Geometry.from_spacing((10, 12, 14), (3, 2, 1), (5, 6, 7), rotation(OBLIQUE))
    part = geometry.crop((slice(2, 8), slice(3, 5), slice(0, 14)))
    assert part.shape == (6, 2, 14)
    np.testing.assert_allclose(part.place((1, 1, 1)), geometry.place((3, 4, 1)))


def test_a_resized_grid_fills_the_same_field_of_view() -> None:
    geometry = Geometry.from_spacing((10, 12, 14), (3, 2, 1), (5, 6, 7), rotation(OBLIQUE))
    coarse = geometry.resize((5, 24, 7))
    for end in itertools.product((0, 1), repeat=3):
        corner, there = (np.array(end) * g.shape - 0.5 for g in (geometry, coarse))
        np.testing.assert_allclose(coarse.place(there), geometry.place(corner))


@pytest.mark.parametrize("order", list(itertools.permutations(range(3))))
@pytest.mark.parametrize("signs", list(itertools.product((1, -1), repeat=3)))
def test_canonical_voxels_lie_where_they_lay_and_come_back(order: tuple[int, ...], signs: tuple[int, ...]) -> None:
    direction = np.zeros((3, 3))
    direction[list(order), range(3)] = signs
    direction = rotation(OBLIQUE) @ direction
    geometry = Geometry.from_spacing((3, 4, 5), (3, 2, 1), (5, 6, 7), direction)
    volume = Volume(np.arange(60).reshape(3, 4, 5), geometry)
    data, canonical = to_canonical(volume)
    assert canonical.orientation == "SPL"
    for index in ((0, 0, 0), (1, 2, 0), (2, 1, 1)):
        place = canonical.place(index)
        source = np.linalg.solve(geometry.affine[:3, :3], place - geometry.affine[:3, 3])
        assert data[(0, *index)] == volume.data[tuple(np.rint(source).astype(int))]
    np.testing.assert_array_equal(from_canonical(data[0], geometry), volume.data)


def test_a_sheared_grid_says_so() -> None:
    affine = np.eye(4)
    assert not Geometry((2, 2, 2), affine).is_sheared
    affine[1, 0] = 0.2
    assert Geometry((2, 2, 2), affine).is_sheared


@pytest.mark.parametrize("affine", [np.zeros((4, 4)), np.diag([1, 1, 0, 1]), np.full((4, 4), np.nan), np.eye(3)])
def test_an_affine_without_volume_is_refused(affine: np.ndarray) -> None:
    with pytest.raises(GeometryMismatch):
        Geometry((2, 2, 2), affine)


def test_data_that_do_not_fit_the_grid_are_refused() -> None:
    with pytest.raises(GeometryMismatch, match="Expected"):
        Volume(np.zeros((2, 3, 4)), Geometry.from_spacing((2, 3, 5)))
    with pytest.raises(FmsegError, match="integers"):
        LabelMap(np.zeros((2, 3, 4)), Geometry.from_spacing((2, 3, 4)))


def test_the_geometry_cannot_be_changed_through_the_callers_array() -> None:
    affine = np.eye(4)
    geometry = Geometry((2, 2, 2), affine)
    affine[0, 0] = 7
    assert geometry.spacing == (1, 1, 1)
    assert geometry == Geometry((2, 2, 2), np.eye(4))


def test_volumes_are_given_in_millilitres_for_named_and_found_labels() -> None:
    data = np.zeros((4, 4, 4), np.uint8)
    data[:2] = 1
    labels = LabelMap(data, Geometry.from_spacing((4, 4, 4), (10, 10, 10)), names={1: "liver", 2: "spleen"})
    assert labels.volumes_ml() == pytest.approx({1: 32.0, 2: 0.0})
