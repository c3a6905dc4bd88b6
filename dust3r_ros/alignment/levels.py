"""Predictions at two sample spacings: a far start is fitted on a quarter of the pixels, the rest only refine it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from dust3r_ros.alignment.given import Given
from dust3r_ros.alignment.initialise import Layout, robust_scale
from dust3r_ros.alignment.intrinsics import FocalGroups
from dust3r_ros.alignment.model import Lens, Problem, State, make_lens
from dust3r_ros.alignment.observations import (
    MIN_SAMPLES,
    IntArray,
    SampledEdge,
    Sightings,
    Size,
    collect_sightings,
    every_second,
    grid_pixels,
    grid_shape,
    pixel_positions,
    sample_edge,
)
from dust3r_ros.alignment.solve import WIDENING, Solution, solve
from dust3r_ros.config import AlignmentConfig
from dust3r_ros.data import Edge, FloatArray

COARSE_ROUNDS = len(WIDENING) + 1
COARSE_SAMPLES = 8 * MIN_SAMPLES  # predictions that every edge needs, so that a quarter of them is enough to start from


@dataclass(frozen=True, eq=False)
class Level:
    """Edges on the sample pixels of one spacing, and the views' lenses for these pixels.

    ``shapes`` are the samples' rows and columns in each view, ``taken`` their positions among those of the fine level.
    """

    sampled: Sequence[SampledEdge]
    lenses: Mapping[int, Lens]
    shapes: Mapping[int, tuple[int, int]]
    taken: Mapping[int, IntArray]

    def rays(self, log_focal: FloatArray) -> dict[int, FloatArray]:
        """Rays (3, G) of every view's sample pixels."""
        return {v: lens.rays(log_focal) for v, lens in self.lenses.items()}


def make_levels(edges: Sequence[Edge], sizes: Mapping[int, Size], given: Given, groups: FocalGroups,
                config: AlignmentConfig) -> tuple[Level, ...]:  # fmt: skip
    """The levels from coarse to fine; the fine one alone where predictions are few."""
    pixels = {v: grid_pixels(size, config.grid) for v, size in sizes.items()}
    sampled = [sample_edge(e, pixels[e.i], pixels[e.j], config.min_confidence) for e in edges]
    lenses = {
        v: make_lens(pixel_positions(size, pixels[v]), size, given.intrinsics[v], groups.of_view[v],
                     given.principal_points[v])
        for v, size in sizes.items()
    }  # fmt: skip
    shapes = {v: grid_shape(size, config.grid) for v, size in sizes.items()}
    fine = Level(sampled, lenses, shapes, {v: np.arange(rows * cols) for v, (rows, cols) in shapes.items()})
    if min((s.samples for s in sampled if s.usable), default=0) < COARSE_SAMPLES:
        return (fine,)
    some = {v: every_second(shape) for v, shape in shapes.items()}
    coarse = Level(
        [s.take(some[s.i], some[s.j]) for s in sampled],
        {v: replace(lens, offset=np.ascontiguousarray(lens.offset[:, some[v]])) for v, lens in lenses.items()},
        {v: ((rows + 1) // 2, (cols + 1) // 2) for v, (rows, cols) in shapes.items()},
        some,
    )
    return (coarse, fine)


def fit_levels(levels: Sequence[Level], used: Sequence[int], layout: Layout, log_focal: FloatArray,
               fixed: Mapping[int, bool], unit_known: bool,
               config: AlignmentConfig) -> tuple[Problem, Solution]:  # fmt: skip
    """Solve for all placed views from where they were placed on the first level, then on each finer one.

    ``used`` are the positions of the edges that count, ``fixed`` the placed views, in order, and whether their pose is
    given; ``unit_known`` whether the given poses fix the unit.
    """
    views = tuple(fixed)
    placed = [layout.placed[v] for v in views]
    state = State(
        rotation=np.array([p.rotation for p in placed]),
        centre=np.array([p.centre for p in placed]),
        log_scale=np.array([initial_log_scale(levels[0].sampled[e], layout) for e in used]),
        log_focal=log_focal,
        log_depth=[p.log_depth for p in placed],
    )
    for turn, level in enumerate(levels):
        last = turn + 1 == len(levels)
        problem = make_problem(level, used, fixed, unit_known)
        if turn:
            state = replace(state, log_depth=start_depths(problem, state))
        rounds = config.outer_iterations if last else min(config.outer_iterations, COARSE_ROUNDS)
        solution = solve(problem, state, replace(config, outer_iterations=rounds), warm=turn > 0)
        state = solution.state
    return problem, solution


def make_problem(level: Level, used: Sequence[int], fixed: Mapping[int, bool], unit_known: bool) -> Problem:
    """The problem of some edges of a level."""
    index = {v: k for k, v in enumerate(fixed)}
    chosen = [level.sampled[e] for e in used]
    lenses = [level.lenses[v] for v in fixed]
    return Problem(
        sightings=[collect_sightings(chosen, v, lens.offset.shape[1], index) for v, lens in zip(fixed, lenses)],
        lenses=lenses,
        edges=len(chosen),
        fixed_pose=np.array(list(fixed.values())),
        fixed_depth=np.zeros(len(fixed), dtype=bool),
        unit_known=unit_known,
    )


def initial_log_scale(edge: SampledEdge, layout: Layout) -> float:
    """Log sigma of an edge between placed views: by its own-frame map, else by the other one; 0 when neither tells."""
    placed = layout.placed[edge.i]
    inside = layout.rays[edge.i] * np.exp(placed.log_depth)
    scale = robust_scale(edge.points_i, inside, edge.weight_i * (placed.known > 0))
    if not scale > 0:
        inside = placed.rotation.T @ (layout.world(edge.j) - placed.centre[:, None])
        scale = robust_scale(edge.points_j, inside, edge.weight_j * (layout.placed[edge.j].known > 0))
    return -float(np.log(scale)) if scale > 0 else 0.0


def start_depths(problem: Problem, state: State) -> list[FloatArray]:
    """Log depths on a finer level, given everything else: of each pixel the median over all maps that show it.

    Where there is none, the view's median depth so far.
    """
    depths = []
    for view, (s, lens) in enumerate(zip(problem.sightings, problem.lenses)):
        rays = lens.rays(state.log_focal)
        own = (s.own * rays).sum(axis=1) / (rays**2).sum(axis=0) * np.exp(-state.log_scale[s.own_edge])[:, None]
        seen = _seen_depths(s, state, view)
        depth = _median_of(np.concatenate([own, seen]), np.concatenate([s.own_weight, s.seen_weight]))
        fill = np.exp(np.median(state.log_depth[view]))
        depths.append(np.log(np.where(depth > 0, depth, fill)))
    return depths


def _seen_depths(s: Sightings, state: State, view: int) -> FloatArray:
    """Depths (B, G) in the view's camera of what other cameras say of its pixels; 0 without parallax."""
    rotation, translation = state.relative(s.seen_from, view)
    points = s.seen * np.exp(-state.log_scale[s.seen_edge])[:, None, None] - translation[:, :, None]
    return np.einsum("bc,bcg->bg", rotation[:, :, 2], points) * s.seen_parallax[:, None]


def _median_of(depth: FloatArray, weight: FloatArray) -> FloatArray:
    """The lower median (G,) over maps (K, G) of positive depths with weight; 0 where there is none."""
    if not len(depth):
        return np.zeros(depth.shape[1])
    good = (depth > 0) & (weight > 0)
    ordered = np.sort(np.where(good, depth, np.inf), axis=0)
    count = good.sum(axis=0)
    middle = ordered[np.maximum(count - 1, 0) // 2, np.arange(depth.shape[1])]
    return np.where(count > 0, middle, 0.0)
