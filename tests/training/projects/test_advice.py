"""What would help a model most, in one sentence, by hand-made scores."""

from __future__ import annotations

import math

import pytest

from napari_fmseg.training.projects import what_would_help

EVEN = {"a": {"liver": 0.8}, "b": {"liver": 0.81}, "c": {"liver": 0.79}}
FLAT = (0.2, 0.5, 0.7, 0.79, 0.8, 0.8, 0.8, 0.8, 0.8)
RISING = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.75, 0.8)


def test_nothing_is_said_where_nothing_is_known() -> None:
    assert what_would_help({}) == ""
    assert what_would_help({"a": {}}, ()) == ""
    assert what_would_help({"a": {"liver": math.nan}}, [math.nan] * 9) == ""


def test_nothing_is_said_where_nothing_stands_out() -> None:
    assert what_would_help(EVEN, FLAT) == ""
    assert what_would_help({"a": {"liver": 0.9}, "b": {"liver": 0.3}}) == ""  # of two nobody knows which is unusual
    assert what_would_help({"a": {"liver": 0.4}}) == ""


def test_the_class_with_the_lowest_mean_is_named_with_what_the_others_have() -> None:
    scores = {case: {"liver": 0.9, "spleen": 0.8, "tumour": low} for case, low in (("a", 0.5), ("b", 0.6))}
    assert what_would_help(scores, FLAT) == (
        "More labelled cases with tumour would help most: its mean Dice is 0.55, that of the other classes 0.85."
    )


def test_of_two_classes_the_other_one_is_one() -> None:
    assert "that of the other class 0.90" in what_would_help({"a": {"liver": 0.9, "tumour": 0.5}})


def test_a_class_that_is_nowhere_does_not_count() -> None:
    assert what_would_help({"a": {"liver": 0.9, "tumour": math.nan}, "b": {"liver": 0.9}}) == ""


def test_the_worst_case_is_named_when_the_others_do_better() -> None:
    scores = {"a": {"liver": 0.9}, "b": {"liver": 0.3}, "c": {"liver": 0.8}}
    assert what_would_help(scores, FLAT) == (
        "More cases like b would help most: its Dice is 0.30, that of the others 0.85."
    )


def test_more_time_is_named_when_the_curve_still_rises_at_its_end() -> None:
    assert what_would_help({}, RISING) == (
        "More time would help most: Dice still rose by 0.10 in the last third of the training."
    )
    assert what_would_help({}, RISING[:5]) == ""  # too few points to tell


@pytest.mark.parametrize("end", [(0.7, 0.75, 0.74), (0.8, 0.7, 0.72)])
def test_a_curve_that_was_higher_before_asks_for_no_more_time(end: tuple[float, ...]) -> None:
    assert what_would_help(EVEN, (*RISING[:6], *end)) == ""


def test_what_the_mean_would_gain_most_from_is_named() -> None:
    scores = {"a": {"liver": 0.9, "tumour": 0.2}, "b": {"liver": 0.9, "tumour": 0.3}}
    assert "tumour" in what_would_help(scores, RISING)  # 0.65 / 2 against 0.10
    assert "time" in what_would_help({case: {"liver": 0.9, "tumour": 0.8} for case in "ab"}, RISING)
