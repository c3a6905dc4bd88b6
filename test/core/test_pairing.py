import pytest
from hypothesis import given
from hypothesis import strategies as st

from dust3r_ros.errors import PairingError
from dust3r_ros.pairing import SceneGraph, make_pairs

COMPLETE, WINDOW, LOG, ONE = (
    SceneGraph.COMPLETE,
    SceneGraph.SLIDING_WINDOW,
    SceneGraph.LOG_WINDOW,
    SceneGraph.ONE_REFERENCE,
)


def letters(pairs: list[tuple[int, int]]) -> str:
    return " ".join("ABCDEFGHIJ"[i] + "ABCDEFGHIJ"[j] for i, j in pairs)


@pytest.mark.parametrize(
    ("views", "graph", "options", "expected"),
    [
        (4, COMPLETE, {}, "AB AC AD BC BD CD"),
        (4, WINDOW, {"window": 2}, "AB AC BC BD CD"),
        (4, WINDOW, {"window": 1}, "AB BC CD"),
        (4, WINDOW, {"window": 1, "cyclic": True}, "AB BC CD AD"),
        (5, WINDOW, {"window": 2, "cyclic": True}, "AB AC BC BD CD CE DE AD AE BE"),
        (4, ONE, {"reference": 0}, "AB AC AD"),
        (4, ONE, {"reference": 2}, "CA CB CD"),
        (6, LOG, {"window": 3}, "AB AC AE BC BD BF CD CE DE DF EF"),
        (5, LOG, {"window": 1}, "AB BC CD DE"),
        (2, WINDOW, {"window": 9, "cyclic": True}, "AB"),
        (3, LOG, {"window": 9}, "AB AC BC"),
    ],
)
def test_pairs_are_those_of_the_literature(views: int, graph: SceneGraph, options: dict, expected: str) -> None:
    assert sorted(letters(make_pairs(views, graph, symmetric=False, **options)).split()) == sorted(expected.split())


def test_the_order_is_by_the_first_view() -> None:
    assert letters(make_pairs(4, WINDOW, window=2, symmetric=False)) == "AB AC BC BD CD"


def test_symmetric_puts_the_way_back_after_each_pair() -> None:
    assert letters(make_pairs(3, WINDOW, window=1)) == "AB BA BC CB"


@pytest.mark.parametrize(("views", "count"), [(2, 1), (3, 3), (10, 45), (25, 300)])  # n (n - 1) / 2
def test_the_complete_graph_has_every_pair_once(views: int, count: int) -> None:
    assert len(make_pairs(views, COMPLETE, symmetric=False)) == count
    assert len(make_pairs(views, COMPLETE)) == 2 * count


def test_a_graph_is_found_by_its_name() -> None:
    assert SceneGraph("sliding-window") is WINDOW
    with pytest.raises(PairingError, match="complete, sliding-window, log-window, one-reference, got 'swin-5'"):
        SceneGraph("swin-5")


def test_a_single_view_is_paired_with_itself_only_when_asked() -> None:
    assert make_pairs(1, COMPLETE, allow_single=True) == [(0, 0)]
    with pytest.raises(PairingError, match="at least 2 views, got 1"):
        make_pairs(1, COMPLETE)


@pytest.mark.parametrize(
    ("views", "options", "message"),
    [
        (0, {"allow_single": True}, "at least 1 view, got 0"),
        (-3, {}, "at least 2 views, got -3"),
        (4, {"window": 0}, "window must be at least 1, got 0"),
        (4, {"reference": 4}, "from 0 to 3, got 4"),
        (4, {"reference": -1}, "from 0 to 3, got -1"),
    ],
)
def test_impossible_input_is_refused(views: int, options: dict, message: str) -> None:
    with pytest.raises(PairingError, match=message):
        make_pairs(views, WINDOW, **options)


graphs = st.tuples(
    st.integers(2, 40), st.sampled_from(SceneGraph), st.integers(1, 50), st.booleans(), st.integers(0, 1000)
)


@given(graphs)
def test_every_graph_is_simple_and_connected(case: tuple) -> None:
    views, graph, window, cyclic, seed = case
    pairs = make_pairs(views, graph, window=window, cyclic=cyclic, reference=seed % views, symmetric=False)
    undirected = [frozenset(p) for p in pairs]
    assert all(i != j and 0 <= i < views and 0 <= j < views for i, j in pairs)
    assert len(set(undirected)) == len(undirected)
    reached, frontier = {0}, [0]
    while frontier:
        here = frontier.pop()
        fresh = {i + j - here for i, j in pairs if here in (i, j)} - reached
        reached |= fresh
        frontier += fresh
    assert reached == set(range(views))


@given(graphs)
def test_symmetric_is_exactly_both_directions(case: tuple) -> None:
    views, graph, window, cyclic, seed = case
    options = {"window": window, "cyclic": cyclic, "reference": seed % views}
    one_way = make_pairs(views, graph, symmetric=False, **options)
    both = make_pairs(views, graph, **options)
    assert len(both) == 2 * len(one_way)
    assert set(both) == set(one_way) | {(j, i) for i, j in one_way}


@given(st.integers(2, 30), st.integers(1, 40))
def test_a_window_has_no_pair_further_apart(views: int, window: int) -> None:
    pairs = set(make_pairs(views, WINDOW, window=window, symmetric=False))
    assert pairs == {(i, j) for i in range(views) for j in range(i + 1, views) if j - i <= window}
    steps = {j - i for i, j in make_pairs(views, LOG, window=window, symmetric=False)}
    assert steps == {1 << k for k in range(window) if 1 << k < views}
