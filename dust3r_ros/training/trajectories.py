"""Smooth camera paths through a scene that keep clear of everything in it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import Enum

import numpy as np
import torch
from scipy.interpolate import BSpline
from scipy.spatial.transform import Rotation

from dust3r_ros.data import FloatArray
from dust3r_ros.training.render import render_depth
from dust3r_ros.training.scenes import SceneBatch

CLEARANCE_M = 0.35
_ATTEMPTS = 400
_DENSE = 400
_STEP_M = 0.6  # between the corners of a way
_HEADINGS = 12  # tried at each
_JUDGED = 30  # of the paths that are clear, those whose views are looked at
_PREVIEW = (24, 32)


class Carrier(Enum):
    """Who moves the camera: heights (m), pitch control (degrees), shake (m, degrees), and whether it looks ahead."""

    HANDHELD = (1.2, 1.75, 24.0, 0.004, 0.35, False)
    WHEELED = (0.5, 0.5, 2.0, 0.001, 0.1, True)
    FLYING = (0.7, 2.6, 25.0, 0.003, 0.3, False)


@dataclass(frozen=True, eq=False)
class _Path:
    places: FloatArray  # (frames, 3)
    yaw: FloatArray  # (frames,)
    pitch: FloatArray


def sample_trajectory(
    scene: SceneBatch, frames: int, spacing_m: float, rng: np.random.Generator, *,
    carrier: Carrier = Carrier.HANDHELD, max_turn_deg: float = 2.0, fov_deg: float = 65.0,
) -> FloatArray:  # fmt: skip
    """Poses (frames, 4, 4) float64 of a camera carried through a batch of one scene.

    Consecutive cameras are ``spacing_m`` apart along a cubic B-spline and turn by at most about ``max_turn_deg``;
    the camera stays ``CLEARANCE_M`` from every surface. Of several paths the one with the widest views is taken.
    Raises ValueError when the scene has no way of that length.
    """
    if len(scene) != 1:
        raise ValueError(f"scene must be one scene, got {len(scene)}")
    if frames < 2:
        raise ValueError(f"frames must be at least 2, got {frames}")
    good: list[_Path] = []
    clearance = CLEARANCE_M + 2 * carrier.value[3]
    for attempt in range(_ATTEMPTS):
        path = _random_path(scene, frames, spacing_m, rng, carrier, max_turn_deg)
        if path is not None and _clear(scene, path.places) > clearance:
            good.append(path)
        if len(good) == _JUDGED or (good and attempt > _ATTEMPTS // 2):
            break
    if not good:
        raise ValueError(f"no clear path of {frames * spacing_m:.1f} m was found in this scene")
    best = max(good, key=lambda path: _openness(scene, path, fov_deg))
    return _shaken(best, carrier, rng)


def path_length(camera_to_world: FloatArray) -> float:
    """Length of the way through camera centres of poses (N, 4, 4)."""
    return float(np.linalg.norm(np.diff(camera_to_world[:, :3, 3], axis=0), axis=1).sum())


def _random_path(
    scene: SceneBatch, frames: int, spacing_m: float, rng: np.random.Generator, carrier: Carrier, max_turn_deg: float
) -> _Path | None:
    low, high, pitch_deg, _, _, ahead = carrier.value
    free = scene.free[0].double().cpu().numpy()
    margin = np.array([CLEARANCE_M, CLEARANCE_M, 0.0])
    free = free + np.stack([margin, -margin])
    free[:, 2] = low, min(high, free[1, 2] - 0.3)
    length = (frames - 1) * spacing_m
    corners = _wander(scene, free, max(6, int(1.15 * length / _STEP_M) + 4), 40.0 if ahead else 75.0, rng)
    if corners is None:
        return None
    dense = _spline(corners, np.linspace(0, 1, _DENSE))
    travelled = np.concatenate([[0.0], np.cumsum(np.linalg.norm(np.diff(dense, axis=0), axis=1))])
    if travelled[-1] < length:
        return None
    start = rng.uniform(0, travelled[-1] - length)
    share = np.interp(start + spacing_m * np.arange(frames), travelled, np.linspace(0, 1, _DENSE))
    places = _spline(corners, share)
    nod = min(0.6 * pitch_deg, max_turn_deg * frames / 12)
    pitch = np.radians(_spline(rng.uniform(-nod, nod, (6, 1)) - 0.4 * pitch_deg, np.linspace(0, 1, frames))[:, 0])
    if ahead:
        step = np.gradient(places, axis=0)
        yaw = np.unwrap(np.arctan2(step[:, 1], step[:, 0]))
    else:
        yaw = _wandering_yaw(places, free.mean(0), min(45.0, max_turn_deg * frames / 10), rng)
    if np.abs(np.diff(yaw)).max() > math.radians(max_turn_deg):
        return None
    return _Path(places, yaw, pitch)


def _wander(
    scene: SceneBatch, free: FloatArray, count: int, turn_deg: float, rng: np.random.Generator
) -> FloatArray | None:
    """Corners (count, 3) of a way through a scene: each step turns by up to ``turn_deg`` to where nothing is near.

    None where the way ends in a corner.
    """
    heights = rng.uniform(free[0, 2], free[1, 2], count)
    places = [np.array([*rng.uniform(free[0, :2], free[1, :2]), heights[0]])]
    heading = rng.uniform(0, 2 * math.pi)
    along = np.linspace(0, 1, 4)[1:, None]
    for height in heights[1:]:
        headings = heading + np.radians(rng.uniform(-turn_deg, turn_deg, _HEADINGS))
        ends = places[-1] + _STEP_M * np.stack([np.cos(headings), np.sin(headings), 0 * headings], axis=1)
        ends[:, 2] = height
        ways = places[-1] + along * (ends - places[-1])[:, None]
        points = torch.from_numpy(ways.reshape(1, -1, 3)).to(scene.device, torch.float32)
        clear = scene.clearance(points).view(_HEADINGS, -1).amin(1).cpu().numpy()
        if clear.max() < CLEARANCE_M:
            return None
        chosen = int((clear >= CLEARANCE_M).argmax())
        places.append(ends[chosen])
        heading = headings[chosen]
    return np.stack(places)


def _wandering_yaw(places: FloatArray, middle: FloatArray, turn_deg: float, rng: np.random.Generator) -> FloatArray:
    """Looking around, in glances up to ``turn_deg`` apart, beginning with the room's middle."""
    towards = middle - places[0]
    first = math.atan2(towards[1], towards[0])
    turns = np.radians(np.concatenate([[0.0], np.cumsum(rng.uniform(-turn_deg, turn_deg, 7))]))
    return first + _spline(turns[:, None], np.linspace(0, 1, len(places)))[:, 0]


def _spline(controls: FloatArray, at: FloatArray) -> FloatArray:
    """A clamped cubic B-spline through its first and last control point, within the convex hull of all."""
    inner = np.linspace(0, 1, len(controls) - 2)
    knots = np.concatenate([[0.0] * 3, inner, [1.0] * 3])
    return BSpline(knots, controls, 3)(np.clip(at, 0, 1))


def _clear(scene: SceneBatch, places: FloatArray) -> float:
    points = torch.from_numpy(places).to(scene.device, torch.float32)
    return float(scene.clearance(points[None]).min())


def _poses(path: _Path) -> FloatArray:
    flat = np.cos(path.pitch)
    forward = np.stack([flat * np.cos(path.yaw), flat * np.sin(path.yaw), np.sin(path.pitch)], axis=1)
    right = np.stack([np.sin(path.yaw), -np.cos(path.yaw), np.zeros_like(path.yaw)], axis=1)
    poses = np.tile(np.eye(4), (len(flat), 1, 1))
    poses[:, :3, 0], poses[:, :3, 1], poses[:, :3, 2] = right, np.cross(forward, right), forward
    poses[:, :3, 3] = path.places
    return poses


def _openness(scene: SceneBatch, path: _Path, fov_deg: float) -> float:
    """How much the views along a path show: the depth of the worst (its 20th percentile, up to 1.5 m) and the mean
    spread of depth within a view, both in metres.
    """
    some = _poses(path)[:: max(1, len(path.yaw) // 10)]
    poses = torch.from_numpy(some).to(scene.device, torch.float32)[None]
    height, width = _PREVIEW
    focal = 0.5 * width / math.tan(math.radians(fov_deg) / 2)
    k = torch.tensor([focal, focal, width / 2, height / 2])
    depth = render_depth(scene, poses, k, _PREVIEW).flatten(2)
    depth = torch.where(depth > 0, depth, 50.0)
    return float(depth.quantile(0.2, dim=-1).min().clamp(max=1.5) + depth.std(-1).mean().clamp(max=1.5))


def _shaken(path: _Path, carrier: Carrier, rng: np.random.Generator) -> FloatArray:
    """The path's poses with the small smooth unsteadiness of its carrier."""
    metres, degrees = carrier.value[3:5]
    poses = _poses(path)
    count = max(4, len(poses) // 5)
    at = np.linspace(0, 1, len(poses))
    poses[:, :3, 3] += _spline(rng.uniform(-metres, metres, (count, 3)), at)
    wobble = Rotation.from_rotvec(np.radians(_spline(rng.uniform(-degrees, degrees, (count, 3)), at)))
    poses[:, :3, :3] = poses[:, :3, :3] @ wobble.as_matrix()
    return poses
