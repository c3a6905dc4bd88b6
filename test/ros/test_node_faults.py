"""A node whose parts fail: the fault is reported, what it hit is dropped, and the node goes on."""

from __future__ import annotations

from diagnostic_msgs.msg import DiagnosticStatus
from rig import SMALL, running

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
