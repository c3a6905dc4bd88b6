"""Keyframes that are paired before those before them have their place: the same map as one after the other."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from dust3r_ros.config import ReconstructorConfig
from dust3r_ros.data import PairPrediction, PairState
from dust3r_ros.options import make_config
from dust3r_ros.pipeline import Reconstructor
from dust3r_ros.predictor import ImageSize, PairPredictor, SharedPredictor
from dust3r_ros.training.sequences import walk_through_room
from dust3r_ros.training.truth import TruePredictor


class Spoilt(TruePredictor):
    """The truth, but for frames that share nothing with others; it notes what it is asked for."""

    def __init__(self, walk, broken: set[int] = frozenset()) -> None:
        super().__init__(walk, image_size=ImageSize(112))
        self.broken, self.asked = broken, []

    def predict(self, pairs):
        self.asked.append([(a.frame, b.frame) for a, b in pairs])
        predicted = zip(pairs, super().predict(pairs), strict=True)
        return [self._spoil(p) if {a.frame, b.frame} & self.broken else p for (a, b), p in predicted]

    @staticmethod
    def _spoil(p: PairPrediction) -> PairPrediction:
        return PairPrediction(p.points_i, 0 * p.conf_i, p.points_j, 0 * p.conf_j, PairState.FAILED)


@pytest.fixture(scope="module")
def walk():
    return walk_through_room(frames=11, width=160, height=120, seed=3, rate_hz=4.0, texture_px=128)


def begun(walk, broken: set[int]) -> Reconstructor:
    config = make_config(ReconstructorConfig, {"keyframes.every_image": True, "window": 3, "loops.enabled": False})
    return Reconstructor(config, Spoilt(walk, broken))


def in_turn(walk, broken: set[int]) -> Reconstructor:
    reconstructor = begun(walk, broken)
    for frame in walk:
        reconstructor.reconstruct(frame.image, frame.stamp_ns)
    return reconstructor


def ahead(walk, broken: set[int], by: int) -> Reconstructor:
    """Each keyframe is placed when ``by`` more are paired."""
    reconstructor, waiting = begun(walk, broken), []
    for frame in walk:
        waiting.append(reconstructor.pair(frame.image, frame.stamp_ns))
        if len(waiting) > by:
            reconstructor.fuse(reconstructor.place(waiting.pop(0)))
    for paired in waiting:
        reconstructor.fuse(reconstructor.place(paired))
    return reconstructor


@pytest.mark.parametrize("broken", [set(), {6}, {0}, {5, 6, 7}], ids=["all good", "one", "the first", "three in a row"])
def test_the_map_is_the_same_as_without_overlap(walk, broken):
    one, other = in_turn(walk, broken), ahead(walk, broken, by=2)
    assert one.keyframes >= 11 - len(broken)
    for (stamp, pose), (other_stamp, other_pose) in zip(one.trajectory(), other.trajectory(), strict=True):
        assert stamp == other_stamp
        np.testing.assert_array_equal(pose, other_pose)
    np.testing.assert_array_equal(one.map.cloud().points, other.map.cloud().points)


def test_only_what_is_missing_is_predicted_when_the_window_turns_out_to_be_another(walk):
    reconstructor = ahead(walk, {6}, by=1)
    asked = reconstructor.revisits.predictor._predictor.asked
    pairs = {frame: [pair for call in asked for pair in call if max(pair) == frame] for frame in range(11)}
    assert sorted(pairs[7]) == sorted((a, b) for old in (3, 4, 5, 6) for a, b in ((old, 7), (7, old)))
    assert [len(pairs[frame]) for frame in (9, 10)] == [6, 6]
    assert all(call for call in asked[1:])


def test_a_keyframe_whose_placing_fails_is_no_ones_neighbour(walk, monkeypatch):
    reconstructor, frames = begun(walk, set()), list(walk)
    for frame in frames[:4]:
        reconstructor.reconstruct(frame.image, frame.stamp_ns)
    lost = reconstructor.pair(frames[4].image, frames[4].stamp_ns)
    with monkeypatch.context() as broken:
        broken.setattr(reconstructor._aligner, "add", lambda *_, **__: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            reconstructor.place(lost)
    after = reconstructor.pair(frames[5].image, frames[5].stamp_ns)
    assert {edge.i for edge in after.edges} == {1, 2, 3, after.new.index}


class Busy(TruePredictor):
    """Fails when it is asked by two threads at once."""

    at_work = 0

    def _alone(self, answer):
        self.at_work += 1
        time.sleep(0.002)
        assert self.at_work == 1
        self.at_work -= 1
        return answer

    def encode(self, image, camera, intrinsics=None):
        return self._alone("tokens")

    def describe(self, encoded):
        return self._alone(np.ones(3))

    def predict(self, pairs):
        return self._alone([])


def test_several_threads_use_a_predictor_one_at_a_time(walk):
    shared = SharedPredictor(Busy(walk, image_size=ImageSize(112)))
    assert (shared.image_size, shared.info.name) == (ImageSize(112), "truth")
    calls = [lambda: shared.encode(None, "camera"), lambda: shared.predict([]), lambda: shared.probe([]),
             lambda: shared.describe("tokens")] * 5  # fmt: skip
    with ThreadPoolExecutor(4) as pool:
        answers = [future.result() for future in [pool.submit(call) for call in calls]]
    assert answers[:3] == ["tokens", [], []]


def test_a_shared_predictor_passes_everything_on():
    own = {name for name in vars(PairPredictor) if not name.startswith("_")}
    assert own == {name for name in vars(SharedPredictor) if not name.startswith("_")}
