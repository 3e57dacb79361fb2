"""Child processes: how they are started and stopped, how they end with their parent, and why one ended."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
import sysconfig
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath
from types import FrameType
from typing import IO

from napari_fmseg.core.allocator import use_large_pages
from napari_fmseg.core.errors import DeviceMemory, FmsegError
from napari_fmseg.core.hardware import wait_asleep
from napari_fmseg.core.package import import_root

__all__ = [
    "ChildProcess",
    "End",
    "describe_exit_code",
    "ending_tidily",
    "environment",
    "is_rank_zero",
    "lower_priority",
    "peak_bytes",
    "python_module",
    "when_parent_exits",
    "without_paths",
]

NICENESS = 5
_OUT_OF_MEMORY = ("MemoryError", "bad_alloc", "OutOfMemoryError")
_PIPE = 1 << 20  # bytes that a pipe holds, where the system lets us choose: fewer turns for large arrays
_LAST_WORDS = 2000  # characters of the error stream
_LOOK_FOR_PARENT_S = 2.0
_PATH = re.compile(r"""(?:[A-Za-z]:)?[/\\][^\s"':,;()]*[/\\][^\s"':,;()]*""")


def environment() -> dict[str, str]:
    """Return our environment variables, with which a child imports this very package also from a checkout."""
    ours = dict(os.environ)
    root = import_root()
    installed = {Path(sysconfig.get_path(name)).resolve() for name in ("purelib", "platlib")}
    if root.resolve() not in installed:
        ours["PYTHONPATH"] = os.pathsep.join([str(root), *filter(None, [ours.get("PYTHONPATH", "")])])
    return ours


def is_rank_zero() -> bool:
    """Return whether this process is alone, or the first of several that train together: the one that writes."""
    ranks = ("RANK",) if "RANK" in os.environ else ("NODE_RANK", "LOCAL_RANK")  # of torchrun; of Fabric
    return all(os.environ.get(name, "0") == "0" for name in ranks)


def lower_priority() -> None:
    """Lower the priority of this process below that of the window, and leave Ctrl-C to the parent."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    wait_asleep()
    use_large_pages()
    if hasattr(os, "nice"):
        os.nice(NICENESS)
    else:
        import psutil

        psutil.Process().nice(psutil.BELOW_NORMAL_PRIORITY_CLASS)


@contextlib.contextmanager
def ending_tidily() -> Iterator[None]:
    """End the command on SIGTERM and SIGHUP as an exception does, so that no unpacked scan stays behind.

    A signal that is ignored, as under nohup, or that somebody else handles already, is left as it is.
    """
    before = {}
    if threading.current_thread() is threading.main_thread():
        for name in ("SIGTERM", "SIGHUP"):
            number = getattr(signal, name, None)
            if number is not None and signal.getsignal(number) == signal.SIG_DFL:
                before[number] = signal.signal(number, _leave)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _leave(number: int, _frame: FrameType | None) -> None:
    signal.signal(number, signal.SIG_IGN)  # whoever is asked twice still tidies up
    raise SystemExit(128 + number)


def peak_bytes() -> int:
    """Return the most memory that this process ever held; 0 where the system does not say."""
    with contextlib.suppress(OSError, StopIteration, ValueError):
        # Linux counts what the process was forked from into `ru_maxrss`: a window of 3 GB would hide a run of 2 GB.
        lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
        return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:"))
    try:
        import resource
    except ImportError:  # Windows
        import psutil

        return int(getattr(psutil.Process().memory_info(), "peak_wset", 0))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return int(peak) * (1 if sys.platform == "darwin" else 1024)


def when_parent_exits(parent: int, act: Callable[[], object]) -> None:
    """Call `act` in a thread once the process `parent` is no longer ours; never on Windows."""
    if hasattr(os, "fork"):
        threading.Thread(target=_wait_for_parent, args=(parent, act), daemon=True, name="fmseg parent").start()


def _wait_for_parent(parent: int, act: Callable[[], object]) -> None:
    while os.getppid() == parent:
        time.sleep(_LOOK_FOR_PARENT_S)
    act()


def python_module(module: str, *arguments: str) -> list[str]:
    """Return the command that runs a module of ours with this Python."""
    # -P: a file of the user called json.py in the current folder must not become ours.
    return [sys.executable, "-P", "-m", module, *arguments]


@dataclass(frozen=True)
class End:
    """How the unexpected end of a process is reported.

    Attributes
    ----------
    name
        Of the process: "The engine, the process that segments,".
    expected, memory
        What it should have done; what it needs memory for, and what the user can do about it.
    advice
        What to do next.
    """

    name: str
    expected: str
    memory: str
    advice: str


class ChildProcess:
    """A process of ours with pipes to its input and from its output; `close`, or the end of a with block, ends it.

    A copy of this object in a forked process leaves the child alone.

    Parameters
    ----------
    command
        The program and its arguments; see `python_module`.
    name
        Of the process in messages, such as "engine".
    variables
        Environment variables in addition to ours.
    keep_errors
        Keep the error stream for `last_words`; else it goes where ours goes, or nowhere with None.
    buffered
        Whether the pipes have buffers; without them they take and give only a part at a time.
    with_descendants
        End the processes that it has started, too.

    Raises
    ------
    FmsegError
        If the system does not start it.
    """

    def __init__(
        self,
        command: Sequence[str],
        name: str,
        *,
        variables: Mapping[str, str] | None = None,
        keep_errors: bool | None = True,
        buffered: bool = True,
        with_descendants: bool = False,
    ) -> None:
        self._owner = os.getpid()
        self._group = with_descendants and hasattr(os, "killpg")
        self._errors = tempfile.TemporaryFile() if keep_errors else None  # noqa: SIM115 - a pipe would need a thread
        self._n_killed = n_killed_for_memory()
        self._group_ended = False
        self._closing = threading.Lock()
        try:
            self._popen = subprocess.Popen(
                list(command),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL if keep_errors is None else self._errors,
                bufsize=-1 if buffered else 0,
                pipesize=_PIPE,
                env={**environment(), **(variables or {})},
                start_new_session=self._group,
                creationflags=getattr(subprocess, "CREATE_NO_WINDOW", 0),
            )
        except OSError as error:
            if self._errors is not None:
                self._errors.close()
            raise FmsegError(
                f"The {name} could not be started: {error}. Expected that {command[0]} can be run; is the installation "
                "complete, and is there memory left? `fmseg doctor` in a terminal looks for the cause."
            ) from error
        assert self._popen.stdin is not None
        assert self._popen.stdout is not None
        self.stdin: IO[bytes] = self._popen.stdin
        self.stdout: IO[bytes] = self._popen.stdout

    @property
    def pid(self) -> int:
        """Number of the process."""
        return self._popen.pid

    @property
    def is_running(self) -> bool:
        """Whether it has not ended."""
        return self._popen.poll() is None

    @property
    def is_ours(self) -> bool:
        """Whether this process has started it, rather than one that this process was forked from."""
        return self._owner == os.getpid()

    def wait(self, seconds: float | None = None) -> int | None:
        """Wait for its end and return the exit code; None if it goes on."""
        try:
            return self._popen.wait(seconds)
        except subprocess.TimeoutExpired:
            return None

    def stop(self, patience_s: float) -> None:
        """Request it to end, which it may take `patience_s` for, then kill it."""
        if os.name == "posix":
            self._popen.terminate()
        else:
            self.stdin.close()  # there is no soft signal
        if self.wait(patience_s) is None:
            self.kill()

    def kill(self) -> None:
        """End it at once, from any thread; its memory, that of the GPU too, is free then."""
        if not self.is_ours:
            return
        if not self._group:
            self._popen.kill()
            return
        if not self.is_running:
            if self._group_ended:  # its number may be that of other processes by now
                return
            self._group_ended = True
        # A group that has ended is not found; macOS refuses where only zombies are left.
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, signal.SIGKILL)

    def close(self, seconds: float | None = None) -> int | None:
        """Kill it, wait for its end at most so long, and close the pipes; return the exit code."""
        self.kill()
        with self._closing:
            code = self.wait(seconds) if self.is_ours else None
            for pipe in (self.stdin, self.stdout, self._errors):
                if pipe is not None:
                    with contextlib.suppress(OSError):  # what is still in a buffer, nobody reads
                        pipe.close()
        return code

    def __enter__(self) -> ChildProcess:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def last_words(self, *, lines: int = 8, hide_paths: bool = False) -> str:
        """Return the end of its error stream; see `tail_of`."""
        return "" if self._errors is None else tail_of(self._errors, lines=lines, hide_paths=hide_paths)

    def why_it_ended(self, end: End, *, hide_paths: bool = False, patience_s: float | None = None) -> FmsegError:
        """Return what is known of a process that has ended by itself or was killed by somebody else."""
        code = self.wait(patience_s)
        words = self.last_words(hide_paths=hide_paths)
        cause = f" Its last words were: {words}" if words else ""
        lacked_memory = any(sign in words for sign in _OUT_OF_MEMORY)
        if code == -getattr(signal, "SIGKILL", 9) or lacked_memory:
            certain = lacked_memory or n_killed_for_memory() > self._n_killed
            why = "for lack of memory" if certain else "from outside, as the system does when memory runs out"
            return DeviceMemory(f"{end.name} was ended {why}. Expected enough free memory {end.memory}. "
                                f"{end.advice}{cause}")  # fmt: skip
        return FmsegError(
            f"{end.name} ended unexpectedly ({describe_exit_code(code)}). Expected it to {end.expected}. {end.advice} "
            f"If it happens again, `fmseg doctor` looks for the cause.{cause}"
        )


def tail_of(errors: IO[bytes], *, lines: int = 8, hide_paths: bool = False) -> str:
    """Read the end of a process's error stream.

    Parameters
    ----------
    errors
        The file that it writes to, which may be closed.
    lines
        At most so many.
    hide_paths
        Whether names of files, which may be those of patients, are replaced; of a program's own files the name stays.
    """
    if errors.closed:
        return ""
    # Its position is shared with the process, which may still write: read by place where that is possible.
    size = errors.seek(0, os.SEEK_END)
    errors.seek(max(0, size - _LAST_WORDS))
    text = errors.read().decode(errors="replace").strip()
    text = "\n".join(text.splitlines()[-lines:])
    return without_paths(text) if hide_paths else text


def without_paths(text: str) -> str:
    """Replace paths, whose names may be those of patients; of a program's own files the name stays."""
    return _PATH.sub(_file_name_only, text)


def _file_name_only(found: re.Match[str]) -> str:
    name = PurePath(found.group().replace("\\", "/")).name
    return name if name.endswith((".py", ".so", ".dll", ".cpp", ".cu")) else "(a file)"


def describe_exit_code(code: int | None) -> str:
    """Name an exit code: a signal on Unix, the number that can be looked up on Windows."""
    if code is None:
        return "it closed its pipe but goes on"
    if code < 0:
        return f"signal {-code}, {signal.strsignal(-code) or 'unknown'}"
    return f"exit code {code:#x}" if code > 255 else f"exit code {code}"


def n_killed_for_memory() -> int:
    """Return how many processes Linux has killed for lack of memory since it started; 0 where it does not say."""
    try:
        lines = Path("/proc/vmstat").read_text().splitlines()
    except OSError:
        return 0
    return sum(int(line.split()[1]) for line in lines if line.startswith("oom_kill "))
