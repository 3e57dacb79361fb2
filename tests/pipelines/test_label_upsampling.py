"""Labels on a fine grid are those that whole scores, zoomed in double precision, give."""

import pytest
import torch
from torch import Tensor

from napari_fmseg.core.resampling_torch import resize, slabs
from napari_fmseg.pipelines import label_upsampling
from napari_fmseg.pipelines.label_upsampling import ARGMAX, LabelRule, label_slabs, labels_on

CHOICES = [ARGMAX, LabelRule("probable", 0.3), LabelRule("last", 0.3)]
SIZES = [
    ((9, 14, 11), (40, 61, 90)),  # finer
    ((9, 14, 11), (5, 90, 11)),  # coarser, finer and the same
    ((20, 24, 22), (7, 9, 8)),  # coarser
    ((1, 6, 5), (12, 40, 37)),  # one plane
    ((9, 14, 11), (9, 14, 11)),  # the same
    ((30, 40, 44), (31, 41, 45)),  # hardly finer
]


def blobs(n_classes: int, size: tuple[int, int, int], *, smooth: bool) -> Tensor:
    """Scores of a few round structures, or of noise."""
    generator = torch.Generator().manual_seed(n_classes)
    if not smooth:
        return torch.randn(n_classes, *size, generator=generator)
    grid = torch.stack(torch.meshgrid(*(torch.linspace(0, 1, n) for n in size), indexing="ij"))
    centres = torch.rand(n_classes, 3, generator=generator)
    far = (grid[None] - centres[:, :, None, None, None]).square().sum(1).sqrt()
    scores = 4 - 16 * far
    scores[0] = 0.5
    return scores + 0.01 * torch.randn(scores.shape, generator=generator)


def of_the_whole(scores: Tensor, shape: tuple[int, int, int], choose: LabelRule) -> tuple[Tensor, Tensor]:
    """Labels by plain words, and where rounding cannot change them."""
    whole = resize(scores.double(), shape)
    if choose.how == "argmax":
        first, second = whole.topk(2, 0).values
        return whole.argmax(0), first - second > 1e-5
    clear = ((whole - choose.least).abs() > 1e-5).all(0)
    if choose.how == "probable":
        first, second = whole.topk(2, 0).values
        return torch.where(first >= choose.least, whole.argmax(0) + 1, 0), clear & (first - second > 1e-5)
    labels = torch.zeros(shape, dtype=torch.long)
    for label, score in enumerate(whole, 1):
        labels = torch.where(score >= choose.least, label, labels)
    return labels, clear


@pytest.mark.parametrize("smooth", [True, False], ids=["blobs", "noise"])
@pytest.mark.parametrize(("size", "shape"), SIZES)
@pytest.mark.parametrize("choose", CHOICES, ids=lambda choice: choice.how)
def test_labels_equal_those_of_whole_scores(choose, size, shape, smooth):
    scores = blobs(5, size, smooth=smooth)
    expected, clear = of_the_whole(scores, shape, choose)
    found = labels_on(scores, shape, choose)
    assert found.dtype == torch.uint8
    assert found.shape == shape
    assert torch.equal(found[clear].long(), expected[clear])
    assert clear.float().mean() > 0.99


@pytest.mark.parametrize("choose", CHOICES, ids=lambda choice: choice.how)
def test_slabs_for_a_graphics_card_give_the_same_labels(choose):
    scores, shape = blobs(5, (9, 14, 11), smooth=True), (40, 61, 90)
    expected, clear = of_the_whole(scores, shape, choose)
    found = [choose(label_upsampling._slab_scores(scores, shape, planes)) for planes in slabs(shape, 5, voxels=60_000)]
    assert len(found) > 10
    assert torch.equal(torch.cat(found)[clear].long(), expected[clear])


@pytest.mark.parametrize("choose", CHOICES, ids=lambda choice: choice.how)
def test_only_what_may_differ_is_computed(choose, monkeypatch):
    scores, shape = blobs(4, (24, 24, 24), smooth=True), (120, 120, 120)
    computed, candidate_classes = [], choose.candidate_classes

    def watched(self, part):
        computed.append(part.shape)
        return candidate_classes(part)

    monkeypatch.setattr(LabelRule, "candidate_classes", watched)
    n_tiles = len(list(label_slabs(scores, shape, choose))) ** 3
    assert 0 < len(computed) < n_tiles / 2


def test_the_first_of_equal_scores_wins():
    scores = torch.tensor([[1.0, 2, 2], [1, 2, 3], [1, 3, 3]])[:, None, None]
    assert ARGMAX(scores).flatten().tolist() == [0, 2, 1]
    assert LabelRule("probable", 2.0)(scores).flatten().tolist() == [0, 3, 2]


def test_256_structures_that_may_overlap_have_room():
    scores = torch.zeros(256, 2, 2, 2)
    scores[255] = 1
    for how in ("probable", "last"):
        assert LabelRule(how, 0.5)(scores).unique().tolist() == [256]
        assert labels_on(scores, (12, 12, 12), LabelRule(how, 0.5)).unique().tolist() == [256]


def test_more_than_255_classes_have_room():
    scores = torch.zeros(301, 2, 2, 2)
    scores[300] = 1
    assert labels_on(scores, (12, 12, 12)).unique().tolist() == [300]
    assert labels_on(scores[1:], (12, 12, 12), LabelRule("probable", 0.5)).unique().tolist() == [300]
    scores[299, :, :, 0] = 2
    assert labels_on(scores, (12, 12, 12)).unique().tolist() == [299, 300]
