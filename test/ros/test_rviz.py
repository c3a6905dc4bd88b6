"""What RViz is told to show is there: each display of config/dust3r.rviz, subscribed to as RViz would."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from nav_msgs.msg import Path as PathMessage
from rclpy.qos import (
    DurabilityPolicy,
    HistoryPolicy,
    QoSCompatibility,
    QoSProfile,
    ReliabilityPolicy,
    qos_check_compatible,
)
from rig import SMALL, running
from sensor_msgs.msg import Image, PointCloud2
from visualization_msgs.msg import Marker, MarkerArray

from dust3r_ros.data import Intrinsics
from dust3r_ros.geometry import invert_pose, make_pose, transform_points
from dust3r_ros.ros.frusta import frusta_message
from dust3r_ros.ros.publishers import OUTPUTS
from dust3r_ros.ros.qos import image_qos

CONFIG = Path(__file__).resolve().parents[2] / "config" / "dust3r.rviz"
SHOWN_BY = {"PointCloud2": PointCloud2, "Path": PathMessage, "Image": Image, "MarkerArray": MarkerArray}
CAMERA = "/camera/image_raw"


def displays() -> dict[str, tuple[type, QoSProfile]]:
    """Type and quality of service of every topic that is shown."""
    shown = yaml.safe_load(CONFIG.read_text(encoding="utf-8"))["Visualization Manager"]["Displays"]
    return {
        display["Topic"]["Value"]: (SHOWN_BY[display["Class"].rpartition("/")[2]], profile(display["Topic"]))
        for display in shown
        if "Topic" in display
    }


def profile(topic: dict[str, Any]) -> QoSProfile:
    return QoSProfile(
        depth=topic["Depth"],
        history=HistoryPolicy[topic["History Policy"].upper().replace(" ", "_")],
        reliability=ReliabilityPolicy[topic["Reliability Policy"].upper().replace(" ", "_")],
        durability=DurabilityPolicy[topic["Durability Policy"].upper().replace(" ", "_")],
    )


def test_map_newest_cloud_frusta_path_and_depth_are_shown_as_the_node_offers_them():
    offered = {f"/dust3r/{output.name}": output for output in OUTPUTS}
    assert set(displays()) == {CAMERA, *(f"/dust3r/{name}" for name in ("map", "points", "keyframes", "path", "depth"))}
    for topic, (kind, asked) in displays().items():
        given = image_qos("best_effort", 5) if topic == CAMERA else offered[topic].qos()
        assert kind is (Image if topic == CAMERA else offered[topic].message)
        compatibility, reason = qos_check_compatible(given, asked)
        assert compatibility != QoSCompatibility.ERROR, f"{topic}: {reason}"
        latched = given.durability == DurabilityPolicy.TRANSIENT_LOCAL
        assert (asked.durability == DurabilityPolicy.TRANSIENT_LOCAL) == latched, topic  # else a late RViz sees nothing


def test_every_display_gets_what_it_shows(start):
    rig = start(*SMALL)
    received: dict[str, list] = {topic: [] for topic in displays() if topic != CAMERA}
    with running(rig):
        for topic, got in received.items():
            kind, asked = displays()[topic]
            rig.recorder.create_subscription(kind, rig.namespace + topic, got.append, asked)
        rig.film(f"{rig.namespace}/image", ["rgb8"] * 3)
        rig.wait(rig.settled)
        rig.wait(lambda: all(received.values()))
        newest = rig.recorded.path[-1][0]
        rig.wait(lambda: received["/dust3r/keyframes"][-1].markers[0].header.stamp.nanosec == newest % 10**9)
        (marker,) = received["/dust3r/keyframes"][-1].markers
        assert marker.header.frame_id == "map"
        assert len(marker.points) == 3 * 16
        centres = [(p.x, p.y, p.z) for p in marker.points[::16]]
        np.testing.assert_allclose(centres, [pose[:3, 3] for _, pose in rig.recorded.path], atol=1e-12)


def test_a_frustum_ends_at_the_images_corners():
    k, pose = Intrinsics(80.0, 60.0, 50.0, 30.0, 100, 80), make_pose(np.eye(3)[[2, 0, 1]], np.array([1.0, 2.0, 3.0]))
    (marker,) = frusta_message(1, "map", [pose], k, 0.5).markers
    ends = transform_points(invert_pose(pose), np.array([(p.x, p.y, p.z) for p in marker.points]))
    np.testing.assert_allclose(ends[[0, 2, 4, 6]], 0.0, atol=1e-12)
    far = ends[[1, 3, 5, 7]]
    np.testing.assert_allclose(far[:, 2], 0.5)
    pixels = (k.fx * far[:, 0] / 0.5 + k.cx, k.fy * far[:, 1] / 0.5 + k.cy)
    np.testing.assert_allclose(np.stack(pixels, axis=1), [(0, 0), (100, 0), (100, 80), (0, 80)], atol=1e-9)


@pytest.mark.parametrize("lens", [None, Intrinsics.from_focal(50.0, 64, 48)])
def test_without_keyframes_what_was_drawn_goes(lens):
    (marker,) = frusta_message(1, "map", [], lens, 0.5).markers
    assert marker.action == Marker.DELETEALL
