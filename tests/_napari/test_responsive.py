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
from qtpy.QtCore import Qt, QTimer

from napari_fmseg._napari.layers import image_layers, labels_layer, map_layer
from napari_fmseg._napari.preferences import Preferences
from napari_fmseg._napari.segment import SegmentDock
from napari_fmseg._napari.worker import close_all_jobs, start_job
from napari_fmseg.events import Progress, StageResult
from napari_fmseg.phantom import phantom_ct
from napari_fmseg.pipelines import SegmentOptions
from napari_fmseg.remote import RemoteEngine
from napari_fmseg.volume import Geometry, LabelMap, Volume

MODEL = "fmsf-phantom-ct"
LONGEST_MS = 100.0
ATTEMPTS = 3  # what is ours stalls every time, what others do on a busy machine does not
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

    def __init__(self, viewer: Any) -> None:
        self.gaps: list[Gap] = []
        self.adding: list[Gap] = []
        self.now, self._layer = "nothing", ""
        self._last, self._waited = time.perf_counter(), waited_ms()
        self._timer = QTimer()
        self._timer.setInterval(10)
        self._timer.timeout.connect(self._on_tick)
        self._viewer = viewer
        viewer.layers.events.inserting.connect(self._on_inserting)
        self._timer.start()

    def stop(self) -> tuple[Gap, str]:
        """Give the longest gap, and a report."""
        self._timer.stop()
        self._viewer.layers.events.inserting.disconnect(self._on_inserting)
        longest = max(self.gaps, key=lambda gap: gap.own_ms)
        slowest = max(self.gaps, key=lambda gap: gap.ms)
        adding = "; ".join(str(gap) for gap in self.adding if gap.ms > CALM_MS)
        return longest, (
            f"\nlongest gap of a 10 ms timer, of {len(self.gaps)}: {longest}; by the clock: {slowest}\n"
            f"napari takes up a layer: {adding or 'none'}\n"
        )

    def taken(self, name: str) -> None:
        """Tell that napari has just been given data to show."""
        self._layer = name

    def _on_inserting(self, event: Any) -> None:
        self.taken(f"layer {event.index}")

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


def layers_in_the_thread(events: Iterator[Any], frame: Geometry) -> Iterator[Any]:
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
    for _ in range(ATTEMPTS):
        del viewer.layers[1:]
        qtbot.wait(500)
        longest, report = watched(qtbot, viewer, volume, frame)
        with capsys.disabled():
            sys.stdout.write(report)
        if longest.own_ms < LONGEST_MS:
            break
    assert [layer.name for layer in viewer.layers] == [
        "CT", "consensus", "attention map", "attention", "edge", "labels",
    ]  # fmt: skip
    assert longest.own_ms < LONGEST_MS


def watched(qtbot: Any, viewer: Any, volume: Volume, frame: Geometry) -> tuple[Gap, str]:
    """Run a model from a cold start, its stages added as layers, and watch."""
    ends: list[bool] = []
    with RemoteEngine() as engine:  # cold: the process, torch and the model are still to be loaded
        clock = Clock(viewer)

        def on_event(event: Any) -> None:
            if isinstance(event, Layer):
                viewer.add_layer(event)
            elif isinstance(event, Progress):
                clock.now = f"{event.stage} {event.done}/{event.total}"

        options = SegmentOptions(device="cpu")
        job = start_job(lambda: layers_in_the_thread(engine.segment(volume, MODEL, options), frame), engine.cancel)
        job.event.connect(on_event)
        job.finished.connect(ends.append)
        qtbot.waitUntil(lambda: bool(ends), timeout=120_000)
        qtbot.wait(300)
        found = clock.stop()
    assert ends == [True]
    assert close_all_jobs()
    return found


def test_the_window_never_stalls_after_a_press_on_run(
    make_napari_viewer: Callable[..., Any],
    qtbot: Any,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("FMSEG_HOME", str(tmp_path))
    # For a plugin that is not installed but run in its checkout, napari reads all manifests at every question (0.8 s).
    monkeypatch.setattr("napari_fmseg._napari.recovery.load", Preferences)
    volume, _ = phantom_ct(7)
    viewer = make_napari_viewer(show=True)
    [(data, options, _)] = image_layers(volume, "CT")
    viewer.add_image(data, **options)
    dock = SegmentDock(viewer)
    viewer.window.add_dock_widget(dock, name="fmseg: Segment")
    dock.model.choose(MODEL)
    for which in ("cold", "again"):  # the second run puts its results into the layers of the first
        for _ in range(ATTEMPTS):
            qtbot.wait(500)
            longest, report = pressed(qtbot, dock)
            with capsys.disabled():
                sys.stdout.write(f"\n{which}:{report}")
            if longest.own_ms < LONGEST_MS:
                break
            if which == "cold":
                dock.session.close()
        assert longest.own_ms < LONGEST_MS
    dock.session.close()
    assert [layer.name for layer in viewer.layers][-1].endswith("labels")


def pressed(qtbot: Any, dock: SegmentDock) -> tuple[Gap, str]:
    """Press Run and watch until it is over."""
    clock = Clock(dock.viewer)
    clock.now = "the press"
    qtbot.mouseClick(dock.bar.run_button, Qt.MouseButton.LeftButton)

    def on_event(event: Any) -> None:
        clock.now = str(getattr(event, "stage", ""))
        if hasattr(event, "layer"):
            clock.taken(clock.now)

    dock.session.came.connect(on_event)
    qtbot.waitUntil(lambda: not dock.session.running, timeout=120_000)
    qtbot.wait(300)
    dock.session.came.disconnect(on_event)
    return clock.stop()
