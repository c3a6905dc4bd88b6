"""One self-contained web page of a run: the cloud to turn around, views, depth, confidence, time and settings."""

from __future__ import annotations

import base64
import html
import json
import string
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dust3r_ros import __version__
from dust3r_ros.config import ReconstructorConfig
from dust3r_ros.data import ByteImage, FloatArray, PosedView
from dust3r_ros.evaluation.exports import Cleaned
from dust3r_ros.evaluation.figure import upright_axes
from dust3r_ros.evaluation.run import draw_result
from dust3r_ros.files import replacing
from dust3r_ros.images import to_jpeg
from dust3r_ros.mapping.cloud import PointCloud
from dust3r_ros.mapping.gltf import frustum_corners, frustum_depth
from dust3r_ros.options import flatten_config
from dust3r_ros.pictures import confidence_picture, depth_picture, thumbnail

MAX_POINTS = 80_000  # that can be turned around
_STRIP_VIEWS = 8
_PICTURE_PX = 640
_JPEG_QUALITY = 85
_TEMPLATE = Path(__file__).with_name("page.html")
_EDGES = [(0, 1), (0, 2), (0, 3), (0, 4), (1, 2), (2, 3), (3, 4), (4, 1)]
_PATH, _TRUTH, _FRUSTUM = (255, 159, 28), (76, 201, 240), (150, 160, 175)


def write_page(
    cleaned: Cleaned, path: Path, facts: Sequence[tuple[str, str]], config: ReconstructorConfig, title: str,
    truth: FloatArray | None = None,
) -> None:  # fmt: skip
    """Write the page. ``facts`` are (what, value); ``truth`` (M, 4, 4) are true poses in the result's world.

    Raises ExportError when the file cannot be written.
    """
    result = cleaned.result
    shown = min(len(result.cloud), MAX_POINTS)
    some = _number(shown) if shown == len(result.cloud) else f"{_number(shown)} of {_number(len(result.cloud))}"
    note = f"{some} points. Drag to turn, Shift and drag to move, wheel or pinch to zoom."
    parts = {
        "title": html.escape(title or "reconstruction"),
        "facts": "".join(f"<div><dt>{html.escape(n)}</dt><dd>{html.escape(v)}</dd></div>" for n, v in facts),
        "cloud_note": note + (" Blue: the true path." if truth is not None else ""),
        "figure": _figure(cleaned, truth),
        "strip": "".join(_strip_entry(view) for view in _spread([v for v in result.views if v.has_depth])),
        "clean": _clean(cleaned),
        "times": _times(result.stage_seconds),
        "settings": _settings(config),
        "scene": json.dumps(_scene(result.cloud, result.views, truth)),
        "version": __version__,
    }
    text = string.Template(_TEMPLATE.read_text(encoding="utf-8")).substitute(parts)
    with replacing(path) as scratch:
        scratch.write_text(text, encoding="utf-8")


def _spread(views: Sequence[PosedView]) -> list[PosedView]:
    if not views:
        return []
    return [views[k] for k in sorted({round(place) for place in np.linspace(0, len(views) - 1, _STRIP_VIEWS)})]


def _figure(cleaned: Cleaned, truth: FloatArray | None) -> str:
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "figure.png"
        draw_result(cleaned.result, file, truth=truth, dark=True)
        return _data_uri(file.read_bytes(), "png")


def _strip_entry(view: PosedView) -> str:
    sure = np.where(view.estimate.depth > 0, view.estimate.confidence, 0)
    pictures = (
        ("image", view.image.pixels),
        ("depth", depth_picture(np.where(sure > 0, view.estimate.depth, 0))),
        ("confidence", confidence_picture(sure)),
    )
    images = "".join(f'<img alt="{name}" src="{_jpeg(pixels)}">' for name, pixels in pictures)
    return f"<figure>{images}<figcaption>{html.escape(Path(view.name).name)}</figcaption></figure>"


def _clean(cleaned: Cleaned) -> str:
    rows = "".join(
        f'<tr><td>{html.escape(step)}</td><td class="n">{_number(count)}</td></tr>' for step, count in cleaned.removed
    )
    table = f'<table><tr><th>left out</th><th class="n">pixels or points</th></tr>{rows}</table>' if rows else ""
    before, after = cleaned.before, cleaned.result.cloud
    if before is after:
        return table + "<p>No further clean-up was asked for.</p>"
    pictures = (("before", before), ("after", after))
    figures = "".join(
        f'<figure><img alt="{name}" src="{_jpeg(_overview(cloud, cleaned.result.poses()))}">'
        f"<figcaption>{name}: {_number(len(cloud))} points</figcaption></figure>"
        for name, cloud in pictures
    )
    return f'{table}<div class="pair">{figures}</div>'


def _overview(cloud: PointCloud, poses: FloatArray, width: int = 640, height: int = 420) -> ByteImage:
    """The cloud as seen from behind and above the middle camera, (height, width, 3)."""
    pose = poses[len(poses) // 2].copy()
    depth = float(np.median((cloud.points - pose[:3, 3]) @ pose[:3, 2])) if len(cloud) else 1.0
    tilt = np.radians(20.0)
    pose[:3, :3] = pose[:3, :3] @ np.array(
        [[1, 0, 0], [0, np.cos(tilt), np.sin(tilt)], [0, -np.sin(tilt), np.cos(tilt)]]
    )
    pose[:3, 3] -= abs(depth) * (0.6 * pose[:3, 2] - poses[len(poses) // 2][:3, 2] + pose[:3, 2])
    camera = (cloud.points - pose[:3, 3]) @ pose[:3, :3]
    front = camera[:, 2] > 1e-3 * abs(depth)
    camera, colours = camera[front], cloud.colours[front]
    order = np.argsort(-camera[:, 2])  # the nearest are painted last
    image = np.full((height, width, 3), 16, np.uint8)
    u, v = (camera[order, :2] / camera[order, 2:] * (0.9 * width) + (width / 2, height / 2)).astype(np.int64).T
    for dv in range(2):
        for du in range(2):
            inside = (u + du >= 0) & (u + du < width) & (v + dv >= 0) & (v + dv < height)
            image[(v + dv)[inside], (u + du)[inside]] = colours[order][inside]
    return image


def _number(count: int) -> str:
    """With narrow gaps between the thousands."""
    return f"{count:,}".replace(",", "\u202f")


def _times(seconds: Mapping[str, float]) -> str:
    whole = max(sum(seconds.values()), 1e-9)
    return "".join(
        f'<tr><td>{html.escape(stage)}</td><td class="n">{spent:.2f} s</td>'
        f'<td style="width:60%"><div class="bar" style="width:{100 * spent / whole:.1f}%"></div></td></tr>'
        for stage, spent in seconds.items()
    )


def _settings(config: ReconstructorConfig) -> str:
    default = flatten_config(ReconstructorConfig())
    rows = []
    for name, value in flatten_config(config).items():
        changed = ' class="changed"' if value != default[name] else ""
        rows.append(f"<tr{changed}><td>{html.escape(name)}</td><td>{html.escape(str(value))}</td></tr>")
    return "".join(rows)


def _scene(cloud: PointCloud, views: Sequence[PosedView], truth: FloatArray | None) -> dict[str, Any]:
    """What the page's script draws: in axes right, forward, up."""
    poses = np.stack([view.camera_to_world for view in views])
    axes = upright_axes(poses, cloud.points)
    chosen = cloud
    if len(cloud) > MAX_POINTS:
        chosen = cloud.take(np.random.default_rng(0).choice(len(cloud), MAX_POINTS, replace=False))
    points = chosen.points @ axes.T if len(chosen) else poses[:, :3, 3] @ axes.T
    low, high = points.min(axis=0), points.max(axis=0)
    span = np.maximum(high - low, 1e-9)
    lines, colours = _lines(cloud, views, truth)
    path = poses[:, :3, 3] @ axes.T
    middle_low, middle_high = np.quantile(points, [0.03, 0.97], axis=0)  # nearly all points, and all cameras
    middle_low, middle_high = np.minimum(middle_low, path.min(axis=0)), np.maximum(middle_high, path.max(axis=0))
    extent = float(np.linalg.norm(middle_high - middle_low)) or 1.0
    return {
        "points": _base64(np.rint((chosen.points @ axes.T - low) / span * 65535).astype("<u2")),
        "colours": _base64(chosen.colours),
        "box": {"low": low.tolist(), "span": span.tolist()},
        "lines": _base64((lines @ axes.T).astype("<f4")),
        "line_colours": _base64(colours),
        "target": ((middle_low + middle_high) / 2).tolist(),
        "far": 0.85 * extent,
        "turn": 0.35,
        "lift": 0.45,
        "spacing": extent / max(len(chosen), 1) ** 0.5,
    }


def _lines(
    cloud: PointCloud, views: Sequence[PosedView], truth: FloatArray | None
) -> tuple[FloatArray, NDArray[np.uint8]]:  # fmt: skip
    """Both ends of every line (2 L, 3), world, and their colours: frusta, the path, the true path."""
    size = frustum_depth(cloud, views)
    groups = [(frustum_corners(view, size)[_EDGES].reshape(-1, 3), _FRUSTUM) for view in views]
    groups.append((_chain(np.stack([view.camera_to_world[:3, 3] for view in views])), _PATH))
    if truth is not None:
        groups.append((_chain(truth[:, :3, 3]), _TRUTH))
    ends = np.concatenate([points for points, _ in groups])
    return ends, np.concatenate([np.tile(np.array(colour, np.uint8), (len(points), 1)) for points, colour in groups])


def _chain(points: FloatArray) -> FloatArray:
    return np.repeat(points, 2, axis=0)[1:-1]


def _jpeg(pixels: ByteImage) -> str:
    return _data_uri(to_jpeg(thumbnail(pixels, _PICTURE_PX), _JPEG_QUALITY).tobytes(), "jpeg")


def _data_uri(data: bytes, kind: str) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(data).decode('ascii')}"


def _base64(values: NDArray[Any]) -> str:
    return base64.b64encode(np.ascontiguousarray(values).tobytes()).decode("ascii")
