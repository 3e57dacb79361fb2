"""The window never stalls: a timer of 10 ms keeps ticking while a model loads, runs, and its stages arrive.

What napari itself needs to take up a layer (its controls, its visuals, the first drawing) happens in the window's
thread and cannot be elsewhere; it is measured apart and printed, not hidden. Where other programs keep the processors
busy, the time for which the system let the window's thread wait for one is subtracted; both figures are printed.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("pytestqt")
pytest.importorskip("napari")

from napari.layers import Layer
from qtpy.QtCore import QTimer

from napari_fmseg._napari.layers import image_layers, labels_layer, map_layer
from napari_fmseg._napari.worker import close_all_jobs, start_job
from napari_fmseg.events import Progress, StageResult
from napari_fmseg.phantom import phantom_ct
from napari_fmseg.pipelines import SegmentOptions
from napari_fmseg.remote import RemoteEngine
from napari_fmseg.volume import LabelMap

MODEL = "fmsf-phantom-ct"
LONGEST_MS = 100.0
CALM_MS = 30.0  # a tick as late as this shows that the window has drawn what was added


@dataclass(frozen=True)
class Gap:
    """Between two ticks: how long, without waiting for a processor, and during what."""

    ms: float
    own_ms: float
    during: str

    def __str__(self) -> str:
        return f"{self.during} {self.ms:.0f} ms ({self.own_ms:.0f} without waiting for a processor)"


class Clock:
    """Notes how late every tick of a 10 ms timer is: those in which napari takes up a layer apart from all others."""

    def __init__(self) -> None:
        self.gaps: list[Gap] = []
        self.adding: list[Gap] = []
        self.now, self._layer = "nothing", ""
        self._last, self._waited = time.perf_counter(), waited_ms()
        self._timer = QTimer()
        self._timer.setInterval(10)
        self._timer.timeout.connect(self._on_tick)
        self._timer.start()

    def add(self, viewer: Any, layer: Layer) -> None:
        self._layer = layer.name
        viewer.add_layer(layer)

    def stop(self) -> None:
        self._timer.stop()

    def _on_tick(self) -> None:
        now, waited = time.perf_counter(), waited_ms()
        ms = 1000 * (now - self._last)
        gap = Gap(ms, ms - (waited - self._waited), self._layer or self.now)
        self._last, self._waited = now, waited
        (self.adding if self._layer else self.gaps).append(gap)
        if ms < CALM_MS:
            self._layer = ""


def waited_ms() -> float:
    """How long this thread has been ready to run while other programs had the processors; 0 where nobody counts."""
    try:
        return int(Path("/proc/thread-self/schedstat").read_text().split()[1]) / 1e6
    except OSError:
        return 0.0


def layers_in_the_thread(events: Iterator[Any], frame: Any) -> Iterator[Any]:
    """Make layers of the stages where it costs the window nothing."""
    for event in events:
        if isinstance(event, StageResult):
            make = labels_layer if isinstance(event.output, LabelMap) else map_layer
            yield Layer.create(*make(event.output, event.stage, frame=frame))
        else:
            yield event


def test_the_window_never_stalls_while_a_model_loads_and_runs(
    make_napari_viewer: Callable[..., Any], qtbot: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    volume, _ = phantom_ct(7)
    viewer = make_napari_viewer(show=True)
    [(data, options, _)] = image_layers(volume, "CT")
    viewer.add_image(data, **options)
    frame = options["metadata"]["fmseg"]["geometry"]
    qtbot.wait(500)
    ends: list[bool] = []
    failures: list[Any] = []
    with RemoteEngine() as engine:  # cold: the process, torch and the model are still to be loaded
        clock = Clock()
        options = SegmentOptions(device="cpu")

        def on_event(event: Any) -> None:
            if isinstance(event, Layer):
                clock.add(viewer, event)
            elif isinstance(event, Progress):
                clock.now = f"{event.stage} {event.done}/{event.total}"

        job = start_job(lambda: layers_in_the_thread(engine.segment(volume, MODEL, options), frame), engine.cancel)
        job.event.connect(on_event)
        job.failed.connect(failures.append)
        job.finished.connect(ends.append)
        qtbot.waitUntil(lambda: bool(ends), timeout=120_000)
        qtbot.wait(300)
        clock.stop()
    assert not failures
    assert ends == [True]
    assert [layer.name for layer in viewer.layers] == [
        "CT", "consensus", "attention map", "attention", "edge", "labels",
    ]  # fmt: skip
    assert close_all_jobs()
    longest = max(clock.gaps, key=lambda gap: gap.own_ms)
    slowest = max(clock.gaps, key=lambda gap: gap.ms)
    with capsys.disabled():
        sys.stdout.write(
            f"\nlongest gap of a 10 ms timer, of {len(clock.gaps)}: {longest}; by the clock: {slowest}\n"
            f"napari takes up a layer: {'; '.join(str(gap) for gap in clock.adding if gap.ms > CALM_MS)}\n"
        )
    assert longest.own_ms < LONGEST_MS
