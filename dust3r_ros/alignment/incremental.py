"""Alignment keyframe by keyframe, at a cost that does not depend on how many there are."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from dust3r_ros.alignment.batch import initial_log_scale
from dust3r_ros.alignment.initialise import Layout, Placement, place_all, place_view
from dust3r_ros.alignment.intrinsics import DEFAULT_FOCAL, FocalTrack, edge_focal
from dust3r_ros.alignment.linearise import own_focal_evidence
from dust3r_ros.alignment.model import CUTOFF, FocalPrior, Lens, Problem, State, make_lens
from dust3r_ros.alignment.observations import (
    IntArray,
    SampledEdge,
    Size,
    collect_sightings,
    grid_pixels,
    pixel_positions,
    sample_edge,
    view_sizes,
)
from dust3r_ros.alignment.result import Fit, fuse_view, unregistered_view, view_intrinsics
from dust3r_ros.alignment.solve import solve
from dust3r_ros.config import AlignmentConfig
from dust3r_ros.data import Edge, FloatArray, Intrinsics, ViewEstimate
from dust3r_ros.errors import AlignmentError
from dust3r_ros.geometry import make_pose

log = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class AlignmentUpdate:
    """What one keyframe changed.

    ``view`` is the new keyframe's estimate, ``registered`` False when no edge could place it; ``moved`` maps older
    keyframes, all in the window, to their new estimates. ``focal_px`` is the camera's pooled focal for this image
    and ``focal_spread_px`` its robust spread over the keyframes' predictions (0 when K is known, as large as the
    focal while nothing is known of it). ``edge_residual`` is as in ``Scene``, for the edges in the window.
    """

    view: ViewEstimate
    moved: Mapping[int, ViewEstimate]
    focal_px: float
    focal_spread_px: float
    edge_residual: Mapping[tuple[int, int], float]


@dataclass(eq=False)
class _View:
    camera: str
    size: Size
    known: Intrinsics | None
    pixels: IntArray
    placement: Placement
    registered: bool = False
    frozen_focal: float | None = None  # log, once the view has left the window

    @property
    def has_depth(self) -> bool:
        return bool((self.placement.known > 0).any())

    @property
    def positions(self) -> FloatArray:
        return pixel_positions(self.size, self.pixels)


@dataclass(eq=False)
class _Link:
    edge: Edge
    sampled: SampledEdge
    log_scale: float = 0.0


class IncrementalAligner:
    """Alignment in a window: a new keyframe moves only the last ``window`` ones; older ones are held as they are.

    The first keyframe is the world's frame, its median depth, once it is known, the world's unit. Predictions are
    held only while one of their views is in the window, so that time and memory per keyframe are constant.
    """

    def __init__(self, config: AlignmentConfig, window: int) -> None:
        if window < 1:
            raise ValueError(f"window must be at least 1, got {window}")
        self.config = config
        self.window = window
        self._views: dict[int, _View] = {}
        self._active: list[int] = []
        self._links: list[_Link] = []
        self._focals: dict[str, FocalTrack] = {}
        self._residuals = 0

    @property
    def residuals(self) -> int:
        """Number of scalar residuals of the last ``add``: bounded, however long the walk."""
        return self._residuals

    @property
    def held_edges(self) -> int:
        """Number of predictions kept for the next ``add``."""
        return len(self._links)

    @property
    def held_views(self) -> int:
        """Number of keyframes kept: the window, and what its edges reach."""
        return len(self._views)

    def add(self, index: int, edges: Sequence[Edge], *, camera: str, size: Size,
            intrinsics: Intrinsics | None = None) -> AlignmentUpdate:  # fmt: skip
        """Add keyframe ``index`` with its predictions to and from keyframes in the window.

        ``size`` is (H, W) of the keyframe's pointmaps; ``intrinsics``, for that size, are honoured exactly. The
        first keyframe has no edges (or one with itself): its depth follows with the second. Edges to keyframes that
        left the window are ignored. Raises ValueError for an index seen before or edges that do not touch it,
        AlignmentError where predictions do not fit the sizes.
        """
        self._check(index, edges, size, intrinsics)
        pixels = grid_pixels(size, self.config.grid)
        nowhere = Placement(np.eye(3), np.zeros(3), np.zeros(len(pixels)), np.zeros(len(pixels)))
        view = _View(camera, size, intrinsics, pixels, nowhere)
        self._views[index] = view
        links = self._sample(edges)
        self._note_focals(camera, links)
        first_depth = not any(self._views[v].has_depth for v in self._active)
        if not (self._bootstrap(index, links) if first_depth else self._place(index, links)):
            del self._views[index]
            return self._update(index, view, unregistered_view(self._intrinsics(view)), {}, {})
        self._active.append(index)
        self._links.extend(links)
        fit = self._solve(first_depth) if self._links else None
        update = self._report(index, fit)
        self._retire(fit)
        return update

    def _check(self, index: int, edges: Sequence[Edge], size: Size, intrinsics: Intrinsics | None) -> None:
        if index in self._views:
            raise ValueError(f"index must be new, got {index} again")
        stray = [(e.i, e.j) for e in edges if index not in (e.i, e.j)]
        if stray:
            raise ValueError(f"edges must touch keyframe {index}, got {stray[0]}")
        if intrinsics is not None and (intrinsics.height, intrinsics.width) != size:
            raise ValueError(
                f"intrinsics must be for the {size[1]}x{size[0]} pointmaps, got {intrinsics.width}x{intrinsics.height}"
            )
        for view, found in view_sizes(edges).items():
            expected = size if view == index else self._views[view].size if view in self._views else found
            if found != expected:
                raise AlignmentError(f"predictions of keyframe {view} must be {expected} (H, W), got {found}")

    def _sample(self, edges: Sequence[Edge]) -> list[_Link]:
        links = []
        for e in edges:
            if e.i in self._views and e.j in self._views:
                pixels_i, pixels_j = self._views[e.i].pixels, self._views[e.j].pixels
                sampled = sample_edge(e, pixels_i, pixels_j, self.config.min_confidence)
                if sampled.usable:
                    links.append(_Link(e, sampled))
            else:
                log.debug("edge (%d, %d) reaches beyond the window and is ignored", e.i, e.j)
        return links

    def _note_focals(self, camera: str, links: Sequence[_Link]) -> None:
        """Focals of the new own-frame maps; the first ones of a camera are its first estimate."""
        self._focals.setdefault(camera, FocalTrack(float(np.log(DEFAULT_FOCAL))))
        fresh = {name for name, track in self._focals.items() if not track.recent}
        for link in links:
            view = self._views[link.sampled.i]
            if view.known is None:
                focal = edge_focal(link.sampled, view.positions, view.size)
                self._focals[view.camera].note([focal])
        for name in fresh:
            if self._focals[name].recent:
                self._focals[name].log_focal = float(np.median(self._focals[name].recent))

    def _lens(self, view: _View, groups: Mapping[str, int]) -> Lens:
        known = view.known
        if known is None and view.frozen_focal is not None:
            known = view_intrinsics(None, view.size, view.frozen_focal)
        return make_lens(view.positions, view.size, known, groups[view.camera])

    def _layout(self) -> Layout:
        """All views in reach, at their present places."""
        groups, log_focal = self._focal_state()
        rays = {v: self._lens(view, groups).rays(log_focal) for v, view in self._views.items()}
        return Layout(rays, {v: self._views[v].placement for v in self._views if self._views[v].registered})

    def _focal_state(self) -> tuple[dict[str, int], FloatArray]:
        groups = {name: k for k, name in enumerate(self._focals)}
        return groups, np.array([track.log_focal for track in self._focals.values()])

    def _place(self, index: int, links: Sequence[_Link]) -> bool:
        layout = self._layout()
        placement = place_view(index, [link.sampled for link in links], layout)
        if placement is None:
            return False
        layout.placed[index] = self._views[index].placement = placement
        self._set_scales(links, layout)
        self._views[index].registered = True
        return True

    def _bootstrap(self, index: int, links: Sequence[_Link]) -> bool:
        """Place the first views that have depth; the very first keyframe alone is the origin."""
        views = [*self._active, index]
        every = [k for k in (*self._links, *links) if k.sampled.i in views and k.sampled.j in views]
        layout = place_all([link.sampled for link in every], views, self._layout().rays)
        if all(v in layout.placed for v in views):
            layout = layout.with_view_at(views[0], self._views[views[0]].placement)
            for v in views:
                self._views[v].placement = layout.placed[v]
            self._set_scales(every, layout)
        elif self._active:
            return False
        self._views[index].registered = True
        return True

    def _set_scales(self, links: Sequence[_Link], layout: Layout) -> None:
        for link in links:
            link.log_scale = initial_log_scale(link.sampled, layout)

    def _solve(self, first_depth: bool) -> Fit:
        problem, state, views = self._problem()
        self._residuals = problem.residuals
        solution = solve(problem, state, self.config, warm=not first_depth)
        fit = Fit(views, tuple(range(len(self._links))), problem, solution.state, solution.noise)
        if first_depth and not problem.fixed_depth.any():
            first = self._active[0]
            fit = fit.in_world_of(first, self._views[first].placement)
        self._take(fit)
        return fit

    def _problem(self) -> tuple[Problem, State, tuple[int, ...]]:
        views = tuple(sorted(self._views))
        index = {v: k for k, v in enumerate(views)}
        groups, log_focal = self._focal_state()
        held = np.array([v not in self._active for v in views])
        sampled = [link.sampled for link in self._links]
        sightings = []
        for v, fixed in zip(views, held):
            found = collect_sightings(sampled, v, len(self._views[v].pixels), index)
            sightings.append(found.where(self._views[v].placement.known > 0) if fixed else found)
        fixed_pose = held if held.any() else np.array([v == self._active[0] for v in views])
        tracks = self._focals.values()
        prior = FocalPrior(np.array([t.mean for t in tracks]), np.array([t.information for t in tracks]))
        lenses = [self._lens(self._views[v], groups) for v in views]
        problem = Problem(sightings, lenses, len(sampled), fixed_pose, held, prior)
        placed = [self._views[v].placement for v in views]
        state = State(
            np.array([p.rotation for p in placed]),
            np.array([p.centre for p in placed]),
            np.array([link.log_scale for link in self._links]),
            log_focal,
            [p.log_depth for p in placed],
        )
        return problem, state, views

    def _take(self, fit: Fit) -> None:
        """Keep the solution as the views' present estimates."""
        state = fit.state
        for k, v in enumerate(fit.views):
            if v in self._active:
                view, s = self._views[v], fit.problem.sightings[k]
                seen = s.seen_weight * s.seen_parallax[:, None]
                known = s.own_weight.sum(axis=0) + seen.sum(axis=0)
                known = np.where(known > 0, known, view.placement.known)
                view.placement = Placement(state.rotation[k], state.centre[k], state.log_depth[k], known)
        for link, log_scale in zip(self._links, state.log_scale):
            link.log_scale = float(log_scale)
        for track, log_focal in zip(self._focals.values(), state.log_focal):
            track.log_focal = float(log_focal)

    def _retire(self, fit: Fit | None) -> None:
        """Freeze the keyframes that the next one pushes out of the window; forget what no longer touches it."""
        leaving, self._active = self._active[: -self.window], self._active[-self.window :]
        for v in leaving:
            view = self._views[v]
            track = self._focals[view.camera]
            view.frozen_focal = track.log_focal
            if fit is not None and view.known is None:
                k = fit.views.index(v)
                lens, s = fit.problem.lenses[k], fit.problem.sightings[k]
                track.absorb(*own_focal_evidence(s, lens, fit.state, k, fit.noise, CUTOFF))
        active = set(self._active)
        self._links = [link for link in self._links if link.sampled.i in active or link.sampled.j in active]
        reach = active.union(*((link.sampled.i, link.sampled.j) for link in self._links))
        self._views = {v: view for v, view in self._views.items() if v in reach}

    def _intrinsics(self, view: _View) -> Intrinsics:
        return view_intrinsics(view.known, view.size, self._focals[view.camera].log_focal)

    def _report(self, index: int, fit: Fit | None) -> AlignmentUpdate:
        estimates = {v: self._estimate(v, fit) for v in self._active}
        residual = {}
        if fit is not None:
            residual = {(self._links[e].edge.i, self._links[e].edge.j): r for e, r in fit.edge_residuals().items()}
        return self._update(index, self._views[index], estimates.pop(index), estimates, residual)

    def _update(self, index: int, view: _View, estimate: ViewEstimate, moved: Mapping[int, ViewEstimate],
                residual: Mapping[tuple[int, int], float]) -> AlignmentUpdate:  # fmt: skip
        focal = estimate.intrinsics.focal_px
        spread = 0.0 if view.known is not None else focal * self._focals[view.camera].relative_spread
        return AlignmentUpdate(estimate, moved, focal, spread, residual)

    def _estimate(self, v: int, fit: Fit | None) -> ViewEstimate:
        view = self._views[v]
        intrinsics = self._intrinsics(view)
        pose = make_pose(view.placement.rotation, view.placement.centre)
        if fit is None:
            return replace(unregistered_view(intrinsics), registered=True)
        touching = [link for link in self._links if v in (link.edge.i, link.edge.j)]
        poses = {u: make_pose(w.placement.rotation, w.placement.centre) for u, w in self._views.items()}
        scales = [float(np.exp(-link.log_scale)) for link in touching]
        fused = fuse_view(v, [link.edge for link in touching], scales, poses, intrinsics, fit.noise,
                          self.config.min_confidence)  # fmt: skip
        return ViewEstimate(pose, fused.depth, fused.confidence, intrinsics)
