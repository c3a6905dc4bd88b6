"""What a map is made of, so that another session can go on in it: one file, read without trusting it."""

from __future__ import annotations

import json
import zipfile
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from dust3r_ros.alignment.loops import Loop
from dust3r_ros.alignment.observations import grid_shape
from dust3r_ros.alignment.places import Anchor
from dust3r_ros.alignment.pose_graph import GraphEdge
from dust3r_ros.alignment.scale import MetricScale
from dust3r_ros.data import ByteImage, FloatArray, ImageTransform, Intrinsics
from dust3r_ros.errors import ImageError, RecordingError
from dust3r_ros.geometry import Similarity
from dust3r_ros.images import from_jpeg
from dust3r_ros.mapping.cloud import PointCloud
from dust3r_ros.mapping.export import replacing
from dust3r_ros.mapping.voxels import VoxelState

FORMAT = 1
FILE_NAME = "session.npz"
_DAMAGE = (OSError, ValueError, LookupError, TypeError, AttributeError, ArithmeticError, EOFError, RuntimeError,
           zipfile.BadZipFile, zlib.error)  # fmt: skip  # what reading hostile bytes may raise


@dataclass(frozen=True, eq=False)
class KeptImage:
    """An old keyframe's image, from which the predictor's encoding is made anew when it is needed.

    ``intrinsics`` are the given ones for the prepared image, None when they were estimated.
    """

    stamp_ns: int
    camera: str
    jpeg: ByteImage
    transform: ImageTransform
    intrinsics: Intrinsics | None


@dataclass(frozen=True, eq=False)
class Place:
    """A keyframe that can be found again: its image, what it looks like, and how it lies in the map.

    ``parents``, ``sigma`` and ``unit`` are those of the pose graph.
    """

    index: int
    image: KeptImage
    descriptor: FloatArray
    anchor: Anchor
    parents: tuple[int, ...]
    sigma: float
    unit: float


@dataclass(frozen=True, eq=False)
class Placed:
    """Where a keyframe is in the map."""

    stamp_ns: int
    camera: str
    camera_to_world: FloatArray


@dataclass(frozen=True, eq=False)
class MapMemory:
    """A whole map. ``placed`` has every keyframe by index; ``points`` are what is not in voxels; ``scale`` is metric.

    ``world_to_map`` and ``origin`` (3,) are how the map is published.
    """

    predictor: str
    next_index: int
    placed: dict[int, Placed]
    places: tuple[Place, ...]
    relations: tuple[GraphEdge, ...]
    loops: tuple[Loop, ...]
    voxels: VoxelState | None
    points: PointCloud
    scale: MetricScale | None = None
    world_to_map: Similarity = field(default_factory=Similarity.identity)
    origin: FloatArray = field(default_factory=lambda: np.zeros(3))


def write_memory(memory: MapMemory, path: Path) -> None:
    """Write ``memory`` to a file that appears whole or not at all. Raises ExportError when the system refuses."""
    cameras = sorted({placed.camera for placed in memory.placed.values()} | {p.anchor.camera for p in memory.places})
    scale = memory.scale
    about = {
        "format": FORMAT, "predictor": memory.predictor, "next_index": memory.next_index, "cameras": cameras,
        "scale": [scale.metres_per_unit, scale.uncertainty, scale.samples] if scale is not None else None,
        "voxel_edge": memory.voxels.edge if memory.voxels is not None else 0.0,
    }  # fmt: skip
    arrays: dict[str, Any] = {"about": _text(json.dumps(about)), "world_to_map": memory.world_to_map.matrix()}
    arrays |= {"origin": memory.origin, **_of_placed(memory.placed, cameras), **_of_places(memory.places, cameras)}
    arrays |= _of_relations("relation", [(e.i, e.j, e.relative, e.reach, e.sigma) for e in memory.relations])
    arrays |= _of_relations("loop", [(k.old, k.new, k.relative, k.reach, k.sigma) for k in memory.loops])
    arrays |= {f"point_{name}": getattr(memory.points, name) for name in ("points", "colours", "confidence")}
    if memory.voxels is not None:
        arrays |= {f"voxel_{name}": getattr(memory.voxels, name) for name in ("keys", "sums", "views")}
    with replacing(path) as scratch, scratch.open("wb") as file:
        np.savez(file, **arrays)


def read_memory(path: Path) -> MapMemory:
    """The map of a file that ``write_memory`` wrote. Raises RecordingError when it is missing, damaged or of another
    format.
    """
    if not path.is_file():
        raise RecordingError(f"{path.parent} is no map to go on in: it has no {path.name}")
    try:
        with path.open("rb") as stream, np.load(stream, allow_pickle=False) as file:
            arrays = dict(file)
        about = json.loads(arrays["about"].tobytes())
        if about["format"] != FORMAT:
            raise RecordingError(f"{path} has format {about['format']}, this version reads {FORMAT}")
        memory = _memory(about, arrays)
        _check(memory)
        return memory
    except _DAMAGE as error:
        raise RecordingError(f"{path} is damaged: {type(error).__name__}: {error}") from error


def _memory(about: dict[str, Any], arrays: dict[str, Any]) -> MapMemory:
    voxels = None
    if about["voxel_edge"] > 0:
        voxels = VoxelState(about["voxel_edge"], *(arrays[f"voxel_{name}"] for name in ("keys", "sums", "views")))
    for name, array in arrays.items():
        if array.dtype.kind == "f" and name != "place_given" and not np.isfinite(array).all():
            raise ValueError(f"{name} must be finite")
    for name in ("placed_pose", "place_pose", "relation_matrix", "loop_matrix"):
        if len(arrays[name]) and arrays[name].shape[1:] != (4, 4):
            raise ValueError(f"{name} must be (N, 4, 4), got {arrays[name].shape}")
    if any((arrays[name] < 0).any() for name in ("placed_camera", "place_camera")):
        raise ValueError("placed_camera and place_camera must not be negative")
    scale = MetricScale(*about["scale"]) if about["scale"] is not None else None
    return MapMemory(
        predictor=str(about["predictor"]),
        next_index=int(about["next_index"]),
        placed=_placed(arrays, about["cameras"]),
        places=tuple(_places(arrays, about["cameras"])),
        relations=tuple(GraphEdge(i, j, s, reach, sigma) for i, j, s, reach, sigma in _relations("relation", arrays)),
        loops=tuple(Loop(i, j, s, sigma, reach) for i, j, s, reach, sigma in _relations("loop", arrays)),
        voxels=voxels,
        points=PointCloud(*(arrays[f"point_{name}"] for name in ("points", "colours", "confidence"))),
        scale=scale,
        world_to_map=_similarity("world_to_map", arrays["world_to_map"]),
        origin=arrays["origin"],
    )


def _check(memory: MapMemory) -> None:
    """Raises ValueError for what does not fit together in a map: it would fail only later, keyframe by keyframe."""
    if not memory.placed or memory.next_index <= max(memory.placed):
        raise ValueError(f"placed must hold keyframes before {memory.next_index}, got {list(memory.placed)[-5:]}")
    if memory.scale is not None and not memory.scale.metres_per_unit > 0:
        raise ValueError(f"scale must be positive, got {memory.scale.metres_per_unit}")
    if memory.origin.shape != (3,):
        raise ValueError(f"origin must be (3,), got {memory.origin.shape}")
    known = {place.index for place in memory.places}
    if len(known) != len(memory.places) or not known <= memory.placed.keys():
        raise ValueError(f"places must each be a keyframe of placed, not so {sorted(known - memory.placed.keys())}")
    ends = {v for edge in memory.relations for v in (edge.i, edge.j)}
    ends |= {v for loop in memory.loops for v in (loop.old, loop.new)}
    ends |= {v for place in memory.places for v in place.parents}
    if not ends <= known:
        raise ValueError(f"relations, loops and parents must be among the places, got {sorted(ends - known)} besides")
    for place in memory.places:
        _check_place(place)


def _check_place(place: Place) -> None:
    anchor, name = place.anchor, f"keyframe {place.index}"
    if anchor.grid < 1:
        raise ValueError(f"{name}: grid must be at least 1, got {anchor.grid}")
    rows, columns = grid_shape(anchor.size, anchor.grid)
    if not anchor.depth.shape == anchor.weight.shape == (rows * columns,):
        shapes = f"{anchor.depth.shape} and {anchor.weight.shape}"
        raise ValueError(f"{name}: depth and weight must be ({rows * columns},), got {shapes}")
    if place.descriptor.ndim != 1 or not place.sigma > 0 or not place.unit > 0:
        raise ValueError(f"{name}: descriptor must be one row, sigma and unit positive")
    try:
        height, width = from_jpeg(place.image.jpeg).shape[:2]
    except ImageError as error:
        raise ValueError(f"{name}: {error}") from error
    transform, given = place.image.transform, place.image.intrinsics or anchor.intrinsics
    sizes = {anchor.size, (height, width), (transform.network_height, transform.network_width),
             (given.height, given.width)}  # fmt: skip
    if len(sizes) > 1:
        raise ValueError(f"{name}: image, intrinsics and transform must be of one size, got {sorted(sizes)}")


def _similarity(name: str, matrix: FloatArray) -> Similarity:
    if matrix.shape != (4, 4) or not np.linalg.det(matrix[:3, :3]) > 0:
        raise ValueError(f"{name} must be a similarity (4, 4), got {matrix.tolist()}")
    return Similarity.from_matrix(matrix)


def _text(text: str) -> ByteImage:
    return np.frombuffer(text.encode(), np.uint8)


def _of_placed(placed: dict[int, Placed], cameras: Sequence[str]) -> dict[str, Any]:
    return {
        "placed_index": np.array(list(placed), np.int64),
        "placed_stamp": np.array([p.stamp_ns for p in placed.values()], np.int64),
        "placed_camera": np.array([cameras.index(p.camera) for p in placed.values()], np.int64),
        "placed_pose": np.array([p.camera_to_world for p in placed.values()]).reshape(-1, 4, 4),
    }


def _placed(arrays: dict[str, Any], cameras: Sequence[str]) -> dict[int, Placed]:
    columns = (arrays[f"placed_{name}"] for name in ("index", "stamp", "camera", "pose"))
    return {int(i): Placed(int(stamp), cameras[c], pose) for i, stamp, c, pose in zip(*columns, strict=True)}


_NUMBERS = ("index", "sigma", "unit")
_TRANSFORM = ("scale_x", "scale_y", "offset_x", "offset_y", "original_width", "original_height", "network_width",
              "network_height")  # fmt: skip
_K = ("fx", "fy", "cx", "cy", "width", "height")


def _of_places(places: Sequence[Place], cameras: Sequence[str]) -> dict[str, Any]:
    arrays: dict[str, Any] = {f"place_{name}": np.array([getattr(p, name) for p in places]) for name in _NUMBERS}
    arrays["place_stamp"] = np.array([p.image.stamp_ns for p in places], np.int64)
    arrays["place_camera"] = np.array(
        [[cameras.index(p.image.camera), cameras.index(p.anchor.camera)] for p in places], int
    )
    arrays["place_grid"] = np.array([[p.anchor.grid, p.anchor.given] for p in places], int)
    arrays["place_transform"] = np.array([[getattr(p.image.transform, name) for name in _TRANSFORM] for p in places])
    arrays["place_k"] = np.array([_numbers(p.anchor.intrinsics) for p in places])
    arrays["place_given"] = np.array([_numbers(p.image.intrinsics) for p in places])
    arrays["place_pose"] = np.array([p.anchor.camera_to_world for p in places])
    arrays["place_descriptor"] = np.array([p.descriptor for p in places], np.float16)
    for name, parts in (("jpeg", [p.image.jpeg for p in places]), ("depth", [p.anchor.depth for p in places]),
                        ("weight", [p.anchor.weight for p in places]),
                        ("parents", [np.array(p.parents, np.int64) for p in places])):  # fmt: skip
        arrays[f"place_{name}"] = np.concatenate(parts) if parts else np.zeros(0)
        arrays[f"place_{name}_ends"] = np.cumsum([len(part) for part in parts], dtype=np.int64)
    return arrays


def _places(arrays: dict[str, Any], cameras: Sequence[str]) -> list[Place]:
    count = len(arrays["place_index"])
    parts = {
        name: np.split(arrays[f"place_{name}"], arrays[f"place_{name}_ends"][:-1]) if count else []
        for name in ("jpeg", "depth", "weight", "parents")
    }
    places = []
    for k in range(count):
        index, sigma, unit = (arrays[f"place_{name}"][k] for name in _NUMBERS)
        own, group = (cameras[c] for c in arrays["place_camera"][k])
        grid, given = arrays["place_grid"][k]
        anchor = Anchor(group, arrays["place_pose"][k], parts["depth"][k], parts["weight"][k],
                        _intrinsics(arrays["place_k"][k]), bool(given), int(grid))  # fmt: skip
        known = arrays["place_given"][k]
        image = KeptImage(int(arrays["place_stamp"][k]), own, parts["jpeg"][k],
                          _transform(arrays["place_transform"][k]),
                          _intrinsics(known) if np.isfinite(known).all() else None)  # fmt: skip
        parents = tuple(map(int, parts["parents"][k]))
        descriptor = arrays["place_descriptor"][k]
        places.append(Place(int(index), image, descriptor, anchor, parents, float(sigma), float(unit)))
    return places


def _numbers(k: Intrinsics | None) -> list[float]:
    return [float("nan")] * len(_K) if k is None else [float(getattr(k, name)) for name in _K]


def _intrinsics(numbers: FloatArray) -> Intrinsics:
    fx, fy, cx, cy, width, height = map(float, numbers)
    return Intrinsics(fx, fy, cx, cy, int(width), int(height))


def _transform(numbers: FloatArray) -> ImageTransform:
    scale_x, scale_y, offset_x, offset_y, *sides = map(float, numbers)
    original_width, original_height, network_width, network_height = map(int, sides)
    return ImageTransform(scale_x, scale_y, offset_x, offset_y, original_width, original_height, network_width,
                          network_height)  # fmt: skip


def _of_relations(name: str, found: Sequence[tuple[int, int, Similarity, float, float]]) -> dict[str, Any]:
    return {
        f"{name}_ends": np.array([(i, j) for i, j, *_ in found], np.int64).reshape(-1, 2),
        f"{name}_matrix": np.array([relative.matrix() for _, _, relative, _, _ in found]).reshape(-1, 4, 4),
        f"{name}_reach": np.array([(reach, sigma) for *_, reach, sigma in found], float).reshape(-1, 2),
    }


def _relations(name: str, arrays: dict[str, Any]) -> list[tuple[int, int, Similarity, float, float]]:
    columns = (arrays[f"{name}_{part}"] for part in ("ends", "matrix", "reach"))
    return [
        (int(i), int(j), _similarity(f"{name}_matrix", matrix), float(reach), float(sigma))
        for (i, j), matrix, (reach, sigma) in zip(*columns, strict=True)
    ]
