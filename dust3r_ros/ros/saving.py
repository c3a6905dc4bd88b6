"""Saving and loading the map, only ever inside the folder the node was configured with."""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path

from dust3r_ros.data import Intrinsics
from dust3r_ros.errors import Dust3rError, ExportError, RosError
from dust3r_ros.mapping.export import CameraRecord, replacing, stamp_text, write_cameras_json, write_cloud, write_tum
from dust3r_ros.memory import FILE_NAME, read_memory, write_memory
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

    Raises RosError when it lies outside ``root``, links followed.
    """
    top = Path(root).expanduser().resolve()
    name = asked or datetime.now(timezone.utc).strftime("%Y-%m-%d_%H-%M-%S")
    folder = (top / Path(name).expanduser()).resolve()
    if not folder.is_relative_to(top):
        raise RosError(f"path must lie inside map_folder ({top}), got {asked}")
    return folder


def save_map(reconstructor: Reconstructor, frame: MapFrame, intrinsics: Intrinsics | None, folder: Path) -> list[Path]:
    """Write ``cloud.ply``, ``trajectory.tum`` and ``cameras.json``, in ``frame``, and ``session.npz``, in which another
    session can go on; the files written.

    ``intrinsics`` are the camera's for its original image, None when unknown: then there is no ``cameras.json``.
    Raises RosError for an empty map and ExportError when the system refuses.
    """
    cloud = frame.placed(reconstructor.map.cloud())
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
        self._own = folder_inside(map_folder, f"autosave/{'.'.join(filter(None, node.split('/')))}")
        self._mark = self._own / "running"
        self._unsaved = Schedule()

    def save(self, map_folder: str, path: str, intrinsics: Intrinsics | None) -> Saved:
        """Write the map to a folder inside ``map_folder``. Raises RosError and ExportError."""
        files = save_map(self._reconstructor, self._frame, intrinsics, folder_inside(map_folder, path))
        return Saved(files, len(self._reconstructor.map))

    def load(self, map_folder: str, path: str) -> Loaded:
        """Go on in the map of a folder inside ``map_folder``. Raises RosError and RecordingError, and changes nothing
        then.
        """
        if not path:
            raise RosError("path must name the folder of a map, got an empty one")
        memory = read_memory(folder_inside(map_folder, path) / FILE_NAME)
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
        """Write the session alone; what hinders it is said on the log."""
        self._unsaved.published()
        try:
            write_session(self._reconstructor, self._frame, self._own / FILE_NAME)
            with replacing(self._mark) as scratch:
                scratch.write_text("The node runs, or was killed.\n", encoding="ascii")
        except ExportError as error:
            log.error("the map was not saved: %s", error)

    def resume(self, wish: str, load: Callable[[str], Loaded]) -> None:
        """``load`` what was saved by itself, if it is to be gone on in: always, or after a crash."""
        wanted = wish == "always" or (wish == "after_crash" and self._mark.exists())
        if not wanted or not (self._own / FILE_NAME).is_file():
            return
        try:
            loaded = load(str(self._own))
        except Dust3rError as error:
            log.error("cannot go on in the map of %s: %s; a new one begins", self._own, error)
        else:
            log.warning(
                "going on in the map of %s: %d keyframes, %d points", self._own, loaded.keyframes, loaded.points
            )

    def ended(self) -> None:
        """The node ends in order."""
        with suppress(OSError):
            self._mark.unlink(missing_ok=True)
