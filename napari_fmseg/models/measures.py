"""What is measured of a volume to compare it with others: values, voxels, and how much of a body it shows."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from napari_fmseg.core.volume import Geometry, Volume

__all__ = ["Measures", "TrainingData", "Values", "join", "measure", "measure_volume", "summarise"]

Triple = tuple[float, float, float]
T = TypeVar("T")

_SAMPLES = 48  # along each axis
_AIR_HU = -300.0
_BACKGROUND = 0.1  # of the way from the lowest to the highest values, where they have no unit
_DIGITS = 4


@dataclass(frozen=True)
class Values:
    """The values of one channel.

    Attributes
    ----------
    minimum, maximum
        The lowest and the highest.
    low, median, high
        The percentiles 0.5, 50 and 99.5.
    negative, whole
        Shares of the voxels that are below 0, and that are whole numbers.
    """

    minimum: float
    low: float
    median: float
    high: float
    maximum: float
    negative: float
    whole: float

    @property
    def is_hu(self) -> bool:
        """Whether they are those of a CT: air far below 0, or whole numbers of which many are below 0."""
        plausible = self.minimum >= -10_000 and self.high <= 5000
        inside = self.low <= -60 and self.negative >= 0.05 and self.whole >= 0.95
        return plausible and (self.minimum <= -500 or inside)


@dataclass(frozen=True)
class Measures:
    """What is measured of one volume; or the lowest, or the highest, of several.

    Attributes
    ----------
    spacing_mm, field_mm
        Of the voxels and of the whole grid, along the patient's axes nearest to (z, y, x).
    body_mm
        The box around all that is not background.
    section_cm2
        The median area of what is not background, over the axial planes that show any of it.
    rim
        The share of the volume's four sides that is not background: near 0 where air lies around a body, near 1 in a
        part that was cut out of one.
    channels
        The values of each.
    is_phantom
        Whether its file says that it is a phantom, and no patient.
    """

    spacing_mm: Triple
    field_mm: Triple
    body_mm: Triple
    section_cm2: float
    rim: float
    channels: tuple[Values, ...]
    is_phantom: bool = False


@dataclass(frozen=True)
class TrainingData:
    """What volumes a model was trained on: ranges over all of them, nothing of a single one.

    Attributes
    ----------
    n_cases
        How many there were.
    low, high
        The lowest and the highest of each measure.
    """

    n_cases: int
    low: Measures
    high: Measures

    @property
    def is_of_phantoms(self) -> bool:
        """Whether all of them are phantoms, so that the model knows no patient."""
        return self.low.is_phantom

    def problem(self, n_channels: int) -> str:
        """Return why these cannot be the ranges of volumes with so many channels, or ""."""
        if self.n_cases < 1:
            return f"training_data.n_cases is {self.n_cases}; expected 1 or more"
        for name, one in (("low", self.low), ("high", self.high)):
            if not all(math.isfinite(number) for number in _numbers(one)):
                return f"training_data.{name} has a number that is not finite"
            if len(one.channels) != n_channels:
                return f"training_data.{name} tells of {len(one.channels)} channel(s); expected {n_channels}"
        return ""


def measure_volume(volume: Volume) -> Measures:
    """Measure a volume on a coarse sample of its voxels."""
    return measure(list(volume.channels), volume.geometry, volume.meta)


def measure(channels: Sequence[Any], geometry: Geometry, meta: Mapping[str, Any]) -> Measures:
    """Measure a volume on a coarse sample of its voxels, so that the largest takes milliseconds.

    Parameters
    ----------
    channels
        Arrays (z, y, x), in memory or not.
    geometry
        Where their voxels lie.
    meta
        What is known of their file.
    """
    grid, order, flips = geometry.canonical()
    steps = tuple(-(-n // _SAMPLES) for n in geometry.shape)
    sampled = tuple(slice((step - 1) // 2, None, step) for step in steps)
    taken = [np.flip(np.asarray(data[sampled]).transpose(order), flips) for data in channels]
    values = [_values(data) for data in taken]
    spacing, field = grid.spacing, [n * mm for n, mm in zip(grid.shape, grid.spacing, strict=True)]
    body = _body(taken[0], values[0])
    planes = body.mean((1, 2))
    shown = planes[planes > 0.01]
    sides = np.concatenate([body[:, side].ravel() for side in (0, -1)] + [body[:, :, side].ravel() for side in (0, -1)])
    return Measures(
        _round_all(spacing),
        _round_all(field),
        _round_all(_extent(body, axis) * mm for axis, mm in enumerate(field)),
        _round(float(np.median(shown)) * field[1] * field[2] / 100 if shown.size else 0.0),
        _round(float(sides.mean())),
        tuple(values),
        bool(meta.get("phantom")),
    )


def summarise(measured: Iterable[Measures]) -> TrainingData | None:
    """Return the ranges over several volumes of as many channels; None if there is none."""
    found = list(measured)
    if not found:
        return None
    return TrainingData(len(found), _of_each(min, found), _of_each(max, found))


def join(parts: Sequence[TrainingData], n_cases: int) -> TrainingData | None:
    """Return the ranges over the volumes of several trainings, `n_cases` in all; None if there is none."""
    if not parts:
        return None
    low, high = _of_each(min, [part.low for part in parts]), _of_each(max, [part.high for part in parts])
    return TrainingData(n_cases, low, high)


def _values(data: npt.NDArray[Any]) -> Values:
    """Return the values of a sample; what is not finite does not count."""
    some = data.astype(np.float64).ravel()
    some = some[np.isfinite(some)]
    if not some.size:
        some = np.zeros(1)
    numbers = [some.min(), *np.percentile(some, (0.5, 50, 99.5)), some.max(), (some < 0).mean(), _is_whole(some).mean()]
    return Values(*_round_all(numbers))


def _is_whole(some: npt.NDArray[np.float64]) -> npt.NDArray[np.bool_]:
    return np.asarray(some == np.rint(some))


def _body(data: npt.NDArray[Any], values: Values) -> npt.NDArray[np.bool_]:
    """Return which voxels of a sample are not background."""
    above = _AIR_HU if values.is_hu else values.low + _BACKGROUND * (values.high - values.low)
    return np.asarray((data > above) & np.isfinite(data))


def _extent(body: npt.NDArray[np.bool_], axis: int) -> float:
    """Return the share of an axis between the first and the last plane that shows something."""
    planes = np.flatnonzero(body.mean(tuple(other for other in range(3) if other != axis)) > 0.01)
    return float(planes[-1] - planes[0] + 1) / body.shape[axis] if planes.size else 0.0


def _of_each(choose: Any, things: Sequence[T]) -> T:
    """Return the lowest, or the highest, of every number in dataclasses of one shape."""
    first: Any = things[0]
    if dataclasses.is_dataclass(first) and not isinstance(first, type):
        names = [field.name for field in dataclasses.fields(first)]
        chosen = {name: _of_each(choose, [getattr(thing, name) for thing in things]) for name in names}
        return type(first)(**chosen)  # type: ignore[return-value]
    if isinstance(first, tuple):
        return tuple(_of_each(choose, parts) for parts in zip(*things, strict=True))  # type: ignore[return-value]
    return choose(things)  # type: ignore[no-any-return]


def _numbers(thing: Any) -> Iterator[float]:
    """Yield every number in dataclasses and tuples."""
    if isinstance(thing, tuple):
        for one in thing:
            yield from _numbers(one)
    elif dataclasses.is_dataclass(thing):
        yield from _numbers(tuple(getattr(thing, field.name) for field in dataclasses.fields(thing)))
    else:
        yield thing


def _round(number: float) -> float:
    """Return a number with the few digits that a card needs."""
    return float(f"{number:.{_DIGITS}g}")


def _round_all(numbers: Iterable[float]) -> Any:
    return tuple(_round(float(number)) for number in numbers)
