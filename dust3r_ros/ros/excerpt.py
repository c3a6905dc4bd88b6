"""The part of a recording that is asked for."""

from __future__ import annotations

from dataclasses import dataclass

from dust3r_ros.errors import RecordingError

Window = tuple[int | None, int | None]
ALWAYS: Window = (None, None)


@dataclass(frozen=True)
class Excerpt:
    """Every ``every``-th image of those recorded from ``start_s`` after the recording's begin, for ``duration_s``
    seconds, to its end when None. Raises RecordingError for values that make no sense.
    """

    every: int = 1
    start_s: float = 0.0
    duration_s: float | None = None

    def __post_init__(self) -> None:
        if self.every < 1:
            raise RecordingError(f"every must be at least 1, got {self.every}")
        if not 0 <= self.start_s < float("inf"):
            raise RecordingError(f"start must be at least 0 seconds, got {self.start_s:g}")
        if self.duration_s is not None and not self.duration_s > 0:
            raise RecordingError(f"duration must be more than 0 seconds, got {self.duration_s:g}")

    def window_ns(self, begin_ns: int) -> Window:
        """The first time, and that before which it ends, of a recording that begins at ``begin_ns``; None: its own."""
        first = begin_ns + round(1e9 * self.start_s)
        end = None if self.duration_s is None else first + round(1e9 * min(self.duration_s, 1e9))
        return first if self.start_s else None, end

    def images(self, count: int, whole_s: float) -> int:
        """About how many of a recording's ``count`` images it has, were they spread evenly."""
        left = max(whole_s - self.start_s, 0.0)
        seconds = min(left, self.duration_s) if self.duration_s is not None else left
        return -(-round(count * seconds / whole_s) // self.every) if whole_s > 0 else -(-count // self.every)


WHOLE = Excerpt()
