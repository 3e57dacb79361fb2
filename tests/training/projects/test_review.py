"""What is said of a case stays with the project, and decides whether it is learned from."""

from __future__ import annotations

import numpy as np
import pytest

from napari_fmseg.core.errors import FmsegError
from napari_fmseg.io import read_labels
from napari_fmseg.training.projects import (
    ACCEPTED,
    CORRECTED,
    REJECTED,
    accept_case,
    add_case,
    case_table,
    label_case,
    open_project,
    rename_case,
    review_case,
    save_prediction,
    scan_all,
    training_plan,
)


def test_predicted_labels_that_are_accepted_become_those_of_the_case(project, image, labels):
    project = add_case(project, "c0", image(0))
    project = save_prediction(project, "c0", labels({1: "liver", 2: "tumour"}), 1, uncertainty=0.3)
    project = accept_case(project, "c0", "good")
    assert case_table(project)[0].status == "corrected"
    np.testing.assert_array_equal(read_labels(project.files["c0"].labels).data, labels().data)
    record = open_project(project.folder).record("c0")
    assert (record.verdict, record.note, bool(record.reviewed)) == (ACCEPTED, "good", True)


def test_a_case_without_labels_cannot_be_accepted(project, image):
    project = add_case(project, "c0", image(0))
    with pytest.raises(FmsegError, match="c0 has no labels to accept"):
        accept_case(project, "c0")


def test_a_labelled_case_that_is_rejected_is_not_learned_from_until_it_is_accepted(project, image, labels):
    for i in range(3):
        project = add_case(project, f"c{i}", image(i), labels())
    project = review_case(project, "c1", REJECTED, "motion")
    assert [case.name for case in training_plan(project).training] == ["c0", "c2"]
    project = accept_case(project, "c1")
    assert [case.name for case in training_plan(project).training] == ["c0", "c1", "c2"]
    assert project.record("c1").note == "motion"


def test_other_labels_and_another_prediction_are_to_be_reviewed_again_and_the_note_stays(project, image, labels):
    project = add_case(project, "c0", image(0), labels())
    project = review_case(project, "c0", CORRECTED, "apex cut off")
    project = label_case(project, "c0", labels(tumour=1))
    assert (project.record("c0").verdict, project.record("c0").note) == ("", "apex cut off")
    project = add_case(project, "c1", image(1))
    project = review_case(save_prediction(project, "c1", labels(), 1), "c1", REJECTED)
    assert project.record("c1").verdict == REJECTED
    assert not project.record("c1").excluded
    assert save_prediction(project, "c1", labels(), 2).record("c1").verdict == ""


def test_a_note_survives_another_tool_and_another_name(project, image, labels):
    project = add_case(project, "c0", image(0), labels())
    project = review_case(project, "c0", ACCEPTED, "a note")
    path = project.files["c0"].labels
    path.write_bytes(path.read_bytes() + b"")
    path.touch()
    project = scan_all(open_project(project.folder))
    assert rename_case(project, "c0", "first").record("first").note == "a note"


@pytest.mark.parametrize(("verdict", "note"), [("fine", None), (ACCEPTED, "x" * 2001)])
def test_what_makes_no_sense_is_refused_and_nothing_is_changed(project, image, labels, verdict, note):
    project = add_case(project, "c0", image(0), labels())
    with pytest.raises(FmsegError):
        review_case(project, "c0", verdict, note)
    assert open_project(project.folder).record("c0").verdict == ""
