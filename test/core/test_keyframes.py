import itertools
import time
from pathlib import Path

import cv2
import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from dust3r_ros.config import KeyframeConfig
from dust3r_ros.images import load_image
from dust3r_ros.keyframes import KeyframeDecision, KeyframeReason, KeyframeSelector

HEIGHT, WIDTH, FOCAL = 240, 320, 280.0
FRAME_NS = 33_333_333


def smooth_noise(seed: int, sigma: float) -> np.ndarray:
    """Blobs (512, 512) of unit variance, without a seam when tiled."""
    noise = np.tile(np.random.default_rng(seed).normal(size=(512, 512)).astype(np.float32), (3, 3))
    smooth = cv2.GaussianBlur(noise, (0, 0), sigma)[512:1024, 512:1024]
    return smooth / smooth.std()


def texture(seed: int) -> np.ndarray:
    """Grey blobs of several sizes, (512, 512) uint8."""
    blobs = sum(smooth_noise(seed + 100 * i, sigma) for i, sigma in enumerate((2.0, 4.0, 10.0)))
    return np.clip(128 + 25 * blobs, 0, 255).astype(np.uint8)


FAR, NEAR, MASK = texture(1), texture(2), smooth_noise(3, 40.0) > 0.2


def view(rotation: np.ndarray | None = None, shift: float = 0.0, seed: int = 0, noise: float = 2.0) -> np.ndarray:
    """A room of two layers, at depth 4 and 2 in blobs, from a camera turned by ``rotation`` and moved by ``shift``."""
    k = np.array([[FOCAL, 0, WIDTH / 2], [0, FOCAL, HEIGHT / 2], [0, 0, 1]])
    turn = k @ (np.eye(3) if rotation is None else rotation) @ np.linalg.inv(k)

    def layer(image: np.ndarray, depth: float) -> np.ndarray:
        move = np.array([[1, 0, -FOCAL * shift / depth], [0, 1, 0], [0, 0, 1]])
        return cv2.warpPerspective(image, turn @ move, (WIDTH, HEIGHT), borderMode=cv2.BORDER_WRAP)

    image = np.where(layer(MASK.astype(np.float32), 2.0) > 0.5, layer(NEAR, 2.0), layer(FAR, 4.0)).astype(np.float64)
    image += np.random.default_rng(seed).normal(scale=noise, size=image.shape)
    return np.repeat(np.clip(image, 0, 255).astype(np.uint8)[..., None], 3, axis=2)


def yaw(degrees: float) -> np.ndarray:
    return Rotation.from_euler("y", degrees, degrees=True).as_matrix()


def run(images: list[np.ndarray], selector: KeyframeSelector | None = None) -> list[KeyframeDecision]:
    selector = selector or KeyframeSelector()
    return [selector.consider(image, i * FRAME_NS) for i, image in enumerate(images)]


def taken(decisions: list[KeyframeDecision]) -> list[int]:
    return [i for i, decision in enumerate(decisions) if decision.take]


def test_the_first_image_is_taken() -> None:
    decision = KeyframeSelector().consider(view(), 0)
    assert decision.take
    assert decision.reason is KeyframeReason.FIRST


@pytest.mark.parametrize("noise", [0.0, 3.0, 12.0])
def test_a_camera_that_stands_still_adds_none(noise: float) -> None:
    decisions = run([view(seed=i, noise=noise) for i in range(150)])
    assert taken(decisions) == [0]
    assert max(d.parallax for d in decisions) < 0.004
    assert min(d.overlap for d in decisions[1:]) > 0.97


def test_a_camera_that_moves_sideways_adds_keyframes_by_parallax() -> None:
    shifts = np.arange(60) * 0.01
    decisions = run([view(shift=s, seed=i) for i, s in enumerate(shifts)])
    indices = taken(decisions)
    assert 4 <= len(indices) <= 20
    assert {decisions[i].reason for i in indices[1:]} == {KeyframeReason.PARALLAX}
    baselines = np.diff(shifts[indices])
    assert baselines.max() < 1.7 * baselines.min()  # the same motion gives the same spacing
    assert all(decisions[i].overlap > KeyframeConfig().min_overlap for i in indices[1:])


def test_parallax_grows_with_the_baseline_and_is_that_of_the_layers() -> None:
    decisions = run([view(shift=s, seed=i) for i, s in enumerate((0.0, 0.01, 0.02, 0.03, 0.04))],
                    KeyframeSelector(KeyframeConfig(min_parallax=1.0)))  # fmt: skip
    parallax = [d.parallax for d in decisions]
    assert parallax == sorted(parallax)
    between_layers = FOCAL * 0.04 * (1 / 2 - 1 / 4) / WIDTH
    assert 0.2 * between_layers < parallax[-1] < 0.8 * between_layers


def test_pure_rotation_adds_only_when_little_is_left_in_view() -> None:
    angles = np.arange(0, 45, 0.75)
    decisions = run([view(yaw(a), seed=i) for i, a in enumerate(angles)])
    indices = taken(decisions)
    assert {decisions[i].reason for i in indices[1:]} == {KeyframeReason.OVERLAP}
    assert 2 <= len(indices) <= 5
    for before, after in itertools.pairwise(indices):
        turned = np.radians(angles[after] - angles[before])
        left = 1 - FOCAL * np.tan(turned) / WIDTH
        assert left == pytest.approx(KeyframeConfig().min_overlap, abs=0.12)


def test_the_overlap_is_the_share_of_the_keyframe_in_view() -> None:
    decisions = run([view(yaw(a), seed=i) for i, a in enumerate((0.0, 2.0, 4.0, 6.0, 8.0))])
    expected = [1 - FOCAL * np.tan(np.radians(a)) / WIDTH for a in (2.0, 4.0, 6.0, 8.0)]
    np.testing.assert_allclose([d.overlap for d in decisions[1:]], expected, atol=0.05)


def test_what_moves_before_a_standing_camera_is_no_parallax() -> None:
    images = []
    for i in range(40):
        image = view(seed=i)
        image[80:200, 3 * i : 3 * i + 120] = view(np.eye(3), 1.0)[80:200, :120]  # a sixth of the image walks by
        images.append(image)
    assert taken(run(images)) == [0]


def test_rolling_about_the_optical_axis_is_no_parallax() -> None:
    rolls = [Rotation.from_euler("z", a, degrees=True).as_matrix() for a in np.arange(0, 15, 1.0)]
    assert max(d.parallax for d in run([view(r, seed=i) for i, r in enumerate(rolls)])) < 0.004


def test_a_blurred_image_waits_for_a_sharper_one() -> None:
    shifts = np.arange(20) * 0.01
    images = [view(shift=s, seed=i) for i, s in enumerate(shifts)]
    sharp = taken(run(images))[1]
    for i in range(sharp, sharp + 3):
        images[i] = cv2.GaussianBlur(images[i], (0, 0), 2.5)
    decisions = run(images)
    assert [d.reason for d in decisions[sharp : sharp + 3]] == [KeyframeReason.BLURRED] * 3
    assert all(d.sharpness < 0.5 for d in decisions[sharp : sharp + 3])
    assert taken(decisions)[1] == sharp + 3


def test_the_wait_for_a_sharp_image_is_bounded() -> None:
    images = [view(seed=i) for i in range(20)]
    blurred = [cv2.GaussianBlur(view(shift=0.15, seed=i), (0, 0), 2.5) for i in range(40)]
    decisions = run(images + blurred)
    waited = [d.reason for d in decisions].count(KeyframeReason.BLURRED)
    assert 10 <= waited <= 16  # half a second at 30 images a second
    assert taken(decisions)[1] == 20 + waited


def test_without_time_the_wait_is_bounded_by_images() -> None:
    selector = KeyframeSelector()
    for i in range(20):
        selector.consider(view(seed=i), 0)
    decisions = [selector.consider(cv2.GaussianBlur(view(shift=0.15, seed=i), (0, 0), 2.5), 0) for i in range(40)]
    assert taken(decisions)[0] == 15


def test_a_jump_to_another_place_is_taken_at_once() -> None:
    elsewhere = view(noise=0)[::-1, ::-1]
    decisions = run([view(seed=1), view(seed=2), elsewhere, elsewhere])
    assert decisions[2].take
    assert decisions[2].reason is KeyframeReason.LOST
    assert not decisions[3].take


def test_a_covered_lens_is_never_a_keyframe() -> None:
    dark = np.full((HEIGHT, WIDTH, 3), 7, np.uint8)
    decisions = run([dark, view(seed=1), dark, dark, view(seed=2), dark])
    assert taken(decisions) == [1]
    assert decisions[0].reason is KeyframeReason.NO_TEXTURE
    assert decisions[2].reason is KeyframeReason.NO_TEXTURE
    assert decisions[4].reason is KeyframeReason.NEAR  # found again, where it was


def test_every_image_when_asked() -> None:
    selector = KeyframeSelector(KeyframeConfig(every_image=True))
    assert taken(run([view(seed=i) for i in range(5)], selector)) == [0, 1, 2, 3, 4]


def test_reset_takes_the_next_image_as_the_first() -> None:
    selector = KeyframeSelector()
    run([view(seed=1), view(seed=2)], selector)
    selector.reset()
    assert selector.consider(view(seed=3), 0).reason is KeyframeReason.FIRST


def test_grey_and_colour_images_of_any_size_are_followed() -> None:
    grey = [view(shift=s, seed=i)[..., 0] for i, s in enumerate((0.0, 0.02))]
    for image_size in ((64, 48), (320, 240), (1280, 960), (480, 640)):
        decisions = run([cv2.resize(image, image_size) for image in grey])
        assert decisions[1].reason in (KeyframeReason.NEAR, KeyframeReason.PARALLAX)
    assert KeyframeSelector().consider(np.zeros((1, 1, 3), np.uint8), 0).reason is KeyframeReason.NO_TEXTURE


def test_a_new_image_size_begins_anew() -> None:
    selector = KeyframeSelector()
    selector.consider(view(), 0)
    assert selector.consider(view()[:120], FRAME_NS).reason is KeyframeReason.FIRST


def test_the_caller_may_reuse_its_image() -> None:
    selector, image = KeyframeSelector(), view(noise=0)[:200, :200, 0].copy()
    selector.consider(image, 0)
    kept = image.copy()
    image[:] = 0
    assert selector.consider(kept, 1).parallax < 1e-3


@pytest.mark.parametrize("image", [np.zeros((4, 5, 4), np.uint8), np.zeros((4, 5, 3)), np.zeros(4, np.uint8)])
def test_other_forms_are_refused(image: np.ndarray) -> None:
    with pytest.raises(ValueError, match=r"image must be \(H, W, 3\) or \(H, W\) uint8, got"):
        KeyframeSelector().consider(image, 0)


def test_it_keeps_up_with_a_camera() -> None:
    images = [cv2.resize(view(shift=0.004 * i, seed=i), (640, 480)) for i in range(25)]
    selector, times = KeyframeSelector(), []
    for i, image in enumerate(images):
        start = time.perf_counter()
        selector.consider(image, i * FRAME_NS)
        times.append(time.perf_counter() - start)
    assert min(times[1:]) < 0.012  # measured: 4 ms; twice the goal of 6 ms, for slower machines


def test_a_car_and_a_hand_held_camera(shared: Path) -> None:
    car = [load_image(p) for p in sorted((shared / "data" / "kitti_1" / "images").glob("*.jpg"))]
    indices = taken(run(car))
    assert 15 <= len(indices) <= len(car)
    assert np.diff(indices).max() <= 4  # at most 5 metres
    phone = [load_image(p) for p in sorted((shared / "data" / "fox" / "images").glob("*.jpg"))]
    assert 20 <= len(taken(run(phone))) <= 40
