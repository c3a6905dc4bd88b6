"""Focal lengths from own-frame pointmaps, pooled over a camera's views."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace

import numpy as np

from dust3r_ros.alignment.observations import SampledEdge, Size, pixel_positions, sample_edge, view_sizes
from dust3r_ros.alignment.result import view_intrinsics
from dust3r_ros.data import Edge, FloatArray, Intrinsics, PairPrediction, PairState
from dust3r_ros.errors import AlignmentError
from dust3r_ros.geometry import weighted_median

DEFAULT_FOCAL = 1.0  # of the longer image side, where no prediction says better: 53 degrees
GUESS_SPREAD = 0.05  # of the logarithm of a focal that the user guesses
SPREAD_MAPS = 1000
TILES = 4


@dataclass(frozen=True, eq=False)
class FocalGroups:
    """Which views share a focal: ``of_view`` (N,) index of each view's group, -1 where K is known; ``count``."""

    of_view: tuple[int, ...]
    count: int


@dataclass(eq=False)
class FocalTrack:
    """The focal of one camera over a growing number of keyframes; logs, in units of the longer image side.

    ``log_focal`` is the present estimate; ``mean`` and ``information`` sum up the keyframes that left the window;
    ``recent`` holds the focals of single own-frame maps, for the spread.
    """

    log_focal: float
    mean: float = 0.0
    information: float = 0.0
    recent: deque[float] = field(default_factory=lambda: deque(maxlen=SPREAD_MAPS))

    @classmethod
    def guessed(cls, focal: float) -> FocalTrack:
        """One that begins with a guess, which counts like a measurement that errs by ``GUESS_SPREAD``."""
        return cls(float(np.log(focal)), float(np.log(focal)), GUESS_SPREAD**-2)

    @property
    def relative_spread(self) -> float:
        """Robust spread of single predictions relative to the focal; 1 while there are fewer than two."""
        if len(self.recent) < 2:
            return 1.0
        values = np.array(self.recent)
        return float(1.4826 * np.median(np.abs(values - np.median(values))))

    def note(self, focals: Sequence[float]) -> None:
        """Focals of single own-frame maps; those that are not finite tell nothing."""
        self.recent.extend(float(np.log(f)) for f in focals if np.isfinite(f) and f > 0)

    def copy(self) -> FocalTrack:
        return replace(self, recent=self.recent.copy())

    def absorb(self, log_focal: float, information: float) -> None:
        """Add a keyframe's final evidence; one that lies far off, by the spread, counts less (Huber)."""
        if not information > 0:
            return
        if self.information > 0:
            limit = max(3 * self.relative_spread, 1e-6)
            information *= min(1.0, limit / max(abs(log_focal - self.mean), 1e-300))
        total = self.information + information
        self.mean += (log_focal - self.mean) * information / total
        self.information = total


@dataclass(frozen=True)
class PooledFocal:
    """A focal in units of the longer image side, and the robust spread over the views it was pooled from."""

    focal: float
    spread: float


def group_focals(
    views: int, share: bool, intrinsics: Sequence[Intrinsics | None], cameras: Sequence[int | str]
) -> FocalGroups:
    """One group for each camera when ``share``, else one for each view; none for views with known intrinsics."""
    names: dict[int | str | tuple[int], int] = {}
    groups = []
    for view in range(views):
        if intrinsics[view] is not None:
            groups.append(-1)
            continue
        name: int | str | tuple[int] = cameras[view] if share else (view,)
        groups.append(names.setdefault(name, len(names)))
    return FocalGroups(tuple(groups), len(names))


def view_focal(points: FloatArray, weight: FloatArray, positions: FloatArray, size: Size,
               principal_point: tuple[float, float] | None = None) -> float:  # fmt: skip
    """The focal (units of the longer side) that puts own-frame points (3, G) on their pixels (G, 2); NaN if none does.

    The weighted median over pixels p of ``|p|^2 / (p . slope)``: as robust as the paper's Weiszfeld iteration
    (DUSt3R, section 3.3) against wrong pixels, also against points close to the camera, whose slopes are huge, and
    not biased by noise in the slopes.
    """
    found = _pixel_focals(points, weight, positions, size, principal_point)
    focal = weighted_median(found.focal, found.weight) if len(found.focal) >= 3 else float("nan")
    return focal if np.isfinite(focal) and focal > 0 else float("nan")


@dataclass(frozen=True, eq=False)
class _PixelFocals:
    """The focals (K,) that single points tell, in units of the longer side, and their weights; ``position`` (K, 2)."""

    focal: FloatArray
    weight: FloatArray
    position: FloatArray


def _pixel_focals(points: FloatArray, weight: FloatArray, positions: FloatArray, size: Size,
                  principal_point: tuple[float, float] | None) -> _PixelFocals:  # fmt: skip
    use = (weight > 0) & (points[2] > 0)
    height, width = size
    pixel = (positions[use] - (principal_point or (width / 2, height / 2))).T / max(size)
    slope = points[:2, use] / points[2, use]
    radius2, along = (pixel**2).sum(axis=0), (pixel * slope).sum(axis=0)
    focals = np.divide(radius2, along, out=np.full_like(along, np.inf), where=along > 0)
    return _PixelFocals(focals, np.sqrt(weight[use] * radius2), positions[use])


@dataclass(frozen=True)
class ImageIntrinsics:
    """Intrinsics from one image, and the standard deviation of the focal, pixels (inf when one part tells it all)."""

    intrinsics: Intrinsics
    focal_spread_px: float


def intrinsics_of_image(prediction: PairPrediction, *, own_map_only: bool = False,
                        principal_point: tuple[float, float] | None = None,
                        min_confidence: float = 1e-3) -> ImageIntrinsics:  # fmt: skip
    """The focal of one image from its prediction paired with itself (DUSt3R, section 3.3).

    Both maps are pointmaps of the same pixels in the same frame; the focal is the weighted median over the pixels of
    both. With ``own_map_only`` the image was paired with another one, and its own-frame map alone counts. Neighbouring
    pixels err together, so the spread is the jackknife's: the image is cut into ``TILES`` x ``TILES`` tiles, and the
    focal is taken again without each of them. ``principal_point`` (cx, cy) is the centre when left out. Raises
    AlignmentError when no point with confidence lies in front of the camera off the principal point.
    """
    if not own_map_only and prediction.state in (PairState.ROTATION_ONLY, PairState.FAILED):
        raise AlignmentError(f"the focal of an image needs a prediction with depth, got {prediction.state.value!r}")
    edge = Edge(0, 1 if own_map_only else 0, prediction)
    size = view_sizes([edge])[0]
    found = _image_focals(edge, size, principal_point, min_confidence)
    focal = weighted_median(found.focal, found.weight) if found.focal.size else float("inf")
    if not np.isfinite(focal):
        raise AlignmentError("no point lies in front of the camera: the focal cannot be estimated")
    tile = (found.position * TILES / (size[1], size[0])).astype(int) @ (1, TILES)
    tiles = np.unique(tile)
    left = [weighted_median(found.focal[tile != k], found.weight[tile != k]) for k in tiles] if len(tiles) > 1 else []
    spread = np.sqrt((len(left) - 1) * np.var(left)) if left else np.inf
    return ImageIntrinsics(view_intrinsics(None, size, np.log(focal), principal_point), float(spread * max(size)))


def _image_focals(edge: Edge, size: Size, principal_point: tuple[float, float] | None,
                  min_confidence: float) -> _PixelFocals:  # fmt: skip
    """What every pixel of view i tells by its own-frame map and, when it is paired with itself, by the other one.

    Sorted by focal, without pixels of no weight.
    """
    pixels_i = np.arange(edge.prediction.conf_i.size)
    pixels_j = np.arange(edge.prediction.conf_j.size)
    sampled, positions = sample_edge(edge, pixels_i, pixels_j, min_confidence), pixel_positions(size, pixels_i)
    maps = [(sampled.points_i, sampled.weight_i)]
    if edge.i == edge.j:
        maps.append((sampled.points_j, sampled.weight_j))
    parts = [_pixel_focals(points, weight, positions, size, principal_point) for points, weight in maps]
    focal, weight, position = (np.concatenate([getattr(p, f.name) for p in parts]) for f in fields(_PixelFocals))
    order = np.argsort(focal)
    order = order[weight[order] > 0]
    return _PixelFocals(focal[order], weight[order], position[order])


def edge_focal(edge: SampledEdge, positions: FloatArray, size: Size,
               principal_point: tuple[float, float] | None = None) -> float:  # fmt: skip
    """The focal of view i by one edge's own-frame map, NaN when it has no depth to tell it from."""
    if edge.rotation_only:
        return float("nan")
    return view_focal(edge.points_i, edge.weight_i, positions, size, principal_point)


def pool_focals(focals: Sequence[float]) -> PooledFocal:
    """Median and 1.4826 median absolute deviation, in log, of the finite focals; the default when there is none."""
    logs = np.log([f for f in focals if np.isfinite(f) and f > 0])
    if not logs.size:
        return PooledFocal(DEFAULT_FOCAL, float("inf"))
    middle = float(np.median(logs))
    return PooledFocal(float(np.exp(middle)), float(np.exp(middle) * 1.4826 * np.median(np.abs(logs - middle))))
