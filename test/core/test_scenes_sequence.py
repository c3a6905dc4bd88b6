"""Rendered sequences, the predictor that knows the truth, and what is written to disk."""

import cv2
import numpy as np
import pytest

from dust3r_ros.alignment import intrinsics_of_image
from dust3r_ros.data import Intrinsics
from dust3r_ros.evaluation.packs import load_pack
from dust3r_ros.geometry import invert_pose, procrustes, project, rotation_angle_deg, transform_points
from dust3r_ros.images import prepare
from dust3r_ros.predictor import ImageSize
from dust3r_ros.training.sequences import RenderedSequence, walk_through_room, write_pack
from dust3r_ros.training.truth import TruePredictor


@pytest.fixture(scope="module")
def walk() -> RenderedSequence:
    return walk_through_room(frames=20, width=160, height=120, seed=0, texture_px=128)


@pytest.fixture(scope="module")
def frames(walk):
    return list(walk)


def test_the_walk_stays_inside_the_room_and_away_from_surfaces(walk, frames):
    centres = walk.camera_to_world[:, :3, 3]
    assert (np.abs(centres[:, :2]) < [3 - 0.3, 2 - 0.3]).all()
    assert ((centres[:, 2] > 1.1) & (centres[:, 2] < 1.9)).all()
    assert min(frame.depth.min() for frame in frames) > 0.2
    assert all((frame.depth > 0).all() and frame.depth.max() < 7.9 for frame in frames)  # the room's diagonal


def test_the_walk_always_moves_and_turns_moderately(walk):
    steps = np.linalg.norm(np.diff(walk.camera_to_world[:, :3, 3], axis=0), axis=1)
    assert steps.min() > 0.03 and steps.max() < 0.065  # 0.7 m/s at 15 Hz
    assert walk.path_length() == pytest.approx(19 * 0.7 / 15, rel=0.05)
    turns = rotation_angle_deg(walk.camera_to_world[:-1, :3, :3].transpose(0, 2, 1) @ walk.camera_to_world[1:, :3, :3])
    assert turns.max() < 3.5
    assert np.diff(walk.stamps_ns).tolist() == pytest.approx([1e9 / 15] * 19, abs=1)


def test_depth_and_pose_of_two_frames_agree(walk, frames):
    one, two = frames[3], frames[9]
    k = walk.intrinsics
    x, y = (np.arange(160) + 0.5 - k.cx) / k.fx, (np.arange(120)[:, None] + 0.5 - k.cy) / k.fy
    points = np.stack([x * one.depth, y * one.depth, one.depth], -1)
    moved = transform_points(invert_pose(two.camera_to_world) @ one.camera_to_world, points)
    uv = np.nan_to_num(project(moved, k), nan=-1)
    inside = ((uv > 1) & (uv < [159, 119])).all(-1)
    assert inside.mean() > 0.4
    at = np.floor(uv[inside]).astype(int)
    error = np.abs(two.depth[at[:, 1], at[:, 0]] - moved[inside][:, 2]) / moved[inside][:, 2]
    assert np.median(error) < 0.01
    assert (error < 0.05).mean() > 0.9
    grey = [frame.image.astype(float).mean(-1) for frame in (one, two)]
    difference = np.abs(grey[1][at[:, 1], at[:, 0]] - grey[0][inside])
    assert np.median(difference) < 8


def test_pictures_have_enough_texture_for_features(frames):
    for frame in frames[::6]:
        corners = cv2.goodFeaturesToTrack(cv2.cvtColor(frame.image, cv2.COLOR_RGB2GRAY), 500, 0.02, 4)
        assert len(corners) > 100
        assert 40 < frame.image.mean() < 215


def test_a_seed_gives_the_same_walk(walk, frames):
    again = walk_through_room(frames=20, width=160, height=120, seed=0, texture_px=128)
    np.testing.assert_array_equal(again.camera_to_world, walk.camera_to_world)
    np.testing.assert_array_equal(again.frame(4).image, frames[4].image)


@pytest.mark.parametrize(("options", "message"), [({"fov_deg": 5}, "fov_deg must be"), ({"frames": 1}, "frames >= 2")])
def test_refuses_what_is_out_of_range(options, message):
    with pytest.raises(ValueError, match=message):
        walk_through_room(**options)


@pytest.mark.parametrize("size", [ImageSize(128), ImageSize(96, square=True)])
def test_the_true_predictor_gives_the_true_geometry_up_to_a_scale(walk, frames, size):
    predictor = TruePredictor(walk, image_size=size)
    encoded = [predictor.encode(prepare(frames[i].image, size), "camera") for i in (2, 8)]
    assert [e.frame for e in encoded] == [2, 8]
    forward, back = predictor.predict([(encoded[0], encoded[1]), (encoded[1], encoded[0])])
    k = prepare(frames[2].image, size).transform.to_network(walk.intrinsics)
    assert forward.points_i.shape == (k.height, k.width, 3)
    found = intrinsics_of_image(forward, own_map_only=True, principal_point=(k.cx, k.cy)).intrinsics
    assert found.fx == pytest.approx(k.fx, rel=1e-4)
    assert (forward.conf_i > 1).all()
    motion = procrustes(back.points_i.reshape(-1, 3), forward.points_j.reshape(-1, 3))
    truth = invert_pose(walk.camera_to_world[2]) @ walk.camera_to_world[8]
    assert rotation_angle_deg(motion.rotation.T @ truth[:3, :3]) < 0.01
    scale = np.median(forward.points_i[..., 2] / encoded[0].points[..., 2])
    np.testing.assert_allclose(motion.translation / scale, truth[:3, 3], atol=1e-4)
    other = np.median(back.points_i[..., 2] / encoded[1].points[..., 2])
    assert 0.5 <= scale <= 2 and abs(scale - other) > 0.01


def test_every_frame_is_recognised_after_jpeg_and_others_are_refused(walk, frames):
    predictor = TruePredictor(walk)
    for index, frame in enumerate(frames):
        coded = cv2.imdecode(cv2.imencode(".jpg", frame.image, [cv2.IMWRITE_JPEG_QUALITY, 60])[1], cv2.IMREAD_COLOR)
        assert predictor.identify(prepare(coded, predictor.image_size)) == index
    with pytest.raises(ValueError, match="not of this sequence"):
        predictor.identify(prepare(frames[0].image[::-1].copy(), predictor.image_size))


def test_a_pack_comes_back_as_it_was_written(walk, frames, tmp_path):
    write_pack(walk, tmp_path / "pack", every=5)
    pack = load_pack(tmp_path / "pack")
    assert pack.metric and len(pack) == 4
    for read, index in zip(pack.frames, (0, 5, 10, 15)):
        np.testing.assert_array_equal(read.load_image(), frames[index].image)
        np.testing.assert_allclose(read.camera_to_world, frames[index].camera_to_world, atol=1e-9)
        np.testing.assert_allclose(read.load_depth(), frames[index].depth, atol=0.00051)
        assert read.intrinsics == Intrinsics(
            *(getattr(walk.intrinsics, n) for n in ("fx", "fy", "cx", "cy", "width", "height"))
        )
