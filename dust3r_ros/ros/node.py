"""The ROS node: images in; map, path, pose, intrinsics and status out."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import rclpy
from rclpy.callback_groups import ReentrantCallbackGroup
from rclpy.clock import Clock
from rclpy.clock_type import ClockType
from rclpy.executors import ExternalShutdownException
from rclpy.impl.implementation_singleton import rclpy_implementation
from rclpy.node import Node
from rclpy.task import Future
from sensor_msgs.msg import CameraInfo, CompressedImage, Image
from std_srvs.srv import SetBool, Trigger

from dust3r_ros.config import NodeConfig
from dust3r_ros.data import ByteImage, Intrinsics
from dust3r_ros.errors import Dust3rError, RosError
from dust3r_ros.pipeline import Reconstructor
from dust3r_ros.ros import compat
from dust3r_ros.ros.calibration import Calibration
from dust3r_ros.ros.convert import state_name, status_message
from dust3r_ros.ros.decode import compressed_to_rgb, stamp_ns_of
from dust3r_ros.ros.logs import forwarded_logs
from dust3r_ros.ros.params import LiveParameters, declare_config
from dust3r_ros.ros.publishers import Publishers, image_qos
from dust3r_ros.ros.saving import folder_inside, save_map
from dust3r_ros.ros.statistics import Drop, Statistics, drop_of
from dust3r_ros.ros.worker import Worker
from dust3r_ros.srv import SaveMap

_NAME = "dust3r"
_THROTTLE_S = 5.0
_STOP_S = 0.5  # how long the keyframe in hand may take to end when the node stops


@dataclass(frozen=True, eq=False)
class Frame:
    """An image on its way to the worker; ``arrived`` is time.monotonic() at its callback."""

    image: ByteImage
    stamp_ns: int
    frame_id: str
    intrinsics: Intrinsics | None
    arrived: float


class Dust3rNode(Node):
    """Chooses keyframes in the image callback and reconstructs them in a worker thread.

    Raises ConfigError for wrong parameters and CheckpointError for a model that cannot be loaded.
    """

    def __init__(self, **node_options: Any) -> None:
        super().__init__(_NAME, **node_options)
        self._live = LiveParameters(self, declare_config(self), self._reconfigure)
        config = self.config
        with forwarded_logs(self.get_logger()):  # the licence of the weights is said while they are loaded
            self._reconstructor = Reconstructor(config.reconstructor)
        self._counting = threading.Lock()  # an image is counted and queued in the callback, a reset runs in the worker
        self._statistics = Statistics()
        self._paused = False
        self._map_points = 0
        self._newest_stamp_ns = 0
        self._outputs = Publishers(self, config.map_frame, publish_tf=config.publish_tf)
        self._worker: Worker[Frame] = Worker(self._reconstruct, config.queue_size, self._on_failed)
        # A service that waits for the worker must not keep other callbacks waiting, as it would in their group.
        self._waiting_group = ReentrantCallbackGroup()
        self._woken = self.create_guard_condition(lambda: None, callback_group=self._waiting_group)
        self._calibration = Calibration(
            self.resolve_topic_name("camera_info"), use=config.reconstructor.intrinsics == "given"
        )
        self._subscribe()
        self._serve()
        steady = Clock(clock_type=ClockType.STEADY_TIME)  # goes on when /clock stands still
        self.create_timer(1.0, self._publish_status, clock=steady)
        self.create_timer(0.1, self._refresh, clock=steady)
        self._worker.start()

    @property
    def config(self) -> NodeConfig:
        """The configuration in force."""
        return self._live.config

    def close(self) -> bool:
        """Stop working; False when the keyframe in hand did not end in time and had to be left alone."""
        return self._worker.stop(_STOP_S)

    def _subscribe(self) -> None:
        qos = image_qos(self.config.image_reliability, self.config.image_history)
        topic = self.resolve_topic_name("image")
        if self.config.image_transport == "compressed":  # named as image_transport does, below the base topic
            kind, to_rgb, topic = CompressedImage, compressed_to_rgb, f"{topic}/compressed"
        else:
            kind, to_rgb = Image, compat.rgb_of
        if self.config.reconstructor.intrinsics == "given":  # first, since the executor keeps this order
            self.create_subscription(CameraInfo, "camera_info", self._on_camera_info, image_qos("best_effort", 5))
        images = self.create_subscription(kind, topic, lambda message: self._on_image(message, to_rgb), qos)
        info = self._reconstructor.info
        self.get_logger().info(f"waiting for images on {images.topic_name}; model {info.name} on {info.device}")

    def _serve(self) -> None:
        group = self._waiting_group
        reset: Any = self._on_reset  # rclpy's executor knows coroutines, its types do not
        save: Any = self._on_save_map
        self.create_service(Trigger, "~/reset", reset, callback_group=group)
        self.create_service(SetBool, "~/pause", self._on_pause)
        self.create_service(SaveMap, "~/save_map", save, callback_group=group)

    # Callbacks of the executor: quick, and never waiting for the worker.

    def _on_image(self, message: Any, to_rgb: Callable[[Any], ByteImage]) -> None:
        if self._paused:
            return
        arrived = time.monotonic()
        with self._counting:
            self._statistics.received(stamp_ns_of(message.header))
            try:
                image = to_rgb(message)
                intrinsics = self._calibration.for_image(*image.shape[:2])
            except RosError as error:
                self._statistics.dropped(Drop.INVALID)
                self.get_logger().warning(f"image skipped: {error}", throttle_duration_sec=_THROTTLE_S)
                return
            self._consider(Frame(image, stamp_ns_of(message.header), message.header.frame_id, intrinsics, arrived))

    def _consider(self, frame: Frame) -> None:
        decision = self._reconstructor.select(frame.image, frame.stamp_ns)
        if not decision.take:
            self._statistics.dropped(drop_of(decision.reason))
        elif self._worker.offer(frame) is not None:
            self._statistics.dropped(Drop.QUEUE_FULL)

    def _on_camera_info(self, message: CameraInfo) -> None:
        try:
            self._calibration.update(message)
        except RosError as error:
            self.get_logger().warning(f"CameraInfo skipped: {error}", throttle_duration_sec=_THROTTLE_S)

    def _refresh(self) -> None:
        period = self.config.map_period
        if self._outputs.due(period) and self._worker.task_count == 0:
            self._worker.call(lambda: self._outputs.latest(self._newest_stamp_ns, self._reconstructor, period))

    def _publish_status(self) -> None:
        snapshot = self._statistics.snapshot()
        self._outputs.status(
            status_message(
                self.config.map_frame,
                snapshot,
                self._reconstructor.info,
                state=state_name(snapshot, paused=self._paused),
                queue_length=self._worker.queue_length,
                map_points=self._map_points,
            )
        )

    def _reconfigure(self, config: NodeConfig) -> None:
        self._reconstructor.reconfigure(config.reconstructor)

    def _on_pause(self, request: SetBool.Request, response: SetBool.Response) -> SetBool.Response:
        self._paused = request.data
        response.success, response.message = True, "paused" if request.data else "running"
        self.get_logger().info(response.message)
        return response

    async def _on_reset(self, _: Trigger.Request, response: Trigger.Response) -> Trigger.Response:
        _, response.message = await self._in_worker(self._reset)
        response.success = not response.message
        response.message = response.message or "map, path and counts are empty"
        return response

    async def _on_save_map(self, request: SaveMap.Request, response: SaveMap.Response) -> SaveMap.Response:
        saved, response.message = await self._in_worker(lambda: self._save(request.path))
        response.success = not response.message
        if saved is not None:
            response.files = [str(file) for file in saved]
            response.message = f"{self._map_points} points written"
        return response

    async def _in_worker(self, task: Callable[[], Any]) -> tuple[Any, str]:
        """The result of a task done by the worker, or None and what went wrong, without blocking the executor."""
        answered: Future[tuple[Any, str]] = Future(executor=self.executor)

        def answer(done: Any) -> None:
            error = RosError("the node is stopping") if done.cancelled() else done.exception()
            if error is not None and not isinstance(error, Dust3rError):
                self.get_logger().error(f"a service failed: {type(error).__name__}: {error}")
            answered.set_result((None, str(error) or "failed") if error is not None else (done.result(), ""))
            if self.context.ok():
                self._woken.trigger()  # the executor sleeps until something happens

        self._worker.call(task).add_done_callback(answer)
        return await answered or (None, "")

    # What the worker's thread does.

    def _reconstruct(self, frame: Frame) -> None:
        update = self._reconstructor.reconstruct(frame.image, frame.stamp_ns, intrinsics=frame.intrinsics)
        self._map_points = len(self._reconstructor.map)
        if update.view.registered:
            self._newest_stamp_ns = frame.stamp_ns
            # Frames of ROS 1 recordings begin with a slash, which tf2 does not look up.
            camera_frame = self.config.camera_frame or frame.frame_id.lstrip("/") or "camera"
            self._outputs.keyframe(update, camera_frame, self.config.reconstructor.map)
        self._statistics.finished(update, frame.arrived)
        self._publish_status()
        if self._reconstructor.close_loops():  # after publishing: a keyframe does not wait for it
            self._outputs.revised()
            self._map_points = len(self._reconstructor.map)

    def _on_failed(self, frame: Frame, error: Exception) -> None:
        if not self.context.ok():  # what is published after the end fails
            return
        self._statistics.dropped(Drop.FAILED)
        self.get_logger().error(f"keyframe at {frame.stamp_ns} ns dropped: {type(error).__name__}: {error}")

    def _reset(self) -> None:
        with self._counting:
            self._worker.clear()
            self._reconstructor.reset()
            self._statistics.reset()
            self._map_points = 0
        self._outputs.cleared(self._newest_stamp_ns)

    def _save(self, path: str) -> list[Any]:
        newest = self._statistics.snapshot().newest
        folder = folder_inside(self.config.map_folder, path)
        return save_map(self._reconstructor, newest.intrinsics if newest is not None else None, folder)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the node until it is told to stop; the exit code. ``argv`` are ROS arguments, the process's when None."""
    rclpy.init(args=None if argv is None else [_NAME, *argv])
    code, stopped = 0, True
    try:
        stopped = _run()
    except Dust3rError as error:
        rclpy.logging.get_logger(_NAME).fatal(str(error))
        code = 2
    except (KeyboardInterrupt, ExternalShutdownException):
        pass  # told to stop while starting
    except rclpy_implementation.RCLError:
        if rclpy.ok():
            raise
    rclpy.try_shutdown()
    if not stopped:
        # The worker is inside a long computation that cannot be interrupted, and Python's shutdown would tear the
        # libraries down under it. Nothing is left to write.
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    return code


def _run() -> bool:
    node = Dust3rNode()
    try:
        with forwarded_logs(node.get_logger()):
            rclpy.spin(node)
    except (KeyboardInterrupt, ExternalShutdownException):
        pass
    finally:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGINT, signal.SIG_IGN)  # stopping is quick: a second one must not break it
        stopped = node.close()
        node.destroy_node()
    return stopped


if __name__ == "__main__":
    sys.exit(main())
