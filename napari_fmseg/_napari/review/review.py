"""The review carried out: cases are opened, and what is said of them is stored with the project, one step a click."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

from qtpy.QtCore import QObject
from qtpy.QtWidgets import QWidget

from napari_fmseg._napari.common.event_links import Links
from napari_fmseg._napari.common.shortcuts import bind
from napari_fmseg._napari.layer_transform import add_metadata, fmseg_metadata
from napari_fmseg._napari.recovery.autosave import Recovery
from napari_fmseg._napari.review.panel import ReviewPanel
from napari_fmseg._napari.teach.case_layers import layers_of_case
from napari_fmseg._napari.teach.jobs import CaseLayers, change_project_job, load_case_job
from napari_fmseg.training.projects import (
    CORRECTED,
    REJECTED,
    CaseRow,
    Project,
    accept_case,
    labels_revision,
    review_case,
)

__all__ = ["Review"]

Work = Callable[[], Iterator[Any]]


class Review(QObject):
    """What the buttons of a `ReviewPanel` do.

    Parameters
    ----------
    dock
        Whose keys these are.
    viewer
        Its layers are those of cases.
    panel
        The page.
    do
        Starts work beside the window.
    save
        Saves the labels of the open case as the form above the cases does, with its questions.
    recovery
        Knows whether labels were painted on.
    """

    def __init__(
        self,
        dock: QWidget,
        viewer: Any,
        panel: ReviewPanel,
        do: Callable[[Work], None],
        save: Callable[[], None],
        recovery: Recovery,
    ) -> None:
        super().__init__(dock)
        self._viewer, self.panel, self._do, self._save, self._recovery = viewer, panel, do, save, recovery
        self._project: Project | None = None
        self._busy = ""
        self._layer: Any = None  # the labels of the open case
        self._stored: WeakKeyDictionary[Any, int] = WeakKeyDictionary()  # edits of labels when the project had them so
        self._saving = ""  # the case whose correction is being saved
        self._accepted = ""  # the case whose labels in the window are being accepted
        self._then: Callable[[], None] | None = None  # what waits for the work before
        self._links = Links(self)
        panel.accepted.connect(self._on_accept)
        panel.corrected.connect(self._on_correct)
        panel.rejected.connect(self._on_reject)
        panel.next.connect(lambda: self.go(1))
        panel.previous.connect(lambda: self.go(-1))
        panel.which.currentIndexChanged.connect(self._allow)
        keys = {
            "next case": panel.next_button.click,
            "previous case": panel.previous_button.click,
            "accept case": panel.accept_button.click,
            "reject case": panel.reject_button.click,
        }
        for name, action in keys.items():
            bind(dock, viewer, name, action)
        self._allow()

    def set_project(self, project: Project | None, rows: tuple[CaseRow, ...], busy: str = "") -> None:
        """Show a project as it is now; `busy` says why nothing can be changed."""
        if project is None or self._project is None or project.folder != self._project.folder:
            self._let_go()
            self.panel.set_case("")
        self._project, self._busy = project, busy
        if self._accepted and project is not None and self._accepted in project.files:
            for layer in layers_of_case(self._viewer, self._accepted, project):
                add_metadata(layer, revision=labels_revision(project, self._accepted))  # they are those of the project
        self._accepted = ""
        self.panel.set_rows(rows)
        self._allow()

    def on_opened(self, case: CaseLayers) -> None:
        """Review the case that was opened, here or in the table."""
        self._let_go()
        self.panel.set_case(case.name)
        self._layer = layer = self._labels_of(case.name)
        if layer is not None:
            self._stored.setdefault(layer, self._recovery.edits_of(layer))  # those painted on before are not as stored
            self._links.connect(self._allow, layer.events.paint, layer.events.data, layer.events.set_data)
        self._allow()

    def on_saved(self, name: str, layer: Any, edits: int) -> None:
        """Notice that the labels of a case were saved, after so many edits; as a correction, if that was pressed."""
        if layer is not None:
            self._stored[layer] = edits
        if name == self._saving and self._project is not None:
            note, after = self.panel.note.toPlainText(), self.panel.case_after(1)
            folder = self._project.folder
            self._then = lambda: self._do(
                lambda: _review_and_open(folder, lambda p: review_case(p, name, CORRECTED, note), after)
            )
        self._saving = ""
        self._allow()

    def on_idle(self) -> None:
        """Go on with what had to wait for the work before."""
        then, self._then = self._then, None
        if then is not None:
            then()

    def go(self, by: int) -> None:
        """Open the next case (1) or the one before (-1); what was noted is stored."""
        name = self.panel.case_after(by)
        if self._project is None or self._busy or not name:
            return
        case, note = self.panel.case, self.panel.note.toPlainText().strip()
        folder = self._project.folder
        if case and note != self._project.record(case).note:
            self._do(lambda: _review_and_open(folder, lambda p: review_case(p, case, note=note), name))
        else:
            self._do(lambda: load_case_job(folder, name))

    # --- what is said ---

    @property
    def _has_changes(self) -> bool:
        return self._layer is not None and self._recovery.edits_of(self._layer) != self._stored[self._layer]

    def _allow(self, _event: Any = None) -> None:
        self.panel.allow(edited=self._has_changes, busy=self._busy)

    def _on_accept(self) -> None:
        case, note = self.panel.case, self.panel.note.toPlainText()
        self._accepted = case
        self._decide(lambda project: accept_case(project, case, note))

    def _on_reject(self) -> None:
        case, note = self.panel.case, self.panel.note.toPlainText()
        self._decide(lambda project: review_case(project, case, REJECTED, note))

    def _on_correct(self) -> None:
        self._saving = self.panel.case
        self._viewer.layers.selection.active = self._layer  # the form above the cases follows
        self._save()

    def _decide(self, change: Callable[[Project], Project]) -> None:
        if self._project is not None:
            folder, after = self._project.folder, self.panel.case_after(1)
            self._do(lambda: _review_and_open(folder, change, after))

    # --- the layers of the open case ---

    def _labels_of(self, name: str) -> Any:
        if self._project is None:
            return None
        layers = layers_of_case(self._viewer, name, self._project)
        own = [one for one in layers if one._type_string == "labels" and "role" not in fmseg_metadata(one)]
        return own[-1] if own else None

    def _let_go(self) -> None:
        self._links.end()
        self._layer = None


def _review_and_open(folder: Path, change: Callable[[Project], Project], after: str) -> Iterator[Any]:
    """Store what was said, then open the case that is next."""
    yield from change_project_job(folder, change)
    if after:
        yield from load_case_job(folder, after)
