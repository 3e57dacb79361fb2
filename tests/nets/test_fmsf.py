import pytest
import torch

from napari_fmseg.core.errors import GeometryMismatch, UnknownModel
from napari_fmseg.nets import build
from napari_fmseg.nets.fmsf import HALO, EdgeNet, SNet, kaiming_init

HERE = ["fmsf_v1_snet_outc2_ruleb", "fmsf_v1_edgenet_outc2_ruleb", "fmsf_v2_edgenet_outc2_ruleb"]
ALL = [
    *("fmsf_v1_attnnet_outc14", "fmsf_v1_attnnet_outc2_odd", "fmsf_v1_attnnet_outc2_ruleb", "fmsf_v1_edgenet_outc14"),
    *("fmsf_v1_edgenet_outc2_ruleb", "fmsf_v1_snet_outc14", "fmsf_v1_snet_outc2_odd", "fmsf_v1_snet_outc2_ruleb"),
    *("fmsf_v2_edgenet_outc2_ruleb", "fmsf_v2_snet_outc14", "fmsf_v2_snet_outc2_ruleb"),
]


def check(vector, name):
    _, variant, network, *_ = name.split("_")
    sizes = vector.spec["constructor"]
    net = build(network, in_channels=sizes["inc"], n_classes=sizes["outc"], variant=variant).eval()
    net.load_state_dict(vector.state(), strict=True)
    with torch.inference_mode():
        heads = net.heads(*vector.inputs())
        vector.check(heads)
        torch.testing.assert_close(net(*vector.inputs()), heads[0], rtol=0, atol=0)


@pytest.mark.parametrize("name", HERE)
def test_network_gives_the_published_output(name, read_vector, golden_here):
    check(read_vector(golden_here / f"{name}.npz"), name)


@pytest.mark.real
@pytest.mark.parametrize("name", ALL)
def test_network_gives_every_published_output(name, read_vector, golden_shared):
    check(read_vector(golden_shared / f"{name}.npz"), name)


def test_attention_weights_fit_the_consensus_network():
    build("snet", n_classes=3).load_state_dict(build("attnnet", n_classes=3).state_dict(), strict=True)


@pytest.mark.parametrize(("name", "kwargs", "n_parameters"), [
    ("snet", {}, 416_264), ("snet", {"n_classes": 14}, 417_848), ("edgenet", {}, 1_090),
    ("edgenet", {"n_classes": 14}, 6_286), ("edgenet", {"variant": "v2"}, 416_696),
])  # fmt: skip
def test_network_has_the_published_number_of_parameters(name, kwargs, n_parameters):
    assert sum(p.numel() for p in build(name, **kwargs).parameters()) == n_parameters


def test_edge_network_is_exact_on_tiles_with_a_halo(draw):
    net = EdgeNet(n_classes=3).eval()
    image, segmentation = draw(1, "random", (1, 1, 20, 18, 16), 1, 0), draw(2, "random", (1, 3, 20, 18, 16), 1, 0)
    cut = 11
    with torch.inference_mode():
        whole = net(image, segmentation)
        first = net(image[:, :, : cut + HALO], segmentation[:, :, : cut + HALO])[:, :, :cut]
        second = net(image[:, :, cut - HALO :], segmentation[:, :, cut - HALO :])[:, :, HALO:]
    torch.testing.assert_close(torch.cat([first, second], 2), whole, rtol=0, atol=1e-6)


def test_edge_network_v2_survives_an_empty_segmentation(draw):
    image = draw(1, "random", (1, 1, 64, 32, 32), 1, 0)
    empty = torch.cat([torch.ones_like(image), torch.zeros_like(image)], 1)
    with torch.inference_mode():
        assert EdgeNet(variant="v2", width=4).eval()(image, empty).isfinite().all()


def test_initial_weights_are_repeatable_and_kaiming():
    one, two = (kaiming_init(SNet(), torch.Generator().manual_seed(3)) for _ in range(2))
    weight = one.encoders[1].weight
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), two.parameters(), strict=True))
    assert weight.std().item() == pytest.approx((2 / (1 + 0.25**2) / (32 * 27)) ** 0.5, rel=0.05)
    assert not one.encoders[1].bias.any()


def test_attention_with_several_channels_is_refused():
    with pytest.raises(GeometryMismatch, match="1 channels"):
        build("attnnet").eval()(torch.zeros(1, 1, 32, 32, 32), torch.zeros(1, 2, 32, 32, 32))


@pytest.mark.parametrize("kwargs", [{"variant": "v3"}, {"n_classes": 1}, {"in_channels": 0}])
def test_impossible_network_is_refused(kwargs):
    with pytest.raises(UnknownModel, match="SNet"):
        build("snet", **kwargs)
