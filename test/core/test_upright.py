"""Up in rendered rooms, whose floor is known, seen by cameras that are held as hands hold them."""

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from dust3r_ros.data import Intrinsics
from dust3r_ros.geometry import backproject, make_pose, transform_points
from dust3r_ros.mapping.upright import up_of
from dust3r_ros.training.sequences import walk_through_room

LENS = Intrinsics.from_focal(50.0, 80, 60)
FRAMES = 24


def off_deg(up: np.ndarray) -> float:
    """From the room's own up, z."""
    assert np.linalg.norm(up) == pytest.approx(1)
    return float(np.degrees(np.arccos(np.clip(up[2], -1, 1))))


@pytest.fixture(scope="module", params=[1, 2, 5])
def room(request) -> tuple[np.ndarray, list[np.ndarray]]:
    """Poses (N, 4, 4) of a walk, and what each sees in noisy world points."""
    walk = walk_through_room(FRAMES, 64, 48, seed=request.param, rate_hz=3.0, speed=0.5, texture_px=16)
    rng = np.random.default_rng(request.param)
    seen = []
    for k, pose in enumerate(walk.camera_to_world):
        points = backproject(walk.depth(k, LENS), LENS)
        points = points[points[..., 2] > 0]
        seen.append(transform_points(pose, points * (1 + 0.015 * rng.normal(size=(len(points), 1)))))
    return walk.camera_to_world, seen


def held(poses: np.ndarray, pitch_deg: float = 0.0) -> np.ndarray:
    """The same cameras, all rolled a little to one side, shaken, and pitched."""
    rng = np.random.default_rng(0)
    angles = np.column_stack([rng.normal(3, 5, len(poses)), rng.normal(pitch_deg, 4, len(poses))])
    turns = np.tile(np.eye(4), (len(poses), 1, 1))
    turns[:, :3, :3] = Rotation.from_euler("zx", angles, degrees=True).as_matrix()
    return poses @ turns


def cloud(seen: list[np.ndarray]) -> np.ndarray:
    """One point in each voxel of 5 cm, as a map has."""
    points = np.concatenate(seen).astype(np.float32)
    return points[np.unique(np.floor(points / 0.05), axis=0, return_index=True)[1]]


@pytest.mark.parametrize(("frames", "pitch_deg"), [(FRAMES, 0), (FRAMES, -20), (8, 0), (3, 0)])
def test_floor_and_walls_tell_up_however_the_camera_was_held(room, frames, pitch_deg):
    poses, seen = room
    assert off_deg(up_of(held(poses[:frames], pitch_deg), cloud(seen[:frames]))) < 2.5


def test_without_points_up_is_what_the_cameras_say(room):
    poses, _ = room
    assert off_deg(up_of(poses)) < 8
    assert off_deg(up_of(held(poses, -20))) < 25
    assert off_deg(up_of(held(poses[:3], -20))) > 2  # nothing else is known


def test_up_is_never_the_cameras_down():
    upside_down = make_pose(np.diag([-1.0, -1.0, 1.0]), np.zeros(3))[None]
    np.testing.assert_allclose(up_of(upside_down), [0, 1, 0], atol=1e-12)


def test_points_without_any_plane_change_nothing():
    rng = np.random.default_rng(0)
    pose = np.eye(4)[None]
    np.testing.assert_allclose(up_of(pose, rng.normal(size=(5000, 3)))[1], -1, atol=0.02)
    np.testing.assert_array_equal(up_of(pose, np.zeros((5000, 3))), up_of(pose))
