"""The thread that does the heavy work, and the short queue in front of it.

Callbacks offer jobs and return at once. When the queue is full the oldest job gives way, so that what is worked on is
never old. Tasks are calls that must not run at the same time as a job, such as saving the map; they go before jobs.
"""

from __future__ import annotations

import logging
import os
import sys
import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from typing import Generic, TypeVar

log = logging.getLogger(__name__)

JobT = TypeVar("JobT")
ResultT = TypeVar("ResultT")


class Worker(Generic[JobT]):
    """One thread that handles jobs in order, at most ``capacity`` waiting, the newest win."""

    def __init__(
        self, handle: Callable[[JobT], None], capacity: int, failed: Callable[[JobT, Exception], None], *, nice: int = 0
    ) -> None:
        """``handle`` does a job; ``failed`` is told of one that raised. Both are called in the worker's thread.

        ``nice`` says how much it gives way to other threads where they share a processor (Linux only).
        """
        if capacity < 1:
            raise ValueError(f"capacity must be at least 1, got {capacity}")
        self._handle = handle
        self._failed = failed
        self._capacity = capacity
        self._nice = nice
        self._jobs: deque[JobT] = deque()
        self._tasks: deque[tuple[Future, Callable[[], None]]] = deque()
        self._changed = threading.Condition()
        self._stopping = False
        self._busy = False
        # A daemon, because a job cannot be interrupted: a process that must end does not wait for it.
        self._thread = threading.Thread(target=self._run, name="dust3r worker", daemon=True)

    def start(self) -> None:
        """Begin to work; what was offered before is done first."""
        self._thread.start()

    def offer(self, job: JobT) -> JobT | None:
        """Queue a job; the job that had to give way for it, None when there was room."""
        with self._changed:
            dropped = self._jobs.popleft() if len(self._jobs) >= self._capacity else None
            self._jobs.append(job)
            self._changed.notify_all()
            return dropped

    def put(self, job: JobT) -> bool:
        """Queue a job once there is room for it; False when there never will be, because the worker stops."""
        with self._changed:
            self._changed.wait_for(lambda: self._stopping or len(self._jobs) < self._capacity)
            if not self._stopping:
                self._jobs.append(job)
                self._changed.notify_all()
            return not self._stopping

    def call(self, task: Callable[[], ResultT]) -> Future[ResultT]:
        """Run a task in the worker's thread, before the waiting jobs; the future has its result or exception."""
        future: Future[ResultT] = Future()

        def run() -> None:
            if not future.set_running_or_notify_cancel():
                return
            try:
                result = task()
            except Exception as error:  # handed to the caller, whatever it is
                future.set_exception(error)
            else:
                future.set_result(result)

        with self._changed:
            if self._stopping:
                future.cancel()
            else:
                self._tasks.append((future, run))
                self._changed.notify_all()
        return future

    def clear(self) -> int:
        """Forget the waiting jobs; how many there were."""
        with self._changed:
            count = len(self._jobs)
            self._jobs.clear()
            self._changed.notify_all()
            return count

    @property
    def queue_length(self) -> int:
        """Jobs waiting; the one being worked on is not among them."""
        return len(self._jobs)

    @property
    def task_count(self) -> int:
        """Tasks waiting; the one being done is not among them."""
        return len(self._tasks)

    def wait_idle(self, timeout_s: float) -> bool:
        """Wait until nothing is left to do; False when it took longer than ``timeout_s``."""
        with self._changed:
            return self._changed.wait_for(lambda: not (self._busy or self._jobs or self._tasks), timeout_s)

    def stop(self, timeout_s: float) -> bool:
        """Forget what waits, and wait for the job in hand; False when that did not end within ``timeout_s``."""
        with self._changed:
            self._stopping = True
            self._jobs.clear()
            for future, _ in self._tasks:
                future.cancel()
            self._tasks.clear()
            self._changed.notify_all()
        if self._thread.ident is None:
            return True
        self._thread.join(timeout_s)
        return not self._thread.is_alive()

    def _run(self) -> None:
        if self._nice and sys.platform == "linux":  # where each thread has a niceness of its own
            own = threading.get_native_id()
            os.setpriority(os.PRIO_PROCESS, own, os.getpriority(os.PRIO_PROCESS, own) + self._nice)
        while (step := self._next()) is not None:
            step()
            with self._changed:
                self._busy = False
                self._changed.notify_all()

    def _next(self) -> Callable[[], None] | None:
        """What to do next, None when the worker is to stop."""
        with self._changed:
            self._changed.wait_for(lambda: self._stopping or self._tasks or self._jobs)
            if self._stopping:
                return None
            self._busy = True
            if self._tasks:
                return self._tasks.popleft()[1]
            job = self._jobs.popleft()
            self._changed.notify_all()
            return lambda: self._do(job)

    def _do(self, job: JobT) -> None:
        try:
            self._handle(job)
        except Exception as error:  # one bad job, whatever is wrong with it, must not end the node
            log.debug("job failed", exc_info=True)
            self._failed(job, error)
