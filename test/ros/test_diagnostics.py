"""What goes wrong around the node is said by name, within seconds."""

from __future__ import annotations

import re

import pytest
from camera import raw, stamp_of
from diagnostic_msgs.msg import DiagnosticStatus
from layers import layered_view
from rclpy.event_handler import PublisherEventCallbacks
from rig import SMALL, running
from sensor_msgs.msg import CompressedImage, Image

from dust3r_ros.ros.convert import header_of
from dust3r_ros.ros.qos import image_qos


def test_a_topic_without_publisher_is_reported_and_said_on_the_log_once(start):
    rig = start(*SMALL, "silent_after:=1.0")
    with running(rig):
        part = f"camera {rig.namespace}/image"
        rig.wait(lambda: len([said for said in rig.said if said.startswith(part)]) >= 3)
        assert rig.diagnostics[part].level == DiagnosticStatus.ERROR
        assert rig.diagnostics[part].message.startswith(f"no image on {rig.namespace}/image for ")
        assert rig.diagnostics[part].message.endswith(" s: no publisher")
        assert rig.log().count("no publisher") == 1


@pytest.mark.parametrize(
    ("kind", "reliability", "said"),
    [
        (Image, "best_effort", "dust3r_recorder is best effort, reliable is asked for (image_reliability)"),
        (CompressedImage, "reliable", "dust3r_recorder publishes sensor_msgs/msg/CompressedImage, "
                                      "sensor_msgs/msg/Image is expected (image_transport)"),
    ],
)  # fmt: skip
def test_a_publisher_that_cannot_be_heard_is_named_within_five_reports(start, kind, reliability, said):
    rig = start(*SMALL)
    with running(rig):
        topic = f"{rig.namespace}/image"
        rig.wait(lambda: f"camera {topic}" in rig.diagnostics)
        publisher = rig.recorder.create_publisher(
            kind, topic, image_qos(reliability, 5), event_callbacks=PublisherEventCallbacks(use_default_callbacks=False)
        )
        before = rig.reports
        rig.wait(lambda: said in rig.diagnostics[f"camera {topic}"].message)
        assert rig.reports - before <= 5
        assert rig.diagnostics[f"camera {topic}"].level == DiagnosticStatus.ERROR
        rig.recorder.destroy_publisher(publisher)


def test_a_camera_that_falls_silent_is_named_with_its_publisher_and_is_well_again_afterwards(start):
    rig = start(*SMALL, "image_reliability:=best_effort")
    with running(rig):
        topic = f"{rig.namespace}/image"
        publisher = rig.recorder.create_publisher(Image, topic, image_qos("best_effort", 5))
        image = raw("rgb8", layered_view(0.0))
        image.header = header_of(stamp_of(0), "camera")
        for _ in range(2):
            sending = rig.keep_sending(publisher, image)
            received = rig.recorded.status.frames_received
            rig.wait(lambda heard=received: rig.recorded.status.frames_received > heard)
            rig.wait(lambda: rig.diagnostics[f"camera {topic}"].level == DiagnosticStatus.OK)
            rig.recorder.destroy_timer(sending)
            rig.wait(lambda: rig.diagnostics[f"camera {topic}"].level == DiagnosticStatus.ERROR)
            message = rig.diagnostics[f"camera {topic}"].message
            silent = re.fullmatch(rf"no image on {topic} for (\d+) s: 1 publisher, best effort, type ok", message)
            assert silent and int(silent[1]) >= 4, message
        assert f"camera {topic}: ok again" in rig.log()


def test_rates_stages_queue_drops_model_licence_residual_and_scale_are_there(start):
    rig = start(*SMALL)
    with running(rig):
        rig.film(f"{rig.namespace}/image", ["rgb8", "truncated", "rgb8", "rgb8"])
        rig.wait(lambda: values(rig, "mapping").get("keyframes") == "3")
        mapping = values(rig, "mapping")
        assert (mapping["images"], mapping["dropped, invalid"], mapping["queue"]) == ("4", "1", "0 of 100")
        for figure in ("image rate, 1/s", "image callback p99, ms", "keyframe rate, 1/s", "latency, ms", "decode, ms",
                       "align, ms", "alignment residual", "map points"):  # fmt: skip
            assert float(mapping[figure]) > 0, figure
        model = values(rig, "model")
        assert (model["model"], model["licence"], model["device"]) == ("geometric", "Apache-2.0", "cpu")
        assert float(model["process memory, MB"]) > 50
        assert values(rig, "frames") == {
            "tf_mode": "camera", "map frame": "map", "scale": "unknown", "map units in a world unit": "1",
        }  # fmt: skip
        assert rig.diagnostics["mapping"].level == DiagnosticStatus.OK


def values(rig, part: str) -> dict[str, str]:
    status = rig.diagnostics.get(part)
    return {pair.key: pair.value for pair in status.values} if status is not None else {}
