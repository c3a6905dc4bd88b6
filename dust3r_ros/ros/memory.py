"""Memory of this process: how much is in use, and that what was freed goes back to the system.

A keyframe's arrays are large and short-lived. The C library keeps what is freed for later, without a limit of its own:
a node that holds 100 MB grew by 40 MB a minute so. To have every large array of the system instead, as
M_MMAP_THRESHOLD does, costs 10 to 20 % of the time of a keyframe. So all threads share one heap, because only of the
first can the library be told to give back what is free, and it is told.
"""

from __future__ import annotations

import ctypes
import gc
import logging
import os
import resource
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from dust3r_ros.errors import DeviceMemoryError

log = logging.getLogger(__name__)

ResultT = TypeVar("ResultT")

SLACK_MB = 32.0  # freed memory that may be kept for the next keyframes: the system clears each page it hands out


_M_ARENA_MAX = -8  # malloc.h


def share_heap() -> None:
    """One heap for all threads, where the C library is glibc; to be called before there are any."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_ARENA_MAX, 1)


def resident_mb() -> float:
    """Memory of this process that is in use, megabytes."""
    try:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6
    except OSError:  # not Linux: the most there was
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3


def release_memory() -> None:
    """Give back what is free: by the C library, where it can (glibc), and by PyTorch of the device."""
    gc.collect()
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized():
        torch.cuda.empty_cache()
    _trim()


def _trim() -> None:
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


class HeapLimit:
    """Gives freed memory back when there is time for it, and each time the process has grown by ``SLACK_MB``."""

    def __init__(self) -> None:
        self._needed_mb = resident_mb()

    def keep(self, *, idle: bool) -> None:
        """Call it when a piece of work is done; ``idle`` says that no other waits."""
        resident = resident_mb()
        if idle or resident > self._needed_mb + SLACK_MB:
            _trim()
            self._needed_mb = resident_mb()
        else:
            self._needed_mb = min(self._needed_mb, resident)


class WindowLimit:
    """How many keyframes a new one is paired with: fewer than configured where the device's memory is short.

    Several threads may take steps at the same time.
    """

    def __init__(self, keyframes: int, shorten: Callable[[int], None]) -> None:
        """``shorten`` is told of each smaller number."""
        self.keyframes = keyframes
        self._shorten = shorten
        self._changing = threading.Lock()

    def within(self, step: Callable[[], ResultT]) -> ResultT:
        """What a step gives, with as much of the window as there is memory for.

        Raises DeviceMemoryError when there is none for a single keyframe.
        """
        while True:
            tried = self.keyframes
            try:
                return step()
            except DeviceMemoryError as error:
                if tried == 1:
                    raise
                self._halve(tried, error)
                release_memory()

    def _halve(self, tried: int, error: DeviceMemoryError) -> None:
        """Fewer keyframes than a step ``tried``, unless another thread saw to it meanwhile."""
        with self._changing:
            if self.keyframes == tried:
                self.keyframes //= 2
                log.warning("%s: keyframes are paired with %d older ones from now on", error, self.keyframes)
                self._shorten(self.keyframes)
