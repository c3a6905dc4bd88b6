"""The page of a running node: node, page and browser in processes of their own."""

from __future__ import annotations

import socket
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from rig import SMALL, Rig, running

from dust3r_ros.data import Intrinsics
from dust3r_ros.mapping.cloud import PointCloud
from dust3r_ros.ros.processes import Child
from dust3r_ros.ros.recorder import Recorded

pytest.importorskip("viser", reason="needs viser")

from dust3r_ros.ros.watch import GrowingScene


def test_what_has_arrived_is_shown_once_and_depth_is_let_go():
    recorded = Recorded()
    growing = GrowingScene(recorded)
    assert growing.changed() is not None  # the empty page
    assert growing.changed() is None
    recorded.intrinsics = Intrinsics.from_focal(50.0, 64, 48)
    recorded.path = [(1_000_000_000, np.eye(4)), (2_000_000_000, np.eye(4))]
    recorded.depths = {1_000_000_000: np.ones((48, 64), np.float32)}
    recorded.cloud = PointCloud(np.zeros((3, 3), np.float32), np.zeros((3, 3), np.uint8), np.ones(3, np.float32))
    recorded.cloud_stamp_ns = 2_000_000_000
    scene = growing.changed()
    assert scene is not None
    assert [k.name for k in scene.keyframes] == ["1.000 s", "2.000 s"]
    assert len(scene.cloud) == 3
    assert recorded.depths == {}
    recorded.path = [*recorded.path, (3000000000, np.eye(4))]
    again = growing.changed()
    assert again is not None
    assert again.keyframes[0].image is scene.keyframes[0].image  # nothing is sent again that has not changed


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def test_a_browser_shows_the_map_of_a_running_node(start: Callable[..., Rig], browser: Any):
    with running(start(*SMALL)) as rig:
        port = free_port()
        arguments = ["view", "--node", f"{rig.namespace}/dust3r", "--port", str(port)]
        page = Child("dust3r_ros.__main__", arguments, rig.folder / "view.log", rig.environment)
        with page.start():
            rig.film(f"{rig.namespace}/image", ["rgb8"] * 4)
            rig.wait(rig.settled)
            opened = browser.new_page()
            opened.set_default_timeout(60_000)
            opened.goto(f"http://127.0.0.1:{port}")
            count = f"{len(rig.recorded.cloud):,}".replace(",", " ")
            opened.get_by_text(f"{count} of {count} points").wait_for()
            opened.close()
