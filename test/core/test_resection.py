"""A camera's pose from points and pixels, and how sure it is, against what noise really does."""

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from dust3r_ros.data import Intrinsics
from dust3r_ros.errors import AlignmentError
from dust3r_ros.geometry import invert_pose, make_pose, project, transform_points
from dust3r_ros.resection import pose_covariance, pose_from_points

K = Intrinsics.from_focal(500.0, 640, 480)
POSE = make_pose(Rotation.from_euler("xyz", [10, -20, 5], degrees=True).as_matrix(), np.array([0.5, -0.2, 1.0]))


def scene(rng, count=60):
    seen = np.column_stack([rng.uniform(-1, 1, count), rng.uniform(-0.8, 0.8, count), rng.uniform(3, 6, count)])
    return transform_points(POSE, seen), project(seen, K)


def step_of(found):
    """The step (translation, rotation) in the true camera's frame."""
    off = invert_pose(POSE) @ found
    return np.concatenate([off[:3, 3], Rotation.from_matrix(off[:3, :3]).as_rotvec()])


def test_the_true_pose_is_found_among_wrong_points():
    rng = np.random.default_rng(0)
    points, pixels = scene(rng)
    pixels[::3] += rng.uniform(30, 90, (20, 2))
    found = pose_from_points(points, pixels, K)
    np.testing.assert_allclose(found.camera_to_world, POSE, atol=1e-6)
    assert not found.inliers[::3].any() and found.inliers.sum() == 40


def test_the_covariance_is_that_of_the_poses_under_noise():
    rng = np.random.default_rng(1)
    points, pixels = scene(rng)
    steps, said = [], []
    for _ in range(300):
        noisy = pixels + rng.normal(0, 0.5, pixels.shape)
        found = pose_from_points(points, noisy, K)
        assert found.inliers.all()
        steps.append(step_of(found.camera_to_world))
        said.append(pose_covariance(found.camera_to_world, points, noisy, K))
    expected, measured = np.mean(said, axis=0), np.cov(np.array(steps).T)
    np.testing.assert_allclose(np.sqrt(np.diag(measured)), np.sqrt(np.diag(expected)), rtol=0.15)
    whitened = np.linalg.solve(np.linalg.cholesky(expected), np.array(steps).T)
    assert np.mean((whitened**2).sum(axis=0)) == pytest.approx(6.0, rel=0.15)  # signs and couplings are right too


def test_too_few_points_are_refused():
    with pytest.raises(AlignmentError, match="a pose needs at least 6 points, got 5"):
        pose_from_points(np.zeros((5, 3)), np.zeros((5, 2)), K)
