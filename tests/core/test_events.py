"""Events in process and as JSON lines."""

from __future__ import annotations

import json
import threading
from pathlib import Path

import numpy as np
import pytest

from napari_fmseg.core.errors import FmsegError, UnreadableVolume
from napari_fmseg.core.events import (
    FILE_LEFT_OUT,
    EpochDone,
    Progress,
    Saved,
    StageResult,
    StepDone,
    Warned,
    drain,
    from_json,
    in_background,
    to_json,
)
from napari_fmseg.core.volume import Geometry, LabelMap, Volume

GRID = Geometry.from_spacing((2, 3, 4))
EVENTS = [
    Progress("consensus", 1, 3),
    Warned("Two lines\nand a “quote”: µ"),
    Warned("a.nii is left out: it is damaged.", FILE_LEFT_OUT),
    StepDone("edge", 7, 200, 0.1234567890123, 1e-3),
    EpochDone("attention", 2, 8, 0.5, 12.25, {"dice": 0.9, "dice/left atrium": 0.93}),
    Saved(Path("runs/model.toml"), True),
]


def labels(value: int) -> LabelMap:
    return LabelMap(np.full(GRID.shape, value, np.uint8), GRID)


@pytest.mark.parametrize("event", EVENTS, ids=lambda e: type(e).__name__)
def test_an_event_comes_back_from_its_line(event: object) -> None:
    line = to_json(event)
    assert "\n" not in line
    assert from_json(line) == event


def test_numbers_of_numpy_come_back_as_numbers() -> None:
    event = StepDone("edge", np.int64(1), np.int32(2), np.float32(0.5), np.float64(0.25))  # type: ignore[arg-type]
    assert from_json(to_json(event)) == StepDone("edge", 1, 2, 0.5, 0.25)


def test_the_line_of_a_stage_tells_its_shape_and_not_its_voxels() -> None:
    facts = json.loads(to_json(StageResult("edge", labels(1), 0.5, "a note")))
    assert facts == {
        "event": "StageResult",
        "stage": "edge",
        "seconds": 0.5,
        "note": "a note",
        "shape": [2, 3, 4],
        "kind": "LabelMap",
    }


@pytest.mark.parametrize(
    "line",
    [
        "",
        "no json",
        "null",
        "5",
        "[1]",
        "{}",
        '{"event": ["Progress"]}',
        '{"event": "Unknown"}',
        '{"event": "Progress", "stage": "a", "done": 1}',
        '{"event": "Progress", "stage": "a", "done": 1, "total": 2, "more": 3}',
        '{"event": "Saved", "path": 5, "best": true}',
        to_json(StageResult("edge", labels(1), 0.5)),
    ],
)
def test_a_line_that_is_no_event_is_refused(line: str) -> None:
    with pytest.raises(FmsegError, match="no event"):
        from_json(line)


def test_draining_gives_the_last_labels() -> None:
    heat = StageResult("attention map", Volume(np.zeros(GRID.shape), GRID), 0)
    stages = [Progress("a", 0, 1), StageResult("a", labels(1), 0), StageResult("b", labels(2), 0), heat, Warned("c")]
    assert drain(stages).data.max() == 2


def test_draining_without_labels_says_so() -> None:
    with pytest.raises(FmsegError, match="without labels"):
        drain([Progress("a", 0, 1), StageResult("map", Volume(np.zeros(GRID.shape), GRID), 0)])


def test_events_of_a_thread_come_in_order_and_its_error_is_raised_at_the_end():
    def work():
        yield from range(100)
        raise UnreadableVolume("no")

    events = in_background(work, "test")
    assert [next(events) for _ in range(100)] == list(range(100))
    with pytest.raises(UnreadableVolume, match="no"):
        next(events)


def test_closing_does_not_wait_for_work_that_is_deep_in_native_code():
    lock = threading.Lock()
    lock.acquire()

    def work():
        yield 1
        lock.acquire()
        yield 2

    events = in_background(work, "test")
    assert next(events) == 1
    events.close()
    lock.release()


def test_work_whose_events_nobody_takes_any_more_is_closed():
    closed = threading.Event()

    def work():
        try:
            yield from iter(int, 1)
        finally:
            closed.set()

    events = in_background(work, "test")
    next(events)
    events.close()
    assert closed.wait(60)
