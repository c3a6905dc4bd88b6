from pathlib import Path

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from dust3r_ros.errors import ExportError
from dust3r_ros.evaluation.figure import DepthView, Reconstruction, draw_reconstruction, upright_axes
from dust3r_ros.geometry import make_pose
from dust3r_ros.images import load_image
from dust3r_ros.mapping.cloud import PointCloud


def cloud(count: int = 3000) -> PointCloud:
    """A floor of one colour at y = 1.5 (y is down), with a few stray points."""
    rng = np.random.default_rng(0)
    points = np.column_stack([rng.uniform(-2, 2, count), np.full(count, 1.5), rng.uniform(0, 4, count)])
    points[::20] += rng.normal(size=points[::20].shape)
    return PointCloud(
        points.astype(np.float32), np.full((count, 3), (30, 200, 90), np.uint8), np.ones(count, np.float32)
    )


def poses(tilt_deg: float = 0.0, count: int = 6) -> np.ndarray:
    tilt = Rotation.from_euler("x", tilt_deg, degrees=True)
    turned = [(Rotation.from_euler("y", 12 * i, degrees=True) * tilt).as_matrix() for i in range(count)]
    return np.stack([make_pose(r, np.array([0.2 * i, 0.0, 0.1 * i])) for i, r in enumerate(turned)])


def test_the_picture_shows_the_cloud_the_paths_and_the_depths(tmp_path: Path) -> None:
    depth = np.linspace(1, 3, 48 * 64).reshape(48, 64)
    depth[:10], depth[10:12] = 0, np.nan
    truth = poses()
    truth[:, 0, 3] += 0.5
    what = Reconstruction(cloud(), poses(), [DepthView("first", depth), DepthView("last", depth)], truth, "m")
    draw_reconstruction(what, tmp_path / "a" / "picture.png", title="a title", caption="a caption")
    pixels = load_image(tmp_path / "a" / "picture.png").astype(int)
    assert pixels.shape[1] == 1600
    for colour in ((255, 159, 28), (76, 201, 240), (56, 206, 109)):  # path, truth, the brightened floor
        assert (np.abs(pixels - colour).max(axis=2) < 12).sum() > 100
    assert [p.name for p in (tmp_path / "a").iterdir()] == ["picture.png"]


def test_a_cloud_without_points_and_one_pose_can_be_drawn(tmp_path: Path) -> None:
    draw_reconstruction(Reconstruction(PointCloud.empty(), poses(count=1)), tmp_path / "picture.png")
    assert load_image(tmp_path / "picture.png").shape[1] == 1600


def test_depths_without_a_known_pixel_can_be_drawn(tmp_path: Path) -> None:
    what = Reconstruction(cloud(), poses(), [DepthView("nothing", np.zeros((8, 8)))])
    draw_reconstruction(what, tmp_path / "picture.png")


def test_without_poses_there_is_no_picture(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="at least one pose"):
        draw_reconstruction(Reconstruction(cloud(), np.zeros((0, 4, 4))), tmp_path / "picture.png")


def test_a_file_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ExportError, match=r"picture.png"):
        draw_reconstruction(Reconstruction(cloud(), poses()), tmp_path / "file" / "picture.png")


@pytest.mark.parametrize("tilt_deg", [0.0, -25.0, 40.0])
def test_up_is_found_for_cameras_that_look_up_or_down(tilt_deg: float) -> None:
    axes = upright_axes(poses(tilt_deg), cloud().points)
    np.testing.assert_allclose(axes @ axes.T, np.eye(3), atol=1e-12)
    assert np.linalg.det(axes) == pytest.approx(1)
    np.testing.assert_allclose(axes, [[1, 0, 0], [0, 0, 1], [0, -1, 0]], atol=0.03)


def test_the_floor_levels_the_view_of_a_rolled_camera() -> None:
    roll = np.eye(4)
    roll[:3, :3] = Rotation.from_euler("z", 9, degrees=True).as_matrix()
    rolled = poses() @ roll
    assert upright_axes(rolled)[2] @ [0, -1, 0] < np.cos(np.radians(7))
    assert upright_axes(rolled, cloud().points)[2] @ [0, -1, 0] > np.cos(np.radians(1))


def test_a_camera_that_looks_straight_down_has_a_forward() -> None:
    down = make_pose(Rotation.from_euler("x", -90, degrees=True).as_matrix(), np.zeros(3))[None]
    axes = upright_axes(down)
    np.testing.assert_allclose(axes @ axes.T, np.eye(3), atol=1e-12)
