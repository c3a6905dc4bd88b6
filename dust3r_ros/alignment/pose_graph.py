"""Robust optimisation of a graph of Sim(3) poses, sparse, for closing loops over all keyframes.

A node is a keyframe's camera-to-world similarity S = (s, R, t), x_world = s R x + t. An edge (i, j) with measurement Z
takes points of camera j into camera i; its error is

    E = S_j^-1 S_i Z,    r = (t_E / reach, log R_E, log s_E) / sigma

A step (rho, phi, lambda) moves a node in the world, S <- ((e^lambda, exp phi, rho) S). Because both ends see the same
world, nodes can share one step: they then move as one body.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import scipy.sparse
from scipy.spatial.transform import Rotation

from dust3r_ros.alignment.observations import IntArray
from dust3r_ros.alignment.sparse import damping_diagonal, factorise, typical_information, with_diagonal
from dust3r_ros.data import BoolArray, FloatArray
from dust3r_ros.geometry import Sim3, Similarity

CUTOFF2 = 18.5  # chi-squared of 7 degrees of freedom at 99 %
SOFTENING = 0.5  # from one round to the next
MOST_ROUNDS = 30
STEPS = 30
KEPT = 0.25  # weight below which a doubtful edge counts as wrong
LARGEST_STEP = 1.0


@dataclass(frozen=True, eq=False)
class Similarities(Sim3):
    """N similarities: ``scale`` (N,), ``rotation`` (N, 3, 3), ``translation`` (N, 3)."""

    scale: FloatArray

    @classmethod
    def stack(cls, items: Sequence[Similarity]) -> Similarities:
        return cls(
            np.array([s.scale for s in items], dtype=float).reshape(-1),
            np.array([s.rotation for s in items], dtype=float).reshape(-1, 3, 3),
            np.array([s.translation for s in items], dtype=float).reshape(-1, 3),
        )

    def __getitem__(self, at: IntArray) -> Similarities:
        return Similarities(self.scale[at], self.rotation[at], self.translation[at])

    def single(self, k: int) -> Similarity:
        return Similarity(float(self.scale[k]), self.rotation[k], self.translation[k])

    def stepped(self, step: FloatArray) -> Similarities:
        """Each moved in the world by its step (N, 7): translation, rotation, log scale."""
        turn = Rotation.from_rotvec(step[:, 3:6]).as_matrix()
        return Similarities(np.exp(step[:, 6]), turn, step[:, :3]).compose(self)


@dataclass(frozen=True, eq=False)
class GraphEdge:
    """``relative`` takes points of camera ``j`` into camera ``i``. ``sigma`` is its noise: relative to ``reach`` (the
    distance of what ``j`` sees, in its own unit) for translation, radians for rotation, and of log scale.
    ``doubtful`` edges may be wrong.
    """

    i: int
    j: int
    relative: Similarity
    reach: float
    sigma: float
    doubtful: bool = False


@dataclass(frozen=True, eq=False)
class GraphSolution:
    """``nodes`` after the solve, and the weight (E,) from 0 to 1 with which each edge counted."""

    nodes: Similarities
    weights: FloatArray

    @property
    def believed(self) -> BoolArray:
        return self.weights >= KEPT


@dataclass(frozen=True, eq=False)
class _Edges:
    i: IntArray
    j: IntArray
    relative: Similarities
    unit: FloatArray  # (E, 7): what each error is divided by
    doubtful: BoolArray


def solve_pose_graph(nodes: Similarities, body: IntArray, fixed: int, edges: Sequence[GraphEdge]) -> GraphSolution:
    """Move the nodes so that the edges agree.

    ``body`` (N,) numbers the rigid body that each node belongs to; body ``fixed`` stays. Doubtful edges have the
    Geman-McClure kernel, solved by graduated non-convexity (Yang et al., RA-L 2020, section IV): first all count
    as squares, then the ones that the others contradict lose their weight.
    """
    if not edges:
        return GraphSolution(nodes, np.zeros(0))
    e = _pack(edges)
    weights = np.ones(len(edges))
    nodes = _descend(nodes, body, fixed, e, weights)
    if not e.doubtful.any():
        return GraphSolution(nodes, weights)
    mu = max(2 * float(_chi2(nodes, e)[e.doubtful].max()) / CUTOFF2, 1.0)
    for _ in range(MOST_ROUNDS):
        chi2 = _chi2(nodes, e)
        weights = np.where(e.doubtful, (mu * CUTOFF2 / (chi2 + mu * CUTOFF2)) ** 2, 1.0)
        nodes = _descend(nodes, body, fixed, e, weights)
        if mu == 1.0:
            break
        mu = max(SOFTENING * mu, 1.0)
    return GraphSolution(nodes, weights)


def edge_residuals(nodes: Similarities, e: _Edges) -> tuple[FloatArray, Similarities]:
    """Errors (E, 7), in units of their noise, and the error transforms E."""
    error = nodes[e.j].inverse().compose(nodes[e.i].compose(e.relative))
    turn = Rotation.from_matrix(error.rotation).as_rotvec()
    return np.column_stack([error.translation, turn, np.log(error.scale)]) / e.unit, error


def edge_jacobians(nodes: Similarities, e: _Edges, error: Similarities) -> FloatArray:
    """Derivatives (E, 7, 7) of the errors by the step of node i; by that of node j they are the negatives.

    A step of i less that of j is carried into camera j (``Ad(S_j^-1)``) and moves E from the left.
    """
    count = len(e.i)
    s, back, t = nodes.scale[e.j], np.swapaxes(nodes.rotation[e.j], 1, 2), nodes.translation[e.j]
    carried = np.zeros((count, 7, 7))
    shrunk = back / s[:, None, None]
    carried[:, :3, :3] = shrunk
    carried[:, :3, 3:6] = -shrunk @ _cross(t)  # phi x t
    carried[:, :3, 6] = np.einsum("nij,nj->ni", shrunk, t)
    carried[:, 3:6, 3:6] = back
    carried[:, 6, 6] = 1.0
    chart = np.tile(np.eye(7), (count, 1, 1))
    chart[:, :3, 3:6] = -_cross(error.translation)
    chart[:, :3, 6] = error.translation
    chart[:, 3:6, 3:6] = _inverse_left_jacobian(Rotation.from_matrix(error.rotation).as_rotvec())
    return (chart @ carried) / e.unit[:, :, None]


def _pack(edges: Sequence[GraphEdge]) -> _Edges:
    unit = np.array([[e.sigma * e.reach] * 3 + [e.sigma] * 4 for e in edges])
    return _Edges(
        np.array([e.i for e in edges]), np.array([e.j for e in edges]),
        Similarities.stack([e.relative for e in edges]), unit, np.array([e.doubtful for e in edges]),
    )  # fmt: skip


def _chi2(nodes: Similarities, e: _Edges) -> FloatArray:
    return (edge_residuals(nodes, e)[0] ** 2).sum(axis=1)


def _descend(nodes: Similarities, body: IntArray, fixed: int, e: _Edges, weights: FloatArray) -> Similarities:
    """Damped Gauss-Newton at fixed weights."""
    damping = 1e-6
    cost = float(weights @ _chi2(nodes, e))
    for _ in range(STEPS):
        step = _solve(nodes, body, fixed, e, weights, damping)
        trial = nodes.stepped(step[body])
        trial_cost = float(weights @ _chi2(trial, e))
        if not trial_cost <= cost * (1 + 1e-9) + 1e-12:
            damping *= 30
            if damping > 1e6:
                break
            continue
        gain, cost, nodes, damping = cost - trial_cost, trial_cost, trial, max(damping / 10, 1e-9)
        if gain <= 1e-6 * cost + 1e-9:
            break
    return nodes


def _solve(nodes: Similarities, body: IntArray, fixed: int, e: _Edges, weights: FloatArray,
           damping: float) -> FloatArray:  # fmt: skip
    """The step (bodies, 7) of the linearised graph."""
    count = int(body.max()) + 1
    residual, error = edge_residuals(nodes, e)
    jacobian = edge_jacobians(nodes, e, error)
    crossing = body[e.i] != body[e.j]
    weighted = jacobian * (weights * crossing)[:, None, None]
    block = np.swapaxes(jacobian, 1, 2) @ weighted
    pull = np.einsum("nij,ni->nj", weighted, residual)
    gradient = np.zeros((count, 7))
    np.add.at(gradient, body[e.i], pull)
    np.add.at(gradient, body[e.j], -pull)
    first, second = body[e.i], body[e.j]
    rows, cols, values = [], [], []
    for a, b, sign in ((first, first, 1), (second, second, 1), (first, second, -1), (second, first, -1)):
        rows.append(np.broadcast_to(7 * a[:, None, None] + np.arange(7)[:, None], block.shape).ravel())
        cols.append(np.broadcast_to(7 * b[:, None, None] + np.arange(7), block.shape).ravel())
        values.append((sign * block).ravel())
    size = 7 * count
    normal = scipy.sparse.csc_matrix(
        (np.concatenate(values), (np.concatenate(rows), np.concatenate(cols))), shape=(size, size)
    )
    diagonal = normal.diagonal()
    extra = damping_diagonal(diagonal, damping)
    extra[7 * fixed : 7 * fixed + 7] = 1e12 * typical_information(diagonal)
    gradient[fixed] = 0.0
    step = -factorise(with_diagonal(normal, extra)).solve(gradient.ravel()).reshape(count, 7)
    return step * min(1.0, LARGEST_STEP / max(float(np.abs(step[:, 3:]).max()), 1e-300))


def _cross(v: FloatArray) -> FloatArray:
    """Cross-product matrices (N, 3, 3) of vectors (N, 3)."""
    matrix = np.zeros((len(v), 3, 3))
    matrix[:, 0, 1], matrix[:, 0, 2], matrix[:, 1, 2] = -v[:, 2], v[:, 1], -v[:, 0]
    return matrix - np.swapaxes(matrix, 1, 2)


def _inverse_left_jacobian(turn: FloatArray) -> FloatArray:
    """(N, 3, 3): how a rotation vector (N, 3) changes when the rotation is turned from the left by a small one."""
    angle2 = (turn**2).sum(axis=1)
    angle = np.sqrt(np.maximum(angle2, 1e-12))
    bend = np.where(angle2 > 1e-8, (1 - 0.5 * angle / np.tan(0.5 * angle)) / angle**2, 1 / 12)
    cross = _cross(turn)
    return np.eye(3) - 0.5 * cross + bend[:, None, None] * (cross @ cross)
