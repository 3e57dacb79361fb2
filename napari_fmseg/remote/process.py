"""The other process as seen from here: how it is started, ended, and what it died of."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import sysconfig
import tempfile
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path

from napari_fmseg.errors import DeviceMemory, FmsegError
from napari_fmseg.remote.wire import Wire

__all__ = ["Process"]

_PIPE = 1 << 20  # bytes that a pipe holds, where the system lets us choose: fewer turns for large arrays
_LAST_WORDS = 2000  # characters of the error stream
_END_S = 5.0
WHAT_TO_DO = "Your layers are safe. Run it again; the engine starts anew by itself."


class Process:
    """A started engine.

    Parameters
    ----------
    command
        Its words; None takes this Python and this package.
    idle_minutes
        When it ends by itself, if `command` is None.
    environment
        Variables in addition to our own.

    Raises
    ------
    FmsegError
        If the system starts no process.
    """

    def __init__(self, command: Sequence[str] | None, idle_minutes: float, environment: Mapping[str, str]) -> None:
        # -P: a file of the user called json.py in the current folder must not become ours.
        words = list(command or [sys.executable, "-P", "-m", "napari_fmseg.remote", str(idle_minutes)])
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115 - closed by end(); a pipe would need a thread
        self._n_killed_before = _n_killed_for_memory()
        try:
            self._popen = subprocess.Popen(
                words,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._errors,
                bufsize=0,
                pipesize=_PIPE,
                env={**_environment(), **environment},
                creationflags=getattr(subprocess, "CREATE_NO_WINDOW", 0),
            )
        except OSError as error:
            self._errors.close()
            raise FmsegError(
                f"The engine could not be started: {error}. Expected that {words[0]} can be run; is the installation "
                "complete, and is there memory left?"
            ) from error
        assert self._popen.stdin is not None
        assert self._popen.stdout is not None
        self.wire = Wire(self._popen.stdout, self._popen.stdin)  # type: ignore[arg-type]
        self.ready = False  # it has loaded torch
        self._ending = threading.Lock()
        self._ended = False

    @property
    def pid(self) -> int:
        """Number of the process."""
        return self._popen.pid

    @property
    def alive(self) -> bool:
        """Whether it runs and can be spoken to."""
        return not self._ended and self._popen.poll() is None

    def kill(self) -> None:
        """End it at once, from any thread; its memory, that of the graphics card too, is free then."""
        self._popen.kill()

    def end(self) -> None:
        """Kill it and tidy up."""
        self.kill()
        with self._ending:
            if self._ended:
                return
            self._waited(_END_S)
            self.wire.close()
            self._errors.close()
            self._ended = True

    def left_idle(self) -> bool:
        """Whether it ended by itself because nobody needed it."""
        return self._waited(_END_S) == 0

    def why_it_ended(self) -> FmsegError:
        """Tell what is known of a process that has ended by itself or was killed by somebody else."""
        code = self._waited(_END_S)
        words = self._last_words()
        cause = f" Its last words were: {words}" if words else ""
        if code == -getattr(signal, "SIGKILL", 9) or _says_memory(words):
            sure = _n_killed_for_memory() > self._n_killed_before or _says_memory(words)
            why = "for lack of memory" if sure else "from outside, as the system does when memory runs out"
            return DeviceMemory(
                f"The engine, the process that segments, was ended {why}. Expected enough free memory for the model "
                f"and the volume: close other programs, or segment a region of interest. {WHAT_TO_DO}{cause}"
            )
        return FmsegError(
            f"The engine, the process that segments, ended unexpectedly ({_named(code)}). Expected it to wait for the "
            f"next volume. {WHAT_TO_DO} If it happens again, `fmseg doctor` looks for the cause.{cause}"
        )

    def _waited(self, seconds: float) -> int | None:
        try:
            return self._popen.wait(seconds)
        except subprocess.TimeoutExpired:
            return None

    def _last_words(self) -> str:
        if self._errors.closed:
            return ""
        # Its position is shared with the process, which may still write: read by place where that is possible.
        size = self._errors.seek(0, os.SEEK_END)
        self._errors.seek(max(0, size - _LAST_WORDS))
        text = self._errors.read().decode(errors="replace").strip()
        return "\n".join(text.splitlines()[-8:])


def _environment() -> dict[str, str]:
    """Let the process find this very package, also where it is run from a checkout that only our `sys.path` knows."""
    ours = dict(os.environ)
    root = Path(__file__).parents[2]
    installed = {Path(sysconfig.get_path(name)).resolve() for name in ("purelib", "platlib")}
    if root.resolve() not in installed:
        ours["PYTHONPATH"] = os.pathsep.join([str(root), *filter(None, [ours.get("PYTHONPATH", "")])])
    return ours


def _says_memory(words: str) -> bool:
    return "MemoryError" in words or "bad_alloc" in words


def _named(code: int | None) -> str:
    """Name an exit code: a signal on Unix, the number that can be looked up on Windows."""
    if code is None:
        return "it closed its link but goes on"
    if code < 0:
        return f"signal {-code}, {signal.strsignal(-code) or 'unknown'}"
    return f"exit code {code:#x}" if code > 255 else f"exit code {code}"


def _n_killed_for_memory() -> int:
    """How many processes Linux has killed for lack of memory since it started; 0 where it does not say."""
    try:
        lines = Path("/proc/vmstat").read_text().splitlines()
    except OSError:
        return 0
    return sum(int(line.split()[1]) for line in lines if line.startswith("oom_kill "))
