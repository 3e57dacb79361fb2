"""The client of MONAI Label itself, as 3D Slicer's module uses it, against a real server."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK

from napari_fmseg import phantom_ct
from napari_fmseg.cli.main import main
from napari_fmseg.core.volume import LabelMap
from napari_fmseg.io import write_labels, write_volume
from napari_fmseg.training.projects import (
    LabelOptions,
    Project,
    add_nameless,
    init_project,
    list_versions,
    open_project,
)

SHARED = Path(os.environ.get("FMSEG_SHARED", Path(__file__).parents[4] / "shared"))
HIPPOCAMPUS = SHARED / "data" / "hippocampus"
PARAMS = {"result_extension": ".nrrd", "result_dtype": "uint8"}


@dataclass
class Setting:
    """A project, a model beside it, and an image with labels that the project does not have yet."""

    home: Path
    project: Project
    model: str
    numbers: dict[int, int]  # of the model's classes, in the answers of the server
    image: Path
    labels: Path
    classes: tuple[str, ...]


def phantoms(folder: Path, make_project: Any, save_tiny: Any) -> Setting:
    save_tiny(folder / "home" / "models", "gaps", {1: "liver", 2: "tumour", 5: "spleen"})
    image, truth = phantom_ct(99, spacing=(12.0, 10.0, 10.0))
    own = {name: value for value, name in truth.names.items()}
    data = ((truth.data == own["spleen"]) * 1 + (truth.data == own["liver"]) * 2).astype(np.uint8)
    files = write_volume(image, folder / "DOE-JANE.nii.gz"), folder / "labels.nii.gz"
    write_labels(LabelMap(data, truth.geometry), files[1], source=image)
    project = make_project(folder / "phantoms")
    return Setting(folder / "home", project, "gaps", {1: 1, 2: 2, 5: 3}, *files, ("spleen", "liver"))


def hippocampi(folder: Path) -> Setting:
    images = sorted((HIPPOCAMPUS / "images").glob("*.nii.gz"))
    labels = [HIPPOCAMPUS / "labels" / path.name for path in images]
    options = LabelOptions(unlabelled="nothing")
    project = init_project(folder / "hippocampi", ("anterior", "posterior"), channels=("MRI",))
    for number in range(7):
        project, _ = add_nameless(project, images[number], labels[number] if number < 5 else None, options)
    model = "hippocampus-mr"
    return Setting(folder / "home", project, model, {1: 1, 2: 2}, images[7], labels[7], ("anterior", "posterior"))


@pytest.fixture(params=["phantoms", pytest.param("hippocampi", marks=pytest.mark.real)])
def setting(request: Any, tmp_path: Path, make_project: Any, save_tiny: Any, client_folder: Path) -> Setting:
    if request.param == "phantoms":
        return phantoms(tmp_path, make_project, save_tiny)
    if not HIPPOCAMPUS.exists():
        pytest.skip("the real hippocampi are not beside the project")
    return hippocampi(tmp_path)


@pytest.fixture
def server(setting: Setting, serve: Any) -> Iterator[Any]:
    with serve(setting.home, setting.project.folder, "--models", setting.model, "--unlabelled", "nothing") as running:
        yield running


def check_mask(setting: Setting, found_file: str, image: Path, tmp_path: Path) -> None:
    """Compare a mask with that of `fmseg segment`, voxel by voxel and in its place."""
    out = tmp_path / f"own-{image.name}"
    if not out.exists():
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("FMSEG_HOME", str(setting.home))
            words = ["segment", str(image), "--model", setting.model, "--output", str(out), "--device", "cpu"]
            assert main(words) == 0
    found, expected = SimpleITK.ReadImage(found_file), SimpleITK.ReadImage(str(out))
    values = SimpleITK.GetArrayFromImage(expected)
    renumbered = np.zeros_like(values)
    for value, number in setting.numbers.items():
        renumbered[values == value] = number
    assert (SimpleITK.GetArrayFromImage(found) == renumbered).all()
    assert renumbered.any()
    assert found.GetSize() == expected.GetSize()
    for read in ("GetOrigin", "GetSpacing", "GetDirection"):
        np.testing.assert_allclose(getattr(found, read)(), getattr(expected, read)(), atol=1e-5)
    for read in ("GetOrigin", "GetSpacing", "GetDirection"):
        np.testing.assert_allclose(getattr(found, read)(), getattr(SimpleITK.ReadImage(str(image)), read)(), atol=1e-5)


@pytest.mark.timeout(1500)
def test_the_real_client_segments_labels_and_teaches(
    setting: Setting, server: Any, real_client: Any, wait_for: Any, tmp_path: Path
) -> None:
    client = real_client(server.url)

    # what there is
    assert client.auth_enabled() is False
    info = client.info()
    names = list(info["models"][setting.model]["labels"])
    (trainer,) = info["trainers"]
    assert info["datastore"]["completed"] == 5
    assert client.train_status(True) is False

    # an image on the server, the next to be labelled
    sample = client.next_sample("uncertainty", {})
    on_server = Path(sample["path"])
    assert on_server.exists()
    found, told = client.infer(setting.model, sample["id"], dict(PARAMS))
    assert Path(found).suffix == ".nrrd"
    assert told["label_names"] == {name: number for number, name in enumerate(names, 1)}
    check_mask(setting, found, on_server, tmp_path)

    # an image that comes with the request, and one of a session
    found, _ = client.infer(setting.model, "DOE-JANE", dict(PARAMS), file=str(setting.image))
    check_mask(setting, found, setting.image, tmp_path)
    session = client.create_session(str(setting.image))["session_id"]
    assert client.get_session(session)["name"] == session
    found, _ = client.infer(setting.model, "DOE-JANE", dict(PARAMS), session_id=session)
    check_mask(setting, found, setting.image, tmp_path)
    client.remove_session(session)
    assert client.get_session(session) == {}

    # an image of the client's, uploaded, segmented and labelled
    uploaded = client.upload_image(str(setting.image), "DOE-JANE")["image"]
    assert re.fullmatch(r"case-\d{3}", uploaded)
    found, _ = client.infer(setting.model, "DOE-JANE", dict(PARAMS))
    check_mask(setting, found, setting.image, tmp_path)
    entries = [{"name": name, "idx": 7 * i} for i, name in enumerate(setting.classes, 2)]
    client.save_label("DOE-JANE", str(setting.labels), params={"label_info": entries, "model": setting.model})
    assert client.info()["datastore"]["completed"] == 6
    objects = client.datastore()["objects"]
    assert set(objects[uploaded]["labels"]) == {"final"}
    read_back = SimpleITK.ReadImage(client.download_label(uploaded, "final"))
    truth = SimpleITK.GetArrayFromImage(SimpleITK.ReadImage(str(setting.labels))).round()
    numbers = {name: number for number, name in setting.project.facts.labels.items()}
    for value, name in enumerate(setting.classes, 1):
        assert ((SimpleITK.GetArrayFromImage(read_back) == numbers[name]) == (truth == value)).all()

    # stop a training; then a whole one
    assert client.train_start(trainer, {"minutes": "20"})["status"] == "RUNNING"
    assert client.train_status(True) is True
    stopped = client.train_stop()
    assert stopped["status"] == "STOPPED"
    assert stopped["details"][-1]
    assert client.train_status()["status"] == "STOPPED"
    client.train_start(trainer, {"minutes": 0.05})
    done = wait_for(lambda: (now := client.train_status())["status"] != "RUNNING" and now)
    assert done["status"] == "DONE", done
    project = open_project(setting.project.folder)
    (version,) = list_versions(project)
    held = {project.record(name).image for name in project.labelled if project.role(name) == "held out"}
    assert held
    assert not held & {*version.lineage.seen}
    assert {*version.lineage.learned.values()} | held == {project.record(name).image for name in project.labelled}
    assert client.info()["models"][trainer]["labels"] == dict(zip(project.facts.labels.values(), (1, 2), strict=True))
    assert Path(client.infer(trainer, sample["id"], dict(PARAMS))[0]).stat().st_size > 0
    assert "DOE" not in server.log
    assert server.leftovers() == []


def test_the_real_client_logs_in_and_goes_on_although_it_repeats_old_headers(
    tmp_path: Path, make_project: Any, save_tiny: Any, serve: Any, real_client: Any
) -> None:
    """After a POST that client sends its content-type and content-length with every later request, too."""
    own = phantoms(tmp_path, make_project, save_tiny)
    token_file = tmp_path / "token"
    with serve(own.home, own.project.folder, "--models", "gaps", "--token-file", token_file) as server:
        client = real_client(server.url)
        assert client.auth_enabled() is True
        with pytest.raises(Exception, match="401"):
            client.info()
        with pytest.raises(Exception, match="password is wrong"):
            client.auth_token("me", "wrong")
        assert client.auth_valid_token() is False
        client.update_auth(client.auth_token("me", token_file.read_text().strip()))
        assert client.auth_valid_token() is True
        sample = client.next_sample("random", {})
        assert client.info()["models"]
        assert client.datastore()["objects"][sample["id"]]
        session = client.create_session(str(own.image))["session_id"]
        assert client.get_session(session)["name"] == session
        found, _ = client.infer("gaps", "x", dict(PARAMS), session_id=session)
        check_mask(own, found, own.image, tmp_path)
        assert client.remove_session(session) == {}
        assert client.train_status(True) is False


def test_what_the_server_says_reaches_the_user_of_the_real_client(
    tmp_path: Path, save_tiny: Any, serve: Any, real_client: Any
) -> None:
    save_tiny(tmp_path / "models", "gaps", {1: "liver"})
    (tmp_path / "empty.nii.gz").write_bytes(b"")
    with serve(tmp_path, "--models", "gaps") as server:
        client = real_client(server.url)
        for ask, says in (
            (lambda: client.infer("no-such-model", "x", {}), "There are: gaps"),
            (lambda: client.infer("gaps", "x", {}), "Upload it first"),
            (lambda: client.infer("gaps", "x", {}, file=str(tmp_path / "empty.nii.gz")), "empty"),
            (lambda: client.next_sample("random", {}), "fmseg serve PROJECT"),
            (lambda: client.train_start("gaps", {}), "fmseg serve PROJECT"),
            (lambda: client.save_label("x", str(tmp_path / "empty.nii.gz")), "fmseg serve PROJECT"),
        ):
            with pytest.raises(Exception, match=r"Status: 4\d\d; Response: .*" + re.escape(says)):
                ask()
