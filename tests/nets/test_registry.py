"""One suite over every registered network: what the rest of the house relies on."""

import copy
import warnings
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from napari_fmseg.errors import GeometryMismatch, UnknownModel
from napari_fmseg.models import ModelCard, NetSpec, load_model, save_model
from napari_fmseg.nets import NETWORKS, build

FEW = {"channels": [2, 4, 4, 4, 8], "dropout": 0.0}
NARROW = {"widths": [4, 4, 8, 8], "depths": [1, 1, 1, 1]}
PAM = {"width": 4, "attention": "pam", "slices": 24, "reduction": 2, "slice_reduction": 4}

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
    "baseunet": (FEW, (), 1, (33, 40, 17)),
    "baseunet softmax": ({**FEW, "activation": "softmax"}, (), 1, (33, 40, 17)),
    "contextunet": ({**FEW, "context": "none", "activation": "softmax"}, (), 16, (33, 40, 35)),
    "efficientsegnet": ({**FEW, "context": "none", "activation": "softmax"}, (), 1, (33, 40, 17)),
    "efficientsegnet strips": ({**FEW, "channels": [2, 2, 2, 4, 8]}, (), 49, (49, 50, 113)),
    "uxnet3d": ({**NARROW, "hidden": 8}, (), 32, (32, 48, 32)),
    "uxnet3d dx": ({**NARROW, "hidden": 8, "block": "dx"}, (), 32, (32, 48, 32)),
    "ma3dseg": ({**NARROW, "stem": 4, "supervised": True}, (), 16, (33, 40, 47)),
    "ma3dseg boundary": ({**NARROW, "stem": 4, "boundary": True, "activation": "sigmoid"}, (), 16, (33, 40, 47)),
    "unet3d": ({"width": 4}, (), 8, (17, 33, 26)),
    "unet3d pam": ({**PAM, "gated": True, "activation": "sigmoid"}, (), 8, (17, 33, 26)),
    "unet3d stn": ({"width": 4, "attention": "stn"}, (), 8, (17, 33, 26)),
    "vnet": ({"width": 4}, (), 16, (17, 33, 40)),
    "vnet pam": (PAM, (), 16, (17, 33, 40)),
    "deepmedic": ({"widths": [4] * 8, "hidden": 6, "dropout": 0.0}, (), 8, (11, 13, 18)),
    "deepmedic residual": ({"widths": [4] * 8, "hidden": 6, "dropout": 0.0, "residual": True}, (), 8, (11, 13, 18)),
    "voxresnet": ({"width": 8, "side": 4}, (), 8, (17, 20, 13)),
    "anatomynet": ({"widths": [6, 6, 8]}, (), 8, (17, 20, 13)),
    "monai-unet": ({"channels": [2, 4, 4]}, (), 4, (16, 20, 12)),
    "monai-attentionunet": ({"channels": [2, 4, 4]}, (), 4, (16, 20, 12)),
    "monai-dynunet": ({"channels": [2, 4, 4]}, (), 4, (16, 20, 12)),
    "monai-segresnet": ({"width": 8}, (), 8, (16, 24, 32)),
    "monai-unetr": (
        {"size": [16, 32, 32], "width": 2, "hidden_size": 24, "mlp_dim": 24, "num_heads": 2},
        (),
        16,
        (16, 32, 32),
    ),
    "monai-swinunetr": ({"width": 12, "depths": [1, 1, 1, 1], "num_heads": [1, 1, 1, 1]}, (), 32, (32, 32, 64)),
}


def make(case, shape=None, batch=1):
    """Build the network and inputs of a case: two image channels, three classes."""
    kwargs, beside, _, odd = CASES[case]
    if case.startswith("monai"):
        pytest.importorskip("monai")
        if "unetr" in case:
            pytest.importorskip("einops")
    torch.manual_seed(0)
    net = build(case.split()[0], in_channels=2, n_classes=3, **kwargs)
    inputs = [torch.rand(batch, channels, *(shape or odd)) for channels in (2, *beside)]
    return net, inputs


def probabilities(net, output):
    """What an output says per class; structures that may overlap get the background beside them."""
    activation = getattr(net, "activation", "none")
    if activation == "sigmoid":
        p = output.float().sigmoid()
        return torch.cat([1 - p.sum(1, keepdim=True), p], 1)
    return output.float().softmax(1) if activation == "softmax" else output


def tolerance(net):
    """What the order of summation may change; norms enlarge it."""
    return 1e-4 if hasattr(net, "activation") else 1e-5


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
        p = probabilities(net, net.eval()(*inputs))
    assert p.shape == (2, 3, *inputs[0].shape[2:])
    assert p.dtype == torch.float32
    torch.testing.assert_close(p.sum(1), torch.ones(2, *inputs[0].shape[2:]))


@pytest.mark.parametrize("case", CASES)
def test_each_volume_of_a_batch_is_independent(case):
    net, inputs = make(case, batch=2)
    with torch.inference_mode():
        both = probabilities(net, net.eval()(*inputs))
        alone = probabilities(net, net(*(x[1:] for x in inputs)))
    torch.testing.assert_close(alone, both[1:], rtol=0, atol=tolerance(net))


@pytest.mark.parametrize("case", CASES)
def test_gradient_reaches_every_weight_that_is_used(case):
    net, inputs = make(case)
    outputs = net.train()(*inputs)
    sum((p[:, 1] ** 2).sum() for p in ([outputs] if isinstance(outputs, torch.Tensor) else outputs)).backward()
    untouched = {name for name, p in net.named_parameters() if p.requires_grad and p.grad is None}
    # Dead in the published files too; MONAI's UNETR carries the cross attention of another network.
    assert all({"firsten", "dwconv", "norm_cross_attn", "cross_attn"} & set(name.split(".")) for name in untouched)
    assert all(p.grad.isfinite().all() for p in net.parameters() if p.grad is not None)


@pytest.mark.parametrize("case", CASES)
def test_evaluation_gives_the_finest_head_of_training(case):
    net, inputs = make(case)
    with torch.no_grad():
        finest = net.eval()(*inputs)
        heads = training(net)(*inputs)
    torch.testing.assert_close(finest, first(heads), rtol=0, atol=tolerance(net))


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
    save_file({key: value.clone() for key, value in net.state_dict().items()}, tmp_path / "net.safetensors")
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
        ours, expected = (probabilities(net, run(*inputs)) for run in (frozen, net))
    torch.testing.assert_close(ours, expected, rtol=0, atol=tolerance(net))


@pytest.mark.parametrize("case", CASES)
def test_channels_last_gives_the_same(case):
    net, inputs = make(case)
    with torch.inference_mode():
        expected = probabilities(net, net.eval()(*inputs))
        net.to(memory_format=torch.channels_last_3d)
        ours = probabilities(net, net(*(x.contiguous(memory_format=torch.channels_last_3d) for x in inputs)))
    torch.testing.assert_close(ours, expected, rtol=0, atol=tolerance(net))


@pytest.mark.parametrize("case", CASES)
def test_bfloat16_is_near(case):
    net, inputs = make(case)
    with torch.inference_mode():
        expected = probabilities(net, net.eval()(*inputs))
        ours = probabilities(net, net.to(torch.bfloat16)(*(x.to(torch.bfloat16) for x in inputs)))
    assert ours.dtype == torch.float32
    if not hasattr(net, "activation"):
        torch.testing.assert_close(ours, expected, rtol=0, atol=2e-2)
    # Norms of random maps divide by what little there is, and single voxels may differ by more.
    assert (ours - expected).abs().mean() < 2e-2


@pytest.mark.parametrize("case", CASES)
def test_same_input_gives_the_same_bits(case):
    net, inputs = make(case)
    given = copy.deepcopy(inputs)
    with torch.inference_mode():
        assert torch.equal(net.eval()(*inputs), net(*inputs))
    assert all(torch.equal(x, y) for x, y in zip(inputs, given, strict=True))  # nobody writes into the image


@pytest.mark.parametrize("case", CASES)
def test_surplus_or_missing_weight_is_refused(case):
    net, _ = make(case)
    state = net.state_dict()
    with pytest.raises(RuntimeError, match="Unexpected key"):
        net.load_state_dict({**state, "surplus.weight": torch.zeros(1)}, strict=True)
    with pytest.raises(RuntimeError, match="Missing key"):
        net.load_state_dict(dict(list(state.items())[1:]), strict=True)


@pytest.mark.parametrize("case", CASES)
def test_model_is_saved_and_loaded_with_its_card(case, tmp_path: Path):
    net, inputs = make(case)
    spec = NetSpec(case.split()[0], {"in_channels": 2, "n_classes": 3, **CASES[case][0]})
    card = ModelCard("tried", "Tried here", "single", {"net": spec}, {1: "one", 2: "two"})
    save_model(card, {"net": net}, tmp_path)
    again = load_model(tmp_path / "tried.toml", device="cpu").nets["net"]
    with torch.inference_mode():
        assert torch.equal(again(*inputs), net.eval()(*inputs))


@pytest.mark.parametrize("case", CASES)
def test_three_steps_of_training_lower_the_loss(case):
    net, inputs = make(case)
    optimiser = torch.optim.SGD(net.parameters(), lr=1e-3)
    target = torch.zeros(1, 3, *inputs[0].shape[2:])
    target[:, 1] = 1
    losses = []
    for _ in range(4):
        optimiser.zero_grad()
        loss = (probabilities(net, first(net.train()(*inputs))) - target).square().mean()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]


def test_unknown_network_is_refused_with_the_known_ones():
    with pytest.raises(UnknownModel, match=r"'nonet'.*attnnet.*edgenet.*snet"):
        build("nonet")


def test_unknown_argument_is_refused_with_the_known_ones():
    with pytest.raises(UnknownModel, match=r"depth.*n_classes"):
        build("snet", depth=3)
