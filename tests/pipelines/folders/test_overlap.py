"""Reading and writing beside the segmentation of another volume: it happens, within bounds, with the same results."""

from __future__ import annotations

import dataclasses
import gc
import sys
import threading
from collections import defaultdict
from pathlib import Path

import numpy as np
import pytest

from napari_fmseg.core.volume import Geometry, Volume
from napari_fmseg.io import read_labels, write_volume
from napari_fmseg.pipelines import SegmentOptions
from napari_fmseg.pipelines.batch import plan_jobs
from napari_fmseg.pipelines.folders.outcome import Failed, FolderProgress, Pace, VolumeDone, VolumeEvent
from napari_fmseg.pipelines.folders.overlap import segment_jobs
from napari_fmseg.pipelines.folders.steps import JobOptions, JobVolume, SegmentedVolume, read_job

OPTIONS = JobOptions(SegmentOptions(device="cpu"))
_touched: dict[str, threading.Event] = defaultdict(threading.Event)
_listens = False


def _listen(event: str, arguments: tuple[object, ...]) -> None:
    """Note which files are opened and which become what they are called."""
    if _listens and event in ("open", "os.rename"):
        place = arguments[0 if event == "open" else 1]
        if isinstance(place, str | Path):
            _touched[f"{event} {Path(place).name}"].set()


@pytest.fixture(scope="module")
def audit():
    global _listens
    sys.addaudithook(_listen)
    _listens = True
    yield _touched
    _listens = False


@pytest.fixture
def files(audit):
    audit.clear()
    return audit


@pytest.fixture(scope="module")
def model(tmp_path_factory, save_tiny_model):
    from napari_fmseg.models.weights import load_model

    return load_model(save_tiny_model(tmp_path_factory.mktemp("model")), device="cpu")


@pytest.fixture
def jobs(tmp_path):
    for n in range(5):
        data = np.random.default_rng(n).normal(100, 30, (12, 14, 16)).astype(np.int16)
        write_volume(Volume(data, Geometry.from_spacing(data.shape, (2, 1, 1))), tmp_path / "scans" / f"case{n}.nii.gz")
    return plan_jobs([tmp_path / "scans"], tmp_path / "out")


def number_of(job) -> int:
    return int(job.image.name[4])


def n_volumes_held() -> int:
    held = [one for one in gc.get_objects() if type(one) in (JobVolume, SegmentedVolume)]
    return len({id(one.volume) for one in held})


def test_the_next_volume_is_read_and_the_last_one_written_meanwhile(jobs, model, files):
    work = segment_jobs(jobs, model, OPTIONS)
    events = iter(event for event in work if isinstance(event, VolumeEvent))
    assert number_of(next(events).job) == 0
    assert files["open case1.nii.gz"].wait(60)
    while number_of(next(events).job) == 0:
        pass
    # The first volume is written although nobody asks for a further event.
    assert files["os.rename case0_seg.nii.gz.json"].wait(60)
    work.close()


def test_at_most_one_volume_is_read_ahead_and_at_most_three_are_in_memory(jobs, model, files):
    for event in segment_jobs(jobs, model, OPTIONS):
        if isinstance(event, VolumeEvent):
            opened = {n for n in range(5) if files[f"open case{n}.nii.gz"].is_set()}
            assert max(opened) <= number_of(event.job) + 1
            assert n_volumes_held() <= 3


def test_without_overlap_each_volume_is_finished_before_the_next_one_is_read(jobs, model, files):
    for event in segment_jobs(jobs, model, OPTIONS, overlap=False):
        if isinstance(event, VolumeEvent):
            assert not files[f"open case{number_of(event.job) + 1}.nii.gz"].is_set()


def test_results_do_not_depend_on_the_overlap(jobs, model, tmp_path):
    list(segment_jobs(jobs, model, OPTIONS))
    together = [read_labels(job.result).data for job in jobs]
    first = read_job(jobs[0], model.card, OPTIONS)
    list(segment_jobs(jobs, model, OPTIONS, first=first, overlap=False))
    for job, labels in zip(jobs, together, strict=True):
        np.testing.assert_array_equal(read_labels(job.result).data, labels)


@pytest.mark.parametrize("overlap", [True, False])
def test_a_volume_that_fails_holds_up_no_other_and_each_is_reported_once(jobs, model, overlap):
    jobs[0].image.write_bytes(b"\x1f\x8b rubbish")
    jobs[4].image.unlink()
    jobs[2].result.mkdir(parents=True)  # cannot be written
    events = list(segment_jobs(jobs, model, OPTIONS, overlap=overlap))
    failed = {number_of(event.job): event for event in events if isinstance(event, Failed)}
    assert set(failed) == {0, 2, 4}
    assert failed[0].error == failed[4].error == "UnreadableVolume"
    assert failed[2].error == "UnwritableVolume"
    assert [number_of(event.job) for event in events if isinstance(event, VolumeDone)] == [1, 3]
    progress = [event for event in events if isinstance(event, FolderProgress)]
    assert [(event.done, event.total) for event in progress] == [(n, 5) for n in range(1, 6)]
    assert progress[-1].failed == 3
    assert events[-1] == progress[-1]


def test_where_what_was_asked_for_beside_a_result_is_not_written_the_earlier_result_stays(jobs, model, tmp_path):
    drain_jobs(jobs[:1], model)
    before = {path: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    (tmp_path / "picture.png").mkdir()
    drain_jobs([dataclasses.replace(jobs[0], preview=tmp_path / "picture.png")], model, error="UnwritableVolume")
    assert {path: path.read_bytes() for path in (tmp_path / "out").iterdir()} == before


def drain_jobs(jobs, model, error=""):
    """Segment and check that every job is done, or that every one ended with an error of this name."""
    for event in segment_jobs(jobs, model, OPTIONS):
        assert not isinstance(event, Failed if not error else VolumeDone), event
        assert not isinstance(event, Failed) or event.error == error


def test_closing_finishes_the_result_that_is_being_written(jobs, model):
    work = segment_jobs(jobs, model, OPTIONS)
    for event in work:
        if isinstance(event, VolumeEvent) and number_of(event.job) == 1:
            break
    work.close()
    assert sorted(path.name for path in jobs[0].result.parent.iterdir()) == [
        "case0_seg.nii.gz", "case0_seg.nii.gz.json",
    ]  # fmt: skip


def test_a_defect_of_the_program_ends_the_run(jobs, model):
    with pytest.raises(AssertionError):
        list(segment_jobs(jobs, dataclasses.replace(model, nets={}), OPTIONS))


def test_the_time_left_follows_from_what_the_volumes_took():
    clock = iter([0.0, 10.0, 30.0, 60.0])
    pace = Pace(3, lambda: next(clock))
    assert [pace.count(), pace.count(failed=True), pace.count()] == [
        FolderProgress(1, 3, 0, 20.0),
        FolderProgress(2, 3, 1, 15.0),
        FolderProgress(3, 3, 1, 0.0),
    ]
