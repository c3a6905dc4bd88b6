"""The page: a viser server with the cloud, the cameras and the controls. Needs ``pip install dust3r_ros[viewer]``."""

from __future__ import annotations

import importlib
import logging
import socket
import tempfile
import threading
from pathlib import Path
from typing import Any

import numpy as np

from dust3r_ros.errors import ViewerError
from dust3r_ros.mapping.export import write_cloud
from dust3r_ros.pictures import thumbnail
from dust3r_ros.viewer.controls import Controls, MapPanel
from dust3r_ros.viewer.scene import (
    FRUSTUM_PX,
    ViewedKeyframe,
    ViewedScene,
    quaternion_wxyz,
    scene_extent,
    scene_middle,
    scene_reach,
    shown_points,
    up_direction,
)

log = logging.getLogger(__name__)

_PATH_COLOUR, _CAMERA_COLOUR, _CHOSEN_COLOUR = (230, 120, 30), (70, 110, 190), (230, 60, 40)
_LOOK_FROM = 1.7  # of the scene's extent
_CAMERA_SIZE = 0.06  # of the scene's reach
_SAME_SIZE = 0.04


class Viewer:
    """A page in a browser that shows a scene and follows it as it grows.

    ``show`` may be called from any thread, at any time; every page that is open changes. The server listens on
    ``host`` only: ``127.0.0.1`` is this machine, ``0.0.0.0`` every machine that can reach it, and whoever can sees the
    scene. ``port`` 0 takes a free one. Raises ViewerError when viser is missing or the port is taken.
    """

    def __init__(self, host: str = "127.0.0.1", port: int = 8080, title: str = "dust3r_ros") -> None:
        viser = _viser()
        logging.getLogger("websockets.server").addFilter(_no_handshake)
        port = port or _free_port(host)
        _check_free(host, port)
        self._server: Any = viser.ViserServer(host=host, port=port, label=title, verbose=False)
        self._lock = threading.RLock()
        self._scene = ViewedScene()
        self._cameras: dict[int, tuple[ViewedKeyframe, Any]] = {}
        self._server.gui.configure_theme(show_logo=False, show_share_button=False)
        self._server.gui.main_panel.dock_right()
        self._server.gui.set_panel_label(title)
        self.controls = Controls(self._server)
        self._map, self._keyframe, self._pairs = self.controls.map, self.controls.keyframe, self.controls.pairs
        self._connect()

    @property
    def url(self) -> str:
        """Where the page is, for a browser on this machine."""
        host = self._server.get_host()
        return f"http://{'127.0.0.1' if host in ('0.0.0.0', '::') else host}:{self._server.get_port()}"

    @property
    def server(self) -> Any:
        """The viser server, for further panels."""
        return self._server

    def show(self, scene: ViewedScene) -> None:
        """Show a scene in place of what was shown; what has not changed is not sent again."""
        with self._lock:
            first = not len(self._scene.cloud) and len(scene.cloud) > 0
            self._scene = scene
            if first:
                self._server.scene.set_up_direction(up_direction(scene))
                self._look(scene)
            self._map.adapt(scene_reach(scene))
            self._draw_cloud()
            self._draw_cameras()
            self._draw_path()
            self._keyframe.show(scene)
            self._pairs.show(scene)

    def close(self) -> None:
        """Stop serving."""
        self._server.stop()

    def _connect(self) -> None:
        self._map.on_points(self._guarded(self._draw_cloud))
        self._map.on_cameras(self._guarded(self._draw_cameras))
        self._map.on_images(self._guarded(self._redraw_cameras))
        self._map.on_path(self._guarded(self._draw_path))
        self._map.on_save(self._save)
        self._keyframe.on_choice(self._guarded(self._choose))
        self._keyframe.on_fly(self._fly)

    def _guarded(self, draw: Any) -> Any:
        def call(_: Any = None) -> None:
            with self._lock:
                draw()

        return call

    def _draw_cloud(self) -> None:
        panel: MapPanel = self._map
        shown = shown_points(self._scene.cloud, panel.least_quantile, panel.voxel)
        panel.tell(len(shown), len(self._scene.cloud), self._scene.metric)
        self._server.scene.add_point_cloud(
            "/cloud",
            shown.points,
            shown.colours,
            point_size=panel.point_size,
            point_shape="rounded",
            precision="float32",
        )

    def _draw_cameras(self) -> None:
        """Frusta: those of keyframes that are new are made, those that moved are moved, the others stay."""
        if not self._map.cameras:
            self._clear_cameras(0)
            return
        size = _CAMERA_SIZE * scene_reach(self._scene) * self._map.camera_scale
        for k, keyframe in enumerate(self._scene.keyframes):
            known, handle = self._cameras.get(k, (None, None))
            if handle is None or known is None or known.image is not keyframe.image:
                known, handle = None, self._new_camera(k, keyframe)
            if abs(handle.scale / size - 1) > _SAME_SIZE:  # the scene's reach changes a little with every keyframe
                handle.scale = size
            if known is None or not np.array_equal(known.camera_to_world, keyframe.camera_to_world):
                handle.wxyz = quaternion_wxyz(keyframe.camera_to_world[:3, :3])
                handle.position = keyframe.camera_to_world[:3, 3]
            self._cameras[k] = (keyframe, handle)
        self._clear_cameras(len(self._scene.keyframes))

    def _redraw_cameras(self) -> None:
        self._clear_cameras(0)
        self._draw_cameras()

    def _new_camera(self, k: int, keyframe: ViewedKeyframe) -> Any:
        lens = keyframe.intrinsics
        handle = self._server.scene.add_camera_frustum(
            f"/cameras/{k}", fov=2 * float(np.arctan(lens.height / (2 * lens.fy))), aspect=lens.width / lens.height,
            color=_CAMERA_COLOUR, thickness=1.5, thickness_units="screen", format="jpeg",
            image=thumbnail(keyframe.image, FRUSTUM_PX) if self._map.images else None,
        )  # fmt: skip
        handle.on_click(lambda _: self._keyframe.choose(k))
        return handle

    def _clear_cameras(self, keep: int) -> None:
        for k in [k for k in self._cameras if k >= keep]:
            self._cameras.pop(k)[1].remove()

    def _draw_path(self) -> None:
        centres = np.array([k.camera_to_world[:3, 3] for k in self._scene.keyframes])
        if len(centres) < 2 or not self._map.path:
            self._server.scene.remove_by_name("/path")
            return
        segments = np.stack([centres[:-1], centres[1:]], axis=1)
        self._server.scene.add_line_segments("/path", segments, _PATH_COLOUR, thickness=2.0, thickness_units="screen")

    def _choose(self) -> None:
        self._keyframe.show(self._scene)
        for k, (_, handle) in self._cameras.items():
            handle.color = _CHOSEN_COLOUR if k == self._keyframe.chosen else _CAMERA_COLOUR

    def _fly(self, event: Any) -> None:
        """The visitor's view becomes the chosen camera's."""
        keyframe = self._keyframe.of(self._scene)
        if keyframe is None or event.client is None:
            return
        pose, camera = keyframe.camera_to_world, event.client.camera
        with event.client.atomic():
            camera.position = pose[:3, 3]
            camera.look_at = pose[:3, 3] + pose[:3, 2] * scene_reach(self._scene)
            camera.up_direction = -pose[:3, 1]

    def _look(self, scene: ViewedScene) -> None:
        """Pages look as the first camera does, somewhat from above, from so far behind that all is seen."""
        if not scene.keyframes:
            return
        first = scene.keyframes[0].camera_to_world
        start, target = self._server.initial_camera, scene_middle(scene)
        back = first[:3, 2] + 0.3 * first[:3, 1]
        start.position = target - _LOOK_FROM * scene_extent(scene, target) * back / np.linalg.norm(back)
        start.look_at = target
        start.up = up_direction(scene)

    def _save(self, event: Any) -> None:
        """The points that are shown, as a PLY file, to the visitor's browser."""
        with self._lock:
            shown = shown_points(
                self._scene.cloud, self._map.least_quantile, self._map.voxel, most=len(self._scene.cloud)
            )
        if not len(shown) or event.client is None:
            return
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "cloud.ply"
            write_cloud(shown, file)
            event.client.send_file_download("cloud.ply", file.read_bytes(), save_immediately=True)


def _no_handshake(record: logging.LogRecord) -> bool:
    """Whether a record is worth saying: a HEAD, a scan of ports or a closed tab is no error with a traceback."""
    return record.getMessage() != "opening handshake failed"


def _viser() -> Any:
    try:
        return importlib.import_module("viser")
    except ImportError as error:
        raise ViewerError(f"the viewer needs viser: pip install 'dust3r_ros[viewer]' ({error})") from error


def _check_free(host: str, port: int) -> None:
    """Viser itself would silently take the next port."""
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise ViewerError(f"the viewer cannot listen on {host}:{port}: {error.strerror or error}") from error


def _free_port(host: str) -> int:
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.bind((host, 0))
        return int(probe.getsockname()[1])
