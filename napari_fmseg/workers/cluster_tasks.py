"""What is done on the workers of a cluster: one volume or case each, with a model that a worker loads once and keeps.

Tasks are dictionaries of numbers, texts and paths as text, and so are the answers; see `napari_fmseg.workers.cluster`.
"""

from __future__ import annotations

import dataclasses
import platform
import threading
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from functools import cache, lru_cache
from pathlib import Path
from typing import Any, TypeVar

from napari_fmseg.core.allocator import own_process
from napari_fmseg.core.errors import WeightsMismatch, explain
from napari_fmseg.core.events import Event, Progress, Warned
from napari_fmseg.core.json_values import plain
from napari_fmseg.core.package import __version__
from napari_fmseg.core.temporary_files import sweep
from napari_fmseg.datasets.case import Case
from napari_fmseg.evaluation.case_table import CaseScores
from napari_fmseg.evaluation.evaluate import CaseOptions, measure_case
from napari_fmseg.io.itk import native_reader
from napari_fmseg.models.card import ModelCard
from napari_fmseg.models.provenance import manifest_path
from napari_fmseg.models.registry import find_card
from napari_fmseg.models.weights import Model, load_model
from napari_fmseg.pipelines import SegmentOptions
from napari_fmseg.pipelines.folders.failures import Failure
from napari_fmseg.pipelines.folders.finished import hash_model
from napari_fmseg.pipelines.folders.outcome import (
    EXPECTED,
    Failed,
    FolderEvent,
    Pace,
    VolumeDone,
    VolumeEvent,
    was_expected,
)
from napari_fmseg.pipelines.folders.steps import (
    JobOptions,
    SegmentationJob,
    check_stages,
    read_job,
    segment_volume,
    write_job,
)
from napari_fmseg.workers.cluster import Answer, Task, Workers

__all__ = ["decode_on", "device_of_worker", "measure_on", "segment_on"]

T = TypeVar("T")

_turn = threading.Lock()  # of the threads of a worker one computes, the others read and write


# --- on the side that requests


def segment_on(
    workers: Workers, jobs: Sequence[SegmentationJob], card: ModelCard, model: str, options: JobOptions
) -> Iterator[FolderEvent]:
    """Segment volumes on workers, which write the results.

    Parameters
    ----------
    workers
        From `napari_fmseg.workers.cluster.connect`.
    jobs
        From `plan_jobs`; all machines must see their files under the same names.
    card, model
        The model, and its name or the path of its card, by which the workers find it.
    options
        For all of them.

    Yields
    ------
    VolumeEvent, VolumeDone, Failed, FolderProgress
        As `napari_fmseg.pipelines.folders.overlap.segment_jobs`, in the order in which they end.
    """
    whole = {**_model_fields(card, model), "options": _plain_options(options)}
    items = [{**whole, "job": _plain_paths(job)} for job in jobs]
    pace = Pace(len(jobs))
    for answer in workers.run(_segment, items):
        if not isinstance(answer, Answer):
            yield VolumeEvent(jobs[0], answer)
            continue
        job, values = jobs[answer.number], answer.values
        yield from (VolumeEvent(job, Warned(**warned)) for warned in values.get("warnings", ()))
        failed = "error" in values
        if failed:
            yield Failed(job, values["error"], values["cause"], values["fix"], values["exit_code"])
        else:
            names = {"image": job.image, "output": job.result, "manifest": manifest_path(job.result)}
            yield VolumeDone(job, {**values["table"], **names})  # as the user gave them
        yield pace.count(failed=failed)
    for folder in {job.result.parent for job in jobs}:
        sweep(folder, again=True)  # what a worker that died was writing


def measure_on(
    workers: Workers, card: ModelCard, model: str, cases: Sequence[Case], options: CaseOptions
) -> Iterator[Event | CaseScores]:
    """Segment labelled cases on workers and compare; see `napari_fmseg.evaluation.evaluate.evaluate`."""
    whole = {**_model_fields(card, model), "options": _plain_case_options(options)}
    items = [{**whole, "case": _plain_paths(case)} for case in cases]
    for answer in workers.run(_measure, items):
        if not isinstance(answer, Answer):
            yield answer
            continue
        yield from (Warned(**warned) for warned in answer.values.get("warnings", ()))
        if "error" in answer.values:
            yield CaseScores(cases[answer.number].name, problem=answer.values["cause"])
        else:
            yield CaseScores(**answer.values["scores"])


def decode_on(workers: Workers, decode: Task, items: Sequence[Mapping[str, Any]]) -> Iterator[Progress | Warned]:
    """Have workers decode volumes for pretraining into a shared folder.

    Parameters
    ----------
    workers
        From `napari_fmseg.workers.cluster.connect`.
    decode
        Decodes one volume. What fails is left to the run itself, which says why.
    items
        What it is called with.
    """
    done = 0
    for answer in workers.run(decode, items):
        if isinstance(answer, Answer):
            done += 1
            yield Progress("decoding", done, len(items))
        else:
            yield answer


def _model_fields(card: ModelCard, model: str) -> dict[str, Any]:
    name = str(Path(model).absolute()) if model.endswith(".toml") else model
    return {"model": name, "model_hash": hash_model(card), "version": __version__}


def _plain_paths(item: SegmentationJob | Case) -> dict[str, Any]:
    """Return the fields of a dataclass with its paths as text, absolute as all machines must have them."""
    return {name: _absolute(value) for name, value in dataclasses.asdict(item).items()}


def _absolute(value: Any) -> Any:
    if isinstance(value, Path):
        return str(value.absolute())
    return [_absolute(one) for one in value] if isinstance(value, (list, tuple)) else value


def _plain_options(options: JobOptions) -> dict[str, Any]:
    return {**dataclasses.asdict(options), "stages_dir": _absolute(options.stages_dir)}


def _plain_case_options(options: CaseOptions) -> dict[str, Any]:
    return {**dataclasses.asdict(options), "keep": _absolute(options.keep)}


# --- on a worker


def _segment(task: Mapping[str, Any]) -> dict[str, Any]:
    """Read, segment and write one volume."""
    warnings: list[dict[str, str]] = []

    def work() -> dict[str, Any]:
        card, job, options = _card(task), _job(task["job"]), _job_options(task["options"])
        check_stages(job, card, options)
        read = read_job(job, card, options)
        with _turn:
            model = _model(task, card, options.run.device)
            segmented = _run(segment_volume(read, model, options), warnings)
        return {"table": plain(write_job(job, segmented, model, options).table())}

    return {**_attempt(work), "warnings": warnings}


def _measure(task: Mapping[str, Any]) -> dict[str, Any]:
    """Segment one labelled case and compare; alone on its worker, since time and memory are measured."""
    warnings: list[dict[str, str]] = []

    def work() -> dict[str, Any]:
        card, case, options = _card(task), _case(task["case"]), _case_options(task["options"])
        with _turn:
            *events, scores = measure_case(case, _model(task, card, options.run.device), options)
        assert isinstance(scores, CaseScores)
        warnings.extend(dataclasses.asdict(event) for event in events if isinstance(event, Warned))
        return {"scores": dataclasses.asdict(scores)}

    return {**_attempt(work), "warnings": warnings}


def _attempt(work: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """Return what was done, or why it failed and on which worker."""
    from distributed import get_worker

    _prepare_process()
    try:
        return work()
    except EXPECTED as error:
        if not was_expected(error):
            raise
        failure = Failure.of("", error)
        return {
            "error": failure.error,
            "cause": failure.cause,
            "fix": failure.fix,
            "exit_code": explain(error)[0],
            "worker": get_worker().address,
        }


def _run(events: Generator[Event, None, T], warnings: list[dict[str, str]]) -> T:
    """Run work to its end, keep what it warns of, and return its result."""
    while True:
        try:
            event = next(events)
        except StopIteration as end:
            result: T = end.value
            return result
        if isinstance(event, Warned):
            warnings.append(dataclasses.asdict(event))


@cache
def _prepare_process() -> None:
    """Set up what holds for the whole process, which does nothing but our work."""
    own_process()
    native_reader.isolate()  # a file that makes a parser crash must not end the worker


def _card(task: Mapping[str, Any]) -> ModelCard:
    """Find the model on this machine; refuse another one, or another version of the program."""
    card = find_card(task["model"])
    here = platform.node()
    if task["version"] != __version__:
        raise WeightsMismatch(
            f"The worker on {here} has version {__version__} of the program, expected {task['version']}. Install the "
            "same on all machines."
        )
    if hash_model(card) != task["model_hash"]:
        raise WeightsMismatch(
            f"The worker on {here} has another model of the name {card.name}. Give --model the path of a card in a "
            "folder that all machines see, or install the same model on all of them."
        )
    return card


def _model(task: Mapping[str, Any], card: ModelCard, device: str) -> Model:
    """Load a model, or return the one that this worker keeps."""
    return _load_once(task["model"], task["model_hash"], _device(device))


@lru_cache(maxsize=1)
def _load_once(name: str, _hash: str, device: str) -> Model:
    return load_model(find_card(name), device=device)


def _device(wish: str) -> str:
    import torch
    from distributed import get_worker

    return device_of_worker(wish, get_worker().name, torch.cuda.device_count())


def device_of_worker(wish: str, worker: str | int, n_cards: int) -> str:
    """Return the graphics card of a worker, so that those on one machine do not all take the first.

    Parameters
    ----------
    wish
        The device that the user named: ``"auto"`` and ``"cuda"`` leave the choice.
    worker
        Its name: the number that `local:N` and SLURM's tasks give; with any other name it takes the first card.
    n_cards
        How many graphics cards there are.
    """
    if wish not in ("auto", "cuda") or n_cards < 2 or not str(worker).isdigit():
        return wish
    return f"cuda:{int(worker) % n_cards}"


def _job(fields: Mapping[str, Any]) -> SegmentationJob:
    preview = fields["preview"]
    return SegmentationJob(
        Path(fields["image"]),
        Path(fields["result"]),
        tuple(map(Path, fields["others"])),
        None if preview is None else Path(preview),
    )


def _job_options(fields: Mapping[str, Any]) -> JobOptions:
    stages_dir = fields["stages_dir"]
    run = SegmentOptions(**fields["run"])
    return JobOptions(run, fields["series"], fields["suv"], None if stages_dir is None else Path(stages_dir))


def _case(fields: Mapping[str, Any]) -> Case:
    return Case(fields["name"], tuple(map(Path, fields["images"])), Path(fields["labels"]), tuple(fields["classes"]))


def _case_options(fields: Mapping[str, Any]) -> CaseOptions:
    keep = fields["keep"]
    return CaseOptions(
        SegmentOptions(**fields["run"]),
        fields["names"],
        tuple(fields["shared"]),
        fields["tolerance_mm"],
        None if keep is None else Path(keep),
    )
