"""``fmseg train``, ``crossval`` and ``pretrain``: they show progress, or events for a program, and stop when asked."""

from __future__ import annotations

import contextlib
import dataclasses
import signal
import threading
from collections.abc import Generator, Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from tyro.conf import Positional, arg

from napari_fmseg.cli.console import (
    Events,
    Json,
    OptionalOutput,
    Scheduler,
    metrics_table,
    note,
    number,
    say,
    write_json,
)
from napari_fmseg.cli.progress import Bars, show_event
from napari_fmseg.core.errors import InvalidRecipe
from napari_fmseg.core.events import EpochDone, Saved, to_json
from napari_fmseg.core.processes import is_rank_zero

if TYPE_CHECKING:
    from napari_fmseg.core.events import TrainEvent
    from napari_fmseg.training.pretraining.volume_store import VolumeStore

__all__ = ["crossval", "pretrain", "train"]


def train(
    recipe: Positional[Annotated[Path, arg(metavar="RECIPE.toml")]],
    /,
    *,
    dataset: Path | None = None,
    out: Path | None = None,
    start_from: str | None = None,
    tensorboard: bool = False,
    events: Events = False,
) -> int:
    """Train a model on labelled volumes, from scratch or from another model. Started again, it resumes.

    Parameters
    ----------
    recipe
        A TOML file; resources/recipes has those of the shipped models.
    dataset
        Training data instead of the recipe's: a folder in nnU-Net's layout (imagesTr, labelsTr, dataset.json).
    out
        Folder for the run instead of the recipe's.
    start_from
        A model to start from instead of the recipe's: its name, or the path of its card, such as a pretrained one.
    tensorboard
        Write files for TensorBoard into the folder of the run.
    """
    from napari_fmseg.training import load_recipe
    from napari_fmseg.training.loop import train as learn

    given = {"dataset": dataset, "out": out}
    changes: dict[str, Any] = {name: str(path.resolve()) for name, path in given.items() if path is not None}
    if start_from is not None:
        changes["start_from"] = str(Path(start_from).resolve()) if start_from.endswith(".toml") else start_from
    if tensorboard:
        changes["tensorboard"] = True
    return _run(learn(load_recipe(recipe, **changes)), events)


def pretrain(
    source: Positional[Annotated[Path, arg(metavar="FOLDER|RECIPE.toml")]],
    /,
    *,
    output: OptionalOutput = None,
    network: str = "fmunet",
    steps: int | None = None,
    minutes: float | None = None,
    patch: tuple[int, int, int] | None = None,
    device: str = "auto",
    devices: int | None = None,
    tensorboard: bool = False,
    scheduler: Scheduler = None,
    events: Events = False,
) -> int:
    """Pretrain a network on unlabelled volumes by Volume Fusion. Started again, it resumes.

    Parameters
    ----------
    source
        A folder with volumes in any readable format, or a TOML file with the fields of PretrainRecipe.
    output
        Folder for the run: checkpoint, decoded volumes, then card and weights. Required with a folder.
    network
        Any name of docs/reference/networks.md but snet, attnnet and edgenet; published for fmunet and pctnet. A recipe
        names its own.
    steps
        Optimiser steps instead of the recipe's.
    minutes
        About how long to train; the number of steps follows from the speed of the first ones.
    patch
        Voxels z y x of a sample instead of the recipe's.
    device
        auto, cpu, cuda or mps; a recipe names its own.
    devices
        Number of processes instead of the recipe's, one per GPU. On several machines use torchrun.
    tensorboard
        Write files for TensorBoard into the folder of the run.
    """
    from napari_fmseg.training import PretrainRecipe, load_pretrain_recipe
    from napari_fmseg.training.pretraining.loop import pretrain as learn

    if source.suffix == ".toml":
        recipe = load_pretrain_recipe(source, **({} if output is None else {"out": output}))
    elif output is None:
        raise InvalidRecipe("A folder needs --output: where checkpoint, decoded volumes and the model are written.")
    else:
        recipe = PretrainRecipe(f"{network}-volf", source, output, network, device=device)
    if steps is not None:
        recipe = dataclasses.replace(recipe, steps=steps, steps_per_epoch=min(steps, recipe.steps_per_epoch))
    if minutes is not None:
        recipe = dataclasses.replace(recipe, minutes=minutes)
    if devices is not None:
        recipe = dataclasses.replace(recipe, devices=devices)
    if tensorboard:
        recipe = dataclasses.replace(recipe, tensorboard=True)
    if patch is not None:
        recipe = dataclasses.replace(recipe, fusion=dataclasses.replace(recipe.fusion, patch=patch))
    decode = None if scheduler is None else partial(_decode_elsewhere, scheduler)
    return _run(learn(recipe, decode), events, softly=True)


def _decode_elsewhere(scheduler: str, store: VolumeStore) -> Iterator[TrainEvent]:
    """Decode the volumes of a store on the workers of a scheduler; training itself takes place here."""
    from napari_fmseg.training.pretraining.volume_store import decode_volume
    from napari_fmseg.workers.cluster import connect
    from napari_fmseg.workers.cluster_tasks import decode_on

    items = store.decoding_items()
    if items:
        with connect(scheduler) as workers:
            note(f"{len(items)} volumes are decoded by {workers.describe()}")
            yield from decode_on(workers, decode_volume, items)


def crossval(
    recipe: Positional[Annotated[Path, arg(metavar="RECIPE.toml")]],
    /,
    *,
    folds: int = 5,
    dataset: Path | None = None,
    out: Path | None = None,
    events: Events = False,
    as_json: Json = False,
) -> int:
    """Train and evaluate one model per fold of the cases, and merge them. Started again, it resumes.

    Parameters
    ----------
    recipe
        As for `fmseg train`.
    folds
        Number of folds; the fold of a case follows from the content of its image.
    dataset
        Training data instead of the recipe's.
    out
        Folder for fold-1, fold-2, ..., crossval.csv and .json, cases.csv and the ensemble, instead of the recipe's.
    """
    from napari_fmseg.training import load_recipe
    from napari_fmseg.training.crossval import Crossval, FoldDone
    from napari_fmseg.training.crossval import crossval as validate

    given = {"dataset": dataset, "out": out}
    changes = {name: str(path.resolve()) for name, path in given.items() if path is not None}
    last: list[Crossval] = []

    def show_folds() -> Generator[object, None, None]:
        with contextlib.closing(validate(load_recipe(recipe, **changes), folds)) as work:
            for event in work:
                if isinstance(event, Crossval):
                    last.append(event)
                    continue
                if isinstance(event, FoldDone) and not (events or as_json):
                    note(f"Fold {event.fold} of {event.total}: mean Dice {number(event.dice)} over {event.n} cases")
                yield event

    _run(show_folds(), events, quiet=as_json)
    found = last[0]
    if as_json:
        write_json({"rows": [dataclasses.asdict(row) for row in found.rows], "table": found.table})
    elif not events:
        say(metrics_table(found.rows, "FOLD"))
        say(f"{found.table}, {found.table.with_suffix('.json')}, {found.table.with_name('cases.csv')}")
    return 1 if any(case.problem for case in found.cases.cases) else 0


def _run(learning: Generator[object, None, None], as_json: bool, *, softly: bool = False, quiet: bool = False) -> int:
    """Show a training: JSON lines for a program, bars and a line per epoch for a person."""
    # Closing keeps what was learned, wherever an interruption falls.
    with _stopping(softly) as asked, Bars(quiet=as_json or quiet) as bars, contextlib.closing(learning):
        for event in learning:
            if as_json:
                say(to_json(event))
            else:
                _show(event, bars)
            if asked.is_set():
                raise KeyboardInterrupt
    return 0


def _show(event: object, bars: Bars) -> None:
    show_event(event, bars)
    if isinstance(event, EpochDone):
        scores = ", ".join(f"{name} {number(value)}" for name, value in event.metrics.items())
        bars.note(f"{event.stage} {event.epoch}/{event.total}  loss {event.loss:.4f}  {event.seconds:.0f} s  {scores}")
    elif isinstance(event, Saved) and event.best:
        bars.note(f"Saved {event.path}")


@contextlib.contextmanager
def _stopping(softly: bool) -> Iterator[threading.Event]:
    """Stop a training on Ctrl-C or SIGTERM: with `softly` between two steps, so that all is kept, else at once.

    The second signal stops it at once. After that no signal interrupts the writing. Processes that follow another
    one are stopped by that one.
    """
    asked = threading.Event()
    if threading.current_thread() is not threading.main_thread():  # signals come to that one only
        yield asked
        return

    def stop(*_: object) -> None:
        if softly and not asked.is_set():
            asked.set()
            return
        for one in signals:
            signal.signal(one, signal.SIG_IGN)
        raise KeyboardInterrupt

    signals = (signal.SIGTERM, signal.SIGINT)
    before = [signal.signal(one, stop if is_rank_zero() else signal.SIG_IGN) for one in signals]
    try:
        yield asked
    finally:
        for one, handler in zip(signals, before, strict=True):
            signal.signal(one, handler)
