"""Dense depth of the keyframes in the window, estimated anew only where that changes it noticeably.

The solver knows a keyframe's depth on a grid. How far the grid's points went since the last dense estimate, in standard
deviations of what is known of them, tells how much another one would change.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

import numpy as np

from dust3r_ros.alignment.initialise import Layout
from dust3r_ros.alignment.result import DenseView, fuse_view, unregistered_view
from dust3r_ros.alignment.window import Window
from dust3r_ros.data import ViewEstimate
from dust3r_ros.geometry import make_pose

STILL = 2.0  # standard deviations by which a keyframe's points may move before it is estimated anew


def estimates(
    window: Window, anew: Iterable[int], min_confidence: float
) -> tuple[dict[int, ViewEstimate], frozenset[int]]:
    """The estimates of the keyframes that may move, as alignment has them now, and which were made anew.

    Those in ``anew`` are, and those that moved noticeably since their last one; the others have the depth of that one,
    to their present scale, at their present pose.
    """
    found: dict[int, ViewEstimate] = {}
    made, layout = set(anew), window.layout()
    for v in window.active:
        if v not in made and shift(window, layout, v) > STILL:
            made.add(v)
        found[v] = _made(window, layout, v, min_confidence) if v in made else _carried(window, v)
    return found, frozenset(made)


def settled(window: Window, min_confidence: float) -> dict[int, ViewEstimate]:
    """New estimates of the keyframes that may move, where they moved at all since their last ones."""
    layout = window.layout()
    moved = [v for v in window.active if shift(window, layout, v) > 0]
    return {v: _made(window, layout, v, min_confidence) for v in moved}


def shift(window: Window, layout: Layout, v: int) -> float:
    """Median of how far a keyframe's points went since its last dense estimate, in standard deviations.

    A prediction's error is the noise times the distance, over its confidence. Infinite where nothing is known.
    """
    view = window.views[v]
    last, known = view.dense, view.placement.known
    if last is None or window.noise is None or not (known > 0).any():
        return float("inf")
    sampled = known > 0
    points = layout.world(v)[:, sampled]
    way2 = ((points - last.points[:, sampled]) ** 2).sum(axis=0)
    distance2 = ((points - view.placement.centre[:, None]) ** 2).sum(axis=0)
    variance = window.noise.radial**2 * distance2 / known[sampled]
    return float(np.sqrt(np.median(way2 / variance)))


def _made(window: Window, layout: Layout, v: int, min_confidence: float) -> ViewEstimate:
    view, noise = window.views[v], window.noise
    intrinsics = window.intrinsics(view)
    if noise is None:
        return replace(unregistered_view(intrinsics), registered=True)
    touching = [link for link in window.links if v in (link.edge.i, link.edge.j)]
    poses = {u: make_pose(w.placement.rotation, w.placement.centre) for u, w in window.views.items()}
    scales = [float(np.exp(-link.log_scale)) for link in touching]
    fused = fuse_view(v, [link.edge for link in touching], scales, poses, intrinsics, noise, min_confidence)
    estimate = ViewEstimate(poses[v], fused.depth, fused.confidence, intrinsics)
    view.dense = DenseView(estimate, layout.world(v), view.placement.log_depth)
    return estimate


def _carried(window: Window, v: int) -> ViewEstimate:
    view, last = window.views[v], window.views[v].dense
    assert last is not None
    known = view.placement.known > 0
    scale = np.exp(np.median((view.placement.log_depth - last.log_depth)[known]))
    pose = make_pose(view.placement.rotation, view.placement.centre)
    depth = last.estimate.depth * np.float32(scale)
    return ViewEstimate(pose, depth, last.estimate.confidence, window.intrinsics(view))
