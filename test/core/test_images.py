import sys
import time
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from dust3r_ros.data import Intrinsics
from dust3r_ros.errors import ImageError, RecordingError
from dust3r_ros.images import IMAGE_SUFFIXES, from_jpeg, load_image, prepare, to_jpeg, to_rgb8, video_frames
from dust3r_ros.predictor import ImageSize

SIZE_512, SIZE_224 = ImageSize(512), ImageSize(224, square=True)


def colours(height: int = 20, width: int = 30) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)


def saved(path: Path, image: Image.Image, **options: object) -> np.ndarray:
    image.save(path, **options)
    return load_image(path)


class TestLoadImage:
    @pytest.mark.parametrize("suffix", [".png", ".bmp", ".tif", ".ppm"])
    def test_colours_are_kept_exactly_by_lossless_formats(self, tmp_path: Path, suffix: str) -> None:
        assert suffix in IMAGE_SUFFIXES
        loaded = saved(tmp_path / f"image{suffix}", Image.fromarray(colours()))
        assert loaded.dtype == np.uint8
        np.testing.assert_array_equal(loaded, colours())

    def test_the_loaded_image_belongs_to_the_caller(self, tmp_path: Path) -> None:
        saved(tmp_path / "image.png", Image.fromarray(colours()))[:] = 0  # writable

    @pytest.mark.parametrize("orientation", range(1, 9))
    def test_an_image_is_upright_by_its_exif_orientation(self, tmp_path: Path, orientation: int) -> None:
        upright = np.kron(np.arange(6, dtype=np.uint8).reshape(2, 3) * 40, np.ones((16, 16), np.uint8))
        undo = {
            1: lambda a: a,
            2: np.fliplr,
            3: lambda a: np.rot90(a, 2),
            4: np.flipud,
            5: np.transpose,
            6: lambda a: np.rot90(a, 1),  # a camera held so that the row 0 is the right side
            7: lambda a: np.rot90(a, 2).T,
            8: lambda a: np.rot90(a, -1),
        }
        exif = Image.Exif()
        exif[0x0112] = orientation
        stored = Image.fromarray(np.ascontiguousarray(undo[orientation](upright)))
        loaded = saved(tmp_path / "image.jpg", stored, exif=exif, quality=100)
        assert loaded.shape == (32, 48, 3)
        assert np.abs(loaded[..., 0].astype(int) - upright).max() <= 4

    def test_grey_becomes_rgb(self, tmp_path: Path) -> None:
        grey = colours()[..., 0]
        np.testing.assert_array_equal(saved(tmp_path / "image.png", Image.fromarray(grey)), np.dstack([grey] * 3))

    def test_one_bit_becomes_black_and_white(self, tmp_path: Path) -> None:
        bits = colours()[..., 0] > 127
        loaded = saved(tmp_path / "image.png", Image.fromarray(bits))
        np.testing.assert_array_equal(loaded[..., 2], np.where(bits, 255, 0))

    def test_transparency_is_laid_over_white(self, tmp_path: Path) -> None:
        alpha = np.full((20, 30, 1), 128, np.uint8)
        alpha[:10], alpha[15:] = 0, 255
        loaded = saved(tmp_path / "image.png", Image.fromarray(np.dstack([colours(), alpha])))
        assert (loaded[:10] == 255).all()
        np.testing.assert_array_equal(loaded[15:], colours()[15:])
        mixed = colours()[10:15] * (128 / 255) + 255 * (127 / 255)
        assert np.abs(loaded[10:15] - mixed).max() <= 0.51

    def test_grey_with_alpha_is_laid_over_white(self, tmp_path: Path) -> None:
        pixels = np.dstack([colours()[..., 0], np.zeros((20, 30), np.uint8)])
        assert (saved(tmp_path / "image.png", Image.fromarray(pixels, "LA")) == 255).all()

    def test_a_palette_image_has_its_colours(self, tmp_path: Path) -> None:
        image = Image.fromarray(colours()).quantize(16)
        np.testing.assert_array_equal(saved(tmp_path / "image.png", image), np.asarray(image.convert("RGB")))

    def test_a_palette_image_with_a_transparent_colour_is_white_there(self, tmp_path: Path) -> None:
        image = Image.new("P", (8, 8), 1)
        image.putpalette([0, 0, 0, 200, 10, 10])
        image.putpixel((3, 2), 0)
        loaded = saved(tmp_path / "image.png", image, transparency=0)
        assert loaded[2, 3].tolist() == [255, 255, 255]
        assert loaded[0, 0].tolist() == [200, 10, 10]

    @pytest.mark.parametrize("suffix", [".png", ".tif"])
    def test_16_bit_grey_is_scaled_over_its_whole_range(self, tmp_path: Path, suffix: str) -> None:
        ramp = np.linspace(0, 65535, 600).round().astype(np.uint16).reshape(20, 30)
        cv2.imwrite(str(tmp_path / f"image{suffix}"), ramp)
        loaded = load_image(tmp_path / f"image{suffix}")
        np.testing.assert_array_equal(loaded[..., 1], np.rint(ramp / 257.0))

    def test_16_bit_colour_is_scaled_over_its_whole_range(self, tmp_path: Path) -> None:
        pixels = np.random.default_rng(1).integers(0, 65536, (20, 30, 3), dtype=np.uint16)
        cv2.imwrite(str(tmp_path / "image.png"), pixels[..., ::-1])
        assert np.abs(load_image(tmp_path / "image.png") - pixels / 257.0).max() < 1

    def test_float_images_lie_from_0_to_1(self, tmp_path: Path) -> None:
        ramp = np.linspace(0, 1, 600, dtype=np.float32).reshape(20, 30)
        loaded = saved(tmp_path / "image.tif", Image.fromarray(ramp))
        np.testing.assert_array_equal(loaded[..., 0], np.rint(255 * ramp))

    def test_cmyk_becomes_rgb(self, tmp_path: Path) -> None:
        loaded = saved(tmp_path / "image.tif", Image.new("CMYK", (8, 8), (0, 255, 255, 0)))
        assert loaded[0, 0, 0] > 200 > 80 > loaded[0, 0, 1:].max()

    def test_of_an_animation_the_first_frame_is_taken(self, tmp_path: Path) -> None:
        frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
        frames[0].save(tmp_path / "image.gif", save_all=True, append_images=frames[1:])
        assert load_image(tmp_path / "image.gif")[4, 4].tolist() == [255, 0, 0]

    @pytest.mark.parametrize(
        ("content", "message"),
        [(b"", "not an image in a known format"), (b"hello", "not an image in a known format")],
    )
    def test_another_file_is_refused(self, tmp_path: Path, content: bytes, message: str) -> None:
        path = tmp_path / "image.png"
        path.write_bytes(content)
        with pytest.raises(ImageError, match=f"image.png: {message}"):
            load_image(path)

    @pytest.mark.parametrize("suffix", [".png", ".jpg", ".tif", ".gif", ".webp", ".bmp"])
    def test_a_truncated_file_is_refused(self, tmp_path: Path, suffix: str) -> None:
        path = tmp_path / f"image{suffix}"
        Image.fromarray(colours(64, 64)).save(path)
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
        with pytest.raises(ImageError, match=f"image{suffix}: "):
            load_image(path)

    def test_a_missing_file_and_a_folder_are_named(self, tmp_path: Path) -> None:
        with pytest.raises(ImageError, match=r"nothing.png: no such file"):
            load_image(tmp_path / "nothing.png")
        with pytest.raises(ImageError, match="is a folder, not an image"):
            load_image(tmp_path)

    def test_a_decompression_bomb_is_refused_before_it_is_decoded(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        Image.fromarray(colours(64, 64)).save(tmp_path / "image.png")
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
        with pytest.raises(ImageError, match=r"image.png: .*decompression bomb"):
            load_image(tmp_path / "image.png")
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 3000)  # large, but under twice the limit
        assert load_image(tmp_path / "image.png").shape == (64, 64, 3)

    def test_heic_without_its_package_says_what_to_install(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        (tmp_path / "image.heic").write_bytes(b"....ftypheic")
        monkeypatch.setitem(sys.modules, "pillow_heif", None)
        with pytest.raises(ImageError, match=r"image.heic: .*pip install pillow-heif"):
            load_image(tmp_path / "image.heic")

    def test_heic_is_read_where_its_package_is_installed(self, tmp_path: Path) -> None:
        heif = pytest.importorskip("pillow_heif")
        heif.from_pillow(Image.new("RGB", (64, 48), (200, 30, 30))).save(tmp_path / "image.heic")
        loaded = load_image(tmp_path / "image.heic")
        assert loaded.shape == (48, 64, 3)
        assert np.abs(loaded.astype(int) - (200, 30, 30)).max() < 10


class TestToRgb8:
    @pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32, np.float64])
    @pytest.mark.parametrize("channels", [0, 1, 2, 3, 4])
    def test_white_is_255_in_every_form(self, dtype: type, channels: int) -> None:
        white = {np.uint8: 255, np.uint16: 65535}.get(dtype, 1)
        image = np.full((4, 5, channels) if channels else (4, 5), white, dtype)
        image[0, 0] = 0
        if channels in (2, 4):
            image[0, 0, -1] = white  # opaque black
        rgb = to_rgb8(image)
        assert rgb.shape == (4, 5, 3)
        assert rgb.dtype == np.uint8
        assert rgb.flags.c_contiguous
        assert (rgb[0, 0] == 0).all()
        assert (rgb[1:] == 255).all()

    def test_uint8_rgb_is_not_changed(self) -> None:
        np.testing.assert_array_equal(to_rgb8(colours()), colours())

    def test_a_view_with_strides_is_made_contiguous(self) -> None:
        bgr = colours()[..., ::-1]
        assert to_rgb8(bgr).flags.c_contiguous
        np.testing.assert_array_equal(to_rgb8(bgr), bgr)

    def test_16_bit_is_rounded_to_the_nearest(self) -> None:
        values = np.arange(65536, dtype=np.uint16).reshape(256, 256)
        np.testing.assert_array_equal(to_rgb8(values)[..., 0], np.rint(values / 257.0))

    def test_white_may_be_given(self) -> None:
        values = np.array([[0, 2048, 4095, 60000]], np.uint16)
        assert to_rgb8(values, white=4095)[0, :, 0].tolist() == [0, 128, 255, 255]

    @pytest.mark.parametrize(
        ("array", "message"),
        [
            (np.zeros((4, 5, 5), np.uint8), r"\(H, W\) or \(H, W, 1 to 4\), got \(4, 5, 5\)"),
            (np.zeros(5, np.uint8), r"got \(5,\)"),
            (np.zeros((0, 5, 3), np.uint8), r"at least one pixel, got the shape \(0, 5, 3\)"),
            (np.zeros((4, 5), np.int64), "uint8, uint16, bool or float, got int64"),
            (np.full((4, 5), np.nan), "NaN or infinite"),
            (np.full((4, 5), 255.0), "from 0 to 1, got 255 to 255"),
            (np.full((4, 5), -1.0), "from 0 to 1, got -1 to -1"),
        ],
    )
    def test_other_forms_are_refused(self, array: np.ndarray, message: str) -> None:
        with pytest.raises(ImageError, match=message):
            to_rgb8(array)


def blob(height: int, width: int, u: float, v: float) -> np.ndarray:
    """A soft white spot in the dark whose centre is at (u, v), pixel centres at + 0.5."""
    du, dv = np.arange(width) + 0.5 - u, np.arange(height) + 0.5 - v
    spot = np.exp(-(du**2 + dv[:, None] ** 2) / (2 * (min(height, width) / 20) ** 2))
    return np.repeat(np.rint(255 * spot).astype(np.uint8)[..., None], 3, axis=2)


class TestPrepare:
    @pytest.mark.parametrize(
        ("width", "height", "size", "expected"),
        [
            (640, 480, SIZE_512, (512, 384)),
            (480, 640, SIZE_512, (384, 512)),
            (1920, 1080, SIZE_512, (512, 288)),
            (1226, 370, SIZE_512, (512, 144)),
            (500, 500, SIZE_512, (512, 512)),
            (100, 75, SIZE_512, (512, 384)),
            (512, 384, SIZE_512, (512, 384)),
            (2000, 64, SIZE_512, (512, 16)),
            (640, 480, SIZE_224, (224, 224)),
            (480, 640, SIZE_224, (224, 224)),
            (100, 100, SIZE_224, (224, 224)),
            (641, 479, ImageSize(320, multiple=8), (320, 232)),
            (640, 480, ImageSize(500, multiple=16), (496, 368)),
        ],
    )
    def test_sizes(self, width: int, height: int, size: ImageSize, expected: tuple[int, int]) -> None:
        prepared = prepare(np.zeros((height, width, 3), np.uint8), size)
        assert (prepared.width, prepared.height) == expected
        assert prepared.pixels.flags.c_contiguous
        transform = prepared.transform
        assert (transform.original_width, transform.original_height) == (width, height)
        assert (transform.network_width, transform.network_height) == expected

    @pytest.mark.parametrize("size", [SIZE_512, SIZE_224, ImageSize(500), ImageSize(320, multiple=8)])
    @pytest.mark.parametrize("shape", [(480, 640), (640, 480), (370, 1226), (211, 333), (60, 80), (384, 512)])
    def test_the_transform_says_where_each_point_goes(self, shape: tuple[int, int], size: ImageSize) -> None:
        for u, v in ((0.46 * shape[1], 0.55 * shape[0]), (0.53 * shape[1], 0.37 * shape[0])):
            prepared = prepare(blob(*shape, u, v), size)
            weight = prepared.pixels[..., 0].astype(np.float64)
            found_u = (weight.sum(axis=0) * (np.arange(prepared.width) + 0.5)).sum() / weight.sum()
            found_v = (weight.sum(axis=1) * (np.arange(prepared.height) + 0.5)).sum() / weight.sum()
            t = prepared.transform
            assert found_u == pytest.approx(t.scale_x * u + t.offset_x, abs=0.03)
            assert found_v == pytest.approx(t.scale_y * v + t.offset_y, abs=0.03)

    @pytest.mark.parametrize("size", [SIZE_512, SIZE_224, ImageSize(320), ImageSize(500)])
    @pytest.mark.parametrize("shape", [(2048, 3072), (512, 768), (3072, 2048), (370, 1226), (211, 333), (2047, 3071)])
    def test_the_crop_is_centred_and_keeps_pixels_square(self, shape: tuple[int, int], size: ImageSize) -> None:
        transform = prepare(np.zeros((*shape, 3), np.uint8), size).transform
        assert 2 * transform.offset_x == pytest.approx(transform.network_width - shape[1] * transform.scale_x)
        assert 2 * transform.offset_y == pytest.approx(transform.network_height - shape[0] * transform.scale_y)
        kept = transform.network_width / transform.scale_x, transform.network_height / transform.scale_y
        assert transform.scale_x == pytest.approx(transform.scale_y, rel=1.001 / min(kept))

    @pytest.mark.parametrize("side", [320, 336, 512])
    @pytest.mark.parametrize("shape", [(2048, 3072), (512, 768), (370, 1226), (1080, 1920), (2047, 3071)])
    def test_an_estimated_camera_comes_back_with_the_originals_centre(self, shape: tuple[int, int], side: int) -> None:
        height, width = shape
        transform = prepare(np.zeros((height, width, 3), np.uint8), ImageSize(side)).transform
        estimated = Intrinsics.from_focal(300.0, transform.network_width, transform.network_height)
        original = transform.to_original(estimated)
        assert (original.cx, original.cy) == pytest.approx((width / 2, height / 2), abs=1e-9)
        assert transform.to_network(original).matrix() == pytest.approx(estimated.matrix(), abs=1e-9)

    def test_shrinking_does_not_alias(self) -> None:
        stripes = np.zeros((480, 640, 3), np.uint8)
        stripes[:, ::2] = 255
        pixels = prepare(stripes, ImageSize(64)).pixels.astype(int)
        assert np.abs(pixels - 127).max() <= 2

    def test_an_image_of_the_right_size_is_kept_exactly(self) -> None:
        image = colours(384, 512)
        prepared = prepare(image, SIZE_512)
        np.testing.assert_array_equal(prepared.pixels, image)
        assert (prepared.transform.scale_x, prepared.transform.offset_x) == (1, 0)

    @pytest.mark.parametrize(
        ("shape", "message"),
        [
            ((1, 1, 3), "at least 16 pixels wide and high, got 1x1"),
            ((10, 2000, 3), "at least 16 pixels wide and high, got 2000x10"),
            ((20, 2000, 3), "2000x20 is too narrow: at 512x5 its short side is less than 16"),
            ((2000, 20, 3), "20x2000 is too narrow: at 5x512"),
            ((480, 640), r"\(H, W, 3\) uint8, got \(480, 640\) uint8"),
            ((480, 640, 4), r"got \(480, 640, 4\)"),
        ],
    )
    def test_other_forms_are_refused(self, shape: tuple[int, ...], message: str) -> None:
        with pytest.raises(ImageError, match=message):
            prepare(np.zeros(shape, np.uint8), SIZE_512)
        with pytest.raises(ImageError, match=r"got .* float64"):
            prepare(np.zeros((480, 640, 3)), SIZE_512)

    @given(
        st.integers(64, 900),
        st.integers(64, 900),
        st.integers(64, 640),
        st.sampled_from([1, 8, 14, 16]),
        st.booleans(),
        st.floats(0.3, 3),
        st.floats(0.2, 0.8),
    )
    def test_intrinsics_go_to_the_network_and_back(
        self, width: int, height: int, side: int, multiple: int, square: bool, focal: float, centre: float
    ) -> None:
        size = ImageSize(side, multiple, square)
        if not square and side * min(width, height) < multiple * max(width, height) * 1.2:
            return  # too narrow, tested above
        transform = prepare(np.zeros((height, width, 3), np.uint8), size).transform
        k = Intrinsics(focal * width, 1.1 * focal * width, centre * width, (1 - centre) * height, width, height)
        network = transform.to_network(k)
        assert (network.width % multiple, network.height % multiple) == (0, 0)
        back = transform.to_original(network)
        for name in ("fx", "fy", "cx", "cy", "width", "height"):
            assert getattr(back, name) == pytest.approx(getattr(k, name), rel=1e-12)
        # one ray through both cameras: the pixel moves by the transform, the ray stays
        x, y = 0.1, -0.2
        assert network.fx * x + network.cx == pytest.approx(
            transform.scale_x * (k.fx * x + k.cx) + transform.offset_x, abs=1e-9
        )
        assert network.fy * y + network.cy == pytest.approx(
            transform.scale_y * (k.fy * y + k.cy) + transform.offset_y, abs=1e-9
        )

    def test_intrinsics_of_another_size_are_refused(self) -> None:
        transform = prepare(np.zeros((480, 640, 3), np.uint8), SIZE_512).transform
        with pytest.raises(ValueError, match="original 640x480 image, got 512x384"):
            transform.to_network(Intrinsics.from_focal(500, 512, 384))
        with pytest.raises(ValueError, match="network's 512x384 image, got 640x480"):
            transform.to_original(Intrinsics.from_focal(500, 640, 480))

    def test_it_takes_a_few_milliseconds_at_most(self) -> None:
        image = colours(480, 640)
        times = []
        for _ in range(30):
            start = time.perf_counter()
            prepare(image, SIZE_512)
            times.append(time.perf_counter() - start)
        assert min(times) < 0.006  # measured: 1.8 ms; twice the goal, for slower machines


def write_video(path: Path, frames: int, fps: float = 10.0) -> None:
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"MJPG"), fps, (64, 48))
    assert writer.isOpened()
    for i in range(frames):
        writer.write(np.full((48, 64, 3), (0, 0, 20 * i), np.uint8))  # BGR: red grows
    writer.release()


class TestVideoFrames:
    def test_frames_come_in_order_in_rgb_with_their_times(self, tmp_path: Path) -> None:
        write_video(tmp_path / "video.avi", 10)
        frames = list(video_frames(tmp_path / "video.avi"))
        assert [f.index for f in frames] == list(range(10))
        assert frames[0].image.shape == (48, 64, 3)
        for frame in frames:
            assert np.abs(frame.image[24, 32].astype(int) - (20 * frame.index, 0, 0)).max() <= 6
        stamps = np.array([f.stamp_ns for f in frames])
        np.testing.assert_allclose(np.diff(stamps), 1e8, rtol=0.02)

    def test_every_third_frame_keeps_its_number_and_time(self, tmp_path: Path) -> None:
        write_video(tmp_path / "video.avi", 10)
        frames = list(video_frames(tmp_path / "video.avi", every=3))
        assert [f.index for f in frames] == [0, 3, 6, 9]
        assert frames[1].stamp_ns - frames[0].stamp_ns == pytest.approx(3e8, rel=0.02)

    def test_a_file_that_is_not_a_video_is_refused(self, tmp_path: Path) -> None:
        path = tmp_path / "video.mp4"
        path.write_bytes(b"no video" * 100)
        with pytest.raises(RecordingError, match=r"video.mp4: not a video"):
            next(video_frames(path))
        with pytest.raises(RecordingError, match=r"none.mp4: no such video"):
            next(video_frames(tmp_path / "none.mp4"))

    def test_every_must_be_positive(self, tmp_path: Path) -> None:
        with pytest.raises(ValueError, match="every must be at least 1, got 0"):
            next(video_frames(tmp_path / "video.avi", every=0))


def test_a_jpeg_keeps_form_and_channels() -> None:
    rows, columns = np.mgrid[0:48, 0:64]
    pixels = np.stack([4 * columns, 5 * rows, 0 * rows + 30], axis=-1).astype(np.uint8)
    data = to_jpeg(pixels, 95)
    assert data.ndim == 1 and data.dtype == np.uint8 and data.nbytes < pixels.nbytes / 2
    back = from_jpeg(data)
    assert back.shape == pixels.shape and back.dtype == np.uint8
    assert np.abs(back.astype(int) - pixels).mean() < 3
