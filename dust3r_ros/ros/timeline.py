"""Notices when the images' time goes back, as a recording does that starts again."""

from __future__ import annotations

TOLERANCE_NS = 1_000_000_000  # images of several cameras, and those that a network delays, come a little out of order


class Timeline:
    """The newest stamp of all cameras."""

    def __init__(self) -> None:
        self._newest_ns: int | None = None

    def jump_back_s(self, stamp_ns: int) -> float:
        """Seconds by which an image is older than the newest one before it; 0 when time goes on.

        After a jump time begins anew there.
        """
        newest, self._newest_ns = self._newest_ns, max(stamp_ns, self._newest_ns or stamp_ns)
        if newest is None or stamp_ns >= newest - TOLERANCE_NS:
            return 0.0
        self._newest_ns = stamp_ns
        return 1e-9 * (newest - stamp_ns)
