"""A real server on a real port: what it answers, what it refuses, what it survives, and what it never writes down."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import SimpleITK

from napari_fmseg.cli.main import main
from napari_fmseg.cli.server.record import list_servers
from napari_fmseg.core.volume import Geometry, Volume
from napari_fmseg.io import write_volume
from napari_fmseg.training.projects import list_versions, open_project

TURN = np.array([[1, 0, 0], [0, 0.8, -0.6], [0, 0.6, 0.8]])
GAPS = {1: "liver", 2: "tumour", 5: "spleen"}
NAME, NUMBER = "DOE-JANE-1970", "PID4711"


def turned_volume(seed: int, shape: tuple[int, int, int] = (20, 24, 22)) -> Volume:
    data = np.random.default_rng(seed).normal(100, 30, shape).astype(np.int16)
    return Volume(data, Geometry.from_spacing(shape, (2.5, 1.0, 1.2), (5, -7, 9), TURN))


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory, save_tiny: Any) -> Path:
    folder = tmp_path_factory.mktemp("home")
    save_tiny(folder / "models", "gaps", GAPS)
    return folder


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory, make_project: Any) -> Any:
    return make_project(tmp_path_factory.mktemp("projects") / "phantoms")


@pytest.fixture(scope="module")
def server(home: Path, project: Any, serve: Any) -> Iterator[Any]:
    with serve(home, project.folder, "--models", "gaps", "--unlabelled", "nothing") as running:
        yield running


@pytest.fixture(scope="module")
def guarded(home: Path, project: Any, serve: Any) -> Iterator[Any]:
    """Run a server that needs a token and takes small uploads only."""
    words = ("--token-file", home / "token", "--max-upload-gb", 0.0001, "--origin", "https://ohif.example")
    with serve(home, project.folder, *words) as running:
        yield running


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_volume(turned_volume(1), tmp_path_factory.mktemp("images") / "image.nii.gz")


def multipart(answer: Any) -> tuple[dict[str, Any], bytes, str]:
    """Return the parameters, the file and the header of the file in an answer."""
    boundary = answer.headers["content-type"].partition("boundary=")[2].encode()
    _, first, second, end = answer.body.split(b"--" + boundary)
    assert end == b"--\r\n"
    head, _, content = second.partition(b"\r\n\r\n")
    return json.loads(first.partition(b"\r\n\r\n")[2]), content[:-2], head.decode()


def segment(home: Path, model: str, image: Path, out: Path) -> Any:
    """Return what `fmseg segment` finds."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FMSEG_HOME", str(home))
        assert main(["segment", str(image), "--model", model, "--output", str(out), "--device", "cpu"]) == 0
    return SimpleITK.ReadImage(str(out))


def check_same_mask(found: Any, expected: Any, values: dict[int, int]) -> None:
    """Compare labels of a client with those of the command, whose values became `values`."""
    renumbered = np.zeros_like(SimpleITK.GetArrayFromImage(found))
    for value, number in values.items():
        renumbered[SimpleITK.GetArrayFromImage(expected) == value] = number
    assert (SimpleITK.GetArrayFromImage(found) == renumbered).all()
    assert {*np.unique(renumbered)} == {0, *values.values()}
    assert found.GetSize() == expected.GetSize()
    for ours, theirs in zip(
        (found.GetOrigin(), found.GetSpacing(), found.GetDirection()),
        (expected.GetOrigin(), expected.GetSpacing(), expected.GetDirection()),
        strict=True,
    ):
        np.testing.assert_allclose(ours, theirs, atol=1e-5)


def infer(server: Any, image: Path, *, query: str = "", name: str = "", **params: str) -> Any:
    files = [("file", name or str(image), image.read_bytes())]
    return server.send_form("POST", f"/infer/gaps?image=x{query}", {"params": json.dumps(params)}, files)


# --- what it offers


def test_the_server_tells_what_it_offers_as_3d_slicer_reads_it(server: Any) -> None:
    told = server.ask("GET", "/info/").json
    assert "config" not in told
    assert told["labels"] == ["liver", "spleen", "tumour"]
    for model in told["models"].values():
        assert {"type", "labels", "dimension", "description", "config"} <= model.keys()
    assert told["models"]["gaps"]["labels"] == {"liver": 1, "tumour": 2, "spleen": 3}
    (trainer,) = told["trainers"]
    assert told["trainers"][trainer]["config"] == {"minutes": 5.0}
    assert set(told["strategies"]) == {"uncertainty", "random"}
    assert told["datastore"] == {"total": 7, "completed": 5, "label_tags": {"final": 5}}
    assert server.ask("GET", "/auth/").json["enabled"] is False
    assert b"3D Slicer" in server.ask("GET", "/").body


def test_a_mask_is_the_one_of_the_command_on_the_images_place_with_numbers_without_gaps(
    server: Any, home: Path, image: Path, tmp_path: Path
) -> None:
    answer = infer(server, image, result_extension=".nrrd", result_dtype="uint8")
    assert answer.status == 200
    assert int(answer.headers["content-length"]) == len(answer.body)
    assert "transfer-encoding" not in answer.headers
    params, content, head = multipart(answer)
    assert params["label_names"] == {"liver": 1, "tumour": 2, "spleen": 3}
    assert params["latencies"].keys() >= {"reading", "labels"}
    assert 'name="image"; filename="labels-' in head
    (tmp_path / "found.nrrd").write_bytes(content)
    found = SimpleITK.ReadImage(str(tmp_path / "found.nrrd"))
    check_same_mask(found, segment(home, "gaps", image, tmp_path / "own.nii.gz"), {1: 1, 2: 2, 5: 3})
    assert found.GetPixelID() == SimpleITK.sitkUInt8
    assert found.GetMetaData("Segment2_Name") == "spleen"


def test_the_mask_alone_and_its_description_alone_can_be_asked_for(server: Any, image: Path) -> None:
    alone = infer(server, image, query="&output=image", result_compress="false")
    assert alone.headers["content-type"] == "application/octet-stream"
    assert alone.headers["content-disposition"].endswith('.nii.gz"')
    assert alone.body[:2] == b"\x1f\x8b"
    assert infer(server, image, query="&output=json").json["model"] == "gaps"
    assert infer(server, image, query="&output=dicom_seg").status == 422
    assert infer(server, image, result_extension=".exe").status == 422


def test_an_uploaded_image_can_be_used_again_for_a_while(server: Any, image: Path) -> None:
    opened = server.send_form("PUT", "/session/", {"client_id": "me"}, [("files", str(image), image.read_bytes())]).json
    session = opened["session_id"]
    assert opened["session_info"]["name"] == session
    assert server.ask("GET", f"/session/{session}").json["name"] == session
    form = {"params": "{}"}
    assert server.send_form("POST", f"/infer/gaps?image=n&session_id={session}", form, []).status == 200
    assert len(server.leftovers()) == 1
    assert server.ask("DELETE", f"/session/{session}").json == {}
    assert server.leftovers() == []
    assert server.ask("GET", f"/session/{session}").json == {}  # upon which 3D Slicer uploads it again
    assert server.ask("DELETE", f"/session/{session}").status == 404
    assert server.send_form("POST", f"/infer/gaps?image=n&session_id={session}", form, []).status == 404


def test_an_image_of_the_project_is_segmented_downloaded_and_described(server: Any, project: Any) -> None:
    answer = server.send_form("POST", "/infer/gaps?image=case-001", {"params": "{}"}, [])
    assert answer.status == 200
    image = server.ask("GET", "/datastore/image?image=case-001")
    assert image.body == (project.folder / "imagesTr" / "case-001_0000.nii.gz").read_bytes()
    assert 'filename="case-001.nii.gz"' in image.headers["content-disposition"]
    head = server.ask("HEAD", "/datastore/image?image=case-001")
    assert (head.status, head.body) == (200, b"")
    assert server.ask("GET", "/datastore/image/info?image=case-001").json["name"] == "case-001.nii.gz"
    assert server.ask("GET", "/datastore/label/info?label=case-001").json["params"]["label_names"]["liver"] == 1
    assert server.ask("GET", "/datastore/label?label=case-001&tag=final").body[:2] == b"\x1f\x8b"
    assert server.ask("GET", "/datastore/label?label=case-007&tag=final").status == 404
    assert set(server.ask("GET", "/datastore/?output=all").json["objects"]) == set(project.files)
    assert len(server.ask("GET", "/datastore/?output=train").json) == 5
    assert server.ask("GET", "/datastore/").json["completed"] == 5


def test_next_samples_are_those_without_labels_with_their_place_on_this_computer(server: Any, project: Any) -> None:
    told = [server.ask("POST", "/activelearning/uncertainty", b'{"client_id": "me"}').json for _ in range(2)]
    assert {one["id"] for one in told} == {"case-006", "case-007"}
    assert told[0]["name"] == f"{told[0]['id']}.nii.gz"
    assert Path(told[0]["path"]).is_relative_to(project.folder)
    assert "PatientID" not in told[0]
    assert server.ask("POST", "/activelearning/first").status == 404


# --- what it refuses


@pytest.mark.parametrize(
    ("method", "path", "status", "says"),
    [
        ("POST", "/infer/no-such-model?image=case-001", 404, "gaps"),
        ("POST", "/infer/gaps?image=nobody", 404, "Upload it"),
        ("POST", "/infer/gaps?image=..%2F..%2Fetc%2Fpasswd", 404, "Upload it"),
        ("GET", "/datastore/image?image=..%2F..%2Fdataset.json", 404, "Upload it"),
        ("GET", "/datastore/label?label=case-001&tag=..%2Fx", 404, "no labels"),
        ("PUT", "/model/gaps", 404, "does not offer"),
        ("DELETE", "/datastore/?id=case-001", 404, "fmseg project remove"),
        ("GET", "/logs/", 404, "does not offer"),
        ("POST", "/batch/infer/gaps", 404, "does not offer"),
        ("GET", "/datastore/?output=everything", 422, "all, train or stats"),
        ("GET", "/train/", 404, "Nothing was trained"),
        ("GET", "/train/?check_if_running=true", 404, "Nothing was trained"),
        ("POST", "/train/gaps", 404, "Only the project's model"),
        ("GET", "/fmseg/status", 404, "Not found"),
        ("GET", "/info", 404, "does not offer"),
    ],
)
def test_what_cannot_be_answered_is_refused_in_words(
    server: Any, method: str, path: str, status: int, says: str
) -> None:
    answer = server.ask(method, path)
    assert (answer.status, says in answer.detail) == (status, True), answer.body


def test_parameters_that_make_no_sense_are_refused(server: Any) -> None:
    trainer = next(iter(server.ask("GET", "/info/").json["trainers"]))
    for body, says in ((b"[1]", "JSON object"), (b"{", "JSON object"), (b'{"minutes": "x"}', "number"),
                       (b'{"minutes": -1}', "minutes")):  # fmt: skip
        answer = server.ask("POST", f"/train/{trainer}", body)
        assert (answer.status, says in answer.detail) == (422, True), answer.body
    form = {"params": '{"label_info": "liver"}'}
    assert server.send_form("PUT", "/datastore/label?image=case-001", form, [("label", "x", b"x")]).status == 422
    assert server.send_form("PUT", "/datastore/label?image=case-001&tag=original", form, []).status == 422
    assert server.send_form("PUT", "/datastore/label?image=case-001", {}, []).status == 422
    assert server.send_form("PUT", "/datastore/?image=new", {}, []).status == 422
    assert server.send_form("PUT", "/session/", {}, []).status == 422


@pytest.mark.parametrize("content", [b"", b"this is no volume", b"\x1f\x8b\x08\x00 broken gzip", bytes(400)])
def test_files_that_are_no_images_are_refused_and_leave_nothing(server: Any, content: bytes) -> None:
    for method, path, field in (("POST", "/infer/gaps?image=x", "file"), ("PUT", "/datastore/?image=broken", "file"),
                                ("PUT", "/datastore/label?image=case-006", "label")):  # fmt: skip
        answer = server.send_form(method, path, {"params": "{}"}, [(field, "scan.nii.gz", content)])
        assert answer.status == 422, answer.body
        assert "upload-" in answer.detail
    assert server.leftovers() == []
    assert server.ask("GET", "/datastore/").json["total"] == 7


def test_a_path_in_the_name_of_a_file_writes_nothing_elsewhere(server: Any, image: Path, tmp_path: Path) -> None:
    for name in (f"{tmp_path}/evil.nii.gz", "../../evil.nii.gz", "..\\..\\evil.nii.gz"):
        assert infer(server, image, name=name).status == 200
    assert list(tmp_path.iterdir()) == []
    assert not [path for path in server.temporary.rglob("*") if "evil" in path.name]


def test_web_pages_and_other_names_of_this_computer_are_refused(server: Any) -> None:
    assert server.ask("GET", "/info/", headers={"Origin": "https://evil.example"}).status == 403
    answer = server.ask("GET", "/info/", headers={"Host": "evil.example:8000"})
    assert (answer.status, "localhost" in answer.detail) == (421, True)
    assert server.ask("GET", "/info/", headers={"Host": f"localhost:{server.port}"}).status == 200


# --- what it survives


def test_a_client_that_dies_in_an_upload_leaves_nothing_and_the_server_goes_on(
    server: Any, form_of: Any, wait_for: Any
) -> None:
    body = form_of({"params": "{}"}, [("file", f"/home/{NAME}.nii.gz", os.urandom(300_000))])
    head = (
        f"POST /infer/gaps?image={NAME} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: {len(body)}\r\n"
        "Content-Type: multipart/form-data\r\n\r\n"
    )
    connection = socket.create_connection((server.host, server.port))
    connection.sendall(head.encode() + body[:200_000])
    wait_for(lambda: server.leftovers())
    connection.close()
    wait_for(lambda: not server.leftovers())
    assert server.ask("GET", "/info/").status == 200


def test_two_clients_at_once_both_get_their_own_masks(server: Any, home: Path, image: Path, tmp_path: Path) -> None:
    other = write_volume(turned_volume(2, (16, 20, 26)), tmp_path / "other.nii.gz")
    answers: dict[int, Any] = {}

    def ask(number: int) -> None:
        answers[number] = infer(server, (image, other)[number % 2], query="&output=image")

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [answers[i].status for i in range(4)] == [200] * 4
    expected = [segment(home, "gaps", path, tmp_path / f"own-{i}.nii.gz") for i, path in enumerate((image, other))]
    for number, answer in answers.items():
        (tmp_path / "found.nii.gz").write_bytes(answer.body)
        check_same_mask(SimpleITK.ReadImage(str(tmp_path / "found.nii.gz")), expected[number % 2], {1: 1, 2: 2, 5: 3})


def test_labels_of_two_clients_are_kept_apart(server: Any, project: Any, tmp_path: Path) -> None:
    """Two people open the same case; the second one to submit has not seen what the first one saved."""
    files = project.folder / "labelsTr" / "case-002.nii.gz", project.folder / "labelsTr" / "case-003.nii.gz"
    query = "/datastore/label?image=case-002"
    for client in ("ann", "bob"):
        form = {"params": json.dumps({"client_id": client})}
        assert server.send_form("POST", "/infer/gaps?image=case-002&output=json", form, []).status == 200
    answers = [
        server.send_form("PUT", query, {"params": json.dumps({"client_id": client, "label_info": info})},
                         [("label", "x.nii.gz", file.read_bytes())])
        for client, file, info in (("ann", files[0], [{"name": "liver"}, {"name": "spleen"}]),
                                   ("bob", files[0], [{"name": "liver"}]), ("ann", files[0], []))
    ]  # fmt: skip
    assert [answer.status for answer in answers] == [200, 409, 200]
    assert "has not seen" in answers[1].detail
    assert len(open_project(project.folder).record("case-002").earlier) == 2


# --- the token


def log_in(server: Any, token: str) -> Any:
    return server.ask("POST", "/auth/token", f"username=me&password={token}&grant_type=password".encode())


def test_without_the_token_nothing_is_answered(guarded: Any, home: Path) -> None:
    assert guarded.ask("GET", "/auth/").json["enabled"] is True
    assert log_in(guarded, "wrong").status == 401
    assert log_in(guarded, "").status == 401
    paths = ("/info/", "/datastore/", "/datastore/?output=all", "/datastore/image?image=case-001", "/train/",
             "/auth/token/valid", "/session/x", "/nothing")  # fmt: skip
    for path in paths:
        for headers in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": "Bearer "}):
            answer = guarded.ask("GET", path, headers=headers)
            assert (answer.status, "token" in answer.detail) == (401, True)
    bearer = log_in(guarded, (home / "token").read_text().strip()).json
    assert bearer["token_type"] == "bearer"
    own = {"Authorization": f"bearer {bearer['access_token']}"}
    assert guarded.ask("GET", "/auth/token/valid", headers=own).status == 200
    assert guarded.ask("GET", "/info/", headers=own).status == 200
    assert (home / "token").read_text().strip() not in guarded.log
    assert bearer["access_token"] not in guarded.log


def test_3d_slicer_downloads_the_next_sample_without_a_token_and_no_other_image(guarded: Any, home: Path) -> None:
    own = {"Authorization": f"Bearer {(home / 'token').read_text().strip()}"}
    case = guarded.ask("POST", "/activelearning/random", b"{}", own).json["id"]
    assert guarded.ask("GET", f"/datastore/image?image={case}").status == 200
    assert guarded.ask("GET", "/datastore/image?image=case-001").status == 401
    assert guarded.ask("DELETE", f"/datastore/image?image={case}").status == 401


def test_an_upload_over_the_limit_is_refused_with_the_limit(guarded: Any, home: Path) -> None:
    own = {"Authorization": f"Bearer {(home / 'token').read_text().strip()}"}
    for size in (150_000, 5_000_000):
        try:
            answer = guarded.send_form("PUT", "/datastore/?image=x", {}, [("file", "x.nii", bytes(size))], **own)
        except ConnectionError:  # it was still sending when the answer came
            assert size > 1_000_000
            continue
        assert (answer.status, "0.0001 GiB" in answer.detail) == (413, True)
    assert guarded.leftovers() == []
    assert guarded.ask("GET", "/info/", headers=own).status == 200


def test_a_web_page_that_was_named_may_use_the_server(guarded: Any) -> None:
    page = {"Origin": "https://ohif.example"}
    asked = {**page, "Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "authorization"}
    answer = guarded.ask("OPTIONS", "/infer/gaps", headers=asked)
    assert answer.status == 200
    assert answer.headers["access-control-allow-origin"] == "https://ohif.example"
    assert guarded.ask("GET", "/auth/", headers=page).headers["access-control-allow-origin"] == "https://ohif.example"
    assert guarded.ask("GET", "/auth/", headers={"Origin": "https://other.example"}).status == 403


# --- what it writes down


def test_the_log_holds_nothing_of_a_patient(server: Any, image: Path, pet: Any, tmp_path: Path) -> None:
    nibabel = pytest.importorskip("nibabel")
    marked = nibabel.load(image)
    marked.header["descrip"] = NAME.encode()
    marked.header["db_name"] = NUMBER.encode()
    nibabel.save(marked, tmp_path / f"{NAME}.nii.gz")
    content, params = (tmp_path / f"{NAME}.nii.gz").read_bytes(), {"client_id": NAME, "label_info": [{"name": NUMBER}]}
    form = {"params": json.dumps(params), NAME: NUMBER}
    own = f"/home/{NAME}/{NUMBER}.nii.gz"
    uploaded = server.send_form("PUT", f"/datastore/?image={NAME}", form, [("file", own, content)]).json["image"]
    assert uploaded == "case-008"
    server.send_form("POST", f"/infer/gaps?image={NAME}", form, [])
    server.send_form("POST", f"/infer/{NAME}?image={NUMBER}", form, [("file", own, content)])
    server.send_form("POST", f"/infer/gaps?image={NUMBER}", form, [("file", own, content[:99])])
    refused = server.send_form("PUT", f"/datastore/label?image={NAME}", form, [("label", own, content)])
    assert refused.status == 422
    server.send_form("PUT", "/session/", form, [("files", own, content)])
    series = Path(shutil.make_archive(str(tmp_path / NUMBER), "zip", pet(tmp_path / "Doe^Jane"))).read_bytes()
    answer = server.send_form("POST", "/infer/gaps?image=x", form, [("file", f"{NAME}.zip", series)])
    assert answer.status == 200
    assert b"Doe^Jane" not in answer.body
    server.send_form("POST", "/infer/gaps?image=x", form, [("file", f"{NAME}.zip", series[:3000])])
    server.ask("GET", f"/datastore/image?image={NUMBER}")
    server.ask("GET", f"/{NAME}/{NUMBER}", headers={"User-Agent": NAME, "Cookie": NUMBER})
    server.ask("POST", f"/activelearning/{NAME}", json.dumps(params).encode())
    server.ask("POST", f"/train/{NAME}", json.dumps(params).encode())
    assert "POST /infer/{model} 200" in server.log
    assert "(another path) 404" in server.log
    for word in (NAME, NUMBER, "DOE", "Jane", "4711", str(tmp_path)):
        assert word not in server.log
    project = open_project(Path(server.log.partition("project ")[2].partition(" and ")[0]))
    index = "".join(path.read_text() for path in project.folder.rglob("*.json"))
    assert not [
        word for word in (NAME, NUMBER) if word in index or any(word in str(p) for p in project.folder.rglob("*"))
    ]


def test_the_status_of_a_server_is_for_its_user_and_shows_its_clients(
    server: Any, home: Path, project: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.ask("GET", "/info/")
    monkeypatch.setenv("FMSEG_HOME", str(home))
    own = {one.url: one for one in list_servers()}[server.url]
    assert own.answers
    assert own.pid == server.process.pid
    assert own.facts["project"] == str(project.folder)
    assert "gaps" in own.facts["models"]
    (client,) = own.facts["clients"]
    assert client["address"] == "127.0.0.1"
    assert client["requests"] >= 1
    command = [sys.executable, "-m", "napari_fmseg", "serve", "--status"]
    shown = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert server.url in shown
    assert "127.0.0.1" in shown
    if os.name == "posix":
        assert {path.stat().st_mode & 0o077 for path in (home / "servers").glob("*.json")} == {0}


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="kill -9 is of POSIX")
def test_a_killed_server_leaves_no_upload_after_the_next_start(
    home: Path, image: Path, serve: Any, wait_for: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FMSEG_HOME", str(home))
    temporary = home / "one for both"
    with serve(home, "--models", "gaps", temporary=temporary) as killed:
        killed.send_form("PUT", "/session/", {}, [("files", "x.nii.gz", image.read_bytes())])
        assert len(killed.leftovers()) == 1
        assert infer(killed, image).status == 200
        children = psutil.Process(killed.process.pid).children(recursive=True)
        killed.process.kill()
        killed.process.wait(30)
        psutil.wait_procs(children, 30)
        assert not [child for child in children if child.is_running() and child.status() != psutil.STATUS_ZOMBIE]
    with serve(home, "--models", "gaps", temporary=temporary) as fresh:
        wait_for(lambda: not fresh.leftovers())
        assert killed.url not in [one.url for one in list_servers()] or fresh.url == killed.url
        assert fresh.ask("POST", "/activelearning/random").status == 404
        assert "no project" in fresh.ask("POST", "/activelearning/random").detail
        uploaded = fresh.send_form("PUT", "/datastore/?image=mine", {}, [("file", "x.nii.gz", image.read_bytes())])
        assert uploaded.json == {"image": "mine"}
        assert fresh.send_form("POST", "/infer/gaps?image=mine&output=json", {"params": "{}"}, []).status == 200
        folder = [path for path in fresh.temporary.iterdir() if path.name.startswith("fmseg-")]
        fresh.process.terminate()
        fresh.process.wait(60)
        assert folder
        assert not [path for path in folder if path.exists()]


@pytest.mark.skipif(shutil.which("openssl") is None, reason="openssl makes the certificate")
def test_a_dicom_series_is_segmented_by_its_uid_over_https(
    home: Path, serve: Any, pet: Any, form_of: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pet(tmp_path / "series" / "pet")
    files = [str(tmp_path / name) for name in ("key.pem", "cert.pem")]
    words = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-subj", "/CN=localhost", "-days", "2"]
    subprocess.run([*words, "-keyout", files[0], "-out", files[1]], check=True, capture_output=True)
    https = ("--certificate", files[1], "--certificate-key", files[0])
    with serve(home, "--models", "gaps", "--dicom", tmp_path / "series", *https) as server:
        assert server.url.startswith("https://")
        form = form_of({"params": "{}"}, [])
        context = ssl._create_unverified_context()
        request = urllib.request.Request(f"{server.url}/infer/gaps?image=1.2.3&output=image", form, method="POST")
        with urllib.request.urlopen(request, context=context) as answer:
            (tmp_path / "found.nii.gz").write_bytes(answer.read())
        request = urllib.request.Request(f"{server.url}/infer/gaps?image=1.2.4&output=image", form, method="POST")
        with pytest.raises(urllib.error.HTTPError) as refused:
            urllib.request.urlopen(request, context=context)
        assert refused.value.code == 422
        refused.value.close()
        monkeypatch.setenv("FMSEG_HOME", str(home))
        assert [one.answers for one in list_servers() if one.url == server.url] == [True]
    reader = SimpleITK.ImageSeriesReader()
    reader.SetFileNames(reader.GetGDCMSeriesFileNames(str(tmp_path / "series" / "pet")))
    found, series = SimpleITK.ReadImage(str(tmp_path / "found.nii.gz")), reader.Execute()
    assert found.GetSize() == series.GetSize()  # slice by slice in the order of the series
    np.testing.assert_allclose(found.GetOrigin(), series.GetOrigin(), atol=1e-4)
    np.testing.assert_allclose(found.GetDirection(), series.GetDirection(), atol=1e-5)


# --- training


def training_processes(server: Any) -> list[psutil.Process]:
    found = []
    for process in psutil.Process(server.process.pid).children(recursive=True):
        try:
            words = process.cmdline()
        except (psutil.NoSuchProcess, psutil.ZombieProcess):
            continue
        found += [process] if "train" in words else []
    return found


@pytest.mark.timeout(900)
@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="kill -9 is of POSIX")
def test_a_killed_training_is_told_and_the_server_goes_on(server: Any, image: Path, wait_for: Any) -> None:
    trainer = next(iter(server.ask("GET", "/info/").json["trainers"]))
    started = server.ask("POST", f"/train/{trainer}", b'{"minutes": 30, "client_id": "me"}')
    assert (started.status, started.json["status"]) == (200, "RUNNING")
    assert server.ask("POST", f"/train/{trainer}", b"{}").status == 429
    assert server.ask("GET", "/train/?check_if_running=true").status == 200
    assert len(server.ask("GET", "/train/?all=true").json) == 1
    for process in wait_for(lambda: training_processes(server)):
        process.kill()
    told = wait_for(lambda: (now := server.ask("GET", "/train/").json)["status"] == "ERROR" and now)
    assert "was ended" in told["details"][-1]
    assert server.ask("GET", "/train/?check_if_running=true").status == 404
    assert infer(server, image).status == 200
    assert "training: ERROR" in server.log


@pytest.mark.timeout(900)
def test_a_training_makes_a_version_that_has_not_learned_from_a_held_out_case(
    server: Any, project: Any, wait_for: Any
) -> None:
    started = server.ask("POST", "/train/", b'{"minutes": 0.05}')  # as OHIF does
    (trainer,) = started.json
    assert started.json[trainer]["result"]["status"] == "RUNNING"
    told = wait_for(lambda: (now := server.ask("GET", "/train/").json)["status"] != "RUNNING" and now)
    assert told["status"] == "DONE", told
    now = open_project(project.folder)
    (version,) = list_versions(now)
    held = {now.record(name).image for name in now.labelled if now.role(name) == "held out"}
    assert held
    assert not held & {*version.lineage.seen}
    assert now.index.used == (1,)
    info = server.ask("GET", "/info/").json
    assert info["models"][trainer]["labels"] == {"liver": 1, "spleen": 2}
    assert "total_time" in info["train_stats"][trainer]
    assert server.send_form("POST", f"/infer/{trainer}?image=case-006", {"params": "{}"}, []).status == 200
    listed = server.ask("GET", "/datastore/?output=all").json["objects"]["case-006"]["labels"]
    assert set(listed) == {"original"}
    assert now.record("case-006").uncertainty
