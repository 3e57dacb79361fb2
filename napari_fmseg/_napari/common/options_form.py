"""A form made from a frozen dataclass of options: one widget per field, its help from the docstring."""

from __future__ import annotations

import dataclasses
import inspect
import re
from collections.abc import Mapping, Sequence
from typing import Any, get_type_hints

from magicgui.widgets import create_widget
from qtpy.QtCore import Signal
from qtpy.QtWidgets import QWidget

from napari_fmseg._napari.common.number_boxes import CountBox, NumberBox
from napari_fmseg._napari.common.widgets import add_row, allow, form, limit_width

__all__ = ["OptionsForm", "help_of", "label_of"]

_MOST, _DECIMALS = 1_000_000, 6


class OptionsForm(QWidget):
    """One row per field of a dataclass.

    Parameters
    ----------
    kind
        The dataclass; all its fields have defaults.
    skip
        Fields that are set elsewhere.
    choices
        What a field may be, by its name: texts, or pairs of a text and the value it stands for.
    labels
        How a field is called; without it its name in words.
    """

    changed = Signal()

    def __init__(
        self,
        kind: type,
        *,
        skip: Sequence[str] = (),
        choices: Mapping[str, Sequence[Any]] | None = None,
        labels: Mapping[str, str] | None = None,
        parent: QWidget | None = None,
    ) -> None:
        super().__init__(parent)
        self._widgets: dict[str, Any] = {}
        layout = form(self, margins=(12, 0, 0, 0), spacing=None)
        hints, helps = get_type_hints(kind), help_of(kind)
        self._helps = helps
        for field in dataclasses.fields(kind):
            if field.name in skip:
                continue
            widget = _widget(field, hints[field.name], (choices or {}).get(field.name))
            name = (labels or {}).get(field.name) or label_of(field.name)
            add_row(layout, name, widget.native, helps.get(field.name, ""))
            widget.changed.connect(self._on_changed)
            self._widgets[field.name] = widget

    def values(self) -> dict[str, Any]:
        """Return the value of every field that is shown."""
        return {name: widget.value for name, widget in self._widgets.items()}

    def set_values(self, values: Mapping[str, Any]) -> None:
        """Show these values; fields that are not shown are passed over."""
        for name, value in values.items():
            if name in self._widgets:
                self._widgets[name].value = value

    def allow(self, name: str, disabled_reason: str = "") -> None:
        """Enable a field, or disable it with the reason as its tooltip."""
        allow(self._widgets[name].native, disabled_reason, self._helps.get(name, ""))

    def _on_changed(self) -> None:
        self.changed.emit()


class _Number:
    """A field for a number, as magicgui has them, that understands a decimal comma and a point."""

    def __init__(self, default: float | int) -> None:
        self.native: NumberBox | CountBox
        if isinstance(default, int):
            self.native = CountBox()
            self.native.setRange(0, _MOST)
        else:
            self.native = NumberBox()
            self.native.setDecimals(_DECIMALS)
            self.native.setRange(0.0, _MOST)
            self.native.setSingleStep(0.1)
        self.native.setValue(default)
        self.changed = self.native.valueChanged

    @property
    def value(self) -> float | int:
        number: float | int = self.native.value()
        return number

    @value.setter
    def value(self, value: float | int) -> None:
        self.native.setValue(value)


def _widget(field: Any, hint: Any, choices: Sequence[Any] | None) -> Any:
    if choices:
        combo = create_widget(value=field.default, name=field.name, widget_type="ComboBox",
                              options={"choices": list(choices)})  # fmt: skip
        for i, choice in enumerate(choices):  # magicgui has a text of its own for None
            combo.native.setItemText(i, choice if isinstance(choice, str) else choice[0])
        limit_width(combo.native, 8)
        return combo
    if hint in (float, int):
        return _Number(field.default)
    widget = create_widget(value=field.default, annotation=hint, name=field.name)
    if hint is bool:
        widget.native.setText("")  # the row has a label already
    return widget


def label_of(name: str) -> str:
    """Return a field's name as words: ``min_component_ml`` becomes "Min part (ml)"."""
    *words, last = name.split("_")
    units = {"ml", "mm", "seconds"}
    text = " ".join(words) if last in units and words else " ".join([*words, last])
    return text.capitalize() + (f" ({last})" if last in units and words else "")


def help_of(kind: type) -> dict[str, str]:
    """Read what each field means from the "Parameters" of a numpydoc docstring, without the markup."""
    text = inspect.getdoc(kind) or ""
    section = re.search(r"Parameters\n-+\n(.*?)(?=\n\S[^\n]*\n-+\n|\Z)", text, re.DOTALL)
    found: dict[str, str] = {}
    names: list[str] = []
    for line in section.group(1).splitlines() if section else ():
        if line and not line[0].isspace():
            names = [name.strip() for name in line.split(",")]
        elif line.strip():
            for name in names:
                found[name] = f"{found.get(name, '')} {line.strip()}".strip()
    return {name: said.replace("``", "").replace("`", "") for name, said in found.items()}
