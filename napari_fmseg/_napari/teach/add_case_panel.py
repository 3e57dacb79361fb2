"""Adding a case: which image and which labels of the viewer, how much of it was labelled, copied or linked."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from qtpy.QtCore import Signal
from qtpy.QtWidgets import QComboBox, QLineEdit, QWidget

from napari_fmseg._napari.choosers.image_chooser import ImageChooser
from napari_fmseg._napari.choosers.image_volumes import ImageVolume, is_preview
from napari_fmseg._napari.choosers.label_pairing import label_map, labels_for, record_of, why_ask
from napari_fmseg._napari.common.dialogs import ask
from napari_fmseg._napari.common.event_links import Links
from napari_fmseg._napari.common.tooltips import TEACH
from napari_fmseg._napari.common.widgets import NO_MARGINS, add_row, allow, form, hbox, limit_width, push_button, vbox
from napari_fmseg._napari.correct.tracking.saved_corrections import pack_corrections
from napari_fmseg._napari.layer_transform import Frame, fmseg_metadata, has_spacing, same_place
from napari_fmseg._napari.layers import KEY, along, as_filed, geometry_of, labels_layer, labels_of, volume_of
from napari_fmseg._napari.teach.jobs import NewCase
from napari_fmseg._napari.teach.questions import ask_classes, ask_part
from napari_fmseg.core.errors import FmsegError, GeometryMismatch
from napari_fmseg.core.volume import Geometry, LabelMap
from napari_fmseg.training.projects import LabelOptions, Project, free_name, labels_revision

__all__ = ["AddCase"]

LATER = "None yet: to be labelled later"
PARTS = {
    "The whole volume": "nothing",
    "Only some slices": "empty-slices",
    "Scribbles: what is painted counts": "zeros",
}


class AddCase(QWidget):
    """A form over the layers of the viewer, and the button that adds them to the project."""

    add = Signal(object)  # with a `NewCase` that the user wants
    failed = Signal(object)  # with an error that the user should see

    def __init__(self, viewer: Any, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self._viewer = viewer
        self._project: Project | None = None
        self._layers: list[Any] = []
        self._seen: Any = None  # the labels that the form was last about
        self._free_name = ""
        self.image = ImageChooser(viewer)
        self.labels, self.part, self.files = QComboBox(), QComboBox(), QComboBox()
        self.name = QLineEdit()
        self.new_button, self.add_button = (
            push_button("&New labels"),
            push_button("&Add to the project"),
        )
        self._lay_out()
        self._links = Links(self)
        events = viewer.layers.events
        self._links.connect(self._on_layers, events.inserted, events.removed, events.reordered)
        self._links.connect(self._on_active, viewer.layers.selection.events.active)
        self.image.chosen.connect(self._on_image)
        self.labels.currentIndexChanged.connect(self._on_labels)
        self.new_button.clicked.connect(self._on_new)
        self.add_button.clicked.connect(self._on_add)
        self._fill()

    def _lay_out(self) -> None:
        fields = form(spacing=None)
        rows = (
            ("Image", self.image, TEACH.image),
            ("Labels", self.labels, TEACH.labels),
            ("Labelled", self.part, TEACH.part),
            ("Image file", self.files, TEACH.files),
            ("Name", self.name, TEACH.name),
        )
        for title, widget, tip in rows:
            add_row(fields, title, widget, tip)
            if isinstance(widget, QComboBox):
                limit_width(widget, 12)
        self.part.addItems(list(PARTS))
        self.files.addItems(["Copy it into the project", "Link to it where it is"])
        vbox(fields, hbox((self.new_button, 1), (self.add_button, 2)), of=self, margins=NO_MARGINS, spacing=4)

    def set_project(self, project: Project | None) -> None:
        """Set the project that is open."""
        self._project = project
        self._free_name = free_name(project) if project is not None else ""
        self._on_changed()

    def close_down(self) -> None:
        """Disconnect from the viewer."""
        self._links.end()
        self._layers, self._seen = [], None
        self.image.close_down()

    @property
    def layer(self) -> Any:
        """The chosen labels layer, or None."""
        at = self.labels.currentIndex() - 1
        return self._layers[at] if 0 <= at < len(self._layers) else None

    @property
    def case(self) -> str:
        """The case of the project that the chosen image is, or "" for one that is not in it."""
        if self._project is None or self.image.case is None:
            return ""
        recorded = fmseg_metadata(self.image.case.layers[0])
        here = recorded.get("project") == str(self._project.folder)
        name = str(recorded.get("case", ""))
        return name if here and name in self._project.files else ""

    # --- what the viewer has ---

    def _on_layers(self) -> None:
        self._fill()

    def _on_active(self) -> None:
        """Choose the labels that were made active, unless they are those of another image than the chosen one."""
        layer = self._viewer.layers.selection.active
        if layer in self._layers:
            self.image.choose_image_of(layer)
            self.labels.setCurrentIndex(self._layers.index(layer) + 1)

    def _fill(self, chosen: Any = None) -> None:
        from napari.layers import Labels

        before = chosen if chosen is not None else self.layer
        labels = [layer for layer in self._viewer.layers if isinstance(layer, Labels) and layer.data.ndim == 3]
        found = [layer for layer in labels if not is_preview(layer)]
        newest = [layer for layer in found if layer not in self._layers]
        self._layers = found
        self.labels.blockSignals(True)
        self.labels.clear()
        self.labels.addItems([LATER, *(layer.name for layer in found)])
        fitting = self._fitting()
        new = [layer for layer in newest if layer in fitting]
        wanted = chosen or (new[-1] if new else before)
        self.labels.setCurrentIndex(found.index(wanted) + 1 if wanted in found else 0)
        self.labels.blockSignals(False)
        self._on_labels()

    def _fitting(self) -> list[Any]:
        """List the labels of the chosen image."""
        image = self.image.case
        return labels_for(image, self._viewer.layers) if image is not None else []

    def _on_image(self) -> None:
        """Choose the labels of the chosen image, never those of another one."""
        fitting = [layer for layer in self._layers if layer in self._fitting()]
        if self.layer not in fitting:
            self.labels.setCurrentIndex(self._layers.index(fitting[-1]) + 1 if fitting else 0)
        self._on_changed()

    def _on_labels(self) -> None:
        """Show how much of them was labelled when they were added; of others, all."""
        layer = self.layer
        if layer is not self._seen:
            self._seen = layer
            part = str(fmseg_metadata(layer).get("part", "nothing")) if layer is not None else "nothing"
            self.part.setCurrentIndex(list(PARTS.values()).index(part) if part in PARTS.values() else 0)
        self._on_changed()

    def _on_changed(self) -> None:
        case, image, known = self.case, self.image.case, self._project is not None
        why = "" if known else TEACH.no_project
        no_image = self.image.refusal or "Open an image first: drop a file on the window."
        why = why or (no_image if image is None else "")
        allow(self.new_button, why, TEACH.new_labels)
        why = why or (f"Choose the labels of {case}." if case and self.layer is None else "")
        self.add_button.setText(f"Save labels of {case}" if case else "&Add to the project")
        allow(self.add_button, why, TEACH.save_labels if case else TEACH.add)
        no_file = "" if _source(image) is not None else "This image was not opened from a single file."
        allow(self.files, TEACH.has_image if case else no_file, TEACH.files)
        allow(self.name, TEACH.has_name if case else "", TEACH.name)
        self.name.setPlaceholderText(case or self._free_name)
        allow(self.part, TEACH.no_labels if self.layer is None else "", TEACH.part)

    # --- what the user does ---

    def _on_new(self) -> None:
        """Add an empty layer on the image, with the project's classes."""
        if self._project is None or self.image.case is None:
            return
        names = dict(self._project.facts.labels)
        try:
            frame = Frame.of(self.image.case.layers[0])
        except FmsegError as error:
            self.failed.emit(error)
            return
        blank = LabelMap(np.zeros(frame.geometry.shape, np.uint8), frame.geometry, {}, names)
        data, options, _ = labels_layer(blank, f"{self.image.case.name} · labels", frame=frame)
        options["metadata"][KEY]["image"] = record_of(self.image.case)
        layer = self._viewer.add_labels(data, **options)
        layer.selected_label = next(iter(names), 1)
        layer.mode = "paint"
        self._viewer.layers.selection.active = layer
        self._fill(layer)

    def _on_add(self) -> None:
        try:
            wanted = self._new_case()
        except FmsegError as error:
            self.failed.emit(error)
            return
        if wanted is not None:
            self.add.emit(wanted)

    def _new_case(self) -> NewCase | None:
        """Put together what is to be added; None if the user does not agree to something."""
        project, image = self._project, self.image.case
        if project is None or image is None:
            return None
        grid = geometry_of(image.layers[0])
        filed = fmseg_metadata(image.layers[0]).get("filed")
        filed = filed if isinstance(filed, Geometry) else grid
        labels, options = None, LabelOptions()
        renamed: Mapping[str, str] = {}
        if self.layer is not None:
            doubt = why_ask(self.layer, image, self._viewer.layers)
            if doubt and not self._agrees_to_image(doubt, image):
                return None
            labels = self._copy_of(self.layer, image)
            resample = not labels.geometry.matches(grid, atol_mm=0.1)
            if resample and not self._agrees_to_resampling(labels, grid):
                return None
            names = ask_classes(self, labels, project)
            part = self._part(labels) if names is not None else None
            if names is None or part is None:
                return None
            renamed, labels = names.renamed, names.rename_in(labels)
            options = LabelOptions(
                resample=resample, unlabelled=part, axis=_axis(labels, grid, filed), new_classes=bool(names.new)
            )
            labels = as_filed(labels, filed) if not resample else labels
        if self.case:
            shown, revision = (image, self.layer), self._revision(project)
            # The answer has the layer's values: where the project numbers classes anew, it is of no use.
            same = not (renamed or options.new_classes or options.resample)
            return NewCase(
                project.folder, self.case, None, labels, options, shown=shown, revision=revision, renamed=renamed,
                corrections=pack_corrections(self.layer, grid) if self.layer is not None and same else None,
            )  # fmt: skip
        if not has_spacing(image.layers[0]) and not self._agrees_to_pixels(image):
            return None
        link = self.files.isEnabled() and self.files.currentIndex() == 1
        volume = along(volume_of(image.layers), filed)
        return NewCase(
            project.folder,
            self.name.text().strip() or free_name(project),
            _source(image) if link else volume,
            labels,
            options,
            link,
            (image, self.layer),
            renamed=renamed,
        )

    def _part(self, labels: LabelMap) -> str | None:
        """Return what of the labels was not looked at; None if the user does not want to add them.

        Where few slices were painted, it is asked, unless the user has said so of these labels before.
        """
        part = PARTS[self.part.currentText()]
        recorded = fmseg_metadata(self.layer)
        if part != "nothing" or recorded.get("part") == part or self._has_whole_labels():
            return part
        answer = ask_part(self, labels)
        if answer is not None:
            self.part.setCurrentIndex(list(PARTS.values()).index(answer))
        return answer

    def _has_whole_labels(self) -> bool:
        """Return whether the case has labels of the whole volume already, as somebody has said."""
        if self._project is None or not self.case or self._project.files[self.case].labels is None:
            return False
        record = self._project.record(self.case)
        return not record.sparse and not record.unconfirmed

    def _revision(self, project: Project) -> str:
        """Return which labels of the case these correct: those that its layers were read with."""
        layers = (self.layer, *(self.image.case.layers if self.image.case is not None else ()))
        recorded = [fmseg_metadata(layer) for layer in layers if layer is not None]
        known = [of for of in recorded if of.get("case") == self.case and of.get("project") == str(project.folder)]
        return next((str(of["revision"]) for of in known if "revision" in of), labels_revision(project, self.case))

    def _copy_of(self, layer: Any, image: ImageVolume) -> LabelMap:
        """Copy labels; a layer that lies on the image in the window, as napari's own new ones do, lies on its grid.

        Raises
        ------
        GeometryMismatch
            If they lie beside the image.
        """
        own = isinstance(fmseg_metadata(layer).get("geometry"), Geometry)
        known = not own and same_place(layer, image.layers[0])
        labels = labels_of(layer, image.geometry) if known else label_map(layer, self._viewer.layers)
        if not _meet(labels.geometry, image.geometry):
            raise GeometryMismatch(
                f"“{layer.name}” lies beside “{image.name}”: the two have no voxel in common. Choose the labels that "
                "were made on this image."
            )
        return LabelMap(np.array(labels.data), labels.geometry, labels.meta, labels.names)

    def _agrees_to_image(self, doubt: str, image: ImageVolume) -> bool:
        title = f"Are these the labels of {self.case or image.name}?"
        text = f"{doubt} Training on the labels of another image harms the model without any warning."
        return ask(self, title, text, "Use them", "Cancel")

    def _agrees_to_pixels(self, image: ImageVolume) -> bool:
        text = (
            f"The size of the voxels of “{image.name}” is not known: the units of its layer are pixels. The project "
            f"would have it as {_size(image.geometry)}, and the model would learn that. If you know better, cancel and "
            'set the layer\'s scale and its units, such as layer.units = ("mm", "mm", "mm").'
        )
        return ask(self, "Take a pixel for 1 mm?", text, "Add it so", "Cancel")

    def _agrees_to_resampling(self, labels: LabelMap, grid: Geometry) -> bool:
        return ask(
            self,
            "Move the labels onto the image's voxels?",
            f"The labels have {_size(labels.geometry)}, the image {_size(grid)}. They can be read at the image's "
            "voxels, each from the nearest one; edges may shift by half a voxel. What lies outside of the labels "
            "counts as not labelled.",
            "Move them",
            "Cancel",
        )


def _source(case: ImageVolume | None) -> Path | None:
    """Return the one file that an image was read from, if it is there."""
    if case is None or len(case.layers) != 1:
        return None
    source = str(fmseg_metadata(case.layers[0]).get("source") or "")
    return Path(source) if source and Path(source).is_file() else None


def _axis(labels: LabelMap, grid: Geometry, filed: Geometry) -> int:
    """Return the along which axis of the file slices were labelled: that with the smallest share of slices that have
    any.
    """
    shares = [(labels.data != 0).any(tuple(b for b in range(3) if b != a)).mean() for a in range(3)]
    turn = np.abs(filed.direction.T @ labels.geometry.direction)
    return int(turn[:, int(np.argmin(shares))].argmax())


def _size(grid: Geometry) -> str:
    mm = " x ".join(f"{n:.3g}" for n in grid.spacing)
    return f"{' x '.join(map(str, grid.shape))} voxels of {mm} mm"


def _meet(one: Geometry, other: Geometry) -> bool:
    """Return whether two grids overlap: some voxel of a box around either lies in the other."""
    corners = np.array(np.meshgrid(*[(-0.5, n - 0.5) for n in one.shape])).reshape(3, -1).T
    index = np.linalg.solve(other.affine, np.c_[one.place(corners), np.ones(8)].T).T[:, :3]
    return bool((index.max(0) > -0.5).all() and (index.min(0) < np.array(other.shape) - 0.5).all())
