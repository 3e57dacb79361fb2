"""Parts of the Pretrain dock: a folder to choose or to drop on, how a run goes, what came out, the sample's layers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from qtpy.QtCore import QMimeData, QUrl, Signal
from qtpy.QtGui import QDesktopServices, QDragEnterEvent, QDropEvent
from qtpy.QtWidgets import QFileDialog, QFrame, QLineEdit, QWidget

from napari_fmseg._napari.common.curves import Curves
from napari_fmseg._napari.common.tooltips import PRETRAIN
from napari_fmseg._napari.common.widgets import NO_MARGINS, Collapsible, hbox, paragraph, push_button, vbox
from napari_fmseg._napari.pretrain.plan import Shown
from napari_fmseg.core.events import FILE_LEFT_OUT, EpochDone, Progress, StepDone, TrainEvent, Warned

__all__ = ["FolderRow", "LeftOut", "Outcome", "Plots", "SampleLayers", "folder_in"]

_DONE = "QFrame#outcome { border: 1px solid #2f9e57; border-radius: 3px; }"


class FolderRow(QWidget):
    """A folder's path, a button to browse for it, and a place to drop it.

    The `hint` is shown while it is empty; `title` is that of the window in which one browses.
    """

    changed = Signal()  # another path

    def __init__(self, hint: str, title: str, tip: str, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self._title = title
        self.edit, self.button = QLineEdit(), push_button("…", PRETRAIN.browse)
        self.edit.setPlaceholderText(hint)
        self.edit.setToolTip(tip)
        self.edit.setAcceptDrops(False)  # a text field would take a drop as text; the dock takes it as a folder
        self.button.setFixedWidth(32)
        self.button.setAccessibleName(title)
        hbox((self.edit, 1), self.button, of=self, margins=NO_MARGINS)
        self.setFocusProxy(self.edit)
        self.edit.textChanged.connect(self.changed)
        self.button.clicked.connect(self._on_browse)

    @property
    def path(self) -> Path | None:
        """The folder, or None while nothing is said."""
        text = self.edit.text().strip()
        return Path(text).expanduser().absolute() if text else None

    def set_path(self, path: Path | str) -> None:
        """Show another folder."""
        self.edit.setText(str(path))

    def _on_browse(self) -> None:
        start = next((str(p) for p in (self.path, *(self.path.parents if self.path else ())) if p and p.is_dir()), "")
        chosen = QFileDialog.getExistingDirectory(self, self._title, start)
        if chosen:
            self.set_path(chosen)


def folder_in(event: QDragEnterEvent | QDropEvent | None) -> str:
    """Return the folder that is dropped, that of a file that is dropped, or ""."""
    mime: QMimeData | None = event.mimeData() if event is not None else None
    if mime is None or not mime.hasUrls():
        return ""
    path = Path(next((url.toLocalFile() for url in mime.urls() if url.isLocalFile()), ""))
    if path.is_dir() and path != Path():
        return str(path)
    return str(path.parent) if path.is_file() else ""


class Plots(QWidget):
    """Loss and Dice over the steps, and a line of figures."""

    def __init__(self, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        colors = {"training": "#56b4e9", "held out": "#e69f00"}
        self.loss = Curves("", "loss", colors=colors)
        self.dice = Curves("step", "Dice", y_range=(0, 1), colors={"held-out Dice": "#009e73"}, digits=2)
        self.facts = paragraph(tip=PRETRAIN.facts)
        self.loss.setToolTip(PRETRAIN.loss)
        self.dice.setToolTip(PRETRAIN.dice)
        vbox(self.facts, (self.loss, 1), (self.dice, 1), of=self, margins=NO_MARGINS, spacing=4)
        self.clear()
        self.begin()

    def clear(self) -> None:
        """Forget the run before."""
        for curves in (self.loss, self.dice):
            curves.clear()
        self._step = 0
        self.facts.setText("")
        self.facts.hide()

    def begin(self) -> None:
        """Count the scans anew; the curves go on where a run is resumed."""
        self._n_scans = self._n_bad = 0

    def take(self, event: TrainEvent) -> None:
        """Draw what an event tells."""
        if isinstance(event, StepDone):
            self._step = event.step
            self.loss.add(event.step, {"training": event.loss})
        elif isinstance(event, Progress) and event.stage == "reading":
            self._n_scans = event.total - self._n_bad
        elif isinstance(event, Warned) and event.code == FILE_LEFT_OUT:
            self._n_bad += 1
            self._n_scans -= 1
        elif isinstance(event, EpochDone):
            metrics = event.metrics
            if "loss" in metrics:
                self.loss.add(self._step, {"held out": metrics["loss"]})
                self.dice.add(self._step, {"held-out Dice": metrics["dice"]})
            parts = [f"{self._n_scans} scans"] if self._n_scans else []
            if "samples_per_s" in metrics:
                parts.append(f"{metrics['samples_per_s']:.1f} samples per second")
            if "waiting" in metrics:
                parts.append(f"waiting for data {100 * metrics['waiting']:.0f} % of the time")
            self.facts.setText(" · ".join(parts))
            self.facts.show()


class LeftOut(QWidget):
    """The files that could not be read: how many, and with one click which and why; hidden while there are none."""

    def __init__(self, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self.texts: list[str] = []
        self.details = paragraph(selectable=True, plain=True)
        self.details.setContentsMargins(12, 0, 0, 0)
        self.more = Collapsible("", self.details, PRETRAIN.left_out)
        vbox(self.more, of=self, margins=NO_MARGINS)
        self.clear()

    def clear(self) -> None:
        """Begin anew."""
        self.texts = []
        self.hide()

    def take(self, warning: Warned) -> bool:
        """Show a warning of a file that was left out; return whether it is one."""
        if warning.code != FILE_LEFT_OUT:
            return False
        if (text := warning.text) not in self.texts:  # a run that is resumed tells it again
            self.texts.append(text)
        n = len(self.texts)
        self.more.set_title(f"{n} file{'s' if n > 1 else ''} could not be read")
        self.details.setText("\n".join(self.texts))
        self.show()
        return True


class Outcome(QFrame):
    """The model that a run has left, and what to do with it; hidden while there is none."""

    use = Signal(object)  # with the card's path: the user wants to start from it

    def __init__(self, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self.setObjectName("outcome")
        self.setStyleSheet(_DONE)
        self.path: Path | None = None
        self.text = paragraph(selectable=True, plain=True)
        self.use_button = push_button("&Use as starting point", PRETRAIN.use)
        self.folder_button = push_button("Show folder", PRETRAIN.show_folder)
        vbox(self.text, hbox((self.use_button, 2), (self.folder_button, 1)), of=self, margins=(6, 6, 6, 6))
        self.use_button.clicked.connect(self._on_use)
        self.folder_button.clicked.connect(self._on_folder)
        self.hide()

    def tell(self, path: Path | None, text: str = "") -> None:
        """Show the card of a model and what it is, or with None nothing."""
        self.path = path
        self.text.setText(text)
        self.setVisible(path is not None)

    def _on_use(self) -> None:
        if self.path is not None:
            self.use.emit(self.path)

    def _on_folder(self) -> None:
        if self.path is not None:
            QDesktopServices.openUrl(QUrl.fromLocalFile(str(self.path.parent)))


class SampleLayers:
    """The layers of the sample in the viewer, refreshed in place; one that the user removes does not come back."""

    def __init__(self, viewer: Any) -> None:
        self._viewer = viewer
        self._layers: dict[str, Any] = {}

    @property
    def names(self) -> tuple[str, ...]:
        """The layers that were made in this run."""
        return tuple(self._layers)

    def show(self, part: Shown) -> None:
        """Show a part of a sample; what has not changed since is left as it is, because drawing takes time."""
        known = self._layers.get(part.name)
        if known is not None:
            if known in self._viewer.layers and not np.array_equal(known.data, part.data):
                known.data = part.data
        elif part.layer is not None:
            self._add(part.name, part.layer)

    def _add(self, name: str, layer: Any) -> None:
        alone = all(other in self._layers.values() for other in self._viewer.layers)
        active = self._viewer.layers.selection.active  # on which somebody may be painting
        self._layers[name] = self._viewer.add_layer(layer)
        if alone:
            self._viewer.reset_view()
            self._viewer.dims.set_point(0, float(layer.data.shape[0] // 2 * layer.scale[0]))
        elif active is not None:
            self._viewer.layers.selection.active = active

    def forget(self) -> None:
        """Make new layers for the next sample where those of this run are gone."""
        self._layers = {name: layer for name, layer in self._layers.items() if layer in self._viewer.layers}
