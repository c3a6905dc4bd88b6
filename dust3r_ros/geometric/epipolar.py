"""Stereo along epipolar lines for any motion, forward motion included.

Both images are resampled to polar coordinates about the baseline (Pollefeys et al., ICCV 1999, on the sphere): a row
is one epipolar half-plane, at angle ``theta`` around the baseline, and a column one angle ``phi`` from it. A point
seen at ``phi_i`` in image i is in the same row of image j at ``phi_j > phi_i``; the disparity is its parallax angle.
Semi-global matching (Hirschmueller, PAMI 2008) both ways then gives a dense match that survives wide baselines.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

from dust3r_ros.data import BoolArray, ByteImage, FloatArray, Intrinsics
from dust3r_ros.geometric.twoview import RelativePose, homogeneous, tangent_plane
from dust3r_ros.geometry import pixel_centres, pixel_rays, project

MAX_ROWS = 1200
MAX_DISPARITIES = 256
BLOCK = 5
MAX_ROUND_TRIP = 1.5  # columns
SEAM_ROWS = 16


@dataclass(frozen=True, eq=False)
class SeedFlow:
    """Flow (H, W, 2) float32 of every pixel along its epipolar line, where ``valid`` (H, W)."""

    flow: FloatArray
    valid: BoolArray


@dataclass(frozen=True, eq=False)
class _Sphere:
    """One view's side of the resampling: ``to_baseline`` (3, 3) takes its rays to the baseline's axes."""

    intrinsics: Intrinsics
    to_baseline: FloatArray

    def angles(self) -> tuple[FloatArray, FloatArray]:
        """Theta and phi (H, W) of every pixel."""
        return _angles(pixel_rays(self.intrinsics) @ self.to_baseline.T)

    def pixels(self, theta: FloatArray, phi: FloatArray) -> FloatArray:
        """Pixels (..., 2) seen at these angles; NaN behind the camera."""
        return project(_direction(theta, phi) @ self.to_baseline, self.intrinsics)


@dataclass(frozen=True)
class _Grid:
    theta_start: float
    theta_step: float
    rows: int
    phi_start: float
    phi_step: float
    columns: int

    def coordinates(self, theta: FloatArray, phi: FloatArray) -> tuple[FloatArray, FloatArray]:
        """Column and row (float32) of angles."""
        column = (phi - self.phi_start) / self.phi_step
        row = (theta - self.theta_start) / self.theta_step
        return column.astype(np.float32), row.astype(np.float32)


def match_along_epipolar_lines(
    grey_i: ByteImage, grey_j: ByteImage, k_i: Intrinsics, k_j: Intrinsics, pose: RelativePose,
    rays_i: FloatArray, rays_j: FloatArray,
) -> tuple[SeedFlow, SeedFlow]:  # fmt: skip
    """Dense matches of each image in the other, given the relative pose.

    ``rays_*`` (N, 2) are sparse matches in front of both cameras: they say which disparities to search.
    """
    axes = _baseline_axes(pose)
    sphere_i, sphere_j = _Sphere(k_i, axes), _Sphere(k_j, axes @ pose.rotation.T)
    angles_i, angles_j = sphere_i.angles(), sphere_j.angles()
    grid = _make_grid(angles_i, angles_j, min(k_i.focal_px, k_j.focal_px))
    if grid.rows < 2 * BLOCK or grid.columns < 2 * BLOCK:
        return _nothing(k_i), _nothing(k_j)
    parallax = _angles(homogeneous(rays_j) @ sphere_j.to_baseline.T)[1] - _angles(homogeneous(rays_i) @ axes.T)[1]
    low, count = _disparity_range(parallax / grid.phi_step, grid.columns)
    if not count:
        return _nothing(k_i), _nothing(k_j)
    warped_i, inside_i = _resample(grey_i, sphere_i, grid)
    warped_j, inside_j = _resample(grey_j, sphere_j, grid)
    disparity_i, disparity_j = _semi_global(warped_i, warped_j, low, count)
    usable_i = (disparity_i >= low) & inside_i
    usable_j = (disparity_j >= low) & inside_j
    good_i = _agrees(disparity_i, usable_i, disparity_j, usable_j, +1)
    good_j = _agrees(disparity_j, usable_j, disparity_i, usable_i, -1)
    return (
        _to_image(disparity_i, good_i, angles_i, grid, sphere_j, +1),
        _to_image(disparity_j, good_j, angles_j, grid, sphere_i, -1),
    )


def _baseline_axes(pose: RelativePose) -> FloatArray:
    """Rows: the baseline from i to j in camera i's frame, the mean viewing direction across it, and the third."""
    baseline = -pose.rotation.T @ pose.translation
    view = np.array([0.0, 0.0, 1.0]) + pose.rotation[2]
    across = view - (view @ baseline) * baseline
    if np.linalg.norm(across) < 1e-3:
        across = tangent_plane(baseline)[:, 0]
    across = across / np.linalg.norm(across)
    return np.stack([baseline, across, np.cross(baseline, across)])


def _angles(directions: FloatArray) -> tuple[FloatArray, FloatArray]:
    across = np.hypot(directions[..., 1], directions[..., 2])
    return np.arctan2(directions[..., 2], directions[..., 1]), np.arctan2(across, directions[..., 0])


def _direction(theta: FloatArray, phi: FloatArray) -> FloatArray:
    return np.stack([np.cos(phi), np.sin(phi) * np.cos(theta), np.sin(phi) * np.sin(theta)], axis=-1)


def _make_grid(
    angles_i: tuple[FloatArray, FloatArray], angles_j: tuple[FloatArray, FloatArray], focal_px: float
) -> _Grid:
    """The shared rows and all columns, one pixel of the coarser image a step where the images are finest."""
    (theta_i, phi_i), (theta_j, phi_j) = angles_i, angles_j
    phi_step = 1 / focal_px
    phi_start, phi_end = min(phi_i.min(), phi_j.min()), max(phi_i.max(), phi_j.max())
    theta_step = phi_step / max(np.sin(phi_i).max(), np.sin(phi_j).max())
    around = max(np.ptp(theta_i), np.ptp(theta_j)) > 6.0
    if around:
        theta_step = max(theta_step, 2 * np.pi / MAX_ROWS)
        start, end = -np.pi - SEAM_ROWS * theta_step, np.pi + SEAM_ROWS * theta_step
    else:
        start, end = max(theta_i.min(), theta_j.min()), min(theta_i.max(), theta_j.max())
    rows = max(int((end - start) / theta_step) + 1, 0)
    return _Grid(start, theta_step, rows, phi_start, phi_step, int((phi_end - phi_start) / phi_step) + 1)


def _disparity_range(disparity: FloatArray, columns: int) -> tuple[int, int]:
    """First disparity and how many to search (a multiple of 16), columns; none when the first is too large.

    The last is less than ``columns``: with more OpenCV's matcher reads outside the images and the process dies.
    """
    low, high = np.percentile(disparity, [1, 99])
    spread = high - low
    first = max(int(np.floor(low - 0.15 * spread - 3)), 0)
    count = 16 * int(np.ceil((high + 0.3 * spread + 4 - first) / 16))
    most = min(MAX_DISPARITIES, 16 * max((columns - 1 - first) // 16, 0))
    return first, min(max(count, 16), most)


def _resample(grey: ByteImage, sphere: _Sphere, grid: _Grid) -> tuple[ByteImage, BoolArray]:
    theta = grid.theta_start + np.arange(grid.rows)[:, None] * grid.theta_step
    phi = grid.phi_start + np.arange(grid.columns)[None] * grid.phi_step
    pixels = sphere.pixels(*np.broadcast_arrays(theta, phi))
    inside = _is_inside(pixels, sphere.intrinsics)
    where = np.nan_to_num(pixels - 0.5, nan=-1e4).clip(-1e4, 1e4).astype(np.float32)
    return np.asarray(cv2.remap(grey, where[..., 0], where[..., 1], cv2.INTER_LINEAR), dtype=np.uint8), inside


def _is_inside(pixels: FloatArray, k: Intrinsics) -> BoolArray:
    with np.errstate(invalid="ignore"):
        u, v = pixels[..., 0], pixels[..., 1]
        return (u >= 0.5) & (v >= 0.5) & (u <= k.width - 0.5) & (v <= k.height - 0.5)


def _semi_global(warped_i: ByteImage, warped_j: ByteImage, low: int, count: int) -> tuple[FloatArray, FloatArray]:
    """Disparities (rows, columns) of both images, in columns; below ``low`` where there is none."""
    matcher = cv2.StereoSGBM.create(
        minDisparity=low, numDisparities=count, blockSize=BLOCK, P1=8 * BLOCK**2, P2=32 * BLOCK**2, disp12MaxDiff=-1,
        preFilterCap=31, uniquenessRatio=5, mode=cv2.STEREO_SGBM_MODE_SGBM_3WAY,
    )  # fmt: skip
    flipped_i, flipped_j = (np.ascontiguousarray(warped[:, ::-1]) for warped in (warped_i, warped_j))
    disparity_j = matcher.compute(warped_j, warped_i).astype(np.float32) / 16
    disparity_i = matcher.compute(flipped_i, flipped_j).astype(np.float32) / 16
    return np.ascontiguousarray(disparity_i[:, ::-1]), disparity_j


def _agrees(own: FloatArray, own_usable: BoolArray, other: FloatArray, other_usable: BoolArray, sign: int) -> BoolArray:
    """Where the other image's disparity brings a pixel back to itself."""
    rows, columns = own.shape
    target = np.rint(np.arange(columns) + sign * own).astype(np.int64)
    inside = own_usable & (target >= 0) & (target < columns)
    target = target.clip(0, columns - 1)
    row = np.arange(rows)[:, None]
    return inside & other_usable[row, target] & (np.abs(other[row, target] - own) < MAX_ROUND_TRIP)


def _to_image(
    disparity: FloatArray,
    good: BoolArray,
    angles: tuple[FloatArray, FloatArray],
    grid: _Grid,
    other: _Sphere,
    sign: int,
) -> SeedFlow:
    theta, phi = angles
    column, row = grid.coordinates(theta, phi)
    nearest = cv2.remap(disparity, column, row, cv2.INTER_NEAREST, borderValue=-1e3)
    smooth = cv2.remap(disparity, column, row, cv2.INTER_LINEAR, borderValue=-1e3)
    at_pixel = np.where(np.abs(smooth - nearest) < 1, smooth, nearest)
    pixels = other.pixels(theta, phi + sign * at_pixel * grid.phi_step)
    known = cv2.remap(good.astype(np.uint8), column, row, cv2.INTER_NEAREST) > 0
    valid = known & _is_inside(pixels, other.intrinsics)
    flow = np.where(valid[..., None], pixels - pixel_centres(*theta.shape), 0)
    return SeedFlow(flow.astype(np.float32), valid)


def _nothing(k: Intrinsics) -> SeedFlow:
    return SeedFlow(np.zeros((k.height, k.width, 2), np.float32), np.zeros((k.height, k.width), dtype=bool))
