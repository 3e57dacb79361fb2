"""The module for 3D Slicer, against a stub of the few calls of `slicer` and `qt` that it makes."""

from __future__ import annotations

import ast
import importlib.util
import json
import os
import subprocess
import sys
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, ClassVar

import pytest

FOLDER = Path(__file__).parents[2] / "slicer" / "FmsegSegment"
MODULE = FOLDER / "FmsegSegment.py"


class Signals:
    """An object whose signals are connected by their signature, as PythonQt does."""

    def __init__(self, *_: Any) -> None:
        self.slots: dict[str, Callable[..., None]] = {}

    def connect(self, signature: str, slot: Callable[..., None]) -> None:
        self.slots[signature] = slot

    def emit(self, signature: str, *values: Any) -> None:
        self.slots[signature](*values)


class Bytes:
    """A QByteArray."""

    def __init__(self, content: bytes) -> None:
        self._content = content

    def data(self) -> bytes:
        return self._content


class Process(Signals):
    """A QProcess whose program runs when the test says so."""

    NotRunning, NormalExit, CrashExit = 0, 0, 1
    made: ClassVar[list[Process]] = []

    def __init__(self) -> None:
        super().__init__()
        self.environment: list[str] = []
        self.command: list[str] = []
        self.running = self.deleted = False
        self._out = self._err = b""
        Process.made.append(self)

    def setEnvironment(self, environment: list[str]) -> None:
        self.environment = environment

    def start(self, program: str, words: list[str]) -> None:
        self.command, self.running = [program, *words], True

    def state(self) -> int:
        return int(self.running)

    def kill(self) -> None:
        self.end(9, self.CrashExit)

    def deleteLater(self) -> None:
        self.deleted = True

    def readAllStandardOutput(self) -> Bytes:
        out, self._out = self._out, b""
        return Bytes(out)

    def readAllStandardError(self) -> Bytes:
        err, self._err = self._err, b""
        return Bytes(err)

    # what the test does

    def write(self, content: bytes) -> None:
        self._out += content
        self.emit("readyReadStandardOutput()")

    def complain(self, content: bytes) -> None:
        self._err += content
        self.emit("readyReadStandardError()")

    def end(self, code: int = 0, status: int = NormalExit) -> None:
        self.running = False
        self.emit("finished(int,QProcess::ExitStatus)", code, status)

    def fail_to_start(self) -> None:
        self.running = False
        self.emit("errorOccurred(QProcess::ProcessError)", 0)

    def run_for_real(self, **environment: str) -> None:
        """Run the program to its end and hand over what it wrote, in parts."""
        own = {**dict(line.partition("=")[::2] for line in self.environment), **environment}
        done = subprocess.run(self.command, env=own, capture_output=True, check=False)
        for start in range(0, len(done.stdout), 100):
            self.write(done.stdout[start : start + 100])
        self.complain(done.stderr)
        self.end(done.returncode)


class Widget(Signals):
    """Any widget: it keeps what is set."""

    def __init__(self, text: str = "") -> None:
        super().__init__()
        self.text = self.currentText = text
        self.items: list[str] = []
        self.enabled = True

    def setEditText(self, text: str) -> None:
        self.currentText = text

    def clear(self) -> None:
        self.items, self.currentText = [], ""

    def addItems(self, items: list[str]) -> None:
        self.items += items

    def click(self) -> None:
        assert self.enabled
        self.emit("clicked()")

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return lambda *_: None


class Node:
    """A volume or a segmentation."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.reference: Node | None = None

    def GetName(self) -> str:
        return self.name

    def SetName(self, name: str) -> None:
        self.name = name

    def SetReferenceImageGeometryParameterFromVolumeNode(self, volume: Node) -> None:
        self.reference = volume


class LogicBase:
    pass


class WidgetBase:
    def __init__(self) -> None:
        self.layout = Widget()

    def setup(self) -> None:
        pass


class ModuleBase:
    def __init__(self, parent: Any) -> None:
        self.parent = parent


class Slicer:
    """What the module uses of Slicer, and what it did with it."""

    def __init__(self) -> None:
        self.settings: dict[str, str] = {}
        self.saves = True
        self.image: bytes | Path = b"a volume"
        self.loaded: list[tuple[Path, bytes]] = []

    def save(self, _node: Node, path: str) -> bool:
        if self.saves:
            content = self.image if isinstance(self.image, bytes) else self.image.read_bytes()
            Path(path).write_bytes(content)
        return self.saves

    def load(self, path: str) -> Node:
        self.loaded.append((Path(path), Path(path).read_bytes()))
        return Node("labels")


@pytest.fixture
def slicer(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Slicer]:
    stub = Slicer()
    qt = types.ModuleType("qt")
    for name in ("QLineEdit", "QComboBox", "QPushButton", "QProgressBar", "QLabel", "QFormLayout"):
        setattr(qt, name, Widget)

    class Settings:
        value = staticmethod(stub.settings.get)
        setValue = staticmethod(stub.settings.__setitem__)

    qt.QProcess, qt.QSettings = Process, Settings  # type: ignore[attr-defined]
    package = types.ModuleType("slicer")
    package.util = types.SimpleNamespace(  # type: ignore[attr-defined]
        saveNode=stub.save, loadSegmentation=stub.load, startupEnvironment=lambda: dict(os.environ)
    )
    package.qMRMLNodeComboBox, package.mrmlScene = Widget, object()  # type: ignore[attr-defined]
    scripted = types.ModuleType("slicer.ScriptedLoadableModule")
    scripted.ScriptedLoadableModule = ModuleBase  # type: ignore[attr-defined]
    scripted.ScriptedLoadableModuleLogic = LogicBase  # type: ignore[attr-defined]
    scripted.ScriptedLoadableModuleTest = LogicBase  # type: ignore[attr-defined]
    scripted.ScriptedLoadableModuleWidget = WidgetBase  # type: ignore[attr-defined]
    for name, module in (("qt", qt), ("slicer", package), ("slicer.ScriptedLoadableModule", scripted)):
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    Process.made.clear()
    yield stub
    assert [path for path in tmp_path.iterdir() if path.name.startswith("fmseg-slicer-")] == []


@pytest.fixture
def module(slicer: Slicer) -> Any:
    spec = importlib.util.spec_from_file_location("FmsegSegment", MODULE)
    assert spec is not None
    assert spec.loader is not None
    loaded = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(loaded)
    return loaded


class Heard:
    """What the logic has told its listener."""

    def __init__(self) -> None:
        self.progress: list[tuple[float, str]] = []
        self.done: list[tuple[Any, list[str]]] = []
        self.failed: list[str] = []

    def listeners(self) -> tuple[Callable[..., None], ...]:
        return (lambda *now: self.progress.append(now), lambda *end: self.done.append(end), self.failed.append)


def event(**fields: Any) -> bytes:
    return json.dumps(fields).encode() + b"\n"


@pytest.fixture
def started(module: Any) -> tuple[Any, Heard, Process]:
    logic, heard = module.FmsegSegmentLogic(), Heard()
    logic.segment("/opt/fmseg", "liver-ct", Node("CT"), *heard.listeners())
    return logic, heard, Process.made[-1]


def test_a_volume_is_written_segmented_outside_and_its_labels_are_loaded(
    started: Any, slicer: Slicer, monkeypatch: pytest.MonkeyPatch
) -> None:
    logic, heard, process = started
    program, command, image, *words = process.command
    assert (program, command) == ("/opt/fmseg", "segment")
    assert Path(image).read_bytes() == b"a volume"
    assert words[:2] == ["--model", "liver-ct"]
    assert "--events" in words
    result = Path(words[words.index("--output") + 1])
    assert result.name.endswith(".seg.nrrd")
    process.write(event(event="Progress", stage="consensus", done=1, total=4))
    whole = event(event="StageResult", stage="labels", seconds=2.0, note="", shape=[1, 1, 1], kind="LabelMap")
    process.write(b"a library says something\n" + whole[:10])
    process.write(whole[10:])
    process.write(event(event="Warned", text="The voxels are large.", code=""))
    result.write_bytes(b"labels")
    process.write(event(event="Done", output=str(result)))
    assert logic.running
    process.end()
    assert not logic.running
    assert process.deleted
    assert heard.progress == [(0.25, "consensus"), (1.0, "labels: 2.0 s")]
    ((node, warnings),) = heard.done
    assert warnings == ["The voxels are large."]
    assert slicer.loaded == [(result, b"labels")]
    assert node.name == "CT fmseg"
    assert node.reference.name == "CT"
    assert heard.failed == []


def test_slicers_own_variables_are_not_passed_on(started: Any) -> None:
    _, _, process = started
    assert f"PATH={os.environ['PATH']}" in process.environment
    process.end()


def test_the_last_error_of_fmseg_is_shown_and_nothing_stays(started: Any) -> None:
    _, heard, process = started
    process.complain(b"Warning: odd\nfmseg: There is no model 'liver-ct'.\nChoose one of: a, b.\n")
    process.end(1)
    assert heard.failed == ["There is no model 'liver-ct'.\nChoose one of: a, b."]


@pytest.mark.parametrize(
    ("complaint", "says"), [(b"", "ended with the code 3"), (b"Traceback\nImportError: torch", "ImportError: torch")]
)
def test_an_end_without_a_message_is_told_too(started: Any, complaint: bytes, says: str) -> None:
    _, heard, process = started
    process.complain(complaint)
    process.end(3)
    assert says in heard.failed[0]


def test_a_program_that_is_not_there_is_told_once(started: Any) -> None:
    logic, heard, process = started
    process.fail_to_start()
    process.end(255)
    assert len(heard.failed) == 1
    assert "could not be started" in heard.failed[0]
    assert not logic.running


def test_cancel_ends_the_program_and_removes_the_volume(started: Any) -> None:
    logic, heard, process = started
    logic.cancel()
    assert not process.running
    assert heard.failed == ["Cancelled."]
    logic.cancel()


def test_an_end_without_a_result_is_an_error(started: Any) -> None:
    _, heard, process = started
    process.write(event(event="Progress", stage="reading", done=1, total=1))
    process.end(0)
    assert "without a result" in heard.failed[0]


def test_a_volume_that_slicer_cannot_write_starts_nothing(module: Any, slicer: Slicer) -> None:
    slicer.saves = False
    logic, heard = module.FmsegSegmentLogic(), Heard()
    logic.segment("/opt/fmseg", "m", Node("CT"), *heard.listeners())
    assert "could not write" in heard.failed[0]
    assert Process.made == []


def test_one_run_at_a_time(started: Any) -> None:
    logic, heard, process = started
    logic.segment("/opt/fmseg", "m", Node("CT"), *heard.listeners())
    logic.list_models("/opt/fmseg", print, print)
    assert Process.made == [process]
    process.end(1)


def test_the_panel_runs_shows_progress_and_lists_models(module: Any, slicer: Slicer) -> None:
    slicer.settings[module.PROGRAM_SETTING] = "/opt/fmseg"
    panel = module.FmsegSegmentWidget()
    panel.setup()
    panel.volume.currentNode = lambda: None
    panel.run_button.click()
    assert "Choose the program" in panel.text.text
    panel.models_button.click()
    Process.made[-1].write(b'[\n {"name": "a"},\n {"na')
    Process.made[-1].write(b'me": "b"}\n]\n')
    Process.made[-1].end()
    assert panel.model.items == ["a", "b"]
    assert panel.model.currentText == "a"
    panel.volume.currentNode = lambda: Node("CT")
    panel.run_button.click()
    assert not panel.run_button.enabled
    assert slicer.settings == {module.PROGRAM_SETTING: "/opt/fmseg", module.MODEL_SETTING: "a"}
    process = Process.made[-1]
    process.write(event(event="Progress", stage="edge", done=1, total=2))
    assert (panel.bar.value, panel.text.text) == (500, "edge")
    panel.cancel_button.click()
    assert panel.run_button.enabled
    assert not panel.cancel_button.enabled
    assert panel.text.text == "Cancelled."
    panel.cleanup()


@pytest.mark.parametrize("output", [b"", b"no json", b'{"a": 1}'])
def test_a_program_that_lists_no_models_is_told(module: Any, output: bytes) -> None:
    heard = Heard()
    logic = module.FmsegSegmentLogic()
    logic.list_models("/bin/true", lambda names: heard.done.append((names, [])), heard.failed.append)
    Process.made[-1].write(output)
    Process.made[-1].end()
    assert heard.failed or heard.done == [([], [])]


@pytest.mark.skipif(os.name != "posix", reason="the launcher is a shell script")
def test_the_real_command_is_followed_to_its_end(module: Any, slicer: Slicer, tmp_path: Path) -> None:
    from napari_fmseg import phantom_ct, write_volume
    from napari_fmseg.io.itk.reader import header_fields

    slicer.image = write_volume(phantom_ct(1, spacing=(12.0, 10.0, 10.0))[0], tmp_path / "ct.nrrd")
    launcher = tmp_path / "fmseg"
    launcher.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m napari_fmseg "$@"\n')
    launcher.chmod(0o700)
    logic, heard = module.FmsegSegmentLogic(), Heard()
    logic.segment(str(launcher), "fmsf-phantom-ct", Node("CT"), *heard.listeners())
    Process.made[-1].run_for_real(FMSEG_HOME=str(tmp_path / "home"))
    assert heard.failed == []
    assert len(heard.done) == 1
    assert heard.progress[-1][1].startswith("labels")
    (tmp_path / "labels.seg.nrrd").write_bytes(slicer.loaded[0][1])
    fields = header_fields(tmp_path / "labels.seg.nrrd")
    assert (fields["Segment0_ID"], fields["Segment0_Name"], fields["Segment0_LabelValue"]) == (
        "Segment_1",
        "liver",
        "1",
    )
    assert len(fields["Segment0_Color"].split()) == 3


# --- the files


def test_the_module_is_short_and_loads_nothing_but_slicer_and_pythons_own() -> None:
    text = MODULE.read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 300
    tree = ast.parse(text, feature_version=(3, 9))
    roots = {
        alias.name.split(".")[0] for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names
    }
    roots |= {(node.module or "").split(".")[0] for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert roots - set(sys.stdlib_module_names) == {"qt", "slicer", "SampleData"}


def test_cmake_builds_the_module_that_is_there() -> None:
    own, top = (path / "CMakeLists.txt" for path in (FOLDER, FOLDER.parent))
    assert f"set(MODULE_NAME {MODULE.stem})" in own.read_text(encoding="utf-8")
    assert "slicerMacroBuildScriptedModule" in own.read_text(encoding="utf-8")
    assert f"add_subdirectory({FOLDER.name})" in top.read_text(encoding="utf-8")
