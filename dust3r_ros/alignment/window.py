"""What incremental alignment holds: the keyframes in reach, their predictions, and the cameras' focals."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from dust3r_ros.alignment.initialise import Layout, Placement
from dust3r_ros.alignment.intrinsics import DEFAULT_FOCAL, FocalTrack, edge_focal
from dust3r_ros.alignment.levels import initial_log_scale
from dust3r_ros.alignment.linearise import own_focal_evidence
from dust3r_ros.alignment.model import CUTOFF, FocalPrior, Lens, Noise, Problem, State, make_lens
from dust3r_ros.alignment.observations import (
    IntArray,
    SampledEdge,
    Size,
    collect_sightings,
    grid_pixels,
    pixel_positions,
)
from dust3r_ros.alignment.places import Anchor
from dust3r_ros.alignment.result import DenseView, Fit, view_intrinsics
from dust3r_ros.data import Edge, FloatArray, Intrinsics
from dust3r_ros.geometry import Similarity, make_pose


@dataclass(eq=False)
class WindowView:
    """A keyframe in reach. ``known`` are its given intrinsics; ``pixels`` (G,) its sample pixels, flat indices."""

    camera: str
    size: Size
    known: Intrinsics | None
    pixels: IntArray
    placement: Placement
    registered: bool = False
    frozen_focal: float | None = None  # log, once the view has left the window
    dense: DenseView | None = None  # the last one

    @property
    def has_depth(self) -> bool:
        return bool((self.placement.known > 0).any())

    @property
    def positions(self) -> FloatArray:
        return pixel_positions(self.size, self.pixels)


@dataclass(eq=False)
class Link:
    """A prediction in reach, at full size and sampled, with the present log sigma of its unit."""

    edge: Edge
    sampled: SampledEdge
    log_scale: float = 0.0


class Window:
    """The keyframes that alignment may still move, the older ones their predictions reach, and the cameras' focals.

    ``active`` are the movable keyframes, oldest first; ``focals`` belong to the names in ``WindowView.camera``, those
    of names without a keyframe in reach are kept when ``keep_focals``. ``noise`` is that of the last solution.
    """

    def __init__(self, size: int, keep_focals: bool) -> None:
        self.size = size
        self.keep_focals = keep_focals
        self.views: dict[int, WindowView] = {}
        self.active: list[int] = []
        self.links: list[Link] = []
        self.focals: dict[str, FocalTrack] = {}
        self.noise: Noise | None = None

    def copy(self) -> Window:
        """One that can be changed without changing this."""
        other = Window(self.size, self.keep_focals)
        other.views = {v: replace(view) for v, view in self.views.items()}
        other.active = list(self.active)
        other.links = [replace(link) for link in self.links]
        other.focals = {name: track.copy() for name, track in self.focals.items()}
        other.noise = self.noise
        return other

    def elsewhere(self, held: Mapping[int, Anchor]) -> Window:
        """One that begins at keyframes that left this long ago, and knows the cameras' focals."""
        other = Window(self.size, self.keep_focals)
        if self.keep_focals:
            other.focals = {name: track.copy() for name, track in self.focals.items()}
        for v, anchor in held.items():
            other.hold(v, anchor)
        return other

    def note_focals(self, camera: str, links: Sequence[Link], guess: float | None = None) -> None:
        """Focals of the new own-frame maps; the first ones of a camera are its first estimate.

        A ``guess`` of the camera's, in units of the longer side, counts until something is known of it.
        """
        self.focals.setdefault(camera, FocalTrack(float(np.log(DEFAULT_FOCAL))))
        if guess is not None and not self.focals[camera].recent:
            self.focals[camera] = FocalTrack.guessed(guess)
        fresh = {name for name, track in self.focals.items() if not track.recent}
        for link in links:
            view = self.views[link.sampled.i]
            if view.known is None:
                focal = edge_focal(link.sampled, view.positions, view.size)
                self.focals[view.camera].note([focal])
        for name in fresh:
            if self.focals[name].recent:
                self.focals[name].log_focal = float(np.median(self.focals[name].recent))

    def layout(self) -> Layout:
        """All views in reach, at their present places."""
        groups, log_focal = self._focal_state()
        rays = {v: self._lens(view, groups).rays(log_focal) for v, view in self.views.items()}
        return Layout(rays, {v: self.views[v].placement for v in self.views if self.views[v].registered})

    def set_scales(self, links: Sequence[Link], layout: Layout) -> None:
        """First scales of predictions between placed views."""
        for link in links:
            link.log_scale = initial_log_scale(link.sampled, layout)

    def problem(self) -> tuple[Problem, State, tuple[int, ...]]:
        """What is to be solved, where it starts, and the indices of its views."""
        views = tuple(sorted(self.views))
        index = {v: k for k, v in enumerate(views)}
        groups, log_focal = self._focal_state()
        held = np.array([v not in self.active for v in views])
        sampled = [link.sampled for link in self.links]
        sightings = []
        for v, fixed in zip(views, held):
            found = collect_sightings(sampled, v, len(self.views[v].pixels), index)
            sightings.append(found.where(self.views[v].placement.known > 0) if fixed else found)
        fixed_pose = held if held.any() else np.array([v == self.active[0] for v in views])
        tracks = self.focals.values()
        prior = FocalPrior(np.array([t.mean for t in tracks]), np.array([t.information for t in tracks]))
        lenses = [self._lens(self.views[v], groups) for v in views]
        problem = Problem(sightings, lenses, len(sampled), fixed_pose, held, bool(held.any()), prior)
        placed = [self.views[v].placement for v in views]
        state = State(
            np.array([p.rotation for p in placed]),
            np.array([p.centre for p in placed]),
            np.array([link.log_scale for link in self.links]),
            log_focal,
            [p.log_depth for p in placed],
        )
        return problem, state, views

    def take(self, fit: Fit) -> None:
        """Keep the solution as the views' present estimates."""
        state, self.noise = fit.state, fit.noise
        for k, v in enumerate(fit.views):
            if v in self.active:
                view, s = self.views[v], fit.problem.sightings[k]
                seen = s.seen_weight * s.seen_parallax[:, None]
                known = s.own_weight.sum(axis=0) + seen.sum(axis=0)
                known = np.where(known > 0, known, view.placement.known)
                view.placement = Placement(state.rotation[k], state.centre[k], state.log_depth[k], known)
        for link, log_scale in zip(self.links, state.log_scale):
            link.log_scale = float(log_scale)
        for track, log_focal in zip(self.focals.values(), state.log_focal):
            track.log_focal = float(log_focal)

    def retire(self, fit: Fit | None, grid: int) -> dict[int, Anchor]:
        """Freeze the keyframes that the next one pushes out of the window, which are returned; forget what no longer
        touches it.
        """
        leaving, self.active = self.active[: -self.size], self.active[-self.size :]
        for v in leaving:
            view = self.views[v]
            track = self.focals[view.camera]
            view.frozen_focal, view.dense = track.log_focal, None
            if fit is not None and view.known is None:
                k = fit.views.index(v)
                lens, s = fit.problem.lenses[k], fit.problem.sightings[k]
                track.absorb(*own_focal_evidence(s, lens, fit.state, k, fit.noise, CUTOFF))
        left = {v: self.anchor(v, grid) for v in leaving}
        active = set(self.active)
        self.links = [link for link in self.links if link.sampled.i in active or link.sampled.j in active]
        reach = active.union(*((link.sampled.i, link.sampled.j) for link in self.links))
        self.views = {v: view for v, view in self.views.items() if v in reach}
        if not self.keep_focals:
            cameras = {view.camera for view in self.views.values()}
            self.focals = {name: track for name, track in self.focals.items() if name in cameras}
        return left

    def anchor(self, index: int, grid: int) -> Anchor:
        """The present geometry of a view in reach."""
        view, p = self.views[index], self.views[index].placement
        intrinsics = self.intrinsics(view)
        depth = np.where(p.known > 0, np.exp(p.log_depth), 0).astype(np.float32)
        pose = make_pose(p.rotation, p.centre)
        weight = p.known.astype(np.float32)
        return Anchor(view.camera, pose, depth, weight, intrinsics, view.known is not None, grid)

    def hold(self, index: int, anchor: Anchor) -> None:
        """Bring back a keyframe that left long ago, where and as it is."""
        k = anchor.intrinsics
        log_focal = float(np.log(k.focal_px / max(anchor.size)))
        self.focals.setdefault(anchor.camera, FocalTrack(log_focal))
        known = anchor.weight > 0
        fill = anchor.reach
        placement = Placement(
            anchor.camera_to_world[:3, :3], anchor.camera_to_world[:3, 3],
            np.log(np.where(known, anchor.depth, fill).astype(np.float64)), anchor.weight.astype(np.float64),
        )  # fmt: skip
        pixels = grid_pixels(anchor.size, anchor.grid)
        given = k if anchor.given else None
        self.views[index] = WindowView(anchor.camera, anchor.size, given, pixels, placement, True, log_focal)

    def move(self, change: Similarity) -> None:
        """Everything in reach follows a change of the world."""
        for view in self.views.values():
            view.placement = view.placement.moved(change)
            view.dense = view.dense.moved(change) if view.dense is not None else None
        for link in self.links:
            link.log_scale -= float(np.log(change.scale))

    def intrinsics(self, view: WindowView) -> Intrinsics:
        """The view's given intrinsics, or those by its camera's focal: the present one, or the one it left with."""
        frozen = view.frozen_focal
        return view_intrinsics(view.known, view.size, self.focals[view.camera].log_focal if frozen is None else frozen)

    def _focal_state(self) -> tuple[dict[str, int], FloatArray]:
        groups = {name: k for k, name in enumerate(self.focals)}
        return groups, np.array([track.log_focal for track in self.focals.values()])

    def _lens(self, view: WindowView, groups: Mapping[str, int]) -> Lens:
        known = view.known
        if known is None and view.frozen_focal is not None:
            known = view_intrinsics(None, view.size, view.frozen_focal)
        return make_lens(view.positions, view.size, known, groups[view.camera])
