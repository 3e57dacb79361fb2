"""The history of a run on disk: a line per step and per epoch, and TensorBoard's files where they are wanted.

``history.jsonl`` in the run's folder is always written: of a step "stage", "step", "loss" and "lr", of an epoch
"stage", "step", "epoch", "loss", "seconds" and its measures. What a resumed run does again replaces what was written
before.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any, TextIO

import numpy as np

from napari_fmseg.core.atomic_write import as_unwritable, atomic_write
from napari_fmseg.core.errors import MissingExtra
from napari_fmseg.core.events import EpochDone, Pictures, StepDone, TrainEvent
from napari_fmseg.core.processes import is_rank_zero

__all__ = ["read_dice_curve", "record_history"]

_FILE = "history.jsonl"


def record_history(
    events: Generator[TrainEvent, None, None], folder: Path, tensorboard: bool = False
) -> Generator[TrainEvent, None, None]:
    """Pass the events of a training on and write its history; processes of other ranks do neither.

    Parameters
    ----------
    events
        They are closed with this iterator.
    folder
        Of the run; it is there when the first step is done.
    tensorboard
        Whether to write files for TensorBoard too, into ``tensorboard`` in the folder.

    Raises
    ------
    MissingExtra
        If TensorBoard is wanted and not installed.
    """
    with contextlib.closing(events), contextlib.ExitStack() as at_end:
        writers: list[_Lines | _Board] = []
        if is_rank_zero():
            writers = [_Lines(folder), *([_Board(folder / "tensorboard")] if tensorboard else [])]
        for writer in writers:
            at_end.callback(writer.close)
        for event in events:
            if not is_rank_zero():
                continue
            try:
                for writer in writers:
                    writer.note(event)
            except OSError as error:
                raise as_unwritable(Path(folder) / "The history", error) from error
            yield event


def read_dice_curve(folder: Path) -> tuple[float, ...]:
    """Return the mean Dice after each epoch of the last stage of a run; nothing where it was not measured."""
    rows = [row for _, row in _rows(Path(folder) / _FILE) if "epoch" in row]
    last = rows[-1].get("stage") if rows else None
    told = [row.get("dice") for row in rows if row.get("stage") == last]
    return tuple(float(dice) for dice in told if isinstance(dice, int | float))


def _rows(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the lines of a history that can be read, each also as what it says."""
    if not path.is_file():
        return
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines(keepends=True):
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):  # cut short by a kill
            continue
        if isinstance(row, dict) and isinstance(row.get("step"), int):  # else written by somebody else
            yield line, row


class _Lines:
    """The lines of ``history.jsonl``."""

    def __init__(self, folder: Path) -> None:
        self.path, self.file = Path(folder) / _FILE, None
        self.steps: dict[str, int] = {}

    file: TextIO | None

    def note(self, event: TrainEvent) -> None:
        if isinstance(event, StepDone):
            if event.stage not in self.steps:
                self._go_on(event.stage, event.step)
            self.steps[event.stage] = event.step
            self._write({"stage": event.stage, "step": event.step, "loss": event.loss, "lr": event.lr})
        elif isinstance(event, EpochDone):
            facts = {"stage": event.stage, "step": self.steps.get(event.stage, 0), "epoch": event.epoch}
            self._write({**facts, "loss": event.loss, "seconds": event.seconds, **event.metrics})

    def _go_on(self, stage: str, first: int) -> None:
        """Remove the lines of steps that are taken again."""
        self.close()
        if not self.path.is_file():
            return
        kept = [line for line, row in _rows(self.path) if row.get("stage") != stage or row["step"] < first]
        with atomic_write(self.path) as file:
            file.write("".join(kept).encode())

    def _write(self, row: dict[str, Any]) -> None:
        if self.file is None:
            self.file = self.path.open("a", encoding="utf-8", buffering=1)  # whole lines, at once
        self.file.write(json.dumps(row) + "\n")

    def close(self) -> None:
        file, self.file = self.file, None
        if file is not None:
            with contextlib.suppress(OSError):  # what did not go in was told when it was written
                file.close()


class _Board:
    """TensorBoard's files, a folder per stage."""

    def __init__(self, folder: Path) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise MissingExtra(
                "Files for TensorBoard were asked for, and the package tensorboard is missing here: pip install "
                "'napari-fmseg[tensorboard]', or leave the option out. history.jsonl has the same numbers."
            ) from error
        self.make, self.folder = SummaryWriter, folder
        self.writers: dict[str, Any] = {}
        self.steps: dict[str, int] = {}

    def note(self, event: TrainEvent) -> None:
        if isinstance(event, StepDone):
            board = self._of(event.stage, event.step)
            board.add_scalar("step/loss", event.loss, event.step)
            board.add_scalar("step/lr", event.lr, event.step)
            self.steps[event.stage] = event.step
        elif isinstance(event, EpochDone):
            step = self.steps.get(event.stage, 0)
            board = self._of(event.stage, step)
            board.add_scalar("epoch/loss", event.loss, step)
            for name, value in event.metrics.items():
                board.add_scalar(f"validation/{name}", value, step)
            board.flush()
        elif isinstance(event, Pictures):
            self._show(event)

    def _of(self, stage: str, step: int) -> Any:
        if stage not in self.writers:
            self.writers[stage] = self.make(str(self.folder / stage), purge_step=step)
        return self.writers[stage]

    def _show(self, event: Pictures) -> None:
        """Show the middle plane of each array."""
        with np.load(event.path, allow_pickle=False) as arrays:
            for name in arrays.files:
                if name == "spacing":
                    continue
                plane = arrays[name][len(arrays[name]) // 2].astype(np.float32)
                shown = (plane - plane.min()) / max(float(np.ptp(plane)), 1e-12)
                self._of(event.stage, event.step).add_image(name.replace(" ", "-"), shown[None], event.step)

    def close(self) -> None:
        for board in self.writers.values():
            board.close()
