"""Cases by metrics: a model on all labelled cases of a folder, with seconds and memory; what is done is kept.

After every case the tables are written anew, so that a run that was stopped or killed resumes.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import itertools
import json
import math
import os
import statistics
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias, cast

import numpy as np

from napari_fmseg.core.atomic_write import atomic_write, atomic_write_csv
from napari_fmseg.core.errors import FmsegError
from napari_fmseg.core.events import Event, Progress, StageResult, Warned
from napari_fmseg.core.json_values import plain
from napari_fmseg.core.memory import MemoryWatch
from napari_fmseg.core.structuring import structure, with_new_spellings
from napari_fmseg.core.volume import LabelMap
from napari_fmseg.datasets.case import IGNORE, Case, missing_in, read_case
from napari_fmseg.datasets.run_folder import claim_run_folder
from napari_fmseg.evaluation import metrics
from napari_fmseg.evaluation.case_table import CaseScores, write_cases
from napari_fmseg.io import write_labels
from napari_fmseg.models.card import ModelCard
from napari_fmseg.pipelines import SegmentOptions, segment

if TYPE_CHECKING:
    from napari_fmseg.models.weights import Model

__all__ = [
    "METRICS",
    "CaseOptions",
    "Evaluation",
    "Row",
    "evaluate",
    "measure_case",
    "read_evaluation",
    "summary",
    "write_csv",
]

METRICS = (
    "dice", "nsd", "hd95_mm", "assd_mm", "volume_ml", "truth_ml", "false_positive_ml", "false_negative_ml",
)  # fmt: skip
"""The columns of a table on how well labels agree; see `napari_fmseg.evaluation.metrics.score`."""

COSTS = ("seconds", "peak_mb", "gpu_mb")


@dataclass(frozen=True)
class Row:
    """A line of a table: one case or ``"mean"`` or ``"sd"``, one class or ``"all"``, and `n` cases behind it."""

    case: str
    label: str
    n: int
    values: Mapping[str, float]


@dataclass(frozen=True)
class Evaluation:
    """A model on a list of cases.

    Attributes
    ----------
    model, sha256
        Its name, and the hash of its weights.
    setup
        The options of the run, and the tolerance of the surface distance.
    cases
        In their order.
    """

    model: str
    sha256: str = ""
    setup: Mapping[str, Any] = field(default_factory=dict)
    cases: tuple[CaseScores, ...] = ()

    @property
    def labels(self) -> tuple[str, ...]:
        """The classes that any case was compared in."""
        return tuple(dict.fromkeys(label for case in self.cases for label in case.scores))

    def rows(self) -> Iterator[Row]:
        """Yield a row per case and class, then mean and standard deviation per class and over all.

        A value that is not there (no such class in either map) or not finite (a structure that was missed has no
        distance) does not count; `n` is the number of cases whose Dice counts. The rows of all classes take the mean
        of each case first, so that every case counts as much as any other.
        """
        done = [case for case in self.cases if not case.problem]
        for case in done:
            for label, scores in case.scores.items():
                yield Row(case.case, label, 1, {**_with_all_metrics(scores), **_costs(case)})
        for label in self.labels:
            yield from summary(
                label, [{**_with_all_metrics(c.scores[label]), **_costs(c)} for c in done if label in c.scores]
            )
        yield from summary("all", [{**_means(list(c.scores.values())), **_costs(c)} for c in done])

    def mean(self, metric: str = "dice", label: str = "all") -> float:
        """Return a mean of the table; nan if there is none."""
        found = (row.values.get(metric, math.nan) for row in self.rows() if (row.case, row.label) == ("mean", label))
        return next(found, math.nan)


@dataclass(frozen=True)
class CaseOptions:
    """What holds for all cases of an evaluation.

    Attributes
    ----------
    run
        How the model is run.
    names
        Class names by the number in the label files.
    shared
        The classes that are compared.
    tolerance_mm
        Of the normalised surface distance.
    keep
        The folder where labels/CASE.nii.gz is written; None for nowhere.
    """

    run: SegmentOptions
    names: Mapping[int, str]
    shared: tuple[str, ...]
    tolerance_mm: float = 2.0
    keep: Path | None = None


Measure: TypeAlias = Callable[[Sequence[Case], CaseOptions], Iterator[Event | CaseScores]]
"""Measures cases somewhere, in any order; see `measure_case` for what comes of one."""


def evaluate(
    cases: Sequence[Case],
    names: Mapping[int, str],
    model: Model | ModelCard,
    output: Path,
    options: SegmentOptions | None = None,
    *,
    tolerance_mm: float = 2.0,
    keep_labels: bool = False,
    measure: Measure | None = None,
) -> Iterator[Event | CaseScores | Evaluation]:
    """Segment labelled cases and compare; the tables are evaluation.csv, evaluation.json and cases.csv in `output`.

    Parameters
    ----------
    cases
        With labels.
    names
        Class names by the number in the label files; the model's classes are found by name.
    model, options
        See `napari_fmseg.pipelines.segment`; of a model that is run elsewhere the card is enough.
    output
        A folder. Cases that an earlier run with the same model and options finished there are not run again.
    tolerance_mm
        Of the normalised surface distance.
    keep_labels
        Write what was found, too: output/labels/CASE.nii.gz.
    measure
        Runs the cases on other machines; None runs them here, one after the other.

    Yields
    ------
    Progress, Warned, CaseScores, and at last Evaluation
        `CaseScores` also of cases that were done before.

    Raises
    ------
    FmsegError
        If `output` holds the evaluation of another model, other options or another data set, or another program writes
        into it; if two cases have one name, or no class is shared. A case that cannot be read or segmented is listed
        with its problem and does not stop the others.
    """
    card = model if isinstance(model, ModelCard) else model.card
    options = dataclasses.replace(options or SegmentOptions(), show_stages=True)  # each is timed
    shared = sorted(set(card.labels.values()) & set(names.values()))
    if not shared:
        raise FmsegError(
            f"{card.name} knows {', '.join(card.labels.values())}, and the labels tell of "
            f"{', '.join(names.values()) or 'no class'}. They share no class; choose another model or folder."
        )
    # Neither changes a result; the cost of the device is recorded per case.
    setup = plain({**dataclasses.asdict(options), "tolerance_mm": tolerance_mm, "classes": shared})
    del setup["device"], setup["strict"]
    whole = Evaluation(card.name, card.sha256, setup)
    whole_options = CaseOptions(options, names, tuple(shared), tolerance_mm, output if keep_labels else None)
    with claim_run_folder(output, run="evaluation"):
        known = _same_data(_before(output / "evaluation.json", whole), cases, output)
        found = {name: done for case in cases if (done := known.get(name := case.name)) and _holds(done, case)}
        missing = [case for case in cases if case.name not in found]
        done_before = Progress("cases", len(found), len(cases))
        work = (measure or partial(_measure_here, cast("Model", model)))(missing, whole_options)
        for event in itertools.chain([done_before], found.copy().values(), work):
            if isinstance(event, CaseScores):
                found[event.case] = event
                whole = dataclasses.replace(whole, cases=tuple(found[c.name] for c in cases if c.name in found))
                _write(whole, known.values(), output)
            yield event
            if isinstance(event, CaseScores):
                yield Progress("cases", len(found), len(cases))
    yield whole


def _holds(done: CaseScores, case: Case) -> bool:
    """Return whether what an earlier run found in a case is still true."""
    return not done.problem and done.stamp == _stamp(case)


def _measure_here(model: Model, cases: Sequence[Case], options: CaseOptions) -> Iterator[Event | CaseScores]:
    for case in cases:
        yield from measure_case(case, model, options)


def measure_case(case: Case, model: Model, options: CaseOptions) -> Iterator[Event | CaseScores]:
    """Segment one case and compare.

    Yields
    ------
    Progress, Warned, and at last CaseScores
        With its problem, if it cannot be read or segmented.
    """
    try:
        yield from _evaluate_case(case, model, options)
    except FmsegError as error:
        yield CaseScores(case.name, problem=str(error), stamp=_stamp(case), source=_source(case))


def _evaluate_case(case: Case, model: Model, options: CaseOptions) -> Iterator[Event | CaseScores]:
    names = options.names
    own = [model.card.labels.get(i, f"label {i}") for i in range(1, model.card.n_classes)]
    found: LabelMap | None = None
    parts: dict[str, dict[str, float]] = {}
    seconds = 0.0
    with MemoryWatch(model.device) as memory:

        def note(name: str, took: float) -> None:
            peak, gpu = memory.peak_mb()
            parts[name] = {"seconds": took, "peak_mb": peak, "gpu_mb": gpu}

        start = time.perf_counter()
        volume, truth = read_case(case, names, own)
        note("reading", time.perf_counter() - start)
        yield from (Warned(f"The labels of {case.name}: {text}") for text in truth.warnings)
        start = time.perf_counter()
        for event in segment(volume, model, options.run):
            if isinstance(event, StageResult):
                found = event.output if isinstance(event.output, LabelMap) else found
                note(event.stage, event.seconds)
            else:
                seconds += time.perf_counter() - start
                yield event
                start = time.perf_counter()  # the consumer's time is not the model's
        seconds += time.perf_counter() - start
        assert found is not None
        if options.keep is not None:
            start = time.perf_counter()
            write_labels(found, options.keep / "labels" / f"{case.name}.nii.gz", source=volume)
            note("writing", time.perf_counter() - start)
    told = truth.data != IGNORE
    mine, its = (dataclasses.replace(m, data=np.where(told, m.data, 0).astype(m.data.dtype)) for m in (found, truth))
    unseen = {own[i - 1] for i in missing_in(case, names, own)}
    all_scores = metrics.score(mine, its, tolerance_mm=options.tolerance_mm)
    scores = {label: {m: row[m] for m in METRICS} for label, row in all_scores.items()
              if label in options.shared and label not in unseen}  # fmt: skip
    peak, gpu = (max(part[what] for part in parts.values()) for what in ("peak_mb", "gpu_mb"))
    thick = volume.geometry.canonical()[0].spacing[0]
    yield CaseScores(
        case.name, scores, seconds, peak, gpu, stamp=_stamp(case), source=_source(case), slice_mm=thick, parts=parts
    )


def _stamp(case: Case) -> tuple[int, ...]:
    files = [*case.images, *([case.labels] if case.labels else [])]
    facts = [path.stat() for path in files if path.exists()]
    return tuple(n for fact in facts for n in (fact.st_size, fact.st_mtime_ns))


def _source(case: Case) -> str:
    """Hash where a case lies; the place itself might name the patient."""
    return hashlib.sha256(os.path.realpath(case.images[0]).encode()).hexdigest()[:16]


def read_evaluation(path: Path) -> Evaluation:
    """Read an evaluation.json; `FmsegError` if the file is none."""
    try:
        told = json.loads(path.read_text(encoding="utf-8"))
        cases = tuple(structure(CaseScores, _numbers(case), finite=False) for case in told["cases"])
        known = {field.name for field in dataclasses.fields(SegmentOptions)}
        return Evaluation(told["model"], told["sha256"], dict(with_new_spellings(told["setup"], known)), cases)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise FmsegError(f"{path} is no evaluation: {error}. Choose another output, or remove the file.") from error


def _before(path: Path, now: Evaluation) -> tuple[CaseScores, ...]:
    """Return the cases that an earlier run has finished."""
    if not path.exists():
        return ()
    before = read_evaluation(path)
    if dataclasses.replace(before, cases=()) != now:
        raise FmsegError(
            f"{path.parent} holds the evaluation of another model, or of this one with other options. Choose another "
            "output, or remove the folder."
        )
    return before.cases


def _same_data(before: Sequence[CaseScores], cases: Sequence[Case], output: Path) -> dict[str, CaseScores]:
    """Return what an earlier run found in these cases, by name; refuse another data set, or two cases of one name."""
    names = Counter(case.name for case in cases)
    twice = [name for name, n in names.items() if n > 1]
    if twice:
        raise FmsegError(f"{len(twice)} name(s) stand for several cases, such as {twice[0]}. Give each one of its own.")
    known = {done.case: done for done in before if done.case in names}
    moved = [case.name for case in cases if (done := known.get(case.name)) and done.source
             and done.source != _source(case) and done.stamp != _stamp(case)]  # fmt: skip
    if moved or (before and cases and not known):
        example = moved[0] if moved else before[0].case
        raise FmsegError(
            f"{output} holds the evaluation of another data set or part: its case {example} is none of these. "
            "Choose another output, or remove the folder."
        )
    return known


def _numbers(case: dict[str, Any]) -> dict[str, Any]:
    """Put nan back where JSON has none."""
    scores = {k: {m: _number(v) for m, v in row.items()} for k, row in case["scores"].items()}
    return {**case, "scores": scores, **{name: _number(case.get(name)) for name in (*COSTS, "slice_mm")}}


def _number(value: Any) -> float:
    return math.nan if value is None else float(value)


def _write(whole: Evaluation, known: Any, output: Path) -> None:
    """Write the tables; the JSON keeps previous cases that are still to come."""
    names = {case.case for case in whole.cases}
    kept = [*whole.cases, *(case for case in known if case.case not in names)]
    table = {
        "format": "napari-fmseg evaluation 1", "use": "Research use only. Not a medical device.",
        **dataclasses.asdict(dataclasses.replace(whole, cases=tuple(kept))),
        "summary": [dataclasses.asdict(row) for row in whole.rows() if row.case in ("mean", "sd")],
    }  # fmt: skip
    output.mkdir(parents=True, exist_ok=True)
    with atomic_write(output / "evaluation.json") as file:
        file.write((json.dumps(_plain(table), indent=1, allow_nan=False) + "\n").encode())
    write_csv(whole.rows(), output / "evaluation.csv")
    write_cases(whole.cases, output / "cases.csv", whole.setup["tolerance_mm"])


def _plain(table: Any) -> Any:
    """Return as `plain`, but infinity, which a missed structure has for its distance, becomes a text that reads
    back.
    """
    if isinstance(table, float) and math.isinf(table):
        return "inf"
    if isinstance(table, Mapping):
        return {str(k): _plain(v) for k, v in table.items()}
    if isinstance(table, (list, tuple)):
        return [_plain(v) for v in table]
    return plain(table)


def write_csv(rows: Iterable[Row], path: Path, first: str = "case") -> Path:
    """Write rows as CSV, one per line; what is not there stays empty.

    Parameters
    ----------
    rows
        Their `values` are the columns.
    path
        Replaced only when the new file is complete.
    first
        What the first column is called.
    """
    columns = (*METRICS, *COSTS)
    cells = (
        (row.case, row.label, row.n, *(_cell(row.values.get(column, math.nan)) for column in columns)) for row in rows
    )
    return atomic_write_csv(path, (first, "label", "n", *columns), cells)


def _cell(value: float) -> str:
    return "" if math.isnan(value) else f"{value:.6g}"


def _with_all_metrics(scores: Mapping[str, float]) -> dict[str, float]:
    return {name: scores.get(name, math.nan) for name in METRICS}


def _costs(case: CaseScores) -> dict[str, float]:
    return {name: getattr(case, name) for name in COSTS}


def _means(rows: Sequence[Mapping[str, float]]) -> dict[str, float]:
    return {name: _mean([row.get(name, math.nan) for row in rows]) for name in METRICS}


def summary(label: str, rows: Sequence[Mapping[str, float]]) -> Iterator[Row]:
    """Yield mean and standard deviation (n - 1) of what is a finite number; nothing for no rows."""
    if not rows:
        return
    columns = {name: [row.get(name, math.nan) for row in rows] for name in (*METRICS, *COSTS)}
    n = sum(map(math.isfinite, columns["dice"]))
    yield Row("mean", label, n, {name: _mean(values) for name, values in columns.items()})
    yield Row("sd", label, n, {name: _spread(values) for name, values in columns.items()})


def _mean(values: Sequence[float]) -> float:
    told = [v for v in values if math.isfinite(v)]
    return statistics.fmean(told) if told else math.nan


def _spread(values: Sequence[float]) -> float:
    told = [v for v in values if math.isfinite(v)]
    with contextlib.suppress(statistics.StatisticsError):
        return statistics.stdev(told)
    return math.nan
