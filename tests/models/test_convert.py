import os
import pickle
import tomllib
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from napari_fmseg.core.errors import UnknownModel, UnwritableVolume, WeightsMismatch
from napari_fmseg.models.convert import convert_checkpoint
from napari_fmseg.models.weights import load_model
from napari_fmseg.nets import build


@pytest.fixture
def edge():
    torch.manual_seed(0)
    return build("edgenet")


def save(content, path: Path) -> Path:
    torch.save(content, path)
    return path


def published(net):
    optimizer = torch.optim.Adam(net.parameters())
    return {"net": net.state_dict(), "optimizer": optimizer.state_dict(), "epoch": 3}


@pytest.mark.parametrize("layout", ["published", "plain", "several GPUs", "half"])
def test_checkpoint_becomes_safetensors_and_a_card(layout, edge, tmp_path):
    state = edge.state_dict()
    content = {
        "published": published(edge),
        "plain": state,
        "several GPUs": {"net": {f"module.{k}": v for k, v in state.items()}},
        "half": {k: v.half().float().half() for k, v in state.items()},
    }[layout]
    done = convert_checkpoint(save(content, tmp_path / "best.pth"), "edgenet", tmp_path / "liver.safetensors")
    assert done.n_parameters == 1090
    assert done.epoch == (3 if layout == "published" else None)
    loaded = {key.removeprefix("edge."): value for key, value in load_file(done.weights).items()}
    again = build("edgenet")
    again.load_state_dict(loaded, strict=True)
    tolerance = 1e-3 if layout == "half" else 0
    for key, value in state.items():
        torch.testing.assert_close(loaded[key], value, rtol=tolerance, atol=tolerance)
    card = tomllib.loads(done.card.read_text())
    assert card["nets"] == {"edge": {"network": "edgenet", "kwargs": {}}}
    assert card["weights"] == "liver.safetensors"
    assert card["labels"] == {"1": "class 1"}
    assert sorted(p.name for p in tmp_path.iterdir()) == ["best.pth", "liver.safetensors", "liver.toml"]


def test_arguments_of_the_network_stand_in_the_card(tmp_path):
    net = build("snet", n_classes=3, variant="v2", width=8)
    path = save(net.state_dict(), tmp_path / "a.pt")
    done = convert_checkpoint(path, "snet", tmp_path / "b", n_classes=3, variant="v2", width=8)
    card = tomllib.loads(done.card.read_text())
    assert card["nets"]["consensus"]["kwargs"] == {"n_classes": 3, "variant": "v2", "width": 8}
    assert list(card["labels"]) == ["1", "2"]


class Payload:
    def __init__(self, witness):
        self.witness = str(witness)

    def __reduce__(self):
        return os.mkdir, (self.witness,)


@pytest.mark.parametrize("layout", ["pickle", "zip", "inside"])
def test_pickle_with_code_is_refused_and_does_not_run(layout, edge, tmp_path):
    witness, path = tmp_path / "it ran", tmp_path / "evil.pth"
    if layout == "pickle":
        path.write_bytes(pickle.dumps({"net": Payload(witness)}))
    elif layout == "zip":
        save(Payload(witness), path)
    else:
        save({**published(edge), "note": Payload(witness)}, path)
    with pytest.raises(WeightsMismatch, match=r"evil\.pth was refused.*run code") as caught:
        convert_checkpoint(path, "edgenet", tmp_path / "out.safetensors")
    assert "weights_only" not in str(caught.value), "torch's advice to open it unsafely is not passed on"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["evil.pth"]


@pytest.mark.parametrize("content", [b"", b"not a checkpoint", b"PK\x03\x04 cut", b"\x80\x02."])
def test_file_that_is_no_checkpoint_is_refused(content, tmp_path):
    path = tmp_path / "broken.pth"
    path.write_bytes(content)
    with pytest.raises(WeightsMismatch, match=r"broken\.pth was refused"):
        convert_checkpoint(path, "edgenet", tmp_path / "out")


def test_truncated_checkpoint_is_refused(edge, tmp_path):
    path = save(published(edge), tmp_path / "cut.pth")
    path.write_bytes(path.read_bytes()[:5000])
    with pytest.raises(WeightsMismatch, match="was refused"):
        convert_checkpoint(path, "edgenet", tmp_path / "out")


def test_altered_checkpoint_is_refused_or_read_as_numbers(edge, tmp_path):
    path = save(published(edge), tmp_path / "altered.pth")
    with zipfile.ZipFile(path) as source:
        parts = {name: source.read(name) for name in source.namelist()}
    with zipfile.ZipFile(path, "w") as target:
        for name, value in parts.items():
            target.writestr(name, value[::-1] if name.endswith("data.pkl") else value)
    with pytest.raises(WeightsMismatch, match="was refused"):
        convert_checkpoint(path, "edgenet", tmp_path / "out")


def test_missing_file_is_refused(tmp_path):
    with pytest.raises(WeightsMismatch, match=r"nowhere\.pth was refused"):
        convert_checkpoint(tmp_path / "nowhere.pth", "edgenet", tmp_path / "out")


@pytest.mark.parametrize("content", [[1, 2], {}, {"net": {}}, {"a": 1}, {"model": {"a": torch.zeros(1)}}])
def test_checkpoint_without_weights_is_refused(content, tmp_path):
    with pytest.raises(WeightsMismatch, match="holds no weights"):
        convert_checkpoint(save(content, tmp_path / "a.pt"), "edgenet", tmp_path / "out")


def test_weights_of_another_network_are_refused_by_name(edge, tmp_path):
    path = save(edge.state_dict(), tmp_path / "edge.pt")
    with pytest.raises(WeightsMismatch, match=r"30 missing \['con.bias'.*4 surplus \['fc.0.bias'"):
        convert_checkpoint(path, "snet", tmp_path / "out")
    with pytest.raises(WeightsMismatch, match=r"3 of another shape.*\(8, 3, 3, 3, 3\) not \(8, 4, 3, 3, 3\)"):
        convert_checkpoint(path, "edgenet", tmp_path / "out", n_classes=3)
    assert not (tmp_path / "out.safetensors").exists()


def test_weights_that_are_not_numbers_are_refused(edge, tmp_path):
    edge.fc[0].bias.data[0] = float("nan")
    with pytest.raises(WeightsMismatch, match=r"not numbers.*fc\.0\.bias"):
        convert_checkpoint(save(edge.state_dict(), tmp_path / "a.pt"), "edgenet", tmp_path / "out")


def test_unknown_network_is_refused(edge, tmp_path):
    with pytest.raises(UnknownModel, match="unet"):
        convert_checkpoint(save(edge.state_dict(), tmp_path / "a.pt"), "unet", tmp_path / "out")


def test_folder_that_is_not_there_is_made(edge, tmp_path):
    done = convert_checkpoint(save(edge.state_dict(), tmp_path / "a.pt"), "edgenet", tmp_path / "new" / "out")
    assert done.weights.is_file()
    assert done.card.is_file()


def test_place_below_a_file_is_refused(edge, tmp_path):
    path = save(edge.state_dict(), tmp_path / "a.pt")
    with pytest.raises(UnwritableVolume, match=r"out\.safetensors was not written"):
        convert_checkpoint(path, "edgenet", path / "out")
    assert [file.name for file in tmp_path.iterdir()] == ["a.pt"]


SMALL = {
    "fmunet": {"widths": [2, 2, 4, 4, 4]},
    "pctnet": {"widths": [2, 2, 4, 4, 8], "heads": [1, 1, 2], "windows": [3, 2, 2], "flat_levels": 1},
}


def misfm(net):
    """As MIS-FM saves it: the best score is a numpy scalar."""
    optimizer = torch.optim.Adam(net.parameters(), 1e-3)
    return {
        "iteration": 6000, "valid_pred": np.float32(0.9071), "model_state_dict": net.state_dict(),
        "optimizer_state_dict": optimizer.state_dict(),
    }  # fmt: skip


@pytest.mark.parametrize("network", SMALL)
def test_checkpoint_of_misfm_converts_and_loads(network, tmp_path):
    net = build(network, **SMALL[network], **({"legacy": True} if network == "pctnet" else {}))
    path = save({**misfm(net), "valid_pred": np.float64(0.9)}, tmp_path / "volf.pt")
    assert b"multiarray" in path.read_bytes()
    done = convert_checkpoint(save(misfm(net), path), network, tmp_path / "out", **SMALL[network])
    assert done.epoch == 6000
    assert done.taken == tuple(net.state_dict())
    assert done.fresh == ()
    model = load_model(done.card, device="cpu")
    assert model.card.pipeline == "single"
    again = model.nets["net"].state_dict()
    assert all(torch.equal(again[key], value) for key, value in net.state_dict().items())
    assert model.card.nets["net"].kwargs.get("legacy", False) is (network == "pctnet")


def test_weights_with_correct_positions_are_told_from_the_published_ones(tmp_path):
    net = build("pctnet", **SMALL["pctnet"])
    done = convert_checkpoint(save(misfm(net), tmp_path / "a.pt"), "pctnet", tmp_path / "out", **SMALL["pctnet"])
    assert not load_model(done.card, device="cpu").nets["net"].legacy
    with pytest.raises(WeightsMismatch, match="legacy=False"):
        convert_checkpoint(tmp_path / "a.pt", "pctnet", tmp_path / "out", legacy=True, **SMALL["pctnet"])


@pytest.mark.parametrize(("network", "fresh"), [
    ("fmunet", {f"out_layers.{i}.2.{w}" for i in range(4) for w in ("weight", "bias")}),
    ("pctnet", {f"{place}.conv.2.{w}" for w in ("weight", "bias") for place in (
        "pyramid_ct.out_conv2", "pyramid_ct.out_conv3",
        *(f"pred_heads.{m}.out_conv{i}" for m in range(3) for i in range(2)),
    )}),
])  # fmt: skip
def test_heads_of_other_classes_are_drawn_anew_and_named(network, fresh, tmp_path):
    kwargs = {**SMALL[network], **({"legacy": True} if network == "pctnet" else {})}
    net = build(network, n_classes=5, **kwargs)
    path = save(misfm(net), tmp_path / "volf.pt")
    with pytest.raises(WeightsMismatch, match="ask for new heads"):
        convert_checkpoint(path, network, tmp_path / "out", n_classes=3, **kwargs)
    done = convert_checkpoint(path, network, tmp_path / "out", n_classes=3, new_heads=True, **kwargs)
    assert set(done.fresh) == fresh
    assert {*done.taken, *done.fresh} == net.state_dict().keys()
    again = load_model(done.card, device="cpu").nets["net"].state_dict()
    assert all(torch.equal(again[key], net.state_dict()[key]) for key in done.taken)
    assert "train the model" in done.card.read_text()


def test_new_heads_do_not_hide_another_network(tmp_path):
    path = save(misfm(build("fmunet", **SMALL["fmunet"])), tmp_path / "volf.pt")
    with pytest.raises(WeightsMismatch, match="of another shape"):
        convert_checkpoint(path, "fmunet", tmp_path / "out", new_heads=True, widths=[2, 2, 4, 4, 8])


@pytest.mark.parametrize("place", ["valid_pred", "iteration", "note"])
def test_code_beside_the_numpy_scalar_is_refused_and_does_not_run(place, tmp_path):
    witness = tmp_path / "it ran"
    path = save({**misfm(build("fmunet", **SMALL["fmunet"])), place: Payload(witness)}, tmp_path / "evil.pt")
    with pytest.raises(WeightsMismatch, match=r"evil\.pt was refused.*run code"):
        convert_checkpoint(path, "fmunet", tmp_path / "out", **SMALL["fmunet"])
    assert not witness.exists()


def test_array_of_objects_is_refused(tmp_path):
    content = {**misfm(build("fmunet", **SMALL["fmunet"])), "valid_pred": np.array([Payload(tmp_path / "it ran")])}
    with pytest.raises(WeightsMismatch, match="was refused"):
        convert_checkpoint(save(content, tmp_path / "a.pt"), "fmunet", tmp_path / "out", **SMALL["fmunet"])
    assert not (tmp_path / "it ran").exists()


LADDERS = [
    ("baseunet", {"channels": [2, 4, 4, 4, 4], "n_classes": 4}, "coarse"),
    ("baseunet", {"channels": [2, 4, 4, 4, 4, 6], "encoder": 2, "decoder": 4, "auxiliary": 1}, "coarse"),
    ("efficientsegnet", {"channels": [2, 4, 4, 4, 8], "n_classes": 8, "encoder_blocks": [2, 2, 1, 2, 3]}, "fine"),
    ("efficientsegnet", {"channels": [2, 4, 4, 4, 8], "context": "maximum", "encoder": "anisotropic"}, "fine"),
    (
        "contextunet",
        {"channels": [2, 4, 4, 4, 8], "context": "none", "decoder": "residual", "decoder_blocks": 2},
        "net",
    ),
]


@pytest.mark.parametrize(("network", "kwargs", "part"), LADDERS)
def test_efficientsegmentation_checkpoint_tells_how_its_network_is_built(network, kwargs, part, tmp_path):
    net = build(network, **kwargs)
    content = {"epoch": 7, "lr": 1e-3, "optimizer_dict": {"state": {}, "param_groups": []},
               "state_dict": {f"module.{k}": v for k, v in net.state_dict().items()}}  # fmt: skip
    done = convert_checkpoint(save(content, tmp_path / "best_model.pt"), network, tmp_path / "flare")
    assert (done.part, done.epoch) == (part, 7)
    card = tomllib.loads(done.card.read_text())
    assert card["pipeline"] == ("single" if part == "net" else "coarse_fine")
    assert card["intensity"] == {"kind": "window_zscore", "low": -325.0, "high": 325.0}
    again = load_model(done.card, device="cpu").nets[part]
    for key, value in net.state_dict().items():
        assert torch.equal(again.state_dict()[key], value)
