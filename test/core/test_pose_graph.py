"""The Sim(3) pose graph: derivatives, drift that is pulled straight, and wrong loops that do no harm."""

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from dust3r_ros.alignment.pose_graph import (
    GraphEdge,
    Similarities,
    _pack,
    edge_jacobians,
    edge_residuals,
    solve_pose_graph,
)
from dust3r_ros.geometry import Similarity


def random_similarity(rng, size=1.0):
    turn = Rotation.from_rotvec(rng.normal(0, 0.6 * size, 3)).as_matrix()
    return Similarity(float(np.exp(rng.normal(0, 0.3 * size))), turn, rng.normal(0, 2 * size, 3))


def circle(count, laps=2.0, radius=4.0):
    """Cameras that look outward along ``laps`` laps."""
    poses = []
    for k in range(count):
        a = 2 * np.pi * laps * k / count
        poses.append(
            Similarity(1.0, Rotation.from_euler("y", a).as_matrix(), radius * np.array([np.sin(a), 0, np.cos(a)]))
        )
    return poses


def measured(truth, i, j, rng=None, sigma=0.0, doubtful=False):
    relative = truth[i].inverse().compose(truth[j])
    if rng is not None:
        turn = Rotation.from_rotvec(rng.normal(0, sigma, 3)).as_matrix()
        noise = Similarity(float(np.exp(rng.normal(0, sigma))), turn, rng.normal(0, 3 * sigma, 3))
        relative = relative.compose(noise)
    return GraphEdge(i, j, relative, 3.0, max(sigma, 0.005), doubtful)


def chained(edges, count):
    """Where the nodes are by the edges from one to the next alone."""
    nodes = [Similarity.identity()]
    for k in range(1, count):
        nodes.append(nodes[-1].compose(edges[k - 1].relative))
    return nodes


def gap(nodes, truth):
    """RMS distance of centres, and the largest relative scale error, with the first node as the world."""
    world = truth[0].inverse()
    expected = [world.compose(t) for t in truth]
    centres = nodes.translation - np.array([e.translation for e in expected])
    scales = np.log(nodes.scale / np.array([e.scale for e in expected]))
    return float(np.sqrt((centres**2).sum(axis=1).mean())), float(np.abs(scales).max())


def test_jacobians_are_the_derivatives():
    rng = np.random.default_rng(0)
    nodes = Similarities.stack([random_similarity(rng) for _ in range(3)])
    edges = _pack(
        [GraphEdge(0, 1, random_similarity(rng), 2.0, 0.1), GraphEdge(2, 1, random_similarity(rng), 0.5, 0.2)]
    )
    _, error = edge_residuals(nodes, edges)
    jacobian = edge_jacobians(nodes, edges, error)
    for node in range(3):
        for axis in range(7):
            step = np.zeros((3, 7))
            step[node, axis] = 1e-6
            ahead, _ = edge_residuals(nodes.stepped(step), edges)
            behind, _ = edge_residuals(nodes.stepped(-step), edges)
            for e, (i, j) in enumerate(((0, 1), (2, 1))):
                expected = jacobian[e, :, axis] * ((node == i) - (node == j))
                np.testing.assert_allclose((ahead - behind)[e] / 2e-6, expected, atol=1e-6 * np.abs(jacobian).max())


def test_one_loop_pulls_the_drift_out_of_a_long_walk():
    rng = np.random.default_rng(1)
    truth = circle(120)
    steps = [measured(truth, k, k + 1, rng, 0.01) for k in range(119)]
    start = chained(steps, 120)
    loops = [measured(truth, k, k + 60, rng, 0.002, doubtful=True) for k in (0, 20, 40, 59)]
    before = Similarities.stack(start)
    solution = solve_pose_graph(before, np.arange(120), 0, [*steps, *loops])
    assert solution.believed.all()
    assert gap(solution.nodes, truth)[0] < 0.5 * gap(before, truth)[0]
    for loop in loops:
        closed = solution.nodes.single(loop.i).inverse().compose(solution.nodes.single(loop.j))
        assert np.linalg.norm(closed.translation - loop.relative.translation) < 0.1


def test_exact_measurements_are_a_fixed_point_and_the_first_node_stays():
    truth = circle(30, laps=1.0)
    edges = [measured(truth, k, k + 1) for k in range(29)] + [measured(truth, 0, 29, doubtful=True)]
    start = Similarities.stack(chained(edges, 30))
    solution = solve_pose_graph(start, np.arange(30), 0, edges)
    np.testing.assert_allclose(solution.nodes.translation, start.translation, atol=1e-8)
    np.testing.assert_allclose(solution.weights, 1.0)


@pytest.mark.parametrize("wrong", [1, 3])
def test_wrong_loops_lose_their_weight_and_do_no_harm(wrong):
    rng = np.random.default_rng(2)
    truth = circle(100)
    steps = [measured(truth, k, k + 1, rng, 0.005) for k in range(99)]
    good = [measured(truth, k, k + 50, rng, 0.005, doubtful=True) for k in (0, 10, 25, 40, 49)]
    planted = [
        GraphEdge(3 + 5 * k, 70 + 4 * k, Similarity(1.0, np.eye(3), np.zeros(3)), 3.0, 0.005, doubtful=True)
        for k in range(wrong)
    ]
    start = Similarities.stack(chained(steps, 100))
    clean = solve_pose_graph(start, np.arange(100), 0, [*steps, *good])
    spoilt = solve_pose_graph(start, np.arange(100), 0, [*steps, *good, *planted])
    assert not spoilt.believed[-wrong:].any()
    assert spoilt.believed[:-wrong].all()
    assert gap(spoilt.nodes, truth)[0] < 1.2 * gap(clean.nodes, truth)[0] + 1e-3


def test_a_lone_wrong_loop_far_beyond_the_drift_is_not_believed():
    rng = np.random.default_rng(3)
    truth = circle(60, laps=1.0)
    steps = [measured(truth, k, k + 1, rng, 0.003) for k in range(59)]
    wrong = GraphEdge(5, 35, Similarity(1.0, np.eye(3), np.zeros(3)), 3.0, 0.01, doubtful=True)
    start = Similarities.stack(chained(steps, 60))
    solution = solve_pose_graph(start, np.arange(60), 0, [*steps, wrong])
    assert not solution.believed[-1]
    assert np.abs(solution.nodes.translation - start.translation).max() < 0.05


def test_a_body_moves_as_one():
    rng = np.random.default_rng(4)
    truth = circle(40, laps=1.0)
    steps = [measured(truth, k, k + 1, rng, 0.01) for k in range(39)]
    body = np.minimum(np.arange(40), 36)  # the last four
    start = Similarities.stack(chained(steps, 40))
    loop = measured(truth, 0, 39, doubtful=True)
    solution = solve_pose_graph(start, body, 0, [*steps, loop])
    change = solution.nodes.compose(start.inverse())
    assert np.abs(change.translation[36]).max() > 1e-3
    np.testing.assert_allclose(change.translation[36:], change.translation[36:37].repeat(4, axis=0), atol=1e-9)
    np.testing.assert_allclose(change.scale[36:], change.scale[36], atol=1e-12)
