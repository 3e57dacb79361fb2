"""How far a run is and how long it will take: from what the stages took last time, or from this run so far."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

__all__ = ["Estimate", "format_seconds"]

_UNKNOWN_S = 1.0  # weight of a stage that was never timed


class Estimate:
    """The state of one run.

    Parameters
    ----------
    stages
        Names in the order they will come.
    known
        Seconds that a stage took before, where it ran before.
    now
        The clock at the start, in seconds; every later call gives the same clock.
    """

    def __init__(self, stages: Sequence[str], known: Mapping[str, float], now: float) -> None:
        self._stages = list(stages)
        self._known = dict(known)
        self._start = now
        self._stage = ""
        self._stage_start = now
        self._part = 0.0
        self.seconds: dict[str, float] = {}  # of this run, by the clock

    def enter(self, stage: str, done: int, total: int, now: float) -> None:
        """Record that `done` of `total` parts of a stage are finished."""
        if stage != self._stage:
            self._leave(now)
            if stage not in self._stages:
                self._stages.insert(self._index(), stage)
            self._stage, self._stage_start = stage, now
        self._part = done / total if total > 0 else 0.0

    def finish(self, now: float) -> dict[str, float]:
        """End the last stage and give the seconds of each."""
        self._leave(now)
        return dict(self.seconds)

    def _leave(self, now: float) -> None:
        if self._stage:
            self.seconds[self._stage] = self.seconds.get(self._stage, 0.0) + now - self._stage_start
        self._stage = ""

    def _index(self) -> int:
        """Place of a stage that nobody announced: after those that are over."""
        return max((self._stages.index(s) + 1 for s in self.seconds if s in self._stages), default=0)

    def _weight(self, stage: str) -> float:
        return max(self._known.get(stage, _UNKNOWN_S), 1e-3)

    @property
    def fraction(self) -> float:
        """0 to 1: each stage counts as long as it took the last time."""
        total = sum(self._weight(s) for s in self._stages) or 1.0
        at = self._stages.index(self._stage) if self._stage in self._stages else self._index()
        over = sum(self._weight(s) for s in self._stages[:at])
        return min(1.0, (over + (self._part * self._weight(self._stage) if self._stage else 0.0)) / total)

    def seconds_left(self, now: float) -> float | None:
        """Return seconds until the end, or None while nobody can tell."""
        at = self._stages.index(self._stage) if self._stage in self._stages else self._index()
        ahead = self._stages[at:]
        if all(stage in self._known for stage in ahead):
            spent = now - self._stage_start if self._stage else 0.0
            rest = max(self._known[ahead[0]] - spent, 0.0) if ahead else 0.0
            return rest + sum(self._known[stage] for stage in ahead[1:])
        done = self.fraction
        return (now - self._start) * (1 - done) / done if done > 0.2 else None


def format_seconds(seconds: float) -> str:
    """Return a time as people say it: ``0.42 s``, ``12 s``, ``3 min 20 s``."""
    if seconds < 10:
        return f"{seconds:.2f} s" if seconds < 1 else f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"
