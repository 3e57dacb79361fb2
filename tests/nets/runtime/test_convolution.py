"""Convolutions on a CPU against plain sums in float64."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from napari_fmseg.nets.runtime import convolution
from napari_fmseg.nets.runtime.convolution import PlaneConvolution, PlaneReader, Winograd, convolve


def planes(x):
    return x[0].permute(1, 2, 3, 0)


@pytest.mark.parametrize("depth", [8, 9, 10, 11])
@pytest.mark.parametrize("has_bias", [True, False])
def test_fewer_multiplications_give_the_same_sums(depth, has_bias):
    torch.manual_seed(0)
    x, weight = torch.randn(1, 20, depth, 7, 6), torch.randn(17, 20, 3, 3, 3)
    bias = torch.randn(17) if has_bias else None
    expected = F.conv3d(x.double(), weight.double(), None if bias is None else bias.double(), padding=1)
    found = Winograd(weight, bias)(planes(x).contiguous())
    assert (found - planes(expected)).abs().max() < 1e-5 * expected.abs().max()


def test_a_map_may_be_written_over_while_it_is_read():
    torch.manual_seed(0)
    x, form = torch.randn(13, 5, 6, 16), Winograd(torch.randn(16, 16, 3, 3, 3), None)
    expected = form(x.clone())
    form.run(lambda a, b: x[a:b], x)
    torch.testing.assert_close(x, expected, rtol=0, atol=0)


@pytest.mark.parametrize("slab_bytes", [1, 1 << 20])
@pytest.mark.parametrize(
    ("kernel", "stride", "padding"),
    [
        ((3, 3, 3), (1, 1, 1), (1, 1, 1)), ((3, 3, 3), (1, 1, 1), (0, 1, 1)), ((3, 3, 3), (2, 2, 2), (1, 1, 1)),
        ((1, 1, 1), (2, 2, 2), (0, 0, 0)), ((1, 3, 3), (3, 1, 1), (0, 1, 1)), ((5, 1, 1), (1, 1, 1), (2, 0, 0)),
    ],
)  # fmt: skip
def test_some_planes_at_a_time_give_the_same_as_the_whole_map(
    kernel: tuple[int, int, int],
    stride: tuple[int, int, int],
    padding: tuple[int, int, int],
    slab_bytes: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(convolution, "_SLAB_BYTES", slab_bytes)
    torch.manual_seed(0)
    x, weight = torch.randn(1, 16, 13, 9, 10), torch.randn(16, 16, *kernel)
    expected = planes(F.conv3d(x.double(), weight.double(), stride=stride, padding=padding))
    form = PlaneConvolution(weight, None, stride, padding)
    assert form.size_after(x.shape[2:]) == expected.shape[:3]
    seen, found = planes(x).contiguous(), torch.empty(expected.shape)
    reader = PlaneReader(lambda a, b, out: out.copy_(seen[a:b]), seen.shape[1:], seen)
    form.run(reader, len(seen), found)
    limit = 1e-5 * expected.abs().max()
    assert (found - expected).abs().max() < limit
    if expected.shape == seen.shape:  # and over its own input
        maps = x.clone().contiguous(memory_format=torch.channels_last_3d)
        form.run_maps(maps, maps)
        assert (planes(maps) - expected).abs().max() < limit


def test_fewer_multiplications_only_where_they_pay():
    cube = torch.empty(16, 16, 3, 3, 3)
    one, size = (1, 1, 1), (8, 16, 16)
    assert Winograd.pays(cube, one, size)
    assert not Winograd.pays(cube, (1, 2, 2), size)
    assert not Winograd.pays(cube, one, (7, 16, 16))
    assert not Winograd.pays(cube, one, (8, 4, 4))  # larger kernels than maps
    assert not Winograd.pays(cube[:, :8], one, size)
    assert not Winograd.pays(cube[:, :, :1], one, size)
    assert not Winograd.pays(cube.bfloat16(), one, size)


@pytest.mark.parametrize("onednn", [True, False])
def test_a_convolution_is_the_plain_one_with_and_without_onednn(onednn, monkeypatch):
    torch.manual_seed(0)
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: onednn and torch._C._has_mkldnn)
    x, weight, bias = torch.randn(1, 3, 6, 8, 7), torch.randn(4, 3, 3, 3, 1), torch.randn(4)
    expected = F.conv3d(x.double(), weight.double(), bias.double(), stride=(1, 2, 1), padding=(1, 1, 0))
    found = convolve(x, weight, bias, (1, 1, 0), (1, 2, 1))
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-5)
    flat = convolve(x[:, :, 0], weight[:, :, 0], bias, (1, 0))
    torch.testing.assert_close(flat, F.conv2d(x[:, :, 0], weight[:, :, 0], bias, padding=(1, 0)))
