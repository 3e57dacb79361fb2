"""The U-Nets of nnU-Net: their form for the CPU, and what they refuse."""

from __future__ import annotations

import pytest
import torch

from napari_fmseg.core.errors import GeometryMismatch, UnknownModel
from napari_fmseg.nets import build
from napari_fmseg.nets.runtime.nnunet_cpu import NNUNetCpu
from napari_fmseg.nets.runtime.prepare import prepare

KINDS = [
    ("plainconvunet", {"features": [4, 6, 8], "strides": [1, 2, [1, 2, 2]], "nonlin_first": True}),
    ("plainconvunet", {"features": [4, 6], "kernels": [[1, 3, 3]], "strides": [1, [1, 2, 2]], "slicewise": True}),
    ("residualencoderunet", {"features": [4, 6, 8], "strides": [1, 2, 2], "stem": 5}),
    ("residualencoderunet", {"features": [4, 6, 8], "strides": [1, 2, 2], "bottleneck": [2, 2, 4], "norm": "batch"}),
]


@pytest.mark.parametrize(("name", "kwargs"), KINDS)
def test_form_for_the_cpu_gives_the_same_logits(name, kwargs):
    torch.manual_seed(0)
    net = build(name, n_classes=3, supervised=True, **kwargs).eval()
    x = torch.rand(1, 1, 8, 16, 12)
    with torch.inference_mode():
        expected = net(x)
    torch.testing.assert_close(NNUNetCpu(net)(x), expected, rtol=1e-4, atol=2e-6)
    torch.testing.assert_close(prepare(net, device="cpu")(x), expected, rtol=1e-4, atol=2e-6)


def test_sizes_that_are_no_multiple_of_the_strides_are_refused():
    net = build("plainconvunet", features=[4, 6, 8], strides=[1, 2, [1, 2, 2]])
    with pytest.raises(GeometryMismatch, match="multiples of 2 x 4 x 4"):
        net(torch.zeros(1, 1, 8, 8, 10))
    with pytest.raises(GeometryMismatch, match="at least 2 x 4 x 4"):
        net(torch.zeros(1, 1, 1, 8, 8))


@pytest.mark.parametrize("kwargs", [
    {"features": [4]}, {"kernels": [2]}, {"strides": [2, 2, 2, 2]}, {"convs": [1, 2]}, {"norm": "layer"},
])  # fmt: skip
def test_arguments_that_make_no_network_are_refused(kwargs):
    with pytest.raises(UnknownModel):
        build("plainconvunet", **kwargs)
