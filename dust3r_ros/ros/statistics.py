"""What the node counts: images by what became of them, rates and times. Safe for use by several threads."""

from __future__ import annotations

import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import Enum

import numpy as np

from dust3r_ros.data import Update
from dust3r_ros.keyframes import KeyframeReason
from dust3r_ros.ros.tracking_statistics import TrackingSnapshot, TrackingStatistics

_RATE_WINDOW_S = 10.0


class Drop(Enum):
    """Why an image did not become part of the map."""

    UNSEEN = "unseen"
    NOT_NEEDED = "not needed"
    BLURRED = "blurred"
    QUEUE_FULL = "queue full"
    INVALID = "invalid"
    NO_CALIBRATION = "no calibration"
    NO_TRANSFORM = "no transform"
    FAILED = "failed"


def drop_of(reason: KeyframeReason) -> Drop:
    """How an image that the keyframe selection left out is counted."""
    return Drop.BLURRED if reason is KeyframeReason.BLURRED else Drop.NOT_NEEDED


@dataclass(frozen=True, eq=False)
class Snapshot:
    """The statistics at one moment.

    ``stamp_ns`` is the newest image's; ``image_rate`` and ``keyframe_rate`` per second over the last 10 s;
    ``callback_p99_ms`` is the time that 99 of 100 of the last 1000 images' callbacks were done in; ``latency_ms`` from
    an image's arrival to its points published; ``newest`` the last keyframe that was placed; ``lost`` says that the
    last one was not; ``tracking`` is about the images' poses.
    """

    stamp_ns: int = 0
    received: int = 0
    keyframes: int = 0
    dropped: Mapping[Drop, int] = field(default_factory=dict)
    keyframe_rate: float = 0.0
    latency_ms: float = 0.0
    newest: Update | None = None
    lost: bool = False
    image_rate: float = 0.0
    callback_p99_ms: float = 0.0
    tracking: TrackingSnapshot = field(default_factory=TrackingSnapshot)


class Statistics:
    """Counts since the start or the last reset."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self.tracking = TrackingStatistics(clock)
        self.reset()

    def reset(self) -> None:
        """Begin counting anew."""
        self.tracking.reset()
        with self._lock:
            self._stamp_ns = 0
            self._received = 0
            self._keyframes = 0
            self._dropped: Counter[Drop] = Counter()
            self._times: deque[float] = deque(maxlen=1000)
            self._arrivals: deque[float] = deque(maxlen=10_000)
            self._callbacks: deque[float] = deque(maxlen=1000)
            self._latency_ms = 0.0
            self._newest: Update | None = None
            self._lost = False

    def received(self, stamp_ns: int) -> None:
        """An image arrived."""
        with self._lock:
            self._received += 1
            self._stamp_ns = stamp_ns
            self._arrivals.append(self._clock())

    def callback(self, seconds: float) -> None:
        """An image's callback took so long."""
        with self._lock:
            self._callbacks.append(seconds)

    def dropped(self, reason: Drop, count: int = 1) -> None:
        """Images will not become part of the map."""
        with self._lock:
            self._dropped[reason] += count

    def finished(self, update: Update, latency_s: float) -> None:
        """A keyframe is done; ``latency_s`` from its image's arrival to its points published."""
        with self._lock:
            self._lost = not update.view.registered
            if self._lost:
                self._dropped[Drop.FAILED] += 1
                return
            self._keyframes += 1
            self._times.append(self._clock())
            self._latency_ms = 1e3 * latency_s
            self._newest = update

    def snapshot(self) -> Snapshot:
        """All of it now."""
        with self._lock:
            since = self._clock() - _RATE_WINDOW_S
            return Snapshot(
                stamp_ns=self._stamp_ns,
                received=self._received,
                keyframes=self._keyframes,
                dropped=Counter(self._dropped),
                image_rate=sum(t > since for t in self._arrivals) / _RATE_WINDOW_S,
                callback_p99_ms=1e3 * float(np.percentile(self._callbacks, 99)) if self._callbacks else 0.0,
                keyframe_rate=sum(t > since for t in self._times) / _RATE_WINDOW_S,
                latency_ms=self._latency_ms,
                newest=self._newest,
                lost=self._lost,
                tracking=self.tracking.snapshot(),
            )
