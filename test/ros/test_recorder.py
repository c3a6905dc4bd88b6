"""What the recorder makes of what it hears."""

import numpy as np
import pytest

from dust3r_ros.data import Intrinsics
from dust3r_ros.errors import RosError
from dust3r_ros.mapping.cloud import PointCloud
from dust3r_ros.msg import Status
from dust3r_ros.ros.recorder import Recorded, write_recorded


def consistent() -> Recorded:
    recorded = Recorded()
    for stamp in (10, 20):
        recorded.transforms[stamp] = np.eye(4)
        recorded.poses[stamp] = np.eye(4)
        recorded.points[stamp] = 5
    recorded.path = [(10, np.eye(4)), (20, np.eye(4))]
    recorded.cloud = PointCloud(np.ones((3, 3), np.float32), np.zeros((3, 3), np.uint8), np.ones(3, np.float32))
    recorded.cloud_stamp_ns = 20
    return recorded


def test_outputs_that_fit_together_have_no_disagreements():
    assert consistent().disagreements() == []


def test_each_disagreement_is_named():
    recorded = consistent()
    recorded.poses[20] = np.diag([1.0, 1.0, 1.0, 1.0])
    recorded.poses[20][0, 3] = 0.01
    recorded.points[30] = 5
    recorded.depths[40] = np.ones((2, 2))
    recorded.path.append((50, np.eye(4)))
    recorded.cloud_stamp_ns = 60
    assert recorded.disagreements() == [
        "points at 30 has no transform",
        "depth at 40 has no transform",
        "pose and transform at 20 differ",
        "path at 50 has no transform",
        "map at 60 has no transform",
    ]


def test_images_in_flight_are_those_without_a_decision():
    recorded = Recorded()
    assert (recorded.in_flight(), recorded.idle_for_s()) == (0, 0.0)
    recorded.status = Status(frames_received=20, keyframes=5, dropped_not_needed=7, dropped_invalid=2, dropped_failed=1)
    assert recorded.in_flight() == 5
    assert recorded.idle_for_s() == 0.0
    recorded.status.dropped_queue_full = 5
    recorded.changed_at -= 100.0
    assert recorded.idle_for_s() >= 100.0


def test_what_was_recorded_is_written(tmp_path):
    recorded = consistent()
    assert [file.name for file in write_recorded(recorded, tmp_path)] == ["cloud.ply", "trajectory.tum"]
    recorded.intrinsics = Intrinsics.from_focal(500.0, 640, 480)
    assert [file.name for file in write_recorded(recorded, tmp_path)][-1] == "cameras.json"
    with pytest.raises(RosError, match="no map was received"):
        write_recorded(Recorded(), tmp_path)
