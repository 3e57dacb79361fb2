"""fmseg project and fmseg models export, import, rollback: the whole round on the command line."""

from __future__ import annotations

import hashlib
import json
import shlex
from pathlib import Path

import numpy as np
import pytest

from napari_fmseg.cli import main as cli_main
from napari_fmseg.core.volume import Geometry, LabelMap, Volume
from napari_fmseg.io import write_labels, write_volume
from napari_fmseg.models.card import ModelCard, NetSpec, write_card
from napari_fmseg.models.registry import find_card
from napari_fmseg.training.projects import add_version, open_project, record_uncertainty, start_run, training_plan

GRID = Geometry.from_spacing((4, 5, 6), (2.0, 1.0, 1.0))


def run(*words: object) -> int:
    return cli_main.main([str(word) for word in words])


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("FMSEG_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("FMSEG_DEBUG", "")
    return tmp_path / "home"


@pytest.fixture
def files(tmp_path: Path) -> list[tuple[Path, Path]]:
    """Images and labels as a user has them."""
    pairs = []
    for i in range(6):
        data = np.random.default_rng(i).normal(size=GRID.shape).astype(np.float32)
        marks = np.zeros(GRID.shape, np.uint8)
        marks[1:3] = 1
        image = write_volume(Volume(data, GRID), tmp_path / "in" / f"scan{i}.nii.gz")
        pairs.append((image, write_labels(LabelMap(marks, GRID), tmp_path / "in" / f"scan{i}_labels.nii.gz")))
    return pairs


@pytest.fixture
def folder(tmp_path: Path, files) -> Path:
    place = tmp_path / "liver"
    assert run("project", "init", place, "--labels", "liver", "--channels", "CT") == 0
    for image, labels in files[:4]:
        assert run("project", "add", place, "--image", image, "--labels", labels) == 0
    return place


def document(capsys) -> dict:
    return json.loads(capsys.readouterr().out)


def test_cases_are_added_listed_split_and_corrected(folder, files, capsys):
    assert run("project", "add", folder, "--image", files[4][0], "--case", "waits") == 0
    capsys.readouterr()
    assert run("project", "list", folder, "--json") == 0
    rows = {row["name"]: row for row in document(capsys)["cases"]}
    assert sorted(row["status"] for row in rows.values()) == ["corrected"] * 3 + ["held out", "unlabelled"]
    assert (
        run("project", "add", folder, "--case", "waits", "--labels", files[4][1], "--unlabelled", "empty-slices") == 0
    )
    assert "waits: corrected, 50 % of its slices" in capsys.readouterr().out
    assert run("project", "split", folder, "--json") == 0
    told = document(capsys)
    assert (len(told["held_out"]), len(told["training"])) == (1, 4)
    assert run("project", "list", folder) == 0
    assert "held out" in capsys.readouterr().out


def test_the_commands_to_go_on_with_can_be_pasted(folder, tmp_path, capsys):
    spaced = folder.rename(tmp_path / "my project")
    capsys.readouterr()
    assert run("project", "prepare", spaced, "--minutes", 0.01, "--device", "cpu") == 0
    _, train, keep = map(shlex.split, capsys.readouterr().out.splitlines())
    assert train == ["fmseg", "train", str(spaced / "fmseg" / "runs" / "1" / "recipe.toml")]
    assert keep == ["fmseg", "project", "keep", str(spaced), "--run", "1"]


def test_the_cases_to_label_come_in_the_order_of_doubt(folder, files, capsys):
    for name, (image, _) in zip(["u1", "u2"], files[4:], strict=True):
        assert run("project", "add", folder, "--image", image, "--case", name, "--link") == 0
    project = open_project(folder)
    keep(project, folder.parent / "model")
    record_uncertainty(open_project(folder), 1, {"u2": 0.4})
    capsys.readouterr()
    assert run("project", "rank", folder, "--json") == 0
    assert [(row["name"], row["uncertainty"]) for row in json.loads(capsys.readouterr().out)] == [
        ("u2", 0.4), ("u1", None),
    ]  # fmt: skip


def keep(project, place: Path, content: bytes = b"weights"):
    place.mkdir(parents=True)
    (place / "liver.safetensors").write_bytes(content)
    card = ModelCard("liver", "Liver", "phased", {"consensus": NetSpec("snet")}, {1: "liver"}, folder=place,
                     weights="liver.safetensors", sha256=hashlib.sha256(content).hexdigest())  # fmt: skip
    write_card(card, place / "liver.toml")
    return add_version(start_run(project, training_plan(project)), card, force=True)


def test_a_model_is_rolled_back_exported_and_imported(folder, tmp_path, monkeypatch, capsys):
    first = keep(open_project(folder), tmp_path / "m1", b"one")
    keep(first.project, tmp_path / "m2", b"two")
    assert run("models", "rollback", folder) == 0
    assert "liver: version 1 is in use" in capsys.readouterr().out
    assert find_card("liver").version == 1
    assert run("models", "rollback", folder, "--to", 2) == 0
    assert run("models", "export", folder, "--output", tmp_path / "liver.zip") == 0
    monkeypatch.setenv("FMSEG_HOME", str(tmp_path / "elsewhere"))
    assert run("models", "import", tmp_path / "liver.zip") == 0
    assert find_card("liver").version == 2
    assert run("models", "export", "liver", "--output", tmp_path / "again.zip") == 0
    assert (tmp_path / "again.zip").read_bytes() == (tmp_path / "liver.zip").read_bytes()
    capsys.readouterr()
    assert run("models", "--json") == 0  # the list is still what `fmseg models` gives
    assert "liver" in [card["name"] for card in json.loads(capsys.readouterr().out)]


@pytest.mark.parametrize(
    ("words", "code", "text"),
    [
        (["project", "list", "{tmp}/none"], 1, "is no project"),
        (["project", "init", "{tmp}/new"], 1, "needs its classes"),
        (["project", "add", "{folder}"], 1, "nothing to add"),
        (["project", "add", "{folder}", "--image", "{tmp}/none.nii.gz"], 1, "none.nii.gz"),
        (["project", "add", "{folder}", "--case", "no", "--labels", "{labels}"], 1, "There is no case 'no'"),
        (["project", "lst", "{folder}"], 2, "lst"),
        (["models", "rollback", "{folder}"], 1, "nothing to go back to"),
        (["models", "export", "{folder}", "--output", "{tmp}/x.zip"], 1, "no model in use"),
        (["models", "import", "{labels}"], 1, "no model file"),
        (["models", "export", "none", "--output", "{tmp}/x.zip"], 1, "There is no model"),
    ],
)
def test_a_mistake_ends_with_its_code_and_a_sentence(folder, files, tmp_path, capsys, words, code, text):
    before = sorted(p for p in tmp_path.rglob("*") if p.is_file())
    assert run(*[w.format(folder=folder, tmp=tmp_path, labels=files[5][1]) for w in words]) == code
    told = capsys.readouterr()
    assert text in told.out + told.err
    assert "Traceback" not in told.err
    assert sorted(p for p in tmp_path.rglob("*") if p.is_file()) == before


@pytest.mark.parametrize("words", [["project"], ["project", "--help"], ["project", "add", "--help"]])
def test_help_of_the_group_names_its_commands(words, capsys):
    assert run(*words) == 0
    assert "project" in capsys.readouterr().out


def test_labels_of_others_are_replaced_only_on_request_and_can_be_taken_back(folder, files, capsys):
    words = ("project", "add", folder, "--case", "case-001", "--labels", files[1][1])
    capsys.readouterr()
    assert run(*words) == 1
    assert "has labels already" in capsys.readouterr().err
    assert run("project", "history", folder, "case-001", "--json") == 0
    revision = document(capsys)["revision"]
    assert run(*words, "--revision", "9@x") == 1
    assert run(*words, "--revision", revision) == 0
    assert run(*words, "--revision", revision) == 1  # others by now
    assert run(*words, "--replace") == 0
    capsys.readouterr()
    assert run("project", "restore", folder, "case-001", "--number", "1") == 0
    assert run("project", "history", folder, "case-001", "--json") == 0
    told = capsys.readouterr().out
    assert [row["present"] for row in json.loads(told[told.index("{") :])["labels"]] == [False] * 3 + [True]
    assert run("project", "history", folder, "case-001") == 0
    assert "revision: 4@" in capsys.readouterr().out
    assert run("project", "restore", folder, "case-001", "--number", "9") == 1


def test_a_case_is_excluded_included_renamed_and_removed(folder, capsys):
    assert run("project", "exclude", folder, "case-001") == 0
    capsys.readouterr()
    assert run("project", "list", folder, "--json") == 0
    assert {row["name"]: row["status"] for row in document(capsys)["cases"]}["case-001"] == "excluded"
    assert run("project", "include", folder, "case-001") == 0
    assert run("project", "rename", folder, "case-001", "first") == 0
    assert run("project", "remove", folder, "first") == 1
    assert "--with-labels" in capsys.readouterr().err
    assert run("project", "remove", folder, "first", "--with-labels") == 0
    assert sorted(open_project(folder).files) == ["case-002", "case-003", "case-004"]


def test_a_class_may_be_called_by_any_character(folder, capsys):
    for old, new in (("liver", "²"), ("²", 'left "liver", \\1'), ('left "liver", \\1', "liver")):
        assert run("project", "rename-class", folder, old, new) == 0
        assert f"classes: {new}\n" in capsys.readouterr().out
        assert run("project", "list", folder) == 0


def test_a_class_is_renamed_and_the_listed_model_with_it(folder, tmp_path, capsys):
    keep(open_project(folder), tmp_path / "m1")
    assert run("models", "rollback", folder, "--to", 1) == 0
    assert run("project", "rename-class", folder, "liver", "Leber") == 0
    assert open_project(folder).facts.labels == {1: "Leber"}
    assert find_card("liver").labels == {1: "Leber"}


def test_a_few_painted_slices_need_a_word_on_the_others(folder, tmp_path, capsys):
    grid = Geometry.from_spacing((40, 20, 20), (1.0, 1.0, 1.0))
    marks = np.zeros(grid.shape, np.uint8)
    marks[20, 4:16, 4:16] = 1
    image = write_volume(
        Volume(np.random.default_rng(7).normal(size=grid.shape), grid), tmp_path / "in" / "large.nii.gz"
    )
    labels = write_labels(LabelMap(marks, grid), tmp_path / "in" / "large_labels.nii.gz")
    words = ("project", "add", folder, "--image", image, "--labels", labels)
    assert run(*words) == 1
    assert "Only 1 of 40 slices" in capsys.readouterr().err
    assert run(*words, "--unlabelled", "empty-slices") == 0
    assert "2 % of its slices" in capsys.readouterr().out


def test_why_the_newest_version_is_not_used_stands_below_the_cases(folder, tmp_path, capsys):
    project = keep(open_project(folder), tmp_path / "m1", b"one").project
    second = start_run(project, training_plan(project))
    place = tmp_path / "m2"
    place.mkdir()
    (place / "liver.safetensors").write_bytes(b"two")
    card = ModelCard("liver", "Liver", "phased", {"consensus": NetSpec("snet")}, {1: "liver"}, folder=place,
                     weights="liver.safetensors", sha256=hashlib.sha256(b"two").hexdigest())  # fmt: skip
    write_card(card, place / "liver.toml")
    why = add_version(second, card).why
    capsys.readouterr()
    assert run("project", "list", folder) == 0
    told = capsys.readouterr().out
    assert "in use: 1" in told
    assert f"version 2 is not in use. {why}" in told
