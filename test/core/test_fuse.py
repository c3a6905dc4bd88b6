"""The fused map, against direct computation on synthetic views."""

import numpy as np
import pytest
from scipy.spatial import cKDTree
from scipy.spatial.transform import Rotation

from dust3r_ros.config import MapConfig
from dust3r_ros.data import Intrinsics, ViewEstimate
from dust3r_ros.geometry import Similarity, backproject, make_pose, transform_points
from dust3r_ros.mapping.cloud import PointCloud
from dust3r_ros.mapping.fuse import FusedMap, usable_pixels, view_cloud, view_points
from dust3r_ros.mapping.voxels import VoxelGrid, renumbered
from dust3r_ros.options import make_config

HEIGHT, WIDTH = 48, 64
ALL = make_config(MapConfig, {"min_confidence": 0.0, "max_depth_step": 0.0})


def wall(distance: float = 2.0, *, x: float = 0.0, confidence: float | np.ndarray = 1.0, **changes) -> ViewEstimate:
    """A camera at (x, 0, 0) that looks at a wall across the z axis."""
    fields = {
        "camera_to_world": make_pose(np.eye(3), np.array([x, 0.0, 0.0])),
        "depth": np.full((HEIGHT, WIDTH), distance, np.float32),
        "confidence": np.broadcast_to(np.float32(confidence), (HEIGHT, WIDTH)).copy(),
        "intrinsics": Intrinsics.from_focal(60.0, WIDTH, HEIGHT),
    }
    return ViewEstimate(**{**fields, **changes})


def flat(colour: tuple[int, int, int] = (10, 20, 30)) -> np.ndarray:
    return np.full((HEIGHT, WIDTH, 3), colour, np.uint8)


def random_cloud(count: int, seed: int = 0, spread: float = 1.0) -> PointCloud:
    rng = np.random.default_rng(seed)
    return PointCloud(
        rng.uniform(-spread, spread, (count, 3)).astype(np.float32),
        rng.integers(0, 256, (count, 3), dtype=np.uint8),
        rng.uniform(0.5, 5.0, count).astype(np.float32),
    )


def sorted_rows(cloud: PointCloud) -> np.ndarray:
    table = np.column_stack([cloud.points, cloud.colours, cloud.confidence])
    return table[np.lexsort(np.floor(cloud.points / 0.1).T)]


def brute_force(cloud: PointCloud, edge: float) -> PointCloud:
    """Voxel means by a dictionary."""
    cells: dict[tuple[int, ...], list[int]] = {}
    for row, cell in enumerate(np.floor(cloud.points.astype(np.float64) / edge).astype(int)):
        cells.setdefault(tuple(cell), []).append(row)
    points, colours, confidence = [], [], []
    for rows in cells.values():
        w = cloud.confidence[rows].astype(np.float64)
        points.append(w @ cloud.points[rows] / w.sum())
        colours.append(w @ cloud.colours[rows] / w.sum())
        confidence.append(w.mean())
    return PointCloud(
        np.array(points, np.float32), np.round(np.array(colours)).astype(np.uint8), np.array(confidence, np.float32)
    )


def test_voxels_hold_the_confidence_weighted_mean():
    cloud = random_cloud(5000)
    grid = VoxelGrid(0.1)
    grid.add(cloud)
    got, expected = sorted_rows(grid.cloud()), sorted_rows(brute_force(cloud, 0.1))
    np.testing.assert_allclose(got[:, :3], expected[:, :3], atol=1e-6)
    np.testing.assert_allclose(got[:, 3:6], expected[:, 3:6], atol=1)
    np.testing.assert_allclose(got[:, 6], expected[:, 6], rtol=1e-5)


def test_adding_in_parts_is_adding_at_once_even_while_the_table_grows():
    cloud = random_cloud(30000)
    grid = VoxelGrid(0.03)
    for start in range(0, 30000, 1000):
        grid.add(cloud.take(slice(start, start + 1000)))
    at_once = VoxelGrid(0.03)
    at_once.add(cloud)
    assert grid.count() == at_once.count() == len(grid.cloud())
    np.testing.assert_allclose(np.sort(grid.cloud().points, axis=0), np.sort(at_once.cloud().points, axis=0), atol=1e-6)


def test_every_key_is_found_again_when_all_collide():
    """Points along one axis share the low bits that a bad hash would use."""
    z = np.arange(20000, dtype=np.float32) - 10000
    points = np.stack([np.zeros_like(z), np.zeros_like(z), z + 0.5], axis=1)
    cloud = PointCloud(points, np.zeros((20000, 3), np.uint8), np.ones(20000, np.float32))
    grid = VoxelGrid(1.0)
    grid.add(cloud)
    grid.add(cloud)
    assert grid.count() == 20000
    np.testing.assert_array_equal(np.sort(grid.cloud().points[:, 2]), points[:, 2])


def test_subtracting_restores_what_was_there():
    grid = VoxelGrid(0.1)
    grid.add(random_cloud(3000, seed=1))
    before = sorted_rows(grid.cloud())
    contribution = grid.add(random_cloud(3000, seed=2))
    assert grid.count() > len(before)
    grid.subtract(contribution)
    np.testing.assert_allclose(sorted_rows(grid.cloud()), before, atol=1e-3)


def test_a_voxel_whose_sums_cancelled_is_still_a_point_in_it():
    def point(confidence: float) -> PointCloud:
        return PointCloud(np.full((1, 3), 0.7, np.float32), np.full((1, 3), 9, np.uint8), np.float32([confidence]))

    grid = VoxelGrid(1.0)
    sure = grid.add(point(1e9))
    grid.add(point(1.0))
    grid.subtract(sure)
    cloud = grid.cloud()
    assert len(cloud) == 1
    assert ((cloud.points >= 0) & (cloud.points <= 1)).all()
    assert cloud.confidence[0] > 0


def test_points_beyond_the_range_are_left_out_not_wrapped():
    points = np.array([[1e9, 0, 0], [0, -1e9, 0], [0.5, 0.5, 0.5]], np.float32)
    grid = VoxelGrid(1.0)
    grid.add(PointCloud(points, np.zeros((3, 3), np.uint8), np.ones(3, np.float32)))
    np.testing.assert_array_equal(grid.cloud().points, [[0.5, 0.5, 0.5]])


def test_shrinking_keeps_the_voxels_seen_most_and_the_newest_of_the_rest():
    def line(start: int, stop: int) -> PointCloud:
        x = np.arange(start, stop, dtype=np.float32) + 0.5
        points = np.stack([x, x * 0 + 0.5, x * 0 + 0.5], axis=1)
        return PointCloud(points, np.zeros((len(x), 3), np.uint8), np.ones(len(x), np.float32))

    grid = VoxelGrid(1.0)
    grid.add(line(0, 10))
    grid.add(line(0, 4))
    newest = grid.add(line(20, 26))
    numbers = grid.shrink(8)
    np.testing.assert_array_equal(np.sort(grid.cloud().points[:, 0]), [0.5, 1.5, 2.5, 3.5, 22.5, 23.5, 24.5, 25.5])
    grid.subtract(renumbered(newest, numbers))
    np.testing.assert_array_equal(np.sort(grid.cloud().points[:, 0]), [0.5, 1.5, 2.5, 3.5])


def test_a_cloud_taken_between_changes_is_the_one_taken_at_the_end():
    """Only voxels that changed since the last cloud are computed: nothing may be forgotten, however they changed."""

    def change(read: bool) -> list[PointCloud]:
        grid = VoxelGrid(0.1)
        clouds = []
        turned = Similarity(1.1, np.eye(3), np.array([0.3, 0.0, 0.0]))
        kept = [grid.add(random_cloud(700, seed=k, spread=0.5 + 0.3 * k)) for k in range(3)]
        steps = [
            lambda: grid.subtract(kept[0]),
            lambda: kept.append(grid.add(random_cloud(3000, seed=7, spread=4.0))),  # the arrays grow
            lambda: kept.append(grid.move(kept[1], turned)),
            lambda: [renumbered(c, grid.shrink(1500)) for c in kept[2:3]],
            lambda: grid.add(random_cloud(50, seed=8)),
        ]
        for step in steps:
            if read:
                grid.cloud()
            step()
            clouds.append(grid.cloud() if read else PointCloud.empty())
        clouds.append(grid.cloud())
        return clouds

    read, unread = change(read=True), change(read=False)
    for name in ("points", "colours", "confidence"):
        np.testing.assert_array_equal(getattr(read[-1], name), getattr(unread[-1], name))
    counts = [len(cloud) for cloud in read]
    assert counts[1] > counts[0] > 0
    assert counts[3] == 1500
    assert counts[4] == counts[5] > 1400


def test_a_cloud_is_the_readers_own():
    grid = VoxelGrid(0.1)
    grid.add(random_cloud(100))
    first = grid.cloud()
    before = first.points.copy()
    grid.add(random_cloud(100, seed=1))
    assert len(grid.cloud()) > len(first)
    np.testing.assert_array_equal(first.points, before)


def test_points_of_a_view_are_its_depth_in_the_world():
    rng = np.random.default_rng(0)
    pose = make_pose(np.array([[0.0, 0, 1], [0, 1, 0], [-1, 0, 0]]), np.array([1.0, 2, 3]))
    view = wall(depth=rng.uniform(1, 3, (HEIGHT, WIDTH)).astype(np.float32), camera_to_world=pose)
    cloud = view_cloud(view, flat(), ALL)
    expected = transform_points(pose, backproject(view.depth, view.intrinsics)).reshape(-1, 3)
    np.testing.assert_allclose(cloud.points, expected, atol=1e-5)


def test_pixels_without_confidence_or_depth_give_no_point():
    confidence = np.ones((HEIGHT, WIDTH), np.float32)
    confidence[:5] = 0
    depth = np.full((HEIGHT, WIDTH), 2.0, np.float32)
    depth[5:10] = 0
    depth[10, 0] = np.nan
    kept = usable_pixels(wall(confidence=confidence, depth=depth), 0.0)
    assert kept.sum() == (HEIGHT - 10) * WIDTH - 1
    assert not kept[:10].any()


def test_the_quantile_is_taken_over_the_pixels_that_have_confidence():
    confidence = np.zeros((HEIGHT, WIDTH), np.float32)
    confidence[:40] = np.linspace(1, 10, 40)[:, None]
    kept = usable_pixels(wall(confidence=confidence), 0.25)
    np.testing.assert_array_equal(np.flatnonzero(kept.any(axis=1)), np.arange(10, 40))


def test_points_at_a_depth_edge_are_left_out():
    depth = np.full((HEIGHT, WIDTH), 2.0, np.float32)
    depth[:, 32:] = 3.0
    kept = usable_pixels(wall(depth=depth), 0.0, max_depth_step=0.1)
    np.testing.assert_array_equal(np.flatnonzero(~kept.all(axis=0)), [31, 32])


def test_unknown_depth_is_no_depth_edge():
    depth = np.full((HEIGHT, WIDTH), 2.0, np.float32)
    depth[:30, :40] = 0
    kept = usable_pixels(wall(depth=depth), 0.0, max_depth_step=0.1)
    np.testing.assert_array_equal(kept, depth > 0)


def test_an_unregistered_view_adds_nothing():
    fused = FusedMap(ALL)
    fused.add(0, wall(registered=False), flat())
    assert len(fused.cloud()) == 0


def test_the_voxel_edge_comes_from_the_first_keyframe_with_points():
    fused = FusedMap(make_config(MapConfig, {"voxel_size": 0.05}))
    fused.add(0, wall(confidence=0.0), flat())
    assert fused.voxel_edge == 0
    fused.add(1, wall(4.0), flat())
    fused.add(2, wall(8.0), flat())
    assert fused.voxel_edge == pytest.approx(0.2)


def test_pixels_without_depth_do_not_count_for_the_voxel_edge():
    depth = np.full((HEIGHT, WIDTH), 4.0, np.float32)
    depth[: HEIGHT * 2 // 3] = 0
    depth[-1] = np.nan
    fused = FusedMap(make_config(MapConfig, {"voxel_size": 0.05}))
    fused.add(0, wall(depth=depth), flat())
    assert fused.voxel_edge == pytest.approx(0.2)


def test_two_views_of_one_wall_share_voxels_and_mix_colours():
    fused = FusedMap(make_config(MapConfig, {"min_confidence": 0.0, "voxel_size": 0.02}))
    fused.add(0, wall(confidence=1.0), flat((100, 0, 0)))
    alone = len(fused.cloud())
    fused.add(1, wall(confidence=3.0), flat((200, 0, 0)))
    cloud = fused.cloud()
    assert len(cloud) == alone
    np.testing.assert_array_equal(cloud.colours, np.broadcast_to([175, 0, 0], cloud.colours.shape))
    np.testing.assert_allclose(cloud.confidence, 2.0)


@pytest.mark.parametrize("voxel_size", [0.0, 0.02])
def test_a_moved_keyframe_leaves_nothing_behind(voxel_size):
    config = make_config(MapConfig, {"min_confidence": 0.0, "voxel_size": voxel_size})
    fused = FusedMap(config)
    fused.add(0, wall(2.0), flat())
    fused.add(1, wall(5.0), flat())
    assert fused.replace(1, wall(3.0))
    fresh = FusedMap(config)
    fresh.add(0, wall(2.0), flat())
    fresh.add(1, wall(3.0), flat())
    np.testing.assert_allclose(np.sort(fused.cloud().points, axis=0), np.sort(fresh.cloud().points, axis=0), atol=1e-5)
    assert not (np.abs(fused.cloud().points[:, 2] - 5.0) < 0.5).any()


def test_a_keyframe_that_hardly_moved_is_not_fused_anew():
    fused = FusedMap(ALL)
    fused.add(0, wall(2.0), flat())
    assert not fused.replace(0, wall(2.0 + 0.1 * fused.voxel_edge))
    assert fused.replace(0, wall(2.0 + 0.9 * fused.voxel_edge))


def test_small_moves_add_up():
    fused = FusedMap(ALL)
    fused.add(0, wall(2.0), flat())
    edge = fused.voxel_edge
    moved = [fused.replace(0, wall(2.0 + 0.1 * step * edge)) for step in range(1, 11)]
    assert 2 <= sum(moved) <= 4


def test_the_map_is_bounded_and_old_keyframes_freeze():
    config = make_config(MapConfig, {"min_confidence": 0.0, "voxel_size": 0.005, "max_points": 5000})
    fused = FusedMap(config)
    for index in range(80):
        fused.add(index, wall(2.0, x=3.0 * index), flat())
        assert len(fused.cloud()) <= 5000
    assert (fused.cloud().points[:, 0] > 3.0 * 79 - 1).sum() > 1000
    assert not fused.replace(0, wall(9.0))
    assert fused.replace(79, wall(9.0, x=3.0 * 79))
    assert len(fused.cloud()) <= 5000


def test_every_point_is_kept_without_voxels_up_to_the_bound():
    config = make_config(MapConfig, {"min_confidence": 0.0, "voxel_size": 0.0, "max_points": 8000})
    fused = FusedMap(config)
    for index in range(2):
        fused.add(index, wall(2.0 + index), flat())
    assert len(fused.cloud()) == 2 * HEIGHT * WIDTH
    for index in range(2, 12):
        fused.add(index, wall(2.0 + index), flat())
    cloud = fused.cloud()
    assert len(cloud) == 8000
    assert cloud.points[:, 2].max() == 13.0


def test_a_map_made_without_voxels_keeps_its_points_where_there_are_voxels():
    every_point = FusedMap(make_config(MapConfig, {"min_confidence": 0.0, "voxel_size": 0.0}))
    for index in range(3):
        every_point.add(index, wall(x=5.0 * index), flat())
    old = every_point.cloud()
    fused = FusedMap(make_config(MapConfig, {"min_confidence": 0.0, "max_points": 13_000}))
    fused.restore(*every_point.state(), 2)
    fused.add(3, wall(x=50.0), flat())
    voxels = len(fused) - len(old)
    assert 0 < voxels < 13_000 - len(old)
    np.testing.assert_array_equal(fused.cloud().points[: len(old)], old.points)
    again = FusedMap(fused.config)
    again.restore(*fused.state(), 3)
    assert len(again) == len(again.cloud()) == len(old) + voxels
    assert again.voxel_edge == fused.voxel_edge
    again.add(4, wall(x=80.0), flat())  # too many: the oldest go, and no more than that
    assert len(again) == 13_000
    left = 13_000 - again._grid.count()
    np.testing.assert_array_equal(again.cloud().points[:left], old.points[len(old) - left :])


def test_clear_forgets_everything():
    fused = FusedMap(ALL)
    fused.add(3, wall(), flat())
    fused.clear()
    assert len(fused.cloud()) == 0
    fused.add(0, wall(), flat())
    assert len(fused.cloud()) > 0


def test_misuse_is_refused():
    fused = FusedMap(ALL)
    with pytest.raises(ValueError, match=r"pixels must be \(48, 64, 3\)"):
        fused.add(0, wall(), flat()[:10])
    fused.add(1, wall(), flat())
    with pytest.raises(ValueError, match="index must be larger than 1"):
        fused.add(1, wall(), flat())
    with pytest.raises(ValueError, match="edge must be positive"):
        VoxelGrid(0.0)
    with pytest.raises(ValueError, match=r"must be \(N, 3\)"):
        PointCloud(np.zeros((2, 3), np.float32), np.zeros((3, 3), np.uint8), np.zeros(2, np.float32))


@pytest.mark.parametrize("voxel_size", [0.0, 0.05])
def test_a_loop_closure_takes_a_keyframes_points_along(voxel_size):
    rng = np.random.default_rng(0)
    view = wall(2.0, depth=rng.uniform(1.5, 2.5, (HEIGHT, WIDTH)).astype(np.float32))
    change = Similarity(1.2, Rotation.from_rotvec([0.1, 0.4, 0]).as_matrix(), np.array([1.0, -2, 0.5]))
    config = make_config(MapConfig, {"min_confidence": 0.0, "max_depth_step": 0.0, "voxel_size": voxel_size})
    fused = FusedMap(config)
    fused.add(0, view, flat((200, 10, 20)))
    fused.add(1, wall(8.0, confidence=3.0), flat((0, 0, 250)))
    before = fused.cloud()
    assert fused.move(0, change)
    cloud = fused.cloud()
    red = cloud.colours[:, 0] > 100
    points = change.apply(view_points(view, np.ones((HEIGHT, WIDTH), bool)))
    distance, _ = cKDTree(points).query(cloud.points[red])
    assert distance.max() < 1.2 * max(fused.voxel_edge, 1e-5) * 1.8  # a voxel's diagonal
    back, _ = cKDTree(cloud.points[red]).query(points)
    assert back.max() < 1.2 * max(fused.voxel_edge, 1e-5) * 1.8
    blue = before.colours[:, 2] > 100
    np.testing.assert_array_equal(np.sort(cloud.points[~red], axis=0), np.sort(before.points[blue], axis=0))
    assert np.median(cloud.confidence[red]) == pytest.approx(1.0, rel=1e-3)


def test_moving_there_and_back_changes_little_and_keeps_all_weight():
    cloud = random_cloud(3000)
    grid = VoxelGrid(0.1)
    added = grid.add(cloud)
    change = Similarity(1.0, Rotation.from_rotvec([0, 0.7, 0]).as_matrix(), np.array([5.0, 0, 0]))
    moved = grid.move(added, change)
    assert moved.sums[:, 0].sum() == pytest.approx(cloud.confidence.sum(), rel=1e-5)
    again = grid.move(moved, change.inverse())
    assert again.sums[:, 7].sum() == pytest.approx(len(cloud))
    distance, _ = cKDTree(cloud.points).query(grid.cloud().points)
    assert np.median(distance) < 0.1
    grid.subtract(again)
    assert grid.count() == 0


def test_what_hardly_moves_or_is_too_old_stays():
    fused = FusedMap(ALL)
    fused.add(0, wall(), flat())
    before = fused.cloud()
    assert not fused.move(0, Similarity(1.0, np.eye(3), np.array([1e-4, 0, 0])))
    assert not fused.move(7, Similarity(1.0, np.eye(3), np.ones(3)))
    np.testing.assert_array_equal(fused.cloud().points, before.points)


def test_small_changes_of_the_world_add_up():
    fused = FusedMap(ALL)
    fused.add(0, wall(), flat())
    step = 0.2 * fused.voxel_edge
    before = fused.cloud().points.mean(axis=0)
    moved = [fused.move(0, Similarity(1.0, np.eye(3), np.array([step, 0, 0]))) for _ in range(50)]
    assert 0 < sum(moved) < 50
    shift = fused.cloud().points.mean(axis=0) - before
    np.testing.assert_allclose(shift, [50 * step, 0, 0], atol=fused.voxel_edge)


def test_what_is_too_old_to_follow_a_loop_closure_is_said_once(caplog):
    fused = FusedMap(make_config(MapConfig, {"min_confidence": 0.0, "max_depth_step": 0.0, "max_points": 1000}))
    for k in range(6):
        fused.add(k, wall(x=0.1 * k), flat())
    left = 6 - len(fused._movable)
    assert left >= 2
    change = Similarity(1.0, np.eye(3), np.ones(3))
    fused.follow({0: Similarity.identity(), **dict.fromkeys(range(1, 6), change)})
    assert caplog.text.count("too old") == 1
    assert f"{left - 1} keyframes are too old for their points to follow" in caplog.text
    caplog.clear()
    fused.follow({5: change})
    assert not caplog.records
