"""Alignment keyframe by keyframe, at a cost that does not depend on how many there are."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace

import numpy as np

from dust3r_ros.alignment.dense import estimates, settled
from dust3r_ros.alignment.initialise import Placement, place_all, place_view
from dust3r_ros.alignment.loops import cross_confidence
from dust3r_ros.alignment.observations import Size, grid_pixels, sample_edge, view_sizes
from dust3r_ros.alignment.places import Anchor
from dust3r_ros.alignment.result import Fit, unregistered_view
from dust3r_ros.alignment.solve import solve
from dust3r_ros.alignment.window import Link, Window, WindowView
from dust3r_ros.config import AlignmentConfig
from dust3r_ros.data import Edge, Intrinsics, ViewEstimate
from dust3r_ros.errors import AlignmentError
from dust3r_ros.geometry import Similarity

log = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class AlignmentUpdate:
    """What one keyframe changed.

    ``view`` is the new keyframe's estimate, ``registered`` False when no edge could place it; ``moved`` maps older
    keyframes, in the window or just leaving it, to their new estimates. The depth of those in ``refined`` was estimated
    anew: they moved noticeably, or are final; the others' is the one before (see ``dense``). ``focal_px`` is the
    camera's pooled focal for this image and ``focal_spread_px`` its robust spread over the keyframes' predictions (0
    when K is known, as large as the focal while nothing is known of it). ``edge_residual`` is as in ``Scene``, for the
    edges in the window. ``left`` has the keyframes that leave the window with this one and are final from now on.
    """

    view: ViewEstimate
    moved: Mapping[int, ViewEstimate]
    focal_px: float
    focal_spread_px: float
    edge_residual: Mapping[tuple[int, int], float]
    left: Mapping[int, Anchor] = field(default_factory=dict)
    refined: frozenset[int] = frozenset()


class IncrementalAligner:
    """Alignment in a window: a new keyframe moves only the last ``window`` ones; older ones are held as they are.

    The first keyframe is the world's frame, its median depth, once it is known, the world's unit. Predictions are
    held only while one of their views is in the window, so that time and memory per keyframe are constant.
    """

    def __init__(self, config: AlignmentConfig, window: int) -> None:
        if window < 1:
            raise ValueError(f"window must be at least 1, got {window}")
        self.config = config
        self._window = Window(window, keep_focals=config.share_focal)
        self._residuals = 0
        self._guesses: dict[str, float] = {}

    def guess(self, camera: str, intrinsics: Intrinsics) -> None:
        """A first guess of a camera's focal, for its coming keyframes; their predictions outweigh it."""
        self._guesses[camera] = intrinsics.focal_px / max(intrinsics.width, intrinsics.height)

    @property
    def residuals(self) -> int:
        """Number of scalar residuals of the last ``add``: bounded, however long the walk."""
        return self._residuals

    @property
    def held_edges(self) -> int:
        """Number of predictions kept for the next ``add``."""
        return len(self._window.links)

    @property
    def held_views(self) -> int:
        """Number of keyframes kept: the window, and what its edges reach."""
        return len(self._window.views)

    @property
    def held(self) -> tuple[int, ...]:
        """The keyframes kept; those in the window may still be refined."""
        return tuple(self._window.views)

    def add(self, index: int, edges: Sequence[Edge], *, camera: str, size: Size,
            intrinsics: Intrinsics | None = None) -> AlignmentUpdate:  # fmt: skip
        """Add keyframe ``index`` with its predictions to and from keyframes in the window.

        ``size`` is (H, W) of the keyframe's pointmaps; ``intrinsics``, for that size, are honoured exactly. The
        first keyframe has no edges (or one with itself): its depth follows with the second. Edges to keyframes that
        left the window are ignored. Raises ValueError for an index that is still held or edges that do not touch it,
        AlignmentError where predictions do not fit the sizes. A keyframe that fails leaves nothing behind.
        """
        self._check(index, edges, size, intrinsics)
        guess = self._guesses.get(camera)
        camera = camera if self.config.share_focal else f"{camera} {index}"
        pixels = grid_pixels(size, self.config.grid)
        nowhere = Placement(np.eye(3), np.zeros(3), np.zeros(len(pixels)), np.zeros(len(pixels)))
        view = WindowView(camera, size, intrinsics, pixels, nowhere)
        with ExitStack() as unless_aligned:
            unless_aligned.callback(self._return_to, self._window, self._residuals)
            self._window = window = self._window.copy()
            window.views[index] = view
            links = self._sample(edges)
            window.note_focals(camera, links, guess)
            first_depth = not any(v.has_depth for v in window.views.values())
            if not (self._bootstrap(index, links) if first_depth else self._place(index, links)):
                return self._update(view, unregistered_view(window.intrinsics(view)), {}, {})
            window.active.append(index)
            window.links.extend(links)
            fit = self._solve(first_depth) if window.links else None
            update = self._report(index, fit)
            left = window.retire(fit, self.config.grid)
            unless_aligned.pop_all()
        return replace(update, left=left)

    def relocalise(self, index: int, edges: Sequence[Edge], held: Mapping[int, Anchor], *, camera: str, size: Size,
                   intrinsics: Intrinsics | None = None) -> AlignmentUpdate:  # fmt: skip
        """Go on somewhere else: ``add`` a keyframe by its edges to keyframes that left the window long ago.

        ``held`` are those. When the keyframe can be placed the window consists of it alone, and what was in the window
        before is final (``left``); else the window stays as it was.
        """
        before = self._window
        left = {v: self.anchor(v) for v in before.active}
        with ExitStack() as unless_placed:
            unless_placed.callback(self._return_to, before, self._residuals)
            self._window = before.elsewhere(held)
            update = self.add(index, edges, camera=camera, size=size, intrinsics=intrinsics)
            if update.view.registered:
                unless_placed.pop_all()
                final = settled(before, self.config.min_confidence)
                refined = update.refined | final.keys()
                update = replace(update, left={**update.left, **left}, moved={**update.moved, **final}, refined=refined)
        return update

    def resume(self, held: Mapping[int, Anchor]) -> None:
        """Go on in a world in which keyframes ``held`` are final: the next one is placed by edges to such, or not."""
        self._window = self._window.elsewhere(held)

    def settle(self) -> dict[int, ViewEstimate]:
        """New estimates of the keyframes in the window whose depth is not as exact as it could be."""
        return settled(self._window, self.config.min_confidence)

    def _return_to(self, window: Window, residuals: int) -> None:
        self._window, self._residuals = window, residuals

    def anchor(self, index: int) -> Anchor:
        """The present geometry of a keyframe that is held."""
        return self._window.anchor(index, self.config.grid)

    def move(self, change: Similarity) -> None:
        """The world changed, by a loop closure: everything that is held follows."""
        self._window.move(change)

    @property
    def usual_confidence(self) -> float:
        """Median over the window's edges of the mean confidence with which the other view was predicted."""
        found = [cross_confidence(link.sampled) for link in self._window.links if not link.sampled.rotation_only]
        return float(np.median(found)) if found else 0.0

    def _check(self, index: int, edges: Sequence[Edge], size: Size, intrinsics: Intrinsics | None) -> None:
        window = self._window
        if index in window.views:
            raise ValueError(f"index must be new, got {index} again")
        stray = [(e.i, e.j) for e in edges if index not in (e.i, e.j)]
        if stray:
            raise ValueError(f"edges must touch keyframe {index}, got {stray[0]}")
        if intrinsics is not None and (intrinsics.height, intrinsics.width) != size:
            raise ValueError(
                f"intrinsics must be for the {size[1]}x{size[0]} pointmaps, got {intrinsics.width}x{intrinsics.height}"
            )
        for view, found in view_sizes(edges).items():
            expected = size if view == index else window.views[view].size if view in window.views else found
            if found != expected:
                raise AlignmentError(f"predictions of keyframe {view} must be {expected} (H, W), got {found}")

    def _sample(self, edges: Sequence[Edge]) -> list[Link]:
        window = self._window
        links = []
        for e in edges:
            if e.i in window.views and e.j in window.views:
                pixels_i, pixels_j = window.views[e.i].pixels, window.views[e.j].pixels
                sampled = sample_edge(e, pixels_i, pixels_j, self.config.min_confidence)
                if sampled.usable:
                    links.append(Link(e, sampled))
            else:
                log.debug("edge (%d, %d) reaches beyond the window and is ignored", e.i, e.j)
        return links

    def _place(self, index: int, links: Sequence[Link]) -> bool:
        window = self._window
        layout = window.layout()
        placement = place_view(index, [link.sampled for link in links], layout)
        if placement is None:
            return False
        layout.placed[index] = window.views[index].placement = placement
        window.set_scales(links, layout)
        window.views[index].registered = True
        return True

    def _bootstrap(self, index: int, links: Sequence[Link]) -> bool:
        """Place the first views that have depth; the very first keyframe alone is the origin."""
        window = self._window
        views = [*window.active, index]
        every = [k for k in (*window.links, *links) if k.sampled.i in views and k.sampled.j in views]
        layout = place_all([link.sampled for link in every], views, window.layout().rays)
        if all(v in layout.placed for v in views):
            layout = layout.with_view_at(views[0], window.views[views[0]].placement.pose)
            for v in views:
                window.views[v].placement = layout.placed[v]
            window.set_scales(every, layout)
        elif window.active:
            return False
        window.views[index].registered = True
        return True

    def _solve(self, first_depth: bool) -> Fit:
        window = self._window
        problem, state, views = window.problem()
        self._residuals = problem.residuals
        solution = solve(problem, state, self.config, warm=not first_depth)
        fit = Fit(views, tuple(range(len(window.links))), problem, solution.state, solution.noise)
        if first_depth and not problem.unit_known:
            first = window.active[0]
            fit = fit.moved(fit.world_of(first, window.views[first].placement.pose))
        window.take(fit)
        return fit

    def _report(self, index: int, fit: Fit | None) -> AlignmentUpdate:
        window = self._window
        anew = (index, *window.active[: -window.size])  # those that leave are final
        found, refined = estimates(window, anew, self.config.min_confidence)
        residual = {}
        if fit is not None:
            linked = [(link.edge.i, link.edge.j) for link in window.links]
            residual = {linked[e]: r for e, r in fit.edge_residuals().items()}
        update = self._update(window.views[index], found.pop(index), found, residual)
        return replace(update, refined=refined - {index})

    def _update(self, view: WindowView, estimate: ViewEstimate, moved: Mapping[int, ViewEstimate],
                residual: Mapping[tuple[int, int], float]) -> AlignmentUpdate:  # fmt: skip
        focal = estimate.intrinsics.focal_px
        spread = 0.0 if view.known is not None else focal * self._window.focals[view.camera].relative_spread
        return AlignmentUpdate(estimate, moved, focal, spread, residual)
