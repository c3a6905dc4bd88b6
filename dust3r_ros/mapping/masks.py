"""Which pixels of the views are fit for a map: confidence, sky, and what the other views see; and stray points."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from scipy.spatial import cKDTree

from dust3r_ros.config import CleanConfig, MapConfig
from dust3r_ros.data import BoolArray, ByteImage, FloatArray, PosedView, ViewEstimate
from dust3r_ros.geometry import backproject, invert_pose, project, transform_points
from dust3r_ros.mapping.cloud import PointCloud
from dust3r_ros.mapping.fuse import usable_pixels

_NEIGHBOURS = 16  # of a point, for statistical outliers
_BLUR = 5  # pixels over which the sky has to be smooth
_SMOOTH = 3.0  # grey levels: the standard deviation of sky, at most
_SKY_SHARE = 0.005  # of the image: less is no sky
_FARTHER_THAN = 0.75  # of the rest of the image


@dataclass(frozen=True, eq=False)
class CleanMasks:
    """``masks`` (H, W), one a view: the pixels that stay. ``removed``: (step, pixels it took), in order."""

    masks: tuple[BoolArray, ...]
    removed: tuple[tuple[str, int], ...]


def clean_views(views: Sequence[PosedView], map_config: MapConfig, config: CleanConfig) -> CleanMasks:
    """The pixels of every view that survive all steps the configurations ask for."""
    known = [_known(view.estimate) for view in views]
    masks = [usable_pixels(v.estimate, map_config.min_confidence, map_config.max_depth_step) for v in views]
    removed = [("little confidence of their view, depth edges", _lost(known, masks))]

    def step(name: str, kept: Sequence[BoolArray]) -> None:
        nonlocal masks
        after = [mask & keep for mask, keep in zip(masks, kept, strict=True)]
        removed.append((name, _lost(masks, after)))
        masks = after

    if config.min_confidence > 0:
        step("confidence too low", [view.estimate.confidence >= config.min_confidence for view in views])
    if config.sky:
        step(
            "sky",
            [
                ~sky_mask(v.image.pixels, v.estimate.depth) if v.has_depth else m
                for v, m in zip(views, masks, strict=True)
            ],
        )
    if config.consistency > 0:
        step(
            "in front of what other views see",
            consistent_pixels([v.estimate for v in views], masks, config.consistency),
        )
    return CleanMasks(tuple(masks), tuple(removed))


def consistent_pixels(
    views: Sequence[ViewEstimate], masks: Sequence[BoolArray], tolerance: float
) -> list[BoolArray]:  # fmt: skip
    """Without the points that stand in front of what other views see, masks (H, W).

    A point (of the pixels in ``masks``) is in another view's way where that view sees something farther behind it by
    more than ``tolerance`` of its distance, and agrees with it where both are within ``tolerance``. It goes when the
    confidence of the views it is in the way of is more than its own and that of the views it agrees with.
    A point behind what another view sees is hidden there, which says nothing.
    """
    kept = []
    for at, (view, mask) in enumerate(zip(views, masks, strict=True)):
        keep = mask.copy()
        if mask.any():
            points = transform_points(view.camera_to_world, backproject(view.depth, view.intrinsics)[mask])
            balance = view.confidence[mask].astype(np.float64)
            for other, (seer, seen) in enumerate(zip(views, masks, strict=True)):
                if other != at and seen.any():
                    balance += _vote(seer, seen, points, tolerance)
            keep[mask] = balance >= 0
        kept.append(keep)
    return kept


def _vote(seer: ViewEstimate, seen: BoolArray, points: FloatArray, tolerance: float) -> FloatArray:
    """For each point (N, 3): + the seer's confidence where it agrees, - where the point is in its way, else 0."""
    height, width = seen.shape
    camera = transform_points(invert_pose(seer.camera_to_world), points)
    uv = project(camera, seer.intrinsics)
    inside = np.flatnonzero(((uv >= 0) & (uv < (width, height))).all(axis=1))
    u, v = np.floor(uv[inside]).astype(np.int64).T
    ratio = np.where(seen[v, u], seer.depth[v, u], np.nan) / camera[inside, 2]
    vote = np.zeros(len(points))
    sign = np.where(np.abs(ratio - 1) <= tolerance, 1.0, np.where(ratio > 1 + tolerance, -1.0, 0.0))
    vote[inside] = sign * seer.confidence[v, u]
    return vote


def sky_mask(pixels: ByteImage, depth: FloatArray) -> BoolArray:
    """Where an upright outdoor image (H, W, 3) RGB shows sky, (H, W): smooth, bright or blue, reaching the top, and not
    nearer than most of the rest by ``depth`` (H, W; 0 where unknown).

    A pale wall far behind passes for sky.
    """
    hsv = cv2.cvtColor(pixels, cv2.COLOR_RGB2HSV)
    hue, saturation, value = hsv[..., 0].astype(int) * 2, hsv[..., 1], hsv[..., 2]
    blue = (hue >= 180) & (hue <= 260) & (value >= 90) & (saturation >= 25)
    bright = (saturation <= 45) & (value >= 190)
    grey = cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY).astype(np.float32)
    mean = cv2.blur(grey, (_BLUR, _BLUR))
    variance = np.maximum(cv2.blur(grey * grey, (_BLUR, _BLUR)) - mean * mean, 0)
    candidate = ((blue | bright) & (variance <= _SMOOTH**2)).astype(np.uint8)
    count, labels = cv2.connectedComponents(candidate, connectivity=4)
    sizes = np.bincount(labels.ravel(), minlength=count)
    sky = [label for label in np.unique(labels[0]) if label and sizes[label] >= _SKY_SHARE * labels.size]
    known = depth > 0
    rest = depth[known & (candidate == 0)]
    far = float(np.quantile(rest, _FARTHER_THAN)) if len(rest) else 0.0
    sky = [label for label in sky if _median(depth[known & (labels == label)], far) >= far]
    found = np.isin(labels, sky).astype(np.uint8)
    grown = cv2.dilate(found, np.ones((_BLUR, _BLUR), np.uint8))  # the smoothness test stops short of the skyline
    return np.asarray((grown > 0) & (blue | bright))


def _median(values: FloatArray, otherwise: float) -> float:
    return float(np.median(values)) if len(values) else otherwise


def without_outliers(cloud: PointCloud, ratio: float) -> PointCloud:
    """Without points whose mean distance to their 16 nearest exceeds the cloud's mean by ``ratio`` deviations
    (Rusu et al., Robotics and Autonomous Systems 2008, section 4.1).
    """
    if len(cloud) <= _NEIGHBOURS:
        return cloud
    distances, _ = cKDTree(cloud.points).query(cloud.points, _NEIGHBOURS + 1, workers=-1)
    mean = distances[:, 1:].mean(axis=1)  # the first is the point itself
    return cloud.take(mean <= mean.mean() + ratio * mean.std())


def _known(view: ViewEstimate) -> BoolArray:
    return np.asarray((view.depth > 0) & (view.confidence > 0))


def _lost(before: Sequence[BoolArray], after: Sequence[BoolArray]) -> int:
    return int(sum(mask.sum() for mask in before)) - int(sum(mask.sum() for mask in after))
