"""Segment the volume in 3D Slicer with fmseg, which runs outside of it: no torch and no model is loaded here.

The volume is written to a temporary folder, ``fmseg segment --events`` runs as a separate process, its progress is
shown, and the result becomes a segmentation with the names and colours of its classes. Works with Python 3.9.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from typing import Any, Callable  # noqa: UP035 - the same in every Python of Slicer

import qt
from slicer.ScriptedLoadableModule import (
    ScriptedLoadableModule,
    ScriptedLoadableModuleLogic,
    ScriptedLoadableModuleTest,
    ScriptedLoadableModuleWidget,
)

import slicer

USE = "Research use only. Not a medical device."
PROGRAM_SETTING, MODEL_SETTING = "FmsegSegment/program", "FmsegSegment/model"
_ERROR_BYTES = 4000


class FmsegSegment(ScriptedLoadableModule):
    """What Slicer lists."""

    def __init__(self, parent: Any) -> None:
        ScriptedLoadableModule.__init__(self, parent)
        parent.title = "fmseg: Segment"
        parent.categories = ["Segmentation"]
        parent.contributors = ["the napari-fmseg developers"]
        parent.helpText = f"Segments a volume with an installed fmseg, in a separate process. {USE}"


class FmsegSegmentWidget(ScriptedLoadableModuleWidget):
    """The module's panel: program, model, volume, Run and Cancel, a bar and a line of text."""

    def setup(self) -> None:
        """Build the panel."""
        ScriptedLoadableModuleWidget.setup(self)
        self.logic = FmsegSegmentLogic()
        settings = qt.QSettings()
        self.program = qt.QLineEdit(settings.value(PROGRAM_SETTING) or shutil.which("fmseg") or "")
        self.program.toolTip = "The program fmseg of the environment in which napari-fmseg is installed"
        self.model = qt.QComboBox()
        self.model.editable = True
        self.model.setEditText(settings.value(MODEL_SETTING) or "")
        self.models_button = qt.QPushButton("List models")
        self.volume = slicer.qMRMLNodeComboBox()
        self.volume.nodeTypes = ["vtkMRMLScalarVolumeNode"]
        self.volume.addEnabled = self.volume.removeEnabled = False
        self.volume.setMRMLScene(slicer.mrmlScene)
        self.run_button, self.cancel_button = qt.QPushButton("Run"), qt.QPushButton("Cancel")
        self.cancel_button.enabled = False
        self.bar = qt.QProgressBar()
        self.bar.maximum = 1000
        self.text = qt.QLabel(USE)
        self.text.wordWrap = True
        form = qt.QFormLayout()
        rows = (("Program", self.program), ("Model", self.model), ("", self.models_button), ("Volume", self.volume),
                ("", self.run_button), ("", self.cancel_button))  # fmt: skip
        for name, field in rows:
            form.addRow(name, field)
        self.layout.addLayout(form)
        self.layout.addWidget(self.bar)
        self.layout.addWidget(self.text)
        self.layout.addStretch(1)
        self.models_button.connect("clicked()", self.on_list_models)
        self.run_button.connect("clicked()", self.on_run)
        self.cancel_button.connect("clicked()", self.logic.cancel)

    def on_list_models(self) -> None:
        """Request the list of models from fmseg."""
        self.logic.list_models(self.program.text, self._on_models, self._on_failed)

    def on_run(self) -> None:
        """Segment the chosen volume."""
        node = self.volume.currentNode()
        if node is None or not self.program.text or not self.model.currentText:
            self.text.text = "Choose the program fmseg, a model and a volume first."
            return
        qt.QSettings().setValue(PROGRAM_SETTING, self.program.text)
        qt.QSettings().setValue(MODEL_SETTING, self.model.currentText)
        self._show_running(True)
        listeners = self._on_progress, self._on_done, self._on_failed
        self.logic.segment(self.program.text, self.model.currentText, node, *listeners)

    def cleanup(self) -> None:
        """End what runs when the module is closed."""
        self.logic.cancel()

    def _on_models(self, names: list[str]) -> None:
        chosen = self.model.currentText
        self.model.clear()
        self.model.addItems(names)
        self.model.setEditText(chosen or (names[0] if names else ""))
        self.text.text = f"{len(names)} models. {USE}"

    def _on_progress(self, fraction: float, text: str) -> None:
        self.bar.value = round(1000 * fraction)
        self.text.text = text

    def _on_done(self, node: Any, warnings: list[str]) -> None:
        self._show_running(False)
        self.bar.value = 1000
        self.text.text = "\n".join([f"Done: {node.GetName()}.", *warnings, USE])

    def _on_failed(self, text: str) -> None:
        self._show_running(False)
        self.bar.value = 0
        self.text.text = text

    def _show_running(self, running: bool) -> None:
        self.run_button.enabled = self.models_button.enabled = not running
        self.cancel_button.enabled = running


class FmsegSegmentLogic(ScriptedLoadableModuleLogic):
    """Runs fmseg, one process at a time, and follows its events."""

    def __init__(self) -> None:
        ScriptedLoadableModuleLogic.__init__(self)
        self._process: Any = None
        self._output = self._errors = b""
        self._on_event: Any = None
        self._on_end: Any = None
        self._cancelled = False

    @property
    def running(self) -> bool:
        """Whether a process is under way."""
        return self._process is not None

    def segment(
        self,
        program: str,
        model: str,
        node: Any,
        on_progress: Callable[[float, str], None],
        on_done: Callable[[Any, list[str]], None],
        on_failed: Callable[[str], None],
    ) -> None:
        """Write a volume, segment it and load the result; returns at once.

        `on_progress` gets a share and a text, `on_done` the segmentation and warnings, `on_failed` a text.
        """
        if self.running:
            return
        folder = tempfile.mkdtemp(prefix="fmseg-slicer-")
        image, result = os.path.join(folder, "image.nrrd"), os.path.join(folder, "labels.seg.nrrd")
        if not slicer.util.saveNode(node, image):
            shutil.rmtree(folder, ignore_errors=True)
            on_failed("Slicer could not write the volume to its temporary folder. Is the disk full?")
            return
        done: dict[str, Any] = {}
        warnings: list[str] = []

        def on_event(event: dict[str, Any]) -> None:
            kind = event["event"]
            if kind == "Progress":
                on_progress(event["done"] / max(1, event["total"]), str(event["stage"]))
            elif kind == "StageResult":
                on_progress(1.0, f"{event['stage']}: {event['seconds']:.1f} s")
            elif kind == "Warned":
                warnings.append(str(event["text"]))
            elif kind == "Done":
                done.update(event)

        def on_end(failure: str) -> None:
            try:
                if failure or not done or not os.path.exists(result):
                    on_failed(failure or "fmseg ended without a result. Does its version have `segment --events`?")
                else:
                    on_done(_load(result, node), warnings)
            finally:
                shutil.rmtree(folder, ignore_errors=True)

        words = ["segment", image, "--model", model, "--output", result, "--accept-licence", "--events"]
        self._start(program, words, on_event, on_end)

    def list_models(
        self, program: str, on_models: Callable[[list[str]], None], on_failed: Callable[[str], None]
    ) -> None:
        """Request the names of the models; return at once."""

        def on_end(failure: str) -> None:
            try:
                names = [str(model["name"]) for model in json.loads(self._output or b"[]")]
            except (ValueError, KeyError, TypeError):
                failure = failure or "fmseg gave no list of models. Choose another program."
            if failure:
                on_failed(failure)
            else:
                on_models(names)

        if not self.running:
            self._start(program, ["models", "--json"], None, on_end)

    def cancel(self) -> None:
        """End the process, if there is one; `on_failed` follows."""
        if self._process is not None:
            self._cancelled = True
            self._process.kill()

    def _start(self, program: str, words: list[str], on_event: Any, on_end: Callable[[str], None]) -> None:
        self._output = self._errors = b""
        self._cancelled, self._on_event, self._on_end = False, on_event, on_end
        self._process = process = qt.QProcess()
        # Slicer's own variables would make another Python load the wrong libraries.
        process.setEnvironment([f"{name}={value}" for name, value in slicer.util.startupEnvironment().items()])
        process.connect("readyReadStandardOutput()", self._read_output)
        process.connect("readyReadStandardError()", self._read_errors)
        process.connect("finished(int,QProcess::ExitStatus)", self._on_finished)
        process.connect("errorOccurred(QProcess::ProcessError)", self._on_error)
        process.start(program, words)

    def _read_output(self) -> None:
        """Keep what was written, or follow its events; a line may come in parts, and what is no event is skipped."""
        self._output += _bytes(self._process.readAllStandardOutput())
        if self._on_event is None:
            return
        *lines, self._output = self._output.split(b"\n")
        for line in lines:
            if line.startswith(b'{"event"'):
                self._on_event(json.loads(line))

    def _read_errors(self) -> None:
        self._errors = (self._errors + _bytes(self._process.readAllStandardError()))[-_ERROR_BYTES:]

    def _on_error(self, _error: Any) -> None:
        if self._process is not None and self._process.state() == qt.QProcess.NotRunning and not self._cancelled:
            self._end("fmseg could not be started. Choose the program fmseg of the environment that it is in.")

    def _on_finished(self, code: int, status: Any = 0) -> None:
        if self._process is None:
            return
        self._read_output()
        self._read_errors()
        if self._cancelled:
            self._end("Cancelled.")
        elif code != 0 or status != qt.QProcess.NormalExit:
            self._end(_last_error(self._errors.decode("utf-8", "replace")) or f"fmseg ended with the code {code}.")
        else:
            self._end("")

    def _end(self, failure: str) -> None:
        process, self._process = self._process, None
        process.deleteLater()
        self._on_end(failure)


def _load(path: str, volume: Any) -> Any:
    """Load a result as a segmentation of the volume; names and colours of its classes are in the file."""
    node = slicer.util.loadSegmentation(path)
    node.SetName(f"{volume.GetName()} fmseg")
    node.SetReferenceImageGeometryParameterFromVolumeNode(volume)
    return node


def _bytes(array: Any) -> bytes:
    """Return Qt's bytes as Python's, in every version of its binding."""
    return bytes(array.data() if hasattr(array, "data") else array)


def _last_error(text: str) -> str:
    """Return the last error that fmseg has written, or its last line."""
    _, mark, error = text.rpartition("fmseg: ")
    return error.strip() if mark else (text.strip().splitlines() or [""])[-1]


class FmsegSegmentTest(ScriptedLoadableModuleTest):
    """Slicer's own test: without a program that was set once in the panel it only builds the logic."""

    def runTest(self) -> None:
        """Segment Slicer's sample volume."""
        program, model = qt.QSettings().value(PROGRAM_SETTING), qt.QSettings().value(MODEL_SETTING)
        logic, ends = FmsegSegmentLogic(), []
        assert not logic.running
        if program and model:
            import SampleData

            node = SampleData.downloadSample("MRHead")
            logic.segment(program, model, node, lambda *_: None, lambda *done: ends.append(done), ends.append)
            while not ends:
                slicer.app.processEvents()
            assert isinstance(ends[0], tuple), ends[0]
