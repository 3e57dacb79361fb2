"""Projects from elsewhere: whatever their files say and wherever their links lead, nothing outside is touched."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from napari_fmseg.cli import main as cli_main
from napari_fmseg.core.errors import FmsegError
from napari_fmseg.training import cases_of
from napari_fmseg.training.projects import (
    add_case,
    init_project,
    label_case,
    list_versions,
    open_project,
    open_run,
    restore_labels,
    save_prediction,
)

pytestmark = pytest.mark.skipif(os.name == "nt", reason="links need a privilege there")

TABLE = {
    "channel_names": {"0": "CT"},
    "labels": {"background": 0, "liver": 1, "tumour": 2},
    "numTraining": 0,
    "file_ending": ".nii.gz",
}


@pytest.fixture
def outside(tmp_path: Path) -> Path:
    """A folder of the user's that no project has any business in."""
    folder = tmp_path / "outside"
    (folder / "staging").mkdir(parents=True)
    (folder / "keep.txt").write_text("KEEP")
    (folder / "staging" / "work.txt").write_text("WORK")
    return folder


@pytest.fixture
def foreign(tmp_path: Path) -> Path:
    folder = tmp_path / "foreign"
    (folder / "fmseg" / "staging").mkdir(parents=True)
    (folder / "dataset.json").write_text(json.dumps(TABLE))
    (folder / "fmseg" / "staging" / "k").write_text("ATTACKER")
    return folder


def content(folder: Path) -> dict[str, str]:
    """Every file of a folder with what it holds, and every link with where it leads."""
    found = {}
    for path in sorted(folder.rglob("*")):
        if path.is_symlink():
            found[str(path)] = f"-> {path.readlink()}"
        elif path.is_file():
            found[str(path)] = path.read_text(errors="replace")
    return found


def commit(folder: Path, moves: list[Any] = [], removals: list[Any] = []) -> None:  # noqa: B006 - only read
    (folder / "fmseg" / "commit.json").write_text(json.dumps({"moves": moves, "removals": removals}))


STAGED = "fmseg/staging/k"


@pytest.mark.parametrize("command", ["list", "rank", "split"])
@pytest.mark.parametrize(
    ("moves", "removals"),
    [
        ([[STAGED, "labelsTr/authorized_keys"]], []),
        ([["labelsTr/keep.txt", "mine.txt"]], []),
        ([], ["labelsTr/keep.txt"]),
        ([], ["labelsTr/staging/work.txt"]),
        ([[STAGED, "../outside/new.txt"]], []),
        ([], ["fmseg/../../outside/keep.txt"]),
        ([[STAGED, "labelsTr"], ["fmseg/lock", "labelsTr/new.txt"]], []),
    ],
)
def test_a_commit_that_leads_out_is_refused_and_nothing_is_touched(
    command: str,
    moves: list[Any],
    removals: list[Any],
    foreign: Path,
    outside: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (foreign / "labelsTr").symlink_to(outside)
    (foreign / "fmseg" / "lock").write_text("")
    commit(foreign, moves, removals)
    before = content(foreign), content(outside)
    assert cli_main.main(["project", command, str(foreign)]) == 1
    told = capsys.readouterr().err
    assert "commit.json" in told
    assert "defect" not in told
    assert (content(foreign), content(outside)) == before


def test_a_commit_cannot_make_the_link_through_which_it_writes(foreign: Path, outside: Path) -> None:
    (foreign / "fmseg" / "staging" / "link").symlink_to(outside)
    commit(foreign, [["fmseg/staging/link", "new"], [STAGED, "new/authorized_keys"]])
    before = content(outside)
    with pytest.raises(FmsegError, match=r"commit\.json"):
        open_project(foreign)
    assert content(outside) == before


def test_an_absolute_place_in_a_commit_is_refused(foreign: Path, outside: Path) -> None:
    commit(foreign, removals=[str(outside / "keep.txt")])
    with pytest.raises(FmsegError, match="outside of the project"):
        open_project(foreign)
    assert (outside / "keep.txt").exists()


@pytest.mark.parametrize("link", ["fmseg", "fmseg/staging", "fmseg/lock"])
def test_our_own_folder_is_no_link_to_elsewhere(link: str, tmp_path: Path, outside: Path) -> None:
    folder = tmp_path / "p"
    folder.mkdir()
    (folder / "dataset.json").write_text(json.dumps(TABLE))
    place = folder / link
    place.parent.mkdir(exist_ok=True)
    place.symlink_to(outside / "new.lock" if link.endswith("lock") else outside)
    before = content(outside)
    assert cli_main.main(["project", "list", str(folder)]) == 1
    with pytest.raises(FmsegError, match="is a link"):
        init_project(folder)
    assert content(outside) == before


@pytest.mark.parametrize(
    ("linked", "act"),
    [
        ("labelsTr", lambda p, image, labels: add_case(p, "new", image(7), labels())),
        ("imagesTr", lambda p, image, labels: add_case(p, "new", image(7), labels())),
        ("imagesTs", lambda p, image, labels: add_case(p, "new", image(7))),
        ("fmseg/history", lambda p, image, labels: label_case(p, "a", labels(tumour=1))),
        ("fmseg/predictions", lambda p, image, labels: save_prediction(p, "a", labels(), 1)),
    ],
)
def test_no_change_is_written_through_a_link_that_leads_out(
    linked: str, act: Any, project, image, labels, outside: Path
) -> None:
    project = add_case(project, "a", image(1), labels())
    place = project.folder / linked
    if place.is_dir():
        place.rename(outside / "moved")
    place.symlink_to(outside / "moved" if (outside / "moved").exists() else outside)
    project = open_project(project.folder)
    before = content(outside)
    with pytest.raises(FmsegError, match="lies outside of the project"):
        act(project, image, labels)
    assert content(outside) == before
    assert not (project.folder / "fmseg" / "staging").exists()


def test_a_link_within_the_project_is_as_good_as_a_folder(project, image, labels) -> None:
    (project.folder / "elsewhere").mkdir()
    (project.folder / "labelsTr").symlink_to("elsewhere")
    project = add_case(project, "a", image(1), labels())
    assert [path.name for path in (project.folder / "elsewhere").iterdir()] == ["a.nii.gz"]


@pytest.mark.parametrize("file", ["../outside/keep.txt", "ABSOLUTE", "fmseg/history/link/keep.txt"])
def test_earlier_labels_are_taken_from_the_project_only(file: str, project, image, labels, outside: Path) -> None:
    project = label_case(add_case(project, "a", image(1), labels()), "a", labels(tumour=1))
    (project.folder / "fmseg" / "history" / "link").symlink_to(outside)
    path = project.folder / "fmseg" / "project.json"
    table = json.loads(path.read_text())
    table["cases"]["a"]["earlier"][0]["file"] = str(outside / "keep.txt") if file == "ABSOLUTE" else file
    path.write_text(json.dumps(table))
    with pytest.raises(FmsegError, match="outside of the project"):
        restore_labels(open_project(project.folder), "a")


def test_a_run_that_is_a_link_is_not_gone_on_with(project, outside: Path) -> None:
    (outside / "plan.json").write_text('{"training": {}, "validation": {}}')
    (project.folder / "fmseg" / "runs").mkdir()
    (project.folder / "fmseg" / "runs" / "1").symlink_to(outside)
    with pytest.raises(FmsegError, match="outside of the project"):
        open_run(project, 1)


@pytest.mark.parametrize("name", ["../../../up", "/up", "a/../../../up", "..\\up", "C:\\up"])
@pytest.mark.parametrize("where", ["training", "dataset"])
def test_a_case_whose_name_leads_out_is_refused(name: str, where: str, foreign: Path) -> None:
    entry = {"case": name, "image": "a.nii.gz"}
    table = {**TABLE, where: [entry] if where == "training" else {name: {"images": ["a.nii.gz"]}}}
    (foreign / "dataset.json").write_text(json.dumps(table))
    with pytest.raises(FmsegError, match="leads out"):
        open_project(foreign)


def test_telling_of_a_folder_leaves_it_as_it_is(project, image, labels, capsys: pytest.CaptureFixture[str]) -> None:
    """Cases that nobody examined, and what a killed process had not committed: both stay for the next change."""
    for i in range(5):
        project = add_case(project, f"c{i}", image(i), labels())
    for path in (project.folder / "fmseg").iterdir():
        if path.is_file():
            path.unlink()
    (project.folder / "fmseg" / "staging").mkdir()
    (project.folder / "fmseg" / "staging" / "half").write_text("x")
    before = {p: (p.stat().st_mtime_ns, p.stat().st_size) for p in project.folder.rglob("*")}
    for command in ("list", "rank"):
        assert cli_main.main(["project", command, str(project.folder), "--json"]) == 0
    told = capsys.readouterr().out
    assert told.count("held out") == 1  # the roles that they will have are told all the same
    assert {p: (p.stat().st_mtime_ns, p.stat().st_size) for p in project.folder.rglob("*")} == before


# --- files that are not what they should be ---------------------------------------------------------------------

ENTRY = {"case": "a", "image": "x.nii.gz"}
DEEP = "[" * 100_000


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"training": 5}, "training"),
        ({"training": None}, "training"),
        ({"training": [5]}, r"training\[0\]"),
        ({"training": [{**ENTRY, "image": 5}]}, r"training\[0\]\.image"),
        ({"training": [{**ENTRY, "images": [[]]}]}, r"training\[0\]\.images"),
        ({"training": [{**ENTRY, "label": {}}]}, r"training\[0\]\.label"),
        ({"training": [{**ENTRY, "classes": [1]}]}, r"training\[0\]\.classes"),
        ({"training": [{**ENTRY, "image": "a\0b"}]}, r"training\[0\]\.image"),
        ({"validation": {"a": 1}}, "validation"),
        ({"test": 5}, "test"),
        ({"dataset": {"a": 5}}, r"dataset\.a"),
        ({"dataset": {"a": {"images": 5}}}, r"dataset\.a\.images"),
        ({"labels": 5}, "labels"),
        ({"labels": {"liver": {}}}, r"labels\.liver"),
        ({"labels": {"liver": "one"}}, r"labels\.liver.*one"),
        ({"labels": {"liver": -1}}, r"labels\.liver.*-1"),
        ({"labels": {"liver": 10**30}}, r"labels\.liver"),
        ({"labels": {"liver": 70_000}}, r"labels\.liver.*70000"),
        ({"labels": {"liver": True}}, r"labels\.liver"),
        ({"labels": {"liver": [1, "x"]}}, r"labels\.liver"),
        ({"channel_names": []}, "channel_names"),
        ({"channel_names": {"first": "CT"}}, "channel_names.*first"),
        ({"channel_names": {"0": []}}, r"channel_names\.0"),
        ({"file_ending": 5}, "file_ending"),
        ({"classes": {"a": 5}}, r"classes"),
    ],
)
@pytest.mark.parametrize("as_project", [True, False])
def test_a_dataset_json_of_odd_shape_is_told_by_file_and_key(
    change: dict[str, Any], told: str, as_project: bool, tmp_path: Path
) -> None:
    (tmp_path / "dataset.json").write_text(json.dumps({**TABLE, **change}))
    with pytest.raises(FmsegError, match=told):
        (open_project if as_project else cases_of)(tmp_path)


FILES = ("dataset.json", *(f"fmseg/{name}" for name in ("project.json", "split.json", "commit.json")))


@pytest.mark.parametrize("content", [b"", DEEP.encode(), b"\xff\xfe", b"[]", b'"text"', b"null", b"{", b'{"a": 1}'])
@pytest.mark.parametrize(
    "file",
    ["dataset.json", "fmseg/project.json", "fmseg/split.json", "fmseg/commit.json", "fmseg/models/1/lineage.json"],
)
def test_a_damaged_file_of_a_project_is_a_mistake_of_the_input(
    file: str, content: bytes, project, capsys: pytest.CaptureFixture[str]
) -> None:
    path = project.folder / file
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    assert cli_main.main(["project", "list", str(project.folder)]) == 1
    told = capsys.readouterr().err
    assert path.name in told or (path.parent.name == "1" and "1 is no version" in told), told
    assert "defect" not in told


@pytest.mark.parametrize(
    "change",
    [
        {"cases": 5},
        {"cases": {"a": 5}},
        {"cases": {"a": {"stamps": [["x"]]}}},
        {"cases": {"a": {"dice": {"x": {}}}}},
        {"cases": {"a": {"dice": {"1": {"liver": "good"}}}}},
        {"cases": {"a": {"earlier": [{"file": 5, "changed": "", "classes": []}]}}},
        {"cases": {"a": {"predicted": 10**30}}},
        {"used": ["1"]},
        {"used": 1},
        {"format": []},
    ],
)
def test_an_index_of_odd_shape_is_told_by_its_file(change: dict[str, Any], project) -> None:
    (project.folder / "fmseg" / "project.json").write_text(json.dumps(change))
    with pytest.raises(FmsegError, match=r"project\.json"):
        open_project(project.folder)


@pytest.mark.parametrize("roles", [5, [], {"a": 5}, {"a": "whatever"}])
def test_a_split_of_odd_shape_is_told_by_its_file(roles: Any, project) -> None:
    (project.folder / "fmseg" / "split.json").write_text(json.dumps({"roles": roles}))
    with pytest.raises(FmsegError, match=r"split\.json"):
        open_project(project.folder)


@pytest.mark.parametrize(
    "change", [{"version": "1"}, {"version": 1, "seen": 5}, {"version": 1, "scores": {"a": 5}}, {}]
)
def test_a_lineage_of_odd_shape_is_told_by_its_folder(change: dict[str, Any], project) -> None:
    folder = project.folder / "fmseg" / "models" / "1"
    folder.mkdir(parents=True)
    (folder / "lineage.json").write_text(json.dumps(change))
    with pytest.raises(FmsegError, match=r"lineage|1 is no version"):
        list_versions(open_project(project.folder))


@pytest.mark.parametrize("plan", ["", "[]", DEEP, '{"training": 5}', '{"training": {"a": 5}, "validation": {}}'])
def test_a_plan_of_odd_shape_is_told_by_its_run(plan: str, project) -> None:
    folder = project.folder / "fmseg" / "runs" / "1"
    folder.mkdir(parents=True)
    (folder / "plan.json").write_text(plan)
    with pytest.raises(FmsegError, match="run 1"):
        open_run(project, 1)
