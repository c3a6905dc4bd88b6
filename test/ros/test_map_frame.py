"""The map's place and size: what stays when the scale becomes known, better, or lost."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from dust3r_ros.alignment.scale import MetricScale
from dust3r_ros.geometry import make_pose
from dust3r_ros.mapping.cloud import PointCloud
from dust3r_ros.ros.map_frame import MapFrame


def pose_at(x: float) -> np.ndarray:
    return make_pose(Rotation.from_euler("y", 20 * x, degrees=True).as_matrix(), np.array([x, 0.1 * x, 0.0]))


def test_a_new_size_leaves_the_first_camera_where_it_is_and_is_taken_over_only_when_it_is_surely_better(caplog):
    caplog.set_level("INFO")
    at, world = pose_at(1.0), pose_at(-3.0)
    frame = MapFrame("map", publish_tf=True)
    frame.begin(at, world)
    later = world @ make_pose(np.eye(3), np.array([0.0, 0.0, 1.0]))

    def ahead():
        np.testing.assert_allclose(frame.from_world.apply_to_pose(world), at, atol=1e-12)
        ((_, pose),) = frame.path([(0, later)])
        return np.linalg.norm(pose[:3, 3] - at[:3, 3])

    assert not frame.measured(None) and not frame.metric and ahead() == pytest.approx(1.0)
    assert frame.measured(MetricScale(2.5, 0.01, 6)) and frame.metric and ahead() == pytest.approx(2.5)
    assert not frame.measured(MetricScale(2.52, 0.01, 7)) and ahead() == pytest.approx(2.5)
    assert not frame.measured(MetricScale(2.502, 1e-4, 90)) and ahead() == pytest.approx(2.5)
    assert frame.measured(MetricScale(2.6, 0.01, 9)) and ahead() == pytest.approx(2.6)
    assert not frame.measured(None) and not frame.metric and ahead() == pytest.approx(2.6)
    assert not frame.measured(None)
    said = [(record.levelname, record.getMessage()) for record in caplog.records]
    assert said == [
        ("INFO", "the map is in metres by 6 known lengths, to 1.0 %: its size changes by +150.0 %"),
        ("INFO", "the map is in metres by 9 known lengths, to 1.0 %: its size changes by +4.0 %"),
        ("WARNING", "the map's scale is no longer certain: it keeps its size, which may not be metres"),
    ]
    points = np.array([later[:3, 3]], np.float32)
    cloud = frame.placed(PointCloud(points, np.zeros((1, 3), np.uint8), np.ones(1, np.float32)))
    np.testing.assert_allclose(cloud.points[0], frame.path([(0, later)])[0][1][:3, 3], rtol=1e-6)
    spread = frame.covariance(np.ones((6, 6)))
    np.testing.assert_allclose([spread[0, 0], spread[0, 3], spread[3, 3]], [2.6**2, 2.6, 1.0])
    frame.begin(at, np.eye(4))  # a new map
    assert frame.from_world.scale == 1.0
    assert frame.path([]) == []
