"""How well a model does on patients that it did not learn from, on its card: intervals, worst cases, groups."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean, stdev

from napari_fmseg.core.errors import UnknownModel

__all__ = ["Accuracy", "Validation", "summarise_cases"]

_CONFIDENCE = 0.95


@dataclass(frozen=True)
class Accuracy:
    """Dice over patients; of a patient with several cases their mean counts.

    Parameters
    ----------
    n_patients
        Over how many.
    dice
        The mean.
    low, high
        95 % confidence interval of the mean, by Student's t distribution, within 0..1; None of a single patient (not
        nan, with which a card would not be equal to itself).
    worst, worst_case
        The lowest Dice of a case, and the name of that case in its public data set.
    """

    n_patients: int
    dice: float
    worst: float
    worst_case: str
    low: float | None = None
    high: float | None = None

    def __post_init__(self) -> None:
        outside = self.low is not None and self.high is not None and not self.low <= self.dice <= self.high
        if self.n_patients < 1 or not 0 <= self.dice <= 1 or outside:
            raise UnknownModel(f"validation needs a Dice from 0 to 1 within its interval, not {self}.")

    @property
    def interval(self) -> str:
        """The interval as text, or "" where there is none."""
        return "" if self.low is None or self.high is None else f"{self.low:.2f} to {self.high:.2f}"

    def __str__(self) -> str:
        interval = f", 95 % interval {self.interval}" if self.interval else ""
        patients = f"{self.n_patients} patient{'s' if self.n_patients > 1 else ''}"
        return f"{self.dice:.3f} ({patients}{interval}, worst case {self.worst:.2f})"


@dataclass(frozen=True)
class Validation:
    """What a model reached on cases that it did not learn from.

    Parameters
    ----------
    overall
        Of the mean Dice over the classes.
    classes, groups
        The same for each class, and for each group of patients (a disease, a scanner) where groups are known.
    n_cases
        Number of volumes.
    sha256
        Hash of the weights that were measured; of other weights it says nothing.
    precision
        In which it was measured.
    """

    overall: Accuracy
    classes: Mapping[str, Accuracy]
    n_cases: int
    sha256: str
    precision: str = "float32"
    groups: Mapping[str, Accuracy] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.classes or self.n_cases < 1 or len(self.sha256) != 64:
            raise UnknownModel("validation needs a class, a case and the sha256 of the weights (64 digits).")


def summarise_cases(
    cases: Mapping[str, Mapping[str, float]],
    sha256: str,
    *,
    patient: Callable[[str], str] = str,
    group: Callable[[str], str] | None = None,
    precision: str = "float32",
) -> Validation:
    """Summarise the Dice of cases.

    Parameters
    ----------
    cases
        Dice by case and class; nan where a class is in neither mask.
    sha256, precision
        See `Validation`.
    patient
        Whose a case is; by default every case is another patient's.
    group
        Which group a patient belongs to; no groups by default.

    Raises
    ------
    UnknownModel
        If no class was measured.
    """
    names = dict.fromkeys(name for dice in cases.values() for name in dice)
    means = {case: _mean(list(dice.values())) for case, dice in cases.items()}
    classes = {name: {case: dice.get(name, math.nan) for case, dice in cases.items()} for name in names}
    groups: dict[str, dict[str, float]] = {}
    for case, mean in means.items():
        if group is not None:
            groups.setdefault(group(patient(case)), {})[case] = mean
    measured = {name: accuracy for name, dice in classes.items() if (accuracy := _accuracy(dice, patient)) is not None}
    overall = _accuracy(means, patient)
    if overall is None:
        raise UnknownModel("No case has a Dice of any class, so there is nothing to state.")
    told = {name: accuracy for name, dice in groups.items() if (accuracy := _accuracy(dice, patient)) is not None}
    return Validation(overall, measured, len(cases), sha256, precision, told)


def _accuracy(dice: Mapping[str, float], patient: Callable[[str], str]) -> Accuracy | None:
    """Return the accuracy over the cases that have a Dice; None where none has."""
    patients: dict[str, list[float]] = {}
    for case, value in dice.items():
        if math.isfinite(value):
            patients.setdefault(patient(case), []).append(value)
    if not patients:
        return None
    means = [fmean(values) for values in patients.values()]
    worst = min((case for case in dice if math.isfinite(dice[case])), key=lambda case: dice[case])
    return Accuracy(len(means), _short(fmean(means)), _short(dice[worst]), worst, *_interval(means))


def _interval(means: Sequence[float]) -> tuple[float, float] | tuple[None, None]:
    """Return the 95 % confidence interval of the mean by Student's t distribution, within 0..1; None of one value."""
    from scipy import stats

    n, mean = len(means), fmean(means)
    if n < 2:
        return None, None
    half = float(stats.t.ppf((1 + _CONFIDENCE) / 2, n - 1)) * stdev(means) / math.sqrt(n)
    return _short(max(0.0, mean - half)), _short(min(1.0, mean + half))


def _mean(values: Sequence[float]) -> float:
    finite = [value for value in values if math.isfinite(value)]
    return fmean(finite) if finite else math.nan


def _short(value: float) -> float:
    return round(value, 4)
