"""What would help a model most, in one sentence: more time, more labels of a class, or more cases like one."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np

__all__ = ["what_would_help"]

_CLEAR = 0.05  # Dice by which a class or a case is below the others before it is named
_RISES = 0.01  # Dice that a curve gains in its last third before more time is advised
_FEWEST_POINTS = 6  # of a curve
_FEWEST_CASES = 3  # of two, nobody knows which one is unusual


def what_would_help(scores: Mapping[str, Mapping[str, float]], curve: Sequence[float] = ()) -> str:
    """Name what would raise the mean Dice most.

    A class or a case counts for what the mean would gain if it were as good as the others, and time for what the last
    third of the training gained.

    Parameters
    ----------
    scores
        Dice by case and class, on cases that the model never saw; nan where a class is neither there nor found.
    curve
        Mean Dice after each epoch.

    Returns
    -------
    str
        One sentence, or "" where nothing is known or nothing stands out.
    """
    told = {case: {name: v for name, v in own.items() if math.isfinite(v)} for case, own in scores.items()}
    options = [_of_time(curve), _of_classes(told), _of_cases(told)]
    gain, sentence = max(options, key=lambda option: option[0])
    return sentence if gain > 0 else ""


def _of_time(curve: Sequence[float]) -> tuple[float, str]:
    """Return what the last third gained, if the curve ended higher than it had ever been."""
    points = [v for v in curve if math.isfinite(v)]
    n = len(points) // 3
    if len(points) < _FEWEST_POINTS or points[-1] < max(points):
        return 0.0, ""
    rise = float(np.polyfit(range(n), points[-n:], 1)[0]) * (n - 1)
    if rise < _RISES:
        return 0.0, ""
    return rise, f"More time would help most: Dice still rose by {rise:.2f} in the last third of the training."


def _of_classes(scores: Mapping[str, Mapping[str, float]]) -> tuple[float, str]:
    """Return what the mean gains if the lowest class is as good as the other ones."""
    by_class: dict[str, list[float]] = {}
    for own in scores.values():
        for name, value in own.items():
            by_class.setdefault(name, []).append(value)
    lowest, value, others = _lowest({name: _mean(values) for name, values in by_class.items()})
    if others - value < _CLEAR:
        return 0.0, ""
    sentence = (
        f"More labelled cases with {lowest} would help most: its mean Dice is {value:.2f}, that of the other "
        f"class{'es' if len(by_class) > 2 else ''} {others:.2f}."
    )
    return (others - value) / len(by_class), sentence


def _of_cases(scores: Mapping[str, Mapping[str, float]]) -> tuple[float, str]:
    """Return what the mean gains if the worst case is as good as the other ones."""
    by_case = {case: _mean([*own.values()]) for case, own in scores.items() if own}
    worst, value, others = _lowest(by_case)
    if len(by_case) < _FEWEST_CASES or others - value < _CLEAR:
        return 0.0, ""
    sentence = f"More cases like {worst} would help most: its Dice is {value:.2f}, that of the others {others:.2f}."
    return (others - value) / len(by_case), sentence


def _lowest(means: Mapping[str, float]) -> tuple[str, float, float]:
    """Return the lowest of several means, and the mean of the others; of fewer than two, nothing that differs."""
    if len(means) < 2:
        return "", 0.0, 0.0
    lowest = min(means, key=lambda name: means[name])
    return lowest, means[lowest], _mean([value for name, value in means.items() if name != lowest])


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
