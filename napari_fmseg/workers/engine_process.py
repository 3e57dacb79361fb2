"""The engine's process as seen from the program that uses it: its messages, and why it ended."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from napari_fmseg.core.errors import FmsegError
from napari_fmseg.core.processes import ChildProcess, End, python_module
from napari_fmseg.workers.protocol import MessageChannel

__all__ = ["EngineProcess"]

_END_S = 5.0
_END = End(
    name="The engine, the process that segments,",
    expected="wait for the next volume",
    memory="for the model and the volume: close other programs, or segment a region of interest",
    advice="Your layers are safe. Run it again; the engine starts anew by itself.",
)


class EngineProcess:
    """A started engine.

    Parameters
    ----------
    command
        The program and its arguments; None takes this Python and this package.
    idle_minutes
        When it ends by itself, if `command` is None.
    environment
        Variables in addition to our own.

    Raises
    ------
    FmsegError
        If the system does not start it.
    """

    def __init__(self, command: Sequence[str] | None, idle_minutes: float, environment: Mapping[str, str]) -> None:
        command = command or python_module("napari_fmseg.workers.engine_main", str(idle_minutes))
        self._child = ChildProcess(command, "engine", variables=environment, buffered=False)
        self.wire = MessageChannel(self._child.stdout, self._child.stdin)  # type: ignore[arg-type]
        self._closed = False

    @property
    def pid(self) -> int:
        """Number of the process."""
        return self._child.pid

    @property
    def alive(self) -> bool:
        """Whether it runs and takes messages."""
        return not self._closed and self._child.is_running

    def kill(self) -> None:
        """End it at once, from any thread; its memory, that of the GPU too, is free then."""
        self._child.kill()

    def end(self) -> None:
        """Kill it and close the pipes."""
        self._child.kill()
        self._child.wait(_END_S)
        self.wire.close()
        self._child.close(_END_S)
        self._closed = True

    def is_idle_exit(self) -> bool:
        """Return whether it ended by itself because nobody needed it."""
        return self._child.wait(_END_S) == 0

    def why_it_ended(self) -> FmsegError:
        """Return what is known of a process that has ended by itself or was killed by somebody else."""
        return self._child.why_it_ended(_END, patience_s=_END_S)
