"""Metres per world unit from odometry, a rig, a depth or a height, and when it is sure enough."""

from dataclasses import replace

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from dust3r_ros.alignment.scale import (
    LEAST_SAMPLES,
    LOST_UNCERTAINTY,
    MOST_UNCERTAINTY,
    RECENT,
    SAME_TIME_NS,
    MetricReference,
    MetricScale,
    baseline_ratios,
    depth_ratio,
    height_ratio,
    pool_ratios,
    rig_ratios,
    segment_ratios,
)
from dust3r_ros.config import ReconstructorConfig
from dust3r_ros.data import Intrinsics, ViewEstimate
from dust3r_ros.geometry import Similarity, make_pose
from dust3r_ros.options import make_config
from dust3r_ros.pipeline import Reconstructor
from dust3r_ros.predictor import ImageSize
from dust3r_ros.training.sequences import walk_through_room
from dust3r_ros.training.truth import TruePredictor
from dust3r_ros.updates import in_metres

TRUE = 2.7  # metres per world unit


def path(count=60, step_m=0.1, seed=0):
    """A winding way, metric camera poses (N, 4, 4)."""
    rng = np.random.default_rng(seed)
    yaw = np.cumsum(rng.normal(0, 0.15, count))
    places = np.cumsum(step_m * np.stack([np.sin(yaw), 0 * yaw, np.cos(yaw)], axis=1), axis=0)
    return np.array([make_pose(Rotation.from_euler("y", a).as_matrix(), p) for a, p in zip(yaw, places)])


def in_world(poses, seed=1):
    """The same path up to a similarity, as the map has it."""
    rng = np.random.default_rng(seed)
    world = Similarity(1 / TRUE, Rotation.from_rotvec(rng.normal(0, 1, 3)).as_matrix(), rng.normal(0, 3, 3))
    return world.apply_to_pose(poses)


def test_the_uncertainty_is_what_the_errors_are():
    rng = np.random.default_rng(0)
    results = [pool_ratios(TRUE * np.exp(rng.normal(0, 0.05, 20))) for _ in range(300)]
    errors = np.array([np.log(r.metres_per_unit / TRUE) for r in results])
    claimed = np.sqrt(np.mean([r.uncertainty**2 for r in results]))
    assert abs(errors.mean()) < 3 * errors.std() / np.sqrt(300)
    assert claimed == pytest.approx(errors.std(), rel=0.2)
    assert results[0].samples == 20


def test_wrong_ratios_do_little():
    rng = np.random.default_rng(1)
    good = TRUE * np.exp(rng.normal(0, 0.01, 30))
    wrong = np.concatenate([good, [0.1, 50.0, 60.0, 40.0, np.inf, np.nan, 0.0, -1.0]])
    found = pool_ratios(wrong)
    assert found.metres_per_unit == pytest.approx(TRUE, rel=0.01)
    assert found.samples == 34
    assert found.uncertainty < MOST_UNCERTAINTY


def test_few_or_scattered_ratios_are_not_called_metric():
    rng = np.random.default_rng(2)
    assert pool_ratios([]) is None
    assert claimed([TRUE] * (LEAST_SAMPLES - 1)) is None
    assert claimed([TRUE] * LEAST_SAMPLES) is not None
    assert claimed(TRUE * np.exp(rng.normal(0, 0.5, 12))) is None


def claimed(ratios):
    """The scale that odometry claims for a straight way, of which each 0.3 m are as long as a ratio says."""
    odometry, trajectory, world = MetricReference(), [], 0.0
    for stamp, ratio in enumerate([np.inf, *ratios]):
        world += 0.3 / ratio
        odometry.add(stamp, make_pose(np.eye(3), np.array([0.3 * stamp, 0.0, 0.0])))
        trajectory.append((stamp, make_pose(np.eye(3), np.array([0.0, world, 0.0]))))
    odometry.update({"camera": trajectory})
    return odometry.metric


def test_odometry_of_any_frame_gives_the_scale():
    metric = path()
    moved = Similarity(1.0, Rotation.from_rotvec([0.3, -1, 2]).as_matrix(), np.array([9.0, -4, 1]))
    ratios = segment_ratios(moved.apply(metric[:, :3, 3]), in_world(metric)[:, :3, 3])
    np.testing.assert_allclose(ratios, TRUE, rtol=1e-9)
    assert len(ratios) >= 15


def test_a_stream_of_poses_makes_the_world_metric_once_it_is_sure():
    rng = np.random.default_rng(3)
    metric, odometry = path(80), MetricReference()
    world = in_world(metric)
    stamps = [1_000_000_000 + 200_000_000 * k for k in range(80)]
    became = None
    for k in range(80):
        for part in (0.25, 0.75):  # odometry does not come at the images' times
            pose = metric[k].copy()
            ahead = metric[min(k + 1, 79)][:3, 3] - metric[k][:3, 3]
            pose[:3, 3] += part * ahead + rng.normal(0, 0.003, 3)
            odometry.add(stamps[k] + int(part * 200_000_000), pose)
        scale = odometry.update({"camera": list(zip(stamps[: k + 1], world[: k + 1]))})
        if odometry.metric is not None and became is None:
            became = k
            assert scale.uncertainty <= MOST_UNCERTAINTY
    assert became is not None and became > 8
    assert odometry.metric.metres_per_unit == pytest.approx(TRUE, rel=3 * odometry.metric.uncertainty)
    assert odometry.metric.uncertainty < 0.01


def test_a_scale_that_no_longer_holds_is_taken_back():
    metric, odometry = path(200), MetricReference()
    stamps = [200_000_000 * k for k in range(200)]
    for stamp, pose in zip(stamps, metric):
        odometry.add(stamp, pose)
    world = in_world(metric)
    odometry.update({"camera": list(zip(stamps[:100], world[:100]))})
    assert odometry.metric is not None
    rng = np.random.default_rng(4)
    broken = world.copy()
    broken[:, :3, 3] += np.cumsum(rng.normal(0, 0.3, (200, 3)), axis=0)
    odometry.update({"camera": list(zip(stamps, broken))})
    assert odometry.scale.uncertainty > LOST_UNCERTAINTY
    assert odometry.metric is None


def test_the_scale_of_an_old_session_does_not_come_back_after_it_was_measured_anew():
    known, metric = MetricScale(2.0, 0.01, 50), path(60)
    odometry = MetricReference(known)
    stamps = [k * 100_000_000 for k in range(len(metric))]
    trajectory = list(zip(stamps, in_world(metric)))
    odometry.update({"camera": trajectory})
    assert odometry.metric == known  # nothing was measured yet
    for stamp, pose in zip(stamps, metric):
        odometry.add(stamp, pose)
    odometry.update({"camera": trajectory})
    assert odometry.metric is not None and odometry.metric != known
    odometry.update({"camera": [(stamp + 10**12, pose) for stamp, pose in trajectory]})
    assert odometry.metric is None


def test_gaps_in_the_stream_are_not_bridged():
    metric, odometry = path(40), MetricReference()
    stamps = [200_000_000 * k for k in range(40)]
    for k in (0, 1, 2, 30, 31):
        odometry.add(stamps[k], metric[k])
    scale = odometry.update({"camera": list(zip(stamps, in_world(metric)))})
    assert scale is None or scale.samples <= 2
    with pytest.raises(ValueError, match="later than"):
        odometry.add(stamps[31], metric[31])
    with pytest.raises(ValueError, match="finite"):
        odometry.add(stamps[35], np.full((4, 4), np.nan))


def test_standing_still_tells_nothing():
    odometry, pose = MetricReference(), np.eye(4)
    for k in range(50):
        odometry.add(k * 100_000_000, pose)
    assert odometry.update({"camera": [(k * 100_000_000, pose) for k in range(50)]}) is None
    assert odometry.metric is None


def test_ways_are_compared_within_a_camera():
    """Two cameras 0.3 m apart on one robot, whose keyframes take turns."""
    left, odometry = path(80), MetricReference()
    aside = np.eye(4)
    aside[0, 3] = 0.3
    metric = {"left": left, "right": left @ aside}
    stamps = [200_000_000 * k for k in range(80)]
    for k, stamp in enumerate(stamps):
        for camera, poses in metric.items():
            odometry.add(stamp, poses[k], camera)
    paths = {
        camera: [(stamps[k], in_world(poses)[k]) for k in range(first, 80, 2)]
        for first, (camera, poses) in enumerate(metric.items())
    }
    scale = odometry.update(paths)
    assert odometry.metric is not None
    assert scale.metres_per_unit == pytest.approx(TRUE, rel=1e-6)
    with pytest.raises(ValueError, match="later than"):
        odometry.add(stamps[-1], left[0], "right")


def test_odometry_that_stops_is_not_metric_for_ever():
    metric, odometry = path(RECENT + 40), MetricReference()
    stamps = [200_000_000 * k for k in range(len(metric))]
    keyframes = list(zip(stamps, in_world(metric)))
    for k in range(40):
        odometry.add(stamps[k], metric[k])
    odometry.update({"camera": keyframes[:40]})
    assert odometry.metric is not None
    odometry.update({"camera": keyframes[:RECENT]})
    assert odometry.metric is not None
    odometry.update({"camera": keyframes})
    assert odometry.metric is None and odometry.scale is None


def test_the_baseline_of_a_rig():
    rng = np.random.default_rng(5)
    first = rng.normal(0, 2, (20, 3))
    aside = rng.normal(0, 1, (20, 3))
    second = first + 0.12 / TRUE * aside / np.linalg.norm(aside, axis=1, keepdims=True)
    np.testing.assert_allclose(baseline_ratios(first, second, 0.12), TRUE, rtol=1e-9)
    with pytest.raises(ValueError, match="baseline_m must be positive"):
        baseline_ratios(first, second, 0.0)


def view_of(depth):
    height, width = depth.shape
    k = Intrinsics.from_focal(40.0, width, height)
    return ViewEstimate(np.eye(4), depth.astype(np.float32), np.ones_like(depth, np.float32), k)


def test_a_rig_in_the_reconstructor_makes_the_world_metric_and_a_reset_forgets_it():
    left = walk_through_room(frames=10, width=160, height=120, seed=3, rate_hz=4.0, texture_px=128)
    right = left.camera_to_world.copy()
    right[:, :3, 3] += 0.25 * right[:, :3, 0]
    both = replace(
        left,
        camera_to_world=np.stack([left.camera_to_world, right], axis=1).reshape(-1, 4, 4),
        stamps_ns=tuple(stamp + late for stamp in left.stamps_ns for late in (0, 2_000_000)),
    )
    frames = [(frame.image, frame.stamp_ns, ("left", "right")[k % 2]) for k, frame in enumerate(both)]
    config = make_config(ReconstructorConfig, {"keyframes.every_image": True})
    reconstructor = Reconstructor(config, TruePredictor(both, image_size=ImageSize(112)))
    reconstructor.add_baseline("left", "right", 0.25)
    updates = [reconstructor.add(*frame) for frame in frames]
    assert not updates[8].metric
    assert updates[-1].metric
    path = np.array([pose[:3, 3] for _, pose in reconstructor.trajectory()])[::2]
    length = np.linalg.norm(np.diff(path, axis=0), axis=1).sum() * updates[-1].metres_per_unit
    assert length == pytest.approx(left.path_length(), rel=0.01)
    reconstructor.reset()
    assert not any(reconstructor.add(*frame).metric for frame in frames)


def test_images_of_different_times_tell_nothing_of_a_rig():
    left, right = path(20), path(20)
    right[:, 0, 3] += 0.12
    stamps = [100_000_000 * k for k in range(20)]
    late = [stamp + 3 * SAME_TIME_NS for stamp in stamps]
    assert len(rig_ratios(list(zip(stamps, left)), list(zip(late, right)), 0.12)) == 0
    ratios = rig_ratios(list(zip(stamps, left)), list(zip([*late[:5], *stamps[5:]], right)), 0.24)
    np.testing.assert_allclose(ratios, 2.0)
    assert len(ratios) == 15
    for wrong in (("left", "left", 0.1), ("left", "right", 0.0), ("left", "right", np.nan)):
        with pytest.raises(ValueError, match="a baseline must be positive"):
            MetricReference().add_baseline(*wrong)


def test_a_known_depth():
    rng = np.random.default_rng(6)
    depth = rng.uniform(1, 3, (24, 32))
    known = np.where(rng.random(depth.shape) < 0.5, TRUE * depth * np.exp(rng.normal(0, 0.02, depth.shape)), 0)
    assert depth_ratio(view_of(depth), known) == pytest.approx(TRUE, rel=0.01)
    assert np.isnan(depth_ratio(view_of(depth), 0 * depth))
    with pytest.raises(ValueError, match=r"\(24, 32\)"):
        depth_ratio(view_of(depth), known[:5])


@pytest.mark.parametrize("pitch_deg", [0.0, 15.0])
def test_the_height_above_the_ground(pitch_deg):
    height_m, rng = 1.3, np.random.default_rng(7)
    down = Rotation.from_euler("x", pitch_deg, degrees=True).as_matrix() @ np.array([0.0, 1.0, 0.0])
    v, u = np.mgrid[0:48, 0:64]
    rays = np.stack([(u + 0.5 - 32) / 40, (v + 0.5 - 24) / 40, np.ones_like(u, float)], axis=-1)
    along = rays @ down
    ground = np.where(along > 1e-6, height_m / TRUE / np.maximum(along, 1e-6), np.inf)
    depth = np.minimum(ground, 2.0) * np.exp(rng.normal(0, 0.003, ground.shape))  # a wall behind
    assert height_ratio(view_of(depth), height_m, down) == pytest.approx(TRUE, rel=0.02)
    wall = view_of(np.full((48, 64), 2.0))
    assert np.isnan(height_ratio(wall, height_m))


def test_the_reconstructor_is_metric_only_once_odometry_says_so():
    walk = walk_through_room(frames=24, width=160, height=120, seed=3, rate_hz=4.0, texture_px=128)
    truth = TruePredictor(walk, image_size=ImageSize(112))
    config = make_config(ReconstructorConfig, {"keyframes.every_image": True})
    reconstructor, frame = Reconstructor(config, truth), None
    odometry_frame = Similarity(1.0, Rotation.from_rotvec([0, 0, 1]).as_matrix(), np.array([3.0, 1, 0]))
    metric = []
    for frame in walk:
        reconstructor.add_odometry(frame.stamp_ns, odometry_frame.apply_to_pose(frame.camera_to_world))
        update = reconstructor.add(frame.image, frame.stamp_ns)
        metric.append(update.metric)
        assert update.metric == (update.metres_per_unit != 1.0)
    assert not any(metric[:6]) and metric[-1] and sorted(metric) == metric
    true_depth = walk.depth(23, update.keyframe.image.transform.to_network(walk.intrinsics))
    np.testing.assert_allclose(np.median(in_metres(update).view.depth / true_depth), 1.0, rtol=0.01)
    centres = np.array([pose[:3, 3] for _, pose in reconstructor.trajectory()])
    length = np.linalg.norm(np.diff(centres, axis=0), axis=1).sum() * reconstructor.metric_scale.metres_per_unit
    assert length == pytest.approx(walk.path_length(), rel=0.01)
    silent = Reconstructor(config, truth)
    for frame in walk:
        silent.add_odometry(frame.stamp_ns, frame.camera_to_world, "another camera")
        update = silent.add(frame.image, frame.stamp_ns)
    assert not update.metric and silent.metric_scale is None and in_metres(update) is update
