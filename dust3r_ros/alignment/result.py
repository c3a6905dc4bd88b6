"""What comes out of a solved problem: a world, residuals of edges, and dense depth of views."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from dust3r_ros.alignment.depth import FARTHEST, FusedDepth, OwnMap, SeenMap, fuse_depth, load_map
from dust3r_ros.alignment.model import Noise, Problem, State
from dust3r_ros.alignment.observations import Size, confidence_floor
from dust3r_ros.alignment.sight import Errors, chi2
from dust3r_ros.alignment.solve import ViewErrors, view_errors
from dust3r_ros.data import Edge, FloatArray, Intrinsics, PairState, ViewEstimate
from dust3r_ros.geometry import Similarity, make_pose

CHI2_MEDIAN = {1: 0.455, 2: 1.386, 3: 2.366}  # by degrees of freedom


@dataclass(frozen=True, eq=False)
class Fit:
    """A solved set of views: ``views`` are their numbers, ``used`` the positions of the edges among those given."""

    views: tuple[int, ...]
    used: tuple[int, ...]
    problem: Problem
    state: State
    noise: Noise

    def world_of(self, view: int, pose: FloatArray | None = None) -> Similarity:
        """Into the unit of ``view``'s median sampled depth, in its frame or where it has ``pose`` (4, 4)."""
        k = self.views.index(view)
        present = make_pose(self.state.rotation[k], self.state.centre[k])
        scale = float(np.exp(-np.median(self.state.log_depth[k])))
        return Similarity.between_poses(present, np.eye(4) if pose is None else pose, scale)

    def moved(self, world: Similarity) -> Fit:
        """The same fit in another world and unit."""
        state, grown = self.state, float(np.log(world.scale))
        moved = State(
            world.rotation @ state.rotation, world.apply(state.centre), state.log_scale - grown, state.log_focal,
            [d + grown for d in state.log_depth],
        )  # fmt: skip
        return replace(self, state=moved)

    @cached_property
    def errors(self) -> Sequence[ViewErrors]:
        """Errors of all predictions, by view; the same in every world."""
        return view_errors(self.problem, self.state)

    def edge_residuals(self) -> dict[int, float]:
        """Confidence-weighted RMS error relative to distance, by position of the edge among those given."""
        total, weight = np.zeros(len(self.used)), np.zeros(len(self.used))
        for s, (own, seen) in zip(self.problem.sightings, self.errors):
            for at, w, errors in ((s.own_edge, s.own_weight, own), (s.seen_edge, s.seen_weight, seen)):
                np.add.at(total, at, (w * (errors.radial**2 + errors.lateral2)).sum(axis=1))
                np.add.at(weight, at, w.sum(axis=1))
        rms = np.sqrt(total / np.maximum(weight, 1e-300))
        return {edge: float(r) for edge, r in zip(self.used, rms)}

    def edge_scores(self) -> FloatArray:
        """Error of each used edge's typical prediction (E,), as a multiple of what the noise lets expect.

        The larger one of the edge's two maps.
        """
        scores = np.zeros(len(self.used))
        for s, (own, seen) in zip(self.problem.sightings, self.errors):
            along = Errors(own.radial, np.zeros_like(own.radial))  # across, own-frame maps may have no error at all
            expected = np.where(s.seen_parallax > 0, CHI2_MEDIAN[3], CHI2_MEDIAN[2])
            np.maximum.at(scores, s.own_edge, _typical(s.own_weight, along, self.noise, CHI2_MEDIAN[1]))
            np.maximum.at(scores, s.seen_edge, _typical(s.seen_weight, seen, self.noise, expected))
        return scores


@dataclass(frozen=True, eq=False)
class DenseView:
    """A view's estimate, and where its samples were when it was made: world points (3, G) and log depths (G,)."""

    estimate: ViewEstimate
    points: FloatArray
    log_depth: FloatArray

    def moved(self, change: Similarity) -> DenseView:
        """The same in another world and unit."""
        pose, depth = change.apply_to_pose(self.estimate.camera_to_world), self.estimate.depth
        estimate = replace(self.estimate, camera_to_world=pose, depth=depth * np.float32(change.scale))
        return DenseView(estimate, change.apply(self.points.T).T, self.log_depth + float(np.log(change.scale)))


def _typical(weight: FloatArray, errors: Errors, noise: Noise, expected: FloatArray | float) -> FloatArray:
    """The root of the median of chi2 over the pixels with weight, relative to the expected one; (K, G) to (K,)."""
    found = np.where(weight > 0, chi2(weight, errors, noise), np.nan)
    some = (weight > 0).any(axis=1)
    medians = np.zeros(len(found))
    medians[some] = np.nanmedian(found[some], axis=1)
    return np.sqrt(medians / expected)


def view_intrinsics(known: Intrinsics | None, size: Size, log_focal: float,
                    principal_point: tuple[float, float] | None = None) -> Intrinsics:  # fmt: skip
    """The given intrinsics, or those of a focal in units of the longer side of (H, W)."""
    if known is not None:
        return known
    height, width = size
    focal = float(np.exp(log_focal)) * max(size)
    cx, cy = principal_point or (width / 2, height / 2)
    return Intrinsics(focal, focal, cx, cy, width, height)


def fuse_view(view: int, edges: Sequence[Edge], scales: Sequence[float], poses: Mapping[int, FloatArray],
              intrinsics: Intrinsics, noise: Noise, min_confidence: float,
              device: str | None = None) -> FusedDepth:  # fmt: skip
    """Full-resolution depth of a view from all ``edges`` that touch it; ``scales`` take each to world units.

    On a torch ``device``, or by NumPy when it is None.
    """
    own, seen = [], []
    for edge, scale in zip(edges, scales):
        p = edge.prediction
        if p.state is PairState.ROTATION_ONLY:
            continue
        floor = confidence_floor(edge, min_confidence)
        if edge.i == view:
            own.append(OwnMap(*load_map(p.points_i, p.conf_i, floor, scale, device)))
        if edge.j == view:
            back = poses[edge.i][:3, :3].T
            shift = back @ (poses[view][:3, 3] - poses[edge.i][:3, 3])
            if np.abs(shift).max() < FARTHEST:
                loaded = load_map(p.points_j, p.conf_j, floor, scale, device)
                seen.append(SeenMap(*loaded, back @ poses[view][:3, :3], shift))
    return fuse_depth(own, seen, intrinsics, noise)


def unregistered_view(intrinsics: Intrinsics) -> ViewEstimate:
    """A view that no edge could place: identity pose, no depth."""
    empty = np.zeros((intrinsics.height, intrinsics.width), np.float32)
    return ViewEstimate(np.eye(4), empty, empty.copy(), intrinsics, registered=False)
