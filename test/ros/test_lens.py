"""Distortion is undone: against a rendered scene that is seen through the lens exactly."""

import cv2
import numpy as np
import pytest
from sensor_msgs.msg import CameraInfo

from dust3r_ros.errors import RosError
from dust3r_ros.ros.lens import lens_of

WIDTH, HEIGHT, FOCAL = 320, 240, 240.0
K = np.array([[FOCAL, 0.0, 159.5], [0.0, FOCAL, 119.5], [0.0, 0.0, 1.0]])
MODELS = {
    "plumb_bob": [-0.25, 0.06, 0.001, -0.001, 0.0],
    "rational_polynomial": [-0.2, 0.05, 0.0, 0.0, 0.0, 0.01, 0.0, 0.0],
    "equidistant": [-0.05, 0.01, 0.0, 0.0],
}


def info(model: str, coefficients: list[float], **changes) -> CameraInfo:
    return CameraInfo(
        width=WIDTH, height=HEIGHT, k=K.ravel(), d=coefficients, distortion_model=model, **changes
    )  # fmt: skip


def wall(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """The brightness of a smooth pattern on the plane z = 1."""
    return 127 + 60 * np.sin(9 * x) + 60 * np.cos(11 * y)


def seen(model: str, coefficients: list[float]) -> np.ndarray:
    """The wall through the lens: each pixel's ray by OpenCV's inverse of the model."""
    u, v = np.meshgrid(np.arange(WIDTH, dtype=np.float64), np.arange(HEIGHT, dtype=np.float64))
    pixels = np.stack([u, v], axis=-1).reshape(-1, 1, 2)
    undo = cv2.fisheye.undistortPoints if model == "equidistant" else cv2.undistortPoints
    rays = np.asarray(undo(pixels, K, np.array(coefficients))).reshape(HEIGHT, WIDTH, 2)
    return np.repeat(wall(rays[..., 0], rays[..., 1])[..., None], 3, axis=2).astype(np.uint8)


@pytest.mark.parametrize("model", MODELS)
def test_what_comes_out_is_what_a_pinhole_of_those_intrinsics_sees(model):
    lens = lens_of(info(model, MODELS[model]), rectified=False)
    undone = lens.undistorted(seen(model, MODELS[model]))[..., 0].astype(float)
    k = lens.intrinsics
    x = (np.arange(WIDTH) + 0.5 - k.cx) / k.fx
    y = (np.arange(HEIGHT) + 0.5 - k.cy) / k.fy
    truth = wall(*np.meshgrid(x, y))
    inner = np.s_[3:-3, 3:-3]
    assert np.percentile(np.abs(undone - truth)[inner], 99) < 4.0
    assert np.abs(seen(model, MODELS[model])[..., 0] - truth)[inner].max() > 30.0  # and it was needed


def test_an_image_without_distortion_is_left_alone():
    lens = lens_of(info("plumb_bob", [0.0] * 5), rectified=False)
    image = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
    assert lens.undistorted(image) is image
    assert lens.intrinsics.fx == FOCAL


def test_of_rectified_images_p_holds_and_nothing_is_undone():
    p = np.zeros((3, 4))
    p[:, :3] = [[200.0, 0.0, 149.5], [0.0, 210.0, 109.5], [0.0, 0.0, 1.0]]
    lens = lens_of(info("plumb_bob", MODELS["plumb_bob"], p=p.ravel()), rectified=True)
    assert lens.maps is None
    k = lens.intrinsics
    assert (k.fx, k.fy, k.cx, k.cy) == (200.0, 210.0, 150.0, 110.0)


def test_an_uncalibrated_camera_has_no_lens():
    assert lens_of(CameraInfo(width=WIDTH, height=HEIGHT), rectified=False) is None
    assert lens_of(CameraInfo(width=WIDTH, height=HEIGHT), rectified=True) is None


@pytest.mark.parametrize(
    ("model", "coefficients", "said"),
    [
        ("barrel", [0.1] * 5, "distortion_model must be one of plumb_bob, rational_polynomial, equidistant, fisheye"),
        ("plumb_bob", [0.1] * 3, "plumb_bob has 5 finite coefficients"),
        ("equidistant", [float("nan")] * 4, "equidistant has 4 finite coefficients"),
    ],
)
def test_what_is_not_known_is_refused_by_name(model, coefficients, said):
    with pytest.raises(RosError, match=said):
        lens_of(info(model, coefficients), rectified=False)


@pytest.mark.parametrize("model", MODELS)
def test_pixels_are_straightened_to_where_the_undistorted_image_has_them(model):
    lens = lens_of(info(model, MODELS[model]), rectified=False)
    straight = np.array([[WIDTH / 2 + 0.5, HEIGHT / 2 + 0.5], [40.5, 30.5], [WIDTH - 30.5, HEIGHT - 50.5]])
    u, v = (straight - 0.5).astype(int).T
    raw = np.stack(cv2.convertMaps(*lens.maps, cv2.CV_32FC1), axis=-1)  # where each straight pixel was seen
    assert np.abs(raw[v, u] + 0.5 - straight).max() > 1
    np.testing.assert_allclose(lens.straighten(raw[v, u] + 0.5), straight, atol=0.1)
    assert lens.straighten(np.zeros((0, 2))).shape == (0, 2)
