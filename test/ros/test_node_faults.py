"""A node whose parts fail: the fault is reported, what it hit is dropped, and the node goes on."""

from __future__ import annotations

import pytest
from camera import compressed, raw
from diagnostic_msgs.msg import DiagnosticStatus
from layers import layered_view
from rig import SMALL, running
from sensor_msgs.msg import CameraInfo

from dust3r_ros.memory import FILE_NAME
from dust3r_ros.srv import LoadMap, Localize, SaveMap

THREE = ("window:=3", *(given for given in SMALL if not given.startswith("window")))


def test_a_keyframe_whose_computation_raises_is_dropped_and_reported_and_the_next_ones_are_mapped(start):
    rig = start(*SMALL, module="faulty_node", faults="predictor:2")
    with running(rig):
        rig.film(f"{rig.namespace}/image", ["rgb8"] * 3)
        rig.wait(lambda: rig.diagnostics["mapping"].level == DiagnosticStatus.ERROR)
        assert rig.diagnostics["mapping"].message == "the last keyframe failed: ArithmeticError: a fault of the test"
        rig.film(f"{rig.namespace}/image", ["rgb8"] * 3, "--from", "3")
        status = rig.recorded.status
        assert (status.frames_received, status.keyframes, status.dropped_failed) == (6, 5, 1)
        rig.wait(lambda: rig.diagnostics["mapping"].level == DiagnosticStatus.OK)
        assert "dropped: ArithmeticError: a fault of the test" in rig.log()


def test_a_device_out_of_memory_pairs_keyframes_with_fewer_others_and_loses_none(start):
    rig = start(*THREE, module="faulty_node", faults="memory:4")
    with running(rig):
        rig.film(f"{rig.namespace}/image", ["rgb8"] * 5)
        status = rig.recorded.status
        assert (status.keyframes, status.dropped_failed) == (5, 0)
        assert "no memory for 4 pairs: keyframes are paired with 1 older ones from now on" in rig.log()
        rig.wait(lambda: rig.diagnostics["mapping"].level == DiagnosticStatus.WARN)
        assert rig.diagnostics["mapping"].message == "device memory is short: window 1 instead of 3"


def test_memory_that_suffices_for_no_pair_drops_the_keyframe_and_leaves_the_node_alive(start):
    rig = start(*THREE, module="faulty_node", faults="memory:1")
    with running(rig):
        rig.film(f"{rig.namespace}/image", ["rgb8"] * 3)
        status = rig.recorded.status
        assert (status.keyframes, status.dropped_failed) == (1, 2)
        rig.wait(lambda: rig.diagnostics["mapping"].level == DiagnosticStatus.ERROR)


def test_while_the_worker_is_slow_images_are_counted_and_the_oldest_keyframes_give_way(start):
    given = [parameter for parameter in SMALL if not parameter.startswith("queue_size")]
    rig = start(*given, "queue_size:=2", module="faulty_node", faults="slow:1.0")
    with running(rig):
        rig.publish(f"{rig.namespace}/image", ["rgb8"] * 12)
        rig.wait(lambda: rig.recorded.status.frames_received == 12)
        assert rig.recorded.status.queue_length <= 2
        rig.wait(lambda: not rig.recorded.in_flight())
        status = rig.recorded.status
        assert status.keyframes + status.dropped_queue_full == 12
        assert status.dropped_queue_full >= 4
        rig.wait(lambda: any(said.startswith("mapping: too slow") for said in rig.said))
        mapping = {pair.key: pair.value for pair in rig.diagnostics["mapping"].values}
        assert float(mapping["image callback p99, ms"]) < 50.0  # a prediction takes 1000


@pytest.fixture(scope="module")
def occupied(start):
    """A node whose keyframe in hand takes longer than a test waits."""
    rig = start(*SMALL, module="faulty_node", faults="slow:1000")
    with running(rig):
        rig.publish(f"{rig.namespace}/image", ["rgb8"] * 3)
        rig.wait(lambda: rig.recorded.status.queue_length == 1)  # the first one needs no prediction
        yield rig


WRONG_INFO = CameraInfo(width=64, height=48, k=[50.0, 0, 31.5, 0, 50.0, 23.5, 0, 0, 1.0])
REFUSED = {
    "a folder outside": (SaveMap, {"path": "../elsewhere"}, "path must lie inside map_folder"),
    "a map outside": (LoadMap, {"path": "/tmp"}, "path must lie inside map_folder"),
    "no name": (LoadMap, {"path": ""}, "path must name the folder of a map"),
    "no map": (LoadMap, {"path": "nothing"}, "it has no session.npz"),
    "a damaged map": (LoadMap, {"path": "bad"}, "is damaged"),
    "no image": (Localize, {}, "localize needs an image, got none"),
    "half an image": (Localize, {"image": raw("truncated", layered_view(0.0))}, "bytes, got"),
    "half a JPEG": (Localize, {"compressed": compressed("noise", layered_view(0.0))}, "cannot be decoded"),
    "a CameraInfo of another size": (
        Localize, {"image": raw("rgb8", layered_view(0.0)), "camera_info": WRONG_INFO}, "got 64x48"),
}  # fmt: skip


@pytest.mark.parametrize("wrong", REFUSED)
def test_what_is_wrong_with_a_request_is_said_while_the_worker_is_busy(occupied, wrong):
    kind, given, said = REFUSED[wrong]
    (occupied.folder / "bad").mkdir(exist_ok=True)
    (occupied.folder / "bad" / FILE_NAME).write_bytes(b"PK\x03\x04 not a map")
    name = {SaveMap: "save_map", LoadMap: "load_map", Localize: "localize"}[kind]
    answer = occupied.call(kind, name, kind.Request(**given))
    assert not answer.success and said in answer.message
    assert occupied.recorded.status.keyframes == 1  # the second one is still in hand


def test_a_clean_up_that_would_have_to_wait_too_long_leaves_the_node_inactive(occupied):  # the last one of this node
    assert occupied.change_state("deactivate")
    assert not occupied.change_state("cleanup")
    assert occupied.life_cycle() == "inactive"
    assert "cannot clean up: the keyframe in hand did not end within 10 s" in occupied.log()
    assert occupied.change_state("activate")
