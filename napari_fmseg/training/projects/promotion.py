"""Whether a new version takes the place of the one in use, and why, in words."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np

__all__ = ["TOLERANCE", "is_better"]

TOLERANCE = 0.02
"""By how much the mean Dice of known structures may fall for a version that also finds new ones."""

_LEARNED = 0.1
"""Mean Dice from which on a new structure counts as learned."""

Scores = Mapping[str, Mapping[str, float]]


def is_better(
    new: Scores, labels: Sequence[str], old: Scores, old_labels: Sequence[str], old_number: int
) -> tuple[bool, str]:
    """Compare a new version with the one in use, on the structures that both know.

    A version that knows the same structures must have a higher mean Dice (over the structures, of the mean over the
    cases). One that also finds new ones may lose up to `TOLERANCE`, if the new ones were learned.

    Parameters
    ----------
    new, old
        Dice by case and structure, on cases that neither learned from.
    labels, old_labels
        The structures that each knows.
    old_number
        Of the version in use.

    Returns
    -------
    tuple
        Whether the new one is to be used, and why.
    """
    gone = [name for name in old_labels if name not in labels]
    if gone:
        return False, (
            f"It does not know {_shorten_list(gone)}, which version {old_number} finds, so that stays in use. "
            "Start from that version to keep what it knows."
        )
    pairs, cases = _pairs(new, old)
    if not pairs:
        return False, (
            f"It and version {old_number}, which is in use, were not measured on the same cases. Use it by saying so."
        )
    ours, theirs = (float(value) for value in np.mean([np.mean(values, 0) for values in pairs.values()], 0))
    added = [name for name in labels if name not in old_labels]
    if not added:
        better = ours > theirs
        told = f"Dice {ours:.4f} on {cases} case(s) that it did not learn from, version {old_number} has {theirs:.4f}"
        return better, f"{told}{'.' if better else ', so that stays in use.'}"
    return _with_new(added, _means(new), (ours, theirs), sorted(pairs), cases, old_number)


def _with_new(
    added: Sequence[str],
    found: Mapping[str, float],
    means: tuple[float, float],
    shared: Sequence[str],
    cases: int,
    old_number: int,
) -> tuple[bool, str]:
    ours, theirs = means
    measured = [name for name in added if name in found]
    unlearned = [name for name in measured if found[name] < _LEARNED]
    figures = [f"{name} (Dice {found[name]:.4f})" if name in found else f"{name} (not measured)" for name in added]
    told = (
        f"On {_shorten_list(shared)}, which both know, it has Dice {ours:.4f} on {cases} case(s) that it did not "
        f"learn from, version {old_number} has {theirs:.4f}"
    )
    if measured and len(unlearned) == len(measured):
        missed = _shorten_list(unlearned)
        return False, f"It has not learned {missed} yet (Dice below {_LEARNED:g}). {told}, so that stays in use."
    also = f"It also finds {', '.join(figures)}."
    if ours < theirs - TOLERANCE:
        return False, f"{also} {told}: it lost more than {TOLERANCE:g}, so that stays in use."
    much = "not less" if ours >= theirs else f"a loss within the {TOLERANCE:g} that new structures may cost"
    return True, f"{also} {told}: {much}, so it is used."


def _pairs(new: Scores, old: Scores) -> tuple[dict[str, list[tuple[float, float]]], int]:
    """Return both Dice of every structure that both were measured on, and on how many cases."""
    pairs: dict[str, list[tuple[float, float]]] = {}
    cases = 0
    for case, scores in new.items():
        shared = scores.keys() & old.get(case, {}).keys()
        cases += bool(shared)
        for name in shared:
            pairs.setdefault(name, []).append((scores[name], old[case][name]))
    return pairs, cases


def _means(scores: Scores) -> dict[str, float]:
    found: dict[str, list[float]] = {}
    for by_name in scores.values():
        for name, value in by_name.items():
            found.setdefault(name, []).append(value)
    return {name: float(np.mean(values)) for name, values in found.items()}


def _shorten_list(names: Iterable[str]) -> str:
    names = list(names)
    return ", ".join(names) if len(names) < 5 else f"{', '.join(names[:3])} and {len(names) - 3} more"
