"""One machine stands for a smaller one where FMSEG_CPU_CAPABILITY says so; threads of the command line wait asleep."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from napari_fmseg.cli.doctor import examine
from napari_fmseg.cli.main import main
from napari_fmseg.core import hardware
from napari_fmseg.core.errors import DeviceUnavailable
from napari_fmseg.core.hardware import cpu_capability
from napari_fmseg.core.processes import environment
from napari_fmseg.evaluation.metrics import dice_per_label
from napari_fmseg.nets.runtime.device import pick_device

X86 = platform.machine().lower() in ("x86_64", "amd64")
OURS = ("FMSEG_CPU_CAPABILITY", "ATEN_CPU_CAPABILITY", "ONEDNN_MAX_CPU_ISA", "MKL_ENABLE_INSTRUCTIONS",
        "OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "THP_MEM_ALLOC_ENABLE")  # fmt: skip

USED = """
import sys
import napari_fmseg
import torch
from napari_fmseg.nets.runtime.device import pick_precision
print(torch.backends.cpu.get_cpu_capability(), pick_precision(torch.device("cpu"), half_precision_ok=True))
"""
CHANGED = """
import os
before = dict(os.environ)
import napari_fmseg.nets
from napari_fmseg.cli.main import main
main(["--version"])
print({k: v for k, v in os.environ.items() if before.get(k) != v})
"""
SEGMENT = """
import sys
import numpy as np
import napari_fmseg as fm
volume, _ = fm.phantom_ct(20261, spacing=(6.0, 5.0, 5.0), difficulty="easy")
model = fm.load_model("fmsf-phantom-ct", device="cpu")
np.save(sys.argv[1], fm.drain(fm.segment(volume, model)).data)
"""


def run(code: str, *words: object, **variables: str) -> str:
    """Run Python in a process of its own, in which only these variables are set."""
    clean = {k: v for k, v in environment().items() if k not in OURS}
    done = subprocess.run(
        [sys.executable, "-c", code, *map(str, words)],
        env={**clean, **variables}, capture_output=True, text=True, check=True,
    )  # fmt: skip
    return done.stdout.strip()


@pytest.mark.skipif(not X86, reason="the names of instruction sets are those of x86")
@pytest.mark.parametrize(("value", "used"), [("avx2", {"AVX2", "DEFAULT"}), (" AVX2", {"AVX2", "DEFAULT"}),
                                             ("default", {"DEFAULT"})])  # fmt: skip
def test_the_variable_hides_wide_instructions_and_half_precision_from_torch(value: str, used: set[str]) -> None:
    capability, precision = run(USED, FMSEG_CPU_CAPABILITY=value).split()
    assert capability in used
    assert precision == "float32"


@pytest.mark.skipif(not (X86 and cpu_capability()), reason="nothing is hidden from these tests")
def test_the_tests_themselves_run_with_what_is_left() -> None:
    assert torch.backends.cpu.get_cpu_capability() in {"AVX2", "DEFAULT"}


def test_child_processes_inherit_what_is_hidden() -> None:
    code = (
        "import subprocess, sys, napari_fmseg\n"
        "print(subprocess.run([sys.executable, '-c', sys.argv[1]], capture_output=True, text=True, check=True).stdout)"
    )
    capability, precision = run(code, USED, FMSEG_CPU_CAPABILITY="default").split()
    assert precision == "float32"
    assert capability == "DEFAULT" or not X86


def test_a_model_gives_the_same_mask_with_fewer_instructions(tmp_path: Path) -> None:
    masks = []
    for variables in ({}, {"FMSEG_CPU_CAPABILITY": "avx2"}, {"FMSEG_CPU_CAPABILITY": "default"}):
        run(SEGMENT, tmp_path / "mask.npy", **variables)
        masks.append(np.load(tmp_path / "mask.npy"))
    classes = int(masks[0].max()) + 1
    assert classes > 2
    for other in masks[1:]:
        assert np.nanmin(dice_per_label(other, masks[0], classes)) >= 0.999


def test_a_wrong_value_is_refused_where_a_device_is_chosen(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("FMSEG_CPU_CAPABILITY", "avx9")
    with pytest.raises(DeviceUnavailable, match="'avx9'; expected avx2 or default"):
        cpu_capability()
    with pytest.raises(DeviceUnavailable, match="unset it"):
        pick_device("cpu")
    (tmp_path / "image.nii").write_bytes(b"")
    words = ["segment", str(tmp_path / "image.nii"), "--model", "fmsf-phantom-ct", "--output", str(tmp_path / "o.nii")]
    assert main(words) == 3
    assert "FMSEG_CPU_CAPABILITY is 'avx9'" in capsys.readouterr().err
    (found,) = (finding for finding in examine() if finding.name == "precision")
    assert found.state == "bad"
    assert "'avx9'" in found.text


def test_an_import_with_a_wrong_value_still_succeeds() -> None:
    assert run("import napari_fmseg; print(napari_fmseg.__version__)", FMSEG_CPU_CAPABILITY="avx9")


def test_the_doctor_tells_what_is_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FMSEG_CPU_CAPABILITY", "avx2")
    (found,) = (finding for finding in examine() if finding.name == "precision")
    assert (found.state, "FMSEG_CPU_CAPABILITY=avx2 hides" in found.text) == ("ok", True)


def test_a_program_that_uses_the_library_keeps_its_environment() -> None:
    assert run(CHANGED).splitlines()[-1] == "{}"


START = {
    "module": "import runpy, sys; sys.argv[0] = 'fmseg'; runpy.run_module('napari_fmseg', run_name='__main__')",
    "console script": "import sys; from napari_fmseg.cli.main import main; sys.exit(main())",
}


@pytest.mark.skipif(sys.platform != "linux", reason="reads what GNU's OpenMP tells of itself")
@pytest.mark.parametrize("start", START)
@pytest.mark.parametrize(
    ("given", "spins"),
    [({}, 0), ({"OMP_WAIT_POLICY": "ACTIVE"}, 30_000_000_000), ({"GOMP_SPINCOUNT": "1000"}, 1000)],
)
def test_threads_of_the_command_line_wait_asleep_unless_the_user_chose(
    start: str, given: dict[str, str], spins: int
) -> None:
    clean = {k: v for k, v in environment().items() if k not in OURS}
    told = subprocess.run(
        [sys.executable, "-c", START[start], "doctor"],
        env={**clean, "OMP_DISPLAY_ENV": "VERBOSE", **given}, capture_output=True, text=True, check=False,
    ).stderr  # fmt: skip
    (line,) = (line for line in told.splitlines() if "GOMP_SPINCOUNT" in line)  # OpenMP says what it was loaded with
    assert int(line.split(" = ")[1].strip("'")) == spins


LARGE = {
    "module": "import atexit, os, runpy, sys; sys.argv[:] = ['fmseg', '--version']\n"
    "atexit.register(lambda: print(os.environ.get('THP_MEM_ALLOC_ENABLE')))\n"
    "runpy.run_module('napari_fmseg', run_name='__main__')",
    "child": "import os, sys; from napari_fmseg.core.processes import lower_priority; lower_priority()\n"
    "print(os.environ.get('THP_MEM_ALLOC_ENABLE'))\n",
}


@pytest.mark.parametrize("start", LARGE)
def test_our_own_processes_ask_for_large_pages_unless_the_user_chose(start: str) -> None:
    assert run(LARGE[start]).splitlines()[-1] == "1"
    assert run(LARGE[start], THP_MEM_ALLOC_ENABLE="0").splitlines()[-1] == "0"
    assert run("import torch\n" + LARGE["child"]) == "None"  # too late: torch has read it


@pytest.mark.parametrize("pages", ["0", "1"])
def test_large_pages_are_what_torch_takes(pages: str) -> None:
    code = """
import torch
from pathlib import Path
kept = torch.ones(1 << 24)
blocks = Path("/proc/self/smaps").read_text().split("VmFlags:")
print(any(" hg" in flags.splitlines()[0] for flags in blocks[1:]))
"""
    if not Path("/proc/self/smaps").exists():
        pytest.skip("Linux tells which memory may have large pages")
    if not Path("/sys/kernel/mm/transparent_hugepage/enabled").exists():
        pytest.skip("this system has no large pages")
    assert run(code, THP_MEM_ALLOC_ENABLE=pages) == str(pages == "1")


def stat(idle: float, waiting: float = 0.0) -> list[str]:
    tick = os.sysconf("SC_CLK_TCK")
    return [f"cpu  100 0 100 {round(idle * tick)} {round(waiting * tick)} 0 0 0 0 0", "cpu0 1 2 3 4 5 6 7 8"]


@pytest.mark.skipif(not hasattr(os, "sysconf"), reason="the cores are watched where the system lists their use")
@pytest.mark.parametrize(
    ("idle", "own", "expected"),
    [(0.0, 5.0, 1), (10.0, 10.0, 2), (32.0, 8.0, 4), (300.0, 0.0, 4), (0.0, 0.0, 1)],
    ids=["all cores are taken", "one other is free", "just enough", "a larger machine", "nothing is left"],
)
def test_a_busy_machine_is_given_fewer_threads(monkeypatch, idle, own, expected) -> None:
    chosen: list[int] = []
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.delenv("MKL_NUM_THREADS", raising=False)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 4)
    monkeypatch.setattr(torch, "set_num_threads", chosen.append)
    now = {"clock": 100.0, "own": 1.0, "lines": stat(50.0)}
    monkeypatch.setattr(hardware.time, "perf_counter", lambda: now["clock"])
    monkeypatch.setattr(hardware.time, "process_time", lambda: now["own"])
    monkeypatch.setattr(hardware, "_lines", lambda path: now["lines"])
    monkeypatch.setattr(hardware, "_at_start", None)
    hardware.watch_cores()
    now.update(clock=110.0, own=1.0 + own, lines=stat(50.0 + idle / 2, idle / 2))
    assert hardware.use_free_cores() == expected
    assert chosen == [expected]


@pytest.mark.parametrize("why", ["the user has chosen", "nobody watched", "the system does not say"])
def test_the_threads_of_torch_stay_where(monkeypatch, why) -> None:
    monkeypatch.setattr(torch, "set_num_threads", lambda n: pytest.fail("the number of threads was changed"))
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.delenv("MKL_NUM_THREADS", raising=False)
    begin = hardware._Use(-1000.0, -1000.0, -1000.0)
    monkeypatch.setattr(hardware, "_at_start", None if why == "nobody watched" else begin)
    if why == "the user has chosen":
        monkeypatch.setenv("OMP_NUM_THREADS", "3")
    if why == "the system does not say":
        monkeypatch.setattr(hardware, "_lines", lambda path: [])
    assert hardware.use_free_cores() == torch.get_num_threads()


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        (
            ["processor\t: 0", "flags\t\t: fpu sse4_2 avx avx2 avx512_bf16 rdtscp"],
            ("sse4_2", "avx", "avx2", "avx512_bf16"),
        ),
        (["processor : 0", "Features : fp asimd bf16 crc32"], ("asimd", "bf16")),
        ([], ()),
    ],
    ids=["x86", "arm", "no list"],
)
def test_the_instruction_sets_that_matter_are_those_that_the_system_lists(monkeypatch, lines, expected) -> None:
    monkeypatch.setattr(hardware, "_lines", lambda path: lines)
    assert hardware.instruction_sets() == expected
