"""The robot's transforms as they come on TF, looked up with patience, and which frame has which parent."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
from nav_msgs.msg import Odometry
from rclpy.node import Node
from rclpy.qos_overriding_options import QoSOverridingOptions
from std_msgs.msg import Header
from tf2_msgs.msg import TFMessage

from dust3r_ros.data import FloatArray
from dust3r_ros.ros import compat
from dust3r_ros.ros.convert import pose_of, transform_of
from dust3r_ros.ros.decode import stamp_ns_of
from dust3r_ros.ros.qos import image_qos, latched, reliable
from dust3r_ros.ros.tf_buffer import TransformBuffer, TransformMissingError


def frame_name(frame_id: str) -> str:
    """A frame as tf2 knows it: those of ROS 1 recordings begin with a slash."""
    return frame_id.lstrip("/")


class TransformListener:
    """Hears /tf and /tf_static, and odometry when asked; ``lookup`` may be called from any thread.

    What hangs from ``map_frame`` is the node's own and is not listened to.
    """

    def __init__(self, node: Node, map_frame: str, *, odometry: bool) -> None:
        self._node = node
        self._map_frame = map_frame
        self._buffer = compat.transform_buffer()
        self._fixed = TransformBuffer()  # the static ones alone
        self._parents: dict[str, str] = {}  # by child
        self._changed = threading.Condition()
        self._subscriptions: list[Any] = [
            node.create_subscription(TFMessage, "/tf_static", lambda m: self._on_tf(m, static=True), latched(100)),
            node.create_subscription(TFMessage, "/tf", lambda m: self._on_tf(m, static=False), reliable(100)),
        ]
        if odometry:
            options = QoSOverridingOptions.with_default_policies()
            qos = image_qos("best_effort", 100)
            self._subscriptions.append(
                node.create_subscription(Odometry, "odom", self._on_odometry, qos, qos_overriding_options=options)
            )

    def close(self) -> None:
        """Stop listening."""
        for subscription in self._subscriptions:
            self._node.destroy_subscription(subscription)
        self._subscriptions.clear()

    def lookup(self, target: str, source: str, stamp_ns: int, timeout_s: float) -> FloatArray:
        """The pose (4, 4) that takes points of ``source`` to ``target`` at a time, waited for.

        Raises TransformMissingError naming what has not come within ``timeout_s``.
        """
        deadline = time.monotonic() + timeout_s
        with self._changed:
            while True:
                try:
                    return self._buffer.lookup(target, source, stamp_ns)
                except TransformMissingError:
                    left = deadline - time.monotonic()
                    if left <= 0:
                        raise
                    self._changed.wait(left)

    def fixed(self, target: str, source: str) -> FloatArray | None:
        """The pose (4, 4) that takes points of ``source`` to ``target`` where only static transforms lie between."""
        with self._changed:
            try:
                return self._fixed.lookup(target, source, 0)
            except TransformMissingError:
                return None

    def parent_of(self, child: str) -> str:
        """The frame that a frame hangs from on TF, by what was heard last; empty when it hangs from none."""
        with self._changed:
            return self._parents.get(child, "")

    def clear(self) -> None:
        """Forget all but the static transforms: time has begun anew."""
        with self._changed:
            self._buffer.clear()

    def _on_tf(self, message: TFMessage, *, static: bool) -> None:
        for sent in message.transforms:
            self._take(sent.header, sent.child_frame_id, partial(transform_of, sent.transform), static=static)

    def _on_odometry(self, message: Odometry) -> None:
        self._take(message.header, message.child_frame_id, partial(pose_of, message.pose.pose), on_tf=False)

    def _take(
        self, header: Header, child_id: str, read: Callable[[], FloatArray], *, static: bool = False, on_tf: bool = True
    ) -> None:
        parent, child = frame_name(header.frame_id), frame_name(child_id)
        try:
            pose = read()
        except ValueError:  # the quaternion is zero
            pose = np.full((4, 4), np.nan)
        if not parent or not child or parent == child or not np.isfinite(pose).all():
            self._node.get_logger().warning(
                f"transform {parent!r} -> {child!r} skipped: it is no rigid motion", throttle_duration_sec=5.0
            )
            return
        self._remember(parent, child, stamp_ns_of(header), pose, static=static, on_tf=on_tf)

    def _remember(self, parent: str, child: str, stamp_ns: int, pose: FloatArray, *, static: bool, on_tf: bool) -> None:
        if parent == self._map_frame:
            return
        with self._changed:
            self._buffer.set(parent, child, stamp_ns, pose, static=static)
            if static:
                self._fixed.set(parent, child, stamp_ns, pose, static=True)
            if on_tf:
                self._parents[child] = parent
            self._changed.notify_all()
