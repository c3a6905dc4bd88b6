"""Counting, and when latched outputs are published anew."""

from types import SimpleNamespace

import pytest

from dust3r_ros.keyframes import KeyframeReason
from dust3r_ros.ros.schedule import Schedule
from dust3r_ros.ros.statistics import Drop, Statistics, drop_of


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def update(*, registered: bool = True) -> SimpleNamespace:
    return SimpleNamespace(view=SimpleNamespace(registered=registered))


def test_counts_rate_and_latency():
    clock = Clock()
    statistics = Statistics(clock)
    for second in range(5):
        statistics.received(second)
        clock.now += 1.0
        statistics.finished(update(), latency_s=0.25)
    statistics.dropped(Drop.BLURRED, 2)
    snapshot = statistics.snapshot()
    assert (snapshot.received, snapshot.keyframes, snapshot.stamp_ns) == (5, 5, 4)
    assert snapshot.keyframe_rate == 0.5
    assert snapshot.latency_ms == pytest.approx(250)
    assert snapshot.dropped == {Drop.BLURRED: 2}
    clock.now += 8.5
    assert statistics.snapshot().keyframe_rate == pytest.approx(0.2)


def test_a_keyframe_that_could_not_be_placed_is_a_drop_and_means_lost_until_the_next():
    statistics = Statistics()
    good = update()
    statistics.finished(good, 0.0)
    statistics.finished(update(registered=False), 0.0)
    snapshot = statistics.snapshot()
    assert snapshot.lost
    assert (snapshot.keyframes, snapshot.dropped[Drop.FAILED]) == (1, 1)
    assert snapshot.newest is good
    statistics.finished(update(), 0.0)
    assert not statistics.snapshot().lost


def test_reset_forgets_everything():
    statistics = Statistics()
    statistics.received(7)
    statistics.finished(update(), 0.0)
    statistics.reset()
    snapshot = statistics.snapshot()
    assert (snapshot.received, snapshot.keyframes, snapshot.stamp_ns, snapshot.newest) == (0, 0, 0, None)


def test_a_snapshot_does_not_change_afterwards():
    statistics = Statistics()
    before = statistics.snapshot()
    statistics.dropped(Drop.INVALID)
    assert before.dropped == {}


@pytest.mark.parametrize("reason", list(KeyframeReason))
def test_every_reason_of_the_selection_has_a_count(reason):
    assert drop_of(reason) is (Drop.BLURRED if reason is KeyframeReason.BLURRED else Drop.NOT_NEEDED)


def test_an_output_is_due_when_it_changed_and_is_wanted_and_not_too_often():
    clock = Clock()
    schedule = Schedule(clock)
    assert not schedule.due(1.0, wanted=True)
    schedule.changed()
    assert not schedule.due(1.0, wanted=False)
    assert schedule.due(1.0, wanted=True)
    schedule.published()
    assert not schedule.due(1.0, wanted=True)
    schedule.changed()
    clock.now += 0.9
    assert not schedule.due(1.0, wanted=True)
    clock.now += 0.2
    assert schedule.due(1.0, wanted=True)
