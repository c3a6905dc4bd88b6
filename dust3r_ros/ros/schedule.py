"""When something that changes is given out anew."""

from __future__ import annotations

import time
from collections.abc import Callable


class Schedule:
    """When a latched output is published anew: only when it changed, somebody reads it, and not too often.

    A reader that comes late gets the latched message, or a new one when there were changes since.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._changed = False
        self._published_at = -float("inf")

    def changed(self) -> None:
        """The output is no longer what was published last."""
        self._changed = True

    def published(self) -> None:
        """What is published now is the newest."""
        self._changed = False
        self._published_at = self._clock()

    def due(self, period_s: float, wanted: bool) -> bool:
        """Whether to publish now."""
        return wanted and self._changed and self._clock() - self._published_at >= period_s
