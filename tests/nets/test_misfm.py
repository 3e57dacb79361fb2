import hashlib
import json

import numpy as np
import pytest
import torch
from torch import nn

from napari_fmseg.core.errors import GeometryMismatch, UnknownModel, WeightsMismatch
from napari_fmseg.nets import build
from napari_fmseg.nets.layers.swin import WindowedTransformer, relative_position_index

HERE = ["fmunet_small_res2_c", "pctnet_small_mode0_c"]
ALL = [
    *("fmunet_demo_c", "fmunet_small_depth3_c", "fmunet_small_res0_c", "fmunet_small_res1_c", "fmunet_small_res2_c"),
    *("pctnet_small_custom_c", "pctnet_small_mode0_c", "pctnet_small_mode1_c", "pctnet_small_mode2_c"),
]


def ours(name, published):
    """Build our network for the published arguments."""
    kwargs = {
        "in_channels": published["in_chns"], "n_classes": published["class_num"],
        "widths": published["feature_chns"], "dropout": published["dropout"],
    }  # fmt: skip
    if name.startswith("fmunet"):
        return build("fmunet", flat_levels=published["res_mode"], depth=published["depth"], **kwargs)
    named = {"input_size": "input_size", "depths": "depths", "heads": "num_heads", "windows": "window_sizes"}
    kwargs |= {mine: published[theirs] for mine, theirs in named.items() if theirs in published}
    return build("pctnet", flat_levels=published["resolution_mode"], legacy=True, **kwargs)


def check(vector, name):
    net = ours(name, vector.spec["constructor"]).eval()
    assert [key for key, *_ in vector.spec["state"]] == list(net.state_dict())
    net.load_state_dict(vector.state(), strict=True)
    with torch.inference_mode():
        heads = net.training_heads(*vector.inputs())
        vector.check(heads)
        torch.testing.assert_close(net(*vector.inputs()), heads[0], rtol=0, atol=0)


@pytest.mark.parametrize("name", HERE)
def test_network_gives_the_published_output(name, read_vector, golden_here):
    check(read_vector(golden_here / f"{name}.npz"), name)


@pytest.mark.real
@pytest.mark.parametrize("name", [*ALL, pytest.param("pctnet_demo_c", marks=pytest.mark.slow)])
def test_network_gives_every_published_output(name, read_vector, golden_shared):
    check(read_vector(golden_shared / f"{name}.npz"), name)


@pytest.mark.parametrize(("name", "kwargs", "n_parameters"), [
    ("fmunet", {}, 47_332_680), ("fmunet", {"flat_levels": 1}, 47_183_496),
    ("fmunet", {"flat_levels": 2}, 46_591_368), ("fmunet", {"n_classes": 5}, 47_371_572),
    ("pctnet", {"input_size": (64, 128, 128), "flat_levels": 1}, 45_287_730),
    ("pctnet", {"input_size": (64, 128, 128)}, 45_256_114), ("pctnet", {}, 45_287_730),
])  # fmt: skip
def test_network_has_the_published_number_of_parameters(name, kwargs, n_parameters):
    with torch.device("meta"):
        net = build(name, **kwargs)
    assert sum(p.numel() for p in net.parameters()) == n_parameters


@pytest.mark.real
def test_published_positions_are_the_published_ones(golden_shared):
    with np.load(golden_shared / "misfm_relative_position.npz") as data:
        values = json.loads(str(data["about"]))["values"]
        for window in (2, 3, 4):
            assert np.array_equal(relative_position_index(window, legacy=True), data[f"index_w{window}"])
    for name, facts in values.items():
        index = relative_position_index(int(name[1:]), legacy=True).numpy()
        assert len(np.unique(index)) == facts["distinct_indices_used"]
        assert hashlib.sha256(index.astype("<i8").tobytes()).hexdigest() == facts["sha256"]


@pytest.mark.parametrize("window", [1, 2, 3, 5])
def test_correct_positions_tell_all_offsets_apart(window):
    index = relative_position_index(window)
    assert set(index.flatten().tolist()) == set(range((2 * window - 1) ** 3))


def attention(window=3, shifted=True, legacy=False, width=8, heads=2):
    torch.manual_seed(0)
    net = WindowedTransformer(width, 2, heads, window, shifted=shifted, dropout=0, legacy=legacy).double().eval()
    for parameter in net.parameters():
        nn.init.normal_(parameter, std=0.5)
    return net


def slow_attention(block, x):
    """One block on tokens (z, y, x, c), pair by pair: who is in whose window, and never what was filled up."""
    size, w = x.shape[:3], block.attn.window
    place = np.indices(size).reshape(3, -1).T
    shift = [block.attn.shift if n > w else 0 for n in size]
    at = (place - shift) % [n + -n % w for n in size]
    # Tokens meet in one window of the rolled grid if the roll did not bring them from both ends.
    window, wrapped = at // w, place < np.array(shift)
    normed = block.norm1(x.reshape(-1, x.shape[-1]))
    q, k, v = block.attn.qkv(normed).reshape(len(place), 3, block.attn.heads, -1).unbind(1)
    offset = place[:, None] - place[None] + w - 1
    row = offset @ np.array([(2 * w - 1) ** 2, 2 * w - 1, 1])
    meet = torch.from_numpy(((window[:, None] == window[None]) & (wrapped[:, None] == wrapped[None])).all(-1))
    bias = block.attn.relative_position_bias_table[torch.from_numpy(np.where(meet.numpy(), row, 0))]
    scores = torch.einsum("qhc,khc->qkh", q, k) / q.shape[-1] ** 0.5 + bias
    weights = scores.masked_fill(~meet[..., None], -torch.inf).softmax(1)
    y = x.reshape(-1, x.shape[-1]) + block.attn.proj(torch.einsum("qkh,khc->qhc", weights, v).flatten(1))
    return (y + block.mlp(block.norm2(y))).reshape(x.shape)


@pytest.mark.parametrize("size", [(6, 6, 6), (7, 5, 4), (2, 3, 8), (1, 1, 10), (4, 9, 2)])
def test_windowed_attention_is_that_of_every_pair(size):
    net = attention()
    x = torch.rand(1, 8, *size, dtype=torch.float64)
    with torch.no_grad():
        expected = x[0].movedim(0, -1)
        for block in net.blocks:
            expected = slow_attention(block, expected)
        torch.testing.assert_close(net(x)[0].movedim(0, -1), expected)


@pytest.mark.parametrize("legacy", [False, True])
def test_attention_treats_each_volume_alone(legacy):
    net, x = attention(legacy=legacy), torch.rand(3, 8, 7, 5, 4, dtype=torch.float64)
    with torch.no_grad():
        torch.testing.assert_close(net(x)[1:2], net(x[1:2]))


def test_legacy_weights_are_refused_by_the_correct_network():
    small = {"widths": [4, 4, 8, 8, 8], "windows": [3, 3, 3], "heads": [1, 1, 1]}
    with pytest.raises(WeightsMismatch, match="legacy=True"):
        build("pctnet", **small).load_state_dict(build("pctnet", legacy=True, **small).state_dict())


@pytest.mark.parametrize("flat_levels", [0, 1, 2])
def test_volume_that_leaves_one_voxel_is_refused(flat_levels):
    z = 16 >> flat_levels
    net = build("fmunet", widths=[2, 2, 2, 2, 2], flat_levels=flat_levels).eval()
    net(torch.zeros(1, 1, z, 16, 17))
    with pytest.raises(GeometryMismatch, match=f"more than {z} x 16 x 16"):
        net(torch.zeros(1, 1, z, 16, 16))


@pytest.mark.parametrize(("name", "kwargs"), [
    ("fmunet", {"widths": [4, 4, 4]}), ("fmunet", {"flat_levels": 3}), ("fmunet", {"n_classes": 1}),
    ("pctnet", {"depths": [1]}), ("pctnet", {"heads": [3, 3, 3]}), ("pctnet", {"flat_levels": -1}),
])  # fmt: skip
def test_impossible_network_is_refused(name, kwargs):
    with pytest.raises(UnknownModel, match="not "):
        build(name, **kwargs)


@pytest.mark.gpu
@pytest.mark.parametrize("name", HERE)
def test_gpu_gives_the_published_output(name, read_vector, golden_here):
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    vector = read_vector(golden_here / f"{name}.npz")
    net = ours(name, vector.spec["constructor"]).eval()
    net.load_state_dict(vector.state(), strict=True)
    with torch.inference_mode():
        vector.spec["tolerance"]["atol"] *= 10
        vector.check([head.cpu() for head in net.cuda().training_heads(*(x.cuda() for x in vector.inputs()))])
