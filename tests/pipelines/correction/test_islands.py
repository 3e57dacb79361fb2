"""Islands: kept, removed and split, with scipy's labelling as the oracle."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy import ndimage

from napari_fmseg.core.errors import FmsegError
from napari_fmseg.pipelines.correction import keep_component, remove_component, split_component

LABELS = hnp.arrays(np.uint8, (5, 6, 7), elements=st.sampled_from([0, 0, 0, 1, 2]))


def island_of(labels, position):
    parts, _ = ndimage.label(labels == labels[position], np.ones((3, 3, 3)))
    return parts == parts[position]


@settings(max_examples=60, deadline=None)
@given(LABELS, st.data())
def test_keeping_and_removing_an_island_agree_with_scipy(labels, data):
    places = np.argwhere(labels)
    if not len(places):
        return
    position = tuple(int(p) for p in data.draw(st.sampled_from(places.tolist())))
    island = island_of(labels, position)
    value = labels[position]
    kept, removed = labels.copy(), labels.copy()
    keep_component(labels, position).apply(kept)
    remove_component(labels, position).apply(removed)
    np.testing.assert_array_equal(kept, np.where((labels == value) & ~island, 0, labels))
    np.testing.assert_array_equal(removed, np.where(island, 0, labels))


def dumbbell():
    """Return two cubes of class 1 joined by a bridge, and a third cube apart."""
    labels = np.zeros((7, 7, 20), np.int32)
    labels[1:6, 1:6, 1:6] = labels[1:6, 1:6, 9:14] = 1
    labels[3, 3, 6:9] = 1
    labels[1:3, 1:3, 17:19] = 1
    return labels


def test_a_cut_through_a_bridge_gives_the_part_under_the_cursor_another_class():
    labels = dumbbell()
    cut = np.zeros(labels.shape, bool)
    cut[3, 3, 7] = True
    done = labels.copy()
    split_component(labels, (3, 3, 11), cut, 4).apply(done)
    assert (done[1:6, 1:6, 9:14] == 4).all()
    assert (done[1:6, 1:6, 1:6] == 1).all()
    assert (done[1:3, 1:3, 17:19] == 1).all()  # another island
    assert done[3, 3, 7] in (1, 4)  # the cut itself is not lost
    np.testing.assert_array_equal(done != 0, labels != 0)


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_a_line_in_one_slice_cuts_through_the_volume_along_any_axis(axis):
    labels = np.zeros((8, 8, 20), np.uint8)
    labels[1:7, 1:7, 2:18] = 1
    labels = np.moveaxis(labels, 0, axis)
    cut = np.zeros((8, 8, 20), bool)
    cut[4, :, 10] = True
    cut = np.moveaxis(cut, 0, axis)
    here = np.moveaxis(np.zeros((8, 8, 20), bool), 0, axis)
    np.moveaxis(here, axis, 0)[2, 2, 15] = True
    position = tuple(int(p) for p in np.argwhere(here)[0])
    with pytest.raises(FmsegError, match="does not divide"):
        split_component(labels, position, cut, 2)
    done = labels.copy()
    split_component(labels, position, cut, 2, through=axis).apply(done)
    done = np.moveaxis(done, axis, 0)
    assert (done[1:7, 1:7, 11:18] == 2).all()
    assert (done[1:7, 1:7, 2:10] == 1).all()


def test_a_class_of_zero_removes_the_part():
    labels = dumbbell()
    cut = np.zeros(labels.shape, bool)
    cut[3, 3, 7] = True
    done = labels.copy()
    split_component(labels, (3, 3, 11), cut, 0).apply(done)
    assert not done[1:6, 1:6, 9:14].any()


def test_what_cannot_be_done_is_refused_with_the_reason():
    labels = dumbbell()
    cut = np.zeros(labels.shape, bool)
    cut[3, 3, 7] = True
    with pytest.raises(FmsegError, match="on the cut"):
        split_component(labels, (3, 3, 7), cut, 2)
    with pytest.raises(FmsegError, match="finished"):
        split_component(labels, (3, 3, 11), cut, 2, protected=[2])
    for tool in (keep_component, remove_component):
        with pytest.raises(FmsegError, match="background"):
            tool(labels, (0, 0, 0))
        with pytest.raises(FmsegError, match="outside"):
            tool(labels, (0, 0, 20))
        with pytest.raises(FmsegError, match="finished"):
            tool(labels, (3, 3, 3), protected=[1])
