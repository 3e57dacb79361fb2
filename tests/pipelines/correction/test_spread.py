"""Spread a correction: what a few corrected slices say about those between and beside them."""

import math

import numpy as np
import pytest
from scipy import ndimage

from napari_fmseg.core.errors import FmsegError, GeometryMismatch
from napari_fmseg.pipelines.correction import CorrectionSpread, changed_slices, spread_correction

SPACING = (3.0, 1.0, 0.5)


def cylinder(radii, shape=(41, 41), centre=(20, 20), value=1):
    """Return labels whose slice k is a disc of radius `radii[k]` pixels."""
    y, x = np.ogrid[: shape[0], : shape[1]]
    squares = (y - centre[0]) ** 2 + (x - centre[1]) ** 2
    return np.stack([np.where(squares <= r**2, value, 0) for r in radii]).astype(np.uint8)


def radii_of(labels, value=1):
    return np.sqrt(np.count_nonzero(labels == value, axis=(1, 2)) / math.pi)


def corrected_in(predicted, truth, slices, axis=0):
    labels = predicted.copy()
    np.moveaxis(labels, axis, 0)[slices] = np.moveaxis(truth, axis, 0)[slices]
    return labels


def spread(corrected, predicted, slices, axis=0, spacing=(1.0, 1.0, 1.0), **options):
    labels = corrected.copy()
    spread_correction(corrected, predicted, slices, axis, spacing, **options).apply(labels)
    return labels


def test_the_changed_slices_are_those_that_differ_along_an_axis():
    predicted = cylinder([5] * 6)
    corrected = predicted.copy()
    corrected[2, 20, 20] = 0
    corrected[4, 20, 7] = 3
    assert changed_slices(corrected, predicted, 0) == [2, 4]
    assert changed_slices(corrected, predicted, 1) == [20]
    assert changed_slices(corrected, predicted, 2) == [7, 20]
    assert changed_slices(predicted, predicted, 0) == []


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_between_corrected_slices_the_border_moves_by_what_lies_between_their_changes(axis):
    predicted = cylinder([8] * 9)
    truth = cylinder(np.linspace(10, 14, 9))
    predicted, truth = (np.moveaxis(labels, 0, axis) for labels in (predicted, truth))
    done = spread(corrected_in(predicted, truth, [0, 8], axis), predicted, [0, 8], axis)
    np.testing.assert_allclose(radii_of(np.moveaxis(done, axis, 0)), np.linspace(10, 14, 9), atol=0.7)


def test_beyond_corrected_slices_the_change_fades_as_a_gaussian():
    predicted = cylinder([8] * 21)
    corrected = corrected_in(predicted, cylinder([16] * 21), [10])
    done = spread(corrected, predicted, [10], fade=4.0)
    distances = np.abs(np.arange(21) - 10)
    expected = 8 + 8 * np.exp(-((distances / 4.0) ** 2))
    np.testing.assert_allclose(radii_of(done), expected, atol=0.6)


def test_nothing_is_spread_beyond_if_it_fades_at_once():
    predicted = cylinder([8] * 9)
    corrected = corrected_in(predicted, cylinder([12] * 9), [4])
    np.testing.assert_array_equal(spread(corrected, predicted, [4], fade=0.0), corrected)


def test_a_correction_keeps_what_the_model_saw_between_the_slices():
    bulge = 8 + 4 * np.sin(np.linspace(0, math.pi, 7))  # fill would draw a straight cylinder
    done = spread(corrected_in(cylinder(bulge), cylinder(bulge + 3), [0, 6]), cylinder(bulge), [0, 6])
    np.testing.assert_allclose(radii_of(done), bulge + 3, atol=1.0)  # a voxel


def test_corrected_slices_stay_as_they_were_painted():
    rng = np.random.default_rng(0)
    predicted = (ndimage.gaussian_filter(rng.normal(size=(9, 30, 30)), 2) > 0).astype(np.uint8)
    corrected = corrected_in(predicted, 1 - predicted, [2, 5])
    done = spread(corrected, predicted, [2, 5])
    np.testing.assert_array_equal(done[[2, 5]], corrected[[2, 5]])


def test_a_part_that_the_model_made_up_goes_in_the_neighbouring_slices_too():
    predicted = cylinder([8] * 9)
    predicted[:, 2:7, 2:7] = 1
    corrected = predicted.copy()
    corrected[4, :10, :10] = 0
    done = spread(corrected, predicted, [4])
    assert not done[3:6, 2:7, 2:7].any()
    np.testing.assert_array_equal(done[:, 12:, 12:], predicted[:, 12:, 12:])
    assert done[0, 2:7, 2:7].all()


def test_a_class_erased_from_a_slice_ends_beside_it_and_one_painted_new_begins_there():
    predicted = cylinder([8] * 9)
    erased = predicted.copy()
    erased[4] = 0
    done = radii_of(spread(erased, predicted, [4]))
    assert done[[3, 4, 5]].tolist() == [0, 0, 0]
    assert done[0] == radii_of(predicted)[0]
    nothing = np.zeros_like(predicted)
    painted = nothing.copy()
    painted[4] = predicted[4]
    done = radii_of(spread(painted, nothing, [4]))
    assert done[3] == done[5] > 0
    assert done[0] == done[8] == 0


def test_of_two_classes_that_reach_a_voxel_the_one_deeper_inside_keeps_it():
    predicted = np.zeros((7, 20, 40), np.uint8)
    predicted[:, :, :16], predicted[:, :, 16:] = 1, 2
    truth = np.zeros_like(predicted)
    truth[:, :, :24], truth[:, :, 24:] = 1, 2
    done = spread(corrected_in(predicted, truth, [0, 6]), predicted, [0, 6])
    np.testing.assert_array_equal(done, truth)


def test_a_class_that_was_not_changed_gives_way_only_where_another_is_deeper_inside():
    predicted = np.zeros((3, 20, 40), np.uint8)
    predicted[:, :, 4:16], predicted[:, :, 20:36] = 1, 2
    corrected = predicted.copy()
    corrected[1, :, 16:20] = 1  # class 2 as before
    done = spread(corrected, predicted, [1], fade=5.0)
    np.testing.assert_array_equal(done == 2, predicted == 2)
    assert (done[0, :, 4:19] == 1).all()


def test_finished_classes_are_neither_overwritten_nor_spread():
    predicted = np.zeros((7, 20, 40), np.uint8)
    predicted[:, :, :16], predicted[:, :, 16:30], predicted[:, :, 30:] = 1, 2, 3
    truth = np.zeros_like(predicted)
    truth[:, :, :24], truth[:, :, 24:27], truth[:, :, 27:] = 1, 2, 3
    corrected = corrected_in(predicted, truth, [0, 6])
    done = spread(corrected, predicted, [0, 6], protected=[2])
    np.testing.assert_array_equal(done[1:6] == 2, predicted[1:6] == 2)
    done = spread(corrected, predicted, [0, 6], values=[3])
    np.testing.assert_array_equal(done[1:6] == 1, predicted[1:6] == 1)
    assert np.count_nonzero(done == 3) > np.count_nonzero(corrected == 3)


def test_a_finished_class_does_not_come_back_to_where_the_model_had_it():
    predicted = np.zeros((7, 20, 40), np.uint8)
    predicted[:, :, :16], predicted[:, :, 16:30] = 1, 2
    finished = predicted.copy()
    finished[:, :, 16:24] = 1  # class 2 was cut back everywhere, class 1 put in its place
    finished[3, 8:12, 4:8] = 0
    done = spread(finished, predicted, [3], protected=[2])
    np.testing.assert_array_equal(done == 2, finished == 2)


def test_distances_are_in_mm():
    predicted, truth = np.zeros((3, 40, 80), np.uint8), np.zeros((3, 40, 80), np.uint8)
    predicted[:, 16:24, 32:48] = 1  # 8 x 8 mm
    truth[:, 10:30, 20:60] = 1  # 20 x 20 mm
    done = spread(corrected_in(predicted, truth, [0, 2]), predicted, [0, 2], spacing=SPACING)
    np.testing.assert_array_equal(done, truth)


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_slice_by_slice_from_the_visible_one_outwards_gives_the_whole_edit(axis):
    rng = np.random.default_rng(1)
    noise = ndimage.gaussian_filter(rng.normal(size=(2, 14, 18, 22)), (0, 2, 2, 2))
    predicted, truth = (np.digitize(n, [0.02, 0.06]).astype(np.int32) for n in noise)
    slices = [3, 8]
    corrected = corrected_in(predicted, truth, slices, axis)
    measured = CorrectionSpread(corrected, predicted, slices, axis, SPACING, protected=[2])
    whole = corrected.copy()
    measured.edit(1.5).apply(whole)
    assert (whole != corrected).any()
    step_by_step = corrected.copy()
    order = []
    for edit in measured.planes(1.5, first=6):
        order.append(edit.box[axis].start)
        assert edit.box[axis].stop == order[-1] + 1
        edit.apply(step_by_step)
    np.testing.assert_array_equal(step_by_step, whole)
    assert [abs(k - 6) for k in order] == sorted(abs(k - 6) for k in order)
    np.testing.assert_array_equal(whole == 2, corrected == 2)


def test_spreading_again_with_another_fade_starts_from_the_prediction():
    predicted = cylinder([8] * 15)
    corrected = corrected_in(predicted, cylinder([14] * 15), [7])
    once = spread(corrected, predicted, [7], fade=2.0)
    np.testing.assert_array_equal(spread(once, predicted, [7], fade=3.0), spread(corrected, predicted, [7], fade=3.0))


def test_what_cannot_be_spread_is_refused():
    labels = cylinder([8] * 5)
    with pytest.raises(FmsegError, match="Correct one or more"):
        spread_correction(labels, labels, [], 0, SPACING)
    with pytest.raises(FmsegError, match="0 to 4"):
        spread_correction(labels, labels, [5], 0, SPACING)
    with pytest.raises(FmsegError, match="fade"):
        spread_correction(corrected_in(labels, labels * 0, [1]), labels, [1], 0, SPACING, fade=-1.0)
    with pytest.raises(GeometryMismatch, match="same grid"):
        spread_correction(labels, labels[1:], [1], 0, SPACING)
    with pytest.raises(GeometryMismatch, match="same grid"):
        changed_slices(labels, labels[1:], 0)


def test_a_slice_that_was_looked_at_and_left_spreads_that_nothing_changes():
    predicted = cylinder([8] * 9)
    corrected = corrected_in(predicted, cylinder([12] * 9), [0])
    done = radii_of(spread(corrected, predicted, [0, 4], fade=9.0))
    before = radii_of(predicted)
    assert before[4] == done[4]
    assert done[2] == pytest.approx(10, abs=0.5)
    np.testing.assert_array_equal(done[4:], before[4:])
