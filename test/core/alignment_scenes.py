"""Made-up scenes whose pairwise predictions are known exactly: any depth map and any poses make consistent ones."""

from dataclasses import dataclass, replace

import numpy as np
from scipy.spatial.transform import Rotation

from dust3r_ros.data import Edge, Intrinsics, PairPrediction, PairState
from dust3r_ros.geometry import backproject, invert_pose, make_pose, procrustes, rotation_angle_deg, transform_points


@dataclass(frozen=True, eq=False)
class Truth:
    """``poses`` (N, 4, 4), ``depths`` N of (H, W), one ``intrinsics`` a view."""

    poses: np.ndarray
    depths: list
    intrinsics: list

    @property
    def views(self):
        return len(self.poses)


def make_truth(views=4, size=(24, 32), focal=30.0, seed=0, spacing=0.4):
    """Cameras side by side that look at bumpy surfaces; ``size`` (H, W) may be one for all or a list."""
    rng = np.random.default_rng(seed)
    sizes = [size] * views if isinstance(size, tuple) else size
    poses, depths, lenses = [], [], []
    for k, (height, width) in enumerate(sizes):
        turn = Rotation.from_rotvec(rng.normal(0, 0.08, 3)).as_matrix()
        poses.append(make_pose(turn, [spacing * k, *rng.normal(0, 0.3 * abs(spacing), 2)]))
        v, u = np.mgrid[0:height, 0:width] / max(height, width)
        a, b, c, d = rng.uniform(1.5, 4, 4)
        depths.append(4 + np.sin(2 * a * u + b) + np.cos(2 * c * v + d))
        lenses.append(Intrinsics.from_focal(focal, width, height))
    return Truth(np.array(poses), depths, lenses)


def window_pairs(views, window):
    return [(i, j) for i in range(views) for j in range(views) if i != j and abs(i - j) <= window]


def predict(truth, i, j, rng=None, noise=0.0, scale=1.0, dtype=np.float64, state=PairState.GOOD):
    """The exact prediction (i, j), or one with smooth-free noise along the line of sight and a third across."""
    maps = []
    for v in (i, j):
        points = backproject(truth.depths[v], truth.intrinsics[v])
        points = transform_points(invert_pose(truth.poses[i]) @ truth.poses[v], points)
        if noise:
            reach = np.linalg.norm(points, axis=-1, keepdims=True)
            points = points * (1 + rng.normal(0, noise, reach.shape))
            points = points + rng.normal(0, noise / 3, points.shape) * reach
        maps.append((scale * points).astype(dtype))
    conf = [np.full(m.shape[:2], 2.0, np.float32) for m in maps]
    return Edge(i, j, PairPrediction(maps[0], conf[0], maps[1], conf[1], state))


def predict_all(truth, pairs, seed=0, noise=0.0, dtype=np.float64):
    """One edge for each pair, each in its own unit."""
    rng = np.random.default_rng(seed)
    return [predict(truth, i, j, rng, noise, np.exp(rng.normal(0, 0.3)), dtype) for i, j in pairs]


def changed(edge, **arrays):
    return Edge(edge.i, edge.j, replace(edge.prediction, **arrays))


@dataclass(frozen=True)
class Gap:
    """How far an estimate is from the truth, free of the choice of world: rms centres (truth's unit), degrees,
    relative focal and relative depth."""

    centre: float
    rotation: float
    focal: float
    depth: float

    @property
    def worst(self):
        return max(self.centre, self.rotation, self.focal, self.depth)


def compare(truth, estimates, only=None):
    """The gap between views (a sequence or mapping of ViewEstimate) and the truth."""
    views = list(range(truth.views)) if only is None else list(only)
    poses = np.array([estimates[v].camera_to_world for v in views])
    true = truth.poses[views]
    relative = poses[:1, :3, :3].transpose(0, 2, 1) @ poses[:, :3, :3]
    true_relative = true[:1, :3, :3].transpose(0, 2, 1) @ true[:, :3, :3]
    rotation = rotation_angle_deg(np.swapaxes(relative, 1, 2) @ true_relative).max()
    focal = max(abs(estimates[v].intrinsics.focal_px / truth.intrinsics[v].focal_px - 1) for v in views)
    seen = {v: estimates[v].depth > 0 for v in views}
    ratio = np.concatenate([(truth.depths[v] / np.where(seen[v], estimates[v].depth, 1))[seen[v]] for v in views])
    scale = np.median(ratio)
    if len(views) > 2:
        fit = procrustes(poses[:, :3, 3], true[:, :3, 3])
        centre = np.sqrt(((fit.apply(poses[:, :3, 3]) - true[:, :3, 3]) ** 2).sum(axis=1).mean())
    else:
        step = scale * poses[0, :3, :3].T @ (poses[1, :3, 3] - poses[0, :3, 3])
        centre = np.linalg.norm(step - true[0, :3, :3].T @ (true[1, :3, 3] - true[0, :3, 3]))
    return Gap(float(centre), float(rotation), float(focal), float(np.abs(ratio / scale - 1).mean()))
