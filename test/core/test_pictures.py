"""Pictures of depth and confidence: what is known is coloured, near is red everywhere."""

import numpy as np
from matplotlib.image import imread

from dust3r_ros.evaluation.figure import DepthView, Reconstruction, draw_reconstruction
from dust3r_ros.mapping.cloud import PointCloud
from dust3r_ros.pictures import confidence_picture, depth_picture, shares, thumbnail


def ramp() -> np.ndarray:
    """Depth from 1 on the left to 5 on the right, unknown at the left border."""
    depth = np.tile(np.linspace(1, 5, 60, dtype=np.float32), (40, 1))
    depth[:, :5] = 0
    return depth


def test_depth_is_red_where_it_is_near_and_black_where_it_is_unknown():
    depth = ramp()
    depth[0, 30], depth[1, 30] = np.nan, np.inf
    picture = depth_picture(depth).astype(int)
    assert picture.shape == (40, 60, 3)
    assert (picture[:, :5] == 0).all()
    assert (picture[:2, 30] == 0).all()
    near, far = picture[20, 6], picture[20, -1]
    assert near[0] > near[2] + 50
    assert far[2] > far[0]


def test_the_figure_and_the_pictures_have_one_scale(tmp_path):
    what = Reconstruction(PointCloud.empty(), np.eye(4)[None], [DepthView("d", ramp())])
    draw_reconstruction(what, tmp_path / "figure.png")
    figure = (255 * imread(tmp_path / "figure.png")[..., :3]).astype(int)
    picture = depth_picture(ramp()).astype(int)
    for column in (10, 25, 40, 55):  # each colour of the picture is in the figure
        assert (np.abs(figure - picture[20, column]).max(axis=-1) <= 6).sum() > 200


def test_confidence_is_bright_where_it_is_sure():
    confidence = ramp()
    picture = confidence_picture(confidence).astype(int).sum(axis=-1)
    assert (picture[:, :5] == 0).all()
    assert picture[0, 6] < picture[0, 30] < picture[0, -1]
    assert confidence_picture(np.zeros((4, 5))).max() == 0


def test_a_few_wild_values_do_not_take_the_colours():
    values = np.linspace(0, 1, 1000).reshape(20, 50)
    values[0, 0] = 1e6
    level = shares(values, np.ones_like(values, bool))
    assert level[10, 0] > 0.4
    assert level[0, 0] == 1
    assert shares(values, np.zeros_like(values, bool)).max() == 0


def test_a_thumbnail_keeps_the_shape_and_never_grows():
    assert thumbnail(np.zeros((600, 300, 3), np.uint8), 100).shape == (100, 50, 3)
    small = np.zeros((60, 30, 3), np.uint8)
    assert thumbnail(small, 100) is small
