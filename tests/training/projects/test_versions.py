"""Versions of a project's model: kept with what they learned from, compared honestly, taken back, passed on."""

from __future__ import annotations

import dataclasses
import json
import re
import zipfile
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
import torch

from napari_fmseg.core.errors import FmsegError, InvalidRecipe, WeightsMismatch
from napari_fmseg.core.events import Progress, Saved
from napari_fmseg.core.volume import Geometry, LabelMap, Volume
from napari_fmseg.datasets.case import IGNORE, missing_in, read_case
from napari_fmseg.datasets.projects.training_plan import note_learned
from napari_fmseg.io import read_labels
from napari_fmseg.models.archive import export_model, import_model
from napari_fmseg.models.card import ModelCard, NetSpec
from napari_fmseg.models.folders import user_models_folder
from napari_fmseg.models.registry import find_card, list_models
from napari_fmseg.models.weights import load_model, save_model
from napari_fmseg.nets import build
from napari_fmseg.training import StageRecipe, cases_of, train
from napari_fmseg.training.planner import suggest_recipe
from napari_fmseg.training.projects import (
    LabelOptions,
    activate_version,
    active_version,
    add_case,
    add_version,
    case_table,
    cases_to_score,
    init_project,
    label_case,
    leaked_cases,
    list_versions,
    measure,
    newest_version_without,
    open_project,
    open_run,
    publish,
    recipe_for,
    roll_back,
    scan_all,
    start_run,
    training_plan,
)
from napari_fmseg.training.projects.names import model_name


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("FMSEG_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


@pytest.fixture
def filled(project, image, labels):
    """A project with five labelled cases, one of them held out."""
    for i in range(5):
        project = add_case(project, f"c{i}", image(i), labels())
    return project


def a_model(folder: Path, seed: int = 0, name: str = "organs", **changes) -> ModelCard:
    spec = NetSpec("snet", {"in_channels": 1, "n_classes": 3, "width": 4})
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        net = build(spec.network, **spec.kwargs)
    settings = {"consensus_grid": [32, 32, 32], "attention_grid": [32, 32, 32]}
    card = ModelCard(name, "Organs", "phased", {"consensus": spec}, {1: "liver", 2: "tumour"}, settings=settings)
    return save_model(dataclasses.replace(card, **changes), {"consensus": net}, folder)


def kept(project, folder: Path, dice: float, seed: int = 0, **words):
    run = start_run(project, training_plan(project))
    held = run.plan.validation[0].name
    return add_version(run, a_model(folder, seed), scores={held: {"liver": dice, "tumour": dice}}, **words)


def test_a_better_version_comes_into_use_and_a_worse_one_is_only_kept(filled, tmp_path):
    first = kept(filled, tmp_path / "1", 0.7, 1)
    worse = kept(first.project, tmp_path / "2", 0.6, 2)
    better = kept(worse.project, tmp_path / "3", 0.8, 3)
    assert [first.in_use, worse.in_use, better.in_use] == [True, False, True]
    assert "0.6000" in worse.why
    assert "0.7000" in worse.why
    project = better.project
    assert [v.number for v in list_versions(project)] == [1, 2, 3]
    assert project.index.used == (1, 3)
    (row,) = [row for row in case_table(project) if row.status == "held out"]
    assert row.dice == pytest.approx(0.8)
    project = roll_back(project)
    assert active_version(project).number == 1
    with pytest.raises(FmsegError, match="nothing to go back to"):
        roll_back(project)
    project = activate_version(project, 2)  # the user says so
    assert project.index.used == (1, 2)
    with pytest.raises(FmsegError, match="There is no version 9"):
        activate_version(project, 9)
    assert kept(project, tmp_path / "4", 0.1, 4, force=True).in_use


def test_versions_that_were_not_measured_on_the_same_cases_are_not_compared(filled, tmp_path):
    project = kept(filled, tmp_path / "1", 0.7).project
    run = start_run(project, training_plan(project))
    told = add_version(run, a_model(tmp_path / "2", 2), scores={})
    assert not told.in_use
    assert "not measured on the same cases" in told.why


def test_corrected_truth_makes_a_score_of_before_void(filled, tmp_path, labels):
    project = kept(filled, tmp_path / "1", 0.7).project
    held = training_plan(project).validation[0].name
    assert cases_to_score(project, 1) == ()
    project = label_case(project, held, labels(tumour=1))
    assert cases_to_score(project, 1) == (held,)


def test_a_version_knows_parent_cases_recipe_and_hashes(filled, tmp_path):
    first = kept(filled, tmp_path / "1", 0.7, 1)
    run = start_run(first.project, training_plan(first.project))
    recipe = recipe_for(
        run, (StageRecipe("consensus", "snet"),), start_from=str(first.version.card.folder / "organs.toml")
    )
    second = add_version(run, a_model(tmp_path / "2", 2), recipe=recipe)
    lineage = json.loads((second.project.folder / "fmseg" / "models" / "2" / "lineage.json").read_text())
    assert lineage["parent"] == 1
    assert sorted(lineage["learned"]) == sorted(case.name for case in run.plan.training)
    assert set(lineage["learned"].values()) == set(lineage["seen"]) == set(second.version.card.cases)
    assert lineage["recipe"]["stages"][0]["network"] == "snet"
    assert len(lineage["recipe_sha256"]) == 64
    assert lineage["weights_sha256"] == second.version.card.sha256
    assert (second.version.card.version, second.version.card.parent) == (2, "organs, version 1")
    load_model(second.version.card, device="cpu")


def test_a_start_that_had_seen_a_held_out_case_never_replaces_the_present_model(filled, tmp_path):
    run = start_run(filled, training_plan(filled))
    held = run.plan.validation[0].name
    start = a_model(tmp_path / "start", name="start", cases=(filled.record(held).image,))
    recipe = recipe_for(run, (StageRecipe("consensus", "snet"),), start_from=str(start.folder / "start.toml"))
    told = add_version(run, a_model(tmp_path / "1"), recipe=recipe, scores={held: {"liver": 0.99}})
    assert not told.in_use
    assert held in told.why
    assert told.project.role(held) == "held out"


def test_a_start_is_offered_that_has_not_seen_what_is_left_out(project, image, labels, tmp_path):
    for i in range(2):
        project = add_case(project, f"c{i}", image(i), labels())
    run = start_run(project, training_plan(project))
    project = add_version(run, a_model(tmp_path / "1")).project
    project = add_case(project, "c2", image(2), labels())
    run = start_run(project, training_plan(project))
    project = add_version(run, a_model(tmp_path / "2", 2), force=True).project
    assert newest_version_without(project, [project.record("c2").image]).number == 1
    assert newest_version_without(project, [project.record("c0").image]) is None
    project = add_case(project, "c3", image(3), labels())
    seen = a_model(tmp_path / "3", cases=(project.record("c3").image,))
    assert leaked_cases(project, seen) == ("c3",)


def test_a_run_is_resumed_with_its_own_cases(filled, image, labels):
    filled = label_case(filled, "c0", labels(tumour=1), LabelOptions(classes=("liver",)))
    run = start_run(filled, training_plan(filled))
    project = add_case(run.project, "later", image(50), labels())
    old = run.plan.training[0].name
    for part, end in (("imagesTr", "_0000.nii.gz"), ("labelsTr", ".nii.gz")):
        (project.folder / part / f"{old}{end}").rename(project.folder / part / f"renamed{end}")
    again = open_run(scan_all(open_project(project.folder)), 1)
    assert [c.classes for c in again.plan.training] == [c.classes for c in run.plan.training]
    assert [c.name for c in again.plan.training] == ["renamed", *(c.name for c in run.plan.training[1:])]
    assert again.plan.validation == run.plan.validation
    assert again.folder == run.folder
    with pytest.raises(FmsegError, match="no run 7"):
        open_run(project, 7)


def test_a_recipe_that_names_the_folder_obeys_the_locked_split(filled, image, labels):
    project = add_case(filled, "sparse", image(9), labels(), LabelOptions(unlabelled="empty-slices"))
    plan = training_plan(project)
    names, training, held = cases_of(project.folder)
    assert names == {1: "liver", 2: "tumour", 3: "ignore"}
    assert (tuple(training), tuple(held)) == (plan.training, plan.validation)
    with pytest.raises(InvalidRecipe, match="has it for training"):
        cases_of(project.folder, (plan.training[0].name,))


def everything(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_asking_for_the_cases_of_a_project_changes_nothing_and_a_training_notes_what_it_learns_from(
    project, image, labels
):
    for i in range(3):
        project = add_case(project, f"c{i}", image(i), labels())
    before = everything(project.folder)
    _, training, held = cases_of(project.folder)
    recipe = suggest_recipe(project.folder, 0.05, device="cpu").recipe
    assert (len(training), held, recipe.dataset) == (3, [], project.folder)
    assert everything(project.folder) == before
    with closing(train(dataclasses.replace(recipe, out=project.folder.parent / "run"))) as events:
        assert any(isinstance(event, Progress) and event.stage == "reading" for event in events)
    project = add_case(open_project(project.folder), "c3", image(3), labels())
    assert [c.name for c in training_plan(project).validation] == ["c3"], "what was learned from never validates"


def test_a_training_whose_case_was_held_out_meanwhile_does_not_start(project, image, labels):
    for i in range(3):
        project = add_case(project, f"c{i}", image(i), labels())
    _, training, _ = cases_of(project.folder)
    project = add_case(open_project(project.folder), "c3", image(3), labels())
    (held,) = training_plan(project).validation
    cases = [*training, held]
    before = everything(project.folder)
    with pytest.raises(FmsegError, match="held out"):
        note_learned(project.folder, cases)
    assert everything(project.folder) == before
    note_learned(project.folder.parent, cases)  # no project: nothing to note


def test_the_split_is_found_again_from_the_models_where_its_file_was_lost(filled, tmp_path):
    project = kept(filled, tmp_path / "1", 0.7).project
    before = dict(project.roles)
    (project.folder / "fmseg" / "split.json").unlink()
    assert open_project(project.folder).roles == before


def test_the_model_in_use_is_listed_and_follows_a_roll_back(filled, tmp_path):
    project = kept(kept(filled, tmp_path / "1", 0.7, 1).project, tmp_path / "2", 0.8, 2).project
    publish(project)
    assert find_card("organs").version == 2
    load_model("organs", device="cpu")
    publish(roll_back(project))
    assert find_card("organs").version == 1
    assert len(list((user_models_folder() / "organs").glob("*.safetensors"))) == 1
    other = init_project(tmp_path / "other", ("liver",))
    with pytest.raises(FmsegError, match="no model in use"):
        publish(other)


def test_publishing_does_not_take_the_place_of_a_model_of_another_project(filled, tmp_path):
    a_model(user_models_folder() / "organs", seed=9)
    project = kept(filled, tmp_path / "1", 0.7, 1).project
    other = find_card("organs").sha256
    assert publish(project).name == "organs-2"
    assert find_card("organs").sha256 == other
    project = kept(project, tmp_path / "2", 0.8, 2).project
    assert publish(project).name == "organs-2"  # its own place, once it has one
    assert find_card("organs-2").version == 2
    assert publish(project, replace=True).name == "organs"


@pytest.mark.parametrize(
    ("names", "stem"),
    [(("leber", "sub/leber"), "leber"), (("Knöchel", "sub/Knöchel"), "Knochel"), (("肝臓", "печень"), "project")],
)
def test_projects_of_one_name_or_of_no_latin_letter_have_models_of_different_names(tmp_path, names, stem):
    folders = [tmp_path / name for name in names]
    found = [model_name(init_project(folder, ("liver",))) for folder in folders]
    assert len(set(found)) == 2
    assert all(re.fullmatch(rf"{stem}-[0-9a-f]{{6}}", name) for name in found)
    assert model_name(open_project(folders[0].rename(folders[0].with_name("moved")))) == f"moved-{found[0][-6:]}"


def test_the_next_version_is_called_as_the_last_one(filled, tmp_path):
    assert model_name(kept(filled, tmp_path / "1", 0.7).project) == "organs"


# --- one file -------------------------------------------------------------------------------------------------------


def test_a_model_travels_as_one_file_and_is_the_same_on_another_machine(tmp_path, monkeypatch):
    card = a_model(tmp_path / "here", licence="CC0", cases=("ab",))
    file = export_model(card, tmp_path / "organs.zip")
    assert file.read_bytes() == export_model(card, tmp_path / "again.zip").read_bytes()
    monkeypatch.setenv("FMSEG_HOME", str(tmp_path / "elsewhere"))
    assert "organs" not in [c.name for c in list_models()]
    found = import_model(file)
    assert find_card("organs") == found
    assert dataclasses.replace(found, weights="", sha256="") == dataclasses.replace(card, weights="", sha256="")
    ours, theirs = load_model(card, device="cpu"), load_model("organs", device="cpu")
    for key, value in ours.nets["consensus"].state_dict().items():
        assert torch.equal(theirs.nets["consensus"].state_dict()[key], value)
    import_model(file)  # the same once more is no harm
    other = export_model(a_model(tmp_path / "other", seed=5), tmp_path / "other.zip")
    with pytest.raises(FmsegError, match="--replace"):
        import_model(other)
    assert import_model(other, replace=True).sha256 != found.sha256


def _altered(source: Path, target: Path, change) -> Path:
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w") as new:
        for name, content in change({i.filename: old.read(i) for i in old.infolist()}).items():
            new.writestr(name, content)
    return target


@pytest.mark.parametrize(
    "change",
    [
        lambda f: {**f, "organs.safetensors": f["organs.safetensors"][:-1] + b"\x01"},
        lambda f: {**f, "organs.toml": f["organs.toml"].replace(b"sha256", b"#")},
        lambda f: {"organs.toml": f["organs.toml"]},
        lambda f: {**f, "more.txt": b""},
        lambda f: {"../organs.toml": f["organs.toml"], "organs.safetensors": f["organs.safetensors"]},
    ],
    ids=["weights altered", "no hash", "no weights", "a file more", "a way out"],
)
def test_an_altered_file_is_refused_and_leaves_nothing(tmp_path, change):
    file = export_model(a_model(tmp_path / "here"), tmp_path / "organs.zip")
    bad = _altered(file, tmp_path / "bad.zip", change)
    with pytest.raises(WeightsMismatch):
        import_model(bad)
    assert not user_models_folder().exists()


def test_a_card_whose_name_leads_elsewhere_is_refused(tmp_path):
    file = export_model(a_model(tmp_path / "here"), tmp_path / "organs.zip")
    bad = _altered(file, tmp_path / "bad.zip", lambda f: {
        **f, "organs.toml": f["organs.toml"].replace(b'name = "organs"', b'name = "../organs"'),
    })  # fmt: skip
    with pytest.raises(FmsegError, match="cannot be the name"):
        import_model(bad)


def test_a_half_copied_file_is_refused(tmp_path):
    file = export_model(a_model(tmp_path / "here"), tmp_path / "organs.zip")
    file.write_bytes(file.read_bytes()[:5000])
    with pytest.raises(WeightsMismatch, match="damaged"):
        import_model(file)


# --- from labels to a model -----------------------------------------------------------------------------------------


def cube(seed: int, *, value: int = 1) -> tuple[Volume, LabelMap]:
    rng = np.random.default_rng(seed)
    data = rng.normal(0, 8, (20, 22, 24))
    labels = np.zeros(data.shape, np.uint8)
    z, y, x = rng.integers(2, 9, 3)
    labels[z : z + 9, y : y + 9, x : x + 9] = value
    data[labels > 0] += 100
    grid = Geometry.from_spacing(data.shape, (2, 1.5, 1.5))
    return Volume(data.astype(np.float32), grid), LabelMap(labels, grid)


def test_a_project_with_sparse_and_partial_labels_trains_a_model_that_is_kept_measured_and_listed(tmp_path):
    project = init_project(tmp_path / "p", ("cube", "other"))
    for i in range(4):
        volume, labels = cube(i)
        project = add_case(project, f"c{i}", volume, labels)
    volume, labels = cube(10)
    project = add_case(project, "sparse", volume, labels, LabelOptions(unlabelled="empty-slices"))
    volume, labels = cube(11, value=2)
    project = add_case(project, "partial", volume, labels, LabelOptions(classes=("other",)))
    plan = training_plan(project)
    run = start_run(project, plan)
    stage = StageRecipe("consensus", "snet", steps=40, steps_per_epoch=40, lr=5e-3, kwargs={"width": 8})
    settings = {"consensus_grid": [32, 32, 32], "attention_grid": [32, 32, 32]}
    recipe = recipe_for(run, (stage,), settings=settings, device="cpu")
    assert (recipe.ignore, [c.name for c in recipe.validation]) == (3, [c.name for c in plan.validation])

    # What is handed over means the same to the training.
    by_name = {case.name: case for case in (*recipe.training, *recipe.validation)}
    _, seen = read_case(by_name["sparse"], plan.names, recipe.labels, recipe.ignore)
    assert ((seen.data == IGNORE) == (read_labels(by_name["sparse"].labels).data == 3)).all()
    assert (seen.data == IGNORE).any()
    assert missing_in(by_name["partial"], plan.names, recipe.labels) == (1,)
    assert missing_in(by_name["c1"], plan.names, recipe.labels) == ()

    events = list(train(recipe))
    assert isinstance(events[-1], Saved)
    model = load_model(events[-1].path, device="cpu")
    work = measure(project, model, [case.name for case in plan.validation])
    while True:
        try:
            next(work)
        except StopIteration as done:
            scores = done.value
            break
    told = add_version(run, events[-1].path, recipe=recipe, scores=scores)
    assert told.in_use
    (held,) = plan.validation
    assert told.version.lineage.scores[held.name]["cube"] == pytest.approx(
        model.card.scores["labels"]["cube"], abs=1e-3
    )
    assert publish(told.project).name in [card.name for card in list_models()]
