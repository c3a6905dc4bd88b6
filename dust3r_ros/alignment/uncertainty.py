"""How sure the poses are: the normal matrix, with the noise's correlation between neighbouring pixels counted."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from dust3r_ros.alignment.linearise import ViewSystem
from dust3r_ros.alignment.model import CUTOFF, Noise, Problem, State
from dust3r_ros.alignment.observations import IntArray
from dust3r_ros.alignment.sight import Errors, robust_weights, seen_components
from dust3r_ros.alignment.solve import (
    Columns,
    LocalColumns,
    adjoint,
    linearise,
    normal_blocks,
    number_columns,
    sparse_normal,
    view_columns,
)
from dust3r_ros.alignment.sparse import factorise, typical_information, with_diagonal
from dust3r_ros.data import FloatArray

Shape = tuple[int, int]

BLOCK = 64  # views at a time, so that memory stays small for many
RIDGE = 1e-10  # of the typical information; a variance that it rules is unknown
LEAST_CORRELATION = 0.05  # of residuals at some distance; what is less is not told from chance


def pose_covariances(problem: Problem, state: State, noise: Noise, shared: float, origin: int) -> FloatArray:
    """Covariances (N, 6, 6) of steps (translation, rotation) in each camera's own frame, ``T exp(step)``.

    They hold in the world of view ``origin``'s pose and, unless given poses fix it, in the unit of its median depth.
    inf on the diagonal is what nothing determines. ``shared`` is how many samples tell as much as an independent one.
    """
    columns = number_columns(problem, state)
    systems = linearise(problem, state, noise)
    local = [view_columns(problem, state, columns, view) for view in range(len(systems))]
    blocks, _ = normal_blocks(problem, state, columns, systems, local)
    normal = sparse_normal(blocks, columns.size)
    ridge = RIDGE * typical_information(normal.diagonal())
    factor = factorise(with_diagonal(normal, np.full(columns.size, ridge)))
    parts = []
    for first in range(0, len(systems), BLOCK):
        views = np.arange(first, min(first + BLOCK, len(systems)))
        readout, unit_variance = _readout(problem, state, columns, systems, local, origin, views)
        spread = factor.solve(readout.reshape(-1, columns.size).T).T.reshape(readout.shape)
        parts.append(np.einsum("nam,nbm->nab", readout, spread) + unit_variance)
    covariance = np.concatenate(parts)
    unknown = np.einsum("naa->na", covariance) > 0.1 / ridge
    covariance *= shared
    covariance[unknown[:, :, None] | unknown[:, None]] = 0.0
    covariance[np.broadcast_to(np.eye(6, dtype=bool), covariance.shape) & unknown[:, :, None]] = np.inf
    return covariance


def _readout(problem: Problem, state: State, columns: Columns, systems: Sequence[ViewSystem],
             local: Sequence[LocalColumns], origin: int, views: IntArray) -> tuple[FloatArray, FloatArray]:  # fmt: skip
    """How steps of the poses of K views, (K, 6, size), in the world of ``origin`` follow from the solver's parameters.

    And the covariances (K, 6, 6) that the unit adds, through the noise of the depths themselves.
    """
    steps = _pose_steps(columns, views)
    if problem.unit_known:
        return steps, np.zeros((len(views), 6, 6))
    back = np.swapaxes(state.rotation[views], -1, -2)
    away = np.einsum("nij,nj->ni", back, state.centre[origin] - state.centre[views])
    readout = steps - adjoint(back @ state.rotation[origin], away) @ _pose_steps(columns, np.array([origin]))[0]
    system, (mapping, at) = systems[origin], local[origin]
    samples = max(int(np.count_nonzero(system.inverse_curvature)), 1)
    unit = np.zeros(columns.size)
    np.add.at(unit, at, -mapping.T @ (system.coupling @ system.inverse_curvature) / samples)
    readout[:, :3] += away[:, :, None] * unit
    grown = np.concatenate([away, np.zeros_like(away)], axis=1)
    variance = float(system.inverse_curvature.sum()) / samples**2
    return readout, variance * grown[:, :, None] * grown[:, None]


def _pose_steps(columns: Columns, views: IntArray) -> FloatArray:
    """(K, 6, size): which of the solver's parameters are the views' poses; none are those of a given one."""
    steps = np.zeros((len(views), 6, columns.size))
    for k, first in enumerate(columns.pose[views]):
        if first >= 0:
            steps[k, np.arange(6), first + np.arange(6)] = 1.0
    return steps


def correlated_samples(problem: Problem, state: State, noise: Noise, shapes: Sequence[Shape]) -> float:
    """How many sample pixels tell as much as one whose noise is its own: the larger of that along and across."""
    along, across = [], []
    for view, (s, lens, shape) in enumerate(zip(problem.sightings, problem.lenses, shapes)):
        error = seen_components(s, lens.rays(state.log_focal), state, view)
        errors = Errors(error[:, 0], (error[:, 1:] ** 2).sum(axis=1))
        root = np.sqrt(robust_weights(s.seen_weight, errors, noise, CUTOFF))[:, None]
        maps = (root * error).reshape(-1, 3, *shape)
        along += [m[0] for m, parallax in zip(maps, s.seen_parallax) if parallax > 0]
        across += [part for m in maps for part in m[1:]]
    return max(correlation_area(along), correlation_area(across))


def correlation_area(maps: Sequence[FloatArray]) -> float:
    """The sum of the autocorrelation of maps (rows, columns), out to where it is lost; at least 1."""
    total: dict[Shape, FloatArray] = {}
    for shape in {m.shape for m in maps}:
        stack = np.array([m for m in maps if m.shape == shape])
        padded = np.fft.rfft2(stack, s=(2 * shape[0], 2 * shape[1]))
        spectrum = (padded.real**2 + padded.imag**2).sum(axis=0)
        total[shape] = np.fft.irfft2(spectrum, s=(2 * shape[0], 2 * shape[1]))
    areas = [(_area(correlation, shape), correlation[0, 0]) for shape, correlation in total.items()]
    weight = sum(w for _, w in areas)
    return max(1.0, sum(a * w for a, w in areas) / weight) if weight > 0 else 1.0


def _area(correlation: FloatArray, shape: Shape) -> float:
    rows, cols = shape
    overlap = (1 - np.arange(rows) / rows)[:, None] * (1 - np.arange(cols) / cols)
    if not correlation[0, 0] > 0:
        return 1.0
    lower, right = correlation[:rows, :cols], np.roll(correlation[:rows][:, ::-1], 1, axis=1)[:, :cols]
    rho = (lower + right) / (2 * overlap * correlation[0, 0])
    reach = [int(np.argmax(np.append(line, 0.0) < LEAST_CORRELATION)) for line in (rho[:, 0], rho[0])]
    weight = np.where(np.arange(max(reach)) > 0, 2.0, 1.0)
    return float(weight[: reach[0]] @ rho[: reach[0], : reach[1]] @ weight[: reach[1]])
