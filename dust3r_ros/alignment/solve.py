"""Robust Gauss-Newton over poses, edge scales and focals, with every sampled depth eliminated in closed form."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import scipy.linalg
import scipy.sparse
from scipy.sparse.linalg import splu
from scipy.spatial.transform import Rotation

from dust3r_ros.alignment.linearise import ViewSystem, linearise_view, own_errors, seen_errors
from dust3r_ros.alignment.model import CUTOFF, LEAST_NOISE, Noise, Problem, State
from dust3r_ros.alignment.observations import IntArray
from dust3r_ros.config import AlignmentConfig
from dust3r_ros.data import FloatArray

log = logging.getLogger(__name__)

SMALL_SYSTEM, FILLED = 400, 0.2
LEAST_ASPECT = 0.25  # lateral over radial noise; classical pairs have none across, which would trust one pair blindly
SYMMETRIC = {"SymmetricMode": True}
LARGEST_STEP = 0.5
GAUGE_EDGES = 50
LEAST_GAIN = 1e-4  # relative decrease of the cost below which a round has converged
WIDENING = (8.0, 3.0)  # the first rounds see all edges, so that a loop that does not close yet is not thrown out


@dataclass(frozen=True, eq=False)
class Columns:
    """Where a problem's parameters are in the global vector: ``pose`` (N,) first of six, -1 when fixed."""

    pose: IntArray
    scale: int
    focal: int
    size: int


@dataclass(frozen=True, eq=False)
class Solution:
    """The fitted state, the noise level it implies, and how many steps it took."""

    state: State
    noise: Noise
    steps: int


def solve(problem: Problem, state: State, config: AlignmentConfig, *, warm: bool = False) -> Solution:
    """Fit ``state`` to all predictions. ``warm`` skips the rounds that only a far start needs."""
    steps, rounds = 0, config.outer_iterations
    noise = estimate_noise(problem, state)
    for turn in range(rounds):
        widening = 1.0 if warm or turn >= min(len(WIDENING), rounds - 1) else WIDENING[turn]
        state, used, moved = _descend(problem, state, noise.widened(widening), config.max_steps)
        steps += used
        previous, noise = noise, estimate_noise(problem, state)
        settled = abs(np.log(noise.radial / previous.radial)) < 0.02 and moved < 1e-4
        if settled and widening == 1.0:
            break
    return Solution(state, noise, steps)


def estimate_noise(problem: Problem, state: State) -> Noise:
    """Radial and lateral noise of a prediction of confidence 1: robust medians over all predictions."""
    radial, lateral2 = [], []
    for view, (s, lens) in enumerate(zip(problem.sightings, problem.lenses)):
        rays = lens.rays(state.log_focal)
        maps = s.own_weight.shape[0] + int(s.seen_parallax.sum())
        freedom = 1.0 if problem.fixed_depth[view] else max(1 - 1 / max(maps, 1), 0.5)
        own, seen = own_errors(s, rays, state, view), seen_errors(s, rays, state, view)
        # Across the line of sight only other-frame maps count: own-frame ones may lie on their rays by construction.
        lateral2.append((seen.lateral2 * s.seen_weight)[s.seen_weight > 0])
        for errors, weight in ((own, s.own_weight), (seen, s.seen_weight * (s.seen_parallax[:, None] > 0))):
            radial.append((np.abs(errors.radial) * np.sqrt(weight / freedom))[weight > 0])
    along, across = (np.concatenate(values) for values in (radial, lateral2))
    sigma_radial = 1.4826 * float(np.median(along)) if along.size else 0.0
    sigma_lateral = float(np.sqrt(np.median(across) / (2 * np.log(2)))) if across.size else 0.0
    sigma_radial = max(sigma_radial, sigma_lateral, LEAST_NOISE)
    return Noise(sigma_radial, max(sigma_lateral, LEAST_ASPECT * sigma_radial))


def _descend(problem: Problem, state: State, noise: Noise, max_steps: int) -> tuple[State, int, float]:
    """Damped Gauss-Newton at one noise level: the state, the steps used, and the largest change in all."""
    columns = number_columns(problem, state)
    damping, moved = 1e-6, 0.0
    systems = _linearise(problem, state, noise)
    cost = _total_cost(problem, state, systems)
    for step in range(max_steps):
        delta = _solve_damped(problem, state, columns, systems, damping)
        if not np.isfinite(delta).all():
            break
        trial = apply_step(problem, state, columns, systems, delta)
        trial_systems = _linearise(problem, trial, noise)
        trial_cost = _total_cost(problem, trial, trial_systems)
        if not trial_cost < cost * 1.001 + 1e-9:
            damping *= 30
            if damping > 1e4:
                return state, step + 1, moved
            continue
        size = float(np.abs(delta).max(initial=0.0))
        gain = cost - trial_cost
        state, systems, cost, damping = trial, trial_systems, trial_cost, max(damping / 10, 1e-9)
        moved += size
        if size < 1e-6 or abs(gain) < LEAST_GAIN * cost:
            return state, step + 1, moved
    return state, max_steps, moved


def _total_cost(problem: Problem, state: State, systems: Sequence[ViewSystem]) -> float:
    cost = sum(s.cost for s in systems)
    prior = problem.focal_prior
    if prior is not None:
        cost += 0.5 * float((prior.information * (state.log_focal - prior.mean) ** 2).sum())
    return cost


def number_columns(problem: Problem, state: State) -> Columns:
    """Six columns for each free pose, then the edges' scales, then the focals."""
    free = ~problem.fixed_pose
    pose = np.where(free, 6 * (np.cumsum(free) - 1), -1)
    scale = 6 * int(free.sum())
    focal = scale + problem.edges
    return Columns(pose, scale, focal, focal + len(state.log_focal))


def _linearise(problem: Problem, state: State, noise: Noise) -> list[ViewSystem]:
    return [
        linearise_view(s, lens, state, view, noise, CUTOFF, not problem.fixed_depth[view])
        for view, (s, lens) in enumerate(zip(problem.sightings, problem.lenses))
    ]


def view_columns(problem: Problem, state: State, columns: Columns, view: int) -> tuple[FloatArray, IntArray]:
    """How a view's local parameters depend on the global ones: ``local = map (n, m) @ global[at (m,)]``.

    A relative pose step in camera i is ``step_i - Ad(T_iv) step_v``.
    """
    s, lens = problem.sightings[view], problem.lenses[view]
    b, a = len(s.seen_edge), len(s.own_edge)
    involved = list(dict.fromkeys([*(int(i) for i in s.seen_from), view]))
    free = [v for v in involved if not problem.fixed_pose[v]]
    place = {v: 6 * k for k, v in enumerate(free)}
    poses = 6 * len(free)
    has_focal = lens.group >= 0
    mapping = np.zeros((7 * b + a + 1, poses + b + a + has_focal))
    rotation, translation = state.relative(s.seen_from, view)
    for k, i in enumerate(s.seen_from):
        if int(i) in place:
            mapping[6 * k : 6 * k + 6, place[int(i)] : place[int(i)] + 6] += np.eye(6)
        if view in place:
            mapping[6 * k : 6 * k + 6, place[view] : place[view] + 6] -= adjoint(rotation[k], translation[k])
    mapping[6 * b : 7 * b + a, poses : poses + b + a] = np.eye(b + a)
    at = [np.arange(columns.pose[v], columns.pose[v] + 6) for v in free]
    at += [columns.scale + s.seen_edge, columns.scale + s.own_edge]
    if has_focal:
        mapping[-1, -1] = 1.0
        at.append(np.array([columns.focal + lens.group]))
    return mapping, np.concatenate(at).astype(int)


def adjoint(rotation: FloatArray, translation: FloatArray) -> FloatArray:
    """(6, 6): a step (translation, rotation) of the inner frame, expressed in the outer one."""
    x, y, z = translation
    cross = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])
    full = np.zeros((6, 6))
    full[:3, :3] = full[3:, 3:] = rotation
    full[:3, 3:] = cross @ rotation
    return full


def _solve_damped(problem: Problem, state: State, columns: Columns, systems: Sequence[ViewSystem],
                  damping: float) -> FloatArray:  # fmt: skip
    blocks: list[tuple[IntArray, FloatArray]] = []
    gradient = np.zeros(columns.size)
    for view, system in enumerate(systems):
        mapping, at = view_columns(problem, state, columns, view)
        blocks.append((at, mapping.T @ system.normal @ mapping))
        gradient[at] += mapping.T @ system.gradient
    prior = problem.focal_prior
    if prior is not None:
        at = np.arange(columns.focal, columns.size)
        blocks.append((at, np.diag(prior.information)))
        gradient[at] += prior.information * (state.log_focal - prior.mean)
    if not problem.fixed_depth.any():  # nothing fixes the unit of the world: keep the edges' mean log scale
        at = np.arange(columns.scale, min(columns.focal, columns.scale + GAUGE_EDGES))
        weight = sum(float(np.trace(s.normal)) for s in systems) / max(len(at), 1) ** 2
        blocks.append((at, np.full((len(at), len(at)), weight)))
    delta = _solve_blocks(blocks, gradient, damping)
    return -delta * min(1.0, LARGEST_STEP / max(float(np.abs(delta).max(initial=0.0)), 1e-300))


def _solve_blocks(blocks: Sequence[tuple[IntArray, FloatArray]], gradient: FloatArray, damping: float) -> FloatArray:
    """Solve the sum of dense blocks scattered at indices; dense only where that is large and mostly filled.

    (SuperLU also for small systems: a threaded LAPACK on a busy machine takes a hundred times longer for them.)
    """
    size = len(gradient)
    rows = np.concatenate([np.repeat(at, len(at)) for at, _ in blocks])
    cols = np.concatenate([np.tile(at, len(at)) for at, _ in blocks])
    values = np.concatenate([block.ravel() for _, block in blocks])
    normal = scipy.sparse.csc_matrix((values, (rows, cols)), shape=(size, size))
    normal = normal + scipy.sparse.diags(_damping_diagonal(normal.diagonal(), damping), format="csc")
    if size > SMALL_SYSTEM and normal.nnz > FILLED * size**2:
        return scipy.linalg.solve(normal.toarray(), gradient, assume_a="pos", check_finite=False)
    return splu(normal, permc_spec="MMD_AT_PLUS_A", diag_pivot_thresh=0.0, options=SYMMETRIC).solve(gradient)


def _damping_diagonal(diagonal: FloatArray, damping: float) -> FloatArray:
    """Levenberg-Marquardt; what nothing observes gets a unit that keeps it where it is."""
    typical = float(np.median(diagonal[diagonal > 0])) if (diagonal > 0).any() else 1.0
    return damping * diagonal + 1e-9 * typical


def apply_step(problem: Problem, state: State, columns: Columns, systems: Sequence[ViewSystem],
               delta: FloatArray) -> State:  # fmt: skip
    """The state moved by a global step (M,), each depth following in closed form."""
    free = np.flatnonzero(~problem.fixed_pose)
    steps = delta[: columns.scale].reshape(-1, 6)
    rotation, centre = state.rotation.copy(), state.centre.copy()
    centre[free] += np.einsum("nij,nj->ni", state.rotation[free], steps[:, :3])
    if len(free):
        rotation[free] = state.rotation[free] @ Rotation.from_rotvec(steps[:, 3:]).as_matrix()
    depths = []
    for view, system in enumerate(systems):
        mapping, at = view_columns(problem, state, columns, view)
        change = -system.inverse_curvature * (system.depth_gradient + (mapping @ delta[at]) @ system.coupling)
        depths.append(state.log_depth[view] + np.clip(change, -LARGEST_STEP, LARGEST_STEP))
    return replace(
        state.moved(rotation, centre),
        log_scale=state.log_scale + delta[columns.scale : columns.focal],
        log_focal=state.log_focal + delta[columns.focal :],
        log_depth=depths,
    )
