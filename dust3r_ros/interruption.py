"""Ctrl-C ends long work after its present step, so that what there is by then can be kept."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

_ONE_INTERRUPTION = 0.5  # seconds; one may come twice: from who sends it to all processes, and passed on by a parent


@contextmanager
def interruption() -> Iterator[Callable[[], bool]]:
    """Asks whether SIGINT or SIGTERM came since; one more, half a second later or after, acts as usual.

    Only the main thread can be asked.
    """
    came = threading.Event()
    since = 0.0
    if threading.current_thread() is not threading.main_thread():
        yield came.is_set
        return
    usual = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def note(number: int, frame: Any) -> None:
        nonlocal since
        now = time.monotonic()
        if not came.is_set():
            came.set()
            since = now
        elif now - since > _ONE_INTERRUPTION:
            signal.signal(number, usual[signal.Signals(number)])
            signal.raise_signal(number)

    for number in usual:
        signal.signal(number, note)
    try:
        yield came.is_set
    finally:
        for number, handler in usual.items():
            signal.signal(number, handler)
