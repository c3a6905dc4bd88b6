import logging

import numpy as np
import pytest
import torch
from network_golden import MINI, golden_model

from dust3r_ros.data import ImageTransform, PairState, PreparedImage
from dust3r_ros.errors import DeviceMemoryError
from dust3r_ros.network import ModelSource, NetworkConfig, NetworkPredictor
from dust3r_ros.predictor import ImageSize, PairPredictor, PredictorInfo


class CountingPredictor(NetworkPredictor):
    """Remembers how many images and pairs the network worked on at a time."""

    def __init__(self, model, **options):
        super().__init__(model, **options)
        self.encoded, self.decoded = [], []
        encode, decode = model.encode, model.decode

        def counting_encode(images):
            self.encoded.append(len(images))
            return encode(images)

        def counting_decode(tokens_i, tokens_j, *sizes):
            self.decoded.append(len(tokens_i))
            return decode(tokens_i, tokens_j, *sizes)

        model.encode, model.decode = counting_encode, counting_decode


@pytest.fixture
def model():
    return golden_model(MINI)


def picture(seed: int, height: int, width: int) -> PreparedImage:
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    pixels.flags.writeable = False
    return PreparedImage(pixels, ImageTransform(1, 1, 0, 0, width, height, width, height))


def assert_same(one, other):
    for name in ("points_i", "conf_i", "points_j", "conf_j"):
        np.testing.assert_allclose(getattr(one, name), getattr(other, name), rtol=1e-4, atol=1e-4)


def test_it_is_a_pair_predictor_and_says_what_runs(model):
    model.source = ModelSource("mine", trained=True, licence="Apache-2.0")
    predictor = NetworkPredictor(model)
    assert isinstance(predictor, PairPredictor)
    assert predictor.info == PredictorInfo("mine", True, "Apache-2.0", "cpu")
    assert predictor.image_size == ImageSize(64, 16)
    assert NetworkConfig(img_size=(224, 224), square=True).image_size == ImageSize(224, 16, square=True)
    assert NetworkConfig().image_size == ImageSize(512, 16)


def test_images_are_encoded_once_and_pairs_decoded_in_bounded_batches(model):
    predictor = CountingPredictor(model, max_pairs=4)
    views = [predictor.encode(picture(k, 32, 48), "camera") for k in range(4)]
    predictions = predictor.predict([(i, j) for i in views for j in views if i is not j])
    assert predictor.encoded == [1, 1, 1, 1]
    assert predictor.decoded == [4, 4, 4]
    assert len(predictions) == 12


def test_mixed_sizes_keep_their_order_and_equal_single_pairs(model):
    predictor = CountingPredictor(model)
    landscape = [predictor.encode(picture(k, 32, 48), "camera") for k in range(2)]
    portrait = [predictor.encode(picture(k, 48, 32), "camera") for k in range(2, 4)]
    pairs = [
        (landscape[0], landscape[1]),
        (landscape[0], portrait[0]),
        (portrait[0], landscape[0]),
        (landscape[1], landscape[0]),
        (portrait[1], portrait[0]),
    ]
    together = predictor.predict(pairs)
    assert sorted(predictor.decoded) == [1, 1, 1, 2]
    for prediction, (i, j) in zip(together, pairs, strict=True):
        assert prediction.points_i.shape == (*i.size, 3)
        assert prediction.points_j.shape == (*j.size, 3)
        assert prediction.conf_j.shape == j.size
        assert prediction.points_i.dtype == prediction.conf_i.dtype == np.float32
        assert prediction.state is PairState.GOOD
        assert_same(prediction, predictor.predict([(i, j)])[0])
    assert not np.allclose(together[0].points_i, together[3].points_j, rtol=1e-2)


def test_pixels_become_minus_one_to_one(model):
    seen = []
    model.encode = lambda images: seen.append(images) or torch.zeros(1, 4, 32)
    image = picture(0, 32, 32)
    NetworkPredictor(model).encode(image, "camera")
    expected = image.pixels.transpose(2, 0, 1)[None] / 255 * 2 - 1
    np.testing.assert_allclose(seen[0].numpy(), expected, atol=1e-6)
    assert seen[0].dtype == torch.float32


def test_no_pairs_give_no_predictions(model):
    assert NetworkPredictor(model).predict([]) == []


def test_tokens_and_outputs_need_no_gradients(model):
    predictor = NetworkPredictor(model)
    assert predictor.encode(picture(0, 32, 32), "camera").tokens.is_inference()


def test_points_that_overflow_are_left_out(model, caplog):
    with torch.no_grad():
        model.downstream_head2.dpt.head[4].bias[0] = 200.0  # expm1(200) is beyond float32
    predictor = NetworkPredictor(model)
    a, b = (predictor.encode(picture(k, 32, 32), "camera") for k in range(2))
    with caplog.at_level(logging.WARNING):
        (prediction,) = predictor.predict([(a, b)])
    assert prediction.state is PairState.FAILED
    assert np.isfinite(prediction.points_j).all()
    assert (prediction.conf_j == 0).all()
    assert (prediction.conf_i >= 1).all()
    assert "1024 of 1024 predicted points are not finite" in caplog.text


def test_batches_must_hold_a_pair(model):
    with pytest.raises(ValueError, match="max_pairs must be at least 1, got 0"):
        NetworkPredictor(model, max_pairs=0)


def short_of_memory(model, pairs: int) -> None:
    """The device has memory for so many pairs at once, and no more."""
    decode = model.decode

    def limited(tokens_i, tokens_j, *sizes):
        if len(tokens_i) > pairs:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory")
        return decode(tokens_i, tokens_j, *sizes)

    model.decode = limited


def test_batches_shrink_to_what_the_device_has_memory_for_and_nothing_is_lost(model, caplog):
    views = [NetworkPredictor(model).encode(picture(k, 32, 48), "camera") for k in range(4)]
    pairs = [(i, j) for i in views for j in views if i is not j]
    expected = NetworkPredictor(model, max_pairs=12).predict(pairs)
    short_of_memory(model, 2)
    predictor = CountingPredictor(model, max_pairs=8)
    with caplog.at_level(logging.WARNING):
        found = predictor.predict(pairs)
    assert predictor.decoded == [8, 4, 2, 2, 2, 2, 2, 2]
    for one, other in zip(found, expected, strict=True):
        assert_same(one, other)
    assert [record.message for record in caplog.records] == [
        "cpu has no memory for 8 pairs at once: 4 from now on",
        "cpu has no memory for 4 pairs at once: 2 from now on",
    ]
    predictor.predict(pairs)
    assert predictor.decoded[8:] == [2] * 6


def test_memory_for_no_pair_or_no_image_is_said(model):
    views = [NetworkPredictor(model).encode(picture(k, 32, 48), "camera") for k in range(2)]
    short_of_memory(model, 0)
    with pytest.raises(DeviceMemoryError, match="cpu has no memory for a pair of images"):
        NetworkPredictor(model, max_pairs=4).predict([(views[0], views[1])])

    def encode(images):
        raise torch.cuda.OutOfMemoryError("CUDA out of memory")

    model.encode = encode
    with pytest.raises(DeviceMemoryError, match="cpu has no memory for an image"):
        NetworkPredictor(model).encode(picture(0, 32, 48), "camera")


def test_memory_for_no_descriptor_is_said(model, monkeypatch):
    view = NetworkPredictor(model).encode(picture(0, 32, 48), "camera")

    def randn(*given, **options):
        raise torch.cuda.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(torch, "randn", randn)
    with pytest.raises(DeviceMemoryError, match="cpu has no memory to describe an image"):
        NetworkPredictor(model).describe(view)


@pytest.mark.parametrize(("size", "batches"), [((32, 48), [8, 4]), ((224, 224), [4, 4, 4]), ((512, 384), [1] * 12)])
def test_batches_on_a_processor_fill_its_products_and_no_more(monkeypatch, size, batches):
    """Of 12 pairs of a network as large as ViT-Large's decoder, with one thread."""
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    config = NetworkConfig(img_size=(64, 64), enc_dim=32, enc_depth=1, enc_heads=2, dec_dim=768, dec_depth=2,
                           dec_heads=2, head="linear")  # fmt: skip
    predictor = NetworkPredictor(golden_model(config))
    left, found = 12, []
    while left:
        found.append(predictor._batch(left, size))
        left -= found[-1]
    assert found == batches
