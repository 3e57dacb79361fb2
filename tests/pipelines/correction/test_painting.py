"""The threshold brush, painting inside a class, and whole classes swapped, merged and copied."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from napari_fmseg.core.errors import FmsegError, GeometryMismatch
from napari_fmseg.pipelines.correction import brush, copy_class, merge_classes, paint_within_range, swap_classes

SHAPE = (4, 5, 6)
LABELS = hnp.arrays(np.uint8, SHAPE, elements=st.integers(0, 3))
MASKS = hnp.arrays(bool, SHAPE)
IMAGES = hnp.arrays(np.float32, SHAPE, elements=st.sampled_from([-1.0, 0.0, 0.5, 1.0, 2.0, float("nan")]))


def after(labels, edit):
    done = labels.copy()
    edit.apply(done)
    return done


@settings(max_examples=60, deadline=None)
@given(LABELS, MASKS, IMAGES)
def test_only_voxels_within_the_range_and_outside_finished_classes_are_painted(labels, where, image):
    done = after(labels, paint_within_range(labels, where, image, 0.0, 1.0, 9, only_in=(0, 1, 2), protected=[2]))
    expected = [
        9 if w and 0 <= i <= 1 and v in (0, 1) else v
        for v, w, i in zip(labels.flat, where.flat, image.flat, strict=True)
    ]
    assert done.ravel().tolist() == expected


@settings(max_examples=30, deadline=None)
@given(LABELS, MASKS, IMAGES)
def test_a_box_with_a_brush_paints_the_same_as_a_mask(labels, where, image):
    box = (slice(1, 4), slice(0, 3), slice(2, 5))
    inside = np.zeros(SHAPE, bool)
    inside[box] = where[box]
    by_mask = paint_within_range(labels, inside, image, -0.5, 1.5, 3)
    by_box = paint_within_range(labels, box, image, -0.5, 1.5, 3, brush=where[box])
    np.testing.assert_array_equal(after(labels, by_mask), after(labels, by_box))


def test_the_eraser_keeps_to_the_range_and_to_one_class():
    labels = np.tile(np.array([1, 2], np.uint8), (*SHAPE[:2], 3))
    image = np.arange(np.prod(SHAPE), dtype=np.int16).reshape(SHAPE)
    done = after(labels, paint_within_range(labels, (slice(0, 4),) * 3, image, 10, np.inf, 0, only_in=1))
    inside = np.zeros(SHAPE, bool)
    inside[:4, :4, :4] = True
    np.testing.assert_array_equal(done == 0, inside & (image >= 10) & (labels == 1))


def test_nothing_painted_changes_nothing():
    labels = np.ones(SHAPE, np.uint8)
    assert paint_within_range(labels, np.zeros(SHAPE, bool), np.zeros(SHAPE), 0, 1, 2).is_empty


@pytest.mark.parametrize("axis", [None, 0, 1, 2])
def test_a_brush_is_round_in_mm_and_flat_in_a_slice(axis):
    spacing, shape = (3.0, 1.0, 0.5), (21, 61, 121)
    box, inside = brush((10, 30, 60), 6.0, spacing, shape, axis)
    whole = np.zeros(shape, bool)
    whole[box] = inside
    places = np.argwhere(whole) - (10, 30, 60)
    distances = np.linalg.norm(places * spacing, axis=1)
    assert distances.max() <= 6.0
    reach = [0 if k == axis else int(6.0 / mm) for k, mm in enumerate(spacing)]
    assert np.abs(places).max(axis=0).tolist() == reach


def test_a_brush_at_the_corner_is_cut_and_one_smaller_than_a_voxel_covers_one():
    box, inside = brush((0, 0, 5.4), 0.1, (3, 1, 1), SHAPE)
    whole = np.zeros(SHAPE, bool)
    whole[box] = inside
    assert np.argwhere(whole).tolist() == [[0, 0, 5]]
    box, inside = brush((0, 0, 0), 2.0, (1, 1, 1), SHAPE)
    assert inside.shape == tuple(s.stop - s.start for s in box)
    assert [s.start for s in box] == [0, 0, 0]


@settings(max_examples=40, deadline=None)
@given(LABELS)
def test_swapping_twice_restores_every_voxel_and_merging_empties_a_class(labels):
    swapped = after(labels, swap_classes(labels, 1, 3))
    np.testing.assert_array_equal(swapped == 3, labels == 1)
    np.testing.assert_array_equal(swapped == 1, labels == 3)
    np.testing.assert_array_equal(swapped == 2, labels == 2)
    np.testing.assert_array_equal(after(swapped, swap_classes(swapped, 1, 3)), labels)
    merged = after(labels, merge_classes(labels, 1, 3))
    np.testing.assert_array_equal(merged == 3, (labels == 1) | (labels == 3))
    assert not (merged == 1).any()


@settings(max_examples=40, deadline=None)
@given(LABELS, LABELS)
def test_a_copied_class_joins_what_is_there_and_spares_finished_classes(source, labels):
    done = after(labels, copy_class(source, 2, labels, 7, protected=[1]))
    np.testing.assert_array_equal(done, np.where((source == 2) & (labels != 1), 7, labels))


def test_classes_that_are_finished_and_grids_that_differ_are_refused():
    labels = np.ones(SHAPE, np.uint8)
    for refused in (
        lambda: swap_classes(labels, 1, 2, protected=[2]),
        lambda: merge_classes(labels, 1, 2, protected=[1]),
        lambda: copy_class(labels, 1, labels, 2, protected=[2]),
        lambda: paint_within_range(labels, labels > 0, labels, 0, 1, 2, protected=[2]),
    ):
        with pytest.raises(FmsegError, match="finished"):
            refused()
    with pytest.raises(GeometryMismatch, match="same grid"):
        copy_class(labels[1:], 1, labels, 2)
    with pytest.raises(GeometryMismatch, match="same grid"):
        paint_within_range(labels, labels > 0, labels[1:], 0, 1, 2)
