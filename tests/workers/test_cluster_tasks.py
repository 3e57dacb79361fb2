"""What goes to the workers of a cluster and what comes back: plain data; which graphics card each one takes."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from napari_fmseg.core.events import Progress, Warned
from napari_fmseg.core.processes import environment
from napari_fmseg.datasets.case import Case
from napari_fmseg.evaluation.case_table import CaseScores
from napari_fmseg.evaluation.evaluate import CaseOptions
from napari_fmseg.models.card import ModelCard, NetSpec
from napari_fmseg.pipelines import SegmentOptions
from napari_fmseg.pipelines.batch import JobOptions, SegmentationJob
from napari_fmseg.pipelines.folders.outcome import Failed, FolderProgress, VolumeDone, VolumeEvent
from napari_fmseg.workers import cluster_tasks
from napari_fmseg.workers.cluster import Answer, Task, Workers
from napari_fmseg.workers.cluster_tasks import decode_on, device_of_worker, measure_on, segment_on

CARD = ModelCard("one", "One", "single", {"net": NetSpec("unet3d")}, {1: "liver"}, sha256="ab")


class Recorder(Workers):
    """Workers that keep what they are sent and answer as they are told."""

    def __init__(self, *answers: Answer | Warned) -> None:
        self._answers, self.items = answers, []

    def run(self, task: Task, items: Sequence[Mapping[str, Any]]) -> Iterator[Answer | Warned]:
        self.task, self.items = task, list(items)
        yield from self._answers


def is_plain(value: object) -> bool:
    if isinstance(value, Mapping):
        return all(type(key) in (str, int) and is_plain(one) for key, one in value.items())
    if isinstance(value, list | tuple):
        return all(is_plain(one) for one in value)
    return type(value) in (str, int, float, bool, type(None))


def test_only_plain_data_and_absolute_paths_go_to_the_workers():
    done = {"table": {"image": "b"}, "warnings": [{"text": "t", "code": "c"}]}
    failed = {"error": "E", "cause": "c", "fix": "f", "exit_code": 3}
    workers = Recorder(Warned("no worker"), Answer(1, done), Answer(0, failed))
    jobs = [SegmentationJob(Path("a.nii"), Path("out/a.nii"), (Path("a1.nii"),), Path("a.png")),
            SegmentationJob(Path("b.nii"), Path("out/b.nii"))]  # fmt: skip
    options = JobOptions(SegmentOptions(overlap=0.5, device="cpu"), "1.2", "never", Path("stages"))
    events = list(segment_on(workers, jobs, CARD, "one", options))
    assert all(is_plain(item) for item in workers.items)
    read = [cluster_tasks._job(item["job"]) for item in workers.items]
    assert read[0] == SegmentationJob(*(Path(name).absolute() for name in ("a.nii", "out/a.nii")),
                                      (Path("a1.nii").absolute(),), Path("a.png").absolute())  # fmt: skip
    assert cluster_tasks._job_options(workers.items[1]["options"]) == JobOptions(
        options.run, "1.2", "never", Path("stages").absolute()
    )
    assert events[:3] == [
        VolumeEvent(jobs[0], Warned("no worker")),
        VolumeEvent(jobs[1], Warned("t", "c")),
        VolumeDone(  # named as they were given, not as the worker saw them
            jobs[1], {"image": Path("b.nii"), "output": Path("out/b.nii"), "manifest": Path("out/b.nii.json")}
        ),
    ]
    assert events[4] == Failed(jobs[0], "E", "c", "f", 3)
    assert [(e.done, e.failed) for e in events if isinstance(e, FolderProgress)] == [(1, 0), (2, 1)]


def test_what_a_worker_that_died_was_writing_is_removed_at_the_end(tmp_path):
    code = "from napari_fmseg.core.temporary_files import passing_name; open(f'.{passing_name()}.part', 'w').close()"
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True, env=environment())
    assert len(list(tmp_path.iterdir())) == 1
    job = SegmentationJob(tmp_path / "a.nii", tmp_path / "a_seg.nii")
    list(segment_on(Recorder(Answer(0, {"table": {}})), [job], CARD, "one", JobOptions()))
    assert list(tmp_path.iterdir()) == []


def test_cases_to_measure_travel_as_plain_data_and_their_scores_come_back():
    scores = CaseScores("a", {"liver": {"dice": 0.5}}, 1.0)
    workers = Recorder(Answer(0, {"scores": vars(scores)}), Answer(1, {"error": "E", "cause": "why"}))
    cases = [Case("a", (Path("a.nii"),), Path("l.nii"), ("liver",)), Case("b", (Path("b.nii"),), Path("m.nii"))]
    options = CaseOptions(SegmentOptions(), {3: "liver"}, ("liver",), 1.5, Path("keep"))
    found = list(measure_on(workers, CARD, "one", cases, options))
    assert all(is_plain(item) for item in workers.items)
    case, read = (
        cluster_tasks._case(workers.items[0]["case"]),
        cluster_tasks._case_options(workers.items[0]["options"]),
    )
    assert case == Case("a", (Path("a.nii").absolute(),), Path("l.nii").absolute(), ("liver",))
    assert read == CaseOptions(SegmentOptions(), {3: "liver"}, ("liver",), 1.5, Path("keep").absolute())
    assert found[0] == scores
    assert (found[1].case, found[1].problem) == ("b", "why")


def test_decoding_tells_how_far_it_is():
    workers = Recorder(Answer(1, {}), Warned("w"), Answer(0, {}))
    events = list(decode_on(workers, dict, [{"path": "a"}, {"path": "b"}]))
    assert events == [Progress("decoding", 1, 2), Warned("w"), Progress("decoding", 2, 2)]


@pytest.mark.parametrize(
    ("wish", "worker", "n_cards", "expected"),
    [
        ("auto", 0, 4, "cuda:0"), ("auto", 3, 4, "cuda:3"), ("cuda", 5, 4, "cuda:1"),
        ("auto", 1, 1, "auto"), ("auto", 1, 0, "auto"), ("cpu", 1, 4, "cpu"), ("cuda:2", 1, 4, "cuda:2"),
        ("auto", "tcp://10.0.0.1:3", 4, "auto"),
    ],
)  # fmt: skip
def test_workers_on_one_machine_share_its_graphics_cards_out(wish, worker, n_cards, expected):
    assert device_of_worker(wish, worker, n_cards) == expected
