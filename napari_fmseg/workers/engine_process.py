"""The other process as seen from here: how it is started, ended, and what it died of."""

from __future__ import annotations

import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Mapping, Sequence

from napari_fmseg.core.errors import DeviceMemory, FmsegError
from napari_fmseg.core.processes import describe_exit_code, mentions_out_of_memory, n_killed_for_memory, tail_of
from napari_fmseg.core.processes import environment as ours
from napari_fmseg.workers.protocol import MessageChannel

__all__ = ["Process"]

_PIPE = 1 << 20  # bytes that a pipe holds, where the system lets us choose: fewer turns for large arrays
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
        words = list(command or [sys.executable, "-P", "-m", "napari_fmseg.workers.engine_main", str(idle_minutes)])
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115 - closed by end(); a pipe would need a thread
        self._n_killed_before = n_killed_for_memory()
        try:
            self._popen = subprocess.Popen(
                words,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._errors,
                bufsize=0,
                pipesize=_PIPE,
                env={**ours(), **environment},
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
        self.wire = MessageChannel(self._popen.stdout, self._popen.stdin)  # type: ignore[arg-type]
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
        """Return whether it ended by itself because nobody needed it."""
        return self._waited(_END_S) == 0

    def why_it_ended(self) -> FmsegError:
        """Return what is known of a process that has ended by itself or was killed by somebody else."""
        code = self._waited(_END_S)
        words = tail_of(self._errors)
        cause = f" Its last words were: {words}" if words else ""
        if code == -getattr(signal, "SIGKILL", 9) or mentions_out_of_memory(words):
            sure = n_killed_for_memory() > self._n_killed_before or mentions_out_of_memory(words)
            why = "for lack of memory" if sure else "from outside, as the system does when memory runs out"
            return DeviceMemory(
                f"The engine, the process that segments, was ended {why}. Expected enough free memory for the model "
                f"and the volume: close other programs, or segment a region of interest. {WHAT_TO_DO}{cause}"
            )
        return FmsegError(
            f"The engine, the process that segments, ended unexpectedly ({describe_exit_code(code)}). "
            f"Expected it to wait for the next volume. {WHAT_TO_DO} "
            f"If it happens again, `fmseg doctor` looks for the cause.{cause}"
        )

    def _waited(self, seconds: float) -> int | None:
        try:
            return self._popen.wait(seconds)
        except subprocess.TimeoutExpired:
            return None
