"""Copy-paste between labelled and unlabelled samples."""

from __future__ import annotations

import numpy as np
import torch

from napari_fmseg.training.data.copy_paste import exchange_boxes, paste_unlabelled, random_box


def test_a_box_is_two_thirds_of_each_side_and_lies_inside() -> None:
    rng = np.random.default_rng(0)
    for _ in range(50):
        box = random_box((9, 12, 2), rng)
        assert [s.stop - s.start for s in box] == [6, 8, 1]
        assert all(s.start >= 0 and s.stop <= n for s, n in zip(box, (9, 12, 2), strict=True))


def test_labelled_and_unlabelled_voxels_carry_their_own_targets_in_both_directions() -> None:
    shape = (6, 6, 6)
    labelled = [([torch.ones(1, *shape)], torch.stack([torch.zeros(shape), torch.ones(shape)])) for _ in range(2)]
    unlabelled = [[torch.zeros(1, *shape)] for _ in range(2)]
    guesses = torch.full((2, 2, *shape), 0.5)
    mixed = paste_unlabelled(labelled, unlabelled, guesses, 0.4, 0, np.random.default_rng(1))
    shares = []
    for (x,), target in mixed:
        told = x[0] == 1
        assert torch.equal(target[1], torch.where(told, 1.0, 0.2))
        assert torch.equal(target.sum(0), torch.where(told, 1.0, 0.4))
        shares.append(int(told.sum()))
    assert sorted(shares) == [64, 216 - 64]
    turned = paste_unlabelled(labelled, unlabelled, guesses, 0.4, 1, np.random.default_rng(1))
    assert [int((x == 1).sum()) for (x,), _ in turned] == shares[::-1]


def test_boxes_are_exchanged_between_labelled_samples_with_their_labels() -> None:
    shape = (6, 6, 6)
    drawn = [([torch.full((1, *shape), float(i))], torch.full((1, *shape), float(i))) for i in (1, 2)]
    mixed = exchange_boxes(drawn, np.random.default_rng(0))
    for i, ((x,), target) in enumerate(mixed, 1):
        assert torch.equal(x, target)
        assert int((x == 3 - i).sum()) == 64
    assert torch.equal(drawn[0][0][0], torch.ones(1, *shape))
