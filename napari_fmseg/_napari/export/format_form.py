"""As what labels are exported: the way, its format, and for meshes whether they are smoothed."""

from __future__ import annotations

from qtpy.QtCore import QObject, QSignalBlocker, Signal
from qtpy.QtGui import QStandardItemModel
from qtpy.QtWidgets import QCheckBox, QComboBox

from napari_fmseg._napari.common.tooltips import EXPORT
from napari_fmseg.io.export import Kind

__all__ = ["SUFFIXES", "Way"]

_MAPS = (
    ("NIfTI, compressed (.nii.gz)", ".nii.gz"),
    ("NIfTI (.nii)", ".nii"),
    ("NRRD (.nrrd)", ".nrrd"),
    ("MetaImage (.mha)", ".mha"),
)
_MESHES = (("STL (.stl)", ".stl"), ("PLY, with colours (.ply)", ".ply"), ("OBJ, with names (.obj)", ".obj"))
_SEGS = (("DICOM (.dcm)", ".dcm"),)
_Formats = tuple[tuple[str, str], ...]
# What the user reads, what the library calls it, whether it fills a folder, and the formats.
_WAYS: tuple[tuple[str, Kind, bool, _Formats], ...] = (
    ("One file, all classes", "map", False, _MAPS),
    ("One file per class", "classes", True, _MAPS),
    ("One mesh per class", "meshes", True, _MESHES),
    ("One mesh, all classes", "meshes", False, _MESHES),
    ("DICOM SEG", "dicom-seg", False, _SEGS),
)
_SEG = len(_WAYS) - 1
SUFFIXES = tuple(suffix for _, suffix in (*_MAPS, *_MESHES, *_SEGS))


class Way(QObject):
    """Three widgets of a form that belong together."""

    changed = Signal()  # something else is to be written

    def __init__(self, parent: QObject | None = None) -> None:
        super().__init__(parent)
        self.what, self.format = QComboBox(), QComboBox()
        self.smooth = QCheckBox("&Smooth the steps between slices")
        self.smooth.setChecked(True)
        self.smooth.setToolTip(EXPORT.mesh_smooth)
        self.what.setToolTip(EXPORT.what)
        self.format.setToolTip(EXPORT.format)
        self.what.addItems([text for text, *_ in _WAYS])
        self.what.currentIndexChanged.connect(self._on_what)
        self.format.currentIndexChanged.connect(lambda: self.changed.emit())
        self._on_what()

    @property
    def _chosen(self) -> tuple[str, Kind, bool, _Formats]:
        return _WAYS[int(self.what.currentIndex())]

    @property
    def kind(self) -> Kind:
        """What the library calls it."""
        return self._chosen[1]

    @property
    def fills_folder(self) -> bool:
        """Whether several files are written."""
        return self._chosen[2]

    @property
    def suffix(self) -> str:
        """Of every file."""
        return str(self.format.currentData())

    def allow_dicom(self, disabled_reason: str) -> None:
        """Offer DICOM SEG, or say why not."""
        model = self.what.model()
        item = model.item(_SEG) if isinstance(model, QStandardItemModel) else None
        if item is not None:
            item.setEnabled(not disabled_reason)
            item.setToolTip(disabled_reason or EXPORT.dicom)
        if disabled_reason and self.what.currentIndex() == _SEG:
            self.what.setCurrentIndex(0)

    def _on_what(self) -> None:
        formats = self._chosen[3]
        before = self.format.currentData()
        with QSignalBlocker(self.format):
            self.format.clear()
            for text, suffix in formats:
                self.format.addItem(text, suffix)
            self.format.setCurrentIndex(max(0, self.format.findData(before)))
        self.format.setEnabled(len(formats) > 1)
        self.smooth.setVisible(self.kind == "meshes")
        self.changed.emit()
