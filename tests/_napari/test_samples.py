"""Sample data: phantoms of three difficulties; public volumes only after consent and with the right hash."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk

from napari_fmseg._napari.opening.public_samples import (
    PublicSample,
    fetch,
    find_download,
    list_public_samples,
    read_registry,
    samples_folder,
)
from napari_fmseg.core.errors import FmsegError

napari = pytest.importorskip("napari")
npe2 = pytest.importorskip("npe2")
from napari.components import ViewerModel  # noqa: E402
from napari.layers import Image, Labels  # noqa: E402

MANIFEST = Path(__file__).parents[2] / "napari.yaml"


def test_the_manifest_is_valid_and_all_its_commands_exist() -> None:
    manifest = npe2.PluginManifest.from_file(MANIFEST)
    manifest.validate_imports()
    commands = {command.id for command in manifest.contributions.commands or ()}
    used = {part.command for kind in ("readers", "writers", "sample_data") for part in
            getattr(manifest.contributions, kind)}  # fmt: skip
    assert used <= commands


@pytest.mark.parametrize("key", ["phantom-ct", "phantom-ct-easy", "phantom-ct-hard"])
def test_a_phantom_opens_with_its_truth_on_it(key: str) -> None:
    image, truth = ViewerModel().open_sample("napari-fmseg", key)
    assert isinstance(image, Image)
    assert isinstance(truth, Labels)
    assert truth.name == f"{image.name}, truth"
    np.testing.assert_allclose(image.scale, truth.scale)
    np.testing.assert_allclose(image.translate, truth.translate)
    assert [str(unit) for unit in image.units] == ["millimeter"] * 3
    assert set(np.unique(truth.data)) >= {0, 1, 2, 3, 4, 5}
    assert "liver" in list(truth.features["name"])
    assert tuple(image.contrast_limits) == (-160, 240)


def test_the_shipped_registry_can_be_read() -> None:
    for sample in list_public_samples():
        assert sample.url.startswith("https://")


@pytest.fixture
def served(tmp_path: Path) -> Iterator[tuple[str, bytes, list[str]]]:
    """Serve a volume from this machine and note what was asked for."""
    path = tmp_path / "made.nii.gz"
    sitk.WriteImage(sitk.GetImageFromArray(np.random.default_rng(0).normal(0, 9, (20, 60, 60))), path)
    content, asked = path.read_bytes(), []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            if self.path != "/brain.nii.gz":
                self.send_error(404)
                return
            self.send_response(200)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}", content, asked
    server.shutdown()
    server.server_close()
    thread.join()


def sample(address: str, content: bytes, **changed: Any) -> PublicSample:
    right = {
        "key": "brain",
        "title": "A brain",
        "url": f"{address}/brain.nii.gz",
        "file": "brain.nii.gz",
        "size": len(content),
        "sha256": hashlib.sha256(content).hexdigest(),
        "licence": "CC0",
    }
    return PublicSample(**{**right, **changed})


def left_behind() -> list[Path]:
    return [path for path in samples_folder().rglob("*") if path.is_file()]


def test_a_download_with_the_right_hash_is_kept(served: tuple[str, bytes, list[str]]) -> None:
    address, content, asked = served
    brain = sample(address, content)
    assert find_download(brain) is None
    events = list(fetch(brain))
    assert (events[-1].done, events[-1].total) == (len(content), len(content))
    path = find_download(brain)
    assert path is not None
    assert path.read_bytes() == content
    assert path.is_relative_to(samples_folder())
    path.write_bytes(content[:-1] + b"x")
    assert find_download(brain) is None, "what was changed afterwards is not trusted"
    assert asked == ["/brain.nii.gz"]


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"sha256": "0" * 64}, "not the file that was registered"),
        ({"size": 100}, "more than 100 bytes"),
        ({"size": 10**6}, "instead of 1,000,000 bytes"),
        ({"url": "/missing"}, "Not Found"),
    ],
)
def test_what_is_not_as_registered_is_refused_and_removed(
    changed: dict[str, Any], said: str, served: tuple[str, bytes, list[str]]
) -> None:
    address, content, _ = served
    if "url" in changed:
        changed = {"url": address + changed["url"]}
    with pytest.raises(FmsegError, match=said):
        list(fetch(sample(address, content, **changed)))
    assert left_behind() == []


def test_a_host_that_cannot_be_reached_is_told() -> None:
    with pytest.raises(FmsegError, match=r"could not be downloaded from 127\.0\.0\.1"):
        list(fetch(sample("http://127.0.0.1:9", b"x")))


def test_a_download_that_is_ended_leaves_nothing(served: tuple[str, bytes, list[str]]) -> None:
    address, content, _ = served
    pieces = fetch(sample(address, content))
    next(pieces)
    pieces.close()
    assert left_behind() == []


ENTRY = """[[sample]]
key = "brain"
title = "A brain"
url = "{url}"
file = "{file}"
size = 5
sha256 = "{sha256}"
licence = "CC0"
"""


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"url": "http://example.org/a"}, "not fetched over https"),
        ({"url": "file:///etc/passwd"}, "not fetched over https"),
        ({"file": "../a.nii"}, "plain names"),
        ({"file": "a.exe"}, "suffix of a volume"),
        ({"sha256": "abc"}, "no sha256"),
    ],
)
def test_a_registry_that_is_not_to_be_trusted_is_refused(changed: dict[str, str], said: str, tmp_path: Path) -> None:
    right = {"url": "https://example.org/a.nii", "file": "a.nii", "sha256": "a" * 64}
    path = tmp_path / "registry.toml"
    path.write_text(ENTRY.format(**right))
    assert read_registry(path)[0].host == "example.org"
    path.write_text(ENTRY.format(**{**right, **changed}))
    with pytest.raises(FmsegError, match=said):
        read_registry(path)


def test_a_laboratory_can_offer_its_own(tmp_path: Path) -> None:
    samples_folder().mkdir(parents=True)
    (samples_folder() / "registry.toml").write_text(
        ENTRY.format(url="https://example.org/a.nii", file="a.nii", sha256="a" * 64)
    )
    assert "brain" in [one.key for one in list_public_samples()]


def test_the_dialog_names_host_size_and_licence_and_fetches_after_a_click(
    make_napari_viewer: Any, qtbot: Any, served: tuple[str, bytes, list[str]]
) -> None:
    from qtpy.QtCore import Qt

    from napari_fmseg._napari.opening.sample_dialog import PublicSamplesDialog

    address, content, asked = served
    viewer = make_napari_viewer()
    dialog = PublicSamplesDialog(viewer, (sample(address, content),))
    qtbot.addWidget(dialog)
    dialog.show()
    for word in ("127.0.0.1", f"{len(content) / 1e6:.1f} MB", "CC0"):
        assert word in dialog.says.text()
    assert asked == []
    qtbot.mouseClick(dialog.agree, Qt.MouseButton.LeftButton)
    qtbot.waitUntil(lambda: len(viewer.layers) == 1, timeout=60_000)
    assert viewer.layers[0].name == "brain"
    assert not dialog.isVisible()


def test_the_dialog_shows_what_went_wrong(
    make_napari_viewer: Any, qtbot: Any, served: tuple[str, bytes, list[str]]
) -> None:
    from napari_fmseg._napari.opening.sample_dialog import PublicSamplesDialog

    address, content, _ = served
    viewer = make_napari_viewer()
    dialog = PublicSamplesDialog(viewer, (sample(address, content, sha256="0" * 64),))
    qtbot.addWidget(dialog)
    dialog.agree.click()
    qtbot.waitUntil(lambda: "not the file that was registered" in dialog.says.text(), timeout=60_000)
    assert dialog.agree.isEnabled()
    assert len(viewer.layers) == 0


def test_the_menu_command_says_so_when_there_is_nothing(make_napari_viewer: Any, qtbot: Any) -> None:
    from napari_fmseg._napari.common.viewer_window import window_of
    from napari_fmseg._napari.opening.sample_dialog import PublicSamplesDialog, show_public_samples

    if list_public_samples():
        pytest.skip("the registry is not empty")
    viewer = make_napari_viewer()
    show_public_samples()
    dialog = window_of(viewer).findChild(PublicSamplesDialog)
    assert "offers no public volume" in dialog.says.text()
    assert not dialog.agree.isEnabled()
    dialog.reject()
    qtbot.wait(20)
