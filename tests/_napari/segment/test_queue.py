"""The queue of the Segment dock: several scans, one after the other, in a list that outlives the window."""

from __future__ import annotations

import json
import subprocess
import sys
import textwrap
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("napari")
from qtpy.QtCore import QPoint, Qt
from qtpy.QtWidgets import QFileDialog

from napari_fmseg._napari.segment.dock import SegmentDock
from napari_fmseg._napari.segment.queue_run import Wish, plan_scans
from napari_fmseg._napari.segment.queue_store import QueuedScan, QueueFile
from napari_fmseg.core.errors import UnreadableVolume
from napari_fmseg.core.events import Progress, Saved
from napari_fmseg.core.volume import Geometry, LabelMap, Volume
from napari_fmseg.io import read_labels, read_volume, write_labels, write_volume
from napari_fmseg.models.registry import find_card
from napari_fmseg.pipelines import SegmentOptions
from napari_fmseg.pipelines.batch import SegmentationJob

MODEL = "fmsf-phantom-ct"
PATIENCE_MS = 20_000
TURN = np.linalg.qr(np.eye(3) + 0.1 * np.random.default_rng(3).standard_normal((3, 3)))[0]


class FileEngine:
    """An engine in this process: half of a volume is liver; a file called "broken" cannot be read; "slow" waits."""

    def __init__(self) -> None:
        self.go, self.seen = threading.Event(), threading.Event()
        self.cancelled = False
        self.images: list[str] = []

    def segment_file(self, job: SegmentationJob, model_name: str, options: SegmentOptions) -> Iterator[Any]:
        self.cancelled = False
        self.images.append(job.image.name)
        yield Progress("consensus", 1, 2)
        if "broken" in job.image.name:
            raise UnreadableVolume(f"{job.image.name} is cut short. Copy it again from where it came from.")
        self.seen.set()
        while "slow" in job.image.name and not self.go.wait(0.01):
            if self.cancelled:
                return
        volume = read_volume(job.image)
        data = np.zeros(volume.geometry.shape, np.uint8)
        data[: len(data) // 2] = 1
        write_labels(LabelMap(data, volume.geometry, {}, find_card(model_name).labels), job.result, source=volume)
        yield Saved(job.result, best=True)

    def cancel(self) -> None:
        self.cancelled = True

    def close(self) -> None:
        self.cancelled = True
        self.go.set()


@pytest.fixture
def scan(tmp_path: Path) -> Callable[..., Path]:
    """Return a function that writes a small CT, oblique and anisotropic."""

    def write(name: str, folder: str = "scans") -> Path:
        path = tmp_path / folder / f"{name}.nii.gz"
        path.parent.mkdir(exist_ok=True)
        data = np.random.default_rng(len(name)).integers(-900, 800, (6, 8, 10)).astype(np.int16)
        write_volume(Volume(data, Geometry.from_spacing(data.shape, (5.0, 2.0, 1.5), (7, -30, 11), TURN)), path)
        return path

    return write


@pytest.fixture
def make_dock(make_napari_viewer: Any) -> Iterator[Callable[..., SegmentDock]]:
    docks: list[SegmentDock] = []

    def made(engine: Any, **options: Any) -> SegmentDock:
        viewer = make_napari_viewer(show=True, **options)
        dock = SegmentDock(viewer, engine)
        viewer.window.add_dock_widget(dock, name="fmseg: Segment")
        viewer.window._qt_window.resize(1280, 800)
        dock.model.choose(MODEL)
        dock.queue_section.button.setChecked(True)
        docks.append(dock)
        return dock

    yield made
    for dock in docks:
        dock.close_down()
    docks.clear()


def press(qtbot: Any, button: Any) -> None:
    assert button.isEnabled(), button.toolTip()
    qtbot.mouseClick(button, Qt.MouseButton.LeftButton)


def click(qtbot: Any, dock: SegmentDock, row: int, column: int = 0) -> None:
    table = dock.queue.table
    where = table.visualItemRect(table.item(row, column)).center()
    qtbot.mouseClick(table.viewport(), Qt.MouseButton.LeftButton, pos=QPoint(where.x(), where.y()))


def choose_files(monkeypatch: pytest.MonkeyPatch, files: list[Path], results: Path) -> None:
    monkeypatch.setattr(QFileDialog, "getOpenFileNames", lambda *_a, **_k: ([str(p) for p in files], ""))
    monkeypatch.setattr(QFileDialog, "getExistingDirectory", lambda *_a, **_k: str(results))


def states(dock: SegmentDock) -> list[str]:
    return [scan.state for scan in dock.queue.queue.scans]


def wait(qtbot: Any, dock: SegmentDock) -> None:
    qtbot.waitUntil(lambda: not dock.queue.queue.active and not dock.queue.queue.running, timeout=PATIENCE_MS)


def fill(qtbot: Any, dock: SegmentDock, monkeypatch: pytest.MonkeyPatch, files: list[Path], results: Path) -> None:
    choose_files(monkeypatch, files, results)
    n = len(states(dock))
    press(qtbot, dock.queue.files_button)
    qtbot.waitUntil(lambda: len(states(dock)) == n + len(files), timeout=PATIENCE_MS)


def test_scans_of_a_queue_are_segmented_in_order_and_a_failure_does_not_stop_it(
    make_dock: Any, qtbot: Any, monkeypatch: pytest.MonkeyPatch, scan: Callable[..., Path], tmp_path: Path
) -> None:
    dock, results = make_dock(engine := FileEngine()), tmp_path / "results"
    results.mkdir()
    fill(qtbot, dock, monkeypatch, [scan("a"), scan("broken"), scan("c")], results)
    assert states(dock) == ["waiting"] * 3
    press(qtbot, dock.queue.start_button)
    wait(qtbot, dock)
    assert states(dock) == ["done", "failed", "done"]
    assert engine.images == ["a.nii.gz", "broken.nii.gz", "c.nii.gz"]
    click(qtbot, dock, 1)
    assert dock.queue.note.isVisible()
    assert "is cut short" in dock.queue.note.text()
    for name in ("a", "c"):
        found, image = read_labels(results / f"{name}_seg.nii.gz"), read_volume(tmp_path / "scans" / f"{name}.nii.gz")
        assert found.geometry.matches(image.geometry)


def test_a_click_on_a_finished_scan_opens_it_with_its_result_once(
    make_dock: Any, qtbot: Any, monkeypatch: pytest.MonkeyPatch, scan: Callable[..., Path], tmp_path: Path
) -> None:
    dock = make_dock(FileEngine())
    fill(qtbot, dock, monkeypatch, [scan("a")], tmp_path)
    press(qtbot, dock.queue.start_button)
    wait(qtbot, dock)
    click(qtbot, dock, 0)
    qtbot.waitUntil(lambda: len(dock.viewer.layers) == 2 and dock.queue._opening is None, timeout=PATIENCE_MS)
    image, labels = dock.viewer.layers
    assert (image._type_string, labels._type_string) == ("image", "labels")
    np.testing.assert_allclose(labels.data_to_world((1, 2, 3)), image.data_to_world((1, 2, 3)), atol=1e-3)
    assert dock.viewer.layers.selection.active is labels
    click(qtbot, dock, 0, 2)
    qtbot.wait(50)
    assert len(dock.viewer.layers) == 2


def test_scans_are_moved_removed_cancelled_and_tried_again_by_buttons(
    make_dock: Any, qtbot: Any, monkeypatch: pytest.MonkeyPatch, scan: Callable[..., Path], tmp_path: Path
) -> None:
    dock = make_dock(engine := FileEngine())
    panel = dock.queue
    fill(qtbot, dock, monkeypatch, [scan("a"), scan("b"), scan("slow"), scan("d")], tmp_path)
    click(qtbot, dock, 2)
    press(qtbot, panel.up_button)
    press(qtbot, panel.up_button)
    assert panel.chosen == 0
    assert not panel.up_button.isEnabled()
    click(qtbot, dock, 1)
    press(qtbot, panel.remove_button)
    assert [s.name for s in panel.queue.scans] == ["slow.nii.gz", "b.nii.gz", "d.nii.gz"]
    press(qtbot, panel.start_button)
    qtbot.waitUntil(engine.seen.is_set, timeout=PATIENCE_MS)
    qtbot.waitUntil(lambda: "consensus 50 %" in panel.table.item(0, 2).text(), timeout=PATIENCE_MS)
    assert not dock.bar.run_button.isEnabled()
    click(qtbot, dock, 0)
    press(qtbot, panel.cancel_button)
    wait(qtbot, dock)
    assert states(dock) == ["cancelled", "done", "done"]
    engine.go.set()
    press(qtbot, panel.retry_button)
    press(qtbot, panel.start_button)
    wait(qtbot, dock)
    assert states(dock) == ["done"] * 3


def test_cancel_all_ends_the_run_and_everything_that_waits(
    make_dock: Any, qtbot: Any, monkeypatch: pytest.MonkeyPatch, scan: Callable[..., Path], tmp_path: Path
) -> None:
    dock = make_dock(engine := FileEngine())
    fill(qtbot, dock, monkeypatch, [scan("slow"), scan("b")], tmp_path)
    press(qtbot, dock.queue.start_button)
    qtbot.waitUntil(engine.seen.is_set, timeout=PATIENCE_MS)
    press(qtbot, dock.queue.cancel_all_button)
    wait(qtbot, dock)
    qtbot.waitUntil(lambda: states(dock) == ["cancelled"] * 2, timeout=PATIENCE_MS)
    assert not [*tmp_path.glob("*_seg*")]


def test_a_paused_queue_ends_the_scan_that_runs_and_goes_on_later(
    make_dock: Any, qtbot: Any, monkeypatch: pytest.MonkeyPatch, scan: Callable[..., Path], tmp_path: Path
) -> None:
    dock = make_dock(engine := FileEngine())
    fill(qtbot, dock, monkeypatch, [scan("slow"), scan("b")], tmp_path)
    press(qtbot, dock.queue.start_button)
    qtbot.waitUntil(engine.seen.is_set, timeout=PATIENCE_MS)
    press(qtbot, dock.queue.start_button)  # it is called Pause now
    engine.go.set()
    wait(qtbot, dock)
    assert states(dock) == ["done", "waiting"]
    press(qtbot, dock.queue.start_button)
    wait(qtbot, dock)
    assert states(dock) == ["done"] * 2


def test_open_images_are_queued_by_their_files_and_one_without_a_file_is_refused(
    make_dock: Any,
    qtbot: Any,
    monkeypatch: pytest.MonkeyPatch,
    scan: Callable[..., Path],
    open_paths: Any,
    tmp_path: Path,
) -> None:
    dock, path = make_dock(FileEngine()), scan("a")
    open_paths(dock.viewer, [str(path)])
    dock.viewer.add_image(np.zeros((4, 5, 6), np.int16), name="computed")
    dock.model.choose(MODEL)
    choose_files(monkeypatch, [], tmp_path)
    press(qtbot, dock.queue.images_button)
    qtbot.waitUntil(lambda: len(states(dock)) == 1, timeout=PATIENCE_MS)
    assert dock.queue.queue.scans[0].job.image == path
    assert "“computed” cannot be queued" in dock.error.text.text()


def test_what_is_dropped_on_the_queue_is_added_and_no_file_is_ever_replaced(
    make_dock: Any, qtbot: Any, scan: Callable[..., Path], drop: Callable[[Any, Path], None], tmp_path: Path
) -> None:
    dock, path = make_dock(FileEngine()), scan("a")
    (tmp_path / "a_seg.nii.gz").write_bytes(b"mine")
    dock.queue.queue.results = tmp_path
    drop(dock.queue, path.parent)
    qtbot.waitUntil(lambda: len(states(dock)) == 1, timeout=PATIENCE_MS)
    drop(dock.queue, path)
    qtbot.waitUntil(lambda: len(states(dock)) == 2, timeout=PATIENCE_MS)
    assert [s.job.result.name for s in dock.queue.queue.scans] == ["a-2_seg.nii.gz", "a-3_seg.nii.gz"]


def test_a_new_window_offers_what_a_closed_one_left(
    make_dock: Any, qtbot: Any, monkeypatch: pytest.MonkeyPatch, scan: Callable[..., Path], tmp_path: Path
) -> None:
    dock = make_dock(engine := FileEngine())
    fill(qtbot, dock, monkeypatch, [scan("a"), scan("broken"), scan("slow"), scan("d")], tmp_path)
    press(qtbot, dock.queue.start_button)
    qtbot.waitUntil(engine.seen.is_set, timeout=PATIENCE_MS)
    qtbot.waitUntil(lambda: states(dock) == ["done", "failed", "running", "waiting"], timeout=PATIENCE_MS)
    dock.close_down()
    other = make_dock(FileEngine())
    assert states(other) == ["done", "failed", "waiting", "waiting"]
    assert "2 scans were not finished" in other.queue.note.text()
    assert other.queue.queue.results == tmp_path
    click(qtbot, other, 1)
    assert "earlier session" in other.queue.note.text()
    other.queue.queue._engine().go.set()
    press(qtbot, other.queue.start_button)
    wait(qtbot, other)
    assert states(other) == ["done", "failed", "done", "done"]


def test_the_queue_waits_until_a_run_of_the_dock_is_over(
    make_dock: Any, qtbot: Any, monkeypatch: pytest.MonkeyPatch, scan: Callable[..., Path], tmp_path: Path
) -> None:
    dock = make_dock(FileEngine())
    fill(qtbot, dock, monkeypatch, [scan("a")], tmp_path)
    dock.session._job = object()  # a run of the dock is under way
    press(qtbot, dock.queue.start_button)
    qtbot.wait(50)
    assert states(dock) == ["waiting"]
    dock.session._job = None
    dock._on_finished(True)
    wait(qtbot, dock)
    assert states(dock) == ["done"]


# --- the file of the queue ---


def test_the_file_of_a_window_is_its_own_until_it_ends(tmp_path: Path) -> None:
    job = SegmentationJob(tmp_path / "a.nii.gz", tmp_path / "a_seg.nii.gz", (tmp_path / "b.nii.gz",))
    first, second = QueueFile(tmp_path / "queue"), QueueFile(tmp_path / "queue")
    first.write([QueuedScan(job, MODEL, SegmentOptions(device="cpu", overlap=0.25), "running")], tmp_path)
    assert second.adopt() == ([], None)
    first.release()
    [scan], results = second.adopt()
    assert (scan.job, scan.model, scan.state, results) == (job, MODEL, "waiting", tmp_path)
    assert scan.options == SegmentOptions(device="cpu", overlap=0.25)
    assert second.adopt() == ([], None)
    assert not [*(tmp_path / "queue").iterdir()]


def test_a_killed_window_leaves_its_queue_to_the_next(tmp_path: Path) -> None:
    program = textwrap.dedent(
        """
        import os, signal, sys
        from pathlib import Path
        from napari_fmseg._napari.segment.queue_store import QueuedScan, QueueFile
        from napari_fmseg.pipelines.batch import SegmentationJob
        scans = [QueuedScan(SegmentationJob(Path(n), Path(n + "_seg.nii.gz")), "m", state=s)
                 for n, s in (("a", "done"), ("b", "running"), ("c", "waiting"))]
        file = QueueFile(Path(sys.argv[1]))
        file.write(scans, Path("results"))
        os.kill(os.getpid(), signal.SIGKILL if hasattr(signal, "SIGKILL") else signal.SIGTERM)
        """
    )
    subprocess.run([sys.executable, "-c", program, str(tmp_path / "queue")], check=False, timeout=120)
    scans, results = QueueFile(tmp_path / "queue").adopt()
    assert [(s.job.image.name, s.state) for s in scans] == [("a", "done"), ("b", "waiting"), ("c", "waiting")]
    assert results == Path("results")


def test_the_file_holds_paths_and_options_but_no_text_of_an_error(tmp_path: Path) -> None:
    job = SegmentationJob(tmp_path / "a.nii.gz", tmp_path / "a_seg.nii.gz")
    file = QueueFile(tmp_path / "queue")
    file.write([QueuedScan(job, MODEL, state="failed", reason="The series of Mr Smith is cut short.")], None)
    [path] = (tmp_path / "queue").glob("*.json")
    assert "Smith" not in path.read_text()
    assert set(json.loads(path.read_text())["scans"][0]) == {"image", "others", "result", "model", "options", "state"}
    file.release()


@pytest.mark.parametrize(
    "text", ["", "{", "[]", '{"scans": 3, "results": ""}', '{"scans": [1, {"image": "a"}, null], "results": 5}']
)
def test_a_damaged_file_is_no_queue_and_no_error(tmp_path: Path, text: str) -> None:
    (tmp_path / "x.json").write_text(text)
    assert QueueFile(tmp_path).adopt() == ([], None)


def write_dicom(folder: Path, series: str) -> None:
    pydicom = pytest.importorskip("pydicom")
    from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian

    for i in range(3):
        meta = pydicom.dataset.FileMetaDataset()
        meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = CTImageStorage, f"{series}.{i + 1}"
        meta.TransferSyntaxUID = ExplicitVRLittleEndian
        one = pydicom.Dataset()
        one.file_meta = meta
        one.SOPClassUID, one.SOPInstanceUID = CTImageStorage, f"{series}.{i + 1}"
        one.SeriesInstanceUID, one.Modality = series, "CT"
        one.Rows, one.Columns, one.PixelSpacing = 4, 5, [0.5, 0.75]
        one.ImageOrientationPatient, one.ImagePositionPatient = [1, 0, 0, 0, 1, 0], [0, 0, 2.0 * i]
        one.SamplesPerPixel, one.PhotometricInterpretation = 1, "MONOCHROME2"
        one.BitsAllocated, one.BitsStored, one.HighBit, one.PixelRepresentation = 16, 12, 11, 0
        one.RescaleSlope, one.RescaleIntercept = 1, -1024
        one.PixelData = np.full((4, 5), i, "<u2").tobytes()
        one.save_as(folder / f"{series}-{i}", enforce_file_format=True)


def test_an_open_series_of_a_folder_of_several_is_queued_by_one_of_its_files(tmp_path: Path) -> None:
    (tmp_path / "ct").mkdir()
    for series in ("1.2.3", "1.2.4"):
        write_dicom(tmp_path / "ct", series)
    [[scan]] = plan_scans([Wish(tmp_path / "ct", "1.2.4")], tmp_path, MODEL, 1, SegmentOptions(), frozenset())
    assert scan.job.image.name.startswith("1.2.4-")
    assert read_volume(scan.job.image).meta["series_uid"] == "1.2.4"


@pytest.mark.parametrize("other", ["disc/0", "disc", "elsewhere"])
def test_an_open_series_that_is_cut_into_folders_is_queued_whole_or_not_at_all(tmp_path: Path, other: str) -> None:
    for name in ("disc/0", "disc/1", "elsewhere"):
        (tmp_path / name).mkdir(parents=True)
    write_dicom(tmp_path / other, "1.2.3")
    write_dicom(tmp_path / "disc" / "0", "1.2.4")
    (tmp_path / "disc" / "0" / "1.2.4-2").rename(tmp_path / "disc" / "1" / "1.2.4-2")
    planned = plan_scans([Wish(tmp_path, "1.2.4")], tmp_path, MODEL, 1, SegmentOptions(), frozenset())
    if other == "elsewhere":
        [[scan]] = planned
        assert read_volume(scan.job.image).data.shape == (3, 4, 5)
    else:
        with pytest.raises(UnreadableVolume, match=r"disc .* several folders .* folder of its own"):
            list(planned)
