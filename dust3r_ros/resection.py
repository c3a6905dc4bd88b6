"""Where a camera stands, from points and the pixels that show them."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

from dust3r_ros.data import BoolArray, FloatArray, Intrinsics
from dust3r_ros.errors import AlignmentError
from dust3r_ros.geometry import invert_pose, make_pose, project, transform_points

LEAST_POINTS = 6
_ITERATIONS = 1000
_CERTAINTY = 0.9999
_NOISE_PX, _NOISE_SHARE = 1.5, 0.006  # pixels or of the longer image side, whichever is more: seen where it is


@dataclass(frozen=True, eq=False)
class CameraPose:
    """``camera_to_world`` (4, 4) in the frame the points were in; ``inliers`` (N,) of them fit."""

    camera_to_world: FloatArray
    inliers: BoolArray


def noise_px(intrinsics: Intrinsics) -> float:
    """How far from where it should be a point may be seen."""
    return max(_NOISE_PX, _NOISE_SHARE * max(intrinsics.width, intrinsics.height))


def pose_from_points(points: FloatArray, pixels: FloatArray, intrinsics: Intrinsics) -> CameraPose:
    """The camera that sees ``points`` (N, 3) at ``pixels`` (N, 2; centres at integers + 0.5), by PnP in RANSAC and a
    refinement over all inliers. Raises AlignmentError when there are too few, or none that fits them.
    """
    if len(points) < LEAST_POINTS:
        raise AlignmentError(f"a pose needs at least {LEAST_POINTS} points, got {len(points)}")
    k = intrinsics.matrix()
    limit = noise_px(intrinsics)
    objects, image = np.ascontiguousarray(points, np.float64), np.ascontiguousarray(pixels, np.float64)
    found, turn, shift, chosen = cv2.solvePnPRansac(
        objects, image, k, None,
        iterationsCount=_ITERATIONS, reprojectionError=limit, confidence=_CERTAINTY, flags=cv2.SOLVEPNP_SQPNP,
    )  # fmt: skip
    if not found or chosen is None or len(chosen) < LEAST_POINTS:
        raise AlignmentError(f"no camera pose fits the {len(points)} points")
    chosen = chosen.ravel()
    turn, shift = cv2.solvePnPRefineLM(objects[chosen], image[chosen], k, None, turn, shift)
    inliers = np.zeros(len(points), bool)
    inliers[chosen] = True
    world_to_camera = make_pose(np.asarray(cv2.Rodrigues(turn)[0], np.float64), np.asarray(shift, np.float64).ravel())
    return CameraPose(invert_pose(world_to_camera), inliers)


def pose_covariance(
    camera_to_world: FloatArray, points: FloatArray, pixels: FloatArray, intrinsics: Intrinsics
) -> FloatArray:  # fmt: skip
    """Covariance (6, 6) of a pose by how well ``points`` (N, 3), all in front of the camera, fit their pixels (N, 2).

    Of a step (translation, rotation) in the camera's own frame, as ``ViewEstimate.pose_covariance``. Errors of single
    points are taken as independent, and those of the points themselves are not in it: it is the least there is.
    """
    seen = transform_points(invert_pose(camera_to_world), points)
    x, y, z = seen.T
    zero = np.zeros_like(z)
    of_point = np.array([[intrinsics.fx / z, zero, -intrinsics.fx * x / z**2],
                         [zero, intrinsics.fy / z, -intrinsics.fy * y / z**2]]).transpose(2, 0, 1)  # fmt: skip
    turned = np.array([[zero, -z, y], [z, zero, -x], [-y, x, zero]]).transpose(2, 0, 1)  # a turn w: point x w
    jacobian = np.concatenate([-of_point, of_point @ turned], axis=2).reshape(-1, 6)
    residual = (project(seen, intrinsics) - pixels).ravel()
    variance = residual @ residual / max(len(residual) - 6, 1)
    return np.asarray(variance * np.linalg.pinv(jacobian.T @ jacobian, hermitian=True))
