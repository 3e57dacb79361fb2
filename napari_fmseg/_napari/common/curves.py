"""A plot that grows while a network learns: loss, Dice per class, or anything else over steps."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from qtpy.QtCore import QEvent, Qt
from qtpy.QtGui import QPalette, QResizeEvent
from qtpy.QtWidgets import QLabel, QSizePolicy, QVBoxLayout, QWidget
from superqt.utils import QSignalThrottler

__all__ = ["COLORS", "Curves"]

COLORS = ("#e69f00", "#56b4e9", "#009e73", "#cc79a7", "#d55e00", "#7f8cff", "#b8a900", "#999999")
"""Told apart with every kind of sight, and on a dark and a light ground (after Okabe and Ito)."""

MOST_POINTS = 2000  # in a curve; then every two neighbours become one
FEW_POINTS = 40  # marked by dots, so that the first is seen
_REDRAW_MS = 150
_ROOM = 1.3  # how much farther an axis reaches than its values when it has to be drawn anew
_LEAST_HEIGHT, _SPACING = 110, 2  # of the plot, and to the legend, in pixels

Color = str | Sequence[float]


class Curves(QWidget):
    """Lines over one x axis, with a legend that tells the last value of each.

    Parameters
    ----------
    x_name, y_name
        What stands at the axes.
    y_range
        Of the y axis, such as ``(0, 1)`` for Dice; without it, what the values need.
    colors
        Of curves by their names: "#rrggbb", or red, green, blue in 0..1; the others get their own.
    digits
        Of the values in the legend, behind the point.
    """

    def __init__(
        self,
        x_name: str = "step",
        y_name: str = "",
        *,
        y_range: tuple[float, float] | None = None,
        colors: Mapping[str, Color] | None = None,
        digits: int = 3,
        parent: QWidget | None = None,
    ) -> None:
        super().__init__(parent)
        import pyqtgraph

        self._digits = digits
        self._colors: dict[str, Color] = dict(colors or {})
        self._points: dict[str, list[tuple[float, float, int]]] = {}  # x, y, of how many values it is the mean
        self._grain: dict[str, int] = {}
        self._lines: dict[str, Any] = {}
        self._looks: dict[str, Any] = {}  # how axes and lines were last dressed and framed: that takes a while
        self._y_range = y_range
        self.plot = pyqtgraph.PlotWidget(background=None)
        self.plot.setMouseEnabled(False, False)  # the wheel scrolls the dock
        self.plot.setMenuEnabled(False)
        self.plot.hideButtons()
        self.plot.setCacheMode(self.plot.CacheModeFlag.CacheNone)  # or the ground stays that of the theme before
        for side in ("left", "bottom"):
            self.plot.getAxis(side).enableAutoSIPrefix(False)  # a loss of 0.6 is not 600 thousandths
        self.plot.setMinimumHeight(_LEAST_HEIGHT)
        self.plot.setSizePolicy(
            QSizePolicy.Policy.Ignored, QSizePolicy.Policy.Ignored
        )  # by itself it asks for 640 x 480
        self.plot.setLabel("bottom", x_name)
        self.plot.setLabel("left", y_name)
        self.plot.showGrid(x=False, y=True, alpha=0.25)
        self.plot.disableAutoRange()
        self.plot.setYRange(*(y_range or (0, 1)), padding=0.02)
        self.legend = QLabel()
        self.legend.setWordWrap(True)
        self.legend.setTextFormat(Qt.TextFormat.RichText)
        self.legend.setAlignment(Qt.AlignmentFlag.AlignCenter)
        rows = QVBoxLayout(self)
        rows.setContentsMargins(0, 0, 0, 0)
        rows.setSpacing(_SPACING)
        rows.addWidget(self.plot, 1)
        rows.addWidget(self.legend)
        self._redraws = QSignalThrottler(QSignalThrottler.EmissionPolicy.Trailing, self)
        self._redraws.setTimeout(_REDRAW_MS)
        self._redraws.triggered.connect(self._redraw)
        self._redraw()

    def add(self, x: float, values: Mapping[str, float]) -> None:
        """Add a point to each curve that is named; a value that is no number leaves none."""
        for name, value in values.items():
            points = self._points.setdefault(name, [])
            if not math.isfinite(value):
                continue
            grain = self._grain.setdefault(name, 1)
            if points and points[-1][2] < grain:
                x0, y0, n = points[-1]
                points[-1] = ((x0 * n + x) / (n + 1), (y0 * n + value) / (n + 1), n + 1)
            else:
                points.append((float(x), float(value), 1))
            if len(points) > MOST_POINTS:
                points[:] = [_merge_points(*points[i : i + 2]) for i in range(0, len(points), 2)]
                self._grain[name] = 2 * grain
        self._redraws.throttle()

    def clear(self) -> None:
        """Remove all curves; their colours stay."""
        for line in self._lines.values():
            self.plot.removeItem(line)
        for kept in (self._points, self._grain, self._lines, self._looks):
            kept.clear()
        self._redraw()

    def set_colors(self, colors: Mapping[str, Color]) -> None:
        """Set the colours of curves, also of those that are drawn already."""
        self._colors.update(colors)
        self._redraw()

    def values(self, name: str) -> tuple[list[float], list[float]]:
        """Return the points of a curve: their x and their y."""
        points = self._points.get(name, [])
        return [x for x, _, _ in points], [y for _, y, _ in points]

    @property
    def names(self) -> tuple[str, ...]:
        """The curves, in the order in which they came."""
        return tuple(self._points)

    def color(self, name: str) -> str:
        """Return the colour of a curve as "#rrggbb"."""
        given = self._colors.get(name)
        if isinstance(given, str):
            return given
        if given is not None:
            return "#" + "".join(f"{round(255 * float(v)):02x}" for v in given[:3])
        others = [n for n in self._points if n not in self._colors]
        return COLORS[others.index(name) % len(COLORS)] if name in others else COLORS[-1]

    def changeEvent(self, event: QEvent) -> None:
        """Follow the theme."""
        super().changeEvent(event)
        if event.type() in (QEvent.Type.StyleChange, QEvent.Type.PaletteChange) and hasattr(self, "_redraws"):
            self._redraws.throttle()

    def resizeEvent(self, event: QResizeEvent | None) -> None:
        super().resizeEvent(event)
        self._fit()

    def _redraw(self) -> None:
        self._dress()
        for name, points in self._points.items():
            line = self._lines.get(name)
            if line is None:
                line = self._lines[name] = self.plot.plot(name=name)
            look = self.color(name), len(points) <= FEW_POINTS
            if self._is_new(f"line {name}", look):
                line.setPen(color=look[0], width=2)
                line.setSymbol("o" if look[1] else None)
                line.setSymbolSize(5)
                line.setSymbolBrush(look[0])
                line.setSymbolPen(None)
            line.setData(*self.values(name))
        self._frame()
        self.legend.setText("&nbsp;&nbsp; ".join(self._legend_entry(name) for name in self._points))
        self.legend.setVisible(bool(self._points))
        self._fit()

    def _dress(self) -> None:
        """Colour the axes as the theme does."""
        self.legend.ensurePolished()  # a style sheet, as napari's, tells its colours only to those that it has dressed
        text = self.legend.palette().color(QPalette.ColorRole.WindowText)
        if self._is_new("axes", text.name()):
            for side in ("left", "bottom"):
                axis = self.plot.getAxis(side)
                axis.setPen(color=text, width=1)
                axis.setTextPen(text)
                axis.label.setDefaultTextColor(text)

    def _frame(self) -> None:
        """Extend the axes to the values, and somewhat farther: their numbers take longest to draw."""
        points = [point for points in self._points.values() for point in points]
        if not points:
            return
        first, last = min(x for x, _, _ in points), max(x for x, _, _ in points)
        low, high = self._looks.get("x", (math.inf, -math.inf))
        if first < low or last > high:
            self._looks["x"] = first, first + max(1.0, _ROOM * (last - first))
            self.plot.setXRange(*self._looks["x"], padding=0.02)
        if self._y_range is not None:
            return
        lowest, highest = min(y for _, y, _ in points), max(y for _, y, _ in points)
        low, high = self._looks.get("y", (math.inf, -math.inf))
        if lowest < low or highest > high or high - low > 2 * _ROOM * max(1e-9, highest - lowest):
            room = (_ROOM - 1) / 2 * ((highest - lowest) or abs(highest) or 1.0)
            self._looks["y"] = lowest - room, highest + room
            self.plot.setYRange(*self._looks["y"], padding=0.02)

    def _is_new(self, what: str, look: Any) -> bool:
        """Return whether something looks otherwise than before; it is taken to look so from now on."""
        changed: bool = self._looks.get(what) != look
        self._looks[what] = look
        return changed

    def _fit(self) -> None:
        """Set the height that plot and legend need: a layout does not, where the one has a policy to be
        ignored.
        """
        below = self.legend.heightForWidth(self.width()) + _SPACING if self._points else 0
        self.setMinimumHeight(_LEAST_HEIGHT + below)

    def _legend_entry(self, name: str) -> str:
        points = self._points[name]
        value = f" {points[-1][1]:.{self._digits}f}" if points else ""
        said = f"{name}{value}".replace("<", "&lt;").replace(" ", "&nbsp;")
        return f'<span style="color: {self.color(name)}">●</span>&nbsp;{said}'


def _merge_points(first: tuple[float, float, int], *second: tuple[float, float, int]) -> tuple[float, float, int]:
    """Return two points of a curve as one, at their mean."""
    points = (first, *second)
    n = sum(count for _, _, count in points)
    return sum(x * k for x, _, k in points) / n, sum(y * k for _, y, k in points) / n, n
