"""Saving and loading the map, only ever inside the folder the node was configured with."""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime, timezone
from functools import cached_property
from pathlib import Path

from dust3r_ros.data import Intrinsics
from dust3r_ros.errors import Dust3rError, RosError
from dust3r_ros.mapping.export import CameraRecord, replacing, stamp_text, write_cameras_json, write_cloud, write_tum
from dust3r_ros.memory import FILE_NAME, MapMemory, read_memory, write_memory
from dust3r_ros.pipeline import Reconstructor
from dust3r_ros.ros.map_frame import MapFrame
from dust3r_ros.ros.schedule import Schedule

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Saved:
    """The files of a map that was written, and its number of points."""

    files: list[Path]
    points: int


@dataclass(frozen=True)
class Loaded:
    """How large a map is that was loaded, and the stamp of its newest keyframe."""

    keyframes: int
    points: int
    newest_ns: int


def folder_inside(root: str, asked: str) -> Path:
    """The folder ``asked`` for, which may be relative to ``root``; a new one named by the time when empty.

    Raises RosError when it lies outside ``root``, links followed, or when there is no home that a ``~`` could mean.
    """
    try:
        top = Path(root).expanduser().resolve()
        folder = (top / Path(asked or _now()).expanduser()).resolve()
    except RuntimeError as error:
        raise RosError(
            f"~ means no folder, in map_folder {root!r} or path {asked!r}: {error} (is HOME set?)"
        ) from error
    if not folder.is_relative_to(top):
        raise RosError(f"path must lie inside map_folder ({top}), got {asked}")
    return folder


def map_inside(root: str, asked: str) -> MapMemory:
    """The map of the folder ``asked`` for, inside ``root``. Raises RosError and RecordingError by what is wrong."""
    if not asked:
        raise RosError("path must name the folder of a map, got an empty one")
    return read_memory(folder_inside(root, asked) / FILE_NAME)


def _now() -> str:
    return datetime.now(timezone.utc).strftime("%Y-%m-%d_%H-%M-%S")


def save_map(reconstructor: Reconstructor, frame: MapFrame, intrinsics: Intrinsics | None, folder: Path) -> list[Path]:
    """Write ``cloud.ply``, ``trajectory.tum`` and ``cameras.json``, in ``frame``, and ``session.npz``, in which another
    session can go on; the files written.

    ``intrinsics`` are the camera's for its original image, None when unknown: then there is no ``cameras.json``.
    Raises RosError for an empty map and ExportError when the system refuses.
    """
    cloud = frame.placed(reconstructor.cloud())
    trajectory = frame.path(reconstructor.trajectory())
    if not len(cloud):
        raise RosError("the map is empty: there is nothing to save")
    files = [folder / "cloud.ply", folder / "trajectory.tum"]
    write_cloud(cloud, files[0])
    write_tum(trajectory, files[1])
    if intrinsics is not None:
        files.append(folder / "cameras.json")
        cameras = [CameraRecord(stamp_text(stamp), intrinsics, pose) for stamp, pose in trajectory]
        write_cameras_json(cameras, files[2], metric=frame.metric)
    write_session(reconstructor, frame, folder / FILE_NAME)
    return [*files, folder / FILE_NAME]


def write_session(reconstructor: Reconstructor, frame: MapFrame, file: Path) -> None:
    """Write all that another session needs to go on in the map. Raises ExportError when the system refuses."""
    write_memory(frame.remembered(reconstructor.memory()), file)


class MapKeeper:
    """A node's map on disk: written and read on request, and saved by itself while it changes.

    ``changed``, ``save``, ``load`` and ``save_by_itself`` belong to the worker's thread. A mark beside what was saved
    by itself tells, at the next start, that the node did not end in order.
    """

    def __init__(self, reconstructor: Reconstructor, frame: MapFrame, map_folder: str, node: str) -> None:
        """``node`` is its full name: nodes that share a folder do not share what they save by themselves."""
        self._reconstructor = reconstructor
        self._frame = frame
        self._map_folder = map_folder
        self._node = node
        self._begun = False
        self._unsaved = Schedule()
        self.failed_saves = 0  # by itself
        self.save_failure = ""  # of the last of them, empty when the map was saved since

    @cached_property
    def _own(self) -> Path:
        """Where it saves by itself; found only when it does, for that may fail."""
        return folder_inside(self._map_folder, f"autosave/{'.'.join(filter(None, self._node.split('/')))}")

    @property
    def _mark(self) -> Path:
        return self._own / "running"

    def save(self, map_folder: str, path: str, intrinsics: Intrinsics | None) -> Saved:
        """Write the map to a folder inside ``map_folder``. Raises RosError and ExportError."""
        files = save_map(self._reconstructor, self._frame, intrinsics, folder_inside(map_folder, path))
        return Saved(files, len(self._reconstructor.map))

    def load(self, memory: MapMemory) -> Loaded:
        """Go on in a map. Raises RecordingError, and changes nothing then."""
        self._reconstructor.recall(memory)
        self._frame.restore(memory)
        newest_ns = max(placed.stamp_ns for placed in memory.placed.values())
        return Loaded(len(memory.placed), len(self._reconstructor.map), newest_ns)

    def changed(self) -> None:
        """The map is no longer what was saved last."""
        self._unsaved.changed()

    def due(self, period_s: float) -> bool:
        """Whether the map is to be saved by itself now, at most once in ``period_s``; 0 is never."""
        return self._unsaved.due(period_s, period_s > 0)

    def save_by_itself(self) -> None:
        """Write the session alone; what hinders it is said on the log, and it is due again after the next period."""
        self._unsaved.published()
        try:
            write_session(self._reconstructor, self._frame, self._own / FILE_NAME)
            with replacing(self._mark) as scratch:
                scratch.write_text("The node runs, or was killed.\n", encoding="ascii")
            self.save_failure = ""
        except Exception as error:  # nobody waits for this task: it would never be heard of
            self._unsaved.changed()
            self.failed_saves += 1
            self.save_failure = _said(error)
            log.error("the map was not saved: %s", self.save_failure)

    def resume(self, wish: str, load: Callable[[str], Loaded]) -> None:
        """``load`` what was saved by itself, if it is to be gone on in: always, or after a crash.

        Whatever hinders it is said on the log, and a new map begins; the old one is set aside.
        """
        try:
            if self._finds_saved(wish):
                self._go_on(load)
        except RosError as error:
            log.error("cannot look for a map to go on in: %s; a new one begins", error)
        self._begun = True

    def _finds_saved(self, wish: str) -> bool:
        wanted = wish == "always" or (wish == "after_crash" and self._mark.exists())
        return wanted and (self._own / FILE_NAME).is_file()

    def _go_on(self, load: Callable[[str], Loaded]) -> None:
        try:
            loaded = load(str(self._own))
        except Exception as error:  # a node that is started again and again would fail again and again
            log.error("cannot go on in the map of %s: %s; a new one begins", self._own, _said(error))
            self._set_aside()
        else:
            log.warning(
                "going on in the map of %s: %d keyframes, %d points", self._own, loaded.keyframes, loaded.points
            )

    def _set_aside(self) -> None:
        """Out of the way of the map that begins, which would be saved in its place."""
        aside = self._own.with_name(f"{self._own.name}.refused_{_now()}")
        try:
            self._own.rename(aside)
        except OSError as error:
            log.error("the map of %s cannot be set aside: %s", self._own, error.strerror)
        else:
            log.warning("the map that was refused is kept in %s", aside)

    def ended(self) -> None:
        """The node ends in order. One that was stopped before it could go on leaves the mark for the next."""
        with suppress(OSError, RosError):
            if self._begun:
                self._mark.unlink(missing_ok=True)


def _said(error: Exception) -> str:
    return str(error) if isinstance(error, Dust3rError) else f"{type(error).__name__}: {error}"
