"""A network whose layers were exchanged for fast ones on a CPU gives what it gave."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from napari_fmseg.nets import build
from napari_fmseg.nets.layers.blocks import join, join_maps
from napari_fmseg.nets.layers.ux_block import DXBlock, UXBlock
from napari_fmseg.nets.runtime.fast_layers import use_fast_layers
from napari_fmseg.nets.runtime.prepare import prepare
from napari_fmseg.nets.traits import init_weights

LAYERS = {
    "wide convolution": nn.Conv3d(16, 20, 3, padding=1),
    "wide convolution without bias": nn.Conv3d(16, 16, 3, padding=1, bias=False),
    "stride": nn.Conv3d(16, 6, 3, stride=(1, 2, 2), padding=1),
    "dilation": nn.Conv3d(16, 16, 3, padding=2, dilation=2),
    "dilation that keeps nothing": nn.Conv3d(16, 16, 3, padding=1, dilation=2),
    "groups": nn.Conv3d(16, 32, (3, 1, 3), padding=(1, 0, 1), groups=16),
    "no padding": nn.Conv3d(16, 16, 3),
    "padding by name": nn.Conv3d(16, 16, 3, padding="same"),
    "padding with copies": nn.Conv3d(16, 16, 3, padding=1, padding_mode="replicate"),
    "instance norm": nn.InstanceNorm3d(16),
    "instance norm with factors": nn.InstanceNorm3d(16, affine=True, eps=0.1),
    "instance norm of the training set": nn.InstanceNorm3d(16, track_running_stats=True),
    "a group per channel": nn.GroupNorm(16, 16),
    "groups of channels": nn.GroupNorm(4, 16),
    "a block of a large kernel": UXBlock(16, 5, 0.5),
    "a block of a large kernel and a mix": DXBlock(16, 5, 0.5),
    "norm, activation, convolution": nn.Sequential(
        nn.InstanceNorm3d(16), nn.LeakyReLU(), nn.Conv3d(16, 20, 3, padding=1)
    ),
    "norm of the training set, dropout, strided convolution": nn.Sequential(
        nn.BatchNorm3d(16), nn.PReLU(16), nn.Dropout(0.5), nn.Conv3d(16, 6, 3, (3, 2, 2), 1, bias=False)
    ),
    "norm, convolution of one voxel": nn.Sequential(nn.GroupNorm(16, 16), nn.Conv3d(16, 3, 1)),
    "norm, dilated convolution": nn.Sequential(nn.InstanceNorm3d(16), nn.ReLU(), nn.Conv3d(16, 8, 3, dilation=2)),
    "convolution, slope, norm": nn.Sequential(nn.Conv3d(16, 16, 3, padding=1), nn.PReLU(16), nn.InstanceNorm3d(16)),
    "sequences in a sequence": nn.Sequential(
        nn.Sequential(nn.Conv3d(16, 8, 1), nn.InstanceNorm3d(8)),
        nn.Sequential(nn.Dropout3d(), nn.ELU()),
        nn.Sequential(nn.ConvTranspose3d(8, 4, 2, 2), nn.SiLU(), nn.MaxPool3d(2)),
        nn.Softmax(1),
    ),
    "an activation first, and one that writes over": nn.Sequential(nn.ReLU(), nn.ReLU(inplace=True), nn.GELU()),
}


def drawn(net: nn.Module) -> nn.Module:
    """Fill all values, also those that are 0 or 1 at first."""
    generator = torch.Generator().manual_seed(3)
    for value in [*net.parameters(), *(b for b in net.buffers() if b.is_floating_point())]:
        value.data = 0.5 + torch.rand(value.shape, generator=generator)
    return net.eval().requires_grad_(False)


@pytest.mark.parametrize("layer", LAYERS.values(), ids=LAYERS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_fast_layer_gives_the_same(layer: nn.Module, dtype: torch.dtype) -> None:
    net = drawn(copy.deepcopy(layer)).to(dtype)
    x = torch.randn(2, 16, 9, 12, 10, generator=torch.Generator().manual_seed(1)).to(dtype)
    with torch.inference_mode():
        expected = copy.deepcopy(net).double()(x.double())
    laid = x.contiguous(memory_format=torch.channels_last_3d)
    with torch.inference_mode():
        found = use_fast_layers(net)(laid)
    assert found.dtype == dtype
    assert torch.equal(laid, x)  # somebody else may still need it
    limit = 2e-5 if dtype == torch.float32 else 5e-2 if isinstance(layer, nn.Sequential) else 2e-2
    assert float((found - expected).abs().max()) < limit * float(expected.abs().max())


JOINED = {
    "convolution": nn.Conv3d(24, 4, 1),
    "wide convolution first": nn.Sequential(nn.Sequential(nn.Conv3d(24, 16, 3, padding=1), nn.PReLU(16))),
    "norm, activation, convolution": nn.Sequential(
        nn.InstanceNorm3d(24, affine=True), nn.LeakyReLU(), nn.Conv3d(24, 4, (1, 3, 3), padding=(0, 1, 1))
    ),
    "norm of the training set": nn.Sequential(nn.BatchNorm3d(24), nn.PReLU(), nn.Conv3d(24, 4, 3, padding=1)),
    "norm alone": nn.Sequential(nn.InstanceNorm3d(24), nn.ReLU()),
    "activation first": nn.Sequential(nn.ReLU(), nn.Conv3d(24, 4, 3, padding=1)),
    "dropout, then nothing": nn.Sequential(nn.Dropout()),
    "dilation": nn.Conv3d(24, 4, 3, padding=2, dilation=2),
}


@pytest.mark.parametrize("layers", JOINED.values(), ids=JOINED)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("mode", "corners"), [("trilinear", True), ("trilinear", False), ("nearest", False)])
def test_fast_layers_take_maps_that_are_joined_before_them(
    layers: nn.Module, dtype: torch.dtype, mode: str, corners: bool
) -> None:
    generator = torch.Generator().manual_seed(1)
    net = drawn(copy.deepcopy(layers)).to(dtype)
    fine = torch.randn(2, 16, 9, 12, 10, generator=generator).to(dtype)
    deeper = torch.randn(2, 8, 4, 6, 5, generator=generator).to(dtype)
    how: dict[str, Any] = {"mode": mode, "align_corners": corners}
    with torch.inference_mode():
        double = copy.deepcopy(net).double()
        expected = join(double, deeper.double(), fine.double(), like=fine, **how)
        assert expected.equal(double(join_maps([deeper.double(), fine.double()], fine.shape[2:], **how)))
        laid = [x.contiguous(memory_format=torch.channels_last_3d) for x in (deeper, fine)]
        fast = use_fast_layers(net)
        found = join(fast, *laid, like=fine, **how)
        by_channels = join(fast, deeper, laid[1], like=fine, **how)  # such as part of a map
    assert found.dtype == dtype
    assert [x.equal(y) for x, y in zip(laid, (deeper, fine), strict=True)] == [True, True]
    limit = (2e-5 if dtype == torch.float32 else 5e-2) * float(expected.abs().max())
    assert float((found - expected).abs().max()) < limit
    assert float((by_channels - expected).abs().max()) < limit


def test_a_layer_in_a_sequence_that_is_watched_is_called() -> None:
    net = use_fast_layers(drawn(nn.Sequential(nn.InstanceNorm3d(4), nn.ReLU(), nn.Conv3d(4, 4, 3, padding=1))))
    seen: list[Tensor] = []
    net[1].register_forward_hook(lambda _layer, _inputs, out: seen.append(out))
    x = torch.randn(1, 4, 5, 6, 7).contiguous(memory_format=torch.channels_last_3d)
    with torch.inference_mode():
        out = net(x)
    assert torch.allclose(out, net[2](seen[0]), atol=1e-5)


def test_a_sequence_keeps_what_its_kind_adds() -> None:
    class Named(nn.Sequential):
        def name(self) -> str:
            return "a name"

    net = use_fast_layers(Named(nn.Conv3d(2, 2, 1)).eval())
    assert isinstance(net, Named)
    assert net.name() == "a name"


def test_a_wide_offset_does_not_spoil_the_norm() -> None:
    x = torch.randn(1, 3, 4, 30, 30, generator=torch.Generator().manual_seed(1)) + 1000
    expected = nn.InstanceNorm3d(3)(x.double())
    found = use_fast_layers(nn.InstanceNorm3d(3))(x.contiguous(memory_format=torch.channels_last_3d))
    assert float((found - expected).abs().max()) < 1e-2


@pytest.mark.parametrize("name", ["fastunet", "fmunet", "unet3d", "vnet", "ma3dseg", "pctnet"])
def test_networks_without_a_form_of_their_own_take_fast_layers_and_stay_as_they_are(name: str) -> None:
    net = build(name).eval()
    init_weights(net, torch.Generator().manual_seed(0))
    kinds = [type(module) for module in net.modules()]
    x = torch.rand(1, 1, 32, 32, 48, generator=torch.Generator().manual_seed(1))

    def first(out: Tensor | tuple[Tensor, ...]) -> Tensor:
        return out if isinstance(out, Tensor) else out[0]

    with torch.inference_mode():
        expected = first(net(x))
    found = first(prepare(net, device="cpu", precision="float32")(x))
    assert float((found - expected).abs().max()) < 2e-4 * float(expected.abs().max())
    assert [type(module) for module in net.modules()] == kinds
    with torch.inference_mode():
        assert torch.equal(first(net(x)), expected)
    assert all(value.is_contiguous() for value in net.parameters())
