import numpy as np
import pytest
import torch

from napari_fmseg.core.errors import UnknownModel
from napari_fmseg.nets import build
from napari_fmseg.nets.layers.attention import (
    CBAM,
    AttentionGate,
    ChannelAttention,
    DualAttention,
    ProjectExcite,
    SpaceChannelAttention,
    SpatialAttention,
    SpatialTransformer,
    SplitAttention,
    inverse,
    warp,
)
from napari_fmseg.nets.layers.blocks import default_init
from napari_fmseg.nets.layers.slice_attention import (
    ChannelThenSlice,
    ProgressiveAttention,
    SliceAttention,
    SliceThenChannel,
    key_slices,
)

HERE = ["pam_full_avg_and_max", "pam_gate"]
MODULES = {
    "pam_cse": lambda c, p: ChannelAttention(c["channel"], c["channel_hierarchy"], p),
    "pam_full": lambda c, p: ProgressiveAttention(
        *(c["sSE"]["in_channels"], c["sSE"]["slices_number"], c["cSE"]["channel_hierarchy"]),
        *(c["sSE"]["slices_hierarchy"], p),
        compat=True,
    ),
    "pam_slice": lambda c, p: SliceAttention(
        c["in_channels"], c["slices_number"], c["slices_hierarchy"], p, compat=True
    ),
    "pam_pe": lambda c, _: ProjectExcite(c["num_channels"], c["reduction_ratio"]),
    "pam_splitconv": lambda c, _: SplitAttention(c["in_channels"], c["out_channels"], pooling="max"),
    "pam_gate": lambda c, _: AttentionGate(c["in_channels"], c["gate_channels"], c["inter_channels"]),
    "pam_dual": lambda c, _: DualAttention(c["in_channels"], c["out_channels"], c["reduction"]),
}
ALL = [
    *(f"pam_{kind}_{pooling}" for kind in ("cse", "full") for pooling in ("avg", "max", "avg_and_max")),
    *("pam_slice_avg", "pam_slice_avg_and_max", "pam_pe", "pam_splitconv", "pam_gate", "pam_dual"),
]


def check(name, vector):
    kind = next(kind for kind in MODULES if name.startswith(kind))
    part = MODULES[kind](vector.spec["constructor"], name.removeprefix(kind).strip("_")).eval()
    assert set(part.state_dict()) == {key for key, *_ in vector.spec["state"]}
    part.load_state_dict(vector.state(), strict=True)
    x = vector.inputs()
    with torch.inference_mode():
        if kind == "pam_full":
            outputs = part.select(*x)
        elif kind == "pam_gate":
            outputs = [part(*x), part.gate(*x)]
        else:
            outputs = [part(*x)]
    vector.check(outputs)


@pytest.mark.parametrize("name", HERE)
def test_module_gives_the_published_output(name, read_vector, golden_here):
    check(name, read_vector(golden_here / f"{name}.npz"))


@pytest.mark.real
@pytest.mark.parametrize("name", [name for name in ALL if name not in HERE])
def test_module_gives_every_published_output(name, read_vector, golden_shared):
    check(name, read_vector(golden_shared / f"{name}.npz"))


SHAPE = (2, 8, 6, 7, 5)
PARTS = {
    "cse": lambda: ChannelAttention(8, 2),
    "cse max": lambda: ChannelAttention(8, 2, "max"),
    "sse": lambda: SpatialAttention(8),
    "scse": lambda: SpaceChannelAttention(8, 2),
    "scse sum": lambda: SpaceChannelAttention(8, 2, "sum"),
    "cbam": lambda: CBAM(8, 4),
    "pe": lambda: ProjectExcite(8),
    "pe-sum": lambda: ProjectExcite(8, original=True),
    "slice": lambda: SliceAttention(8, 6, 2),
    "slice of other depth": lambda: SliceAttention(8, 9, 2, "avg_and_max"),
    "csa": lambda: ChannelThenSlice(8, 6, 2, 2),
    "sca": lambda: SliceThenChannel(8, 6, 2, 2, "max"),
    "pam": lambda: ProgressiveAttention(8, 6, 2, 2),
    "pam max": lambda: ProgressiveAttention(8, 6, 2, 2, "max"),
    "pam of other depth": lambda: ProgressiveAttention(8, 11, 2, 2, "avg_and_max"),
    "split": lambda: SplitAttention(8, 8),
    "split in groups": lambda: SplitAttention(8, 8, groups=2),
    "dual": lambda: DualAttention(8, 8, 2),
    "stn": lambda: SpatialTransformer(8),
}


@pytest.fixture(params=PARTS)
def part(request):
    torch.manual_seed(0)
    return PARTS[request.param]()


def test_every_module_keeps_the_shape_and_teaches_all_its_weights(part, draw):
    x = draw(1, "standard_normal", SHAPE, 1, 0).requires_grad_()
    y = part(x)
    assert y.shape == SHAPE
    y.square().sum().backward()
    assert x.grad.isfinite().all()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in part.parameters())


def test_every_module_leaves_its_input_and_the_rest_of_the_batch_alone(part, draw):
    x = draw(1, "standard_normal", SHAPE, 1, 0)
    given = x.clone()
    with torch.inference_mode():
        y = part.eval()(x)
        torch.testing.assert_close(part(x[1:]), y[1:], rtol=0, atol=1e-5)
    assert torch.equal(x, given)


def gate_by_hand(part, x):
    """Slice attention channel by channel and slice by slice, in plain numpy."""
    y = np.empty(x.shape[:3])
    for b in range(x.shape[0]):
        for c in range(x.shape[1]):
            fc = part.Slice_SE_encoder[c].fc
            w1, b1, w2, b2 = (p.detach().double().numpy() for p in fc.parameters())
            s = np.array([x[b, c, z].double().mean() for z in range(x.shape[2])])
            y[b, c] = 1 / (1 + np.exp(-(w2 @ np.maximum(w1 @ s + b1, 0) + b2)))
    return y


def test_slice_attention_equals_a_perceptron_per_channel(draw):
    part, x = SliceAttention(8, 6, 2).eval(), draw(1, "standard_normal", SHAPE, 1, 0)
    np.testing.assert_allclose(part.weights(x).detach().numpy(), gate_by_hand(part, x), atol=1e-6)


def test_key_slices_have_at_least_the_mean_share():
    assert key_slices(torch.tensor([[[0.2, 0.5, 0.6, 0.9]]])).tolist() == [[[0, 0, 1, 1]]]


def test_key_slices_equal_the_softmax_against_its_mean(draw):
    y = draw(3, "random", (4, 5, 17), 1, 0)
    assert torch.equal(key_slices(y), (y.softmax(2) >= 1 / 17).float())


@pytest.mark.parametrize("value", [0.0, 0.3, 0.1234567, 1.0])
def test_there_is_always_a_key_slice(value):
    assert key_slices(torch.full((1, 3, 40), value)).sum(2).min() >= 1


def test_channel_attention_of_the_key_slices_averages_over_these_only(draw):
    part, x = ProgressiveAttention(8, 6, 2, 2).eval(), draw(1, "standard_normal", SHAPE, 1, 0)
    with torch.inference_mode():
        y, mask = part.select(x)
        attended = part.sSE(x)
        chosen = [[attended[b, c, mask[b, c] > 0].mean() for c in range(8)] for b in range(2)]
        expected = attended * torch.sigmoid(part.cSE.fc(torch.tensor(chosen)))[..., None, None, None]
    assert 0 < mask.sum() < mask.numel()
    torch.testing.assert_close(y, expected)


def test_descriptor_of_the_key_slices_carries_no_gradient(draw):
    part, x = ProgressiveAttention(8, 6, 2, 2), draw(1, "standard_normal", SHAPE, 1, 0).requires_grad_()
    attended, (y, _) = part.sSE(x), part.select(x)
    scale = (y / attended).detach()
    (found,) = torch.autograd.grad(y.sum(), x, retain_graph=True)
    (expected,) = torch.autograd.grad((attended * scale).sum(), x)
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4)


def test_maximum_differs_from_the_published_average_unless_asked_to(draw):
    x = draw(1, "standard_normal", SHAPE, 1, 0)
    true, published = (ProgressiveAttention(8, 6, 2, 2, "max", compat=compat).eval() for compat in (False, True))
    published.load_state_dict(true.state_dict())
    with torch.inference_mode():
        assert not torch.allclose(true(x), published(x))


def test_original_project_and_excite_adds_the_projections(draw):
    part, x = ProjectExcite(8, original=True).eval(), draw(1, "standard_normal", SHAPE, 1, 0)
    total = torch.stack([x.mean(axes, keepdim=True).expand(SHAPE) for axes in ((3, 4), (2, 4), (2, 3))]).sum(0)
    with torch.inference_mode():
        expected = x * part.conv_cT(part.conv_c(total).relu()).sigmoid()
        torch.testing.assert_close(part(x), expected)


def test_channel_attention_equals_that_of_monai(draw):
    blocks = pytest.importorskip("monai.networks.blocks")
    theirs, ours = blocks.ChannelSELayer(3, 8, r=2), ChannelAttention(8, 2)
    ours.load_state_dict(theirs.state_dict(), strict=True)
    x = draw(1, "standard_normal", SHAPE, 1, 0)
    with torch.inference_mode():
        torch.testing.assert_close(ours(x), theirs(x), rtol=0, atol=1e-6)


def test_spatial_gate_of_cbam_sees_what_its_kernel_gathers(draw):
    part, x = CBAM(8, 4).eval(), draw(1, "standard_normal", SHAPE, 1, 0)
    with torch.inference_mode():
        before = part(x)
        part.conv.weight.mul_(-3)
        assert not torch.allclose(part(x), before)


def test_split_shares_add_up_to_one(draw):
    """Equal splits come out as they went in, whatever the shares."""
    part, x = SplitAttention(8, 8).eval(), draw(1, "standard_normal", SHAPE, 1, 0)
    with torch.inference_mode():
        x[:, 4:] = x[:, :4]
        part.conv.weight[8:] = part.conv.weight[:8]
        torch.testing.assert_close(part(x), part.conv(x)[:, :8].relu())


def test_transformer_starts_with_no_change(draw):
    x = draw(1, "standard_normal", SHAPE, 1, 0)
    with torch.inference_mode():
        torch.testing.assert_close(SpatialTransformer(8)(x), x, rtol=0, atol=1e-4)


def test_transformer_whose_weights_are_drawn_anew_starts_with_no_change_too(draw):
    x = draw(1, "standard_normal", SHAPE, 1, 0)
    with torch.inference_mode():
        torch.testing.assert_close(default_init(SpatialTransformer(8))(x), x, rtol=0, atol=1e-4)


def test_map_that_is_turned_and_turned_back_lies_where_it_was():
    z, y, x = torch.meshgrid(*(torch.linspace(-1, 1, n) for n in (20, 24, 16)), indexing="ij")
    smooth = (torch.sin(2 * x) + y * z)[None, None]
    matrix = torch.tensor([[[0.9, -0.2, 0.1, 0.1], [0.2, 0.9, 0.0, -0.05], [0.0, 0.1, 1.1, 0.0]]])
    turned = warp(smooth, matrix)
    inside = (..., slice(6, -6), slice(6, -6), slice(5, -5))
    assert (turned - smooth)[inside].abs().max() > 0.1
    torch.testing.assert_close(warp(turned, inverse(matrix))[inside], smooth[inside], rtol=0, atol=0.02)


def test_gate_lies_between_nothing_and_everything(draw):
    gate = AttentionGate(8, 16).gate(draw(1, "standard_normal", (1, 8, 9, 7, 8), 1, 0), torch.randn(1, 16, 4, 3, 4))
    assert gate.shape == (1, 1, 9, 7, 8)
    assert gate.min() >= 0
    assert gate.max() <= 1


@pytest.mark.parametrize("make", [
    lambda: ChannelAttention(8, pooling="median"), lambda: SliceAttention(8, 6, pooling="sum"),
    lambda: SplitAttention(7, 8), lambda: SpaceChannelAttention(8, combine="mean"),
])  # fmt: skip
def test_impossible_module_is_refused(make):
    with pytest.raises(UnknownModel):
        make()


@pytest.mark.parametrize("kind", ["cse", "slice", "csa", "sca", "pam"])
def test_drawn_attention_starts_nearly_open(kind):
    attended = default_init(
        build("unet3d", width=4, attention=kind, slices=16), torch.Generator().manual_seed(0)
    ).eval()
    seen = []
    for level in range(1, 5):
        layer = getattr(attended, f"EncoderLayer{level}")
        layer._attention.register_forward_hook(lambda _, x, out: seen.append(float((out / x[0]).detach().nanmedian())))
    attended(torch.randn(1, 1, 16, 16, 16, generator=torch.Generator().manual_seed(1)))
    assert len(seen) == 4
    assert all(0.85 < share < 1 for share in seen), seen
