"""The fast loss: its value and its gradient against the formula in autograd."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from napari_fmseg.training.losses.partial_labels import partial_loss
from napari_fmseg.training.losses.soft_dice_ce import SoftDiceCELoss


def by_formula(p: Tensor, t: Tensor, *, by_class: bool) -> Tensor:
    share = t.sum(1, keepdim=True)
    both, union = (p * t).sum((2, 3, 4)), (p * share).sum((2, 3, 4)) + t.sum((2, 3, 4))
    weight = torch.ones(p.shape[1], dtype=p.dtype)
    if by_class:
        count = t.sum((0, 2, 3, 4))
        weight = (count[0] / count.clamp_min(1)).pow(0.75).clamp(1, 500)
    weight = weight[None, :, None, None, None]
    dice = ((2 * both + 1) / (union + 1))[:, 1:]
    return (1 - dice).mean() - (weight * t * p.log()).sum() / (weight * t).sum()


@pytest.mark.parametrize("by_class", [False, True])
def test_value_and_gradient_are_those_of_the_formula(by_class: bool) -> None:
    torch.manual_seed(0)
    logits = torch.randn(2, 3, 4, 5, 6, dtype=torch.double, requires_grad=True)
    target = torch.rand(2, 3, 4, 5, 6, dtype=torch.double).softmax(1) * torch.rand(2, 1, 4, 5, 6, dtype=torch.double)
    theirs = by_formula(logits.softmax(1), target, by_class=by_class)
    ours = SoftDiceCELoss(by_class)(logits.softmax(1), target)
    assert ours.item() == pytest.approx(theirs.item(), rel=1e-5)
    (mine,), (its,) = (torch.autograd.grad(loss, logits) for loss in (ours, theirs))
    assert torch.allclose(mine, its, atol=1e-6)


def test_a_class_of_a_single_voxel_weighs_at_most_500_times_as_much() -> None:
    torch.manual_seed(0)
    logits = torch.randn(1, 2, 20, 20, 25, dtype=torch.double)
    target = torch.zeros(1, 2, 20, 20, 25, dtype=torch.double)
    target[:, 0] = 1
    target[0, :, 3, 3, 3] = torch.tensor([0.0, 1.0])
    assert 9999**0.75 > 900  # what it would weigh
    theirs = by_formula(logits.softmax(1), target, by_class=True)
    assert SoftDiceCELoss(True)(logits.softmax(1), target).item() == pytest.approx(theirs.item(), rel=1e-5)


def test_unlabelled_voxels_have_no_influence() -> None:
    torch.manual_seed(0)
    p = torch.rand(1, 3, 4, 4, 4).softmax(1).requires_grad_()
    target = torch.zeros(1, 3, 4, 4, 4)
    target[:, 1, :2] = 1
    loss = partial_loss(SoftDiceCELoss(), p, target)
    (slope,) = torch.autograd.grad(loss, p)
    assert (slope[:, :, 2:] == 0).all()
    assert (slope[:, :, :2] != 0).any()
    with torch.no_grad():
        p[:, :, 2:] = 1 / 3
    assert partial_loss(SoftDiceCELoss(), p, target).item() == pytest.approx(loss.item(), rel=1e-6)


def test_a_certain_and_wrong_answer_costs_much_and_stays_finite() -> None:
    p = torch.zeros(1, 2, 2, 2, 2)
    p[:, 1] = 1
    p.requires_grad_()
    target = torch.zeros(1, 2, 2, 2, 2)
    target[:, 0] = 1
    loss = SoftDiceCELoss()(p, target)
    assert 50 < loss.item() < 100
    (slope,) = torch.autograd.grad(loss, p)
    assert torch.isfinite(slope).all()


def test_class_weights_fade_to_none() -> None:
    torch.manual_seed(0)
    p = torch.rand(1, 3, 4, 4, 4).softmax(1)
    target = torch.zeros(1, 3, 4, 4, 4)
    target[:, 0], target[:, 0, 0, 0, 0], target[:, 2, 0, 0, 0] = 1, 0, 1
    weighted, plain = SoftDiceCELoss(by_class=True), SoftDiceCELoss()
    values = []
    for emphasis in (1.0, 0.5, 0.0):
        weighted.emphasis = emphasis
        values.append(weighted(p, target).item())
    assert len(set(values)) == 3
    assert values[-1] == pytest.approx(plain(p, target).item(), rel=1e-6)
