import gc
import weakref

import pytest
import torch
from torch import nn

from napari_fmseg.core.errors import DeviceUnavailable
from napari_fmseg.nets import build
from napari_fmseg.nets.runtime import device as runtime_device
from napari_fmseg.nets.runtime.device import pick_device, pick_precision, training_precision
from napari_fmseg.nets.runtime.edgenet_cpu import EdgeNetCpu
from napari_fmseg.nets.runtime.prepare import prepare
from napari_fmseg.nets.runtime.snet_cpu import SNetCpu

CPU = torch.device("cpu")


@pytest.fixture
def make(fill_network, draw):
    """Build a network and its inputs: name, size, arguments."""

    def make(name, size=(33, 47, 36), batch=1, **kwargs):
        net = fill_network(build(name, **kwargs))
        channels = [net.in_channels, *{"snet": [], "attnnet": [1], "edgenet": [net.n_classes]}[name]]
        return net, [draw(i, "random", (batch, c, *size), 1, 0) for i, c in enumerate(channels)]

    return make


def plain(net, inputs):
    with torch.inference_mode():
        return net(*inputs)


@pytest.mark.parametrize("size", [(32, 32, 32), (33, 47, 36), (40, 64, 50)])
@pytest.mark.parametrize("kwargs", [{}, {"in_channels": 2, "n_classes": 5, "width": 16}, {"width": 4}])
@pytest.mark.parametrize("name", ["snet", "attnnet"])
def test_fast_pyramid_gives_the_same(name, kwargs, size, make):
    net, inputs = make(name, size, **kwargs)
    torch.testing.assert_close(SNetCpu(net)(*inputs), plain(net, inputs), rtol=0, atol=5e-6)


@pytest.mark.parametrize("size", [(16, 17, 18), (1, 5, 9), (3, 2, 1), (20, 8, 7)])
@pytest.mark.parametrize("in_channels", [1, 2])
def test_folded_edge_filter_gives_the_same_up_to_the_border(size, in_channels, make):
    net, inputs = make("edgenet", size, batch=2, in_channels=in_channels)
    net.fc[0].bias.data += 1  # so that what lies beyond the border matters
    torch.testing.assert_close(EdgeNetCpu(net)(*inputs), plain(net, inputs), rtol=0, atol=5e-6)


@pytest.mark.parametrize("name", ["snet", "attnnet", "edgenet"])
@pytest.mark.parametrize("kwargs", [{}, {"n_classes": 3}, {"variant": "v2", "width": 4}])
def test_prepared_network_gives_the_same_and_leaves_the_network_alone(name, kwargs, make):
    net, inputs = make(name, (34, 66, 33), batch=2, **kwargs)
    before = {k: v.clone() for k, v in net.state_dict().items()}
    run = prepare(net, inputs, device="cpu", precision="float32")
    torch.testing.assert_close(run(*inputs), plain(net, inputs), rtol=0, atol=5e-6)
    torch.testing.assert_close(run(*inputs), plain(net, inputs), rtol=0, atol=5e-6)
    assert all(torch.equal(before[k], v) and v.is_contiguous() for k, v in net.state_dict().items())
    assert all(p.requires_grad for p in net.parameters())


@pytest.mark.parametrize(("name", "make_fast"), [("snet", SNetCpu), ("attnnet", SNetCpu), ("edgenet", EdgeNetCpu)])
def test_fast_form_in_bfloat16_is_near(name, make_fast, make):
    net, inputs = make(name, (32, 32, 32))
    out = make_fast(net, torch.bfloat16)(*inputs)
    assert out.dtype == torch.float32
    torch.testing.assert_close(out, plain(net, inputs), rtol=0, atol=2e-2)


def test_prepared_network_is_kept_until_its_weights_change(make):
    net, inputs = make("snet", (32, 32, 32), width=4)
    run = prepare(net, device="cpu", precision="float32")
    assert prepare(net, inputs, device="cpu", precision="float32") is run
    with torch.no_grad():
        net.maps[0][0].bias[1] += 1
    again = prepare(net, device="cpu", precision="float32")
    assert again is not run
    torch.testing.assert_close(again(*inputs), plain(net, inputs), rtol=0, atol=5e-6)


@pytest.mark.parametrize("kwargs", [{"width": 4}, {"width": 4, "variant": "v2"}])
def test_cache_does_not_keep_a_network_alive(kwargs):
    net = build("snet", **kwargs).eval()
    prepare(net, [torch.rand(1, 1, 64, 32, 32)], device="cpu", precision="float32")
    gone = weakref.ref(net)
    del net
    gc.collect()
    assert gone() is None


@pytest.mark.parametrize("memory_format", ["auto", "contiguous", "channels_last"])
def test_any_network_can_be_prepared(memory_format):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv3d(2, 4, 3, padding=1), nn.BatchNorm3d(4), nn.ReLU(), nn.Conv3d(4, 3, 1)).eval()
    run = prepare(net, device="cpu", precision="float32", memory_format=memory_format)
    for size in [(5, 6, 7), (8, 8, 8)]:
        x = torch.rand(2, 2, *size)
        for _ in range(2):
            torch.testing.assert_close(run(x), plain(net, [x]))


def test_network_can_be_trained_after_it_was_prepared(make):
    net, inputs = make("snet", (32, 32, 32), width=4)
    with torch.inference_mode():
        prepare(net, inputs, device="cpu", precision="float32")
    net.train()(*inputs)[0][:, 1].sum().backward()
    assert net.con.weight.grad.isfinite().all()


def test_input_of_the_wrong_size_is_refused_by_the_fast_form_too(make):
    net, inputs = make("attnnet", (32, 32, 32))
    with pytest.raises(Exception, match="at least 32"):
        prepare(net, device="cpu", precision="float32")(*(x[..., :31] for x in inputs))


@pytest.mark.parametrize(("name", "fix"), [("gpu", "Use auto"), ("xpu", "Use auto"), ("cuda:99", "cpu|from cuda:0")])
def test_missing_device_is_refused_with_the_fix(name, fix):
    with pytest.raises(DeviceUnavailable, match=fix):
        pick_device(name)


def test_automatic_device_exists():
    torch.zeros(1, device=pick_device("auto"))
    assert pick_device("cpu") == CPU


def test_half_precision_on_the_cpu_needs_a_proof_or_a_wish_and_a_processor_that_has_it(monkeypatch):
    monkeypatch.delenv("FMSEG_CPU_CAPABILITY", raising=False)
    monkeypatch.setattr(runtime_device, "_cpu_has_bfloat16", lambda: True)
    assert pick_precision(CPU) == "float32"
    assert pick_precision(CPU, half_precision_ok=False) == "float32"
    assert pick_precision(CPU, half_precision_ok=True) == "bfloat16"
    assert pick_precision(CPU, "bfloat16") == "bfloat16"
    assert training_precision(CPU) == "float32"
    monkeypatch.setattr(runtime_device, "_cpu_has_bfloat16", lambda: False)
    assert pick_precision(CPU, half_precision_ok=True) == "float32"
    with pytest.raises(DeviceUnavailable, match="slower than float32"):
        pick_precision(CPU, "bfloat16")


def test_half_precision_that_is_hidden_is_not_there(monkeypatch):
    monkeypatch.setattr(runtime_device, "_cpu_has_bfloat16", lambda: True)
    monkeypatch.setenv("FMSEG_CPU_CAPABILITY", "avx2")
    assert pick_precision(CPU, half_precision_ok=True) == "float32"
    with pytest.raises(DeviceUnavailable, match="FMSEG_CPU_CAPABILITY is avx2"):
        pick_precision(CPU, "bfloat16")


def test_a_graphics_card_takes_half_precision_unless_it_was_refuted(monkeypatch):
    monkeypatch.setattr(runtime_device, "_best_half", lambda device: "bfloat16")
    there = torch.device("cuda")
    found = [pick_precision(there, half_precision_ok=ok) for ok in (None, True, False)]
    assert found == ["bfloat16", "bfloat16", "float32"]


def test_a_network_that_is_called_by_itself_computes_in_float32_on_any_processor(monkeypatch):
    monkeypatch.setattr(runtime_device, "_cpu_has_bfloat16", lambda: True)
    net = nn.Conv3d(1, 2, 3, padding=1).eval()
    assert prepare(net, device="cpu")(torch.zeros(1, 1, 4, 4, 4)).dtype == torch.float32


def test_unknown_precision_and_memory_format_are_refused():
    with pytest.raises(DeviceUnavailable, match=r"'int8'.*float32"):
        pick_precision(CPU, "int8")
    with pytest.raises(DeviceUnavailable, match="channels_last"):
        prepare(nn.Identity(), device="cpu", memory_format="blocked")


@pytest.mark.gpu
@pytest.mark.parametrize("precision", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("name", ["snet", "attnnet", "edgenet"])
def test_gpu_gives_the_same(name, precision, make):
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    net, inputs = make(name, (64, 64, 64))
    torch.backends.cudnn.allow_tf32 = False
    out = prepare(net, device="cuda", precision=precision)(*inputs).cpu()
    torch.testing.assert_close(out, plain(net, inputs), rtol=0, atol=1e-4 if precision == "float32" else 2e-2)
