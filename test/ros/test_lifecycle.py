"""The node's life cycle, driven from outside over DDS."""

from __future__ import annotations

import subprocess
import sys

import pytest
from builtin_interfaces.msg import Time
from camera import stamp_of
from rcl_interfaces.msg import Parameter, ParameterType, ParameterValue
from rcl_interfaces.srv import SetParameters
from rig import NODE, PATIENCE_S, SMALL, running
from rosgraph_msgs.msg import Clock
from std_srvs.srv import Trigger

from dust3r_ros.srv import SaveMap


def request(name: str, given: ParameterValue) -> SetParameters.Request:
    return SetParameters.Request(parameters=[Parameter(name=name, value=given)])


def text(name: str, value: str) -> SetParameters.Request:
    return request(name, ParameterValue(type=ParameterType.PARAMETER_STRING, string_value=value))


def number(name: str, value: float) -> SetParameters.Request:
    return request(name, ParameterValue(type=ParameterType.PARAMETER_DOUBLE, double_value=value))


def test_it_starts_active_by_default(start):
    rig = start(*SMALL)
    with running(rig):
        assert rig.life_cycle() == "active"
        rig.wait(lambda: "life cycle" in rig.diagnostics)
        assert rig.diagnostics["life cycle"].message == "active"


def test_a_whole_life_keeps_the_map_while_inactive_and_forgets_it_when_cleaned_up(start):
    rig = start(*SMALL, "autostart:=false")
    topic = f"{rig.namespace}/image"
    with running(rig):
        assert rig.life_cycle() == "unconfigured"
        assert rig.recorded.status.state == "unconfigured"
        assert not rig.call(SaveMap, "save_map", SaveMap.Request(path="x")).success
        assert rig.change_state("configure")
        rig.wait(lambda: rig.recorded.status.state == "inactive")
        assert rig.recorder.count_subscribers(topic) == 0
        assert rig.call(Trigger, "keyframe_now", Trigger.Request()).message == "the node is inactive"
        assert rig.change_state("activate")
        rig.film(topic, ["rgb8"] * 3)
        rig.wait(rig.settled)
        points = len(rig.recorded.cloud)
        assert points > 1000
        assert rig.change_state("deactivate")
        rig.wait(lambda: rig.recorder.count_subscribers(topic) == 0)
        assert rig.recorded.status.map_points == points
        assert rig.change_state("activate")
        rig.film(topic, ["rgb8"] * 3, "--from", "3")
        rig.wait(rig.settled)
        assert len(rig.recorded.path) == 6  # the map went on
        assert rig.change_state("deactivate")
        assert rig.change_state("cleanup")
        assert rig.life_cycle() == "unconfigured"
        rig.wait(lambda: not len(rig.recorded.cloud) and rig.recorded.path == [])
        assert rig.change_state("configure")
        assert rig.change_state("activate")
        rig.wait(lambda: rig.recorded.status.state == "waiting for images")
        rig.film(topic, ["rgb8"] * 2, "--from", "6")
        rig.wait(lambda: len(rig.recorded.path) == 2)
        assert rig.change_state("active_shutdown")
        assert rig.life_cycle() == "finalized"


@pytest.mark.parametrize(
    ("name", "wrong", "right", "said"),
    [
        ("checkpoint", "/nowhere/model.pth", "geometric", "cannot configure: "),
        ("camera_frame", "front", "", "camera_frame must be empty for several cameras, got 'front'"),
    ],
)
def test_a_failed_transition_says_why_and_can_be_mended(start, name, wrong, right, said):
    cameras = "image_topics:=['left/image','right/image']"
    rig = start(*SMALL, cameras, "autostart:=false", f"{name}:={wrong}")
    with running(rig):
        assert not rig.change_state("configure")
        assert rig.life_cycle() == "unconfigured"
        assert said in rig.log()
        assert wrong in rig.log()
        assert rig.call(SetParameters, "set_parameters", text(name, right)).results[0].successful
        assert rig.change_state("configure")
        assert rig.life_cycle() == "inactive"
        refused = rig.call(SetParameters, "set_parameters", text(name, wrong)).results[0]
        assert (refused.successful, refused.reason) == (
            False, f"{name} can be changed only while the node is unconfigured")  # fmt: skip


def test_a_value_out_of_range_is_refused_with_the_range_and_a_good_one_taken_over(start):
    with running(start(*SMALL)) as rig:
        refused = rig.call(SetParameters, "set_parameters", number("keyframes.min_overlap", 3.0)).results[0]
        assert not refused.successful
        for word in ("keyframes.min_overlap", "0.1", "0.99", "3.0"):
            assert word in refused.reason
        assert rig.call(SetParameters, "set_parameters", number("keyframes.min_overlap", 0.5)).results[0].successful


def test_time_from_the_clock_topic_is_used_and_nothing_waits_for_it(start):
    rig = start(*SMALL, "use_sim_time:=true", arguments=("-r", "/clock:=NAMESPACE/clock"))
    with running(rig):
        rig.film(f"{rig.namespace}/image", ["rgb8"] * 3)  # without a clock
        rig.wait(rig.settled)
        clock = rig.recorder.create_publisher(Clock, f"{rig.namespace}/clock", 10)
        rig.keep_sending(clock, Clock(clock=Time(sec=1234)))
        rig.wait(lambda: rig.reported == Time(sec=1234))  # while the clock stands still
        before = rig.reports
        rig.wait(lambda: rig.reports > before + 1)
        assert sorted(rig.recorded.points) == [stamp_of(place) for place in range(3)]


def test_without_anybody_to_mend_it_a_start_that_fails_ends_with_one_line(environment):
    command = [sys.executable, "-m", NODE, "--ros-args", "-p", "checkpoint:=/nowhere/model.pth"]
    ended = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=PATIENCE_S, check=False)
    assert ended.returncode == 2
    assert "cannot configure: " in ended.stderr
    assert "/nowhere/model.pth" in ended.stderr
    assert len(ended.stderr.strip().splitlines()) == 1
