"""When a run does what."""

import math

import pytest

from dust3r_ros.network import NetworkConfig
from dust3r_ros.training.architectures import ARCHITECTURES
from dust3r_ros.training.stages import Task, aspects, fine_tuning, from_scratch, learning_rate, position

TINY = ARCHITECTURES["tiny"]


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_every_architecture_has_sizes_of_whole_patches(name):
    config = ARCHITECTURES[name]
    for stages in (from_scratch(config), fine_tuning(config)):
        assert sum(stage.share for stage in stages) == pytest.approx(1)
        for stage in stages:
            for height, width in stage.sizes:
                assert height % config.patch == 0
                assert width % config.patch == 0
                assert max(height, width) <= max(config.img_size)


def test_tiny_grows_to_its_full_size():
    stages = from_scratch(TINY)
    assert [stage.sizes[0] for stage in stages] == [(84, 112), (84, 112), (126, 168), (168, 224)]
    assert stages[-1].sizes == ((168, 224), (126, 224), (168, 224), (182, 182), (224, 168))
    assert [stage.task for stage in stages] == [Task.COMPLETE, Task.REGRESS, Task.REGRESS, Task.REGRESS]


def test_a_network_of_squares_sees_squares_only():
    assert aspects(NetworkConfig(img_size=(224, 224), square=True, head="linear")) == ((224, 224),)


def test_the_position_follows_the_shares():
    stages = from_scratch(TINY)
    names = [position(stages, pairs, 1000).stage.name for pairs in (0, 49, 50, 769, 770, 919, 920, 999)]
    assert names == ["completion", "completion", "near", "near", "middle", "middle", "full", "full"]
    half = position(stages, 410, 1000)
    assert half.done == pytest.approx(0.5)
    end = position(stages, 2000, 1000)
    assert (end.stage, end.done) == (stages[-1], 1.0)


def test_baselines_grow_within_the_stage():
    stages = from_scratch(TINY)
    farthest = [position(stages, pairs, 1000).baseline[1] for pairs in range(50, 770, 36)]
    assert farthest == sorted(farthest)
    assert farthest[0] == pytest.approx(0.3)
    assert 1.4 < farthest[-1] < 2.0
    assert position(stages, 770, 1000).baseline == (0.03, pytest.approx(2.0))


def test_the_learning_rate_rises_and_falls():
    assert learning_rate(1e-3, 0, 1000, 0.1) == 0
    assert learning_rate(1e-3, 50, 1000, 0.1) == pytest.approx(5e-4)
    assert learning_rate(1e-3, 100, 1000, 0.1) == pytest.approx(1e-3)
    assert learning_rate(1e-3, 550, 1000, 0.1) == pytest.approx(1e-3 * (0.02 + 0.98 * 0.5))
    assert learning_rate(1e-3, 1000, 1000, 0.1) == pytest.approx(2e-5)
    assert learning_rate(1e-3, 5000, 1000, 0.1) == pytest.approx(2e-5)
    assert math.isfinite(learning_rate(1e-3, 1, 1, 0.1))
