"""Robust Gauss-Newton over poses, edge scales and focals, with every sampled depth eliminated in closed form."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import scipy.linalg
import scipy.sparse
from scipy.spatial.transform import Rotation

from dust3r_ros.alignment.linearise import ViewSystem, linearise_view
from dust3r_ros.alignment.model import CUTOFF, LEAST_NOISE, Noise, Problem, State
from dust3r_ros.alignment.observations import IntArray
from dust3r_ros.alignment.sight import Errors, ViewGeometry, robust_cost, view_geometry
from dust3r_ros.alignment.sparse import damping_diagonal, factorise, with_diagonal
from dust3r_ros.config import AlignmentConfig
from dust3r_ros.data import FloatArray

ViewErrors = tuple[Errors, Errors]  # own-frame, other-frame
LocalColumns = tuple[FloatArray, IntArray]  # see view_columns
Block = tuple[IntArray, FloatArray]

log = logging.getLogger(__name__)

SMALL_SYSTEM, FILLED = 400, 0.2
KEPT_RESIDUALS = 1_000_000  # up to which a state's geometry is kept until the next step, 35 bytes each
LEAST_ASPECT = 0.25  # lateral over radial noise; classical pairs have none across, which would trust one pair blindly
LARGEST_STEP = 0.5
GAUGE_EDGES = 50
TOLERANCE = 1.02  # the weights use the model's distances, so that the steps solve equations and only nearly descend
LEAST_STEP, STEP_OF_NOISE = 1e-6, 0.03  # a smaller change is not worth a step; the second relative to lateral noise
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


@dataclass(frozen=True, eq=False)
class _Evaluation:
    """All views' errors at a state, and their geometry, from which the normal equations follow; None where the problem
    is so large that it is made anew.
    """

    errors: list[ViewErrors]
    geometry: list[ViewGeometry] | None


@dataclass(frozen=True, eq=False)
class _Descent:
    """Where the steps at one noise level lead: the state, what is known there, their number, and the largest change
    in all.
    """

    state: State
    there: _Evaluation
    steps: int
    moved: float


def solve(problem: Problem, state: State, config: AlignmentConfig, *, warm: bool = False) -> Solution:
    """Fit ``state`` to all predictions. ``warm`` skips the rounds that only a far start needs."""
    steps, rounds = 0, config.outer_iterations
    there = _evaluate(problem, state)
    noise = estimate_noise(problem, there.errors)
    for turn in range(rounds):
        widening = 1.0 if warm or turn >= min(len(WIDENING), rounds - 1) else WIDENING[turn]
        descent = _descend(problem, state, there, noise.widened(widening), config.max_steps)
        state, there = descent.state, descent.there
        steps += descent.steps
        previous, noise = noise, estimate_noise(problem, there.errors)
        settled = abs(np.log(noise.radial / previous.radial)) < 0.02 and descent.moved < _least_step(noise)
        if settled and widening == 1.0:
            break
    return Solution(state, noise, steps)


def view_errors(problem: Problem, state: State) -> list[ViewErrors]:
    """Own-frame and other-frame errors of every view's predictions."""
    views = zip(problem.sightings, problem.lenses)
    return [view_geometry(s, lens, state, view).errors for view, (s, lens) in enumerate(views)]


def _evaluate(problem: Problem, state: State) -> _Evaluation:
    if problem.residuals > KEPT_RESIDUALS:
        return _Evaluation(view_errors(problem, state), None)
    views = zip(problem.sightings, problem.lenses)
    geometry = [view_geometry(s, lens, state, view) for view, (s, lens) in enumerate(views)]
    return _Evaluation([view.errors for view in geometry], geometry)


def estimate_noise(problem: Problem, errors: Sequence[ViewErrors]) -> Noise:
    """Radial and lateral noise of a prediction of confidence 1: robust medians over all predictions."""
    radial, lateral2 = [], []
    for view, (s, (own, seen)) in enumerate(zip(problem.sightings, errors)):
        maps = s.own_weight.shape[0] + int(s.seen_parallax.sum())
        freedom = 1.0 if problem.fixed_depth[view] else max(1 - 1 / max(maps, 1), 0.5)
        # Across the line of sight only other-frame maps count: own-frame ones may lie on their rays by construction.
        lateral2.append((seen.lateral2 * s.seen_weight)[s.seen_weight > 0])
        for error, weight in ((own, s.own_weight), (seen, s.seen_weight * (s.seen_parallax[:, None] > 0))):
            radial.append((error.radial**2 * (weight / freedom))[weight > 0])
    along, across = (np.concatenate(values) for values in (radial, lateral2))
    sigma_radial = 1.4826 * float(np.sqrt(np.median(along))) if along.size else 0.0
    sigma_lateral = float(np.sqrt(np.median(across) / (2 * np.log(2)))) if across.size else 0.0
    sigma_radial = max(sigma_radial, sigma_lateral, LEAST_NOISE)
    return Noise(sigma_radial, max(sigma_lateral, LEAST_ASPECT * sigma_radial))


def _least_step(noise: Noise) -> float:
    """Change of poses, log scales and log focals that is not worth another step: far below what the noise leaves."""
    return max(LEAST_STEP, STEP_OF_NOISE * noise.lateral)


def _descend(problem: Problem, state: State, there: _Evaluation, noise: Noise,
             max_steps: int) -> _Descent:  # fmt: skip
    """Damped Gauss-Newton at one noise level."""
    columns = number_columns(problem, state)
    damping, moved = 1e-6, 0.0
    systems = linearise(problem, state, noise, there.geometry)
    cost = _cost(problem, state, there.errors, noise)
    for step in range(max_steps):
        local = [view_columns(problem, state, columns, view) for view in range(len(systems))]
        delta = _solve_damped(problem, state, columns, systems, local, damping)
        if not np.isfinite(delta).all():
            break
        trial = apply_step(problem, state, columns, systems, local, delta)
        trial_there = _evaluate(problem, trial)
        trial_cost = _cost(problem, trial, trial_there.errors, noise)
        if not trial_cost < cost * TOLERANCE + 1e-9:
            damping *= 30
            if damping > 1e4:
                return _Descent(state, there, step + 1, moved)
            continue
        size = float(np.abs(delta).max(initial=0.0))
        gain = cost - trial_cost
        state, there, cost, damping = trial, trial_there, trial_cost, max(damping / 10, 1e-9)
        moved += size
        if size < _least_step(noise) or abs(gain) < LEAST_GAIN * cost:
            return _Descent(state, there, step + 1, moved)
        if step + 1 < max_steps:
            systems = linearise(problem, state, noise, there.geometry)
    return _Descent(state, there, max_steps, moved)


def _cost(problem: Problem, state: State, errors: Sequence[ViewErrors], noise: Noise) -> float:
    cost = 0.0
    for s, (own, seen) in zip(problem.sightings, errors):
        cost += robust_cost(s.own_weight, own, noise, CUTOFF) + robust_cost(s.seen_weight, seen, noise, CUTOFF)
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


def linearise(problem: Problem, state: State, noise: Noise,
              geometry: Sequence[ViewGeometry] | None = None) -> list[ViewSystem]:  # fmt: skip
    """Every view's normal equations at ``state``, its depths eliminated; ``geometry`` at it, where it is known."""
    known = geometry if geometry is not None else [None] * len(problem.sightings)
    return [
        linearise_view(s, lens, state, view, noise, CUTOFF, not problem.fixed_depth[view], known[view])
        for view, (s, lens) in enumerate(zip(problem.sightings, problem.lenses))
    ]


def view_columns(problem: Problem, state: State, columns: Columns, view: int) -> LocalColumns:
    """How a view's local parameters depend on the global ones: ``local = map (n, m) @ global[at (m,)]``.

    A relative pose step in camera i is ``step_i - Ad(T_iv) step_v``.
    """
    s, lens = problem.sightings[view], problem.lenses[view]
    b, a = len(s.seen_edge), len(s.own_edge)
    each = np.arange(b)
    relative = np.zeros((b, 6, b + 1, 6))
    relative[each, :, each] = np.eye(6)
    relative[:, :, b] = -adjoint(*state.relative(s.seen_from, view))
    first = columns.pose[np.append(s.seen_from, view)]
    pose_at = (first[:, None] + np.arange(6)).ravel()
    free = np.repeat(first >= 0, 6)
    poses = int(free.sum())
    has_focal = int(lens.group >= 0)
    mapping = np.zeros((7 * b + a + 1, poses + b + a + has_focal))
    mapping[: 6 * b, :poses] = relative.reshape(6 * b, 6 * b + 6)[:, free]
    scales = np.arange(b + a)
    mapping[6 * b + scales, poses + scales] = 1.0
    mapping[-1, poses + b + a :] = 1.0
    focal_at = np.full(has_focal, columns.focal + lens.group)
    at = np.concatenate([pose_at[free], columns.scale + s.seen_edge, columns.scale + s.own_edge, focal_at])
    return mapping, at.astype(int)


def adjoint(rotation: FloatArray, translation: FloatArray) -> FloatArray:
    """(..., 6, 6): a step (translation, rotation) of the inner frame, expressed in the outer one."""
    full = np.zeros((*rotation.shape[:-2], 6, 6))
    full[..., :3, :3] = full[..., 3:, 3:] = rotation
    # The cross product of translation and every column of rotation.
    full[..., :3, 3:] = np.cross(translation[..., None, :], np.swapaxes(rotation, -1, -2)).swapaxes(-1, -2)
    return full


def _solve_damped(problem: Problem, state: State, columns: Columns, systems: Sequence[ViewSystem],
                  local: Sequence[LocalColumns], damping: float) -> FloatArray:  # fmt: skip
    blocks, gradient = normal_blocks(problem, state, columns, systems, local)
    delta = _solve_blocks(blocks, gradient, damping)
    return -delta * min(1.0, LARGEST_STEP / max(float(np.abs(delta).max(initial=0.0)), 1e-300))


def normal_blocks(problem: Problem, state: State, columns: Columns, systems: Sequence[ViewSystem],
                  local: Sequence[LocalColumns]) -> tuple[list[Block], FloatArray]:  # fmt: skip
    """The normal equations as dense blocks with the columns they are scattered to, and the gradient."""
    blocks: list[Block] = []
    gradient = np.zeros(columns.size)
    for system, (mapping, at) in zip(systems, local):
        blocks.append((at, mapping.T @ system.normal @ mapping))
        np.add.at(gradient, at, mapping.T @ system.gradient)
    prior = problem.focal_prior
    if prior is not None:
        at = np.arange(columns.focal, columns.size)
        blocks.append((at, np.diag(prior.information)))
        gradient[at] += prior.information * (state.log_focal - prior.mean)
    if not problem.unit_known:  # keep the edges' mean log scale
        at = np.arange(columns.scale, min(columns.focal, columns.scale + GAUGE_EDGES))
        weight = sum(float(np.trace(s.normal)) for s in systems) / max(len(at), 1) ** 2
        blocks.append((at, np.full((len(at), len(at)), weight)))
    return blocks, gradient


def _solve_blocks(blocks: Sequence[Block], gradient: FloatArray, damping: float) -> FloatArray:
    """Solve the sum of dense blocks scattered at indices; dense only where that is large and mostly filled.

    (SuperLU also for small systems: a threaded LAPACK on a busy machine takes a hundred times longer for them.)
    """
    size = len(gradient)
    normal = sparse_normal(blocks, size)
    normal = with_diagonal(normal, damping_diagonal(normal.diagonal(), damping))
    if size > SMALL_SYSTEM and normal.nnz > FILLED * size**2:
        return scipy.linalg.solve(normal.toarray(), gradient, assume_a="pos", check_finite=False)
    return factorise(normal).solve(gradient)


def sparse_normal(blocks: Sequence[Block], size: int) -> scipy.sparse.csc_matrix:
    """The sum of dense blocks scattered at indices."""
    rows = np.concatenate([np.repeat(at, len(at)) for at, _ in blocks])
    cols = np.concatenate([np.tile(at, len(at)) for at, _ in blocks])
    values = np.concatenate([block.ravel() for _, block in blocks])
    return scipy.sparse.csc_matrix((values, (rows, cols)), shape=(size, size))


def apply_step(problem: Problem, state: State, columns: Columns, systems: Sequence[ViewSystem],
               local: Sequence[LocalColumns], delta: FloatArray) -> State:  # fmt: skip
    """The state moved by a global step (M,), each depth following in closed form."""
    free = np.flatnonzero(~problem.fixed_pose)
    steps = delta[: columns.scale].reshape(-1, 6)
    rotation, centre = state.rotation.copy(), state.centre.copy()
    centre[free] += np.einsum("nij,nj->ni", state.rotation[free], steps[:, :3])
    if len(free):
        rotation[free] = state.rotation[free] @ Rotation.from_rotvec(steps[:, 3:]).as_matrix()
    depths = []
    for view, (system, (mapping, at)) in enumerate(zip(systems, local)):
        change = -system.inverse_curvature * (system.depth_gradient + (mapping @ delta[at]) @ system.coupling)
        depths.append(state.log_depth[view] + np.clip(change, -LARGEST_STEP, LARGEST_STEP))
    return replace(
        state.moved(rotation, centre),
        log_scale=state.log_scale + delta[columns.scale : columns.focal],
        log_focal=state.log_focal + delta[columns.focal :],
        log_depth=depths,
    )
