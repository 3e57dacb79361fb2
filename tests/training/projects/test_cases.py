"""Cases in a project: how they come in, what they are called, which labels they have, and that nothing is lost."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk

from napari_fmseg.core.errors import FmsegError, GeometryMismatch
from napari_fmseg.core.volume import Geometry, LabelMap, Volume
from napari_fmseg.io import read_labels, read_volume, write_labels, write_volume
from napari_fmseg.training import cases_of
from napari_fmseg.training.projects import (
    LabelOptions,
    add_case,
    case_table,
    free_name,
    image_hash,
    init_project,
    label_case,
    open_project,
    rank_cases,
    record_scores,
    record_uncertainty,
    restore_labels,
    save_prediction,
    scan_all,
    training_plan,
)

SHARED = Path(os.environ.get("FMSEG_SHARED", Path(__file__).parents[3].parent / "shared"))


def facts(project):
    return json.loads((project.folder / "dataset.json").read_text())


def test_a_new_case_lies_as_nnunet_wants_it_and_other_readers_see_it(project, image, labels):
    project = add_case(project, "a", image(1), labels())
    assert facts(project) == {
        "name": "project", "channel_names": {"0": "CT"}, "labels": {"background": 0, "liver": 1, "tumour": 2},
        "numTraining": 1, "file_ending": ".nii.gz",
    }  # fmt: skip
    seen = sitk.ReadImage(project.folder / "imagesTr" / "a_0000.nii.gz")
    truth = sitk.ReadImage(project.folder / "labelsTr" / "a.nii.gz")
    assert (sitk.GetArrayFromImage(seen) == image(1).data).all()
    assert (sitk.GetArrayFromImage(truth) == labels().data).all()
    assert (nib.load(project.folder / "imagesTr" / "a_0000.nii.gz").affine
            == nib.load(project.folder / "labelsTr" / "a.nii.gz").affine).all()  # fmt: skip
    names, training, _ = cases_of(project.folder)  # the room that recipes are read in finds it, too
    assert names == {1: "liver", 2: "tumour"}
    assert [case.name for case in training] == ["a"]


def test_an_unlabelled_volume_waits_in_images_ts_and_moves_when_it_is_labelled(project, image, labels):
    project = add_case(project, "a", image(1))
    assert [row.status for row in case_table(project)] == ["unlabelled"]
    assert (project.folder / "imagesTs" / "a_0000.nii.gz").exists()
    assert facts(project)["numTraining"] == 0
    project = label_case(project, "a", labels())
    assert [row.status for row in case_table(project)] == ["corrected"]
    assert not (project.folder / "imagesTs" / "a_0000.nii.gz").exists()
    assert (read_volume(project.folder / "imagesTr" / "a_0000.nii.gz").data == image(1).data).all()


@pytest.mark.parametrize("suffix", [".nii.gz", ".nii", ".nrrd", ".mha"])
def test_files_of_any_format_become_those_of_the_project_with_the_same_voxels(project, image, labels, tmp_path, suffix):
    source = write_volume(image(1), tmp_path / f"in{suffix}")
    truth = write_labels(labels({1: "liver", 2: "tumour"}), tmp_path / f"truth{suffix}")
    project = add_case(project, "a", source, truth)
    (kept,) = project.files["a"].images
    assert kept.name == "a_0000.nii.gz"
    assert (read_volume(kept).data == image(1).data).all()
    assert read_volume(kept).geometry.matches(image(1).geometry, atol_mm=1e-4)
    if suffix == ".nii.gz":
        assert kept.read_bytes() == source.read_bytes()


def test_each_channel_is_a_file_and_their_number_is_checked(tmp_path, image, labels):
    project = init_project(tmp_path / "two", ("liver", "tumour"), channels=("T1", "T2"))
    project = add_case(project, "a", image(1, channels=2), labels())
    assert [path.name for path in project.files["a"].images] == ["a_0000.nii.gz", "a_0001.nii.gz"]
    assert (read_volume(project.files["a"].images[1]).data == image(1, channels=2).data[1]).all()
    with pytest.raises(FmsegError, match=r"1 channel.*T1, T2"):
        add_case(project, "b", image(2), labels())


def test_a_linked_image_is_not_copied_and_a_missing_one_is_told(project, image, labels, tmp_path):
    source = write_volume(image(1), tmp_path / "elsewhere.nii.gz")
    project = add_case(project, "a", source, labels(), link=True)
    (kept,) = project.files["a"].images
    assert kept.is_symlink()
    assert kept.resolve() == source
    assert [row.linked for row in case_table(project)] == [True]
    source.rename(tmp_path / "away.nii.gz")
    (row,) = case_table(open_project(project.folder))
    assert "a_0000.nii.gz is not there" in row.problem
    other = write_volume(image(2), tmp_path / "other.nrrd")
    with pytest.raises(FmsegError, match=r"one \.nii\.gz file per channel"):
        add_case(project, "b", other, labels(), link=True)
    with pytest.raises(FmsegError, match="no file to link"):
        add_case(project, "b", image(3), link=True)


def test_an_image_comes_in_twice_only_on_purpose(project, image, labels):
    project = add_case(project, "a", image(1), labels())
    with pytest.raises(FmsegError, match="there already, as 'a'"):
        add_case(project, "b", image(1), labels())
    with pytest.raises(FmsegError, match="another image"):
        add_case(project, "a", image(2), labels())
    assert list(add_case(project, "b", image(1), labels(), again=True).files) == ["a", "b"]


@pytest.mark.parametrize("name", ["", "../a", "a/b", "a_0000", ".a", "a b", "a."])
def test_a_name_that_would_break_the_layout_is_refused(project, image, name):
    with pytest.raises(FmsegError, match="cannot be the name"):
        add_case(project, name, image(1))
    assert not (project.folder / "imagesTs").exists()


def test_free_names_count_on_and_tell_nothing(project, image):
    assert free_name(project) == "case-001"
    assert free_name(add_case(project, "case-041", image(1))) == "case-042"


def test_labels_on_another_grid_are_resampled_only_on_request(project, image, labels):
    truth = labels()
    smaller = truth.geometry.crop((slice(1, 5), slice(0, 8), slice(0, 10)))
    part = LabelMap(truth.data[1:5], smaller)
    with pytest.raises(GeometryMismatch, match="--resample"):
        add_case(project, "a", image(1), part)
    assert list(open_project(project.folder).files) == []
    project = add_case(project, "a", image(1), part, LabelOptions(resample=True))
    found = read_labels(project.files["a"].labels).data
    assert (found[1:5] == truth.data[1:5]).all()
    assert (found[[0, 5]] == 3).all()  # where the labels do not reach, nobody labelled
    assert facts(project)["labels"]["ignore"] == 3


def test_labels_are_matched_by_name_whatever_their_numbers(project, image, labels):
    project = add_case(project, "a", image(1), labels({7: "Tumour", 4: "LIVER"}, liver=4, tumour=7))
    assert (read_labels(project.files["a"].labels).data == labels().data).all()


def test_a_number_without_a_name_and_a_new_name_are_refused_until_asked_for(project, image, labels):
    with pytest.raises(FmsegError, match="the number 9, which has no name"):
        add_case(project, "a", image(1), labels(tumour=9))
    vessel = labels({1: "liver", 2: "vessel"})
    with pytest.raises(FmsegError, match="no class 'vessel'"):
        add_case(project, "a", image(1), vessel)
    project = add_case(project, "a", image(1), vessel, LabelOptions(new_classes=True))
    assert facts(project)["labels"] == {"background": 0, "liver": 1, "tumour": 2, "vessel": 3}
    assert set(np.unique(read_labels(project.files["a"].labels).data)) == {0, 1, 3}


def test_slices_without_labels_can_mean_not_labelled(project, image, labels):
    project = add_case(project, "a", image(1), labels(), LabelOptions(unlabelled="empty-slices"))
    found = read_labels(project.files["a"].labels).data
    assert (found[[0, 1, 4, 5]] == 3).all()
    assert (found[2:4] == labels().data[2:4]).all()
    (row,) = case_table(project)
    assert row.labelled == pytest.approx(2 / 6)
    assert training_plan(project).ignore == 3


def test_scribbles_leave_the_rest_open_and_background_is_painted(project, image, labels):
    scribble = labels({1: "liver", 2: "tumour", 5: "background"})
    scribble.data[0, 0, :4] = 5
    project = add_case(project, "a", image(1), scribble, LabelOptions(unlabelled="zeros"))
    found = read_labels(project.files["a"].labels).data
    assert (found[0, 0, :4] == 0).all()
    assert (found[scribble.data == 0] == 3).all()
    assert (found[scribble.data == 2] == 2).all()


def test_a_new_class_pushes_the_ignore_label_up_in_every_file(project, image, labels):
    project = add_case(project, "sparse", image(1), labels(), LabelOptions(unlabelled="empty-slices"))
    project = add_case(project, "full", image(2), labels())
    before = project.files["full"].labels.read_bytes()
    vessel = labels({1: "liver", 2: "vessel"})
    project = add_case(project, "new", image(3), vessel, LabelOptions(new_classes=True))
    assert facts(project)["labels"] == {"background": 0, "liver": 1, "tumour": 2, "vessel": 3, "ignore": 4}
    found = read_labels(project.files["sparse"].labels).data
    assert (found[[0, 1, 4, 5]] == 4).all()
    assert not (found == 3).any()
    assert project.files["full"].labels.read_bytes() == before
    assert training_plan(project).partial == {"sparse": ("vessel",), "full": ("vessel",), "new": ("tumour",)}


def test_a_case_states_the_classes_it_has(project, image, labels):
    only = labels(tumour=1)
    project = add_case(project, "stated", image(1), only, LabelOptions(classes=("liver",)))
    project = add_case(project, "named", image(2), labels({1: "liver"}, tumour=1))
    project = add_case(project, "all", image(3), only)
    rows = {row.name: row.classes for row in case_table(project)}
    assert rows == {"stated": ("liver",), "named": ("liver",), "all": ("liver", "tumour")}
    with pytest.raises(FmsegError, match="it has voxels of tumour"):
        add_case(project, "b", image(4), labels(), LabelOptions(classes=("liver",)))
    project = label_case(project, "stated", only)  # corrected without a word: it tells of what it told of
    assert project.record("stated").classes == ("liver",)


def test_corrected_labels_keep_those_before_and_take_them_back(project, image, labels):
    project = add_case(project, "a", image(1), labels(), LabelOptions(unlabelled="empty-slices"))
    project = add_case(project, "b", image(2), labels({1: "liver", 2: "vessel"}), LabelOptions(new_classes=True))
    first = read_labels(project.files["a"].labels).data
    corrected = labels(tumour=1)
    project = label_case(project, "a", corrected)
    assert (read_labels(project.files["a"].labels).data == corrected.data).all()
    project = restore_labels(project, "a")
    assert (read_labels(project.files["a"].labels).data == first).all()
    assert project.record("a").sparse
    assert len(project.record("a").earlier) == 2
    project = restore_labels(project, "a", 1)
    assert (read_labels(project.files["a"].labels).data == corrected.data).all()
    with pytest.raises(FmsegError, match="number 8"):
        restore_labels(project, "a", 7)


def test_labels_from_before_a_new_class_are_restored_with_todays_ignore_label(project, image, labels):
    project = add_case(project, "a", image(1), labels(), LabelOptions(unlabelled="empty-slices"))
    project = label_case(project, "a", labels())
    project = add_case(project, "b", image(2), labels({1: "liver", 2: "vessel"}), LabelOptions(new_classes=True))
    project = restore_labels(project, "a", 0)
    found = read_labels(project.files["a"].labels).data
    assert (found[[0, 1, 4, 5]] == 4).all()  # 3, which meant ignore in that file, is the vessel now
    assert not (found == 3).any()


def test_the_table_tells_predictions_scores_and_what_to_label_next(project, image, labels):
    for i in range(4):
        project = add_case(project, f"t{i}", image(i), labels())
    for i in range(3):
        project = add_case(project, f"u{i}", image(10 + i))
    project = save_prediction(project, "u0", labels(), version=1, uncertainty=0.2)
    project = record_uncertainty(project, 1, {"u1": 0.7})
    project = record_scores(project, 1, {"t0": {"liver": 0.9, "tumour": 0.5}, "t1": {"liver": 0.8, "tumour": np.nan}})
    project = dataclasses.replace(project, index=dataclasses.replace(project.index, used=(1,)))
    rows = {row.name: row for row in case_table(project)}
    assert sorted(row.status for row in rows.values()) == [
        "corrected", "corrected", "corrected", "held out", "predicted", "unlabelled", "unlabelled",
    ]  # fmt: skip
    assert rows["t0"].dice == pytest.approx(0.7)
    assert rows["t1"].dice == pytest.approx(0.8)
    assert [(row.name, row.uncertainty) for row in rank_cases(project)] == [("u1", 0.7), ("u0", 0.2), ("u2", None)]
    project = label_case(project, "u0", labels())
    assert case_table(project)[4].status == "corrected"
    assert not (project.folder / "fmseg" / "predictions" / "u0.nii.gz").exists()


# --- folders of other tools -----------------------------------------------------------------------------------------


def test_a_folder_of_nnunet_opens_as_it_is_and_keeps_what_nobody_here_knows(tmp_path, image, labels):
    table = {
        "channel_names": {"0": "T2"}, "labels": {"background": 0, "whole": [1, 2], "core": [2], "ignore": 3},
        "regions_class_order": [1, 2], "numTraining": 2, "file_ending": ".nrrd",
        "overwrite_image_reader_writer": "SimpleITKIO", "licence": "CC0",
    }  # fmt: skip
    for i, name in enumerate(["p1", "p2"]):
        write_volume(image(i), tmp_path / "imagesTr" / f"{name}_0000.nrrd")
        write_labels(labels(), tmp_path / "labelsTr" / f"{name}.nrrd")
    write_volume(image(5), tmp_path / "imagesTs" / "p1_0000.nrrd")  # a test case of the same name
    (tmp_path / "dataset.json").write_text(json.dumps(table))
    before = {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}
    project = open_project(tmp_path)
    assert not (tmp_path / "fmseg").exists()
    project = scan_all(init_project(tmp_path))
    assert {p: p.read_bytes() for p in before} == before
    assert project.facts.labels == {1: "label 1", 2: "core"}
    assert (project.facts.ignore, project.facts.channels, list(project.files)) == (
        3, ("T2",), ["imagesTs/p1", "p1", "p2"],
    )  # fmt: skip
    project = add_case(project, "p3", image(7), labels())
    assert facts(project) == {**table, "numTraining": 3}
    assert project.files["p3"].labels == tmp_path / "labelsTr" / "p3.nrrd"
    with pytest.raises(FmsegError, match="same name"):
        label_case(project, "imagesTs/p1", labels())


def test_listed_cases_are_found_where_the_list_says_and_new_ones_join_it(tmp_path, image, labels):
    for i, name in enumerate("abc"):
        write_volume(image(i), tmp_path / "volumes" / f"{name}.nii.gz")
        write_labels(labels(), tmp_path / "masks" / f"{name}.nii.gz")
    entries = [{"image": f"./volumes/{n}.nii.gz", "label": f"./masks/{n}.nii.gz", "age": 7} for n in "abc"]
    table = {"modality": {"0": "MRI"}, "labels": {"0": "background", "1": "liver", "2": "tumour"},
             "classes": {"b": ["liver"]},
             "training": entries[:2], "validation": entries[2:]}  # fmt: skip
    (tmp_path / "dataset.json").write_text(json.dumps(table))
    project = scan_all(open_project(tmp_path))
    assert [row.status for row in case_table(project)] == ["corrected", "corrected", "held out"]
    assert [row.classes for row in case_table(project)] == [("liver", "tumour"), ("liver",), ("liver", "tumour")]
    project = add_case(project, "d", image(9), labels())
    project = label_case(project, "a", labels(tumour=1))
    assert (read_labels(tmp_path / "masks" / "a.nii.gz").data == labels(tumour=1).data).all()
    new = {"case": "d", "image": "imagesTr/d_0000.nii.gz", "label": "labelsTr/d.nii.gz"}
    assert facts(project) == {**table, "training": [*entries[:2], new], "numTraining": 4}
    _, training, held = cases_of(tmp_path)
    assert [[case.name for case in part] for part in (training, held)] == [["a", "b", "d"], ["c"]]


def test_version_2_may_list_files_that_lie_elsewhere_and_they_stay_untouched(tmp_path, image, labels):
    write_volume(image(1), tmp_path / "far" / "x.nii.gz")
    write_labels(labels(), tmp_path / "far" / "y.nii.gz")
    entry = {"images": [str(tmp_path / "far" / "x.nii.gz")], "label": "../far/y.nii.gz"}
    table = {"channel_names": {"0": "CT"}, "labels": {"background": 0, "liver": 1, "tumour": 2}, "numTraining": 1,
             "file_ending": ".nii.gz", "dataset": {"x": entry}}  # fmt: skip
    (tmp_path / "p").mkdir()
    (tmp_path / "p" / "dataset.json").write_text(json.dumps(table))
    before = (tmp_path / "far" / "y.nii.gz").read_bytes()
    project = scan_all(open_project(tmp_path / "p"))
    assert project.labelled == ("x",)
    project = label_case(project, "x", labels(tumour=1))
    assert (tmp_path / "far" / "y.nii.gz").read_bytes() == before
    assert (read_labels(project.files["x"].labels).data == labels(tumour=1).data).all()
    assert facts(project)["dataset"] == {"x": {**entry, "label": "labelsTr/x.nii.gz"}}


def test_what_other_tools_add_change_or_break_is_noticed(project, image, labels):
    project = add_case(project, "a", image(1), labels())
    write_volume(image(2), project.folder / "imagesTr" / "b_0000.nii.gz")
    write_labels(labels(), project.folder / "labelsTr" / "b.nii.gz")
    write_labels(labels(tumour=1), project.folder / "labelsTr" / "a.nii.gz")
    (project.folder / "imagesTr" / "c_0000.nii.gz").write_bytes(b"no image")
    project = open_project(project.folder)
    with pytest.raises(FmsegError, match="fmseg project split"):
        training_plan(project)
    project = scan_all(project)
    assert [case.name for case in training_plan(project).training] == ["a", "b"]
    assert project.record("b").image == image_hash(image(2))
    assert case_table(project)[2].problem
    assert scan_all(project).index == project.index


@pytest.mark.parametrize(
    ("content", "match"),
    [
        (None, "no dataset.json"),
        ("{", "cannot be understood"),
        ('{"labels": {"liver": "x"}}', "cannot be understood"),
        ("[]", "cannot be understood"),
    ],
)
def test_a_folder_that_is_no_project_is_refused_with_a_sentence(tmp_path, content, match):
    if content is not None:
        (tmp_path / "dataset.json").write_text(content)
    with pytest.raises(FmsegError, match=match):
        open_project(tmp_path)


def test_a_new_project_needs_sensible_classes(tmp_path):
    for wrong in [(), ("a", "A"), ("ignore",), ("background", "b")]:
        with pytest.raises(FmsegError, match="needs its classes"):
            init_project(tmp_path / "p", wrong)
    assert not (tmp_path / "p").exists()
    init_project(tmp_path / "p", ("a",))
    with pytest.raises(FmsegError, match="has a dataset"):
        init_project(tmp_path / "p", ("b",))


def test_a_project_from_elsewhere_cannot_write_outside_of_itself(project, tmp_path):
    victim = tmp_path / "victim"
    victim.write_text("mine")
    for path in ["../victim", str(victim), "fmseg/../../victim"]:
        (project.folder / "fmseg" / "commit.json").write_text(json.dumps({"moves": [], "removals": [path]}))
        with pytest.raises(FmsegError, match="outside"):
            open_project(project.folder)
    assert victim.read_text() == "mine"


# --- what an image is -----------------------------------------------------------------------------------------------


def test_the_hash_of_an_image_does_not_depend_on_how_it_is_stored(image, tmp_path):
    volume = image(1)
    known = image_hash(volume)
    as_float = write_volume(dataclasses.replace(volume, data=volume.data.astype(np.float64)), tmp_path / "a.nrrd")
    copied = shutil.copy(write_volume(volume, tmp_path / "b.nii"), tmp_path / "another name.nii")
    turned = volume.geometry.affine.copy()
    turned[:3, :3] = turned[:3, [2, 1, 0]]
    turned[:, 3] = volume.geometry.affine[:, 3]
    swapped = Volume(volume.data.transpose(2, 1, 0), Geometry(volume.data.shape[::-1], turned))
    flipped_grid = volume.geometry.affine.copy()
    flipped_grid[:3, 3] = volume.geometry.place((5, 0, 0))
    flipped_grid[:3, 0] *= -1
    flipped = Volume(volume.data[::-1], Geometry(volume.data.shape, flipped_grid))
    for other in (read_volume(as_float), read_volume(copied), swapped, flipped):
        assert image_hash(other) == known
    two = image(1, channels=2)
    assert image_hash(two) == image_hash(dataclasses.replace(two, data=two.data[::-1]))
    changed = volume.data.copy()
    changed[0, 0, 0] += 1
    assert image_hash(dataclasses.replace(volume, data=changed)) != known


@pytest.mark.real
@pytest.mark.skipif(not (SHARED / "data").is_dir(), reason="the real volumes are not beside the project")
@pytest.mark.parametrize("name", ["hippocampus", "la_mr", "acdc", "brats", "torso_mr"])
def test_a_real_data_set_opens_as_a_project_without_being_touched(name):
    folder = SHARED / "data" / name
    table = json.loads((folder / "dataset.json").read_text())
    project = open_project(folder)
    listed = [e["case"] for part in ("training", "validation") for e in table.get(part, ())]
    assert set(listed) <= set(project.labelled)
    assert not (folder / "fmseg").exists()
