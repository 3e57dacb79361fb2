"""Which cases of a folder a model is measured on: never those that it may have learned from, and none in silence."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from napari_fmseg.core.errors import FmsegError
from napari_fmseg.core.volume import Geometry, LabelMap, Volume
from napari_fmseg.datasets.labelled_cases import labelled_cases, unlabelled_images
from napari_fmseg.datasets.nnunet_json import find_cases, read_facts, validation_names, without_case
from napari_fmseg.datasets.nnunet_raw import cases_of
from napari_fmseg.io import write_labels, write_volume
from napari_fmseg.training.projects import add_case, init_project

GRID = Geometry.from_spacing((3, 4, 5))
LABELS = {"background": 0, "organ": 3}


def write_case(folder: Path, image: str, label: str | None = None) -> None:
    write_volume(Volume(np.arange(60, dtype=np.int16).reshape(GRID.shape), GRID), folder / image)
    if label:
        write_labels(LabelMap(np.ones(GRID.shape, np.uint8), GRID), folder / label)


def entry(name: str, label: bool = True) -> dict[str, str]:
    return {"case": name, "image": f"images/{name}.nii.gz", **({"label": f"labels/{name}.nii.gz"} if label else {})}


def dataset(folder: Path, **lists: Any) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "dataset.json").write_text(json.dumps({"labels": LABELS, **lists}))
    return folder


def names_of(folder: Path, part: str) -> list[str]:
    return [case.name for case in labelled_cases(folder, part)[1]]


@pytest.fixture
def lists(tmp_path: Path) -> Path:
    """Our layout: all images in one folder, and lists for training, validation and test."""
    for name in ("learned", "held", "tested", "later"):
        write_case(tmp_path, f"images/{name}.nii.gz", f"labels/{name}.nii.gz")
    for name in ("bare", "bare test"):
        write_case(tmp_path, f"images/{name}.nii.gz")
    return dataset(
        tmp_path, training=[entry("learned"), entry("bare", label=False)], validation=[entry("held")],
        test=[entry("tested"), entry("later"), entry("bare test", label=False)], unlabelled=["images/bare.nii.gz"],
    )  # fmt: skip


def test_test_cases_are_those_of_the_list(lists: Path) -> None:
    assert names_of(lists, "test") == ["tested", "later"]
    assert labelled_cases(lists, "test")[0] == {3: "organ"}
    assert names_of(lists, "training") == ["learned"]
    assert names_of(lists, "validation") == ["held"]
    assert names_of(lists, "all") == ["learned", "held"]


def test_cases_labelled_in_part_are_learned_from_and_held_out_with_the_classes_that_they_have(lists: Path) -> None:
    facts = json.loads((lists / "dataset.json").read_text())
    facts["labels"]["tumour"] = 4
    facts["training_partial"] = [{**entry("later"), "classes": ["organ"]}]
    facts["validation_partial"] = [{**entry("tested"), "classes": ["tumour"]}]
    facts["test"] = []
    dataset(lists, **facts)
    _, training, validation = cases_of(lists)
    assert {case.name: case.classes for case in training} == {"learned": (), "later": ("organ",)}
    assert {case.name: case.classes for case in validation} == {"held": (), "tested": ("tumour",)}
    assert names_of(lists, "validation") == ["held", "tested"]
    told = read_facts(lists)  # a project on the same folder
    assert {"learned", "later", "held", "tested"} <= find_cases(lists, told).keys()
    assert [told.classes_of(name) for name in ("learned", "later", "tested")] == [(), ("organ",), ("tumour",)]
    assert validation_names(told.table) == {"held", "tested"}
    assert without_case(told.table, "later", 1)["training_partial"] == []


def test_a_case_listed_as_labelled_in_part_says_with_which_classes(lists: Path) -> None:
    facts = json.loads((lists / "dataset.json").read_text())
    dataset(lists, **facts, training_partial=[entry("later")])
    with pytest.raises(FmsegError, match="'later' is listed as labelled in part"):
        cases_of(lists)


def test_images_without_labels_are_named(lists: Path) -> None:
    assert unlabelled_images(lists, "test") == ("bare test",)
    assert unlabelled_images(lists, "training") == ("bare",)
    assert unlabelled_images(lists, "validation") == ()


@pytest.mark.parametrize("tests", [None, [], "bare"])
def test_a_dataset_without_labelled_test_cases_gives_none_for_test(tmp_path: Path, tests: Any) -> None:
    """The images and labels lie in folders of these names, and all of them are for training."""
    for name in ("a", "b"):
        write_case(tmp_path, f"images/{name}.nii.gz", f"labels/{name}.nii.gz")
    write_case(tmp_path, "imagesTs/bare.nii.gz")
    more = {} if tests is None else {"test": ["./imagesTs/bare.nii.gz"] if tests == "bare" else tests}
    dataset(tmp_path, training=[entry("a")], validation=[entry("b")], **more)
    with pytest.raises(FmsegError, match=r"no labelled case.*list 'test'.*another part"):
        labelled_cases(tmp_path, "test")


def test_a_dataset_with_test_cases_only_can_be_measured_on(tmp_path: Path) -> None:
    write_case(tmp_path, "images/a.nii.gz", "labels/a.nii.gz")
    assert names_of(dataset(tmp_path, test=[entry("a")]), "test") == ["a"]
    assert names_of(dataset(tmp_path, validation=[entry("a")]), "validation") == ["a"]


@pytest.mark.parametrize("listed", [False, True])
def test_the_layout_of_nnunet_and_the_decathlon_gives_its_test_folder(tmp_path: Path, listed: bool) -> None:
    write_case(tmp_path, "imagesTr/a_0000.nii.gz", "labelsTr/a.nii.gz")
    write_case(tmp_path, "imagesTr/c_0000.nii.gz")
    write_case(tmp_path, "imagesTs/b_0000.nii.gz", "labelsTs/b.nii.gz")
    write_case(tmp_path, "imagesTs/d_0000.nii.gz")
    tests = ["./imagesTs/b_0000.nii.gz", "./imagesTs/d_0000.nii.gz"]
    dataset(tmp_path, **({"test": tests} if listed else {}))
    found = labelled_cases(tmp_path, "test")[1]
    assert [(case.images[0].name, case.labels.name) for case in found] == [("b_0000.nii.gz", "b.nii.gz")]
    assert [name.removesuffix("_0000") for name in unlabelled_images(tmp_path, "test")] == ["d"]
    assert unlabelled_images(tmp_path, "training") == ("c",)


def test_a_case_for_training_and_for_test_is_refused(lists: Path) -> None:
    table = json.loads((lists / "dataset.json").read_text())
    again = {**entry("other"), "image": "images/../images/learned.nii.gz"}
    (lists / "dataset.json").write_text(json.dumps({**table, "test": [again]}))
    with pytest.raises(FmsegError, match=r"1 test case.*for training or validation, too, such as other"):
        labelled_cases(lists, "test")


def test_a_list_that_makes_no_sense_is_told(lists: Path) -> None:
    table = json.loads((lists / "dataset.json").read_text())
    for odd in (7, [7], [{"label": "labels/a.nii.gz"}]):
        (lists / "dataset.json").write_text(json.dumps({**table, "test": odd}))
        with pytest.raises(FmsegError, match=r"dataset\.json cannot be understood"):
            labelled_cases(lists, "test")


def test_a_folder_for_validation_goes_before_every_fifth_case(tmp_path: Path) -> None:
    for i in range(5):
        write_case(tmp_path, f"imagesTr/t{i}.nii.gz", f"labelsTr/t{i}.nii.gz")
    write_case(tmp_path, "imagesVal/v.nii.gz", "labelsVal/v.nii.gz")
    assert names_of(dataset(tmp_path), "validation") == ["v"]
    assert sorted(names_of(tmp_path, "training")) == [f"t{i}" for i in range(5)]


def test_folders_that_tell_of_parts_do_not_lend_others(tmp_path: Path) -> None:
    write_case(tmp_path, "imagesTr/a.nii.gz", "labelsTr/a.nii.gz")
    write_case(tmp_path, "images/b.nii.gz", "labels/b.nii.gz")
    assert names_of(tmp_path, "training") == ["a"]
    with pytest.raises(FmsegError, match="no labelled case"):
        labelled_cases(tmp_path, "test")


def test_images_beside_a_folder_of_labels_are_named_when_they_have_none(tmp_path: Path) -> None:
    write_case(tmp_path, "scans/a.nii.gz", "truth/a.nii.gz")
    write_case(tmp_path, "scans/b_0000.nii.gz")
    write_case(tmp_path, "scans/b_0001.nii.gz")
    assert unlabelled_images(tmp_path / "scans", labels=tmp_path / "truth") == ("b",)


def test_a_project_has_the_test_cases_of_its_dataset_only(tmp_path: Path) -> None:
    project = init_project(tmp_path / "p", ("organ",))
    for i in range(2):
        data = np.random.default_rng(i).integers(0, 99, GRID.shape).astype(np.int16)
        truth = LabelMap(np.ones(GRID.shape, np.uint8), GRID)
        project = add_case(project, f"c{i}", Volume(data, GRID), truth)
    with pytest.raises(FmsegError, match="no labelled case"):
        labelled_cases(project.folder, "test")
    before = {path: path.stat().st_mtime_ns for path in project.folder.rglob("*")}
    assert unlabelled_images(project.folder, "training") == ()
    assert {path: path.stat().st_mtime_ns for path in project.folder.rglob("*")} == before
