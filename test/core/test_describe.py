"""Descriptors by which places are found again: the way back of a rendered walk is compared with the way there."""

import numpy as np
import pytest
import torch
from revisiting import Wrapped, there_and_back

from dust3r_ros.geometric import GeometricPredictor
from dust3r_ros.images import prepare
from dust3r_ros.network import Dust3rNetwork, NetworkPredictor
from dust3r_ros.predictor import ImageSize, PairPredictor
from dust3r_ros.training.architectures import ARCHITECTURES, initialised
from dust3r_ros.training.truth import TruePredictor


@pytest.fixture(scope="module")
def walk():
    return there_and_back(16)


def predictors(walk):
    network = initialised(Dust3rNetwork(ARCHITECTURES["tiny"]), torch.Generator().manual_seed(0))
    return {
        "truth": TruePredictor(walk, image_size=ImageSize(112)),
        "geometric": GeometricPredictor(160),
        "network": NetworkPredictor(network),  # random weights: a trained one can only know more
    }


@pytest.mark.parametrize("name", ["truth", "geometric", "network"])
def test_the_way_back_is_recognised(walk, name):
    predictor = predictors(walk)[name]
    described = []
    for frame in walk:
        image = prepare(frame.image, predictor.image_size)
        described.append(predictor.describe(predictor.encode(image, "camera")))
    described = np.array(described)
    assert described.ndim == 2 and described.shape[1] <= 4096 and np.isfinite(described).all()
    np.testing.assert_allclose(np.linalg.norm(described, axis=1), 1.0, atol=1e-3)
    half = len(walk) // 2
    there, back = described[:half], described[half:][::-1]
    likeness = back @ there.T
    nearest = likeness.argmax(axis=1)
    assert (np.abs(nearest - np.arange(half)) <= 3).mean() >= 0.8  # 4 of 10 by chance


def test_an_image_without_features_has_a_descriptor_that_is_like_nothing():
    predictor = GeometricPredictor(160)
    blank = predictor.encode(prepare(np.full((120, 160, 3), 128, np.uint8), predictor.image_size), "camera")
    np.testing.assert_array_equal(predictor.describe(blank), 0.0)


def test_a_predictor_need_not_describe(walk):
    class Plain(Wrapped):
        describe = PairPredictor.describe

    assert Plain(predictors(walk)["truth"]).describe(None) is None
