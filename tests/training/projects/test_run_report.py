"""What a version does on the cases that it never saw: measured, kept in the run's folder, and told the worst first."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import SimpleITK
import torch
from torch import nn

from napari_fmseg.core.volume import LabelMap, Volume
from napari_fmseg.datasets.projects.training_plan import Run
from napari_fmseg.io import read_labels
from napari_fmseg.models.card import ModelCard, NetSpec
from napari_fmseg.models.weights import load_model, save_model
from napari_fmseg.nets import build
from napari_fmseg.training.projects import (
    Project,
    Version,
    add_case,
    add_version,
    list_versions,
    measure,
    open_project,
    remove_case,
    rename_case,
    run_report,
    start_run,
    training_plan,
)

Image = Callable[..., Volume]
Labels = Callable[..., LabelMap]


@pytest.fixture
def run(project: Project, image: Image, labels: Labels) -> Run:
    for i in range(6):
        project = add_case(project, f"c{i}", image(i), labels())
    return start_run(project, training_plan(project))


def a_model(folder: Path) -> ModelCard:
    kwargs = {"in_channels": 1, "n_classes": 3, "width": 4}
    torch.manual_seed(0)
    nets: dict[str, nn.Module] = {"consensus": build("snet", **kwargs)}
    card = ModelCard("m", "m", "phased", {"consensus": NetSpec("snet", kwargs)}, {1: "tumour", 2: "liver"},
                     settings={"consensus_grid": [32, 32, 32], "attention_grid": [32, 32, 32]})  # fmt: skip
    return save_model(card, nets, folder)


def a_version(run: Run, scores: dict[str, dict[str, float]]) -> Version:
    """Keep a model of a run with scores by hand, as the end of a training does."""
    version = add_version(run, a_model(run.folder / "m"), scores=scores).version
    (run.folder / "kept.json").write_text(json.dumps({"version": version.number}))
    return version


def test_what_was_measured_is_kept_with_the_projects_numbers_and_a_small_picture(run: Run, tmp_path: Path) -> None:
    card = a_model(tmp_path / "m")
    model = load_model(card, device="cpu")
    names = ["c0", "c1"]
    work = measure(run.project, model, names, run=run.folder)
    while True:
        try:
            next(work)
        except StopIteration as done:
            scores = done.value
            break
    report = run_report(run.project, a_version(run, scores))
    assert {case.name for case in report.cases} == set(names)
    for case in report.cases:
        assert case.picture is not None
        assert case.found is not None
        assert case.picture.is_relative_to(run.folder)
        truth = read_labels(run.project.files[case.name].labels)
        found = SimpleITK.GetArrayFromImage(SimpleITK.ReadImage(str(case.found)))
        for value, name in run.project.facts.labels.items():
            mine, its = truth.data == value, found == value
            both = mine.sum() + its.sum()
            assert scores[case.name][name] == pytest.approx(2 * (mine & its).sum() / both)
        with np.load(case.picture) as arrays:
            assert arrays["image"].dtype == np.uint8
            assert (arrays["labels"] > 0).sum() == 25
        assert case.picture.stat().st_size < 10_000
    folder = case.picture.parent
    assert {path.suffix for path in folder.iterdir()} == {".npz", ".gz"}  # nothing half-written
    kept = run_report(run.project, list_versions(run.project)[-1]).cases
    remove_case(run.project, "c0", with_labels=True)  # for good: no picture of the patient stays
    (other,) = (case for case in kept if case.name != "c0")
    assert sorted(folder.iterdir()) == sorted(filter(None, (other.picture, other.found)))


def test_the_worst_case_comes_first_under_its_present_name_and_removed_ones_not_at_all(run: Run) -> None:
    a_version(run, {"c0": {"liver": 0.9, "tumour": 0.7}, "c1": {"liver": 0.4}, "c2": {"liver": 0.6}, "c3": {}})
    project = rename_case(open_project(run.project.folder), "c1", "other")
    project = remove_case(project, "c2", with_labels=True)
    report = run_report(project, list_versions(project)[-1])
    assert [(case.name, case.dice) for case in report.cases] == [("other", 0.4), ("c0", pytest.approx(0.8))]
    assert all(case.picture is None and case.found is None for case in report.cases)


def test_the_advice_comes_from_the_scores_and_the_curve_of_the_run(run: Run) -> None:
    curve = [
        {"stage": "net", "step": i, "epoch": i, "dice": d} for i, d in enumerate((0.1, 0.2, 0.3, 0.4, 0.5, 0.6), 1)
    ]
    earlier = [{"stage": "first", "step": 1, "epoch": 1, "dice": 0.9}, {"stage": "net", "step": 1, "loss": 1.0}]
    (run.folder / "history.jsonl").write_text("\n".join(json.dumps(row) for row in (*earlier, *curve)) + "\n{")
    assert "More time" in run_report(run.project, a_version(run, {"c0": {"liver": 0.8}})).advice
    (run.folder / "history.jsonl").unlink()
    assert run_report(run.project, a_version(run, {"c0": {"liver": 0.8}})).advice == ""
