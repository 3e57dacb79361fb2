"""The corrected slices: a click goes to one, a button or Delete drops one, another counts the shown slice as right."""

from __future__ import annotations

from qtpy.QtCore import QEvent, QObject, Qt, Signal
from qtpy.QtGui import QKeyEvent
from qtpy.QtWidgets import QListView, QListWidget, QListWidgetItem, QWidget

from napari_fmseg._napari.common.tooltips import CORRECT
from napari_fmseg._napari.common.widgets import NO_MARGINS, allow, hbox, paragraph, push_button, vbox
from napari_fmseg._napari.correct.shown_slice import AXIS_NAMES

__all__ = ["SliceList"]

HEIGHT = 46  # pixels: two lines of numbers


class SliceList(QWidget):
    """The corrected slices along one axis, as numbers beside one another."""

    chosen = Signal(int)  # a slice to go to
    dropped = Signal(int)  # a slice that is no longer to count as corrected
    marked = Signal()  # the shown slice is to count as corrected

    def __init__(self, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self.title = paragraph()
        self.list = QListWidget()
        self.list.setFlow(QListView.Flow.LeftToRight)
        self.list.setWrapping(True)
        self.list.setResizeMode(QListView.ResizeMode.Adjust)
        self.list.setSpacing(2)
        self.list.setFixedHeight(HEIGHT)
        self.list.setHorizontalScrollBarPolicy(Qt.ScrollBarPolicy.ScrollBarAlwaysOff)
        self.list.setToolTip(CORRECT.slices)
        self.list.installEventFilter(self)
        self.mark = push_button("Slice is &right", CORRECT.mark)
        self.drop = push_button("&Drop", CORRECT.drop)
        vbox(self.title, self.list, hbox(1, self.mark, self.drop), of=self, margins=NO_MARGINS, spacing=4)
        self.list.itemClicked.connect(lambda item: self.chosen.emit(self._slice(item)))
        self.list.itemActivated.connect(lambda item: self.chosen.emit(self._slice(item)))
        self.list.currentItemChanged.connect(self._on_current)
        self.mark.clicked.connect(self.marked)
        self.drop.clicked.connect(self._on_drop)
        self.show_slices(0, (), None, ())

    @property
    def slices(self) -> tuple[int, ...]:
        """The numbers that are listed."""
        return tuple(self._slice(self.list.item(row)) for row in range(self.list.count()))

    def show_slices(self, axis: int, slices: tuple[int, ...], shown: int | None, elsewhere: tuple[int, ...]) -> None:
        """List slices along an axis; the one on the screen is selected. `elsewhere` are other axes that have some."""
        if slices != self.slices:
            self.list.clear()
            for index in slices:
                item = QListWidgetItem(str(index))
                item.setData(Qt.ItemDataRole.UserRole, index)
                item.setTextAlignment(Qt.AlignmentFlag.AlignCenter)
                self.list.addItem(item)
        self.list.blockSignals(True)
        self.list.setCurrentRow(slices.index(shown) if shown in slices else -1)
        self.list.blockSignals(False)
        others = [AXIS_NAMES[other] for other in elsewhere if other != axis]
        more = f"; others are {' and '.join(others)}" if others else ""
        self.title.setText(f"{AXIS_NAMES[axis].capitalize()} slices that you corrected: {len(slices) or 'none'}{more}")
        self._on_current()

    def _on_current(self, *_: object) -> None:
        allow(self.drop, "" if self.list.currentItem() is not None else CORRECT.drop_none, CORRECT.drop)

    def _on_drop(self) -> None:
        item = self.list.currentItem()
        if item is not None:
            self.dropped.emit(self._slice(item))

    def eventFilter(self, watched: QObject | None, event: QEvent | None) -> bool:
        """Drop the slice that is selected when Delete is pressed."""
        if isinstance(event, QKeyEvent) and event.type() == QEvent.Type.KeyPress and event.key() == Qt.Key.Key_Delete:
            self._on_drop()
            return True
        return bool(super().eventFilter(watched, event))

    @staticmethod
    def _slice(item: QListWidgetItem | None) -> int:
        return int(item.data(Qt.ItemDataRole.UserRole)) if item is not None else -1
