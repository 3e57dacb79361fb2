"""The U-Nets of nnU-Net: their form for the CPU, and what they refuse."""

from __future__ import annotations

import copy
import weakref

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from napari_fmseg.core.errors import GeometryMismatch, UnknownModel
from napari_fmseg.nets import build
from napari_fmseg.nets.runtime import convolution, nnunet_cpu
from napari_fmseg.nets.runtime.nnunet_cpu import NNUNetCpu
from napari_fmseg.nets.runtime.prepare import prepare

KINDS = [
    ("plainconvunet", {"features": [4, 6, 8], "strides": [1, 2, [1, 2, 2]], "nonlin_first": True}),
    ("plainconvunet", {"features": [4, 6], "kernels": [[1, 3, 3]], "strides": [1, [1, 2, 2]], "slicewise": True}),
    ("residualencoderunet", {"features": [4, 6, 8], "strides": [1, 2, 2], "stem": 5}),
    ("residualencoderunet", {"features": [4, 6, 8], "strides": [1, 2, 2], "bottleneck": [2, 2, 4], "norm": "batch"}),
]


class LiveBytes(TorchDispatchMode):
    """Notes the most bytes of tensors that were made while it is entered and alive at the same time."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.most = 0
        self.known: set[int] = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            storage = tensor.untyped_storage() if isinstance(tensor, torch.Tensor) else None
            if storage is not None and storage.data_ptr() not in self.known and func._schema.name != "aten::detach":
                size, address = storage.nbytes(), storage.data_ptr()
                self.known.add(address)
                self.now += size
                self.most = max(self.most, self.now)
                weakref.finalize(storage, self._gone, size, address)
        return out

    def _gone(self, size, address):
        self.now -= size
        self.known.discard(address)


@pytest.mark.parametrize("slab_bytes", [1 << 23, 1 << 12])
@pytest.mark.parametrize(("name", "kwargs"), KINDS)
def test_form_for_the_cpu_gives_the_same_logits(name, kwargs, slab_bytes, monkeypatch):
    monkeypatch.setattr(nnunet_cpu, "_SLAB_BYTES", slab_bytes)
    monkeypatch.setattr(convolution, "_SLAB_BYTES", slab_bytes)  # whole maps, and a plane or two at a time
    torch.manual_seed(0)
    net = build(name, n_classes=3, supervised=True, **kwargs).eval()
    x = torch.rand(2, 1, 8, 16, 12)
    with torch.inference_mode():
        expected = net(x)
    torch.testing.assert_close(NNUNetCpu(net)(x), expected, rtol=1e-4, atol=2e-6)
    torch.testing.assert_close(prepare(net, device="cpu")(x), expected, rtol=1e-4, atol=2e-6)


@pytest.mark.parametrize("name", ["plainconvunet", "residualencoderunet"])
@pytest.mark.parametrize("stride", [[2, 2, 2], [1, 2, 2], [3, 2, 2]])
def test_form_for_the_cpu_saves_multiplications_and_gives_the_same_logits(name, stride):
    torch.manual_seed(0)
    net = build(name, n_classes=3, features=[16, 24], strides=[1, stride]).eval()
    form, x = NNUNetCpu(net), torch.rand(1, 1, 18, 16, 12)
    with torch.inference_mode():
        expected = copy.deepcopy(net).double()(x.double())
        found = form(x)
    assert (found - expected).abs().max() < 2e-5 * expected.abs().max()
    _, units = form._up[0]
    assert all("_winograd" in vars(unit.by_planes) for unit in units)


def test_form_for_the_cpu_holds_little_more_than_its_largest_map():
    net = build("plainconvunet", features=[16, 32, 64], strides=[1, 2, 2]).eval()
    form, x = NNUNetCpu(net), torch.rand(1, 1, 64, 64, 64)
    with LiveBytes() as live:
        form(x)
    with LiveBytes() as eager, torch.inference_mode():
        net(x)
    largest = 4 * 16 * 64**3
    assert live.most < 2 * largest + 3 * nnunet_cpu._SLAB_BYTES
    assert live.most < 0.65 * eager.most


def test_form_for_the_cpu_leaves_the_weights_where_they_are():
    net = build("plainconvunet", features=[4, 6], strides=[1, 2]).eval()
    form = prepare(net, device="cpu", precision="float32")
    with LiveBytes() as live:
        form(torch.rand(1, 1, 4, 4, 4))
    assert live.most < 4 * sum(p.numel() for p in net.parameters())
    assert all(p.requires_grad for p in net.parameters())


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
