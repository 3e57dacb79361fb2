"""Child processes start with this package, end with what they have started, and their end is explained."""

from __future__ import annotations

import os
import sys

import psutil
import pytest

from napari_fmseg.core.errors import DeviceMemory, FmsegError
from napari_fmseg.core.processes import ChildProcess, End, python_module

END = End("The worker", "wait", "for its work", "Start it again.")


def python(code: str) -> list[str]:
    return [sys.executable, "-c", code]


def test_a_child_imports_this_very_package_and_answers_over_its_pipes() -> None:
    code = "import sys, napari_fmseg; print(napari_fmseg.__file__); print(sys.stdin.readline().upper())"
    with ChildProcess(python(code), "worker", variables={"PYTHONWARNINGS": "ignore"}) as child:
        child.stdin.write(b"hello\n")
        child.stdin.flush()
        package, answer = child.stdout.read().decode().split()
    import napari_fmseg

    assert package == napari_fmseg.__file__
    assert answer == "HELLO"
    assert not child.is_running


def test_what_cannot_be_started_is_explained() -> None:
    with pytest.raises(FmsegError, match=r"The worker could not be started.*fmseg doctor"):
        ChildProcess([sys.executable + "-is-not-there"], "worker")


def test_leaving_the_block_kills_a_child_that_goes_on() -> None:
    with ChildProcess(python("import time; time.sleep(600)"), "worker") as child:
        assert child.is_running
    assert not psutil.pid_exists(child.pid) or psutil.Process(child.pid).status() == psutil.STATUS_ZOMBIE


@pytest.mark.skipif(not hasattr(os, "killpg"), reason="process groups are Unix's")
def test_processes_that_a_child_has_started_end_with_it() -> None:
    code = (
        "import subprocess, sys, time\n"
        "own = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'])\n"
        "print(own.pid, flush=True); time.sleep(600)"
    )
    with ChildProcess(python(code), "worker", with_descendants=True) as child:
        grandchild = psutil.Process(int(child.stdout.readline()))
    psutil.wait_procs([grandchild], timeout=60)
    assert not grandchild.is_running() or grandchild.status() == psutil.STATUS_ZOMBIE


@pytest.mark.skipif(os.name != "posix", reason="there is no soft signal elsewhere")
def test_a_child_that_does_not_stop_when_asked_is_killed() -> None:
    code = "import signal, sys; signal.signal(signal.SIGTERM, signal.SIG_IGN); print(flush=True); sys.stdin.read()"
    with ChildProcess(python(code), "worker") as child:
        child.stdout.readline()
        child.stop(0.01)
        assert child.wait() == -9


def test_the_last_words_explain_an_end_without_the_names_of_files() -> None:
    code = "import sys; sys.stderr.write('cannot read /home/jane/scan.nii.gz'); sys.exit(5)"
    with ChildProcess(python(code), "worker") as child:
        error = child.why_it_ended(END, hide_paths=True)
    assert str(error).startswith("The worker ended unexpectedly (exit code 5). Expected it to wait. Start it again.")
    assert "cannot read (a file)" in str(error)
    assert not isinstance(error, DeviceMemory)


def test_an_end_for_lack_of_memory_is_a_memory_error() -> None:
    with ChildProcess(python("raise MemoryError"), "worker") as child:
        error = child.why_it_ended(END)
    assert isinstance(error, DeviceMemory)
    assert "was ended for lack of memory. Expected enough free memory for its work. Start it again." in str(error)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork elsewhere")
def test_a_forked_copy_leaves_the_child_alone() -> None:
    with ChildProcess(python("import sys; sys.stdin.read()"), "worker") as child:
        child._owner = -1  # as a forked process finds it
        child.kill()
        assert child.is_running
        child._owner = os.getpid()


def test_our_modules_do_not_find_the_users_files_first() -> None:
    assert python_module("a.b", "1") == [sys.executable, "-P", "-m", "a.b", "1"]
