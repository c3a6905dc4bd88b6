"""The ray caster against geometry worked out by hand."""

import math

import numpy as np
import pytest
import torch

from dust3r_ros.training.library import CONE, CYLINDER, DOME, HOURGLASS, SPHERE, frustum
from dust3r_ros.training.raycast import Cameras, Caster
from dust3r_ros.training.render import render, render_depth
from dust3r_ros.training.scenes import SceneKind, SceneSampler, concatenate
from dust3r_ros.training.solids import PLANES, Kind, Solids, invert_affine
from dust3r_ros.training.textures import make_atlas

SIZE = (48, 64)
K = torch.tensor([50.0, 50.0, 32.0, 24.0])
IDENTITY = torch.eye(4)


def one_solid(kind: Kind, centre=(0.0, 0.0, 4.0), half=(1.0, 1.0, 1.0), quadric=SPHERE, planes=None) -> Solids:
    affine = torch.cat([torch.diag(torch.tensor(half)), torch.tensor(centre)[:, None]], 1)[None, None]
    faces = torch.tensor([0.0, 0.0, 0.0, 1.0]).repeat(1, 1, PLANES, 1)
    if planes is not None:
        faces[0, 0, : len(planes)] = torch.tensor(planes)
    return Solids(
        torch.tensor([[int(kind)]]), affine, invert_affine(affine), torch.tensor(quadric).view(1, 1, 3), faces
    )


def depth_of(solids: Solids, pose: torch.Tensor = IDENTITY) -> torch.Tensor:
    return Caster(solids, Cameras(torch.zeros(1, dtype=torch.int64), pose[None], K[None])).primary(*SIZE).t[0]


def rays() -> tuple[torch.Tensor, torch.Tensor]:
    u, v = torch.arange(SIZE[1]) + 0.5, torch.arange(SIZE[0])[:, None] + 0.5
    return ((u - 32) / 50).expand(SIZE).double(), ((v - 24) / 50).expand(SIZE).double()


def sphere_depth(radius: float, z: float) -> torch.Tensor:
    x, y = rays()
    a = x * x + y * y + 1
    discriminant = z * z - a * (z * z - radius * radius)
    return torch.where(discriminant > 0, (z - discriminant.clamp(min=0).sqrt()) / a, torch.inf)


def test_a_wall_has_the_same_depth_everywhere():
    depth = depth_of(one_solid(Kind.BOX, (0, 0, 5.5), (20.0, 20.0, 0.5)))
    torch.testing.assert_close(depth, torch.full(SIZE, 5.0), rtol=1e-6, atol=0)


def test_a_slanted_plane_follows_its_equation():
    angle = 0.5
    solids = one_solid(Kind.BOX)
    c, s = math.cos(angle), math.sin(angle)
    turn = torch.tensor([[c, 0, s], [0, 1, 0], [-s, 0, c]]) * torch.tensor([30.0, 30.0, 1e-3])
    affine = torch.cat([turn, torch.tensor([[0.0], [0.0], [6.0]])], 1)[None, None]
    solids = Solids(solids.kind, affine, invert_affine(affine), solids.quadric, solids.planes)
    x, _ = rays()
    expected = (6 * c - 1e-3) / (s * x + c)  # normal (s, 0, c), the near face
    torch.testing.assert_close(depth_of(solids).double(), expected, rtol=2e-5, atol=0)


@pytest.mark.parametrize(("radius", "z"), [(1.0, 4.0), (0.05, 3.0), (30.0, 100.0)])
def test_a_sphere_has_the_depth_of_the_quadratic_formula(radius, z):
    depth = depth_of(one_solid(Kind.QUADRIC, (0, 0, z), (radius,) * 3)).double()
    expected = sphere_depth(radius, z)
    inside = torch.isfinite(expected) & torch.isfinite(depth)
    assert (torch.isfinite(expected) != torch.isfinite(depth)).sum() <= 4  # rounding on the outline
    assert inside.sum() >= 4
    assert ((depth - expected).abs()[inside] < 2e-4 * radius + 1e-6 * z).float().mean() > 0.97


def test_a_cylinder_across_the_view_is_met_at_its_near_side():
    solids = one_solid(Kind.QUADRIC, half=(1.0, 1.0, 1.0), quadric=CYLINDER)
    depth = depth_of(solids)
    torch.testing.assert_close(depth[24, 32], torch.tensor(3.0), rtol=1e-5, atol=0)  # the flat cap faces the camera
    x, y = rays()
    cap = (3 * x) ** 2 + (3 * y) ** 2 < 0.98
    torch.testing.assert_close(depth[cap], torch.full_like(depth[cap], 3.0), rtol=1e-5, atol=0)
    assert torch.isinf(depth[(3 * x) ** 2 + (3 * y) ** 2 > 1.02]).all()


@pytest.mark.parametrize("quadric", [SPHERE, CYLINDER, CONE, DOME, HOURGLASS, frustum(0.3, 0.9), (1.0, 0.2, -0.5)])
@pytest.mark.parametrize("seed", [0, 1])
def test_quadrics_agree_with_marching_along_the_ray(quadric, seed):
    """First point inside, found by brute force on a fine grid of the ray."""
    generator = torch.Generator().manual_seed(seed)
    turn = torch.linalg.qr(torch.randn(3, 3, generator=generator)).Q
    affine = torch.cat([turn, torch.tensor([[0.1], [-0.1], [4.0]])], 1)[None, None]
    solids = one_solid(Kind.QUADRIC, quadric=quadric)
    solids = Solids(solids.kind, affine, invert_affine(affine), solids.quadric, solids.planes)
    depth = depth_of(solids).double()
    t = torch.arange(2.0, 6.0, 0.008, dtype=torch.float64)
    x, y = rays()
    points = torch.stack([x, y, torch.ones_like(x)], -1)[:, :, None] * t[:, None]
    inverse = solids.world_to_local[0, 0].double()
    local = points @ inverse[:, :3].T + inverse[:, 3]
    a, b, c = quadric
    px, py, pz = local.unbind(-1)
    inside = (px**2 + py**2 <= a + b * pz + c * pz**2) & (pz.abs() <= 1)
    first = torch.where(inside.any(-1), t[inside.int().argmax(-1)], torch.inf)
    both = torch.isfinite(first) & torch.isfinite(depth)
    assert both.sum() > 200
    assert (torch.isfinite(first) != torch.isfinite(depth)).float().mean() < 0.01
    assert ((first - depth)[both].abs() < 0.0085).float().mean() > 0.985


def test_a_polyhedron_made_of_the_cubes_planes_is_the_cube():
    planes = [[*sign, 1.0] for sign in np.concatenate([np.eye(3), -np.eye(3)]).tolist()]
    pose = IDENTITY.clone()
    pose[:3, 3] = torch.tensor([0.7, -0.4, 0.0])
    box, poly = (depth_of(one_solid(k, planes=planes), pose) for k in (Kind.BOX, Kind.POLYHEDRON))
    assert torch.isfinite(box).sum() > 200
    torch.testing.assert_close(box, poly, rtol=1e-5, atol=1e-5)


def test_a_triangle_covers_the_pixels_its_corners_enclose():
    depth = depth_of(one_solid(Kind.TRIANGLE, (0, 0, 4.0), (1.0, 1.0, 1.0)))
    x, y = (4 * value for value in rays())
    expected = (x > -1) & (y > -1) & (x + y < 0)
    clear = torch.stack([x + 1, y + 1, x + y]).abs().amin(0) > 0.01  # of the outline
    assert expected[clear].sum() > 200
    assert torch.equal(torch.isfinite(depth)[clear], expected[clear])
    torch.testing.assert_close(depth[expected & torch.isfinite(depth)].max(), torch.tensor(4.0), rtol=1e-6, atol=0)


def test_a_room_is_seen_from_within():
    depth = depth_of(one_solid(Kind.ROOM, (0, 0, 1.0), (3.0, 3.0, 3.0)))
    torch.testing.assert_close(depth[24, 32], torch.tensor(4.0), rtol=1e-5, atol=0)
    assert torch.isfinite(depth).all()


def test_a_shape_behind_the_camera_is_not_seen():
    assert torch.isinf(depth_of(one_solid(Kind.QUADRIC, (0, 0, -4.0)))).all()


def test_a_shape_that_reaches_behind_the_camera_is_seen_in_full():
    floor = one_solid(Kind.BOX, (0, 1.5, 0.0), (50.0, 0.5, 50.0))  # y down: the floor is 1 below the camera
    depth = depth_of(floor).double()
    _, y = rays()
    below = y > 0.03
    torch.testing.assert_close(depth[below], 1 / y[below], rtol=1e-5, atol=0)
    assert torch.isinf(depth[y < 0]).all()


@pytest.fixture(scope="module")
def sampler() -> SceneSampler:
    return SceneSampler(make_atlas(12, 64, torch.Generator().manual_seed(3)), variants=60)


def scene(sampler: SceneSampler, kind: SceneKind, count: int = 1, seed: int = 5):
    return sampler.sample(kind, count, torch.Generator().manual_seed(seed))


def pose_at(scenes, yaw: float = 0.6, shift: float = 0.0) -> torch.Tensor:
    from dust3r_ros.training.cameras import look_at

    centre = scenes.free[:, 0] * 0.5 + scenes.free[:, 1] * 0.5
    centre[:, 0] += shift
    centre[:, 2] = 1.4
    ahead = torch.tensor([math.cos(yaw), math.sin(yaw), -0.2])
    return look_at(centre, centre + ahead)[:, None]


@pytest.mark.parametrize("kind", list(SceneKind))
def test_points_of_one_view_lie_on_the_same_surface_and_colour_in_another(sampler, kind):
    scenes = scene(sampler, kind)
    poses = torch.cat([pose_at(scenes), pose_at(scenes, yaw=0.75, shift=0.25)], 1)
    k = torch.tensor([160.0, 160.0, 96.0, 72.0])
    views = render(scenes, poses, k, (144, 192), antialias=False)
    points = views.points_world()[0, 0]
    back = torch.linalg.inv(poses[0, 1].double())
    camera = points.double() @ back[:3, :3].T + back[:3, 3]
    u, v = (160 * camera[..., i] / camera[..., 2] + (96, 72)[i] for i in (0, 1))
    row, column = (v - 0.5).round().long(), (u - 0.5).round().long()
    ok = (camera[..., 2] > 0) & (row >= 0) & (row < 144) & (column >= 0) & (column < 192) & (views.depth[0, 0] > 0)
    row, column = row.clamp(0, 143), column.clamp(0, 191)
    same = ok & (views.shape[0, 1][row, column] == views.shape[0, 0])
    same &= (views.normals[0, 1][row, column] * views.normals[0, 0]).sum(-1) > 0.999
    assert same.float().mean() > 0.3
    other = views.points_world()[0, 1][row, column]
    off_plane = ((other - points) * views.normals[0, 0]).sum(-1).abs()  # the same face, up to half a pixel along it
    assert off_plane[same].median() < 1e-4
    seen = same & ((other - points).square().sum(-1).sqrt() < 0.1)
    difference = (views.rgb[0, 1][row, column] - views.rgb[0, 0]).abs().mean(-1)
    shuffled = (views.rgb[0, 1].flip(0)[row, column] - views.rgb[0, 0]).abs().mean(-1)
    assert difference[seen].mean() < 0.35 * shuffled[seen].mean()
    assert difference[seen].median() < 0.04


def test_a_share_of_the_surfaces_is_plain_and_differs_by_scene(sampler):
    plainer = SceneSampler(sampler.atlas, variants=60, plain=0.4)
    scenes = plainer.mixed(40, torch.Generator().manual_seed(5))
    there = scenes.solids.kind != Kind.EMPTY
    plain = (scenes.materials.tiles_per_metre[..., 0] > 1e3) & there
    assert 0.3 < plain.sum() / there.sum() < 0.5
    shares = plain.sum(1) / there.sum(1)
    assert shares.min() < 0.15 and shares.max() > 0.65
    rooms = scenes.select(slice(0, 20))
    views = render(rooms, pose_at(rooms), torch.tensor([160.0, 160.0, 96.0, 72.0]), (144, 192), antialias=False)
    shape = views.shape[:, 0]
    inside = (shape[:, :, 1:] == shape[:, :, :-1]) & (views.normals[:, 0, :, 1:] == views.normals[:, 0, :, :-1]).all(-1)
    change = (views.rgb[:, 0, :, 1:] - views.rgb[:, 0, :, :-1]).abs().mean(-1)
    of_plain = plain[:20].gather(1, shape[:, :, 1:].flatten(1).clamp(min=0)).view_as(inside)
    assert change[inside & of_plain].median() < 0.3 * change[inside & ~of_plain].median()


def test_normals_are_those_of_the_points(sampler):
    scenes = scene(sampler, SceneKind.ROOM)
    views = render(scenes, pose_at(scenes), torch.tensor([160.0, 160.0, 96.0, 72.0]), (144, 192))
    points, normals = views.points_world()[0, 0].double(), views.normals[0, 0].double()
    across, down = points[1:-1, 2:] - points[1:-1, :-2], points[2:, 1:-1] - points[:-2, 1:-1]
    estimated = torch.nn.functional.normalize(torch.linalg.cross(down, across), dim=-1)
    agree = (estimated * normals[1:-1, 1:-1]).sum(-1)
    assert agree.median() > 0.9999
    assert (agree > 0.99).double().mean() > 0.75
    torch.testing.assert_close(normals.norm(dim=-1), torch.ones(144, 192, dtype=torch.float64))
    towards = poses_centre(views) - points
    assert ((towards * normals).sum(-1) > -1e-5).all()


def poses_centre(views) -> torch.Tensor:
    return views.camera_to_world[0, 0, :3, 3].double()


def test_a_seed_gives_the_same_scene_and_another_seed_another(sampler):
    one, again, other = (scene(sampler, SceneKind.ROOM, seed=s) for s in (7, 7, 8))
    assert torch.equal(one.solids.local_to_world, again.solids.local_to_world)
    pictures = [render(s, pose_at(s), K, SIZE).rgb for s in (one, again, other)]
    assert torch.equal(pictures[0], pictures[1])
    assert not torch.allclose(pictures[0], pictures[2])


def test_a_batch_gives_what_each_scene_gives_alone(sampler):
    batch = concatenate([scene(sampler, kind, 2) for kind in SceneKind])
    poses = torch.cat([pose_at(batch), pose_at(batch, yaw=2.0)], 1)
    together = render(batch, poses, K, SIZE)
    for index in range(len(batch)):
        alone = render(batch.select(slice(index, index + 1)), poses[index : index + 1], K, SIZE)
        torch.testing.assert_close(alone.rgb[0], together.rgb[index], atol=2e-3, rtol=0)
        torch.testing.assert_close(alone.depth[0], together.depth[index], rtol=1e-5, atol=1e-5)


def test_depth_alone_is_the_depth_of_the_picture(sampler):
    scenes = scene(sampler, SceneKind.OUTDOOR)
    views = render(scenes, pose_at(scenes), K, SIZE)
    assert torch.equal(render_depth(scenes, pose_at(scenes), K, SIZE), views.depth)
    assert (views.depth == 0).equal(views.shape < 0)
    assert 0.02 < (views.depth == 0).float().mean() < 0.9  # some sky


def test_antialiasing_changes_borders_only_and_no_geometry(sampler):
    scenes = scene(sampler, SceneKind.ROOM)
    k = torch.tensor([160.0, 160.0, 96.0, 72.0])
    fine, coarse = (render(scenes, pose_at(scenes), k, (144, 192), antialias=a) for a in (True, False))
    assert torch.equal(fine.depth, coarse.depth)
    changed = ((fine.rgb - coarse.rgb).abs().amax(-1) > 1e-6)[0, 0]
    assert 0.005 < changed.float().mean() < 0.5
    large = render(scenes, pose_at(scenes), 4 * k, (576, 768), antialias=False).rgb[0, 0]
    reference = torch.nn.functional.avg_pool2d(large.permute(2, 0, 1), 4).permute(1, 2, 0)
    errors = [(v.rgb[0, 0] - reference).abs().mean(-1)[changed].mean() for v in (fine, coarse)]
    assert errors[0] < 0.7 * errors[1]


def test_a_solid_casts_a_shadow_where_the_line_to_the_light_is_cut():
    ground = one_solid(Kind.BOX, (0, 0, 5.5), (20.0, 20.0, 0.5))
    ball = one_solid(Kind.QUADRIC, (0.0, 0.0, 4.0), (0.3, 0.3, 0.3))
    solids = Solids(*(torch.cat([getattr(ground, n), getattr(ball, n)], 1) for n in Solids.__dataclass_fields__))
    cameras = Cameras(torch.zeros(1, dtype=torch.int64), IDENTITY[None], K[None])
    caster = Caster(solids, cameras)
    hits = caster.primary(*SIZE)
    light = torch.tensor([[-2.0, 0.0, 2.0]])
    points = cameras.rays(*SIZE) * hits.t[:, None]
    lit = caster.lit(points, light, torch.ones((1, *SIZE), dtype=torch.bool))[0]
    to_light = light[0, :, None, None] - points[0]
    offset = torch.tensor([0.0, 0.0, 4.0])[:, None, None] - points[0]
    along = (offset * to_light).sum(0) / to_light.square().sum(0)
    apart = (offset - along.clamp(0, 1) * to_light).square().sum(0).sqrt()
    on_ground = hits.shape[0] == 0
    assert ((lit == 0) == (apart < 0.3))[on_ground].float().mean() > 0.995
    assert (lit[on_ground] == 0).sum() > 10


def test_refuses_cameras_of_another_form(sampler):
    scenes = scene(sampler, SceneKind.ROOM)
    with pytest.raises(ValueError, match=r"camera_to_world must be \(1, V, 4, 4\), got \(4, 4\)"):
        render(scenes, IDENTITY, K, SIZE)
    with pytest.raises(ValueError, match="intrinsics must be"):
        render(scenes, IDENTITY[None, None], K[:3], SIZE)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_cuda_renders_what_the_cpu_renders(sampler):
    scenes = scene(sampler, SceneKind.ROOM)
    here, there = (render(scenes.to(d), pose_at(scenes).to(d), K.to(d), SIZE) for d in ("cpu", "cuda"))
    torch.testing.assert_close(there.depth.cpu(), here.depth, rtol=1e-4, atol=1e-4)
    assert (there.rgb.cpu() - here.rgb).abs().mean() < 1e-3
