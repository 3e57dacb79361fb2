"""Processes that work for a window or together: what they are started with, how they end, and what one died of."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import sys
import sysconfig
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path, PurePath
from types import FrameType
from typing import IO

from napari_fmseg.core.hardware import wait_asleep
from napari_fmseg.core.package import import_root

__all__ = [
    "call_when_parent_exits",
    "describe_exit_code",
    "ending_tidily",
    "environment",
    "is_rank_zero",
    "lower_priority",
    "mentions_out_of_memory",
    "n_killed_for_memory",
    "peak_bytes",
    "tail_of",
]

NICENESS = 5
_LAST_WORDS = 2000  # characters of the error stream
_LOOK_FOR_PARENT_S = 2.0
_PATH = re.compile(r"""(?:[A-Za-z]:)?[/\\][^\s"':,;()]*[/\\][^\s"':,;()]*""")


def environment() -> dict[str, str]:
    """Allow the process find this very package, also where it is run from a checkout that only our `sys.path` knows."""
    ours = dict(os.environ)
    root = import_root()
    installed = {Path(sysconfig.get_path(name)).resolve() for name in ("purelib", "platlib")}
    if root.resolve() not in installed:
        ours["PYTHONPATH"] = os.pathsep.join([str(root), *filter(None, [ours.get("PYTHONPATH", "")])])
    return ours


def is_rank_zero() -> bool:
    """Return whether this process is alone, or the first of several that learn together: the one that tells and
    writes.
    """
    ranks = ("RANK",) if "RANK" in os.environ else ("NODE_RANK", "LOCAL_RANK")  # of torchrun; of Fabric
    return all(os.environ.get(name, "0") == "0" for name in ranks)


def lower_priority() -> None:
    """Leave the processor to the window where both want it, and Ctrl-C to the parent."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    wait_asleep()
    if hasattr(os, "nice"):
        os.nice(NICENESS)
    else:
        import psutil

        psutil.Process().nice(psutil.BELOW_NORMAL_PRIORITY_CLASS)


@contextlib.contextmanager
def ending_tidily() -> Iterator[None]:
    """Allow SIGTERM and SIGHUP end the command as an exception does, so that no unpacked scan stays behind.

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
    """Return most memory that this process ever held; 0 where the system does not say."""
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


def call_when_parent_exits(parent: int, act: Callable[[], object]) -> None:
    """Wait until the process `parent` is no longer ours, then call `act`; on Windows return at once, without it."""
    if not hasattr(os, "fork"):
        return
    while os.getppid() == parent:
        time.sleep(_LOOK_FOR_PARENT_S)
    act()


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
    return _PATH.sub(_file_name_only, text) if hide_paths else text


def _file_name_only(found: re.Match[str]) -> str:
    name = PurePath(found.group().replace("\\", "/")).name
    return name if name.endswith((".py", ".so", ".dll", ".cpp", ".cu")) else "(a file)"


def mentions_out_of_memory(words: str) -> bool:
    """Return whether a process's last words are that memory ran out."""
    return any(sign in words for sign in ("MemoryError", "bad_alloc", "OutOfMemoryError"))


def describe_exit_code(code: int | None) -> str:
    """Name an exit code: a signal on Unix, the number that can be looked up on Windows."""
    if code is None:
        return "it closed its link but goes on"
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
