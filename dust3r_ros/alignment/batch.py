"""Global alignment of all views at once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from dust3r_ros.alignment.initialise import Layout, place_all, robust_scale
from dust3r_ros.alignment.intrinsics import FocalGroups, edge_focal, group_focals, pool_focals
from dust3r_ros.alignment.model import Lens, Problem, State, make_lens
from dust3r_ros.alignment.observations import (
    IntArray,
    SampledEdge,
    Size,
    collect_sightings,
    grid_pixels,
    linked_views,
    pixel_positions,
    sample_edge,
    view_sizes,
)
from dust3r_ros.alignment.result import Fit, fuse_view, unregistered_view, view_intrinsics
from dust3r_ros.alignment.solve import solve
from dust3r_ros.config import AlignmentConfig
from dust3r_ros.data import Edge, FloatArray, Intrinsics, Scene, ViewEstimate
from dust3r_ros.errors import AlignmentError
from dust3r_ros.geometry import make_pose


def align(
    edges: Sequence[Edge],
    views: int,
    config: AlignmentConfig | None = None,
    *,
    intrinsics: Sequence[Intrinsics | None] | None = None,
    cameras: Sequence[int | str] | None = None,
) -> Scene:
    """Bring pairwise pointmaps into one world.

    ``edges`` are directed predictions between views numbered 0 to ``views`` - 1; ``intrinsics`` (one a view, None
    where unknown) are honoured exactly; ``cameras`` names each view's physical camera: with ``config.share_focal``
    its views share one focal. The world is the first registered view's camera frame, its unit that view's median
    depth. Views that no usable edge ties to the largest connected set are returned with ``registered`` False.

    Raises AlignmentError when nothing can be registered or the predictions do not fit each other.
    """
    config = config or AlignmentConfig()
    _check(edges, views, intrinsics, cameras)
    known = list(intrinsics) if intrinsics is not None else [None] * views
    sizes = view_sizes(edges)
    _check_sizes(sizes, known)
    pixels = {v: grid_pixels(size, config.grid) for v, size in sizes.items()}
    sampled = [sample_edge(e, pixels[e.i], pixels[e.j], config.min_confidence) for e in edges]
    groups = group_focals(views, config.share_focal, known, cameras if cameras is not None else [0] * views)
    log_focal = initial_focals(sampled, groups, pixels, sizes)
    lenses = {
        v: make_lens(pixel_positions(size, pixels[v]), size, known[v], groups.of_view[v]) for v, size in sizes.items()
    }
    rays = {v: lens.rays(log_focal) for v, lens in lenses.items()}
    linked = linked_views(sampled, views)
    layout = place_all(sampled, [v for v in sizes if linked[v]], rays)
    if len(layout.placed) < 2:
        raise AlignmentError(f"none of {len(edges)} edges has predictions from which two views can be placed")
    fit = fit_layout(sampled, layout, lenses, log_focal, config)
    fit = fit.in_world_of(min(fit.views))
    return _make_scene(edges, fit, views, sizes, known, groups, config)


def initial_focals(sampled: Sequence[SampledEdge], groups: FocalGroups, pixels: Mapping[int, IntArray],
                   sizes: Mapping[int, Size]) -> FloatArray:  # fmt: skip
    """Log focal (C,) of each group, in units of the longer side: the median over its own-frame maps."""
    found: list[list[float]] = [[] for _ in range(groups.count)]
    for edge in sampled:
        group = groups.of_view[edge.i]
        if group >= 0:
            found[group].append(edge_focal(edge, pixel_positions(sizes[edge.i], pixels[edge.i]), sizes[edge.i]))
    return np.array([np.log(pool_focals(focals).focal) for focals in found])


def fit_layout(sampled: Sequence[SampledEdge], layout: Layout, lenses: Mapping[int, Lens], log_focal: FloatArray,
               config: AlignmentConfig) -> Fit:  # fmt: skip
    """Solve for all placed views, from where they were placed."""
    views = tuple(sorted(layout.placed))
    index = {v: k for k, v in enumerate(views)}
    used = tuple(e for e, s in enumerate(sampled) if s.usable and s.i in index and s.j in index)
    chosen = [sampled[e] for e in used]
    anchor = next(iter(layout.placed))
    problem = Problem(
        sightings=[collect_sightings(chosen, v, lenses[v].offset.shape[1], index) for v in views],
        lenses=[lenses[v] for v in views],
        edges=len(chosen),
        fixed_pose=np.array([v == anchor for v in views]),
        fixed_depth=np.zeros(len(views), dtype=bool),
    )
    placed = [layout.placed[v] for v in views]
    start = State(
        rotation=np.array([p.rotation for p in placed]),
        centre=np.array([p.centre for p in placed]),
        log_scale=np.array([initial_log_scale(edge, layout) for edge in chosen]),
        log_focal=log_focal,
        log_depth=[p.log_depth for p in placed],
    )
    solution = solve(problem, start, config)
    return Fit(views, used, problem, solution.state, solution.noise)


def initial_log_scale(edge: SampledEdge, layout: Layout) -> float:
    """Log sigma of an edge between placed views: by its own-frame map, else by the other one; 0 when neither tells."""
    placed = layout.placed[edge.i]
    inside = layout.rays[edge.i] * np.exp(placed.log_depth)
    scale = robust_scale(edge.points_i, inside, edge.weight_i * (placed.known > 0))
    if not scale > 0:
        inside = placed.rotation.T @ (layout.world(edge.j) - placed.centre[:, None])
        scale = robust_scale(edge.points_j, inside, edge.weight_j * (layout.placed[edge.j].known > 0))
    return -float(np.log(scale)) if scale > 0 else 0.0


def _make_scene(edges: Sequence[Edge], fit: Fit, views: int, sizes: Mapping[int, Size],
                known: Sequence[Intrinsics | None], groups: FocalGroups, config: AlignmentConfig) -> Scene:  # fmt: skip
    poses = {v: make_pose(fit.state.rotation[k], fit.state.centre[k]) for k, v in enumerate(fit.views)}
    scales = np.exp(-fit.state.log_scale)
    estimates = []
    for view in range(views):
        group = groups.of_view[view]
        log_focal = float(fit.state.log_focal[group]) if group >= 0 else 0.0
        lens = view_intrinsics(known[view], sizes.get(view, (1, 1)), log_focal)
        if view not in poses:
            estimates.append(unregistered_view(lens))
            continue
        touching = [k for k, e in enumerate(fit.used) if view in (edges[e].i, edges[e].j)]
        near = [edges[fit.used[k]] for k in touching]
        fused = fuse_view(view, near, scales[touching].tolist(), poses, lens, fit.noise, config.min_confidence)
        estimates.append(ViewEstimate(poses[view], fused.depth, fused.confidence, lens))
    residual = {(edges[e].i, edges[e].j): r for e, r in fit.edge_residuals().items()}
    return Scene(tuple(estimates), residual)


def _check(edges: Sequence[Edge], views: int, intrinsics: Sequence[Intrinsics | None] | None,
           cameras: Sequence[int | str] | None) -> None:  # fmt: skip
    if not edges:
        raise AlignmentError("alignment needs at least one edge, got none")
    for name, given in (("intrinsics", intrinsics), ("cameras", cameras)):
        if given is not None and len(given) != views:
            raise ValueError(f"{name} must have one entry for each of {views} views, got {len(given)}")
    for edge in edges:
        if not (0 <= edge.i < views and 0 <= edge.j < views):
            raise ValueError(f"edges must join views 0 to {views - 1}, got ({edge.i}, {edge.j})")


def _check_sizes(sizes: Mapping[int, Size], known: Sequence[Intrinsics | None]) -> None:
    for view, size in sizes.items():
        k = known[view]
        if k is not None and (k.height, k.width) != size:
            raise AlignmentError(
                f"intrinsics of view {view} must be for its {size[1]}x{size[0]} predictions, got {k.width}x{k.height}"
            )
