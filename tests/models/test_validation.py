"""What a card states about patients that a model did not learn from: intervals, worst cases, groups."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from napari_fmseg.core.errors import UnknownModel
from napari_fmseg.models.card import ModelCard, NetSpec, read_card, write_card
from napari_fmseg.models.validation import summarise_cases

WEIGHTS = "ab" * 32
CASES = {
    "p1_ed": {"heart": 0.9, "lung": 0.8},
    "p1_es": {"heart": 0.7, "lung": math.nan},
    "p2_ed": {"heart": 0.6, "lung": 0.5},
    "p3_ed": {"heart": 0.8, "lung": 0.9},
}


def test_a_patient_with_two_volumes_counts_once_and_the_interval_is_that_of_students_t() -> None:
    found = summarise_cases(CASES, WEIGHTS, patient=lambda case: case[:2])
    heart = found.classes["heart"]
    means = [0.8, 0.6, 0.8]
    expected = stats.t.interval(0.95, 2, loc=np.mean(means), scale=stats.sem(means))
    assert (heart.n_patients, heart.dice) == (3, round(float(np.mean(means)), 4))
    assert heart.low == pytest.approx(expected[0], abs=1e-4)
    assert heart.high == pytest.approx(min(1.0, expected[1]), abs=1e-4)
    assert (heart.worst, heart.worst_case) == (0.6, "p2_ed")


def test_a_class_that_is_in_neither_mask_of_a_case_does_not_count_there() -> None:
    lung = summarise_cases(CASES, WEIGHTS, patient=lambda case: case[:2]).classes["lung"]
    assert (lung.n_patients, lung.dice) == (3, round((0.8 + 0.5 + 0.9) / 3, 4))


def test_groups_of_patients_are_told_apart_and_one_patient_has_no_interval() -> None:
    found = summarise_cases(
        CASES, WEIGHTS, patient=lambda case: case[:2], group=lambda p: "ill" if p < "p3" else "well"
    )
    assert found.groups["ill"].n_patients == 2
    well = found.groups["well"]
    assert (well.n_patients, well.dice, well.worst, well.worst_case) == (1, 0.85, 0.85, "p3_ed")
    assert (well.low, well.high) == (None, None)
    assert found.groups["well"].interval == ""
    assert found.n_cases == 4


def test_nothing_measured_is_an_error_and_not_an_empty_statement() -> None:
    with pytest.raises(UnknownModel, match="No case has a Dice"):
        summarise_cases({"a": {"heart": math.nan}}, WEIGHTS)


def test_a_card_keeps_what_was_measured_and_counts_its_patients(tmp_path: Path) -> None:
    found = summarise_cases(CASES, WEIGHTS, patient=lambda case: case[:2], group=lambda p: p)
    labels = {1: "heart", 2: "lung"}
    card = ModelCard("one", "One", "single", {"net": NetSpec("unet3d")}, labels, scored_on="4 volumes")
    write_card(dataclasses.replace(card, validation=found), tmp_path / "one.toml")
    read = read_card(tmp_path / "one.toml")
    assert read.validation is not None
    assert read.validation == found
    assert read == read_card(tmp_path / "one.toml")  # so that a list of models that is read again is the same list
    assert read.n_scored == 3
    assert "3 patients, 95 % interval" in str(read.validation.overall)


def test_a_card_that_tells_of_classes_that_it_does_not_have_is_refused(tmp_path: Path) -> None:
    found = summarise_cases(CASES, WEIGHTS)
    card = ModelCard("one", "One", "single", {"net": NetSpec("unet3d")}, {1: "heart"}, validation=found)
    write_card(card, tmp_path / "one.toml")
    with pytest.raises(UnknownModel, match="lung"):
        read_card(tmp_path / "one.toml")
