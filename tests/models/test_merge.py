"""Networks that were converted one by one become one model that segments."""

import dataclasses

import pytest
import torch

from napari_fmseg.cli.main import main
from napari_fmseg.core.errors import WeightsMismatch
from napari_fmseg.core.events import drain
from napari_fmseg.datasets.phantom import phantom_ct
from napari_fmseg.models.card import read_card, write_card
from napari_fmseg.models.merge import join_models
from napari_fmseg.models.weights import load_model
from napari_fmseg.nets import build
from napari_fmseg.pipelines import segment

BLOCKS = {"n_classes": 3, "channels": (2, 4, 4, 6, 6)}


@pytest.fixture
def published(tmp_path):
    """A coarse and a fine network as EfficientSegmentation saves them, converted."""
    nets = {}
    for part, network in (("coarse", "baseunet"), ("fine", "efficientsegnet")):
        torch.manual_seed(len(nets))
        nets[part] = build(network, **BLOCKS)
        torch.save({"epoch": 3, "state_dict": nets[part].state_dict()}, tmp_path / f"{part}.pt")
        words = ["convert", str(tmp_path / f"{part}.pt"), "--network", network, "--output", str(tmp_path / part)]
        assert main(words) == 0
    return nets


def change(path, **fields):
    write_card(dataclasses.replace(read_card(path), **fields), path)


def test_coarse_and_fine_become_one_model_with_their_weights(published, tmp_path, capsys):
    change(tmp_path / "coarse.toml", settings={"coarse_size": [64, 64, 64], "fine_size": [64, 64, 128]})
    change(tmp_path / "fine.toml", settings={"coarse_size": [64, 64, 64], "fine_size": [64, 64, 128]})
    change(tmp_path / "fine.toml", labels={1: "liver", 2: "class 2"}, licence="MIT")
    words = [str(tmp_path / "coarse.toml"), str(tmp_path / "fine.toml"), "--output", str(tmp_path / "flare")]
    assert main(["models", "join", *words]) == 0
    assert capsys.readouterr().out.splitlines()[-1].endswith("flare.toml")
    model = load_model(tmp_path / "flare.toml", device="cpu")
    assert model.card.pipeline == "coarse_fine"
    assert model.card.labels == {1: "liver", 2: "class 2"}
    assert "MIT" in model.card.licence
    for part, net in published.items():
        for key, value in net.state_dict().items():
            assert torch.equal(model.nets[part].state_dict()[key], value)
    volume = phantom_ct(1, shape=(24, 32, 32), spacing=(12.0, 10.0, 10.0))[0]
    assert drain(segment(volume, model)).geometry == volume.geometry


def test_what_does_not_go_together_is_refused_and_nothing_is_written(published, tmp_path):
    coarse, fine = tmp_path / "coarse.toml", tmp_path / "fine.toml"
    with pytest.raises(WeightsMismatch, match="two or more"):
        join_models([coarse], tmp_path / "out")
    with pytest.raises(WeightsMismatch, match="same name"):
        join_models([coarse, coarse], tmp_path / "out")
    change(coarse, labels={1: "spleen", 2: "class 2"})
    change(fine, labels={1: "liver", 2: "class 2"})
    with pytest.raises(WeightsMismatch, match="'spleen' in one card and 'liver'"):
        join_models([coarse, fine], tmp_path / "out")
    change(fine, labels={1: "spleen"})
    with pytest.raises(WeightsMismatch, match="2 classes, fine has 1"):
        join_models([coarse, fine], tmp_path / "out")
    change(fine, channels=("CT", "PET"))
    with pytest.raises(WeightsMismatch, match="differ in channels"):
        join_models([coarse, fine], tmp_path / "out")
    assert not (tmp_path / "out.safetensors").exists()


def test_a_stage_that_is_missing_between_others_is_named(tmp_path):
    for part, network in (("consensus", "snet"), ("edge", "edgenet")):
        torch.save(build(network, n_classes=2).state_dict(), tmp_path / f"{part}.pt")
        words = ["convert", str(tmp_path / f"{part}.pt"), "--network", network, "--n-classes", "2"]
        assert main([*words, "--output", str(tmp_path / part)]) == 0
    with pytest.raises(WeightsMismatch, match="only consensus, edge came"):
        join_models([tmp_path / "consensus.toml", tmp_path / "edge.toml"], tmp_path / "out")
