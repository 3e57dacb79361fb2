"""Who may use the server, without a network."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from napari_fmseg.cli.main import main
from napari_fmseg.cli.server.access import Guard, is_loopback, read_token
from napari_fmseg.core.errors import FmsegError

TOKEN = "a token that is long enough"


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.mark.parametrize(
    ("host", "expected"),
    [("127.0.0.1", True), ("127.9.9.9", True), ("::1", True), ("[::1]", True), ("localhost", True),
     ("0.0.0.0", False), ("::", False), ("192.168.1.4", False), ("hospital.example", False), ("", False)],
)  # fmt: skip
def test_only_this_computers_own_addresses_are_loopback(host: str, expected: bool) -> None:
    assert is_loopback(host) == expected


def test_the_right_password_gives_a_bearer_token_that_ends_after_half_a_day() -> None:
    clock = Clock()
    guard = Guard(TOKEN, clock=clock)
    assert guard.log_in("wrong") is None
    assert guard.log_in("") is None
    bearer = guard.log_in(TOKEN)
    assert bearer is not None
    assert guard.allows(f"Bearer {bearer}")
    assert guard.allows(f"bearer {TOKEN}")
    assert not guard.allows(f"Bearer {bearer}x")
    assert not guard.allows(f"Basic {bearer}")
    assert not guard.allows("")
    clock.now += 12 * 3600 + 1
    assert not guard.allows(f"Bearer {bearer}")


def test_only_the_newest_logins_are_kept() -> None:
    guard = Guard(TOKEN, clock=Clock())
    bearers = [guard.log_in(TOKEN) for _ in range(257)]
    assert not guard.allows(f"Bearer {bearers[0]}")
    assert guard.allows(f"Bearer {bearers[1]}")
    assert guard.allows(f"Bearer {bearers[-1]}")


def test_a_server_without_a_token_lets_nobody_log_in_with_an_empty_one() -> None:
    guard = Guard()
    assert guard.allows("")
    assert guard.log_in("") is None


def test_a_download_without_a_token_is_allowed_for_a_minute_for_one_image_and_address() -> None:
    clock = Clock()
    guard = Guard(TOKEN, clock=clock)
    guard.grant("10.0.0.1", "case-001")
    assert guard.is_granted("10.0.0.1", "case-001")
    assert not guard.is_granted("10.0.0.2", "case-001")
    assert not guard.is_granted("10.0.0.1", "case-002")
    clock.now += 61
    assert not guard.is_granted("10.0.0.1", "case-001")


@pytest.mark.parametrize(
    ("host", "expected"),
    [("127.0.0.1:8000", True), ("localhost:8000", True), ("[::1]:8000", True), ("evil.example:8000", False),
     ("", False), ("[::1", False)],
)  # fmt: skip
def test_a_server_for_this_computer_answers_to_no_other_name(host: str, expected: bool) -> None:
    assert Guard().allows_host(host) == expected
    assert Guard(TOKEN, local=False).allows_host(host)


def test_a_missing_token_file_is_created_for_this_user_only(tmp_path: Path) -> None:
    path = tmp_path / "token"
    token = read_token(path)
    assert len(token) >= 32
    assert read_token(path) == token
    if os.name == "posix":
        assert stat.S_IMODE(path.stat().st_mode) == 0o600


@pytest.mark.skipif(os.name != "posix", reason="permissions of POSIX")
def test_a_token_that_others_can_read_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "token"
    path.write_text(TOKEN)
    path.chmod(0o644)
    with pytest.raises(FmsegError, match="chmod 600"):
        read_token(path)


@pytest.mark.parametrize("content", [b"short", b"", b"\xff\xfe\xff" * 9, b"two long lines\nare no token at all"])
def test_what_is_no_token_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "token"
    path.write_bytes(content)
    path.chmod(0o600)
    with pytest.raises(FmsegError, match="token"):
        read_token(path)


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ([], "nothing to serve"),
        (["--models", "fmsf-phantom-ct", "--host", "0.0.0.0"], "--token-file"),
        (["--models", "fmsf-phantom-ct", "--certificate", "a.pem"], "--certificate-key"),
        (["--models", "fmsf-phantom-ct", "--port", "70000"], "port"),
        (["--models", "fmsf-phantom-ct", "--max-upload-gb", "0"], "max_upload_gb"),
    ],
)
def test_a_command_that_cannot_be_is_refused_with_what_to_do(
    words: list[str], expected: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("FMSEG_HOME", str(tmp_path))
    assert main(["serve", *words]) == 2
    assert expected in capsys.readouterr().err


def test_a_model_that_does_not_exist_is_named_before_anything_starts(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("FMSEG_HOME", str(tmp_path))
    assert main(["serve", "--models", "no-such-model"]) == 1
    assert "no-such-model" in capsys.readouterr().err


def test_without_a_server_the_status_says_so(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("FMSEG_HOME", str(tmp_path))
    assert main(["serve", "--status"]) == 0
    assert "No server" in capsys.readouterr().err
    assert main(["serve", "--status", "--json"]) == 0
    assert capsys.readouterr().out.strip() == "[]"


def test_a_package_that_is_missing_is_named_with_the_way_to_get_it(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("FMSEG_HOME", str(tmp_path))
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == "uvicorn" else object())
    assert main(["serve", "--models", "fmsf-phantom-ct"]) == 3
    assert "napari-fmseg[serve]" in capsys.readouterr().err
