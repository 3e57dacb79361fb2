"""What every training run does: claim its folder, yield events and write the history, keep results when stopped."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Protocol

from napari_fmseg.core.events import Saved, TrainEvent
from napari_fmseg.training.history import record_history

__all__ = ["Run", "run_events"]


class Run(Protocol):
    """A training run: its three steps in order, and what it keeps when it is stopped."""

    folder: Path

    def claim(self) -> AbstractContextManager[None]:
        """Hold the run's folder; see `claim_run_folder`."""

    def prepare(self) -> Iterator[TrainEvent]:
        """Read the data and the model to start from."""

    def fit(self) -> Iterator[TrainEvent]:
        """Train."""

    def finish(self) -> Iterator[TrainEvent]:
        """Write the model."""

    def keep(self, *, between_steps: bool) -> Path | None:
        """Write what is worth keeping when the run is stopped and return the model's card, or None.

        `between_steps` is false where an optimiser step may have been cut short.
        """


def run_events(run: Run, tensorboard: bool) -> Generator[TrainEvent, None, None]:
    """Yield the events of a run and write its history; closing the iterator, or Ctrl-C, keeps what it has."""
    yield from record_history(_events(run), run.folder, tensorboard)


def _events(run: Run) -> Generator[TrainEvent, None, None]:
    with run.claim():
        try:
            yield from run.prepare()
            yield from run.fit()
            yield from run.finish()
        except GeneratorExit:
            run.keep(between_steps=True)
            raise
        except KeyboardInterrupt:
            card = run.keep(between_steps=False)
            if card is not None:
                yield Saved(card, True)
            raise
