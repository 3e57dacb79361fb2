import copy
import sys

import pytest
import torch

from napari_fmseg.core.errors import GeometryMismatch, MissingExtra, UnknownModel
from napari_fmseg.nets import NETWORKS, build

NAMES = sorted(name for name, place in NETWORKS.items() if ".classic:" in place)
FEW = {"channels": (2, 4, 4)}


@pytest.fixture
def monai():
    return pytest.importorskip("monai")


@pytest.mark.parametrize("name", NAMES)
def test_network_of_monai_is_missed_with_the_fix(name, monkeypatch):
    for package in ("monai", "monai.networks.nets", "einops"):
        monkeypatch.setitem(sys.modules, package, None)  # as if it were not installed
    with pytest.raises(MissingExtra, match=r"pip install 'napari-fmseg\[classic\]'"):
        build(name)


@pytest.mark.usefixtures("monai")
def test_weights_of_monai_fit():
    from monai.networks.nets import UNet

    theirs = UNet(3, 1, 3, (2, 4, 4), (2, 2), num_res_units=2).eval()
    ours = build("monai-unet", n_classes=3, **FEW).eval()
    ours.load_state_dict(theirs.state_dict(), strict=True)
    x = torch.rand(1, 1, 8, 12, 16)
    with torch.inference_mode():
        assert torch.equal(ours(x), theirs(x))


@pytest.mark.usefixtures("monai")
def test_further_arguments_reach_monai():
    assert "BATCH" not in str(build("monai-unet", **FEW)).upper()
    assert "BATCHNORM" in str(build("monai-unet", norm="BATCH", **FEW)).upper()


@pytest.mark.usefixtures("monai")
@pytest.mark.parametrize("size", [(8, 8, 9), (4, 4, 4)])
def test_size_that_cannot_be_halved_is_refused(size):
    with pytest.raises(GeometryMismatch, match="multiples of 4 voxels, and 8 or more along one axis"):
        build("monai-unet", **FEW)(torch.zeros(1, 1, *size))


@pytest.mark.usefixtures("monai")
def test_other_size_than_it_was_built_for_is_refused():
    pytest.importorskip("einops")
    small = {"hidden_size": 24, "mlp_dim": 24, "num_heads": 2}
    with pytest.raises(GeometryMismatch, match=r"built for volumes of \(16, 16, 32\) voxels, not \(32, 16, 16\)"):
        build("monai-unetr", size=(16, 16, 32), width=2, **small)(torch.zeros(1, 1, 32, 16, 16))


@pytest.mark.usefixtures("monai")
def test_copied_network_still_refuses():
    net = copy.deepcopy(build("monai-unet", **FEW))
    with pytest.raises(GeometryMismatch, match="1, z, y, x"):
        net(torch.zeros(1, 2, 8, 8, 8))


@pytest.mark.usefixtures("monai")
def test_argument_that_monai_does_not_take_is_refused():
    with pytest.raises(UnknownModel, match=r"MONAI's UNet.*depth"):
        build("monai-unet", depth=3)
