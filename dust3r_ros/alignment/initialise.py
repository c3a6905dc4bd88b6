"""A first estimate: views are placed one after another, along the strongest edges, by closed-form similarities.

Every view that is already placed has world points on its sample pixels. For a new view each edge to a placed one
proposes a pose in closed form; the proposal that most predictions of all such edges support is taken, so that a
wrong edge does no harm while there are others.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from dust3r_ros.alignment.observations import MIN_SAMPLES, SampledEdge
from dust3r_ros.data import FloatArray, PairPrediction
from dust3r_ros.geometry import Similarity, make_pose, procrustes, weighted_median

INLIER = 0.06  # relative error at which a prediction's support for a proposal is halved
TRIM_ROUNDS = 4


@dataclass(frozen=True, eq=False)
class Placement:
    """A view's pose, camera to world, and log depths (G,) of its sample pixels; ``known`` (G,) where they are real."""

    rotation: FloatArray
    centre: FloatArray
    log_depth: FloatArray
    known: FloatArray
    support: float = 0.0

    @property
    def pose(self) -> FloatArray:
        """(4, 4), camera to world."""
        return make_pose(self.rotation, self.centre)

    def moved(self, change: Similarity) -> Placement:
        """The same view in another world and unit."""
        rotation, centre = change.rotation @ self.rotation, change.apply(self.centre)
        return replace(self, rotation=rotation, centre=centre, log_depth=self.log_depth + np.log(change.scale))


@dataclass(eq=False)
class Layout:
    """Placed views and their rays; ``world`` points follow from both."""

    rays: Mapping[int, FloatArray]
    placed: dict[int, Placement] = field(default_factory=dict)

    def world(self, view: int) -> FloatArray:
        """World points (3, G) of a placed view's sample pixels."""
        p = self.placed[view]
        return p.rotation @ (self.rays[view] * np.exp(p.log_depth)) + p.centre[:, None]

    def with_view_at(self, view: int, pose: FloatArray) -> Layout:
        """The same layout, turned and shifted so that ``view`` has another pose (4, 4)."""
        change = Similarity.between_poses(self.placed[view].pose, pose)
        return Layout(self.rays, {v: p.moved(change) for v, p in self.placed.items()})

    def with_poses(self, poses: Mapping[int, FloatArray]) -> Layout:
        """The same layout, some of its views at other poses (4, 4)."""
        moved = {v: replace(self.placed[v], rotation=p[:3, :3], centre=p[:3, 3]) for v, p in poses.items()}
        return Layout(self.rays, {**self.placed, **moved})


@dataclass(frozen=True, eq=False)
class _Proposal:
    rotation: FloatArray
    centre: FloatArray
    log_depth: FloatArray
    known: FloatArray


def place_all(edges: Sequence[SampledEdge], views: Iterable[int], rays: Mapping[int, FloatArray]) -> Layout:
    """Place as many of ``views`` as possible; the strongest edge's first view gets the identity."""
    layout = Layout(rays)
    remaining = set(views)
    touching: dict[int, list[SampledEdge]] = {v: [] for v in remaining}
    for edge in edges:
        if edge.usable and edge.i in remaining and edge.j in remaining:
            for view in {edge.i, edge.j}:
                touching[view].append(edge)
    seed = max(
        (e for v in remaining for e in touching[v] if e.i == v),
        key=lambda e: (not e.rotation_only, e.strength), default=None,
    )  # fmt: skip
    if seed is None:
        return layout
    layout.placed[seed.i] = _first(seed, rays[seed.i])
    remaining.discard(seed.i)
    while remaining:
        reach = {v: _reach(v, touching[v], layout) for v in remaining}
        view = max(sorted(reach), key=lambda v: reach[v])
        remaining.discard(view)
        if reach[view] > (0, 0.0):
            placement = place_view(view, touching[view], layout)
            if placement is not None:
                layout.placed[view] = placement
    return layout


def place_view(view: int, edges: Sequence[SampledEdge], layout: Layout) -> Placement | None:
    """The best supported placement of a new view by its edges to placed ones; None when no edge gives one."""
    links = [e for e in edges if e.usable and (e.j if e.i == view else e.i) in layout.placed]
    anchored = [e for e in links if not e.rotation_only]
    own = [e for e in edges if e.i == view and e.usable and not e.rotation_only]
    proposals = [p for e in anchored if (p := _propose(view, e, own, layout)) is not None]
    if not proposals:
        proposals = [p for e in links if e.rotation_only and (p := _propose_turn(view, e, layout)) is not None]
    if not proposals:
        return None
    support = [_support(view, p, anchored or links, layout) for p in proposals]
    best = int(np.argmax(support))
    p = proposals[best]
    return Placement(p.rotation, p.centre, p.log_depth, p.known, support[best])


def robust_scale(source: FloatArray, target: FloatArray, weight: FloatArray) -> float:
    """The factor that maps points (3, G) onto others on the same rays: weighted median ratio; NaN without overlap."""
    ratio = (source * target).sum(axis=0) / np.maximum((source**2).sum(axis=0), 1e-300)
    use = (weight > 0) & (ratio > 0)
    return weighted_median(ratio[use], weight[use]) if np.count_nonzero(use) >= MIN_SAMPLES else float("nan")


def robust_similarity(source: FloatArray, target: FloatArray, weight: FloatArray) -> Similarity | None:
    """The similarity that maps points (3, G) onto others, by trimmed Procrustes; None if degenerate."""
    use = weight > 0
    if np.count_nonzero(use) < MIN_SAMPLES:
        return None
    a, b, w = source[:, use].T, target[:, use].T, weight[use]
    current = w
    for _ in range(TRIM_ROUNDS):
        try:
            fit = procrustes(a, b, current)
        except (ValueError, np.linalg.LinAlgError):
            return None
        if not fit.scale > 0:
            return None
        error = np.linalg.norm(b - fit.apply(a), axis=1)
        spread = max(float(np.median(error)), 1e-12 * float(np.abs(b).max()))
        current = w / (1 + (error / (2 * spread)) ** 2) ** 2
    return fit


def pair_similarity(forward: PairPrediction, back: PairPrediction) -> Similarity | None:
    """Camera j's frame to camera i's by all points of both views, trimmed; None where there are too few.

    ``forward`` is the pair (i, j), ``back`` (j, i). For predictions that are right about most
    of both views.
    """
    source, target, weight = points_in_both_frames(forward, back)
    return robust_similarity(source.T, target.T, weight)


def points_in_both_frames(forward: PairPrediction, back: PairPrediction) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Every point of both views in camera j's frame, in camera i's (N, 3), and their weights (N,), float64: the
    geometric mean of both confidences, 0 where there is no prediction.
    """
    here = np.concatenate([back.points_i.reshape(-1, 3), back.points_j.reshape(-1, 3)], dtype=np.float64)
    there = np.concatenate([forward.points_j.reshape(-1, 3), forward.points_i.reshape(-1, 3)], dtype=np.float64)
    product = np.concatenate([(forward.conf_j * back.conf_i).ravel(), (forward.conf_i * back.conf_j).ravel()])
    return here, there, np.sqrt(product, dtype=np.float64)


def pose_from_rays(rays: FloatArray, world: FloatArray, weight: FloatArray, rounds: int = 60) -> Similarity | None:
    """Camera to world, of scale 1, for a camera that sees world points (3, G) along rays (3, G).

    Orthogonal iteration (Lu, Hager and Mjolsness, PAMI 2000): alternately the best similarity onto the points'
    projections on their rays, and the projections. None if degenerate.
    """
    use = weight > 0
    if np.count_nonzero(use) < MIN_SAMPLES:
        return None
    unit = (rays / np.linalg.norm(rays, axis=0))[:, use]
    points, w = world[:, use], weight[use]
    spread = float(np.sqrt(((points - points.mean(axis=1, keepdims=True)) ** 2).sum(axis=0).mean()))
    depth = np.full(unit.shape[1], 4 * spread)
    for _ in range(rounds):
        try:
            fit = procrustes(points.T, (unit * depth).T, w)
        except (ValueError, np.linalg.LinAlgError):
            return None
        camera = fit.rotation @ points
        shift = (w * (unit * depth - camera)).sum(axis=1) / w.sum()
        camera = camera + shift[:, None]
        depth = np.maximum((camera * unit).sum(axis=0), 1e-3 * spread)
    return Similarity(1.0, fit.rotation.T, -fit.rotation.T @ shift)


def _first(edge: SampledEdge, rays: FloatArray) -> Placement:
    """The view that starts the world, with its median depth as the unit."""
    if edge.rotation_only:
        return Placement(np.eye(3), np.zeros(3), np.zeros(rays.shape[1]), np.zeros(rays.shape[1]))
    depth, known = _own_depth(edge, rays)
    return Placement(np.eye(3), np.zeros(3), np.log(depth / np.median(depth[known > 0])), known)


def _own_depth(edge: SampledEdge, rays: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Depths (G,) along the rays by an edge's own-frame map, and squared confidences; gaps get the median depth."""
    depth = (edge.points_i * rays).sum(axis=0) / (rays**2).sum(axis=0)
    known = np.where(depth > 0, edge.weight_i, 0)
    fill = float(np.median(depth[known > 0])) if (known > 0).any() else 1.0
    return np.where(known > 0, depth, fill), known


def _reach(view: int, edges: Sequence[SampledEdge], layout: Layout) -> tuple[int, float]:
    """How well a view is tied to the placed ones: edges with parallax first, then the strongest edge."""
    best = (0, 0.0)
    for edge in edges:
        if (edge.j if edge.i == view else edge.i) in layout.placed:
            best = max(best, (1 if edge.rotation_only else 2, edge.strength))
    return best


def _propose(view: int, edge: SampledEdge, own: Sequence[SampledEdge], layout: Layout) -> _Proposal | None:
    if edge.i == view:  # the placed view is seen in the new one's frame
        known = layout.placed[edge.j].known
        fit = robust_similarity(edge.points_j, layout.world(edge.j), edge.weight_j * (known > 0))
        if fit is None:
            return None
        depth, weight = _own_depth(edge, layout.rays[view])
        return _Proposal(fit.rotation, fit.translation, np.log(fit.scale * depth), weight)
    placed = layout.placed[edge.i]
    inside = layout.rays[edge.i] * np.exp(placed.log_depth)
    scale = robust_scale(edge.points_i, inside, edge.weight_i * (placed.known > 0))
    if not scale > 0:
        return None
    world = placed.rotation @ (scale * edge.points_j) + placed.centre[:, None]
    back = [e for e in own if e.j == edge.i] or sorted(own, key=lambda e: -e.strength)[:1]
    if back:
        pose = robust_similarity(back[0].points_i, world, edge.weight_j * (back[0].weight_i > 0))
    else:
        pose = pose_from_rays(layout.rays[view], world, edge.weight_j)
    return _seen_depth(pose, world, edge.weight_j) if pose is not None else None


def _seen_depth(pose: Similarity, world: FloatArray, weight: FloatArray) -> _Proposal | None:
    """A proposal at ``pose`` (its scale aside) whose depths are those of world points (3, G) of the view's pixels."""
    depth = (pose.rotation.T @ (world - pose.translation[:, None]))[2]
    known = np.where(depth > 0, weight, 0)
    if np.count_nonzero(known) < MIN_SAMPLES:
        return None
    depth = np.where(known > 0, depth, np.median(depth[known > 0]))
    return _Proposal(pose.rotation, pose.translation, np.log(depth), known)


def _propose_turn(view: int, edge: SampledEdge, layout: Layout) -> _Proposal | None:
    """A camera that only turned: same centre; depths are borrowed from the placed view's nearest rays."""
    other = edge.j if edge.i == view else edge.i
    placed = layout.placed[other]
    directions = layout.rays[edge.j] / np.linalg.norm(layout.rays[edge.j], axis=0)
    reach = np.linalg.norm(edge.points_j, axis=0)
    seen = np.divide(edge.points_j, reach, out=np.zeros_like(edge.points_j), where=reach > 0)
    fit = robust_similarity(directions, seen, edge.weight_j)
    if fit is None:
        return None
    turn = fit.rotation if edge.j == view else fit.rotation.T  # camera of the view to camera of the placed one
    rays, target = layout.rays[view], layout.rays[other]
    turned = turn @ (rays / np.linalg.norm(rays, axis=0))
    match = turned.T @ (target / np.linalg.norm(target, axis=0))
    nearest = match.argmax(axis=1)
    distance = np.exp(placed.log_depth[nearest]) * np.linalg.norm(target, axis=0)[nearest]
    known = np.where(match.max(axis=1) > np.cos(0.05), placed.known[nearest], 0)
    log_depth = np.log(distance / np.linalg.norm(rays, axis=0))
    return _Proposal(placed.rotation @ turn, placed.centre, log_depth, known)


def _support(view: int, proposal: _Proposal, edges: Sequence[SampledEdge], layout: Layout) -> float:
    """Confidence of all predictions between the view and placed ones that agree with a proposal."""
    total = 0.0
    for edge in edges:
        if edge.i == view:
            other = layout.placed[edge.j]
            target = proposal.rotation.T @ (layout.world(edge.j) - proposal.centre[:, None])
            known, weight = other.known, edge.weight_j
        else:
            frame = layout.placed[edge.i]
            world = proposal.rotation @ (layout.rays[view] * np.exp(proposal.log_depth)) + proposal.centre[:, None]
            target = frame.rotation.T @ (world - frame.centre[:, None])
            known, weight = proposal.known, edge.weight_j
        weight = np.where(known > 0, weight, 0)
        scale = robust_scale(edge.points_j, target, weight)
        if not scale > 0:
            continue
        error2 = ((scale * edge.points_j - target) ** 2).sum(axis=0) / np.maximum((target**2).sum(axis=0), 1e-300)
        total += float((np.sqrt(weight) / (1 + error2 / INLIER**2)).sum())
    return total
