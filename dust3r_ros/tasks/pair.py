"""Two images put in relation: matches, and the second camera's pose in two ways."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np

from dust3r_ros.alignment import intrinsics_of_image
from dust3r_ros.data import ByteImage, Intrinsics, PairPrediction, PairState, PreparedImage
from dust3r_ros.errors import AlignmentError
from dust3r_ros.geometric.matching import extract_features, match_features
from dust3r_ros.geometry import rotation_angle_deg
from dust3r_ros.images import prepare
from dust3r_ros.predictor import ImageSize, PairPredictor
from dust3r_ros.tasks.matches import PixelMatches, match_pixels
from dust3r_ros.tasks.pose import CameraPose, relative_pose_pnp, relative_pose_procrustes

_SAME_LEVELS = 0.5  # of 255, mean difference of two images that are the same
_FEATURES, _RATIO, _LEAST_FEATURES = 1000, 0.85, 30
_STILL_PX = 0.5  # three quarters of the features moved by less
_GRID = 8
_LEAST_BASELINE = 0.005  # of the distance of what is seen: below it the direction of the translation means nothing
_MOST_FOCAL_SPREAD = 0.3  # of a focal: one that a pair does not tell has the 0.35 that is known of lenses beforehand


@dataclass(frozen=True, eq=False)
class PairResult:
    """``pnp`` and ``procrustes`` are camera j's pose in camera i's frame, None where there is none.

    ``focals_px`` are of the original images, and ``focal_spread`` is how unsure the less sure one is, relative to it:
    0 when they were given. ``still``: both images are of one view; then the pose is the identity and nothing tells a
    focal. ``state`` is what the predictor says of the pair; ``baseline`` is the distance of the cameras relative to
    that of what they see, 0 where there is no pose.
    """

    images: tuple[PreparedImage, PreparedImage]
    matches: PixelMatches
    pnp: CameraPose | None
    procrustes: CameraPose | None
    focals_px: tuple[float, float] | None
    focal_spread: float = 0.0
    still: bool = False
    state: PairState = PairState.GOOD
    baseline: float = 0.0

    @property
    def has_baseline(self) -> bool:
        """Whether the cameras stand apart, so that the translation has a direction."""
        return self.state is not PairState.ROTATION_ONLY and self.baseline >= _LEAST_BASELINE

    @property
    def tells_focal(self) -> bool:
        """Whether the focals are more than what is known of any lens."""
        return self.focals_px is not None and self.focal_spread < _MOST_FOCAL_SPREAD

    @staticmethod
    def angle_deg(pose: CameraPose) -> float:
        """The angle between the cameras' orientations."""
        return float(rotation_angle_deg(pose.camera_to_world[:3, :3]))

    @staticmethod
    def heading(pose: CameraPose) -> str:
        """The direction from camera i to camera j, in camera i's axes, as text."""
        shift = pose.camera_to_world[:3, 3]
        return "({:.3f}, {:.3f}, {:.3f})".format(*(shift / max(float(np.linalg.norm(shift)), 1e-12)))

    def to_json(self) -> dict[str, Any]:
        """Poses (4, 4) of camera j in camera i's frame, up to the translation's scale, and what supports them."""
        values: dict[str, Any] = {
            "matches": len(self.matches),
            "one_view": self.still,
            "has_baseline": self.has_baseline,
        }
        for name, pose in (("pnp", self.pnp), ("procrustes", self.procrustes)):
            if pose is not None:
                matrix = pose.camera_to_world.tolist()
                values[name] = {"camera_j_to_camera_i": matrix, "inlier_share": float(pose.inliers.mean())}
        if self.focals_px is not None:
            values |= {"focals_px": list(self.focals_px), "focal_spread": self.focal_spread}
        return values


def relate(
    first: ByteImage, second: ByteImage, predictor: PairPredictor[Any], *, size: ImageSize | None = None,
    intrinsics: tuple[Intrinsics, Intrinsics] | None = None,
) -> PairResult:  # fmt: skip
    """Matches and relative pose of two images (H, W, 3); the pose's translation is up to scale.

    ``size`` is that of the predictor's images when it is not to be its own choice; ``intrinsics`` of both images, for
    their own sizes, where they are known.
    """
    one, other = (prepare(image, size or predictor.image_size) for image in (first, second))
    if _are_one_view(one, other):
        return _one_view(one, other)
    images, known = (one, other), _known((one, other), intrinsics)
    cameras = [f"{image.transform.original_width}x{image.transform.original_height}" for image in images]
    i, j = (predictor.encode(image, camera, k) for image, camera, k in zip(images, cameras, known))
    forward, back = predictor.predict([(i, j), (j, i)])
    try:
        found = [_intrinsics(map_, k, predictor, camera) for map_, k, camera in zip((forward, back), known, cameras)]
    except AlignmentError:
        return PairResult(images, match_pixels(forward), None, None, None, state=forward.state)
    (k_i, spread_i), (k_j, spread_j) = found
    pnp = _or_none(lambda: relative_pose_pnp(forward, k_j))
    procrustes = _or_none(lambda: relative_pose_procrustes(forward, back))
    return PairResult(
        images,
        match_pixels(forward),
        pnp,
        procrustes,
        (one.transform.to_original(k_i).focal_px, other.transform.to_original(k_j).focal_px),
        max(spread_i, spread_j),
        state=forward.state,
        baseline=_baseline(procrustes or pnp, forward),
    )


def _known(
    images: tuple[PreparedImage, PreparedImage], intrinsics: tuple[Intrinsics, Intrinsics] | None
) -> list[Intrinsics | None]:
    if intrinsics is None:
        return [None, None]
    return [image.transform.to_network(k) for image, k in zip(images, intrinsics)]


def _intrinsics(
    own: PairPrediction, known: Intrinsics | None, predictor: PairPredictor[Any], camera: str
) -> tuple[Intrinsics, float]:
    """Of the first image of a pair, and the relative standard deviation of its focal."""
    if known is not None:
        return known, 0.0
    found = intrinsics_of_image(own, own_map_only=True)
    spread = predictor.focal_spread(camera)
    return found.intrinsics, spread if spread is not None else found.focal_spread_px / found.intrinsics.focal_px


def _baseline(pose: CameraPose | None, prediction: PairPrediction) -> float:
    seen = prediction.points_i[prediction.conf_i > 0]
    if pose is None or not len(seen):
        return 0.0
    return float(np.linalg.norm(pose.camera_to_world[:3, 3]) / np.median(np.linalg.norm(seen, axis=-1)))


def _are_one_view(first: PreparedImage, second: PreparedImage) -> bool:
    """Whether nothing moved between two images by half a pixel: there is no parallax to see anything by."""
    if first.pixels.shape != second.pixels.shape:
        return False
    if np.abs(first.pixels.astype(np.int16) - second.pixels).mean() < _SAME_LEVELS:
        return True
    grey = (np.asarray(cv2.cvtColor(image.pixels, cv2.COLOR_RGB2GRAY), np.uint8) for image in (first, second))
    features = [extract_features(pixels, _FEATURES) for pixels in grey]
    found = match_features(features[0], features[1], _RATIO)
    if len(found) < _LEAST_FEATURES:
        return False
    moved = np.linalg.norm(found.points_i - found.points_j, axis=1)
    return bool(np.quantile(moved, 0.75) < _STILL_PX)


def _one_view(first: PreparedImage, second: PreparedImage) -> PairResult:
    """Pixels match themselves: those of a grid."""
    v, u = np.mgrid[_GRID // 2 : first.height : _GRID, _GRID // 2 : first.width : _GRID]
    pixels = np.stack([u.ravel(), v.ravel()], axis=1).astype(np.int64)
    matches = PixelMatches(pixels, pixels, np.zeros(len(pixels)), np.ones(len(pixels)))
    pose = CameraPose(np.eye(4), np.ones(len(pixels), bool))
    return PairResult((first, second), matches, pose, None, None, still=True)


def _or_none(estimate: Callable[[], CameraPose]) -> CameraPose | None:
    try:
        return estimate()
    except AlignmentError:
        return None
