"""Small synthetic scenes with exact truth for the classical predictor: textured planes seen by pinhole cameras."""

from dataclasses import dataclass

import cv2
import numpy as np
from scipy.spatial.transform import Rotation

from dust3r_ros.data import ImageTransform, Intrinsics, PreparedImage
from dust3r_ros.geometry import invert_pose, make_pose, pixel_rays

K = Intrinsics(300.0, 300.0, 160.0, 120.0, 320, 240)


@dataclass(frozen=True, eq=False)
class Plane:
    """``normal . x = offset`` in the world, within ``half_width`` of x = centre (infinite by default)."""

    normal: tuple[float, float, float]
    offset: float
    texture: int
    centre: float = 0.0
    half_width: float = np.inf


# a tilted back wall, a floor, and two boards in front
ROOM = (
    Plane((0.2, 0.0, 1.0), 6.0, 1),
    Plane((0.0, 1.0, 0.05), 1.5, 2),
    Plane((0.1, 0.0, 1.0), 3.0, 3, -0.8, 0.6),
    Plane((-0.3, 0.1, 1.0), 4.0, 4, 1.2, 0.7),
)
WALL = (Plane((0.1, 0.05, 1.0), 4.0, 5),)


@dataclass(frozen=True, eq=False)
class Shot:
    image: PreparedImage
    depth: np.ndarray  # (H, W), z, 0 where nothing is hit
    camera_to_world: np.ndarray
    intrinsics: Intrinsics


def pose_of(rotation_deg: tuple[float, float, float], centre: tuple[float, float, float]) -> np.ndarray:
    """Camera to world from Euler angles about x, y, z and a centre."""
    return make_pose(Rotation.from_euler("xyz", rotation_deg, degrees=True).as_matrix(), np.array(centre))


def shoot(planes: tuple[Plane, ...], camera_to_world: np.ndarray, k: Intrinsics = K) -> Shot:
    """An image by ray casting, supersampled 2x2, and its exact depth."""
    fine = Intrinsics(2 * k.fx, 2 * k.fy, 2 * k.cx, 2 * k.cy, 2 * k.width, 2 * k.height)
    grey = cv2.resize(_cast(planes, camera_to_world, fine)[0], (k.width, k.height), interpolation=cv2.INTER_AREA)
    pixels = np.repeat(np.rint(grey).astype(np.uint8)[..., None], 3, axis=2)
    return Shot(prepared(pixels), _cast(planes, camera_to_world, k)[1], camera_to_world, k)


def prepared(pixels: np.ndarray) -> PreparedImage:
    """Pixels (H, W, 3) as an image that was not resized."""
    height, width = pixels.shape[:2]
    return PreparedImage(pixels, ImageTransform(1, 1, 0, 0, width, height, width, height))


def relative_pose(i: Shot, j: Shot) -> np.ndarray:
    """Camera j to camera i, (4, 4)."""
    return invert_pose(i.camera_to_world) @ j.camera_to_world


def _cast(planes, camera_to_world, k):
    directions = pixel_rays(k) @ camera_to_world[:3, :3].T
    centre = camera_to_world[:3, 3]
    depth, grey = np.full((k.height, k.width), np.inf), np.zeros((k.height, k.width), np.float32)
    for plane in planes:
        normal = np.array(plane.normal)
        with np.errstate(divide="ignore", invalid="ignore"):
            z = (plane.offset - normal @ centre) / (directions @ normal)
        points = centre + z[..., None] * directions
        nearer = (z > 0) & (z < depth) & (np.abs(points[..., 0] - plane.centre) <= plane.half_width)
        depth = np.where(nearer, z, depth)
        grey = np.where(nearer, _texture(points, normal, plane.texture), grey)
    return grey.astype(np.float32), np.where(np.isfinite(depth), depth, 0)


def _texture(points, normal, seed):
    """Smooth noise of three scales, in the plane's own coordinates."""
    axis = np.eye(3)[np.argmin(np.abs(normal))]
    u = np.cross(normal, axis) / np.linalg.norm(np.cross(normal, axis))
    v = np.cross(normal, u) / np.linalg.norm(normal)
    total = np.zeros(points.shape[:2], np.float32)
    for scale, weight in ((0.6, 45), (0.2, 40), (0.07, 25)):
        noise = np.random.default_rng(seed).standard_normal((256, 256)).astype(np.float32)
        where = [np.mod(np.nan_to_num(points @ w, posinf=0, neginf=0) / scale, 255).astype(np.float32) for w in (u, v)]
        total += weight * cv2.remap(noise, where[0], where[1], cv2.INTER_LINEAR, borderMode=cv2.BORDER_WRAP)
    return np.clip(128 + total, 0, 255)
