"""What became of the images' poses: counts, rates and times. Safe for use by several threads."""

from __future__ import annotations

import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import Enum

import numpy as np

from dust3r_ros.tracking import TrackedPose, TrackingState

_RATE_WINDOW_S = 10.0
_WORST_FIRST = (TrackingState.LOST, TrackingState.INITIALISING, TrackingState.RELOCALISED, TrackingState.TRACKING)


class PoseFate(Enum):
    """What became of an image's pose."""

    PUBLISHED = "published"
    INITIALISING = "initialising"
    LOST = "lost"
    STALE = "stale"


@dataclass(frozen=True, eq=False)
class TrackingSnapshot:
    """The figures at one moment.

    ``states`` by camera; ``points`` followed to the newest image and ``inliers`` of them, of the camera that is worst
    off; ``rate`` of published poses per second over the last 10 s; ``latency_ms`` from an image's arrival to its pose
    and transform published, the median of the last 300; ``relocalisations`` counts how often a lost path was found.
    """

    states: Mapping[str, TrackingState] = field(default_factory=dict)
    points: int = 0
    inliers: int = 0
    counts: Mapping[PoseFate, int] = field(default_factory=dict)
    rate: float = 0.0
    latency_ms: float = 0.0
    relocalisations: int = 0

    @property
    def state(self) -> TrackingState | None:
        """That of the camera that is worst off; None when nothing was tracked."""
        return next((s for s in _WORST_FIRST if s in self.states.values()), None)

    @property
    def word(self) -> str:
        """The state as Status.msg has it."""
        return self.state.value if self.state is not None else "off"


class TrackingStatistics:
    """Counts since the start or the last reset."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self.reset()

    def reset(self) -> None:
        """Begin counting anew."""
        with self._lock:
            self._newest: dict[str, TrackedPose] = {}
            self._counts: Counter[PoseFate] = Counter()
            self._times: deque[float] = deque(maxlen=10_000)
            self._latencies: deque[float] = deque(maxlen=300)
            self._relocalisations = 0

    def looked(self, camera: str, tracked: TrackedPose) -> None:
        """An image was tracked, or was not; what became of its pose is for ``note``."""
        with self._lock:
            before = self._newest.get(camera)
            self._newest[camera] = tracked
            if tracked.state is TrackingState.RELOCALISED and before is not None and before.state is TrackingState.LOST:
                self._relocalisations += 1
            if tracked.camera_to_world is None:
                lost = tracked.state is TrackingState.LOST
                self._counts[PoseFate.LOST if lost else PoseFate.INITIALISING] += 1

    def note(self, fate: PoseFate, latency_s: float = 0.0) -> None:
        """A pose was published so long after its image arrived, or came too late."""
        with self._lock:
            self._counts[fate] += 1
            if fate is PoseFate.PUBLISHED:
                self._times.append(self._clock())
                self._latencies.append(latency_s)

    def snapshot(self) -> TrackingSnapshot:
        """All of it now."""
        with self._lock:
            states = {camera: tracked.state for camera, tracked in self._newest.items()}
            worst = min(self._newest.values(), key=lambda t: _WORST_FIRST.index(t.state), default=None)
            since = self._clock() - _RATE_WINDOW_S
            return TrackingSnapshot(
                states=states,
                points=worst.points if worst is not None else 0,
                inliers=worst.inliers if worst is not None else 0,
                counts=Counter(self._counts),
                rate=sum(t > since for t in self._times) / _RATE_WINDOW_S,
                latency_ms=1e3 * float(np.median(self._latencies)) if self._latencies else 0.0,
                relocalisations=self._relocalisations,
            )
