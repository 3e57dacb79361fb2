"""Labels that others changed, cases that leave or are called otherwise, and classes that are."""

from __future__ import annotations

import dataclasses
import json
import os
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch

from napari_fmseg.core.errors import FmsegError, LabelsChanged
from napari_fmseg.core.volume import LabelMap
from napari_fmseg.datasets.projects.staged_case import corrections_of
from napari_fmseg.datasets.projects.training_plan import todays_labels
from napari_fmseg.io import read_labels, write_volume
from napari_fmseg.models.card import ModelCard, NetSpec
from napari_fmseg.models.weights import save_model
from napari_fmseg.nets import build
from napari_fmseg.training.projects import (
    LabelOptions,
    add_case,
    add_version,
    case_table,
    exclude_case,
    include_case,
    init_project,
    label_case,
    label_history,
    labels_revision,
    list_versions,
    open_project,
    open_run,
    rank_cases,
    remove_case,
    rename_case,
    rename_class,
    restore_labels,
    save_prediction,
    scan_all,
    start_run,
    training_plan,
)


@pytest.fixture
def filled(project, image, labels):
    """A project with five labelled cases, one of them held out."""
    for i in range(5):
        project = add_case(project, f"c{i}", image(i), labels())
    return project


def with_a_version(project, place: Path):
    spec = NetSpec("snet", {"in_channels": 1, "n_classes": 3, "width": 4})
    torch.manual_seed(0)
    settings = {"consensus_grid": [32, 32, 32], "attention_grid": [32, 32, 32]}
    card = ModelCard(
        "organs", "Organs", "phased", {"consensus": spec}, {1: "liver", 2: "tumour"}, settings=settings,
        scores={"labels": {"liver": 0.9, "tumour": 0.5}},
    )  # fmt: skip
    save_model(card, {"consensus": build(spec.network, **spec.kwargs)}, place)
    run = start_run(project, training_plan(project))
    scores = {case.name: {"liver": 0.9, "tumour": 0.5} for case in run.plan.validation}
    return add_version(run, place / "organs.toml", scores=scores).project


# --- two at one case ------------------------------------------------------------------------------------------------


def test_labels_that_somebody_else_saved_meanwhile_are_not_replaced_unseen(filled, labels):
    mine = theirs = filled
    theirs = label_case(theirs, "c0", labels(tumour=1))
    with pytest.raises(LabelsChanged, match="c0 were changed by somebody else"):
        label_case(mine, "c0", labels())
    assert (read_labels(theirs.files["c0"].labels).data == labels(tumour=1).data).all()
    both = label_case(mine, "c0", labels(), replace=True)
    assert len(both.record("c0").earlier) == 2


def test_a_case_that_two_label_at_once_is_not_taken_from_the_first(project, image, labels):
    mine = add_case(project, "a", image(1))
    label_case(mine, "a", labels())
    with pytest.raises(LabelsChanged):
        label_case(mine, "a", labels(tumour=1))


def test_a_file_that_another_program_wrote_counts_as_changed(filled, labels):
    seen = labels_revision(filled, "c0")
    path = filled.files["c0"].labels
    changed = nib.load(path)
    data = np.asarray(changed.dataobj).copy()
    data[0, 0, 0] = 1
    nib.save(nib.Nifti1Image(data, changed.affine), path)
    stamp = path.stat().st_mtime_ns + 10**9 * 90
    os.utime(path, ns=(stamp, stamp))
    with pytest.raises(LabelsChanged):
        label_case(open_project(filled.folder), "c0", labels(), revision=seen)


def test_an_ignore_label_that_a_new_class_pushed_up_is_no_change_by_others(project, image, labels):
    project = add_case(project, "a", image(1), labels(), LabelOptions(unlabelled="empty-slices"))
    seen = labels_revision(project, "a")
    project = add_case(project, "b", image(2), labels({1: "liver", 2: "vessel"}), LabelOptions(new_classes=True))
    assert labels_revision(project, "a") == seen
    label_case(project, "a", labels(), revision=seen)


def test_the_history_of_a_case_is_listed_and_taken_back(filled, labels):
    first = read_labels(filled.files["c0"].labels).data
    project = label_case(filled, "c0", labels(tumour=1))
    assert [(row.number, row.present) for row in label_history(project, "c0")] == [(1, False), (2, True)]
    project = restore_labels(project, "c0", 0)
    assert (read_labels(project.files["c0"].labels).data == first).all()
    assert [row.number for row in label_history(project, "c0")] == [1, 2, 3]


# --- leaving --------------------------------------------------------------------------------------------------------


def test_what_was_corrected_goes_with_the_labels_the_name_and_the_case(filled, labels):
    name, kept = "c1", filled.folder / corrections_of("c1")
    project = label_case(filled, name, labels(), corrections=b"slices")
    assert kept.read_bytes() == b"slices"
    project = rename_case(project, name, "other")
    moved = project.folder / corrections_of("other")
    assert (kept.exists(), moved.read_bytes()) == (False, b"slices")
    project = label_case(project, "other", labels())  # other labels, of which nobody said what was corrected
    assert not moved.exists()
    project = label_case(project, "other", labels(), corrections=b"again")
    remove_case(project, "other", with_labels=True)
    assert not moved.exists()


def test_an_excluded_case_takes_no_part_until_it_is_included_again(filled):
    plan = training_plan(filled)
    (held,), learned = [case.name for case in plan.validation], [case.name for case in plan.training]
    project = exclude_case(exclude_case(filled, learned[0]), held)
    plan = training_plan(project)
    assert [case.name for case in plan.training] == learned[1:]
    assert plan.validation == ()
    assert [fold.validation[0].name for fold in plan.folds] == learned[1:]  # nothing is held out, so in turn
    assert [row.status for row in case_table(project)].count("excluded") == 2
    project = scan_all(include_case(include_case(project, learned[0]), held))
    plan = training_plan(project)
    assert [case.name for case in plan.training] == learned
    assert [case.name for case in plan.validation] == [held]


def test_an_excluded_case_without_labels_is_not_offered_to_be_labelled(project, image):
    project = exclude_case(add_case(project, "a", image(1)), "a")
    assert rank_cases(project) == ()


def test_a_removed_case_leaves_no_file_and_its_image_keeps_its_role(filled, image, labels, tmp_path):
    project = with_a_version(filled, tmp_path / "model")
    learned = training_plan(project).training[0].name
    (held,) = (case.name for case in training_plan(project).validation)
    for name in (learned, held):
        project = label_case(project, name, labels(tumour=1))
        with pytest.raises(FmsegError, match="has labels"):
            remove_case(project, name)
        project = remove_case(project, name, with_labels=True)
        assert name not in project.files
        assert not [path for path in project.folder.rglob("*") if name in path.name]
    assert json.loads((project.folder / "dataset.json").read_text())["numTraining"] == 3
    project = add_case(project, "again", image(int(learned[1:])), labels())
    assert project.role("again") == "training"
    assert project.record("again").image in list_versions(project)[0].lineage.seen
    project = add_case(project, "back", image(int(held[1:])), labels())
    assert project.role("back") == "held out"


def test_a_linked_image_stays_where_it_is_when_its_case_is_removed(project, image, tmp_path):
    source = write_volume(image(1), tmp_path / "elsewhere.nii.gz")
    project = remove_case(add_case(project, "a", source, link=True), "a")
    assert source.exists()
    assert project.files == {}


@pytest.mark.parametrize("listed", ["dataset", "training"])
def test_a_case_of_another_tools_list_is_removed_and_renamed_in_it(tmp_path, image, labels, listed):
    folder = init_project(tmp_path / "p", ("liver", "tumour"), channels=("CT",)).folder
    project = add_case(open_project(folder), "a", image(1), labels())
    project = add_case(project, "b", image(2), labels())
    table = json.loads((folder / "dataset.json").read_text())
    paths = {name: (f"./imagesTr/{name}_0000.nii.gz", f"./labelsTr/{name}.nii.gz") for name in "ab"}
    table[listed] = (
        {name: {"images": [image], "label": label} for name, (image, label) in paths.items()}
        if listed == "dataset"
        else [{"image": image, "label": label} for image, label in paths.values()]
    )
    (folder / "dataset.json").write_text(json.dumps(table))
    project = rename_case(scan_all(open_project(folder)), "a", "first")
    assert sorted(project.files) == ["b", "first"]
    assert project.files["first"].labels == folder / "labelsTr" / "first.nii.gz"
    project = remove_case(project, "b", with_labels=True)
    assert list(project.files) == ["first"]
    assert len(json.loads((folder / "dataset.json").read_text())[listed]) == 1


# --- other names ----------------------------------------------------------------------------------------------------


def test_a_renamed_case_keeps_its_role_its_history_and_its_place_in_the_records(filled, labels, tmp_path):
    project = with_a_version(filled, tmp_path / "model")
    (held,) = (case.name for case in training_plan(project).validation)
    project = label_case(project, held, labels(tumour=1))
    project = rename_case(project, held, "new-name")
    assert project.role("new-name") == "held out"
    assert not [path for path in project.folder.rglob("*") if held in path.name]
    records = "".join(path.read_text() for path in (project.folder / "fmseg").rglob("*.json"))
    assert f'"{held}"' not in records
    assert list(list_versions(project)[0].lineage.scores) == ["new-name"]
    assert (read_labels(restore_labels(project, "new-name").files["new-name"].labels).data == labels().data).all()
    assert open_run(project, 1).plan.validation[0].name == "new-name"
    with pytest.raises(FmsegError, match="already"):
        rename_case(project, "new-name", next(n for n in project.files if n != "new-name"))


def test_a_case_that_waits_to_be_labelled_is_renamed_with_what_was_found_in_it(project, image, labels):
    project = save_prediction(add_case(project, "mueller", image(1)), "mueller", labels(), 1)
    project = rename_case(project, "mueller", "case-001")
    assert [path.name for path in project.files["case-001"].images] == ["case-001_0000.nii.gz"]
    assert (project.folder / "fmseg" / "predictions" / "case-001.nii.gz").exists()
    assert [row.status for row in case_table(project)] == ["predicted"]


def test_a_renamed_class_keeps_its_number_and_what_is_known_of_it(filled, tmp_path):
    project = with_a_version(filled, tmp_path / "model")
    before = {name: (files.labels.read_bytes()) for name, files in project.files.items()}
    run = open_run(project, 1)
    project = rename_class(project, "liver", "Leber")
    assert project.facts.labels == {1: "Leber", 2: "tumour"}
    assert {name: files.labels.read_bytes() for name, files in project.files.items()} == before
    assert project.record("c0").classes == ("Leber", "tumour")
    (version,) = list_versions(project)
    assert version.card.labels == {1: "Leber", 2: "tumour"}
    assert version.card.scores == {"labels": {"Leber": 0.9, "tumour": 0.5}}
    (scores,) = version.lineage.scores.values()
    assert list(scores) == ["Leber", "tumour"]
    assert todays_labels(dataclasses.replace(run, project=project), {1: "liver", 2: "tumour"}) == version.card.labels
    for name in ("tumour", "Ignore", ""):
        with pytest.raises(FmsegError, match="cannot be the name"):
            rename_class(project, "Leber", name)
    with pytest.raises(FmsegError, match="no class 'liver'"):
        rename_class(project, "liver", "x")


# --- some slices ----------------------------------------------------------------------------------------------------


def one_slice(labels: LabelMap, *planes: int) -> LabelMap:
    data = np.zeros((44, 20, 20), np.uint8)
    for plane in planes:
        data[plane, 4:16, 4:16] = 1
    grid = labels.geometry.resize(data.shape)
    return LabelMap(data, dataclasses.replace(grid, affine=np.diag([2.0, 1, 1, 1])), {}, {1: "liver"})


@pytest.mark.parametrize("planes", [(20,), (3, 20, 40), ()], ids=["one", "far apart", "none"])
def test_a_few_painted_slices_are_no_whole_volume_unless_somebody_says_so(project, image, labels, planes):
    marks = one_slice(labels(), *planes)
    volume = dataclasses.replace(image(1), data=np.random.default_rng(0).random((44, 20, 20)), geometry=marks.geometry)
    with pytest.raises(FmsegError, match=rf"Only {len(planes)} of 44 slices have labels"):
        add_case(project, "a", volume, marks)
    project = add_case(project, "a", volume, marks, LabelOptions(unlabelled="nothing"))
    assert not project.record("a").sparse
    if planes:
        project = label_case(project, "a", marks, LabelOptions(unlabelled="empty-slices"))
        assert project.record("a").labelled == pytest.approx(len(planes) / 44)


def test_a_thin_stack_of_slices_of_a_round_structure_is_taken_as_it_is(project, image, labels):
    marks = one_slice(labels(), *range(18, 24))
    volume = dataclasses.replace(image(1), data=np.random.default_rng(0).random((44, 20, 20)), geometry=marks.geometry)
    assert not add_case(project, "a", volume, marks).record("a").sparse


def test_a_case_with_most_slices_unlabelled_is_never_held_out_unasked(project, image, labels):
    marks = one_slice(labels(), 20)
    for i in range(8):
        data = np.random.default_rng(i).random((44, 20, 20))
        volume = dataclasses.replace(image(1), data=data, geometry=marks.geometry)
        project = add_case(project, f"c{i}", volume, marks, LabelOptions(unlabelled="empty-slices"))
    assert "held out" not in project.roles.values()
    assert training_plan(project).folds  # what it is worth is measured all the same
    for name in project.files:  # as another program would have left them
        path = project.files[name].labels
        loaded = nib.load(path)
        data = np.asarray(loaded.dataobj).copy()
        data[data == project.facts.ignore] = 0
        nib.save(nib.Nifti1Image(data, loaded.affine), path)
    project = scan_all(open_project(project.folder))
    assert all(project.record(name).unconfirmed for name in project.files)
    assert "held out" not in project.roles.values()
    for name in project.files:  # asked, and confirmed
        project = label_case(project, name, project.files[name].labels, LabelOptions(unlabelled="nothing"))
    assert list(project.roles.values()).count("held out") == 1


def test_files_that_end_in_the_number_of_their_channel_are_taken_in_its_order(tmp_path, image, labels):
    both = image(1, channels=2)
    paths = [
        write_volume(dataclasses.replace(both, data=both.data[i]), tmp_path / f"scan_{i:04d}.nii.gz") for i in (0, 1)
    ]
    project = init_project(tmp_path / "two", ("liver", "tumour"), channels=("T1", "T2"))
    project = add_case(project, "a", paths[::-1], labels())
    for i, path in enumerate(project.files["a"].images):
        assert (np.asarray(nib.load(path).dataobj).T == np.asarray(nib.load(paths[i]).dataobj).T).all()
