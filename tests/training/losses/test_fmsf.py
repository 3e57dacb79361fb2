import json
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from napari_fmseg.core.errors import GeometryMismatch
from napari_fmseg.training.losses.fmsf import (
    AttnLoss,
    AttnLossV2,
    DeepSupervision,
    DiceCELoss,
    DiceLoss,
    JaccardLoss,
    TverskyLoss,
    attn_dice,
    deep_supervision_weights,
    dice,
)

GOLDEN = json.loads((Path(__file__).parents[2] / "nets" / "golden" / "fmsf_losses.json").read_text())
ALL = [AttnLoss(), AttnLossV2(), TverskyLoss(), DiceLoss(), JaccardLoss(), dice, attn_dice]


def rng(seed):
    return np.random.Generator(np.random.PCG64(seed))


def one_hot(labels, n_classes):
    return torch.nn.functional.one_hot(labels, n_classes).movedim(-1, 1).float()


def golden_case(n_classes, kind):
    shape = (2, n_classes, 12, 14, 16)
    normal = {seed: torch.from_numpy(rng(seed).standard_normal(shape).astype(np.float32)) for seed in (11, 13)}
    if kind == "soft":
        return (2 * normal[11]).softmax(1), (3 * normal[13]).softmax(1)
    drawn = np.float32(n_classes) * rng(12).random((2, 12, 14, 16)).astype(np.float32)
    return (2 * normal[11]).softmax(1), one_hot(torch.from_numpy(drawn).long().clamp(max=n_classes - 1), n_classes)


@pytest.mark.parametrize("kind", ["hard", "soft"])
@pytest.mark.parametrize("n_classes", [2, 14])
def test_losses_are_the_published_ones(n_classes, kind):
    p, t = golden_case(n_classes, kind)
    ours = {
        "attn_loss_0.1": AttnLoss(0.1)(p, t).item(),
        "attn_loss_0.4": AttnLoss(0.4)(p, t).item(),
        "attn_loss_v2_0.1_1": AttnLossV2(0.1, 1)(p, t).item(),
        "attn_loss_v2_1_1": AttnLossV2(1, 1)(p, t).item(),
        "tversky_loss": TverskyLoss()(p, t).item(),
        "dice_loss": DiceLoss()(p, t).item(),
        "jaccard_loss": JaccardLoss()(p, t).item(),
        "dice": dice(p, t).tolist(),
        "attn_dice": attn_dice(p, t).tolist(),
    }
    expected = GOLDEN["values"][f"classes_{n_classes}"][kind]
    if kind == "hard":
        ours["dice_of_argmax"] = attn_dice(one_hot(p.argmax(1), n_classes), t).tolist()
    assert ours.keys() == expected.keys()
    for name, value in ours.items():
        assert value == pytest.approx(expected[name], rel=1e-5, abs=1e-5), name


def masks(values):
    return st.lists(values, min_size=8, max_size=8).map(
        lambda v: torch.tensor(v, dtype=torch.float64).reshape(1, 1, 2, 2, 2)
    )


@given(masks(st.sampled_from([0.0, 1.0])), masks(st.sampled_from([0.0, 1.0])))
def test_attn_dice_equals_dice_on_masks_of_0_and_1(p, t):
    assert torch.equal(attn_dice(p, t), dice(p, t))


@given(masks(st.integers(0, 16).map(lambda k: k / 16)), masks(st.integers(0, 16).map(lambda k: k / 16)))
def test_attn_dice_is_greater_on_fractional_masks_and_never_above_1(p, t):
    fractional = any(((m > 0) & (m < 1)).any() for m in (p, t))
    ours, usual = attn_dice(p, t).item(), dice(p, t).item()
    assert ours > usual if fractional else ours == usual
    assert ours <= 1
    assert (ours == 1) == torch.equal(p, t)


@pytest.mark.parametrize("loss", ALL, ids=lambda f: getattr(f, "__name__", type(f).__name__))
def test_voxels_of_weight_0_have_no_influence(loss):
    p, t = golden_case(2, "hard")
    weight = torch.ones(2, 1, 12, 14, 16)
    weight[:, :, 6:] = 0
    scrambled = p.clone()
    scrambled[:, :, 6:] = torch.rand(scrambled[:, :, 6:].shape, generator=torch.Generator().manual_seed(0))
    cut = loss(p[:, :, :6], t[:, :, :6])
    torch.testing.assert_close(loss(p, t, weight), cut)
    torch.testing.assert_close(loss(scrambled, t, weight), cut)
    torch.testing.assert_close(loss(p, t, torch.ones_like(weight)), loss(p, t))


@pytest.mark.parametrize("loss", ALL, ids=lambda f: getattr(f, "__name__", type(f).__name__))
def test_volume_without_any_label_gives_a_finite_value_and_gradient(loss):
    p, t = golden_case(2, "hard")
    p.requires_grad_()
    value = loss(p, t, torch.zeros(2, 1, 12, 14, 16)).sum()
    value.backward()
    assert value.isfinite()
    assert p.grad.isfinite().all()


@pytest.mark.parametrize("loss", [AttnLoss(), AttnLossV2(), TverskyLoss(), DiceLoss(), JaccardLoss()],
                         ids=lambda f: type(f).__name__)  # fmt: skip
def test_loss_falls_towards_the_truth(loss):
    _, t = golden_case(2, "hard")
    logits = torch.zeros_like(t, requires_grad=True)
    start = loss(logits.softmax(1), t)
    start.backward()
    assert loss((logits - 1e3 * logits.grad).softmax(1), t) < start


def test_loss_of_half_precision_is_computed_in_float32():
    p, t = golden_case(2, "hard")
    half = p.to(torch.bfloat16)
    assert AttnLoss()(half, t).dtype == torch.float32
    torch.testing.assert_close(AttnLoss()(half, t), AttnLoss()(half.float(), t))


def test_deep_supervision_adds_the_heads_with_the_published_weights():
    assert deep_supervision_weights() == pytest.approx((1, 0.770270, 0.620627, 0.548349), abs=1e-6)
    p, t = golden_case(2, "hard")
    expected = sum(w * TverskyLoss()(h, t) for w, h in zip(deep_supervision_weights(), [p, t, p, t], strict=True))
    torch.testing.assert_close(DeepSupervision(TverskyLoss())([p, t, p, t], t), expected)


def test_target_on_another_grid_is_refused():
    p, t = golden_case(2, "hard")
    with pytest.raises(GeometryMismatch, match="one-hot"):
        AttnLoss()(p, t.argmax(1, keepdim=True))
    with pytest.raises(GeometryMismatch, match="one channel"):
        AttnLoss()(p, t, torch.ones(2, 2, 12, 14, 16))


def test_a_small_class_weighs_more_where_the_loss_is_balanced_by_class() -> None:
    truth = torch.zeros(1, 8, 8, 8, dtype=torch.long)
    truth[:, 2:7, 2:7, 2:7] = 1  # an organ
    truth[:, 3, 3, 3:5] = 2  # a small tumour in it
    target = torch.nn.functional.one_hot(truth, 3).movedim(-1, 1).float()
    missed = target.clone() * 0.9 + 0.05
    missed[:, 1:] = torch.where(truth[:, None] == 2, torch.tensor([0.9, 0.05]).view(1, 2, 1, 1, 1), missed[:, 1:])

    def cost(**kind: bool) -> float:
        loss = DiceCELoss(**kind)
        return float(loss(missed, target) - loss(target * 0.9 + 0.05, target))

    assert cost(by_class=True) > 2 * cost(balanced=True) > 0
