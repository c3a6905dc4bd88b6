"""Nodes of the tests find each other and nobody else's."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

rclpy = pytest.importorskip("rclpy", reason="needs rclpy")
pytest.importorskip("dust3r_ros.msg", reason="needs the built messages: make build")

from rig import Start, make_rig  # noqa: E402

from dust3r_ros.ros.processes import private_environment  # noqa: E402


@pytest.fixture(scope="session")
def environment() -> dict[str, str]:
    """The environment of this session's ROS processes."""
    return private_environment()


@pytest.fixture(scope="session")
def ros(environment: dict[str, str]) -> Iterator[None]:
    """rclpy, initialised in the session's domain."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ROS_AUTOMATIC_DISCOVERY_RANGE", environment["ROS_AUTOMATIC_DISCOVERY_RANGE"])
        patch.setenv("ROS_DOMAIN_ID", environment["ROS_DOMAIN_ID"])
        rclpy.init(args=[], signal_handler_options=rclpy.signals.SignalHandlerOptions.NO)
        yield
        rclpy.shutdown()


@pytest.fixture
def node(ros: None) -> Iterator[rclpy.node.Node]:
    """A node of the test's own."""
    made = rclpy.create_node("tester", start_parameter_services=False)
    yield made
    made.destroy_node()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for a module's logs."""
    return tmp_path_factory.mktemp("ros")


@pytest.fixture(scope="module")
def start(ros: None, environment: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Start:
    """Makes rigs."""
    return lambda *parameters, **more: make_rig(environment, tmp_path_factory.mktemp("node"), *parameters, **more)
