"""Which servers run on this computer, for `fmseg serve --status` and the Doctor panel: quick, without torch."""

from __future__ import annotations

import dataclasses
import json
import os
import ssl
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from napari_fmseg.core.atomic_write import atomic_write
from napari_fmseg.models.folders import user_models_folder

__all__ = ["STATUS_PATH", "ServerRecord", "ServerStatus", "list_servers", "publish_record"]

STATUS_PATH = "/fmseg/status"
"""Where a server tells whoever knows the key of its record how it is."""

_PATIENCE_S = 3.0


@dataclass(frozen=True)
class ServerRecord:
    """What a server writes for other programs of this user.

    Attributes
    ----------
    pid
        Its process.
    url
        How clients reach it.
    local_url
        How this computer reaches it.
    key
        Who knows it may ask for the status.
    """

    pid: int
    url: str
    local_url: str
    key: str


@dataclass(frozen=True)
class ServerStatus:
    """A server and how it is.

    Attributes
    ----------
    pid, url
        See `ServerRecord`.
    answers
        Whether it has answered; the rest is empty if not.
    facts
        "project", "models", "started", "clients" (each with "address", "requests" and "seconds_ago"), "waiting",
        "training".
    """

    pid: int
    url: str
    answers: bool = False
    facts: Mapping[str, Any] = field(default_factory=dict)


@contextmanager
def publish_record(record: ServerRecord) -> Iterator[None]:
    """Write the record of a server, and remove it when the block ends."""
    path = _folder() / f"{record.pid}.json"
    with atomic_write(path) as file:
        os.chmod(file.name, 0o600)
        file.write(json.dumps(dataclasses.asdict(record)).encode())
    try:
        yield
    finally:
        path.unlink(missing_ok=True)


def list_servers() -> tuple[ServerStatus, ...]:
    """Return the servers of this user on this computer; the records of those that were killed are removed."""
    import psutil

    found = []
    for path in sorted(_folder().glob("*.json")):
        try:
            record = ServerRecord(**json.loads(path.read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError):
            continue
        if psutil.pid_exists(record.pid):
            found.append(_status(record))
        else:
            with suppress(OSError):
                path.unlink()
    return tuple(found)


def _status(record: ServerRecord) -> ServerStatus:
    request = urllib.request.Request(record.local_url + STATUS_PATH, headers={"X-Fmseg-Key": record.key})
    context = None
    if record.local_url.startswith("https:"):  # our own server on this computer, under another name
        context = ssl._create_unverified_context()
    try:
        with urllib.request.urlopen(request, timeout=_PATIENCE_S, context=context) as answer:
            facts = json.loads(answer.read())
    except (OSError, ValueError):  # it is starting or ending, or another program has its number by now
        return ServerStatus(record.pid, record.url)
    return ServerStatus(record.pid, record.url, True, facts)


def _folder() -> Path:
    return user_models_folder().parent / "servers"
