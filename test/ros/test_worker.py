"""The worker thread and its queue."""

import os
import sys
import threading
from concurrent.futures import CancelledError, ThreadPoolExecutor
from queue import Queue

import pytest

from dust3r_ros.ros.worker import Worker

PATIENCE_S = 60.0


class Gate:
    """A handler that notes its jobs and, while closed, waits inside the first one."""

    def __init__(self) -> None:
        self.done: list[object] = []
        self.failed: list[tuple[object, str]] = []
        self.entered = threading.Event()
        self.opened = threading.Event()

    def handle(self, job: object) -> None:
        self.entered.set()
        assert self.opened.wait(PATIENCE_S)
        if isinstance(job, Exception):
            raise job
        self.done.append(job)

    def fail(self, job: object, error: Exception) -> None:
        self.failed.append((job, str(error)))


@pytest.fixture
def gate():
    made = Gate()
    yield made
    made.opened.set()


def started(gate: Gate, capacity: int) -> Worker:
    """A worker that is busy with the job "first"."""
    worker = Worker(gate.handle, capacity, gate.fail)
    worker.start()
    worker.offer("first")
    assert gate.entered.wait(PATIENCE_S)
    return worker


def test_the_newest_jobs_win_and_keep_their_order(gate):
    worker = started(gate, capacity=2)
    dropped = [worker.offer(job) for job in "abcd"]
    assert dropped == [None, None, "a", "b"]
    assert worker.queue_length == 2
    gate.opened.set()
    assert worker.wait_idle(PATIENCE_S)
    assert gate.done == ["first", "c", "d"]
    assert worker.stop(PATIENCE_S)


def test_a_job_that_raises_is_reported_and_the_next_one_done(gate):
    worker = started(gate, capacity=5)
    bad = ZeroDivisionError("one bad frame")
    worker.offer(bad)
    worker.offer("next")
    gate.opened.set()
    assert worker.wait_idle(PATIENCE_S)
    assert gate.failed == [(bad, "one bad frame")]
    assert gate.done == ["first", "next"]


def test_tasks_go_before_waiting_jobs_but_not_into_the_one_in_hand(gate):
    worker = started(gate, capacity=5)
    worker.offer("job")
    seen = worker.call(lambda: list(gate.done))
    assert not seen.done()
    assert worker.task_count == 1
    gate.opened.set()
    assert seen.result(PATIENCE_S) == ["first"]
    assert worker.wait_idle(PATIENCE_S)
    assert gate.done == ["first", "job"]


def test_a_tasks_exception_reaches_its_caller_and_the_worker_lives(gate):
    gate.opened.set()
    worker = started(gate, capacity=1)
    with pytest.raises(OSError, match="disk full"):
        worker.call(lambda: (_ for _ in ()).throw(OSError("disk full"))).result(PATIENCE_S)
    assert worker.call(lambda: 7).result(PATIENCE_S) == 7


def test_clear_forgets_what_waits(gate):
    worker = started(gate, capacity=5)
    worker.offer("a")
    worker.offer("b")
    assert worker.clear() == 2
    gate.opened.set()
    assert worker.wait_idle(PATIENCE_S)
    assert gate.done == ["first"]


def test_stop_gives_up_on_a_job_that_takes_too_long_and_cancels_tasks(gate):
    worker = started(gate, capacity=5)
    worker.offer("waiting")
    task = worker.call(lambda: None)
    assert not worker.stop(timeout_s=0.05)
    with pytest.raises(CancelledError):
        task.result(PATIENCE_S)
    with pytest.raises(CancelledError):
        worker.call(lambda: None).result(PATIENCE_S)
    gate.opened.set()
    assert worker.stop(PATIENCE_S)
    assert gate.done == ["first"]


def test_a_worker_that_was_never_started_stops(gate):
    assert Worker(gate.handle, 1, gate.fail).stop(0.0)


def test_a_queue_needs_room_for_one():
    with pytest.raises(ValueError, match="capacity must be at least 1, got 0"):
        Worker(print, 0, print)


@pytest.mark.skipif(sys.platform != "linux", reason="threads have no niceness of their own")
def test_a_nice_worker_gives_way_and_no_other_thread_does():
    found: Queue[int] = Queue()
    worker: Worker[int] = Worker(
        lambda job: found.put(os.getpriority(os.PRIO_PROCESS, threading.get_native_id())), 1, lambda *_: None, nice=3
    )
    worker.start()
    usual = os.getpriority(os.PRIO_PROCESS, threading.get_native_id())
    worker.offer(1)
    assert found.get(timeout=PATIENCE_S) == usual + 3
    assert os.getpriority(os.PRIO_PROCESS, threading.get_native_id()) == usual
    assert worker.stop(PATIENCE_S)


def test_a_job_that_must_not_displace_another_waits_for_room_or_for_the_end(gate):
    worker = started(gate, capacity=1)
    assert worker.put("second")
    with ThreadPoolExecutor(2) as pool:
        third = pool.submit(worker.put, "third")
        assert not third.done() and worker.queue_length == 1
        gate.opened.set()
        assert third.result(PATIENCE_S)
        assert worker.wait_idle(PATIENCE_S)
        assert gate.done == ["first", "second", "third"]
    assert worker.stop(PATIENCE_S)
    assert not worker.put("late")
