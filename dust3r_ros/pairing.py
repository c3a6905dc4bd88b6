"""Scene graphs: which pairs of views the predictor is asked for (DUSt3R, section 3.4; MASt3R-SfM, section 4.1)."""

from __future__ import annotations

from collections.abc import Iterable
from enum import Enum

from dust3r_ros.errors import PairingError

Pair = tuple[int, int]


class SceneGraph(Enum):
    """The form of a scene graph; ``SceneGraph("sliding-window")`` finds one by its name."""

    COMPLETE = "complete"  # every view with every other
    SLIDING_WINDOW = "sliding-window"  # each view with the next ``window`` views
    LOG_WINDOW = "log-window"  # each view with the views 1, 2, 4, ... 2^(window - 1) later
    ONE_REFERENCE = "one-reference"  # one view with every other

    @classmethod
    def _missing_(cls, value: object) -> SceneGraph:
        names = ", ".join(graph.value for graph in cls)
        raise PairingError(f"scene graph must be one of {names}, got {value!r}")


def make_pairs(
    views: int,
    graph: SceneGraph = SceneGraph.COMPLETE,
    *,
    window: int = 3,
    reference: int = 0,
    cyclic: bool = False,
    symmetric: bool = True,
    allow_single: bool = False,
) -> list[Pair]:
    """The directed pairs (i, j) of a scene graph over ``views`` images in capture order.

    ``window`` is the number of later views each view is paired with, in the window graphs; a window longer than the
    sequence gives every pair it can. ``cyclic`` lets windows run from the last views on to the first ones, for a
    closed loop. ``reference`` is the one reference's index. ``symmetric`` puts (j, i) right after each (i, j).
    ``allow_single`` pairs a single view with itself, ``[(0, 0)]``, as DUSt3R does for depth from one image.

    No pair comes twice and every view has a pair. In the window and complete graphs i < j before the pairs are
    made symmetric; with one reference, i is the reference. Raises PairingError for impossible input.
    """
    _check(views, window, reference, allow_single)
    if views == 1:
        return [(0, 0)]
    pairs = _one_way(views, graph, window, reference, cyclic)
    if not symmetric:
        return pairs
    return [pair for i, j in pairs for pair in ((i, j), (j, i))]


def _check(views: int, window: int, reference: int, allow_single: bool) -> None:
    least = 1 if allow_single else 2
    if views < least:
        raise PairingError(f"a scene graph needs at least {least} view{'s' if least > 1 else ''}, got {views}")
    if window < 1:
        raise PairingError(f"window must be at least 1, got {window}")
    if not 0 <= reference < views:
        raise PairingError(f"reference must be a view's index from 0 to {views - 1}, got {reference}")


def _one_way(views: int, graph: SceneGraph, window: int, reference: int, cyclic: bool) -> list[Pair]:
    if graph is SceneGraph.COMPLETE:
        return [(i, j) for i in range(views) for j in range(i + 1, views)]
    if graph is SceneGraph.ONE_REFERENCE:
        return [(reference, j) for j in range(views) if j != reference]
    if graph is SceneGraph.SLIDING_WINDOW:
        return _offset_pairs(views, range(1, min(window, views - 1) + 1), cyclic)
    doublings = min(window, (views - 1).bit_length())
    return _offset_pairs(views, [1 << k for k in range(doublings)], cyclic)


def _offset_pairs(views: int, offsets: Iterable[int], cyclic: bool) -> list[Pair]:
    """Each view with the views at these distances after it, by first view, without repeats."""
    steps = list(offsets)
    found: dict[Pair, None] = {}
    for i in range(views):
        for step in steps:
            j = i + step
            if j >= views:
                if not cyclic:
                    continue
                j %= views
            if i != j:
                found[min(i, j), max(i, j)] = None
    return list(found)
