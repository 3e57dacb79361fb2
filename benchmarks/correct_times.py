"""How fast the Correct dock is: from the press of a tool to the visible change, and how long the window stalls.

``xvfb-run -a python benchmarks/correct_times.py [--shape 200 512 512] [--out benchmarks/results/correct_times.json]``

The labels are like those of an abdominal CT: ten organs on 512 x 512 x 200 voxels in uint8. Every tool is pressed in a
real window, `ROUNDS` times, and the medians are kept. *Visible* ends when the slice on the screen shows what would
change, *whole* when all slices are known, *accept* when they are written. A timer of 10 ms measures the stalls. Each
figure is kept by the clock, and as processor time of the window's thread and of the tool's, one after the other: on a
machine that others keep busy only that says anything. Before a tool is pressed the slices are scrolled, as users do.
One row is of a tool after seconds in which nothing happened: a virtual machine may give idle memory back late.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, TypeAlias

import napari
import numpy as np
from qtpy.QtCore import QTimer
from qtpy.QtWidgets import QApplication

from napari_fmseg._napari.correct.dock import CorrectDock
from napari_fmseg._napari.correct.tools import Tool
from napari_fmseg._napari.layers import image_layers, labels_layer
from napari_fmseg.core.volume import Geometry, LabelMap, Volume
from napari_fmseg.evaluation.machine import machine_facts

SPACING = (2.0, 0.8, 0.8)
N_CLASSES = 10
ROUNDS = 5
IDLE_S = 3.0


@dataclass
class Times:
    """Of one tool, in ms, by the clock and as processor time."""

    tool: str
    visible: float
    visible_cpu: float
    whole: float
    whole_cpu: float
    accept: float
    accept_cpu: float
    stall: float
    stall_cpu: float
    voxels: float


Press: TypeAlias = Callable[[], object]


def organs(shape: tuple[int, int, int]) -> np.ndarray:
    """Return ten blobs (z, y, x), uint8; the first is as large as a liver."""
    labels = np.zeros(shape, np.uint8)
    rng = np.random.default_rng(0)
    size = np.array(shape)
    for value in range(N_CLASSES, 0, -1):
        radii = size * (0.22 if value == 1 else rng.uniform(0.04, 0.12))
        centre = size * (0.5, 0.5, 0.45) if value == 1 else rng.uniform(0.25, 0.75, 3) * size
        low, high = np.maximum(centre - radii, 0).astype(int), np.minimum(centre + radii + 1, size).astype(int)
        box = tuple(slice(a, b) for a, b in zip(low, high, strict=True))
        places = np.ogrid[box]
        inside = sum(((p - c) / r) ** 2 for p, c, r in zip(places, centre, radii, strict=True)) <= 1
        labels[box][inside] = value
    return labels


class Clock:
    """Notes how late every tick of a 10 ms timer is."""

    def __init__(self) -> None:
        self._timer = QTimer(interval=10)
        self._timer.timeout.connect(self._on_tick)
        self.start()
        self._timer.start()

    def start(self) -> None:
        """Begin anew."""
        self.gaps, self.busy = [0.0], [0.0]
        self._last = time.perf_counter(), time.thread_time()

    def _on_tick(self) -> None:
        now = time.perf_counter(), time.thread_time()
        gap, busy = (1000 * (a - b) for a, b in zip(now, self._last, strict=True))
        self._last = now
        self.gaps.append(gap)
        self.busy.append(busy)


class Stopwatch:
    """Milliseconds since it was made: by the clock, and of the window's thread and the tool's on a processor."""

    def __init__(self, worker: list[float]) -> None:
        self._worker, self._n = worker, len(worker)
        self._start = time.perf_counter(), time.thread_time()

    def read(self) -> tuple[float, float]:
        """Return both."""
        own = 1000 * (time.thread_time() - self._start[1])
        return 1000 * (time.perf_counter() - self._start[0]), own + sum(self._worker[self._n :])


def note_time(function: Callable[[Any], Any], worker: list[float]) -> Callable[[Any], Any]:
    """Return a function that notes how many ms of its thread on a processor each call takes."""

    def call(labels: Any) -> Any:
        start = time.thread_time()
        found = function(labels)
        worker.append(1000 * (time.thread_time() - start))
        return found

    return call


def note_times_of(dock: CorrectDock, worker: list[float]) -> None:
    """Make every tool of the dock note its time."""
    run_tool = dock.session.run

    def run(layer: Any, tool: Tool, **options: Any) -> None:
        visible = None if tool.visible is None else note_time(tool.visible, worker)
        run_tool(layer, replace(tool, whole=note_time(tool.whole, worker), visible=visible), **options)

    dock.session.run = run


def wait(done: Callable[[], bool], seconds: float = 300) -> None:
    """Run the loop of the window until `done`."""
    start = time.perf_counter()
    while not done():
        QApplication.processEvents()
        time.sleep(0.004)
        if time.perf_counter() - start > seconds:
            raise TimeoutError("The tool did not end.")


def idle(seconds: float) -> None:
    """Run the loop of the window for seconds."""
    end = time.perf_counter() + seconds
    wait(lambda: time.perf_counter() > end)


def scroll(dock: CorrectDock) -> None:
    """Go two slices up and down again, and draw each."""
    viewer = dock.viewer
    for step in (1, 1, -1, -1):
        viewer.dims.set_current_step(0, viewer.dims.current_step[0] + step)
        idle(0.1)


def measure(
    tool: str, dock: CorrectDock, clock: Clock, worker: list[float], press: Press, *, scrolled: bool = True
) -> Times:
    """Press a tool, accept it, undo it, and return the times."""
    session = dock.session
    wait(lambda: not session.running)
    if scrolled:
        scroll(dock)
    clock.start()
    watch = Stopwatch(worker)
    press()
    wait(lambda: session.draft is not None or bool(dock.error.error))
    if dock.error.error is not None:
        raise RuntimeError(str(dock.error.error))
    QApplication.processEvents()
    visible = watch.read()
    wait(lambda: session.draft is not None and session.draft.is_whole and not session.running)
    whole = watch.read()
    picture = session.draft.picture
    watch = Stopwatch(worker)
    session.accept()
    QApplication.processEvents()
    accept = watch.read()
    wait(lambda: watch.read()[0] > 300)
    stall = max(clock.gaps), max(clock.busy)
    dock.layer.undo()
    wait(lambda: watch.read()[0] > 600)
    return Times(tool, *visible, *whole, *accept, *stall, picture.n_more + picture.n_less)


def median(times: list[Times]) -> Times:
    """Return the median of every figure."""
    figures = {f.name: float(np.median([getattr(t, f.name) for t in times])) for f in fields(Times) if f.name != "tool"}
    return Times(times[0].tool, **figures)  # type: ignore[arg-type]


def run(shape: tuple[int, int, int]) -> list[Times]:
    """Measure every tool."""
    viewer = napari.Viewer(show=True)
    viewer.window.resize(1280, 800)
    grid = Geometry.from_spacing(shape, SPACING)
    labels = organs(shape)
    rng = np.random.default_rng(0)
    scan = (labels * 20 + rng.integers(-50, 50, shape, dtype=np.int16)).astype(np.int16)
    [(data, options, _)] = image_layers(Volume(scan, grid), "scan")
    viewer.add_image(data, **options)
    names = {value: f"organ {value}" for value in range(1, N_CLASSES + 1)}
    data, options, _ = labels_layer(LabelMap(labels, grid, {}, names), "labels")
    layer = viewer.add_labels(np.array(data), **options)
    dock = CorrectDock(viewer)
    viewer.window.add_dock_widget(dock, name="Correct")
    clock, worker = Clock(), list[float]()
    note_times_of(dock, worker)
    layer.selected_label = 1
    middle = shape[0] // 2
    for z in (middle - 12, middle, middle + 12):  # three slices are corrected, at the border of the large organ
        viewer.dims.set_point(0, layer.data_to_world((z, 0, 0))[0])
        layer.brush_size = shape[1] // 8
        layer.paint((z, shape[1] // 2, int(0.67 * shape[2])), 1)
    viewer.dims.set_point(0, layer.data_to_world((middle + 5, 0, 0))[0])
    idle(3)  # the model's answer is compressed meanwhile
    shape_panel = dock.shape
    inside = tuple(int(v) for v in np.argwhere(layer.data[middle] == 1).mean(0))
    world = layer.data_to_world((middle, *inside))
    presses: dict[str, Press] = {
        "Spread correction": dock.spread.click,
        "Fill between slices": dock.fill.click,
        "Smooth 3 mm": lambda: shape_panel.smoothed.emit(3.0),
        "Grow 2 mm": lambda: shape_panel.resized.emit(2.0),
        "Shrink 2 mm": lambda: shape_panel.resized.emit(-2.0),
        "Remove an island": lambda: dock._run_island(world, keep=False),
        "Swap two classes": lambda: dock.transfer.swapped.emit(2),
        "Merge two classes": lambda: dock.transfer.merged.emit(2),
    }
    first = measure("Spread correction, the first tool", dock, clock, worker, dock.spread.click)
    rounds = {
        tool: [measure(tool, dock, clock, worker, press) for _ in range(ROUNDS)] for tool, press in presses.items()
    }
    late = []
    for _ in range(ROUNDS):
        idle(IDLE_S)
        late.append(measure("", dock, clock, worker, dock.spread.click, scrolled=False))
    found = [first, *map(median, rounds.values()), replace(median(late), tool=f"Spread correction after {IDLE_S:g} s")]
    viewer.layers.clear()
    dock.close_down()
    viewer.close()
    return found


def main() -> None:
    """Measure, print a table, and keep the figures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shape", type=int, nargs=3, default=(200, 512, 512))
    parser.add_argument("--out", type=Path)
    wanted = parser.parse_args()
    found = run(tuple(wanted.shape))
    machine = machine_facts(packages=("napari",))
    print(f"load {machine['load']} on {machine['cores']} cores, napari {napari.__version__}")
    print("| Tool | visible slice | all slices | accept | longest stall | voxels |")
    print("| --- | --- | --- | --- | --- | --- |")
    for t in found:
        pairs = (t.visible, t.visible_cpu), (t.whole, t.whole_cpu), (t.accept, t.accept_cpu), (t.stall, t.stall_cpu)
        print(f"| {t.tool} | {' | '.join(f'{ms:.0f} ({cpu:.0f}) ms' for ms, cpu in pairs)} | {t.voxels:.0f} |")
    if wanted.out is not None:
        facts = {"machine": machine, "shape": wanted.shape}
        wanted.out.write_text(json.dumps({**facts, "tools": [asdict(t) for t in found]}, indent=1) + "\n")


if __name__ == "__main__":
    main()
