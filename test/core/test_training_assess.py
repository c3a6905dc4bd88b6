"""The measured errors, on networks that know the answer, or a wrong one."""

import math
from dataclasses import replace

import pytest
import torch
from scipy.spatial.transform import Rotation
from training_pairs import pointmaps

from dust3r_ros.network import Pointmaps
from dust3r_ros.training.assess import assess, held_out_pairs
from dust3r_ros.training.pairs import PairBatch

PAIRS = held_out_pairs((42, 56), 20)


class Knowing(torch.nn.Module):
    """Decodes the truth of the pairs in their order; ``bend`` makes it wrong, given (points_i, points_j)."""

    device = torch.device("cpu")

    def __init__(self, pairs: PairBatch, bend=lambda i, j: (i, j), scale: float = 1.0) -> None:
        super().__init__()
        self.pairs, self.bend, self.scale, self.calls = pairs, bend, scale, 0
        self.eval()

    def encode(self, images: torch.Tensor) -> torch.Tensor:
        return images[:, :1, 0, :1]

    def decode(self, one: torch.Tensor, two: torch.Tensor, size: tuple[int, int]) -> Pointmaps:
        start = 16 * (self.calls // 2)
        batch = self.pairs[start : start + len(one)]
        batch = batch.swapped() if self.calls % 2 else batch
        geometry = pointmaps(batch)
        points = [self.scale * p for p in self.bend(*geometry.points)]
        self.calls += 1
        return Pointmaps(points[0], geometry.valid[0].float() + 1e-6, points[1], geometry.valid[1].float() + 1e-6)


def test_the_truth_has_no_error_at_any_scale():
    for scale in (1.0, 7.0):
        found = assess(Knowing(PAIRS, scale=scale), PAIRS)
        assert found.pairs == 20
        assert found.model.rotation_deg < 0.05
        assert found.model.direction_deg < 0.5
        assert found.model.absrel < 1e-3


def test_a_known_rotation_of_the_second_view_is_measured():
    turn = torch.eye(4)
    turn[:3, :3] = torch.from_numpy(Rotation.from_euler("y", 5, degrees=True).as_matrix())
    # The second camera is turned about the first: only the rotation and the place are wrong.
    found = assess(Knowing(replace(PAIRS, second_to_first=turn @ PAIRS.second_to_first)), PAIRS)
    assert found.model.rotation_deg == pytest.approx(5, abs=0.1)
    assert found.model.absrel < 1e-3


def test_a_known_depth_error_is_measured():
    def bend(i: torch.Tensor, j: torch.Tensor):
        factor = torch.ones(i.shape[1], 1, 1)
        factor[::4] = 1.5  # a quarter of the rows; the median stays
        return i * factor, j

    assert assess(Knowing(PAIRS, bend), PAIRS).model.absrel == pytest.approx(0.5 * 0.25, abs=0.03)


def test_depths_behind_the_camera_are_wrong():
    def bend(i: torch.Tensor, j: torch.Tensor):
        sign = torch.ones(i.shape[1], 1, 1)
        sign[::2] = -1
        return i * sign, j

    assert assess(Knowing(PAIRS, bend), PAIRS).model.absrel == pytest.approx(0.5, abs=0.03)


def test_predictions_that_are_not_finite_count_as_the_same_pose():
    found = assess(Knowing(PAIRS, lambda i, j: (i * math.nan, j)), PAIRS)
    assert found.model.rotation_deg == pytest.approx(found.trivial.rotation_deg)
    assert found.model.direction_deg == 90
    assert found.model.absrel == 1.0


def test_the_guesses_are_what_they_are_called():
    found = assess(Knowing(PAIRS), PAIRS)
    angles = [
        math.degrees(Rotation.from_matrix(pose[:3, :3].double().numpy()).magnitude()) for pose in PAIRS.second_to_first
    ]
    middle = sorted(angles)[len(angles) // 2 - 1 : len(angles) // 2 + 1]
    assert found.trivial.rotation_deg == pytest.approx(sum(middle) / 2, abs=0.01)
    assert found.trivial.direction_deg == pytest.approx(90, abs=1e-3)
    assert 0.05 < found.trivial.absrel < 1.5
    better = found.times_better
    assert better[0] == pytest.approx(found.trivial.rotation_deg / found.model.rotation_deg)
    assert min(better) > 10
