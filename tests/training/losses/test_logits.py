import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch

from napari_fmseg.core.errors import GeometryMismatch, InvalidRecipe
from napari_fmseg.training.losses.logits import cross_entropy, deeply_supervised, dice_ce_of_logits, dice_of_logits
from napari_fmseg.training.optimisation import rate_of
from napari_fmseg.training.recipe import StageRecipe

SHARED = Path(os.environ.get("FMSEG_SHARED", Path(__file__).parents[3].parent / "shared")) / "golden"


def published(name):
    if not SHARED.is_dir():
        pytest.skip(f"the golden vectors are not beside the project ({SHARED})")
    return json.loads((SHARED / name).read_text())


def rng(seed):
    return np.random.Generator(np.random.PCG64(seed))


def one_hot(labels, n_classes=3):
    return torch.nn.functional.one_hot(labels, n_classes).movedim(-1, 1).float()


@pytest.fixture
def case():
    seeds = zip((31, 32, 33, 34), (16, 8, 4, 2), strict=True)
    heads = [torch.from_numpy(rng(s).standard_normal((2, 3, n, n, n)).astype(np.float32)) for s, n in seeds]
    return heads, one_hot(torch.from_numpy(rng(41).integers(0, 3, (2, 16, 16, 16))))


@pytest.mark.real
def test_losses_are_the_published_ones(case):
    facts, (heads, target) = published("misfm_losses.json"), case
    np.testing.assert_allclose([h.double().sum() for h in heads], facts["input_checks"]["pyramid_sums"], rtol=1e-5)
    values, deep = facts["values"], facts["values"]["deep_supervision"]
    ours = {
        "dice": dice_of_logits(heads[0], target),
        "cross_entropy": cross_entropy(heads[0], target),
        "combined": dice_ce_of_logits(heads[0], target),
    }
    for name, value in ours.items():
        assert value.item() == pytest.approx(values[name], abs=1e-5), name
    ways = {"upsampled_prediction": "upsampled", "interpolated_target": "interpolated", "pooled_target": "pooled"}
    for name, how in ways.items():
        ours = deeply_supervised(dice_ce_of_logits, heads, target, how=how)
        assert ours.item() == pytest.approx(deep[name], abs=1e-5)
    ours = deeply_supervised(dice_ce_of_logits, heads, target, (1, 0.5, 0.25, 0.25))
    assert ours.item() == pytest.approx(deep["pooled_target_weights_1_.5_.25_.25"], abs=1e-5)


@pytest.mark.real
def test_polynomial_rate_is_the_published_one():
    facts = published("misfm_schedule.json")
    stage = StageRecipe("net", "fmunet", steps=6000, steps_per_epoch=250, schedule="polynomial")
    ours = [1e-3 * rate_of(stage, (250 * k + within) / 6000) for k in range(24) for within in (0, 249)]
    np.testing.assert_allclose(ours[::2], facts["values"][:-1], rtol=1e-6, atol=1e-12)
    assert ours[1::2] == ours[::2]
    assert rate_of(stage, 1.0) == 0


def test_saturated_logits_leave_a_finite_loss_and_gradient(case):
    logits = (1e6 * case[0][0]).requires_grad_()
    loss = dice_ce_of_logits(logits, case[1])
    loss.backward()
    assert loss.isfinite()
    assert logits.grad.isfinite().all()


def test_perfect_logits_cost_nothing(case):
    assert dice_ce_of_logits(50 * case[1], case[1]).item() == pytest.approx(0, abs=1e-6)


def test_what_does_not_fit_is_refused(case):
    heads, target = case
    with pytest.raises(GeometryMismatch, match="one-hot"):
        dice_of_logits(heads[1], target)
    with pytest.raises(InvalidRecipe, match="'nearest'"):
        deeply_supervised(dice_of_logits, heads, target, how="nearest")
    with pytest.raises(InvalidRecipe, match="with 1"):
        deeply_supervised(dice_of_logits, heads, target, (1.0,))
