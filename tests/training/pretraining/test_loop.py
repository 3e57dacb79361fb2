"""Pretraining on a folder of unlabelled volumes: the loss falls, bad files are told, a killed run is continued."""

import dataclasses
import shutil

import numpy as np
import pytest
import torch
from scipy import ndimage

from napari_fmseg.core.errors import GeometryMismatch, InvalidRecipe
from napari_fmseg.core.events import FILE_LEFT_OUT, EpochDone, Pictures, Progress, Saved, StepDone, Warned
from napari_fmseg.core.volume import Geometry, Volume
from napari_fmseg.io import write_volume
from napari_fmseg.models.registry import find_card
from napari_fmseg.models.weights import load_model
from napari_fmseg.training import Fusion, PretrainRecipe, load_pretrain_recipe, pretrain
from napari_fmseg.training.pretraining.volume_store import decode_volume

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
        Warned, Pictures, EpochDone, Saved, Pictures, EpochDone, Saved, Saved,
    ]  # fmt: skip
    warning = next(e for e in events if isinstance(e, Warned))
    assert "broken.nii.gz is left out" in warning.text
    assert warning.code == FILE_LEFT_OUT
    assert [e.step for e in events if isinstance(e, StepDone)] == list(range(1, 9))
    epoch = [e for e in events if isinstance(e, EpochDone)][-1]
    assert set(epoch.metrics) == {"loss", "dice", "waiting", "samples_per_s"}
    assert 0 <= epoch.metrics["waiting"] <= 1
    model = load_model(events[-1].path, device="cpu")
    assert model.card.n_classes == 3
    assert "segments nothing" in model.card.limits


def test_volumes_that_were_decoded_elsewhere_give_the_same_model(folder, tmp_path):
    decoded = []

    def decode(store):
        for item in store.decoding_items():
            decode_volume(item)
            decoded.append(item["path"])
            yield Progress("decoding", len(decoded), len(store))

    assert len(list(pretrain(recipe_of(folder, tmp_path / "here", steps=2, steps_per_epoch=2)))) > 4
    list(pretrain(recipe_of(folder, tmp_path / "there", steps=2, steps_per_epoch=2), decode))
    assert len(decoded) == 5
    assert same_weights(tmp_path / "here", tmp_path / "there")


def same_weights(one, two):
    a, b = (load_model(folder / "small.toml", device="cpu").nets["net"].state_dict() for folder in (one, two))
    return all(torch.equal(x, y) for x, y in zip(a.values(), b.values(), strict=True))


def until_step(run, last):
    for event in run:
        yield event
        if isinstance(event, StepDone) and event.step == last:
            return


def test_killed_and_stopped_runs_are_continued_exactly(folder, tmp_path):
    whole = list(pretrain(recipe_of(folder, tmp_path / "whole")))
    stopped = pretrain(recipe_of(folder, tmp_path / "stopped"))
    first = losses(until_step(stopped, 6))
    shutil.copytree(tmp_path / "stopped", tmp_path / "killed")  # as it would lie there after kill -9
    stopped.close()
    assert "6 of 8 steps" in find_card(tmp_path / "stopped" / "small.toml").trained_on  # to be used as it is
    for name, done in (("killed", 4), ("stopped", 6)):
        second = list(pretrain(recipe_of(folder, tmp_path / name)))
        assert first[:done] + losses(second) == losses(whole)
        assert [e.metrics["loss"] for e in second if isinstance(e, EpochDone)] == [
            e.metrics["loss"] for e in whole if isinstance(e, EpochDone)
        ][1:]
        assert same_weights(tmp_path / "whole", tmp_path / name)


def test_of_a_run_stopped_before_its_first_step_nothing_is_left(folder, tmp_path):
    run = pretrain(recipe_of(folder, tmp_path))
    next(run)
    run.close()
    assert not list(tmp_path.glob("*.pt"))
    assert not list(tmp_path.glob("*.toml"))


def test_given_minutes_become_steps_that_a_resumed_run_keeps(folder, tmp_path):
    run = pretrain(recipe_of(folder, tmp_path, minutes=5.0))
    steps = [e for e in until_step(run, 7) if isinstance(e, StepDone)]
    run.close()
    assert steps[0].total == 0  # nobody knows yet
    assert steps[-1].total > 7
    assert {e.lr for e in steps} == {1e-3}
    again = pretrain(recipe_of(folder, tmp_path, minutes=5.0))
    resumed = next(e for e in again if isinstance(e, StepDone))
    again.close()
    assert (resumed.step, resumed.total) == (8, steps[-1].total)


def test_time_that_is_over_at_once_still_takes_a_step(folder, tmp_path):
    events = list(pretrain(recipe_of(folder, tmp_path, minutes=1e-6)))
    assert [e.step for e in events if isinstance(e, StepDone)] == [1]
    assert isinstance(events[-1], Saved)


def test_pictures_of_a_held_out_sample_lie_in_a_file_without_pickle(folder, tmp_path):
    events = [e for e in pretrain(recipe_of(folder, tmp_path)) if isinstance(e, Pictures)]
    assert [e.step for e in events] == [4, 8]
    with np.load(events[-1].path, allow_pickle=False) as arrays:
        assert set(arrays) == {"fused volume", "target", "prediction", "spacing"}
        assert arrays["fused volume"].shape == arrays["target"].shape == arrays["prediction"].shape == (16, 20, 20)
        assert set(np.unique(arrays["target"])) <= {0, 1, 2}


@pytest.mark.parametrize("mode", ["blocks", "boxes"])
def test_pretext_loss_falls(mode, folder, tmp_path):
    fusion = Fusion((16, 20, 20), 1, mode, block=((6, 6, 6), (8, 8, 8)), box=((6, 6, 6), (10, 10, 10)), boxes=(2, 6),
                    spatial=False, intensity=False)  # fmt: skip
    changes = {"fusion": fusion, "steps": 40, "steps_per_epoch": 20, "lr": 5e-3, "other_volume": mode == "boxes"}
    course = losses(pretrain(recipe_of(folder, tmp_path, **changes)))
    assert np.mean(course[-10:]) < np.mean(course[:5])


def test_folder_of_another_run_is_not_touched(folder, tmp_path):
    list(pretrain(recipe_of(folder, tmp_path, steps=1)))
    with pytest.raises(InvalidRecipe, match="another recipe"):
        next(pretrain(recipe_of(folder, tmp_path, seed=1)))


def test_results_of_segmentations_are_not_learned_from(folder, tmp_path):
    shutil.copytree(folder, tmp_path / "scans", ignore=shutil.ignore_patterns("broken*"))
    for name in ("a_seg.nii.gz", "below/d_seg.nii.gz"):
        shutil.copy(folder / "a.nii.gz", tmp_path / "scans" / name)
        (tmp_path / "scans" / f"{name}.json").write_text('{"format": "napari-fmseg run 1"}')  # as we write it
    model = load_model(list(pretrain(recipe_of(tmp_path / "scans", tmp_path / "out", steps=1)))[-1].path, device="cpu")
    assert model.card.trained_on.startswith("3 unlabelled volumes")  # the fourth is held out


def test_folder_without_volumes_is_refused(folder, tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(InvalidRecipe, match="no volume"):
        list(pretrain(recipe_of(tmp_path / "empty", tmp_path / "a")))


NETWORKS = {
    "fmunet": SMALL,
    "pctnet": {"widths": [4, 4, 8, 8, 8], "heads": [1, 1, 1], "windows": [3, 3, 3]},
    "baseunet": {"channels": [2, 4, 4, 4, 8]},
    "efficientsegnet": {"channels": [2, 4, 4, 4, 8], "context": "none"},
    "ma3dseg": {"widths": [4, 4, 8, 8], "depths": [1, 1, 1, 1], "stem": 4},
    "unet3d": {"width": 4},
    "vnet": {"width": 4},
    "voxresnet": {"width": 8, "side": 4},
    "monai-segresnet": {"width": 8},
}


@pytest.mark.parametrize("network", NETWORKS)
def test_networks_of_the_registry_are_pretrained(network, folder, tmp_path):
    if network.startswith("monai"):
        pytest.importorskip("monai")
    fusion = Fusion((16, 32, 32), 2, block=((4, 4, 4), (8, 8, 8)))
    changes = {"network": network, "kwargs": NETWORKS[network], "fusion": fusion, "validate_samples": 1}
    events = list(pretrain(recipe_of(folder, tmp_path, **changes, steps=2, steps_per_epoch=2)))
    assert np.isfinite(losses(events)).all()
    model = load_model(events[-1].path, device="cpu")
    assert model.nets["net"].activation == "softmax"
    assert model.nets["net"](torch.rand(1, 1, 16, 32, 32)).shape == (1, 3, 16, 32, 32)


@pytest.mark.parametrize(
    ("network", "kwargs", "why"),
    [
        ("snet", {}, "phased"),
        ("attnnet", {}, "phased"),
        ("edgenet", {}, "phased"),
        ("unet3d", {"activation": "sigmoid"}, "every voxel of a sample has one class"),
    ],
)
def test_network_that_cannot_tell_mixtures_is_refused_with_the_reason(network, kwargs, why, folder, tmp_path):
    with pytest.raises(InvalidRecipe, match=why):
        next(pretrain(recipe_of(folder, tmp_path / "run", network=network, kwargs=kwargs)))
    assert not (tmp_path / "run").exists()


def test_samples_of_a_size_that_the_network_does_not_take_are_refused_before_a_volume_is_read(folder, tmp_path):
    with pytest.raises(GeometryMismatch):
        next(pretrain(recipe_of(folder, tmp_path / "run", network="vnet", kwargs={"width": 4})))
    fusion = Fusion((8, 8, 8), 2, block=((4, 4, 4), (8, 8, 8)))
    with pytest.raises(GeometryMismatch):
        next(pretrain(recipe_of(folder, tmp_path / "run", fusion=fusion)))


def test_finer_volumes_are_brought_to_the_spacing_that_is_asked_for(folder, tmp_path):
    list(pretrain(recipe_of(folder, tmp_path / "run", spacing_mm=(1.0, 2.0, 2.0), steps=1)))
    shapes = sorted(np.load(path).shape for path in (tmp_path / "run" / "volumes").glob("*.npy"))
    assert shapes == [(20 + i, 15, 14 + i) for i in range(4)]  # of (20 + i, 30, 28 + 2 i) at 2 x 1 x 1 mm
    card = find_card(tmp_path / "run" / "small.toml")
    assert list(card.settings["spacing_mm"]) == [1.0, 2.0, 2.0]


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


@pytest.mark.parametrize(
    "changes",
    [
        {"steps": 0},
        {"lr": 0.0},
        {"holdout": 1.0},
        {"name": "a/b"},
        {"cache_gb": -1},
        {"devices": 0},
        {"batch": 3, "devices": 2},
        {"spacing_mm": (1.0, 0.0, 1.0)},
        {"spacing_mm": (1.0, float("inf"), 1.0)},
        {"spacing_mm": (1.0,)},
        *(
            {name: value}
            for name in ("lr", "minutes", "clip", "weight_decay", "holdout", "cache_gb")
            for value in (float("nan"), float("inf"), -1.0)
        ),
        *({name: value} for name in ("seed", "steps", "batch", "validate_samples") for value in (-1, 2**40, True)),
    ],
)
def test_impossible_recipe_is_refused(changes, tmp_path):
    with pytest.raises(InvalidRecipe):
        PretrainRecipe(**{"name": "x", "volumes": tmp_path, "out": tmp_path, **changes})


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("lr = nan", "lr"),
        ("minutes = inf", "minutes"),
        ("lr = -1", "lr"),
        ("seed = -1", "seed"),
        ("steps = 99999999999999999999", "steps"),
        ("[fusion]\nshare = nan", r"fusion\.share"),
        ("[fusion]\npatch = [0, 1, 1]", r"fusion\.patch"),
        ("[fusion]\nscale = [2.0, 1.0]", "smaller comes first"),
        ("a = " + "[" * 100_000, "deeply"),
    ],
)
def test_number_that_makes_no_sense_is_told_with_file_and_field(line, told, tmp_path):
    (tmp_path / "r.toml").write_text(f'name = "a"\nvolumes = "v"\nout = "o"\n{line}\n')
    with pytest.raises(InvalidRecipe, match=rf"r\.toml.*{told}"):
        load_pretrain_recipe(tmp_path / "r.toml")
