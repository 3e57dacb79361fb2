"""Fill between slices: shapes between painted slices, along any axis and with any spacing."""

import numpy as np
import pytest
import SimpleITK as sitk
from scipy import ndimage

from napari_fmseg.core.errors import FmsegError
from napari_fmseg.pipelines.correction import fill_between_slices
from napari_fmseg.pipelines.correction.distances import signed_distance

SPACING = (3.0, 1.0, 0.5)


def ellipsoid(shape=(25, 41, 61), centre=(12, 20, 30), radii=(10.3, 16.2, 24.1)):
    axes = np.ogrid[tuple(slice(n) for n in shape)]
    return sum(((a - c) / r) ** 2 for a, c, r in zip(axes, centre, radii, strict=True)) <= 1


def painted(mask, slices, axis, value=1):
    """Return labels in which only these slices are painted."""
    labels = np.zeros(mask.shape, np.uint8)
    np.moveaxis(labels, axis, 0)[slices] = value * np.moveaxis(mask, axis, 0)[slices]
    return labels


def fill(labels, value, slices, axis, spacing=SPACING, **options):
    fill_between_slices(labels, value, slices, axis, spacing, **options).apply(labels)
    return labels


def dice(a, b):
    return 2 * np.count_nonzero(a & b) / (np.count_nonzero(a) + np.count_nonzero(b))


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_an_ellipsoid_is_whole_again_from_every_third_slice_along_any_axis(axis):
    truth = ellipsoid()
    slices = list(range(0, truth.shape[axis], 3))
    filled = fill(painted(truth, slices, axis), 1, slices, axis) == 1
    between = np.zeros_like(truth)
    np.moveaxis(between, axis, 0)[slices[0] : slices[-1]] = True
    volume = 4 / 3 * np.pi * 10.3 * 16.2 * 24.1
    assert dice(filled, truth & between) > 0.975
    assert np.count_nonzero(filled) == pytest.approx(volume, rel=0.04)


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_a_straight_prism_is_reproduced_exactly(axis):
    plane = np.random.default_rng(0).random((9, 11)) > 0.4
    labels = np.moveaxis(np.repeat(plane[None], 7, axis=0), 0, axis)
    only_ends = painted(labels, [0, 6], axis)
    np.testing.assert_array_equal(fill(only_ends, 1, [6, 0, 6], axis) == 1, labels)


def test_a_cone_has_the_radius_between_those_of_its_ends():
    axes = np.ogrid[:81, :81]
    labels = np.zeros((9, 81, 81), np.uint8)
    for k, radius in ((0, 10), (8, 30)):
        labels[k] = (axes[0] - 40) ** 2 + (axes[1] - 40) ** 2 <= radius**2
    fill(labels, 1, [0, 8], 0, (1, 1, 1))
    radii = np.sqrt(np.count_nonzero(labels, axis=(1, 2)) / np.pi)
    np.testing.assert_allclose(radii, np.linspace(10, 30, 9), atol=0.6)


def test_distances_are_in_mm_so_that_a_border_moves_by_the_same_share_along_both_axes_of_a_slice():
    labels = np.zeros((3, 40, 80), np.uint8)
    labels[0, 16:24, 32:48] = 1  # with half the spacing along x: a square of 8 mm
    labels[2, 8:32, 16:64] = 1  # and one of 24 mm
    fill(labels, 1, [0, 2], 0, (5.0, 1.0, 0.5))
    rows, columns = np.flatnonzero(labels[1].any(axis=1)), np.flatnonzero(labels[1].any(axis=0))
    assert (rows[0], rows[-1]) == (12, 27)
    assert abs(columns[0] - 24) <= 1
    assert abs(columns[-1] - 55) <= 1


def test_a_slice_painted_empty_on_purpose_ends_the_class_halfway():
    labels = np.zeros((9, 21, 21), np.uint8)
    labels[0, 5:16, 5:16] = 1
    fill(labels, 1, [0, 8], 0)
    areas = np.count_nonzero(labels, axis=(1, 2))
    assert (np.diff(areas[:5]) < 0).all()
    assert areas[3] > 0
    assert not areas[4:].any()


def test_without_the_empty_slice_nothing_beyond_the_last_painted_one_changes():
    labels = np.zeros((9, 21, 21), np.uint8)
    labels[[0, 4], 5:16, 5:16] = 1
    labels[7, 1, 1] = 1
    fill(labels, 1, [0, 4], 0)
    assert labels[7, 1, 1] == 1
    assert not labels[5:7].any()


def test_a_small_part_that_ends_reaches_halfway_although_a_large_one_goes_on_beside_it():
    labels = np.zeros((11, 40, 60), np.uint8)
    labels[[0, 10], 5:35, 5:35] = 1
    labels[0, 18:23, 50:55] = 1
    fill(labels, 1, [0, 10], 0, (1, 1, 1))
    assert labels[:, 20, 20].all()
    assert labels[:, 20, 52].tolist() == [1] * 5 + [0] * 6


def test_a_hole_that_goes_on_stays_and_one_that_ends_reaches_halfway():
    labels = np.zeros((11, 40, 60), np.uint8)
    labels[[0, 10], 5:35, 5:55] = 1
    labels[[0, 10], 18:23, 15:20] = 0
    labels[0, 18:23, 40:45] = 0
    fill(labels, 1, [0, 10], 0, (1, 1, 1))
    assert not labels[:, 20, 17].any()
    assert labels[:, 20, 42].tolist() == [0] * 5 + [1] * 6


def test_two_parts_grow_into_one():
    labels = np.zeros((5, 20, 40), np.uint8)
    labels[0, 5:15, 3:15] = labels[0, 5:15, 25:37] = 1
    labels[4, 5:15, 3:37] = 1
    fill(labels, 1, [0, 4], 0, (1, 1, 1))
    gap = [40 - 6 - np.count_nonzero(labels[k, 10]) for k in range(5)]
    assert gap == sorted(gap, reverse=True)
    assert gap[2] > 0


def test_signed_distances_interpolate_as_those_of_simpleitk():
    field = ndimage.gaussian_filter(np.random.default_rng(2).random((2, 32, 48)), (0, 3, 3))
    lower, upper = field > np.median(field)

    def maurer(mask):
        image = sitk.GetImageFromArray(mask.astype(np.uint8))
        image.SetSpacing((0.5, 1.0))
        found = sitk.SignedMaurerDistanceMap(image, insideIsPositive=True, squaredDistance=False, useImageSpacing=True)
        return sitk.GetArrayFromImage(found)

    # ITK measures to the border voxels of the shape, which are 0 there: it differs by less than a voxel.
    for mask in (lower, upper):
        assert np.abs(signed_distance(mask, (1.0, 0.5)) - maurer(mask)).max() <= 1.01


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_the_visible_slice_alone_is_the_same_as_in_the_whole_edit(axis):
    truth = ellipsoid()
    slices = list(range(1, truth.shape[axis], 4))
    labels = painted(truth, slices, axis)
    whole = fill(labels.copy(), 1, slices, axis)
    for plane in range(truth.shape[axis]):
        edit = fill_between_slices(labels, 1, slices, axis, SPACING, plane=plane)
        alone = labels.copy()
        edit.apply(alone)
        np.testing.assert_array_equal(np.moveaxis(alone, axis, 0)[plane], np.moveaxis(whole, axis, 0)[plane])
        assert np.count_nonzero(alone != labels) == np.count_nonzero(
            np.moveaxis(alone, axis, 0)[plane] != np.moveaxis(labels, axis, 0)[plane]
        )


def test_what_was_between_is_replaced_and_a_finished_class_stays():
    labels = np.zeros((5, 20, 20), np.uint8)
    labels[[0, 4], 5:15, 5:15] = 1
    labels[2, 0:3, 0:3] = 1  # a stray
    labels[2, 8, 8] = 2
    labels[2, 9, 9] = 3
    fill(labels, 1, [0, 4], 0, protected=[3])
    assert not labels[2, 0:3, 0:3].any()
    assert labels[2, 8, 8] == 1
    assert labels[2, 9, 9] == 3


def test_painted_slices_stay_as_they_are_and_no_other_class_is_touched_outside():
    truth = ellipsoid()
    labels = painted(truth, [4, 12, 20], 0)
    labels[labels == 0] = 0
    labels[8, 0, 0] = 5
    before = labels.copy()
    fill(labels, 1, [4, 12, 20], 0)
    np.testing.assert_array_equal(labels[[4, 12, 20]], before[[4, 12, 20]])
    assert labels[8, 0, 0] == 5


def test_a_class_that_touches_the_border_of_the_volume_is_filled_up_to_it():
    labels = np.zeros((5, 12, 12), np.uint8)
    labels[[0, 4], :, :6] = 1
    fill(labels, 1, [0, 4], 0)
    assert labels[:, :, :6].all()
    assert not labels[:, :, 6:].any()


def test_slices_that_are_full_are_filled_and_slices_that_are_empty_are_emptied():
    labels = np.ones((3, 6, 6), np.uint8)
    labels[1] = 0
    assert fill(labels, 1, [0, 2], 0).all()
    labels[[0, 2]] = 0
    assert not fill(labels, 1, [0, 2], 0).any()


@pytest.mark.parametrize(
    ("slices", "message"), [([3], "Paint another|paint another"), ([], "two or more"), ([0, 25], "0 to 24")]
)
def test_slices_that_cannot_be_filled_between_are_refused(slices, message):
    with pytest.raises(FmsegError, match=message):
        fill_between_slices(ellipsoid().astype(np.uint8), 1, slices, 0, SPACING)
