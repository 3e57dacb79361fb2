"""Smooth, grow, shrink and fill: in mm, against scikit-image and scipy where the spacing is isotropic."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy import ndimage
from skimage import morphology

from napari_fmseg.core.errors import FmsegError
from napari_fmseg.pipelines.correction import fill_holes, grow, smooth

ISOTROPIC = (1.0, 1.0, 1.0)
MASKS = hnp.arrays(bool, (9, 10, 11), elements=st.sampled_from([False, False, False, True]))


def after(tool, labels, *arguments, **options):
    done = labels.copy()
    tool(labels, *arguments, **options).apply(done)
    return done


def blob(shape=(20, 24, 28), seed=1):
    return ndimage.gaussian_filter(np.random.default_rng(seed).normal(size=shape), 2) > 0.05


@settings(max_examples=40, deadline=None)
@given(MASKS, st.integers(1, 3))
def test_growing_on_isotropic_voxels_is_the_dilation_with_a_ball(mask, radius):
    grown = after(grow, mask.astype(np.uint8), 1, float(radius), ISOTROPIC)
    np.testing.assert_array_equal(grown == 1, morphology.dilation(mask, morphology.ball(radius)))


@settings(max_examples=40, deadline=None)
@given(MASKS, st.integers(1, 2))
def test_shrinking_on_isotropic_voxels_is_the_erosion_with_a_ball(mask, radius):
    mask = ~mask
    shrunk = after(grow, mask.astype(np.uint8), 1, -float(radius), ISOTROPIC)
    expected = ndimage.binary_erosion(mask, morphology.ball(radius), border_value=1)
    np.testing.assert_array_equal(shrunk == 1, expected)


def test_growing_counts_in_mm_along_every_axis():
    labels = np.zeros((9, 15, 31), np.uint8)
    labels[4, 7, 15] = 3
    grown = after(grow, labels, 3, 4.0, (2.5, 1.0, 0.5))
    reach = [(int(w.max()) - int(w.min())) // 2 for w in np.nonzero(grown == 3)]
    assert reach == [1, 4, 8]
    volume = 4 / 3 * np.pi * 4.0**3
    assert np.count_nonzero(grown) * 2.5 * 0.5 == pytest.approx(volume, rel=0.15)


def test_growing_takes_over_other_classes_but_not_finished_ones():
    labels = np.zeros((5, 5, 9), np.uint8)
    labels[:, :, 0:3], labels[:, :, 3:6], labels[:, :, 6:] = 1, 2, 3
    grown = after(grow, labels, 1, 10.0, ISOTROPIC, protected=[3])
    assert (grown[:, :, :6] == 1).all()
    assert (grown[:, :, 6:] == 3).all()


def test_shrinking_leaves_background_and_does_not_start_at_the_border_of_the_volume():
    labels = np.ones((4, 6, 10), np.uint8)
    labels[:, :, 7:] = 2
    shrunk = after(grow, labels, 1, -2.0, ISOTROPIC)
    assert (shrunk[:, :, :5] == 1).all()
    assert (shrunk[:, :, 5:7] == 0).all()
    assert (shrunk[:, :, 7:] == 2).all()


def test_smoothing_removes_a_ball_below_the_radius_and_keeps_one_above_it():
    axes = np.ogrid[:41, :41, :81]
    for radius, stays in ((3.4, False), (4.8, True)):
        mask = sum((a - c) ** 2 for a, c in zip(axes, (20, 20, 40), strict=True)) <= radius**2
        assert after(smooth, mask.astype(np.uint8), 1, 4.0, ISOTROPIC).any() == stays


def test_smoothing_counts_in_mm():
    fine = np.zeros((40, 40, 40), np.uint8)
    fine[10:30, 10:30, 10:30] = 1
    fine[20, 20, 30:36] = 1  # a spike
    coarse = fine[::4]
    smooth_fine = after(smooth, fine, 1, 3.0, (1.0, 1.0, 1.0))
    smooth_coarse = after(smooth, coarse, 1, 3.0, (4.0, 1.0, 1.0))
    assert not smooth_fine[20, 20, 31:].any()
    assert np.count_nonzero(smooth_coarse) * 4 == pytest.approx(np.count_nonzero(smooth_fine), rel=0.06)


def test_what_a_class_loses_by_smoothing_goes_to_the_nearest_class_so_that_no_gap_opens():
    labels = np.full((10, 20, 20), 2, np.uint8)
    labels[:, :, 10:] = 1
    labels[5, 10, 5:10] = 1  # a spike of class 1 into class 2
    done = after(smooth, labels, 1, 3.0, ISOTROPIC)
    assert (done[:, :, :10] == 2).all()
    assert (done[:, :, 10:] == 1).all()
    done = after(smooth, labels, 1, 3.0, ISOTROPIC, protected=[2])
    assert (done[5, 10, 5:9] == 0).all()  # a finished class does not grow either


def test_what_smoothing_takes_away_becomes_a_class_that_is_as_near_as_the_nearest():
    spacing = (2.0, 0.7, 1.1)
    labels = np.where(blob((12, 30, 28), 5), 1, np.random.default_rng(2).choice([0, 2, 3], (12, 30, 28))).astype(
        np.uint8
    )
    done = after(smooth, labels, 1, 3.0, spacing)
    lost = (labels == 1) & (done != 1)
    assert lost.sum() > 100
    nearest = ndimage.distance_transform_edt(labels == 1, spacing)[lost]
    by_class = {value: ndimage.distance_transform_edt(labels != value, spacing) for value in (0, 2, 3)}
    chosen = np.choose(done[lost], [by_class[0][lost], nearest + 1, by_class[2][lost], by_class[3][lost]])
    np.testing.assert_allclose(chosen, nearest)


def test_smoothing_does_not_write_into_a_finished_class():
    labels = blob().astype(np.uint8)
    labels[::2][labels[::2] == 0] = 7
    done = after(smooth, labels, 1, 3.0, ISOTROPIC, protected=[7])
    np.testing.assert_array_equal(done == 7, labels == 7)


@pytest.mark.parametrize("dtype", [np.uint8, np.int32])
def test_filling_holes_agrees_with_scipy_in_the_volume_and_slice_by_slice(dtype):
    mask = blob(seed=3) | blob(seed=4)
    labels = mask.astype(dtype) * 5
    np.testing.assert_array_equal(after(fill_holes, labels, 5) == 5, ndimage.binary_fill_holes(mask))
    for axis in range(3):
        expected = np.stack([ndimage.binary_fill_holes(part) for part in np.moveaxis(mask, axis, 0)], axis)
        np.testing.assert_array_equal(after(fill_holes, labels, 5, axis=axis) == 5, expected)


def test_another_class_in_a_hole_stays():
    labels = np.zeros((7, 7, 7), np.uint8)
    labels[1:6, 1:6, 1:6] = 1
    labels[2:5, 2:5, 2:5] = 0
    labels[3, 3, 3] = 2
    done = after(fill_holes, labels, 1)
    assert done[3, 3, 3] == 2
    assert np.count_nonzero(done == 1) == 5**3 - 1


@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize(
    ("tool", "arguments"),
    [
        (smooth, (2.5, (2.0, 1.0, 1.5))),
        (grow, (3.0, (2.0, 1.0, 1.5))),
        (grow, (-2.0, (2.0, 1.0, 1.5))),
        (fill_holes, ()),
    ],
)
def test_the_visible_slice_alone_is_the_same_as_in_the_whole_edit(tool, arguments, axis):
    labels = (blob(seed=5) | blob(seed=6)).astype(np.uint8)
    labels[blob(seed=7) & (labels == 0)] = 2
    whole = after(tool, labels, 1, *arguments, protected=[2])
    for k in range(0, labels.shape[axis], 3):
        alone = after(tool, labels, 1, *arguments, protected=[2], plane=(axis, k))
        np.testing.assert_array_equal(np.moveaxis(alone, axis, 0)[k], np.moveaxis(whole, axis, 0)[k])
        changed = (alone != labels).any(axis=tuple(a for a in range(3) if a != axis))
        assert set(np.flatnonzero(changed)) <= {k}


@pytest.mark.parametrize("tool", [smooth, grow])
def test_a_class_that_is_absent_or_a_distance_of_nothing_changes_nothing(tool):
    labels = blob().astype(np.uint8)
    assert tool(labels, 4, 2.0, ISOTROPIC).is_empty
    assert tool(labels, 1, 0.0, ISOTROPIC).is_empty
    assert fill_holes(labels, 4).is_empty


@pytest.mark.parametrize("tool", [smooth, grow])
def test_a_distance_that_is_no_number_is_refused(tool):
    with pytest.raises(FmsegError, match="mm"):
        tool(blob().astype(np.uint8), 1, float("nan"), ISOTROPIC)


def test_a_class_that_fills_the_volume_stays():
    labels = np.ones((4, 5, 6), np.uint8)
    assert grow(labels, 1, -3.0, ISOTROPIC).is_empty
    assert grow(labels, 1, 3.0, ISOTROPIC).is_empty
    assert smooth(labels, 1, 3.0, ISOTROPIC).is_empty
