"""What /diagnostics says, once a second: OK while all is well, WARN for what a user should look at, ERROR for what
keeps the node from doing its work.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus, KeyValue
from rclpy.node import Node

from dust3r_ros.config import NodeConfig
from dust3r_ros.predictor import PredictorInfo
from dust3r_ros.ros.cameras import Camera
from dust3r_ros.ros.convert import state_name
from dust3r_ros.ros.mapper import Mapper
from dust3r_ros.ros.memory import resident_mb
from dust3r_ros.ros.qos import reliable
from dust3r_ros.ros.statistics import Drop, Snapshot
from dust3r_ros.ros.tracking_statistics import PoseFate
from dust3r_ros.tracking import TrackingState

OK, WARN, ERROR = DiagnosticStatus.OK, DiagnosticStatus.WARN, DiagnosticStatus.ERROR
_FULL_SHARE = 0.5  # of the keyframes since the last report, given way to newer ones, that is worth a warning


@dataclass(frozen=True)
class Finding:
    """One status: what about, how bad, in words, and the figures."""

    part: str
    level: bytes = OK
    message: str = "ok"
    values: dict[str, object] = field(default_factory=dict)
    said: bool = True  # on the log too


class Diagnostics:
    """Publishes on /diagnostics, and says on the log what is new among its warnings and errors."""

    def __init__(self, node: Node) -> None:
        self._node = node
        self._publisher = node.create_publisher(DiagnosticArray, "/diagnostics", reliable(10))
        self._before = Snapshot()
        self._said: dict[str, str] = {}

    def report(self, state: str, cameras: Sequence[Camera], mapper: Mapper | None, config: NodeConfig) -> None:
        """One message. ``state`` is the life cycle's."""
        findings = [Finding("life cycle", message=state)]
        findings += camera_findings(cameras, config.silent_after)
        if mapper is not None:
            snapshot = mapper.statistics.snapshot()
            findings += [
                mapping_finding(mapper, snapshot, self._before),
                tracking_finding(mapper, snapshot),
                model_finding(mapper),
                frames_finding(mapper, snapshot),
            ]
            self._before = snapshot
        self._say(findings)
        self._publish(findings, mapper.reconstructor.info if mapper is not None else None)

    def _say(self, findings: Iterable[Finding]) -> None:
        """On the log, each trouble once, and when it is over."""
        said = {f.part: f.message for f in findings if f.level != OK and f.said}
        for part, message in said.items():
            if _gist(self._said.get(part, "")) != _gist(message):
                self._node.get_logger().warning(f"{part}: {message}")
        for part in self._said.keys() - said.keys():
            self._node.get_logger().info(f"{part}: ok again")
        self._said = said

    def _publish(self, findings: Iterable[Finding], info: PredictorInfo | None) -> None:
        array = DiagnosticArray()
        array.header.stamp = self._node.get_clock().now().to_msg()
        name = self._node.get_fully_qualified_name().lstrip("/")
        device = info.device if info is not None else ""
        array.status = [
            DiagnosticStatus(
                level=finding.level,
                name=f"{name}: {finding.part}",
                message=finding.message,
                hardware_id=device,
                values=[KeyValue(key=key, value=str(value)) for key, value in finding.values.items()],
            )
            for finding in findings
        ]
        self._publisher.publish(array)


def camera_findings(cameras: Sequence[Camera], silent_after_s: float) -> list[Finding]:
    """One finding a camera: images that cannot arrive, or have not for long, by topic."""
    findings = []
    for camera in cameras:
        topic, level, message = camera.topics.image, OK, "ok"
        silent_s = camera.silent_s()
        mismatches = camera.mismatches()
        if silent_s >= silent_after_s:
            level, message = ERROR, f"no image on {topic} for {silent_s:.0f} s: {camera.silence()}"
        elif mismatches:
            level, message = ERROR, f"images on {topic} cannot arrive: {'; '.join(mismatches)}"
        values = {
            "received": camera.received, "last image, s ago": f"{silent_s:.1f}", "camera info": camera.calibration,
        }  # fmt: skip
        findings.append(Finding(f"camera {topic}", level, message, values))
    return findings


def mapping_finding(mapper: Mapper, snapshot: Snapshot, before: Snapshot) -> Finding:
    """Whether images become part of the map, how fast, and why not."""
    state = state_name(snapshot, paused=False)
    full = snapshot.dropped.get(Drop.QUEUE_FULL, 0) - before.dropped.get(Drop.QUEUE_FULL, 0)
    done = snapshot.keyframes - before.keyframes
    level, message = OK, state
    failed_saves, unsaved = mapper.failed_saves
    if mapper.failure:
        level, message = ERROR, f"the last keyframe failed: {mapper.failure}"
    elif snapshot.lost:
        level, message = WARN, "lost: the last keyframe shares nothing with the map"
    elif full > 0 and full >= _FULL_SHARE * (full + done):
        level, message = WARN, f"too slow: {full} of {full + done} keyframes gave way to newer ones"
    elif mapper.window < mapper.config.reconstructor.window:
        configured = mapper.config.reconstructor.window
        level, message = WARN, f"device memory is short: window {mapper.window} instead of {configured}"
    elif unsaved:
        level, message = WARN, f"the map is not saved by itself: {unsaved}"
    values: dict[str, object] = {
        "images": snapshot.received,
        "image rate, 1/s": f"{snapshot.image_rate:.1f}",
        "image callback p99, ms": f"{snapshot.callback_p99_ms:.1f}",
        "keyframes": snapshot.keyframes,
        "keyframe rate, 1/s": f"{snapshot.keyframe_rate:.2f}",
        "latency, ms": f"{snapshot.latency_ms:.0f}",
        "queue": f"{mapper.queue_length} of {mapper.config.queue_size}",
        "window": mapper.window,
        "map points": mapper.map_points,
        "failed autosaves": failed_saves,
    }
    values.update({f"dropped, {drop.value}": snapshot.dropped.get(drop, 0) for drop in Drop})
    if (newest := snapshot.newest) is not None:
        for stage in ("encode_ms", "decode_ms", "align_ms", "fuse_ms"):
            values[stage.replace("_ms", ", ms")] = f"{getattr(newest.times, stage):.1f}"
        values["alignment residual"] = f"{newest.edge_residual:.4f}"
    return Finding("mapping", level, message, values, said=False)  # the worker says it keyframe by keyframe


def tracking_finding(mapper: Mapper, snapshot: Snapshot) -> Finding:
    """Whether images between the keyframes have poses, how many and how soon."""
    if not mapper.config.reconstructor.tracking.enabled:
        return Finding("tracking", message="off")
    tracking, level, message = snapshot.tracking, OK, snapshot.tracking.word
    if tracking.state is TrackingState.LOST:
        lost = [camera for camera, state in tracking.states.items() if state is TrackingState.LOST]
        level, message = WARN, f"lost: too few points fit the newest image on {' and '.join(lost)}"
    values: dict[str, object] = {
        **{f"state of {camera}": state.value for camera, state in tracking.states.items()},
        "points": tracking.points,
        "inliers": tracking.inliers,
        "pose rate, 1/s": f"{tracking.rate:.1f}",
        "pose latency, ms": f"{tracking.latency_ms:.0f}",
        "relocalisations": tracking.relocalisations,
        **{f"images, {fate.value}": tracking.counts.get(fate, 0) for fate in PoseFate},
    }
    return Finding("tracking", level, message, values)


def model_finding(mapper: Mapper) -> Finding:
    """What predicts, under which licence, and the memory in use."""
    info = mapper.reconstructor.info
    level, message = (OK, info.name) if info.trained else (WARN, f"{info.name} is not trained: its weights are random")
    values: dict[str, object] = {
        "model": info.name, "licence": info.licence or "none", "device": info.device, "trained": info.trained,
        "process memory, MB": f"{resident_mb():.0f}",
    }  # fmt: skip
    if info.device.startswith("cuda"):
        cuda = sys.modules["torch"].cuda
        values["device memory, MB"] = f"{cuda.memory_reserved(info.device) / 1e6:.0f}"
        values["device memory in all, MB"] = f"{cuda.get_device_properties(info.device).total_memory / 1e6:.0f}"
    return Finding("model", level, message, values)


def frames_finding(mapper: Mapper, snapshot: Snapshot) -> Finding:
    """Where the map hangs on TF, and its scale."""
    config, problem = mapper.config, mapper.frames.problem
    metric = mapper.frames.map.metric
    level, message = (WARN, problem) if problem else (OK, "ok")
    if not problem and mapper.frames.needs_transforms and snapshot.newest is not None and not metric:
        level = WARN
        message = f"the map has no metric scale: below {config.map_frame} distances do not fit the robot's"
    values: dict[str, object] = {
        "tf_mode": config.tf_mode,
        "map frame": config.map_frame,
        "scale": "metric" if metric else "unknown",
        "map units in a world unit": f"{mapper.frames.map.from_world.scale:.4g}",
    }
    return Finding("frames", level, message, values)


def _gist(message: str) -> str:
    """A message without its figures, which change from second to second."""
    return "".join(character for character in message if not character.isdigit())
