"""Networks on slices: each slice is answered as a 2-D network would answer it."""

import pytest
import torch
from torch import nn

from napari_fmseg.core.errors import GeometryMismatch, UnknownModel
from napari_fmseg.nets import build
from napari_fmseg.nets.slicewise import inflate_2d_to_3d

SMALL = {
    "unet2d": {"widths": (4, 4, 8)},
    "fcn": {"widths": (4, 4, 4, 8, 8), "hidden": 8},
    "deeplabv3plus": {"encoder": "resnet18", "width": 2, "hidden": 8, "side": 4},
}


def made(name, **kwargs):
    if name == "deeplabv3plus":
        pytest.importorskip("monai")
    torch.manual_seed(0)
    return build(name, **SMALL[name], **kwargs).eval().requires_grad_(False)


@pytest.mark.parametrize("name", SMALL)
def test_slices_do_not_see_each_other(name):
    net, x = made(name), torch.rand(1, 1, 3, 32, 48)
    torch.testing.assert_close(net(x)[:, :, 1:2], net(x[:, :, 1:2]), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", SMALL)
def test_cubes_see_the_other_slices(name):
    net, x = made(name, dims=3), torch.rand(1, 1, 32, 32, 32)
    other = x.clone()
    other[:, :, 20] = 0
    assert not torch.equal(net(x)[:, :, 16], net(other)[:, :, 16])


def test_unet_on_a_slice_is_the_unet_of_images():
    """The oracle: the same layers of torch, written for an image."""
    net, x = made("unet2d"), torch.rand(1, 1, 1, 16, 24)

    def convs(double, image):
        for conv, norm in ((double[0], double[1]), (double[3], double[4])):
            image = nn.functional.conv2d(image, conv.weight[:, :, 0], padding=1)
            image = nn.functional.batch_norm(image, norm.running_mean, norm.running_var, norm.weight, norm.bias).relu()
        return image

    first = convs(net.down[0], x[:, :, 0])
    second = convs(net.down[1], nn.functional.max_pool2d(first, 2))
    image = convs(net.down[2], nn.functional.max_pool2d(second, 2))
    for enlarge, double, skip in zip(net.enlarge, net.up, (second, first), strict=True):
        image = nn.functional.conv_transpose2d(image, enlarge.weight[:, :, 0], enlarge.bias, stride=2)
        image = convs(double, torch.cat([skip, image], 1))
    expected = nn.functional.conv2d(image, net.last.weight[:, :, 0], net.last.bias)
    torch.testing.assert_close(net(x)[:, :, 0], expected, rtol=1e-4, atol=1e-5)


def test_thickened_layers_of_monai_give_what_they_gave_for_an_image():
    resnet = pytest.importorskip("monai.networks.nets.resnet")
    torch.manual_seed(0)
    flat = resnet.ResNet("bottleneck", [1, 1, 1, 1], [2, 4, 8, 16], spatial_dims=2, n_input_channels=1).eval()
    layers = nn.Sequential(flat.conv1, flat.bn1, flat.act, flat.maxpool, flat.layer1, flat.layer2)
    x = torch.rand(2, 1, 33, 40)
    with torch.inference_mode():
        expected = layers(x)
        found = inflate_2d_to_3d(layers)(x[:, :, None])
    torch.testing.assert_close(found[:, :, 0], expected)


@pytest.mark.parametrize("dims", [2, 3])
def test_dilated_encoder_ends_at_a_sixteenth(dims):
    net, sizes = made("deeplabv3plus", dims=dims), []
    for stage in net.stages:
        stage.register_forward_hook(lambda _, __, out: sizes.append(out.shape[4]))
    net(torch.rand(1, 1, 32, 64, 64))
    assert sizes == [16, 8, 4, 4]


def test_published_sizes_are_the_default():
    parts = {p: sum(v.numel() for v in build(p).parameters()) for p in ("unet2d", "hdenseunet")}
    # Ronneberger's 31 million; Li's about 80 million of both networks.
    assert 31.0e6 < parts["unet2d"] < 31.1e6
    assert parts["hdenseunet"] > 40e6


def test_hybrid_slices_see_one_neighbour_only():
    torch.manual_seed(0)
    net = build("hdenseunet", width=6, growth=2, growth_3d=2, blocks=(1,) * 4, blocks_3d=(1,) * 4, dropout=0.0)
    # Norms of a batch would let all slices speak; in evaluation mode only the kernels do.
    net.eval()
    x = torch.rand(1, 1, 8, 32, 32)
    scores = []
    net.score.register_forward_hook(lambda _, __, out: scores.append(out))
    other = x.clone()
    other[:, :, 4] = 0
    with torch.inference_mode():
        whole = [net(x), net(other)]
    changed = (scores[0] != scores[1]).flatten(3).any(3).any(1).any(0)
    assert changed.nonzero().flatten().tolist() == [3, 4, 5]
    assert not torch.equal(whole[0][:, :, 1], whole[1][:, :, 1])  # the 3-D part has seen it


@pytest.mark.parametrize(("name", "kwargs"), [
    ("unet2d", {"widths": (4,)}), ("unet2d", {"dims": 1}), ("fcn", {"widths": (4, 4)}),
    ("hdenseunet", {"blocks": (1,)}), ("deeplabv3plus", {"encoder": "vgg"}), ("deeplabv3plus", {"dilations": ()}),
])  # fmt: skip
def test_impossible_network_is_refused(name, kwargs):
    with pytest.raises(UnknownModel, match=r"UNet2D|FCN|DeepLab|HDenseUNet"):
        build(name, **kwargs)


def test_narrow_slice_is_refused_with_its_size():
    with pytest.raises(GeometryMismatch, match=r"8 voxels along y and x, not \(1, 7, 64\)"):
        made("fcn")(torch.rand(1, 1, 1, 7, 64))
