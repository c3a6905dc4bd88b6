"""Configuring that fails leaves nothing behind; in this process, without DDS traffic."""

from __future__ import annotations

from types import SimpleNamespace

from rclpy.lifecycle import TransitionCallbackReturn

from dust3r_ros.ros import node as node_module
from dust3r_ros.ros.node import Dust3rNode


def test_a_mapper_that_cannot_go_on_is_closed_and_the_node_can_be_configured_again(ros, monkeypatch):
    closed = []

    def resume():
        raise OSError("the disk is gone")

    mapper = SimpleNamespace(resume=resume, close=lambda: closed.append(True) or True)
    monkeypatch.setattr(node_module, "Mapper", lambda *_: mapper)
    node = Dust3rNode(namespace="/configure", start_parameter_services=False)
    try:
        assert node.trigger_configure() == TransitionCallbackReturn.FAILURE
        assert closed == [True]
        mapper.resume = lambda: None
        assert node.trigger_configure() == TransitionCallbackReturn.SUCCESS
    finally:
        node.close()
        node.destroy_node()
    assert closed == [True, True]
