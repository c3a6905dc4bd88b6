"""Global alignment of all views at once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from dust3r_ros.alignment.given import Given, known_world
from dust3r_ros.alignment.initialise import place_all
from dust3r_ros.alignment.intrinsics import FocalGroups, edge_focal, group_focals, pool_focals
from dust3r_ros.alignment.levels import Level, fit_levels, make_levels, make_problem
from dust3r_ros.alignment.observations import Size, grid_pixels, linked_sets, pixel_positions, view_sizes
from dust3r_ros.alignment.result import Fit, fuse_view, unregistered_view, view_intrinsics
from dust3r_ros.alignment.solve import solve
from dust3r_ros.alignment.uncertainty import correlated_samples, pose_covariances
from dust3r_ros.config import AlignmentConfig
from dust3r_ros.data import Edge, FloatArray, Intrinsics, Scene, ViewEstimate
from dust3r_ros.errors import AlignmentError
from dust3r_ros.geometry import Similarity, make_pose

WRONG = 4.0  # typical error, in multiples of the expected one, of an edge that is left out
WRONG_ROUNDS = 3


def align(
    edges: Sequence[Edge],
    views: int,
    config: AlignmentConfig | None = None,
    *,
    intrinsics: Sequence[Intrinsics | None] | None = None,
    principal_points: Sequence[tuple[float, float] | None] | None = None,
    poses: Sequence[FloatArray | None] | None = None,
    cameras: Sequence[int | str] | None = None,
    device: str | None = None,
) -> Scene:
    """Bring pairwise pointmaps into one world.

    ``edges`` are directed predictions between views numbered 0 to ``views`` - 1. What is known has one entry a view,
    None where it is not, and is honoured exactly: ``intrinsics``, or ``principal_points`` (cx, cy) in pixels of the
    view's pointmaps with the focal left free, and ``poses`` (4, 4) camera to world. ``cameras`` names each view's
    physical camera: with ``config.share_focal`` its views share one focal, all views when it is left out.

    The world is that of the given poses, else the first registered view's camera frame. Its unit is that of two given
    poses that are apart, else the first registered view's median depth. Views that no usable edge ties to the largest
    connected set are returned with ``registered`` False; ``align_components`` gives the other sets too. Edges that
    contradict all others are left out and named in ``Scene.wrong_edges``. Depth is fused on the torch ``device``, or by
    NumPy when it is None.

    Raises AlignmentError when nothing can be registered or the predictions do not fit each other, ValueError for
    lists that do not fit the views.
    """
    given = Given.for_views(views, intrinsics, principal_points, poses, cameras)
    prepared = _prepare(edges, views, config or AlignmentConfig(), given, device)
    return _align_set(prepared, prepared.sets[0])


def align_components(
    edges: Sequence[Edge],
    views: int,
    config: AlignmentConfig | None = None,
    *,
    intrinsics: Sequence[Intrinsics | None] | None = None,
    principal_points: Sequence[tuple[float, float] | None] | None = None,
    poses: Sequence[FloatArray | None] | None = None,
    cameras: Sequence[int | str] | None = None,
    device: str | None = None,
) -> tuple[Scene, ...]:
    """One scene for each set of views that edges connect, the largest first; otherwise like ``align``.

    Every scene has an entry for each of ``views`` views; those of other sets are not registered there. The scenes
    have worlds, units and focals of their own, except that sets with two given poses that are apart share a world.
    """
    given = Given.for_views(views, intrinsics, principal_points, poses, cameras)
    prepared = _prepare(edges, views, config or AlignmentConfig(), given, device)
    return tuple(_align_set(prepared, members) for members in prepared.sets)


@dataclass(frozen=True, eq=False)
class _Prepared:
    """Checked and sampled input; ``sets`` are the connected sets of views, the largest first."""

    edges: Sequence[Edge]
    views: int
    config: AlignmentConfig
    given: Given
    sizes: Mapping[int, Size]
    groups: FocalGroups
    levels: tuple[Level, ...]
    sets: Sequence[tuple[int, ...]]
    device: str | None


def _prepare(edges: Sequence[Edge], views: int, config: AlignmentConfig, given: Given,
             device: str | None) -> _Prepared:  # fmt: skip
    if not edges:
        raise AlignmentError("alignment needs at least one edge, got none")
    for edge in edges:
        if not (0 <= edge.i < views and 0 <= edge.j < views):
            raise ValueError(f"edges must join views 0 to {views - 1}, got ({edge.i}, {edge.j})")
    sizes = view_sizes(edges)
    given.check_sizes(sizes)
    groups = group_focals(views, config.share_focal, given.intrinsics, given.cameras)
    levels = make_levels(edges, sizes, given, groups, config)
    sets = linked_sets(levels[-1].sampled, views)
    if not sets:
        raise AlignmentError(f"none of {len(edges)} edges has predictions from which a view can be placed")
    return _Prepared(edges, views, config, given, sizes, groups, levels, sets, device)


def _align_set(p: _Prepared, members: Sequence[int]) -> Scene:
    """Place, solve, leave out wrong edges and solve again, and fuse depth."""
    log_focal = _initial_focals(p, members)
    layout = place_all(p.levels[0].sampled, members, p.levels[0].rays(log_focal))
    known = {v: pose for v, pose in p.given.known_poses().items() if v in layout.placed}
    into = known_world(layout, known)
    world = into.similarity  # the solver keeps its own, whose unit is near the views' depth
    layout = layout.with_poses({v: world.inverse().apply_to_pose(pose) for v, pose in known.items()})
    anchor = next(iter(layout.placed))
    fixed = {v: v in known or (not known and v == anchor) for v in sorted(layout.placed)}
    used = [e for e, s in enumerate(p.levels[-1].sampled) if s.usable and s.i in fixed and s.j in fixed]
    if not used:
        raise AlignmentError(f"no predictions between views {', '.join(str(v) for v in members)} give a pose")
    problem, solution = fit_levels(p.levels, used, layout, log_focal, fixed, into.unit_known, p.config)
    fit = Fit(tuple(fixed), tuple(used), problem, solution.state, solution.noise)
    fit, wrong = _without_wrong_edges(p, fit, fixed)
    residual = {**wrong, **fit.edge_residuals()}
    if not into.unit_known:
        first = next(iter(known), fit.views[0])
        world = fit.world_of(first, known.get(first))
    views = _make_views(p, fit, known, world)
    names = [(edge.i, edge.j) for edge in p.edges]
    return Scene(
        views, {names[e]: residual[e] for e in sorted(residual)}, wrong_edges=frozenset(names[e] for e in wrong)
    )


def _without_wrong_edges(p: _Prepared, fit: Fit, fixed: Mapping[int, bool]) -> tuple[Fit, dict[int, float]]:
    """The fit without edges that contradict it, and their residuals; an edge that alone ties a view to others stays."""
    wrong: dict[int, float] = {}
    for _ in range(WRONG_ROUNDS):
        scores = fit.edge_scores()
        kept = list(range(len(fit.used)))
        for k in np.argsort(-scores):
            if not scores[k] > WRONG:
                break
            others = [m for m in kept if m != k]
            sets = linked_sets([p.levels[-1].sampled[fit.used[m]] for m in others], p.views)
            if sets and len(sets[0]) == len(fit.views):
                kept = others
        if len(kept) == len(fit.used):
            break
        residual = fit.edge_residuals()
        wrong.update({e: residual[e] for m, e in enumerate(fit.used) if m not in kept})
        used = tuple(fit.used[m] for m in kept)
        problem = make_problem(p.levels[-1], used, fixed, fit.problem.unit_known)
        state = replace(fit.state, log_scale=fit.state.log_scale[kept])
        solution = solve(problem, state, p.config, warm=True)
        fit = Fit(fit.views, used, problem, solution.state, solution.noise)
    return fit, wrong


def _initial_focals(p: _Prepared, members: Sequence[int]) -> FloatArray:
    """Log focal (C,) of each group, in units of the longer side: the median over the set's own-frame maps."""
    found: list[list[float]] = [[] for _ in range(p.groups.count)]
    inside = set(members)
    positions = {v: pixel_positions(p.sizes[v], grid_pixels(p.sizes[v], p.config.grid)) for v in members}
    for edge in p.levels[-1].sampled:
        group = p.groups.of_view[edge.i]
        if edge.i in inside and group >= 0:
            point = p.given.principal_points[edge.i]
            found[group].append(edge_focal(edge, positions[edge.i], p.sizes[edge.i], point))
    return np.array([np.log(pool_focals(focals).focal) for focals in found])


def _make_views(p: _Prepared, fit: Fit, known: Mapping[int, FloatArray], world: Similarity) -> tuple[ViewEstimate, ...]:
    """Estimates of all views in ``world``; depths and covariances are taken in the solver's, whose unit suits them."""
    covariance = _covariances(p, fit, known, world.scale)
    poses = {v: make_pose(fit.state.rotation[k], fit.state.centre[k]) for k, v in enumerate(fit.views)}
    scales = np.exp(-fit.state.log_scale)
    estimates = []
    for view in range(p.views):
        group = p.groups.of_view[view]
        log_focal = float(fit.state.log_focal[group]) if group >= 0 else 0.0
        lens = view_intrinsics(p.given.intrinsics[view], p.sizes.get(view, (1, 1)), log_focal,
                               p.given.principal_points[view])  # fmt: skip
        if view not in poses:
            estimates.append(unregistered_view(lens))
            continue
        touching = [k for k, e in enumerate(fit.used) if view in (p.edges[e].i, p.edges[e].j)]
        near = [p.edges[fit.used[k]] for k in touching]
        fused = fuse_view(view, near, scales[touching].tolist(), poses, lens, fit.noise, p.config.min_confidence,
                          p.device)  # fmt: skip
        pose = known.get(view, world.apply_to_pose(poses[view]))
        depth = fused.depth * np.float32(world.scale)
        estimates.append(ViewEstimate(pose, depth, fused.confidence, lens, pose_covariance=covariance[view]))
    return tuple(estimates)


def _covariances(p: _Prepared, fit: Fit, known: Mapping[int, FloatArray], unit: float) -> dict[int, FloatArray]:
    """Pose covariances (6, 6) by view, in the world of the scene.

    They are taken in the solver's unit, which is well conditioned; ``unit`` takes it to the scene's. The
    normal matrix of the coarse level is enough, when it is scaled to the number of samples that were used.
    """
    level = p.levels[0]
    problem = make_problem(level, fit.used, dict(zip(fit.views, fit.problem.fixed_pose)), fit.problem.unit_known)
    depths = [depth[level.taken[v]] for v, depth in zip(fit.views, fit.state.log_depth)]
    shapes = [p.levels[-1].shapes[v] for v in fit.views]
    shared = correlated_samples(fit.problem, fit.state, fit.noise, shapes)
    shared *= problem.residuals / fit.problem.residuals
    origin = next((k for k, v in enumerate(fit.views) if v in known), 0)
    found = pose_covariances(problem, replace(fit.state, log_depth=depths), fit.noise, shared, origin)
    units = np.array([unit] * 3 + [1.0] * 3)
    return dict(zip(fit.views, found * units[:, None] * units))
