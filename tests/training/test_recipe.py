"""Recipes from TOML, and the cases of a dataset folder."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
import tomli_w

from napari_fmseg.core.errors import InvalidRecipe
from napari_fmseg.datasets.case import Case
from napari_fmseg.datasets.nnunet_raw import cases_of
from napari_fmseg.models.card import Intensity
from napari_fmseg.models.settings import PIPELINES, CoarseFineSettings, PhasedSettings
from napari_fmseg.training.recipe import LOSSES, Augment, Recipe, StageRecipe
from napari_fmseg.training.recipe_file import as_table as plain
from napari_fmseg.training.recipe_file import load_recipe
from napari_fmseg.training.stage_recipe import member_of

ROOT = Path(__file__).parents[2]
SHARED = Path(os.environ.get("FMSEG_SHARED", ROOT.parent / "shared")) / "data"
SHIPPED = sorted(p for p in (ROOT / "resources" / "recipes").glob("*.toml") if not p.stem.endswith("-volf"))
LEAST: dict[str, Any] = {
    "name": "m",
    "labels": ["left", "right"],
    "dataset": "data",
    "out": "runs/m",
    "stages": [{"stage": "consensus", "network": "snet"}],
}
LEARNS_UNLABELLED = {"stages": [{**LEAST["stages"][0], "ema": 0.9}], "unlabelled_weight": 0.5}


def written(tmp_path: Path, **changes: Any) -> Path:
    path = tmp_path / "recipe.toml"
    path.write_text(tomli_w.dumps({**LEAST, **changes}))
    return path


def without_defaults(recipe: Recipe, folder: Path) -> dict[str, Any]:
    """Write a recipe as a table again: only what differs from the dataclasses' defaults."""

    def changed(thing: Any) -> dict[str, Any]:
        out = {}
        for field in dataclasses.fields(thing):
            value = getattr(thing, field.name)
            default = field.default if field.default is not dataclasses.MISSING else None
            if field.default_factory is not dataclasses.MISSING:
                default = field.default_factory()
            if value != default:
                out[field.name] = changed(value) if dataclasses.is_dataclass(value) else value
        return out

    table = changed(recipe)
    table["stages"] = [changed(stage) for stage in recipe.stages]
    for name in ("dataset", "out"):
        if name in table:
            table[name] = os.path.relpath(table[name], folder)
    return json.loads(json.dumps(table))


def significant(table: dict[str, Any]) -> dict[str, Any]:
    """Leave out of a TOML table what is the default anyway."""
    defaults = {
        "stages": StageRecipe("", ""),
        "augment": Augment(),
        "intensity": Intensity(),
        "": Recipe("m", (StageRecipe("a", "b"),), ("l",), Path(), phantom=(1, 1)),
    }

    def differing(values: dict[str, Any], against: Any) -> dict[str, Any]:
        return {k: v for k, v in values.items() if json.loads(json.dumps(getattr(against, k), default=str)) != v}

    out: dict[str, Any] = {}
    for key, value in table.items():
        if key == "stages":
            out[key] = [differing(stage, defaults["stages"]) for stage in value]
        elif key in ("augment", "intensity"):
            left = differing(value, defaults[key])
            out.update({key: left} if left else {})
        elif key in ("name", "labels", "out") or getattr(defaults[""], key) != value:
            out[key] = value
    return out


@pytest.mark.parametrize("path", SHIPPED, ids=lambda p: p.stem)
def test_a_shipped_recipe_says_what_its_file_says(path: Path) -> None:
    recipe = load_recipe(path)
    table = tomllib.loads(path.read_text(encoding="utf-8"))
    assert without_defaults(recipe, path.parent) == significant(table)
    assert recipe.name == path.stem
    PIPELINES[recipe.pipeline].settings.of(recipe.settings)
    trained = tuple(dict.fromkeys(member_of(stage.stage) for stage in recipe.stages))
    assert trained == PIPELINES[recipe.pipeline].stages[: len(trained)]  # one look may be enough


def test_there_is_a_recipe_for_every_shipped_model() -> None:
    assert {p.stem for p in SHIPPED} >= {
        "hippocampus-mr",
        "left-atrium-mr",
        "headneck-ct",
        "fmsf-phantom-ct",
    }


def test_a_recipe_is_plain_values_for_json() -> None:
    recipe = load_recipe(SHIPPED[0])
    assert json.loads(json.dumps(plain(recipe))) == plain(recipe)


@pytest.mark.parametrize("path", SHIPPED, ids=lambda p: p.stem)
def test_organs_of_the_left_and_right_never_keep_their_name_in_a_mirror(path: Path) -> None:
    recipe = load_recipe(path)
    sided = {label for label in recipe.labels if label.endswith(("_left", "_right"))}
    if "x" in recipe.augment.flip:
        assert {name for pair in recipe.augment.swap for name in pair} == sided
        for one, other in recipe.augment.swap:
            assert one.rsplit("_", 1)[0] == other.rsplit("_", 1)[0]


def test_paths_are_relative_to_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir("/")
    case = {"name": "a", "image": "img/a.nii.gz", "label": "lab/a.nii.gz"}
    two = {"images": ["b_0.nii", str(tmp_path / "b_1.nii")]}
    table = {k: v for k, v in LEAST.items() if k != "dataset"} | LEARNS_UNLABELLED
    table |= {"training": [case], "validation": [two], "unlabelled": [{"image": "c.nii"}], "start_from": "old/m.toml"}
    path = tmp_path / "recipe.toml"
    path.write_text(tomli_w.dumps(table))
    recipe = load_recipe(path)
    assert recipe.out == tmp_path / "runs" / "m"
    assert recipe.training == (Case("a", (tmp_path / "img/a.nii.gz",), tmp_path / "lab/a.nii.gz"),)
    assert recipe.validation == (Case("b_0", (tmp_path / "b_0.nii", tmp_path / "b_1.nii"), None),)
    assert recipe.unlabelled == (Case("c", (tmp_path / "c.nii",)),)
    assert Path(recipe.start_from) == tmp_path / "old" / "m.toml"
    path.write_text(tomli_w.dumps({**table, "unlabelled": "scans"}))
    assert load_recipe(path).unlabelled == tmp_path / "scans"


def test_the_name_of_a_model_to_start_from_is_no_path(tmp_path: Path) -> None:
    assert load_recipe(written(tmp_path, start_from="fmsf-phantom-ct")).start_from == "fmsf-phantom-ct"


def test_a_changed_path_is_relative_to_where_the_caller_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    recipe = load_recipe(written(tmp_path), out=Path("mine"), seed=5)
    assert recipe.out == tmp_path / "here" / "mine"
    assert recipe.seed == 5
    assert recipe.dataset == tmp_path / "data"


@pytest.mark.parametrize(
    "data", [{"phantom": [1, 1]}, {"training": [{"image": "a.nii"}], "validation": [{"image": "b.nii"}]}]
)
def test_another_dataset_takes_the_place_of_whatever_the_recipe_learns_from(
    data: dict[str, Any], tmp_path: Path
) -> None:
    path = tmp_path / "recipe.toml"
    path.write_text(tomli_w.dumps({**{k: v for k, v in LEAST.items() if k != "dataset"}, **data}))
    recipe = load_recipe(path, dataset=tmp_path / "mine")
    assert (recipe.dataset, recipe.phantom, recipe.training, recipe.validation) == (tmp_path / "mine", (), (), ())


def stages(**changes: Any) -> dict[str, Any]:
    return {"stages": [{**LEAST["stages"][0], **changes}]}


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"surprise": 1}, "surprise"),
        (stages(surprise=1), "surprise"),
        ({"augment": {"surprise": 1}}, "surprise"),
        ({"intensity": {"surprise": 1}}, "surprise"),
        ({"settings": {"surprise": 1}}, "surprise"),
        ({"settings": {"window": "round"}}, "round"),
        (stages(loss="hope"), "hope.*attn"),
        (stages(schedule="daily"), "daily.*cosine"),
        (stages(steps=0), "steps"),
        (stages(batch=-1), "batch"),
        (stages(lr=0.0), "lr"),
        (stages(steps="many"), "steps.*many"),
        (stages(steps=2.5), "steps.*2.5"),
        (stages(lr="fast"), "lr.*fast"),
        (stages(kwargs=3), "kwargs.*3"),
        (stages(init_from="attention"), "init_from.*attention"),
        ({"intensity": {"kind": "magic"}}, "magic"),
        ({"intensity": {"low": 9.0, "high": 1.0}}, "low < high"),
        ({"augment": {"flip": "w"}}, "flip.*w"),
        ({"augment": {"swap": [["left", "up"]]}}, "swap.*up"),
        ({"augment": {"swap": ["left"]}}, "swap"),
        ({"augment": {"zoom": "far"}}, "zoom.*far"),
        ({"labels": "liver"}, "labels.*liver"),
        ({"labels": []}, "label"),
        ({"labels": ["a", "a"]}, "labels.*twice"),
        ({"channels": "CT"}, "channels.*CT"),
        ({"stages": []}, "stage"),
        ({"stages": "all"}, "stages"),
        ({"name": ""}, "name"),
        ({"name": 5}, "name.*5"),
        ({"name": "../m"}, "name.*folder"),
        ({"seed": "x"}, "seed.*x"),
        ({"dataset": 5}, "dataset.*5"),
        ({"half": "yes"}, "half.*yes"),
        ({"phantom": [1, 2]}, "one of"),
        ({"training": [{"name": "a"}]}, "training|image"),
        ({"pipeline": "none"}, "none.*phased"),
        ({"precision": "float8"}, "precision.*float8"),
        ({"training": 5}, "training"),
        ({"training": [5]}, "case cannot be 5"),
        ({"training": [{"image": {}}]}, r"case\.image"),
        ({"training": [{"image": "a", "labels": 5}]}, r"case\.labels"),
        ({"training": [{"image": "a", "name": "../a"}]}, "leads out"),
        ({"replay": [5]}, "replay"),
        ({"replay": [{"dataset": "a", "most": -1}]}, r"replay\.most"),
        ({"settings": {"window_threshold": 2.0}}, "window_threshold"),
        ({"settings": {"consensus_grid": [0, 1, 1]}}, "consensus_grid"),
        ({"name": ".."}, r"name.*'\.\.'"),
        ({**LEARNS_UNLABELLED, "unlabelled": 5}, "unlabelled cannot be 5"),
        ({**LEARNS_UNLABELLED, "unlabelled": "u", "unlabelled_weight": 0.0}, "unlabelled.*unlabelled_weight"),
        ({**LEARNS_UNLABELLED, "unlabelled": "u", **stages(ema=0.0)}, "unlabelled.*ema"),
        ({**LEARNS_UNLABELLED, "unlabelled": "u", "pipeline": "coarse_fine"}, "coarse_fine.*unlabelled"),
    ],
)
def test_a_recipe_that_makes_no_sense_is_refused_and_the_field_named(
    changes: dict[str, Any], named: str, tmp_path: Path
) -> None:
    with pytest.raises(InvalidRecipe, match=named):
        load_recipe(written(tmp_path, **changes))


NUMBERS = [
    *(f"stages.{name}" for name in ("heads", "steps", "steps_per_epoch", "batch", "patience")),
    *(f"stages.{name}" for name in ("lr", "weight_decay", "clip")),
    *(f"augment.{field.name}" for field in dataclasses.fields(Augment) if field.type == "float"),
    *("seed", "devices", "processes", "validate_cases", "folds", "fold", "hard_case_weight", "ignore"),
    *("replay_share", "l2sp_weight", "distillation_weight"),
]


@pytest.mark.parametrize("field", NUMBERS)
@pytest.mark.parametrize("value", ["nan", "inf", "-inf", "-1", "-0.5", "1e400", "9" * 30, "true", '"1"', "[1]"])
def test_a_number_that_makes_no_sense_is_refused_with_file_and_field(field: str, value: str, tmp_path: Path) -> None:
    table, _, name = field.rpartition(".")
    content = {**LEAST, "stages": [{**LEAST["stages"][0], **({name: "HERE"} if table == "stages" else {})}]}
    if table != "stages":
        content |= {table: {name: "HERE"}} if table else {name: "HERE"}
    path = tmp_path / "recipe.toml"
    path.write_text(tomli_w.dumps(content).replace('"HERE"', value))
    with pytest.raises(InvalidRecipe, match=rf"recipe\.toml.*{name}"):
        load_recipe(path)


@pytest.mark.parametrize("field", ["name", "labels", "out", "stages"])
def test_a_field_that_is_missing_is_named(field: str, tmp_path: Path) -> None:
    path = tmp_path / "recipe.toml"
    path.write_text(tomli_w.dumps({k: v for k, v in LEAST.items() if k != field}))
    with pytest.raises(InvalidRecipe, match=field):
        load_recipe(path)


def test_a_recipe_needs_something_to_learn_from(tmp_path: Path) -> None:
    path = tmp_path / "recipe.toml"
    path.write_text(tomli_w.dumps({k: v for k, v in LEAST.items() if k != "dataset"}))
    with pytest.raises(InvalidRecipe, match="dataset folder"):
        load_recipe(path)


@pytest.mark.parametrize("numbers", [[1], [1, 2, 3], ["a", "b"], [0, 1]])
def test_phantoms_are_two_numbers(numbers: list[Any], tmp_path: Path) -> None:
    path = tmp_path / "recipe.toml"
    path.write_text(tomli_w.dumps({**{k: v for k, v in LEAST.items() if k != "dataset"}, "phantom": numbers}))
    with pytest.raises(InvalidRecipe, match="phantom"):
        load_recipe(path)


@pytest.mark.parametrize("content", [b"no toml at all", b"\xff\xfe", b"", b"a=" + b"[" * 10**5, None])
def test_a_file_that_is_no_recipe_is_refused(content: bytes | None, tmp_path: Path) -> None:
    path = tmp_path / "recipe.toml"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(InvalidRecipe, match=r"recipe\.toml"):
        load_recipe(path)


def test_every_loss_that_a_recipe_may_name_can_be_made() -> None:
    from napari_fmseg.training.tasks.base import make_loss

    for name in LOSSES:
        assert callable(make_loss(name))


def test_reading_a_recipe_imports_no_torch() -> None:
    look = (
        "import sys; from napari_fmseg.training import load_recipe; "
        "load_recipe(sys.argv[1]); print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", look, str(SHIPPED[0])], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def dataset(folder: Path, facts: dict[str, Any], files: list[str]) -> Path:
    for name in files:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"")
    folder.mkdir(exist_ok=True)
    (folder / "dataset.json").write_text(json.dumps(facts))
    return folder


def raw(names: list[str], channels: int = 1, ending: str = ".nii.gz") -> list[str]:
    images = [f"imagesTr/{name}_{i:04d}{ending}" for name in names for i in range(channels)]
    return images + [f"labelsTr/{name}{ending}" for name in names]


NNUNET = {"labels": {"background": 0, "liver": 1, "tumour": 2}, "channel_names": {"0": "T1", "1": "T2"}}


@pytest.mark.parametrize("ending", [".nii.gz", ".nrrd", ".mha"])
def test_the_raw_layout_of_nnunet_is_read_with_all_channels_in_order(ending: str, tmp_path: Path) -> None:
    folder = dataset(tmp_path, {**NNUNET, "file_ending": ending}, raw(["b", "a", "a_1"], 2, ending))
    labels, training, validation = cases_of(folder)
    assert labels == {1: "liver", 2: "tumour"}
    assert [case.name for case in training] == ["a", "a_1", "b"]
    assert validation == []
    assert training[0].images == tuple(folder / f"imagesTr/a_000{i}{ending}" for i in range(2))
    assert training[0].labels == folder / f"labelsTr/a{ending}"


def test_names_with_dots_and_brackets_are_cases_like_any_other(tmp_path: Path) -> None:
    names = ["1.3.6.1.4", "1.3.6.1.5", "scan[2]"]
    _, training, _ = cases_of(dataset(tmp_path, NNUNET, raw(names)))
    assert [case.name for case in training] == names
    assert [case.images[0].name for case in training] == [f"{name}_0000.nii.gz" for name in names]


def test_hidden_files_and_labels_without_image_are_no_cases(tmp_path: Path) -> None:
    litter = ["labelsTr/.DS_Store", "labelsTr/._a.nii.gz", "imagesTr/.DS_Store", "labelsTr/lonely.nii.gz"]
    _, training, _ = cases_of(dataset(tmp_path, NNUNET, raw(["a"]) + litter))
    assert [case.name for case in training] == ["a"]


DECATHLON = {"labels": {"0": "background", "1": "Anterior", "2": "Posterior"}, "test": ["./imagesTs/z.nii.gz"]}


def test_the_numbering_of_the_decathlon_is_read(tmp_path: Path) -> None:
    entries = [{"image": f"./imagesTr/{n}.nii.gz", "label": f"./labelsTr/{n}.nii.gz"} for n in "ab"]
    files = [path for n in "ab" for path in (f"imagesTr/{n}.nii.gz", f"labelsTr/{n}.nii.gz")]
    folder = dataset(tmp_path, {**DECATHLON, "training": entries}, files)
    labels, training, _ = cases_of(folder)
    assert labels == {1: "Anterior", 2: "Posterior"}
    assert training == [Case(n, (folder / f"imagesTr/{n}.nii.gz",), folder / f"labelsTr/{n}.nii.gz") for n in "ab"]


@pytest.mark.parametrize("gone", [["imagesTr/b.nii.gz"], ["imagesTr/a.nii.gz", "imagesTr/b.nii.gz"]])
def test_an_image_that_is_listed_and_missing_is_named(gone: list[str], tmp_path: Path) -> None:
    entries = [{"image": f"./imagesTr/{n}.nii.gz", "label": f"./labelsTr/{n}.nii.gz"} for n in "ab"]
    files = [path for n in "abc" for path in (f"imagesTr/{n}.nii.gz", f"labelsTr/{n}.nii.gz")]  # nobody lists c
    folder = dataset(tmp_path, {**DECATHLON, "training": entries}, [name for name in files if "/c" not in name])
    for name in gone:
        (folder / name).unlink()
    with pytest.raises(InvalidRecipe, match=rf"{len(gone)} of 2 .*{gone[0]}"):
        cases_of(folder)
    if len(gone) == 1:
        for name in files[-2:]:
            (folder / name).touch()
        with pytest.raises(InvalidRecipe, match="1 of 2"):
            cases_of(folder)


def test_cases_of_one_name_are_refused_since_one_would_stand_for_the_others(tmp_path: Path) -> None:
    entries = [{"image": f"{n}/ct.nii.gz", "label": f"{n}/seg.nii.gz"} for n in "abc"]
    files = [f"{n}/{part}.nii.gz" for n in "abc" for part in ("ct", "seg")]
    lists = {"training": entries[:2], "validation": entries[2:]}
    with pytest.raises(InvalidRecipe, match="called 'ct'"):
        cases_of(dataset(tmp_path, {**DECATHLON, **lists}, files))
    named = {part: [{**e, "case": e["image"][0]} for e in of] for part, of in lists.items()}
    _, training, validation = cases_of(dataset(tmp_path, {**DECATHLON, **named}, files))
    assert [[case.name for case in cases] for cases in (training, validation)] == [["a", "b"], ["c"]]
    named["validation"] += named["training"][:1]  # the same one, not another of its name
    _, training, _ = cases_of(dataset(tmp_path, {**DECATHLON, **named}, files))
    assert [case.name for case in training] == ["b"]


def test_a_decathlon_list_over_nnunet_files_finds_the_files(tmp_path: Path) -> None:
    entries = [{"image": f"./imagesTr/{n}.nii.gz", "label": f"./labelsTr/{n}.nii.gz"} for n in "ab"]
    _, training, _ = cases_of(dataset(tmp_path, {**DECATHLON, "training": entries}, raw(["a", "b"], 2)))
    assert [len(case.images) for case in training] == [2, 2]


def listed(names: str) -> list[dict[str, str]]:
    return [{"case": n, "image": f"images/{n}.nii.gz", "label": f"labels/{n}.nii.gz"} for n in names]


def test_lists_of_cases_are_taken_as_they_stand(tmp_path: Path) -> None:
    facts = {**NNUNET, "training": listed("ca"), "validation": listed("b")}
    folder = dataset(tmp_path, facts, [f"images/{n}.nii.gz" for n in "abc"])
    _, training, validation = cases_of(folder)
    assert [c.name for c in training] == ["c", "a"]
    assert validation == [Case("b", (folder / "images/b.nii.gz",), folder / "labels/b.nii.gz")]


def test_every_fifth_case_is_held_out_by_default(tmp_path: Path) -> None:
    names = [f"c{i:02d}" for i in range(11)]
    _, training, validation = cases_of(dataset(tmp_path, NNUNET, raw(names)))
    assert [c.name for c in validation] == ["c04", "c09"]
    assert {c.name for c in training} == set(names) - {"c04", "c09"}


def test_named_cases_are_held_out_wherever_they_stand(tmp_path: Path) -> None:
    facts = {**NNUNET, "training": listed("abc"), "validation": listed("de")}
    folder = dataset(tmp_path, facts, [f"images/{n}.nii.gz" for n in "abcde"])
    _, training, validation = cases_of(folder, ("b", "d"))
    assert [c.name for c in validation] == ["b", "d"]
    assert [c.name for c in training] == ["a", "c", "e"]


def test_no_case_is_learned_from_and_validated_on(tmp_path: Path) -> None:
    facts = {**NNUNET, "training": listed("abc"), "validation": listed("bc")}
    _, training, _ = cases_of(dataset(tmp_path, facts, [f"images/{n}.nii.gz" for n in "abc"]))
    assert [c.name for c in training] == ["a"]


@pytest.mark.parametrize(
    ("facts", "files", "holdout", "told"),
    [
        (None, [], (), "dataset.json"),
        ({}, raw(["a"]), (), "labels"),
        ({"labels": ["liver"]}, raw(["a"]), (), "labels"),
        ({"labels": {"background": 0, "whole": [1, 2]}}, raw(["a"]), (), "labels"),
        ([], raw(["a"]), (), "labels"),
        (NNUNET, [], (), "No labelled case"),
        ({**NNUNET, "training": [{"label": "a.nii"}]}, raw(["a"]), (), "image"),
        (NNUNET, raw(["a", "b"]), ("z",), "z"),
        (NNUNET, raw(["a", "b"]), ("a", "b"), "left to train"),
    ],
)
def test_a_folder_that_is_no_dataset_is_refused(
    facts: Any, files: list[str], holdout: tuple[str, ...], told: str, tmp_path: Path
) -> None:
    folder = tmp_path if facts is None else dataset(tmp_path, facts, files)
    with pytest.raises(InvalidRecipe, match=told):
        cases_of(folder, holdout)


@pytest.mark.real
@pytest.mark.parametrize("path", SHIPPED, ids=lambda p: p.stem)
def test_the_lists_beside_the_project_are_read_as_their_splits_say(path: Path) -> None:
    recipe = load_recipe(path)
    if recipe.dataset is None:
        pytest.skip("this recipe makes its own data")
    folder = SHARED / recipe.dataset.name
    if not folder.is_dir():
        pytest.skip(f"the volumes are not beside the project ({folder})")
    splits, facts = (json.loads((folder / name).read_text()) for name in ("splits.json", "dataset.json"))
    labels, training, validation = cases_of(folder)
    assert set(recipe.labels) <= set(labels.values())
    for cases, part in ((training, "training"), (validation, "validation")):
        assert [c.name for c in cases if not c.classes] == splits.get(part, [])
        in_part = {entry["case"]: tuple(entry["classes"]) for entry in facts.get(f"{part}_partial", [])}
        assert {c.name: c.classes for c in cases if c.classes} == in_part
    for case in (*training, *validation):
        assert case.labels is not None
        assert all(p.is_file() for p in (*case.images, case.labels))


def test_the_guide_tells_every_field_with_its_default() -> None:
    spec = importlib.util.spec_from_file_location("make_recipes", ROOT / "docs" / "make_recipes.py")
    assert spec is not None
    assert spec.loader is not None
    guide = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(guide)
    page = guide.PAGE.read_text(encoding="utf-8")
    assert guide.filled(page) == page, "run python docs/make_recipes.py"
    for kind in (Recipe, StageRecipe, Augment, Intensity, PhasedSettings, CoarseFineSettings, Case):
        assert f"fields of {kind.__name__} -->" in page
        assert all(f"| `{field.name}` | " in page for field in dataclasses.fields(kind))


def test_the_recipe_in_the_guide_is_a_recipe(tmp_path: Path) -> None:
    page = (ROOT / "docs" / "reference" / "recipes.md").read_text(encoding="utf-8")
    text, *_ = re.findall(r"```toml\n(.*?)```", page, re.DOTALL)
    (tmp_path / "my.toml").write_text(text)
    assert load_recipe(tmp_path / "my.toml").dataset == tmp_path / "my-data"


def test_a_tilde_in_a_recipe_is_the_home_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HOME", "USERPROFILE"):
        monkeypatch.setenv(name, str(tmp_path / "me"))
    told = load_recipe(written(tmp_path, dataset="~/data", out="~/runs", prepared="~/kept", start_from="~/one.toml",
                               unlabelled="~/scans", **LEARNS_UNLABELLED))  # fmt: skip
    assert [told.dataset, told.out, told.prepared, Path(told.start_from), told.unlabelled] == [
        tmp_path / "me" / name for name in ("data", "runs", "kept", "one.toml", "scans")
    ]
