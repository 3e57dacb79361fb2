"""Long work beside the window: an iterator of events runs in a thread, and the window gets every event in its own.

No generator worker of napari or superqt: those swallow a RuntimeError, and the user would wait for ever.
"""

from __future__ import annotations

import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Generator, Iterator
from typing import Any

from qtpy.QtCore import QCoreApplication, QObject, Qt, QTimer, Signal

from napari_fmseg._napari.common.event_links import when_destroyed
from napari_fmseg.core.errors import Cancelled, DeviceMemory, FmsegError
from napari_fmseg.core.events import Progress

__all__ = ["Job", "close_all_jobs", "start_job"]

_BETWEEN_PROGRESS_S = 0.05
_PAUSE_S = 0.012  # after an event that may have made the window draw: time for its own timers and paint events
_CLOSING_S = 2.0
_jobs: set[Job] = set()  # what runs, kept alive until the window has heard of its end


class Job:
    """Runs an iterator of events in a thread, and hands each event to the thread that made the job: the window's.

    Of `Progress` that comes faster than 20 times a second only the newest is handed over; everything else arrives, in
    its order, one at a time with a pause in which the window can draw. After `cancel` nothing arrives but `finished`.

    Parameters
    ----------
    make_events
        Called in the thread; gives the iterator. What takes long and touches no widget may be done in there.
    on_cancel
        Called by `cancel` in the window's thread, and must return at once; such as `RemoteEngine.cancel`. Without it
        the iterator is closed at its next event.
    must_finish
        The work is carried to its end whatever happens to the window: `cancel` does nothing, `abandon` only silences
        the signals, and the end of the program waits for it. For what saves the user's work.

    Attributes
    ----------
    event
        Qt signal with each event. (A QObject may have no signal of this name, which is why a job has one inside.)
    failed
        Qt signal with the `FmsegError` that ended the work; not after `cancel`.
    finished
        Qt signal, exactly once and last: True if the work came to its end, False if it failed or was cancelled.
    """

    def __init__(
        self,
        make_events: Callable[[], Iterator[Any]],
        on_cancel: Callable[[], None] | None = None,
        *,
        must_finish: bool = False,
    ) -> None:
        self._make_events, self._on_cancel, self._must_finish = make_events, on_cancel, must_finish
        self._thread: threading.Thread | None = None
        self._over = False
        self._mail = _Mailbox(self._on_end)
        self.event, self.failed, self.finished = self._mail.event_received, self._mail.failed, self._mail.finished

    @property
    def running(self) -> bool:
        """Whether `finished` is still to come."""
        return self._thread is not None and not self._over

    @property
    def cancelled(self) -> bool:
        """Whether `cancel` was called."""
        return self._mail.cancelled

    def start(self) -> None:
        """Begin; a job runs once."""
        if self._thread is not None:
            return
        _jobs.add(self)
        _close_with_the_application()
        self._thread = threading.Thread(target=self._work, name="fmseg job", daemon=not self._must_finish)
        self._thread.start()

    def cancel(self) -> None:
        """Request the end and return at once; `finished(False)` follows."""
        if self.cancelled or self._must_finish or not self.running:
            return
        self._mail.cancelled = True
        if self._on_cancel is not None:
            self._on_cancel()

    def abandon(self) -> None:
        """Cancel, and emit no signal any more: the listener is going away."""
        self._mail.muted = True
        self.cancel()

    def wait(self, seconds: float) -> bool:
        """Return whether the thread ended, after at most `seconds`. Its last events still need the window's loop."""
        if self._thread is not None:
            self._thread.join(seconds)
        return self._thread is None or not self._thread.is_alive()

    def _work(self) -> None:
        """All that happens in the thread."""
        end: FmsegError | bool = False
        try:
            end = self._run()
        except Cancelled:
            end = False
        except FmsegError as error:
            end = error
        except Exception as error:  # noqa: BLE001 - the boundary of the thread: what is not reported here is lost
            end = _as_fmseg_error(error)
        finally:
            self._make_events = _nothing  # what it holds, such as a volume, goes with the thread
            self._mail.post(_End(end))

    def _run(self) -> bool:
        """Return whether the iterator came to its end."""
        events = iter(()) if self.cancelled else self._make_events()
        try:
            for event in events:
                if self.cancelled:
                    break
                self._mail.post(event)
        finally:
            if isinstance(events, Generator):
                events.close()
        return not self.cancelled

    def _on_end(self) -> None:
        self._over = True
        self.wait(_CLOSING_S)  # a moment: the thread must not be the last to let go of a Qt object
        _jobs.discard(self)


class _End:
    """The last thing in a mailbox: an error, or whether the iterator came to its end."""

    def __init__(self, how: FmsegError | bool) -> None:
        self.how = how


class _Mailbox(QObject):
    """Where the thread leaves its events, and the window's thread finds them."""

    event_received = Signal(object)
    failed = Signal(object)
    finished = Signal(bool)
    _posted = Signal()

    def __init__(self, on_end: Callable[[], None]) -> None:
        super().__init__()
        self.cancelled = self.muted = False
        self._on_end = on_end
        self._mail: deque[Any] = deque()
        self._lock = threading.Lock()
        self._last_progress = self._pause_until = 0.0
        self._timer = QTimer(self)
        self._timer.setSingleShot(True)
        self._timer.timeout.connect(self._deliver)
        # Queued: it is emitted in the thread and must be received in the window's.
        self._posted.connect(self._deliver, Qt.ConnectionType.QueuedConnection)

    def post(self, event: Any) -> None:
        """Leave an event, from any thread."""
        with self._lock:
            last = self._mail[-1] if self._mail else None
            if isinstance(event, Progress) and isinstance(last, Progress) and last.stage == event.stage:
                self._mail[-1] = event
                return
            self._mail.append(event)
        self._posted.emit()

    def _deliver(self) -> None:
        """Emit one event, or wait until a bar may move again."""
        event = self._next()
        if event is None:
            return
        if isinstance(event, _End):
            self._end(event.how)
            return
        if not self.muted:
            self.event_received.emit(event)
        now = time.monotonic()
        if isinstance(event, Progress):
            self._last_progress = now
        else:
            self._pause_until = now + _PAUSE_S
        if self._mail:
            self._posted.emit()

    def _next(self) -> Any:
        """Return the event that is due, or None; if one is due later, the timer will call again."""
        with self._lock:
            if self.cancelled:  # whoever cancels does not want what was under way
                self._mail = deque(event for event in self._mail if isinstance(event, _End))
            if not self._mail:
                return None
            moves = isinstance(self._mail[0], Progress)
            last = len(self._mail) == 1
            due = max(self._pause_until, self._last_progress + _BETWEEN_PROGRESS_S if moves and last else 0.0)
            rest = due - time.monotonic()
            if rest > 0:
                self._timer.start(int(rest * 1000) + 1)
                return None
            return self._mail.popleft()

    def _end(self, how: FmsegError | bool) -> None:
        self._on_end()
        if self.muted:
            return
        if isinstance(how, FmsegError) and not self.cancelled:
            self.failed.emit(how)
        self.finished.emit(how is True and not self.cancelled)


def start_job(
    make_events: Callable[[], Iterator[Any]],
    on_cancel: Callable[[], None] | None = None,
    parent: QObject | None = None,
    *,
    must_finish: bool = False,
) -> Job:
    """Start a job; its signals may still be connected, since nothing arrives before the window's loop turns.

    Parameters
    ----------
    make_events, on_cancel, must_finish
        See `Job`.
    parent
        Whose end cancels the job; a widget that shows it. The job is not its child: a thread cannot be deleted.
    """
    job = Job(make_events, on_cancel, must_finish=must_finish)
    if parent is not None:
        known = weakref.WeakMethod(job.abandon)  # the widget must not keep every job that it ever had
        when_destroyed(parent, lambda: (known() or _ignore)())
    job.start()
    return job


def close_all_jobs(seconds: float = _CLOSING_S) -> bool:
    """Cancel all jobs, silence their signals, and return whether they have ended within `seconds`."""
    until = time.monotonic() + seconds
    jobs = list(_jobs)
    for job in jobs:
        job.abandon()
    for job in jobs:
        if job.wait(max(0.0, until - time.monotonic())):
            job._over = True
            _jobs.discard(job)
    return not _jobs


def _ignore() -> None:
    """Do nothing: the job has gone already."""


def _nothing() -> Iterator[Any]:
    return iter(())


def _as_fmseg_error(error: Exception) -> FmsegError:
    """Return an unexpected error as one that can be shown; the original is its cause."""
    first = (str(error).strip().splitlines() or [""])[0]
    shown: FmsegError
    if isinstance(error, MemoryError):
        shown = DeviceMemory(
            f"This computer is out of memory ({first or 'MemoryError'}). Close other programs, or segment a region of "
            "interest."
        )
    else:
        shown = FmsegError(
            f"Something unexpected happened: {type(error).__name__}: {first}. This is a defect of the program, not of "
            "your data; please report it with the text below."
        )
    shown.__cause__ = error
    return shown


def _close_with_the_application() -> None:
    app = QCoreApplication.instance()
    if app is not None and not app.property("fmseg closes jobs"):
        app.setProperty("fmseg closes jobs", True)
        app.aboutToQuit.connect(close_all_jobs)
