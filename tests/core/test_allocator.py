"""Settings of the C library's allocator change our own processes only, never the program that uses the library."""

from __future__ import annotations

import subprocess
import sys

import pytest

from napari_fmseg.core import allocator

RUN_A_NETWORK = """
import gc, torch
from napari_fmseg.core import allocator
from napari_fmseg.nets.runtime.prepare import prepare
{owner}
called = []
allocator._set_options = lambda: bool(called.append(1)) or True
prepare(torch.nn.Conv3d(1, 1, 3), device="cpu")(torch.zeros(1, 1, 8, 8, 8))
assert len(called) == {n_calls}, called
assert gc.get_freeze_count() == 0
"""


@pytest.mark.parametrize(("owner", "n_calls"), [("", 0), ("allocator.own_process()", 1)])
def test_a_network_sets_the_allocator_in_a_process_of_ours_only(owner: str, n_calls: int) -> None:
    code = RUN_A_NETWORK.format(owner=owner, n_calls=n_calls)
    subprocess.run([sys.executable, "-c", code], check=True, timeout=300)


@pytest.mark.parametrize(("arguments", "owned"), [("None", True), ("['--version']", False)])
def test_the_command_line_owns_its_process_and_a_program_that_calls_it_does_not(arguments: str, owned: bool) -> None:
    code = (
        "import sys; sys.argv = ['fmseg', '--version']\n"
        "from napari_fmseg.cli.main import main\nfrom napari_fmseg.core import allocator\n"
        f"assert main({arguments}) == 0\nassert allocator._is_own is {owned}"
    )
    subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.DEVNULL, timeout=300)


def test_freed_memory_can_be_kept_and_given_back_on_glibc() -> None:
    code = (
        "import platform; from napari_fmseg.core.allocator import keep_freed_memory, own_process, trim_heap; "
        "own_process(); kept, trimmed = keep_freed_memory(), trim_heap(); "
        "assert kept == (platform.libc_ver()[0] == 'glibc'), kept; assert isinstance(trimmed, bool)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_other_c_libraries_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(allocator, "_is_own", True)
    monkeypatch.setattr(allocator.platform, "libc_ver", lambda: ("", ""))
    allocator._set_options.cache_clear()
    assert not allocator.keep_freed_memory()
    assert not allocator.trim_heap()
    allocator._set_options.cache_clear()
