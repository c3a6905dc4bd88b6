"""The page's panels: what is shown of the map, one keyframe, the pairs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from dust3r_ros.pictures import confidence_picture, depth_picture, thumbnail
from dust3r_ros.viewer.scene import ViewedKeyframe, ViewedScene, graph_picture

_BLANK = np.full((3, 4, 3), 40, np.uint8)
_THUMBNAIL_PX = 320
_POINT_SIZE = 0.003  # of the scene's reach
_MOST_RELATIVE_VOXEL = 5.0  # percent of the scene's reach

Handler = Callable[[Any], None]


class MapPanel:
    """Which points are shown and how; cameras and path."""

    def __init__(self, gui: Any) -> None:
        self._reach = 1.0
        self._count = gui.add_markdown("Nothing to show yet.")
        self._quantile = gui.add_slider(
            "Least confidence", 0, 95, 1, 0, hint="Percentage of the points left out, the least sure first"
        )
        self._voxel = gui.add_slider(
            "Voxel",
            0.0,
            _MOST_RELATIVE_VOXEL,
            0.05,
            0.0,
            hint="One point in each voxel, percent of the scene's size; 0: all",
        )
        self._size = gui.add_slider("Point size", 0.2, 5.0, 0.1, 1.0)
        self._cameras = gui.add_checkbox("Cameras", True)
        self._images = gui.add_checkbox("Images in cameras", True)
        self._scale = gui.add_slider("Camera size", 0.1, 4.0, 0.1, 1.0)
        self._path = gui.add_checkbox("Path", True)
        self._save = gui.add_button("Save points (PLY)", hint="Those that are shown, to this computer")

    @property
    def least_quantile(self) -> float:
        return float(self._quantile.value) / 100

    @property
    def voxel(self) -> float:
        """Edge, world units."""
        return float(self._voxel.value) / 100 * self._reach

    @property
    def point_size(self) -> float:
        """World units."""
        return float(self._size.value) * _POINT_SIZE * self._reach

    @property
    def cameras(self) -> bool:
        return bool(self._cameras.value)

    @property
    def images(self) -> bool:
        return bool(self._images.value)

    @property
    def camera_scale(self) -> float:
        return float(self._scale.value)

    @property
    def path(self) -> bool:
        return bool(self._path.value)

    def adapt(self, reach: float) -> None:
        """Sliders are relative to a scene's size, world units."""
        self._reach = reach

    def tell(self, shown: int, known: int, metric: bool) -> None:
        """How many points are shown of those there are."""
        unit = "in metres" if metric else "up to scale"
        self._count.content = f"**{_grouped(shown)}** of {_grouped(known)} points, {unit}"

    def on_points(self, handler: Handler) -> None:
        for control in (self._quantile, self._voxel, self._size):
            control.on_update(handler)

    def on_cameras(self, handler: Handler) -> None:
        for control in (self._cameras, self._scale):
            control.on_update(handler)

    def on_images(self, handler: Handler) -> None:
        self._images.on_update(handler)

    def on_path(self, handler: Handler) -> None:
        self._path.on_update(handler)

    def on_save(self, handler: Handler) -> None:
        self._save.on_click(handler)


def _grouped(count: int) -> str:
    return f"{count:,}".replace(",", " ")


class KeyframePanel:
    """One keyframe: its image, depth and confidence."""

    def __init__(self, gui: Any) -> None:
        self._slider = gui.add_slider("Keyframe", 0, 1, 1, 0, disabled=True)
        self._about = gui.add_markdown("")
        self._fly = gui.add_button("Look through this camera", disabled=True)
        self._image = gui.add_image(_BLANK, label="Image", format="jpeg")
        self._depth = gui.add_image(_BLANK, label="Depth, near is red", format="jpeg", visible=False)
        self._confidence = gui.add_image(_BLANK, label="Confidence, sure is bright", format="jpeg", visible=False)
        self._shown: ViewedKeyframe | None = None

    @property
    def chosen(self) -> int:
        """Place of the keyframe that is shown."""
        return int(self._slider.value)

    def choose(self, place: int) -> None:
        """Show another keyframe."""
        self._slider.value = place

    def of(self, scene: ViewedScene) -> ViewedKeyframe | None:
        """The chosen keyframe of a scene, None when it has none."""
        if not scene.keyframes:
            return None
        return scene.keyframes[min(self.chosen, len(scene.keyframes) - 1)]

    def show(self, scene: ViewedScene) -> None:
        """The chosen keyframe, if it is not shown yet."""
        count = len(scene.keyframes)
        self._slider.max = max(1, count - 1)
        self._slider.disabled = count < 2
        self._fly.disabled = count == 0
        keyframe = self.of(scene)
        if keyframe is None or keyframe is self._shown:
            return
        self._shown = keyframe
        lens = keyframe.intrinsics
        self._about.content = f"{keyframe.name}: {lens.width} x {lens.height}, focal {lens.focal_px:.0f} px"
        self._image.image = thumbnail(keyframe.image, _THUMBNAIL_PX)
        for panel, values, draw in (
            (self._depth, keyframe.depth, depth_picture),
            (self._confidence, keyframe.confidence, confidence_picture),
        ):
            panel.visible = values is not None
            if values is not None:
                panel.image = draw(values)

    def on_choice(self, handler: Handler) -> None:
        self._slider.on_update(handler)

    def on_fly(self, handler: Handler) -> None:
        self._fly.on_click(handler)


class PairsPanel:
    """The scene graph."""

    def __init__(self, gui: Any) -> None:
        self._about = gui.add_markdown("No pairs yet.")
        self._matrix = gui.add_image(_BLANK, label="Row: first view; column: second", format="png")

    def show(self, scene: ViewedScene) -> None:
        """The matrix of pairs; green agrees with the scene."""
        if not scene.edges:
            return
        worst = max(scene.edges, key=lambda e: scene.edges[e])
        self._about.content = (
            f"{len(scene.edges)} directed pairs of {len(scene.keyframes)} views. Green agrees with the scene, red does "
            f"not. Worst: {worst[0]} with {worst[1]}, {100 * scene.edges[worst]:.1f} % of the distance."
        )
        self._matrix.image = graph_picture(len(scene.keyframes), scene.edges)


class Controls:
    """All panels, each in a tab. ``tabs`` takes further ones."""

    def __init__(self, server: Any) -> None:
        self.tabs = server.gui.add_tab_group()
        with self.tabs.add_tab("Map"):
            self.map = MapPanel(server.gui)
        with self.tabs.add_tab("Keyframe"):
            self.keyframe = KeyframePanel(server.gui)
        with self.tabs.add_tab("Pairs"):
            self.pairs = PairsPanel(server.gui)
