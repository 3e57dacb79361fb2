"""A round: a recipe that fits the cases, what it learned measured and kept, the next cases predicted."""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path

import numpy as np
import pytest
import SimpleITK
import torch

from napari_fmseg.core.errors import FmsegError
from napari_fmseg.core.events import Progress, Saved, StepDone, Warned
from napari_fmseg.core.volume import Geometry, LabelMap, Volume
from napari_fmseg.io import read_labels
from napari_fmseg.models.card import ModelCard, NetSpec
from napari_fmseg.models.registry import GENERAL_START, find_card
from napari_fmseg.models.weights import save_model
from napari_fmseg.nets import build
from napari_fmseg.training import Augment, Recipe, load_recipe, planner, train
from napari_fmseg.training.projects import (
    ACTIVE_VERSION,
    FROM_SCRATCH,
    LEAVING,
    LabelOptions,
    Project,
    TrainingOptions,
    active_version,
    add_case,
    add_version,
    case_table,
    finish_run,
    label_case,
    open_project,
    predict,
    prepare_run,
    recipe_file,
    run_report,
    start_run,
    training_plan,
    unfinished_run,
)
from napari_fmseg.training.projects.prepare_run import write_recipe

SHORT = TrainingOptions(minutes=0.02, device="cpu")
NETS = {"consensus": "snet", "attention": "attnnet", "edge": "edgenet"}


def ended(work):
    """Run a generator; gives its events and what it returns."""
    events = []
    while True:
        try:
            events.append(next(work))
        except StopIteration as done:
            return events, done.value


def a_model(folder: Path, name: str, **fields) -> ModelCard:
    kwargs = {"in_channels": 1, "n_classes": 3, "width": 4}
    specs = {
        s: NetSpec(n, {k: v for k, v in kwargs.items() if n != "edgenet" or k != "width"}) for s, n in NETS.items()
    }
    torch.manual_seed(0)
    nets = {stage: build(spec.network, **spec.kwargs) for stage, spec in specs.items()}
    settings = {"consensus_grid": [32, 32, 32], "attention_grid": [32, 32, 32]}
    card = ModelCard(name, name, "phased", specs, {1: "liver", 2: "tumour"}, settings=settings, **fields)
    save_model(card, nets, folder)
    return find_card(folder / f"{name}.toml")


@pytest.fixture
def filled(project: Project, image, labels, tmp_path, monkeypatch) -> Project:
    monkeypatch.setenv("FMSEG_HOME", str(tmp_path / "home"))
    for i in range(4):
        project = add_case(project, f"c{i}", image(i), labels())
    return add_case(project, "new", image(9))


def test_a_prepared_run_has_a_recipe_that_reads_back_as_it_was_written(filled: Project) -> None:
    augment = Augment(flip="x", noise=0.1)
    events, run = ended(prepare_run(filled, FROM_SCRATCH, dataclasses.replace(SHORT, rate=2.0, seed=7), augment))
    assert [type(e) for e in events].count(Saved) == 1
    assert any(isinstance(e, Warned) for e in events)
    recipe = load_recipe(recipe_file(run))
    plan = training_plan(run.project)
    assert (recipe.training, recipe.validation) == (plan.training, plan.validation)
    assert (recipe.labels, recipe.seed) == (("liver", "tumour"), 7)
    assert (recipe.augment.flip, recipe.augment.noise) == ("x", 0.1)  # the rest follows from the data
    assert (recipe.out, recipe.channels, recipe.modality) == (run.folder, ("CT",), "CT")
    assert recipe.stages[0].stage == "consensus"
    assert all(stage.minutes > 0 for stage in recipe.stages)
    assert sum(stage.minutes for stage in recipe.stages) <= SHORT.minutes
    assert unfinished_run(open_project(filled.folder)) == int(run.folder.name)


def test_a_project_can_start_from_the_general_start(filled: Project, monkeypatch) -> None:
    monkeypatch.setattr(planner, "_SMALL", 0)  # whatever the volumes' size: in blocks

    def started(start: str) -> Recipe:
        _, run = ended(prepare_run(filled, start, SHORT))
        return load_recipe(recipe_file(run))

    recipe = started(GENERAL_START)
    assert recipe.start_from == GENERAL_START  # by name: the project may go to another computer
    assert "general-start (MIT)" in recipe.trained_on
    assert recipe.distillation_weight == 0
    first = next(event for event in train(recipe) if isinstance(event, StepDone))
    assert first.stage == "consensus"
    assert not started(ACTIVE_VERSION).start_from
    assert not started(FROM_SCRATCH).start_from
    monkeypatch.setattr(planner, "_SMALL", 1e9)
    assert not started(GENERAL_START).start_from  # it does not fit a network that sees single voxels
    held = next(name for name in filled.labelled if filled.role(name) == "held out")
    seen = dataclasses.replace(find_card(GENERAL_START), cases=(filled.record(held).image,))
    monkeypatch.setattr(sys.modules[prepare_run.__module__], "find_card", lambda _: seen)
    with pytest.raises(FmsegError, match="held out"):
        started(GENERAL_START)


def test_a_start_that_has_seen_a_held_out_case_is_refused_before_anything_is_learned(filled: Project, tmp_path) -> None:
    held = next(name for name in filled.labelled if filled.role(name) == "held out")
    a_model(tmp_path / "seen", "seen", cases=(filled.record(held).image,))
    with pytest.raises(FmsegError, match="held out"):
        ended(prepare_run(filled, str(tmp_path / "seen" / "seen.toml"), SHORT))
    assert unfinished_run(filled) == 0


def test_what_a_run_has_learned_is_measured_on_the_held_out_cases_kept_and_listed(filled: Project) -> None:
    _, run = ended(prepare_run(filled, FROM_SCRATCH, SHORT))
    with pytest.raises(FmsegError, match="no model yet"):
        ended(finish_run(run.project, 1))
    a_model(run.folder, load_recipe(recipe_file(run)).name)
    events, kept = ended(finish_run(run.project, 1))
    held = [c.name for c in run.plan.validation]
    assert [e.stage for e in events if isinstance(e, Progress)] == ["measuring"] * 2
    assert list(kept.version.lineage.scores) == held
    assert kept.in_use
    own = active_version(kept.project).card
    assert find_card(own.name).sha256 == own.sha256
    assert own.name == f"project-{kept.project.index.id[:6]}"
    assert kept.version.lineage.verdict == kept.why
    assert unfinished_run(kept.project) == 0
    assert json.loads((run.folder / "kept.json").read_text())["version"] == 1


def test_cases_without_labels_are_predicted_with_a_number_for_the_doubt(filled: Project, tmp_path) -> None:
    with pytest.raises(FmsegError, match="no model in use"):
        ended(predict(filled))
    project = add_version(start_run(filled, training_plan(filled)), a_model(tmp_path / "m", "m")).project
    _, project = ended(predict(project, device="cpu"))
    row = next(row for row in case_table(project) if row.name == "new")
    assert row.status == "predicted"
    assert 0 <= row.uncertainty <= 1
    found = read_labels(project.folder / "fmseg" / "predictions" / "new.nii.gz")
    assert found.data.shape == (6, 8, 10)


def test_a_case_that_cannot_be_predicted_does_not_stop_the_others(filled: Project, image, tmp_path) -> None:
    project = add_case(filled, "broken", image(10))
    project = add_version(start_run(project, training_plan(project)), a_model(tmp_path / "m", "m")).project
    project.files["broken"].images[0].write_bytes(b"no volume")
    events, project = ended(predict(project, device="cpu"))
    assert [e.text.partition(":")[0] for e in events if isinstance(e, Warned)] == ["broken was left out"]
    assert {row.name: row.status for row in case_table(project) if row.status == "predicted"} == {"new": "predicted"}
    with pytest.raises(FmsegError, match="broken"):
        ended(predict(project, ("broken",), device="cpu"))


def test_labels_on_a_turned_grid_are_read_as_simpleitk_reads_them(project: Project, image) -> None:
    volume = image(1)
    rng = np.random.default_rng(0)
    turn = np.linalg.qr(np.eye(3) + 0.3 * rng.standard_normal((3, 3)))[0]
    turn = turn * np.sign(np.diag(turn))
    grid = Geometry.from_spacing((7, 9, 8), (2.1, 1.3, 1.1), (4.0, -6.5, 9.5), turn @ volume.geometry.direction)
    other = LabelMap(rng.integers(0, 3, grid.shape).astype(np.uint8), grid, {}, {1: "liver", 2: "tumour"})
    project = add_case(project, "turned", volume, other, LabelOptions(resample=True))
    found = read_labels(project.folder / "labelsTr" / "turned.nii.gz").data
    outside = SimpleITK.Resample(as_itk(other), as_itk(volume), SimpleITK.Transform(), SimpleITK.sitkNearestNeighbor, 3)
    expected = SimpleITK.GetArrayFromImage(outside)
    assert project.facts.ignore == 3
    assert (found == 3).any()
    assert (found != 3).any()
    assert (found == expected).mean() > 0.98  # a voxel in the middle between two goes to either


def as_itk(volume: Volume) -> SimpleITK.Image:
    picture = SimpleITK.GetImageFromArray(volume.data)
    grid = volume.geometry
    picture.SetSpacing(grid.spacing[::-1])
    picture.SetOrigin(tuple(grid.origin[::-1]))
    picture.SetDirection(grid.direction[::-1, ::-1].ravel())
    return picture


def test_where_the_model_is_unsure_is_kept_in_percent_until_the_case_is_labelled(
    filled: Project, labels, tmp_path
) -> None:
    project = add_version(start_run(filled, training_plan(filled)), a_model(tmp_path / "m", "m")).project
    _, project = ended(predict(project, device="cpu"))
    path = project.folder / "fmseg" / "uncertainty" / "new.nii.gz"
    found = SimpleITK.GetArrayFromImage(SimpleITK.ReadImage(str(path)))
    assert found.shape == (6, 8, 10)
    assert found.dtype == np.uint8
    assert found.max() <= 100
    label_case(project, "new", labels())
    assert not path.exists()


def test_two_images_are_left_out_in_turn_and_no_model_is_measured_on_what_it_has_seen(
    project: Project, image, labels, tmp_path, monkeypatch
) -> None:
    monkeypatch.setenv("FMSEG_HOME", str(tmp_path / "home"))
    for i in range(2):
        project = add_case(project, f"c{i}", image(i), labels())
    _, run = ended(prepare_run(project, FROM_SCRATCH, TrainingOptions(minutes=0.01, device="cpu")))
    recipe = load_recipe(recipe_file(run))
    # Steps by the hand of the test: a busy machine must not make it long.
    small = {"widths": (4, 4), "strides": ((2, 2, 2), (2, 2, 2))}
    stages = tuple(
        dataclasses.replace(s, steps=1, steps_per_epoch=1, minutes=0.0, kwargs={**s.kwargs, **small})
        for s in recipe.stages
    )
    grids = {"consensus_grid": [32, 32, 32], "attention_grid": [32, 32, 32]}
    write_recipe(dataclasses.replace(recipe, stages=stages, settings=grids), recipe_file(run))
    list(train(load_recipe(recipe_file(run))))
    events, kept = ended(finish_run(run.project, 1))
    assert list(kept.version.lineage.scores) == ["c0", "c1"]
    assert kept.version.lineage.held_out == {}
    assert {e.stage for e in events if isinstance(e, Progress)} == {LEAVING, "measuring"}
    n = 2 * len(stages)
    assert [e for e in events if isinstance(e, Progress) and e.stage == LEAVING][-1] == Progress(LEAVING, n, n)
    for fold, seen in (("1", "c1"), ("2", "c0")):
        told = json.loads((run.folder / "left-out" / fold / "run.json").read_text())["recipe"]
        assert [case["name"] for case in told["training"]] == [seen]
        assert not told.get("start_from")
    assert all(row.left_out for row in case_table(kept.project))
    report = run_report(kept.project, kept.version)
    assert {case.name for case in report.cases} == {"c0", "c1"}
    assert report.left_out
    assert all(case.picture and case.found for case in report.cases)

    # The next round starts from that model, which has seen both: what is left out must not be in the start.
    _, run = ended(prepare_run(kept.project, "project", TrainingOptions(minutes=0.01, device="cpu")))
    recipe = load_recipe(recipe_file(run))
    write_recipe(
        dataclasses.replace(
            recipe,
            stages=tuple(dataclasses.replace(s, steps=1, steps_per_epoch=1, minutes=0.0) for s in recipe.stages),
        ),
        recipe_file(run),
    )
    list(train(load_recipe(recipe_file(run))))
    _, again = ended(finish_run(run.project, 2))
    for fold in ("1", "2"):
        told = json.loads((run.folder / "left-out" / fold / "run.json").read_text())["recipe"]
        assert not told.get("start_from")
        assert told["stages"][0]["kwargs"]["widths"] == [4, 4]
    assert again.version.lineage.parent == 1
