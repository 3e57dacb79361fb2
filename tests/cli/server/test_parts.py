"""Sessions, forms, numbers of classes, cases and trainings, each by itself."""

from __future__ import annotations

import asyncio
import json
import sys
import textwrap
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request

from napari_fmseg.cli.server.cases import FINAL, ORIGINAL, Cases, Client
from napari_fmseg.cli.server.rounds import Rounds
from napari_fmseg.cli.server.served_models import ServedModel, check_classes, renumber
from napari_fmseg.cli.server.sessions import Sessions
from napari_fmseg.cli.server.uploads import Form, receive_form
from napari_fmseg.core.errors import FmsegError, GeometryMismatch
from napari_fmseg.core.volume import Geometry, LabelMap, Volume
from napari_fmseg.io import read_labels, write_labels, write_volume
from napari_fmseg.models.card import ModelCard
from napari_fmseg.training.projects import LabelOptions, TrainingOptions, record_uncertainty, save_prediction

BOUNDARY = b"----------lImIt_of_THE_fIle_eW_$"
ALICE, BOB = Client("10.0.0.1", "", "alice"), Client("10.0.0.1", "", "bob")


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


# --- numbers of classes


def labels_of(data: Any, names: dict[int, str]) -> LabelMap:
    data = np.asarray(data, np.uint16)
    return LabelMap(data, Geometry.from_spacing(data.shape), {}, names, {2: (1.0, 0.5, 0.0)})


def test_classes_with_gaps_are_numbered_without_and_an_absent_one_keeps_its_number() -> None:
    classes = {7: "spleen", 3: "liver", 5: "absent"}
    given = labels_of([[[0, 3, 7, 9]]], classes)
    found = renumber(given, classes)
    assert found.data.tolist() == [[[0, 1, 3, 0]]]
    assert found.data.dtype == np.uint8
    assert dict(found.names) == {1: "liver", 2: "absent", 3: "spleen"}


def test_a_colour_follows_its_class() -> None:
    found = renumber(labels_of([[[2]]], {2: "liver"}), {2: "liver"})
    assert dict(found.colors) == {1: (1.0, 0.5, 0.0)}


def test_a_model_is_described_with_the_numbers_that_its_results_have() -> None:
    card = ModelCard("m", "Model", "phased", {}, {5: "c", 1: "a", 2: "b"}, channels=("CT", "PET"), restriction="No.")
    told = ServedModel("m", card).as_json()
    assert told["labels"] == {"a": 1, "b": 2, "c": 3}
    assert list(told["labels"]) == ["a", "b", "c"]
    assert told["type"] == "segmentation"
    assert "2 channels: CT, PET" in told["description"]
    assert "No." in told["description"]


def test_more_classes_than_clients_can_show_are_refused() -> None:
    with pytest.raises(FmsegError, match="at most 255"):
        check_classes(ModelCard("m", "m", "phased", {}, {i: str(i) for i in range(1, 257)}))


# --- sessions


def session_in(sessions: Sessions, **options: Any) -> Any:
    folder = sessions.new_folder()
    (folder / "upload-00001.nii.gz").write_bytes(b"x")
    return sessions.open(folder, **options)


def test_a_session_ends_when_nobody_used_it_for_long_and_its_files_go(tmp_path: Path) -> None:
    clock = Clock()
    sessions = Sessions(tmp_path, 100, clock=clock)
    session = session_in(sessions)
    clock.now += 90
    assert sessions.find(session.name) is session
    clock.now += 90
    assert sessions.find(session.name) is session
    clock.now += 101
    sessions.end_expired()
    assert list(tmp_path.iterdir()) == []
    assert sessions.find(session.name) is None
    assert not sessions.close(session.name)


def test_a_client_may_ask_for_a_shorter_session_but_not_for_a_longer_one(tmp_path: Path) -> None:
    sessions = Sessions(tmp_path, 100)
    assert [session_in(sessions, seconds=s).seconds for s in (50, 500, 0, None)] == [50, 100, 100, 100]


def test_of_too_many_sessions_the_one_that_was_not_used_for_longest_ends(tmp_path: Path) -> None:
    clock = Clock()
    sessions = Sessions(tmp_path, 1e6, clock=clock)
    names = []
    for _ in range(65):
        clock.now += 1
        names.append(session_in(sessions).name)
        sessions.find(names[0])
    assert len(sessions) == 64
    assert sessions.find(names[1]) is None
    assert sessions.find(names[0]) is not None
    assert len(list(tmp_path.iterdir())) == 64


def test_where_a_session_lies_is_not_told(tmp_path: Path) -> None:
    assert str(tmp_path) not in json.dumps(session_in(Sessions(tmp_path, 9)).as_json())


# --- forms


def receive(
    folder: Path, body: bytes, *, chunk: int = 7, most: int = 1 << 20, ends: bool = True, **headers: str
) -> Form:
    """Receive a form that comes in small pieces; `ends` is whether the client stays to the end."""
    parts = [body[i : i + chunk] for i in range(0, len(body), chunk)]
    messages = [{"type": "http.request", "body": part, "more_body": True} for part in parts]
    messages.append({"type": "http.request", "body": b"", "more_body": False} if ends else {"type": "http.disconnect"})

    async def next_message() -> Any:
        return messages.pop(0)

    scope = {"type": "http", "method": "PUT", "headers": [(k.encode(), v.encode()) for k, v in headers.items()]}
    return asyncio.run(receive_form(Request(scope, next_message), folder, most))


@pytest.mark.parametrize("chunk", [1, 7, 4096])
def test_a_form_arrives_whole_in_pieces_of_any_size(tmp_path: Path, chunk: int, form_of: Any) -> None:
    content = bytes(range(256)) * 3 + b"\r\n--" + BOUNDARY[:-1] + b"\r\n"
    form = receive(tmp_path, form_of({"params": '{"a": 1}'}, [("file", "x.nii.gz", content)]), chunk=chunk)
    assert form.fields == {"params": '{"a": 1}'}
    assert form.file("file").read_bytes() == content


@pytest.mark.parametrize(
    ("client_name", "suffix"),
    [
        ("/home/doe/Jane Doe 1970.nii.gz", ".nii.gz"),
        ("C:\\patients\\Jane.NRRD", ".nrrd"),
        ("labels.seg.nrrd", ".nrrd"),
        ("../../etc/cron.d/evil", ""),
        ("..", ""),
        ("", ""),
        ("label.bin", ""),
        ('a;b="c".mha', ".mha"),
        ("Müller.nii", ".nii"),
    ],
)
def test_of_a_clients_file_name_only_the_suffix_is_used(
    tmp_path: Path, client_name: str, suffix: str, form_of: Any
) -> None:
    folder = tmp_path / "a" / "b"
    folder.mkdir(parents=True)
    form = receive(folder, form_of({}, [("file", client_name, b"x")]))
    (path,) = form.files["file"]
    assert path == folder / f"upload-00001{suffix}"
    assert [p for p in tmp_path.rglob("*") if p.is_file()] == [path]


def test_the_header_of_a_client_that_repeats_the_one_of_its_last_request_does_not_matter(
    tmp_path: Path, form_of: Any
) -> None:
    form = receive(tmp_path, form_of({"a": "b"}, []), **{"content-type": "application/json"})
    assert form.fields == {"a": "b"}


def test_an_upload_over_the_limit_is_refused_while_it_arrives_and_leaves_no_file(tmp_path: Path, form_of: Any) -> None:
    body = form_of({}, [("file", "x.nii", b"x" * 5000)])
    for most in (1000, 4000):
        with pytest.raises(HTTPException) as caught:
            receive(tmp_path, body, most=most, chunk=500)
        assert caught.value.status_code == 413
        assert "--max-upload-gb" in caught.value.detail
        assert list(tmp_path.iterdir()) == []


def test_an_upload_that_announces_too_much_is_refused_before_it_is_read(tmp_path: Path) -> None:
    with pytest.raises(HTTPException) as caught:
        receive(tmp_path, b"", most=1000, **{"content-length": "99999"})
    assert caught.value.status_code == 413


@pytest.mark.parametrize("body", [b"not a form", b"--" + b"x" * 9000, b"--x\r\n\r\n"])
def test_what_is_no_form_or_ends_early_is_refused(tmp_path: Path, body: bytes) -> None:
    with pytest.raises(HTTPException) as caught:
        receive(tmp_path, body)
    assert caught.value.status_code == 422


def test_a_client_that_dies_in_an_upload_ends_it(tmp_path: Path, form_of: Any) -> None:
    with pytest.raises(ClientDisconnect):
        receive(tmp_path, form_of({}, [("file", "x.nii", b"x" * 500)])[:-300], ends=False)


def test_a_volume_in_two_files_is_refused_with_what_to_do(tmp_path: Path, form_of: Any) -> None:
    with pytest.raises(HTTPException, match="two files"):
        receive(tmp_path, form_of({}, [("file", "a.mhd", b"x")]))


def test_a_field_of_text_is_not_larger_than_a_mebibyte(tmp_path: Path, form_of: Any) -> None:
    with pytest.raises(HTTPException, match="1 MiB"):
        receive(tmp_path, form_of({"params": "x" * (2 << 20)}, []), chunk=1 << 16, most=8 << 20)


# --- cases


def image(seed: int) -> Volume:
    data = np.random.default_rng(seed).normal(100, 30, (6, 8, 10)).astype(np.int16)
    return Volume(data, Geometry.from_spacing(data.shape, (3.0, 1.0, 1.5)))


@pytest.fixture
def cases(tmp_path: Path) -> Cases:
    from napari_fmseg.training.projects import add_case, init_project

    project = init_project(tmp_path / "project", ("liver", "spleen"))
    for name, seed in (("a", 1), ("b", 2), ("c", 3)):
        project = add_case(project, name, image(seed))
    return Cases(project.folder, LabelOptions(unlabelled="nothing"), clock=Clock())


def labels_file(folder: Path, data: Any = None, names: dict[int, str] | None = None, suffix: str = ".nii.gz") -> Path:
    grid = image(0).geometry
    values = np.zeros(grid.shape, np.uint8)
    values[2:4, 2:5, 2:5], values[4:, 5:, 5:] = 1, 2
    path = folder / f"labels{suffix}"
    write_labels(LabelMap(values if data is None else data, grid, {}, names or {}), path)
    return path


def entries(*names: str) -> list[dict[str, Any]]:
    return [{"name": name, "idx": 7 * i} for i, name in enumerate(names, 3)]  # idx counts other things, too


def saved(cases: Cases, name: str) -> Any:
    return read_labels(cases.open().files_of(name).labels).data


def test_the_order_of_the_segments_names_the_values_whatever_their_numbers_are(cases: Cases, tmp_path: Path) -> None:
    cases.submit("a", labels_file(tmp_path), entries("Spleen", "liver"), ALICE)
    data = saved(cases, "a")
    assert data[2, 2, 2] == 2
    assert data[5, 6, 6] == 1
    assert cases.open().record("a").classes == ("liver", "spleen")


def test_names_in_the_file_itself_count_more_than_the_order(cases: Cases, tmp_path: Path) -> None:
    path = labels_file(tmp_path, None, {1: "spleen", 2: "liver"}, ".nrrd")
    cases.submit("a", path, entries("liver", "spleen"), ALICE)
    assert saved(cases, "a")[2, 2, 2] == 2


def test_more_values_than_segments_are_refused(cases: Cases, tmp_path: Path) -> None:
    with pytest.raises(HTTPException, match="only 1 segments") as caught:
        cases.submit("a", labels_file(tmp_path), entries("liver"), ALICE)
    assert caught.value.status_code == 422
    assert cases.open().labelled == ()


def test_a_name_that_the_project_does_not_have_is_refused_with_those_that_it_has(cases: Cases, tmp_path: Path) -> None:
    with pytest.raises(FmsegError, match="liver, spleen"):
        cases.submit("a", labels_file(tmp_path), entries("liver", "Segment_2"), ALICE)
    assert cases.open().labelled == ()


def test_labels_on_another_grid_are_refused(cases: Cases, tmp_path: Path) -> None:
    path = tmp_path / "other.nii.gz"
    write_labels(LabelMap(np.ones((6, 8, 9), np.uint8), Geometry.from_spacing((6, 8, 9))), path)
    with pytest.raises(GeometryMismatch):
        cases.submit("a", path, entries("liver"), ALICE)


def test_labels_that_a_client_has_not_seen_are_not_replaced(cases: Cases, tmp_path: Path) -> None:
    path = labels_file(tmp_path)
    for client in (ALICE, BOB):
        cases.note_seen("a", client)
    cases.submit("a", path, entries("liver", "spleen"), ALICE)
    with pytest.raises(HTTPException, match="has not seen") as caught:
        cases.submit("a", path, entries("spleen", "liver"), BOB)
    assert caught.value.status_code == 409
    assert saved(cases, "a")[2, 2, 2] == 1
    cases.submit("a", path, entries("spleen", "liver"), ALICE)  # their own
    cases.note_seen("a", BOB)
    cases.submit("a", path, entries("liver", "spleen"), BOB)
    assert len(cases.open().record("a").earlier) == 2


def test_an_uploaded_image_gets_a_name_that_tells_nothing_and_is_found_under_the_clients(
    cases: Cases, tmp_path: Path
) -> None:
    path = write_volume(image(9), tmp_path / "upload-00001.nii.gz")
    name = cases.upload(path, "DOE^JANE T1", ALICE)
    assert name == "case-001"
    assert cases.resolve("DOE^JANE T1", ALICE) == name
    assert cases.upload(path, "the same again", BOB) == name
    assert len(cases.open().files) == 4
    files = "".join(p.read_text("utf-8", "replace") for p in cases.folder.rglob("*.json"))
    assert "DOE" not in files
    with pytest.raises(HTTPException) as caught:
        cases.resolve("DOE^JANE T1", BOB)
    assert caught.value.status_code == 404


@pytest.mark.parametrize("taken", ["b", "mine"])
def test_two_images_under_one_name_are_refused(cases: Cases, tmp_path: Path, taken: str) -> None:
    cases.upload(write_volume(image(8), tmp_path / "one.nii.gz"), "mine", ALICE)
    with pytest.raises(HTTPException, match="Rename the volume") as caught:
        cases.upload(write_volume(image(9), tmp_path / "two.nii.gz"), taken, ALICE)
    assert caught.value.status_code == 409
    assert cases.resolve("b", ALICE) == "b"


def test_the_next_case_is_the_most_doubtful_and_two_clients_get_two(cases: Cases) -> None:
    project = cases.open()
    from dataclasses import replace

    from napari_fmseg.datasets.projects.project import write_state
    from napari_fmseg.datasets.projects.transaction import transaction

    with transaction(project.folder) as change:
        write_state(change, replace(project, index=replace(project.index, used=(1,))))
    record_uncertainty(cases.open(), 1, {"a": 0.1, "b": 0.7})
    assert [cases.next("uncertainty", who) for who in (ALICE, BOB, ALICE, BOB)] == ["b", "a", "c", "b"]


def test_every_case_comes_by_chance_and_nothing_is_left_at_the_end(cases: Cases, tmp_path: Path) -> None:
    assert {cases.next("random", ALICE) for _ in range(3)} == {"a", "b", "c"}
    for name in "abc":
        cases.submit(name, labels_file(tmp_path), entries("liver", "spleen"), ALICE)
    assert cases.next("random", ALICE) == ""


def test_labels_of_a_model_wait_under_a_tag_of_their_own(cases: Cases, tmp_path: Path) -> None:
    found = read_labels(labels_file(tmp_path))
    save_prediction(cases.open(), "a", found, 1)
    cases.submit("b", labels_file(tmp_path), entries("liver", "spleen"), ALICE)
    objects = cases.listing()["objects"]
    assert set(objects["a"]["labels"]) == {ORIGINAL}
    assert objects["a"]["labels"][ORIGINAL]["info"]["params"]["label_names"] == {"liver": 1, "spleen": 2}
    assert set(objects["b"]["labels"]) == {FINAL}
    assert objects["c"] == {"image": objects["c"]["image"], "labels": {}}
    assert (read_labels(cases.labels_file("a", ORIGINAL, tmp_path)).data == found.data).all()
    with pytest.raises(HTTPException, match="no labels"):
        cases.labels_file("c", FINAL, tmp_path)
    assert cases.counts() == {"total": 3, "completed": 1, "label_tags": {FINAL: 1, ORIGINAL: 1}}
    assert str(cases.folder) not in json.dumps([cases.listing(), cases.pairs()])


# --- trainings


HEAD = "import json, os, pathlib, signal, sys, time\nwords = sys.argv[1:]\nrun = pathlib.Path(os.environ['RUN'])\n"
EVENT = "\ndef say(kind, **fields):\n    print(json.dumps({'event': kind, **fields}), flush=True)\n"
RECIPE = """
name = "model"
labels = ["liver"]
out = "run"
dataset = "data"
[[stages]]
stage = "consensus"
network = "snet"
steps = 2
"""
PREPARE = """
if words[:2] == ["project", "prepare"]:
    assert words[words.index("--minutes") + 1] == "3.0"
    say("Saved", path=str(run / "recipe.toml"), best=True)
"""
KEEP = """
elif words[:2] == ["project", "keep"]:
    say("Warned", text="Dice 0.9, so it is used.", code="")
    say("Saved", path=str(run / "model.toml"), best=True)
elif words[:2] == ["project", "predict"]:
    say("Progress", stage="predicting", done=0, total=2)
"""


@pytest.fixture
def rounds_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Return a function that makes trainings whose command is a program of a few lines."""
    run = tmp_path / "project" / "fmseg" / "runs" / "1"
    run.mkdir(parents=True)
    (run / "recipe.toml").write_text(RECIPE)
    monkeypatch.setenv("RUN", str(run))

    def make(train: str) -> Rounds:
        code = HEAD + EVENT + PREPARE + 'elif words[0] == "train":\n' + textwrap.indent(train, "    ") + KEEP
        (tmp_path / "standin.py").write_text(code)
        return Rounds(
            tmp_path / "project", lambda _: None, program=(sys.executable, "-u", str(tmp_path / "standin.py"))
        )

    return make


OPTIONS = TrainingOptions(minutes=3.0, device="cpu")
LEARN = """
(run / "model.toml").write_text("x")
say("EpochDone", stage="consensus", epoch=1, total=2, loss=0.5, seconds=1.0, metrics={"dice/liver": 0.8, "loss": 3})
"""


def test_a_training_is_prepared_trained_measured_and_its_predictions_made(rounds_of: Any) -> None:
    rounds = rounds_of(LEARN)
    assert not rounds.is_running
    started = rounds.start("model", OPTIONS)
    assert started.as_json()["status"] == "RUNNING"
    assert started.as_json()["details"]
    assert rounds.start("model", OPTIONS) is None
    assert rounds.wait(60)
    told = rounds.last.as_json()
    assert told["status"] == "DONE"
    assert "Dice 0.9, so it is used." in told["details"]
    assert "The new version is in use." in told["details"]
    assert rounds.last.stats()["best_metric"] == 0.8
    assert (rounds.last.stats()["epoch"], rounds.last.stats()["total_epochs"]) == (1, 2)
    assert "total_time" in rounds.last.stats()


def test_a_training_that_is_killed_is_an_error_in_words_and_the_next_one_runs(rounds_of: Any) -> None:
    rounds = rounds_of("os.kill(os.getpid(), signal.SIGKILL)")
    rounds.start("model", OPTIONS)
    assert rounds.wait(60)
    told = rounds.last.as_json()
    assert told["status"] == "ERROR"
    assert "was ended" in told["details"][-1]
    assert "/" not in told["details"][-1].replace("/fmseg", "")
    assert rounds.start("model", OPTIONS) is not None
    assert rounds.wait(60)


def test_a_stopped_training_is_told_at_once_and_what_it_learned_is_kept(rounds_of: Any, wait_for: Any) -> None:
    rounds = rounds_of(LEARN + "time.sleep(600)")
    rounds.start("model", OPTIONS)
    wait_for(lambda: rounds.last.epoch == 1)
    told = rounds.stop().as_json()
    assert told["status"] == "STOPPED"
    assert told["details"][-1].startswith("Stopped")
    assert rounds.stop() is None
    follows = rounds.start("model", OPTIONS)  # waits until the stopped one was measured
    assert follows is not None
    assert follows.status == "RUNNING"
    rounds.close()
    assert rounds.start("model", OPTIONS) is None


def test_a_training_that_is_stopped_before_it_learned_anything_says_so(rounds_of: Any, wait_for: Any) -> None:
    rounds = rounds_of('say("StepDone", stage="consensus", step=1, total=9, loss=1.0, lr=0.1)\ntime.sleep(600)')
    rounds.start("model", OPTIONS)
    wait_for(lambda: any("step 1" in line for line in rounds.last.lines))
    rounds.stop()
    assert rounds.wait(60)
    assert rounds.last.lines[-1] == "Stopped before anything was learned."
    assert rounds.last.as_json()["status"] == "STOPPED"


def test_what_a_command_refuses_is_the_last_line(rounds_of: Any) -> None:
    rounds = rounds_of('sys.stderr.write("fmseg: The disk is full.\\n"); sys.exit(3)')
    rounds.start("model", OPTIONS)
    assert rounds.wait(60)
    assert rounds.last.as_json()["details"][-1] == "The disk is full."


def test_what_keeps_a_model_is_not_interrupted_by_a_stop(rounds_of: Any, wait_for: Any) -> None:
    rounds = rounds_of(LEARN)
    standin = Path(rounds._program[-1])
    keeping = 'say("Warned", text="measuring", code=""); time.sleep(2); say("Warned", text="Dice 0.9'
    standin.write_text(standin.read_text().replace('say("Warned", text="Dice 0.9', keeping))
    rounds.start("model", OPTIONS)
    wait_for(lambda: "measuring" in rounds.last.lines)
    assert rounds.stop().status == "STOPPED"
    assert rounds.wait(60)
    assert "The new version is in use." in rounds.last.lines
    assert not any("predicting" in line for line in rounds.last.lines)
