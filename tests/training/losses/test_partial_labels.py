"""Unlabelled voxels and classes that a case was never labelled with: nothing is learned from what nobody said."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from napari_fmseg.core.errors import GeometryMismatch, InvalidRecipe
from napari_fmseg.core.events import EpochDone
from napari_fmseg.core.volume import Geometry, LabelMap, Volume
from napari_fmseg.datasets.case import IGNORE, Case, missing_in, read_case
from napari_fmseg.datasets.nnunet_raw import cases_of
from napari_fmseg.io import write_labels, write_volume
from napari_fmseg.training.data.samples import Sample, ValidationCase, target_in
from napari_fmseg.training.loop import train
from napari_fmseg.training.losses.logits import cross_entropy, dice_ce_of_logits, dice_of_logits
from napari_fmseg.training.losses.partial_labels import merge_missing, partial_loss, shares
from napari_fmseg.training.recipe import LOSSES, Augment, Recipe, StageRecipe
from napari_fmseg.training.tasks.base import make_loss
from napari_fmseg.training.tasks.phased import _first_plane, phased_task
from napari_fmseg.training.validation import dice_on_labelled_voxels

STILL = Augment(shift=0, zoom=0, rotate_deg=0, contrast=0, brightness=0, gamma=0, noise=0)
LOGIT_LOSSES = [dice_of_logits, cross_entropy, dice_ce_of_logits]


def hot(labels: torch.Tensor, n_classes: int = 3) -> torch.Tensor:
    return F.one_hot(labels, n_classes).movedim(-1, 1).float()


def drawn(seed: int = 0, size: int = 6, n_classes: int = 3) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(2, n_classes, size, size, size, generator=generator)
    return logits, hot(torch.randint(0, n_classes, (2, size, size, size), generator=generator), n_classes)


@pytest.mark.parametrize("name", [name for name in LOSSES if name != "dice+boundary"])  # which says that it cannot
def test_what_is_predicted_where_nobody_labelled_changes_no_loss_and_gets_no_gradient(name: str) -> None:
    logits, target = drawn()
    target[:, :, 2:] = 0
    p = logits.softmax(1).requires_grad_()
    value = partial_loss(make_loss(name), p, target)
    value.backward()
    other = p.detach().clone()
    other[:, :, 2:] = drawn(1)[0][:, :, 2:].softmax(1)
    torch.testing.assert_close(partial_loss(make_loss(name), other, target), value.detach())
    assert p.grad is not None
    assert (p.grad[:, :, 2:] == 0).all()
    assert p.grad[:, :, :2].any()
    # Only what is labelled counts: the same as a volume that ends where the labels end.
    torch.testing.assert_close(value.detach(), make_loss(name)(p.detach()[:, :, :2], target[:, :, :2]))


@pytest.mark.parametrize("loss", LOGIT_LOSSES, ids=lambda f: f.__name__)
def test_losses_on_logits_leave_unlabelled_voxels_out_too(loss: Any) -> None:
    logits, target = drawn()
    weight = torch.ones(2, 1, 6, 6, 6)
    weight[:, :, 2:] = 0
    cut = loss(logits[:, :, :2], target[:, :, :2])
    torch.testing.assert_close(loss(logits, target, weight), cut)
    torch.testing.assert_close(loss(logits, target, torch.ones_like(weight)), loss(logits, target))


def test_on_a_coarse_grid_what_nobody_labelled_stays_unlabelled() -> None:
    labels = torch.full((40, 8, 8), IGNORE, dtype=torch.uint8)
    labels[::10] = 0
    labels[::10, 2:6, 2:6] = 1
    target = target_in(labels, [(0.0, 40.0), (0.0, 8.0), (0.0, 8.0)], (20, 8, 8), 2)
    told = target.sum(0)[:, 4, 4] > 0
    near = [any(abs(2 * i + 0.5 - z) < 2 for z in range(0, 40, 10)) for i in range(20)]  # the kernel's reach
    assert told.tolist() == near
    label, share = shares(target[None])
    assert ((share > 0) & (share < 1)).any()
    expected = F.one_hot((labels[0] == 1).long(), 2).movedim(-1, 0).float()
    for i in torch.nonzero(told)[:, 0].tolist():
        torch.testing.assert_close(label[0, :, i], expected)  # the part that was labelled is not diluted


def test_outside_of_a_volume_labelled_in_parts_nothing_is_known() -> None:
    labels = torch.zeros(6, 6, 6, dtype=torch.uint8)
    labels[3:] = IGNORE
    target = target_in(labels, [(-3.0, 6.0), (0.0, 6.0), (0.0, 6.0)], (9, 6, 6), 2)
    assert target.sum(0)[:, 0, 0].tolist() == pytest.approx([0, 0, 0, 1, 1, 1, 0, 0, 0])
    assert target_in(labels, [(-6.0, -1.0), (0.0, 6.0), (0.0, 6.0)], (5, 6, 6), 2).sum() == 0


def test_every_head_of_a_network_leaves_out_what_nobody_labelled() -> None:
    labels = torch.zeros(32, 32, 32, dtype=torch.uint8)
    labels[8:16, 8:24, 8:24] = 1
    labels[16:] = IGNORE
    case = Sample("a", torch.rand(1, 32, 32, 32), labels)
    recipe = recipe_of(augment=STILL)
    task = phased_task(recipe.stages[0], recipe, [case], {})
    _, target = task.sample(0, np.random.default_rng(0), torch.Generator())

    class Heads(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            sizes = (32, 16, 8, 4)
            self.p = torch.nn.ParameterList(torch.rand(1, 2, n, n, n) for n in sizes)

        def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
            return tuple(p.softmax(1) for p in self.p)

    net = Heads()
    task.loss(net, [torch.zeros(1)], target[None]).backward()
    for p in net.p:
        half = p.shape[2] // 2
        assert p.grad is not None
        assert (p.grad[:, :, half:] == 0).all()
        assert p.grad[:, :, :half].any()


def recipe_of(**changes: Any) -> Recipe:
    facts = {"settings": {"consensus_grid": [32, 32, 32], "attention_grid": [32, 32, 32]}, **changes}
    stages = (StageRecipe("consensus", "snet", kwargs={"width": 4}),)
    return Recipe("m", stages, facts.pop("labels", ("organ",)), Path("runs"), phantom=(1, 1), **facts)


def negative_log(p: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
    return -(t * p.log()).sum(1).mean()


def test_background_of_a_case_without_a_class_means_background_or_that_class() -> None:
    """Two voxels by hand: p = (.5, .2, .3) on background and (.1, .7, .2) on class 1; class 2 was never labelled."""
    p = torch.tensor([[0.5, 0.2, 0.3], [0.1, 0.7, 0.2]]).T.reshape(1, 3, 1, 1, 2)
    t = torch.tensor([[1.0, 0, 0], [0, 1, 0]]).T.reshape(1, 3, 1, 1, 2)
    loss = partial_loss(negative_log, p, t, sparse=False, missing=[(2,)])
    assert loss.item() == pytest.approx(-(math.log(0.5 + 0.3) + math.log(0.7)) / 2)
    # Dice of class 1 and cross entropy, by hand, with the loss that recipes use.
    s = 0.05
    dice = (2 * 0.7 + s) / (0.2**2 + 0.7**2 + 1 + s)
    expected = (1 - dice) - (math.log(0.8) + math.log(0.7)) / 2
    found = partial_loss(make_loss("dice_ce"), p, t, sparse=False, missing=[(2,)])
    assert found.item() == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("name", LOSSES)
def test_nothing_pulls_between_background_and_a_class_that_was_not_labelled(name: str) -> None:
    logits, target = drawn()
    target = torch.cat([target[:, :1] + target[:, 2:], target[:, 1:2], torch.zeros_like(target[:, 2:])], 1)
    p = logits.softmax(1).requires_grad_()
    partial_loss(make_loss(name), p, target, missing=[(2,), ()]).backward()
    assert p.grad is not None
    torch.testing.assert_close(p.grad[0, 0], p.grad[0, 2])  # the case without class 2
    assert not torch.allclose(p.grad[1, 0], p.grad[1, 2])  # the one that was labelled with all


def test_a_missing_background_makes_no_sense() -> None:
    with pytest.raises(GeometryMismatch, match="background"):
        merge_missing(torch.rand(1, 3, 2, 2, 2), (0, 1))


def test_one_side_of_a_pair_that_was_labelled_alone_is_never_mirrored() -> None:
    pair = {"labels": ("left", "right"), "augment": Augment(flip="zx", swap=(("left", "right"),))}
    recipe = recipe_of(**pair)
    cases = [Sample("a", torch.rand(1, 32, 32, 32), torch.zeros(32, 32, 32, dtype=torch.uint8), m) for m in [(2,), ()]]
    task = phased_task(recipe.stages[0], recipe, cases, {})
    assert [task.augment_of(case).flip for case in cases] == ["z", "zx"]


def test_a_slab_for_the_edge_always_holds_a_labelled_plane() -> None:
    labels = torch.full((60, 4, 4), IGNORE, dtype=torch.uint8)
    labels[[3, 57]] = 0
    rng = np.random.default_rng(0)
    firsts = [_first_plane(labels, 7, rng) for _ in range(200)]
    assert all((labels[f : f + 7] != IGNORE).any() for f in firsts)
    assert set(firsts) == {0, 1, 2, 3, 51, 52, 53}


def case_in(folder: Path, labels: np.ndarray, name: str = "a") -> Case:
    geometry = Geometry.from_spacing(labels.shape)
    for part in ("imagesTr", "labelsTr"):
        (folder / part).mkdir(parents=True, exist_ok=True)
    image, truth = folder / "imagesTr" / f"{name}_0000.nii.gz", folder / "labelsTr" / f"{name}.nii.gz"
    write_volume(Volume((100.0 * (labels == 1)).astype(np.float32), geometry), image)
    write_labels(LabelMap(labels, geometry), truth)
    return Case(name, (image,), truth)


@pytest.mark.parametrize(("names", "ignore"), [({1: "organ", 2: "ignore"}, 0), ({1: "organ"}, 2)])
def test_the_highest_label_called_ignore_is_not_labelled(tmp_path: Path, names: dict[int, str], ignore: int) -> None:
    labels = np.zeros((4, 5, 6), np.uint8)
    labels[0], labels[1, 1] = 2, 1
    _, truth = read_case(case_in(tmp_path, labels), names, ("organ",), ignore)
    np.testing.assert_array_equal(truth.data, np.choose(labels, [0, 1, IGNORE]))


def test_dice_counts_labelled_voxels_and_labelled_classes_only() -> None:
    geometry = Geometry.from_spacing((2, 2, 2))
    truth = np.array([[[1, 1], [0, 0]], [[IGNORE, IGNORE], [IGNORE, IGNORE]]], np.uint8)
    found = np.array([[[1, 0], [0, 2]], [[1, 1], [1, 1]]], np.uint8)
    held = ValidationCase(Volume(truth.astype(np.float32), geometry), LabelMap(truth, geometry), missing=(2,))
    dice = dice_on_labelled_voxels(LabelMap(found, geometry), held, 3)
    assert dice[0] == pytest.approx(2 * 1 / (1 + 2))
    assert np.isnan(dice[1])


def test_dataset_json_may_say_which_classes_a_case_was_labelled_with(tmp_path: Path) -> None:
    for name in "ab":
        case_in(tmp_path, np.zeros((3, 3, 3), np.uint8), name)
    facts = {"labels": {"background": 0, "liver": 1, "spleen": 2}, "classes": {"b": ["spleen"]}}
    (tmp_path / "dataset.json").write_text(json.dumps(facts))
    names, cases, _ = cases_of(tmp_path)
    assert [missing_in(c, names, ("liver", "spleen")) for c in cases] == [(), (1,)]
    with pytest.raises(InvalidRecipe, match="heart"):
        missing_in(Case("c", (), None, ("heart",)), names, ("liver",))


def test_a_cube_is_learned_from_every_fourth_slice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    for i in range(4):
        labels = np.zeros((24, 24, 24), np.uint8)
        z, y, x = rng.integers(2, 10, 3)
        labels[z : z + 10, y : y + 10, x : x + 10] = 1
        case = case_in(tmp_path / "data", labels, f"c{i}")
        if i < 3:
            labels[np.arange(24) % 4 != z % 4] = 2
            write_labels(LabelMap(labels, Geometry.from_spacing(labels.shape)), case.labels)  # type: ignore[arg-type]
    facts = {"labels": {"background": 0, "cube": 1, "ignore": 2}}
    (tmp_path / "data" / "dataset.json").write_text(json.dumps(facts))
    stages = (StageRecipe("consensus", "snet", steps=30, steps_per_epoch=30, lr=5e-3, kwargs={"width": 8}),)
    settings = {"consensus_grid": [32, 32, 32], "attention_grid": [32, 32, 32]}
    recipe = Recipe("m", stages, ("cube",), tmp_path / "out", dataset=tmp_path / "data", settings=settings,
                    holdout=("c3",), device="cpu", augment=STILL)  # fmt: skip
    (done,) = (e for e in train(recipe) if isinstance(e, EpochDone))
    assert done.metrics["dice/cube"] > 0.75
