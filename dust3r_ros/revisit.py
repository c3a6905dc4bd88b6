"""Places seen before: what is kept of old keyframes, how loops to them are found and closed, and how a lost path is
taken up again.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from dust3r_ros.alignment import AlignmentUpdate, IncrementalAligner
from dust3r_ros.alignment.loops import LEAST_SIGMA, Loop, confirmed, verify
from dust3r_ros.alignment.places import Anchor, PlaceIndex
from dust3r_ros.alignment.pose_graph import GraphEdge, Similarities, solve_pose_graph
from dust3r_ros.config import AlignmentConfig, LoopConfig
from dust3r_ros.data import ByteImage, Edge, FloatArray, Keyframe, PreparedImage
from dust3r_ros.encoded import EncodedKeyframe
from dust3r_ros.errors import DeviceMemoryError
from dust3r_ros.geometry import Similarity
from dust3r_ros.images import from_jpeg, to_jpeg
from dust3r_ros.memory import KeptImage, Place
from dust3r_ros.predictor import PairPredictor

log = logging.getLogger(__name__)

JPEG_QUALITY = 90
PAUSE = 5  # keyframes after a closed loop in which none is looked for
PATIENCE = 10  # keyframes for which a loop waits for another that confirms it
DRIFT = 0.2  # of the window's residual: how far a keyframe's relation to the one before is taken to be off


@dataclass(frozen=True, eq=False)
class Reunion:
    """A lost keyframe's place among old ones, and those, the most alike first."""

    aligned: AlignmentUpdate
    keyframes: tuple[EncodedKeyframe, ...]


class Revisits:
    """Every keyframe of a map in little memory: a descriptor, a JPEG, and depths on the solver's grid.

    Keyframes' relations among neighbours, and the loops that were believed, form a Sim(3) graph. ``search`` looks for
    loops of one new keyframe, at a bounded cost; ``close`` solves the graph, and only when a loop was confirmed.
    """

    def __init__(self, config: LoopConfig, alignment: AlignmentConfig, predictor: PairPredictor[Any]) -> None:
        self.config = config
        self._alignment = alignment
        self.predictor = predictor
        self._index = PlaceIndex()
        self._kept: dict[int, KeptImage] = {}
        self._anchors: dict[int, Anchor] = {}
        self._parents: dict[int, tuple[int, ...]] = {}
        self._sigma: dict[int, float] = {}
        self._unit: dict[int, float] = {}  # present world units in a keyframe's first one
        self._relations: dict[tuple[int, int], GraphEdge] = {}
        self._pending: list[Loop] = []
        self._loops: list[Loop] = []
        self._paused_until = 0

    @property
    def loops(self) -> tuple[tuple[int, int], ...]:
        """(old, new) of every loop that is believed."""
        return tuple((loop.old, loop.new) for loop in self._loops)

    def places(self, aligner: IncrementalAligner) -> tuple[Place, ...]:
        """Everything that is kept of the keyframes, as they are now."""
        return tuple(self._place(index, kept, aligner) for index, kept in self._kept.items())

    def _place(self, v: int, kept: KeptImage, aligner: IncrementalAligner) -> Place:
        anchor = self._anchors.get(v) or aligner.anchor(v)
        descriptor = self._index.descriptor(v)
        return Place(v, kept, descriptor, anchor, self._parents[v], self._sigma[v], self._unit[v])

    def alike(
        self, descriptor: FloatArray, count: int, aligner: IncrementalAligner
    ) -> list[tuple[EncodedKeyframe, Anchor]]:  # fmt: skip
        """The keyframes most like a descriptor, as they lie in the map now; the most alike first."""
        known = [v for v in self._kept if v in self._anchors or v in aligner.held]
        near = self._index.nearest(descriptor, known, count, 0.0)
        return [(self._recall(v), self._anchors.get(v) or aligner.anchor(v)) for v in near]

    def graph(self) -> tuple[tuple[GraphEdge, ...], tuple[Loop, ...]]:
        """The relations among neighbours, and the loops that are believed."""
        return tuple(self._relations.values()), tuple(self._loops)

    def restore(self, places: Sequence[Place], relations: Sequence[GraphEdge], loops: Sequence[Loop]) -> None:
        """Remember what another session's ``places`` and ``graph`` said; nothing may be remembered yet."""
        for place in places:
            v = place.index
            self._index.add(v, place.descriptor.astype(np.float32))
            self._kept[v], self._anchors[v], self._parents[v] = place.image, place.anchor, place.parents
            self._sigma[v], self._unit[v] = place.sigma, place.unit
        self._relations = {(edge.i, edge.j): edge for edge in relations}
        self._loops = list(loops)

    def described(self, new: EncodedKeyframe) -> EncodedKeyframe:
        """A keyframe with its descriptor and JPEG: all of ``remember`` that may fail, before anything is aligned."""
        descriptor = self.predictor.describe(new.encoded) if self.config.enabled else None
        if descriptor is None:
            return new
        return replace(new, descriptor=descriptor, jpeg=to_jpeg(new.keyframe.image.pixels, JPEG_QUALITY))

    def remember(self, new: EncodedKeyframe, aligned: AlignmentUpdate, aligner: IncrementalAligner) -> None:
        """Take in a registered keyframe, and those that became final with it."""
        self._anchors.update({v: anchor for v, anchor in aligned.left.items() if v in self._kept})
        if new.descriptor is not None and new.jpeg is not None:
            self._keep(new, new.descriptor, new.jpeg, aligned)
        for v in aligned.left:
            self._relate(v, aligner)

    def _keep(self, new: EncodedKeyframe, descriptor: FloatArray, jpeg: ByteImage, aligned: AlignmentUpdate) -> None:
        index, keyframe = new.index, new.keyframe
        self._index.add(index, descriptor)
        self._kept[index] = KeptImage(
            keyframe.stamp_ns, keyframe.camera, jpeg, keyframe.image.transform, new.intrinsics
        )
        ends = {i if j == index else j for i, j in aligned.edge_residual if index in (i, j)}
        self._parents[index] = tuple(sorted(ends & self._kept.keys() - {index}))
        residual = float(np.mean(list(aligned.edge_residual.values()) or [0.0]))
        self._sigma[index] = max(DRIFT * residual, LEAST_SIGMA)
        self._unit[index] = 1.0

    def search(self, new: EncodedKeyframe, aligner: IncrementalAligner) -> None:
        """Look for an old keyframe that sees what a new one sees; the first that passes waits for ``close``.

        Where the device has no memory for the pairs, there is none.
        """
        try:
            self._search(new, aligner)
        except DeviceMemoryError as error:
            log.warning("%s: no loop was looked for at keyframe %d", error, new.index)

    def _search(self, new: EncodedKeyframe, aligner: IncrementalAligner) -> None:
        index = new.index
        if index not in self._kept or index not in aligner.held or index < self._paused_until:
            return
        at_new, usual = aligner.anchor(index), aligner.usual_confidence
        for old in self._candidates(index, aligner):
            ((_, forward, backward),) = self._predict(new, [old])
            loop = verify(old, index, forward.prediction, backward.prediction, self._anchors[old], at_new,
                          self._alignment.min_confidence, usual)  # fmt: skip
            log.debug("keyframe %d at keyframe %d: %s", index, old, "verified" if loop else "no loop")
            if loop is not None:
                self._pending.append(self._in_first_units(loop, aligner))
                return

    def close(self, aligner: IncrementalAligner) -> dict[int, Similarity]:
        """Close the loops that are confirmed: how the world changed around every keyframe, nothing when there is none.

        The aligner is moved along.
        """
        newest = next(reversed(self._kept), 0)
        self._pending = [loop for loop in self._pending if loop.new > newest - PATIENCE]
        nodes = self._nodes(aligner, {k for loop in self._pending for k in (loop.old, loop.new)})
        found = confirmed(self._pending, nodes)
        if not found:
            return {}
        self._pending = []
        changes = self._solve(found, aligner)
        if changes:
            self._paused_until = newest + 1 + PAUSE
            log.info("closed a loop: keyframe %d is where keyframe %d was", found[-1].new, found[-1].old)
        return changes

    def reunite(self, new: EncodedKeyframe, aligner: IncrementalAligner) -> Reunion | None:
        """Align a lost keyframe with the old ones that agree on where it is; None when there are none.

        The aligner's window goes on there. Where the device has no memory for the pairs, there are none.
        """
        try:
            chosen = self._reunited(new)
        except DeviceMemoryError as error:
            log.warning("%s: keyframe %d was not looked for among old ones", error, new.index)
            return None
        if not chosen:
            return None
        anchors = {old.index: self._anchors[old.index] for old, _, _ in chosen}
        edges = [edge for _, forward, backward in chosen for edge in (forward, backward)]
        aligned = aligner.relocalise(
            new.index, edges, anchors, camera=new.keyframe.camera, size=new.size, intrinsics=new.intrinsics
        )
        if not aligned.view.registered:
            return None
        log.info("keyframe %d was found again at keyframe %d", new.index, chosen[0][0].index)
        return Reunion(aligned, tuple(old for old, _, _ in chosen))

    def _reunited(self, new: EncodedKeyframe) -> list[tuple[EncodedKeyframe, Edge, Edge]]:
        """Old keyframes that agree on where a lost keyframe is, and the predictions between them and it."""
        if new.descriptor is None:
            return []
        near = self._index.nearest(new.descriptor, list(self._anchors), self.config.candidates, 0.0)
        edges = self._predict(new, near)
        loops = []
        for old, forward, backward in edges:
            loop = verify(old.index, new.index, forward.prediction, backward.prediction, self._anchors[old.index], None,
                          self._alignment.min_confidence, 0.0)  # fmt: skip
            if loop is not None:  # the new keyframe's unit means nothing
                rigid = Similarity(1.0, loop.relative.rotation, loop.relative.translation)
                loops.append(replace(loop, relative=rigid, reach=loop.reach * loop.relative.scale))
        world = {old.index: Similarity.from_matrix(self._anchors[old.index].camera_to_world) for old, _, _ in edges}
        good = {loop.old for loop in confirmed(loops, {**world, new.index: Similarity.identity()})}
        return [(old, forward, backward) for old, forward, backward in edges if old.index in good]

    def _candidates(self, index: int, aligner: IncrementalAligner) -> list[int]:
        """Keyframes long gone that look like keyframe ``index``, measured by how much its neighbours do."""
        held = set(aligner.held)
        old = [v for v in self._anchors if v <= index - self.config.min_separation and v not in held]
        near = [v for v in held if v in self._kept and v != index]
        if not old or not near:
            return []
        descriptor = self._index.descriptor(index)
        least = self.config.similarity * float(self._index.likeness(descriptor, near).max())
        return self._index.nearest(descriptor, old, self.config.candidates, max(least, 0.0))

    def _predict(self, new: EncodedKeyframe, old: Sequence[int]) -> list[tuple[EncodedKeyframe, Edge, Edge]]:
        if not old:
            return []
        recalled = [self._recall(index) for index in old]
        pairs = [pair for r in recalled for pair in ((r.encoded, new.encoded), (new.encoded, r.encoded))]
        found = self.predictor.probe(pairs)
        return [
            (r, Edge(r.index, new.index, found[2 * k]), Edge(new.index, r.index, found[2 * k + 1]))
            for k, r in enumerate(recalled)
        ]

    def _recall(self, index: int) -> EncodedKeyframe:
        kept = self._kept[index]
        image = PreparedImage(from_jpeg(kept.jpeg), kept.transform)
        encoded = self.predictor.encode(image, kept.camera, kept.intrinsics)
        return EncodedKeyframe(Keyframe(index, kept.stamp_ns, kept.camera, image), encoded, kept.intrinsics)

    def _node(self, index: int, aligner: IncrementalAligner) -> Similarity:
        """Camera to world, from the keyframe's first unit."""
        pose = (aligner.anchor(index) if index in aligner.held else self._anchors[index]).camera_to_world
        return Similarity(self._unit[index], pose[:3, :3], pose[:3, 3])

    def _nodes(self, aligner: IncrementalAligner, indices: set[int]) -> dict[int, Similarity]:
        return {index: self._node(index, aligner) for index in sorted(indices)}

    def _in_first_units(self, loop: Loop, aligner: IncrementalAligner) -> Loop:
        """A loop measured in present units, in the units its keyframes had at first."""
        old, new = self._node(loop.old, aligner), self._node(loop.new, aligner)
        world = replace(old, scale=1.0).compose(loop.relative).compose(replace(new, scale=1.0).inverse())
        return replace(loop, relative=old.inverse().compose(world).compose(new), reach=loop.reach / new.scale)

    def _relate(self, index: int, aligner: IncrementalAligner) -> None:
        """Fix how a keyframe lies to those it was aligned with, if that is not fixed yet."""
        parents = self._parents.get(index, ())
        for steps, parent in enumerate(reversed(parents), start=1):
            known = parent in aligner.held or parent in self._anchors
            if known and (parent, index) not in self._relations:
                old, new = self._node(parent, aligner), self._node(index, aligner)
                anchor = aligner.anchor(index) if index in aligner.held else self._anchors[index]
                # Errors add up along the way rather than cancel, and the parents' measurements repeat each other.
                sigma = self._sigma[index] * float(np.sqrt(len(parents))) * steps
                relative, reach = old.inverse().compose(new), anchor.reach / new.scale
                self._relations[parent, index] = GraphEdge(parent, index, relative, reach, sigma)

    def _solve(self, found: Sequence[Loop], aligner: IncrementalAligner) -> dict[int, Similarity]:
        held = [v for v in aligner.held if v in self._kept]
        for v in held:
            self._relate(v, aligner)
        indices = sorted(self._anchors.keys() | set(held))
        place = {v: k for k, v in enumerate(indices)}
        body = np.array([len(indices) if v in held else k for k, v in enumerate(indices)])
        body = np.unique(body, return_inverse=True)[1]
        nodes = self._nodes(aligner, set(indices))
        loops = [*self._loops, *found]
        doubtful = [GraphEdge(s.old, s.new, s.relative, s.reach, s.sigma, doubtful=True) for s in loops]
        edges = [replace(e, i=place[e.i], j=place[e.j]) for e in (*self._relations.values(), *doubtful)]
        before = Similarities.stack([nodes[v] for v in indices])
        solution = solve_pose_graph(before, body, int(body[0]), edges)
        believed = solution.believed[len(self._relations) :]
        good = [loop for loop, true in zip(loops, believed) if true]
        if not any(loop in good for loop in found):
            return {}
        self._loops = good
        change = solution.nodes.compose(before.inverse())
        changes = {v: change.single(k) for k, v in enumerate(indices)}
        self._follow(changes, held, aligner)
        return changes

    def _follow(self, changes: Mapping[int, Similarity], held: Sequence[int], aligner: IncrementalAligner) -> None:
        for v, change in changes.items():
            self._unit[v] *= change.scale
            if v in self._anchors:
                self._anchors[v] = self._anchors[v].moved(change)
        if held:
            aligner.move(changes[held[0]])
