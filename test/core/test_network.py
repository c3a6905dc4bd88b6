import copy
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from network_golden import CONFIGS, MINI, golden_image, golden_model, golden_state, meta_model

from dust3r_ros.network import Dust3rNetwork, NetworkConfig, count_parameters, for_inference
from dust3r_ros.network.heads import confidence_from, points_from
from dust3r_ros.network.places import FEATURES, place_features
from dust3r_ros.network.rope import make_rotation, rotate, rotation_caches
from dust3r_ros.ros.memory import release_memory

OUTPUTS = {"points_i": "pts3d_1", "conf_i": "conf_1", "points_j": "pts3d_2_in_1", "conf_j": "conf_2"}


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def mini() -> Dust3rNetwork:
    return golden_model(MINI)


def run(model: Dust3rNetwork, file: Path) -> dict[str, np.ndarray]:
    height, width = map(int, re.search(r"(\d+)x(\d+)", file.stem).groups())
    with torch.inference_mode():
        tokens_a = model.encode(golden_image("a", height, width))
        tokens_b = model.encode(golden_image("b", height, width))
        maps = model.decode(tokens_a, tokens_b, (height, width))
    outputs = {golden: getattr(maps, name)[0].numpy() for name, golden in OUTPUTS.items()}
    return {"tokens_a": tokens_a[0].float().numpy(), **outputs}


def relative_error(array: np.ndarray, reference: np.ndarray) -> float:
    return float(np.linalg.norm(array.astype(np.float64) - reference) / np.linalg.norm(reference))


def errors(model: Dust3rNetwork, file: Path) -> dict[str, float]:
    reference = np.load(file)
    return {name: relative_error(array, reference[name]) for name, array in run(model, file).items()}


def logarithmic(outputs) -> dict[str, np.ndarray]:
    """What the network predicts before the exponential of its outputs, which magnifies any error."""
    logs = {"tokens_a": outputs["tokens_a"]}
    for name in ("pts3d_1", "pts3d_2_in_1"):
        length = np.linalg.norm(outputs[name], axis=-1, keepdims=True)
        logs[name] = outputs[name] / length * np.log1p(length)
    for name in ("conf_1", "conf_2"):
        logs[name] = np.log(outputs[name] - 1 + 1e-6)
    return logs


def check_single_precision(model: Dust3rNetwork, file: Path) -> None:
    for network in (model, for_inference(model)):
        assert max(errors(network, file).values()) < 2e-5


def check_half_precision(model: Dust3rNetwork, file: Path) -> None:
    """bfloat16 and float16 against golden outputs; leaves the model's weights rounded."""
    check_float16(model.set_dtype(torch.float16), file)
    check_bfloat16(model.set_dtype(torch.bfloat16), file)


def check_float16(model: Dust3rNetwork, file: Path) -> None:
    for network in (model, for_inference(model)):
        assert max(errors(network, file).values()) < 1e-2  # 3.3e-3 and 6.3e-3 on two processors


def check_bfloat16(model: Dust3rNetwork, file: Path) -> None:
    reference = np.load(file)
    for network in (model, for_inference(model)):
        outputs = run(network, file)
        before, before_reference = logarithmic(outputs), logarithmic(reference)
        assert max(relative_error(before[name], before_reference[name]) for name in before) < 2e-2
        if model.config.head == "linear":
            assert max(relative_error(outputs[name], reference[name]) for name in outputs) < 2e-2


@pytest.mark.parametrize("size", ["48x64", "64x48"])
@pytest.mark.parametrize("name", ["small_linear", "small_dpt"])
def test_small_models_give_the_golden_outputs(shared, name, size):
    file = shared / "golden" / f"{name}_{size}.npz"
    model = golden_model(CONFIGS[name])
    check_single_precision(model, file)
    check_half_precision(model, file)


@pytest.fixture
def memory_given_back() -> Iterator[None]:
    """Gigabytes that a test has freed would stay with the process for all that come after."""
    yield
    release_memory()


def test_vit_large_models_give_the_golden_outputs(shared, memory_given_back):
    dpt = golden_model(CONFIGS["vitl_512_dpt"])
    file = shared / "golden" / "vitl_512_dpt_64x96.npz"
    check_single_precision(dpt, file)

    linear = meta_model(CONFIGS["vitl_linear"])  # same names but for the heads, so the same golden weights
    body = {n: v for n, v in dpt.state_dict().items() if not n.startswith("downstream_head")}
    heads = golden_state(CONFIGS["vitl_linear"], "downstream_head")
    linear.load_state_dict({**body, **heads}, strict=True, assign=True)
    linear_file = shared / "golden" / "vitl_linear_64x96.npz"
    assert max(errors(linear.eval(), linear_file).values()) < 2e-5

    del body
    check_half_precision(dpt, file)
    del dpt
    check_half_precision(linear, linear_file)


@pytest.mark.parametrize("name", ["vitl_linear", "vitl_512_dpt"])
def test_state_dict_has_the_published_names_and_shapes(shared, name):
    published = (shared / "golden" / f"{name}_keys.txt").read_text().splitlines()
    model = meta_model(CONFIGS[name])
    assert sorted(f"{key} {tuple(value.shape)}" for key, value in model.state_dict().items()) == sorted(published)


def test_parameters_are_counted_once(mini):
    model = meta_model(NetworkConfig())
    twice = sum(v.numel() for n, v in model.state_dict().items() if re.search(r"scratch\.layer\d_rn", n))
    assert count_parameters(model) == sum(v.numel() for v in model.state_dict().values()) - twice
    assert count_parameters(meta_model(NetworkConfig(enc_dim=192, enc_depth=8, enc_heads=3, dec_dim=144,
                                                     dec_depth=6, dec_heads=3, head="linear"))) < 10e6  # fmt: skip


def test_both_decoders_read_each_others_previous_block(mini):
    """The result for view i must depend on view j through every block, and not on the order of computation."""
    a, b, c = (mini.encode(golden_image(name, 32, 48)) for name in "abc")
    with torch.no_grad():
        ab, ac = mini.decode(a, b, (32, 48)), mini.decode(a, c, (32, 48))
    assert relative_error(ab.points_i.numpy(), ac.points_i.numpy()) > 1e-3
    memories = {}

    def remember(name):
        def hook(module, args, output):
            memories[name] = (args[1], output)

        return hook

    handles = [
        block.register_forward_hook(remember((side, k)))
        for side, blocks in enumerate((mini.dec_blocks, mini.dec_blocks2))
        for k, block in enumerate(blocks)
    ]
    with torch.no_grad():
        mini.decode(a, b, (32, 48))
    for handle in handles:
        handle.remove()
    for k in range(1, MINI.dec_depth):
        assert memories[0, k][0] is memories[1, k - 1][1]
        assert memories[1, k][0] is memories[0, k - 1][1]


def test_a_batch_equals_its_pairs_one_by_one(mini):
    images = torch.cat([golden_image(name, 48, 32) for name in "abcd"])
    with torch.inference_mode():
        tokens = mini.encode(images)
        assert torch.allclose(tokens, torch.cat([mini.encode(image[None]) for image in images]), atol=1e-5)
        i, j = [0, 1, 2, 0], [1, 0, 3, 3]
        batch = mini.decode(tokens[i], tokens[j], (48, 32))
        for k in range(len(i)):
            one = mini.decode(tokens[i[k] : i[k] + 1], tokens[j[k] : j[k] + 1], (48, 32))
            for name in OUTPUTS:
                torch.testing.assert_close(getattr(batch, name)[k], getattr(one, name)[0], rtol=1e-4, atol=1e-4)


def test_views_of_one_pair_may_differ_in_size(mini):
    """With equal content the second view's grid only adds tokens: each output has its own view's size."""
    with torch.inference_mode():
        a, b = mini.encode(golden_image("a", 48, 64)), mini.encode(golden_image("b", 64, 32))
        maps = mini.decode(a, b, (48, 64), (64, 32))
        same = mini.decode(a, a, (48, 64), (48, 64))
        default = mini.decode(a, a, (48, 64))
    assert maps.points_i.shape == (1, 48, 64, 3)
    assert maps.conf_i.shape == (1, 48, 64)
    assert maps.points_j.shape == (1, 64, 32, 3)
    assert maps.conf_j.shape == (1, 64, 32)
    assert torch.equal(same.points_j, default.points_j)


def test_outputs_are_float32_in_every_dtype(mini):
    model = copy.deepcopy(mini)
    for dtype in (torch.float16, torch.bfloat16):
        model.set_dtype(dtype)
        with torch.inference_mode():
            tokens = model.encode(golden_image("a", 32, 32))
            maps = model.decode(tokens, tokens, (32, 32))
        assert model.dtype == tokens.dtype == dtype
        assert {getattr(maps, name).dtype for name in OUTPUTS} == {torch.float32}
        assert model.enc_norm.weight.dtype == torch.float32
        assert next(model.downstream_head1.parameters()).dtype == torch.float32


@pytest.mark.parametrize("places", [False, True])
def test_it_can_be_trained_after_inference(places):
    """Tables made in inference mode must not break gradients; every weight of inference gets one."""
    model = golden_model(replace(MINI, places=places)).train()
    image = golden_image("a", 32, 48)
    with torch.inference_mode():
        model.encode(image)
    tokens = model.encode(image)
    maps = model.decode(tokens, tokens, (32, 48))
    sum(getattr(maps, name).mean() for name in OUTPUTS).backward()
    without = {name for name, parameter in model.named_parameters() if parameter.grad is None}
    assert all(name == "mask_token" or "refinenet4.resConfUnit1" in name for name in without), without
    assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)


@pytest.mark.parametrize("size", [(32, 40), (0, 32), (8, 8)])
def test_image_sides_must_be_multiples_of_the_patch(mini, size):
    with pytest.raises(ValueError, match=f"multiples of 16 pixels, got {size[0]}x{size[1]}"):
        mini.encode(torch.zeros(1, 3, *size))


def test_tokens_must_fit_their_size(mini):
    tokens = torch.zeros(1, 6, 32)
    with pytest.raises(ValueError, match=r"tokens_j must be \(B, 4, 32\), got \(1, 6, 32\)"):
        mini.decode(tokens, tokens, (32, 48), (32, 32))
    with pytest.raises(ValueError, match="as many, got 1 and 2"):
        mini.decode(tokens, torch.zeros(2, 6, 32), (32, 48))
    with pytest.raises(ValueError, match=r"images must be \(B, 3, H, W\), got \(3, 32, 32\)"):
        mini.encode(torch.zeros(3, 32, 32))


def test_rotary_products_depend_only_on_the_offset():
    grid = (5, 7)
    rotation = make_rotation(grid, 16, 100.0, torch.device("cpu"))
    generator = torch.Generator().manual_seed(0)
    query, key = torch.randn(2, 16, generator=generator)
    everywhere = (1, 1, grid[0] * grid[1], 16)
    products = rotate(query.expand(everywhere), rotation)[0, 0] @ rotate(key.expand(everywhere), rotation)[0, 0].T
    products = products.reshape(*grid, *grid)
    assert torch.allclose(products[0, 0, 2, 3], products[1, 3, 3, 6], atol=1e-5)
    assert torch.allclose(products[4, 5, 1, 0], products[3, 6, 0, 1], atol=1e-5)
    assert not torch.allclose(products[0, 0, 2, 3], products[0, 0, 3, 2], atol=1e-3)
    assert torch.allclose(products[2, 2, 2, 2], query @ key, atol=1e-5)


def test_rotary_frequencies():
    """Channel k of D/4 turns by position * base ** (-4 k / D); the first half by row, the second by column."""
    rotation = make_rotation((3, 4), 16, 100.0, torch.device("cpu"))
    row, column, k = 2, 3, 1
    assert rotation.cos.shape == (12, 2, 4)
    assert rotation.cos[row * 4 + column, 0, k].item() == pytest.approx(np.cos(row * 100 ** (-k / 4)))
    assert rotation.sin[row * 4 + column, 1, k].item() == pytest.approx(np.sin(column * 100 ** (-k / 4)))


def test_rotary_positions_with_a_span_are_those_of_the_image():
    """At half the resolution tokens are twice as far apart; at the span's own they are counted as ever."""
    cpu = torch.device("cpu")
    fine, coarse, counted = (
        make_rotation(*spanned).cos.view(*spanned[0], 2, 4)
        for spanned in (((6, 8), 16, 100.0, cpu, 8), ((3, 4), 16, 100.0, cpu, 8), ((6, 8), 16, 100.0, cpu))
    )
    assert torch.equal(fine, counted)
    assert torch.allclose(coarse, fine[::2, ::2], atol=1e-6)


@pytest.mark.parametrize(("places", "span"), [(False, None), (True, 4)])  # of images of 64 pixels, patches of 16
def test_only_networks_with_places_measure_positions_by_the_image(places, span):
    cpu, grid = torch.device("cpu"), (2, 8)
    config = replace(MINI, places=places)
    assert config.span == span
    for cache, head_dim in zip(rotation_caches(config), (16, 8)):
        assert torch.equal(cache.get(grid, cpu).sin, make_rotation(grid, head_dim, 100.0, cpu, span).sin)


def test_rotation_cache_is_bounded_and_not_in_the_state_dict(mini):
    cache, _ = rotation_caches(mini.config)
    for k in range(1, 200):
        cache.get((1, k), torch.device("cpu"))
    assert len(cache._tables) <= 64
    assert cache.get((1, 199), torch.device("cpu")) is cache.get((1, 199), torch.device("cpu"))
    assert not any("rot" in name for name in mini.state_dict())


def test_places_are_seen_from_the_image_centre_in_halves_of_the_longer_side():
    features = place_features((3, 4), torch.device("cpu")).view(3, 4, FEATURES)
    row, column = -1 / 2, 1.5 / 2
    assert torch.allclose(features[0, 3, :2], torch.tensor([row, column]))
    assert features[0, 3, 2:6].tolist() == pytest.approx(
        [f(np.pi / 2 * place) for f in (np.sin, np.cos) for place in (row, column)], abs=1e-6
    )
    assert torch.allclose(features.flip(0, 1)[..., :2], -features[..., :2])
    doubled = place_features((6, 8), torch.device("cpu")).view(6, 8, FEATURES)
    assert torch.allclose(doubled[..., :2].view(3, 2, 4, 2, 2).mean((1, 3)), features[..., :2], atol=1e-6)


def test_only_places_tell_the_tokens_of_an_empty_image_apart():
    """Rotary positions alone leave equal tokens equal: where they are they do not know."""
    image = torch.full((1, 3, 48, 64), 0.25)
    for places, spread in ((False, 0.0), (True, 0.1)):
        with torch.inference_mode():
            tokens = golden_model(replace(MINI, places=places)).encode(image)
        found = (tokens - tokens.mean(dim=1, keepdim=True)).abs().max().item()
        assert found == pytest.approx(0.0, abs=1e-5) if not places else found > spread


@pytest.mark.parametrize("part", ["enc_places", "dec_places"])
def test_places_enter_both_encoder_and_decoders(part):
    model = golden_model(replace(MINI, places=True))
    size = (48, 64)
    with torch.inference_mode():
        before = model.decode(*(model.encode(golden_image(name, *size)) for name in "ab"), size)
        getattr(model, part).proj.weight.zero_()
        after = model.decode(*(model.encode(golden_image(name, *size)) for name in "ab"), size)
    assert all((getattr(after, name) - getattr(before, name)).abs().max() > 1e-3 for name in OUTPUTS)


def test_points_keep_their_direction_and_grow_exponentially():
    raw = torch.tensor([[3.0, 0.0, 4.0], [1e-4, 0.0, 0.0], [0.0, 0.0, 0.0]], requires_grad=True)
    points = points_from(raw)
    assert torch.allclose(points[0], raw[0] / 5 * (np.exp(5) - 1), rtol=1e-6)
    assert torch.allclose(points[1], torch.tensor([1.00005e-4, 0.0, 0.0]))
    assert torch.equal(points[2], torch.zeros(3))
    points.sum().backward()
    assert torch.isfinite(raw.grad).all()


def test_confidence_has_its_bounds():
    raw = torch.tensor([-50.0, 0.0, 2.0, 5.0])
    assert torch.allclose(confidence_from(raw, 1.0, float("inf")), 1 + raw.exp())
    assert confidence_from(raw, 1.0, 3.0).tolist() == [1.0, 2.0, 3.0, 3.0]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"enc_dim": 100}, "enc_dim must be a multiple of 4 x 16 heads, got 100"),
        ({"head": "catmlp"}, "head must be linear or dpt, got 'catmlp'"),
        ({"enc_depth": 10**9}, "enc_depth must be an integer from 1 to 64"),
        ({"dec_heads": 0}, "dec_heads must be an integer"),
        ({"enc_dim": True}, "enc_dim must be an integer"),
        ({"depth_mode": ("linear", 0.0, 1.0)}, "depth_mode must be"),
        ({"conf_mode": ("exp", 3.0, 1.0)}, "conf_mode must be"),
        ({"patch": 14}, "patch must be 16 for a DPT head"),
        ({"dec_depth": 1}, "dec_depth must be at least 2"),
        ({"img_size": (0, 512)}, "img_size must be two sides"),
        ({"rope_base": float("nan")}, "rope_base must be above 1"),
        ({"mlp_ratio": 0.0}, "mlp_ratio must be above 0"),
    ],
)
def test_impossible_architectures_are_refused(change, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        NetworkConfig(**change)
