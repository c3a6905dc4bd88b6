"""Two workers one behind the other: a job's first half is done while the second half of the one before it is.

Between them waits one job at most, so that what is worked on is never old. Jobs end in the order in which they came.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Generic, TypeVar

from dust3r_ros.ros.worker import ResultT, Worker

JobT = TypeVar("JobT")
HalfT = TypeVar("HalfT")

IN_HAND = 3  # jobs that do not wait to be begun any more, at most: a first half, one between, and a second half


@dataclass(frozen=True, eq=False)
class _Half(Generic[JobT, HalfT]):
    """A job whose first half is done: what came of it, or how it failed."""

    job: JobT
    outcome: HalfT | Exception


class Stages(Generic[JobT, HalfT]):
    """A ``Worker`` whose jobs have two halves, each with a thread of its own."""

    def __init__(
        self, first: Callable[[JobT], HalfT | None], second: Callable[[JobT, HalfT], None], capacity: int,
        failed: Callable[[JobT, Exception], None], *, nice: int = 0,
    ) -> None:  # fmt: skip
        """``first`` makes of a job what ``second`` needs, or None, which ends it.

        ``failed`` is told of one that raised, in the order of the jobs: in the second thread, whichever half it was.
        ``capacity`` and ``nice`` are as for ``Worker``.
        """
        self._begin = first
        self._end = second
        self._told = failed
        self._first: Worker[JobT] = Worker(self._do_first, capacity, failed, nice=nice)
        self._second: Worker[_Half[JobT, HalfT]] = Worker(self._do_second, 1, self._failed, nice=nice)

    def start(self) -> None:
        """Begin to work; what was offered before is done first."""
        self._first.start()
        self._second.start()

    def offer(self, job: JobT) -> JobT | None:
        """Queue a job; the job that had to give way for it, None when there was room."""
        return self._first.offer(job)

    def call(self, task: Callable[[], ResultT]) -> Future[ResultT]:
        """Run a task in the second thread, before the halves that wait for it; the first may be at work meanwhile."""
        return self._second.call(task)

    def call_alone(self, task: Callable[[], ResultT]) -> Future[ResultT]:
        """Run a task in the second thread while the first one waits: no job is at work."""
        return self._first.call(lambda: self._second.call(task).result())

    def clear(self) -> int:
        """Forget the waiting jobs; how many there were."""
        return self._first.clear() + self._second.clear()

    @property
    def queue_length(self) -> int:
        """Jobs waiting; those of which a half is done or being worked on are not among them."""
        return self._first.queue_length

    @property
    def task_count(self) -> int:
        """Tasks waiting; those being done are not among them."""
        return self._first.task_count + self._second.task_count

    def wait_idle(self, timeout_s: float) -> bool:
        """Wait until nothing is left to do; False when it took longer than ``timeout_s``."""
        end = time.monotonic() + timeout_s
        return self._first.wait_idle(timeout_s) and self._second.wait_idle(max(end - time.monotonic(), 0.0))

    def stop(self, timeout_s: float) -> bool:
        """Forget what waits, and wait for the halves in hand; False when they did not end within ``timeout_s``."""
        end = time.monotonic() + timeout_s
        self._second.stop(0.0)  # what the first one may be waiting for
        stopped = self._first.stop(timeout_s)
        return self._second.stop(max(end - time.monotonic(), 0.0)) and stopped

    def _do_first(self, job: JobT) -> None:
        try:
            outcome = self._begin(job)
        except Exception as error:  # whatever it is, it is told when the job's turn comes
            self._second.put(_Half(job, error))
        else:
            if outcome is not None:
                self._second.put(_Half(job, outcome))

    def _do_second(self, half: _Half[JobT, HalfT]) -> None:
        if isinstance(half.outcome, Exception):
            raise half.outcome
        self._end(half.job, half.outcome)

    def _failed(self, half: _Half[JobT, HalfT], error: Exception) -> None:
        self._told(half.job, error)
