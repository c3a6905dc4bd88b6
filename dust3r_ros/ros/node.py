"""The ROS node: its life cycle, its timers, and the way of an image from the callback to the worker."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from functools import partial
from typing import Any

import rclpy
from rclpy.clock import Clock
from rclpy.clock_type import ClockType
from rclpy.executors import ExternalShutdownException
from rclpy.impl.implementation_singleton import rclpy_implementation
from rclpy.lifecycle import LifecycleNode, LifecycleState, TransitionCallbackReturn

from dust3r_ros.config import NodeConfig
from dust3r_ros.errors import Dust3rError, RosError
from dust3r_ros.ros.cameras import Camera, camera_topics
from dust3r_ros.ros.convert import state_name, status_message
from dust3r_ros.ros.decode import stamp_ns_of
from dust3r_ros.ros.diagnostics import Diagnostics
from dust3r_ros.ros.frames import MapFrames
from dust3r_ros.ros.logs import forwarded_logs
from dust3r_ros.ros.mapper import Mapper, Shot
from dust3r_ros.ros.memory import share_heap
from dust3r_ros.ros.params import LiveParameters, declare_config
from dust3r_ros.ros.publishers import Publishers
from dust3r_ros.ros.services import Services
from dust3r_ros.ros.statistics import Snapshot, Statistics
from dust3r_ros.ros.timeline import Timeline
from dust3r_ros.ros.transforms import TransformListener

_NAME = "dust3r"
_DRAIN_S = 10.0  # how long a clean-up waits for the keyframe in hand
_SWITCH_S = 0.0005  # how long the worker may hold Python while a callback waits for it


class Dust3rNode(LifecycleNode):
    """Hands images to a mapper while active.

    Raises ConfigError for wrong parameters.
    """

    def __init__(self, **node_options: Any) -> None:
        super().__init__(_NAME, **node_options)
        self._live = LiveParameters(self, declare_config(self), self._reconfigure, lambda: self._mapper is None)
        self._mapper: Mapper | None = None
        self._listener: TransformListener | None = None
        self._cameras: list[Camera] = []
        self._statistics = Statistics()
        self._timeline = Timeline()
        self._paused = False
        self._resetting = threading.Event()
        self._outputs = Publishers(self)
        self._diagnostics = Diagnostics(self)
        Services(self, lambda: self._mapper, self._reset, self._pause, self._keyframe_now)
        steady = Clock(clock_type=ClockType.STEADY_TIME)  # goes on when /clock stands still
        self.create_timer(1.0, self._report, clock=steady)
        self.create_timer(0.1, self._refresh, clock=steady)

    @property
    def config(self) -> NodeConfig:
        """The configuration in force."""
        return self._live.config

    def start(self) -> bool:
        """Configure and activate, when the configuration says so; False when that failed."""
        done = TransitionCallbackReturn.SUCCESS
        return not self.config.autostart or (self.trigger_configure() == done and self.trigger_activate() == done)

    def close(self) -> bool:
        """Stop working; False when the keyframe in hand did not end in time and had to be left alone."""
        return self._mapper is None or self._mapper.close()

    # The life cycle. A transition that fails says why and leaves everything as it was.

    def on_configure(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Load the model."""
        return self._transition("configure", self._configure)

    def on_activate(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Subscribe to the cameras."""
        return self._transition("activate", self._activate)

    def on_deactivate(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Let go of the cameras; the map stays."""
        return self._transition("deactivate", self._close_cameras)

    def on_cleanup(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Forget the map and free the device's memory."""
        return self._transition("clean up", self._clean_up)

    def on_shutdown(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Stop everything."""
        return self._transition("shut down", lambda: self._release(clear=False))

    def on_error(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Release everything, so that the node can be configured again."""
        return self._transition("recover", lambda: self._release(clear=True))

    def _transition(self, name: str, step: Callable[[], None]) -> TransitionCallbackReturn:
        try:
            step()
        except Exception as error:  # rclpy would swallow it
            kind = "" if isinstance(error, Dust3rError) else f"{type(error).__name__}: "
            self.get_logger().error(f"cannot {name}: {kind}{error}")
            return TransitionCallbackReturn.FAILURE
        return TransitionCallbackReturn.SUCCESS

    def _configure(self) -> None:
        config = self.config
        camera_topics(config, self.resolve_topic_name)  # wrong ones are found before the model is loaded
        with forwarded_logs(self.get_logger()):  # the licence of the weights is said while they are loaded
            listens = config.publish_tf or config.use_odometry or config.tf_mode != "camera"
            self._listener = (
                TransformListener(self, config.map_frame, odometry=config.use_odometry) if listens else None
            )
            frames, mapper = MapFrames(config, self._listener), None
            try:
                self._statistics.reset()
                name = self.get_fully_qualified_name()
                mapper = Mapper(config, frames, self._outputs, self._statistics, self._publish_status, name)
                self._outputs.begin(frames.map)
                mapper.resume()
            except BaseException:
                self._close_listener()
                if mapper is not None:
                    mapper.close()
                raise
        self._mapper = mapper

    def _activate(self) -> None:
        topics = camera_topics(self.config, self.resolve_topic_name)
        self._timeline = Timeline()
        try:
            for named in topics:
                self._cameras.append(Camera(self, named, self.config, self._on_image))
        except BaseException:
            self._close_cameras()
            raise
        names = ", ".join(camera.topics.image for camera in self._cameras)
        info = self._mapper.reconstructor.info if self._mapper is not None else None
        model = f"; model {info.name} on {info.device}" if info is not None else ""
        self.get_logger().info(f"waiting for images on {names}{model}")

    def _close_cameras(self) -> None:
        for camera in self._cameras:
            camera.close()
        self._cameras = []

    def _clean_up(self) -> None:
        if self._mapper is not None and not self._mapper.idle(_DRAIN_S):
            raise RosError(f"the keyframe in hand did not end within {_DRAIN_S:g} s")
        self._release(clear=True)

    def _release(self, *, clear: bool) -> None:
        self._close_cameras()
        self._close_listener()
        mapper, self._mapper = self._mapper, None
        if mapper is not None:
            mapper.close()
            if clear:
                self._statistics.reset()
                self._outputs.cleared(0)

    def _close_listener(self) -> None:
        if self._listener is not None:
            self._listener.close()
            self._listener = None

    # Callbacks of the executor: quick, and never waiting for the worker.

    def _on_image(self, camera: Camera, message: Any) -> None:
        if self._paused or self._mapper is None or self._resetting.is_set():
            return
        began = time.monotonic()
        stamp_ns = stamp_ns_of(message.header)
        if (back_s := self._timeline.jump_back_s(stamp_ns)) > 0 and self._begin_anew(back_s):
            return
        self._mapper.offer(Shot(stamp_ns, partial(camera.frame, message, began)))
        self._statistics.callback(time.monotonic() - began)

    def _begin_anew(self, back_s: float) -> bool:
        """Deal with a jump back in time; whether a new map begins, to which this image does not belong yet."""
        if self._listener is not None:
            self._listener.clear()
        anew = self.config.on_time_jump == "reset" and self._mapper is not None
        what = "a new map begins" if anew else "the map is kept"
        self.get_logger().warning(f"the images went back in time by {back_s:.1f} s: {what} (on_time_jump)")
        if anew and self._mapper is not None:
            self._resetting.set()
            self._reset(self._mapper).add_done_callback(lambda _: self._resetting.clear())
        elif self._mapper is not None:
            self._mapper.time_began_anew([camera.topics.image for camera in self._cameras])
        return anew

    def _refresh(self) -> None:
        if self._mapper is not None:
            self._mapper.refresh()

    def _report(self) -> None:
        self._publish_status()
        self._diagnostics.report(self._state(), self._cameras, self._mapper, self.config)

    def _publish_status(self) -> None:
        mapper, snapshot = self._mapper, self._statistics.snapshot()
        if not self._outputs.alive:  # what is published after the end fails
            return
        self._outputs.status(
            status_message(
                self.config.map_frame,
                snapshot,
                mapper.reconstructor.info if mapper is not None else None,
                state=self._state_in_words(snapshot),
                queue_length=mapper.queue_length if mapper is not None else 0,
                map_points=mapper.map_points if mapper is not None else 0,
                metric=mapper is not None and mapper.frames.map.metric,
            )
        )

    def _state(self) -> str:
        return "unconfigured" if self._mapper is None else "active" if self._cameras else "inactive"

    def _state_in_words(self, snapshot: Snapshot) -> str:
        state = self._state()
        return state if state != "active" else state_name(snapshot, paused=self._paused)

    def _reconfigure(self, config: NodeConfig) -> None:
        if self._mapper is not None:
            self._mapper.reconfigure(config)

    def _reset(self, mapper: Mapper) -> Future[None]:
        self._timeline = Timeline()
        return mapper.reset()

    def _pause(self, paused: bool) -> None:
        self._paused = paused

    def _keyframe_now(self) -> str:
        """Make the next image of each camera a keyframe; why not, when it cannot be."""
        if self._mapper is None or not self._cameras:
            return f"the node is {self._state()}"
        if self._paused:
            return "the node is paused"
        self._mapper.take_next([camera.topics.image for camera in self._cameras])
        return ""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the node until it is told to stop; the exit code. ``argv`` are ROS arguments, the process's when None."""
    share_heap()
    rclpy.init(args=None if argv is None else [_NAME, *argv])
    sys.setswitchinterval(_SWITCH_S)
    code, stopped = 0, True
    try:
        code, stopped = _run()
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


def _run() -> tuple[int, bool]:
    """The exit code, and whether the worker has stopped."""
    node = Dust3rNode()
    code, stopped = 0, True
    try:
        if node.start():
            with forwarded_logs(node.get_logger()):
                rclpy.spin(node)
        else:
            code = 2  # nobody is there to try again
    except (KeyboardInterrupt, ExternalShutdownException):
        pass
    finally:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGINT, signal.SIG_IGN)  # stopping is quick: a second one must not break it
        stopped = node.close()
        node.destroy_node()
    return code, stopped


if __name__ == "__main__":
    sys.exit(main())
