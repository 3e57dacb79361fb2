"""kill -9 at any moment: the project opens, with all of a change or with nothing of it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.skipif(
    not hasattr(os, "fork"), reason="the writing process is a fork, which is quick to start"
)

COMMON = """
import hashlib, json, os, random, shutil, signal, sys, time
from pathlib import Path
import numpy as np
from napari_fmseg.io import read_labels, read_volume
from napari_fmseg.models.card import ModelCard, NetSpec, write_card
from napari_fmseg.training.projects import (
    LabelOptions, Run, add_case, init_project, add_version, label_case, list_versions, open_project, remove_case,
    rename_case, rename_class, save_prediction, start_run, training_plan,
)
from napari_fmseg.datasets.projects.scan import changed_cases
from napari_fmseg.core.volume import Geometry, LabelMap, Volume

assert "torch" not in sys.modules
grid = Geometry.from_spacing((5, 6, 7), (2.0, 1.0, 1.0))
place = Path(sys.argv[1])

def image(i):
    return Volume(np.random.default_rng(i).normal(size=grid.shape).astype(np.float32), grid)

def labels(value=1, names=None):
    data = np.zeros(grid.shape, np.uint8)
    data[1:3] = value
    return LabelMap(data, grid, {}, names or {})

SPARSE = LabelOptions(unlabelled="empty-slices")
weights = place / "trained" / "liver.safetensors"
weights.parent.mkdir(parents=True)
weights.write_bytes(bytes(range(256)) * 16)
card = ModelCard("liver", "Liver", "phased", {"consensus": NetSpec("snet")}, {1: "liver"},
                 weights=weights.name, folder=weights.parent,
                 sha256=hashlib.sha256(weights.read_bytes()).hexdigest())
write_card(card, weights.with_suffix(".toml"))

def keep(project):
    return add_version(start_run(project, training_plan(project)), card, force=True).project

def grow(project, i):
    return add_case(project, f"grown{i}", image(10**6 + i), labels(1, {1: f"class{i}"}), LabelOptions(new_classes=True))

def verified(folder):
    '''Open a project after a kill and look at everything in it.'''
    project = open_project(folder)
    left = [p for p in folder.rglob("*") if p.name in ("staging", "commit.json") or p.name.endswith(".part")]
    assert not left, left
    assert changed_cases(project) == (), "index and files differ"
    table = json.loads((folder / "dataset.json").read_text())
    assert table["numTraining"] == len(project.labelled) == len(list((folder / "labelsTr").glob("*")))
    assert len(list((folder / "imagesTr").glob("*"))) == len(project.labelled)
    allowed = {0, *project.facts.labels}
    for name, files in project.files.items():
        record = project.record(name)
        assert read_volume(files.images[0]).data.shape == grid.shape
        assert all((folder / earlier.file).exists() for earlier in record.earlier)
        if files.labels is not None:
            values = set(np.unique(read_labels(files.labels).data).tolist())
            assert values <= allowed | ({project.facts.ignore} if record.sparse else set()), (name, values)
            assert not record.sparse or project.facts.ignore in values
        if record.predicted:
            read_labels(folder / "fmseg" / "predictions" / f"{name}.nii.gz")
    versions = list_versions(project)
    assert [v.number for v in versions] == list(range(1, len(versions) + 1))
    for version in versions:
        assert hashlib.sha256(version.card.weights_path.read_bytes()).hexdigest() == version.card.sha256
    assert set(project.index.used) <= {v.number for v in versions}
    return project

def warmed():
    '''Load all that is loaded at first use, so that no fork has to.'''
    project = init_project(place / "warm", ("liver",))
    project = add_case(project, "a", image(1), labels(), SPARSE)
    project = keep(save_prediction(grow(project, 2), "a", labels(), version=1))
    verified(label_case(project, "a", labels()).folder)

def forked(work):
    child = os.fork()
    if child == 0:
        try:
            work()
        except BaseException:
            import traceback
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    return child
"""

RANDOM = (
    COMMON
    + """
warmed()
folder = init_project(place / "p", ("liver",)).folder
dice = random.Random(int(sys.argv[3]))
roles, told, kills = {}, 0, int(sys.argv[2])
read_end, write_end = os.pipe()

def write_for_ever(number):
    project = open_project(folder)
    while True:
        number += 1
        names = list(project.files)
        turn = number % 7
        if turn in (1, 4):
            project = add_case(project, f"c{number}", image(number), labels() if turn == 1 else None)
        elif turn in (2, 3):
            project = label_case(project, names[number % len(names)], labels(), SPARSE if turn == 2 else LabelOptions())
        elif turn == 5:
            project = save_prediction(project, names[-1], labels(), version=1, uncertainty=0.5)
        elif turn == 6:
            project = keep(project)
        elif number % 4 == 0:
            project = grow(project, number)
        os.write(write_end, number.to_bytes(4, "little"))

start = time.perf_counter()  # how long a process takes to begin and to write once, on this machine as busy as it is
add_case(init_project(place / "pace", ("liver",)), "c0", image(0), labels())
longest = max(0.12, 3 * (time.perf_counter() - start))

seconds = []
for _ in range(kills):
    child = forked(lambda: write_for_ever(told))
    time.sleep(dice.uniform(0.0, longest))
    os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status), "the writer failed by itself"
    os.set_blocking(read_end, False)
    try:
        while block := os.read(read_end, 1 << 16):
            told = int.from_bytes(block[-4:], "little")
    except BlockingIOError:
        pass
    start = time.perf_counter()
    project = verified(folder)
    seconds.append(time.perf_counter() - start)
    assert roles.items() <= project.roles.items(), "the split changed"
    roles = dict(project.roles)
    # What was told to be done is there; of what was under way all is there or nothing.
    numbers = {int(name[1:]) for name in project.files if name.startswith("c")}
    expected = {n for n in range(1, told + 1) if n % 7 in (1, 4)}
    assert expected <= numbers <= expected | {told + 1}, (told, numbers ^ expected)
    if told + 1 in numbers or f"grown{told + 1}" in project.files:
        told += 1
print(json.dumps({"kills": kills, "writes": told, "cases": len(project.files),
                  "versions": len(list_versions(project)), "slowest_open_and_check_s": max(seconds)}))
"""
)

EVERY = (
    COMMON
    + """
import napari_fmseg.datasets.projects.add_case as adding
import napari_fmseg.datasets.projects.staged_case as staging
import napari_fmseg.training.projects.versions as versions

warmed()
adding.now = staging.now = versions.now = lambda: "then"
base = init_project(place / "base", ("liver",))
for i in range(4):
    base = add_case(base, f"c{i}", image(i), labels(), SPARSE if i == 0 else LabelOptions())
base = add_case(base, "waiting", image(9))
base = save_prediction(base, "waiting", labels(), version=1)

CHANGES = {
    "add": lambda p: add_case(p, "new", image(20), labels()),
    "label a waiting one": lambda p: label_case(p, "waiting", labels()),
    "correct": lambda p: label_case(p, "c1", labels(0), LabelOptions(unlabelled="nothing")),
    "rename": lambda p: rename_case(p, "c0", "z"),
    "rename a waiting one": lambda p: rename_case(p, "waiting", "y"),
    "remove": lambda p: remove_case(p, "c1", with_labels=True),
    "rename a class": lambda p: rename_class(p, "liver", "Leber"),
    "grow": lambda p: grow(p, 1),
    "keep": lambda p: add_version(Run(p, p.folder / "fmseg" / "runs" / "1", training_plan(p)), card).project,
}

def snapshot(folder):
    p = verified(folder)
    cases = {
        name: (hashlib.sha256(files.images[0].read_bytes()).hexdigest(), files.images[0].parent.name,
               None if files.labels is None else read_labels(files.labels).data.tobytes(),
               p.record(name).classes, p.record(name).sparse, len(p.record(name).earlier), p.record(name).predicted,
               sorted(p.record(name).dice))
        for name, files in p.files.items()
    }
    return json.dumps([repr(cases), p.facts.table, sorted(p.roles.items()), p.index.used,
                       [v.number for v in list_versions(p)]])

def dying(step, work):
    '''Run `work`, and end the process in front of its `step`-th call that changes the disk.'''
    count = 0
    def watched(call):
        def wrapper(*args, **words):
            nonlocal count
            count += 1
            if count == step:
                os._exit(9)
            return call(*args, **words)
        return wrapper
    for name in ("replace", "unlink", "mkdir", "rmdir"):
        setattr(os, name, watched(getattr(os, name)))
    work()

told = {}
for what in sys.argv[2:] or CHANGES:
    change = CHANGES[what]
    done = Path(shutil.copytree(base.folder, place / "done"))
    change(open_project(done))
    old, new = snapshot(base.folder), snapshot(done)
    assert old != new
    shutil.rmtree(done)
    seen, step = [], 0
    while True:
        step += 1
        folder = Path(shutil.copytree(base.folder, place / "work"))
        project = open_project(folder)
        _, status = os.waitpid(forked(lambda: dying(step, lambda: change(project))), 0)
        os.waitpid(forked(lambda: dying(1 + step % 6, lambda: open_project(folder))), 0)  # and once more while it mends
        found = snapshot(folder)
        assert found in (old, new), (what, step)
        seen.append(found == new)
        shutil.rmtree(folder)
        if os.waitstatus_to_exitcode(status) == 0:
            break
        assert os.waitstatus_to_exitcode(status) == 9
    assert seen == sorted(seen), "once it is done it stays done"
    assert not seen[0] and seen[-1], what
    told[what] = [len(seen) - 1, seen.index(True)]
print(json.dumps(told))
"""
)


def run(script: str, *words: object) -> dict:
    done = subprocess.run(
        [sys.executable, "-c", script, *map(str, words)], capture_output=True, text=True, timeout=240, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    found: dict = json.loads(done.stdout.splitlines()[-1])
    return found


def test_a_project_opens_after_each_of_fifty_kills_at_random_moments(tmp_path: Path) -> None:
    found = run(RANDOM, tmp_path, 50, 4)
    sys.stdout.write(f"{found}\n")
    assert found["kills"] == 50
    assert found["writes"] > 5  # so the kills met a process at work, not one that had just begun


@pytest.mark.parametrize(
    "changes", [["correct"], ["rename"], ["remove"], pytest.param([], marks=pytest.mark.slow, id="all")]
)
def test_a_process_that_dies_in_front_of_any_call_leaves_the_old_or_the_new_state(
    tmp_path: Path, changes: list[str]
) -> None:
    found = run(EVERY, tmp_path, *changes)
    sys.stdout.write(f"{found}\n")
    assert len(found) == (len(changes) or 9)
    for what, (n_steps, first_new) in found.items():
        assert 0 < first_new < n_steps, what
