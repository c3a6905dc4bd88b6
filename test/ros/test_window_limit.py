"""Fewer keyframes in the window where the device's memory is short, whichever of two threads finds it so."""

import pytest

from dust3r_ros.errors import DeviceMemoryError
from dust3r_ros.ros.memory import WindowLimit


class Device:
    """Has memory for so many keyframes of a window; the limit's steps note what they were tried with."""

    def __init__(self, suffices: int, window: int) -> None:
        self.suffices, self.tried, self.told = suffices, [], []
        self.limit = WindowLimit(window, self.told.append)

    def step(self) -> str:
        return self.with_window(self.limit.keyframes)

    def with_window(self, keyframes: int) -> str:
        self.tried.append(keyframes)
        if keyframes > self.suffices:
            raise DeviceMemoryError(f"no memory for {keyframes}")
        return "done"


def test_the_window_is_halved_until_a_step_fits_and_stays_so():
    device = Device(suffices=1, window=6)
    assert [device.limit.within(device.step) for _ in range(2)] == ["done", "done"]
    assert device.tried == [6, 3, 1, 1]
    assert device.told == [3, 1]


def test_a_step_that_does_not_fit_with_a_single_keyframe_fails():
    device = Device(suffices=0, window=2)
    with pytest.raises(DeviceMemoryError, match="no memory for 1"):
        device.limit.within(device.step)
    assert (device.tried, device.told) == ([2, 1], [1])


def test_a_step_that_began_before_another_thread_shortened_the_window_is_tried_with_the_shorter_one():
    device = Device(suffices=1, window=3)

    def overtaken() -> str:
        window = device.limit.keyframes
        if window == 3:
            assert device.limit.within(device.step) == "done"  # meanwhile, in the other thread
        return device.with_window(window)

    assert device.limit.within(overtaken) == "done"
    assert device.tried == [3, 1, 3, 1]
    assert device.told == [1]
