"""Time that goes back is noticed, once."""

import pytest

from dust3r_ros.ros.timeline import Timeline

S = 1_000_000_000


def test_a_recording_that_starts_again_is_one_jump():
    timeline = Timeline()
    jumps = [timeline.jump_back_s(second * S) for second in (100, 101, 130, 100, 101)]
    assert jumps == pytest.approx([0.0, 0.0, 0.0, 30.0, 0.0])


def test_images_a_little_out_of_order_are_none():
    timeline = Timeline()
    assert [timeline.jump_back_s(stamp) for stamp in (10 * S, 10 * S - S // 2, 10 * S)] == [0.0, 0.0, 0.0]


def test_a_gap_forward_is_none():
    timeline = Timeline()
    assert [timeline.jump_back_s(second * S) for second in (1, 5000)] == [0.0, 0.0]
