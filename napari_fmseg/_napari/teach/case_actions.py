"""What the user does with one case of a project beside labelling it: earlier labels, leaving out, names, removal."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from qtpy.QtCore import QObject
from qtpy.QtWidgets import QInputDialog, QWidget

from napari_fmseg._napari.common.dialogs import choose, run_modal
from napari_fmseg._napari.layer_transform import add_metadata, fmseg_metadata
from napari_fmseg._napari.teach.case_layers import layers_of_case
from napari_fmseg._napari.teach.case_table import CaseTable
from napari_fmseg._napari.teach.jobs import (
    EARLIER,
    Earlier,
    SetAside,
    change_project_job,
    load_earlier_job,
    restore_labels_job,
)
from napari_fmseg._napari.teach.label_history import LabelHistory
from napari_fmseg.core.errors import FmsegError
from napari_fmseg.training.projects import Project, exclude_case, include_case, label_history, remove_case, rename_case

__all__ = ["CaseActions"]

Work = Callable[[], Iterator[Any]]


class CaseActions(QObject):
    """The menu of a case, carried out.

    Parameters
    ----------
    dock
        Whose window the dialogs belong to.
    viewer
        Its layers are those of cases.
    cases
        The table with the menu.
    project
        Gives the project that is open, or None.
    do
        Starts work beside the window.
    failed
        Called with an error.
    """

    def __init__(
        self,
        dock: QWidget,
        viewer: Any,
        cases: CaseTable,
        project: Callable[[], Project | None],
        do: Callable[[Work], None],
        failed: Callable[[FmsegError], None],
    ) -> None:
        super().__init__(dock)
        self._dock, self._viewer, self._project, self._do, self._failed = dock, viewer, project, do, failed
        cases.history.connect(self._on_history)
        cases.exclude.connect(partial(self._change, exclude_case))
        cases.include.connect(partial(self._change, include_case))
        cases.rename.connect(self._on_rename)
        cases.remove.connect(self._on_remove)

    def take(self, event: Any) -> None:
        """Show in the window what an event tells."""
        from napari.layers import Layer

        if isinstance(event, Earlier):
            self._viewer.add_layer(Layer.create(*event.labels))
        elif isinstance(event, SetAside):
            self._set_aside(event.name)

    def _on_history(self, name: str) -> None:
        project = self._project()
        if project is None:
            return
        try:
            rows = label_history(project, name)
        except FmsegError as error:
            self._failed(error)
            return
        dialog = LabelHistory(name, rows, self._dock.window())
        dialog.show_labels.connect(lambda number: self._run(partial(load_earlier_job, name=name, number=number)))
        dialog.restore.connect(lambda number: self._run(partial(restore_labels_job, name=name, number=number)))
        dialog.open()

    def _on_rename(self, name: str) -> None:
        dialog = QInputDialog(self._dock.window())
        dialog.setWindowTitle(f"Rename {name}")
        dialog.setLabelText("New name (never a patient's):")
        dialog.setTextValue(name.rpartition("/")[2])
        new = dialog.textValue().strip() if run_modal(dialog) else ""
        project = self._project()
        if not new or new == name or project is None:
            return
        self._change(lambda now, case: rename_case(now, case, new), name)
        for layer in layers_of_case(self._viewer, name, project):
            add_metadata(layer, case=new)

    def _on_remove(self, name: str) -> None:
        project = self._project()
        if project is None:
            return
        answer = choose(
            self._dock,
            f"Remove {name} from the project?",
            "Its image, its labels and all earlier ones are deleted from the project's folder, and cannot be brought "
            "back; a linked image stays where it is. Whether it was used for training stays recorded. To leave "
            "it out for now, keep it and exclude it.",
            ("Leave it out", "Remove it for good"),
        )
        if answer == 0:
            self._change(exclude_case, name)
        elif answer == 1:
            self._change(partial(remove_case, with_labels=True), name)

    def _change(self, change: Callable[..., Project], name: str) -> None:
        self._run(lambda folder: change_project_job(folder, lambda project: change(project, name)))

    def _run(self, work: Callable[[Path], Iterator[Any]]) -> None:
        project = self._project()
        if project is not None:
            folder = project.folder
            self._do(lambda: work(folder))

    def _set_aside(self, name: str) -> None:
        """Keep the labels of a case that are in the window, as labels of before."""
        project = self._project()
        for layer in layers_of_case(self._viewer, name, project) if project is not None else ():
            if layer._type_string == "labels" and "role" not in fmseg_metadata(layer):
                add_metadata(layer, role=EARLIER)
                layer.name = f"{layer.name} · as it was here"
                layer.visible = False
