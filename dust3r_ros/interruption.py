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
    first: float | None = None

    def came() -> bool:
        return first is not None

    if threading.current_thread() is not threading.main_thread():
        yield came
        return
    usual = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def note(number: int, frame: Any) -> None:
        nonlocal first
        now = time.monotonic()
        if first is None:
            first = now
        elif now - first > _ONE_INTERRUPTION:
            signal.signal(number, usual[signal.Signals(number)])
            signal.raise_signal(number)

    for number in usual:
        signal.signal(number, note)
    try:
        yield came
    finally:
        for number, handler in usual.items():
            signal.signal(number, handler)
