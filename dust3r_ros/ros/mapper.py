"""From images to the map: one thread looks at every image, another reconstructs those that become keyframes."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path

from dust3r_ros.config import NodeConfig
from dust3r_ros.data import ByteImage, FloatArray, Update
from dust3r_ros.errors import DeviceMemoryError, RosError
from dust3r_ros.pipeline import Reconstructor
from dust3r_ros.ros.calibration import CalibrationMissingError
from dust3r_ros.ros.cameras import Frame
from dust3r_ros.ros.frames import MapFrames
from dust3r_ros.ros.memory import HeapLimit, release_memory
from dust3r_ros.ros.publishers import Publishers
from dust3r_ros.ros.rigs import CameraRig
from dust3r_ros.ros.saving import folder_inside, save_map
from dust3r_ros.ros.statistics import Drop, Statistics, drop_of
from dust3r_ros.ros.worker import Worker

log = logging.getLogger(__name__)

_QUICK_S = 0.5
_SAY_S = 5.0  # between two messages about images that cannot be used


@dataclass(frozen=True, eq=False)
class Shot:
    """An image that has arrived and has not been looked at; ``read`` makes a frame of it, or raises RosError."""

    stamp_ns: int
    read: Callable[[], Frame]


@dataclass(frozen=True)
class Saved:
    """The files of a map that was written, and its number of points."""

    files: list[Path]
    points: int


class Mapper:
    """The reconstruction, its two threads, and its results on the publishers.

    ``offer`` is for the executor's thread and only queues. Raises CheckpointError for a model that cannot be loaded.
    """

    def __init__(
        self, config: NodeConfig, frames: MapFrames, outputs: Publishers, statistics: Statistics,
        changed: Callable[[], None],
    ) -> None:  # fmt: skip
        """``changed`` is called in the worker's thread after each keyframe."""
        self.config = config
        self.frames = frames
        self.statistics = statistics
        self.map_points = 0
        self.failure = ""  # what the last keyframe failed with, empty when it did not
        self._outputs = outputs
        self._changed = changed
        self._reconstructor = Reconstructor(config.reconstructor)
        self._window = config.reconstructor.window
        self._newest_ns = 0
        self._said_at = -_SAY_S
        self._anew: set[str] = set()  # cameras whose next image is to be a keyframe
        self._heap = HeapLimit()
        self._rig = CameraRig(frames.baseline_m, self._reconstructor.add_baseline)
        self._counting = threading.Lock()  # an image is counted and queued at once, or a reset clears both
        self._lookout: Worker[Shot] = Worker(self._look, config.image_history, self._on_unusable)
        self._worker: Worker[Frame] = Worker(self._reconstruct, config.queue_size, self._on_failed)
        self._lookout.start()
        self._worker.start()

    @property
    def reconstructor(self) -> Reconstructor:
        """The reconstruction; its map belongs to the worker's thread."""
        return self._reconstructor

    @property
    def queue_length(self) -> int:
        """Keyframes waiting for the worker."""
        return self._worker.queue_length

    @property
    def window(self) -> int:
        """Keyframes a new one is paired with; fewer than configured where the device's memory is short."""
        return self._window

    def offer(self, shot: Shot) -> None:
        """Count an image and queue it to be looked at; the oldest gives way."""
        with self._counting:
            self.statistics.received(shot.stamp_ns)
            if self._lookout.offer(shot) is not None:
                self.statistics.dropped(Drop.UNSEEN)

    def take_next(self, cameras: list[str]) -> None:
        """Make the next image of each camera a keyframe, if there is anything to be seen in it."""
        self._anew.update(cameras)

    def reconfigure(self, config: NodeConfig) -> None:
        """Take over the live options."""
        self.config = config
        self._reconstructor.reconfigure(config.reconstructor)

    def refresh(self) -> None:
        """Publish path and map when they are due."""
        period = self.config.map_period
        if self._outputs.due(period) and self._worker.task_count == 0:
            task = self._worker.call(lambda: self._outputs.latest(self._newest_ns, self._reconstructor, period))
            task.add_done_callback(self._on_published)

    def reset(self) -> Future[None]:
        """Forget map, path, counts and what waits, once neither thread is at work on an image."""
        return self._lookout.call(lambda: self._worker.call(self._reset).result())

    def save(self, path: str) -> Future[Saved]:
        """Write the map to a folder inside the configured one, before the waiting keyframes are worked on."""
        return self._worker.call(lambda: self._save(path))

    def idle(self, timeout_s: float) -> bool:
        """Forget what waits, and wait for the keyframe in hand; False when it took longer."""
        with self._counting:
            self.statistics.dropped(Drop.UNSEEN, self._lookout.clear())
            self.statistics.dropped(Drop.QUEUE_FULL, self._worker.clear())
        return self._lookout.wait_idle(timeout_s) and self._worker.wait_idle(timeout_s)

    def close(self) -> bool:
        """Stop, and free the device's memory; False when the keyframe in hand had to be left alone."""
        # The worker first: its cancelled tasks may be what the lookout waits for.
        stopped = all([self._worker.stop(_QUICK_S), self._lookout.stop(_QUICK_S)])
        if stopped:
            del self._reconstructor
            release_memory()
        return stopped

    # In the lookout's thread.

    def _look(self, shot: Shot) -> None:
        frame = shot.read()
        anew = frame.camera in self._anew
        decision = self._reconstructor.select(frame.image, frame.stamp_ns, frame.camera, anew=anew)
        reason = drop_of(decision.reason)
        self._rig.meet(frame)
        if not decision.take and not (reason is Drop.NOT_NEEDED and self._rig.wants(frame)):
            self.statistics.dropped(reason)
            return
        self._anew.discard(frame.camera)
        companions = self._rig.taken(frame)
        self.statistics.dropped(Drop.NOT_NEEDED, -len(companions))
        for taken in (frame, *companions):
            if self._worker.offer(taken) is not None:
                self.statistics.dropped(Drop.QUEUE_FULL)

    def _on_unusable(self, shot: Shot, error: Exception) -> None:
        waits = isinstance(error, CalibrationMissingError)
        self.statistics.dropped(Drop.NO_CALIBRATION if waits else Drop.INVALID)
        kind = "" if isinstance(error, RosError) else f"{type(error).__name__}: "
        if time.monotonic() - self._said_at >= _SAY_S:
            self._said_at = time.monotonic()
            log.warning("image skipped: %s%s", kind, error)

    # In the worker's thread.

    def _reset(self) -> None:
        self._reconstructor.reset()
        self._rig = CameraRig(self.frames.baseline_m, self._reconstructor.add_baseline)
        self._window = self.config.reconstructor.window
        with self._counting:
            self._lookout.clear()
            self._worker.clear()
            self.statistics.reset()
            self.map_points, self.failure = 0, ""
        self._outputs.cleared(self._newest_ns)
        release_memory()

    def _save(self, path: str) -> Saved:
        newest = self.statistics.snapshot().newest
        folder = folder_inside(self.config.map_folder, path)
        intrinsics = newest.intrinsics if newest is not None else None
        return Saved(save_map(self._reconstructor, self.frames.map, intrinsics, folder), self.map_points)

    def _reconstruct(self, frame: Frame) -> None:
        known = self.frames.camera_in_reference(frame.camera_frame, frame.stamp_ns, self.config.transform_timeout)
        if known is None and len(self._reconstructor.trajectory()) < 2:  # the map cannot begin anywhere
            self.statistics.dropped(Drop.NO_TRANSFORM)
            self._anew.add(frame.camera)
            return
        update = self._within_memory(frame, self._undistorted(frame))
        self.map_points = len(self._reconstructor.map)
        self.failure = ""
        self._feed_scale(frame, known)
        if update.view.registered:
            self._newest_ns = frame.stamp_ns
            self._publish(frame, update, known)
        self.statistics.finished(update, frame.arrived)
        self._changed()
        if self._reconstructor.close_loops():  # after publishing: a keyframe does not wait for it
            self._outputs.revised()
            self.map_points = len(self._reconstructor.map)
        self._heap.keep(idle=self._worker.queue_length == 0)

    def _feed_scale(self, frame: Frame, camera_in_reference: FloatArray | None) -> None:
        """Tell the reconstruction where odometry has the camera, for the scale from the next keyframe on.

        Called after a keyframe's own work: odometry of its time has come by then, without a wait.
        """
        pose = self.frames.camera_in_odometry(frame.camera_frame, frame.stamp_ns, camera_in_reference)
        if pose is None:
            return
        try:
            self._reconstructor.add_odometry(frame.stamp_ns, pose, camera=frame.camera)
        except ValueError as error:  # time went back and the map was kept (on_time_jump)
            log.debug("odometry is not used for the scale: %s", error)

    def _publish(self, frame: Frame, update: Update, camera_in_reference: FloatArray | None) -> None:
        pose = update.view.camera_to_world
        if camera_in_reference is not None and len(self._reconstructor.trajectory()) == 1:
            self.frames.anchor(camera_in_reference, pose)
        resized = self.frames.map.measured(self._reconstructor.metric_scale)
        edge = self.frames.edge(frame.camera_frame, pose, camera_in_reference)
        self._outputs.keyframe(update, frame.camera_frame, self.config.reconstructor.map, edge)
        if resized:  # all of the map at once, whatever its period
            self._outputs.latest(frame.stamp_ns, self._reconstructor, 0.0)

    def _undistorted(self, frame: Frame) -> ByteImage:
        return frame.image if frame.lens is None else frame.lens.undistorted(frame.image)

    def _within_memory(self, frame: Frame, image: ByteImage) -> Update:
        """Reconstruct with as much of the window as the device has memory for."""
        intrinsics = frame.lens.intrinsics if frame.lens is not None else None
        while True:
            try:
                return self._reconstructor.reconstruct(image, frame.stamp_ns, frame.camera, intrinsics)
            except DeviceMemoryError as error:
                if self._window == 1:
                    raise
                self._window //= 2
                log.warning("%s: keyframes are paired with %d older ones from now on", error, self._window)
                self._reconstructor.limit_window(self._window)
                release_memory()

    def _on_published(self, done: Future[None]) -> None:
        if not done.cancelled() and (error := done.exception()) is not None and self._outputs.alive:
            log.error("map and path not published: %s: %s", type(error).__name__, error)

    def _on_failed(self, frame: Frame, error: Exception) -> None:
        if not self._outputs.alive:  # what is published after the end fails
            return
        self.failure = f"{type(error).__name__}: {error}"
        self.statistics.dropped(Drop.FAILED)
        log.error("keyframe at %d ns dropped: %s", frame.stamp_ns, self.failure)
        self._changed()
