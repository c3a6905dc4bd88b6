"""One step of training, on pairs whose answer is known."""

from dataclasses import replace

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from training_pairs import MICRO, walls

from dust3r_ros.network import Dust3rNetwork, NetworkConfig
from dust3r_ros.training.architectures import ARCHITECTURES, initialised
from dust3r_ros.training.correspondence import AttentionProbe
from dust3r_ros.training.stages import Task
from dust3r_ros.training.step import Learner, StepSettings


def learner(settings: StepSettings | None = None, seed: int = 0) -> Learner:
    torch.manual_seed(seed)
    model = initialised(Dust3rNetwork(MICRO), torch.Generator().manual_seed(seed))
    return Learner(model, settings or StepSettings(ramp_steps=1), torch.Generator().manual_seed(seed))


def weights(one: Learner) -> list[torch.Tensor]:
    return [p.detach().clone() for p in one.model.parameters()]


@pytest.mark.parametrize(("task", "bfloat16"), [(Task.COMPLETE, True), (Task.REGRESS, True), (Task.REGRESS, False)])
def test_steps_on_the_same_walls_lower_the_error(task, bfloat16):
    one = learner(StepSettings(ramp_steps=1, bfloat16=bfloat16, mask_ratio=0.5))
    errors = []
    for number in range(30):
        batch = walls(4, move=(4.0 * 14 / 84, 0.0, 0.0), seed=0)
        errors.append(one.step(batch, task, 6e-3, number * 4).error)
    assert sum(errors[-5:]) < 0.88 * sum(errors[:5]), errors


def test_the_correspondence_objective_teaches_the_cross_attention():
    one = learner(StepSettings(ramp_steps=1, matching=1.0))
    found = [one.step(walls(8, move=(4.0 * 14 / 84, 0, 0), seed=n), Task.REGRESS, 3e-3, 8 * n) for n in range(40)]
    assert sum(r.matching for r in found[-5:]) < 0.7 * sum(r.matching for r in found[:5])


@pytest.mark.parametrize("name", ["matching", "motion"])
def test_without_its_weight_it_is_measured_and_not_learned(name):
    without = StepSettings(ramp_steps=1, matching=0.0, motion=0.0)
    one, two = learner(without), learner(replace(without, **{name: 1.0}))
    batch = walls(2, move=(4.0 * 14 / 84, 0, 0))
    free, bound = one.step(batch, Task.REGRESS, 1e-3, 0), two.step(batch, Task.REGRESS, 1e-3, 0)
    assert getattr(free, name) == pytest.approx(getattr(bound, name))
    assert bound.loss == pytest.approx(free.loss + getattr(free, name), rel=1e-5)


def test_a_step_changes_weights_and_reports_its_times():
    one = learner()
    before = weights(one)
    result = one.step(walls(2), Task.REGRESS, 1e-3, 0)
    assert any(not torch.equal(a, b) for a, b in zip(before, weights(one)))
    assert len(result.seconds) == 4
    assert min(result.seconds) > 0


def test_a_gradient_that_is_not_finite_changes_nothing():
    one = learner()
    one.step(walls(2), Task.REGRESS, 1e-3, 0)
    before, average = weights(one), {name: value.clone() for name, value in one.average.items()}
    spoilt = walls(2)
    spoilt.second_to_first[:, 0, 3] = float("nan")
    result = one.step(spoilt, Task.REGRESS, 1e-3, 2)
    assert not result.gradient < float("inf")
    assert all(torch.equal(a, b) for a, b in zip(before, weights(one)))
    assert all(torch.equal(value, one.average[name]) for name, value in average.items())
    one.step(walls(2), Task.REGRESS, 1e-3, 4)
    assert all(bool(torch.isfinite(p).all()) for p in weights(one))


def test_the_average_moves_half_way_after_its_memory():
    one = learner(StepSettings(ema_pairs=4))
    start = weights(one)
    one.step(walls(4), Task.REGRESS, 1e-3, 1000)
    middle = [(a + b) / 2 for a, b in zip(start, weights(one))]
    for (name, _), expected in zip(one.model.named_parameters(), middle):
        torch.testing.assert_close(one.average[name], expected)
    averaged = one.averaged()
    assert not averaged.training
    torch.testing.assert_close(next(averaged.parameters()).data, middle[0])


def test_plain_attention_gives_what_the_fused_one_gives():
    model = learner().model
    images = torch.rand(2, 3, 56, 84, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        fused = model.encode(images)
        with sdpa_kernel(SDPBackend.MATH):
            torch.testing.assert_close(model.encode(images), fused, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("config", [MICRO, NetworkConfig(
    img_size=(64, 64), enc_dim=32, enc_depth=1, enc_heads=2, dec_dim=32, dec_depth=4, dec_heads=2, dpt_dim=16)],
    ids=["linear", "dpt"])  # fmt: skip
def test_a_new_network_sees_a_plane_one_unit_away(config):
    model = initialised(Dust3rNetwork(config), torch.Generator().manual_seed(0)).eval()
    size = config.img_size
    with torch.no_grad():
        tokens = model.encode(torch.rand(1, 3, *size, generator=torch.Generator().manual_seed(1)))
        maps = model.decode(tokens, tokens, size)
    assert maps.points_i[..., 2].mean().item() == pytest.approx(1.0, abs=0.3)
    assert maps.points_j[..., 2].min() > 0
    block = model.dec_blocks[0]
    assert torch.equal(block.cross_attn.projq.weight, block.cross_attn.projk.weight)
    assert torch.equal(block.mlp.fc1.weight, model.dec_blocks2[0].mlp.fc1.weight)


def test_tiny_networks_are_small_enough():
    for name in ("tiny", "small"):
        with torch.device("meta"):
            model = Dust3rNetwork(ARCHITECTURES[name])
        assert sum(p.numel() for p in model.parameters()) <= 25e6


def test_a_closed_probe_leaves_no_hooks():
    model = initialised(Dust3rNetwork(MICRO), torch.Generator().manual_seed(0))
    probe = AttentionProbe(model)
    assert any(module._forward_hooks for module in model.modules())
    probe.close()
    assert all(not module._forward_hooks for module in model.modules())


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of PyTorch's own
def test_a_compiled_step_is_the_same_step():
    batch = walls(4, move=(4.0 * 14 / 84, 0.0, 0.0))
    plain, compiled = (learner(StepSettings(ramp_steps=1, compiled=c)) for c in (False, True))
    for number in range(3):
        one, two = (each.step(batch, Task.REGRESS, 1e-3, 4 * number) for each in (plain, compiled))
        assert two.loss == pytest.approx(one.loss, rel=1e-4)
        assert two.gradient == pytest.approx(one.gradient, rel=1e-2)


def test_the_rate_is_reached_step_by_step_after_the_optimiser_began():
    one = learner(StepSettings(ramp_steps=4))
    rates = []
    for number in range(6):
        if number == 5:
            one.restart_optimiser()
        one.step(walls(2), Task.REGRESS, 1e-3, 2 * number)
        rates.append(one.optimiser.rate)
    assert rates == pytest.approx([0.25e-3, 0.5e-3, 0.75e-3, 1e-3, 1e-3, 0.25e-3])
