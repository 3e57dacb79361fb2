"""One suite over every registered network: what the rest of the house relies on."""

import copy
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from napari_fmseg.core.errors import GeometryMismatch, UnknownModel
from napari_fmseg.core.events import StepDone, drain
from napari_fmseg.core.volume import LabelMap
from napari_fmseg.datasets.phantom import phantom_ct
from napari_fmseg.io import write_labels, write_volume
from napari_fmseg.models.card import Intensity, ModelCard, NetSpec
from napari_fmseg.models.weights import load_model, save_model
from napari_fmseg.nets import NETWORKS, build
from napari_fmseg.pipelines import SegmentOptions, segment
from napari_fmseg.pipelines.preprocessing import normalise
from napari_fmseg.training import Case, Recipe, StageRecipe, train
from napari_fmseg.training.losses.logits import deeply_supervised, dice_ce_of_logits
from napari_fmseg.training.losses.structures import StructureLoss

FEW = {"channels": [2, 4, 4, 4, 8], "dropout": 0.0}
NARROW = {"widths": [4, 4, 8, 8], "depths": [1, 1, 1, 1]}
DEEP = {"encoder": "resnet10", "width": 2, "hidden": 8, "side": 4}
PAM = {"width": 4, "attention": "pam", "slices": 24, "reduction": 2, "slice_reduction": 4}

# name: arguments, channels of the inputs beside the image, smallest size per axis, an odd size
CASES = {
    "snet": ({"width": 4}, (), 32, (33, 40, 47)),
    "snet v2": ({"width": 4, "variant": "v2"}, (), 32, (33, 70, 47)),
    "attnnet": ({"width": 4}, (1,), 32, (33, 40, 47)),
    "edgenet": ({"hidden": 4}, (3,), 1, (7, 1, 9)),
    "edgenet v2": ({"width": 4, "variant": "v2"}, (3,), 32, (33, 70, 47)),
    "fastunet": ({"widths": [4, 8], "strides": [[2, 2, 2], [2, 2, 2]]}, (), 1, (9, 17, 33)),
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
    "hdenseunet": (
        {"width": 6, "growth": 2, "growth_3d": 2, "blocks": [1, 1, 1, 1], "blocks_3d": [1, 1, 1, 1], "dropout": 0.0},
        (),
        8,
        (9, 34, 33),
    ),
    "plainconvunet": ({"features": [4, 6, 8], "strides": [1, 2, 2], "supervised": True}, (), 4, (16, 20, 12)),
    "plainconvunet in 2-D": (
        {"features": [4, 6], "kernels": [[1, 3, 3]], "strides": [1, [1, 2, 2]], "slicewise": True, "supervised": True},
        (),
        1,
        (3, 16, 22),
    ),
    "residualencoderunet": (
        {"features": [4, 6, 8], "strides": [1, 2, [1, 2, 2]], "stem": 5, "convs": [1, 2, 2], "supervised": True},
        (),
        1,
        (4, 20, 12),
    ),
    "residualencoderunet narrow": (
        {"features": [8, 8, 12], "strides": [1, 1, 2], "bottleneck": [4, 4, 4], "norm": "batch", "supervised": True},
        (),
        2,
        (6, 20, 12),
    ),
    "meshnet": ({"width": 4, "dilations": [1, 2, 4, 1]}, (), 1, (9, 17, 11)),
    "unet2d": ({"widths": [4, 4, 8]}, (), 8, (3, 17, 22)),
    "unet2d in 3-D": ({"widths": [4, 4, 8], "dims": 3}, (), 8, (9, 17, 22)),
    "fcn": ({"widths": [4, 4, 4, 8, 8], "hidden": 8, "dropout": 0.0}, (), 8, (3, 33, 40)),
    "deeplabv3plus": (DEEP, (), 8, (3, 33, 40)),
    "deeplabv3plus in 3-D": ({**DEEP, "dims": 3}, (), 8, (17, 33, 40)),
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


# MONAI's own arithmetic is MONAI's to test; cases whose arithmetic others have too are left out.
SAME = ("baseunet softmax", "efficientsegnet strips", "uxnet3d dx", "ma3dseg boundary", "deepmedic residual")
OURS = [case for case in CASES if not case.startswith("monai") and case not in (*SAME, "vnet pam", "pctnet legacy")]
PHASED = ("snet", "attnnet", "edgenet")
WINDOWS = {
    "efficientsegnet strips": (49, 50, 113),
    **dict.fromkeys(("uxnet3d", "uxnet3d dx"), (32, 32, 32)),
    "monai-unetr": (16, 32, 32),
    "monai-swinunetr": (32, 32, 64),
}
CT = Intensity("window", -200, 300)
NAMES = {1: "liver", 2: "kidneys"}


def build_case(case, kwargs):
    """Build the network of a case; the test is skipped where a package of MONAI's is missing."""
    if case.startswith(("monai", "deeplab")):
        pytest.importorskip("monai")
        if "unetr" in case:
            pytest.importorskip("einops")
    torch.manual_seed(0)
    return build(case.split()[0], **kwargs)


def make(case, shape=None, batch=1):
    """Make the network and inputs of a case: two image channels, three classes."""
    kwargs, beside, _, odd = CASES[case]
    net = build_case(case, {"in_channels": 2, "n_classes": 3, **kwargs})
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


@pytest.mark.parametrize("case", OURS)
def test_each_volume_of_a_batch_is_independent(case):
    net, inputs = make(case, batch=2)
    given = copy.deepcopy(inputs)
    with torch.inference_mode():
        both = probabilities(net, net.eval()(*inputs))
        alone = probabilities(net, net(*(x[1:] for x in inputs)))
    assert all(torch.equal(x, y) for x, y in zip(inputs, given, strict=True))  # nobody writes into the image
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


@pytest.mark.parametrize("case", OURS)
def test_frozen_trace_gives_the_same(case):
    net, inputs = make(case)
    net.eval()
    with warnings.catch_warnings(), torch.inference_mode():
        warnings.simplefilter("ignore")
        frozen = torch.jit.freeze(torch.jit.trace(net, tuple(inputs), check_trace=False))
        ours, expected = (probabilities(net, run(*inputs)) for run in (frozen, net))
    torch.testing.assert_close(ours, expected, rtol=0, atol=tolerance(net))


@pytest.mark.parametrize("case", OURS)
def test_channels_last_gives_the_same(case):
    net, inputs = make(case)
    with torch.inference_mode():
        expected = probabilities(net, net.eval()(*inputs))
        net.to(memory_format=torch.channels_last_3d)
        ours = probabilities(net, net(*(x.contiguous(memory_format=torch.channels_last_3d) for x in inputs)))
    torch.testing.assert_close(ours, expected, rtol=0, atol=tolerance(net))


@pytest.mark.parametrize("case", OURS)
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


@pytest.fixture(scope="module")
def phantom():
    """A CT of 24 x 32 x 32 voxels with its liver and kidneys."""
    volume, truth = phantom_ct(3, spacing=(10.0, 12.0, 12.0), shape=(24, 32, 32))
    labels = np.where(truth.data < 3, truth.data, 0)
    assert len(np.unique(labels)) == 3
    return volume, torch.from_numpy(labels).long()


def trained(net, patch, labels):
    """Train for three steps on one patch with the losses of the house; gives what each of them found."""
    optimiser = torch.optim.SGD(net.parameters(), lr=0.02)
    target = F.one_hot(labels, 3).movedim(-1, 1).float()
    losses = []
    for _ in range(3):
        heads = training(net)(patch)
        heads = heads if isinstance(heads, tuple) else (heads,)
        if net.activation == "sigmoid":
            loss = StructureLoss("dice+bce")(heads[0], target[:, 1:])
        else:
            loss = deeply_supervised(dice_ce_of_logits, heads, target)
        losses.append(loss.item())
        optimiser.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimiser.step()
    return losses


@pytest.mark.parametrize("case", [
    pytest.param(case, marks=pytest.mark.slow) if case == "efficientsegnet strips" else case
    for case in CASES if case.split()[0] not in PHASED
])  # fmt: skip
def test_network_trains_for_three_steps_and_segments_a_phantom(case, phantom, tmp_path: Path):
    volume, labels = phantom
    kwargs = {"in_channels": 1, "n_classes": 3, **CASES[case][0]}
    window = WINDOWS.get(case, (24, 32, 32))
    net = build_case(case, kwargs)
    patch = normalise(torch.from_numpy(volume.data[None]), CT)[None]
    patch, target = (F.interpolate(x.float(), size=window) for x in (patch, labels[None, None]))
    losses = trained(net, patch, target[:, 0].long())
    assert losses[-1] < losses[0]
    spec = NetSpec(case.split()[0], kwargs)
    card = ModelCard(
        "tried", "Tried", "single", {"net": spec}, NAMES, intensity=CT, settings={"window": window, "overlap": 0.0}
    )
    save_model(card, {"net": net}, tmp_path)
    model = load_model(tmp_path / "tried.toml", device="cpu")
    found = drain(segment(volume, model, SegmentOptions(precision="float32")))
    assert found.geometry.matches(volume.geometry)
    assert set(np.unique(found.data)) <= {0, 1, 2}


def test_phased_networks_train_for_three_steps_each_and_segment_a_phantom(phantom, tmp_path: Path):
    volume, labels = phantom
    truth = LabelMap(labels.numpy().astype(np.uint8), volume.geometry)
    write_volume(volume, tmp_path / "ct.nii.gz")
    write_labels(truth, tmp_path / "truth.nii.gz")
    narrow = {"width": 4}
    stages = (("consensus", "snet", narrow), ("attention", "attnnet", narrow), ("edge", "edgenet", {"hidden": 4}))
    recipe = Recipe(
        name="tried",
        stages=tuple(
            StageRecipe(stage, network, steps=3, steps_per_epoch=3, batch=1, kwargs=kwargs)
            for stage, network, kwargs in stages
        ),
        labels=tuple(NAMES.values()),
        training=(Case("one", (tmp_path / "ct.nii.gz",), tmp_path / "truth.nii.gz"),),
        out=tmp_path / "run",
        settings={"consensus_grid": [32, 32, 32], "attention_grid": [32, 32, 32]},
        intensity=CT,
        device="cpu",
    )
    steps = [event.stage for event in train(recipe) if isinstance(event, StepDone)]
    assert steps == [stage for stage, *_ in stages for _ in range(3)]
    found = drain(segment(volume, load_model(tmp_path / "run" / "tried.toml", device="cpu")))
    assert found.geometry.matches(volume.geometry)
    assert set(np.unique(found.data)) <= {0, 1, 2}


def test_unknown_network_is_refused_with_the_known_ones():
    with pytest.raises(UnknownModel, match=r"'nonet'.*attnnet.*edgenet.*snet"):
        build("nonet")


def test_unknown_argument_is_refused_with_the_known_ones():
    with pytest.raises(UnknownModel, match=r"depth.*n_classes"):
        build("snet", depth=3)
