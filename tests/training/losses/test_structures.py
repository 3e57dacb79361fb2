import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn.functional import binary_cross_entropy

from napari_fmseg.core.errors import GeometryMismatch, InvalidRecipe
from napari_fmseg.training.losses.structures import (
    STRUCTURE_LOSSES,
    StructureLoss,
    structure_boundary,
    structure_dice,
    structure_focal,
)

PUBLISHED = json.loads((Path(__file__).parents[2] / "nets" / "golden" / "effseg_losses.json").read_text())
NAMES = {"dice": "dice", "dice+bce": "dice_bce", "dice+focal": "dice_focal", "dice+topk": "dice_topk"}


def normal(seed, shape):
    return np.random.Generator(np.random.PCG64(seed)).standard_normal(shape).astype(np.float32)


@pytest.fixture
def pair():
    """Logits and targets of four structures that overlap."""
    logits, target = normal(11, (2, 4, 6, 8, 10)), (normal(12, (2, 4, 6, 8, 10)) > 0.6).astype(np.float32)
    assert logits.sum(dtype=np.float64) == pytest.approx(PUBLISHED["input_checks"]["logits_sum"])
    assert target.sum() == PUBLISHED["input_checks"]["target_sum"]
    return torch.from_numpy(logits), torch.from_numpy(target)


@pytest.mark.parametrize("activation", ["sigmoid", "softmax"])
@pytest.mark.parametrize("kind", NAMES)
def test_loss_has_the_published_value(kind, activation, pair):
    loss = StructureLoss(kind, activation, hardest=(0.3, 0.3, 0.3, 0.1))(*pair)
    assert loss.item() == pytest.approx(PUBLISHED["values"][NAMES[kind]][activation]["mean"], abs=1e-5, rel=1e-5)


def test_focal_term_per_structure_has_the_published_value(pair):
    loss = structure_focal(pair[0].sigmoid(), pair[1], per_class=True)
    assert loss.item() == pytest.approx(PUBLISHED["values"]["focal_per_class"]["sigmoid"]["mean"], abs=1e-5)


@pytest.mark.parametrize("kind", STRUCTURE_LOSSES)
def test_unlabelled_voxels_have_no_influence(kind, pair):
    logits, target = pair
    weight = torch.ones(2, 1, 6, 8, 10)
    weight[..., :3] = 0
    altered = logits.clone()
    altered[..., :3] -= 9  # keeps the hard voxels of the boundary loss where they are: all of them are outside
    target = target * weight
    if kind == "dice+boundary":
        logits = logits.clone()
        logits[..., :3] = -1
    loss = StructureLoss(kind)
    torch.testing.assert_close(loss(altered, target, weight), loss(logits, target, weight))


@pytest.mark.parametrize("kind", STRUCTURE_LOSSES)
def test_weight_of_one_everywhere_changes_nothing(kind, pair):
    loss = StructureLoss(kind)
    torch.testing.assert_close(loss(*pair, torch.ones(2, 1, 6, 8, 10)), loss(*pair))


@pytest.mark.parametrize("kind", STRUCTURE_LOSSES)
def test_descent_finds_the_target(kind, pair):
    target = pair[1]
    logits = torch.zeros_like(target, requires_grad=True)
    optimiser = torch.optim.Adam([logits], lr=0.5)
    for _ in range(30):
        optimiser.zero_grad()
        StructureLoss(kind)(logits, target).backward()
        optimiser.step()
    assert (logits > 0).eq(target > 0).float().mean() > 0.95


def test_boundary_loss_counts_errors_by_their_depth():
    target = torch.zeros(1, 1, 7, 7, 7)
    target[..., 1:6, 1:6, 1:6] = 1
    shallow, deep = target.clone(), target.clone()
    shallow[..., 1, 1, 1] = 0.4
    deep[..., 3, 3, 3] = 0.4
    cost = 0.36 / 343
    # Depth 1 at the corner. The centre has depth 3 in the target; in the prediction it is outside.
    assert structure_boundary(shallow, target).item() == pytest.approx(cost * 1)
    assert structure_boundary(deep, target).item() == pytest.approx(cost * 9)


def test_boundary_loss_of_a_full_mask_is_finite():
    full = torch.ones(1, 1, 4, 4, 4)
    assert structure_boundary(full * 0.9, full).item() == 0


def test_dice_of_the_truth_is_nothing():
    target = torch.ones(1, 2, 4, 4, 4)
    assert structure_dice(target, target).item() == pytest.approx(0, abs=1e-6)


def test_focal_term_multiplies_by_the_averaged_entropy(pair):
    p, t = pair[0].sigmoid().clamp(1e-4, 1 - 1e-4), pair[1]
    hard = torch.where(t > 0, 0.5 * (1 - p) ** 2, 0.5 * p**2).sum() / t.sum()
    torch.testing.assert_close(structure_focal(p, t), binary_cross_entropy(p, t) * hard)


def test_unknown_loss_is_refused_with_the_known_ones():
    with pytest.raises(InvalidRecipe, match=r"dice\+topk"):
        StructureLoss("jaccard")


def test_wrong_share_is_refused(pair):
    with pytest.raises(InvalidRecipe, match="per structure"):
        StructureLoss("dice+topk", hardest=(0.3, 0.3))(*pair)


def test_target_on_another_grid_is_refused(pair):
    with pytest.raises(GeometryMismatch, match="without the background"):
        StructureLoss()(pair[0], pair[1][:, :3])
