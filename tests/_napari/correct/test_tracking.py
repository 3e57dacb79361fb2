"""What is recorded while labels are corrected: slices, undo steps, the model's answer, finished classes; no window."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("napari")
pytest.importorskip("qtpy")
from napari.components import ViewerModel
from napari.layers import Labels

from napari_fmseg._napari.choosers.image_volumes import cases_of
from napari_fmseg._napari.choosers.label_pairing import labels_for
from napari_fmseg._napari.correct.tracking.guard import protect
from napari_fmseg._napari.correct.tracking.history import changes_of, commit
from napari_fmseg._napari.correct.tracking.packed_labels import ANSWER, PackedLabels
from napari_fmseg._napari.correct.tracking.slice_record import CORRECTED, FINISHED, SliceRecord, Stroke
from napari_fmseg._napari.correct.tracking.tracker import Tracker
from napari_fmseg._napari.layer_transform import TOOL, fmseg_metadata
from napari_fmseg.core.errors import UnreadableVolume
from napari_fmseg.pipelines.correction import Edit

SHAPE = (6, 20, 24)


def stroke(index: int, *classes: int, axis: int = 0) -> Stroke:
    return Stroke(axis, {index: frozenset(classes or (1,))})


def test_undo_and_redo_take_a_slice_from_the_record_and_bring_it_back():
    record = SliceRecord()
    record.add(stroke(3), 1)
    record.add(stroke(5, 2), 2)
    record.add(stroke(3), 3)
    assert (record.slices(0), record.slices(0, 2), record.classes(0)) == ((3, 5), (5,), {1, 2})
    assert record.follow(2, 1)
    assert record.slices(0) == (3, 5)  # an earlier stroke changed slice 3, too
    assert record.follow(0, 3)
    assert record.slices(0) == ()
    assert record.follow(3, 0)
    assert record.slices(0) == (3, 5)
    assert not record.follow(3, 0)


def test_a_slice_that_was_dropped_stays_dropped_and_one_that_can_no_longer_be_undone_stays_known():
    record = SliceRecord()
    record.add(stroke(3), 1)
    record.add(stroke(4), 1)  # the history holds one step only
    assert record.follow(0, 1)
    assert record.slices(0) == (3,)
    record.mark(1, (7,))
    record.drop(0, 3)
    assert (record.slices(0), record.slices(1), record.axes()) == ((), (7,), (1,))
    again = SliceRecord.from_facts(record.facts())
    assert again.slices(1, 99) == (7,)  # right, whatever is in it
    assert SliceRecord.from_facts([("x", 1), None, (0, 2, [1])]).slices(0) == (2,)


def test_labels_are_packed_small_and_damage_is_noticed():
    labels = np.zeros((9, 50, 60), np.uint16)
    labels[2:5, 10:30, 20:40] = 700
    packed = PackedLabels.from_bytes(PackedLabels.of(labels[:, ::-1]).to_bytes())
    assert np.array_equal(packed.unpack(), labels[:, ::-1])
    assert len(packed.payload) < labels.nbytes / 50
    for content in (b"", b"[]\n", b'{"shape": [-1], "dtype": "<u2"}\n', packed.to_bytes()[:-30]):
        with pytest.raises(UnreadableVolume):
            PackedLabels.from_bytes(content).unpack()


@pytest.mark.parametrize("scattered", [False, True])
def test_an_edit_is_one_step_of_naparis_history_and_undone_and_redone_exactly(scattered: bool):
    rng = np.random.default_rng(0)
    before = rng.integers(0, 4, SHAPE).astype(np.uint8)
    after = before.copy()
    if scattered:
        after[1:5][rng.random((4, 20, 24)) < 0.02] = 3
    else:
        after[1:5, 3:9, 4:11] = 2
    layer = Labels(before.copy())
    edit = Edit.between(before, (slice(0, 6), slice(0, 20), slice(0, 24)), after)
    commit(layer, changes_of(layer.data, edit))
    assert np.array_equal(layer.data, after)
    layer.undo()
    assert np.array_equal(layer.data, before)
    layer.redo()
    assert np.array_equal(layer.data, after)
    layer.undo()
    layer.undo()
    assert np.array_equal(layer.data, before)


def test_what_a_layer_held_before_the_first_stroke_is_known_also_if_nobody_watched_it():
    answer = np.zeros(SHAPE, np.uint8)
    answer[2:4, 5:15, 5:15] = 1
    layer = Labels(answer.copy())
    layer.brush_size = 5
    layer.paint((2, 4, 4), 2)
    with layer.block_history():
        layer.paint((4, 10, 10), 1)
        layer.paint((4, 10, 12), 0)
    viewer = ViewerModel()
    viewer.add_layer(layer)
    tracker = Tracker(viewer)
    assert tracker.record(layer).slices(0) == (2, 4)
    assert np.array_equal(tracker.answer(layer), answer)
    layer.undo()
    assert tracker.record(layer).slices(0) == (2,)
    layer.data = np.ones(SHAPE, np.uint8)
    assert tracker.record(layer).slices(0) == ()
    assert tracker.answer(layer) is None


def test_a_layer_that_brings_its_record_with_it_goes_on_with_it(qtbot):
    viewer = ViewerModel()
    tracker = Tracker(viewer)
    layer = viewer.add_labels(np.zeros(SHAPE, np.uint8))
    layer.paint((3, 5, 5), 1)
    tracker.finish(layer, (2,))
    qtbot.waitUntil(lambda: fmseg_metadata(layer).get(ANSWER) is not None, timeout=30_000)
    assert {CORRECTED, FINISHED} < fmseg_metadata(layer).keys()
    data, options, _ = layer.as_layer_data_tuple()
    other = viewer.add_layer(Labels(data.copy(), **options))
    assert tracker.record(other).slices(0) == (3,)
    assert not tracker.answer(other).any()
    other.data[:] = 2
    other.paint((3, 5, 5), 1)
    assert (other.data == 2).all()


def test_a_tool_that_writes_past_naparis_brush_cannot_change_a_finished_class_either(qtbot):
    viewer = ViewerModel()
    tracker = Tracker(viewer)
    labels = np.zeros(SHAPE, np.uint8)
    labels[2, 5:15, 5:15] = 3
    layer = viewer.add_labels(labels.copy())
    protect(layer, (3,))
    del layer._apply_mask_to_data  # as in a version of napari that paints in another way
    layer.brush_size = 30
    layer.paint((2, 10, 10), 1)
    qtbot.waitUntil(lambda: np.array_equal(layer.data == 3, labels == 3), timeout=30_000)
    assert (layer.data == 1).any()
    layer.undo()
    assert np.array_equal(layer.data, labels)
    layer.redo()
    assert np.array_equal(layer.data == 3, labels == 3)
    assert tracker.record(layer).slices(0) == (2,)


def test_a_layer_that_a_tool_shows_is_neither_recorded_nor_taken_for_labels_of_the_image():
    viewer = ViewerModel()
    tracker = Tracker(viewer)
    scan = viewer.add_image(np.ones(SHAPE, np.int16))
    mask, shown = (viewer.add_labels(np.zeros(SHAPE, np.uint8)) for _ in range(2))
    shown.metadata = {"fmseg": {"role": TOOL}}
    viewer.layers.remove(shown)
    viewer.add_layer(shown)
    shown.paint((2, 5, 5), 1)
    assert tracker.version(shown) == 0
    assert labels_for(cases_of([scan])[0], viewer.layers) == [mask]
