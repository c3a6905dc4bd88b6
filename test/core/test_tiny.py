"""The model that is shipped: floors that its weights must hold on fixed rendered pairs and on a real stereo pair."""

from __future__ import annotations

from types import ModuleType

import pytest
from programs import ROOT, load_program

from dust3r_ros.config import ReconstructorConfig
from dust3r_ros.evaluation.pairs import Guess, evaluate_pairs
from dust3r_ros.network import load_model
from dust3r_ros.network.weights import locate
from dust3r_ros.pair_errors import PairErrors
from dust3r_ros.pipeline import load_predictor

PAIRS = 40


@pytest.fixture(scope="module")
def benchmark() -> ModuleType:
    return load_program(ROOT / "benchmark" / "pairs.py")


def median_of(pairs, predictor) -> PairErrors:
    return evaluate_pairs(pairs, predictor).median


def test_it_is_small_and_says_what_it_is():
    model = load_model("tiny", device="cpu")
    assert (model.source.name, model.source.trained, model.source.licence) == ("tiny", True, "Apache-2.0")
    assert (locate("tiny") / "model.safetensors").stat().st_size <= 50e6
    assert sum(p.numel() for p in model.parameters()) <= 25e6
    assert model.config.image_size.long_side == 224


def test_it_is_better_than_the_guess_on_rendered_pairs(benchmark):
    pairs = benchmark.rendered_pairs(PAIRS)
    found, guess = (
        median_of(pairs, p) for p in (load_predictor(ReconstructorConfig(checkpoint="tiny", device="cpu")), Guess())
    )
    assert found.rotation_deg < 0.35 * guess.rotation_deg
    assert found.direction_deg < 0.5 * guess.direction_deg
    assert found.absrel < 0.37 * guess.absrel


def test_it_holds_its_floors_on_a_real_stereo_pair(benchmark):
    pytest.importorskip("skimage", reason="needs scikit-image")
    found = median_of(benchmark.stereo_pair(), load_predictor(ReconstructorConfig(checkpoint="tiny", device="cpu")))
    assert found.absrel < 0.15  # the guess: 0.21
