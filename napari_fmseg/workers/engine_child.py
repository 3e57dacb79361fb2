"""The engine's process: waits for volumes, keeps the last models loaded, and ends when nobody needs it any more."""

from __future__ import annotations

import faulthandler
import gc
import os
import queue
import sys
import threading
import traceback
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from napari_fmseg.core import errors
from napari_fmseg.core.allocator import own_process, trim_heap
from napari_fmseg.core.errors import DeviceMemory, FmsegError
from napari_fmseg.core.events import Event, Progress, Saved, StageResult
from napari_fmseg.core.processes import lower_priority, when_parent_exits
from napari_fmseg.workers.protocol import ChannelClosed, MessageChannel

if TYPE_CHECKING:
    from napari_fmseg.models.card import ModelCard
    from napari_fmseg.models.weights import Model
    from napari_fmseg.pipelines import SegmentOptions
    from napari_fmseg.pipelines.batch import SegmentationJob

__all__ = ["main"]

_KEPT_MODELS = 2
_NO_LISTENER = 70
_TIDY_AFTER_S = 1.0


def main(idle_minutes: float = 10.0) -> int:
    """Serve until the other end closes, or nobody has asked for anything for `idle_minutes`; return the exit code."""
    wire = _take_over()
    lower_priority()
    own_process()
    inbox: queue.SimpleQueue[dict[str, Any]] = queue.SimpleQueue()
    cancelled: set[int] = set()
    threading.Thread(target=_listen, args=(wire, inbox, cancelled), daemon=True).start()
    when_parent_exits(os.getppid(), lambda: os._exit(0))  # even if a process that it forked holds the pipes open
    models: list[Model] = []
    try:
        _warm_up(wire)
        while True:
            asked = _next_request(inbox, idle_minutes * 60)
            if asked is None:
                return 0
            _serve(wire, asked, models, cancelled)
            del asked
    except ChannelClosed:
        return 0


def _take_over() -> MessageChannel:
    """Keep the two pipes for ourselves: what libraries print goes to the error stream, and nothing else is read."""
    if sys.platform == "win32":
        import msvcrt

        for stream in (0, 1):
            msvcrt.setmode(stream, os.O_BINARY)
    reading, writing = os.dup(0), os.dup(1)
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.close(nothing)
    os.dup2(2, 1)
    sys.stdout = sys.stderr
    faulthandler.enable()
    return MessageChannel(os.fdopen(reading, "rb", 0), os.fdopen(writing, "wb", 0))


def _leave_one_processor() -> None:
    """Limit torch to one thread less than there are cores, so that one is left for the window.

    On a processor with two threads per core torch takes one per core anyway.
    """
    import torch

    from napari_fmseg.core.hardware import n_cores

    torch.set_num_threads(max(1, min(torch.get_num_threads(), n_cores() - 1)))


def _listen(wire: MessageChannel, inbox: queue.SimpleQueue[dict[str, Any]], cancelled: set[int]) -> None:
    """Receive requests while the main thread computes; when the other end closes, end at once."""
    try:
        while True:
            kind, fields = wire.receive()
            if kind == "cancel":
                cancelled.add(fields["run"])
            else:
                inbox.put(fields)
    except ChannelClosed:
        os._exit(0)  # the parent has gone: whatever we compute, nobody wants it
    except BaseException:  # noqa: BLE001 - whatever it is, the parent must hear of it
        traceback.print_exc()  # to the error stream, whose last lines the parent shows
        os._exit(_NO_LISTENER)  # without a listener the parent would wait for ever


def _warm_up(wire: MessageChannel) -> None:
    """Load what takes seconds, before it is needed."""
    try:
        import napari_fmseg.pipelines.phased  # noqa: F401

        _leave_one_processor()
    except (ImportError, OSError) as error:  # a broken installation of torch; run 0 stands for all
        wire.send("failed", run=0, error=type(error).__name__, exit_code=3, text=_broken(error), trace="")
        raise ChannelClosed from error
    wire.send("ready", pid=os.getpid())


def _broken(error: Exception) -> str:
    return (
        f"The engine cannot load torch, which computes the networks: {error}. `fmseg doctor` tells what is missing; "
        "install torch again as the installation page says."
    )


def _next_request(inbox: queue.SimpleQueue[dict[str, Any]], idle_s: float) -> dict[str, Any] | None:
    """Wait for the next request, None if none comes; when it does not come at once, free memory first."""
    try:
        return inbox.get(timeout=min(_TIDY_AFTER_S, idle_s))
    except queue.Empty:
        _give_back()
    try:
        return inbox.get(timeout=idle_s)
    except queue.Empty:
        return None


def _serve(wire: MessageChannel, asked: dict[str, Any], models: list[Model], cancelled: set[int]) -> None:
    """Answer one request with its events and how it ended."""
    run = asked["run"]
    try:
        for event in _events(models, asked):
            if run in cancelled:
                break
            wire.send("event", run=run, event=event)
        wire.send("ended", run=run)
    except ChannelClosed:
        raise
    except Exception as error:  # noqa: BLE001 - the boundary of a process: what is not told here is lost
        _tell(wire, run, error)


def _events(models: list[Model], asked: dict[str, Any]) -> Iterator[Event | Saved]:
    from napari_fmseg.explain.gradcam import grad_cam
    from napari_fmseg.pipelines import segment

    card, options, volume = asked["card"], asked["options"], asked["volume"]
    yield Progress("loading model", 0, 1)
    model = _model(models, card, options.device)
    yield Progress("loading model", 1, 1)
    if asked.get("job") is not None:
        yield from _file_events(asked["job"], model, options)
    elif asked.get("why") is not None:
        yield from grad_cam(volume, model, **asked["why"])
    else:
        yield from segment(volume, model, options)


def _file_events(job: SegmentationJob, model: Model, options: SegmentOptions) -> Iterator[Event | Saved]:
    """Segment from file to file; what was found stays here, and only the path of the result is told."""
    from napari_fmseg.pipelines.batch import Done, segment_file

    for event in segment_file(job, model, options):
        if isinstance(event, Done):
            yield Saved(event.job.result, best=True)
        elif not isinstance(event, StageResult):
            yield event


def _model(models: list[Model], card: ModelCard, device: str) -> Model:
    """Return a model from those kept loaded, or load it; only the last ones are kept."""
    from napari_fmseg.models.weights import load_model
    from napari_fmseg.nets.runtime.device import pick_device

    place = pick_device(device)
    for model in models:
        if model.card == card and model.card.weights_path == card.weights_path and model.device == place:
            models.remove(model)
            models.append(model)
            return model
    del models[: max(0, len(models) + 1 - _KEPT_MODELS)]
    models.append(load_model(card, device=device))
    return models[-1]


def _tell(wire: MessageChannel, run: int, error: Exception) -> None:
    """Send an error as one of the classes that the other side knows."""
    known = next((kind for kind in type(error).__mro__ if kind.__module__ == errors.__name__), FmsegError)
    text, name = str(error), known.__name__
    if not isinstance(error, FmsegError):
        text = f"The engine met something unexpected: {type(error).__name__}: {text}"
        if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
            name = DeviceMemory.__name__
            text = f"The memory did not suffice ({text}). Close other programs, or segment a smaller region."
    code = getattr(error, "exit_code", 1)
    wire.send(
        "failed", run=run, error=name, exit_code=code, text=text, trace="".join(traceback.format_exception(error))
    )


def _give_back() -> None:
    """Free memory between runs; the models stay loaded."""
    import torch

    gc.collect()
    trim_heap()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
