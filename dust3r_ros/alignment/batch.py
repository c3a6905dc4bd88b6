"""Global alignment of all views at once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from dust3r_ros.alignment.depth import FusedDepth, OwnMap, SeenMap, fuse_depth
from dust3r_ros.alignment.initialise import Layout, place_all, robust_scale
from dust3r_ros.alignment.intrinsics import FocalGroups, edge_focal, group_focals, pool_focals
from dust3r_ros.alignment.linearise import own_errors, seen_errors
from dust3r_ros.alignment.model import Lens, Noise, Problem, State, make_lens
from dust3r_ros.alignment.observations import (
    IntArray,
    SampledEdge,
    Size,
    collect_sightings,
    confidence_floor,
    grid_pixels,
    linked_views,
    pixel_positions,
    sample_edge,
    sample_map,
    view_sizes,
)
from dust3r_ros.alignment.solve import solve
from dust3r_ros.config import AlignmentConfig
from dust3r_ros.data import Edge, FloatArray, Intrinsics, PairState, Scene, ViewEstimate
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


@dataclass(frozen=True, eq=False)
class Fit:
    """A solved set of views: ``views`` are their numbers, ``used`` the positions of the edges among those given."""

    views: tuple[int, ...]
    used: tuple[int, ...]
    problem: Problem
    state: State
    noise: Noise

    def in_world_of(self, view: int) -> Fit:
        """The same fit in the frame of one of its views, whose median sampled depth becomes the unit."""
        k = self.views.index(view)
        state = self.state
        unit = float(np.median(state.log_depth[k]))
        back, origin = state.rotation[k].T, state.centre[k]
        moved = State(
            back @ state.rotation,
            (state.centre - origin) @ back.T * np.exp(-unit),
            state.log_scale + unit,
            state.log_focal,
            [d - unit for d in state.log_depth],
        )
        return replace(self, state=moved)

    def edge_residuals(self) -> dict[int, float]:
        """Confidence-weighted RMS error relative to distance, by position of the edge among those given."""
        total, weight = np.zeros(len(self.used)), np.zeros(len(self.used))
        for k, (s, lens) in enumerate(zip(self.problem.sightings, self.problem.lenses)):
            rays = lens.rays(self.state.log_focal)
            for at, w, errors in (
                (s.own_edge, s.own_weight, own_errors(s, rays, self.state, k)),
                (s.seen_edge, s.seen_weight, seen_errors(s, rays, self.state, k)),
            ):
                np.add.at(total, at, (w * (errors.radial**2 + errors.lateral2)).sum(axis=1))
                np.add.at(weight, at, w.sum(axis=1))
        rms = np.sqrt(total / np.maximum(weight, 1e-300))
        return {edge: float(r) for edge, r in zip(self.used, rms)}


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


def view_intrinsics(known: Intrinsics | None, size: Size, log_focal: float) -> Intrinsics:
    """The given intrinsics, or those of a focal in units of the longer side of (H, W)."""
    height, width = size
    return known if known is not None else Intrinsics.from_focal(float(np.exp(log_focal)) * max(size), width, height)


def fuse_view(view: int, edges: Sequence[Edge], scales: Sequence[float], poses: Mapping[int, FloatArray],
              intrinsics: Intrinsics, noise: Noise, min_confidence: float) -> FusedDepth:  # fmt: skip
    """Full-resolution depth of a view from all ``edges`` that touch it; ``scales`` take each to world units."""
    own, seen = [], []
    for edge, scale in zip(edges, scales):
        if edge.prediction.state is PairState.ROTATION_ONLY:
            continue
        floor = confidence_floor(edge, min_confidence)
        if edge.i == view:
            points, weight = sample_map(edge.prediction.points_i, edge.prediction.conf_i, None, floor, np.float32)
            own.append(OwnMap(points * np.float32(scale), weight))
        else:
            points, weight = sample_map(edge.prediction.points_j, edge.prediction.conf_j, None, floor, np.float32)
            back = poses[edge.i][:3, :3].T
            shift = back @ (poses[view][:3, 3] - poses[edge.i][:3, 3])
            seen.append(SeenMap(points * np.float32(scale), weight, back @ poses[view][:3, :3], shift))
    return fuse_depth(own, seen, intrinsics, noise)


def unregistered_view(intrinsics: Intrinsics) -> ViewEstimate:
    """A view that no edge could place: identity pose, no depth."""
    empty = np.zeros((intrinsics.height, intrinsics.width), np.float32)
    return ViewEstimate(np.eye(4), empty, empty.copy(), intrinsics, registered=False)


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
        fused = fuse_view(view, [edges[fit.used[k]] for k in touching], scales[touching], poses, lens, fit.noise,
                          config.min_confidence)  # fmt: skip
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
