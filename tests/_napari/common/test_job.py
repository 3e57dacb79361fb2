"""A job hands every event to the window's thread, and ends exactly once, whatever happens."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

pytest.importorskip("pytestqt")
pytest.importorskip("qtpy")

from qtpy.QtWidgets import QWidget

from napari_fmseg._napari.common.job import Job, close_all_jobs, start_job
from napari_fmseg.core.errors import Cancelled, DeviceMemory, FmsegError, UnknownModel
from napari_fmseg.core.events import Progress, Warned


class Heard:
    """All that a job says, and in which thread."""

    def __init__(self, job: Job) -> None:
        self.events: list[Any] = []
        self.errors: list[FmsegError] = []
        self.ends: list[bool] = []
        self.threads: set[int] = set()
        job.event.connect(self._on_event)
        job.failed.connect(self.errors.append)
        job.finished.connect(self.ends.append)

    def _on_event(self, event: Any) -> None:
        self.threads.add(threading.get_ident())
        self.events.append(event)


def ran(qtbot: Any, make_events: Callable[[], Iterator[Any]], on_cancel: Any = None) -> Heard:
    job = start_job(make_events, on_cancel)
    heard = Heard(job)
    qtbot.waitUntil(lambda: bool(heard.ends), timeout=5000)
    assert not job.running
    qtbot.wait(20)
    assert len(heard.ends) == 1
    return heard


def job_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "fmseg job"]


@pytest.fixture(autouse=True)
def _leaves_no_thread(qtbot: Any) -> Iterator[None]:
    yield
    assert close_all_jobs()
    assert not job_threads()


def raising(error: BaseException) -> Callable[[], Iterator[Any]]:
    def make() -> Iterator[Any]:
        yield Warned("first")
        raise error

    return make


def test_events_arrive_in_order_in_the_windows_thread(qtbot: Any) -> None:
    said = [Warned(str(i)) for i in range(60)]
    heard = ran(qtbot, lambda: iter(said))
    assert heard.events == said
    assert heard.threads == {threading.get_ident()}
    assert heard.ends == [True]
    assert not heard.errors


def test_the_work_is_done_in_another_thread(qtbot: Any) -> None:
    heard = ran(qtbot, lambda: iter([Warned(str(threading.get_ident()))]))
    assert heard.events != [Warned(str(threading.get_ident()))]


def test_of_fast_progress_only_some_is_shown_but_always_the_last_and_never_less_of_anything_else(qtbot: Any) -> None:
    def make() -> Iterator[Any]:
        for i in range(2000):
            yield Progress("a", i + 1, 2000)
            if i % 500 == 0:
                yield Warned(str(i))
            time.sleep(0.0002)
        yield Progress("b", 1, 1)

    start = time.monotonic()
    heard = ran(qtbot, make)
    seconds = time.monotonic() - start
    moves = [e for e in heard.events if isinstance(e, Progress)]
    assert len(moves) <= 20 * seconds + 10
    assert moves[-2:] == [Progress("a", 2000, 2000), Progress("b", 1, 1)]
    assert [e.text for e in heard.events if isinstance(e, Warned)] == ["0", "500", "1000", "1500"]
    assert [e.done for e in moves[:-1]] == sorted(e.done for e in moves[:-1])


def test_the_newest_progress_is_shown_even_while_the_work_is_silent(qtbot: Any) -> None:
    go = threading.Event()

    def make() -> Iterator[Any]:
        yield Progress("a", 1, 3)
        yield Progress("a", 2, 3)
        go.wait(5)

    job = start_job(make)
    heard = Heard(job)
    qtbot.waitUntil(lambda: Progress("a", 2, 3) in heard.events, timeout=2000)
    go.set()
    qtbot.waitUntil(lambda: heard.ends == [True], timeout=2000)


def test_an_error_of_ours_arrives_as_it_is(qtbot: Any) -> None:
    error = UnknownModel("no such model")
    heard = ran(qtbot, raising(error))
    assert heard.errors == [error]
    assert heard.ends == [False]
    assert heard.events == [Warned("first")]


@pytest.mark.parametrize(
    "error", [RuntimeError("out of luck\nmore"), StopIteration("x"), KeyError("y"), OSError(5, "io")]
)
def test_an_unexpected_error_is_wrapped_and_never_swallowed(qtbot: Any, error: Exception) -> None:
    heard = ran(qtbot, raising(error))
    (told,) = heard.errors
    assert isinstance(told, FmsegError)
    cause = told.__cause__
    assert cause is error or (cause is not None and cause.__cause__ is error)  # StopIteration becomes RuntimeError
    assert "\n" not in str(told)
    assert heard.ends == [False]


def test_no_memory_in_this_process_is_told_as_such(qtbot: Any) -> None:
    (told,) = ran(qtbot, raising(MemoryError())).errors
    assert isinstance(told, DeviceMemory)


def test_what_cannot_even_begin_fails_too(qtbot: Any) -> None:
    def make() -> Iterator[Any]:
        raise ValueError("not today")

    assert "not today" in str(ran(qtbot, make).errors[0])


def test_cancel_returns_at_once_and_nothing_but_the_end_arrives(qtbot: Any) -> None:
    returned, asked, seen = threading.Event(), [], []

    def make() -> Iterator[Any]:
        yield Warned("first")
        seen.append(returned.wait(30))
        yield Warned("too late")

    job = start_job(make, lambda: asked.append(threading.get_ident()))
    heard = Heard(job)
    qtbot.waitUntil(lambda: bool(heard.events))
    job.cancel()
    job.cancel()
    returned.set()
    qtbot.waitUntil(lambda: bool(heard.ends), timeout=40_000)
    assert seen == [True]  # had cancel waited for the thread, the thread would have waited in vain
    assert heard.events == [Warned("first")]
    assert heard.ends == [False]
    assert heard.errors == []
    assert asked == [threading.get_ident()]


def test_cancelling_closes_the_iterator_in_its_thread(qtbot: Any) -> None:
    closed: list[str] = []

    def make() -> Iterator[Any]:
        try:
            while True:
                yield Warned("on and on")
                time.sleep(0.001)
        finally:
            closed.append(threading.current_thread().name)

    job = start_job(make)
    heard = Heard(job)
    qtbot.waitUntil(lambda: len(heard.events) > 3)
    job.cancel()
    qtbot.waitUntil(lambda: heard.ends == [False], timeout=2000)
    assert closed == ["fmseg job"]


def test_a_cancelled_iterator_is_no_failure(qtbot: Any) -> None:
    heard = ran(qtbot, raising(Cancelled("stopped")))
    assert heard.errors == []
    assert heard.ends == [False]


def test_cancel_before_the_first_event_is_heard(qtbot: Any) -> None:
    job = start_job(lambda: iter([Warned("a")]))
    heard = Heard(job)
    job.cancel()
    qtbot.waitUntil(lambda: heard.ends == [False], timeout=2000)
    assert heard.events == []


def test_wait_tells_whether_the_thread_has_ended(qtbot: Any) -> None:
    go = threading.Event()

    def make() -> Iterator[Any]:
        go.wait(5)
        yield Warned("a")

    job = start_job(make)
    assert job.running
    assert not job.wait(0.01)
    go.set()
    assert job.wait(2)


def test_closing_all_jobs_silences_and_ends_them(qtbot: Any) -> None:
    stops = [threading.Event() for _ in range(3)]

    def work(stop: threading.Event) -> Iterator[Any]:
        yield Warned("a")
        stop.wait(5)

    jobs = [start_job(lambda stop=stop: work(stop), stop.set) for stop in stops]
    heard = [Heard(job) for job in jobs]
    assert close_all_jobs()
    assert not any(job.running for job in jobs)
    qtbot.wait(50)
    assert not any(h.events or h.ends for h in heard)


def test_a_job_that_must_finish_is_carried_to_its_end_by_a_thread_that_the_program_waits_for(qtbot: Any) -> None:
    go, written = threading.Event(), []

    def make() -> Iterator[Any]:
        for name in ("liver", "spleen"):
            yield Warned(name)
            go.wait(5)
            written.append(name)

    job = start_job(make, must_finish=True)
    assert [thread.daemon for thread in job_threads()] == [False]
    job.cancel()
    assert not close_all_jobs(0)
    go.set()
    assert job.wait(5)
    assert written == ["liver", "spleen"]


def test_the_end_of_its_widget_ends_the_job(qtbot: Any) -> None:
    stop, widget = threading.Event(), QWidget()

    def make() -> Iterator[Any]:
        yield Warned("a")
        stop.wait(5)
        yield Warned("b")

    job = start_job(make, stop.set, widget)
    heard = Heard(job)
    widget.deleteLater()
    qtbot.waitUntil(lambda: not job.running, timeout=2000)
    assert heard.ends == []


def test_a_job_runs_once(qtbot: Any) -> None:
    made = []

    def make() -> Iterator[Any]:
        made.append(1)
        return iter(())

    job = start_job(make)
    heard = Heard(job)
    job.start()
    qtbot.waitUntil(lambda: heard.ends == [True], timeout=2000)
    assert made == [1]
