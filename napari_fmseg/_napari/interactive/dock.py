"""The dock for nnInteractive: connect, point at a structure, look at what is found, accept it into the labels."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np
from qtpy.QtCore import Signal
from qtpy.QtWidgets import QCheckBox, QComboBox, QLineEdit, QWidget

from napari_fmseg._napari.choosers.image_chooser import ImageChooser
from napari_fmseg._napari.choosers.label_pairing import note_image
from napari_fmseg._napari.common.dialogs import ErrorBox, ResearchOnly, ask
from napari_fmseg._napari.common.dock import Dock
from napari_fmseg._napari.common.event_links import Links
from napari_fmseg._napari.common.job import Job, start_job
from napari_fmseg._napari.common.preferences import load
from napari_fmseg._napari.common.tooltips import INTERACTIVE
from napari_fmseg._napari.common.viewer_window import unwrap_viewer
from napari_fmseg._napari.common.widgets import (
    PRIMARY_BUTTON,
    SECONDARY_BUTTON,
    Note,
    add_row,
    allow,
    form,
    hbox,
    paragraph,
    push_button,
    vbox,
)
from napari_fmseg._napari.correct.tracking.guard import rules_of
from napari_fmseg._napari.interactive.client import INSTALL, Box, Mask, Point, PromptServer, is_installed
from napari_fmseg._napari.interactive.prompts import box_of, lasso_of, point_of
from napari_fmseg._napari.layer_transform import KEY, TOOL, Frame, same_place
from napari_fmseg._napari.layers import labels_layer, voxels_of
from napari_fmseg.core.atomic_write import atomic_write
from napari_fmseg.core.errors import FmsegError
from napari_fmseg.core.volume import LabelMap

__all__ = ["InteractiveDock"]

LOCAL = "http://127.0.0.1:1527"
TOOLS = ("Point", "Box", "Scribble", "Lasso")
_TERMS = "nninteractive-licences.txt"
_PREVIEW_COLOR = {None: (0, 0, 0, 0), 0: (0, 0, 0, 0), 1: (0.1, 0.9, 1.0, 1.0)}


class InteractiveDock(Dock):
    """One structure at a time."""

    replied = Signal()  # the server has answered, and the preview shows it

    def __init__(self, napari_viewer: Any) -> None:
        super().__init__()
        self.viewer = unwrap_viewer(napari_viewer)
        self.server: PromptServer | None = None
        self.preview: Any = None
        self._tool: Any = None  # the layer that is drawn on
        self._drawn_on: Any = None  # the image below it
        self._sent: Any = None  # the image that the server has
        self._job: Job | None = None
        self._waiting: deque[Callable[[], Iterator[Any]]] = deque()
        self.address, self.key = QLineEdit(LOCAL), QLineEdit()
        self.connect_button = push_button("&Connect", style=PRIMARY_BUTTON)
        self.licence, self.note, self.error = paragraph(plain=True), Note(), ErrorBox()
        self.image = ImageChooser(self.viewer)
        self.tool, self.include = QComboBox(), QComboBox()
        self.keep = QCheckBox("&Only where nothing is labelled")
        self.undo_button = push_button("&Undo prompt", INTERACTIVE.undo)
        self.accept_button = push_button("&Accept", INTERACTIVE.accept, style=PRIMARY_BUTTON)
        self.cancel_button = push_button("Ca&ncel", INTERACTIVE.cancel, style=SECONDARY_BUTTON)
        self._build()
        self._links, self._of_tool = Links(self), Links(self)
        self._connect()
        self._allow()

    # --- how it looks ---

    def _build(self) -> None:
        self.key.setEchoMode(QLineEdit.EchoMode.Password)
        self.tool.addItems(TOOLS)
        self.include.addItem("belongs to the structure", True)
        self.include.addItem("does not belong to it", False)
        self.keep.setChecked(True)
        self.keep.setToolTip(INTERACTIVE.keep)
        rows = form()
        for name, field, tip in (
            ("&Server", self.address, INTERACTIVE.address),
            ("API &key", self.key, INTERACTIVE.key),
        ):
            add_row(rows, name, field, tip)
        prompts = form()
        for name, field, tip in (
            ("&Image", self.image, INTERACTIVE.image),
            ("&Tool", self.tool, INTERACTIVE.tool),
            ("It", self.include, INTERACTIVE.include),
        ):
            add_row(prompts, name, field, tip)
        vbox(
            paragraph(INTERACTIVE.about),
            rows,
            hbox(1, self.connect_button),
            self.licence,
            prompts,
            hbox(self.undo_button, 1),
            self.keep,
            hbox((self.accept_button, 2), (self.cancel_button, 1)),
            self.note,
            self.error,
            1,
            ResearchOnly(centred=True),
            of=self,
            margins=(8, 8, 8, 4),
            spacing=6,
        )
        self.setMinimumWidth(300)

    def _connect(self) -> None:
        self.connect_button.clicked.connect(self._on_connect)
        self.image.chosen.connect(self._on_image)
        self.tool.activated.connect(self._on_tool)
        self.undo_button.clicked.connect(self._on_undo)
        self.accept_button.clicked.connect(self._on_accept)
        self.cancel_button.clicked.connect(self._on_cancel)
        self._links.connect(self._on_removed, self.viewer.layers.events.removed)

    def _allow(self) -> None:
        missing = "" if is_installed() else f"The client of nnInteractive is not installed. {INSTALL}"
        busy = "Waiting for the server." if self._job is not None else ""
        allow(self.connect_button, missing or busy, INTERACTIVE.connect)
        why = "" if self.server is not None else "Connect to a server first."
        why = why or ("" if self.image.case is not None else "Open an image first.")
        for widget, tip in ((self.tool, INTERACTIVE.tool), (self.include, INTERACTIVE.include)):
            allow(widget, why, tip)
        none = why or busy or ("" if self.preview is not None else "Give a prompt first.")
        allow(self.accept_button, none, INTERACTIVE.accept)
        allow(self.cancel_button, none, INTERACTIVE.cancel)
        can_undo = self.server is not None and self.server.can_undo
        allow(self.undo_button, none or ("" if can_undo else "This server takes no prompt back."), INTERACTIVE.undo)

    # --- the server ---

    def _on_connect(self) -> None:
        address, key = self.address.text().strip(), self.key.text().strip()
        if not _agrees_to_send(self, address):
            return
        self.error.tell(None)
        if self.server is not None:
            self._start(partial(_close, self.server))
            self.server, self._sent = None, None
        self._start(lambda: iter([PromptServer(address, key)]))

    def _on_server(self, server: PromptServer) -> None:
        """Use a server when the licence of its weights was accepted."""
        if not _accept_terms(self, server.licence):
            self._start(partial(_close, server))
            return
        self.server = server
        self.licence.setText(f"Connected. Licence of the weights: {server.licence}.")
        self._on_tool()

    def _start(self, work: Callable[[], Iterator[Any]]) -> None:
        """Do one thing after the other beside the window."""
        self._waiting.append(work)
        self._next()

    def _next(self) -> None:
        if self._job is None and self._waiting:
            self._job = start_job(self._waiting.popleft(), parent=self)
            self._job.event.connect(self._on_reply)
            self._job.failed.connect(self._on_failed)
            self._job.finished.connect(self._on_finished)
        self._allow()

    def _on_reply(self, reply: Any) -> None:
        if isinstance(reply, PromptServer):
            self._on_server(reply)
        elif isinstance(reply, np.ndarray):
            self._show(reply)

    def _on_failed(self, error: FmsegError) -> None:
        self._waiting.clear()
        self._sent = None  # whatever it has, it is sent again
        self.error.tell(error)

    def _on_finished(self, _done: bool) -> None:
        self._job = None
        self._next()

    # --- drawing ---

    def _on_image(self) -> None:
        """Draw on another image; the list of images is also filled anew whenever a layer comes or goes."""
        case = self.image.case
        image = case.layers[0] if case is not None else None
        if image is not self._drawn_on:
            self._on_tool()
        self._allow()

    def _on_tool(self) -> None:
        """Put a layer on top to draw with the chosen tool."""
        case, kind = self.image.case, self.tool.currentText()
        self._drawn_on = case.layers[0] if case is not None else None
        self._drop_tool()
        if self.server is None or case is None:
            self._allow()
            return
        image = case.layers[0]
        placed = {**Frame.of(image).place(case.geometry), "metadata": {KEY: {"role": TOOL}}}
        name = f"{kind} for nnInteractive"
        if kind == "Point":
            self._tool = self.viewer.add_points(ndim=3, name=name, size=4, face_color="cyan", **placed)
            self._tool.mode = "add"
            self._of_tool.connect(self._on_points, self._tool.events.data)
        elif kind == "Scribble":
            blank = np.zeros(voxels_of(image).shape, np.uint8)
            self._tool = self.viewer.add_labels(blank, name=name, opacity=0.7, **placed)
            self._tool.brush_size, self._tool.mode = 3, "paint"
            self._of_tool.connect(self._on_stroke, self._tool.events.paint)
        else:
            self._tool = self.viewer.add_shapes(
                ndim=3, name=name, edge_color="cyan", face_color="transparent", **placed
            )
            self._tool.mode = "add_rectangle" if kind == "Box" else "add_polygon_lasso"
            self._of_tool.connect(self._on_shapes, self._tool.events.data)
        self.viewer.layers.selection.active = self._tool
        self._allow()

    def _on_points(self, event: Any) -> None:
        if str(getattr(event, "action", "")) == "added" and len(self._tool.data):
            self._give(point_of(self._tool.data[-1], self._shape, include=self._includes))

    def _on_shapes(self, event: Any) -> None:
        if str(getattr(event, "action", "")) == "added" and len(self._tool.data):
            make = box_of if self.tool.currentText() == "Box" else lasso_of
            self._give(make(np.asarray(self._tool.data[-1], float), self._shape, include=self._includes))

    def _on_stroke(self, _event: Any) -> None:
        stroke = np.asarray(self._tool.data) > 0
        if stroke.any():
            self._tool.data[...] = 0  # the next stroke is a prompt of its own
            self._tool.refresh()
            self._give(Mask(stroke, self._includes))

    @property
    def _shape(self) -> tuple[int, ...]:
        assert self.image.case is not None
        return tuple(voxels_of(self.image.case.layers[0]).shape)

    @property
    def _includes(self) -> bool:
        return bool(self.include.currentData())

    def _give(self, prompt: Point | Box | Mask | None) -> None:
        """Send a prompt, and before the first one the image."""
        if prompt is None:
            self.note.tell(["That lies beside the image. Draw in it."])
            return
        server, case = self.server, self.image.case
        assert server is not None
        assert case is not None
        self.note.tell([])
        self.error.tell(None)
        image = case.layers[0]
        voxels = None if self._sent is image else voxels_of(image)
        self._sent = image
        self._start(lambda: _prompt(server, voxels, prompt))

    # --- what was found ---

    def _show(self, mask: Any) -> None:
        """Show what the server found, over the image."""
        from napari.utils.colormaps import DirectLabelColormap

        case = self.image.case
        if case is None:
            return
        if self.preview is None:
            self.preview = self.viewer.add_labels(
                mask,
                name="nnInteractive · preview",
                opacity=0.5,
                colormap=DirectLabelColormap(color_dict=_PREVIEW_COLOR),
                metadata={KEY: {"role": TOOL}},
                **Frame.of(case.layers[0]).place(case.geometry),
            )
            self.viewer.layers.selection.active = self._tool
        else:
            self.preview.data = mask
        self._allow()
        self.replied.emit()

    def _on_undo(self) -> None:
        server = self.server
        if server is not None:
            self._start(lambda: iter([server.undo()]))

    def _on_accept(self) -> None:
        """Write the preview into the labels that lie on the image, as one step that can be undone; else keep it."""
        preview = self.preview
        target = next((layer for layer in reversed(self.viewer.layers) if self._is_target(layer)), None)
        if target is None:
            self._add_labels(np.asarray(preview.data))
        else:
            here, label = np.asarray(target.data), int(target.selected_label)
            rules = rules_of(target)
            if label in rules.finished:
                self.note.tell(
                    [f"Label {label} of “{target.name}” is finished. Choose another, or unmark it in Correct."]
                )
                return
            found = (np.asarray(preview.data) > 0) & (here != label)
            if self.keep.isChecked():
                found &= here == 0
            if rules.finished:
                found &= np.isin(here, list(rules.finished), invert=True)
            target.data_setitem(np.nonzero(found), label)
            self.note.tell([f"Label {label} of “{target.name}” has it now. Undo: Ctrl+Z on that layer."])
        self._on_cancel()
        if target is not None:
            self.viewer.layers.selection.active = target

    def _add_labels(self, mask: Any) -> None:
        """Add labels of the user's own, with what was found as their first class."""
        case = self.image.case
        if case is None:
            return
        labels = LabelMap(mask, case.geometry, {}, {1: "structure"})
        data, options, _ = labels_layer(labels, f"{case.name} · labels", frame=Frame.of(case.layers[0]))
        layer = self.viewer.add_labels(np.ascontiguousarray(data), **options)
        note_image(layer, case)

    def _is_target(self, layer: Any) -> bool:
        if layer._type_string != "labels" or layer is self.preview or layer is self._tool or self.preview is None:
            return False
        return "role" not in dict(layer.metadata.get(KEY) or {}) and same_place(layer, self.preview)

    def _on_cancel(self) -> None:
        """Forget the preview and the prompts."""
        if self.preview is not None:
            preview, self.preview = self.preview, None
            self.viewer.layers.remove(preview)
        server = self.server
        if server is not None:
            self._start(partial(_reset, server))
        self._on_tool()

    # --- coming and going ---

    def _on_removed(self, event: Any) -> None:
        if event.value is self.preview:
            self.preview = None
        if event.value is self._tool:
            self._of_tool.end()
            self._tool = None
        self._allow()

    def _drop_tool(self) -> None:
        self._of_tool.end()
        tool, self._tool = self._tool, None
        if tool is not None and tool in self.viewer.layers:
            self.viewer.layers.remove(tool)

    def close_down(self) -> None:
        """Return the session and disconnect from the viewer; the dock may be deleted afterwards."""
        self._waiting.clear()
        if self._job is not None:
            self._job.abandon()
            self._job = None
        self._links.end()
        self._drop_tool()
        if self.server is not None:
            start_job(partial(_close, self.server))
            self.server = None
        self.image.close_down()


def _prompt(server: PromptServer, image: Any, prompt: Point | Box | Mask) -> Iterator[Any]:
    if image is not None:
        server.set_image(np.asarray(image))
    yield server.add(prompt)


def _reset(server: PromptServer) -> Iterator[Any]:
    server.reset()
    yield from ()


def _close(server: PromptServer) -> Iterator[Any]:
    server.close()
    yield from ()


def _agrees_to_send(parent: QWidget, address: str) -> bool:
    """Show a question before a scan leaves this machine."""
    if address.split("://")[-1].split(":")[0].split("/")[0] in ("127.0.0.1", "localhost", "[", "::1"):
        return True
    return ask(
        parent,
        f"Send scans to {address}?",
        "The voxels of the image that you point at are sent to that server, without any name. Send only what may leave "
        "this machine, and use https outside of your own network.",
        "Send",
        "Cancel",
    )


def _accept_terms(parent: QWidget, licence: str) -> bool:
    """Show the licence of a server's weights before their first use; return whether it was accepted, now or before."""
    path = load().folder / _TERMS
    known = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    if licence in known:
        return True
    agreed = ask(
        parent,
        "Accept the licence of the weights?",
        f"The weights that this server runs are licensed under {licence}. The weights that the authors of "
        "nnInteractive publish are CC BY-NC-SA 4.0: not for commercial use, and what is derived from them is shared "
        "under the same licence. Please cite Isensee et al., https://arxiv.org/abs/2503.08373.",
        "Accept",
        "Cancel",
    )
    if agreed:
        with atomic_write(path) as file:
            file.write("\n".join([*known, licence, ""]).encode())
    return agreed
