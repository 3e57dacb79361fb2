"""An edit is one undo step: what it changes can be listed, written and taken back to the last voxel."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from napari_fmseg.core.errors import FmsegError
from napari_fmseg.pipelines.correction import Edit, fill_holes, grow, keep_component, smooth, swap_classes

SHAPE = (4, 5, 6)
LABELS = hnp.arrays(np.uint8, SHAPE, elements=st.integers(0, 3))


@settings(max_examples=40, deadline=None)
@given(LABELS, LABELS)
def test_an_edit_between_two_label_maps_turns_one_into_the_other_and_back(labels, wanted):
    before = labels.copy()
    edit = Edit.between(labels, (slice(0, 4), slice(0, 5), slice(0, 6)), wanted)
    indices, old, new = edit.changed(labels)
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
    indices, old, _ = edit.changed(labels)
    assert len(indices) == 3
    assert not len(old)
    edit.apply(labels)
    assert (labels == 1).all()


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.int32, np.int64])
def test_a_tool_keeps_the_dtype_and_leaves_the_labels_alone_until_the_edit_is_applied(dtype):
    labels = np.zeros((9, 9, 9), dtype)
    labels[2:7, 2:7, 2:7] = 2
    labels[4, 4, 4] = 0
    labels[0, 0, 0] = 2
    before = labels.copy()
    for edit in (
        smooth(labels, 2, 2.0, (1, 1, 1)),
        grow(labels, 2, 1.0, (1, 1, 1)),
        fill_holes(labels, 2),
        keep_component(labels, (3, 3, 3)),
        swap_classes(labels, 2, 1),
    ):
        assert not edit.is_empty
        assert edit.values.dtype == dtype
        np.testing.assert_array_equal(labels, before)


def test_a_finished_class_is_refused_with_what_to_do():
    labels = np.ones((3, 3, 3), np.uint8)
    with pytest.raises(FmsegError, match=r"finished.*Unmark"):
        grow(labels, 1, 1.0, (1, 1, 1), protected=[1])
