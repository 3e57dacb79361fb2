"""Pretraining on a folder of unlabelled volumes: the loss falls, bad files are told, a killed run is continued."""

import dataclasses

import numpy as np
import pytest
import torch
from scipy import ndimage

from napari_fmseg.errors import InvalidRecipe
from napari_fmseg.events import EpochDone, Progress, Saved, StepDone, Warned
from napari_fmseg.io import write_volume
from napari_fmseg.models import load_model
from napari_fmseg.training import Fusion, PretrainRecipe, load_pretrain_recipe, pretrain
from napari_fmseg.volume import Geometry, Volume

SMALL = {"widths": [4, 4, 4, 4, 4], "dropout": 0.1}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Four volumes of mixed formats and sizes, below one another, and a broken one."""
    top = tmp_path_factory.mktemp("volumes")
    (top / "below").mkdir()
    for i, name in enumerate(("a.nii.gz", "b.nrrd", "below/c.mha", "below/d.nii")):
        noise = np.random.default_rng(i).normal(size=(20 + i, 30, 28 + 2 * i))
        data = ndimage.gaussian_filter(noise, 2).astype(np.float32)
        write_volume(Volume(data, Geometry.from_spacing(data.shape, (2.0, 1.0, 1.0))), top / name)
    (top / "broken.nii.gz").write_bytes(b"\x1f\x8bnot a volume")
    return top


def recipe_of(folder, out, **changes):
    fusion = Fusion((16, 20, 20), 2, block=((4, 4, 4), (8, 8, 8)))
    facts = {
        "kwargs": SMALL,
        "fusion": fusion,
        "steps": 8,
        "steps_per_epoch": 4,
        "validate_samples": 3,
        "device": "cpu",
    }
    return PretrainRecipe("small", folder, out, **{**facts, **changes})


def losses(events):
    return [event.loss for event in events if isinstance(event, StepDone)]


def test_run_tells_what_happens_and_leaves_a_model_to_start_from(folder, tmp_path):
    events = list(pretrain(recipe_of(folder, tmp_path)))
    assert [type(e) for e in events if not isinstance(e, Progress | StepDone)] == [
        Warned, EpochDone, Saved, EpochDone, Saved, Saved,
    ]  # fmt: skip
    assert "broken.nii.gz is left out" in next(e.text for e in events if isinstance(e, Warned))
    assert [e.step for e in events if isinstance(e, StepDone)] == list(range(1, 9))
    epoch = [e for e in events if isinstance(e, EpochDone)][-1]
    assert set(epoch.metrics) == {"loss", "dice", "waiting"}
    assert 0 <= epoch.metrics["waiting"] <= 1
    model = load_model(events[-1].path, device="cpu")
    assert model.card.n_classes == 3
    assert "segments nothing" in model.card.limits


def test_killed_run_is_continued_exactly(folder, tmp_path):
    whole = list(pretrain(recipe_of(folder, tmp_path / "whole")))
    killed = pretrain(recipe_of(folder, tmp_path / "killed"))
    first = []
    for event in killed:
        first.append(event)
        if isinstance(event, StepDone) and event.step == 6:
            break
    killed.close()
    second = list(pretrain(recipe_of(folder, tmp_path / "killed")))
    assert losses(first)[:4] + losses(second) == losses(whole)
    one, two = (load_model(tmp_path / run / "small.toml", device="cpu").nets["net"] for run in ("whole", "killed"))
    assert all(torch.equal(a, b) for a, b in zip(one.state_dict().values(), two.state_dict().values(), strict=True))


@pytest.mark.parametrize("mode", ["blocks", "boxes"])
def test_pretext_loss_falls(mode, folder, tmp_path):
    fusion = Fusion((16, 20, 20), 1, mode, block=((6, 6, 6), (8, 8, 8)), box=((6, 6, 6), (10, 10, 10)), boxes=(2, 6),
                    spatial=False, intensity=False)  # fmt: skip
    changes = {"fusion": fusion, "steps": 40, "steps_per_epoch": 20, "lr": 5e-3, "other_volume": mode == "boxes"}
    course = losses(pretrain(recipe_of(folder, tmp_path, **changes)))
    assert np.mean(course[-10:]) < np.mean(course[:5])


def test_folder_of_another_run_is_not_touched(folder, tmp_path):
    next(pretrain(recipe_of(folder, tmp_path)))
    with pytest.raises(InvalidRecipe, match="another recipe"):
        next(pretrain(recipe_of(folder, tmp_path, seed=1)))


def test_folder_without_volumes_and_network_without_logits_are_refused(folder, tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(InvalidRecipe, match="no volume"):
        list(pretrain(recipe_of(tmp_path / "empty", tmp_path / "a")))
    with pytest.raises(InvalidRecipe, match="no logits"):
        list(pretrain(recipe_of(folder, tmp_path / "b", network="snet", kwargs={})))


def test_recipe_is_read_from_toml_with_paths_beside_it(tmp_path):
    text = 'name = "x"\nvolumes = "data"\nout = "run"\nsteps = 7\n[fusion]\npatch = [16, 32, 32]\nmode = "boxes"\n'
    (tmp_path / "r.toml").write_text(text)
    recipe = load_pretrain_recipe(tmp_path / "r.toml", out=tmp_path / "other")
    assert recipe.volumes == tmp_path / "data"
    assert recipe.out == tmp_path / "other"
    assert recipe.fusion == Fusion((16, 32, 32), mode="boxes")
    assert dataclasses.replace(recipe, steps=8).steps == 8
    (tmp_path / "r.toml").write_text(text + 'colour = "red"\n')
    with pytest.raises(InvalidRecipe, match=r"fusion\.colour"):
        load_pretrain_recipe(tmp_path / "r.toml")


@pytest.mark.parametrize("changes", [{"steps": 0}, {"lr": 0.0}, {"holdout": 1.0}, {"name": "a/b"}, {"cache_gb": -1}])
def test_impossible_recipe_is_refused(changes, tmp_path):
    with pytest.raises(InvalidRecipe):
        PretrainRecipe(**{"name": "x", "volumes": tmp_path, "out": tmp_path, **changes})
