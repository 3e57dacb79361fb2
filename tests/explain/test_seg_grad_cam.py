import pytest
import torch
from torch import nn

from napari_fmseg.core.errors import GeometryMismatch, UnknownModel
from napari_fmseg.explain.seg_grad_cam import deepest_layer, seg_grad_cam
from napari_fmseg.nets import build


@pytest.fixture
def net():
    """A network whose second class is the first channel of its first layer: the image itself."""
    net = nn.Sequential(nn.Conv3d(1, 2, 1, bias=False), nn.Conv3d(2, 2, 1, bias=False))
    net[0].weight.data = torch.tensor([1.0, -1.0]).view(2, 1, 1, 1, 1)
    net[1].weight.data = torch.tensor([[0.0, 1.0], [1.0, 0.0]]).view(2, 2, 1, 1, 1)
    return net.eval().requires_grad_(False)


def test_places_that_spoke_for_the_class_are_found(net):
    x = torch.zeros(1, 1, 4, 5, 6)
    x[0, 0, 1, 2, 3], x[0, 0, 2, 2, 2] = 2, 1
    places = seg_grad_cam(net, x, channel=1, layer="0")
    torch.testing.assert_close(places, x[:, 0] / 2)


def test_places_that_spoke_against_it_are_left_out(net):
    assert not seg_grad_cam(net, torch.ones(1, 1, 4, 5, 6), channel=0, layer="0").any()


def test_region_limits_the_question():
    torch.manual_seed(0)
    net, x = build("unet3d", width=4).eval(), torch.rand(1, 1, 16, 16, 16)
    region = torch.zeros(16, 16, 16, dtype=torch.bool)
    region[:4] = True
    assert not torch.equal(seg_grad_cam(net, x, channel=1), seg_grad_cam(net, x, channel=1, region=region))


@pytest.mark.parametrize(("name", "kwargs"), [
    ("snet", {"width": 4}), ("unet3d", {"width": 4, "attention": "pam"}), ("ma3dseg", {"widths": (4, 4, 4, 4)}),
    ("baseunet", {"channels": (2, 2, 4, 4, 4)}),
])  # fmt: skip
def test_any_network_can_be_asked(name, kwargs):
    torch.manual_seed(0)
    places = seg_grad_cam(build(name, **kwargs).eval(), torch.rand(2, 1, 32, 64, 32), channel=0)
    assert places.shape == (2, 32, 64, 32)
    assert places.min() >= 0
    assert places.max() <= 1


def test_deepest_layer_is_where_the_map_is_smallest():
    net = build("unet3d", width=4).eval()
    assert deepest_layer(net, torch.rand(1, 1, 16, 16, 16)).startswith("EncoderLayer4")


def test_network_keeps_no_hook(net):
    seg_grad_cam(net, torch.ones(1, 1, 4, 5, 6), channel=1)
    assert not any(part._forward_hooks for part in net.modules())


def test_unknown_layer_and_channel_are_refused(net):
    x = torch.ones(1, 1, 4, 5, 6)
    with pytest.raises(UnknownModel, match="no layer 'deep'"):
        seg_grad_cam(net, x, channel=1, layer="deep")
    with pytest.raises(UnknownModel, match="channels 0 to 1, not 2"):
        seg_grad_cam(net, x, channel=2)
    with pytest.raises(GeometryMismatch, match="The region"):
        seg_grad_cam(net, x, channel=1, region=torch.ones(2, 2, 2))


def test_log_odds_of_a_probability_are_the_logits_of_two_classes():
    torch.manual_seed(0)
    net, x = build("unet3d", width=4).eval().double(), torch.rand(1, 1, 16, 16, 16, dtype=torch.float64)
    sure = nn.Sequential(net, nn.Softmax(1))
    region = torch.zeros(16, 16, 16, dtype=torch.bool)
    region[:4] = True  # the mean over all of a normalised map says nothing
    how = {"channel": 1, "region": region, "layer": "0.EncoderLayer4"}
    both = nn.Sequential(net, nn.Conv3d(2, 2, 1, bias=False)).double()
    both[1].weight.data = torch.tensor([[1.0, -1.0], [-1.0, 1.0]]).double().view(2, 2, 1, 1, 1)  # one less the other
    torch.testing.assert_close(seg_grad_cam(sure, x, probabilities=True, **how), seg_grad_cam(both, x, **how))
