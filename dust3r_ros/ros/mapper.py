"""From images to the map: one thread looks at every image; of those that become keyframes a second predicts the
geometry, and a third puts them into the map.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from typing import TypeVar

from dust3r_ros.config import NodeConfig
from dust3r_ros.data import FloatArray, Update
from dust3r_ros.errors import DeviceMemoryError
from dust3r_ros.landmarks import Landmarks
from dust3r_ros.memory import MapMemory
from dust3r_ros.paired import PairedKeyframe
from dust3r_ros.pipeline import Reconstructor
from dust3r_ros.ros.cameras import Frame, Shot
from dust3r_ros.ros.frames import MapFrames
from dust3r_ros.ros.lookout import Lookout
from dust3r_ros.ros.memory import HeapLimit, WindowLimit, release_memory
from dust3r_ros.ros.pose_stream import PoseStream
from dust3r_ros.ros.publishers import Publishers
from dust3r_ros.ros.saving import Loaded, MapKeeper, Saved, map_inside
from dust3r_ros.ros.stages import Stages
from dust3r_ros.ros.statistics import Drop, Statistics

log = logging.getLogger(__name__)

Answer = TypeVar("Answer")

_QUICK_S = 0.5
_SEARCH_EVERY = 4  # keyframes: how often loops are looked for while others wait
_NICE = 5  # of the worker: poses at camera rate come before the next keyframe where both share a processor


@dataclass(frozen=True, eq=False)
class _Paired:
    """A keyframe that waits for its place; ``camera_in_reference`` (4, 4) is where TF had the camera, if it knew."""

    keyframe: PairedKeyframe
    camera_in_reference: FloatArray | None


class Mapper:
    """The reconstruction, its three threads, and its results on the publishers.

    ``offer`` is for the executor's thread and only queues. Raises CheckpointError for a model that cannot be loaded,
    ConfigError for one that cannot run here.
    """

    def __init__(
        self, config: NodeConfig, frames: MapFrames, outputs: Publishers, statistics: Statistics,
        changed: Callable[[], None], name: str,
    ) -> None:  # fmt: skip
        """``changed`` is called in the worker's thread after each keyframe; ``name`` is the node's."""
        self.config = config
        self.frames = frames
        self.statistics = statistics
        self.map_points = 0
        self.failure = ""  # what the last keyframe failed with, empty when it did not
        self._outputs = outputs
        self._changed = changed
        self._reconstructor = Reconstructor(config.reconstructor)
        self._warm_up()
        self._keeper = MapKeeper(self._reconstructor, frames.map, config.map_folder, name)
        self._limit = self._new_limit()
        self._newest_ns = 0
        self._unsearched = 0  # keyframes since loops were looked for
        self._heap = HeapLimit()
        self._landmarks = Landmarks()
        self._poses = PoseStream(config, frames, outputs, statistics.tracking, self._landmarks, self._on_lost)
        self._counting = threading.Lock()  # an image is counted and queued at once, or a reset clears both
        self._worker: Stages[Frame, _Paired] = Stages(
            self._pair, self._reconstruct, config.queue_size, self._on_failed, nice=_NICE
        )
        self._lookout = Lookout(
            self._reconstructor, frames, self._poses, self._worker, statistics, config.image_history
        )
        self._lookout.start()
        self._worker.start()

    def _warm_up(self) -> None:
        try:
            self._reconstructor.warm_up()
        except DeviceMemoryError as error:  # another program may have it now, and give it back
            log.warning("%s: the first keyframe will tell whether there is more", error)

    @property
    def reconstructor(self) -> Reconstructor:
        """The reconstruction; its map belongs to the worker's second thread."""
        return self._reconstructor

    @property
    def queue_length(self) -> int:
        """Keyframes waiting for the worker."""
        return self._worker.queue_length

    @property
    def window(self) -> int:
        """Keyframes a new one is paired with; fewer than configured where the device's memory is short."""
        return self._limit.keyframes

    @property
    def failed_saves(self) -> tuple[int, str]:
        """How often the map could not be saved by itself, and why the last time; no reason when it was saved since."""
        return self._keeper.failed_saves, self._keeper.save_failure

    def offer(self, shot: Shot) -> None:
        """Count an image and queue it to be looked at; the oldest gives way."""
        with self._counting:
            self.statistics.received(shot.stamp_ns)
            if self._lookout.offer(shot) is not None:
                self.statistics.dropped(Drop.UNSEEN)

    def take_next(self, cameras: list[str]) -> None:
        """Make the next image of each camera a keyframe, if there is anything to be seen in it."""
        self._lookout.take_next(cameras)

    def reconfigure(self, config: NodeConfig) -> None:
        """Take over the live options."""
        self.config = self._poses.config = config
        self._reconstructor.reconfigure(config.reconstructor)

    def time_began_anew(self, cameras: list[str]) -> None:
        """The images' stamps went back, and the map is kept: each camera has to be found in it by a keyframe."""
        self._outputs.time_began_anew()
        self.take_next(cameras)
        self._lookout.call(self._poses.reset)

    def refresh(self) -> None:
        """Publish path and map, and save the map by itself, when they are due."""
        if self._keeper.due(self.config.autosave_period) and self._worker.task_count == 0:
            self._worker.call(self._keeper.save_by_itself)
        period = self.config.map_period
        if self._outputs.due(period) and self._worker.task_count == 0:
            task = self._worker.call(lambda: self._outputs.latest(self._newest_ns, self._reconstructor, period))
            task.add_done_callback(self._on_published)

    def reset(self) -> Future[None]:
        """Forget map, path, counts and what waits, once no thread is at work on an image."""
        return self._lookout.call(lambda: self._worker.call_alone(self._reset).result())

    def save(self, path: str) -> Future[Saved]:
        """Write the map to a folder inside the configured one, before the waiting keyframes are worked on."""
        newest = self.statistics.snapshot().newest
        intrinsics = newest.intrinsics if newest is not None else None
        return self._worker.call(lambda: self._keeper.save(self.config.map_folder, path, intrinsics))

    def load(self, memory: MapMemory) -> Future[Loaded]:
        """Go on in a map; what was mapped, counted and waits is forgotten."""
        return self._lookout.call(lambda: self._worker.call_alone(lambda: self._load(memory)).result())

    def resume(self) -> None:
        """Go on in the map that the node saved by itself, if ``resume`` says so."""
        folder = self.config.map_folder
        self._keeper.resume(self.config.resume, lambda path: self.load(map_inside(folder, path)).result())

    def ask(self, question: Callable[[Reconstructor], Answer]) -> Future[Answer]:
        """What the reconstruction says, before the waiting keyframes are worked on."""
        return self._worker.call(lambda: question(self._reconstructor))

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
        self._keeper.ended()
        if stopped:
            del self._reconstructor, self._keeper, self._lookout, self._limit
            release_memory()
        return stopped

    def _on_lost(self, camera: str) -> None:
        """A camera is not tracked for long: alignment may place a keyframe, unless it has enough to do."""
        if self.queue_length == 0:
            self.take_next([camera])

    # In the worker's threads: in the first one.

    def _pair(self, frame: Frame) -> _Paired | None:
        known = self.frames.camera_in_reference(frame.camera_frame, frame.stamp_ns, self.config.transform_timeout)
        if known is None and self._reconstructor.keyframes < 2:  # the map cannot begin anywhere
            self.statistics.dropped(Drop.NO_TRANSFORM)
            self.take_next([frame.camera])
            return None
        image = frame.image if frame.lens is None else frame.lens.undistorted(frame.image)
        intrinsics = frame.lens.intrinsics if frame.lens is not None else None
        keyframe = self._limit.within(lambda: self._reconstructor.pair(image, frame.stamp_ns, frame.camera, intrinsics))
        return _Paired(keyframe, known)

    # In the second one.

    def _reset(self) -> None:
        self._reconstructor.reset()
        self.frames.map.metric = False
        self._forget()
        self._outputs.cleared(self._newest_ns)

    def _load(self, memory: MapMemory) -> Loaded:
        loaded = self._keeper.load(memory)
        self._forget()
        self.map_points, self._newest_ns = loaded.points, loaded.newest_ns
        self._outputs.jumped()
        self._outputs.revised()
        return loaded

    def _forget(self) -> None:
        """Nothing of the images before is left, but the model and the map."""
        self._landmarks.clear()
        self._lookout.forget()
        self._limit = self._new_limit()
        with self._counting:
            self._lookout.clear()
            self._worker.clear()
            self.statistics.reset()
            self.map_points, self.failure = 0, ""
        release_memory()

    def _new_limit(self) -> WindowLimit:
        return WindowLimit(self.config.reconstructor.window, self._reconstructor.limit_window)

    def _reconstruct(self, frame: Frame, paired: _Paired) -> None:
        known = paired.camera_in_reference
        update = self._limit.within(lambda: self._reconstructor.place(paired.keyframe))
        self.failure = ""
        if update.view.registered:
            self._newest_ns = frame.stamp_ns
            self._keeper.changed()
        else:
            self._lookout.not_placed(frame.camera)
        try:
            self._feed_scale(frame, known)
            resized = update.view.registered and self._publish(frame, update, known)
            latency_s = time.monotonic() - frame.arrived
        finally:  # what has its place is in the map, whatever becomes of its messages
            update = self._reconstructor.fuse(update)
            self.map_points = len(self._reconstructor.map)
        if update.view.registered:
            self._outputs.revised()
        if resized:  # all of the map at once, whatever its period
            self._outputs.latest(frame.stamp_ns, self._reconstructor, 0.0)
        self.statistics.finished(update, latency_s)
        self._changed()
        self._unsearched += 1
        if self._worker.queue_length == 0 or self._unsearched >= _SEARCH_EVERY:
            self._unsearched = 0
            self._close_loops()
        self._heap.keep(idle=self._worker.queue_length == 0)

    def _close_loops(self) -> None:
        if changes := self._reconstructor.close_loops():
            self._landmarks.follow(changes)
            self._outputs.jumped()
            self._keeper.changed()
            self._outputs.revised()
            self.map_points = len(self._reconstructor.map)

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

    def _publish(self, frame: Frame, update: Update, camera_in_reference: FloatArray | None) -> bool:
        """What a keyframe gives before its points are in the map; whether all of the map has another size now."""
        pose = update.view.camera_to_world
        begins = self._reconstructor.keyframes == 1
        if begins:
            self._landmarks.clear()
            if camera_in_reference is not None:
                moved = self.frames.camera_in_odometry(frame.camera_frame, frame.stamp_ns, camera_in_reference)
                self.frames.anchor(camera_in_reference, pose, moved)
        resized = self.frames.map.measured(self._reconstructor.metric_scale)
        if begins or resized:
            self._outputs.jumped()
        self._poses.keyframe(frame, pose, camera_in_reference)
        self._landmarks.take(update)
        self._outputs.keyframe(update, frame.camera_frame, self.config.reconstructor.map)
        return resized

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
