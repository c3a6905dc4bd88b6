"""What is made of pairs, against walls seen from known places and against rendered scenes."""

import pytest
import torch
from training_pairs import PATCH, pointmaps, walls

from dust3r_ros.network.heads import image_from, tiles_from
from dust3r_ros.training.assess import held_out_pairs
from dust3r_ros.training.pairs import (
    HELD_OUT_SEED,
    ChunkRequest,
    RenderedPairs,
    RenderSettings,
    chunk_seed,
    network_images,
    pair_geometry,
    token_matches,
)
from dust3r_ros.training.photometric import OtherLight

SIZE = (56, 84)
COLUMNS = SIZE[1] // PATCH


@pytest.fixture(scope="module")
def rendered() -> RenderedPairs:
    return RenderedPairs(RenderSettings(seed=3, textures=24, texture_size=32, scenes=4, pairs=2))


def test_a_wall_is_flat_in_the_first_cameras_frame():
    geometry = pointmaps(walls(2, depth=4.0, move=(0.5, 0.0, 1.0)))
    for points in geometry.points:
        torch.testing.assert_close(points[..., 2], torch.full((2, *SIZE), 4.0))
    # The middle of the second image is straight before its camera, which stands half a metre to the right.
    centre = geometry.points[1][0, SIZE[0] // 2 - 1 : SIZE[0] // 2 + 1, SIZE[1] // 2 - 1 : SIZE[1] // 2 + 1].mean(
        (0, 1)
    )
    torch.testing.assert_close(centre, torch.tensor([0.5, 0.0, 4.0]), atol=1e-5, rtol=0)
    assert all(bool(valid.all()) for valid in geometry.valid)


def test_tiles_are_the_same_pixels_in_another_order(rendered):
    batch = rendered.make(ChunkRequest(6, SIZE, (0.03, 1.0)))
    image, tiled = pair_geometry(batch), pair_geometry(batch, PATCH)
    grid = (SIZE[0] // PATCH, COLUMNS)
    for one, two in zip(image.points, tiled.points):
        torch.testing.assert_close(image_from(two, grid, PATCH), one.movedim(1, -1))
    for one, two in zip(image.valid, tiled.valid):
        assert torch.equal(image_from(two[:, None], grid, PATCH)[..., 0], one)
    assert torch.equal(tiles_from(batch.depth, PATCH)[:, 0] > 0, tiled.valid[0])


def test_sky_is_not_valid():
    batch = walls(1)
    batch.depth[0, 0, :5] = 0
    geometry = pointmaps(batch)
    assert not geometry.valid[0][0, :5].any()
    assert geometry.valid[0][0, 5:].all()
    assert geometry.valid[1].all()


@pytest.mark.parametrize("tokens", [0, 1, -2])
def test_tokens_match_across_a_known_shift(tokens):
    batch = walls(1, depth=4.0, move=(4.0 * tokens * PATCH / SIZE[1], 0.0, 0.0))
    match = token_matches(batch, PATCH).view(-1, COLUMNS)
    for row in range(SIZE[0] // PATCH):
        for column in range(COLUMNS):
            there = column - tokens
            assert match[row, column] == (row * COLUMNS + there if 0 <= there < COLUMNS else -1)


def test_hidden_surfaces_have_no_match():
    batch = walls(1)
    batch.depth[0, 1, :, : SIZE[1] // 2] = 2.0  # something nearer in the left half of the second view
    match = token_matches(batch, PATCH).view(-1, COLUMNS)
    assert (match[:, : COLUMNS // 2] == -1).all()
    assert (match[:, COLUMNS // 2 :] >= 0).all()


def test_rendered_views_agree_about_the_surfaces_both_see(rendered):
    """A pixel of the second view, put into the first by the geometry, lands on the same depth and colour there."""
    batch = rendered.make(ChunkRequest(0, (84, 112), (0.03, 0.3)))
    geometry = pointmaps(batch)
    k = batch.intrinsics[:, 0, None, None]
    points = geometry.points[1]
    z = points[..., 2].clamp(min=1e-3)
    column = (k[..., 0] * points[..., 0] / z + k[..., 2]).floor().long()
    row = (k[..., 1] * points[..., 1] / z + k[..., 3]).floor().long()
    inside = (column >= 0) & (column < 112) & (row >= 0) & (row < 84) & geometry.valid[1] & (points[..., 2] > 0)
    pair, y, x = inside.nonzero().unbind(1)
    here, there = (pair, row[inside], column[inside]), (pair, y, x)
    depth = geometry.points[0][here][:, 2]
    same = ((depth - points[there][:, 2]).abs() < 0.03 * depth) & (depth > 0)
    assert same.float().mean() > 0.6
    colour = (batch.rgb[:, 0][here].float() - batch.rgb[:, 1][there].float()).abs().mean(1)
    assert colour[same].median() < 12
    assert colour[same].median() < 0.4 * colour[~same].median()


def test_swapping_twice_and_mirroring_twice_change_nothing(rendered):
    batch = rendered.make(ChunkRequest(1, SIZE, (0.03, 1.0)))
    for turned in (batch.swapped().swapped(), batch.mirrored().mirrored()):
        for name in ("rgb", "depth", "intrinsics", "second_to_first"):
            torch.testing.assert_close(getattr(turned, name), getattr(batch, name), atol=1e-4, rtol=1e-5)


def test_a_mirrored_pair_has_mirrored_points_and_matches(rendered):
    batch = rendered.make(ChunkRequest(2, SIZE, (0.03, 1.0)))
    plain, mirrored = pointmaps(batch), pointmaps(batch.mirrored())
    for one, two in zip(plain.points, mirrored.points):
        torch.testing.assert_close(two.flip(2) * torch.tensor([-1.0, 1.0, 1.0]), one, atol=1e-3, rtol=1e-4)
    wall = walls(1, move=(4.0 * PATCH / SIZE[1], 0.0, 0.0))
    match = token_matches(wall.mirrored(), PATCH).view(-1, COLUMNS)
    assert (match[:, -1] == -1).all()
    assert match[0, 0] == 1


def test_relit_views_keep_their_geometry_and_both_take_the_pairs_own_palette(rendered):
    batch = rendered.make(ChunkRequest(7, SIZE, (0.03, 1.0)))[:2]
    exchange = torch.tensor([[0.0, 1, 0], [1, 0, 0], [0, 0, 0.5]])  # red with green, half the blue
    other = batch.relit(OtherLight(torch.stack([torch.eye(3), exchange]), torch.zeros(2, 2, 2, 2)))
    assert torch.equal(other.rgb[0], batch.rgb[0])
    red, green, blue = batch.rgb[1].unbind(-1)
    assert torch.equal(other.rgb[1], torch.stack([green, red, (blue / 2).round().to(torch.uint8)], -1))
    for name in ("depth", "intrinsics", "second_to_first"):
        assert torch.equal(getattr(other, name), getattr(batch, name))


def test_swapped_geometry_is_the_same_world(rendered):
    batch = rendered.make(ChunkRequest(3, SIZE, (0.03, 1.0)))
    first, second = pointmaps(batch).points
    own = pointmaps(batch.swapped()).points[0]  # the second view's points in its own frame
    pose = batch.second_to_first
    moved = torch.einsum("bij,bhwj->bhwi", pose[:, :3, :3], own) + pose[:, None, None, :3, 3]
    torch.testing.assert_close(moved, second, atol=1e-3, rtol=1e-4)
    assert not torch.allclose(first, second, atol=0.1)


def test_a_request_gives_the_same_pairs_again_and_another_gives_others(rendered):
    request = ChunkRequest(4, SIZE, (0.03, 1.0))
    one, again = rendered.make(request), rendered.make(request)
    other = rendered.make(ChunkRequest(5, SIZE, (0.03, 1.0)))
    assert torch.equal(one.rgb, again.rgb)
    assert torch.equal(one.second_to_first, again.second_to_first)
    assert not torch.equal(one.rgb, other.rgb)
    assert len(one) == 8
    assert one.size == SIZE


def test_seeds_of_chunks_do_not_collide():
    seeds = {chunk_seed(seed, number) for seed in range(20) for number in range(500)}
    assert len(seeds) == 20 * 500
    assert 2**31 <= HELD_OUT_SEED < 2**32  # above every seed that an option allows
    assert max(seeds) < 2**32


def test_held_out_scenes_have_other_objects_and_textures():
    one, held_out = (RenderedPairs(RenderSettings(seed, 24, 32, scenes=1))._sampler for seed in (0, HELD_OUT_SEED))
    assert not torch.equal(one.meshes, held_out.meshes)
    assert not torch.equal(one.atlas.texels, held_out.atlas.texels)


def test_held_out_pairs_are_always_the_same():
    one, two = held_out_pairs((28, 42), 10), held_out_pairs((28, 42), 10)
    assert len(one) >= 10
    assert torch.equal(one.rgb, two.rgb)


def test_images_are_in_range_and_flaws_are_drawn_anew():
    batch = walls(3)
    clean = network_images(batch)
    assert clean.shape == (3, 2, 3, *SIZE)
    torch.testing.assert_close((clean.permute(0, 1, 3, 4, 2) + 1) / 2 * 255, batch.rgb.float(), atol=1e-3, rtol=0)
    generator = torch.Generator().manual_seed(0)
    one, two = network_images(batch, generator), network_images(batch, generator)
    assert one.abs().max() <= 1
    assert (one - two).abs().mean() > 0.01
