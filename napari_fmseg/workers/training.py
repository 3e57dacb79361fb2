"""Training in a process of its own, followed from here: its events arrive as if it ran in this one.

The window that follows stays alive whatever happens there; when the process ends, all its memory comes back, that of
the graphics card too.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Generator, Sequence

from napari_fmseg.core.errors import DeviceMemory, FmsegError
from napari_fmseg.core.events import TrainEvent, from_json
from napari_fmseg.core.processes import (
    describe_exit_code,
    environment,
    mentions_out_of_memory,
    n_killed_for_memory,
    tail_of,
)

__all__ = ["PROGRAM", "RemoteTraining", "stream_events"]

PROGRAM = (sys.executable, "-P", "-m", "napari_fmseg.workers.training_child", "napari_fmseg")
"""The words before a command. -P: a file of the user called json.py in the current folder must not become ours."""

PATIENCE_S = 1.8  # how long a training that was asked to stop may take to write what it keeps
_OURS = "fmseg: "  # how the command line begins what a user can be told
_RESUME = "What was saved stays: resume it, and it goes on from there."


def stream_events(command: Sequence[str], *, program: Sequence[str] = PROGRAM) -> Generator[TrainEvent, None, None]:
    """Run ``fmseg train RECIPE`` or ``fmseg pretrain ...`` in a process of its own, and give its events.

    Parameters
    ----------
    command
        What would follow ``fmseg``, such as ``("train", "recipe.toml")``; ``--events`` is added.
    program
        The words before it.

    Yields
    ------
    TrainEvent
        As `train` and `pretrain` do. Closing the iterator asks the process to stop, which keeps the best so far, and
        kills it if it has not ended 1.8 s later.

    Raises
    ------
    FmsegError
        What the command told; or, if the process died, what is known of it.
    """
    yield from RemoteTraining(command, program=program).events()


class RemoteTraining:
    """One such process, which can be stopped from any thread while another waits for its events.

    Parameters
    ----------
    command, program
        See `stream_events`.
    """

    def __init__(self, command: Sequence[str], *, program: Sequence[str] = PROGRAM) -> None:
        flag = () if "--events" in command else ("--events",)
        self._words = [*program, *map(str, command), *flag]
        self._lock = threading.Lock()
        self._asked = False
        self._popen: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int | None:
        """Number of the process, or None while there is none."""
        popen = self._popen
        return popen.pid if popen is not None and popen.poll() is None else None

    def stop(self) -> None:
        """Request for the end and return at once; the events that come before it still arrive."""
        with self._lock:
            if self._asked:
                return
            self._asked = True
            popen = self._popen
        if popen is not None:
            threading.Thread(target=_end, args=(popen,), daemon=True, name="fmseg stop").start()

    def events(self) -> Generator[TrainEvent, None, None]:
        """Start the process and give its events; see `stream_events`."""
        with tempfile.TemporaryFile() as errors:
            n_killed = n_killed_for_memory()
            popen = self._start(errors)
            if popen is None:
                return
            assert popen.stdout is not None
            threading.Thread(target=_end_the_rest, args=(popen,), daemon=True, name="fmseg watch").start()
            try:
                for line in popen.stdout:
                    event = _event_in(line)
                    if event is not None:
                        yield event
                if popen.wait() != 0 and not self._asked:
                    lacked_memory = n_killed_for_memory() > n_killed
                    raise _why(popen.returncode, errors, lacked_memory)
            finally:
                if popen.poll() is None:
                    self.stop()
                popen.stdout.read()  # it may be waiting for a reader; the killing sees to an end
                popen.wait()
                popen.stdout.close()
                if popen.stdin is not None:
                    popen.stdin.close()

    def _start(self, errors: object) -> subprocess.Popen[bytes] | None:
        with self._lock:
            if self._asked:
                return None
            try:
                self._popen = subprocess.Popen(
                    self._words,
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=errors,  # type: ignore[call-overload]
                    env=environment(),
                    start_new_session=True,  # a group of its own, so that what it starts can be ended with it
                    creationflags=getattr(subprocess, "CREATE_NO_WINDOW", 0),
                )
            except OSError as error:
                raise FmsegError(
                    f"The training could not be started: {error}. Expected that {self._words[0]} can be run; is the "
                    "installation complete, and is there memory left?"
                ) from error
            return self._popen


def _end(popen: subprocess.Popen[bytes]) -> None:
    """Request a process to stop, and make it."""
    if os.name == "posix":
        popen.terminate()
    elif popen.stdin is not None:
        popen.stdin.close()  # there is no soft signal: the leash is let go
    try:
        popen.wait(PATIENCE_S)
    except subprocess.TimeoutExpired:
        _kill(popen)


def _end_the_rest(popen: subprocess.Popen[bytes]) -> None:
    """Allow nothing outlive the process that it has started: it would hold the pipe open, and memory."""
    popen.wait()
    _kill(popen)


def _kill(popen: subprocess.Popen[bytes]) -> None:
    if not hasattr(os, "killpg"):
        popen.kill()
        return
    try:
        os.killpg(popen.pid, signal.SIGKILL)
    except (ProcessLookupError, PermissionError):  # the whole group has ended; macOS says the latter of zombies
        return


def _event_in(line: bytes) -> TrainEvent | None:
    """Read a line; what libraries print among the events is passed over."""
    if not line.startswith(b'{"event"'):
        return None
    try:
        return from_json(line.decode(errors="replace"))
    except FmsegError:  # an event of a kind that we do not follow, or cut off by the end of the process
        return None


def _why(code: int, errors: object, lacked_memory: bool) -> FmsegError:
    """Return what is known of a process that has ended by itself or was killed by somebody else."""
    told = _told(tail_of(errors, lines=40))  # type: ignore[arg-type]
    if code > 0 and told:
        error = FmsegError(told)
        error.exit_code = code
        return error
    words = tail_of(errors, hide_paths=True)  # type: ignore[arg-type]
    cause = f" Its last words were: {words}" if words else ""
    if code == -getattr(signal, "SIGKILL", 9) or mentions_out_of_memory(words):
        why = (
            "for lack of memory"
            if lacked_memory or mentions_out_of_memory(words)
            else "from outside, perhaps for lack of memory"
        )
        return DeviceMemory(
            f"The training, a process of its own, was ended {why}. Expected enough free memory for the network and its "
            f"samples: close other programs, or choose a smaller patch or network. {_RESUME}{cause}"
        )
    return FmsegError(
        f"The training, a separate process, ended unexpectedly ({describe_exit_code(code)}). "
        f"Expected it to run to its end. {_RESUME} If it happens again, `fmseg doctor` looks for the cause.{cause}"
    )


def _told(words: str) -> str:
    """Return the last thing that the command line told the user in its error stream, or nothing."""
    start = words.rfind("\n" + _OURS)
    if start < 0 and not words.startswith(_OURS):
        return ""
    return words[start + 1 :].removeprefix(_OURS).strip()
