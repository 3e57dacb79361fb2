"""The process that trains for a window: it runs a command of ours, stops softly when asked, and ends with its parent.

``python -m napari_fmseg.workers.training_child MODULE WORDS...`` runs ``python -m MODULE WORDS...``. Its standard
input is the
leash: when that closes, or the parent is gone, the command is asked to stop as by SIGTERM; after two seconds it is made
to.
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

from napari_fmseg.core.processes import call_when_parent_exits, lower_priority

__all__ = ["main"]

_PATIENCE_S = 2.0


def main(words: Sequence[str]) -> None:
    """Run a module as a program under the leash.

    Parameters
    ----------
    words
        The module's name and its arguments.
    """
    faulthandler.enable()
    lower_priority()
    signal.signal(signal.SIGTERM, _stop)
    leash = _take_leash()
    threading.Thread(target=_feel, args=(leash,), daemon=True).start()
    threading.Thread(target=call_when_parent_exits, args=(os.getppid(), _end), daemon=True).start()
    sys.argv = list(words)
    runpy.run_module(words[0], run_name="__main__", alter_sys=True)


def _stop(_signal: int, _frame: FrameType | None) -> None:
    """Stop what a command does that has no way of its own to be stopped; once, so that it can tidy up."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    raise KeyboardInterrupt


def _take_leash() -> int:
    """Keep the standard input for ourselves: the command, and processes that it starts, read nothing."""
    leash = os.dup(0)
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.close(nothing)
    return leash


def _feel(leash: int) -> None:
    """Wait until the other end is closed."""
    while os.read(leash, 1024):
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
