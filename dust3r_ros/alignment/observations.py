"""What the predictions say of each view, sampled on a pixel grid and sorted by the view whose pixels they describe."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from dust3r_ros.data import BoolArray, Edge, FloatArray, PairState
from dust3r_ros.errors import AlignmentError

IntArray = NDArray[np.integer]
Size = tuple[int, int]

MIN_SAMPLES = 12
REACH = 1e3  # a point this many times farther than the median of its map would only spoil closed-form fits
MOST_CONFIDENCE = 1e9  # its square, and sums of it, fit into float32


@dataclass(frozen=True, eq=False)
class SampledEdge:
    """A directed edge on the sample pixels of its views.

    ``points_i`` (3, G_i) and ``points_j`` (3, G_j) float64 in camera i's frame; ``weight_i`` (G_i,) and
    ``weight_j`` (G_j,): squared confidence, 0 where there is no finite prediction. ``rotation_only`` edges say
    where points are seen but not how far away they are.
    """

    i: int
    j: int
    points_i: FloatArray
    weight_i: FloatArray
    points_j: FloatArray
    weight_j: FloatArray
    rotation_only: bool

    @property
    def strength(self) -> float:
        """Mean confidence over all sample pixels of both views: what the spanning tree maximises."""
        total = np.sqrt(self.weight_i).sum() + np.sqrt(self.weight_j).sum()
        return float(total / (len(self.weight_i) + len(self.weight_j)))

    @property
    def samples(self) -> int:
        """Number of predictions on the sample pixels of the view that has fewer."""
        return int(min(np.count_nonzero(self.weight_i), np.count_nonzero(self.weight_j)))

    @property
    def usable(self) -> bool:
        return self.samples >= MIN_SAMPLES

    def take(self, pixels_i: IntArray, pixels_j: IntArray) -> SampledEdge:
        """The edge on some of its sample pixels, by their positions among them."""
        return replace(
            self, points_i=self.points_i[:, pixels_i], weight_i=self.weight_i[pixels_i],
            points_j=self.points_j[:, pixels_j], weight_j=self.weight_j[pixels_j],
        )  # fmt: skip


@dataclass(frozen=True, eq=False)
class Sightings:
    """Every prediction of one view's sample pixels.

    Own-frame predictions (edges that start at the view): ``own_edge`` (A,), ``own`` (A, 3, G), ``own_weight`` (A, G).
    Other-frame predictions (edges that end there): ``seen_edge`` (B,), ``seen_from`` (B,) the view whose frame
    ``seen`` (B, 3, G) is in, ``seen_weight`` (B, G), ``seen_parallax`` (B,): 0 for edges that only know directions.
    """

    own_edge: IntArray
    own: FloatArray
    own_weight: FloatArray
    seen_edge: IntArray
    seen_from: IntArray
    seen: FloatArray
    seen_weight: FloatArray
    seen_parallax: FloatArray

    def where(self, pixels: BoolArray) -> Sightings:
        """Only the predictions of some pixels (G,) count."""
        return replace(self, own_weight=self.own_weight * pixels, seen_weight=self.seen_weight * pixels)

    @property
    def residuals(self) -> int:
        """Number of scalar residuals, three a prediction of a pixel."""
        return 3 * (self.own_weight.size + self.seen_weight.size)


def view_sizes(edges: Sequence[Edge]) -> dict[int, Size]:
    """(H, W) of every view that has an edge. Raises AlignmentError where shapes do not fit each other."""
    sizes: dict[int, Size] = {}
    for edge in edges:
        p = edge.prediction
        for view, points, conf in ((edge.i, p.points_i, p.conf_i), (edge.j, p.points_j, p.conf_j)):
            if points.ndim != 3 or points.shape[2] != 3 or conf.shape != points.shape[:2]:
                raise AlignmentError(
                    f"edge ({edge.i}, {edge.j}): view {view} must have points (H, W, 3) and confidence (H, W), "
                    f"got {points.shape} and {conf.shape}"
                )
            size = sizes.setdefault(view, (points.shape[0], points.shape[1]))
            if size != points.shape[:2]:
                raise AlignmentError(
                    f"view {view} must have one size in all edges, got {size} and {points.shape[:2]} "
                    f"in edge ({edge.i}, {edge.j})"
                )
    return sizes


def grid_pixels(size: Size, grid: int) -> IntArray:
    """Flat indices (G,) of a regular grid of pixels with ``grid`` samples along the longer side of (H, W)."""
    step = max(1.0, max(size) / grid)
    rows, cols = (np.floor((np.arange(n) + 0.5) * step).astype(int) for n in grid_shape(size, grid))
    return (rows[:, None] * size[1] + cols[None]).ravel()


def grid_shape(size: Size, grid: int) -> tuple[int, int]:
    """Rows and columns of ``grid_pixels``."""
    step = max(1.0, max(size) / grid)
    return max(1, int(size[0] / step)), max(1, int(size[1] / step))


def every_second(shape: tuple[int, int]) -> IntArray:
    """Positions in a flat grid (rows, columns) of every second sample in both directions."""
    rows, cols = shape
    return (np.arange(0, rows, 2)[:, None] * cols + np.arange(0, cols, 2)).ravel()


def pixel_positions(size: Size, pixels: IntArray) -> FloatArray:
    """Pixel centres (G, 2) as (u, v) of flat pixel indices in an image (H, W)."""
    return np.stack([pixels % size[1] + 0.5, pixels // size[1] + 0.5], axis=-1).astype(np.float64)


def sample_map(
    points: FloatArray, confidence: FloatArray, pixels: IntArray, floor: float
) -> tuple[FloatArray, FloatArray]:
    """Points (3, G) and squared confidences (G,) at flat pixel indices.

    Where a point is not finite or the confidence is below ``floor``, both are 0.
    """
    conf = confidence.ravel()[pixels]
    planar: FloatArray = np.ascontiguousarray(points.reshape(-1, 3)[pixels].T, dtype=np.float64)
    with np.errstate(invalid="ignore"):
        good = (conf >= floor) & (conf > 0) & np.isfinite(conf) & np.isfinite(planar.sum(axis=0))
    weight = np.square(np.minimum(conf, MOST_CONFIDENCE), dtype=np.float64)
    return np.where(good, planar, 0), np.where(good, weight, 0)


def confidence_floor(edge: Edge, fraction: float) -> float:
    """The least confidence that counts: ``fraction`` of the edge's largest finite one."""
    largest = 0.0
    for conf in (edge.prediction.conf_i, edge.prediction.conf_j):
        if conf.size:
            top = float(conf.max())
            if not np.isfinite(top):
                finite = conf[np.isfinite(conf)]
                top = float(finite.max()) if finite.size else 0.0
            largest = max(largest, top)
    return fraction * largest


def sample_edge(edge: Edge, pixels_i: IntArray, pixels_j: IntArray, min_confidence: float) -> SampledEdge:
    """The edge at its views' sample pixels; own points behind the camera count as missing."""
    p, floor = edge.prediction, confidence_floor(edge, min_confidence)
    points_i, weight_i = sample_map(p.points_i, p.conf_i, pixels_i, floor)
    points_j, weight_j = sample_map(p.points_j, p.conf_j, pixels_j, floor)
    weight_i = _within_reach(points_i, np.where(points_i[2] > 0, weight_i, 0))
    weight_j = _within_reach(points_j, np.where((points_j**2).sum(axis=0) > 0, weight_j, 0))
    if p.state is PairState.FAILED:
        weight_i, weight_j = np.zeros_like(weight_i), np.zeros_like(weight_j)
    return SampledEdge(
        edge.i, edge.j, points_i, weight_i, points_j, weight_j, p.state is PairState.ROTATION_ONLY
    )  # fmt: skip


def _within_reach(points: FloatArray, weight: FloatArray) -> FloatArray:
    """``weight`` (G,) without the points (3, G) that are absurdly far away, for their map."""
    distance2 = (points**2).sum(axis=0)
    if not (weight > 0).any():
        return weight
    return np.where(distance2 <= REACH**2 * np.median(distance2[weight > 0]), weight, 0)


def collect_sightings(edges: Sequence[SampledEdge], view: int, samples: int, index: Mapping[int, int]) -> Sightings:
    """Every prediction of ``view``'s ``samples`` pixels among the edges; ``index`` numbers the views of the problem.

    The own-frame map of an edge without parallax tells nothing of depth and is left out.
    """
    own = [(e, s) for e, s in enumerate(edges) if s.i == view and not s.rotation_only]
    seen = [(e, s) for e, s in enumerate(edges) if s.j == view]
    return Sightings(
        own_edge=np.array([e for e, _ in own], dtype=int),
        own=_stack([s.points_i for _, s in own], (3, samples)),
        own_weight=_stack([s.weight_i for _, s in own], (samples,)),
        seen_edge=np.array([e for e, _ in seen], dtype=int),
        seen_from=np.array([index[s.i] for _, s in seen], dtype=int),
        seen=_stack([s.points_j for _, s in seen], (3, samples)),
        seen_weight=_stack([s.weight_j for _, s in seen], (samples,)),
        seen_parallax=np.array([0.0 if s.rotation_only else 1.0 for _, s in seen]),
    )


def _stack(arrays: Sequence[FloatArray], shape: tuple[int, ...]) -> FloatArray:
    return np.stack(arrays) if arrays else np.zeros((0, *shape))


def linked_sets(edges: Sequence[SampledEdge], views: int) -> list[tuple[int, ...]]:
    """The sets of views that usable edges connect, the largest first. A view paired with itself alone is one."""
    label = np.arange(views)
    touched = np.zeros(views, dtype=bool)
    for edge in edges:
        if edge.usable:
            low, high = sorted((label[edge.i], label[edge.j]))
            label[label == high] = low
            touched[[edge.i, edge.j]] = True
    sets = [tuple(int(v) for v in np.flatnonzero((label == name) & touched)) for name in np.unique(label[touched])]
    return sorted(sets, key=lambda members: -len(members))
