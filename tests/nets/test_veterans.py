import pytest
import torch

from napari_fmseg.core.errors import UnknownModel
from napari_fmseg.nets import build


def reach(net, size=61):
    """How many voxels along one axis can change the middle voxel's answer."""
    x = torch.rand(1, 1, size, 9, 9, requires_grad=True)
    net.eval()(x)[0, 0, size // 2, 4, 4].backward()
    rows = x.grad[0, 0].abs().sum((1, 2)).nonzero().flatten()
    return (rows.max() - rows.min() + 1).item()


def test_fine_pathway_sees_17_voxels():
    torch.manual_seed(0)
    net = build("deepmedic", widths=(2,) * 8, hidden=4)
    net.join[3].weight.data[:, 2:] = 0  # deaf for the coarse pathway
    assert reach(net) == 17


def test_both_pathways_see_51_voxels():
    torch.manual_seed(0)
    assert reach(build("deepmedic", widths=(2,) * 8, hidden=4)) == 51


def test_deepmedic_has_the_published_layers():
    net = build("deepmedic")
    assert [layer[-1].out_channels for layer in net.fine.layers] == [30, 30, 40, 40, 40, 40, 50, 50]
    assert [part.out_channels for part in net.join if isinstance(part, torch.nn.Conv3d)] == [150, 150, 2]


def test_residual_deepmedic_adds_no_weights():
    torch.manual_seed(0)
    plain, added = (build("deepmedic", widths=(2,) * 8, hidden=4, residual=flag).eval() for flag in (False, True))
    added.load_state_dict(plain.state_dict(), strict=True)
    x = torch.rand(1, 1, 9, 10, 11)
    with torch.inference_mode():
        assert not torch.allclose(plain(x), added(x))


def test_voxresnet_adds_its_four_levels():
    net = build("voxresnet", width=4, side=2)
    total, *parts = net.train()(torch.rand(1, 1, 9, 10, 11))
    assert len(parts) == 4
    torch.testing.assert_close(total, sum(parts))


def test_anatomynet_halves_once_only():
    sizes = []
    net = build("anatomynet", widths=(4, 4, 4))
    for part in net.modules():
        if isinstance(part, torch.nn.Conv3d):
            part.register_forward_hook(lambda _, __, out: sizes.append(tuple(out.shape[2:])))
    net(torch.rand(1, 1, 16, 12, 8))
    assert set(sizes) == {(16, 12, 8), (8, 6, 4)}


@pytest.mark.parametrize(("name", "kwargs"), [
    ("deepmedic", {"widths": ()}), ("anatomynet", {"widths": (4,)}), ("voxresnet", {"n_classes": 1}),
])  # fmt: skip
def test_impossible_network_is_refused(name, kwargs):
    with pytest.raises(UnknownModel, match=r"DeepMedic|AnatomyNet|VoxResNet"):
        build(name, **kwargs)
