"""Progress bars on standard error."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

_LINE_SECONDS = 60.0


class Bars:
    """One bar a stage, one stage at a time: call it with a stage's name, the work done and the whole (0: unknown).

    Where standard error is no terminal, a line a minute is written instead.
    """

    def __init__(self) -> None:
        self._line_due = time.monotonic() + _LINE_SECONDS
        self._stage = ""
        self._bar: Any = None

    def __call__(self, stage: str, done: int, whole: int) -> None:
        from tqdm import tqdm

        if stage != self._stage:
            self.close()
            self._stage = stage
            self._bar = tqdm(total=whole or None, desc=stage, file=sys.stderr, dynamic_ncols=True, disable=None)
        if self._bar.total is not None:
            done = min(done, self._bar.total)
        if not self._bar.disable:
            self._bar.update(done - self._bar.n)
        elif (now := time.monotonic()) >= self._line_due:
            sys.stderr.write(f"{stage}: {done}{f' of {whole}' if whole else ''}\n")
            sys.stderr.flush()
            self._line_due = now + _LINE_SECONDS

    def close(self) -> None:
        """End the bar that is shown, full."""
        if self._bar is None:
            return
        if self._bar.total is not None:
            self._bar.update(self._bar.total - self._bar.n)
        self._bar.close()
        self._bar = None

    def abandon(self) -> None:
        """Leave the bar as it is: the work was not finished."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None


@contextmanager
def progress_bars() -> Iterator[Bars]:
    """Bars that are closed at the end of the block, full when it ends well."""
    bars = Bars()
    try:
        yield bars
        bars.close()
    finally:
        bars.abandon()
