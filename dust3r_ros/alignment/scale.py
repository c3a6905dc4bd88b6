"""How large the world is: metres per world unit, with its uncertainty, from whatever knows a length.

Every source gives ratios of a known length to the same length in the world: the way between two keyframes by odometry,
the baseline of a rig, a depth, the camera's height. Ratios of one kind are pooled in one robust estimate.
"""

from __future__ import annotations

import bisect
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from dust3r_ros.data import FloatArray, ViewEstimate
from dust3r_ros.geometry import backproject

MOST_UNCERTAINTY = 0.02  # relative standard deviation up to which a scale is good enough to speak of metres
LOST_UNCERTAINTY = 0.04  # and above which it no longer is, once it was
LEAST_SAMPLES = 6
LEAST_SPREAD = 1e-3  # of the log of one ratio: no source is better
CUTOFF = 2.0  # standard deviations at which a ratio's weight is halved
ROUNDS = 20

SEGMENT_M = 0.25  # shortest way between two keyframes that is compared
LONGEST_GAP_NS = 300_000_000  # between two metric poses that are interpolated
RECENT = 300  # keyframes that are compared: a bound on the cost, and an old part may have drifted
BUFFERED = 50_000  # metric poses
SAME_TIME_NS = 5_000_000  # between two images that a rig's cameras took together

GROUND_TILT_DEG = 25.0  # of the ground against the direction that is called down
GROUND_TRIALS = 200
GROUND_BAND = 0.02  # thickness of the ground relative to its distance
LEAST_GROUND = 0.05  # of the points, that must lie on it


@dataclass(frozen=True)
class MetricScale:
    """``metres_per_unit``, its relative standard deviation ``uncertainty``, and from how many lengths it comes."""

    metres_per_unit: float
    uncertainty: float
    samples: int


def pool_ratios(ratios: Sequence[float] | FloatArray) -> MetricScale | None:
    """The scale that independent ratios (known length over world length) agree on; None without a usable one.

    A location estimate of their logarithms with Cauchy weights, spread by the median absolute deviation; its
    uncertainty is the M-estimator's (Huber 1981, section 3.2): spread of the weighted errors over their mean slope.
    """
    values = np.asarray(ratios, dtype=float)
    logs = np.log(values[np.isfinite(values) & (values > 0)])
    if not logs.size:
        return None
    centre = float(np.median(logs))
    spread = max(1.4826 * float(np.median(np.abs(logs - centre))), LEAST_SPREAD)
    cutoff2 = (CUTOFF * spread) ** 2
    for _ in range(ROUNDS):
        error = logs - centre
        weight = 1 / (1 + error**2 / cutoff2)
        centre += float((weight * error).sum() / weight.sum())
    error = logs - centre
    weight = 1 / (1 + error**2 / cutoff2)
    slope = float((weight * (2 * weight - 1)).sum())  # of the sum of weight * error, by the centre
    variance = max(float(((weight * error) ** 2).sum()), LEAST_SPREAD**2)
    few = np.sqrt(len(logs) / max(len(logs) - 1, 0.5))
    uncertainty = float(few * np.sqrt(variance) / slope) if slope > 0 else float("inf")
    return MetricScale(float(np.exp(centre)), max(uncertainty, LEAST_SPREAD / np.sqrt(len(logs))), len(logs))


def segment_ratios(metric: FloatArray, world: FloatArray, least_m: float = SEGMENT_M) -> FloatArray:
    """Ratios of the ways between keyframes at least ``least_m`` apart: metric centres (N, 3) against world ones (N, 3).

    The segments follow each other and share nothing but their ends. Lengths need no common frame, and a drift of the
    metric source over the whole way does little to them.
    """
    ratios, start = [], 0
    for end in range(1, len(metric)):
        length = float(np.linalg.norm(metric[end] - metric[start]))
        if length >= least_m:
            own = float(np.linalg.norm(world[end] - world[start]))
            ratios.append(length / own if own > 0 else np.inf)
            start = end
    return np.array(ratios)


def baseline_ratios(first: FloatArray, second: FloatArray, baseline_m: float) -> FloatArray:
    """Ratios by a rig: centres (N, 3) of two of its cameras at the same times, ``baseline_m`` apart."""
    if not baseline_m > 0:
        raise ValueError(f"baseline_m must be positive, got {baseline_m}")
    distance = np.linalg.norm(np.asarray(first) - np.asarray(second), axis=-1)
    return np.divide(baseline_m, distance, out=np.full_like(distance, np.inf), where=distance > 0)


def depth_ratio(view: ViewEstimate, depth_m: FloatArray) -> float:
    """The ratio by one view whose depth is known in metres (H, W), 0 where it is not: the median over pixels; else NaN.

    One ratio a view, because the pixels of a view err together.
    """
    if depth_m.shape != view.depth.shape:
        raise ValueError(f"depth_m must be {view.depth.shape} like the view's depth, got {depth_m.shape}")
    both = (view.depth > 0) & (depth_m > 0) & np.isfinite(depth_m)
    return float(np.median(depth_m[both] / view.depth[both])) if both.any() else float("nan")


def height_ratio(view: ViewEstimate, height_m: float, down: FloatArray | None = None, seed: int = 0) -> float:
    """The ratio by one view of the ground, ``height_m`` below the camera; NaN where no ground is seen.

    ``down`` (3,) is the direction of gravity in the camera's frame, the image's when None. The ground is the plane
    across it that most points lie on (Fischler and Bolles 1981).
    """
    if not height_m > 0:
        raise ValueError(f"height_m must be positive, got {height_m}")
    axis = np.array([0.0, 1.0, 0.0]) if down is None else np.asarray(down, dtype=float) / np.linalg.norm(down)
    points = backproject(view.depth, view.intrinsics)[view.depth > 0]
    below = points[points @ axis > 0]
    if len(below) < 3:
        return float("nan")
    rng = np.random.default_rng(seed)
    below = below[rng.permutation(len(below))[:4000]]
    best, distance = LEAST_GROUND * len(below), float("nan")
    for _ in range(GROUND_TRIALS):
        a, b, c = below[rng.choice(len(below), 3, replace=False)]
        normal = np.cross(b - a, c - a)
        size = float(np.linalg.norm(normal))
        if size == 0 or abs(normal @ axis) < size * np.cos(np.radians(GROUND_TILT_DEG)):
            continue
        normal *= np.sign(normal @ axis) / size
        heights = below @ normal
        near = np.abs(heights - a @ normal) < GROUND_BAND * abs(a @ normal)
        if near.sum() > best:
            best, distance = near.sum(), float(np.median(heights[near]))
    return height_m / distance


@dataclass(eq=False)
class _Stream:
    """Metric centres of one camera, in order of time, and those found at its keyframes."""

    stamps: list[int] = field(default_factory=list)
    centres: list[FloatArray] = field(default_factory=list)
    found: dict[int, FloatArray] = field(default_factory=dict)

    def add(self, stamp_ns: int, centre: FloatArray) -> None:
        if self.stamps and stamp_ns <= self.stamps[-1]:
            raise ValueError(f"stamp_ns must be later than {self.stamps[-1]}, the last one, got {stamp_ns}")
        self.stamps.append(stamp_ns)
        self.centres.append(centre)
        if len(self.stamps) > 2 * BUFFERED:
            del self.stamps[:BUFFERED], self.centres[:BUFFERED]

    def ratios(self, path: Sequence[tuple[int, FloatArray]]) -> FloatArray:
        """Of the ways between the keyframes of a path (stamp_ns, camera_to_world (4, 4))."""
        self.found = {stamp: centre for stamp, _ in path if (centre := self._at(stamp)) is not None}
        placed = [(self.found[stamp], pose[:3, 3]) for stamp, pose in path if stamp in self.found]
        if len(placed) < 2:
            return np.zeros(0)
        metric, world = (np.array(part) for part in zip(*placed))
        return segment_ratios(metric, world)

    def _at(self, stamp_ns: int) -> FloatArray | None:
        """The metric centre (3,) at a time, interpolated; None while no pose follows, or where too many are missing."""
        if stamp_ns in self.found:
            return self.found[stamp_ns]
        k = bisect.bisect_left(self.stamps, stamp_ns)
        if k == len(self.stamps) or (k == 0 and self.stamps[0] != stamp_ns):
            return None
        if self.stamps[k] == stamp_ns:
            return self.centres[k]
        before, after = self.stamps[k - 1], self.stamps[k]
        if after - before > LONGEST_GAP_NS:
            return None
        part = (stamp_ns - before) / (after - before)
        return (1 - part) * self.centres[k - 1] + part * self.centres[k]


def rig_ratios(
    first: Sequence[tuple[int, FloatArray]], second: Sequence[tuple[int, FloatArray]], baseline_m: float
) -> FloatArray:
    """Ratios by two cameras ``baseline_m`` apart: of their paths' poses (stamp_ns, (4, 4)) at the same times."""
    stamps = np.array([stamp for stamp, _ in first], dtype=np.int64)
    pairs = []
    for stamp, pose in second:
        near = np.flatnonzero(np.abs(stamps - stamp) <= SAME_TIME_NS)
        if near.size:
            pairs.append((first[near[0]][1][:3, 3], pose[:3, 3]))
    if not pairs:
        return np.zeros(0)
    own, other = (np.array(centres) for centres in zip(*pairs))
    return baseline_ratios(own, other, baseline_m)


class MetricReference:
    """The scale by what is known in metres: streams of metric poses of cameras, such as odometry with each camera's
    place on the robot, and baselines of a rig.

    Poses may come before or after the keyframes they belong to, from another thread. Their frame does not matter.
    ``known`` is the scale of a map that was measured before; it holds until it is measured anew, and not again.
    """

    def __init__(self, known: MetricScale | None = None) -> None:
        self._known = known
        self._lock = threading.Lock()
        self._streams: dict[str, _Stream] = {}
        self._baselines: dict[tuple[str, str], float] = {}
        self._good = False
        self.scale: MetricScale | None = None

    @property
    def metric(self) -> MetricScale | None:
        """The scale while it is good: from ``MOST_UNCERTAINTY`` on, until it exceeds ``LOST_UNCERTAINTY``."""
        return self.scale if self._good else self._known

    def add(self, stamp_ns: int, camera_to_metric: FloatArray, camera: str = "camera") -> None:
        """A metric pose (4, 4) of a camera.

        Raises ValueError for one that is not later than the camera's last, or not finite.
        """
        pose = np.asarray(camera_to_metric, dtype=float)
        if pose.shape != (4, 4) or not np.isfinite(pose).all():
            raise ValueError(f"camera_to_metric must be a finite (4, 4) pose, got {pose.shape}")
        with self._lock:
            self._streams.setdefault(camera, _Stream()).add(stamp_ns, pose[:3, 3].copy())

    def add_baseline(self, first: str, second: str, baseline_m: float) -> None:
        """Two cameras are fixed to each other. Raises ValueError for a camera with itself, or no distance."""
        if first == second or not 0 < baseline_m < np.inf:
            raise ValueError(
                f"a baseline must be positive and between two cameras, got {baseline_m}, {first}, {second}"
            )
        with self._lock:
            self._baselines[first, second] = baseline_m

    def update(self, paths: Mapping[str, Sequence[tuple[int, FloatArray]]]) -> MetricScale | None:
        """Compare with each camera's path in the world, (stamp_ns, camera_to_world (4, 4)): only its newest part.

        Ways are compared between keyframes of one camera, baselines at one time. Without either in the newest part
        there is no scale.
        """
        with self._lock:
            parts = [self._streams[c].ratios(path[-RECENT:]) for c, path in paths.items() if c in self._streams]
            parts += [
                rig_ratios(paths[a][-RECENT:], paths[b][-RECENT:], baseline)
                for (a, b), baseline in self._baselines.items()
                if a in paths and b in paths
            ]
        self.scale = pool_ratios(np.concatenate([np.zeros(0), *parts]))
        limit = LOST_UNCERTAINTY if self._good else MOST_UNCERTAINTY
        s = self.scale
        self._good = s is not None and s.samples >= LEAST_SAMPLES and s.uncertainty <= limit
        if self._good:
            self._known = None  # a better one is lost again, not exchanged for one that it has replaced
        return self.scale
