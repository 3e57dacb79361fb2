"""Models of nnU-Net v2 become weights and a card of ours; nothing in their files is run."""

from __future__ import annotations

import copy
import json
import os
import pickle
import re
import shutil
import zipfile
from pathlib import Path

import pytest
import torch

from napari_fmseg.cli.main import main
from napari_fmseg.core.errors import FmsegError, UnknownModel, UnreadableVolume, WeightsMismatch
from napari_fmseg.models.nnunet import import_nnunet, is_nnunet
from napari_fmseg.models.registry import find_card
from napari_fmseg.models.settings import NNUNetSettings
from napari_fmseg.models.weights import load_model
from napari_fmseg.nets import build

RESIDUAL = {"features": [4, 6, 8], "stem": 5, "convs": [1, 2, 2], "strides": [1, [1, 2, 2], 2]}


def zip_of(folder: Path, path: Path) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as packed:
        for file in sorted(folder.rglob("*")):
            packed.write(file, file.relative_to(folder))
    return path


@pytest.mark.parametrize("how", ["the model's folder", "the folder above", "a zip"])
def test_a_results_folder_or_a_zip_of_it_becomes_a_model_that_loads(how, nnunet_results, tmp_path):
    model = nnunet_results(tmp_path / "results", folds=2)
    given = {
        "the model's folder": model,
        "the folder above": tmp_path / "results",
        "a zip": zip_of(tmp_path / "results", tmp_path / "toy.zip"),
    }[how]
    assert is_nnunet(given)
    (card,) = import_nnunet(given, tmp_path / "models").cards
    assert card.name == "toy-3d-fullres"
    assert card.labels == {1: "liver", 2: "kidneys"}
    assert card.modality == "CT"
    assert card.intensity.kind == "fixed_zscore"
    assert (card.intensity.low, card.intensity.mean, card.intensity.std) == (-200, 40, 120)
    settings = NNUNetSettings.of(card.settings)
    assert settings.window == (16, 16, 16)
    assert settings.spacing_mm == (2.0, 1.5, 1.5)
    assert settings.mirror == (0, 1, 2)
    loaded = load_model(card, device="cpu")
    assert sorted(loaded.nets) == ["windows", "windows-2"]
    torch.manual_seed(1)
    second = build("plainconvunet", n_classes=3, features=[4, 6, 8], strides=[1, 2, 2])
    for key, value in second.state_dict().items():
        torch.testing.assert_close(loaded.nets["windows-2"].state_dict()[key], value, rtol=0, atol=0)


@pytest.mark.parametrize(("network", "kwargs"), [
    ("residualencoderunet", RESIDUAL),
    ("residualencoderunet", {**RESIDUAL, "bottleneck": [3, 3, 4]}),
    ("plainconvunet", {"norm": "batch", "bias": False, "kernels": [[1, 3, 3], 3, 5]}),
    ("plainconvunet", {"convs": [1, 2, 3], "decoder_convs": [2, 1]}),
])  # fmt: skip
def test_the_network_is_read_off_the_weights_and_not_off_the_plans(network, kwargs, nnunet_results, tmp_path):
    model = nnunet_results(tmp_path, network=network, **kwargs)
    (card,) = import_nnunet(model, tmp_path / "models").cards
    net = load_model(card, device="cpu").nets["windows"]
    torch.manual_seed(0)
    expected = build(network, **{"n_classes": 3, "features": [4, 6, 8], "strides": [1, 2, 2], **kwargs})
    x = torch.rand(1, 1, 16, 16, 16)
    with torch.no_grad():
        torch.testing.assert_close(net(x), expected.eval()(x), rtol=0, atol=0)


def test_of_the_folder_of_one_fold_only_that_one_is_taken(nnunet_results, tmp_path):
    model = nnunet_results(tmp_path / "results", folds=2)
    (card,) = import_nnunet(model / "fold_1", tmp_path / "models").cards
    assert card.name == "toy-3d-fullres-fold-1"
    assert list(card.nets) == ["windows"]


def test_weights_of_two_dimensions_and_names_of_wrappers_are_understood(nnunet_plans, nnunet_results, tmp_path):
    def flatten(content):
        weights = content["network_weights"]
        flat = {k: v[:, :, 0] if v.ndim == 5 else v for k, v in weights.items()}
        return {
            **content,
            "network_weights": {f"_orig_mod.module.{k}": v for k, v in flat.items()},
            "inference_allowed_mirroring_axes": (0, 1),
        }

    plans = nnunet_plans((16, 16), (1.5, 1.5))
    flat = {"kernels": [[1, 3, 3]], "strides": [1, [1, 2, 2], [1, 2, 2]], "slicewise": True}
    model = nnunet_results(tmp_path, plans, change=flatten, **flat)
    (card,) = import_nnunet(model, tmp_path / "models").cards
    settings = NNUNetSettings.of(card.settings)
    assert settings.window == (1, 16, 16)
    assert settings.mirror == (1, 2)
    assert settings.sees_slices
    with torch.no_grad():
        x = torch.rand(1, 1, 3, 16, 16)
        net = load_model(card, device="cpu").nets["windows"]
        torch.testing.assert_close(net(x)[:, :, 1:2], net(x[:, :, 1:2]))


def test_plans_of_the_first_versions_give_the_same_model(nnunet_plans, nnunet_results, tmp_path):
    (new,) = import_nnunet(nnunet_results(tmp_path / "new"), tmp_path / "a").cards
    plans = nnunet_plans((16, 16, 16), (2.0, 1.5, 1.5))
    own = plans["configurations"]["3d_fullres"]
    del own["architecture"], plans["label_manager"]
    own |= {"UNet_class_name": "PlainConvUNet", "UNet_base_num_features": 4, "unet_max_num_features": 8}
    plans["foreground_intensity_properties_by_modality"] = plans.pop("foreground_intensity_properties_per_channel")
    model = nnunet_results(tmp_path / "old", plans)
    table = json.loads((model / "dataset.json").read_text())
    table["modality"] = table.pop("channel_names")
    (model / "dataset.json").write_text(json.dumps(table))
    (old,) = import_nnunet(model, tmp_path / "b").cards
    assert (old.settings, old.intensity, old.nets, old.sha256) == (new.settings, new.intensity, new.nets, new.sha256)


def test_regions_are_painted_in_their_order_and_ignored_voxels_have_no_channel(nnunet_results, tmp_path):
    labels = {"background": 0, "whole": [1, 2], "core": 2, "ignore": 3}
    model = nnunet_results(tmp_path, labels=labels, n_classes=3, activation="sigmoid")
    table = json.loads((model / "dataset.json").read_text())
    (model / "dataset.json").write_text(json.dumps({**table, "regions_class_order": [1, 2]}))
    (card,) = import_nnunet(model, tmp_path / "models").cards
    assert card.labels == {1: "whole", 2: "core"}
    assert NNUNetSettings.of(card.settings).regions == (1, 2)
    assert load_model(card, device="cpu").nets["windows"].activation == "sigmoid"


class Evil:
    """What runs code when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def test_a_malicious_checkpoint_is_refused_and_nothing_of_it_runs(nnunet_results, tmp_path):
    trap = tmp_path / "ran"
    model = nnunet_results(tmp_path / "results", change=lambda content: {**content, "logging": Evil(trap)})
    with pytest.raises(WeightsMismatch, match=f"it names {os.mkdir.__module__}.mkdir"):
        import_nnunet(model, tmp_path / "models")
    assert not trap.exists()
    with pytest.raises(pickle.UnpicklingError):
        torch.load(model / "fold_0" / "checkpoint_final.pth", weights_only=True)
    function, arguments = Evil(trap).__reduce__()
    function(*arguments)
    assert trap.exists()  # what the checkpoint asks for would have made it
    assert not (tmp_path / "models").exists()


@pytest.mark.parametrize("name", ["../outside/plans.json", "/etc/outside", "a/../../outside"])
def test_a_zip_whose_names_lead_out_of_it_is_refused(name, nnunet_results, tmp_path):
    nnunet_results(tmp_path / "results")
    path = zip_of(tmp_path / "results", tmp_path / "toy.zip")
    with zipfile.ZipFile(path, "a") as packed:
        packed.writestr(name, "{}")
    with pytest.raises(UnreadableVolume, match="leads out of its folder"):
        import_nnunet(path, tmp_path / "models")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["results", "toy.zip"]


def test_a_pickle_beside_the_model_is_never_opened(nnunet_results, tmp_path):
    model = nnunet_results(tmp_path)
    trap = tmp_path / "ran"
    for name in ("postprocessing.pkl", "plans.pkl"):
        (model / name).write_bytes(pickle.dumps(Evil(trap)))
    assert import_nnunet(model, tmp_path / "models").cards
    assert not trap.exists()


def alter(plans, path, value):
    plans = copy.deepcopy(plans)
    *way, last = path.split("/")
    place = plans
    for step in way:
        place = place[step]
    place[last] = value
    return plans


OWN = "configurations/3d_fullres"
ARCHITECTURE = f"{OWN}/architecture"


@pytest.mark.parametrize(("path", "value", "refusal"), [
    ("label_manager", "MyLabels", "label manager of this nnU-Net model is 'MyLabels'"),
    ("image_reader_writer", "a.b.ZarrIO", "reader of this nnU-Net model is 'ZarrIO'"),
    (f"{OWN}/preprocessor_name", "Mine", "preprocessor of this nnU-Net model is 'Mine'"),
    (f"{OWN}/resampling_fn_data", "resample_lanczos", "resampling of this nnU-Net model is 'resample_lanczos'"),
    (f"{OWN}/normalization_schemes", ["x.y.Mine"], "normalisation of this nnU-Net model is 'Mine'"),
    (f"{ARCHITECTURE}/network_class_name", "x.Primus", "network of this nnU-Net model is 'Primus'"),
    (f"{ARCHITECTURE}/arch_kwargs", {"nonlin": "os.system"}, "nonlin of this nnU-Net model is 'system'"),
    (f"{ARCHITECTURE}/arch_kwargs", {"norm_op_kwargs": {"eps": 1e-3}}, "another eps"),
    (f"{OWN}/inherits_from", "nothing", "no configuration 'nothing'"),
    (f"{OWN}/patch_size", [16, 16, 18], "multiples of 4"),
    (f"{OWN}/patch_size", "large", "do not describe the configuration"),
    (f"{OWN}/previous_stage", "3d_lowres", "second stage of a cascade"),
    ("configurations", {"2d": {}}, "no configuration '3d_fullres'"),
])  # fmt: skip
def test_what_cannot_be_run_here_is_refused_by_its_name(path, value, refusal, nnunet_plans, nnunet_results, tmp_path):
    model = nnunet_results(tmp_path, alter(nnunet_plans((16, 16, 16), (2, 1.5, 1.5)), path, value))
    with pytest.raises(FmsegError, match=re.escape(refusal)):
        import_nnunet(model, tmp_path / "models")


def test_another_network_is_refused_with_the_name_of_its_trainer(nnunet_results, tmp_path):
    def rename(content):
        weights = {key.replace("stages", "levels"): value for key, value in content["network_weights"].items()}
        return {**content, "network_weights": weights, "trainer_name": "nnUNetTrainerUMamba"}

    with pytest.raises(UnknownModel, match="trainer 'nnUNetTrainerUMamba' made a network that is neither"):
        import_nnunet(nnunet_results(tmp_path, change=rename), tmp_path / "models")


def test_a_surplus_or_missing_tensor_is_refused(nnunet_results, tmp_path):
    def spoil(content):
        return {**content, "network_weights": {**content["network_weights"], "gate.weight": torch.zeros(1)}}

    with pytest.raises(WeightsMismatch, match=r"surplus \['gate.weight'\]"):
        import_nnunet(nnunet_results(tmp_path, change=spoil), tmp_path / "models")


def test_a_model_of_version_1_is_refused_as_such(tmp_path):
    (tmp_path / "fold_0").mkdir()
    (tmp_path / "plans.pkl").write_bytes(b"")
    with pytest.raises(UnknownModel, match="nnU-Net v1"):
        import_nnunet(tmp_path, tmp_path / "models")
    assert is_nnunet(tmp_path)
    (tmp_path / "empty").mkdir()
    assert not is_nnunet(tmp_path / "empty")


def test_command_line_imports_a_folder_and_says_what_it_segments(nnunet_results, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("FMSEG_HOME", str(tmp_path / "home"))
    model = nnunet_results(tmp_path / "results")
    assert main(["models", "import", str(model)]) == 0
    assert "toy-3d-fullres, version 1: liver, kidneys" in capsys.readouterr().out
    assert find_card("toy-3d-fullres").pipeline == "nnunet"
    shutil.rmtree(model)
    assert load_model("toy-3d-fullres", device="cpu").card.title == "Toy (3d_fullres, nnU-Net)"
