"""Further images for a model of several channels, such as the PET beside the CT."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from qtpy.QtCore import Signal
from qtpy.QtWidgets import QWidget

from napari_fmseg._napari.choosers.image_chooser import ImageChooser
from napari_fmseg._napari.choosers.image_volumes import ImageVolume
from napari_fmseg._napari.common.tooltips import SEGMENT
from napari_fmseg._napari.common.widgets import add_row, form

__all__ = ["ChannelChooser"]


class ChannelChooser(QWidget):
    """One image for every channel of a model after the first; hidden where the first image has them all."""

    chosen = Signal()  # another image

    def __init__(self, viewer: Any, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self._viewer = viewer
        self._names: tuple[str, ...] = ()
        self.choosers: list[ImageChooser] = []
        self._form = form(self)
        self.hide()

    @property
    def names(self) -> tuple[str, ...]:
        """The channels that images are chosen for."""
        return self._names

    @property
    def cases(self) -> tuple[ImageVolume | None, ...]:
        """The images, in the order of the channels."""
        return tuple(chooser.case for chooser in self.choosers)

    def ask_for(self, names: tuple[str, ...], first: ImageVolume | None) -> None:
        """Show a chooser for each of these channels, which come after the `first` image; for none, hide."""
        if names != self._names:
            self.close_down()
            while self._form.rowCount():
                self._form.removeRow(0)
            self._names, self.choosers = names, []
            for name in names:
                self._add(name)
        self.setVisible(bool(names))
        self._settle(first)

    def choose(self, cases: Sequence[ImageVolume]) -> None:
        """Choose an image for each channel, in their order."""
        for chooser, case in zip(self.choosers, cases, strict=True):
            chooser.choose(case)

    def close_down(self) -> None:
        """Disconnect from the viewer."""
        for chooser in self.choosers:
            chooser.close_down()

    def _settle(self, first: ImageVolume | None) -> None:
        """Where an image is that of another channel already, choose a free one if there is one."""
        taken = [first.id] if first is not None else []
        for name, chooser in zip(self._names, self.choosers, strict=True):
            if chooser.case is not None and chooser.case.id in taken:
                chooser.choose_other(taken, name)
            taken += [chooser.case.id] if chooser.case is not None else []

    def _add(self, name: str) -> None:
        chooser = ImageChooser(self._viewer, follow=False)
        chooser.chosen.connect(self.chosen)
        add_row(self._form, name, chooser, SEGMENT.channel).setMinimumWidth(48)
        self.choosers.append(chooser)
