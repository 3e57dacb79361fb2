"""Which version a project uses, and the words that say why."""

from __future__ import annotations

import pytest

from napari_fmseg.training.projects.promotion import TOLERANCE, is_better

OLD = {"a": {"anterior": 0.85}, "b": {"anterior": 0.83}}


def compared(scores, labels=("anterior", "posterior"), old=OLD, old_labels=("anterior",)):
    return is_better(scores, labels, old, old_labels, 1)


def test_a_new_structure_is_worth_a_small_loss_on_the_known_ones() -> None:
    in_use, why = compared({"a": {"anterior": 0.847, "posterior": 0.7}, "b": {"anterior": 0.827}})
    assert in_use
    assert "also finds posterior (Dice 0.7000)" in why
    assert "has Dice 0.8370" in why
    assert "version 1 has 0.8400" in why
    assert f"{TOLERANCE:g}" in why


def test_only_structures_that_both_know_are_compared() -> None:
    assert compared({"a": {"anterior": 0.86, "posterior": 0.2}})[0]  # whatever the new one does to the mean


def test_more_than_a_small_loss_is_too_much_and_says_so() -> None:
    in_use, why = compared({"a": {"anterior": 0.80, "posterior": 0.7}, "b": {"anterior": 0.80}})
    assert not in_use
    assert "lost more than" in why
    assert "stays in use" in why


def test_a_new_structure_that_was_not_learned_brings_no_version_into_use() -> None:
    in_use, why = compared({"a": {"anterior": 0.86, "posterior": 0.0}})
    assert not in_use
    assert "has not learned posterior" in why


def test_a_new_structure_that_nobody_measured_is_named_so() -> None:
    in_use, why = compared({"a": {"anterior": 0.85}, "b": {"anterior": 0.83}})
    assert in_use
    assert "posterior (not measured)" in why


def test_a_version_that_lost_a_structure_does_not_replace_one_that_has_it() -> None:
    in_use, why = compared({"a": {"anterior": 0.9}}, ("anterior",), old_labels=("anterior", "posterior"))
    assert not in_use
    assert "does not know posterior" in why


@pytest.mark.parametrize(("dice", "in_use"), [(0.8401, True), (0.84, False), (0.83, False)])
def test_with_the_same_structures_the_better_one_is_used(dice: float, in_use: bool) -> None:
    used, why = compared({"a": {"anterior": dice}, "b": {"anterior": dice}}, ("anterior",))
    assert used == in_use
    assert f"{dice:.4f}" in why
    assert "0.8400" in why
