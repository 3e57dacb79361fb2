"""Training in a separate process, followed from here: its events arrive as if it ran in this one.

The window that follows stays alive whatever happens there; when the process ends, all its memory comes back, that of
the GPU too.
"""

from __future__ import annotations

import threading
from collections.abc import Generator, Sequence

from napari_fmseg.core.errors import FmsegError
from napari_fmseg.core.events import TrainEvent, from_json
from napari_fmseg.core.processes import ChildProcess, End, python_module

__all__ = ["PROGRAM", "RemoteTraining"]

PROGRAM = tuple(python_module("napari_fmseg.workers.training_child", "napari_fmseg"))
"""What stands before the arguments of a command."""

PATIENCE_S = 1.8  # how long a training that was asked to stop may take to write what it keeps
_OURS = "fmseg: "  # how the command line begins an error message
_END = End(
    name="The training, a separate process,",
    expected="run to its end",
    memory="for the network and its samples: close other programs, or choose a smaller patch or network",
    advice="What was saved stays: resume it, and it continues from there.",
)


class RemoteTraining:
    """``fmseg train`` or ``pretrain`` in a process that can be stopped from any thread while another reads its events.

    Parameters
    ----------
    command
        What would follow ``fmseg``, such as ``("train", "recipe.toml")``; ``--events`` is added.
    program
        The program and its first arguments.
    """

    def __init__(self, command: Sequence[str], *, program: Sequence[str] = PROGRAM) -> None:
        flag = () if "--events" in command else ("--events",)
        self._command = [*program, *map(str, command), *flag]
        self._lock = threading.Lock()
        self._stopped = False
        self._child: ChildProcess | None = None

    @property
    def pid(self) -> int | None:
        """Number of the process, or None while there is none."""
        child = self._child
        return child.pid if child is not None and child.is_running else None

    def stop(self) -> None:
        """Request the end and return at once; the events that come before it still arrive."""
        with self._lock:
            if self._stopped:
                return
            self._stopped = True
            child = self._child
        if child is not None:
            threading.Thread(target=child.stop, args=(PATIENCE_S,), daemon=True, name="fmseg stop").start()

    def events(self) -> Generator[TrainEvent, None, None]:
        """Start the process and yield its events, as `train` and `pretrain` do.

        Closing the iterator asks the process to stop, which keeps the best so far, and kills it if it has not ended
        1.8 s later.

        Raises
        ------
        FmsegError
            What the command reported; or, if the process died, what is known of it.
        """
        with self._lock:
            if self._stopped:
                return
            self._child = child = ChildProcess(self._command, "training", with_descendants=True)
        threading.Thread(target=_end_descendants, args=(child,), daemon=True, name="fmseg watch").start()
        with child:
            try:
                for line in child.stdout:
                    event = _event_in(line)
                    if event is not None:
                        yield event
                if child.wait() != 0 and not self._stopped:
                    raise _error_of(child)
            finally:
                if child.is_running:
                    self.stop()
                child.stdout.read()  # it may be waiting for a reader; the killing sees to an end
                child.wait()


def _end_descendants(child: ChildProcess) -> None:
    """Kill what the process has started when it ends: it would hold the pipe open, and memory."""
    child.wait()
    child.kill()


def _event_in(line: bytes) -> TrainEvent | None:
    """Return the event in a line, or None: what libraries print among the events is skipped."""
    if not line.startswith(b'{"event"'):
        return None
    try:
        return from_json(line.decode(errors="replace"))
    except FmsegError:  # an event of a kind that we do not follow, or cut off by the end of the process
        return None


def _error_of(child: ChildProcess) -> FmsegError:
    """Return the error that the command reported, or what is known of its end."""
    code, text = child.wait(), _last_error_message(child.last_words(lines=40))
    if code and code > 0 and text:
        error = FmsegError(text)
        error.exit_code = code
        return error
    return child.why_it_ended(_END, hide_paths=True)


def _last_error_message(words: str) -> str:
    """Return the last error that the command line reported in its error stream, or nothing."""
    start = words.rfind("\n" + _OURS)
    if start < 0 and not words.startswith(_OURS):
        return ""
    return words[start + 1 :].removeprefix(_OURS).strip()
