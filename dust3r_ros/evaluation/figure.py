"""One picture of a reconstruction: the cloud from above and from the side with the path, and some depth images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

from dust3r_ros.data import BoolArray, FloatArray
from dust3r_ros.files import replacing
from dust3r_ros.mapping.cloud import PointCloud
from dust3r_ros.mapping.upright import up_of

MAX_POINTS = 250_000  # drawn a view
_BACKGROUND, _PATH, _TRUTH = "#14161a", "#ff9f1c", "#4cc9f0"
_LIGHT = ("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color")
_DARK: dict[Any, Any] = dict.fromkeys(_LIGHT, "#c6ccd6") | dict.fromkeys(
    ("figure.facecolor", "legend.facecolor"), _BACKGROUND
)
_INCH_PX = 100
_WIDTH = 16.0  # inches


@dataclass(frozen=True, eq=False)
class DepthView:
    """A depth image (H, W), in the world's unit, not finite or 0 where unknown."""

    title: str
    depth: FloatArray


@dataclass(frozen=True, eq=False)
class Reconstruction:
    """What is drawn, all in one world: ``poses`` (N, 4, 4) camera to world in order, ``truth`` (M, 4, 4) likewise."""

    cloud: PointCloud
    poses: FloatArray
    depths: Sequence[DepthView] = ()
    truth: FloatArray | None = None
    unit: str = "map units"


def draw_reconstruction(
    what: Reconstruction, path: Path, *, title: str = "", caption: str = "", dark: bool = False
) -> None:
    """Write the picture as PNG, on white or for a ``dark`` page.

    Raises ExportError when the file cannot be written and ValueError without poses.
    """
    if not len(what.poses):
        raise ValueError("a reconstruction must have at least one pose to be drawn")
    with rc_context(_DARK if dark else {}):
        _draw(what, path, title, caption)


def _draw(what: Reconstruction, path: Path, title: str, caption: str) -> None:
    layout = _lay_out(what)
    figure = Figure(figsize=(_WIDTH, layout.height), dpi=_INCH_PX, layout="constrained")
    canvas = FigureCanvasAgg(figure)
    ratios = [layout.views_height, layout.depths_height] if what.depths else [1.0]
    rows = figure.add_gridspec(len(ratios), 1, height_ratios=ratios)
    _draw_views(figure, rows[0], what, layout)
    if what.depths:
        _draw_depths(figure, rows[1], what)
    figure.suptitle(title, fontsize=15, fontweight="bold")
    if caption:
        figure.supxlabel(caption, fontsize=11)
    with replacing(path) as scratch:
        canvas.print_png(str(scratch))


def upright_axes(poses: FloatArray, points: FloatArray | None = None) -> FloatArray:
    """Axes (3, 3), rows right, forward and up, in the world of ``poses`` (N, 4, 4) and ``points`` (M, 3).

    Forward is where the first camera looks, levelled.
    """
    up = up_of(poses, points)
    forward = _levelled(poses[0, :3, 2], up)
    if np.linalg.norm(forward) < 1e-3:  # looks straight up or down
        forward = _levelled(poses[0, :3, 1], up)
    forward /= np.linalg.norm(forward)
    return np.stack([np.cross(forward, up), forward, up])


def _levelled(direction: FloatArray, up: FloatArray) -> FloatArray:
    return direction - (direction @ up) * up


@dataclass(frozen=True, eq=False)
class _Layout:
    """``axes`` (3, 3) of the views, the box (2, 3) they show, inches of the picture, and the share of the left view."""

    axes: FloatArray
    limits: FloatArray
    views_height: float
    depths_height: float
    left_share: float

    @property
    def height(self) -> float:
        return self.views_height + self.depths_height + 0.9  # title and caption


def _lay_out(what: Reconstruction) -> _Layout:
    """Both views in one scale where that is sensible, and the picture just as high as they need."""
    axes = upright_axes(what.poses, what.cloud.points)
    centres = [what.poses[:, :3, 3]] + ([] if what.truth is None else [what.truth[:, :3, 3]])
    limits = _limits(what.cloud.points @ axes.T, np.concatenate(centres) @ axes.T)
    right, forward, up = np.ptp(limits, axis=0)
    share = float(np.clip(right / (right + forward), 0.3, 0.7))
    heights = (_WIDTH - 2) * np.array([share * forward / right, (1 - share) * up / forward])
    depth_rows = [d.depth.shape[0] / d.depth.shape[1] for d in what.depths]
    depths_height = (_WIDTH - 1.5) / len(depth_rows) * max(depth_rows) + 0.4 if depth_rows else 0.0
    return _Layout(axes, limits, float(np.clip(heights.max() + 0.8, 4.0, 10.0)), min(depths_height, 6.0), share)


def _draw_views(figure: Figure, place: Any, what: Reconstruction, layout: _Layout) -> None:
    axes, limits = layout.axes, layout.limits
    points = what.cloud.points @ axes.T
    path = what.poses[:, :3, 3] @ axes.T
    truth = None if what.truth is None else what.truth[:, :3, 3] @ axes.T
    inside = ((points >= limits[0]) & (points <= limits[1])).all(axis=1)
    views = place.subgridspec(1, 2, width_ratios=[layout.left_share, 1 - layout.left_share])
    above, side = figure.add_subplot(views[0]), figure.add_subplot(views[1])
    # From above a ceiling would hide the room.
    low = inside & (points[:, 2] <= np.quantile(path[:, 2], 0.95) + 0.15 * np.ptp(limits, axis=0)[2])
    _draw_view(above, what, points, path, truth, limits, low, across=0, up=1, names=("right", "forward"))
    _draw_view(side, what, points, path, truth, limits, inside, across=1, up=2, names=("forward", "up"))
    above.set_title(f"From above: {len(what.cloud):,} points".replace(",", " "))
    side.set_title(f"From the side: path of {len(path)} keyframes")
    above.legend(loc="best", fontsize=9, framealpha=0.85)


def _limits(points: FloatArray, path: FloatArray) -> FloatArray:
    """The box (2, 3) with all of the path and nearly all points."""
    if not len(points):
        points = path
    low, high = np.quantile(points, [0.01, 0.99], axis=0)
    low, high = np.minimum(low, path.min(axis=0)), np.maximum(high, path.max(axis=0))
    margin = 0.05 * max(float((high - low).max()), 1e-6)
    return np.stack([low - margin, high + margin])


def _draw_view(
    axes: Any, what: Reconstruction, points: FloatArray, path: FloatArray, truth: FloatArray | None,
    limits: FloatArray, shown: BoolArray, *, across: int, up: int, names: tuple[str, str],
) -> None:  # fmt: skip
    order = _draw_order(points, shown, toward=3 - across - up, nearest_last=up == 1)
    axes.set_facecolor(_BACKGROUND)
    # A point is drawn about as large as it is far from the next, so that surfaces close.
    size = float(np.clip(60_000 / max(len(order), 1), 0.5, 4.0))
    axes.scatter(
        points[order, across],
        points[order, up],
        c=_brightened(what.cloud.colours[order]),
        s=size,
        marker="s",
        linewidths=0,
    )
    if truth is not None:
        axes.plot(truth[:, across], truth[:, up], color=_TRUTH, linewidth=1.6, linestyle="--", label="true path")
    axes.plot(path[:, across], path[:, up], color=_PATH, linewidth=1.8, label="estimated path")
    axes.plot(path[:, across], path[:, up], ".", color=_PATH, markersize=4)
    axes.plot(path[0, across], path[0, up], "o", color="#2dc653", markersize=8, label="start", zorder=5)
    axes.plot(path[-1, across], path[-1, up], "s", color="#e63946", markersize=7, label="end", zorder=5)
    axes.set_xlim(*limits[:, across])
    axes.set_ylim(*limits[:, up])
    axes.set_aspect("equal")
    axes.set_xlabel(f"{names[0]} [{what.unit}]")
    axes.set_ylabel(f"{names[1]} [{what.unit}]")
    axes.grid(color="white", alpha=0.12, linewidth=0.6)
    axes.set_axisbelow(False)


def _draw_order(points: FloatArray, shown: BoolArray, toward: int, nearest_last: bool) -> Any:
    """Indices of the points to draw, those nearest to the eye last."""
    chosen = np.flatnonzero(shown)
    if len(chosen) > MAX_POINTS:
        chosen = np.random.default_rng(0).choice(chosen, MAX_POINTS, replace=False)
    order = np.argsort(points[chosen, toward], kind="stable")
    return chosen[order if nearest_last else order[::-1]]


def _brightened(colours: FloatArray) -> FloatArray:
    """Colours 0 to 1 that can be seen on the dark ground."""
    return 0.12 + 0.88 * colours / 255.0


def _draw_depths(figure: Figure, place: Any, what: Reconstruction) -> None:
    """Near is red, evenly in the inverse, as in ``pictures.depth_picture``, and all in one range."""
    inverse = [_inverse(view.depth) for view in what.depths]
    together = np.concatenate([values.compressed() for values in inverse])
    least, most = np.quantile(together, [0.02, 0.98]) if len(together) else (0.5, 1.0)
    row = [figure.add_subplot(cell) for cell in place.subgridspec(1, len(what.depths))]
    shown: Any = None
    for axes, view, values in zip(row, what.depths, inverse):
        axes.set_facecolor(_BACKGROUND)
        shown = axes.imshow(values, cmap="turbo", vmin=least, vmax=most)
        axes.set_title(view.title, fontsize=10)
        axes.set_xticks([])
        axes.set_yticks([])
    depth_text = FuncFormatter(lambda value, _: f"{1 / value:.3g}" if value > 0 else "")
    figure.colorbar(shown, ax=row, label=f"depth [{what.unit}]", format=depth_text, shrink=0.9, pad=0.01)


def _inverse(depth: FloatArray) -> Any:
    """1 / depth (H, W), masked where the depth is not known."""
    known = np.isfinite(depth) & (depth > 0)
    return np.ma.masked_array(np.divide(1.0, depth, out=np.zeros(depth.shape), where=known), ~known)
