"""The networks of EfficientSegmentation in slabs give what they give layer by layer."""

import subprocess
import sys
from copy import deepcopy

import pytest
import torch

from napari_fmseg.core.errors import GeometryMismatch
from napari_fmseg.nets import build
from napari_fmseg.nets.runtime import convolution, slabwise
from napari_fmseg.nets.runtime.prepare import has_low_memory_form, prepare

FORMS = [
    ("baseunet", {"channels": (2, 4, 4, 6, 6)}, (20, 40, 33)),
    ("baseunet", {"channels": (2, 4, 4, 6, 6, 6), "encoder": 2, "decoder": 4, "auxiliary": 2}, (33, 40, 66)),
    ("efficientsegnet", {"channels": (2, 4, 4, 6, 8), "in_channels": 2}, (50, 64, 114)),
    ("contextunet", {"channels": (2, 4, 4, 6, 8), "activation": "softmax"}, (64, 65, 128)),
    ("efficientsegnet", {"channels": (16, 16, 17, 18, 20), "context": "none"}, (33, 40, 48)),  # Winograd
    ("efficientsegnet", {"channels": (2, 4, 4, 6, 8), "encoder": "anisotropic", "decoder": "residual",
                         "decoder_blocks": 2, "context": "none", "grid": (33, 40, 48), "window": (-1, 1),
                         "native": True}, (17, 29, 31)),
]  # fmt: skip


@pytest.mark.parametrize("slab_bytes", [1, 1 << 16])  # slabs of one plane; of several, more at the deep levels
@pytest.mark.parametrize(("name", "kwargs", "size"), FORMS)
def test_slabs_give_what_the_layers_give(name, kwargs, size, slab_bytes, monkeypatch):
    monkeypatch.setattr(convolution, "_SLAB_BYTES", slab_bytes)
    generator = torch.Generator().manual_seed(0)
    net = build(name, **kwargs).eval()
    x = torch.randn(2, kwargs.get("in_channels", 1), *size, generator=generator)
    with torch.inference_mode():
        expected = net(x)
    found = slabwise.SlabwiseUNet(deepcopy(net))(x)
    assert found.shape == expected.shape
    assert float((found - expected).abs().max()) < 1e-4 * max(1.0, float(expected.abs().max()))


def test_at_most_two_maps_and_some_planes_are_held():
    code = (
        "import psutil, torch; torch.set_num_threads(1)\n"
        "from napari_fmseg.nets import build; from napari_fmseg.nets.runtime import slabwise\n"
        "from napari_fmseg.core.processes import peak_bytes\n"
        "net = build('efficientsegnet', channels=(32, 4, 4, 4, 4), context='none', n_classes=2)\n"
        "ladder = slabwise.SlabwiseUNet(net)\n"
        "x = torch.randn(1, 1, 96, 96, 96)\n"
        "before = psutil.Process().memory_info().rss; ladder(x)\n"
        "print((peak_bytes() - before) / (4 * 32 * 96**3))\n"
    )
    told = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout
    assert 1.5 < float(told) < 4, told  # layer by layer: 7.5


def test_processor_takes_slabs_by_itself_and_leaves_the_network_alone():
    net = build("baseunet", channels=(2, 4, 4, 6, 6)).eval()
    run = prepare(net, device="cpu", precision="float32")
    assert isinstance(run, slabwise.SlabwiseUNet)
    assert all(p.requires_grad for p in net.parameters())
    with pytest.raises(GeometryMismatch):
        run(torch.zeros(1, 2, 32, 32, 32))


def test_only_networks_that_can_are_said_to_save_memory():
    assert has_low_memory_form(build("efficientsegnet", channels=(2, 4, 4, 6, 8)))
    assert not has_low_memory_form(build("snet", width=4))


def test_wide_offset_does_not_spoil_the_deviation():
    x = torch.randn(4, 30, 30, 3, generator=torch.Generator().manual_seed(1)) + 1000
    norm = slabwise._Norm()
    for planes in x.split(1):
        norm.update(planes)
    expected = (x.double() - x.double().mean((0, 1, 2))) / x.double().std((0, 1, 2), correction=0)
    assert float((norm.apply(x, torch.empty_like(x)) - expected).abs().max()) < 1e-2
