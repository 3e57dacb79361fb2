"""Images that clients uploaded for a while: each in a folder of its own that vanishes when nobody used it for long."""

from __future__ import annotations

import shutil
import threading
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

__all__ = ["Session", "Sessions"]

_MOST_SESSIONS = 64


@dataclass
class Session:
    """One uploaded image.

    Attributes
    ----------
    name
        Random: nobody guesses that of another client.
    folder
        Where its files lie.
    seconds
        After how long without use it ends.
    created, used
        When, by the wall clock.
    """

    name: str
    folder: Path
    seconds: float
    created: float
    used: float

    @property
    def image(self) -> Path:
        """The file to read; the folder where there are several, as of a DICOM series."""
        files = sorted(self.folder.iterdir())
        return files[0] if len(files) == 1 else self.folder

    def as_json(self) -> dict[str, Any]:
        """Return what the protocol tells of a session; where it lies is nobody's business."""
        return {
            "name": self.name,
            "path": "",
            "image": self.name,
            "meta": {},
            "create_ts": int(self.created),
            "last_access_ts": int(self.used),
            "expiry": int(self.seconds),
        }


class Sessions:
    """All sessions of a server.

    Parameters
    ----------
    folder
        Where their folders are made.
    seconds
        After how long without use a session ends, if its client does not say.
    clock
        Gives the time in seconds.
    """

    def __init__(self, folder: Path, seconds: float, *, clock: Callable[[], float] = time.time) -> None:
        self._folder, self._seconds, self._clock = folder, seconds, clock
        self._lock = threading.Lock()
        self._sessions: dict[str, Session] = {}

    def new_folder(self) -> Path:
        """Make an empty folder, for `open` or to be removed by the caller."""
        folder = self._folder / uuid.uuid4().hex
        folder.mkdir(parents=True, mode=0o700)
        return folder

    def open(self, folder: Path, seconds: float | None = None) -> Session:
        """Start a session with the files of a `new_folder`; the one that was not used for longest ends for it."""
        now = self._clock()
        wanted = self._seconds if not seconds or seconds <= 0 else min(seconds, self._seconds)
        session = Session(str(uuid.uuid4()), folder, wanted, now, now)
        self.end_expired()
        with self._lock:
            self._sessions[session.name] = session
            surplus = sorted(self._sessions.values(), key=lambda one: one.used)[:-_MOST_SESSIONS]
        for old in surplus:
            self.close(old.name)
        return session

    def find(self, name: str) -> Session | None:
        """Return a session, which counts as its use; None if it has ended or never was."""
        self.end_expired()
        with self._lock:
            session = self._sessions.get(name)
            if session is not None:
                session.used = self._clock()
            return session

    def close(self, name: str) -> bool:
        """End a session and remove its files; return whether there was one."""
        with self._lock:
            session = self._sessions.pop(name, None)
        if session is not None:
            shutil.rmtree(session.folder, ignore_errors=True)
        return session is not None

    def end_expired(self) -> None:
        """End the sessions that nobody used for long."""
        now = self._clock()
        with self._lock:
            old = [name for name, session in self._sessions.items() if now - session.used > session.seconds]
        for name in old:
            self.close(name)

    def __len__(self) -> int:
        return len(self._sessions)

    def owns(self, folder: Path) -> bool:
        """Return whether a session has this folder."""
        with self._lock:
            return any(session.folder == folder for session in self._sessions.values())
