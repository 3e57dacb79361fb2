"""``fmseg evaluate``: a model on all labelled cases of a folder. ``fmseg explain``: a saliency map of a class."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from tyro.conf import OmitArgPrefixes, Positional, arg

from napari_fmseg.cli.console import (
    AcceptLicence,
    Json,
    Output,
    Scheduler,
    metrics_table,
    note,
    number,
    say,
    show_terms,
    write_json,
)
from napari_fmseg.cli.progress import Bars, show_event
from napari_fmseg.pipelines import SegmentOptions

if TYPE_CHECKING:
    from napari_fmseg.core.events import Event
    from napari_fmseg.datasets.case import Case
    from napari_fmseg.evaluation.case_table import CaseScores
    from napari_fmseg.evaluation.evaluate import CaseOptions
    from napari_fmseg.models.card import ModelCard

__all__ = ["evaluate", "explain"]


def evaluate(
    folder: Positional[Annotated[Path, arg(metavar="FOLDER")]],
    /,
    *,
    model: str,
    output: Output,
    part: Literal["validation", "training", "test", "all"] = "validation",
    labels: Path | None = None,
    run: OmitArgPrefixes[SegmentOptions] = SegmentOptions(),  # noqa: B008 - frozen
    tolerance_mm: float = 2.0,
    keep_labels: bool = False,
    scheduler: Scheduler = None,
    accept_licence: AcceptLicence = False,
    as_json: Json = False,
) -> int:
    """Evaluate a model on labelled cases: a table of cases x metrics. Started again, it resumes.

    Parameters
    ----------
    folder
        A project, a dataset in nnU-Net's layout, or a folder with images and labels.
    model
        A model's name (`fmseg models` lists them) or the path of a model card.
    output
        Folder for evaluation.csv and .json (a row per case and class) and cases.csv (a row per case, with seconds and
        memory of every step).
    part
        Which of its cases; "all" is training and validation. "test" is the list of that name in dataset.json, else
        imagesTs with labelsTs.
    labels
        A folder of labels, where FOLDER holds images only; the files have the names of the images.
    tolerance_mm
        How far apart surfaces may lie and still agree, for NSD.
    keep_labels
        Write the segmentations to output/labels, too.
    """
    from napari_fmseg.datasets.labelled_cases import labelled_cases, unlabelled_images
    from napari_fmseg.evaluation.case_table import CaseScores
    from napari_fmseg.evaluation.evaluate import Evaluation
    from napari_fmseg.evaluation.evaluate import evaluate as evaluate_cases
    from napari_fmseg.models.registry import find_card
    from napari_fmseg.models.weights import load_model

    card = find_card(model)
    names, cases = labelled_cases(folder, part, labels)
    unlabelled = unlabelled_images(folder, part, labels)
    if unlabelled:
        some = ", ".join(unlabelled[:5]) + (", …" if len(unlabelled) > 5 else "")
        note(f"Warning: {len(unlabelled)} images have no labels and are not measured: {some}")
    show_terms(card, accept_licence)
    whole = Evaluation(card.name)
    measure = None if scheduler is None else partial(_measure_elsewhere, scheduler, card, model)
    work = evaluate_cases(
        cases, names or card.labels, load_model(card, device=run.device) if measure is None else card, output, run,
        tolerance_mm=tolerance_mm, keep_labels=keep_labels, measure=measure,
    )  # fmt: skip
    with Bars(quiet=as_json) as bars:
        for event in work:
            show_event(event, bars)
            if isinstance(event, Evaluation):
                whole = event
            elif isinstance(event, CaseScores) and not as_json:
                mean = f"mean Dice {number(event.mean('dice'))}, {event.seconds:.1f} s"
                bars.note(f"{event.case}: {event.problem or mean}")
    failed = [case for case in whole.cases if case.problem]
    if as_json:
        summary = [dataclasses.asdict(row) for row in whole.rows() if row.case in ("mean", "sd")]
        write_json({**dataclasses.asdict(whole), "summary": summary, "unlabelled": unlabelled})
        return 1 if failed else 0
    say(metrics_table(list(whole.rows()), "CASE"))
    say(", ".join(str(output / name) for name in ("evaluation.csv", "cases.csv", "evaluation.json")))
    if failed:
        note(f"{len(failed)} of {len(whole.cases)} cases failed; the same command tries them again.")
    return 1 if failed else 0


def _measure_elsewhere(
    scheduler: str, card: ModelCard, model: str, cases: Sequence[Case], options: CaseOptions
) -> Iterator[Event | CaseScores]:
    """Measure cases on the workers of a scheduler."""
    from napari_fmseg.workers.cluster import connect
    from napari_fmseg.workers.cluster_tasks import measure_on

    if cases:
        with connect(scheduler) as workers:
            note(workers.describe())
            yield from measure_on(workers, card, model, cases, options)


def explain(
    image: Positional[Annotated[Path, arg(metavar="IMAGE")]],
    /,
    *,
    model: str,
    label: str,
    output: Output,
    voxel: tuple[int, int, int] | None = None,
    layer: str = "auto",
    device: str = "auto",
    accept_licence: AcceptLicence = False,
    as_json: Json = False,
) -> int:
    """Write a saliency map of a class (Seg-Grad-CAM): 0 to 1, on the grid that the network received.

    Parameters
    ----------
    image
        A file or DICOM folder.
    model
        A model's name or the path of a model card.
    label
        The class, by its name or number.
    output
        The map: NAME.nii.gz, .nrrd or .mha.
    voxel
        Index z y x of the voxel to explain; without it, the whole segmented class.
    layer
        Of the network, as torch names it; "auto" takes the deepest.
    device
        auto, cpu, cuda or mps.
    """
    from napari_fmseg.core.events import StageResult
    from napari_fmseg.explain.gradcam import STAGE, grad_cam
    from napari_fmseg.io import read_volume, write_volume
    from napari_fmseg.models.registry import find_card
    from napari_fmseg.models.weights import load_model

    card = find_card(model)
    show_terms(card, accept_licence)
    loaded = load_model(card, device=device)
    target = int(label) if label.isdecimal() else label
    with Bars(quiet=as_json) as bars:
        for event in grad_cam(read_volume(image), loaded, target, point=voxel, layer=layer):
            show_event(event, bars)
            if isinstance(event, StageResult) and event.stage == STAGE:
                write_volume(event.output, output)
                result = {"output": output, **event.output.meta, "seconds": event.seconds, "note": event.note}
    if as_json:
        write_json(result)
    else:
        say(f"{output}  {result['seconds']:.1f} s")
    return 0
