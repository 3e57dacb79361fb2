import os
import pickle
import tomllib
import zipfile
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from napari_fmseg.convert import convert_checkpoint
from napari_fmseg.errors import UnknownModel, UnwritableVolume, WeightsMismatch
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
    with pytest.raises(WeightsMismatch, match=r"evil\.pth was refused.*run code"):
        convert_checkpoint(path, "edgenet", tmp_path / "out.safetensors")
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


def test_place_that_is_not_there_is_refused(edge, tmp_path):
    with pytest.raises(UnwritableVolume, match="Choose a folder"):
        convert_checkpoint(save(edge.state_dict(), tmp_path / "a.pt"), "edgenet", tmp_path / "no" / "out")
