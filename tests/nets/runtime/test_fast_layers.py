"""A network whose layers were exchanged for fast ones on a CPU gives what it gave."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from napari_fmseg.nets import build
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
    with torch.inference_mode():
        found = use_fast_layers(net)(x.contiguous(memory_format=torch.channels_last_3d))
    assert found.dtype == dtype
    limit = 2e-5 if dtype == torch.float32 else 2e-2
    assert float((found - expected).abs().max()) < limit * float(expected.abs().max())


def test_a_wide_offset_does_not_spoil_the_norm() -> None:
    x = torch.randn(1, 3, 4, 30, 30, generator=torch.Generator().manual_seed(1)) + 1000
    expected = nn.InstanceNorm3d(3)(x.double())
    found = use_fast_layers(nn.InstanceNorm3d(3))(x.contiguous(memory_format=torch.channels_last_3d))
    assert float((found - expected).abs().max()) < 1e-2


@pytest.mark.parametrize("name", ["fastunet", "fmunet", "unet3d", "vnet", "ma3dseg"])
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
    assert all(value.is_contiguous() for value in net.parameters())
