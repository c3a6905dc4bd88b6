import copy
from dataclasses import replace

import pytest
import torch
from network_golden import MINI, golden_image, golden_model

from dust3r_ros.network import NetworkConfig, Pointmaps, for_inference, load_model, save_model
from dust3r_ros.network.inference import FastLinear
from dust3r_ros.network.rope import make_rotation, neighbours, rotate, rotate_neighbours

LINEAR = NetworkConfig(
    img_size=(48, 64), enc_dim=48, enc_depth=2, enc_heads=3, dec_dim=32, dec_depth=3, dec_heads=2, head="linear"
)
OUTPUTS = ("points_i", "conf_i", "points_j", "conf_j")


def predict(model, images, size_i, size_j) -> Pointmaps:
    with torch.inference_mode():
        a, b = (model.encode(image) for image in images)
        return model.decode(a, b, size_i, size_j)


def relative_errors(found: Pointmaps, expected: Pointmaps) -> list[float]:
    pairs = [(getattr(found, name), getattr(expected, name)) for name in OUTPUTS]
    return [float((one - other).norm() / other.norm()) for one, other in pairs]


@pytest.mark.parametrize("config", [MINI, LINEAR, replace(LINEAR, places=True)], ids=["dpt", "linear", "places"])
def test_it_computes_what_the_network_computes(config):
    model = golden_model(config)
    sizes = (48, 64), (64, 32)
    images = [golden_image("a", *sizes[0]).repeat(2, 1, 1, 1), golden_image("b", *sizes[1]).repeat(2, 1, 1, 1)]
    expected = predict(model, images, *sizes)
    found = predict(for_inference(model), images, *sizes)
    assert max(relative_errors(found, expected)) < 1e-5


def test_in_bfloat16_it_is_as_exact_as_the_network():
    """Against float32, on the trained network: what is rounded differently may not be rounded more."""
    exact = load_model("tiny", device="cpu", dtype="float32")
    size = (168, 224)
    images = [torch.rand(1, 3, *size, generator=torch.Generator().manual_seed(k)) * 2 - 1 for k in range(2)]
    expected = predict(exact, images, size, size)
    rounded = load_model("tiny", device="cpu", dtype="bfloat16")
    plain = relative_errors(predict(rounded, images, size, size), expected)
    fast = relative_errors(predict(for_inference(rounded), images, size, size), expected)
    assert max(fast) < 5e-3
    assert max(fast) < 1.2 * max(plain)


def test_the_network_it_is_made_of_stays_as_it_is():
    model = golden_model(MINI)
    before = copy.deepcopy(model.state_dict())
    fast = for_inference(model)
    assert fast is not model
    assert (fast.config, fast.source, fast.dtype) == (model.config, model.source, model.dtype)
    after = model.state_dict()
    assert list(after) == list(before)
    assert all(torch.equal(value, before[name]) for name, value in after.items())
    model.train()
    tokens = model.encode(golden_image("a", 32, 48))
    model.decode(tokens, tokens, (32, 48)).points_i.mean().backward()
    assert model.enc_blocks[0].attn.qkv.weight.grad is not None


def test_it_can_neither_be_stored_nor_moved(tmp_path):
    fast = for_inference(golden_model(MINI))
    with pytest.raises(TypeError, match="cannot be stored: store the one it was made of"):
        save_model(fast, tmp_path)
    assert not (tmp_path / "model.safetensors").exists()
    with pytest.raises(TypeError, match="cannot be moved"):
        fast.to(torch.float64)


def test_rotating_neighbours_leaves_products_as_they_are():
    grid, heads, dim = (3, 5), 2, 16
    rotation = make_rotation(grid, dim, 100.0, torch.device("cpu"))
    generator = torch.Generator().manual_seed(0)
    query, key = torch.randn(2, 1, grid[0] * grid[1], heads * dim, generator=generator)
    order = neighbours(heads, heads * dim)
    assert sorted(order.tolist()) == list(range(heads * dim))

    def split(x):
        return x.unflatten(-1, (heads, dim))

    expected = torch.einsum("bhnd,bhmd->bhnm", *(rotate(split(x).transpose(1, 2), rotation) for x in (query, key)))
    turned = (rotate_neighbours(split(x[..., order]), rotation) for x in (query, key))
    torch.testing.assert_close(torch.einsum("bnhd,bmhd->bhnm", *turned), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("rows", [1, 33, 700])
def test_a_linear_layer_is_the_same_for_any_number_of_tokens(dtype, rows):
    generator = torch.Generator().manual_seed(0)
    layer = torch.nn.Linear(48, 80).requires_grad_(False).to(dtype)
    x = torch.randn(2, rows, 48, generator=generator)
    expected = torch.nn.functional.linear(x.to(dtype).double(), layer.weight.double(), layer.bias.double())
    found = FastLinear(layer.weight, layer.bias)(x)
    assert found.dtype == dtype
    torch.testing.assert_close(found.double(), expected, rtol=1e-2 if dtype == torch.bfloat16 else 1e-5, atol=1e-2)
