"""Publish a recording on its topics, in its own time: what ``ros2 bag play`` does, where there is none.

Messages go out exactly as they were recorded, so their stamps are those of the recording; ``/clock`` follows it, for
nodes with ``use_sim_time``. Topics are renamed by remapping: ``--ros-args -r /camera/image_raw:=/image``.
"""

from __future__ import annotations

import argparse
import importlib
import logging
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import rclpy
from rclpy.duration import Duration
from rclpy.executors import ExternalShutdownException
from rclpy.impl.implementation_singleton import rclpy_implementation
from rclpy.node import Node
from rclpy.publisher import Publisher
from rclpy.qos import DurabilityPolicy, HistoryPolicy, QoSProfile, ReliabilityPolicy
from rosgraph_msgs.msg import Clock

from dust3r_ros.errors import Dust3rError, RecordingError, RosError
from dust3r_ros.ros.bag import RawMessage, Recording, Topic, open_recording
from dust3r_ros.ros.convert import time_of

log = logging.getLogger(__name__)

_LATCHED = ("/tf_static", "/robot_description", "/map")
_POLL_S = 0.05
_SETTLING_S = 0.3  # without a new subscriber, after the first one
_UNFETCHED = 100  # messages a topic keeps for reliable readers that are busy


@dataclass(frozen=True)
class PlayOptions:
    """How to play.

    ``rate`` is how many recorded seconds pass in one; ``topics`` are all of the recording's when empty; ``clock_hz``
    is how often ``/clock`` is published, 0 for never; ``start_s`` and ``duration_s`` choose a part of the recording;
    ``wait_s`` is how long to wait for somebody to subscribe before the first message, 0 for not at all.
    """

    rate: float = 1.0
    loop: bool = False
    topics: tuple[str, ...] = ()
    clock_hz: float = 100.0
    start_s: float = 0.0
    duration_s: float = float("inf")
    wait_s: float = 0.0
    best_effort: bool = False

    def __post_init__(self) -> None:
        if not self.rate > 0:
            raise ValueError(f"rate must be positive, got {self.rate}")
        for name in ("clock_hz", "start_s", "duration_s", "wait_s"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"{name} must not be negative, got {getattr(self, name)}")


@dataclass(frozen=True)
class PlayReport:
    """What was published; ``late_ms`` is the longest delay of a message behind its time."""

    messages: int
    loops: int
    late_ms: float


class Player:
    """Publishes one recording through a node. Ends early once ``stop`` is set."""

    def __init__(self, node: Node, recording: Recording, options: PlayOptions, stop: threading.Event) -> None:
        self._recording = recording
        self._options = options
        self._stop = stop
        topics = self._chosen_topics()
        found = {topic.name: _publisher(node, topic, options) for topic in topics}
        self._publishers = {name: publisher for name, publisher in found.items() if publisher is not None}
        if not self._publishers:
            raise RosError(f"{recording.path} has no topic of a message type that is installed")
        self._clock = node.create_publisher(Clock, "/clock", _qos(10)) if options.clock_hz > 0 else None

    def run(self, progress: Callable[[float], None] | None = None) -> PlayReport:
        """Play to the end, or until stopped. ``progress`` is given the recorded seconds played so far.

        Raises RosError when nobody subscribes in time and RecordingError for a damaged recording.
        """
        self._wait_for_subscribers()
        messages, loops, late_s = 0, 0, 0.0
        while not self._stop.is_set():
            count, late = self._once(progress or (lambda seconds: None))
            messages, loops, late_s = messages + count, loops + 1, max(late_s, late)
            if not self._options.loop:
                break
        self._wait_until_received()
        return PlayReport(messages, loops, 1e3 * late_s)

    def _once(self, progress: Callable[[float], None]) -> tuple[int, float]:
        count, late_s = 0, 0.0
        messages, first_ns = self._part()
        started = time.monotonic()
        for message in messages:
            due = started + 1e-9 * (message.log_ns - first_ns) / self._options.rate
            self._keep_clock(due, message.log_ns)
            if self._stop.is_set():
                break
            late_s = max(late_s, time.monotonic() - due)
            self._publishers[message.topic.name].publish(message.cdr)
            count += 1
            progress(1e-9 * (message.log_ns - first_ns))
        return count, late_s

    def _part(self) -> tuple[Iterator[RawMessage], int]:
        """The messages of the chosen part, and the time at which it begins."""
        messages = self._recording.raw_messages(set(self._publishers))
        first = next(messages, None)
        if first is None:
            raise RecordingError(f"{self._recording.path} has no messages on the chosen topics")
        begin = first.log_ns + int(1e9 * self._options.start_s)
        end = begin + 1e9 * self._options.duration_s
        return (m for m in chain([first], messages) if begin <= m.log_ns <= end), begin

    def _keep_clock(self, due: float, now_ns: int) -> None:
        """Wait until a message is due, publishing the recorded time meanwhile, and then that of the message."""
        rate = self._options.rate
        while (left := due - time.monotonic()) > 0 and not self._stop.is_set():
            if self._clock is None:
                self._stop.wait(left)
                continue
            self._clock.publish(Clock(clock=time_of(now_ns - int(1e9 * left * rate))))
            self._stop.wait(min(left, 1.0 / self._options.clock_hz))
        if self._clock is not None and not self._stop.is_set():
            self._clock.publish(Clock(clock=time_of(now_ns)))

    def _wait_for_subscribers(self) -> None:
        if not self._options.wait_s:
            return
        deadline = time.monotonic() + self._options.wait_s
        while not any(publisher.get_subscription_count() for publisher in self._publishers.values()):
            if time.monotonic() > deadline:
                names = ", ".join(publisher.topic_name for publisher in self._publishers.values())
                raise RosError(f"nobody subscribed within {self._options.wait_s:g} s to any of {names}")
            if self._stop.wait(_POLL_S):
                return
        heard = 0
        while (now := sum(publisher.get_subscription_count() for publisher in self._publishers.values())) > heard:
            heard = now  # whoever reads one topic is about to be heard of on the others
            if self._stop.wait(_SETTLING_S):
                return

    def _wait_until_received(self) -> None:
        """A process that ends takes along what reliable readers have not fetched yet."""
        deadline = time.monotonic() + 5.0
        for publisher in self._publishers.values():
            while not self._stop.is_set() and time.monotonic() < deadline:
                if publisher.wait_for_all_acked(Duration(seconds=0.1)):
                    break

    def _chosen_topics(self) -> list[Topic]:
        known = {topic.name: topic for topic in self._recording.topics if topic.count}
        unknown = [name for name in self._options.topics if name not in known]
        if unknown:
            raise RecordingError(
                f"{self._recording.path} has no topic {', '.join(unknown)}; it has {', '.join(known) or 'none'}"
            )
        names = self._options.topics or tuple(name for name in known if name != "/clock")
        return [known[name] for name in names]


def message_class(name: str) -> Any | None:
    """The Python class of a message type such as ``sensor_msgs/msg/Image``; None when it is not installed."""
    package, _, short = name.partition("/")
    try:
        return getattr(importlib.import_module(f"{package}.msg"), short.rsplit("/", 1)[-1], None)
    except ImportError:
        return None


def _publisher(node: Node, topic: Topic, options: PlayOptions) -> Publisher | None:
    kind = message_class(topic.type)
    if kind is None:
        log.warning("%s is left out: its message type %s is not installed", topic.name, topic.type)
        return None
    return node.create_publisher(kind, topic.name, _topic_qos(topic, options))


def _topic_qos(topic: Topic, options: PlayOptions) -> QoSProfile:
    if topic.name in _LATCHED:
        return _qos(max(topic.count, 1), DurabilityPolicy.TRANSIENT_LOCAL)
    return _qos(_UNFETCHED, best_effort=options.best_effort)


def _qos(
    depth: int, durability: DurabilityPolicy = DurabilityPolicy.VOLATILE, *, best_effort: bool = False
) -> QoSProfile:
    reliability = ReliabilityPolicy.BEST_EFFORT if best_effort else ReliabilityPolicy.RELIABLE
    return QoSProfile(depth=depth, history=HistoryPolicy.KEEP_LAST, reliability=reliability, durability=durability)


def add_play_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of ``dust3r-ros play``."""
    parser.add_argument("bag", help="rosbag2 folder, .mcap, .db3, or ROS 1 .bag")
    parser.add_argument("--rate", type=float, default=1.0, help="recorded seconds a second (default 1)")
    parser.add_argument("--loop", action="store_true", help="begin again at the end")
    parser.add_argument("--topics", nargs="+", default=[], metavar="TOPIC", help="publish only these")
    parser.add_argument("--clock", type=float, default=100.0, metavar="HZ", help="rate of /clock, 0 for none")
    parser.add_argument("--start", type=float, default=0.0, metavar="SECONDS", help="leave out the beginning")
    parser.add_argument("--duration", type=float, default=float("inf"), metavar="SECONDS", help="play only so much")
    parser.add_argument(
        "--wait", type=float, default=0.0, metavar="SECONDS", help="wait this long for a subscriber before beginning"
    )
    parser.add_argument("--best-effort", action="store_true", help="as a camera driver does; the default is reliable")


def play_options(arguments: argparse.Namespace) -> PlayOptions:
    """The options given on the command line. Raises RosError for values that make no sense."""
    try:
        return PlayOptions(
            rate=arguments.rate,
            loop=arguments.loop,
            topics=tuple(arguments.topics),
            clock_hz=arguments.clock,
            start_s=arguments.start,
            duration_s=arguments.duration,
            wait_s=arguments.wait,
            best_effort=arguments.best_effort,
        )
    except ValueError as error:
        raise RosError(str(error)) from error


def play(
    path: str, options: PlayOptions, progress: Callable[[float], None] | None = None, ros_args: Sequence[str] = ()
) -> PlayReport | None:
    """Play a recording in this process; None when it was told to stop. ``ros_args`` begin with ``--ros-args``.

    Raises RecordingError for a recording that cannot be read and RosError when it cannot be played.
    """
    stop = threading.Event()
    with open_recording(path) as recording:
        rclpy.init(args=["dust3r_play", *ros_args])
        rclpy.get_default_context().on_shutdown(stop.set)
        try:
            node = rclpy.create_node("dust3r_play")
            return Player(node, recording, options, stop).run(progress)
        except (KeyboardInterrupt, ExternalShutdownException):
            return None
        except rclpy_implementation.RCLError:
            if rclpy.ok():
                raise
            return None
        finally:
            rclpy.try_shutdown()


def main(argv: Sequence[str] | None = None) -> int:
    """``dust3r-ros play BAG``: the exit code, 2 for a user's mistake."""
    given = list(sys.argv[1:] if argv is None else argv)
    split = given.index("--ros-args") if "--ros-args" in given else len(given)
    parser = argparse.ArgumentParser(prog="dust3r-ros play", description=__doc__.splitlines()[0] if __doc__ else None)
    add_play_arguments(parser)
    logging.basicConfig(format="%(message)s", level=logging.INFO)
    try:
        report = play(*_arguments(parser, given[:split]), ros_args=given[split:])
    except Dust3rError as error:
        sys.stderr.write(f"dust3r-ros play: {error}\n")
        return 2
    if report is not None:
        log.info("%d messages played, at most %.0f ms late", report.messages, report.late_ms)
    return 0


def _arguments(parser: argparse.ArgumentParser, given: Sequence[str]) -> tuple[str, PlayOptions]:
    arguments = parser.parse_args(given)
    return arguments.bag, play_options(arguments)


if __name__ == "__main__":
    sys.exit(main())
