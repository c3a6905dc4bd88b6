import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from dust3r_ros.data import Intrinsics
from dust3r_ros.geometry import (
    Similarity,
    backproject,
    invert_pose,
    make_pose,
    pixel_centres,
    pixel_rays,
    procrustes,
    project,
    quaternion_xyzw,
    rotation_angle_deg,
    rotation_from_quaternion,
    transform_points,
    weighted_median,
)

seeds = st.integers(0, 2**32 - 1)
K = Intrinsics(fx=90.0, fy=100.0, cx=31.0, cy=22.5, width=64, height=48)


def random_similarity(rng: np.random.Generator) -> Similarity:
    return Similarity(float(np.exp(rng.normal())), Rotation.random(random_state=rng).as_matrix(), rng.normal(size=3))


def assert_same(a: Similarity, b: Similarity, tolerance: float = 1e-9) -> None:
    assert a.scale == pytest.approx(b.scale, rel=tolerance)
    np.testing.assert_allclose(a.rotation, b.rotation, atol=tolerance)
    np.testing.assert_allclose(a.translation, b.translation, atol=tolerance)


@given(seeds)
def test_similarities_form_a_group(seed: int) -> None:
    rng = np.random.default_rng(seed)
    a, b, x = random_similarity(rng), random_similarity(rng), rng.normal(size=(7, 3))
    np.testing.assert_allclose(a.compose(b).apply(x), a.apply(b.apply(x)), atol=1e-9)
    np.testing.assert_allclose(a.inverse().apply(a.apply(x)), x, atol=1e-9)
    assert_same(a.compose(a.inverse()), Similarity.identity())


@given(seeds)
def test_a_moved_pose_is_rigid_and_sees_the_moved_points_scaled(seed: int) -> None:
    rng = np.random.default_rng(seed)
    similarity, x = random_similarity(rng), rng.normal(size=(5, 3))
    pose = make_pose(Rotation.random(random_state=rng).as_matrix(), rng.normal(size=3))
    moved = similarity.apply_to_pose(pose)
    np.testing.assert_allclose(moved[:3, :3] @ moved[:3, :3].T, np.eye(3), atol=1e-12)
    seen_before = transform_points(invert_pose(pose), x)
    seen_after = transform_points(invert_pose(moved), similarity.apply(x))
    np.testing.assert_allclose(seen_after, similarity.scale * seen_before, atol=1e-9)


def test_poses_are_moved_in_batches_too() -> None:
    rng = np.random.default_rng(1)
    similarity = random_similarity(rng)
    poses = np.stack([make_pose(r, t) for r, t in zip(Rotation.random(4, random_state=1).as_matrix(), np.eye(4, 3))])
    np.testing.assert_allclose(similarity.apply_to_pose(poses)[2], similarity.apply_to_pose(poses[2]))
    np.testing.assert_allclose(invert_pose(poses) @ poses, np.broadcast_to(np.eye(4), (4, 4, 4)), atol=1e-12)


def test_the_first_pixel_centre_is_half_a_pixel_in() -> None:
    uv = pixel_centres(2, 3)
    assert uv.shape == (2, 3, 2)
    assert uv[0, 0].tolist() == [0.5, 0.5]
    assert uv[1, 2].tolist() == [2.5, 1.5]


def test_a_ray_through_the_principal_point_is_the_optical_axis() -> None:
    rays = pixel_rays(Intrinsics(90, 90, 10.5, 4.5, 64, 48))
    np.testing.assert_allclose(rays[4, 10], [0, 0, 1])
    assert rays[4, 11, 0] == pytest.approx(1 / 90)  # x right
    assert rays[5, 10, 1] == pytest.approx(1 / 90)  # y down


@given(seeds)
def test_projection_undoes_backprojection(seed: int) -> None:
    depth = np.random.default_rng(seed).uniform(0.1, 20, (K.height, K.width))
    points = backproject(depth, K)
    np.testing.assert_allclose(points[..., 2], depth)
    np.testing.assert_allclose(project(points, K), pixel_centres(K.height, K.width), atol=1e-9)


def test_points_behind_the_camera_project_to_nan() -> None:
    uv = project(np.array([[0.1, 0.2, -1.0], [0.0, 0.0, 0.0], [0.0, 0.0, 2.0]]), K)
    assert np.isnan(uv[:2]).all()
    np.testing.assert_allclose(uv[2], [K.cx, K.cy])


@pytest.mark.parametrize("degrees", [1e-7, 1e-3, 0.5, 90.0, 179.999])
def test_angles_are_exact_from_tiny_to_half_a_turn(degrees: float) -> None:
    rotation = Rotation.from_rotvec(np.radians(degrees) * np.array([0.6, 0.0, 0.8])).as_matrix()
    assert rotation_angle_deg(rotation) == pytest.approx(degrees, rel=1e-6)
    assert rotation_angle_deg(np.stack([[rotation] * 2] * 3)).shape == (3, 2)


@given(seeds)
def test_quaternions_and_rotations_are_inverse(seed: int) -> None:
    rotation = Rotation.random(random_state=np.random.default_rng(seed)).as_matrix()
    quaternion = quaternion_xyzw(rotation)
    assert np.linalg.norm(quaternion) == pytest.approx(1)
    np.testing.assert_allclose(rotation_from_quaternion(3 * quaternion), rotation, atol=1e-12)


def test_quaternions_are_xyzw() -> None:
    quarter_turn_left = np.array([[0.0, -1.0, 0.0], [1.0, 0.0, 0.0], [0.0, 0.0, 1.0]])
    np.testing.assert_allclose(quaternion_xyzw(quarter_turn_left), [0, 0, np.sqrt(0.5), np.sqrt(0.5)])


@given(seeds, st.integers(4, 40))
def test_procrustes_recovers_a_similarity(seed: int, count: int) -> None:
    rng = np.random.default_rng(seed)
    truth, source = random_similarity(rng), rng.normal(size=(count, 3))
    assert_same(procrustes(source, truth.apply(source), rng.uniform(0.1, 1, count)), truth, 1e-6)


def test_procrustes_takes_flat_points_without_a_mirror_image() -> None:
    rng = np.random.default_rng(3)
    truth = random_similarity(rng)
    source = np.column_stack([rng.normal(size=(20, 2)), np.zeros(20)])
    assert_same(procrustes(source, truth.apply(source)), truth)


def test_procrustes_of_a_mirror_image_is_still_a_rotation() -> None:
    source = np.random.default_rng(4).normal(size=(20, 3))
    found = procrustes(source, source * (1, 1, -1))
    assert np.linalg.det(found.rotation) == pytest.approx(1)
    assert 0 < found.scale < 1


def test_points_without_weight_do_not_count() -> None:
    rng = np.random.default_rng(5)
    truth, source = random_similarity(rng), rng.normal(size=(10, 3))
    target = truth.apply(source)
    target[7:] += 100.0
    assert_same(procrustes(source, target, np.arange(10) < 7), truth)


def test_weights_are_those_of_least_squares() -> None:
    rng = np.random.default_rng(6)
    source, target = rng.normal(size=(2, 8, 3))
    weights = np.array([1, 3, 2, 1, 1, 2, 1, 4])
    repeated = procrustes(np.repeat(source, weights, axis=0), np.repeat(target, weights, axis=0))
    assert_same(procrustes(source, target, weights), repeated)


@pytest.mark.parametrize(
    ("source", "weights", "message"),
    [
        (np.eye(3)[:2], None, "at least 3 points with weight, got 2"),
        (np.eye(3), np.array([1.0, 0.0, 1.0]), "at least 3 points with weight, got 2"),
        (np.ones((5, 3)), None, "coincide"),
    ],
)
def test_procrustes_refuses_too_little(source: np.ndarray, weights: np.ndarray | None, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        procrustes(source, source, weights)


@given(seeds)
def test_the_similarity_between_poses_takes_one_to_the_other(seed: int) -> None:
    rng = np.random.default_rng(seed)
    source, target = (make_pose(Rotation.from_rotvec(rng.normal(size=3)).as_matrix(), rng.normal(size=3)) for _ in "ab")
    between = Similarity.between_poses(source, target, 2.5)
    np.testing.assert_allclose(between.apply_to_pose(source), target, atol=1e-12)
    points = rng.normal(size=(2, 3))
    stretched = np.linalg.norm(np.subtract(*between.apply(points))) / np.linalg.norm(np.subtract(*points))
    assert stretched == pytest.approx(2.5)


def test_intrinsics_convert_between_pixel_conventions() -> None:
    ros = Intrinsics.from_matrix(K.matrix(centres_at_integers=True), 64, 48, centres_at_integers=True)
    assert ros == K
    assert K.matrix(centres_at_integers=True)[0, 2] == K.cx - 0.5
    assert K.focal_px == pytest.approx(np.sqrt(9000))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ((0, 1, 1, 1, 4, 4), "focal length must be positive"),
        ((1, 1, 1, 1, 0, 4), "image size must be positive, got 0x4"),
    ],
)
def test_impossible_intrinsics_are_refused(values: tuple, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Intrinsics(*values)


def test_weighted_median_stands_at_half_of_the_weight():
    assert weighted_median(np.array([5.0, 1, 3]), np.ones(3)) == 3
    assert weighted_median(np.array([5.0, 1, 3]), np.array([9.0, 1, 1])) == 5
