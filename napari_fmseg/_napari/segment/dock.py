"""The dock that segments: choose a volume and a model, press Run, watch the stages arrive, look at the classes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from qtpy.QtCore import Qt
from qtpy.QtGui import QDragEnterEvent, QDropEvent, QShowEvent
from qtpy.QtWidgets import QWidget

from napari_fmseg._napari.choosers.image_volumes import ImageVolume, case_with
from napari_fmseg._napari.choosers.label_pairing import labels_for, lies_on
from napari_fmseg._napari.common.dialogs import ErrorBox, ResearchOnly
from napari_fmseg._napari.common.dock import Dock
from napari_fmseg._napari.common.event_links import Links
from napari_fmseg._napari.common.preferences import load
from napari_fmseg._napari.common.shortcuts import bind
from napari_fmseg._napari.common.time_estimate import format_seconds
from napari_fmseg._napari.common.tooltips import CLASSES, LESIONS, QUEUE, SEGMENT
from napari_fmseg._napari.common.viewer_window import unwrap_viewer
from napari_fmseg._napari.common.widgets import NO_MARGINS, Collapsible, Note, ScrollArea, allow, push_button, vbox
from napari_fmseg._napari.opening.default_reader import offer_as_default_reader
from napari_fmseg._napari.opening.dropzone import DropZone
from napari_fmseg._napari.recovery.autosave import Recovery
from napari_fmseg._napari.results.class_table import ClassTable
from napari_fmseg._napari.results.lesion_table import LesionDialog
from napari_fmseg._napari.results.navigation import point_in
from napari_fmseg._napari.results.view_3d import ThreeD
from napari_fmseg._napari.segment.gradcam_request import disabled_reason, grad_cam_request
from napari_fmseg._napari.segment.model_import import ModelImport
from napari_fmseg._napari.segment.options import Choices
from napari_fmseg._napari.segment.queue_panel import QueuePanel
from napari_fmseg._napari.segment.queue_run import Queue
from napari_fmseg._napari.segment.run_bar import RunBar
from napari_fmseg._napari.segment.run_request import Engine, Request, StageLayer
from napari_fmseg._napari.segment.session import Session
from napari_fmseg._napari.segment.stage_layers import run_of, toggle_stages
from napari_fmseg.core.errors import FmsegError
from napari_fmseg.core.events import Progress, Warned

__all__ = ["SegmentDock"]


class SegmentDock(Dock):
    """Segments a volume of the viewer and shows its stages as layers.

    The `engine` runs the models; without one it is a process of its own, started at the first run.
    """

    def __init__(self, napari_viewer: Any, engine: Engine | None = None) -> None:
        super().__init__()
        self.viewer = napari_viewer = unwrap_viewer(napari_viewer)
        self.session = Session(napari_viewer, engine, self)
        self._known: dict[tuple[str, str], dict[str, float]] = {}
        self._case: Any = None
        self._times: list[str] = []
        self._remarks: list[str] = []
        self._key = ("", "")
        self.drop = DropZone(viewer=napari_viewer)
        self.model_import = ModelImport(self)
        self.choices = Choices(napari_viewer)
        self.image, self.model, self.region = self.choices.image, self.choices.model, self.choices.region
        self.until, self.device, self.more = self.choices.until, self.choices.device, self.choices.more
        self.warnings, self.remarks, self.error = self.choices.warnings, Note(), ErrorBox()
        self.bar = RunBar()
        # Neither function may hold this dock: left to the garbage collector, a dock crashes Qt.
        image, session = self.image, self.session
        queue = Queue(load().folder / "queue", session.engine, lambda: session.running, self)
        self.queue = QueuePanel(napari_viewer, queue, self.choices.plan, lambda: image.cases)
        self.queue_section = Collapsible("Queue of scans", self.queue, QUEUE.start)
        self.queue_section.button.setChecked(bool(queue.scans))
        self.classes = ClassTable(napari_viewer)
        self.all_stages, self.three_d = push_button("Show stages"), push_button("3-D")
        self.why, self.lesions = push_button("Explain"), push_button("Lesions …")
        self._three_d = ThreeD(napari_viewer)
        self._build()
        self._connect()
        self._on_changed()
        self._show(None)
        self._on_active()
        self._recovery = Recovery.start(napari_viewer)
        keys = {
            "run": self.bar.run_button,
            "cancel": self.bar.cancel_button,
            "stages": self.all_stages,
            "3-D": self.three_d,
        }
        for name, button in keys.items():
            bind(self, napari_viewer, name, button.click)

    # --- how it looks ---

    def _build(self) -> None:
        inside = QWidget()
        parts = (self.drop, self.choices, self.queue_section, self.error, self.remarks, (self.classes, 1))
        vbox(*parts, of=inside, margins=(8, 8, 8, 4), spacing=6)
        for i, button in enumerate((self.all_stages, self.three_d)):
            self.classes.buttons.insertWidget(i, button)
        for i, button in enumerate((self.why, self.lesions)):
            self.classes.questions.insertWidget(i, button)
        self._scroll = ScrollArea(inside)
        use = ResearchOnly(centred=True)
        use.setToolTip("What the models find may be wrong. Do not base a diagnosis or a treatment on it.")
        foot = vbox(
            self.choices.misfits, self.bar, use, margins=(8, 4, 8, 4), spacing=4
        )  # always in sight, however low the window
        vbox((self._scroll, 1), foot, of=self, margins=NO_MARGINS, spacing=0)
        self.setMinimumWidth(320)

    def _connect(self) -> None:
        self.setAcceptDrops(True)
        self.drop.dropped.connect(self._on_dropped)
        self.drop.idle.connect(self._on_changed)
        self.drop.opened.connect(self._on_opened)
        self.drop.failed.connect(self.error.tell)
        self.drop.models.connect(self._on_models)
        self.model_import.imported.connect(self._on_imported)
        self.model_import.failed.connect(self.error.tell)
        self.choices.changed.connect(self._on_changed)
        self.bar.run.connect(self._on_run)
        self.bar.cancel.connect(self._on_cancel)
        self.all_stages.clicked.connect(self._on_all_stages)
        self.three_d.clicked.connect(self._three_d.toggle)
        self.why.clicked.connect(self._on_why)
        self.lesions.clicked.connect(self._on_lesions)
        self.classes.failed.connect(self.error.tell)
        self.session.event_received.connect(self._on_event)
        self.session.failed.connect(self.error.tell)
        self.session.finished.connect(self._on_finished)
        self.queue.failed.connect(self.error.tell)
        self.queue.queue.changed.connect(self._on_changed)
        self._links = Links(self)
        self._links.connect(self._on_active, self.viewer.layers.selection.events.active)
        self._links.connect(self._on_removed, self.viewer.layers.events.removed)

    # --- what is chosen ---

    def _on_dropped(self) -> None:
        self.error.tell(None)
        self.drop.show()

    def _on_opened(self) -> None:
        offer_as_default_reader(self)  # who drops scans here will drop them on the canvas too

    def _on_models(self, paths: list[str]) -> None:
        self.remarks.tell([f"Importing {Path(path).name} …" for path in paths])
        self.model_import.start(paths)

    def _on_imported(self, done: Any) -> None:
        self.model.refresh()
        self.model.choose(done.cards[0].name)
        found = [f"Imported “{card.title}”: {', '.join(card.labels.values())}." for card in done.cards]
        self.remarks.tell([*found, *done.refused])

    def _on_changed(self) -> None:
        """Enable what can be run, or state why not; the drop zone is hidden when there is a volume."""
        self.drop.setVisible(self.image.case is None or self.drop.busy)
        self.bar.allow(self._queue_refusal() or self.choices.disabled_reason())
        self._allow_why()

    def _queue_refusal(self) -> str:
        return QUEUE.busy if self.queue.queue.running else ""

    def _allow_why(self) -> None:
        refusal = SEGMENT.run_busy if self.session.running else self._queue_refusal()
        refusal = refusal or disabled_reason(self.classes.layer, self.image.cases)
        allow(self.why, refusal, CLASSES.why)

    # --- a run ---

    def _on_run(self) -> None:
        if self.session.running or self._queue_refusal() or self.choices.disabled_reason():
            return
        self.error.tell(None)
        self.remarks.tell([])
        try:
            request = self.choices.request()
        except FmsegError as error:
            self.error.tell(error)
            return
        self._begin(request, self.choices.stages)

    def _on_why(self) -> None:
        if self.session.running:
            return
        self.error.tell(None)
        self.remarks.tell([])
        layer, device = self.classes.layer, self.device.currentText()
        try:
            at = point_in(self.viewer, layer)
            request = grad_cam_request(layer, self.image.cases, self.classes.measures, at, device)
        except FmsegError as error:
            self.error.tell(error)
            return
        self._begin(request, ("grad-cam",))

    def _begin(self, request: Request, stages: tuple[str, ...]) -> None:
        self._case = next((case for case in self.image.cases if case.id == request.run.image), None)
        self._times, self._remarks = [], []
        self._key = (f"{request.run.model} {stages}", request.options.device)
        first = ("loading model",) if self.session.warm else ("starting engine", "loading model")
        self.bar.begin((*first, *stages), self._known.get(self._key, {}))
        self.session.start(request)
        self._allow_why()

    def _on_cancel(self) -> None:
        self.bar.stopping()
        self.session.cancel()

    def _on_event(self, event: Any) -> None:
        if isinstance(event, Progress):
            self.bar.move(event.stage, event.done, event.total)
        elif isinstance(event, Warned):
            self._remark(event.text)
        elif isinstance(event, StageLayer):
            self._times.append(f"{event.stage} {format_seconds(event.seconds)}")
            if event.is_labels:
                self._recovery.mark_saved(self.session.newest)  # computed, not painted: it can be computed again
                if not self._is_painting():
                    self._show(self.session.newest)
            if event.note:
                self._remark(f"{event.stage.capitalize()}: {event.note}")

    def _remark(self, text: str) -> None:
        self._remarks.append(text)
        shown = [*self.warnings.text().splitlines(), *self.choices.misfits.text().splitlines()]
        self.remarks.tell([text for text in self._remarks if text not in shown])

    def _on_finished(self, done: bool) -> None:
        seconds = self.bar.end("")
        if done:
            self._known[self._key] = seconds
            self.bar.end(f"Done in {format_seconds(sum(seconds.values()))}: {', '.join(self._times)}")
            for name in self.session.kept:
                self._remark(f"“{name}” was edited and is kept as it is; the new result lies beside it.")
            if self.session.final is not None:
                self._show_classes(self.session.final)
        elif self.error.isHidden():
            self.bar.end("Cancelled. Stages that were there stay.")
        self._on_changed()
        self.queue.queue.go_on()

    def _show_classes(self, layer: Any) -> None:
        """Choose the new labels, unless the user is painting on others."""
        if layer is not None and layer in self.viewer.layers and not self._is_painting():
            self.viewer.layers.selection.active = layer
        self._scroll.ensureWidgetVisible(self.classes)

    def _is_painting(self) -> bool:
        mode = str(getattr(self.viewer.layers.selection.active, "mode", "pan_zoom"))
        return mode in ("paint", "polygon", "erase", "fill", "pick")

    def _on_all_stages(self) -> None:
        run = run_of(self.classes.layer) if self.classes.layer is not None else None
        if run is not None:
            toggle_stages(self.viewer, run)

    def _on_lesions(self) -> None:
        if self.classes.layer is not None:
            dialog = LesionDialog(self.viewer, self.classes.layer, self)
            dialog.setAttribute(Qt.WidgetAttribute.WA_DeleteOnClose)
            dialog.show()

    # --- what happens in the viewer ---

    def _on_active(self) -> None:
        from napari.layers import Labels

        active = self.viewer.layers.selection.active
        if isinstance(active, Labels) and active.ndim == 3:
            self._show(active)
            return
        case = case_with(self.image.cases, active)
        if case is not None:
            self._show_labels_of(case)

    def _show_labels_of(self, case: ImageVolume) -> None:
        """Show the labels of the chosen image; those shown stay if they lie on it too, as a CT's may on the PET."""
        mine, shown = labels_for(case, self.viewer.layers), self.classes.layer
        if mine and shown not in mine:
            self._show(mine[-1])
        elif not mine and shown is not None and not lies_on(shown, case):
            self._show(None)

    def _show(self, labels: Any) -> None:
        """Fill the table with the classes of a labels layer, or of none."""
        self.classes.set_layer(labels)
        none = CLASSES.no_labels if labels is None else ""
        no_stages = none or ("" if run_of(labels) is not None else CLASSES.no_stages)
        allow(self.all_stages, no_stages, SEGMENT.show_all)
        allow(self.three_d, none, SEGMENT.three_d)
        allow(self.lesions, none, LESIONS.open)
        self._allow_why()

    def _on_removed(self, event: Any) -> None:
        if event.value is self.classes.layer:
            self._show(None)
        if self.session.running and self._case is not None and any(event.value is part for part in self._case.layers):
            self._on_cancel()

    # --- coming and going ---

    def showEvent(self, event: QShowEvent) -> None:
        super().showEvent(event)
        self.model.refresh()

    def dragEnterEvent(self, event: QDragEnterEvent | None) -> None:
        """Accept files wherever they are dropped on the dock."""
        self.drop.dragEnterEvent(event)

    def dropEvent(self, event: QDropEvent | None) -> None:
        """Open what was dropped."""
        self.drop.dropEvent(event)

    def close_down(self) -> None:
        """End what runs and let go of the viewer; the dock may be deleted afterwards."""
        self.queue.close_down()
        self.session.close()
        self._links.end()
        for part in (self.choices, self.classes):
            part.close_down()
