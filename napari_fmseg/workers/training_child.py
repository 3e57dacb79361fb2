"""The process that trains for a window: it runs a command of ours, stops when asked, and ends with its parent.

``python -m napari_fmseg.workers.training_child MODULE ARGUMENTS`` runs ``python -m MODULE ARGUMENTS``. When its
standard input closes, or the parent is gone, the command is asked to stop as by SIGTERM; after two seconds it
is killed.
"""

from __future__ import annotations

import faulthandler
import os
import runpy
import signal
import sys
import threading
import time
from collections.abc import Sequence
from types import FrameType

from napari_fmseg.core.processes import lower_priority, when_parent_exits

__all__ = ["main"]

_PATIENCE_S = 2.0


def main(words: Sequence[str]) -> None:
    """Run a module as a program that ends with its parent.

    Parameters
    ----------
    words
        The module's name and its arguments.
    """
    faulthandler.enable()
    lower_priority()
    signal.signal(signal.SIGTERM, _stop)
    threading.Thread(target=_wait_for_close, args=(_take_stdin(),), daemon=True).start()
    when_parent_exits(os.getppid(), _end)
    sys.argv = list(words)
    runpy.run_module(words[0], run_name="__main__", alter_sys=True)


def _stop(_signal: int, _frame: FrameType | None) -> None:
    """Interrupt a command that does not handle SIGTERM itself; once, so that it can tidy up."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    raise KeyboardInterrupt


def _take_stdin() -> int:
    """Keep the standard input for ourselves: the command, and processes that it starts, read nothing."""
    pipe = os.dup(0)
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.close(nothing)
    return pipe


def _wait_for_close(pipe: int) -> None:
    """Wait until the other end of the pipe is closed, then end."""
    while os.read(pipe, 1024):
        pass
    _end()


def _end() -> None:
    """Stop softly, then for good; processes that the command started go with it."""
    if hasattr(signal, "pthread_kill"):  # wakes the main thread also where it waits for something
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGTERM)
    else:
        signal.raise_signal(signal.SIGTERM)
    time.sleep(_PATIENCE_S)
    if hasattr(os, "killpg") and os.getpgrp() == os.getpid():
        os.killpg(os.getpgrp(), signal.SIGKILL)
    os._exit(0)


if __name__ == "__main__":
    main(sys.argv[1:])
