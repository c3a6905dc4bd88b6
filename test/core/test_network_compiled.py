"""The network compiled: what it gives, and what is asked of the compiler. Compiling itself is slow, and tested once."""

import shutil

import pytest
import torch
from network_golden import MINI, golden_image, golden_model
from torch._dynamo.exc import TorchDynamoException

from dust3r_ros.config import ReconstructorConfig
from dust3r_ros.errors import ConfigError
from dust3r_ros.network import CompiledNetwork, NetworkPredictor, prepared_network
from dust3r_ros.pipeline import Reconstructor

SIZE = (32, 48)


@pytest.fixture
def asked(monkeypatch):
    """What is compiled, and how; it runs as it is."""
    calls = []

    def compile_(function, **how):
        calls.append((function.__name__, how))
        return function

    monkeypatch.setattr(torch, "compile", compile_)
    return calls


@pytest.fixture
def black_batches(monkeypatch, asked):
    """A predictor with a compiled network, and the numbers of images and pairs it is called with."""
    network = CompiledNetwork(golden_model(MINI))
    images, pairs = [], []
    encode, decode = network.encode, network.decode
    monkeypatch.setattr(network, "encode", lambda x: images.append(tuple(x.shape[2:])) or encode(x))
    monkeypatch.setattr(network, "decode", lambda a, b, *sizes: pairs.append(len(a)) or decode(a, b, *sizes))
    return NetworkPredictor(network), images, pairs


def test_it_gives_what_the_network_gives_and_keeps_tokens(asked):
    model = golden_model(MINI)
    network = prepared_network(model, "compiled")
    assert isinstance(network, CompiledNetwork)
    assert (network.config, network.source, network.dtype) == (model.config, model.source, model.dtype)
    with torch.inference_mode():
        tokens = [network.encode(golden_image(name, *SIZE)) for name in "ab"]
        expected = [model.encode(golden_image(name, *SIZE)) for name in "ab"]
        assert all(torch.equal(*both) for both in zip(tokens, expected, strict=True))
        found, reference = network.decode(*tokens, SIZE), model.decode(*expected, SIZE)
    assert torch.equal(found.points_j, reference.points_j)
    how = {"dynamic": False, "options": {"freezing": True}}
    assert asked == [("encode", how), ("decode", how)]


def test_tokens_are_not_the_memory_that_the_next_image_is_written_to(monkeypatch):
    out = torch.zeros(1, 6, MINI.enc_dim)
    monkeypatch.setattr(torch, "compile", lambda function, **how: lambda images: out.fill_(images.mean()))
    network = CompiledNetwork(golden_model(MINI))
    first = network.encode(torch.ones(1, 3, *SIZE))
    network.encode(torch.zeros(1, 3, *SIZE))
    assert (first == 1).all()


def test_batches_are_powers_of_two(black_batches):
    predictor, _, pairs = black_batches
    with torch.inference_mode():
        tokens = torch.zeros(1, 6, MINI.enc_dim)
    view = type("View", (), {"tokens": tokens, "size": SIZE})()
    assert len(predictor.predict([(view, view)] * 6)) == 6
    assert pairs == [4, 2]


def test_all_batches_are_compiled_and_recorded_beforehand(black_batches):
    predictor, images, pairs = black_batches
    predictor.warm_up(SIZE, 6)
    assert images == [SIZE] * 3
    assert pairs == [1, 2, 4] * 3


def test_a_reconstruction_warms_up_for_its_window(black_batches):
    predictor, images, pairs = black_batches
    Reconstructor(ReconstructorConfig(window=1), predictor).warm_up()
    assert images == [(48, 64)] * 3  # as a camera's 640x480 becomes
    assert pairs == [1, 2] * 3


def test_without_a_compiler_it_says_so(monkeypatch):
    def compile_(function, **how):
        def fails(*arguments):
            raise TorchDynamoException("No working C++ compiler found\nmore about it")

        return fails

    monkeypatch.setattr(torch, "compile", compile_)
    network = CompiledNetwork(golden_model(MINI))
    with pytest.raises(ConfigError, match=r"compiled cannot be used here: No working C\+\+ compiler found; eager"):
        NetworkPredictor(network).warm_up(SIZE, 1)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("c++") is None, reason="needs a C++ compiler")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of PyTorch's own
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_compiled_it_computes_the_same(dtype):
    model = golden_model(MINI)
    exact = NetworkPredictor(prepared_network(model, "eager"))
    images = [golden_image(name, *SIZE) for name in "ab"]
    with torch.inference_mode():
        expected = exact.model.decode(*(exact.model.encode(image) for image in images), SIZE)
        network = CompiledNetwork(model.set_dtype(dtype))
        found = network.decode(*(network.encode(image) for image in images), SIZE)
    for name in ("points_i", "conf_i", "points_j", "conf_j"):
        one, other = getattr(found, name), getattr(expected, name)
        assert float((one - other).norm() / other.norm()) < (1e-5 if dtype == torch.float32 else 5e-2)
