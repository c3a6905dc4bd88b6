"""Cameras in rendered scenes, how much views share, paths, and photometric flaws."""

import math

import numpy as np
import pytest
import torch

from dust3r_ros.geometry import rotation_angle_deg
from dust3r_ros.training.cameras import MIN_CLEARANCE, Motion, look_at, overlap, sample_intrinsics, sample_pairs
from dust3r_ros.training.photometric import OtherLight, PhotometricRange, degrade, jpeg, random_light
from dust3r_ros.training.render import render_depth
from dust3r_ros.training.scenes import SceneKind, SceneSampler
from dust3r_ros.training.textures import make_atlas, pack_atlas
from dust3r_ros.training.trajectories import CLEARANCE_M, Carrier, path_length, sample_trajectory

SIZE = (48, 64)
K = torch.tensor([50.0, 50.0, 32.0, 24.0])


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture(scope="module")
def sampler() -> SceneSampler:
    return SceneSampler(make_atlas(12, 64, seeded(3)), variants=60)


def test_a_camera_looks_along_z_with_x_right_and_y_down():
    pose = look_at(torch.tensor([1.0, 2.0, 3.0]), torch.tensor([6.0, 2.0, 3.0]))
    expected = torch.tensor([[0.0, 0, 1, 1], [-1, 0, 0, 2], [0, -1, 0, 3], [0, 0, 0, 1]])
    torch.testing.assert_close(pose, expected)
    assert torch.linalg.det(pose[:3, :3]) == pytest.approx(1)


def test_roll_turns_the_camera_clockwise():
    pose = look_at(torch.zeros(3), torch.tensor([1.0, 0.0, 0.0]), torch.tensor(math.pi / 2))
    torch.testing.assert_close(pose[:3, 0], torch.tensor([0.0, 0.0, -1.0]), atol=1e-6, rtol=0)  # its right is now down


def test_fields_of_view_lie_between_35_and_100_degrees():
    k = sample_intrinsics((500,), (168, 224), seeded(1))
    fov = torch.rad2deg(2 * torch.atan(112 / k[:, 0]))
    assert 34.9 < fov.min() < 40 and 95 < fov.max() < 100.1
    assert (k[:, 2:] == torch.tensor([112.0, 84.0])).all()


def wall_depth(distance: float) -> torch.Tensor:
    return torch.full(SIZE, distance)


def test_overlap_of_a_sidestep_before_a_wall_is_what_stays_in_the_image():
    eye, moved = torch.eye(4), torch.eye(4)
    moved[0, 3] = 0.64  # 16 of 64 pixels at 2 m
    share = overlap(wall_depth(2.0), K, eye, wall_depth(2.0), K, moved)
    assert share == pytest.approx(0.75)
    assert overlap(wall_depth(2.0), K, eye, wall_depth(2.0), K, eye) == 1


def test_overlap_counts_no_hidden_points_and_no_sky():
    eye = torch.eye(4)
    assert overlap(wall_depth(2.0), K, eye, wall_depth(1.5), K, eye) == 0  # something stands before the wall
    sky = wall_depth(2.0)
    sky[:24] = 0
    assert overlap(sky, K, eye, wall_depth(2.0), K, eye) == 1
    assert overlap(wall_depth(2.0), K, eye, sky, K, eye) == pytest.approx(0.5)
    assert overlap(torch.zeros(SIZE), K, eye, sky, K, eye) == 0


def test_overlap_of_cameras_back_to_back_is_none():
    back = torch.diag(torch.tensor([-1.0, 1.0, -1.0, 1.0]))
    assert overlap(wall_depth(2.0), K, torch.eye(4), wall_depth(2.0), K, back) == 0


@pytest.mark.parametrize("kind", list(SceneKind))
def test_pairs_are_clear_of_surfaces_and_mostly_overlap(sampler, kind):
    scenes = sampler.sample(kind, 6, seeded(4))
    pairs = sample_pairs(scenes, 8, (168, 224), seeded(5))
    assert pairs.camera_to_world.shape == (6, 8, 2, 4, 4)
    centres = pairs.camera_to_world[..., :3, 3].flatten(1, 2)
    clear = scenes.clearance(centres)
    assert (clear > 0.9 * MIN_CLEARANCE).float().mean() > 0.9
    assert (pairs.overlap > 0.05).float().mean() > 0.85
    assert 0.5 < (pairs.overlap > 0.3).float().mean() < 0.98
    rotation = pairs.camera_to_world[..., :3, :3]
    torch.testing.assert_close(
        rotation @ rotation.transpose(-1, -2), torch.eye(3).expand_as(rotation), atol=1e-5, rtol=0
    )


def test_pairs_hold_their_baselines_and_some_only_turn(sampler):
    scenes = sampler.sample(SceneKind.ROOM, 8, seeded(4))
    pairs = sample_pairs(scenes, 16, (168, 224), seeded(6), baseline=(0.1, 0.8))
    one, two = pairs.camera_to_world[:, :, 0], pairs.camera_to_world[:, :, 1]
    baseline = (one[..., :3, 3] - two[..., :3, 3]).norm(dim=-1)
    turning = pairs.motion == Motion.ROTATION
    assert turning.any()
    assert (baseline[turning] == 0).all()
    assert ((baseline[~turning] > 0.099) & (baseline[~turning] < 0.801)).all()


def test_clearance_is_never_more_than_the_true_distance(sampler):
    """Depth seen from a point in any direction is at least its clearance."""
    scenes = sampler.sample(SceneKind.ROOM, 4, seeded(9))
    low, high = scenes.free[:, None, 0], scenes.free[:, None, 1]
    points = low + torch.rand((4, 20, 3), generator=seeded(2)) * (high - low)
    clear = scenes.clearance(points)
    poses = torch.cat(
        [
            look_at(points, points + torch.tensor([math.cos(a), math.sin(a), s]))
            for a in (0, 1.5, 3, 4.5)
            for s in (-1.0, 0.5)
        ],
        1,
    )
    wide = torch.tensor([8.0, 8.0, 16.0, 12.0])
    depth = render_depth(scenes, poses, wide, (24, 32))
    v, u = torch.meshgrid(torch.arange(24) + 0.5, torch.arange(32) + 0.5, indexing="ij")
    length = (((u - 16) / 8) ** 2 + ((v - 12) / 8) ** 2 + 1).sqrt()
    nearest = (depth * length).flatten(2).amin(-1).view(4, 8, 20).amin(1)
    free = clear > 0
    assert free.float().mean() > 0.5
    assert (nearest[free] >= clear[free] - 1e-4).all()


@pytest.mark.parametrize("carrier", list(Carrier))
def test_paths_stay_clear_and_even(sampler, carrier):
    scene = sampler.sample(SceneKind.ROOM, 1, seeded(11), size=(7.0, 6.0, 3.0))
    poses = sample_trajectory(scene, 60, 0.05, np.random.default_rng(1), carrier=carrier, max_turn_deg=4)
    centres = torch.from_numpy(poses[:, :3, 3]).float()
    assert scene.clearance(centres[None]).min() > CLEARANCE_M - 0.01
    steps = np.linalg.norm(np.diff(poses[:, :3, 3], axis=0), axis=1)
    assert steps.min() > 0.03 and steps.max() < 0.07
    assert path_length(poses) == pytest.approx(59 * 0.05, rel=0.05)
    assert rotation_angle_deg(poses[:-1, :3, :3].transpose(0, 2, 1) @ poses[1:, :3, :3]).max() < 7
    np.testing.assert_allclose(np.linalg.det(poses[:, :3, :3]), 1, atol=1e-9)


def test_a_scene_without_room_for_the_path_says_so(sampler):
    scene = sampler.sample(SceneKind.ROOM, 1, seeded(11), size=(1.0, 1.0, 2.5))
    with pytest.raises(ValueError, match=r"no clear path of 20.0 m"):
        sample_trajectory(scene, 200, 0.1, np.random.default_rng(1))


def test_mip_levels_fade_to_the_mean_and_match_texels_when_near():
    image = torch.rand((16, 16, 3), generator=seeded(1))
    atlas = pack_atlas([torch.zeros(16, 16, 3), image])
    layer = torch.ones(256, dtype=torch.int64)
    y, x = torch.meshgrid(torch.arange(16), torch.arange(16), indexing="ij")
    u, v = ((i.flatten() + 0.5) / 16 for i in (x, y))
    near = atlas.colour(layer, u - 3, v + 2, torch.zeros(256))  # it repeats
    torch.testing.assert_close(near.T.reshape(16, 16, 3), image, atol=3e-3, rtol=0)
    far = atlas.colour(layer, u, v, torch.full((256,), 9.0))
    torch.testing.assert_close(far, image.mean((0, 1))[:, None].expand(3, 256), atol=6e-3, rtol=0)
    middle = atlas.colour(layer, u, v, torch.full((256,), 1.5))
    halves = [atlas.colour(layer, u, v, torch.full((256,), level)) for level in (1.0, 2.0)]
    torch.testing.assert_close(middle, (halves[0] + halves[1]) / 2, atol=1e-5, rtol=0)
    assert near.std() > middle.std() > far.std()


def test_every_pattern_tiles_without_a_seam_and_has_texture():
    atlas = make_atlas(12, 128, seeded(5))
    n = (4 * 128 * 128 - 1) // 3
    images = atlas.texels.view(torch.uint8).reshape(12, n, 4)[:, : 128 * 128, :3].reshape(12, 128, 128, 3).float()
    for image in images:
        assert image.std() > 8
        seam = (image[:, 0] - image[:, -1]).abs().mean()
        steps = (image[:, 1:] - image[:, :-1]).abs().mean((0, 2))
        assert seam < 3 * steps.quantile(0.95) + 4


def test_atlas_size_must_be_a_power_of_two():
    with pytest.raises(ValueError, match="size must be a power of two, got 100"):
        make_atlas(12, 100, seeded(1))


def test_flaws_keep_the_form_and_change_the_picture_by_the_seed():
    images = torch.rand((2, 2, 24, 40, 3), generator=seeded(1))
    one, again, other = (degrade(images, seeded(s)) for s in (1, 1, 2))
    assert one.shape == images.shape and one.min() >= 0 and one.max() <= 1
    assert torch.equal(one, again) and not torch.allclose(one, other)


def test_no_flaws_when_every_limit_is_nothing():
    none = PhotometricRange(0, 0, 0, 0, 0, 0, 0)
    images = 0.1 + 0.8 * torch.rand((3, 24, 40, 3), generator=seeded(1))
    torch.testing.assert_close(degrade(images, seeded(1), none), images, atol=1e-5, rtol=0)


def test_light_changes_colours_hardly_greys_and_brightness_smoothly():
    light, again = random_light(500, seeded(1)), random_light(500, seeded(1))
    assert torch.equal(light.palettes, again.palettes) and torch.equal(light.stops, again.stops)
    grey = light.palettes @ torch.ones(3)
    assert grey.min() > 2**-0.31 and grey.max() < 2**0.31
    red = light.palettes @ torch.tensor([1.0, 0.0, 0.0]) / grey  # without the tint
    torch.testing.assert_close((light.palettes / grey[..., None]).sum(-1), torch.ones(500, 3))
    chroma = (red - 1 / 3).norm(dim=-1) / (2 / 3) ** 0.5  # against the chroma of pure red
    assert chroma.min() < 0.1 and 1.4 < chroma.max() <= 1.5 + 1e-4
    assert (red.argmax(-1) == 0).float().mean() > 0.6  # most hues turn by little, some all the way
    assert set(red.argmax(-1).tolist()) == {0, 1, 2}
    top, bottom = light.stops[:, :, 0].mean(-1), light.stops[:, :, -1].mean(-1)
    assert 0.4 < (top > bottom).float().mean() < 0.6
    assert (top - bottom).abs().max() > 1.5


def test_light_brightens_where_its_stops_say():
    stops = torch.zeros(2, 2, 4, 5)
    stops[0, 1] = torch.linspace(1, -1, 4)[:, None]
    light = OtherLight(torch.eye(3).repeat(2, 1, 1), stops)
    rgb = torch.full((2, 2, 31, 40, 3), 100, dtype=torch.uint8)
    lit = light(rgb)
    assert torch.equal(lit[0, 0], rgb[0, 0]) and torch.equal(lit[1], rgb[1])
    rows = lit[0, 1, :, 7, 1]
    assert rows[0] == 200 and rows[-1] == 50 and abs(int(rows[15]) - 100) <= 1
    assert (rows[1:].int() <= rows[:-1].int()).all()


def test_jpeg_loses_what_a_real_encoder_loses():
    import cv2

    y, x = np.mgrid[0:64, 0:96]
    smooth = np.stack([x * 2.5, y * 3.5, 255 - x * 2], -1) + np.random.default_rng(0).normal(0, 12, (64, 96, 3))
    image = np.clip(smooth, 0, 255).astype(np.uint8)
    tensor = torch.from_numpy(image).permute(2, 0, 1)[None] / 255
    previous = 0.0
    for quality in (95, 60, 20):
        coded = cv2.imencode(".jpg", image[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, quality])[1]
        real = cv2.imdecode(coded, cv2.IMREAD_COLOR)[..., ::-1].astype(float)
        ours = jpeg(tensor, torch.tensor([float(quality)]))[0].permute(1, 2, 0).numpy() * 255
        lost, lost_really = np.abs(ours - image).mean(), np.abs(real - image).mean()
        assert lost == pytest.approx(lost_really, rel=0.15)
        assert np.abs(ours - real).mean() < 0.6 * lost_really
        assert lost > previous
        previous = lost
