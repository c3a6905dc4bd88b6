"""Training objectives against values worked by hand, and their invariances."""

import math

import pytest
import torch

from dust3r_ros.training.losses import completion_loss, matching_loss, motion_loss, normalisation_scale, pointmap_loss

Pair = tuple[torch.Tensor, torch.Tensor]


def pair(seed: int, size: tuple[int, int] = (4, 5)) -> Pair:
    generator = torch.Generator().manual_seed(seed)
    return tuple(torch.randn(2, 3, *size, generator=generator) for _ in range(2))


EVERY = (torch.ones(2, 4, 5, dtype=torch.bool),) * 2
ONES = (torch.ones(2, 4, 5),) * 2


def test_scale_is_the_mean_distance_of_valid_points():
    i = torch.tensor([[3.0, 4.0, 0.0], [0.0, 0.0, 100.0]]).T.view(1, 3, 1, 2)
    j = torch.tensor([0.0, 0.0, 1.0]).view(1, 3, 1, 1)
    valid_i = torch.tensor([[[True, False]]])
    assert normalisation_scale(i, j, valid_i, torch.ones(1, 1, 1, dtype=torch.bool)).item() == pytest.approx(3.0)


def test_loss_by_hand():
    # One pixel a view: prediction at distances 1 and 3 (scale 2), truth at 2 and 2 (scale 2): errors 0.5 and 0.5.
    z = torch.tensor([0.0, 0.0, 1.0])
    points = (z.view(1, 3, 1, 1) * 1.0, z.view(1, 3, 1, 1) * 3.0)
    target = (z.view(1, 3, 1, 1) * 2.0, z.view(1, 3, 1, 1) * 2.0)
    valid = (torch.ones(1, 1, 1, dtype=torch.bool),) * 2
    confidence = (torch.full((1, 1, 1), 2.0), torch.full((1, 1, 1), 1.0))
    loss = pointmap_loss(points, confidence, target, valid, alpha=0.2)
    assert loss.total.item() == pytest.approx((2 * 0.5 - 0.2 * math.log(2) + 0.5) / 2)
    assert loss.regression.item() == pytest.approx(0.5)


@pytest.mark.parametrize("scale", [0.01, 7.0, 1e3])
def test_loss_does_not_change_with_scale(scale):
    points, target = pair(0), pair(1)
    loss = pointmap_loss(points, ONES, target, EVERY).total
    scaled = pointmap_loss(tuple(scale * p for p in points), ONES, target, EVERY).total
    torch.testing.assert_close(loss, scaled)


def test_the_best_confidence_is_alpha_over_error():
    points, target = pair(2), pair(3)
    confidence = torch.ones(2, 4, 5, requires_grad=True)
    scale = normalisation_scale(*points, *EVERY)[:, None, None, None]
    target_scale = normalisation_scale(*target, *EVERY)[:, None, None, None]
    best = (0.2 / (points[0] / scale - target[0] / target_scale).norm(dim=1)).requires_grad_()
    pointmap_loss(points, (best, confidence), target, EVERY, alpha=0.2).total.backward()
    torch.testing.assert_close(best.grad, torch.zeros_like(best), atol=1e-6, rtol=0)


def test_invalid_pixels_do_not_count():
    points, target = pair(4), pair(5)
    valid = (EVERY[0].clone(), EVERY[1])
    valid[0][:, 0] = False
    spoilt = (target[0].clone(), target[1])
    spoilt[0][:, :, 0] = 1e6
    torch.testing.assert_close(
        pointmap_loss(points, ONES, spoilt, valid).total, pointmap_loss(points, ONES, target, valid).total
    )


def test_a_pair_with_nothing_valid_gives_zero():
    none = (torch.zeros(2, 4, 5, dtype=torch.bool),) * 2
    assert pointmap_loss(pair(6), ONES, pair(7), none).total.item() == 0.0


def test_completion_by_hand():
    target = torch.tensor([[[1.0, 3.0], [5.0, 5.0]]])  # normalised: (-1, 1) / sqrt(2) and (0, 0)
    predicted = torch.zeros(1, 2, 2)
    assert completion_loss(predicted, target, torch.tensor([[True, False]])).item() == pytest.approx(0.5, rel=1e-5)
    assert completion_loss(predicted, target, torch.tensor([[False, True]])).item() == pytest.approx(0.0, abs=1e-9)
    with pytest.raises(ValueError, match="at least one masked patch"):
        completion_loss(predicted, target, torch.zeros(1, 2, dtype=torch.bool))


def test_matching_prefers_the_true_token():
    descriptors = torch.eye(4)[None]
    right = matching_loss(descriptors, descriptors, torch.arange(4)[None])
    wrong = matching_loss(descriptors, descriptors, torch.arange(4).roll(1)[None])
    assert right.item() == pytest.approx(math.log1p(3 * math.exp(-1 / 0.07)), abs=1e-6)
    assert wrong.item() > 10
    assert matching_loss(descriptors, descriptors, torch.full((1, 4), -1)).item() == 0.0


def both_ways(relief: float = 0.0, off: float = 0.0) -> tuple[Pair, Pair, torch.Tensor]:
    """Prediction, truth and poses of a pair in both orders: a wall whose columns are too near and too far in turns by
    the share ``relief``, and a second camera that moved too far by the share ``off``.
    """
    pose = torch.eye(4).repeat(2, 1, 1)
    pose[:, 0, 3] = torch.tensor([1.0, -1.0])
    own = torch.zeros(2, 3, 4, 6)
    own[:, 2] = 2.0
    wrong = own * (1 + relief * torch.tensor([1.0, -1.0] * 3))
    shift = pose[:, :3, 3, None, None]
    return (wrong, wrong + (1 + off) * shift), (own, own + shift), pose


def test_motion_loss_sees_the_motion_and_not_the_depth():
    everything = (torch.ones(2, 4, 6, dtype=torch.bool),) * 2
    predicted, target, pose = both_ways()
    assert motion_loss(predicted, target, everything, pose).item() == pytest.approx(0.0, abs=1e-6)
    bent, _, _ = both_ways(relief=0.1)
    error = pointmap_loss(bent, (torch.ones(2, 4, 6),) * 2, target, everything).regression.item()
    assert motion_loss(bent, target, everything, pose).item() < 0.02 * error
    moved, _, _ = both_ways(off=1e-3)
    scale = normalisation_scale(*target, *everything)[0].item()
    assert motion_loss(moved, target, everything, pose).item() == pytest.approx(1e-3 / scale, rel=0.15)


def test_motion_loss_leaves_the_own_points_alone():
    predicted, target, pose = both_ways(off=0.1)
    points = tuple(p.clone().requires_grad_() for p in predicted)
    valid = (torch.zeros(2, 4, 6, dtype=torch.bool), torch.ones(2, 4, 6, dtype=torch.bool))
    motion_loss(points, target, valid, pose).backward()
    assert points[0].grad.abs().max() == 0
    assert points[1].grad.abs().min(dim=0).values[0].max() > 0
