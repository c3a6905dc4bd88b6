"""A reconstruction as one GLB file: the cloud, and every camera as a frustum with its image in it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from dust3r_ros.data import FloatArray, PosedView
from dust3r_ros.errors import ExportError
from dust3r_ros.files import replacing
from dust3r_ros.geometry import transform_points
from dust3r_ros.mapping.cloud import PointCloud

_PICTURE_PX = 160  # longer side of the images in the frusta
_FIRST, _LAST = np.array([46, 196, 182]), np.array([255, 159, 28])  # the frusta's colours, along the path
_TO_GLTF = np.diag([1.0, -1.0, -1.0, 1.0])  # the world is an optical frame, y down; glTF's y is up


def write_glb(cloud: PointCloud, views: Sequence[PosedView], path: Path) -> None:
    """The cloud and the cameras. Vertices are in world coordinates; the root node turns the world y up.

    Raises ExportError without trimesh.
    """
    trimesh = _trimesh(path)
    scene = trimesh.Scene()
    if len(cloud):
        colours = np.column_stack([cloud.colours, np.full(len(cloud), 255, np.uint8)])
        scene.add_geometry(trimesh.PointCloud(cloud.points, colours), geom_name="cloud", transform=_TO_GLTF)
    size = frustum_depth(cloud, views)
    for at, view in enumerate(views):
        share = at / max(len(views) - 1, 1)
        colour = np.append(np.rint(_FIRST + share * (_LAST - _FIRST)), 255).astype(np.uint8)
        corners = frustum_corners(view, size)
        lines = trimesh.load_path(_edges(corners))
        lines.colors = np.tile(colour, (len(lines.entities), 1))
        scene.add_geometry(lines, geom_name=f"camera {view.number}", transform=_TO_GLTF)
        if view.image.pixels.size:
            picture = _picture(trimesh, view, corners[1:])
            scene.add_geometry(picture, geom_name=f"image {view.number}", transform=_TO_GLTF)
    with replacing(path) as scratch:
        scratch.write_bytes(scene.export(file_type="glb"))


def frustum_depth(cloud: PointCloud, views: Sequence[PosedView]) -> float:
    """How deep frusta are drawn, world units: smaller than the steps between cameras, and than the scene."""
    centres = np.stack([view.camera_to_world[:3, 3] for view in views])
    steps = np.linalg.norm(np.diff(centres, axis=0), axis=1)
    typical = float(np.median(steps)) if len(steps) else 0.0
    extent = float(np.ptp(np.quantile(cloud.points, [0.05, 0.95], axis=0), axis=0).max()) if len(cloud) else 1.0
    return float(np.clip(0.5 * typical, 0.02 * extent, 0.1 * extent)) or 0.1


def frustum_corners(view: PosedView, depth: float) -> FloatArray:
    """The camera's centre and the prepared image's corners at a depth, (5, 3), world; clockwise from the top left."""
    k = view.estimate.intrinsics
    corners = np.array([(0, 0), (k.width, 0), (k.width, k.height), (0, k.height)], dtype=np.float64)
    rays = np.column_stack([(corners - (k.cx, k.cy)) / (k.fx, k.fy), np.ones(4)])
    return transform_points(view.camera_to_world, np.vstack([np.zeros(3), rays * depth]))


def _edges(corners: FloatArray) -> FloatArray:
    """The frustum's eight edges, (8, 2, 3)."""
    pairs = [(0, 1), (0, 2), (0, 3), (0, 4), (1, 2), (2, 3), (3, 4), (4, 1)]
    return corners[pairs]


def _picture(trimesh: Any, view: PosedView, corners: FloatArray) -> Any:
    """A rectangle with the view's image, seen from both sides."""
    image = Image.fromarray(view.image.pixels)
    image.thumbnail((_PICTURE_PX, _PICTURE_PX))
    material = trimesh.visual.material.PBRMaterial(
        baseColorTexture=image, doubleSided=True, metallicFactor=0.0, roughnessFactor=1.0
    )
    uv = np.array([(0, 1), (1, 1), (1, 0), (0, 0)], dtype=np.float64)
    visual = trimesh.visual.TextureVisuals(uv=uv, material=material)
    return trimesh.Trimesh(corners, [(0, 1, 2), (0, 2, 3)], visual=visual, process=False)


def _trimesh(path: Path) -> Any:
    try:
        import trimesh
    except ImportError as error:
        raise ExportError(f"{path} needs trimesh, which cannot be loaded ({error}): pip install trimesh") from error
    return trimesh
