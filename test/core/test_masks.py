"""Clean-up on views whose truth is known: what is wrong goes, what is right stays."""

from dataclasses import replace

import numpy as np
import pytest
from oracle import HEIGHT, INTRINSICS, WIDTH, depth_of, image_of, path

from dust3r_ros.config import CleanConfig, MapConfig
from dust3r_ros.data import ImageTransform, PosedView, PreparedImage, ViewEstimate
from dust3r_ros.mapping.cloud import PointCloud
from dust3r_ros.mapping.masks import clean_views, consistent_pixels, sky_mask, without_outliers

KEEP_ALL = MapConfig(min_confidence=0.0, max_depth_step=0.0)
WHOLE = np.ones((HEIGHT, WIDTH), bool)
BLOB = (slice(10, 30), slice(20, 40))


def true_views(count: int = 5) -> list[ViewEstimate]:
    confidence = np.full((HEIGHT, WIDTH), 3.0, np.float32)
    return [ViewEstimate(p, depth_of(p).astype(np.float32), confidence, INTRINSICS) for p in path(count)]


def with_blob(view: ViewEstimate, factor: float, confidence: float = 3.0) -> ViewEstimate:
    depth, conf = view.depth.copy(), view.confidence.copy()
    depth[BLOB] *= factor
    conf[BLOB] = confidence
    return replace(view, depth=depth, confidence=conf)


def posed(view: ViewEstimate, number: int = 0) -> PosedView:
    transform = ImageTransform(1, 1, 0, 0, WIDTH, HEIGHT, WIDTH, HEIGHT)
    pixels = PreparedImage(image_of(number, view.camera_to_world), transform)
    return PosedView(number, str(number), number, view.camera_to_world, INTRINSICS, view, pixels)


def test_true_views_are_consistent():
    for kept in consistent_pixels(true_views(), [WHOLE] * 5, 0.02):
        assert kept.all()


def test_what_floats_in_front_of_what_others_see_goes():
    views = true_views()
    views[2] = with_blob(views[2], 0.6)
    kept = consistent_pixels(views, [WHOLE] * 5, 0.05)
    assert not kept[2][BLOB].any()
    kept[2][BLOB] = True
    assert all(mask.all() for mask in kept)  # and nothing else: least of all the wall that the blob hides


def test_what_lies_behind_is_hidden_and_stays():
    views = true_views()
    views[2] = with_blob(views[2], 1.5)
    kept = consistent_pixels(views, [WHOLE] * 5, 0.05)
    assert kept[2][BLOB].all()


def test_what_others_agree_with_outweighs_one_view_that_sees_through_it():
    """Two views see a thing in front of the wall; a third, unsure one sees the wall alone."""
    views = true_views(3)
    views = [replace(view, camera_to_world=views[0].camera_to_world, depth=views[0].depth) for view in views]
    views = [with_blob(views[0], 0.7), with_blob(views[1], 0.7), views[2]]
    kept = consistent_pixels(views, [WHOLE] * 3, 0.05)
    assert kept[0][BLOB].all()
    assert kept[1][BLOB].all()
    sure = replace(views[2], confidence=np.full((HEIGHT, WIDTH), 10.0, np.float32))
    kept = consistent_pixels([*views[:2], sure], [WHOLE] * 3, 0.05)
    assert not kept[0][BLOB].any()


def test_each_step_says_what_it_took():
    views = [posed(v, k) for k, v in enumerate(true_views())]
    views[2] = posed(with_blob(views[2].estimate, 0.6), 2)
    views[1] = posed(with_blob(views[1].estimate, 1.0, confidence=0.5), 1)
    found = clean_views(views, KEEP_ALL, CleanConfig(min_confidence=1.0, consistency=0.05))
    assert [count for _, count in found.removed] == [0, 400, 400]
    assert not found.masks[1][BLOB].any()
    assert not found.masks[2][BLOB].any()
    assert clean_views(views, KEEP_ALL, CleanConfig()).removed[0][1] == 0


def landscape(kind: str) -> tuple[np.ndarray, np.ndarray]:
    """A skyline at half height under a sky of some kind, and a depth in which the sky is far."""
    rng = np.random.default_rng(0)
    image = rng.integers(20, 160, (120, 160, 3)).astype(np.uint8)
    sky = {"blue": (90, 140, 230), "overcast": (225, 228, 230)}[kind]
    image[:60] = np.clip(np.array(sky) + rng.normal(0, 1, (60, 160, 3)), 0, 255).astype(np.uint8)
    depth = np.full((120, 160), 3.0, np.float32)
    depth[:60] = 50.0
    return image, depth


@pytest.mark.parametrize("kind", ["blue", "overcast"])
def test_sky_is_found_to_the_skyline(kind):
    image, depth = landscape(kind)
    sky = sky_mask(image, depth)
    assert sky[:59].mean() > 0.99
    assert sky[62:].mean() < 0.01
    assert sky_mask(image, np.zeros_like(depth))[:59].mean() > 0.99  # depth that is not known does not speak against it


def test_a_white_ceiling_and_a_blue_lake_are_no_sky():
    image, depth = landscape("overcast")
    depth[:60] = 2.0  # nearer than the rest: a ceiling
    assert not sky_mask(image, depth).any()
    image, depth = landscape("blue")
    assert not sky_mask(image[::-1].copy(), depth[::-1].copy())[:60].any()  # at the bottom: water


def test_stray_points_go_and_the_surface_stays():
    rng = np.random.default_rng(1)
    surface = np.column_stack([rng.uniform(-1, 1, (3000, 2)), np.zeros(3000)])
    stray = rng.uniform(2, 5, (20, 3))
    points = np.vstack([surface, stray]).astype(np.float32)
    cloud = PointCloud(points, np.zeros(points.shape, np.uint8), np.ones(len(points), np.float32))
    left = without_outliers(cloud, 2.0)
    assert left.points.max() < 2
    assert len(left) > 2900
    assert len(without_outliers(cloud.take(slice(0, 10)), 2.0)) == 10


def test_outliers_are_those_open3d_finds():
    try:
        import open3d
    except ImportError as error:
        pytest.skip(f"Open3D cannot be loaded: {error}")
    rng = np.random.default_rng(2)
    points = rng.standard_t(3, (2000, 3)).astype(np.float32)
    cloud = PointCloud(points, np.zeros(points.shape, np.uint8), np.ones(len(points), np.float32))
    theirs = open3d.geometry.PointCloud(open3d.utility.Vector3dVector(points.astype(np.float64)))
    _, kept = theirs.remove_statistical_outlier(nb_neighbors=17, std_ratio=2.0)  # theirs counts the point itself
    ours = without_outliers(cloud, 2.0)
    assert abs(len(ours) - len(kept)) <= 0.01 * len(points)
