"""A recipe from the data and the machine, in plain words."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from napari_fmseg.core.errors import InvalidRecipe
from napari_fmseg.core.events import Saved
from napari_fmseg.core.volume import Geometry, LabelMap, Volume
from napari_fmseg.io import write_labels, write_volume
from napari_fmseg.models.card import ModelCard, NetSpec
from napari_fmseg.models.registry import GENERAL_START, list_models
from napari_fmseg.models.weights import load_model, save_model
from napari_fmseg.nets import build
from napari_fmseg.training import Case, planner, train
from napari_fmseg.training.data.statistics import DatasetStatistics, facts_of
from napari_fmseg.training.planner import suggest_recipe


def dataset(folder: Path, *, offset: float = 0.0, small: bool = False, names: Any = None) -> Path:
    rng = np.random.default_rng(0)
    for part in ("imagesTr", "labelsTr"):
        (folder / part).mkdir(parents=True, exist_ok=True)
    for i in range(5):
        data, labels = rng.normal(offset, 5, (20, 40, 60)).astype(np.float32), np.zeros((20, 40, 60), np.uint8)
        labels[5:7, 5:7, 5:7] = 1
        labels[8:16, 10:30, 20:50] = 0 if small else 2
        data[labels > 0] += 1100
        geometry = Geometry.from_spacing(labels.shape, (3.0, 1.0, 1.0))
        write_volume(Volume(data, geometry), folder / "imagesTr" / f"c{i}_0000.nii.gz")
        write_labels(LabelMap(labels, geometry), folder / "labelsTr" / f"c{i}.nii.gz")
    (folder / "dataset.json").write_text(json.dumps({"labels": names or {"background": 0, "dot": 1, "block": 2}}))
    return folder


def test_the_data_are_described_as_they_are(tmp_path: Path) -> None:
    folder = dataset(tmp_path / "data", offset=-1000)
    cases = [
        Case(f"c{i}", (folder / f"imagesTr/c{i}_0000.nii.gz",), folder / f"labelsTr/c{i}.nii.gz") for i in range(5)
    ]
    facts = facts_of(cases, {1: "dot", 2: "ignore"}, ("dot",))
    assert facts.shape == (20, 40, 60)
    assert facts.spacing == pytest.approx((3, 1, 1))
    assert facts.is_hounsfield
    assert facts.sparse
    assert facts.window == pytest.approx((100, 100), abs=20)
    assert facts.share["dot"] == pytest.approx(8 / (48_000 - 4800))


@pytest.mark.parametrize(("piece", "together"), [((5, 6), True), ((5, 7), False)])
def test_a_structure_is_one_piece_where_other_components_are_few_voxels(
    tmp_path: Path, piece: tuple[int, int], *, together: bool
) -> None:
    labels, geometry = np.zeros((12, 12, 12), np.uint8), Geometry.from_spacing((12, 12, 12))
    labels[1:4, 1:4, 1:5] = 1
    labels[8, 8, slice(*piece)] = 1  # one voxel beside 36, or two
    cases = []
    for i, marks in enumerate((labels, np.where(np.arange(12)[:, None, None] > 6, 0, labels).astype(np.uint8))):
        write_volume(Volume(marks.astype(np.float32), geometry), tmp_path / f"i{i}.nii.gz")
        write_labels(LabelMap(marks, geometry), tmp_path / f"l{i}.nii.gz")
        cases.append(Case(f"c{i}", (tmp_path / f"i{i}.nii.gz",), tmp_path / f"l{i}.nii.gz"))
    assert facts_of(cases[:1], {1: "dot"}, ("dot",)).in_one_piece is together
    assert facts_of(cases, {1: "dot"}, ("dot",)).in_one_piece


@pytest.mark.parametrize(
    ("shape", "spacing", "first"),
    [((88, 176, 144), (0.6, 0.6, 0.6), (2, 2, 2)), ((10, 256, 216), (10, 1.4, 1.4), (1, 2, 2))],
)
def test_a_step_costs_the_same_in_thin_and_in_thick_slices(
    shape: tuple[int, int, int], spacing: tuple[float, float, float], first: tuple[int, int, int]
) -> None:
    data = DatasetStatistics(shape, spacing)
    grid, strides = planner._grid_and_strides(data, torch.device("cpu"))
    assert strides[0] == first
    assert np.prod(grid) / np.prod(first) == pytest.approx(41_000, rel=0.2)
    assert max(grid[1:]) <= 128  # on a CPU, where half precision is safe
    coarse, _ = planner._grid_and_strides(data, torch.device("cpu"), 0.25)
    assert 0.15 < np.prod(coarse) / np.prod(grid) < 0.35
    larger, _ = planner._grid_and_strides(data, torch.device("cuda"))
    assert np.prod(larger) > 1.5 * np.prod(grid)
    assert all(n < most + 16 for n, most in zip(larger, shape, strict=True))
    for sizes, steps in ((grid, strides), planner._grid_and_strides(data, torch.device("cpu"), 0.25)):
        assert all(n % np.prod([step[axis] for step in steps]) == 0 for axis, n in enumerate(sizes))


@pytest.mark.parametrize(
    ("shape", "first"),
    [((35, 51, 34), (1, 1, 1)), ((60, 40, 34), (1, 1, 1)), ((60, 56, 34), (2, 2, 2)), ((20, 70, 50), (2, 2, 2))],
)
def test_small_volumes_are_learned_voxel_by_voxel_where_half_precision_is_safe(
    shape: tuple[int, int, int], first: tuple[int, int, int]
) -> None:
    grid, strides = planner._grid_and_strides(DatasetStatistics(shape, (1, 1, 1)), torch.device("cpu"))
    assert strides[0] == first
    assert all(abs(n - of) <= 8 for n, of in zip(grid, shape, strict=True))
    assert all(n % np.prod([step[axis] for step in strides]) == 0 for axis, n in enumerate(grid))


def test_a_suggested_recipe_trains_and_tells_what_it_does_in_plain_words(tmp_path: Path) -> None:
    folder = dataset(tmp_path / "data", offset=-1000)
    found = suggest_recipe(folder, 0.02, device="cpu", out=tmp_path / "out")
    recipe = found.recipe
    assert recipe.labels == ("dot", "block")
    assert recipe.intensity.kind == "window"
    assert recipe.intensity.low < 100 < recipe.intensity.high
    assert recipe.stages[0].loss == "soft_dice_ce_by_class"
    assert [stage.network for stage in recipe.stages] == ["fastunet"]
    assert recipe.settings["consensus_grid"] == [20, 40, 64]  # as fine as the data, and what the strides divide
    # A small volume is learned voxel by voxel, and slices of 3 mm are not joined at once.
    assert recipe.stages[0].kwargs["strides"][:2] == ((1, 1, 1), (1, 2, 2))
    assert recipe.settings["keep_largest"] == "each"
    assert "Of each structure only the largest connected component is kept." in str(found)
    assert "4 cases" in str(found)
    assert "3 x 1 x 1 mm" in str(found)
    assert "steps" in str(found)
    assert isinstance(list(train(recipe))[-1], Saved)


def test_small_structures_get_a_second_look_and_the_time_is_shared(tmp_path: Path) -> None:
    folder = dataset(tmp_path / "data", small=True, names={"background": 0, "dot": 1})
    known = {"consensus": 0.02, "attention": 0.2}  # not this machine's, which may be slow or busy
    short, long = (
        suggest_recipe(folder, m, device="cpu", out=tmp_path / "out", seconds_per_step=known) for m in (20, 40)
    )
    assert [stage.stage for stage in short.recipe.stages] == ["consensus", "attention"]
    assert [stage.loss for stage in short.recipe.stages] == ["soft_dice_ce_by_class"] * 2
    assert short.recipe.settings["window"] == "all"
    coarse, fine = (np.prod(short.recipe.settings[f"{stage}_grid"]) for stage in ("consensus", "attention"))
    assert coarse <= fine
    assert short.recipe.stages[0].minutes < 0.5 * short.recipe.stages[1].minutes  # it only has to find the place
    assert short.recipe.intensity.kind == "percentile"
    for one, other in zip(short.recipe.stages, long.recipe.stages, strict=True):
        assert other.minutes > 1.5 * one.minutes
        assert one.steps == pytest.approx(60 * one.minutes / known[one.stage], rel=0.02)
        assert one.steps_per_epoch <= one.steps
    assert 10 <= sum(stage.minutes for stage in short.recipe.stages) <= 20


def test_from_three_unlabelled_volumes_on_they_are_learned_from_where_structures_are_large(tmp_path: Path) -> None:
    folder = dataset(tmp_path / "data")
    cases = [
        Case(f"c{i}", (folder / f"imagesTr/c{i}_0000.nii.gz",), folder / f"labelsTr/c{i}.nii.gz") for i in range(5)
    ]
    others = [dataclasses.replace(case, labels=None) for case in cases[1:]]
    found = [
        suggest_recipe(
            cases[:1],
            1,
            device="cpu",
            labels=labels,
            unlabelled=some,
            out=tmp_path / "out",
            seconds_per_step={"consensus": 1.0, "attention": 1.0},
        )
        for labels, some in ((("dot", "block"), others[:3]), (("dot", "block"), others[:2]), (("dot",), others))
    ]
    assert [one.recipe.unlabelled_weight for one in found] == [0.5, 0.0, 0.0]
    assert "3 volumes without labels are learned from, too." in found[0].words


def test_starting_from_a_model_keeps_its_ways_and_its_answers(tmp_path: Path) -> None:
    folder = dataset(tmp_path / "data", small=True, names={"background": 0, "dot": 1})
    found = suggest_recipe(folder, 1, "hippocampus-mr", "cpu", out=tmp_path / "out")
    recipe = found.recipe
    assert recipe.labels == ("anterior", "posterior", "dot")
    assert recipe.settings["consensus_grid"] == [48, 64, 48]
    assert recipe.distillation_weight > 0
    assert Path(recipe.start_from).name == "hippocampus-mr.toml"
    assert "new: dot" in str(found)


def test_the_general_start_gives_first_weights_to_networks_like_its_own(tmp_path: Path, monkeypatch: Any) -> None:
    folder, known = dataset(tmp_path / "data"), {"consensus": 1.0, "attention": 1.0}

    def found(start: str | None) -> planner.Suggestion:
        return suggest_recipe(folder, 1, start, "cpu", out=tmp_path / "out", seconds_per_step=known)

    assert not found(GENERAL_START).recipe.start_from  # voxel by voxel
    assert "does not fit" in str(found(GENERAL_START))
    monkeypatch.setattr(planner, "_SMALL", 0)
    plain, begun = found(None), found(GENERAL_START)
    assert (begun.recipe.settings, begun.recipe.intensity) == (plain.recipe.settings, plain.recipe.intensity)
    assert begun.recipe.stages[0].kwargs == plain.recipe.stages[0].kwargs
    assert begun.recipe.start_from == GENERAL_START
    assert GENERAL_START in str(begun)
    stage = begun.recipe.stages[0]
    ours = build(stage.network, **{"in_channels": 1, "n_classes": 3, **stage.kwargs}).state_dict()
    theirs = load_model(GENERAL_START, device="cpu").nets[stage.stage].state_dict()
    same = [name for name, tensor in ours.items() if name in theirs and theirs[name].shape == tensor.shape]
    assert len(same) > 0.8 * len(ours)
    assert GENERAL_START not in [card.name for card in list_models()]
    monkeypatch.setattr(planner, "_WIDTHS", {"cpu": (8, 16, 32, 64)})
    assert not found(GENERAL_START).recipe.start_from  # another network


@pytest.mark.parametrize(
    ("pipeline", "nets", "settings"),
    [
        ("single", {"net": NetSpec("unet3d", {"width": 4})}, {"window": [16, 16, 16]}),
        (
            "coarse_fine",
            {
                "coarse": NetSpec("baseunet", {"channels": [2, 2, 4, 4, 4], "encoder": 2, "decoder": 2}),
                "fine": NetSpec("efficientsegnet", {"channels": [2, 2, 4, 4, 4], "context": "none"}),
            },
            {"coarse_size": [32, 32, 32], "fine_size": [32, 32, 32]},
        ),
    ],
)
def test_a_model_of_any_pipeline_can_be_gone_on_from(
    tmp_path: Path, pipeline: str, nets: dict[str, NetSpec], settings: dict[str, Any]
) -> None:
    folder = dataset(tmp_path / "data", small=True, names={"background": 0, "dot": 1})
    told = {"in_channels": 1, "n_classes": 2}
    nets = {stage: NetSpec(spec.network, {**told, **spec.kwargs}) for stage, spec in nets.items()}
    card = ModelCard("before", "before", pipeline, nets, {1: "dot"}, settings=settings)
    save_model(card, {stage: build(spec.network, **spec.kwargs) for stage, spec in nets.items()}, tmp_path)
    found = suggest_recipe(folder, 0.005, str(tmp_path / "before.toml"), "cpu", out=tmp_path / "out")
    few = tuple(dataclasses.replace(stage, steps=1, steps_per_epoch=1) for stage in found.recipe.stages)
    assert [stage.stage for stage in few] == list(nets)
    assert isinstance(list(train(dataclasses.replace(found.recipe, stages=few)))[-1], Saved)


def test_nothing_to_learn_from_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidRecipe, match="labelled case"):
        suggest_recipe([Case("a", (tmp_path / "a.nii",))], labels=("dot",))


def test_a_model_of_one_structure_that_learns_a_second_one_looks_at_both(tmp_path: Path) -> None:
    kwargs = {"in_channels": 1, "n_classes": 2, "width": 4}
    specs = {"consensus": NetSpec("snet", kwargs), "attention": NetSpec("attnnet", kwargs)}
    settings = {"consensus_grid": [32, 32, 32], "attention_grid": [32, 32, 32]}
    nets = {stage: build(spec.network, **spec.kwargs) for stage, spec in specs.items()}
    save_model(ModelCard("one", "one", "phased", specs, {1: "cube"}, settings=settings), nets, tmp_path)
    folder = dataset(tmp_path / "data", names={"cube": 1, "ball": 2})
    start = str(tmp_path / "one.toml")
    more = suggest_recipe(folder, 0.001, start, "cpu", labels=("cube", "ball"), out=tmp_path / "out")
    same = suggest_recipe(folder, 0.001, start, "cpu", labels=("cube",), out=tmp_path / "out")
    assert more.recipe.settings == {**settings, "window": "all"}
    assert same.recipe.settings == settings
    assert any("a window around every piece" in word for word in more.words)


@pytest.mark.parametrize(("grid", "precision"), [((48, 76, 100), "bfloat16"), ((8, 208, 192), "auto")])
def test_half_precision_is_proposed_only_where_it_cannot_corrupt_memory(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, grid: tuple[int, int, int], precision: str
) -> None:
    monkeypatch.setattr(planner, "pick_precision", lambda device, half_precision_ok: "bfloat16")
    monkeypatch.setattr(planner, "_grid_and_strides", lambda facts, device: (grid, ((2, 2, 2),) * 4))
    known = {"consensus": 0.1}
    folder = dataset(tmp_path / "data")
    found = suggest_recipe(folder, 1, device="cpu", out=tmp_path / "out", seconds_per_step=known)
    assert found.recipe.precision == precision


def test_without_half_precision_in_the_processor_none_is_proposed(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(planner, "pick_precision", lambda device, half_precision_ok: "float32")
    folder = dataset(tmp_path / "data")
    found = suggest_recipe(folder, 1, device="cpu", out=tmp_path / "out", seconds_per_step={"consensus": 0.1})
    assert found.recipe.precision == "auto"
