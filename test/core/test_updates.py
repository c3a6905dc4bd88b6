"""Views and updates when the world around them changes."""

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from dust3r_ros.data import ImageTransform, Intrinsics, Keyframe, PreparedImage, StageTimes, Update, ViewEstimate
from dust3r_ros.geometry import Similarity, backproject, make_pose, transform_points
from dust3r_ros.updates import changed_view, corrected, in_metres

K = Intrinsics.from_focal(20.0, 16, 12)
CHANGE = Similarity(1.5, Rotation.from_rotvec([0.1, -0.3, 0.2]).as_matrix(), np.array([1.0, -2, 0.5]))


def view(seed):
    rng = np.random.default_rng(seed)
    pose = make_pose(Rotation.from_rotvec(rng.normal(0, 0.5, 3)).as_matrix(), rng.normal(0, 2, 3))
    depth = rng.uniform(1, 4, (12, 16)).astype(np.float32)
    return ViewEstimate(pose, depth, np.ones_like(depth), K)


def points(v):
    return transform_points(v.camera_to_world, backproject(v.depth, v.intrinsics))


def update(**changes):
    image = PreparedImage(np.zeros((12, 16, 3), np.uint8), ImageTransform(1, 1, 0, 0, 16, 12, 16, 12))
    fields = {"keyframe": Keyframe(7, 0, "camera", image), "view": view(7), "intrinsics": K, "focal_spread_px": 1.0,
              "moved": {5: view(5), 6: view(6)}, "times": StageTimes()}  # fmt: skip
    return Update(**{**fields, **changes})


def test_a_changed_views_points_are_the_changed_points():
    np.testing.assert_allclose(points(changed_view(view(0), CHANGE)), CHANGE.apply(points(view(0))), atol=1e-5)


def test_a_similarity_and_its_matrix_are_one():
    again = Similarity.from_matrix(CHANGE.matrix())
    assert again.scale == pytest.approx(1.5)
    np.testing.assert_allclose(again.rotation, CHANGE.rotation, atol=1e-12)
    homogeneous = CHANGE.matrix() @ np.array([0.3, -1.0, 2.0, 1.0])
    np.testing.assert_allclose(homogeneous[:3], CHANGE.apply(np.array([0.3, -1.0, 2.0])), atol=1e-12)


def test_an_update_follows_a_loop_closure():
    before = update()
    after = corrected(before, {3: CHANGE.inverse(), 6: CHANGE, 7: CHANGE})
    np.testing.assert_allclose(points(after.view), CHANGE.apply(points(before.view)), atol=1e-5)
    np.testing.assert_allclose(points(after.moved[6]), CHANGE.apply(points(before.moved[6])), atol=1e-5)
    np.testing.assert_array_equal(points(after.moved[5]), points(before.moved[5]))
    assert set(after.corrections) == {3, 6, 7}
    np.testing.assert_allclose(after.corrections[3], np.linalg.inv(CHANGE.matrix()), atol=1e-12)
    assert corrected(before, {}) is before


def test_in_metres_everything_is_larger_and_corrections_still_fit():
    old = view(1)
    after = corrected(update(metric=True, metres_per_unit=2.5), {1: CHANGE, 7: CHANGE})
    metres = in_metres(after)
    np.testing.assert_allclose(points(metres.view), 2.5 * points(after.view), atol=1e-4)
    np.testing.assert_allclose(points(metres.moved[5]), 2.5 * points(after.moved[5]), atol=1e-4)
    moved = transform_points(metres.corrections[1], 2.5 * points(old))
    np.testing.assert_allclose(moved, 2.5 * CHANGE.apply(points(old)), atol=1e-4)
    unknown = update()
    assert in_metres(unknown) is unknown
