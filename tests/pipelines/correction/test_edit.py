"""An edit is one undo step: what it changes can be listed, written and taken back to the last voxel."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from napari_fmseg.core.errors import FmsegError
from napari_fmseg.pipelines.correction import (
    Edit,
    copy_class,
    fill_between_slices,
    fill_holes,
    grow,
    keep_component,
    merge_classes,
    paint_within_range,
    remove_component,
    smooth,
    split_component,
    spread_correction,
    swap_classes,
)

SHAPE = (4, 5, 6)
LABELS = hnp.arrays(np.uint8, SHAPE, elements=st.integers(0, 3))


@settings(max_examples=40, deadline=None)
@given(LABELS, LABELS)
def test_an_edit_between_two_label_maps_turns_one_into_the_other_and_back(labels, wanted):
    before = labels.copy()
    edit = Edit.between(labels, (slice(0, 4), slice(0, 5), slice(0, 6)), wanted)
    indices, old, new = edit.changes(labels)
    assert edit.n_changed(labels) == len(old) == np.count_nonzero(labels != wanted)
    edit.apply(labels)
    np.testing.assert_array_equal(labels, wanted)
    np.testing.assert_array_equal(labels[indices], new)
    labels[indices] = old  # as an undo history does it
    np.testing.assert_array_equal(labels, before)


@settings(max_examples=20, deadline=None)
@given(LABELS, LABELS)
def test_the_box_is_the_smallest_around_the_change(labels, wanted):
    edit = Edit.between(labels, (slice(0, 4), slice(0, 5), slice(0, 6)), wanted)
    where = np.nonzero(labels != wanted)
    if not len(where[0]):
        assert edit.is_empty
    else:
        assert [(s.start, s.stop) for s in edit.box] == [(int(w.min()), int(w.max()) + 1) for w in where]


def test_an_empty_edit_changes_nothing():
    labels = np.ones(SHAPE, np.int32)
    edit = Edit.nothing(labels)
    assert edit.n_changed(labels) == 0
    assert edit.values.dtype == np.int32
    indices, old, _ = edit.changes(labels)
    assert len(indices) == 3
    assert not len(old)
    edit.apply(labels)
    assert (labels == 1).all()


def scene(dtype=np.uint8):
    """Return labels with a holed cube of class 2 and an island of it, in contact with class 3."""
    labels = np.zeros((9, 9, 11), dtype)
    labels[2:7, 2:7, 2:7] = 2
    labels[4, 4, 4] = 0
    labels[0, 0, 0] = 2
    labels[2:7, 2:7, 7:] = 3
    return labels


def edits(labels, protected=()):
    """Yield the edit of every tool by its name."""
    spacing, everywhere = (2.0, 1.0, 1.5), np.ones(labels.shape, bool)
    predicted = np.roll(labels, 1, axis=1)
    cut = np.zeros(labels.shape, bool)
    cut[:, 4] = True
    options = {"protected": protected}
    yield "fill", fill_between_slices(labels, 2, [0, 6, 8], 0, spacing, **options)
    yield "spread", spread_correction(labels, predicted, [3, 8], 0, spacing, **options)
    yield "smooth", smooth(labels, 2, 3.0, spacing, **options)
    yield "grow", grow(labels, 2, 2.0, spacing, **options)
    yield "shrink", grow(labels, 2, -1.0, spacing, **options)
    yield "fill holes", fill_holes(labels, 2, **options)
    yield "keep", keep_component(labels, (3, 3, 3), **options)
    yield "remove", remove_component(labels, (3, 3, 3), **options)
    yield "split", split_component(labels, (3, 3, 3), cut, 1, **options)
    yield (
        "paint",
        paint_within_range(labels, everywhere, np.arange(labels.size).reshape(labels.shape), 300, 600, 1, **options),
    )
    yield "swap", swap_classes(labels, 2, 1, **options)
    yield "merge", merge_classes(labels, 2, 1, **options)
    yield "copy", copy_class(predicted, 2, labels, 1, **options)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.int32, np.int64])
def test_every_tool_keeps_the_dtype_touches_nothing_before_it_is_applied_and_is_undone_exactly(dtype):
    labels = scene(dtype)
    before = labels.copy()
    for name, edit in edits(labels):
        np.testing.assert_array_equal(labels, before, name)
        assert edit.n_changed(labels) > 0, name
        assert edit.values.dtype == dtype, name
        indices, old, new = edit.changes(labels)
        edit.apply(labels)
        np.testing.assert_array_equal(labels[indices], new, name)
        labels[indices] = old
        np.testing.assert_array_equal(labels, before, name)


def test_no_tool_takes_a_voxel_of_a_finished_class_or_adds_one():
    labels = scene()
    for name, edit in edits(labels, protected=[3]):
        done = labels.copy()
        edit.apply(done)
        np.testing.assert_array_equal(done == 3, labels == 3, name)


def test_a_finished_class_is_refused_with_what_to_do():
    labels = np.ones((3, 3, 3), np.uint8)
    with pytest.raises(FmsegError, match=r"finished.*Unmark"):
        grow(labels, 1, 1.0, (1, 1, 1), protected=[1])
