import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from napari_fmseg.core.errors import GeometryMismatch, UnknownModel
from napari_fmseg.nets import build
from napari_fmseg.nets.layers.blocks import default_init, draw_as_torch
from napari_fmseg.nets.layers.region_attention import CrossRegionAttention, GuidedBoundary
from napari_fmseg.nets.layers.ux_block import DXBlock

HERE = ["uxnet3d_outc2_aniso"]
ALL = [
    *("ma3dseg_crmsa_d64_ruleb", "ma3dseg_dx_block_dim48_ruleb", "ma3dseg_ibs_sdm_16_2_ruleb"),
    *("ma3dseg_repo_uxnet_outc2_ruleb", "uxnet3d_outc14", "uxnet3d_outc2_aniso", "uxnet3d_outc2_ruleb"),
]


def part_of(said):
    """Build the network or module that a vector was made with."""
    if "region_num" in said:
        return CrossRegionAttention(said["dim"], said["num_heads"], said["region_num"])
    if "dim" in said:
        return DXBlock(said["dim"], published=True)
    return GuidedBoundary(said["in_channel"], said["guidance_channels"])


def check(name, vector):
    said = vector.spec["constructor"]
    if "out_chans" in said:
        block = "dx" if name.startswith("ma3dseg") else "ux"
        net = build("uxnet3d", in_channels=said["in_chans"], n_classes=said["out_chans"], block=block)
    else:
        net = part_of(said)
    assert list(net.state_dict()) == [key for key, *_ in vector.spec["state"]]
    net.load_state_dict(vector.state(), strict=True)
    inputs = vector.inputs()
    with torch.inference_mode():
        outputs = [net.eval()(*inputs)]
        if len(vector.outputs) > 1:
            outputs += net.features(*inputs)
    vector.check(outputs)


@pytest.mark.parametrize("name", HERE)
def test_module_gives_the_published_output(name, read_vector, golden_here):
    check(name, read_vector(golden_here / f"{name}.npz"))


@pytest.mark.real
@pytest.mark.parametrize("name", [name for name in ALL if name not in HERE])
def test_network_gives_every_published_output(name, read_vector, golden_shared):
    check(name, read_vector(golden_shared / f"{name}.npz"))


@pytest.mark.real
def test_every_published_vector_is_tried(golden_shared):
    assert {path.stem for kind in ("ma3dseg", "uxnet3d") for path in golden_shared.glob(f"{kind}*.npz")} == set(ALL)


def cost(net, size=96):
    """Parameters and multiply-adds of one volume, counted without computing anything."""
    net = net.to("meta").eval()
    with FlopCounterMode(display=False) as counter, torch.inference_mode():
        net(torch.zeros(1, 1, size, size, size, device="meta"))
    return sum(p.numel() for p in net.parameters()), counter.get_total_flops() / 2


def test_reconstruction_is_twenty_times_lighter_than_its_backbone():
    light, heavy = cost(build("ma3dseg")), cost(build("uxnet3d"))
    assert heavy[0] == 53_005_922
    assert heavy[1] == pytest.approx(577.3e9, rel=1e-3)
    assert light[0] == 2_366_835
    assert heavy[0] > 20 * light[0]
    assert heavy[1] > 20 * light[1]


def test_published_code_is_not_lighter_than_its_backbone():
    assert sum(p.numel() for p in build("uxnet3d", block="dx").parameters()) == 53_891_522


SMALL = {"widths": (4, 4, 8, 8), "stem": 4}


@pytest.mark.parametrize("kwargs", [{"guided": False}, {"block": "ux"}, {"boundary": True}, {"activation": "sigmoid"}])
def test_every_part_of_the_reconstruction_can_be_switched(kwargs):
    torch.manual_seed(0)
    net = build("ma3dseg", n_classes=3, **SMALL, **kwargs)
    output = net(torch.rand(1, 1, 33, 20, 17))
    assert output.shape == (1, 2 if "activation" in kwargs else 3, 33, 20, 17)
    output.square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in net.parameters())


def test_guided_path_changes_the_result():
    torch.manual_seed(0)
    net, x = build("ma3dseg", **SMALL).eval(), torch.rand(1, 1, 32, 32, 32)
    with torch.inference_mode():
        expected = net(x)
        net.gates = None
        assert not torch.allclose(net(x), expected)


def test_side_heads_are_given_in_training_only():
    net, x = build("ma3dseg", supervised=True, **SMALL), torch.rand(1, 1, 32, 48, 32)
    assert [tuple(y.shape[2:]) for y in net.train()(x)] == [(32, 48, 32), (16, 24, 16), (8, 12, 8), (4, 6, 4)]
    assert net.eval()(x).shape == (1, 2, 32, 48, 32)


@pytest.mark.parametrize("anew", [False, True])
@pytest.mark.parametrize(("name", "kwargs"), [("ma3dseg", SMALL), ("uxnet3d", {"widths": (4, 4, 8, 8), "hidden": 8})])
def test_air_does_not_blow_the_gradient_up(name, kwargs, anew):
    torch.manual_seed(0)
    net, x = build(name, **kwargs), torch.zeros(1, 1, 32, 48, 32)
    x[..., 20:28, 20:28, 20:28] = torch.rand(8, 8, 8)
    if anew:
        default_init(net, torch.Generator().manual_seed(0))
    net(x).log_softmax(1)[:, 1].mean().backward()
    assert torch.stack([p.grad.norm() for p in net.parameters() if p.grad is not None]).norm() < 10


def test_weights_drawn_as_torch_does_have_the_spread_of_its_own_layers():
    torch.manual_seed(0)
    theirs, ours = torch.nn.Conv3d(8, 64, 3, groups=2), torch.nn.Conv3d(8, 64, 3, groups=2)
    draw_as_torch(ours, torch.Generator().manual_seed(1))
    for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
        assert not torch.equal(a, b)
        assert a.std().item() == pytest.approx(b.std().item(), rel=0.2)
        assert a.abs().max().item() == pytest.approx(b.abs().max().item(), rel=0.1)


def test_items_of_a_batch_do_not_mix_in_the_region_attention(draw):
    part, tokens = CrossRegionAttention(16).eval(), draw(1, "standard_normal", (2, 50, 16), 1, 0)
    with torch.inference_mode():
        torch.testing.assert_close(part(tokens)[1:], part(tokens[1:]))


def test_boundary_kernels_start_as_differences_of_the_corners():
    kernel = GuidedBoundary(2, 1).sdc1.x_kernel_diff
    assert kernel[:, :, 0, 0, 0].eq(-1).all()
    assert kernel[:, :, 0, 2, 0].eq(1).all()
    assert kernel[:, :, 2, 2, 0].eq(-1).all()
    assert kernel[:, :, 2, 2, 2].eq(1).all()


def test_size_that_cannot_be_halved_is_refused():
    with pytest.raises(GeometryMismatch, match=r"multiples of 16 voxels, not \(32, 40, 32\)"):
        build("uxnet3d")(torch.zeros(1, 1, 32, 40, 32))


def test_volume_of_one_deepest_voxel_is_refused():
    with pytest.raises(GeometryMismatch, match="32 voxels along one axis"):
        build("ma3dseg")(torch.zeros(1, 1, 20, 20, 20))


@pytest.mark.parametrize("kwargs", [{"block": "conv"}, {"widths": (4, 8)}, {"depths": (0, 1, 1, 1)}])
def test_impossible_network_is_refused(kwargs):
    with pytest.raises(UnknownModel, match="UXNet"):
        build("uxnet3d", **kwargs)
