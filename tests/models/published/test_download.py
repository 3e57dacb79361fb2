"""A download is the registered file, whole, from the registered hosts, or an error that says what to do."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from napari_fmseg.core.errors import FmsegError
from napari_fmseg.models.published.download import RemoteFile, download, is_complete

CONTENT = bytes(range(256)) * 4096  # 1 MB: several pieces


def left_behind(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]


def test_a_file_arrives_whole_and_only_from_its_own_address(host: Any, addresses: list[str], tmp_path: Path) -> None:
    host.files["weights.bin"] = CONTENT
    remote = host.remote("weights.bin")
    events = list(download(remote, tmp_path, "Weights"))
    assert (events[-1].done, events[-1].total) == (len(CONTENT), len(CONTENT))
    assert [event.done for event in events] == sorted(event.done for event in events)
    assert (tmp_path / "weights.bin").read_bytes() == CONTENT
    assert left_behind(tmp_path) == [tmp_path / "weights.bin"]
    assert host.asked == ["weights.bin"]
    assert set(addresses) == {"127.0.0.1"}


def test_what_is_there_is_not_fetched_again_and_what_was_altered_is(host: Any, tmp_path: Path) -> None:
    host.files["weights.bin"] = CONTENT
    remote = host.remote("weights.bin")
    list(download(remote, tmp_path, "Weights"))
    list(download(remote, tmp_path, "Weights"))
    assert host.asked == ["weights.bin"]
    (tmp_path / "weights.bin").write_bytes(CONTENT[:-1] + b"x")
    assert not is_complete(remote, tmp_path)
    list(download(remote, tmp_path, "Weights"))
    assert (tmp_path / "weights.bin").read_bytes() == CONTENT


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"sha256": "0" * 64}, r"not the file that was registered: its sha256 is not 0000"),
        ({"size": 1000}, r"more than 1,000 bytes\. It was not kept"),
        ({"size": 10**7}, r"1,048,576 instead of 10,000,000 bytes"),
        ({"url": "/missing"}, r"404 Not Found\. The file may have moved"),
    ],
)
def test_what_is_not_as_registered_is_refused_and_not_kept(
    changed: dict[str, Any], message: str, host: Any, tmp_path: Path
) -> None:
    host.files["weights.bin"] = CONTENT
    if "url" in changed:
        changed = {"url": host.address + changed["url"]}
    with pytest.raises(FmsegError, match=message):
        list(download(host.remote("weights.bin", **changed), tmp_path, "Weights"))
    assert left_behind(tmp_path) == []


def test_a_download_that_breaks_off_leaves_nothing_and_can_be_repeated(host: Any, tmp_path: Path) -> None:
    host.files["weights.bin"], host.cut = CONTENT, True
    with pytest.raises(
        FmsegError, match=r"Weights could not be downloaded from 127\.0\.0\.1: no connection, or it broke"
    ):
        list(download(host.remote("weights.bin"), tmp_path, "Weights"))
    assert left_behind(tmp_path) == []
    host.cut = False
    list(download(host.remote("weights.bin"), tmp_path, "Weights"))
    assert (tmp_path / "weights.bin").read_bytes() == CONTENT


def test_a_download_that_is_cancelled_leaves_nothing(host: Any, tmp_path: Path) -> None:
    host.files["weights.bin"] = CONTENT
    pieces = download(host.remote("weights.bin"), tmp_path, "Weights")
    next(pieces)
    pieces.close()
    assert left_behind(tmp_path) == []


def test_no_network_is_stated_with_the_host(tmp_path: Path) -> None:
    remote = RemoteFile("http://127.0.0.1:9/weights.bin", "weights.bin", 5, "a" * 64)
    with pytest.raises(FmsegError, match=r"from 127\.0\.0\.1: no connection.*try again"):
        list(download(remote, tmp_path, "Weights"))


def test_a_proxy_that_does_not_answer_is_named(host: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    host.files["weights.bin"] = CONTENT
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    with pytest.raises(FmsegError, match=r"the proxy of this network did not let it pass\. Check HTTPS_PROXY"):
        list(download(host.remote("weights.bin"), tmp_path, "Weights"))
    assert host.asked == []


def test_a_host_may_send_on_to_registered_machines_only(host: Any, addresses: list[str], tmp_path: Path) -> None:
    host.files["weights.bin"] = CONTENT
    port = host.address.rpartition(":")[2]
    host.redirects["moved"] = f"http://localhost:{port}/weights.bin"
    moved = host.remote("weights.bin", url=f"{host.address}/moved")
    with pytest.raises(
        FmsegError, match=r"sends the download of weights\.bin on to localhost, which is not registered"
    ):
        list(download(moved, tmp_path, "Weights"))
    assert "localhost" not in addresses
    assert left_behind(tmp_path) == []
    list(download(host.remote("weights.bin", url=f"{host.address}/moved", hosts=("localhost",)), tmp_path, "Weights"))
    assert (tmp_path / "weights.bin").read_bytes() == CONTENT


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"url": "http://example.org/a"}, "not fetched over https"),
        ({"url": "file:///etc/passwd"}, "not fetched over https"),
        ({"file": "../a.bin"}, "a plain name"),
        ({"sha256": "abc"}, "no sha256"),
        ({"size": 0}, "a size"),
    ],
)
def test_a_registered_file_that_is_not_to_be_trusted_is_refused(changed: dict[str, Any], message: str) -> None:
    right = {"url": "https://example.org/a.bin", "file": "a.bin", "size": 5, "sha256": "a" * 64}
    assert RemoteFile(**right).host == "example.org"
    with pytest.raises(ValueError, match=message):
        RemoteFile(**{**right, **changed})
