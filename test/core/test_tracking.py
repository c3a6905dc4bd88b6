"""Poses between keyframes, on a rendered walk with exact truth."""

from dataclasses import replace
from functools import cache

import cv2
import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from dust3r_ros.config import ReconstructorConfig, TrackingConfig
from dust3r_ros.evaluation.frame_poses import FramePoses
from dust3r_ros.geometry import Similarity, procrustes, rotation_angle_deg
from dust3r_ros.landmarks import KEPT, Landmarks
from dust3r_ros.options import make_config
from dust3r_ros.pipeline import Reconstructor
from dust3r_ros.predictor import ImageSize
from dust3r_ros.tracking import EAGER_IMAGES, RELOCALISED_IMAGES, Tracker, TrackingState
from dust3r_ros.training.sequences import walk_through_room
from dust3r_ros.training.truth import TruePredictor

FRAMES, KEYFRAMES = 40, (0, 8, 16, 24, 32)
CAMERA = "camera"
TRACKING, FOLLOWING_ALONE = TrackingConfig(), TrackingConfig(features=0)


@pytest.fixture(scope="module")
def walk():
    return walk_through_room(frames=FRAMES, width=320, height=240, seed=3, rate_hz=12.0, texture_px=128)


@pytest.fixture(scope="module")
def images(walk):
    return [frame.image for frame in walk]


@cache
def predictor(walk):
    return TruePredictor(walk, image_size=ImageSize(224))


class Session:
    """Chosen images become keyframes by their true pointmaps; the images are tracked against them."""

    def __init__(self, walk, images, delay=0, straighten=None, seen=None, tracking=TRACKING):
        self.walk, self.images, self.seen = walk, images, seen or images
        config = make_config(ReconstructorConfig, {"loops.enabled": False})
        self.reconstructor = Reconstructor(config, predictor(walk))
        self.landmarks = Landmarks()
        self.tracker = Tracker(CAMERA, tracking, self.landmarks, waiting=3)
        self.delay, self.straighten = delay, straighten
        self.due, self.updates, self.tracked = [], {}, []

    def run(self, indices, keyframes=KEYFRAMES):
        for index in indices:
            self.see(index, keyframe=index in keyframes)
        return self

    def see(self, index, keyframe=False, image=None):
        """One image; a keyframe's geometry is there ``delay`` images later."""
        shown = self.seen[index] if image is None else image
        found = self.tracker.look(shown, self.walk.stamps_ns[index], keyframe=keyframe, straighten=self.straighten)
        self.tracked.append(found)
        self.due += [(index + self.delay, index)] if keyframe else []
        while self.due and self.due[0][0] <= index:
            self.reconstruct(self.due.pop(0)[1])
        return found

    def reconstruct(self, index):
        update = self.reconstructor.reconstruct(self.images[index], self.walk.stamps_ns[index], CAMERA)
        assert update.view.registered
        self.landmarks.take(update)

    def to_truth(self):
        """From the keyframes' world to the true one."""
        true = dict(zip(self.walk.stamps_ns, self.walk.camera_to_world))
        trajectory = self.reconstructor.trajectory()
        return procrustes(
            np.array([pose[:3, 3] for _, pose in trajectory]), np.array([true[s][:3, 3] for s, _ in trajectory])
        )

    def errors(self):
        """Of all tracked poses, in the keyframes' world: distance to the truth as a share of the path, and degrees."""
        true, world = dict(zip(self.walk.stamps_ns, self.walk.camera_to_world)), self.to_truth()
        poses = [(true[t.stamp_ns], world.apply_to_pose(t.camera_to_world)) for t in self.tracked
                 if t.camera_to_world is not None]  # fmt: skip
        gaps = [np.linalg.norm(found[:3, 3] - exact[:3, 3]) for exact, found in poses]
        turns = [rotation_angle_deg(found[:3, :3].T @ exact[:3, :3]) for exact, found in poses]
        return np.array(gaps) / self.walk.path_length(), np.array(turns)


@pytest.mark.parametrize("delay", [0, 5])
def test_every_image_after_the_second_keyframe_has_the_true_pose(walk, images, delay):
    session = Session(walk, images, delay).run(range(FRAMES))
    known_from = KEYFRAMES[1] + delay + 1
    assert all(
        t.camera_to_world is None and t.state is TrackingState.INITIALISING for t in session.tracked[:known_from]
    )
    assert all(t.state is TrackingState.TRACKING for t in session.tracked[known_from:])
    gaps, turns = session.errors()
    assert len(gaps) == FRAMES - known_from
    assert np.sqrt((gaps**2).mean()) < 0.01 and gaps.max() < 0.03
    assert np.median(turns) < 0.3 and turns.max() < 1.5
    share = np.array([t.inliers / t.points for t in session.tracked[known_from:]])
    assert np.median(share) > 0.7 and share.min() > 0.4


def test_a_camera_that_stands_still_does_not_drift(walk, images):
    session = Session(walk, images).run(range(12))
    first = session.see(12)
    for _ in range(40):
        last = session.see(12)
    np.testing.assert_allclose(last.camera_to_world, first.camera_to_world, atol=2e-3)


def test_poses_follow_what_alignment_makes_of_the_keyframes(walk, images):
    session = Session(walk, images).run(range(12))
    before = session.see(12)
    change = Similarity(1.3, Rotation.from_euler("y", 20, degrees=True).as_matrix(), np.array([1.0, 2.0, 3.0]))
    session.landmarks.follow({seen.index: change for seen in session.landmarks.of(CAMERA)})
    after = session.see(12)
    np.testing.assert_allclose(after.camera_to_world, change.apply_to_pose(before.camera_to_world), atol=1e-4)


def test_what_covers_the_lens_loses_the_path_and_the_next_good_image_finds_it_again(walk, images):
    session = Session(walk, images).run(range(12), keyframes=(0, 4, 8))
    noise = np.random.default_rng(0).integers(0, 255, images[0].shape, dtype=np.uint8)
    covered = [session.see(12, image=noise) for _ in range(3)]
    assert [t.state for t in covered] == [TrackingState.LOST] * 3
    assert all(t.camera_to_world is None for t in covered)
    assert session.tracker.lost_since_ns == walk.stamps_ns[12]
    again = [session.see(13) for _ in range(RELOCALISED_IMAGES + 1)]
    assert [t.state for t in again] == [TrackingState.RELOCALISED] * RELOCALISED_IMAGES + [TrackingState.TRACKING]
    assert session.tracker.lost_since_ns is None
    assert session.errors()[0].max() < 0.03


def test_far_from_every_keyframe_it_is_lost_until_a_keyframe_is_aligned_there(walk, images):
    session = Session(walk, images, tracking=FOLLOWING_ALONE).run(range(12))
    for keyframe in (16, 20, 24, 32):
        session.reconstruct(keyframe)  # the map knows the place; no corner was followed there
    assert session.see(33).state is TrackingState.LOST
    session.see(34, keyframe=True)
    assert session.see(35).state is TrackingState.RELOCALISED
    assert session.errors()[0].max() < 0.03


def elsewhere(walk, index, turn_deg, forward_m=0.0):
    """The view from a pose of the walk, turned about the camera's x, y and z and moved along its view; and its pose."""
    pose = walk.camera_to_world[index].copy()
    pose[:3, 3] += forward_m * pose[:3, 2]
    pose[:3, :3] = pose[:3, :3] @ Rotation.from_euler("xyz", turn_deg, degrees=True).as_matrix()
    poses = walk.camera_to_world.copy()
    poses[index] = pose
    return replace(walk, camera_to_world=poses).frame(index).image, pose


SWING = (8.0, 28.0, 20.0)  # degrees: half of the view is new


@pytest.mark.parametrize("hidden", ["black", "blurred"])
def test_after_an_interruption_a_view_too_far_to_follow_is_found_by_its_features_at_once(walk, images, hidden):
    covers = {"black": np.zeros_like(images[0]), "blurred": cv2.GaussianBlur(images[11], None, 12)}
    swung, pose = elsewhere(walk, 14, SWING, 0.1)
    for tracking in (FOLLOWING_ALONE, TRACKING):
        session = Session(walk, images, tracking=tracking).run(range(12), keyframes=(0, 4, 8))
        assert [session.see(12, image=covers[hidden]).state for _ in range(3)] == [TrackingState.LOST] * 3
        found = session.see(14, image=swung)
        if tracking is FOLLOWING_ALONE:
            assert found.state is TrackingState.LOST
    assert found.state is TrackingState.RELOCALISED and session.tracker.lost_since_ns is None
    there = session.to_truth().apply_to_pose(found.camera_to_world)
    assert np.linalg.norm(there[:3, 3] - pose[:3, 3]) < 0.03 * walk.path_length()
    assert rotation_angle_deg(there[:3, :3].T @ pose[:3, :3]) < 1.0
    assert found.inliers >= 0.5 * found.points


def test_what_was_found_by_features_is_followed_from_there(walk, images, monkeypatch):
    session = Session(walk, images).run(range(12), keyframes=(0, 4, 8))
    session.see(12, image=np.zeros_like(images[0]))
    session.see(13, image=elsewhere(walk, 13, SWING)[0])
    monkeypatch.setattr(Tracker, "_recaptures", lambda _: False)
    for share in (0.95, 0.9, 0.85, 0.8):
        image, pose = elsewhere(walk, 14, share * np.array(SWING))
        found = session.see(14, image=image)
        assert found.state is TrackingState.RELOCALISED
        there = session.to_truth().apply_to_pose(found.camera_to_world)
        assert np.linalg.norm(there[:3, 3] - pose[:3, 3]) < 0.03 * walk.path_length()


def test_a_keyframe_that_waits_for_its_geometry_while_the_path_is_lost_counts_once_it_has_it(walk, images):
    session = Session(walk, images).run(range(12), keyframes=(0, 4, 8))
    session.delay = 100
    swung, _ = elsewhere(walk, 12, SWING)
    session.see(12, image=np.zeros_like(images[0]))
    session.see(13, image=swung, keyframe=True)
    assert session.tracker._tracks.keyframes[-1] == walk.stamps_ns[13]
    assert set(session.tracker._tracks.keyframes[:-1]) <= {walk.stamps_ns[k] for k in (0, 4, 8)}
    assert session.see(14, image=swung).state is TrackingState.RELOCALISED


def test_a_place_that_the_keyframes_do_not_show_is_not_taken_for_one(walk, images):
    session = Session(walk, images).run(range(12), keyframes=(0, 4, 8))
    rooms = [walk_through_room(frames=2, width=320, height=240, seed=seed, texture_px=128) for seed in range(20, 26)]
    views = [room.frame(0).image for room in rooms] + [images[8][:, ::-1].copy()]
    assert [session.see(12, image=view).state for view in views] == [TrackingState.LOST] * len(views)


def test_the_features_of_a_lens_that_bends_are_straightened(walk, images):
    shift = 12
    bent = [np.roll(image, -shift, axis=1) for image in images]
    session = Session(walk, images, straighten=lambda pixels: pixels + np.array([shift, 0.0]), seen=bent)
    session.run(range(12), keyframes=(0, 4, 8))
    session.see(12, image=np.zeros_like(images[0]))
    swung, pose = elsewhere(walk, 14, SWING)
    found = session.see(14, image=np.roll(swung, -shift, axis=1))
    there = session.to_truth().apply_to_pose(found.camera_to_world)
    assert rotation_angle_deg(there[:3, :3].T @ pose[:3, :3]) < 1.0


def test_a_path_that_stays_lost_costs_less_from_the_eleventh_image_on(walk, images, monkeypatch):
    session = Session(walk, images).run(range(12), keyframes=(0, 4, 8))
    noise = np.random.default_rng(0).integers(0, 255, images[0].shape, dtype=np.uint8)
    original, compared, before = Tracker._recapture, [], len(session.tracked)

    def recapture(self, *given):
        compared.append(len(session.tracked) - before)
        return original(self, *given)

    monkeypatch.setattr(Tracker, "_recapture", recapture)
    for _ in range(26):
        session.see(12, image=noise)
    assert compared == [*range(EAGER_IMAGES), 10, 15, 20, 25]


def test_before_there_is_a_keyframe_no_features_are_looked_for(walk, images, monkeypatch):
    looked_at = []
    monkeypatch.setattr("dust3r_ros.tracking.extract_features", lambda grey, count: looked_at.append(count))
    session = Session(walk, images).run(range(4), keyframes=())
    assert [t.state for t in session.tracked] == [TrackingState.INITIALISING] * 4
    assert not looked_at


def test_corners_of_a_keyframe_that_gave_way_are_forgotten(walk, images):
    session = Session(walk, images, delay=100).run(range(9))
    before = len(session.tracker._tracks.now)
    assert session.tracker._tracks.keyframes == (walk.stamps_ns[0], walk.stamps_ns[8])
    session.tracker.forget(walk.stamps_ns[8])
    left = session.tracker._tracks
    assert 0 < len(left.now) < before
    assert left.keyframes == (walk.stamps_ns[0],)
    session.tracker.forget(walk.stamps_ns[0])
    assert len(session.tracker._tracks.now) == 0


def test_a_keyframe_whose_older_ones_were_dropped_has_all_of_its_view(walk, images):
    session = Session(walk, images, delay=100).run(range(13), keyframes=(0, 4, 8))
    for index in (0, 4):  # they gave way; another keyframe was aligned in their place
        session.tracker.forget(walk.stamps_ns[index])
    session.reconstruct(2)
    session.reconstruct(8)
    found = session.see(13)
    assert found.state is TrackingState.TRACKING
    assert found.points > 60


def test_corners_of_keyframes_that_never_get_depth_are_let_go_and_the_others_stay(walk, images):
    unknown = Session(walk, images, delay=100).run(range(12), keyframes=range(12))
    assert unknown.tracker._tracks.keyframes == tuple(walk.stamps_ns[8:12])  # three, and the newest image's own
    session = Session(walk, images, delay=0).run(range(12), keyframes=(0, 8))
    session.delay = 100
    session.run(range(12, 24), keyframes=range(12, 24))
    assert session.tracker._tracks.keyframes == tuple(walk.stamps_ns[index] for index in (0, 8, 20, 21, 22, 23))
    assert session.tracked[-1].state is TrackingState.TRACKING


def test_a_keyframe_of_an_earlier_stamp_counts_once_it_is_known(walk, images):
    session = Session(walk, images, tracking=FOLLOWING_ALONE).run(range(16), keyframes=(8, 12))
    session.tracker.reset()
    session.delay = 3
    session.run(range(6), keyframes=(0,))
    assert session.tracker._tracks.keyframes == (walk.stamps_ns[0],)
    assert session.see(6).state is TrackingState.TRACKING


def test_an_image_may_become_a_keyframe_after_it_was_looked_at(walk, images):
    session = Session(walk, images).run(range(12))
    for index in range(12, FRAMES):
        session.see(index)
        if index % 4 == 0:
            session.tracker.take(images[index], walk.stamps_ns[index])
            session.reconstruct(index)
    assert [t.state for t in session.tracked[12:]] == [TrackingState.TRACKING] * (FRAMES - 12)
    assert session.errors()[0].max() < 0.03


def test_pixels_are_straightened_before_they_are_compared_with_points(walk, images):
    shift = 12
    bent = [np.roll(image, -shift, axis=1) for image in images]  # as if the lens moved everything to the left
    session = Session(walk, images, straighten=lambda pixels: pixels + np.array([shift, 0.0]), seen=bent).run(range(20))
    gaps, _ = session.errors()
    assert len(gaps) == 11 and gaps.max() < 0.03


def test_the_points_of_few_keyframes_are_kept_for_each_camera(walk, images):
    session = Session(walk, images)
    for index in range(0, FRAMES, 4):
        session.reconstruct(index)
    assert len(session.landmarks.of(CAMERA)) == KEPT
    assert session.landmarks.of("other") == []
    with_other = session.landmarks
    newest = with_other.of(CAMERA)[-1]
    assert newest.points_world(np.array([[-5.0, 3.0], [1e4, 3.0]])) == pytest.approx(np.nan, nan_ok=True)


def test_a_run_gives_every_image_a_pose_in_the_final_world(walk, images):
    reconstructor = Reconstructor(ReconstructorConfig(), predictor(walk))
    frames = FramePoses(reconstructor)
    for image, stamp_ns in zip(images, walk.stamps_ns):
        frames.add(image, stamp_ns, CAMERA, reconstructor.add(image, stamp_ns, CAMERA))
    poses = dict(frames.poses())
    stamps = [stamp_ns for stamp_ns, _ in reconstructor.trajectory()]
    after_second = [s for s in walk.stamps_ns if s >= stamps[1]]
    assert set(after_second) <= set(poses)
    for stamp_ns, pose in reconstructor.trajectory():
        np.testing.assert_array_equal(poses[stamp_ns], pose)
    true = np.array([walk.camera_to_world[walk.stamps_ns.index(s)][:3, 3] for s in after_second])
    found = np.array([poses[s][:3, 3] for s in after_second])
    gaps = np.linalg.norm(procrustes(found, true).apply(found) - true, axis=1)
    assert np.sqrt((gaps**2).mean()) < 0.01 * walk.path_length()


def test_a_run_without_tracking_gives_none(walk, images):
    config = make_config(ReconstructorConfig, {"tracking.enabled": False})
    reconstructor = Reconstructor(config, predictor(walk))
    frames = FramePoses(reconstructor)
    frames.add(images[0], walk.stamps_ns[0], CAMERA, reconstructor.add(images[0], walk.stamps_ns[0], CAMERA))
    assert frames.poses() == []


def test_a_loop_closure_resizes_what_was_tracked_against_a_keyframe(walk, images):
    reconstructor = Reconstructor(ReconstructorConfig(), predictor(walk))
    frames = FramePoses(reconstructor)
    last = None
    for image, stamp_ns in zip(images[:30], walk.stamps_ns):
        update = reconstructor.add(image, stamp_ns, CAMERA)
        frames.add(image, stamp_ns, CAMERA, update)
        last = update or last
    before = frames.poses()
    double = Similarity(2.0, np.eye(3), np.zeros(3))
    changes = {index: double.matrix() for index in reconstructor._placed.all()}
    reconstructor._placed.follow(dict.fromkeys(changes, double))
    nothing = replace(last.view, registered=False)
    frames._take(replace(last, view=nothing, moved={}, corrections=changes))
    for (stamp_ns, old), (stamp_again, new) in zip(before, frames.poses(), strict=True):
        assert stamp_ns == stamp_again
        np.testing.assert_allclose(new, double.apply_to_pose(old), atol=1e-9)
