"""Two images put in relation: matches, and the second camera's pose in two ways."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np

from dust3r_ros.alignment import intrinsics_of_image
from dust3r_ros.data import ByteImage, PreparedImage
from dust3r_ros.errors import AlignmentError
from dust3r_ros.geometric.matching import extract_features, match_features
from dust3r_ros.geometry import rotation_angle_deg
from dust3r_ros.images import prepare
from dust3r_ros.predictor import PairPredictor
from dust3r_ros.tasks.matches import PixelMatches, match_pixels
from dust3r_ros.tasks.pose import CameraPose, relative_pose_pnp, relative_pose_procrustes

_SAME_LEVELS = 0.5  # of 255, mean difference of two images that are the same
_FEATURES, _RATIO, _LEAST_FEATURES = 1000, 0.85, 30
_STILL_PX = 0.5  # three quarters of the features moved by less
_GRID = 8


@dataclass(frozen=True, eq=False)
class PairResult:
    """``pnp`` and ``procrustes`` are camera j's pose in camera i's frame, None where there is none.

    ``focals_px`` are of the original images, by the pointmaps. ``still``: both images are of one view; then the pose
    is the identity and nothing tells a focal.
    """

    images: tuple[PreparedImage, PreparedImage]
    matches: PixelMatches
    pnp: CameraPose | None
    procrustes: CameraPose | None
    focals_px: tuple[float, float] | None
    still: bool = False

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
        values: dict[str, Any] = {"matches": len(self.matches), "one_view": self.still}
        for name, pose in (("pnp", self.pnp), ("procrustes", self.procrustes)):
            if pose is not None:
                matrix = pose.camera_to_world.tolist()
                values[name] = {"camera_j_to_camera_i": matrix, "inlier_share": float(pose.inliers.mean())}
        if self.focals_px is not None:
            values["focals_px"] = list(self.focals_px)
        return values


def relate(first: ByteImage, second: ByteImage, predictor: PairPredictor[Any]) -> PairResult:
    """Matches and relative pose of two images (H, W, 3); the pose's translation is up to scale."""
    images = [prepare(image, predictor.image_size) for image in (first, second)]
    if _are_one_view(images[0], images[1]):
        return _one_view(images[0], images[1])
    cameras = [f"{image.transform.original_width}x{image.transform.original_height}" for image in images]
    i, j = (predictor.encode(image, camera) for image, camera in zip(images, cameras))
    forward, back = predictor.predict([(i, j), (j, i)])
    try:
        k_i = intrinsics_of_image(forward, own_map_only=True).intrinsics
        k_j = intrinsics_of_image(back, own_map_only=True).intrinsics
    except AlignmentError:
        return PairResult((images[0], images[1]), match_pixels(forward), None, None, None)
    focals = [image.transform.to_original(k).focal_px for image, k in zip(images, (k_i, k_j))]
    return PairResult(
        (images[0], images[1]),
        match_pixels(forward),
        _or_none(lambda: relative_pose_pnp(forward, k_j)),
        _or_none(lambda: relative_pose_procrustes(forward, back)),
        (focals[0], focals[1]),
    )


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
