"""The engine's process gives what this one would give, can be stopped at any moment, and takes nobody along."""

from __future__ import annotations

import dataclasses
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

from napari_fmseg.core.errors import (
    Cancelled,
    DeviceMemory,
    FmsegError,
    GeometryMismatch,
    InvalidRecipe,
    UnknownModel,
    UnreadableVolume,
)
from napari_fmseg.core.events import FROM_THE_FILE, Event, Progress, Saved, StageResult, Warned, drain
from napari_fmseg.core.volume import Geometry, LabelMap, Volume
from napari_fmseg.datasets.phantom import phantom_ct
from napari_fmseg.io import read_labels, read_volume, write_volume
from napari_fmseg.models.half_precision import HalfPrecision
from napari_fmseg.models.registry import find_card
from napari_fmseg.models.weights import load_model
from napari_fmseg.pipelines import SegmentOptions, segment
from napari_fmseg.pipelines.batch import plan_jobs
from napari_fmseg.workers.engine import RemoteEngine
from napari_fmseg.workers.protocol import ChannelClosed, MessageChannel

ROOT = Path(__file__).parents[2]
MODEL = "fmsf-phantom-ct"
EXACT = SegmentOptions(device="cpu", precision="float32")
TURN = np.linalg.qr(np.eye(3) + 0.1 * np.random.default_rng(3).standard_normal((3, 3)))[0]
OURS = ("starting engine", "loading model")


@pytest.fixture(scope="module")
def volume() -> Volume:
    """A phantom of few voxels, oblique, with axes in another order and voxels that lie in no simple order."""
    image, _ = phantom_ct(7, spacing=(6.0, 6.0, 6.0))
    direction = TURN[:, [1, 0, 2]] @ np.diag([1.0, -1.0, 1.0])
    data = image.data.transpose(1, 0, 2)[:, ::-1]
    geometry = Geometry.from_spacing(data.shape, (6.0, 6.0, 6.0), (1 / 3, -200.1, np.pi), direction)
    return Volume(data, geometry, {"modality": "CT", "warnings": ("a remark",), "window": np.float32(0.1)})


@pytest.fixture(scope="module")
def engine() -> Iterator[RemoteEngine]:
    with RemoteEngine() as engine:
        yield engine


def ours(events: list[Event]) -> list[Event]:
    """The events without those that only another process has."""
    return [e for e in events if not (isinstance(e, Progress) and e.stage in OURS)]


def same(found: Event, expected: Event) -> None:
    assert type(found) is type(expected)
    if not isinstance(found, StageResult) or not isinstance(expected, StageResult):
        assert found == expected
        return
    assert (found.stage, found.note) == (expected.stage, expected.note)
    assert type(found.output) is type(expected.output)
    assert found.output.geometry == expected.output.geometry  # to the last bit
    assert found.output.meta == expected.output.meta
    assert found.output.data.dtype == expected.output.data.dtype
    assert found.output.data.flags.writeable
    if isinstance(found.output, LabelMap) and isinstance(expected.output, LabelMap):
        np.testing.assert_array_equal(found.output.data, expected.output.data)
        assert found.output.names == expected.output.names
        assert found.output.colors == expected.output.colors
    else:  # another number of threads adds in another order
        np.testing.assert_allclose(found.output.data, expected.output.data, atol=1e-6)


def test_the_other_process_yields_the_same_events_voxel_for_voxel(engine: RemoteEngine, volume: Volume) -> None:
    events = list(engine.segment(volume, MODEL, EXACT))
    expected = list(segment(volume, load_model(MODEL, device="cpu"), EXACT))
    assert len(ours(events)) == len(expected)
    for found, wanted in zip(ours(events), expected, strict=True):
        same(found, wanted)
    assert [e for e in events if e not in ours(events)] == [Progress(s, n, 1) for s in OURS for n in (0, 1)]
    assert Warned("a remark", FROM_THE_FILE) in events
    assert next(e for e in events if isinstance(e, StageResult) and e.stage == "labels").output.data.any()


def test_the_process_stays_and_serves_again(engine: RemoteEngine, volume: Volume) -> None:
    first = results(engine, volume)
    pid = engine.pid
    second = results(engine, volume, find_card(MODEL))
    assert engine.pid == pid is not None
    np.testing.assert_array_equal(first["labels"].output.data, second["labels"].output.data)
    assert list(results(engine, volume, options=SegmentOptions(until="consensus"))) == ["consensus", "labels"]


def results(
    engine: RemoteEngine, volume: Volume, model: Any = MODEL, options: SegmentOptions = EXACT
) -> dict[str, Any]:
    return {e.stage: e for e in engine.segment(volume, model, options) if isinstance(e, StageResult)}


def test_a_card_is_found_by_its_path(engine: RemoteEngine, volume: Volume) -> None:
    assert "labels" in results(engine, volume, ROOT / "resources" / "models" / f"{MODEL}.toml")


@pytest.mark.parametrize(
    ("channels", "model", "options", "kind"),
    [
        (2, MODEL, EXACT, GeometryMismatch),
        (1, MODEL, SegmentOptions(until="nowhere"), InvalidRecipe),
        (1, "no-such-model", EXACT, UnknownModel),
    ],
)
def test_errors_come_back_as_they_are(
    engine: RemoteEngine, volume: Volume, channels: int, model: str, options: SegmentOptions, kind: type[FmsegError]
) -> None:
    asked = Volume(np.stack([volume.data] * channels), volume.geometry) if channels > 1 else volume
    with pytest.raises(FmsegError) as here:
        list(segment(asked, load_model(model, device="cpu"), options))
    with pytest.raises(FmsegError) as there:
        list(engine.segment(asked, model, options))
    assert type(there.value) is type(here.value) is kind
    assert str(there.value) == str(here.value)
    assert there.value.exit_code == here.value.exit_code
    assert "labels" in results(engine, volume)


def test_what_cannot_be_sent_is_refused_and_harms_nothing(engine: RemoteEngine, volume: Volume) -> None:
    results(engine, volume)
    pid = engine.pid
    odd = Volume(np.full((2, 2, 2), None), Geometry.from_spacing((2, 2, 2)))
    with pytest.raises(FmsegError, match="object"):
        list(engine.segment(odd, MODEL, EXACT))
    assert "labels" in results(engine, volume)
    assert engine.pid == pid


@pytest.mark.parametrize("stage", ["starting engine", "loading model", "consensus", "attention", "edge"])
def test_cancel_ends_a_run_at_once_and_the_next_run_works(
    volume: Volume, stage: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with RemoteEngine() as engine:
        if stage != "starting engine":
            results(engine, volume)  # warm
        asked = threading.Event()
        clicked: list[float] = []

        def click() -> None:
            asked.wait(30)
            clicked.append(time.monotonic())
            engine.cancel()
            clicked.append(time.monotonic())

        thread = threading.Thread(target=click)
        thread.start()
        with pytest.raises(Cancelled):  # noqa: PT012 - the iterator is what raises
            for event in engine.segment(volume, MODEL, EXACT):
                if isinstance(event, Progress) and event.stage == stage:
                    asked.set()
        ended = time.monotonic()
        thread.join()
        with capsys.disabled():
            sys.stdout.write(
                f"\ncancel during {stage}: over after {1000 * (ended - clicked[0]):.0f} ms (500 at most)\n"
            )
        assert clicked[1] - clicked[0] < 1  # it does not wait for the end
        assert ended - clicked[0] < 5  # what is printed is the figure; this holds on any machine
        assert "labels" in results(engine, volume)


def test_a_run_that_is_cancelled_between_two_events_leaves_the_process_warm(
    engine: RemoteEngine, volume: Volume
) -> None:
    results(engine, volume)
    pid = engine.pid
    with pytest.raises(Cancelled):  # noqa: PT012
        for event in engine.segment(volume, MODEL, EXACT):
            if event == Progress("loading model", 0, 1):
                engine.cancel()
    assert "labels" in results(engine, volume)
    if engine.pid != pid:
        pytest.skip("this machine was too slow to stop softly within 0.3 s")


def test_cancel_without_a_run_does_nothing(engine: RemoteEngine, volume: Volume) -> None:
    engine.cancel()
    assert "labels" in results(engine, volume)


def test_closing_the_iterator_stops_the_run(engine: RemoteEngine, volume: Volume) -> None:
    events = engine.segment(volume, MODEL, EXACT)
    next(e for e in events if isinstance(e, StageResult))
    start = time.monotonic()
    events.close()  # type: ignore[attr-defined]
    assert time.monotonic() - start < 5
    assert "labels" in results(engine, volume)


def test_only_one_volume_at_a_time(engine: RemoteEngine, volume: Volume, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("napari_fmseg.workers.engine._TURN_S", 0.05)
    events = engine.segment(volume, MODEL, EXACT)
    next(iter(events))
    with pytest.raises(FmsegError, match="busy"):
        next(iter(engine.segment(volume, MODEL, EXACT)))
    events.close()  # type: ignore[attr-defined]


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="there is no kill -9 here")
def test_a_process_that_is_killed_gives_a_clear_error_and_the_next_run_works(volume: Volume) -> None:
    with RemoteEngine() as engine:
        with pytest.raises(DeviceMemory, match=r"memory.*close other programs.*starts anew"):  # noqa: PT012
            for event in engine.segment(volume, MODEL, EXACT):
                if isinstance(event, StageResult):
                    assert engine.pid is not None
                    os.kill(engine.pid, signal.SIGKILL)
        assert "labels" in results(engine, volume)


def child(code: str) -> list[str]:
    """Words that run the engine's process with a fault of ours in it."""
    return [sys.executable, "-c", f"{code}\nfrom napari_fmseg.workers.engine_child import main\nmain()"]


def test_a_process_that_ends_by_itself_leaves_its_last_words(volume: Volume) -> None:
    code = "import sys\nsys.stderr.write('the fan has stopped\\n')\nsys.exit(3)"
    with RemoteEngine(child(code)) as engine, pytest.raises(FmsegError, match=r"exit code 3(?s:.*)fan has stopped"):
        list(engine.segment(volume, MODEL, EXACT))


def test_a_process_that_cannot_be_started_says_so(volume: Volume) -> None:
    with pytest.raises(FmsegError, match="could not be started"):
        list(RemoteEngine(["/no/such/python"]).segment(volume, MODEL, EXACT))


def test_an_unexpected_error_over_there_is_told_with_its_trace(volume: Volume) -> None:
    code = """
import napari_fmseg.pipelines.phased as phased
def run(*_): raise KeyError("a defect")
phased.run = run
"""
    with RemoteEngine(child(code)) as engine:
        for _ in range(2):  # it survives them
            with pytest.raises(FmsegError, match=r"KeyError.*a defect") as told:
                list(engine.segment(volume, MODEL, EXACT))
            assert "in run" in str(told.value.__cause__)


def test_what_libraries_print_does_not_disturb(volume: Volume) -> None:
    code = """
import os, sys
import napari_fmseg.pipelines.phased as phased
run = phased.run
def loud(*args):
    print("hello"); os.write(1, b"hello from C"); sys.stdin.read()
    yield from run(*args)
phased.run = loud
"""
    with RemoteEngine(child(code)) as engine:
        assert "labels" in results(engine, volume)


FULL_DEVICE = """
import dataclasses, torch
import napari_fmseg.models.weights as models
import napari_fmseg.pipelines.slab_reader as reading
import napari_fmseg.pipelines.executor as running
load, prepare, bring = models.load_model, running.prepare, reading.to_tensor
def load_model(card, device):  # a device that every machine has stands for a graphics card
    return dataclasses.replace(load(card, device="cpu"), device=torch.device("meta"))
def full(net, *, device, **options):
    if device.type != "cpu":
        raise torch.OutOfMemoryError("Tried to allocate 9 GiB")
    return prepare(net, device=device, **options)
def to_cpu(data, device="cpu"):
    if torch.device(device).type != "cpu":
        raise torch.OutOfMemoryError("Tried to allocate 1 GiB")
    return bring(data, device)
models.load_model, running.prepare, reading.to_tensor = load_model, full, to_cpu
"""


def test_without_memory_on_the_device_it_goes_on_and_says_so_and_the_result_is_the_same(
    engine: RemoteEngine, volume: Volume
) -> None:
    with RemoteEngine(child(FULL_DEVICE)) as full:
        events = list(full.segment(volume, MODEL, EXACT))
    assert any(isinstance(e, Warned) and "memory of meta" in e.text and "CPU" in e.text for e in events)
    expected = results(engine, volume)
    found = {e.stage: e for e in events if isinstance(e, StageResult)}
    assert list(found) == list(expected)
    for stage, result in found.items():
        same(result, expected[stage])


def test_without_any_memory_the_error_says_what_to_do(volume: Volume) -> None:
    code = """
import napari_fmseg.pipelines.slab_reader as reading
def zoom(*_): raise MemoryError
reading.zoom = zoom
"""
    with RemoteEngine(child(code)) as engine, pytest.raises(DeviceMemory, match="crop the volume"):
        list(engine.segment(volume, MODEL, EXACT))


def test_the_process_ends_when_it_was_idle_and_comes_back_when_needed(volume: Volume) -> None:
    with RemoteEngine(idle_minutes=0.2 / 60) as engine:
        results(engine, volume)
        gone(engine.pid or 0)
        assert "labels" in results(engine, volume)


def gone(pid: int, seconds: float = 10.0) -> None:
    until = time.monotonic() + seconds
    while psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE:
        assert time.monotonic() < until, "the engine is still there"
        time.sleep(0.02)


@pytest.mark.parametrize("busy", [False, True])
def test_the_process_ends_with_its_parent(busy: bool) -> None:
    code = f"""
import os, sys, time
from napari_fmseg.datasets.phantom import phantom_ct
from napari_fmseg.workers.engine import RemoteEngine
engine = RemoteEngine()
for event in engine.segment(phantom_ct(7)[0], {MODEL!r}):
    if {busy} and event.__class__.__name__ == "StageResult":
        break
print(engine.pid, flush=True)
time.sleep(60)
"""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    parent = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, env=environment)
    assert parent.stdout is not None
    with parent:
        pid = int(parent.stdout.readline())
        parent.kill()
    gone(pid)


def test_close_ends_the_process_and_the_engine_can_be_used_again(volume: Volume) -> None:
    engine = RemoteEngine()
    engine.start()
    pid = engine.pid
    assert pid is not None
    engine.close()
    engine.close()
    assert engine.pid is None
    assert not psutil.pid_exists(pid)
    assert "labels" in results(engine, volume)
    engine.close()


def test_close_in_the_middle_of_a_run_ends_it(volume: Volume) -> None:
    engine = RemoteEngine()
    with pytest.raises(Cancelled):  # noqa: PT012
        for event in engine.segment(volume, MODEL, EXACT):
            if isinstance(event, StageResult):
                threading.Timer(0.05, engine.close).start()
    assert engine.pid is None


def test_asking_for_the_engine_loads_neither_torch_nor_qt() -> None:
    code = (
        "import sys, napari_fmseg.workers.engine; print([m for m in ('torch', 'qtpy', 'napari') if m in sys.modules])"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=True)
    assert said.stdout.strip() == "[]"


# --- the wire ---------------------------------------------------------------------------------------------------


@pytest.fixture
def wires() -> Iterator[tuple[MessageChannel, MessageChannel]]:
    (r1, w1), (r2, w2) = os.pipe(), os.pipe()
    here = MessageChannel(os.fdopen(r1, "rb", 0), os.fdopen(w2, "wb", 0))
    there = MessageChannel(os.fdopen(r2, "rb", 0), os.fdopen(w1, "wb", 0))
    yield here, there
    here.close()
    there.close()


def carried(wires: tuple[MessageChannel, MessageChannel], value: Any) -> Any:
    here, there = wires
    sender = threading.Thread(target=lambda: here.send("a", value=value))
    sender.start()
    kind, fields = there.receive()
    sender.join()
    assert kind == "a"
    return fields["value"]


@pytest.mark.parametrize("dtype", ["bool", "int8", "<u2", ">i2", "float16", ">f4", "float64", "complex64"])
@pytest.mark.parametrize("order", ["C", "F", "reversed", "strided", "empty", "scalar"])
def test_arrays_arrive_as_they_were(wires: tuple[MessageChannel, MessageChannel], dtype: str, order: str) -> None:
    array = np.random.default_rng(0).integers(0, 100, (5, 6, 7)).astype(dtype)
    views = {
        "C": array,
        "F": np.asfortranarray(array),
        "reversed": array[::-1, :, ::-1],
        "strided": array[1::2, ::3],
        "empty": array[:0],
        "scalar": array[0, 0, 0, ...],
    }
    found = carried(wires, views[order])
    assert found.dtype == views[order].dtype
    np.testing.assert_array_equal(found, views[order])
    assert found.shape == views[order].shape


def test_a_large_array_in_no_simple_order_arrives_whole(wires: tuple[MessageChannel, MessageChannel]) -> None:
    array = np.arange(3_000_000, dtype=np.int32).reshape(100, 150, 200).transpose(2, 0, 1)[::-1]
    np.testing.assert_array_equal(carried(wires, array), array)


def test_a_read_only_array_can_be_sent(wires: tuple[MessageChannel, MessageChannel]) -> None:
    array = np.arange(6.0)
    array.setflags(write=False)
    np.testing.assert_array_equal(carried(wires, array), array)


@pytest.mark.parametrize(
    "value",
    [
        {1: "liver", "~": (1, 2), "a": [None, True, {"b": ()}]},
        {"x": float("inf"), "y": 0.1 + 0.2, "z": -0.0},
        {"path": Path("a") / "b", "text": "Ärzte ☤"},
        (np.float32(0.1), np.int16(3)),
        Progress("a", 1, 2),
        SegmentOptions(until="edge", min_component_ml=0.1),
    ],
)
def test_plain_values_arrive_as_they_were(wires: tuple[MessageChannel, MessageChannel], value: Any) -> None:
    found = carried(wires, value)
    assert found == value
    assert repr(found) == repr(value)


def test_a_card_arrives_whole_with_its_folder(wires: tuple[MessageChannel, MessageChannel]) -> None:
    card = find_card(MODEL)
    half = HalfPrecision(dict.fromkeys(card.labels.values(), 1.0), 3, card.sha256)
    card = dataclasses.replace(card, half_precision=half)
    found = carried(wires, card)
    assert found == card
    assert card.training_data is not None
    assert found.folder == card.folder


def test_noise_is_no_message(wires: tuple[MessageChannel, MessageChannel]) -> None:
    here, there = wires
    here._writing.write(b"Traceback (most recent call last):")
    with pytest.raises(ChannelClosed, match="no message"):
        there.receive()


def test_half_a_message_is_a_broken_link(wires: tuple[MessageChannel, MessageChannel]) -> None:
    here, there = wires
    here._writing.write(b"fmsegA1\n\x20\0\0\0{")
    here.close()
    with pytest.raises(ChannelClosed, match="gone"):
        there.receive()


def test_a_file_is_segmented_in_the_other_process_and_only_its_path_comes_back(
    engine: RemoteEngine, volume: Volume, tmp_path: Path
) -> None:
    image = write_volume(volume, tmp_path / "scan.nii.gz")
    [job] = plan_jobs([image], tmp_path / "out")
    events = list(engine.segment_file(job, MODEL, EXACT))
    assert {type(event) for event in events} <= {Progress, Warned, Saved}
    assert events[-1] == Saved(tmp_path / "out" / "scan_seg.nii.gz", best=True)
    expected = drain(segment(read_volume(image), load_model(MODEL, device="cpu"), EXACT))
    found = read_labels(tmp_path / "out" / "scan_seg.nii.gz")
    assert found.geometry.matches(read_volume(image).geometry)
    np.testing.assert_array_equal(found.data, expected.data)
    assert (tmp_path / "out" / "scan_seg.nii.gz.json").exists()


def test_a_file_that_cannot_be_read_fails_in_a_sentence_and_the_next_one_runs(
    engine: RemoteEngine, tmp_path: Path
) -> None:
    (tmp_path / "scan.nii.gz").write_bytes(b"no volume")
    [job] = plan_jobs([tmp_path / "scan.nii.gz"], tmp_path / "out")
    with pytest.raises(UnreadableVolume, match=r"scan\.nii\.gz"):
        list(engine.segment_file(job, MODEL, EXACT))
    assert engine.pid is not None
