"""A walk there and back through a rendered room, and predictors that know the truth but drift, or lie."""

from dataclasses import replace

import numpy as np
from scipy.spatial.transform import Rotation

from dust3r_ros.config import ReconstructorConfig
from dust3r_ros.data import PairPrediction, PairState
from dust3r_ros.geometry import Similarity, invert_pose
from dust3r_ros.options import make_config
from dust3r_ros.predictor import PairPredictor
from dust3r_ros.training.sequences import RenderedSequence, walk_through_room
from dust3r_ros.training.truth import TruePredictor


def there_and_back(frames=24, seed=3):
    """A walk whose second half comes back by nearly the same way, 4 cm beside it, looking the same way."""
    way = walk_through_room(frames, 160, 120, seed=seed, rate_hz=4.0, texture_px=128)
    back = way.camera_to_world[::-1].copy()
    back[:, :3, 3] += 0.04 * back[:, :3, 0]
    poses = np.concatenate([way.camera_to_world, back])
    stamps = tuple(way.stamps_ns[0] + 250_000_000 * k for k in range(len(poses)))
    return RenderedSequence(way.scene, poses, stamps, way.intrinsics)


class Wrapped(PairPredictor):
    """A predictor that answers as the truth does, but for what a subclass changes in ``change(i, j, prediction)``."""

    def __init__(self, truth: TruePredictor) -> None:
        self.truth = truth
        self.encoded = []

    @property
    def info(self):
        return self.truth.info

    @property
    def image_size(self):
        return self.truth.image_size

    def encode(self, image, camera, intrinsics=None):
        encoded = self.truth.encode(image, camera, intrinsics)
        self.encoded.append(encoded.frame)
        return encoded

    def describe(self, encoded):
        return self.truth.describe(encoded)

    def predict(self, pairs):
        return [self.change(a, b, p) for (a, b), p in zip(pairs, self.truth.predict(pairs))]

    def change(self, a, b, prediction):
        return prediction


class Drifting(Wrapped):
    """Each step is predicted turned and stretched a little, always the same way; distant frames are seen truly."""

    def __init__(self, truth, turn_deg=0.6, stretch=0.01, reach=7):
        super().__init__(truth)
        self.turn_deg, self.stretch, self.reach = turn_deg, stretch, reach

    def change(self, a, b, prediction):
        steps = b.frame - a.frame
        if not 0 < abs(steps) <= self.reach:
            return prediction
        turn = Rotation.from_euler("y", steps * self.turn_deg, degrees=True).as_matrix()
        bend = Similarity(float(np.exp(steps * self.stretch)), turn, np.zeros(3))
        true = Similarity.from_matrix(invert_pose(a.camera_to_world) @ b.camera_to_world)
        wrong = true.compose(bend)
        unit = np.median(np.linalg.norm(prediction.points_i, axis=-1)) / np.median(np.linalg.norm(a.points, axis=-1))
        points = (unit * wrong.apply(b.points)).astype(np.float32)
        return replace(prediction, points_j=points)


class Lying(Drifting):
    """Distant frames are said to be one: the other view's own shape, seen from where the first camera stands.

    The answer has the true shapes of both and the same relation in both directions, so only that the two surfaces do
    not coincide, and that other loops contradict it, gives it away. ``liars`` are the frames that it happens to.
    """

    def __init__(self, truth, liars, **drift):
        super().__init__(truth, **drift)
        self.liars = set(liars)
        self.told = 0

    def describe(self, encoded):
        descriptor = super().describe(encoded)
        return self.truth.describe(self.twin) if encoded.frame in self.liars and hasattr(self, "twin") else descriptor

    def encode(self, image, camera, intrinsics=None):
        encoded = super().encode(image, camera, intrinsics)
        if encoded.frame in self.liars and not hasattr(self, "twin"):
            self.twin = encoded
        return encoded

    def change(self, a, b, prediction):
        if abs(a.frame - b.frame) <= self.reach or not {a.frame, b.frame} <= self.liars:
            return super().change(a, b, prediction)
        self.told += 1
        return replace(prediction, points_j=b.points.astype(np.float32), points_i=a.points.astype(np.float32))


def spoilt(prediction, state=PairState.FAILED):
    nothing = [0 * c for c in (prediction.conf_i, prediction.conf_j)]
    conf = nothing if state is PairState.FAILED else [prediction.conf_i, prediction.conf_j]
    return PairPrediction(prediction.points_i, conf[0], prediction.points_j, conf[1], state)


def every_frame(**options):
    return make_config(ReconstructorConfig, {"keyframes.every_image": True, **options})
