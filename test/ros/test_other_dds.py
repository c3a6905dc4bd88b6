"""What the node publishes is read by a DDS of another vendor, in a process without ROS."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from camera import FRAME
from rig import SMALL, running
from scipy.spatial.transform import Rotation

from dust3r_ros.ros.processes import Child

pytest.importorskip("cyclonedds", reason="needs cyclonedds (requirements-dev.txt)")

IMAGES = 4


@pytest.mark.skipif("rmw_cyclonedds" in os.environ.get("RMW_IMPLEMENTATION", ""), reason="it would be the same vendor")
def test_cyclone_dds_decodes_cloud_transforms_and_intrinsics(start):
    rig = start(*SMALL)
    out = rig.folder / "cyclone.npz"
    arguments = [rig.namespace, str(IMAGES), str(out)]
    reader = Child("cyclone_reader", arguments, rig.folder / "cyclone.log", rig.environment)
    with running(rig), reader.start():
        rig.wait(lambda: reader.check_running() or Path(f"{out}.ready").exists())
        rig.film(f"{rig.namespace}/image", ["rgb8"] * IMAGES)
        rig.wait(rig.settled)
        rig.wait(lambda: not reader.running)
        reader.check_finished()
        recorded = rig.recorded
        with np.load(out) as read:
            assert list(read["fields"]) == ["x", "y", "z", "rgb", "confidence"]
            assert str(read["cloud_frame"]) == "map"
            np.testing.assert_array_equal(read["points"][:, :3], recorded.cloud.points)
            blue_first = read["points"][:, 3].copy().view(np.uint8).reshape(-1, 4)
            np.testing.assert_array_equal(blue_first[:, 2::-1], recorded.cloud.colours)
            np.testing.assert_array_equal(read["k"], recorded.intrinsics.matrix(centres_at_integers=True).ravel())
            assert tuple(read["size"]) == (recorded.intrinsics.width, recorded.intrinsics.height)
            assert sorted(read["stamps"]) == sorted(recorded.transforms)
            assert {tuple(pair) for pair in read["frames"]} == {("map", FRAME)}
            for stamp, place, turn in zip(read["stamps"], read["places"], read["turns"]):
                pose = recorded.transforms[int(stamp)]
                np.testing.assert_allclose(place, pose[:3, 3], atol=1e-12)
                np.testing.assert_allclose(Rotation.from_quat(turn).as_matrix(), pose[:3, :3], atol=1e-12)
