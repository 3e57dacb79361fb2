"""Fields for numbers that understand a decimal comma as well as a point, whatever the language of the computer.

Qt's own take the other sign for one that groups thousands, or leave it out: "2.5" becomes 25 on a German computer, and
"2,5" on an English one.
"""

from __future__ import annotations

import math

from qtpy.QtCore import QLocale
from qtpy.QtGui import QValidator
from qtpy.QtWidgets import QDoubleSpinBox, QSpinBox, QWidget

__all__ = ["CountBox", "NumberBox"]


class NumberBox(QDoubleSpinBox):
    """A number with decimals, shown with a point and without zeros at its end."""

    def __init__(self, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self.setLocale(QLocale.c())

    def validate(self, text: str, pos: int) -> tuple[QValidator.State, str, int]:
        """Judge what is typed, a comma being a point."""
        state, text, pos = super().validate(text.replace(",", "."), pos)
        return state, text, pos

    def valueFromText(self, text: str) -> float:
        return float(super().valueFromText(text.replace(",", ".")))

    def textFromValue(self, value: float) -> str:
        text = f"{value:.{self.decimals()}f}"
        return text.rstrip("0").rstrip(".") if "." in text else text


class CountBox(QSpinBox):
    """A whole number; what is typed with decimals is rounded, not read without its point."""

    def __init__(self, parent: QWidget | None = None) -> None:
        super().__init__(parent)
        self.setLocale(QLocale.c())

    def validate(self, text: str, pos: int) -> tuple[QValidator.State, str, int]:
        """Judge what is typed; a number with decimals is not refused, but becomes whole when it is done."""
        if _has_point(self._bare(text)):
            is_number = self._round(text) is not None
            return (QValidator.State.Intermediate if is_number else QValidator.State.Invalid), text, pos
        state, text, pos = super().validate(text, pos)
        return state, text, pos

    def fixup(self, text: str) -> str:
        """Round what has decimals."""
        number = self._round(text) if _has_point(self._bare(text)) else None
        return super().fixup(text) or text if number is None else f"{self.prefix()}{number}{self.suffix()}"

    def _bare(self, text: str) -> str:
        return text.removeprefix(self.prefix()).removesuffix(self.suffix()).strip()

    def _round(self, text: str) -> int | None:
        try:
            number = float(self._bare(text).replace(",", ".").rstrip(".") or "0")
        except ValueError:
            return None
        return min(max(math.floor(number + 0.5), self.minimum()), self.maximum()) if math.isfinite(number) else None


def _has_point(text: str) -> bool:
    return "." in text or "," in text
