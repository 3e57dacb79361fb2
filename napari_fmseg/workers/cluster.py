"""Sharing work out to processes and machines with dask.distributed, which is an extra: ``napari-fmseg[cluster]``.

Between its own processes dask sends pickles, and whoever reaches a scheduler can run code on its workers. So the only
network that is used is that of the scheduler that the user names; the one that is started here listens on this machine
only, with keys of its own; there is no dashboard. Tasks and answers are plain data: paths, numbers and texts. A model
never travels: each worker loads it from its own disk and keeps it.
"""

from __future__ import annotations

import contextlib
import itertools
import logging
import os
import queue
import re
import uuid
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from napari_fmseg.core.errors import FmsegError, MissingExtra
from napari_fmseg.core.events import Warned
from napari_fmseg.core.hardware import n_cores

if TYPE_CHECKING:
    from distributed import Client, Future

__all__ = ["Answer", "Task", "Workers", "connect"]

Task = Callable[[Mapping[str, Any]], Mapping[str, Any]]
"""A function of a module, so that workers find it by its name; it takes plain data and returns plain data."""

_MOST_TRIES = 3  # on different workers, where the machine was at fault
_DEATHS = 3  # workers that may die with a volume before it is given up
_THREADS = 2  # of a worker: while one computes, the other reads or writes
_PATIENCE_S = 20.0  # for the scheduler to answer
_END_S = 10.0  # for the workers to end
_QUIET = {  # what looks at a worker a hundred times a second waits for its interpreter, and makes the work wait, too
    "distributed.worker.profile.enabled": False,
    "distributed.admin.tick.interval": "1s",
    "distributed.admin.system-monitor.interval": "10s",
    "distributed.admin.system-monitor.gil.enabled": False,
}
_LOOK_S = 0.2
_LOOKS_FOR_WORKERS = 25


@dataclass(frozen=True)
class Answer:
    """What a worker answered.

    Attributes
    ----------
    number
        Of the task, counted from 0.
    values
        What the task returned; ``{"error": ..., "cause": ..., "fix": ..., "exit_code": ...}`` if it failed.
    """

    number: int
    values: Mapping[str, Any]


@dataclass
class _Try:
    number: int
    count: int = 1
    avoid: set[str] = field(default_factory=set)


@contextlib.contextmanager
def connect(scheduler: str) -> Iterator[Workers]:
    """Start workers on this machine, or find those of a scheduler that runs already.

    Parameters
    ----------
    scheduler
        ``"local:N"`` for N processes here, which end with the block; ``"tcp://host:port"`` or ``"tls://host:port"``;
        or the JSON file that the scheduler wrote.

    Raises
    ------
    MissingExtra
        If dask.distributed is not installed.
    FmsegError
        If `scheduler` is none of these, or does not answer.
    """
    try:
        import distributed
    except ImportError as error:
        raise MissingExtra(
            f"Sharing work out needs dask.distributed, and {error.name or 'distributed'} is missing here: "
            "pip install 'napari-fmseg[cluster]'. One process works without it; --part i/N needs no scheduler."
        ) from error
    local = re.fullmatch(r"local:(\d{1,4})", scheduler)
    with contextlib.ExitStack() as ends:
        if local is not None and int(local[1]) > 0:
            address: Any = ends.enter_context(_local_cluster(int(local[1])))
        elif re.match(r"(tcp|tls|ucx|ws|wss)://", scheduler):
            address = scheduler
        elif scheduler.endswith(".json"):
            if not Path(scheduler).is_file():
                raise FmsegError(
                    f"There is no {scheduler}. The scheduler writes it when it starts: dask scheduler --scheduler-file "
                    f"{Path(scheduler).name}. Start it first, and check that both see the same folder."
                )
            address = None
        else:
            raise FmsegError(
                f"--scheduler is local:N with the number of processes, tcp://host:port or the scheduler's FILE.json; "
                f"not {scheduler!r}."
            )
        try:
            client = distributed.Client(
                address,
                scheduler_file=None if address is not None else scheduler,
                timeout=_PATIENCE_S,
                set_as_default=False,
                name="fmseg",
            )
        except (OSError, ValueError) as error:
            raise FmsegError(
                f"No scheduler answers at {scheduler} ({type(error).__name__}). Is it running, and does this machine "
                "reach it? A scheduler with TLS has an address tls://... and needs the keys; see the guide to clusters."
            ) from error
        ends.callback(_close, client)
        yield Workers(client, scheduler)


@contextlib.contextmanager
def _local_cluster(n: int) -> Iterator[Any]:
    """Start workers on this machine; others of its users cannot reach them, for want of the keys."""
    import dask
    import distributed

    threads = max(1, n_cores() // n)
    settings = {
        "distributed.scheduler.allowed-failures": _DEATHS,
        "distributed.nanny.pre-spawn-environ.OMP_NUM_THREADS": threads,
        "distributed.nanny.pre-spawn-environ.MKL_NUM_THREADS": threads,
        **_QUIET,
    }
    # When the command is stopped, Python's keeper of semaphores would complain of what dask had no time to give back.
    os.environ.setdefault("PYTHONWARNINGS", "ignore:resource_tracker:UserWarning")
    with dask.config.set(settings):
        cluster = distributed.LocalCluster(
            n_workers=n,
            threads_per_worker=_THREADS,
            processes=True,
            host="127.0.0.1",
            dashboard_address=None,
            worker_dashboard_address=None,
            memory_limit=0,  # a worker must not be ended because one volume is large
            security=distributed.Security.temporary(),
            silence_logs=logging.CRITICAL,  # they could name files
        )
        try:
            yield cluster
        finally:
            with contextlib.suppress(TimeoutError):  # its processes end with this one at the latest
                cluster.close(timeout=_END_S)


def _close(client: Client) -> None:
    with contextlib.suppress(OSError, TimeoutError):
        client.close(timeout=2)


class Workers:
    """The workers of a scheduler.

    Parameters
    ----------
    client
        Connected to it.
    scheduler
        As the user named it.
    """

    def __init__(self, client: Client, scheduler: str) -> None:
        self._client, self._scheduler = client, scheduler

    def addresses(self) -> list[str]:
        """Return the workers that are there now."""
        return list(self._client.scheduler_info(n_workers=-1)["workers"])

    def describe(self) -> str:
        """Return a sentence on how many there are."""
        n = len(self.addresses())
        return f"{n} worker{'' if n == 1 else 's'} at {self._scheduler}."

    def run(self, task: Task, items: Sequence[Mapping[str, Any]]) -> Iterator[Answer | Warned]:
        """Have the workers carry out a task for each item, and yield their answers as they come.

        What a worker that died was working on is done by another one. A task that fails for want of memory or for
        another fault of the machine is tried on another worker.

        Parameters
        ----------
        task
            Returns its values, or those of a failure; see `Answer`.
        items
            One for each call.

        Raises
        ------
        FmsegError
            If the scheduler is gone.
        """
        finished: queue.SimpleQueue[Future] = queue.SimpleQueue()
        run = uuid.uuid4().hex[:8]
        tries: dict[str, _Try] = {}
        keep: dict[str, Future] = {}

        def watch(futures: Sequence[Future]) -> None:
            for future in futures:
                keep[future.key] = future
                future.add_done_callback(finished.put)

        keys = [f"fmseg-{run}-{number}" for number in range(len(items))]
        tries.update({key: _Try(number) for number, key in enumerate(keys)})
        watch(self._client.map(task, items, key=keys, pure=False))
        try:
            while keep:
                future = yield from self._next(finished)
                key = future.key
                if key not in keep:
                    continue
                values = self._values(keep.pop(key))
                if values is None:
                    watch([future])
                    continue
                now = tries.pop(key)
                again = self._another_worker(now, values)
                if again:
                    now.count += 1
                    key = f"fmseg-{run}-{now.number}-{now.count}"
                    tries[key] = now
                    watch([self._client.submit(task, items[now.number], key=key, pure=False, workers=again,
                                               allow_other_workers=True)])  # fmt: skip
                else:
                    yield Answer(now.number, values)
        finally:
            with contextlib.suppress(OSError, TimeoutError):
                self._client.cancel(list(keep.values()), force=True)

    def _next(self, finished: queue.SimpleQueue[Future]) -> Generator[Warned, None, Future]:
        """Wait for the next task that ends; warn once while there is no worker."""
        for look in itertools.count():
            try:
                return finished.get(timeout=_LOOK_S)
            except queue.Empty:
                pass
            if self._client.status not in ("running", "connecting"):
                raise self._no_scheduler()
            if look == _LOOKS_FOR_WORKERS and self._client.status == "running" and not self.addresses():
                yield Warned(f"{self._scheduler} has no worker at the moment; the work goes on when one comes.")

    def _values(self, future: Future) -> Mapping[str, Any] | None:
        """Return what a task returned; None if the worker died that had it, so that it is carried out again."""
        import distributed

        try:
            values: Mapping[str, Any] = future.result(timeout=_PATIENCE_S)
        except TimeoutError:
            if self._client.status not in ("running", "connecting"):
                raise self._no_scheduler() from None
            return None
        except distributed.KilledWorker as error:
            return {
                "error": "DeviceMemory",
                "cause": f"The processes of {_DEATHS + 1} workers ended while they worked on it, the last one at "
                f"{error.last_worker.address}, as the system ends them when memory runs out.",
                "fix": "Use workers with more memory, or a model with a smaller grid; then try again with --retry.",
                "exit_code": 3,
            }
        except (distributed.CancelledError, OSError) as error:
            raise self._no_scheduler() from error
        future.release()
        return values

    def _no_scheduler(self) -> FmsegError:
        return FmsegError(
            f"The scheduler {self._scheduler} is gone. What is done stays; start it again, and then the same command "
            "with --resume."
        )

    def _another_worker(self, now: _Try, values: Mapping[str, Any]) -> list[str]:
        """Return the workers on which a task is tried again."""
        if values.get("exit_code") != 3 or now.count >= _MOST_TRIES:
            return []
        now.avoid.add(str(values.get("worker", "")))
        return [address for address in self.addresses() if address not in now.avoid]
