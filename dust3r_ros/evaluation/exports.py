"""A finished reconstruction: cleaned, and written in the forms other programs start from."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from dust3r_ros.config import CleanConfig, MapConfig
from dust3r_ros.data import BoolArray, PosedView
from dust3r_ros.errors import ConfigError, ExportError
from dust3r_ros.evaluation.result_bag import write_result_bag
from dust3r_ros.evaluation.results import Progress, Reconstruction
from dust3r_ros.mapping.cloud import PointCloud
from dust3r_ros.mapping.colmap import write_colmap
from dust3r_ros.mapping.export import write_cloud, write_kitti, write_mesh
from dust3r_ros.mapping.folders import write_depth_pack, write_exr, write_image, write_transforms
from dust3r_ros.mapping.fuse import FusedMap
from dust3r_ros.mapping.gltf import write_glb
from dust3r_ros.mapping.masks import clean_views, without_outliers
from dust3r_ros.mapping.tracks import find_tracks
from dust3r_ros.pipeline import SourceImage

_MESH_VOXELS = 2.0  # a mesh voxel is this many map voxels: noise that the map averages makes a mesh rough


@dataclass(frozen=True, eq=False)
class Cleaned:
    """``result`` with the cloud of the pixels that stayed; ``masks`` (H, W), one a view, are those pixels.

    ``removed``: (step, how many it took), pixels of the views, or points of the map for the last; ``before`` is the
    cloud without any of ``CleanConfig``; ``voxel_edge`` (world units) is 0 where every point is kept.
    """

    result: Reconstruction
    masks: tuple[BoolArray, ...]
    removed: tuple[tuple[str, int], ...]
    before: PointCloud
    voxel_edge: float


def clean(result: Reconstruction, map_config: MapConfig, config: CleanConfig) -> Cleaned:
    """Take out what the configurations ask for; views without depth leave the cloud as it was."""
    found = clean_views(result.views, map_config, config)
    edge = _voxel_edge(result.views, map_config)
    if config == CleanConfig() or not all(view.estimate.depth.size for view in result.views):
        return Cleaned(result, found.masks, found.removed, result.cloud, edge)
    cloud = _fused(result.views, found.masks, map_config)
    removed = found.removed
    if config.outliers > 0:
        kept = without_outliers(cloud, config.outliers)
        removed = (*removed, ("points far from all others", len(cloud) - len(kept)))
        cloud = kept
    return Cleaned(replace(result, cloud=cloud), found.masks, removed, result.cloud, edge)


def _fused(views: Sequence[PosedView], masks: Sequence[BoolArray], config: MapConfig) -> PointCloud:
    fused = FusedMap(config)
    for view, mask in zip(views, masks, strict=True):
        fused.add(view.number, view.estimate, view.image.pixels, mask)
    return fused.cloud()


def _voxel_edge(views: Sequence[PosedView], config: MapConfig) -> float:
    for view in views:
        if view.has_depth:
            return config.voxel_size * float(np.median(view.estimate.depth[view.estimate.depth > 0]))
    return 0.0


def parse_exports(text: str) -> tuple[str, ...]:
    """The names in a list such as ``glb,mesh``, or all of them for ``all``; none for "".

    Raises ConfigError for an unknown one.
    """
    names = [name.strip() for name in text.split(",") if name.strip()]
    if names == ["all"]:
        return tuple(EXPORTS)
    unknown = [name for name in names if name not in EXPORTS]
    if unknown:
        raise ConfigError(f"--export must be all or names of {', '.join(EXPORTS)}, with commas between; got {text!r}")
    return tuple(dict.fromkeys(names))


def write_exports(
    cleaned: Cleaned, names: Sequence[str], folder: Path, originals: Iterable[SourceImage], progress: Progress
) -> list[str]:
    """Write the exports of those names into a folder; what could not be written and why, one text each.

    ``originals`` gives the same images again, in the same order: those with a pose go to ``images/`` when an export
    needs them.
    """
    refused = []
    stems = image_stems(cleaned.result.views)
    try:
        if {"colmap", "nerfstudio"} & set(names):
            _write_images(cleaned.result.views, stems, folder / "images", originals, progress)
        for done, name in enumerate(names):
            progress("export", done, len(names))
            try:
                EXPORTS[name](cleaned, stems, folder)
            except ExportError as error:
                refused.append(f"{name}: {error}")
        progress("export", len(names), len(names))
    except ExportError as error:  # the images: a full disk
        refused.append(str(error))
    return refused


def image_stems(views: Sequence[PosedView]) -> list[str]:
    """A file name without suffix for every view, after the image's own and each different."""
    stems = []
    for view in views:
        name, _, frame = view.name.rpartition("#")
        stem = f"{Path(name).stem}_{frame.zfill(6)}" if name else Path(view.name).stem
        stems.append(re.sub(r"[^\w.-]", "_", stem))
    count = Counter(stems)
    return [f"{view.number:06d}_{stem}" if count[stem] > 1 else stem for view, stem in zip(views, stems)]


def _write_images(
    views: Sequence[PosedView], stems: Sequence[str], folder: Path, originals: Iterable[SourceImage], progress: Progress
) -> None:
    wanted = {view.number: stem for view, stem in zip(views, stems)}
    for number, source in enumerate(originals):
        if number in wanted:
            progress("images", len(views) - len(wanted), len(views))
            write_image(source.load(), folder / f"{wanted.pop(number)}.jpg")
        if not wanted:
            break


def _glb(cleaned: Cleaned, stems: Sequence[str], folder: Path) -> None:
    write_glb(cleaned.result.cloud, cleaned.result.views, folder / "scene.glb")


def _pcd(cleaned: Cleaned, stems: Sequence[str], folder: Path) -> None:
    write_cloud(cleaned.result.cloud, folder / "cloud.pcd")


def _kitti(cleaned: Cleaned, stems: Sequence[str], folder: Path) -> None:
    write_kitti([view.camera_to_world for view in cleaned.result.views], folder / "trajectory.kitti")


def _colmap(cleaned: Cleaned, stems: Sequence[str], folder: Path) -> None:
    if not any(mask.any() for mask in cleaned.masks):
        raise ExportError(f"cannot write {folder / 'sparse'}: no view has depth")
    tracks = find_tracks(cleaned.result.views, cleaned.masks)
    write_colmap(cleaned.result.views, [f"{stem}.jpg" for stem in stems], tracks, folder / "sparse" / "0")


def _nerfstudio(cleaned: Cleaned, stems: Sequence[str], folder: Path) -> None:
    files = [f"images/{stem}.jpg" for stem in stems]
    write_transforms(cleaned.result.views, files, folder / "transforms.json", cloud_file="cloud.ply")


def _depth(cleaned: Cleaned, stems: Sequence[str], folder: Path) -> None:
    views, masks, names = _with_depth(cleaned, stems, folder / "depth")
    write_depth_pack(views, masks, names, folder / "depth", metric=cleaned.result.metric)


def _exr(cleaned: Cleaned, stems: Sequence[str], folder: Path) -> None:
    for view, mask, name in zip(*_with_depth(cleaned, stems, folder / "exr")):
        write_exr(view.estimate.depth * mask, folder / "exr" / f"{name}.exr")


def _with_depth(
    cleaned: Cleaned, stems: Sequence[str], place: Path
) -> tuple[tuple[PosedView, ...], tuple[BoolArray, ...], tuple[str, ...]]:  # fmt: skip
    """The views that have depth, their masks and names. Raises ExportError when there are none."""
    kept = [(v, m, s) for v, m, s in zip(cleaned.result.views, cleaned.masks, stems, strict=True) if m.any()]
    if not kept:
        raise ExportError(f"cannot write {place}: no view has depth")
    views, masks, names = zip(*kept)
    return views, masks, names


def _mesh(cleaned: Cleaned, stems: Sequence[str], folder: Path) -> None:
    if not cleaned.voxel_edge > 0:
        raise ExportError(f"cannot write {folder / 'mesh.ply'}: a mesh needs map.voxel_size above 0, and depth")
    write_mesh(cleaned.result.views, cleaned.masks, _MESH_VOXELS * cleaned.voxel_edge, folder / "mesh.ply")


def _bag(cleaned: Cleaned, stems: Sequence[str], folder: Path) -> None:
    write_result_bag(cleaned.result.views, cleaned.masks, cleaned.result.cloud, folder / "bag")


EXPORTS: dict[str, Callable[[Cleaned, Sequence[str], Path], None]] = {
    "glb": _glb,
    "pcd": _pcd,
    "kitti": _kitti,
    "colmap": _colmap,
    "nerfstudio": _nerfstudio,
    "depth": _depth,
    "exr": _exr,
    "mesh": _mesh,
    "bag": _bag,
}
