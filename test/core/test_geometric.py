"""The classical predictor on scenes with exact truth, and on one real stereo pair."""

import numpy as np
import pytest
from geometric_scenes import ROOM, WALL, K, pose_of, prepared, relative_pose, shoot

from dust3r_ros.alignment import intrinsics_of_image
from dust3r_ros.data import Intrinsics, PairState
from dust3r_ros.geometric import GeometricPredictor
from dust3r_ros.geometry import pixel_rays, procrustes, project, rotation_angle_deg
from dust3r_ros.images import prepare
from dust3r_ros.predictor import PairPredictor


def predict_both(i, j, *, known=True, seed=0):
    predictor = GeometricPredictor(seed=seed)
    a, b = (predictor.encode(s.image, "camera", s.intrinsics if known else None) for s in (i, j))
    return predictor.predict([(a, b), (b, a)])


def relative(forward, backward):
    weight = np.minimum(forward.conf_j, backward.conf_i).ravel()
    return procrustes(backward.points_i.reshape(-1, 3), forward.points_j.reshape(-1, 3), weight)


def angle_deg(a, b):
    return np.degrees(np.arccos(np.clip(a @ b / np.linalg.norm(a) / np.linalg.norm(b), -1, 1)))


def depth_error(points, confidence, depth):
    seen = (confidence > 0) & (depth > 0)
    z = points[..., 2][seen]
    return np.abs(z * np.median(depth[seen]) / np.median(z) / depth[seen] - 1)


@pytest.fixture(scope="module")
def sideways():
    return shoot(ROOM, pose_of((0, 0, 0), (0, 0, 0))), shoot(ROOM, pose_of((1, -4, 2), (0.45, 0.05, 0.1)))


@pytest.fixture(scope="module")
def sideways_prediction(sideways):
    return predict_both(*sideways)


def test_is_a_pair_predictor():
    predictor = GeometricPredictor()
    assert isinstance(predictor, PairPredictor)
    assert predictor.image_size.long_side == 512
    assert predictor.info.trained  # there is nothing that training would add


def test_pose_and_depth_of_a_sideways_motion(sideways, sideways_prediction):
    forward, backward = sideways_prediction
    assert forward.state is PairState.GOOD
    j_to_i, truth = relative(forward, backward), relative_pose(*sideways)
    assert rotation_angle_deg(j_to_i.rotation @ truth[:3, :3].T) < 0.1
    assert angle_deg(j_to_i.translation, truth[:3, 3]) < 1.0
    error = depth_error(forward.points_i, forward.conf_i, sideways[0].depth)
    assert np.median(error) < 0.01
    assert error.mean() < 0.03
    assert (forward.conf_i > 0).mean() > 0.7


def test_forward_motion_with_the_epipole_in_the_image():
    i, j = shoot(ROOM, pose_of((0, 0, 0), (0, 0, 0))), shoot(ROOM, pose_of((0, 1, 0), (0.03, -0.02, 0.6)))
    forward, backward = predict_both(i, j)
    truth = relative_pose(i, j)
    assert angle_deg(relative(forward, backward).translation, truth[:3, 3]) < 1.0
    assert np.median(depth_error(forward.points_i, forward.conf_i, i.depth)) < 0.02
    epipole = project(truth[:3, 3], K).astype(int)
    assert forward.conf_i[epipole[1], epipole[0]] < np.median(forward.conf_i[forward.conf_i > 0]) / 5


def test_wide_baseline():
    i, j = shoot(ROOM, pose_of((0, 8, 0), (-0.8, 0, 0))), shoot(ROOM, pose_of((0, -12, 3), (0.8, 0, 0)))
    forward, backward = predict_both(i, j)
    truth = relative_pose(i, j)
    j_to_i = relative(forward, backward)
    assert rotation_angle_deg(j_to_i.rotation @ truth[:3, :3].T) < 0.3
    assert angle_deg(j_to_i.translation, truth[:3, 3]) < 1.0
    assert np.median(depth_error(forward.points_i, forward.conf_i, i.depth)) < 0.01


def test_points_lie_on_the_rays_of_their_pixels(sideways, sideways_prediction):
    forward, backward = sideways_prediction
    z = forward.points_i[..., 2:]
    np.testing.assert_allclose(forward.points_i, z * pixel_rays(K), rtol=1e-5, atol=1e-6)
    in_j = relative(forward, backward).inverse().apply(forward.points_j.astype(float))
    np.testing.assert_allclose(project(in_j, K), project(pixel_rays(K), K), atol=0.02)
    assert forward.points_i.dtype == forward.conf_i.dtype == np.float32
    assert np.isfinite(forward.points_i).all() and np.isfinite(forward.points_j).all()


def test_both_directions_are_one_geometry_up_to_scale(sideways_prediction):
    forward, backward = sideways_prediction
    j_to_i = relative(forward, backward)
    moved_i = j_to_i.apply(backward.points_j.astype(float))
    np.testing.assert_allclose(moved_i, forward.points_i, atol=1e-4)
    np.testing.assert_array_equal(forward.conf_i, backward.conf_j)


def test_confidence_says_which_depths_are_good(sideways, sideways_prediction):
    forward, _ = sideways_prediction
    seen = forward.conf_i > 0
    error = depth_error(forward.points_i, forward.conf_i, sideways[0].depth)
    low, high = np.quantile(forward.conf_i[seen], [0.1, 0.5])
    assert error[forward.conf_i[seen] < low].mean() > 2 * error[forward.conf_i[seen] > high].mean()
    assert high > 1


def test_own_frame_scale_is_one_over_all_pairs():
    shots = [shoot(ROOM, pose_of((0, 0, 0), (x, 0, 0))) for x in (0.0, 0.2, 0.5, -0.3)]
    predictor = GeometricPredictor()
    views = [predictor.encode(s.image, "camera", K) for s in shots]
    first = predictor.predict([(views[0], views[1]), (views[0], views[2])])
    later = predictor.predict([(views[0], views[3])])
    scales = []
    for prediction in (*first, *later):
        seen = (prediction.conf_i > 1) & (shots[0].depth > 0)
        scales.append(np.median(prediction.points_i[..., 2][seen] / shots[0].depth[seen]))
    assert np.ptp(scales) / scales[0] < 0.01
    assert np.median(first[0].points_i[..., 2][first[0].conf_i > 0]) == pytest.approx(1, rel=1e-3)


def test_pure_rotation_is_flagged_and_its_rotation_is_right():
    i, j = shoot(ROOM, pose_of((0, 0, 0), (0, 0, 0))), shoot(ROOM, pose_of((2, 7, 1), (0, 0, 0)))
    forward, backward = predict_both(i, j)
    assert forward.state is backward.state is PairState.ROTATION_ONLY
    assert 0 < forward.conf_i.max() < 1
    rotation = relative(forward, backward).rotation
    assert rotation_angle_deg(rotation @ relative_pose(i, j)[:3, :3].T) < 0.1
    np.testing.assert_allclose(np.linalg.norm(forward.points_j, axis=-1), 1, rtol=1e-5)


@pytest.mark.parametrize(
    ("rotation_deg", "centre"),
    [((0, -5, 0), (0.6, 0, 0)), ((3, 0, 4), (0, -0.5, 0.1)), ((0, 6, 0), (-0.5, 0.2, 0)), ((2, 2, 0), (0.1, 0, 0.8))],
)
def test_plane_is_flagged_and_solved(rotation_deg, centre):
    i, j = shoot(WALL, pose_of((0, 0, 0), (0, 0, 0))), shoot(WALL, pose_of(rotation_deg, centre))
    forward, _ = predict_both(i, j)
    assert forward.state is PairState.PLANAR
    assert np.median(depth_error(forward.points_i, forward.conf_i, i.depth)) < 0.05


def test_identical_images_have_no_parallax(sideways):
    forward, backward = predict_both(sideways[0], sideways[0])
    assert forward.state is PairState.ROTATION_ONLY
    assert rotation_angle_deg(relative(forward, backward).rotation) < 0.01


def test_an_image_paired_with_itself(sideways):
    predictor = GeometricPredictor()
    view = predictor.encode(sideways[0].image, "camera", K)
    assert predictor.predict([(view, view)])[0].state is PairState.ROTATION_ONLY


@pytest.mark.parametrize("value", [0, 127, 255])
def test_textureless_images_fail_clearly(value, sideways):
    predictor = GeometricPredictor()
    blank = predictor.encode(prepared(np.full((240, 320, 3), value, np.uint8)), "camera", K)
    other = predictor.encode(sideways[0].image, "camera", K)
    for prediction in predictor.predict([(blank, blank), (blank, other), (other, blank)]):
        assert prediction.state is PairState.FAILED
        assert not prediction.conf_i.any() and not prediction.conf_j.any()
        assert prediction.points_i.shape == (240, 320, 3) and np.isfinite(prediction.points_i).all()


def test_images_of_different_places_fail(sideways):
    elsewhere = tuple(type(p)(p.normal, p.offset, p.texture + 50, p.centre, p.half_width) for p in ROOM)
    forward, _ = predict_both(sideways[0], shoot(elsewhere, pose_of((0, 0, 0), (0.3, 0, 0))))
    assert forward.state is PairState.FAILED


def test_images_of_different_sizes(sideways):
    narrow = Intrinsics(260.0, 260.0, 96.0, 144.0, 192, 288)
    i, j = sideways[0], shoot(ROOM, pose_of((0, -3, 0), (0.4, 0, 0)), narrow)
    forward, backward = predict_both(i, j)
    assert forward.points_i.shape == (240, 320, 3) and forward.points_j.shape == (288, 192, 3)
    truth = relative_pose(i, j)
    assert angle_deg(relative(forward, backward).translation, truth[:3, 3]) < 2
    assert np.median(depth_error(forward.points_i, forward.conf_i, i.depth)) < 0.02
    assert np.median(depth_error(backward.points_i, backward.conf_i, j.depth)) < 0.02


def test_same_seed_same_answer(sideways, sideways_prediction):
    again = predict_both(*sideways)
    for first, second in zip(sideways_prediction, again):
        np.testing.assert_array_equal(first.points_i, second.points_i)
        np.testing.assert_array_equal(first.points_j, second.points_j)
        np.testing.assert_array_equal(first.conf_i, second.conf_i)


def test_intrinsics_of_another_size_are_refused(sideways):
    with pytest.raises(ValueError, match=r"320x240.*got 640x480"):
        GeometricPredictor().encode(sideways[0].image, "camera", Intrinsics.from_focal(500, 640, 480))


def test_image_size_is_checked():
    with pytest.raises(ValueError, match="at least 64, got 8"):
        GeometricPredictor(image_size=8)


def test_real_stereo_pair():
    data = pytest.importorskip("skimage.data")
    left, right, disparity = data.stereo_motorcycle()
    height, width = left.shape[:2]
    predictor, views, focal = GeometricPredictor(), [], 994.978
    for pixels, cx in ((left, 311.193), (right, 311.193 + 31.086)):
        image = prepare(pixels, predictor.image_size)
        k = Intrinsics(focal, focal, cx + 0.5, 254.877 + 0.5, width, height)
        views.append(predictor.encode(image, "camera", image.transform.to_network(k)))
    forward, backward = predictor.predict([(views[0], views[1]), (views[1], views[0])])
    depth = np.where(np.isfinite(disparity), focal * 0.193001 / (disparity + 31.086), 0)
    u, v = (np.floor((c - o) / s).astype(int) for c, o, s in _centres(image, predictor))
    true = depth[v.clip(0, height - 1)[:, None], u.clip(0, width - 1)]
    error = depth_error(forward.points_i, forward.conf_i, true)
    assert error.mean() < 0.03
    assert (forward.conf_i > 0).mean() > 0.8
    j_to_i = relative(forward, backward)
    assert rotation_angle_deg(j_to_i.rotation) < 0.05
    assert angle_deg(j_to_i.translation, np.array([1.0, 0, 0])) < 0.6


def _centres(image, predictor):
    t = image.transform
    return (
        (np.arange(image.width) + 0.5, t.offset_x, t.scale_x),
        (np.arange(image.height) + 0.5, t.offset_y, t.scale_y),
    )


def test_focal_is_found_from_pairs_of_one_camera():
    poses = [
        ((0, 0, 0), (0, 0, 0)),
        ((3, -6, 4), (0.5, 0.1, 0.1)),
        ((-6, 3, 8), (0.2, -0.3, 0.5)),
        ((5, 8, -6), (-0.4, 0.2, 0.6)),
    ]
    shots = [shoot(ROOM, pose_of(*p)) for p in poses]
    predictor = GeometricPredictor()
    views = [predictor.encode(s.image, "camera") for s in shots]
    before = predictor.focal("camera")
    predictions = predictor.predict([(views[i], views[j]) for i in range(4) for j in range(i + 1, 4)])
    found = predictor.focal("camera")
    assert found.focal_px == pytest.approx(K.focal_px, rel=0.03)
    assert found.spread_px < before.spread_px / 3
    assert predictor.focal_px("camera") == found.focal_px
    assert intrinsics_of_image(predictions[0], own_map_only=True).intrinsics.fx == pytest.approx(
        found.focal_px, rel=1e-3
    )
    predictor.forget()
    predictor.encode(shots[0].image, "camera")
    assert predictor.focal("camera") == before


def test_focal_of_an_unknown_camera_is_refused():
    with pytest.raises(ValueError, match="'rear'"):
        GeometricPredictor().focal("rear")


def test_probing_teaches_nothing_and_answers_the_same():
    shots = [shoot(ROOM, pose_of(*p)) for p in (((0, 0, 0), (0, 0, 0)), ((3, -6, 4), (0.5, 0.1, 0.1)),
                                                ((-6, 3, 8), (0.2, -0.3, 0.5)))]  # fmt: skip
    predictor = GeometricPredictor()
    a, b, c = (predictor.encode(s.image, "camera") for s in shots)
    (known,) = predictor.predict([(a, b)])
    focal, depth = predictor.focal("camera"), a.reference.depth.copy()
    (again, _) = predictor.probe([(a, b), (c, a)])
    np.testing.assert_allclose(again.points_i, known.points_i, rtol=1e-5, atol=1e-6)
    assert predictor.focal("camera") == focal
    np.testing.assert_array_equal(a.reference.depth, depth)
    assert c.reference.depth is None
