"""One suite over every registered network: what the rest of the house relies on."""

import warnings
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from napari_fmseg.errors import GeometryMismatch, UnknownModel
from napari_fmseg.nets import NETWORKS, build

# name: arguments, channels of the inputs beside the image, smallest size per axis, an odd size
CASES = {
    "snet": ({"width": 4}, (), 32, (33, 40, 47)),
    "snet v2": ({"width": 4, "variant": "v2"}, (), 32, (33, 70, 47)),
    "attnnet": ({"width": 4}, (1,), 32, (33, 40, 47)),
    "edgenet": ({"hidden": 4}, (3,), 1, (7, 1, 9)),
    "edgenet v2": ({"width": 4, "variant": "v2"}, (3,), 32, (33, 70, 47)),
    "fmunet": ({"widths": [4, 4, 8, 8, 8]}, (), 1, (19, 17, 33)),
    "fmunet flat": ({"widths": [4, 4, 8, 8, 8], "flat_levels": 1}, (), 1, (9, 17, 33)),
    "pctnet": ({"widths": [4, 4, 8, 8, 16], "heads": [2, 2, 4], "windows": [3, 3, 3]}, (), 1, (19, 17, 33)),
    "pctnet flat": ({"widths": [4, 4, 8, 8, 8], "heads": [1, 1, 1], "flat_levels": 2}, (), 1, (5, 17, 33)),
    "pctnet legacy": ({"widths": [4, 4, 8, 8, 16], "windows": [3, 3, 3], "legacy": True}, (), 1, (19, 17, 33)),
}


def make(case, shape=None, batch=1):
    """Build the network and inputs of a case: two image channels, three classes."""
    kwargs, beside, _, odd = CASES[case]
    torch.manual_seed(0)
    net = build(case.split()[0], in_channels=2, n_classes=3, **kwargs)
    inputs = [torch.rand(batch, channels, *(shape or odd)) for channels in (2, *beside)]
    return net, inputs


def probabilities(net, output):
    return output.softmax(1) if getattr(net, "gives_logits", False) else output


def atol(net):
    """Logits are some ten times larger than probabilities."""
    return 1e-4 if getattr(net, "gives_logits", False) else 1e-5


def training(net):
    """In training mode, but without what makes training differ from one call to the next."""
    net.train()
    for part in net.modules():
        if isinstance(part, nn.Dropout | nn.BatchNorm3d):
            part.eval()
    return net


def first(output):
    return output if isinstance(output, torch.Tensor) else output[0]


def test_every_network_is_tried_here():
    assert {case.split()[0] for case in CASES} == set(NETWORKS)


@pytest.mark.parametrize("case", CASES)
def test_probabilities_add_up_on_odd_sizes(case):
    net, inputs = make(case, batch=2)
    with torch.inference_mode():
        out = net.eval()(*inputs)
    p = probabilities(net, out)
    assert p.shape == (2, 3, *inputs[0].shape[2:])
    assert p.dtype == torch.float32
    torch.testing.assert_close(p.sum(1), torch.ones(2, *inputs[0].shape[2:]))


@pytest.mark.parametrize("case", CASES)
def test_each_volume_of_a_batch_is_independent(case):
    net, inputs = make(case, batch=2)
    with torch.inference_mode():
        both = net.eval()(*inputs)
        torch.testing.assert_close(net(*(x[1:] for x in inputs)), both[1:], rtol=0, atol=atol(net))


@pytest.mark.parametrize("case", CASES)
def test_gradient_reaches_every_weight_that_is_used(case):
    net, inputs = make(case)
    outputs = net.train()(*inputs)
    sum((p[:, 1] ** 2).sum() for p in ([outputs] if isinstance(outputs, torch.Tensor) else outputs)).backward()
    untouched = {name.split(".")[0] for name, p in net.named_parameters() if p.requires_grad and p.grad is None}
    assert untouched <= {"firsten"}
    assert all(p.grad.isfinite().all() for p in net.parameters() if p.grad is not None)


@pytest.mark.parametrize("case", CASES)
def test_evaluation_gives_the_finest_head_of_training(case):
    net, inputs = make(case)
    with torch.no_grad():
        finest, heads = net.eval()(*inputs), training(net)(*inputs)
    torch.testing.assert_close(finest, first(heads), rtol=0, atol=atol(net) / 10)


@pytest.mark.parametrize("case", [case for case in CASES if CASES[case][2] > 1])
def test_too_small_volume_is_refused_with_the_size(case):
    smallest = CASES[case][2]
    net, inputs = make(case, shape=(64, 64, smallest - 1))
    with pytest.raises(GeometryMismatch, match=f"at least {smallest} voxels.*64, 64, {smallest - 1}"):
        net.eval()(*inputs)


@pytest.mark.parametrize("case", CASES)
def test_wrong_number_of_channels_is_refused(case):
    net, inputs = make(case)
    with pytest.raises(GeometryMismatch, match="2, z, y, x"):
        net.eval()(inputs[0][:, :1], *inputs[1:])


@pytest.mark.parametrize("case", CASES)
def test_weights_survive_a_file(case, tmp_path: Path):
    net, inputs = make(case)
    save_file(net.state_dict(), tmp_path / "net.safetensors")
    torch.manual_seed(1)
    again = build(case.split()[0], in_channels=2, n_classes=3, **CASES[case][0])
    again.load_state_dict(load_file(tmp_path / "net.safetensors"), strict=True)
    with torch.inference_mode():
        assert torch.equal(again.eval()(*inputs), net.eval()(*inputs))


@pytest.mark.parametrize("case", CASES)
def test_frozen_trace_gives_the_same(case):
    net, inputs = make(case)
    net.eval()
    with warnings.catch_warnings(), torch.inference_mode():
        warnings.simplefilter("ignore")
        frozen = torch.jit.freeze(torch.jit.trace(net, tuple(inputs), check_trace=False))
        torch.testing.assert_close(frozen(*inputs), net(*inputs), rtol=0, atol=atol(net))


@pytest.mark.parametrize("case", CASES)
def test_channels_last_gives_the_same(case):
    net, inputs = make(case)
    with torch.inference_mode():
        expected = net.eval()(*inputs)
        net.to(memory_format=torch.channels_last_3d)
        ours = net(*(x.contiguous(memory_format=torch.channels_last_3d) for x in inputs))
    torch.testing.assert_close(ours, expected, rtol=0, atol=atol(net))


@pytest.mark.parametrize("case", CASES)
def test_bfloat16_is_near(case):
    net, inputs = make(case)
    with torch.inference_mode():
        expected = net.eval()(*inputs)
        ours = net.to(torch.bfloat16)(*(x.to(torch.bfloat16) for x in inputs))
    assert ours.dtype == torch.float32
    if getattr(net, "gives_logits", False):  # many normalised layers: single voxels may differ more
        assert (ours - expected).pow(2).mean().sqrt() < 0.1 * expected.std()
    else:
        torch.testing.assert_close(ours, expected, rtol=0, atol=2e-2)


def test_unknown_network_is_refused_with_the_known_ones():
    with pytest.raises(UnknownModel, match=r"'unet'.*attnnet, edgenet, fmunet, pctnet, snet"):
        build("unet")


def test_unknown_argument_is_refused_with_the_known_ones():
    with pytest.raises(UnknownModel, match=r"depth.*n_classes"):
        build("snet", depth=3)
