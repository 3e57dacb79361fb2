"""How long starting takes: the command line, a segmentation to its first stage, the docks of the window.

    python -m benchmarks startup [--rounds 5] [--model fmsf-phantom-ct] [--image FILE] [--without-docks]

Every start is a new process; what it reads lies in the page cache. *First stage* ends when the first stage of
`fmseg segment` has told its result. The seconds of the processor are those of the process and its threads up to then. A
dock opens in a viewer that is open already, and is said to load torch or not; without a display there are no docks.
"""

from __future__ import annotations

import importlib.util
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import measuring
import psutil

from napari_fmseg.core.processes import environment, python_module
from napari_fmseg.datasets.phantom import phantom_ct
from napari_fmseg.io import write_volume

OPEN = """
import json, sys, time
import napari
from qtpy.QtWidgets import QApplication
viewer = napari.Viewer(show=False)
QApplication.processEvents()
wall, processor = time.perf_counter(), time.process_time()
viewer.window.add_plugin_dock_widget("napari-fmseg", sys.argv[1])
QApplication.processEvents()
wall, processor = time.perf_counter() - wall, time.process_time() - processor
print(json.dumps({"wall": wall, "processor": processor, "torch": "torch" in sys.modules}))
viewer.close()
QApplication.processEvents()
"""


def run_command(words: Sequence[str]) -> dict[str, float]:
    """Run `fmseg` to its end."""
    before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    subprocess.run(
        python_module("napari_fmseg", *words), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        env=environment(), check=True,
    )  # fmt: skip
    wall, after = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_CHILDREN)
    spent = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return {"wall": wall, "processor": spent}


def run_to_first_stage(image: Path, model: str, result: Path) -> dict[str, float]:
    """Segment, and look at the clock and at the process when the first stage is there."""
    words = python_module("napari_fmseg", "segment", str(image), "--model", model, "--output", str(result), "--events")
    start = time.perf_counter()
    with subprocess.Popen(
        words, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=environment()
    ) as run:
        process, told = psutil.Process(run.pid), {"wall": 0.0, "processor": 0.0}
        assert run.stdout is not None
        for line in run.stdout:
            if not told["wall"] and json.loads(line)["event"] == "StageResult":
                spent = process.cpu_times()
                told = {"wall": time.perf_counter() - start, "processor": spent.user + spent.system}
    if run.returncode or not told["wall"]:
        raise SystemExit(f"fmseg segment ended with {run.returncode} before its first stage.")
    return told


def open_dock(name: str) -> dict[str, Any]:
    """Open one dock in a new window."""
    done = subprocess.run(
        [sys.executable, "-P", "-c", OPEN, name], capture_output=True, text=True, env=environment(), check=False
    )
    if done.returncode:
        raise SystemExit(f"The dock {name} did not open: {done.stderr[-500:]}")
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def dock_names() -> list[str]:
    """Return the docks of the manifest; none where there is no window to open them in."""
    if importlib.util.find_spec("napari") is None or not (sys.platform != "linux" or os.environ.get("DISPLAY")):
        return []
    from npe2 import PluginManifest

    widgets = PluginManifest.from_distribution("napari-fmseg").contributions.widgets or []
    return [widget.display_name for widget in widgets]


def summary(runs: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Return the seconds of several starts."""
    row: dict[str, Any] = {
        "seconds": measuring.summarise([run["wall"] for run in runs]),
        "processor_seconds": measuring.summarise([run["processor"] for run in runs]),
    }
    if "torch" in runs[0]:
        row["loads_torch"] = any(run["torch"] for run in runs)
    return row


def main() -> None:
    """Start everything again and again, in turns."""
    parser = measuring.parser_for(__doc__, "startup")
    parser.add_argument("--model", default="fmsf-phantom-ct")
    parser.add_argument("--image", type=Path, help="a phantom without one")
    parser.add_argument("--without-docks", dest="docks", action="store_false")
    settings = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="fmseg-startup-") as folder:
        image = settings.image or write_volume(phantom_ct(1)[0], Path(folder) / "ct.nii.gz")
        starts: dict[str, Callable[[], dict[str, Any]]] = {
            "fmseg --help": lambda: run_command(["--help"]),
            "fmseg segment --help": lambda: run_command(["segment", "--help"]),
            "fmseg segment, first stage": lambda: run_to_first_stage(image, settings.model, Path(folder) / "m.nii.gz"),
            **{f"dock {name}": partial(open_dock, name) for name in (dock_names() if settings.docks else [])},
        }
        runs: dict[str, list[dict[str, Any]]] = {name: [] for name in starts}
        for _ in range(settings.rounds):
            for name, start in starts.items():
                runs[name].append(start())
    rows = {name: summary(told) for name, told in runs.items()}
    for name, row in rows.items():
        torch = f"  torch {'loaded' if row['loads_torch'] else 'not loaded'}" if "loads_torch" in row else ""
        print(
            f"{name:28} {row['seconds']['median']:7.3f} s  processor {row['processor_seconds']['median']:7.3f} s{torch}"
        )
    measuring.keep(settings.out, "startup", settings, {"starts": rows})


if __name__ == "__main__":
    main()
