import copy

import pytest
import torch

from napari_fmseg.core.errors import GeometryMismatch, UnknownModel
from napari_fmseg.nets import build
from napari_fmseg.nets.unet3d import ATTENTIONS

KINDS = {
    **{"pam_unet3d": "none", "pam_unet3d_in4": "none", "pam_cseunet3d": "cse", "pam_csunet3d": "csa"},
    **{"pam_scunet3d": "sca", "pam_peunet3d": "pe", "pam_paunet3d": "pam", "pam_paunet3d_ag": "pam"},
    **{"pam_vnet": "none", "pam_csevnet": "cse", "pam_pavnet": "pam"},
}


def check(name, vector):
    said = vector.spec["constructor"]
    kwargs = {"in_channels": said["in_channels"], "n_classes": said["out_channels"], "width": said["fmaps_degree"]}
    if "depth" in said:
        hierarchy = said.get("slices_hierarchy", said.get("slice_hierarchy"))
        kwargs |= {"slices": said["depth"], "slice_reduction": hierarchy, "compat": True}
    if "channel_hierarchy" in said:
        kwargs["reduction"] = said["channel_hierarchy"]
    kwargs["gated"] = said.get("use_spatial_attention", False)
    net = build("vnet" if "vnet" in name else "unet3d", attention=KINDS[name], **kwargs)
    assert set(net.state_dict()) == {key for key, *_ in vector.spec["state"]}
    net.load_state_dict(vector.state(), strict=True)
    with torch.inference_mode():
        vector.check([net.eval()(*vector.inputs()).softmax(1)])


@pytest.mark.real
@pytest.mark.parametrize("name", KINDS)
def test_network_gives_every_published_output(name, read_vector, golden_shared):
    check(name, read_vector(golden_shared / f"{name}.npz"))


@pytest.mark.real
def test_every_published_network_is_tried(golden_shared):
    assert {path.stem for path in golden_shared.glob("pam_*net*.npz")} == set(KINDS)


@pytest.mark.parametrize(("name", "kwargs", "n_parameters"), [
    ("unet3d", {"n_classes": 3}, 1_022_123), ("unet3d", {"n_classes": 11}, 1_022_259),
    ("unet3d", {"in_channels": 4, "n_classes": 4}, 1_022_788),
    ("vnet", {"in_channels": 4, "n_classes": 4, "width": 8}, 1_723_828),
])  # fmt: skip
def test_network_has_the_published_number_of_parameters(name, kwargs, n_parameters):
    assert sum(p.numel() for p in build(name, **kwargs).parameters()) == n_parameters


@pytest.mark.parametrize("attention", ATTENTIONS)
@pytest.mark.parametrize("backbone", ["unet3d", "vnet"])
def test_every_attention_works_in_every_backbone(backbone, attention):
    torch.manual_seed(0)
    net = build(backbone, in_channels=3, n_classes=2, width=4, attention=attention, slices=20, reduction=2)
    y = net.train()(torch.rand(1, 3, 17, 32, 16))
    assert y.shape == (1, 2, 17, 32, 16)
    y.square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in net.parameters())


@pytest.mark.parametrize("attention", [kind for kind in ATTENTIONS if kind not in ("none", "stn", "dual")])
def test_attention_changes_the_result_and_adds_weights(attention):
    torch.manual_seed(0)
    plain, net = (build("unet3d", width=4, attention=kind, slices=16).eval() for kind in ("none", attention))
    shared = {key: value for key, value in net.state_dict().items() if key in plain.state_dict()}
    plain.load_state_dict(shared, strict=True)
    x = torch.rand(1, 1, 16, 16, 16)
    with torch.inference_mode():
        assert not torch.allclose(net(x), plain(x))


def test_copied_network_owns_its_attention():
    net = build("unet3d", width=4, attention="pam", slices=16)
    again = copy.deepcopy(net).double()
    assert again(torch.rand(1, 1, 16, 16, 16, dtype=torch.float64)).dtype == torch.float64
    assert {p.dtype for p in net.parameters()} == {torch.float32}


def test_transformed_network_gives_the_result_of_the_still_one_for_no_change():
    torch.manual_seed(0)
    plain, net = (build("unet3d", width=4, attention=kind).eval() for kind in ("none", "stn"))
    plain.load_state_dict({k: v for k, v in net.state_dict().items() if not k.startswith("transformer.")}, strict=True)
    x = torch.rand(1, 1, 16, 16, 16)
    with torch.inference_mode():
        torch.testing.assert_close(net(x), plain(x), rtol=0, atol=1e-3)


def test_other_number_of_slices_than_in_training_is_possible():
    net = build("unet3d", width=4, attention="pam", slices=24).eval()
    with torch.inference_mode():
        assert net(torch.rand(1, 1, 9, 16, 16)).shape == (1, 2, 9, 16, 16)


@pytest.mark.parametrize(("backbone", "smallest"), [("unet3d", 8), ("vnet", 16)])
def test_volume_of_one_deepest_voxel_is_refused(backbone, smallest):
    with pytest.raises(GeometryMismatch, match=f"{2 * smallest} voxels along one axis"):
        build(backbone)(torch.zeros(1, 1, smallest, smallest, smallest))


@pytest.mark.parametrize("kwargs", [{"attention": "love"}, {"width": 3}, {"slices": 0}, {"activation": "relu"}])
def test_impossible_network_is_refused(kwargs):
    with pytest.raises(UnknownModel, match="VNet"):
        build("vnet", **kwargs)
