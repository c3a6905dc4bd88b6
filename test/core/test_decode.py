"""Decoding of image and camera messages, on stand-ins with the messages' fields. No ROS needed."""

import array
from types import SimpleNamespace

import cv2
import numpy as np
import pytest

from dust3r_ros.errors import RosError
from dust3r_ros.ros.decode import compressed_to_rgb, image_to_rgb, intrinsics_of, stamp_ns_of

HEIGHT, WIDTH = 6, 8


def rgb_image() -> np.ndarray:
    rng = np.random.default_rng(0)
    return rng.integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)


def message(pixels: np.ndarray, encoding: str, *, padding: int = 0, big: bool = False, **changes) -> SimpleNamespace:
    values = pixels.astype(pixels.dtype.newbyteorder(">" if big else "<"))
    rows = values.reshape(pixels.shape[0], -1).view(np.uint8)
    rows = np.pad(rows, ((0, 0), (0, padding)), constant_values=77)
    fields = {
        "encoding": encoding,
        "height": pixels.shape[0],
        "width": pixels.shape[1],
        "step": rows.shape[1],
        "is_bigendian": int(big),
        "data": array.array("B", rows.tobytes()),
    }
    return SimpleNamespace(**{**fields, **changes})


@pytest.mark.parametrize("padding", [0, 5])
@pytest.mark.parametrize(
    ("encoding", "order"),
    [("rgb8", [0, 1, 2]), ("bgr8", [2, 1, 0]), ("8UC3", [2, 1, 0]), ("rgba8", [0, 1, 2, 0]), ("bgra8", [2, 1, 0, 0])],
)
def test_colour_channels_come_out_in_rgb_order(encoding, order, padding):
    rgb = rgb_image()
    np.testing.assert_array_equal(image_to_rgb(message(rgb[..., order], encoding, padding=padding)), rgb)


@pytest.mark.parametrize("encoding", ["rgb16", "bgr16", "rgba16", "bgra16"])
@pytest.mark.parametrize("big", [False, True])
def test_16_bit_colour_keeps_its_high_byte_in_both_byte_orders(encoding, big):
    rgb = rgb_image()
    order = {"rgb": [0, 1, 2], "bgr": [2, 1, 0]}[encoding[:3]] + ([0] if "a" in encoding else [])
    deep = rgb[..., order].astype(np.uint16) * 256 + 9
    np.testing.assert_array_equal(image_to_rgb(message(deep, encoding, big=big)), rgb)


@pytest.mark.parametrize("encoding", ["mono8", "8UC1"])
def test_grey_becomes_three_equal_channels(encoding):
    grey = rgb_image()[..., 0]
    rgb = image_to_rgb(message(grey, encoding, padding=3))
    np.testing.assert_array_equal(rgb, np.stack([grey] * 3, axis=-1))


@pytest.mark.parametrize("encoding", ["mono16", "16UC1"])
@pytest.mark.parametrize("big", [False, True])
def test_16_bit_grey_uses_the_whole_byte_whatever_part_of_16_bits_the_camera_uses(encoding, big):
    ramp = np.linspace(21000, 22000, 64 * 64).reshape(64, 64).astype(np.uint16)
    rgb = image_to_rgb(message(ramp, encoding, big=big))
    assert rgb.dtype == np.uint8
    assert rgb.min() == 0
    assert rgb.max() == 255
    assert np.all(np.diff(rgb[..., 0].ravel().astype(int)) >= 0)


def test_constant_16_bit_grey_is_no_division_by_zero():
    assert image_to_rgb(message(np.full((4, 4), 700, np.uint16), "mono16")).max() == 0


@pytest.mark.parametrize(
    ("encoding", "first_row", "second_row"),
    [
        ("bayer_rggb8", "rg", "gb"),
        ("bayer_bggr8", "bg", "gr"),
        ("bayer_gbrg8", "gb", "rg"),
        ("bayer_grbg8", "gr", "bg"),
        ("bayer_rggb16", "rg", "gb"),
    ],
)
def test_bayer_patterns_give_the_flat_colour_they_were_made_of(encoding, first_row, second_row):
    colour = {"r": 200, "g": 120, "b": 40}
    tile = np.array([[colour[c] for c in first_row], [colour[c] for c in second_row]])
    raw = np.tile(tile, (4, 4)).astype(np.uint8)
    raw = raw.astype(np.uint16) * 256 if encoding.endswith("16") else raw
    inner = image_to_rgb(message(raw, encoding))[2:-2, 2:-2].reshape(-1, 3)
    np.testing.assert_array_equal(np.unique(inner, axis=0), [[200, 120, 40]])


@pytest.mark.parametrize(
    ("encoding", "order"), [("yuv422", "uyvy"), ("uyvy", "uyvy"), ("yuv422_yuy2", "yuyv"), ("yuyv", "yuyv")]
)
def test_yuv422_of_a_flat_colour(encoding, order):
    red_yuv = {"y": 82, "u": 90, "v": 240}  # BT.601, studio range
    packed = np.tile(np.array([red_yuv[c] for c in order], np.uint8).reshape(1, 2, 2), (4, 4, 1))
    rgb = image_to_rgb(message(packed, encoding))
    assert rgb.shape == (4, 8, 3)
    assert np.abs(rgb.astype(int) - [255, 0, 0]).max() <= 3


@pytest.mark.parametrize("as_type", [bytes, bytearray, list, lambda b: np.frombuffer(b, np.uint8)])
def test_data_may_be_any_bytes(as_type):
    rgb = rgb_image()
    sent = message(rgb, "rgb8", data=as_type(rgb.tobytes()))
    np.testing.assert_array_equal(image_to_rgb(sent), rgb)


def test_the_result_does_not_share_the_messages_memory():
    data = np.frombuffer(bytearray(rgb_image().tobytes()), np.uint8)
    image = image_to_rgb(message(rgb_image(), "rgb8", data=data))
    data[:] = 0
    np.testing.assert_array_equal(image, rgb_image())


def test_missing_padding_behind_the_last_row_is_accepted():
    sent = message(rgb_image(), "rgb8", padding=5)
    sent.data = sent.data[:-5]
    np.testing.assert_array_equal(image_to_rgb(sent), rgb_image())


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"data": b"abc"}, "rgb8 image of 8x6 with step 24 needs 144 bytes, got 3"),
        ({"data": b""}, "needs 144 bytes, got 0"),
        ({"step": 20}, "rgb8 image of 8x6 needs at least 24 bytes a row, got step 20"),
        ({"width": 0}, "rgb8 image of 0x6 has no pixels"),
        ({"height": 0, "data": b""}, "has no pixels"),
        ({"encoding": "32FC1"}, "image encoding '32FC1' is not supported; supported are rgb8, "),
        ({"encoding": ""}, "image encoding '' is not supported"),
        ({"encoding": "uyvy", "width": 7}, "must have an even width"),
    ],
)
def test_bad_images_are_refused_in_one_clear_line(changes, said):
    with pytest.raises(RosError) as caught:
        image_to_rgb(message(rgb_image(), **{"encoding": "rgb8", **changes}))
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def compressed(image: np.ndarray, suffix: str, form: str) -> SimpleNamespace:
    _, data = cv2.imencode(suffix, image)
    return SimpleNamespace(format=form, data=array.array("B", data.tobytes()))


def test_png_is_decoded_exactly():
    bgr = rgb_image()[..., ::-1]
    np.testing.assert_array_equal(compressed_to_rgb(compressed(bgr, ".png", "bgr8; png compressed ")), rgb_image())


def test_jpeg_is_decoded_closely():
    flat = np.full((16, 16, 3), (20, 120, 200), np.uint8)  # BGR
    rgb = compressed_to_rgb(compressed(flat, ".jpg", "rgb8; jpeg compressed bgr8"))
    assert np.abs(rgb.astype(int) - [200, 120, 20]).max() <= 4


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_grey_png_of_both_depths(dtype):
    grey = np.linspace(0, np.iinfo(dtype).max, 64 * 64).reshape(64, 64).astype(dtype)
    rgb = compressed_to_rgb(compressed(grey, ".png", "mono; png compressed "))
    assert rgb.shape == (64, 64, 3)
    assert (rgb.min(), rgb.max()) == (0, 255)


def test_a_bayer_picture_that_was_compressed_as_grey_is_demosaiced():
    raw = np.tile(np.array([[200, 120], [120, 40]], np.uint8), (8, 8))
    rgb = compressed_to_rgb(compressed(raw, ".png", "bayer_rggb8; png compressed "))
    np.testing.assert_array_equal(rgb[4, 4], [200, 120, 40])


@pytest.mark.parametrize("suffix", [".jpg", ".png"])
@pytest.mark.parametrize("kept", [0.0, 0.1, 0.5, 0.9])
def test_truncated_compressed_images_are_refused(suffix, kept):
    sent = compressed(np.random.default_rng(1).integers(0, 256, (64, 64, 3), dtype=np.uint8), suffix, "jpeg")
    sent.data = sent.data[: int(kept * len(sent.data))]
    with pytest.raises(RosError, match=rf"compressed image \(jpeg, {len(sent.data)} bytes\) cannot be decoded"):
        compressed_to_rgb(sent)


def test_noise_and_depth_are_refused():
    with pytest.raises(RosError, match="cannot be decoded"):
        compressed_to_rgb(SimpleNamespace(format="", data=bytes(range(200))))
    with pytest.raises(RosError, match="holds depth"):
        compressed_to_rgb(SimpleNamespace(format="16UC1; compressedDepth png", data=b"x"))


def camera_info(**changes) -> SimpleNamespace:
    roi = SimpleNamespace(x_offset=0, y_offset=0, width=0, height=0, do_rectify=False)
    fields = {"k": [500.0, 0, 319.5, 0, 510.0, 239.5, 0, 0, 1], "width": 640, "height": 480, "roi": roi}
    return SimpleNamespace(**{**fields, "binning_x": 0, "binning_y": 0, **changes})


def test_camera_info_moves_the_principal_point_by_half_a_pixel():
    k = intrinsics_of(camera_info())
    assert (k.fx, k.fy, k.cx, k.cy, k.width, k.height) == (500, 510, 320, 240, 640, 480)


def test_camera_info_with_region_of_interest_and_binning():
    roi = SimpleNamespace(x_offset=20, y_offset=40, width=400, height=200)
    k = intrinsics_of(camera_info(roi=roi, binning_x=2, binning_y=2))
    assert (k.fx, k.fy, k.cx, k.cy, k.width, k.height) == (250, 255, 150, 100, 200, 100)


def test_an_uncalibrated_camera_info_is_none_and_a_broken_one_an_error():
    assert intrinsics_of(camera_info(k=[0.0] * 9)) is None
    with pytest.raises(RosError, match="positive focal length"):
        intrinsics_of(camera_info(k=[-500.0, 0, 1, 0, 500, 1, 0, 0, 1]))
    with pytest.raises(RosError, match="must have a size, got 0x0"):
        intrinsics_of(camera_info(width=0, height=0))


def test_ros_1_names_are_read_too():
    ros1 = camera_info()
    ros1.K = ros1.k
    del ros1.k
    assert intrinsics_of(ros1).fx == 500


def test_stamp_in_nanoseconds_is_exact():
    header = SimpleNamespace(stamp=SimpleNamespace(sec=1_700_000_000, nanosec=123_456_789))
    assert stamp_ns_of(header) == 1_700_000_000_123_456_789
