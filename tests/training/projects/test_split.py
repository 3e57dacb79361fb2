"""The locked split: nothing that validates was ever learned from, however a project grows, is renamed or copied."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from napari_fmseg.core.errors import FmsegError
from napari_fmseg.core.volume import Geometry, LabelMap, Volume
from napari_fmseg.datasets.projects.locked_split import HELD_OUT, TRAINING, assign_roles, is_locked, n_held_out
from napari_fmseg.training.projects import (
    LabelOptions,
    add_case,
    add_nameless,
    image_hash,
    init_project,
    label_case,
    open_project,
    scan_all,
    start_run,
    training_plan,
)

IDS = st.integers(0, 40).map(lambda i: f"{(i * 2654435761) % 2**32:08x}")  # as far from their order as hashes are
STEP = st.tuples(st.sampled_from(["label", "label", "label", "remove", "learn"]), st.sets(IDS, max_size=6))


@settings(max_examples=80, deadline=None)
@given(st.lists(STEP, max_size=25))
def test_roles_never_change_and_what_was_learned_never_validates(steps):
    ledger: dict[str, str] = {}
    labelled: set[str] = set()
    learned: set[str] = set()
    for what, images in steps:
        before = dict(ledger)
        if what == "label":
            labelled |= images
            ledger = assign_roles(ledger, labelled)
        elif what == "remove":
            labelled -= images
            ledger = assign_roles(ledger, labelled)
        else:
            training = {image for image in labelled if ledger.get(image) != HELD_OUT}
            learned |= training
            ledger = assign_roles(ledger, labelled, learned=training)
        assert before.items() <= ledger.items()
        held = {image for image in labelled if ledger.get(image) == HELD_OUT}
        assert not held & learned
        assert {image for image, role in ledger.items() if role == HELD_OUT}.isdisjoint(learned)
        if len(labelled) >= 4:
            assert labelled <= ledger.keys()
            assert held or labelled <= learned | {i for i in labelled if before.get(i) == TRAINING}


@pytest.mark.parametrize(("n", "held"), [(0, 0), (1, 0), (3, 0), (4, 1), (9, 1), (10, 2), (50, 10)])
def test_one_in_five_is_held_out_and_at_least_one_of_four(n, held):
    assert n_held_out(n) == held
    images = [f"{i:x}" for i in range(n)]
    assert sum(role == HELD_OUT for role in assign_roles({}, images).values()) == held


def test_the_lists_of_a_data_set_are_obeyed_at_first_sight_only():
    images = [f"{i:x}" for i in range(8)]
    roles = assign_roles({}, images, announced=["3", "5"])
    assert {image for image, role in roles.items() if role == HELD_OUT} == {"3", "5"}
    assert assign_roles(roles, images, announced=["1"]) == roles


GRID = Geometry.from_spacing((2, 3, 4))


def picture(seed: int) -> Volume:
    return Volume(np.random.default_rng(seed).normal(size=GRID.shape).astype(np.float32), GRID)


def marks(value: int = 1) -> LabelMap:
    data = np.zeros(GRID.shape, np.uint8)
    data[0] = value
    return LabelMap(data, GRID)


ACTIONS = st.lists(
    st.tuples(
        st.sampled_from(["add", "add", "add", "again", "rename", "relabel", "copy", "train", "forget"]),
        st.integers(0, 99),
    ),
    min_size=4,
    max_size=14,
)


@settings(max_examples=6, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(ACTIONS)
def test_a_project_on_disk_never_leaks_whatever_is_done_to_it(actions):
    with tempfile.TemporaryDirectory() as place:
        project = init_project(Path(place) / "p0", ("liver",))
        ever_learned: set[str] = set()
        for count, (what, pick) in enumerate(actions):
            names = project.labelled
            name = names[pick % len(names)] if names else ""
            if what == "add" or not names:
                project = add_case(project, f"n{count}", picture(count), marks())
            elif what == "again":
                volume = picture(int(name.split("-")[0][1:]))
                project = add_case(project, f"{name.split('-')[0]}-{count}", volume, marks(), again=True)
            elif what == "rename":
                new = f"{name.split('-')[0]}-{count}"
                (project.folder / "imagesTr" / f"{name}_0000.nii.gz").rename(
                    project.folder / "imagesTr" / f"{new}_0000.nii.gz"
                )
                (project.folder / "labelsTr" / f"{name}.nii.gz").rename(project.folder / "labelsTr" / f"{new}.nii.gz")
            elif what == "relabel":
                project = label_case(project, name, marks(0), LabelOptions(unlabelled="nothing"))
            elif what == "copy":
                project = open_project(shutil.copytree(project.folder, Path(place) / f"p{count}"))
            elif what == "forget":  # everything that is known of the cases, but not the split
                (project.folder / "fmseg" / "project.json").unlink()
            project = scan_all(open_project(project.folder))
            plan = training_plan(project) if project.labelled else None
            if plan is None:
                continue
            held = {plan.images[case.name] for case in plan.validation}
            training = {plan.images[case.name] for case in plan.training}
            assert not held & training
            assert not held & ever_learned
            for fold in plan.folds:
                assert not {plan.images[c.name] for c in fold.training} & {plan.images[c.name] for c in fold.validation}
            if what == "train":
                project = start_run(project, plan).project
                ever_learned |= training


class Memory:
    """A model that knows by heart what it was trained on, and guesses elsewhere: Dice 1 and 0.5."""

    def __init__(self, known: frozenset[str] = frozenset()) -> None:
        self.known = known

    def trained(self, images: set[str]) -> Memory:
        return Memory(self.known | images)  # it starts from the weights of before, as retraining does

    def dice(self, images: set[str]) -> float:
        return float(np.mean([1.0 if image in self.known else 0.5 for image in images]))


def test_a_split_drawn_anew_at_each_retraining_leaks_and_the_locked_one_does_not(tmp_path):
    """As reported in MONAILabel #1752: the best model is kept, and former validation cases come into training."""
    rng = np.random.default_rng(0)
    naive, ours = Memory(), Memory()
    naive_leaks, naive_dice, our_dice, leaks = [], [], [], []
    project = init_project(tmp_path / "p", ("liver",))
    for round_ in range(5):
        for i in range(4 if round_ == 0 else 2):
            project = add_case(project, f"r{round_}-{i}", picture(100 * round_ + i), marks())
        images = sorted(project.record(name).image for name in project.labelled)
        held = set(rng.permutation(images)[: n_held_out(len(images))])
        naive_leaks.append(len(held & naive.known))
        naive = naive.trained(set(images) - held)
        naive_dice.append(naive.dice(held))

        plan = training_plan(project)
        validation = {plan.images[case.name] for case in plan.validation}
        leaks.append(len(validation & ours.known))
        project = start_run(project, plan).project
        ours = ours.trained({plan.images[case.name] for case in plan.training})
        our_dice.append(ours.dice(validation))
    assert sum(naive_leaks) > 0
    assert max(naive_dice) > 0.5  # a Dice that the naive model does not have on anything new
    assert leaks == [0] * 5
    assert our_dice == [0.5] * 5


def test_few_cases_are_left_out_in_turn_until_a_fourth_one_locks_the_split(tmp_path):
    project = init_project(tmp_path / "p", ("liver",))
    project = add_case(project, "a", picture(0), marks())
    plan = training_plan(project)
    assert (len(plan.training), plan.validation, plan.folds) == (1, (), ())
    assert "Label a second one" in plan.note
    for i, name in enumerate("bc", 1):
        project = add_case(project, name, picture(i), marks())
    plan = training_plan(project)
    assert [[c.name for c in fold.validation] for fold in plan.folds] == [["a"], ["b"], ["c"]]
    assert [[c.name for c in fold.training] for fold in plan.folds] == [["b", "c"], ["a", "c"], ["a", "b"]]
    assert project.roles == {}
    project = start_run(project, plan).project  # all three are learned from now on
    assert set(project.roles.values()) == {TRAINING}
    project = add_case(project, "d", picture(3), marks())
    plan = training_plan(project)
    assert ([c.name for c in plan.validation], plan.folds) == (["d"], ())
    assert [c.name for c in plan.training] == ["a", "b", "c"]


def test_a_plan_from_before_the_split_was_locked_is_refused(tmp_path):
    project = init_project(tmp_path / "p", ("liver",))
    first, *others, last = sorted((picture(i) for i in range(4)), key=image_hash)
    for i, volume in enumerate([first, *others]):
        project = add_case(project, f"c{i}", volume, marks())
    plan = training_plan(project)
    project = add_case(project, "c3", last, marks())  # now one of the four is held out
    assert project.role("c0") == HELD_OUT
    with pytest.raises(FmsegError, match="new plan"):
        start_run(project, plan)


def test_two_who_write_at_once_lose_nothing(tmp_path):
    from concurrent.futures import ThreadPoolExecutor

    project = init_project(tmp_path / "p", ("liver",))
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda i: add_case(project, f"c{i}", picture(i), marks()), range(12)))
    found = open_project(project.folder)
    assert len(found.labelled) == 12
    assert is_locked(found.roles, found.roles)
    assert len(found.roles) == 12


def test_several_who_add_without_a_name_at_once_get_one_each(tmp_path):
    from concurrent.futures import ThreadPoolExecutor

    project = init_project(tmp_path / "p", ("liver",))
    with ThreadPoolExecutor(4) as pool:
        names = list(pool.map(lambda i: add_nameless(project, picture(i), marks())[1], range(8)))
    assert sorted(names) == [f"case-{i:03d}" for i in range(1, 9)]
    found = open_project(project.folder)
    assert [found.record(name).image for name in names] == [image_hash(picture(i)) for i in range(8)]
