"""Pairwise predictions from a file, and an aligned scene to one (``dust3r-ros align``)."""

from __future__ import annotations

import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from dust3r_ros.data import Edge, FloatArray, PairPrediction, Scene
from dust3r_ros.errors import AlignmentError

NUMBERS, INTEGERS = "fiu", "iu"  # kinds of dtype
NEEDED = {"edges": (2, NUMBERS), "points_i": (4, NUMBERS), "conf_i": (3, NUMBERS), "points_j": (4, NUMBERS),
          "conf_j": (3, NUMBERS)}  # dimensions and kind by name  # fmt: skip
OPTIONAL = {"views": (0, INTEGERS), "poses": (3, NUMBERS), "cameras": (1, INTEGERS)}
PER_VIEW = {"poses": (4, 4), "cameras": ()}  # shape of one view's by name


@dataclass(frozen=True, eq=False)
class Predictions:
    """Directed pairwise predictions of ``views`` views; ``poses`` (N, 4, 4), ``cameras`` if the file has any."""

    edges: tuple[Edge, ...]
    views: int
    poses: FloatArray | None = None
    cameras: tuple[int, ...] | None = None


def load_predictions(path: Path) -> Predictions:
    """Read a predictions file (.npz).

    It holds ``edges`` (E, 2), ``points_i`` and ``points_j`` (E, H, W, 3) in camera i's frame, ``conf_i`` and
    ``conf_j`` (E, H, W), and optionally ``views`` (), ``poses`` (N, 4, 4) camera to world or ``cameras`` (N,), a number
    for each view's camera, which tell how many views there are (else the largest number in ``edges`` does). Raises
    AlignmentError for anything else.
    """
    arrays = _read_arrays(Path(path))
    edges = arrays["edges"]
    if edges.shape[1] != 2 or not len(edges) or not np.issubdtype(edges.dtype, np.integer) or edges.min() < 0:
        raise AlignmentError(f"{path}: edges must be (E, 2) view numbers, got {edges.shape} {edges.dtype}")
    for name in ("points_i", "points_j"):
        shape, conf = arrays[name].shape, arrays[name.replace("points", "conf")].shape
        if shape[0] != len(edges) or shape[3] != 3 or conf != shape[:3]:
            raise AlignmentError(
                f"{path}: {name} must be ({len(edges)}, H, W, 3) with its conf, got {shape} and {conf}"
            )
    views = _count_views(path, arrays)
    parts = (arrays["points_i"], arrays["conf_i"], arrays["points_j"], arrays["conf_j"])
    found = [Edge(int(i), int(j), PairPrediction(*(part[k] for part in parts))) for k, (i, j) in enumerate(edges)]
    cameras = tuple(int(c) for c in arrays["cameras"]) if "cameras" in arrays else None
    return Predictions(tuple(found), views, arrays.get("poses"), cameras)


def _count_views(path: Path, arrays: Mapping[str, FloatArray]) -> int:
    views = int(arrays["views"]) if "views" in arrays else 0
    for name in PER_VIEW:
        if name in arrays:
            views = max(views, len(arrays[name]))
    views = max(views, int(arrays["edges"].max()) + 1)
    for name, shape in PER_VIEW.items():
        if name in arrays and arrays[name].shape != (views, *shape):
            raise AlignmentError(f"{path}: {name} must be {(views, *shape)}, got {arrays[name].shape}")
    return views


def _read_arrays(path: Path) -> dict[str, FloatArray]:
    wanted = {**NEEDED, **OPTIONAL}
    try:
        with path.open("rb") as file:
            data = np.load(file, allow_pickle=False)
            if not isinstance(data, np.lib.npyio.NpzFile):
                raise AlignmentError(f"{path}: expected a .npz of predictions, got a single array")
            arrays = {name: data[name] for name in wanted if name in data.files}
    except FileNotFoundError as error:
        raise AlignmentError(f"{path}: no such file") from error
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise AlignmentError(f"{path}: not a readable .npz of predictions ({error})") from error
    missing = [name for name in NEEDED if name not in arrays]
    if missing:
        raise AlignmentError(f"{path}: expected the arrays {', '.join(NEEDED)}, {', '.join(missing)} missing")
    for name, array in arrays.items():
        dimensions, kinds = wanted[name]
        if array.ndim != dimensions or array.dtype.kind not in kinds:
            what = "integers" if kinds == INTEGERS else "numbers"
            raise AlignmentError(
                f"{path}: {name} must be {what} in {dimensions} dimensions, got {array.dtype} {array.shape}"
            )
    return arrays


def save_scene(path: Path, scene: Scene, seconds: float) -> None:
    """Write ``poses`` (N, 4, 4) camera to world, ``focal`` (N,) pixels, ``depth`` (N, H, W), ``registered`` (N,),
    ``covariance`` (N, 6, 6) of the poses (see ``ViewEstimate``; NaN where there is none), ``wrong_edges`` (K, 2) and
    ``seconds`` to a .npz. Views of other sizes than the largest have depth 0 outside of their own.

    Raises AlignmentError when the file cannot be written.
    """
    views = scene.views
    height = max(v.depth.shape[0] for v in views)
    width = max(v.depth.shape[1] for v in views)
    depth = np.zeros((len(views), height, width), np.float32)
    for k, v in enumerate(views):
        depth[k, : v.depth.shape[0], : v.depth.shape[1]] = v.depth
    unknown = np.full((6, 6), np.nan)
    try:
        with Path(path).open("wb") as file:
            np.savez(
                file,
                poses=np.array([v.camera_to_world for v in views]),
                focal=np.array([v.intrinsics.focal_px for v in views]),
                depth=depth,
                registered=np.array([v.registered for v in views]),
                covariance=np.array([unknown if v.pose_covariance is None else v.pose_covariance for v in views]),
                wrong_edges=np.array(sorted(scene.wrong_edges), dtype=int).reshape(-1, 2),
                seconds=np.array(seconds),
            )
    except OSError as error:
        raise AlignmentError(f"{path}: cannot be written ({error.strerror or error})") from error
