"""FastUNet: shapes, strides, classes, and what it computes."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from napari_fmseg.core.errors import GeometryMismatch, UnknownModel
from napari_fmseg.models.card import NetSpec
from napari_fmseg.nets import build
from napari_fmseg.nets.fastunet import _depth_to_space, _space_to_depth, fastunet_strides
from napari_fmseg.nets.traits import class_probabilities, init_weights
from napari_fmseg.training.class_growth import extend_classes


@pytest.mark.parametrize("size", [(24, 24, 24), (17, 30, 21), (5, 16, 33), (1, 8, 8)])
def test_logits_have_the_size_of_the_image_whatever_it_is(size: tuple[int, int, int]) -> None:
    net = build("fastunet", in_channels=2, n_classes=3, widths=(4, 8, 8)[:2], strides=((1, 2, 2), (2, 2, 2)))
    assert net(torch.rand(2, 2, *size)).shape == (2, 3, *size)


def test_blocks_of_voxels_become_channels_and_come_back() -> None:
    x = torch.rand(2, 3, 4, 6, 8)
    moved = _space_to_depth(x, (2, 1, 2))
    assert moved.shape == (2, 12, 2, 6, 4)
    assert torch.equal(_depth_to_space(moved, (2, 1, 2)), x)
    flat = torch.rand(1, 3, 4, 6)
    ours = _depth_to_space(_space_to_depth(flat[:, :, None], (1, 2, 2)), (1, 2, 2))[:, :, 0]
    assert torch.equal(ours, F.pixel_shuffle(F.pixel_unshuffle(flat, 2), 2))


def test_a_coarse_axis_is_not_reduced_until_the_others_are_as_coarse() -> None:
    assert fastunet_strides((48, 72, 96), (1.1, 1.2, 1.2)) == ((2, 2, 2),) * 4
    thick = fastunet_strides((12, 152, 152), (10.0, 1.5, 1.5))
    assert thick[:2] == ((1, 2, 2), (1, 2, 2))
    assert thick[3] == (2, 2, 2)
    small = fastunet_strides((6, 40, 40), (1.0, 1.0, 1.0))
    assert [step[0] for step in small] == [2, 1, 1, 1]  # three voxels are left and stay


def test_every_wrong_argument_is_refused_in_a_sentence() -> None:
    with pytest.raises(UnknownModel, match="three strides"):
        build("fastunet", in_channels=1, n_classes=2, widths=(4, 8), strides=((2, 2, 2),))
    with pytest.raises(UnknownModel, match="activation"):
        build("fastunet", in_channels=1, n_classes=2, activation="tanh")
    with pytest.raises(GeometryMismatch, match="1, z, y, x"):
        build("fastunet", in_channels=1, n_classes=2)(torch.rand(1, 2, 8, 8, 8))


def test_the_same_seed_draws_the_same_weights_and_starts_near_even_probabilities() -> None:
    nets = [build("fastunet", in_channels=1, n_classes=4) for _ in range(2)]
    for net in nets:
        init_weights(net, torch.Generator().manual_seed(3))
    for one, other in zip(nets[0].state_dict().values(), nets[1].state_dict().values(), strict=True):
        assert torch.equal(one, other)
    p = class_probabilities(nets[0], nets[0](torch.rand(1, 1, 16, 16, 16)))
    assert p.min() > 0.05
    assert torch.allclose(p.sum(1), torch.ones(1, 16, 16, 16), atol=1e-5)


def test_structures_that_may_overlap_get_a_background_of_what_is_left() -> None:
    net = build("fastunet", in_channels=1, n_classes=3, activation="sigmoid")
    out = net(torch.rand(1, 1, 16, 16, 16))
    assert out.shape[1] == 2
    p = class_probabilities(net, out)
    assert torch.allclose(p[:, 0], 1 - out.sigmoid().amax(1))
    assert torch.allclose(p[:, 1:], out.sigmoid())


def test_a_new_class_leaves_what_the_network_says_of_the_old_ones() -> None:
    kwargs = {"in_channels": 1, "n_classes": 3, "widths": (4, 8), "strides": ((2, 2, 2),) * 2}
    net = build("fastunet", **kwargs).eval()
    grown, _, how = extend_classes(NetSpec("fastunet", kwargs), net, {1: "a", 2: "b"}, ("b", "new", "a"))
    assert how.added == ("new",)
    x = torch.rand(1, 1, 16, 16, 16)
    before, after = net(x), grown.eval()(x)
    assert torch.allclose(after[:, [0, 3, 1]], before, atol=1e-6)


def test_a_second_input_stands_beside_the_image() -> None:
    net = build("fastunet", in_channels=1, n_classes=2, maps=1)
    x = torch.rand(1, 1, 16, 16, 16)
    assert net.map_channels == (1,)
    assert not torch.equal(net(x, torch.zeros_like(x)), net(x, torch.ones_like(x)))


def test_a_network_of_single_voxels_starts_from_one_of_blocks() -> None:
    blocks = build("fastunet", n_classes=3, widths=(4, 8, 8), strides=((2, 2, 2),) * 3)
    voxels = build("fastunet", n_classes=3, widths=(2, 4, 8, 8), strides=((1, 1, 1), *((2, 2, 2),) * 3))
    taken = voxels.fit_levels(blocks.state_dict())
    missing, unknown = voxels.load_state_dict(taken, strict=False)
    assert not unknown
    assert {name.split(".")[0] for name in missing} == {"first", "head", "down", "encode", "up", "decode"}
    assert all(name.split(".")[1] in ("0", "conv", "norm", "weight", "bias") for name in missing)

    features = torch.rand(1, 4, 8, 8, 8)  # from the level that both have on, they compute the same
    deep, same = [
        net.decode[i](torch.cat([net.encode[i](features), net.up[i](net.encode[i + 1](net.down[i](features)))], 1))
        for net, i in ((blocks, 0), (voxels, 1))
    ]
    assert torch.equal(deep, same)
    own = voxels.fit_levels(voxels.state_dict())
    assert all(torch.equal(own[name], weight) for name, weight in voxels.state_dict().items())
