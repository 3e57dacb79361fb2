"""Names that were replaced are read for one more release, with a notice that gives the new one."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest

from napari_fmseg.cli import main as command_line
from napari_fmseg.cli.main import COMMANDS, main
from napari_fmseg.core.structuring import OLD_SPELLINGS, OldSpelling, structure, with_old_spellings
from napari_fmseg.datasets.case import Case
from napari_fmseg.datasets.run_folder import fingerprint
from napari_fmseg.models.settings import CoarseFineSettings
from napari_fmseg.pipelines import SegmentOptions
from napari_fmseg.training import Recipe, StageRecipe, load_recipe
from napari_fmseg.training.loop import _WORDS, _Run
from napari_fmseg.training.recipe_file import as_table

STAGE = {"stage": "net", "network": "unet3d"}


def write_recipe(folder: Path, **fields: object) -> Path:
    lines = [f"{name} = {json.dumps(value)}" for name, value in fields.items()]
    head = [
        "name = 'm'",
        "labels = ['a']",
        "out = 'run'",
        "pipeline = 'single'",
        "start_from = 'x'",
        "phantom = [1, 1]",
    ]
    stage = ["[[stages]]", *(f"{name} = '{value}'" for name, value in STAGE.items())]
    path = folder / "recipe.toml"
    path.write_text("\n".join([*head, *lines, *stage]))
    return path


@pytest.mark.parametrize("old", ["hard_times", "keep_weights", "keep_answers"])
def test_a_recipe_with_an_old_name_is_read_with_a_notice(old: str, tmp_path: Path) -> None:
    new = OLD_SPELLINGS[old]
    path = write_recipe(tmp_path, **{old: 2})
    with pytest.warns(OldSpelling, match=rf"{old} is now called {new}.*0\.3\.0"):
        recipe = load_recipe(path)
    assert getattr(recipe, new) == 2
    assert recipe == load_recipe(write_recipe(tmp_path, **{new: 2}))


def test_settings_with_old_names_become_those_with_the_new_ones(tmp_path: Path) -> None:
    old = {"coarse_parts": [1], "coarse_least_ml": 0.5, "fine_parts": [2], "fine_least_ml": 0.25}
    with pytest.warns(OldSpelling):
        settings = CoarseFineSettings.of(old)
    assert settings == CoarseFineSettings.of({OLD_SPELLINGS[name]: value for name, value in old.items()})
    assert settings.fine_max_components == (2,)


def test_a_field_by_both_names_is_refused() -> None:
    with pytest.raises(ValueError, match="min_part_ml and min_component_ml are one field"):
        structure(SegmentOptions, {"min_part_ml": 1.0, "min_component_ml": 1.0})


def test_every_new_name_is_a_field_and_no_old_one_is() -> None:
    kinds = (SegmentOptions, Recipe, CoarseFineSettings)
    fields = {field.name for kind in kinds for field in dataclasses.fields(kind)}
    assert set(OLD_SPELLINGS.values()) <= fields
    assert not fields & OLD_SPELLINGS.keys()


@pytest.mark.parametrize("option", ["--min-part-ml 0.5", "--min-part-ml=0.5", "--min_part_ml 0.5"])
def test_an_old_option_works_with_a_notice(
    option: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    received: list[list[str]] = []
    monkeypatch.setattr(command_line, "_run", lambda words: received.append(words) or 0)
    assert main(["segment", "image.nii.gz", *option.split()]) == 0
    assert " ".join(received[0][2:]).replace("=", " ") == "--min-component-ml 0.5"
    notice = capsys.readouterr().err
    assert "is now called --min-component-ml" in notice
    assert "0.3.0" in notice
    assert notice.count("\n") == 1


def test_fmseg_why_is_fmseg_explain_with_a_notice(capsys: pytest.CaptureFixture[str]) -> None:
    assert "why" not in COMMANDS
    assert main(["why", "--help"]) == 0
    shown = capsys.readouterr()
    assert "fmseg why is now called fmseg explain" in shown.err
    assert "usage: fmseg explain" in shown.out
    assert main(["explain", "--help"]) == 0
    assert capsys.readouterr().err == ""


def test_a_run_folder_of_a_version_with_old_names_resumes(tmp_path: Path) -> None:
    case = Case("c", (tmp_path / "c.nii.gz",), tmp_path / "c-labels.nii.gz")
    recipe = Recipe("m", (StageRecipe(**STAGE),), ("a",), tmp_path / "run", pipeline="single", training=(case,))
    table = {name: value for name, value in as_table(recipe).items() if name not in _WORDS}
    earlier = with_old_spellings(table)
    assert {"hard_times", "keep_weights", "keep_answers"} <= earlier.keys()
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "run.json").write_text(json.dumps({"recipe_sha256": fingerprint(earlier), "recipe": earlier}))
    with _Run(recipe).claim():
        pass
