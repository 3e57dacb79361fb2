"""MeshNet, and its form that keeps one map in memory."""

from __future__ import annotations

import pytest
import torch

from napari_fmseg.core.errors import UnknownModel
from napari_fmseg.nets import build
from napari_fmseg.nets.meshnet import MeshNetInPlace
from napari_fmseg.nets.runtime.prepare import has_low_memory_form, prepare


def test_the_published_size_has_so_many_parameters() -> None:
    assert sum(p.numel() for p in build("meshnet", n_classes=18).parameters()) == 196_038


@pytest.mark.parametrize("shape", [(40, 9, 11), (3, 8, 8), (16, 6, 7), (33, 5, 5)])
def test_planes_written_over_their_input_give_the_same(shape: tuple[int, int, int]) -> None:
    torch.manual_seed(0)
    net = build("meshnet", in_channels=2, n_classes=4, width=5, dilations=[1, 4, 16, 2]).eval()
    x = torch.randn(2, 2, *shape)
    with torch.inference_mode():
        expected = net(x)
    torch.testing.assert_close(MeshNetInPlace(net)(x), expected, rtol=0, atol=1e-5)


def test_a_cpu_takes_the_form_that_needs_little_memory() -> None:
    net = build("meshnet", n_classes=3, width=3, dilations=[1, 2]).eval()
    assert has_low_memory_form(net)
    x = torch.randn(1, 1, 9, 8, 7)
    with torch.inference_mode():
        torch.testing.assert_close(prepare(net, device="cpu", precision="float32")(x), net(x), rtol=0, atol=1e-5)


@pytest.mark.parametrize("wrong", [{"width": 0}, {"dilations": []}, {"dilations": [1, 0]}, {"n_classes": 1}])
def test_arguments_that_make_no_sense_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(UnknownModel):
        build("meshnet", **wrong)
