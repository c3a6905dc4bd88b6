"""Which way is up in a world that begins with the first camera, however it was held."""

from __future__ import annotations

import numpy as np
from scipy.spatial import cKDTree

from dust3r_ros.data import FloatArray

_ROLL_TO_PITCH = 0.04  # variance of cameras' roll (5 deg) against that of their common pitch (25 deg)
_SAMPLE, _NORMALS, _NEIGHBOURS = 20_000, 2_000, 16  # points: looked at, with a normal, each normal is made of
_FLAT = 0.1  # a normal counts where the second smallest spread of its neighbours is ten times the smallest
_LEAST_POINTS = 1000
_HELD_DEG = 30.0  # how far from upright a camera is held, as a standard deviation
_WALL = 0.5  # what a wall counts, of what a floor does
# Searches around the best so far: reach, step and how far a normal may be off, degrees.
_SEARCHES = ((40.0, 2.0, 5.0), (2.0, 0.25, 2.5))
_LAYERS_DEG = 3.0


def up_of(poses: FloatArray, points: FloatArray | None = None) -> FloatArray:
    """Up (3,), a unit vector in the world of ``poses`` (N, 4, 4), N >= 1, and of ``points`` (M, 3).

    Cameras are little rolled and not much pitched. Near what they say, up is along the normals of floors and tables
    and across those of walls, and there it is the direction in which the points lie most in layers.
    """
    held = _as_held(poses)
    if points is None or len(points) < _LEAST_POINTS:
        return held
    shuffled = np.random.default_rng(0).permutation(len(points))[:_SAMPLE]
    sample = points[shuffled].astype(np.float64)
    normals = _normals(sample)
    if not len(normals):
        return held
    up = held
    for reach, step, width in _SEARCHES:
        tried = _around(up, reach, step)
        from_floor = np.degrees(np.arccos(np.clip(np.abs(normals @ tried.T), 0, 1)))
        fits = _bell(from_floor, width) + _WALL * _bell(90 - from_floor, width)
        turned = np.degrees(np.arccos(np.clip(tried @ held, -1, 1)))
        up = tried[int(np.argmax(fits.mean(axis=0) * _bell(turned, _HELD_DEG)))]
    return _most_layered(sample[: _SAMPLE // 2], up)


def _as_held(poses: FloatArray) -> FloatArray:
    """Up as the cameras say: across their x axes where these differ, and on the side of their -y axes."""
    x, mean_up = poses[:, :3, 0], -poses[:, :3, 1].mean(axis=0)
    spread = x.T @ x / len(x) - _ROLL_TO_PITCH * np.outer(mean_up, mean_up)
    up: FloatArray = np.linalg.eigh(spread)[1][:, 0]
    return up if up @ mean_up >= 0 else -up


def _normals(points: FloatArray) -> FloatArray:
    """Unit normals, of either sign, at some of the points (M, 3): those whose neighbours lie in a plane."""
    _, near = cKDTree(points).query(points[:_NORMALS], _NEIGHBOURS)
    around = points[near] - points[near].mean(axis=1, keepdims=True)
    spreads, axes = np.linalg.eigh(np.einsum("nki,nkj->nij", around, around))
    flat = spreads[:, 0] < _FLAT * spreads[:, 1]
    return np.asarray(axes[flat, :, 0])


def _most_layered(points: FloatArray, up: FloatArray) -> FloatArray:
    """The direction close to ``up`` along which the histogram of the points' heights is the most peaked."""
    tried = _around(up, _LAYERS_DEG, _LAYERS_DEG / 6)
    heights = points @ tried.T
    low, high = np.quantile(heights, [0.02, 0.98], axis=0)
    width = max(float((high - low).max()), 1e-9) / 100
    bins = (np.clip(heights, low, high) - low) / width  # a stray point far away makes no layers
    peaks = [np.square(np.bincount(b.astype(np.int64))).sum() for b in bins.T]
    return np.asarray(tried[int(np.argmax(peaks))])


def _around(direction: FloatArray, reach_deg: float, step_deg: float) -> FloatArray:
    """Directions (K, 3) in a grid around one, itself among them."""
    across = np.linalg.svd(direction[None])[2][1:]
    count = round(reach_deg / step_deg)
    lean = np.tan(np.radians(step_deg * np.arange(-count, count + 1)))
    tried = direction + np.stack(np.meshgrid(lean, lean), axis=-1).reshape(-1, 2) @ across
    return np.asarray(tried / np.linalg.norm(tried, axis=1, keepdims=True))


def _bell(angle: FloatArray, width: float) -> FloatArray:
    return np.asarray(np.exp(-0.5 * np.square(angle / width)))
