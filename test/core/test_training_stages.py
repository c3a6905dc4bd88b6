"""When a run does what."""

import math

import pytest

from dust3r_ros.errors import TrainingError
from dust3r_ros.network import NetworkConfig
from dust3r_ros.training.architectures import ARCHITECTURES
from dust3r_ros.training.stages import Task, all_stages, aspects, chosen, learning_rate, position

TINY = ARCHITECTURES["tiny"]


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_every_architecture_has_sizes_of_whole_patches(name):
    config = ARCHITECTURES[name]
    stages = all_stages(config)
    assert sum(stage.share for stage in stages) == pytest.approx(1)
    for stage in stages:
        for height, width in stage.sizes:
            assert height % config.patch == 0
            assert width % config.patch == 0
            assert max(height, width) <= max(config.img_size)


def test_chosen_stages_share_all_pairs():
    middle, full = chosen(all_stages(TINY), ["full", "middle"])
    assert (middle.name, full.name) == ("middle", "full")
    assert (middle.share, full.share) == (pytest.approx(0.7), pytest.approx(0.3))


@pytest.mark.parametrize("names", [["middle", "last"], []])
def test_stages_that_are_none_are_refused(names):
    with pytest.raises(TrainingError, match=r"completion, near, middle, full, got (last|none)"):
        chosen(all_stages(TINY), names)


def test_tiny_grows_to_its_full_size():
    stages = all_stages(TINY)
    assert [stage.sizes[0] for stage in stages] == [(84, 112), (84, 112), (126, 168), (168, 224)]
    assert stages[-1].sizes == ((168, 224), (126, 224), (168, 224), (182, 182), (224, 168))
    assert [stage.task for stage in stages] == [Task.COMPLETE, Task.REGRESS, Task.REGRESS, Task.REGRESS]


def test_a_network_of_squares_sees_squares_only():
    assert aspects(NetworkConfig(img_size=(224, 224), square=True, head="linear")) == ((224, 224),)


def test_the_position_follows_the_shares():
    stages = all_stages(TINY)
    names = [position(stages, pairs, 1000).stage.name for pairs in (0, 49, 50, 499, 500, 849, 850, 999)]
    assert names == ["completion", "completion", "near", "near", "middle", "middle", "full", "full"]
    half = position(stages, 275, 1000)
    assert half.done == pytest.approx(0.5)
    end = position(stages, 2000, 1000)
    assert (end.stage, end.done) == (stages[-1], 1.0)


def test_baselines_grow_within_the_stage():
    stages = all_stages(TINY)
    farthest = [position(stages, pairs, 1000).baseline[1] for pairs in range(50, 500, 22)]
    assert farthest == sorted(farthest)
    assert farthest[0] == pytest.approx(0.3)
    assert 1.4 < farthest[-1] < 2.0
    assert position(stages, 500, 1000).baseline == (0.03, pytest.approx(2.0))


def test_the_learning_rate_rises_and_falls():
    assert learning_rate(1e-3, 0, 1000, 0.1) == 0
    assert learning_rate(1e-3, 50, 1000, 0.1) == pytest.approx(5e-4)
    assert learning_rate(1e-3, 100, 1000, 0.1) == pytest.approx(1e-3)
    assert learning_rate(1e-3, 550, 1000, 0.1) == pytest.approx(1e-3 * (0.02 + 0.98 * 0.5))
    assert learning_rate(1e-3, 1000, 1000, 0.1) == pytest.approx(2e-5)
    assert learning_rate(1e-3, 5000, 1000, 0.1) == pytest.approx(2e-5)
    assert math.isfinite(learning_rate(1e-3, 1, 1, 0.1))
